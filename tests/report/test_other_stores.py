"""Reports of stores unlike the usual one: words that are no emotions, one model alone, two voices in one file."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa

import serpipe
from serpipe.report import build, figures
from serpipe.report.rows import opened
from serpipe.store import schemas
from serpipe.testing.labelled import MadeUpModel, write_labelled_store
from tests.report.conftest import add_model, silent

LEVELS = ["low/negative", "low/neutral", "high/positive"]


def _levels(store: serpipe.Store, after: str, *, name: str) -> None:
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


def _text(store: str, folder: Path) -> str:
    page = Path(build(store, str(folder / "report.html"))).read_text()
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_a_model_without_emotions_takes_nobodys_word(tmp_path: Path) -> None:
    root = str(tmp_path / "s")
    write_labelled_store(root, [MadeUpModel(name="hubert"), MadeUpModel(name="wav2vec2", skill=1.0)], recordings=2)
    with opened(serpipe.open(root)) as before:
        expected = figures.disagreement(before, figures.models(before))
    _levels(serpipe.open(root), "hubert", name="exhubert")
    with opened(serpipe.open(root)) as rows:
        known = figures.models(rows)
        assert [model.name for model in known] == ["hubert", "wav2vec2", "exhubert"]
        found = figures.disagreement(rows, known)
        assert found is not None
        assert found == expected
        assert found["models"] == ["hubert", "wav2vec2"]
    text = _text(root, tmp_path)
    assert "The most disputed" in text
    assert "hubert, wav2vec2, compared on" in text
    assert "Not compared, for they cannot say two of these: exhubert" in text
    assert "exhubert names no emotions" in text


def test_emotions_come_first_whatever_a_models_name(tmp_path: Path) -> None:
    root = str(tmp_path / "s")
    write_labelled_store(root, [MadeUpModel(name="hubert")], recordings=2)
    _levels(serpipe.open(root), "hubert", name="exhubert")
    text = _text(root, tmp_path)
    assert "What hubert named" in text
    assert "No two models here can say the same two emotions" in text
    assert "One model alone" not in text


def test_the_most_models_that_can_be_compared_are() -> None:
    def model(name: str, *emotions: str, segments: int = 10) -> figures.Model:
        return figures.Model(name, segments, None, emotions, emotions, plane=False)

    one, two = model("one", "anger", "happiness", segments=99), model("two", "anger", "fear", "calm")
    three, four = model("three", "fear", "calm", "anger"), model("four", "fear", "anger", "calm", "happiness")
    assert figures.comparable([one, two, three, four]) == ([two, three, four], ["anger", "fear", "calm"])
    assert figures.comparable([one, two, four]) == ([one, four], ["anger", "happiness"])
    assert figures.comparable([one, two]) == ([], [])
    assert figures.comparable([one]) == figures.comparable([]) == ([], [])


def test_models_of_other_segments_are_not_called_one_model(tmp_path: Path) -> None:
    """Two models, of which one labelled nothing that the other did: neither one alone, nor of other words."""
    root = str(tmp_path / "s")
    write_labelled_store(root, [MadeUpModel(name="a"), MadeUpModel(name="b")], recordings=2, segments=4)
    with opened(serpipe.open(root)) as rows:
        rows.db.execute("UPDATE said SET segment_id = unhex('00') || segment_id WHERE model = 'b'")
        assert figures.disagreement(rows, figures.models(rows)) is None
        assert figures.comparable(figures.models(rows))[0]


def test_one_model_alone_has_a_page(tmp_path: Path) -> None:
    root = str(tmp_path / "s")
    write_labelled_store(root, [MadeUpModel(name="only")], recordings=2)
    text = _text(root, tmp_path)
    assert "One model alone cannot be contradicted" in text
    assert "The most disputed" not in text


def test_levels_alone_have_a_page(tmp_path: Path) -> None:
    root = str(tmp_path / "s")
    write_labelled_store(root, [MadeUpModel(name="plain", taxonomy="dimensions")], recordings=2)
    _levels(serpipe.open(root), "plain", name="exhubert")
    text = _text(root, tmp_path)
    assert "What exhubert named" in text
    assert all(level in text for level in LEVELS)
