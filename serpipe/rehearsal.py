"""A run in small, without Ray and without a store: as many workers as this machine would have, for a few minutes.

Decoders and models work side by side, so that each is as fast as beside the other. What a worker tells are seconds in
which it worked, not those in which it waited; so a stage that is rarely asked is measured as well as one that lags.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from serpipe.audio.recording import UNIT_S
from serpipe.audio.source import is_remote
from serpipe.audio.stage import Decode
from serpipe.forecast import Range, Rehearsal, Stage
from serpipe.models.contract import SAMPLE_RATE
from serpipe.models.registry import ModelRef
from serpipe.pack import rows_of
from serpipe.store.storage import Storage

DECODE_SHARE = 0.2
"""Share of a rehearsal after which decoders wait for models that are slower than they."""

ENOUGH_S = 900.0
"""Seconds of a long local recording that are decoded."""

WARM_S = 10.0
"""Seconds of audio that a model hears before it counts."""

PIECE_S = 60.0
"""Seconds of segments that a slow model labels at least before the clock is looked at: a micro-batch."""

TURN_S = 5.0
"""Seconds of a quick model's work between two looks at the clock."""

HELD = 4
"""Packs that a decoder keeps while it does not wait; more are left to themselves."""

_READY_S = 900.0

_BOOTSTRAPS = 400

Batch = tuple[str, pa.Table]
"""Recordings of one kind, and what that kind is called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Company:
    """The workers of a rehearsal.

    Attributes:
        decoders: decode processes.
        decode: keyword arguments of `Decode`.
        models: what every model process hosts.
        actors: model processes.
        threads: of each of them.
        gpu: whether each has a GPU of its own.
        embeddings: `utterance`, `frame` or `none`.
        audio: audio fingerprint.
    """

    decoders: int
    decode: Mapping[str, Any]
    models: tuple[ModelRef, ...]
    actors: int
    threads: int
    gpu: bool
    embeddings: str
    audio: str


@dataclass(slots=True)
class Decoded:
    """One batch that was decoded.

    Attributes:
        kind: of its recordings.
        audio_s: seconds of them.
        busy_s: seconds of work.
        labelled_s: seconds of all their segments.
        segments: number of them.
        packs: that it came in.
        ended: recordings brought to an end.
        failed: of these, with an error.
    """

    kind: str
    audio_s: float = 0.0
    busy_s: float = 0.0
    labelled_s: float = 0.0
    segments: int = 0
    packs: int = 0
    ended: int = 0
    failed: int = 0


@dataclass(slots=True)
class _Labelled:
    """What a model process did: seconds of segments and of work by model, before and after decoders had to wait."""

    heard_s: dict[tuple[str, bool], float] = field(default_factory=lambda: defaultdict(float))
    busy_s: dict[tuple[str, bool], float] = field(default_factory=lambda: defaultdict(float))
    cpu_s: dict[tuple[str, bool], float] = field(default_factory=lambda: defaultdict(float))
    written_s: float = 0.0
    sink_cpu_s: float = 0.0
    bytes: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Clock:
    """What all processes agree on; monotonic seconds are those of the machine."""

    go: Any
    until: Any
    rush_until: Any

    @property
    def over(self) -> bool:
        return time.monotonic() >= float(self.until.value)

    @property
    def rushing(self) -> bool:
        return time.monotonic() < float(self.rush_until.value)


def rehearse(batches: Sequence[Batch], company: Company, *, seconds: float, shares: Mapping[str, float]) -> Rehearsal:
    """Decode and label a sample as a run on this machine would.

    Args:
        batches: in an order of which every beginning stands for the whole.
        company: the workers.
        seconds: after which no new work is begun; what is under way is ended.
        shares: of all audio, that of each kind.

    Returns:
        What each stage takes for a second of audio of the mix that `shares` describes.
    """
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")
    clock = _Clock(context.Event(), context.Value("d", 0.0), context.Value("d", 0.0))
    packs, told = context.Queue(maxsize=2 * company.actors), context.Queue()
    common = (company, clock, packs, told)
    jobs: list[tuple[Any, Any]] = [(_decoder, batches[i :: company.decoders]) for i in range(company.decoders)]
    jobs += [(_labeller, place) for place in range(company.actors)]
    workers = [context.Process(target=job, args=(mine, *common), daemon=True) for job, mine in jobs]
    try:
        for worker in workers:
            worker.start()
        ready = [_next(told, workers, _READY_S) for _ in workers]
        started = time.monotonic()
        clock.rush_until.value = started + DECODE_SHARE * seconds
        clock.until.value = started + seconds
        clock.go.set()
        decoded: list[Decoded] = []
        cpu_s = 0.0
        dropped = False
        for _ in range(company.decoders):
            done, cpu, lost = _next(told, workers, seconds + _READY_S, kind="decoded")
            decoded += done
            cpu_s += cpu
            dropped = dropped or lost
        for _ in range(company.actors):
            packs.put(None)
        labelled = [_next(told, workers, _READY_S, kind="labelled")[0] for _ in range(company.actors)]
    finally:
        for worker in workers:
            if worker.pid is not None:
                worker.kill()
                worker.join()
    loads = [at - began for kind, at in ready if kind == "labeller"]
    return _summary(
        decoded,
        labelled,
        company,
        shares=shares,
        decode_cpu=cpu_s / max(sum(batch.busy_s for batch in decoded), 1e-9),
        waited=dropped,
        took_s=time.monotonic() - began,
        start_s=started - began,
        load_s=min(loads, default=0.0),
    )


def _next(told: Any, workers: Sequence[Any], seconds: float, kind: str | None = None) -> Any:
    """The next word of a worker; a worker that died or failed is an error."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            said, *rest = told.get(timeout=1.0)
        except queue.Empty:
            if any(worker.exitcode not in (None, 0) for worker in workers):
                raise RuntimeError("a worker of the rehearsal died; it may have been short of memory") from None
            continue
        if said == "failed":
            raise rest[0]
        assert kind in (None, said), (kind, said)
        return rest if kind else (said, *rest)
    raise RuntimeError("the rehearsal's workers do not answer; the machine may be overloaded")


