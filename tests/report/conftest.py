"""One labelled store with everything that a report can show, and names that would like to be scripts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import serpipe
from serpipe.audio.stage import audio_fingerprint
from serpipe.models.results import DIMENSIONS
from serpipe.pseudolabel import generation
from serpipe.report import build
from serpipe.store import commit, ledger, runs, schemas
from serpipe.store.storage import Storage
from serpipe.testing import write_speech
from serpipe.testing.labelled import MadeUpModel, write_labelled_store
from tests.bench import SEGMENTATION, Bench

HOSTILE = '<img src=x onerror="window.pwned=1">'
"""A feed's name, as an owner's column has it."""

ENDS_SCRIPT = "feed b/<"
"""A folder below which `/script>…` ends an element where it is not escaped."""

SECRET = "AKIAIOSFODNN7EXAMPLE"

SPOKEN = ("label", "confidence", "labels", "scores", "logits", "emotion", "emotion_scores", "mapped_mass")


LEVELS = ["low/negative", "low/neutral", "high/positive"]


def write_archive(folder: Path, *, recordings: int, seconds: float) -> Path:
    """Recordings of three feeds and as many months, one of them too short to be labelled; their list."""
    rows = []
    for number in range(recordings):
        name = ("feed a", f"{ENDS_SCRIPT}/script><b>", "feed c")[number % 3]
        path = folder / name / f"episode {number}.wav"
        write_speech(path, seconds=seconds + 6 * (number == 0), seed=number)
        feed = (f"https://archive.org/feed?X-Amz-Signature={SECRET}", None, HOSTILE)[number % 3]
        rows.append({"path": str(path), "feed": feed, "date": f"2026-{1 + number % 3:02d}-15"})
    broken = folder / "feed a" / "broken.wav"
    broken.write_bytes(b"RIFF")
    rows.append({"path": str(broken), "feed": None, "date": None})
    listed = folder / "list.jsonl"
    listed.write_text("".join(json.dumps({k: v for k, v in row.items() if v is not None}) + "\n" for row in rows))
    return listed


def write_store(root: Path, archive: Path, *, recordings: int, seconds: float) -> str:
    """Label an archive with the embedded model, and with two more that say what it said of other segments."""
    listed = write_archive(archive, recordings=recordings, seconds=seconds)
    storage = Storage(str(root))
    Bench(listed, ("embedded",)).run(storage)
    (known,) = runs.load(storage)
    result = {"audio_s": recordings * seconds, "elapsed_s": 3.0, "failed": 1, "segments": 9, "bytes": 50}
    result |= {"recordings": recordings}
    told = {"wall_s": 4.0, "cost": 2.0, "bytes": {"segments": 40.0}}
    told |= {
        "segments": {"value": 10.0},
        "quarantined": {"value": 0.0},
        "work": {"recordings": recordings, "audio_s": {"value": 3600.0}},
    }
    record = replace(known, manifest=str(listed), asked={"channels": "mix"}, forecast=told)
    runs.finish(storage, record, result=result)
    _second_opinions(storage)
    return str(root)


def _second_opinions(storage: Storage) -> None:
    store = serpipe.open(storage.root)
    rows, random = store.predictions("embedded"), np.random.default_rng(0)
    order = pa.array(
        np.where(random.random(rows.num_rows) < 0.4, random.permutation(rows.num_rows), range(rows.num_rows))
    )
    second = rows.drop_columns(list(SPOKEN))
    for name in SPOKEN:
        second = second.append_column(name, rows[name].take(order))
    third = rows.drop_columns([*SPOKEN, *DIMENSIONS])
    points = np.clip(random.normal(0.5, 0.18, (3, rows.num_rows)), 0, 1).astype(np.float32)
    third = silent(rows)
    for name, values in zip(DIMENSIONS, map(pa.array, points), strict=True):
        third = third.set_column(third.schema.get_field_index(name), name, values)
    run = runs.new_run_id()
    for model, table in (("second", second), ("dimensions", third)):
        add_model(storage, model, table, run=run)


def silent(rows: pa.Table) -> pa.Table:
    """Predictions of the same segments that say nothing."""
    for name in (*SPOKEN, *DIMENSIONS):
        kind = schemas.PREDICTIONS.field(name).type
        nothing = pa.array([[]] * rows.num_rows, kind) if pa.types.is_list(kind) else pa.nulls(rows.num_rows, kind)
        rows = rows.set_column(rows.schema.get_field_index(name), name, nothing)
    return rows


def add_model(storage: Storage, model: str, rows: pa.Table, *, run: str) -> None:
    """Commit predictions of every segment of a store as another model's."""
    entries, name = ledger.load(storage), f"{run}-{model}"
    keys = ["recording_id", "unit", "final", "audio", "status", "segments", "rows"]
    settled = entries.filter(pc.equal(entries["model"], entries["model"][0])).select(keys)
    for column, value in (("model", model), ("fp", "0" * 16), ("commit", name)):
        settled = settled.append_column(column, pa.array([value] * settled.num_rows))
    part = commit.ModelRows(
        model=model,
        fp="0" * 16,
        predictions=rows.select(schemas.PREDICTIONS.names),
        embeddings=None,
        frames=None,
        width=1,
        passport="",
        quarantine=schemas.QUARANTINE.empty_table(),
        settled=settled.select(schemas.LEDGER.names).cast(schemas.LEDGER),
    )
    nothing = {"recordings": schemas.RECORDINGS, "segments": schemas.SEGMENTS, "quarantine": schemas.QUARANTINE}
    empty_tables = {kind: schema.empty_table() for kind, schema in nothing.items()}
    audio = entries["audio"][0].as_py()
    commit.write(storage, commit.Commit(name=name, audio=audio, models=[part], **empty_tables))


