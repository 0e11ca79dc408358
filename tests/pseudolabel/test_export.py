"""Exports: each is loaded back by the library its users load it with, and holds the samples that were labelled."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from serpipe.pseudolabel.export.formats import FORMATS
from serpipe.pseudolabel.export.run import export
from tests.pseudolabel.exporting import World, shared

ONE_STEP = 2.0**-24
"""Half a step of 24 bits: what FLAC may lose of samples that were resampled."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return shared(tmp_path_factory)


def assert_heard(world: World, found: dict[str, NDArray[np.float32]], wanted: Iterable[str]) -> None:
    """The clips are these, and each holds what the model heard."""
    assert sorted(found) == sorted(wanted)
    for key, samples in found.items():
        assert samples.shape == world.samples[key].shape
        np.testing.assert_allclose(samples, world.samples[key], atol=ONE_STEP, rtol=0)
        if not world.rows[key]["uri"].endswith("c.wav"):
            # From 16 bits at 16 kHz nothing at all is lost.
            assert np.array_equal(samples, world.samples[key])


def soft(world: World, key: str) -> dict[str, float]:
    return dict(zip(world.record["classes"], world.rows[key]["soft_label"], strict=True))


def jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_world_is_worth_exporting(world: World) -> None:
    assert len(world.rows) == len(world.samples)
    assert len({row["label"] for row in world.rows.values()}) > 1
    assert world.of("train")
    assert world.of("dev")


def test_hugging_face_datasets(world: World, tmp_path: Path) -> None:
    import datasets

    place, made = world.export("hf", shard_bytes=200_000)
    assert made.audio == "cut"
    assert len(list((place / "data").glob("train-*"))) > 1
    loaded = datasets.load_dataset(str(place), cache_dir=str(tmp_path))
    assert set(loaded) == {"train", "validation"}
    for split, name in (("train", "train"), ("dev", "validation")):
        table = loaded[name]
        assert table.features["audio"].sampling_rate == 16_000
        assert table.features["label"].names == world.record["classes"]
        found = {}
        for row in table.cast_column("audio", datasets.Audio(decode=False)):
            samples, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
            assert rate == 16_000
            found[row["key"]] = samples
            kept = world.rows[row["key"]]
            assert table.features["label"].int2str(row["label"]) == kept["label"]
            assert row["soft_label"] == pytest.approx(kept["soft_label"], abs=1e-6)
            assert row["weight"] == pytest.approx(kept["weight"])
        assert_heard(world, found, world.of(split))


