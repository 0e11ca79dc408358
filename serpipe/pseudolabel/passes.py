"""The two passes over a store's buckets: one gathers candidates and sums, the other writes the rows."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serpipe.errors import SerpipeError
from serpipe.models.results import DIMENSIONS
from serpipe.pseudolabel import schemas
from serpipe.pseudolabel.arrays import fixed, seeded, text_keys, words
from serpipe.pseudolabel.balance import CANDIDATES, Totals
from serpipe.pseudolabel.judge import PASSED, Judged, Rules, good_audio, judge
from serpipe.pseudolabel.overlap import thinned
from serpipe.pseudolabel.sources import Bucket
from serpipe.store import parquet
from serpipe.store.storage import Storage

TASK_RETRIES = 2
"""How often a task is tried again after its worker died. Ray's own default is for ever."""

_KEPT, _UNDECIDED = 0, 255


@dataclass(frozen=True, slots=True)
class Gathered:
    """What the first pass says of a bucket.

    Attributes:
        candidates: rows of `balance.CANDIDATES`.
        totals: sums over its segments.
    """

    candidates: pa.Table
    totals: Totals


@dataclass(frozen=True, slots=True)
class Fates:
    """What was decided about a bucket's candidates.

    Attributes:
        bucket: the bucket.
        places: of its candidates.
        stages: 0 where kept, else 1 + the place in `GLOBAL_STAGES` of what dropped it.
    """

    bucket: Bucket
    places: NDArray[np.int32]
    stages: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Written:
    """What the second pass wrote of a bucket: int64 (reasons, classes) each.

    The reasons are kept, then those of `STAGES`; the last class counts segments without a label.
    """

    segments: NDArray[np.int64]
    milliseconds: NDArray[np.int64]


def gather(rules: Rules, bucket: Bucket) -> Gathered:
    """The first pass over one bucket."""
    judged = thinned(rules, judge(Storage(rules.root), rules, bucket))
    usable, voted = judged.usable, judged.consensus
    totals = Totals(
        segments=int(usable.sum()),
        confidence=int(fixed(voted.confidence[usable]).sum()),
        classes=tuple(int(fixed(row[usable]).sum()) for row in voted.soft),
        milliseconds=int(judged.milliseconds.sum()),
    )
    passed = np.flatnonzero(judged.stage == PASSED)
    high, low = (seeded(half, rules.recipe.seed) for half in words(judged.rows["segment_id"]))
    columns = {
        "bucket": np.full(len(passed), bucket.number, np.int32),
        "place": passed.astype(np.int32),
        "high": high[passed],
        "low": low[passed],
        "label": voted.label[passed].astype(np.uint8),
        "confidence": fixed(voted.confidence[passed]).astype(np.int32),
        "audio": judged.audio[passed],
        "voice": _voices(judged)[passed],
        "feed": text_keys(judged.feed)[passed],
        "milliseconds": judged.milliseconds[passed].astype(np.int32),
    }
    return Gathered(pa.table(columns, schema=CANDIDATES), totals)


def write(rules: Rules, fates: Fates) -> Written:
    """The second pass over one bucket: its file of the generation."""
    storage = Storage(rules.root)
    judged = thinned(rules, judge(storage, rules, fates.bucket))
    fate = np.full(judged.rows.num_rows, _UNDECIDED, np.uint8)
    fate[fates.places] = fates.stages
    # 0 kept, then the stages in their order: those that look at one segment or recording came first.
    earlier = len(schemas.STAGES) - len(schemas.GLOBAL_STAGES)
    reason = np.where(fate == _UNDECIDED, judged.stage + 1, np.where(fate == _KEPT, 0, fate + earlier))
    table = _rows(rules, judged, fate, reason.astype(np.int64))
    name = schemas.part(rules.number, fates.bucket.number)
    facts = {"generation": str(rules.number), "recipe": rules.recipe.hash, "classes": " ".join(rules.classes)}
    parquet.write(storage, name, table, schemas.PSEUDO_LABELS, facts)
    label = np.where(judged.consensus.known, judged.consensus.label, len(rules.classes))
    place = reason.astype(np.int64) * (len(rules.classes) + 1) + label
    shape = (1 + len(schemas.STAGES), len(rules.classes) + 1)
    segments = np.bincount(place, minlength=shape[0] * shape[1]).reshape(shape)
    milliseconds = np.zeros(shape[0] * shape[1], np.int64)
    np.add.at(milliseconds, place, judged.milliseconds)
    return Written(segments, milliseconds.reshape(shape))


def run(function: Callable[[Rules, Any], Any], rules: Rules, work: Sequence[Any]) -> Iterator[Any]:
    """Do every piece of work, on Ray Data where there is more than one; results come in any order.

    Raises:
        SerpipeError: `GENERATION_BROKEN`, Ray gave up.
    """
    if len(work) <= 1:
        # A small store is done before Ray has started.
        yield from (function(rules, piece) for piece in work)
        return
    import ray
    import ray.data

    from serpipe.engine.preflight import BUSY_CPUS

    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        with warnings.catch_warnings():
            # The bounded retries have no other name in Ray 2.60.
            warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
            dataset = ray.data.from_items(
                [{"work": pickle.dumps(piece)} for piece in work], override_num_blocks=len(work)
            ).map_batches(
                partial(_call, function=function),
                fn_kwargs={"rules": rules},
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=BUSY_CPUS,
                max_retries=TASK_RETRIES,
            )
            for batch in dataset.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0):
                yield pickle.loads(batch["result"][0].as_py())
    except ray.exceptions.RayError as error:
        cause = str(error).strip().splitlines()[-1]
        raise SerpipeError(
            "GENERATION_BROKEN", f"Ray gave the generation up ({cause}); nothing of it counts, run the command again"
        ) from error
    finally:
        context.enable_progress_bars = bars


