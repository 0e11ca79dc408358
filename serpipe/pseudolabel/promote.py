"""Promotion: gates applied to a generation's student, what they said written beside it, a final split scored once."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from serpipe.errors import UsageError
from serpipe.evaluate import Measure, difference, evaluate
from serpipe.labels import CANONICAL
from serpipe.pseudolabel import compared, gate, generation, schemas, sources, student
from serpipe.pseudolabel import gold as golden
from serpipe.pseudolabel.arrays import by_id, places, seeded, words
from serpipe.pseudolabel.compared import Which
from serpipe.pseudolabel.planted import measure
from serpipe.pseudolabel.schemas import Kind
from serpipe.pseudolabel.scoring import score, scores_of
from serpipe.store import runs
from serpipe.store.reading import Store
from serpipe.store.reading import open as open_store

CANARIES = 0.001
"""Share of the segments that are watched without being judged, the same ones for every generation of a store."""

FEWEST = 2000
"""Canaries at least, where there are as many."""

_CANARY_SEED = 20

_FINAL = "students/final/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """What the gates said of a generation's student.

    Attributes:
        generation: its number.
        kind: of the student.
        status: `promoted` or `refused`.
        verdicts: gate by gate.
        figures: of the student on the gating split.
        gain: over the gold-only student of its kind on the same clips.
        step: over the student of the round before; over the gold-only one in a first round.
        fp: model fingerprint of the student that was judged; no other may teach.
        classes: that all who are compared can name.
        left_out: clips of the split with any other label.
    """

    generation: int
    kind: Kind
    status: str
    verdicts: list[gate.Verdict]
    figures: dict[str, Measure]
    gain: dict[str, Measure]
    step: dict[str, Measure]
    fp: str
    classes: tuple[str, ...]
    left_out: int


def promote(
    store: str, number: int, gold: str, *, kind: Kind = "probe", limits: gate.Limits | None = None
) -> Promotion:
    """Apply the gates to a generation's student and write what they said beside its rows, a file for each kind.

    Judged is gold's split `gate`, else `test`: never what it was trained, calibrated or chosen on. Compared are
    students of the same gold, backbone and settings, by the clips whose label all of them can name.

    Args:
        store: directory or fsspec URL.
        number: of the generation whose student is meant; it and the gold-only student must have labelled the store.
        gold: labels by people.
        kind: of the student; it is compared with the gold-only one of its kind, and with whoever taught it.
        limits: what the gates ask.

    Raises:
        UsageError: `GENERATION_UNKNOWN`, `PROMOTE_NO_STUDENT`, `PROMOTE_NOT_RELABELLED`, `PROMOTE_OTHER_GOLD`,
            `PROMOTE_UNLIKE`, `PROMOTE_NO_GOLD`, `PROMOTE_NOTHING_SHARED`, or what is wrong with gold.
    """
    limits = limits or gate.Limits()
    opened = open_store(store)
    record = generation.load(opened.storage, number)
    audio = sources.audio_of(opened, record.get("audio"))
    read = golden.read(gold)
    matched = golden.match(opened, read, audio)
    split, clips = _judged(opened, read, matched)
    names: dict[str, Which] = {"student": (number, kind), "gold-only": (0, kind)}
    parent = compared.parent_of(record, kind)
    if parent is not None:
        names["parent"] = parent
    heard = {what: compared.find(opened, audio, which) for what, which in names.items()}
    compared.refuse_unlike(opened, audio, names, read)
    classes = _shared(heard, clips, read.location)
    scored = {what: score(opened, audio, one, clips, by=gate.SLICES, among=classes) for what, one in heard.items()}
    compared.refuse_unheard(opened, audio, names, {what: one.asked for what, one in scored.items()})
    answers = {what: one.answers for what, one in scored.items()}
    canaries = _canaries(opened, audio, record, heard["student"], matched)
    planted = measure(opened.storage, number, record["thresholds"], clips)
    verdicts = gate.judge(answers["student"], answers["gold-only"], answers.get("parent"), canaries, limits, planted)
    made = Promotion(
        generation=number,
        kind=kind,
        status="refused" if any(verdict.passed is False for verdict in verdicts) else "promoted",
        verdicts=verdicts,
        figures=evaluate(answers["student"], count=limits.count),
        gain=difference(answers["student"], answers["gold-only"], count=limits.count),
        step=difference(answers["student"], answers.get("parent", answers["gold-only"]), count=limits.count),
        fp=heard["student"].fp,
        classes=classes,
        left_out=clips.num_rows - len(answers["student"]),
    )
    opened.storage.put(schemas.promotion(number, kind), _text(made, read, split, limits))
    return made


def status(store: Store, number: int, kind: Kind = "probe") -> str | None:
    """`promoted`, `refused`, or None where the gates were not asked."""
    said = student.judged(store.storage, number, kind)
    return None if said is None else str(said["status"])


def score_final(store: str, number: int, gold: str, *, kind: Kind = "probe") -> dict[str, Measure]:
    """Score the final split, once: the store remembers what was judged by, and it judges nobody again.

    Raises:
        UsageError: `FINAL_SPENT`, some of these clips were scored before; `FINAL_NOT_PROMOTED`, the gates refused the
            student or were not asked; `PROMOTE_OTHER_GOLD`; `PROMOTE_NO_GOLD`, gold has no final split.
    """
    opened = open_store(store)
    record = generation.load(opened.storage, number)
    audio = sources.audio_of(opened, record.get("audio"))
    read = golden.read(gold)
    matched = golden.match(opened, read, audio)
    clips = matched.filter(pc.equal(matched["split"], "final"))
    if not clips.num_rows:
        raise UsageError("PROMOTE_NO_GOLD", f"{gold} has no split final that {store} holds")
    heard = compared.find(opened, audio, (number, kind))
    compared.refuse_unlike(opened, audio, {"student": (number, kind)}, read)
    _refuse_unjudged(opened, (number, kind), heard)
    found = evaluate(score(opened, audio, heard, clips, by=gate.SLICES).answers)
    mark = {
        "student": heard.model,
        "time": runs.now(),
        "clips": clips.num_rows,
        "figures": {name: asdict(measure) for name, measure in found.items()},
        "spans": _spans(clips),
    }
    text = json.dumps(mark, indent=1).encode()
    while True:
        before = opened.storage.list(_FINAL)
        _refuse_spent(opened, before, clips)
        # The mark comes before anybody sees a figure; who loses this race looks at the winner's clips first.
        if opened.storage.create(f"{_FINAL}{len(before) + 1:06d}.json", text):
            return found


def _spans(clips: pa.Table) -> list[list[Any]]:
    """Where clips lie: recording, start and end. Another cut of the same audio has other segments in the same place."""
    places = zip(*(clips[name].to_pylist() for name in ("recording_id", "start_s", "end_s")), strict=True)
    return [[recording.hex(), start, end] for recording, start, end in places]


def _refuse_spent(store: Store, marks: Sequence[str], clips: pa.Table) -> None:
    mine: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for recording, start, end in _spans(clips):
        mine[recording].append((start, end))
    for name in marks:
        before = json.loads(store.storage.get(name))
        again = sum(
            any(start < end_before and start_before < end for start, end in mine.get(recording, ()))
            for recording, start_before, end_before in before["spans"]
        )
        if again:
            raise UsageError(
                "FINAL_SPENT",
                f"{again} of these {clips.num_rows} clips judged {before['student']} on {before['time']} (UA "
                f"{before['figures']['recall_macro_ua']['value']:.3f}) and judge nobody again; collect new gold",
            )


def _refuse_unjudged(store: Store, which: Which, model: sources.Stored) -> None:
    said = student.judged(store.storage, *which) or {}
    if (said.get("status"), said.get("fp")) != ("promoted", model.fp):
        flag = " --finetuned" if which[1] == "finetuned" else ""
        raise UsageError(
            "FINAL_NOT_PROMOTED",
            f"{model.model} has not passed its gates, and the final split, which judges once, is kept for one that "
            f"has; `serpipe promote {store.storage.root} --generation {which[0]}{flag} --gold …` says why",
        )


def _judged(store: Store, gold: golden.Gold, matched: pa.Table) -> tuple[str, pa.Table]:
    for split in ("gate", "test"):
        clips = matched.filter(pc.equal(matched["split"], split))
        if clips.num_rows:
            return split, clips
    raise UsageError(
        "PROMOTE_NO_GOLD",
        f"{gold.location} has no split gate or test that {store.storage.root} holds; a student is not judged on what "
        "it, its teachers' calibration or a choice was made on",
    )


def _shared(models: Mapping[str, sources.Stored], clips: pa.Table, gold: str) -> tuple[str, ...]:
    """Classes that every model can name."""
    shared = set.intersection(*(set(model.emotions) for model in models.values()))
    judged = shared & set(clips["label"].to_pylist())
    if len(judged) < 2:
        raise UsageError(
            "PROMOTE_NOTHING_SHARED",
            f"the clips that judge in {gold} have {len(judged)} of the classes that {', '.join(models)} can all name "
            f"({', '.join(sorted(shared)) or 'none'}), and two are the least that can be told apart",
        )
    return tuple(emotion for emotion in CANONICAL if emotion in shared)


def _canaries(
    store: Store, audio: str, record: dict[str, Any], model: sources.Stored, gold: pa.Table
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Consensus and student's scores of the segments that are watched: those whose hash is small.

    Gold is not watched: a student that learnt from people where its teachers are wrong has not drifted.
    """
    number, classes = int(record["number"]), list(record["classes"])
    dataset = generation.dataset(store.storage, number)
    share = max(CANARIES, FEWEST / max(record["considered"]["segments"], 1))
    limit = np.uint64(min(share, 1.0) * float(2**64 - 2048))
    parts = []
    columns = ["segment_id", "recording_id", "soft_label"]
    for batch in dataset.to_batches(columns=columns, filter=ds.field("soft_label").is_valid()):
        rows = pa.Table.from_batches([batch])
        rows = rows.filter(pc.is_null(places(rows["segment_id"], gold["segment_id"])))
        parts.append(rows.filter(pa.array(seeded(words(rows["segment_id"])[1], _CANARY_SEED) <= limit)))
    if not sum(part.num_rows for part in parts):
        return None
    rows = by_id(pa.concat_tables(parts))
    before = rows["soft_label"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    after = scores_of(store, audio, model, rows, classes)
    return before.reshape(rows.num_rows, len(classes)).astype(np.float64), after


def _text(made: Promotion, gold: golden.Gold, split: str, limits: gate.Limits) -> bytes:
    content = {
        "generation": made.generation,
        "student": student.name(made.generation, made.kind),
        "fp": made.fp,
        "status": made.status,
        "split": split,
        "gold": {"hash": gold.hash, "counts": gold.counts().get(split, {})},
        "classes": list(made.classes),
        "left_out": made.left_out,
        "gates": [asdict(verdict) for verdict in made.verdicts],
        "limits": asdict(limits),
        "figures": {name: asdict(measure) for name, measure in made.figures.items()},
        "gain": {name: asdict(measure) for name, measure in made.gain.items()},
        "time": runs.now(),
    }
    return json.dumps(content, indent=1).encode()


def lines(made: Promotion) -> list[str]:
    """What the gates said, a line each."""
    marks = {True: "passed", False: "FAILED", None: "not asked"}
    said = [f"  {verdict.gate}: {marks[verdict.passed]}; {verdict.why}" for verdict in made.verdicts]
    if made.left_out:
        shared = ", ".join(made.classes)
        said.append(f"  {made.left_out} clips are left out: not all of the students can name more than {shared}")
    return [f"{student.name(made.generation, made.kind)} is {made.status}", *said]
