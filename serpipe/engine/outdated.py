"""Labels under today's fingerprints that a run would make otherwise: of other given segments, or without embeddings.

Fingerprints say how recordings are cut and what labels them; not what a manifest gives for one of them, nor what is
kept of the results. The frozen plans and the records of earlier runs say both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serpipe.engine.request import Cut
from serpipe.models.registry import ModelRef
from serpipe.store import layout, ledger, plans, runs
from serpipe.store.coverage import Ids, pairs_of
from serpipe.store.damage import UNITS
from serpipe.store.rowsets import having
from serpipe.store.schemas import LEDGER
from serpipe.store.storage import Storage

Read = Callable[[], pa.Table]

_KEPT = ("none", "utterance", "frame")
"""What `--embeddings` keeps; each keeps what those before it do."""


@dataclass(frozen=True, slots=True)
class Outdated:
    """What a run would make otherwise.

    Attributes:
        units: of `serpipe.store.damage.UNITS`, to be made again: taken out of the store, they are work.
        sentences: what is left as it is, and how it is made again.
    """

    units: pa.Table = field(default_factory=UNITS.empty_table)
    sentences: tuple[str, ...] = ()


def find(
    storage: Storage,
    records: Sequence[runs.Run],
    parts: Sequence[Read],
    *,
    cut: Cut,
    models: Sequence[ModelRef],
    embeddings: str,
    relabel: bool,
    whole: bool = True,
) -> Outdated:
    """Find the labels of a manifest's recordings that are of other given segments, or lack embeddings asked for.

    Args:
        storage: the store.
        records: of all earlier runs.
        parts: read the catalogue.
        cut: how this run cuts recordings.
        models: its models.
        embeddings: `utterance`, `frame` or `none`.
        relabel: whether it is to make them again.
        whole: whether it holds the whole store, and so may take units out of it.

    Returns:
        Units to be made again, and sentences about what is left as it is.
    """
    records = [run for run in records if run.audio == cut.audio and run.asked]
    poor = {run.run_id for run in records if run.asked.get("embeddings") in _KEPT[: _KEPT.index(embeddings)]}
    if not poor and (cut.segmentation != "given" or not records):
        return Outdated()
    today = _today(parts, given=cut.segmentation == "given")
    units, sentences = [UNITS.empty_table()], []
    how = "--relabel" if whole else "--relabel without --shard"
    if cut.segmentation == "given":
        found = _of_other_segments(storage, today, [run.run_id for run in records], cut.audio)
        # Segments are one for all models, so the labels of all go together.
        others = sorted(set(found["model"].to_pylist()) - {model.name for model in models})
        if found.num_rows and (others or not relabel or not whole):
            count = len(found["recording_id"].unique())
            with_all = f" with --model {' --model '.join(others)} too" if others else ""
            sentences.append(f"{_kept(count)} of other given segments than today's; {how}{with_all} {_again(count)}")
        else:
            units.append(found.select(UNITS.names))
    for model in models if poor else ():
        if embeddings == "frame" and model.spec.frame_rate is None:
            continue
        found = _of_runs(storage, today, poor, cut.audio, model)
        if found.num_rows and not (relabel and whole):
            count = len(found["recording_id"].unique())
            sentences.append(
                f"{model.name}: {_kept(count)} without {embeddings} embeddings, which are asked for today; {how} "
                f"{_again(count)}"
            )
        else:
            units.append(found.select(UNITS.names))
    once = pa.concat_tables(units).group_by(UNITS.names).aggregate([]).select(UNITS.names)
    return Outdated(once.cast(UNITS), tuple(sentences))


def _kept(count: int) -> str:
    return f"{count:,} recording{'' if count == 1 else 's'} keep{'s' if count == 1 else ''} labels"


def _again(count: int) -> str:
    return f"labels {'it' if count == 1 else 'them'} again"


def _today(parts: Iterable[Read], *, given: bool) -> pa.Table:
    """Ids of the catalogue's recordings, and what their given segments come to."""
    found = [_DIGESTS.empty_table()]
    for read in parts:
        recordings = read()
        lists = recordings["given"]
        digest = digests(lists) if given else np.zeros(recordings.num_rows, np.uint64)
        found.append(pa.table([recordings["recording_id"], pa.array(digest)], schema=_DIGESTS))
    return pa.concat_tables(found)