def _call(batch: pa.Table, function: Callable[[Rules, Any], Any], rules: Rules) -> pa.Table:
    results = [pickle.dumps(function(rules, pickle.loads(piece))) for piece in batch["work"].to_pylist()]
    return pa.table({"result": pa.array(results, pa.large_binary())})


def _voices(judged: Judged) -> NDArray[np.int32]:
    """Recording and speaker as one number within the bucket; no speaker is a speaker too."""
    recordings = judged.rows["recording_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    speakers = pc.fill_null(judged.speaker, "").dictionary_encode().indices.to_numpy()
    pairs = recordings.astype(np.int64) * (len(speakers) + 1) + speakers
    return np.unique(pairs, return_inverse=True)[1].astype(np.int32)


def _rows(rules: Rules, judged: Judged, fate: NDArray[np.uint8], reason: NDArray[np.int64]) -> pa.Table:
    voted, known, rows = judged.consensus, judged.consensus.known, judged.rows
    count, kept = rows.num_rows, fate == _KEPT
    missing = ~known
    soft = pa.ListArray.from_arrays(
        pa.array(np.arange(count + 1) * len(rules.classes), pa.int32()),
        pa.array(voted.soft.T.astype(np.float32).ravel()),
        mask=pa.array(missing),
    )
    seconds = judged.milliseconds / 1000
    columns = {
        **{name: rows[name] for name in ("segment_id", "recording_id", "channel", "start_s", "end_s", "uri")},
        "duration_s": pa.array(seconds.astype(np.float32)),
        "feed": judged.feed,
        "speaker": judged.speaker,
        "label": pa.array(np.array(rules.classes, object)[voted.label], pa.string(), mask=missing),
        "soft_label": soft,
        "weight": pa.array(np.where(kept, _weights(rules, judged), 0).astype(np.float32)),
        "kept": pa.array(kept),
        "reason": pa.array(schemas.STAGES, pa.string()).take(pa.array(reason - 1, mask=kept)),
        "verdicts": _verdicts(rules, judged, fate),
        "split": pa.array(np.where(_held_out(rules, judged), "dev", "train"), pa.string(), mask=~kept),
        "votes": pa.array(voted.votes.astype(np.int32), mask=missing),
        "jsd": _numbers(voted.jsd, missing | (rules.lineages < 2)),
        "abstain": _numbers(judged.abstain, missing),
        "audio_key": pa.array(judged.audio),
        **{name: _numbers(getattr(voted, name), missing) for name in ("confidence", "margin", "entropy")},
        **{
            name: _numbers(values, ~np.isfinite(values))
            for name, values in zip(DIMENSIONS, judged.dimensions, strict=True)
        },
    }
    return pa.table({name: columns[name] for name in schemas.PSEUDO_LABELS.names})


def _weights(rules: Rules, judged: Judged) -> NDArray[np.float64]:
    """How sure the consensus is, how many lineages share it, and how good the audio is."""
    quality = np.where(good_audio(rules.recipe, judged.rows), 1.0, rules.recipe.quality.fair_weight)
    return np.asarray(np.nan_to_num(judged.consensus.confidence) * judged.consensus.votes / rules.lineages * quality)


def _held_out(rules: Rules, judged: Judged) -> NDArray[np.bool_]:
    """Whole speakers, or whole recordings without one, by a hash of their name or id."""
    owner = np.where(
        judged.speaker.is_valid().to_numpy(zero_copy_only=False),
        text_keys(judged.speaker),
        words(judged.rows["recording_id"])[1],
    )
    return np.asarray(seeded(owner, rules.recipe.seed) < np.uint64(rules.recipe.split.dev * float(2**64 - 2048)))


def _verdicts(rules: Rules, judged: Judged, fate: NDArray[np.uint8]) -> pa.StructArray:
    arrays = []
    for stage in schemas.LOCAL_STAGES + schemas.RECORDING_STAGES:
        passes, looked = judged.verdicts[stage]
        arrays.append(pa.array(passes, mask=~looked))
    caps = rules.recipe.caps
    off = {"speaker": not caps.per_speaker, "feed": caps.feed_share >= 1}
    for place, stage in enumerate(schemas.GLOBAL_STAGES):
        reached = (fate != _UNDECIDED) & ((fate == _KEPT) | (fate > place))
        arrays.append(pa.array(fate != place + 1, mask=~reached | off.get(stage, False)))
    return pa.StructArray.from_arrays(arrays, fields=list(schemas.PSEUDO_LABELS.field("verdicts").type))


def _numbers(values: NDArray[np.float64], missing: NDArray[np.bool_]) -> pa.Array:
    return pa.array(values.astype(np.float32), mask=missing)
