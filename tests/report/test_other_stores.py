"""Reports of stores unlike the usual one: words that are no emotions, one model alone, two voices in one file."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
import soundfile
from numpy.typing import NDArray

import serpipe
from serpipe.errors import StoreError
from serpipe.pseudolabel import generation
from serpipe.pseudolabel.recipe import Calibrate, Recipe
from serpipe.report import build, episode, figures, picks
from serpipe.report import rows as rows_module
from serpipe.report.build import _spans
from serpipe.report.rows import opened
from serpipe.store import ledger, rewrite, runs, version
from serpipe.store.storage import Storage
from serpipe.testing.labelled import MadeUpModel, write_labelled_store
from tests.report.conftest import LEVELS, add_levels


def _text(store: str, folder: Path) -> str:
    page = Path(build(store, str(folder / "report.html"))).read_text()
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_a_model_without_emotions_takes_nobodys_word(tmp_path: Path) -> None:
    root = str(tmp_path / "s")
    write_labelled_store(root, [MadeUpModel(name="hubert"), MadeUpModel(name="wav2vec2", skill=1.0)], recordings=2)
    with opened(serpipe.open(root)) as before:
        expected = figures.disagreement(before, figures.models(before))
    add_levels(serpipe.open(root), "hubert", name="exhubert")
    with opened(serpipe.open(root)) as rows:
        known = figures.models(rows)
        assert [model.name for model in known] == ["hubert", "wav2vec2", "exhubert"]
        found = figures.disagreement(rows, known)
        assert found is not None
        assert expected is not None
        assert found["mean"] == pytest.approx(expected.pop("mean"))
        assert {name: found[name] for name in expected} == expected
        assert found["models"] == ["hubert", "wav2vec2"]
    text = _text(root, tmp_path)
    assert "The most disputed" in text
    assert "hubert, wav2vec2, compared on" in text
    assert "Not compared, for they cannot say two of these: exhubert" in text
    assert "exhubert names no emotions" in text


def test_emotions_come_first_whatever_a_models_name(tmp_path: Path) -> None:
    root = str(tmp_path / "s")
    write_labelled_store(root, [MadeUpModel(name="hubert")], recordings=2)
    add_levels(serpipe.open(root), "hubert", name="exhubert")
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
    add_levels(serpipe.open(root), "plain", name="exhubert")
    text = _text(root, tmp_path)
    assert "What exhubert named" in text
    assert all(level in text for level in LEVELS)


def test_why_nothing_was_calibrated_is_said(tmp_path: Path) -> None:
    """There is gold, and the recipe asks for no calibration."""
    root = str(tmp_path / "s")
    made = write_labelled_store(root, [MadeUpModel(name="a"), MadeUpModel(name="b")], recordings=4, segments=5)
    (tmp_path / "gold.csv").write_text(f"uri,label,split\n{made.uris[0]},anger,cal\n")
    generation.make(root, Recipe(calibrate=Calibrate(method="none")), gold=str(tmp_path / "gold.csv"))
    text = _text(root, tmp_path)
    assert "not every teacher is calibrated: the recipe asks for none" in text
    assert "for want of gold" not in text


def test_what_was_relabelled_is_heard_as_it_was_cut(tmp_path: Path) -> None:
    """A student says its word from embeddings; the segments are those of the run that told the channels apart."""
    storage = Storage(str(tmp_path))
    version.check(storage)
    for run, asked in (("R1", {"channels": "split"}), ("R2", {"relabelled": "m"})):
        runs.save(storage, runs.Run(run_id=run, audio="a1", models={}, asked=asked))
    said = {"size": 1, "etag": None, "start_s": 0.0, "end_s": 2.0, "said": "anger", "confidence": 0.5}
    pick = picks.Pick(segment_id=bytes(16), recording_id=bytes(16), uri="/a.wav", run_id="R2", channel=1, **said)
    (span,) = _spans(SimpleNamespace(store=serpipe.open(str(tmp_path))), [pick], None)  # type: ignore[arg-type]
    assert (span.channels, span.channel) == ("split", 1)


def _embedded(page: str) -> dict[str, NDArray[np.float32]]:
    """The audio in a page by name."""
    (text,) = re.findall(r'<script type="application/json" id="audio">(.*?)</script>', page, re.DOTALL)
    return {
        name: soundfile.read(io.BytesIO(base64.b64decode(clip)), dtype="float32")[0]
        for name, clip in json.loads(text).items()
    }


def _alike(heard: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """Correlation at the best alignment, for an encoder delays by some hundred samples."""
    norms = np.linalg.norm(heard) * np.linalg.norm(wanted)
    width = len(heard) + len(wanted)
    spectrum = np.fft.rfft(heard, width) * np.conj(np.fft.rfft(wanted, width))
    return float(np.fft.irfft(spectrum, width).max() / norms)


def test_a_call_is_heard_channel_by_channel(calls: str, tmp_path: Path) -> None:
    page = Path(build(calls, str(tmp_path / "report.html"))).read_text()
    heard = _embedded(page)
    assert re.search(r"call 1.wav, channel 2 <span>", page)
    with opened(serpipe.open(calls)) as rows:
        figures.disagreement(rows, [])
        chosen = episode.choose(rows, "embedded", None)
        kinds = picks.of_classes(rows, "embedded", count=2)
    assert chosen is not None
    assert chosen.channels == 2
    both = soundfile.read(chosen.about["uri"], dtype="float32")[0].T
    assert _alike(heard["episode"], both[chosen.channel]) > 0.9 > 0.8 > _alike(heard["episode"], both.mean(axis=0))
    assert _alike(heard["episode"], both[1 - chosen.channel]) < 0.5
    found = [pick for some in kinds.values() for mine in some.values() for pick in mine]
    assert {pick.channel for pick in found} == {0, 1}
    for pick in found:
        both = soundfile.read(pick.uri, dtype="float32")[0].T
        span = slice(round(pick.start_s * 16_000), round(pick.end_s * 16_000))
        assert _alike(heard[pick.segment_id.hex()], both[pick.channel, span]) > 0.9


def test_a_report_can_be_made_beside_a_rewrite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(tmp_path / "s")
    write_labelled_store(root, [MadeUpModel(name="a"), MadeUpModel(name="b")], recordings=3, segments=4)
    storage, load = Storage(root), rows_module._load_said

    def forgotten(rows: rows_module.Rows, files: dict[str, Any]) -> None:
        entries = ledger.load(storage)
        rewrite.forget(storage, entries.filter(pc.equal(entries["model"], "a")))
        load(rows, files)

    monkeypatch.setattr(rows_module, "_load_said", forgotten)
    with opened(serpipe.open(root)) as rows:
        assert [model.name for model in figures.models(rows)] == ["b"]


def test_a_damaged_file_is_told_in_a_sentence(tmp_path: Path) -> None:
    root = str(tmp_path / "s")
    write_labelled_store(root, [MadeUpModel(name="a")], recordings=3, segments=4)
    storage = Storage(root)
    (name,) = storage.list("predictions/")
    storage.put(name, storage.get(name)[:-50])
    with pytest.raises(StoreError, match="STORE_DAMAGED"):
        build(root, str(tmp_path / "r.html"))