def _of_other_segments(storage: Storage, today: pa.Table, records: Iterable[str], audio: str) -> pa.Table:
    """Entries of recordings of which a run that settled some unit was given other segments than there are today."""
    ids = Ids(pairs_of(today["recording_id"]))
    suspects = [_SUSPECTS.empty_table()]
    for run in records:
        planned = [_DIGESTS.empty_table()]
        for group in plans.groups(storage, run, ["recording_id", "given"]):
            mine = group.filter(pa.array(ids.holds(group["recording_id"])))
            planned.append(pa.table([mine["recording_id"], pa.array(digests(mine["given"]))], schema=_DIGESTS))
        then = pa.concat_tables(planned)
        both = then.join(today, "recording_id", right_suffix="_today", join_type="inner", use_threads=False)
        other = both.filter(pc.not_equal(both["digest"], both["digest_today"]))["recording_id"]
        suspects.append(pa.table([other, pa.array([run] * len(other), pa.string())], schema=_SUSPECTS))
    suspected = pa.concat_tables(suspects)
    if not suspected.num_rows:
        return LEDGER.empty_table()
    entries = ledger.of(storage, suspected["recording_id"])
    entries = entries.filter(pc.equal(entries["audio"], audio))
    settled = entries.filter(pc.not_equal(entries["status"], "failed"))
    # A run that planned a recording and was killed before it has settled nothing of it.
    changed = having(settled.append_column("run", _runs_of(settled)), suspected, _SUSPECTS.names)
    return having(entries, changed, ["recording_id"])


def _of_runs(storage: Storage, today: pa.Table, records: set[str], audio: str, model: ModelRef) -> pa.Table:
    """Entries of today's recordings that some runs have labelled with a model."""
    ids = Ids(pairs_of(today["recording_id"]))
    found = [LEDGER.empty_table()]
    for entries in ledger.batches(storage):
        entries = entries.filter(pa.array(ids.holds(entries["recording_id"])))
        for name, value in (("audio", audio), ("model", model.name), ("fp", model.fp)):
            entries = entries.filter(pc.equal(entries[name], value))
        entries = entries.filter(pc.greater(entries["rows"], 0))
        found.append(entries.filter(pc.is_in(_runs_of(entries), value_set=pa.array(sorted(records), pa.string()))))
    return pa.concat_tables(found)


def _runs_of(entries: pa.Table) -> pa.ChunkedArray:
    coded = entries["commit"].combine_chunks().dictionary_encode()
    runs_of = pa.array([layout.run_of(commit) for commit in coded.dictionary.to_pylist()], pa.string())
    return pa.chunked_array([runs_of.take(coded.indices)], pa.string())


def digests(given: pa.ChunkedArray) -> NDArray[np.uint64]:
    """What lists of given segments come to, whatever their owner's columns: equal for equal lists.

    Args:
        given: of `serpipe.manifest.schemas.GIVEN`, a list for each recording.

    Examples:
        >>> from serpipe.manifest.schemas import RECORDINGS
        >>> one, two = [{"start_s": 0.0, "meta": []}], [{"start_s": 0.0, "meta": []}, {"start_s": 4.0, "meta": []}]
        >>> found = digests(pa.chunked_array([pa.array([one, two, one, []], RECORDINGS.field("given").type)]))
        >>> len(set(found.tolist()))
        3
    """
    lists = pa.concat_arrays(given.chunks) if given.num_chunks else pa.array([], given.type)
    segments = lists.flatten()
    mixed = np.zeros(len(segments), np.uint64)
    for name, absent in (("start_s", -1.0), ("end_s", -1.0), ("channel", -1)):
        values = pc.fill_null(segments.field(name), absent).cast(pa.float64()).to_numpy(zero_copy_only=False)
        mixed = _mixed(mixed ^ values.view(np.uint64))
    # The place in the list need not count: lists are sorted, and hold no segment twice.
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])
    ends = np.cumsum(pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64))
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]]) if len(ends) else ends
    return np.asarray(sums[ends] - sums[starts], np.uint64)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit of a number spread over all of them, as Steele, Lea and Flood's SplitMix64 ends."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


_DIGESTS = pa.schema([LEDGER.field("recording_id"), pa.field("digest", pa.uint64(), nullable=False)])

_SUSPECTS = pa.schema([LEDGER.field("recording_id"), pa.field("run", pa.string())])