def _decoder(batches: Sequence[Batch], company: Company, clock: _Clock, packs: Any, told: Any) -> None:
    try:
        decode = _warm_decoder(company)
        told.put(("decoder", time.monotonic()))
        clock.go.wait()
        done: list[Decoded] = []
        before_s, cpu_s = _cpu_s(), 0.0
        gate = _Gate(clock, packs)
        for kind, rows in batches:
            if clock.over:
                break
            batch = Decoded(kind)
            done.append(batch)
            for pack in _decoded(decode, rows, batch):
                gate.give(pack.combine_chunks())
            if _left_half_way(rows):
                # The child that is given up is replaced here, not in the next batch's time.
                cpu_s += _cpu_s() - before_s
                decode = _warm_decoder(company)
                before_s = _cpu_s()
        cpu_s += _cpu_s() - before_s
        gate.empty()
        told.put(("decoded", done, cpu_s, gate.waited))
    except BaseException as error:
        told.put(("failed", RuntimeError(f"the rehearsal cannot decode ({type(error).__name__}: {error})")))


def _warm_decoder(company: Company) -> Decode:
    import soundfile

    decode = Decode(**company.decode)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "warm.wav")
        soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(8 * SAMPLE_RATE), SAMPLE_RATE)
        for _ in decode(pa.Table.from_pylist([{"recording_id": bytes(16), "uri": path}])):
            pass
    return decode


def _left_half_way(rows: pa.Table) -> bool:
    return rows.num_rows == 1 and not is_remote(rows["uri"][0].as_py()) and rows["work_s"][0].as_py() > ENOUGH_S


def _decoded(decode: Decode, rows: pa.Table, batch: Decoded) -> Iterator[pa.Table]:
    """Decode a batch and note what it took; of one long recording a part."""
    part = _left_half_way(rows)
    reached_s = 0.0
    packs = decode(rows)
    while True:
        began = time.perf_counter()
        pack = next(packs, None)
        batch.busy_s += time.perf_counter() - began
        if pack is None:
            break
        segments, units = rows_of(pack, "segments"), rows_of(pack, "units")
        ended = rows_of(pack, "recordings")["duration_s"].to_pylist()
        failed = sum(status in ("failed", "open") for status in units["status"].to_pylist())
        batch.packs += 1
        batch.segments += segments.num_rows
        batch.labelled_s += _heard_s(pack)
        batch.ended += len(ended) + failed
        batch.failed += failed
        if part and not ended and not failed:
            reached_s += UNIT_S * len(set(units["unit"].to_pylist())) / _channels(segments)
            yield pack
            if reached_s >= ENOUGH_S:
                packs.close()  # type: ignore[attr-defined]
                break
            continue
        batch.audio_s += sum(ended)
        reached_s = 0.0
        yield pack
    batch.audio_s += reached_s


