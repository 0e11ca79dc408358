"""What holds for every export: the same bytes again, voices kept apart, nothing lost in silence, an honest card."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from click.testing import CliRunner
from numpy.typing import NDArray

import serpipe
from serpipe.audio.decode import DECODER_EPOCH, Channels
from serpipe.cli import main
from serpipe.cli.export import FORMATS as ON_THE_COMMAND_LINE
from serpipe.errors import SerpipeError, UsageError
from serpipe.pack import rows_of, samples_of
from serpipe.pseudolabel import generation
from serpipe.pseudolabel.export import audio, licence
from serpipe.pseudolabel.export.clips import Clip
from serpipe.pseudolabel.export.formats import FORMATS
from serpipe.pseudolabel.export.run import export
from serpipe.store import runs
from serpipe.store.storage import Storage
from serpipe.testing import write_speech
from tests.bench import Bench
from tests.pseudolabel.exporting import KEEP_ALL, TAINTED, World, heard, shared


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return shared(tmp_path_factory)


def copied(world: World, folder: Path) -> str:
    return str(shutil.copytree(world.root, folder / "store"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_command_line_knows_every_format() -> None:
    assert tuple(FORMATS) == ON_THE_COMMAND_LINE


@pytest.mark.parametrize(("form", "way"), [("hf", None), ("lhotse", "cut"), ("kaldi", "reference"), ("funasr", None)])
def test_the_same_generation_gives_the_same_bytes(world: World, tmp_path: Path, form: str, way: str | None) -> None:
    place = tmp_path / "made"
    export(world.root, 1, form, str(place), audio=way)
    first = content(place)
    shutil.rmtree(place)
    export(world.root, 1, form, str(place), audio=way)
    assert content(place) == first
    assert "README.md" in first


def test_to_an_object_store(world: World, tmp_path: Path) -> None:
    import fsspec

    local = tmp_path / "local"
    export(world.root, 1, "webdataset", str(local))
    export(world.root, 1, "webdataset", "memory://exports/here")
    there = fsspec.filesystem("memory")
    for name, data in content(local).items():
        if name != "README.md":  # which names the place
            assert there.cat_file(f"/exports/here/{name}") == data


def test_the_command_says_what_it_wrote(world: World, tmp_path: Path) -> None:
    arguments = ["export", world.root, str(tmp_path / "out"), "--generation", "1", "--format", "nemo"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert f"train: {len(world.of('train'))} clips" in result.output
    assert "not for commercial use: embedded" in result.output
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 2
    assert "EXPORT_NOT_EMPTY" in again.output


def test_what_cannot_be_asked_for_is_a_sentence(world: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="GENERATION_UNKNOWN"):
        export(world.root, 7, "hf", str(tmp_path / "out"))
    for form in ("hf", "funasr", "emo-superb", "webdataset", "audiofolder"):
        with pytest.raises(UsageError, match=f"EXPORT_NEEDS_CUT: {form} "):
            export(world.root, 1, form, str(tmp_path / "out"), audio="reference")
    assert not (tmp_path / "out").exists()


def test_a_voice_in_two_splits_is_refused(world: World, tmp_path: Path) -> None:
    root = copied(world, tmp_path)
    (file,) = Path(root, "pseudo_labels/generation=1").glob("part-*.parquet")
    table = pq.read_table(file)
    voice = table.slice(table["speaker"].to_pylist().index("anna"), 1)
    other = {"train": "dev", "dev": "train"}[voice["split"][0].as_py()]
    torn = voice.set_column(voice.schema.get_field_index("split"), "split", pa.array([other]))
    pq.write_table(pa.concat_tables([table, torn]), file)
    with pytest.raises(SerpipeError, match=r"EXPORT_SPEAKERS_LEAK: .* speaker anna "):
        export(root, 1, "nemo", str(tmp_path / "out"))


def test_recordings_that_are_gone_or_changed_are_told(world: World, tmp_path: Path) -> None:
    archive = world.folder / "archive"
    away, other = archive / "a.wav", archive / "b.wav"
    gone, changed = (sum(row["uri"] == str(path) for row in world.rows.values()) for path in (away, other))
    assert gone
    assert changed
    kept = other.read_bytes()
    away.rename(tmp_path / "a.wav")
    other.write_bytes(kept + b"more")
    try:
        made = export(world.root, 1, "webdataset", str(tmp_path / "out"))
    finally:
        (tmp_path / "a.wav").rename(away)
        other.write_bytes(kept)
    assert made.lost == {"RECORDING_NOT_FOUND": gone, "RECORDING_CHANGED": changed}
    assert sum(sum(counts.values()) for counts in made.clips.values()) == len(world.rows) - gone - changed
    assert pq.read_table(tmp_path / "out" / "labels.parquet").num_rows == len(world.rows) - gone - changed
    assert f"{gone} kept segments are missing here: RECORDING_NOT_FOUND" in (tmp_path / "out/README.md").read_text()


def test_channels(tmp_path: Path) -> None:
    """By reference a mix cannot be named; cut, it is what was labelled."""
    write_speech(tmp_path / "archive" / "two.wav", seconds=2.0, channels=2)
    root = str(tmp_path / "store")
    bench = Bench(tmp_path / "archive", ("embedded",))
    bench.run(Storage(root))
    generation.make(root, KEEP_ALL)
    with pytest.raises(UsageError, match="EXPORT_CHANNELS_UNKNOWN"):
        export(root, 1, "hf", str(tmp_path / "hf"))
    (run,) = runs.load(Storage(root))
    runs.finish(
        Storage(root), runs.Run(**{**vars_of(run), "asked": {"channels": "mix", "decoder_epoch": DECODER_EPOCH}})
    )
    for form in ("lhotse", "nemo"):
        with pytest.raises(UsageError, match=f"EXPORT_NEEDS_CUT: 1 clips .* {form} cannot name their mix"):
            export(root, 1, form, str(tmp_path / form))
    export(root, 1, "audiofolder", str(tmp_path / "folder"))
    runs.finish(Storage(root), runs.Run(**{**vars_of(run), "asked": {"channels": "mix", "decoder_epoch": 0}}))
    with pytest.raises(UsageError, match="EXPORT_OTHER_DECODER"):
        export(root, 1, "hf", str(tmp_path / "hf"))
    (file,) = (tmp_path / "folder").rglob("*.flac")
    samples = soundfile.read(file, dtype="float32")[0]
    (expected,) = heard(bench.recordings).values()
    np.testing.assert_allclose(samples, expected, atol=2.0**-24, rtol=0)


def test_a_name_that_kaldi_would_run_is_not_written(tmp_path: Path) -> None:
    Path(write_speech(tmp_path / "a.wav", seconds=2.0)).rename(tmp_path / "touch here|")
    (tmp_path / "archive.csv").write_text(f"uri\n{tmp_path}/touch here|\n")
    root = str(tmp_path / "store")
    Bench(tmp_path / "archive.csv", ("embedded",)).run(Storage(root))
    generation.make(root, KEEP_ALL)
    with pytest.raises(UsageError, match=r"EXPORT_NEEDS_CUT: the names of 1 recordings .* kaldi"):
        export(root, 1, "kaldi", str(tmp_path / "out"), audio="reference")
    assert sum(export(root, 1, "kaldi", str(tmp_path / "out"), audio="cut").hours.values()) > 0
    assert sum(export(root, 1, "nemo", str(tmp_path / "nemo"), audio="reference").hours.values()) > 0


def vars_of(run: runs.Run) -> dict[str, object]:
    return {name: getattr(run, name) for name in runs.Run.__dataclass_fields__}


def test_overlapping_clips_of_each_channel_are_cut_exactly(tmp_path: Path) -> None:
    path = write_speech(tmp_path / "two.flac", seconds=9.0, channels=2, sample_rate=44_100)
    assert len(assert_cut_exactly(path, "window:3/1", "split")) == 14


@pytest.mark.long
def test_real_recordings_of_every_codec_are_cut_exactly(real_audio: Path) -> None:
    with (real_audio / "formats" / "index.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["tier"] == "core" and row["audio_streams"] == "1"]
    by_codec = {
        row["codec"]: str(real_audio / "formats" / row["path"])
        for row in rows
        if 2 < float(row["duration_s"] or 0) < 30
    }
    assert len(by_codec) > 5
    for path in by_codec.values():
        assert assert_cut_exactly(path, "window:2/1", "mix"), path


def assert_cut_exactly(path: str, segmentation: str, channels: Channels) -> list[str]:
    """The cutter gives the very samples that the decoding stage hands to the models; keys in the order of time."""
    recordings = serpipe.read_manifest(path)
    expected: dict[str, NDArray[np.float32]] = {}
    clips = []
    for pack in serpipe.Decode(segmentation=segmentation, channels=channels, speech=False)(recordings):
        for row in rows_of(pack, "segments").to_pylist():
            clips.append(clip_of(row, path))
            expected[clips[-1].key] = samples_of(pack)[row["offset"] : row["offset"] + row["length"]]
    clips.sort(key=lambda clip: (clip.start_s, clip.channel))
    lost: Counter[str] = Counter()
    found = {clip.key: samples for _, clip, samples in audio.cut(enumerate(clips), channels, lost)}
    assert not lost
    assert list(found) == [clip.key for clip in clips]
    for key, samples in expected.items():
        assert np.array_equal(found[key], samples)
    return list(found)


def test_lhotse_names_one_channel_by_reference(tmp_path: Path) -> None:
    import lhotse

    path = write_speech(tmp_path / "two.wav", seconds=3.0, channels=2)
    row = {"segment_id": bytes(16), "channel": 1, "start_s": 1.0, "end_s": 2.5}
    clip = dataclasses.replace(clip_of(row, path), channels=2, recording_s=3.0)
    (text,) = FORMATS["lhotse"].texts
    said = {name: say(clip, ["anger"]) for name, say in text.columns.items()}
    cut = lhotse.MonoCut.from_dict(json.loads(json.dumps(said)))
    expected = soundfile.read(path, dtype="float32")[0][16_000:40_000, 1]
    assert np.array_equal(cut.load_audio()[0], expected)


def clip_of(row: dict[str, Any], uri: str) -> Clip:
    nothing = dict.fromkeys(("size", "etag", "speaker", "feed", "arousal", "valence", "dominance"))
    return Clip(
        key=row["segment_id"].hex(), recording="r", uri=uri, sample_rate=16_000, channels=1, recording_s=9.0,
        channel=row["channel"], start_s=row["start_s"], end_s=row["end_s"], label="anger", soft=(1.0,), weight=1.0,
        confidence=1.0, split="train", **nothing,
    )  # fmt: skip


def test_the_card_says_what_matters(world: World, tmp_path: Path) -> None:
    root = copied(world, tmp_path)
    gates = {
        "generation": 1,
        "student": "probe-1",
        "status": "refused",
        "split": "gate",
        "gates": [{"gate": "majority", "passed": False, "why": "UA 0.2 | no better"}],
    }
    Storage(root).put("pseudo_labels/generation=1/promotion.json", json.dumps(gates).encode())
    export(root, 1, "nemo", str(tmp_path / "out"))
    text = (tmp_path / "out" / "README.md").read_text()
    assert "**Not for commercial use**: embedded" in text
    assert f"The strictest licence that is known is **{TAINTED}**." in text
    assert "| audio | 5 recordings | CC-BY-4.0 |" in text
    assert "| audio | 1 recordings | unknown |" in text
    assert "license: unknown" in text
    assert world.record["recipe_hash"] in text
    assert "| majority | failed | UA 0.2 \\| no better |" in text
    assert all(f"| {step['stage']} | {step['dropped']} |" in text for step in world.record["funnel"])
    described = json.loads((tmp_path / "out" / "croissant.json").read_text())
    assert described["license"] == [TAINTED, "CC-BY-4.0", "unknown"]


def test_a_checkpoint_of_ones_own_has_no_known_licence(world: World) -> None:
    taught = [{"model": "mine", "licence": "see the checkpoint's own card", "student_of": None}]
    found = licence.read(Storage(world.root), {"teachers": taught}, {"CC0-1.0": 3})
    assert (found.known, found.complete) == (["CC0-1.0"], False)


def test_a_student_has_the_licence_of_those_who_taught_it(world: World) -> None:
    taught = {"teachers": [{"model": "probe-1", "licence": None, "student_of": 1}]}
    found = licence.read(Storage(world.root), taught, {"CC0-1.0": 3})
    assert found.tainting == {"embedded": TAINTED}
    assert found.strictest == TAINTED
    assert found.complete


def test_beyond_full_scale_is_clipped_and_counted(world: World) -> None:
    loud = np.array([0.5, 1.5, -2.0], np.float32)
    back = soundfile.read(io.BytesIO(audio.flac(loud)), dtype="float64")[0]
    assert back.tolist() == [0.5, 1 - 2.0**-23, -1.0]
