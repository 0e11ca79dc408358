"""The decode processes of a rehearsal."""

from __future__ import annotations

import os
import queue
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serpipe.audio.ahead import Copy
from serpipe.audio.recording import UNIT_S
from serpipe.audio.source import is_remote
from serpipe.audio.stage import Decode
from serpipe.errors import AudioError
from serpipe.models.contract import SAMPLE_RATE
from serpipe.pack import rows_of
from serpipe.rehearsal.company import Batch, Clock, Company, Decoded, heard_s

ENOUGH_S = 900.0
"""Seconds of a long local recording that are decoded."""

HELD = 4
"""Packs that a decoder keeps while it does not wait; more are left to themselves."""

_WARM_S = 8


def work(batches: Sequence[Batch], company: Company, clock: Clock, packs: Sequence[Any], told: Any) -> None:
    """Decode batches until the time is over; tell `decoder` when ready, and `decoded` at the end.

    Args:
        batches: in an order of which every beginning stands for the whole.
        company: the workers.
        clock: when to begin and to end.
        packs: queue to each pool of models; a decoder knows the first.
        told: queue to who asked.
    """
    try:
        decode = _warm(company)
        told.put(("decoder", time.monotonic(), -1))
        clock.go.wait()
        done: list[Decoded] = []
        before_s, cpu_s = _cpu_s(), 0.0
        gate = _Gate(clock, packs[0])
        least_s = max((model.spec.min_seconds for crew in company.crews for model in crew.models), default=0.0)
        shortest = round(least_s * SAMPLE_RATE)
        with closing(_one_ahead(batches)) as coming:
            for kind, ahead in coming:
                # Of a machine so busy that the time is over before any work began, one batch still tells something.
                if clock.over and done:
                    break
                batch = Decoded(kind)
                done.append(batch)
                for pack in _decoded(decode, ahead, batch, shortest):
                    gate.give(pack.combine_chunks())
                if _in_part(ahead.rows):
                    # The child that is given up is replaced here, not in the next batch's time.
                    cpu_s += _cpu_s() - before_s
                    decode = _warm(company)
                    before_s = _cpu_s()
        cpu_s += _cpu_s() - before_s
        gate.empty()
        told.put(("decoded", done, cpu_s, gate.waited))
    except BaseException as error:
        told.put(("failed", error))


class _Ahead:
    """A batch whose first file is fetched while the batch before is decoded, as a run fetches its next read task's."""

    def __init__(self, rows: pa.Table, pool: ThreadPoolExecutor) -> None:
        self.rows = rows
        self._copy = Copy(rows.slice(0, 1).to_pylist()[0], pool)

    def at_hand(self) -> pa.Table:
        """The batch with that file where it was copied to; what cannot be had is told by decoding it."""
        try:
            uris = [self._copy.__enter__(), *self.rows["uri"].to_pylist()[1:]]
        except AudioError:
            return self.rows
        column = self.rows.schema.get_field_index("uri")
        return self.rows.set_column(column, self.rows.schema.field(column), pa.array(uris, pa.string()))

    def close(self) -> None:
        """Delete what was copied."""
        self._copy.close()


def _one_ahead(batches: Sequence[Batch]) -> Generator[tuple[str, _Ahead], None, None]:
    """Batches, the next one's first file on its way while one is used."""
    with ThreadPoolExecutor(1) as pool:
        coming: list[_Ahead] = []
        try:
            for place, (kind, _) in enumerate(batches):
                coming += [_Ahead(rows, pool) for _, rows in batches[place + len(coming) : place + 2]]
                yield kind, coming[0]
                coming.pop(0).close()
        finally:
            for ahead in coming:
                ahead.close()


class _Gate:
    """Between a decoder and the models: at first it lets packs through only where there is room, later it waits."""

    def __init__(self, clock: Clock, packs: Any) -> None:
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
        while self._held:
            self._try(0.5)
            if self._clock.over:
                return

    def _try(self, seconds: float) -> None:
        try:
            self._packs.put(self._held[0], timeout=seconds)
            del self._held[0]
        except queue.Full:
            self.waited = True


def _warm(company: Company) -> Decode:
    """A decode stage whose child has started and whose codecs are loaded."""
    import soundfile

    decode = Decode(**company.decode)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "warm.wav")
        noise = 0.1 * np.random.default_rng(0).standard_normal(_WARM_S * SAMPLE_RATE)
        soundfile.write(path, noise, SAMPLE_RATE)
        for _ in decode(pa.Table.from_pylist([{"recording_id": bytes(16), "uri": path}])):
            pass
    return decode


def _in_part(rows: pa.Table) -> bool:
    """Whether of a batch a part is enough: one long recording that need not be fetched first."""
    return rows.num_rows == 1 and not is_remote(rows["uri"][0].as_py()) and rows["work_s"][0].as_py() > ENOUGH_S


def _decoded(decode: Decode, ahead: _Ahead, batch: Decoded, shortest: int) -> Iterator[pa.Table]:
    """Decode a batch and note what it took, and what of it is silent, broken or too short for the models."""
    part = _in_part(ahead.rows)
    reached_s = 0.0
    in_quarantine: set[bytes] = set()
    over: set[bytes] = set()
    began = time.perf_counter()
    packs = decode(ahead.at_hand())
    batch.busy_s += time.perf_counter() - began
    while not part or reached_s < ENOUGH_S:
        began = time.perf_counter()
        pack = next(packs, None)
        batch.busy_s += time.perf_counter() - began
        if pack is None:
            break
        segments, units = rows_of(pack, "segments"), rows_of(pack, "units")
        ended = rows_of(pack, "recordings")["duration_s"].to_pylist()
        wrong = units.filter(pc.is_in(units["status"], value_set=pa.array(["failed", "open"])))["recording_id"]
        failed = len(wrong)
        # As a run counts: one segment in quarantine is enough.
        short = segments.filter(pc.less(segments["length"], shortest))["recording_id"]
        for those in (wrong, rows_of(pack, "failures")["recording_id"], short):
            in_quarantine.update(those.to_pylist())
        # Of a long one that is left before its end nothing more than its audio counts.
        over.update(wrong.to_pylist(), rows_of(pack, "recordings")["recording_id"].to_pylist())
        batch.packs += 1
        batch.segments += segments.num_rows
        batch.labelled_s += heard_s(pack)
        batch.ended += len(ended) + failed
        batch.failed = len(in_quarantine & over)
        if ended or failed:
            batch.audio_s += sum(ended)
            reached_s = 0.0
        elif part:
            channels = max(len(set(segments["channel"].to_pylist())), 1)
            reached_s += UNIT_S * units.num_rows / channels
        yield pack
    batch.audio_s += reached_s
    packs.close()  # type: ignore[attr-defined]


def _cpu_s() -> float:
    """Core-seconds of this process and of its children so far, ended ones too."""
    ended = os.times()
    total = time.process_time() + ended.children_user + ended.children_system
    ticks = os.sysconf("SC_CLK_TCK")
    for about in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = about.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            total += (int(fields[11]) + int(fields[12])) / ticks
    return total
