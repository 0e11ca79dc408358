"""Promotion: gates applied to a generation's student, what they said written beside it, a final split scored once."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from serpipe.errors import UsageError
from serpipe.evaluate import Answers, Measure, difference, evaluate
from serpipe.models.registry import resolve
from serpipe.pseudolabel import gate, generation, schemas, sources, student
from serpipe.pseudolabel import gold as golden
from serpipe.pseudolabel.arrays import by_id, seeded, words
from serpipe.pseudolabel.scoring import score, scores_of, stored
from serpipe.store import runs
from serpipe.store.reading import Store
from serpipe.store.reading import open as open_store

CANARIES = 0.001
"""Share of the segments that are watched without being judged, the same ones for every generation of a store."""

FEWEST = 2000
"""Canaries at least, where there are as many."""

_CANARY_SEED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """What the gates said of a generation's student.

    Attributes:
        generation: its number.
        status: `promoted` or `refused`.
        verdicts: gate by gate.
        figures: of the student on the gating split.
        gain: over a gold-only student on the same clips.
        step: over the student of the round before; over the gold-only one in a first round.
    """

    generation: int
    status: str
    verdicts: list[gate.Verdict]
    figures: dict[str, Measure]
    gain: dict[str, Measure]
    step: dict[str, Measure]


def promote(store: str, number: int, gold: str, *, limits: gate.Limits | None = None, seed: int = 0) -> Promotion:
    """Apply the gates to a generation's student and write what they said to its `promotion.json`.

    Judged is gold's split `gate`, else `test`, else `dev`; never what it was trained or calibrated on.

    Args:
        store: directory or fsspec URL.
        number: of the generation whose student is meant; it and the gold-only student must have relabelled the store.
        gold: labels by people.
        limits: what the gates ask.
        seed: of the splits where gold has none.

    Raises:
        UsageError: `GENERATION_UNKNOWN`, `PROMOTE_NO_STUDENT`, `PROMOTE_NOT_RELABELLED`, `PROMOTE_NO_GOLD`, or what is
            wrong with gold.
    """
    limits = limits or gate.Limits()
    opened = open_store(store)
    record = generation.load(opened.storage, number)
    audio = sources.audio_of(opened, record.get("audio"))
    read = golden.read(gold, seed=seed)
    split, clips = _judged(opened, read, audio)
    names = {"student": number, "gold-only": 0}
    parent = record["parent"]
    if parent is not None:
        names["parent"] = parent
    answers = {what: _answers(opened, audio, which, clips) for what, which in names.items()}
    canaries = _canaries(opened, audio, record)
    verdicts = gate.judge(answers["student"], answers["gold-only"], answers.get("parent"), canaries, limits)
    made = Promotion(
        generation=number,
        status="refused" if any(verdict.passed is False for verdict in verdicts) else "promoted",
        verdicts=verdicts,
        figures=evaluate(answers["student"], count=limits.count),
        gain=difference(answers["student"], answers["gold-only"], count=limits.count),
        step=difference(answers["student"], answers.get("parent", answers["gold-only"]), count=limits.count),
    )
    opened.storage.put(schemas.promotion(number), _text(made, read, split, limits))
    return made


def status(store: Store, number: int) -> str | None:
    """`promoted`, `refused`, or None where the gates were not asked."""
    try:
        said: dict[str, Any] = json.loads(store.storage.get(schemas.promotion(number)))
    except FileNotFoundError:
        return None
    return str(said["status"])


def score_final(store: str, number: int, gold: str, *, seed: int = 0) -> dict[str, Measure]:
    """Score the final split, once: the store remembers who was judged by it, and it judges nobody again.

    Raises:
        UsageError: `FINAL_SPENT`, these clips were scored before; `PROMOTE_NO_GOLD`, gold has no final split.
    """
    opened = open_store(store)
    record = generation.load(opened.storage, number)
    audio = sources.audio_of(opened, record.get("audio"))
    matched = golden.match(opened, golden.read(gold, seed=seed), audio)
    clips = matched.filter(pc.equal(matched["split"], "final"))
    if not clips.num_rows:
        raise UsageError("PROMOTE_NO_GOLD", f"{gold} has no split final that {store} holds")
    answers = _answers(opened, audio, number, clips)
    rows = zip(clips["segment_id"].to_pylist(), clips["label"].to_pylist(), strict=True)
    named = hashlib.sha256(b"".join(identifier + label.encode() for identifier, label in rows)).hexdigest()
    where = f"students/final/{named[:24]}.json"
    found = evaluate(answers)
    mark = {
        "student": student.name(number),
        "time": runs.now(),
        "clips": clips.num_rows,
        "figures": {name: asdict(measure) for name, measure in found.items()},
    }
    # The mark comes before anybody sees a figure; who loses this race sees none.
    if not opened.storage.create(where, json.dumps(mark, indent=1).encode()):
        before = json.loads(opened.storage.get(where))
        raise UsageError(
            "FINAL_SPENT",
            f"these {clips.num_rows} clips judged {before['student']} on {before['time']} (UA "
            f"{before['figures']['recall_macro_ua']['value']:.3f}) and judge nobody again; collect new gold",
        )
    return found


def _judged(store: Store, gold: golden.Gold, audio: str) -> tuple[str, pa.Table]:
    matched = golden.match(store, gold, audio)
    for split in ("gate", "test", "dev"):
        clips = matched.filter(pc.equal(matched["split"], split))
        if clips.num_rows:
            return split, clips
    raise UsageError(
        "PROMOTE_NO_GOLD",
        f"{gold.location} has no split gate, test or dev that {store.storage.root} holds; a student is not judged on "
        "what it was trained on",
    )


def _answers(store: Store, audio: str, number: int, clips: pa.Table) -> Answers:
    name, where = student.name(number), student.folder(number)
    if not store.storage.exists(f"{where}probe.json"):
        raise UsageError(
            "PROMOTE_NO_STUDENT",
            f"{store.storage.root} has no student {name}; `serpipe train {store.storage.root} --generation {number} "
            "--gold …` makes it",
        )
    fp = resolve(f"{name}={store.storage.root}/{where}").fp
    if not any(one.model == name and one.fp == fp for one in sources.stored_models(store, audio)):
        raise UsageError(
            "PROMOTE_NOT_RELABELLED",
            f"{name} has not labelled {store.storage.root}; `serpipe relabel {store.storage.root} --student "
            f"{number}` does",
        )
    model = stored(store, audio, name, fp)
    return score(store, audio, model, clips, by=("corpus",)).answers


def _canaries(
    store: Store, audio: str, record: dict[str, Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Consensus and student's scores of the segments that are watched: those whose hash is small."""
    number, classes = int(record["number"]), list(record["classes"])
    dataset = generation.dataset(store.storage, number)
    share = max(CANARIES, FEWEST / max(record["considered"]["segments"], 1))
    limit = np.uint64(min(share, 1.0) * float(2**64 - 2048))
    parts = []
    columns = ["segment_id", "recording_id", "soft_label"]
    for batch in dataset.to_batches(columns=columns, filter=ds.field("soft_label").is_valid()):
        rows = pa.Table.from_batches([batch])
        parts.append(rows.filter(pa.array(seeded(words(rows["segment_id"])[1], _CANARY_SEED) <= limit)))
    if not sum(part.num_rows for part in parts):
        return None
    rows = by_id(pa.concat_tables(parts))
    before = rows["soft_label"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    name, where = student.name(number), student.folder(number)
    model = stored(store, audio, name, resolve(f"{name}={store.storage.root}/{where}").fp)
    after = scores_of(store, audio, model, rows, classes)
    return before.reshape(rows.num_rows, len(classes)).astype(np.float64), after


def _text(made: Promotion, gold: golden.Gold, split: str, limits: gate.Limits) -> bytes:
    content = {
        "generation": made.generation,
        "student": student.name(made.generation),
        "status": made.status,
        "split": split,
        "gold": {"hash": gold.hash, "counts": gold.counts().get(split, {})},
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
    return [f"{student.name(made.generation)} is {made.status}", *said]
