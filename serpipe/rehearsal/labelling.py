"""The model processes of a rehearsal."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from serpipe.models.contract import SAMPLE_RATE
from serpipe.pack import rows_of
from serpipe.rehearsal.company import Clock, Company, Crew, Labelled, Pace, Phase, heard_s
from serpipe.store.storage import Storage

WARM_S = 10.0
"""Seconds of audio that a model hears before it counts."""

PIECE_S = 60.0
"""Seconds of segments that a slow model labels at least before the clock is looked at: a micro-batch."""

TURN_S = 5.0
"""Seconds of a quick model's work between two looks at the clock."""


def work(place: tuple[int, int], company: Company, clock: Clock, packs: Sequence[Any], told: Any) -> None:
    """Label packs until the queue ends; tell `labeller` when ready, and `labelled` at the end.

    Args:
        place: the pool, and which of the visible GPUs is this process's own, where there are any.
        company: the workers.
        clock: when to begin and to end.
        packs: queue to each pool; None ends it.
        told: queue to who asked.
    """
    pool, gpu = place
    mine, further = packs[pool], packs[pool + 1 : pool + 2]
    try:
        if company.gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = _gpu(gpu)
        stages = _loaded(company, company.crews[pool])
        told.put(("labeller", time.monotonic(), pool))
        clock.go.wait()
        done, written = Labelled(), _Written(company)
        pace: dict[str, float] = {}
        while (pack := mine.get()) is not None:
            for piece in _pieces(pack, stages, pace, clock):
                labelled = _labelled(piece, stages, pace, done, clock.phase)
                if further:
                    further[0].put(labelled)
                else:
                    written.add(labelled, heard_s(piece))
        for queue in further:
            # What is under way must be there before the word that nothing more comes.
            queue.close()
            queue.join_thread()
        written.end(done)
        told.put(("labelled", done))
    except BaseException as error:
        told.put(("failed", error))


def _gpu(place: int) -> str:
    """The GPU at a place among those that whoever asked may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return str(place) if visible is None else visible.split(",")[place]


def _loaded(company: Company, crew: Crew) -> dict[str, Any]:
    """Each model as a stage of its own, so that each is timed."""
    from serpipe.models.stage import Predict

    return {
        model.name: Predict(
            [model],
            embeddings=company.embeddings,
            keep_audio=True,
            device="cuda" if company.gpu else "cpu",
            threads=crew.threads,
        )
        for model in crew.models
    }


def _labelled(
    piece: pa.Table, stages: Mapping[str, Any], pace: dict[str, float], done: Labelled, phase: Phase
) -> pa.Table:
    """Label a piece with every model, and note what each took."""
    heard = heard_s(piece)
    for name, stage in stages.items():
        began, cpu = time.perf_counter(), time.process_time()
        piece = stage(piece)
        busy_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
        done.paces[name, phase if name in pace else "cold"].add(Pace(heard, busy_s, cpu_s))
        if heard:
            pace[name] = busy_s / heard
    return piece


def _pieces(pack: pa.Table, stages: Mapping[str, Any], pace: Mapping[str, float], clock: Clock) -> Iterator[pa.Table]:
    """A pack in pieces between which the clock is looked at; a first short one, whatever the clock says."""
    segments = rows_of(pack, "segments")
    lengths = segments["length"].to_numpy() / SAMPLE_RATE
    start = 0
    while start < len(lengths) and ((cold := any(name not in pace for name in stages)) or not clock.over):
        most = WARM_S if cold else max(PIECE_S, TURN_S / max(sum(pace.values()), 1e-9))
        count = max(int(np.searchsorted(np.cumsum(lengths[start:]), most, side="right")), 1)
        piece = _with_rows(pack, "segments", segments.slice(start, count))
        for name in pack.column_names:
            # What an earlier pool has said of these segments goes with them.
            if name.startswith(("results:", "failures:")):
                piece = _with_rows(piece, name, _said_of(rows_of(pack, name), start, count))
        yield piece
        start += count


def _said_of(rows: pa.Table, start: int, count: int) -> pa.Table:
    """The rows of so many segments, which are counted anew."""
    places = rows["segment"].to_numpy()
    chosen = np.flatnonzero((places >= start) & (places < start + count))
    column = rows.schema.get_field_index("segment")
    field = rows.schema.field(column)
    return rows.take(chosen).set_column(column, field, pa.array(places[chosen] - start, field.type))


def _with_rows(pack: pa.Table, name: str, rows: pa.Table) -> pa.Table:
    """A pack of one row with other rows in one of its lists."""
    column = pack.schema.get_field_index(name)
    field = pack.schema.field(column)
    columns = [rows[part.name].combine_chunks() for part in field.type.value_type]
    values = pa.StructArray.from_arrays(columns, fields=list(field.type.value_type))
    return pack.set_column(column, field, pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values))


class _Written:
    """Labelled packs on their way into a store in memory: as many as a run puts into one commit."""

    def __init__(self, company: Company) -> None:
        self._company = company
        self._packs: list[pa.Table] = []
        self._heard_s = 0.0
        self._row_bytes = self._commits = 0

    def add(self, pack: pa.Table, heard: float) -> None:
        """Keep a pack, unless there are enough."""
        if self._row_bytes < self._company.bundle_bytes:
            self._packs.append(pack.drop_columns(["audio"]))
            self._row_bytes += self._packs[-1].nbytes
            self._heard_s += heard

    def end(self, done: Labelled) -> None:
        """Write what is kept, and say what it came to."""
        if not self._packs:
            return
        began = time.process_time()
        done.bytes = self._commit(self._packs)
        done.sink_cpu_s = time.process_time() - began
        done.written_s, done.row_bytes = self._heard_s, self._row_bytes
        if len(self._packs) > 1:
            # Two halves have the same rows, and what belongs to a commit once more.
            middle = len(self._packs) // 2
            halves = Counter(self._commit(self._packs[:middle])) + Counter(self._commit(self._packs[middle:]))
            done.commit_bytes = {table: max(halves[table] - size, 0) for table, size in done.bytes.items()}

    def _commit(self, packs: Sequence[pa.Table]) -> dict[str, float]:
        from serpipe.store import commit
        from serpipe.store.rows import RunFacts, commit_of

        models = {model.name: model.fp for model in self._company.models}
        # What fsspec keeps in memory is of this process alone.
        storage = Storage(f"memory://rehearsal-{self._commits}")
        self._commits += 1
        commit.write(storage, commit_of(packs, RunFacts(run_id="rehearsal", audio=self._company.audio, models=models)))
        sizes: Counter[str] = Counter()
        for name in storage.list(""):
            sizes[name.split("/", 1)[0]] += int(storage.fs.size(storage.path(name)))
        return dict(sizes)