def test_hugging_face_audiofolder(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    # `datasets` imports this before it looks whether there is anything to encode; it needs FFmpeg's libraries.
    encoders = types.ModuleType("torchcodec.encoders")
    encoders.AudioEncoder = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchcodec.encoders", encoders)
    monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    place, _ = world.export("audiofolder")
    for ask in ({"path": "audiofolder", "data_dir": str(place)}, {"path": str(place)}):
        loaded = datasets.load_dataset(**ask, cache_dir=str(tmp_path))
        assert set(loaded) == {"train", "validation"}
        for split, name in (("train", "train"), ("dev", "validation")):
            table = loaded[name].cast_column("audio", datasets.Audio(decode=False))
            found = {}
            for row in table:
                key = Path(row["audio"]["path"]).stem
                found[key] = soundfile.read(row["audio"]["path"], dtype="float32")[0]
                assert row["label"] == world.rows[key]["label"]
                assert row["soft_label"] == pytest.approx(soft(world, key), abs=1e-6)
            assert_heard(world, found, world.of(split))


def test_webdataset(world: World) -> None:
    import webdataset

    place, _ = world.export("webdataset", shard_bytes=200_000)
    for split in ("train", "dev"):
        shards = sorted(str(path) for path in place.glob(f"{split}-*.tar"))
        assert len(shards) > 1 or split == "dev"
        found = {}
        for sample in webdataset.WebDataset(shards, shardshuffle=False):
            found[sample["__key__"]] = soundfile.read(io.BytesIO(sample["flac"]), dtype="float32")[0]
            said = json.loads(sample["json"])
            assert said["label"] == world.rows[sample["__key__"]]["label"]
            assert said["soft_label"] == pytest.approx(soft(world, sample["__key__"]), abs=1e-6)
        assert_heard(world, found, world.of(split))


def test_lhotse_by_reference(world: World) -> None:
    import lhotse

    place, made = world.export("lhotse")
    assert made.audio == "reference"
    for split in ("train", "dev"):
        cuts = lhotse.CutSet.from_file(place / f"cuts_{split}.jsonl.gz")
        lhotse.validate(cuts)
        found = {}
        assert {cut.id for cut in cuts} == set(world.of(split))
        for cut in cuts:
            kept = world.rows[cut.id]
            (supervision,) = cut.supervisions
            assert supervision.custom["emotion"] == kept["label"]
            assert supervision.text == f"words of {kept['speaker'] or ''}"
            samples = cut.load_audio()[0]
            if cut.sampling_rate == 16_000:
                found[cut.id] = samples
            assert len(samples) == round(cut.duration * cut.sampling_rate)
        assert_heard(world, found, [key for key, row in world.of(split).items() if not row["uri"].endswith("c.wav")])


def test_lhotse_shar(world: World) -> None:
    import lhotse

    place, made = world.export("lhotse", "cut", shard_bytes=200_000)
    assert made.audio == "cut"
    for split in ("train", "dev"):
        found = {}
        for cut in lhotse.CutSet.from_shar(in_dir=place / split):
            found[cut.id] = cut.load_audio()[0]
            assert (cut.start, cut.num_samples) == (0.0, len(found[cut.id]))
            assert cut.supervisions[0].custom["soft_label"] == pytest.approx(soft(world, cut.id), abs=1e-6)
            assert cut.supervisions[0].custom["uri"] == world.rows[cut.id]["uri"]
        assert_heard(world, found, world.of(split))


@pytest.mark.parametrize("audio", ["reference", "cut"])
def test_kaldi(world: World, audio: Any) -> None:
    import kaldiio

    place, _ = world.export("kaldi", audio)
    for split in ("train", "dev"):
        folder = place / split
        segments = str(folder / "segments") if audio == "reference" else None
        found = {}
        loaded = kaldiio.load_scp(str(folder / "wav.scp"), segments=segments)
        for name in loaded:
            rate, samples = loaded[name]
            if rate == 16_000:
                whole = samples.dtype == np.int16
                found[name.rpartition("-")[2]] = (samples / 2.0**15 if whole else samples).astype(np.float32)
        if audio == "cut":
            assert_heard(world, found, world.of(split))
        else:
            same = [key for key, row in world.of(split).items() if not row["uri"].endswith("c.wav")]
            assert_heard(world, found, same)


def test_the_recipe_says_which_format_where_the_command_does_not(world: World, tmp_path: Path) -> None:
    asked, _ = world.export("kaldi")
    made = export(world.root, 1, None, str(tmp_path / "unasked"))
    assert made.form == "kaldi"
    for path in sorted(path for path in asked.rglob("*") if path.name in ("utt2emo", "segments", "wav.scp")):
        assert (tmp_path / "unasked" / path.relative_to(asked)).read_bytes() == path.read_bytes()


def test_kaldi_folders_are_what_its_validation_asks_for(world: World) -> None:
    place, _ = world.export("kaldi", "reference")
    for split in ("train", "dev"):
        tables = {path.name: path.read_bytes().splitlines() for path in (place / split).iterdir()}
        firsts = {name: [line.split(b" ")[0] for line in lines] for name, lines in tables.items()}
        for name, lines in tables.items():
            assert lines == sorted(lines), name
        for name in ("utt2spk", "utt2dur", "utt2emo", "utt2soft", "utt2lang", "text", "segments"):
            assert firsts[name] == firsts["utt2spk"]
        # Kaldi also wants the speakers of the utterances in order.
        speakers = [line.split(b" ")[1] for line in tables["utt2spk"]]
        assert speakers == sorted(speakers)
        assert firsts["spk2utt"] == sorted(set(speakers))
        assert [utterance for line in tables["spk2utt"] for utterance in line.split(b" ")[1:]] == firsts["utt2spk"]
        assert {line.split(b" ")[1] for line in tables["segments"]} == set(firsts["wav.scp"])
        emotions = {line.rpartition(b" ")[2].decode() for line in tables["utt2emo"]}
        assert emotions == {row["label"] for row in world.of(split).values()}
    assert (place / "classes.txt").read_text().split() == world.record["classes"]


def test_funasr(world: World) -> None:
    from funasr.datasets.audio_datasets.index_ds import IndexDSJsonlRankFull

    place, _ = world.export("funasr")
    words = {"happiness": "HAPPY", "anger": "ANGRY", "sadness": "SAD", "neutral": "NEUTRAL"}
    for split in ("train", "dev"):
        contents = IndexDSJsonlRankFull(str(place / f"{split}.jsonl")).contents
        found = {}
        for item in contents:
            key = Path(item["source"]).stem
            found[key], rate = soundfile.read(item["source"], dtype="float32")
            assert item["emo_target"] == f"<|{words[world.rows[key]['label']]}|>"
            assert item["text_language"] == "<|en|>"
            assert item["event_target"] == "<|Speech|>"
            assert item["source_len"] == len(found[key]) * 100 // rate
            assert item["target"].startswith("words of")
        assert_heard(world, found, world.of(split))


@pytest.mark.parametrize("audio", ["reference", "cut"])
def test_nemo(world: World, audio: Any) -> None:
    """The keys that NeMo's label collections read; relative paths start from the manifest's folder."""
    place, _ = world.export("nemo", audio)
    for split in ("train", "dev"):
        rows = jsonl(place / f"{split}_manifest.json")
        assert sorted(row["label"] for row in world.of(split).values()) == sorted(row["label"] for row in rows)
        found = []
        for row in rows:
            path = place / row["audio_filepath"]
            rate = soundfile.info(path).samplerate
            first, count = round(row["offset"] * rate), round(row["duration"] * rate)
            samples = soundfile.read(path, start=first, frames=count, dtype="float32")[0]
            assert len(samples) == count
            if rate == 16_000:
                found.append(samples.tobytes())
        wanted = [
            world.samples[key].tobytes() for key, row in world.of(split).items() if not row["uri"].endswith("c.wav")
        ]
        assert set(wanted) <= set(found)
        assert len(rows) == len(world.of(split))


@pytest.mark.parametrize("audio", ["reference", "cut"])
def test_emobox(world: World, audio: Any) -> None:
    """What EmoBox's own loader does with the files, which can no longer be imported."""
    place, _ = world.export("emobox", audio)
    folder = place / "serpipe"
    names = json.loads((folder / "label_map.json").read_text())
    assert list(names) == world.record["classes"]
    everything = {row["key"] for row in jsonl(folder / "serpipe.jsonl")}
    for split, name in (("train", "train"), ("dev", "valid")):
        rows = jsonl(folder / "fold_1" / f"serpipe_{name}_fold_1.jsonl")
        found = {}
        for row in rows:
            key = row["key"].removeprefix("serpipe-")
            assert row["key"] in everything
            assert row["emo"] == world.rows[key]["label"]
            assert names[row["emo"]]
            rate = soundfile.info(row["wav"]).samplerate
            assert rate == row["sample_rate"]
            span = {}
            if audio == "reference":
                first = int(row["start_time"] * rate)
                span = {"start": first, "frames": int(row["end_time"] * rate) - first}
            samples = soundfile.read(row["wav"], dtype="float32", **span)[0]
            assert len(samples) == row["num_frame"]
            if rate == 16_000:
                found[key] = samples
        same = [k for k, row in world.of(split).items() if audio == "cut" or not row["uri"].endswith("c.wav")]
        assert_heard(world, found, same)
        assert len(rows) == len(world.of(split))
    assert (folder / "fold_1" / "serpipe_test_fold_1.jsonl").read_bytes() == b""


def test_emo_superb(world: World) -> None:
    place, _ = world.export("emo-superb")
    config = json.loads((place / "Primary" / "config.json").read_text())
    assert config["categorical"]["emo_type"] == ["angry", "happy", "sad", "neutral"]
    with (place / "Primary" / "labels_consensus_1.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for split in ("train", "dev"):
        mine = [row for row in rows if row["Split_Set"] == config["data_split_type"][split]]
        found = {}
        for row in mine:
            key = Path(row["FileName"]).stem
            found[key] = soundfile.read(place / "Audios" / row["FileName"], dtype="float32")[0]
            chances = [float(row[name]) for name in config["categorical"]["emo_type"]]
            assert chances == pytest.approx(world.rows[key]["soft_label"], abs=1e-6)
            assert row["SpkrID"] == (world.rows[key]["speaker"] or world.rows[key]["recording_id"].hex())
        assert_heard(world, found, world.of(split))


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_every_export_is_described(world: World, form: str) -> None:
    """Croissant validates without an error, its records are the exported rows, and its files have their hashes."""
    import mlcroissant

    place, _ = world.export(form)
    described = mlcroissant.Dataset(jsonld=place / "croissant.json")
    assert not described.metadata.ctx.issues.errors
    rows = list(described.records("labels"))
    assert sorted(row["labels/key"].decode() for row in rows) == sorted(world.rows)
    for row in rows:
        kept = world.rows[row["labels/key"].decode()]
        assert row["labels/label"].decode() == kept["label"]
        assert row["labels/split"].decode() == kept["split"]
        chances = [row[f"labels/soft_{name}"] for name in world.record["classes"]]
        assert chances == pytest.approx(kept["soft_label"])
    for file in described.metadata.distribution:
        assert hashlib.sha256((place / file.id).read_bytes()).hexdigest() == file.sha256