def _channels(segments: pa.Table) -> int:
    return max(len(set(segments["channel"].to_pylist())), 1)


class _Gate:
    """Between a decoder and the models: at first it lets packs through only where there is room, later it waits."""

    def __init__(self, clock: _Clock, packs: Any) -> None:
        self._clock, self._packs = clock, packs
        self._held: list[pa.Table] = []
        self.waited = False

    def give(self, pack: pa.Table) -> None:
        if len(self._held) < HELD:
            self._held.append(pack)
        if self._clock.rushing:
            self._try(0.0)
        else:
            self.empty()

    def empty(self) -> None:
        """Hand on what is held, as the models take it."""
        while self._held and not self._clock.over:
            self._try(0.5)

    def _try(self, seconds: float) -> None:
        try:
            self._packs.put(self._held[0], timeout=seconds)
            del self._held[0]
        except queue.Full:
            self.waited = True


def _labeller(place: int, company: Company, clock: _Clock, packs: Any, told: Any) -> None:
    try:
        if company.gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = str(place)
        from serpipe.models.stage import Predict

        stages = {
            model.name: Predict(
                [model],
                embeddings=company.embeddings,
                keep_audio=True,
                device="cuda" if company.gpu else "cpu",
                threads=company.threads,
            )
            for model in company.models
        }
        done, kept = _Labelled(), _Kept(company)
        told.put(("labeller", time.monotonic()))
        clock.go.wait()
        pace: dict[str, float] = {}
        while (pack := packs.get()) is not None:
            for piece in _pieces(pack, stages, pace, clock):
                labelled = piece
                if clock.over:
                    break
                heard_s = _heard_s(piece)
                for name, stage in stages.items():
                    began, cpu = time.perf_counter(), time.process_time()
                    labelled = stage(labelled)
                    busy_s, cpu = time.perf_counter() - began, time.process_time() - cpu
                    if name in pace or not heard_s:
                        phase = (name, clock.rushing)
                        done.heard_s[phase] += heard_s
                        done.busy_s[phase] += busy_s
                        done.cpu_s[phase] += cpu
                    if heard_s:
                        pace[name] = busy_s / heard_s
                kept.add(labelled, heard_s)
        kept.write(done)
        told.put(("labelled", done))
    except BaseException as error:
        told.put(("failed", RuntimeError(f"the rehearsal cannot label ({type(error).__name__}: {error})")))


def _heard_s(pack: pa.Table) -> float:
    return float(rows_of(pack, "segments")["length"].to_numpy().sum()) / SAMPLE_RATE


def _pieces(pack: pa.Table, stages: Mapping[str, Any], pace: Mapping[str, float], clock: _Clock) -> Iterator[pa.Table]:
    """A pack in pieces between which the clock is looked at; a first short one where the models are cold."""
    segments = pack["segments"].combine_chunks().flatten()
    lengths = segments.field("length").to_numpy() / SAMPLE_RATE
    start = 0
    while start < len(lengths) and not clock.over:
        cold = any(name not in pace for name in stages)
        most = WARM_S if cold else max(PIECE_S, TURN_S / max(sum(pace.values()), 1e-9))
        count = max(int(np.searchsorted(np.cumsum(lengths[start:]), most, side="right")), 1)
        rows = segments.slice(start, count)
        offsets = pa.array([0, len(rows)], pa.int32())
        column = pack.schema.get_field_index("segments")
        yield pack.set_column(column, pack.schema.field(column), pa.ListArray.from_arrays(offsets, rows))
        start += count


class _Kept:
    """Labelled packs, and what writing them costs."""

    def __init__(self, company: Company) -> None:
        self._company = company
        self._packs: list[pa.Table] = []
        self._heard_s = 0.0

    def add(self, pack: pa.Table, heard_s: float) -> None:
        self._packs.append(pack.drop_columns(["audio"]))
        self._heard_s += heard_s

    def write(self, done: _Labelled) -> None:
        """Write all as one commit, into memory."""
        from serpipe.store import commit
        from serpipe.store.rows import RunFacts, commit_of

        if not self._packs:
            return
        began = time.process_time()
        models = {model.name: model.fp for model in self._company.models}
        facts = RunFacts(run_id="rehearsal", audio=self._company.audio, models=models)
        storage = Storage("memory://rehearsal")
        commit.write(storage, commit_of(self._packs, facts))
        done.sink_cpu_s = time.process_time() - began
        done.written_s = self._heard_s
        for name in storage.list(""):
            table = name.split("/", 1)[0]
            done.bytes[table] = done.bytes.get(table, 0) + int(storage.fs.size(storage.path(name)))