def add_levels(store: serpipe.Store, after: str, *, name: str) -> None:
    """Add a model that gives levels of arousal and valence, no emotions, to every segment of another."""
    rows = silent(serpipe.open(store.storage.root).predictions(after))
    count, random = rows.num_rows, np.random.default_rng(1)
    columns = {
        "label": pa.array(random.choice(LEVELS, count)),
        "confidence": pa.array(random.uniform(0.4, 1.0, count), pa.float32()),
        "labels": pa.array([LEVELS] * count),
        "scores": pa.array([[0.6, 0.3, 0.1]] * count),
        "logits": pa.array([[0.6, 0.3, 0.1]] * count),
    }
    for column, values in columns.items():
        kind = schemas.PREDICTIONS.field(column).type
        rows = rows.set_column(rows.schema.get_field_index(column), column, values.cast(kind))
    add_model(store.storage, name, rows, run="20300102T000000000000Z-00000009")


def write_calls(root: Path, archive: Path, *, calls: int = 2, seconds: float = 16.0) -> str:
    """Label calls of two voices, a channel each, as `--channels split` does."""
    for number in range(calls):
        write_speech(archive / f"call {number}.wav", seconds=seconds, channels=2, seed=10 * number)
    bench, storage = Bench(archive, ("embedded",)), Storage(str(root))
    bench.audio = audio_fingerprint(SEGMENTATION, "split")
    bench._decode = serpipe.Decode(
        segmentation=SEGMENTATION, channels="split", speech=False, pack_seconds=4.0, models=bench.models
    )
    bench.run(storage)
    (known,) = runs.load(storage)
    runs.finish(storage, replace(known, asked={"channels": "split"}))
    return str(root)


@pytest.fixture(scope="session")
def calls(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of two calls with a voice a channel."""
    folder = tmp_path_factory.mktemp("calls")
    return write_calls(folder / "store", folder / "archive")


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of nine recordings and three models with a generation."""
    folder = tmp_path_factory.mktemp("report")
    root = write_store(folder / "store", folder / "archive", recordings=6, seconds=16.0)
    generation.make(root)
    return root


@pytest.fixture(scope="session")
def page(store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its report."""
    return Path(build(store, str(tmp_path_factory.mktemp("page") / "report.html"), price=3.5))


@pytest.fixture(scope="session")
def pages(page: Path, calls: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of stores that differ: the usual one, calls of two channels, words that are no emotions, one model."""
    folder = tmp_path_factory.mktemp("pages")
    both, alone = str(folder / "both"), str(folder / "alone")
    write_labelled_store(
        both, [MadeUpModel(name="hubert"), MadeUpModel(name="wav2vec2")], recordings=30, segments=8, feeds=14
    )
    add_levels(serpipe.open(both), "hubert", name="exhubert")
    write_labelled_store(alone, [MadeUpModel(name="only")], recordings=3)
    stores = {"calls": calls, "words": both, "alone": alone}
    return {"usual": page} | {name: Path(build(root, str(folder / f"{name}.html"))) for name, root in stores.items()}