def _summary(
    decoded: Sequence[Decoded],
    labelled: Sequence[_Labelled],
    company: Company,
    *,
    shares: Mapping[str, float],
    decode_cpu: float,
    waited: bool,
    took_s: float,
    start_s: float,
    load_s: float,
) -> Rehearsal:
    busy_s = _mixed(decoded, shares, "busy_s")
    heard = _mixed(decoded, shares, "labelled_s")
    written_s = max(sum(each.written_s for each in labelled), 1e-9)
    models = {}
    for model in company.models:
        per, cpu = _pace(labelled, model.name, waited=waited)
        models[model.name] = Stage(busy_s=per * heard, cpu_s=cpu * heard, where="cuda" if company.gpu else "cpu")
    sizes: dict[str, float] = defaultdict(float)
    for each in labelled:
        for table, count in each.bytes.items():
            sizes[table] += count / written_s * heard
    audio_s = sum(batch.audio_s for batch in decoded)
    return Rehearsal(
        took_s=took_s,
        recordings=sum(batch.ended for batch in decoded),
        failed=sum(batch.failed for batch in decoded),
        audio_s=audio_s,
        pack_s=audio_s / max(sum(batch.packs for batch in decoded), 1),
        decode=Stage(busy_s=busy_s, cpu_s=busy_s * decode_cpu),
        models=models,
        sink_cpu_s=sum(each.sink_cpu_s for each in labelled) / written_s * heard,
        segments=_segments(decoded, shares),
        bytes=dict(sorted(sizes.items())),
        start_s=start_s,
        load_s=load_s,
    )


def _pace(labelled: Sequence[_Labelled], model: str, *, waited: bool) -> tuple[float, float]:
    """Seconds and core-seconds of one process for a second of segments.

    Where decoders had to wait for the models in the end, they have not in the run's beginning alone: what was measured
    beside decoders at full speed is left out.
    """

    def total(phases: Sequence[bool]) -> tuple[float, float, float]:
        keys = [(model, phase) for phase in phases]
        sums = [
            sum(source.get(key, 0.0) for each in labelled for source in (getattr(each, name),) for key in keys)
            for name in ("heard_s", "busy_s", "cpu_s")
        ]
        return sums[0], sums[1], sums[2]

    heard_s, busy_s, cpu_s = total([False]) if waited else total([False, True])
    if heard_s < PIECE_S:
        heard_s, busy_s, cpu_s = total([False, True])
    return busy_s / max(heard_s, 1e-9), cpu_s / max(heard_s, 1e-9)


def _mixed(decoded: Sequence[Decoded], shares: Mapping[str, float], name: str) -> float:
    """So much of something for a second of audio: each kind by its share of all, not of what was rehearsed."""
    sums: dict[str, tuple[float, float]] = {}
    for batch in decoded:
        value, audio_s = sums.get(batch.kind, (0.0, 0.0))
        sums[batch.kind] = (value + float(getattr(batch, name)), audio_s + batch.audio_s)
    known = {kind: value / audio_s for kind, (value, audio_s) in sums.items() if audio_s}
    weight = sum(shares.get(kind, 0.0) for kind in known)
    if not weight:
        return 0.0
    return sum(rate * shares.get(kind, 0.0) for kind, rate in known.items()) / weight


def _segments(decoded: Sequence[Decoded], shares: Mapping[str, float]) -> Range:
    """Segments of a second of audio, and how far another sample could be from it."""
    value = _mixed(decoded, shares, "segments")
    random = np.random.default_rng(0)
    drawn = [
        _mixed([decoded[i] for i in random.integers(0, len(decoded), len(decoded))], shares, "segments")
        for _ in range(_BOOTSTRAPS if len(decoded) > 1 else 0)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975]) if drawn else (value, value)
    return Range(value, min(float(low), value), max(float(high), value))


def _cpu_s() -> float:
    """Core-seconds of this process and of its children so far."""
    total = time.process_time()
    ticks = os.sysconf("SC_CLK_TCK")
    for about in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = about.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            total += (int(fields[11]) + int(fields[12])) / ticks
    return total
