"""A whole generation: every segment has its row, the same to the bit however the work is spread."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import serpipe
from serpipe.cli import main
from serpipe.errors import UsageError
from serpipe.pseudolabel import diff, generation, schemas, sources
from serpipe.pseudolabel import gold as golden
from serpipe.pseudolabel.recipe import Agree, Budget, Calibrate, Caps, Coherence, Quality, Recipe, Split, Teacher
from serpipe.store import layout
from serpipe.store.storage import Storage
from serpipe.testing.labelled import AUDIO, MadeUp, MadeUpModel, write_labelled_store
from tests.bench import Bench, Killed, write_archive

MODELS = (
    MadeUpModel(name="sharp", skill=2.5, heat=0.5),
    MadeUpModel(name="broad", taxonomy="emotion2vec9", skill=2.2),
    MadeUpModel(name="small", taxonomy="iemocap4", skill=2.0),
    MadeUpModel(name="dims", taxonomy="dimensions"),
)
RECIPE = Recipe(
    teachers=tuple(Teacher(model=name) for name in ("sharp", "broad", "small")),
    budget=Budget(least_hours=0.1, first=0.1),
    caps=Caps(per_speaker=3),
    split=Split(dev=0.3),
)
RECORDINGS, SEGMENTS, GOLD = 30, 40, 10


def write_gold(root: str, made: MadeUp) -> str:
    """The first recordings' truth, a row a segment."""
    place = Path(root, "gold.csv")
    with place.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uri", "start", "end", "label", "speaker"])
        rows = zip(made.uris, made.starts, made.truth, made.speakers, strict=True)
        for uri, start, label, speaker in list(rows)[: GOLD * SEGMENTS]:
            writer.writerow([uri, start, start + 4, label, speaker])
    return str(place)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, MadeUp, str]:
    root = str(tmp_path_factory.mktemp("generation") / "store")
    made = write_labelled_store(root, MODELS, recordings=RECORDINGS, segments=SEGMENTS)
    _double(root)
    return root, made, write_gold(root, made)


@pytest.fixture(scope="module")
def made_record(store: tuple[str, MadeUp, str]) -> dict[str, Any]:
    root, _, gold = store
    return generation.make(root, RECIPE, gold=gold)


def _double(root: str) -> None:
    """Give segments of the last recordings the audio of gold, and of others that are not gold."""
    files = sorted(Path(root, f"segments/audio={AUDIO}").iterdir())
    gold, other = pq.read_table(files[0]), pq.read_table(files[-2])
    table = pq.read_table(files[-1])
    for name in ("rms", "peak", "clipping", "snr_db", "speech"):
        values = table[name].to_numpy().copy()
        values[:20] = gold[name].to_numpy()[:20]
        values[20:] = other[name].to_numpy()[20 : len(values)]
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), pa.array(values))
    pq.write_table(table, files[-1])


def rows(root: str, number: int = 1) -> pa.Table:
    return generation.rows(Storage(root), number)


def copied(store: tuple[str, MadeUp, str], folder: Path) -> str:
    root = str(folder / "copy")
    shutil.copytree(store[0], root, ignore=shutil.ignore_patterns("pseudo_labels"))
    return root


def test_every_segment_has_one_row_with_a_verdict(store: tuple[str, MadeUp, str], made_record: dict[str, Any]) -> None:
    root, made, _ = store
    table = rows(root)
    assert table.schema.equals(schemas.PSEUDO_LABELS)
    assert table["segment_id"].to_pylist() == sorted(made.segment_ids)
    for row in table.to_pylist():
        assert row["kept"] == (row["reason"] is None) == (row["split"] is not None) == (row["weight"] > 0)
        verdicts = row["verdicts"]
        if row["kept"]:
            assert False not in verdicts.values()
            assert all(verdicts[stage] for stage in schemas.GLOBAL_STAGES)
        else:
            first = next(stage for stage in schemas.STAGES if verdicts[stage] is False)
            assert first == row["reason"]
        assert sum(row["soft_label"]) == pytest.approx(1, abs=1e-5)
        assert row["confidence"] == max(row["soft_label"])
        assert made_record["classes"][int(np.argmax(row["soft_label"]))] == row["label"]


def test_the_record_adds_up(store: tuple[str, MadeUp, str], made_record: dict[str, Any]) -> None:
    root, _, _ = store
    table = rows(root)
    reasons = Counter(table["reason"].to_pylist())
    assert made_record["considered"]["segments"] == RECORDINGS * SEGMENTS
    assert made_record["kept"]["segments"] == reasons[None] > 0
    for step in made_record["funnel"]:
        assert step["dropped"] == reasons[step["stage"]]
        assert step["dropped_hours"] == pytest.approx(reasons[step["stage"]] * 4 / 3600)
    assert made_record["funnel"][-1]["kept"] == reasons[None]
    for stage in ("gold", "snr", "clipping", "agree", "duplicate", "speaker", "budget"):
        assert reasons[stage], stage
    kept = table.filter(table["kept"])
    for name, counts in made_record["per_class"].items():
        assert counts["kept"] == pc.sum(pc.equal(kept["label"], name)).as_py()
        assert counts["considered"] == pc.sum(pc.equal(table["label"], name)).as_py()
    assert made_record == json.loads(Path(root, schemas.record(1)).read_text())
    hours = made_record["kept"]["hours"]
    assert hours <= made_record["budget_hours"] == pytest.approx(0.1 * RECORDINGS * SEGMENTS * 4 / 3600)


def test_calibration_agreement_and_selection_make_labels_better(
    store: tuple[str, MadeUp, str], made_record: dict[str, Any]
) -> None:
    root, made, _ = store
    truth = dict(zip(made.segment_ids, made.truth, strict=True))
    table = rows(root).filter(pc.not_equal(pc.fill_null(rows(root)["reason"], ""), "gold")).to_pylist()
    right = [(row["label"] == truth[row["segment_id"]], row["kept"]) for row in table]
    kept = [good for good, was_kept in right if was_kept]
    unfiltered = sum(good for good, _ in right) / len(right)
    assert sum(kept) / len(kept) > unfiltered + 0.5 * (1 - unfiltered)
    for teacher in made_record["teachers"]:
        calibration = teacher["calibration"]
        assert calibration["nll_after"] <= calibration["nll_before"]
    assert made_record["gold"]["matched"] == GOLD * SEGMENTS
    assert made_record["dimensions"] == "dims"


def test_no_gold_clip_none_that_sounds_the_same_and_no_judged_speaker_is_kept(
    store: tuple[str, MadeUp, str], made_record: dict[str, Any]
) -> None:
    root, made, _ = store
    table = rows(root).to_pylist()
    gold = set(made.segment_ids[: GOLD * SEGMENTS])
    keys = {row["audio_key"] for row in table if row["segment_id"] in gold}
    for row in table:
        assert (row["verdicts"]["gold"] is False) == (row["segment_id"] in gold or row["audio_key"] in keys)
    assert sum(row["verdicts"]["gold"] is False for row in table) > len(gold)
    kept = [row["audio_key"] for row in table if row["kept"]]
    assert len(kept) == len(set(kept))


def test_nothing_of_a_speaker_whom_gold_judges_by_is_kept(store: tuple[str, MadeUp, str], tmp_path: Path) -> None:
    root, made = copied(store, tmp_path), store[1]
    gold = tmp_path / "gold.csv"
    lines = [f"{made.uris[place]},0,4,neutral,{split}" for place, split in ((0, "test"), (SEGMENTS, "train"))]
    gold.write_text("uri,start,end,label,split\n" + "\n".join(lines) + "\n")
    with_uris = generation.make(root, RECIPE, gold=str(gold))
    dropped = [row["uri"] for row in rows(root).to_pylist() if row["reason"] == "gold"]
    assert Counter(dropped)[made.uris[0]] == SEGMENTS
    assert Counter(dropped)[made.uris[SEGMENTS]] == 1
    lines = [f"{made.uris[0]},0,4,neutral,{made.speakers[SEGMENTS]},final"]
    gold.write_text("uri,start,end,label,speaker,split\n" + "\n".join(lines) + "\n")
    generation.make(root, RECIPE, gold=str(gold))
    dropped = [row["uri"] for row in rows(root, 2).to_pylist() if row["reason"] == "gold"]
    assert Counter(dropped)[made.uris[0]] == 1
    assert Counter(dropped)[made.uris[SEGMENTS]] == SEGMENTS
    assert any(note.startswith("not every teacher is calibrated: gold has 1 ") for note in with_uris["notes"])


def test_a_speaker_is_on_one_side_of_the_split(store: tuple[str, MadeUp, str], made_record: dict[str, Any]) -> None:
    kept = rows(store[0]).filter(rows(store[0])["kept"])
    sides: dict[str, set[str]] = {}
    for speaker, split in zip(kept["speaker"].to_pylist(), kept["split"].to_pylist(), strict=True):
        sides.setdefault(speaker, set()).add(split)
    assert all(len(side) == 1 for side in sides.values())
    assert {split for side in sides.values() for split in side} == {"train", "dev"}


def without_speakers(root: str) -> None:
    """The owner's manifest as if it named no speakers."""
    for file in Path(root, "recordings").iterdir():
        table = pq.read_table(file)
        place = table.schema.get_field_index("meta")
        pq.write_table(
            table.set_column(place, table.schema.field(place), pa.nulls(len(table), table["meta"].type)), file
        )


def test_where_no_speaker_is_known_a_recording_that_gold_judges_by_stays_out(
    store: tuple[str, MadeUp, str], tmp_path: Path
) -> None:
    """Gold names voices, the manifest does not: any of a recording's segments may be the voice that judges."""
    root, made = copied(store, tmp_path), store[1]
    without_speakers(root)
    gold = tmp_path / "gold.csv"
    lines = [f"{made.uris[place]},0,4,neutral,{name}" for place, name in ((0, "ann,test"), (SEGMENTS, "bob,train"))]
    gold.write_text("uri,start,end,label,speaker,split\n" + "\n".join(lines) + "\n")
    generation.make(root, RECIPE, gold=str(gold))
    dropped = Counter(row["uri"] for row in rows(root).to_pylist() if row["reason"] == "gold")
    assert dropped[made.uris[0]] == SEGMENTS
    assert dropped[made.uris[SEGMENTS]] == 1


def test_no_seed_of_a_recipe_deals_a_judging_speaker_into_the_pool(
    store: tuple[str, MadeUp, str], tmp_path: Path
) -> None:
    root, made, gold = copied(store, tmp_path), store[1], store[2]
    judging = {row["speaker"] for row in golden.read(gold).rows.to_pylist() if row["split"] in golden.JUDGING}
    assert judging
    for number, seed in enumerate((0, 1, 2), start=1):
        generation.make(root, RECIPE.model_copy(update={"seed": seed, "budget": Budget()}), gold=gold)
        kept = generation.rows(Storage(root), number, kept=True)
        assert kept.num_rows
        assert not judging & set(kept["speaker"].to_pylist())
    assert judging < set(made.speakers)


def test_nothing_is_fitted_on_what_judges(store: tuple[str, MadeUp, str]) -> None:
    with pytest.raises(UsageError, match=r"RECIPE_INVALID: calibrate.split: gold's split test is there to judge by"):
        generation.make(store[0], RECIPE.model_copy(update={"calibrate": Calibrate(split="test")}), gold=store[2])


def test_a_student_is_not_calibrated_on_the_gold_it_has_learnt(tmp_path: Path) -> None:
    """It is right on every clip of it, and a temperature fitted there would make it sure of everything."""
    root = str(tmp_path / "store")
    models = [MadeUpModel(name="a"), MadeUpModel(name="probe-gold", taxonomy="iemocap4", skill=9.0, heat=5.0)]
    made = write_labelled_store(root, models, recordings=6, segments=20)
    rows = zip(made.uris, made.starts, made.truth, made.speakers, strict=True)
    lines = [f"{uri},{start},{start + 4},{label},{speaker}" for uri, start, label, speaker in rows]
    gold = tmp_path / "gold.csv"
    both = Recipe(teachers=(Teacher(model="a"), Teacher(model="probe-gold")))
    for split, methods in (("train", ["temperature", "none"]), ("cal", ["temperature", "temperature"])):
        gold.write_text("uri,start,end,label,speaker,split\n" + "\n".join(f"{line},{split}" for line in lines[:60]))
        record = generation.make(root, both, gold=str(gold))
        assert [teacher["calibration"]["method"] for teacher in record["teachers"]] == methods
        said = "probe-gold: not calibrated on gold's split train, which students have learnt"
        assert (said in record["notes"]) == (split == "train")


@pytest.mark.usefixtures("ray_session")
def test_rows_are_equal_to_the_bit_however_the_work_is_spread(
    store: tuple[str, MadeUp, str],
    made_record: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One bucket in this process against several on a Ray of four workers."""
    root = copied(store, tmp_path)
    monkeypatch.setattr(sources, "BUCKET_ROWS", 8 * SEGMENTS)
    record = generation.make(root, RECIPE, gold=store[2])
    assert len(Storage(root).list(f"{schemas.folder(1)}part-")) >= 4
    assert len(Storage(store[0]).list(f"{schemas.folder(1)}part-")) == 1
    calm, spread = rows(store[0]).combine_chunks(), rows(root).combine_chunks()
    for name in schemas.PSEUDO_LABELS.names:
        assert calm[name].equals(spread[name]), name
        if name == "soft_label":
            left, right = (table[name].combine_chunks().flatten().to_numpy() for table in (calm, spread))
            assert left.tobytes() == right.tobytes()
    own = {"run_id", "created"}
    assert {key: value for key, value in record.items() if key not in own} == {
        key: value for key, value in made_record.items() if key not in own
    }


def test_the_same_store_recipe_and_seed_give_the_same_rows_again(
    store: tuple[str, MadeUp, str], tmp_path: Path
) -> None:
    """What a generation may keep does not grow with the number of attempts."""
    root = copied(store, tmp_path)
    first, second = (generation.make(root, RECIPE, gold=store[2]) for _ in range(2))
    assert (first["number"], second["number"]) == (1, 2)
    assert first["budget_hours"] == second["budget_hours"]
    assert rows(root, 1).equals(rows(root, 2))


def test_what_an_interrupted_attempt_left_is_removed_and_never_read(
    store: tuple[str, MadeUp, str], tmp_path: Path
) -> None:
    root = copied(store, tmp_path)
    storage = Storage(root)
    storage.put(schemas.part(1, 77), b"half of an earlier attempt")
    with pytest.raises(UsageError, match=r"GENERATION_UNKNOWN: .* has no generation 1"):
        generation.rows(storage, 1)
    record = generation.make(root, RECIPE)
    assert record["number"] == 1
    assert not storage.exists(schemas.part(1, 77))
    assert rows(root).num_rows == RECORDINGS * SEGMENTS


@pytest.mark.parametrize("name", [schemas.part(1, 0), schemas.record(1)])
def test_killed_at_a_write_there_is_no_generation_and_the_next_attempt_makes_the_same(
    store: tuple[str, MadeUp, str],
    made_record: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    root = copied(store, tmp_path)
    put = Storage.put

    def dies(storage: Storage, place: str, data: bytes) -> None:
        if place == name:
            raise Killed(place)
        put(storage, place, data)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "put", dies)
        with pytest.raises(Killed):
            generation.make(root, RECIPE, gold=store[2])
    assert generation.numbers(Storage(root)) == []
    generation.make(root, RECIPE, gold=store[2])
    assert rows(root).equals(rows(store[0]))


def test_one_lineage_needs_no_agreement_and_says_so(store: tuple[str, MadeUp, str], tmp_path: Path) -> None:
    root = copied(store, tmp_path)
    record = generation.make(root, Recipe(teachers=(Teacher(model="sharp"),)), gold=store[2])
    assert record["lineages"] == 1
    (note, *_) = record["notes"]
    assert note == "one teacher lineage (sharp): agreement is undefined, calibrated confidence decides alone"
    table = rows(root)
    assert table["jsd"].null_count == table.num_rows
    assert not any(verdicts["agree"] is not None for verdicts in table["verdicts"].to_pylist())
    twins = (Teacher(model="sharp", lineage="x"), Teacher(model="small", lineage="x"))
    again = generation.make(root, Recipe(teachers=twins))
    assert again["lineages"] == 1
    assert again["notes"][0].startswith("one teacher lineage (x): agreement is undefined, uncalibrated confidence")
    assert again["notes"][1].startswith("no gold: ")


def test_a_segment_that_a_teacher_lacks_is_dropped_with_that_reason(
    store: tuple[str, MadeUp, str], tmp_path: Path
) -> None:
    root = copied(store, tmp_path)
    storage = Storage(root)
    model = MODELS[2]
    (name, *_) = storage.list(f"predictions/model={model.name}/")
    storage.delete(layout.ledger(layout.stem(name)))
    lost = set(pq.read_table(storage.path(name))["segment_id"].to_pylist())
    generation.make(root, RECIPE)
    table = rows(root).to_pylist()
    without = {row["segment_id"] for row in table if row["reason"] == "teachers"}
    assert without == lost
    assert all(
        row["label"] is row["soft_label"] is row["confidence"] is None for row in table if row["segment_id"] in lost
    )


@pytest.mark.parametrize(
    ("recipe", "code", "said"),
    [
        (Recipe(teachers=(Teacher(model="sharpe"),)), "TEACHER_WITHOUT_PREDICTIONS", "did you mean sharp?"),
        (Recipe(teachers=(Teacher(model="sharp", fp="00"),)), "TEACHER_WITHOUT_PREDICTIONS", "sharp fp 00"),
        (Recipe(teachers=(Teacher(model="dims"),)), "TEACHER_NOT_CATEGORICAL", "coherence.dimensions"),
        (Recipe(agree=Agree(lineages=4)), "LINEAGES_MISSING", "wants 4, the teachers have 3"),
        (Recipe(classes=("anger", "contempt")), "CLASSES_NOT_COMMON", "contempt"),
        (Recipe(coherence=Coherence(dimensions="sharp")), "TEACHER_WITHOUT_PREDICTIONS", "sharp"),
        (Recipe(audio="00"), "AUDIO_UNKNOWN", AUDIO),
    ],
)
def test_a_recipe_that_the_store_cannot_follow_is_one_sentence(
    store: tuple[str, MadeUp, str], recipe: Recipe, code: str, said: str
) -> None:
    with pytest.raises(UsageError) as error:
        generation.make(store[0], recipe)
    assert error.value.code == code
    assert said in error.value.message


def test_a_student_teaches_only_once_promoted_and_is_no_witness_beside_its_teacher(tmp_path: Path) -> None:
    root = str(tmp_path / "store")
    models = [MadeUpModel(name="a"), MadeUpModel(name="probe-1", taxonomy="iemocap4")]
    write_labelled_store(root, models, recordings=4, segments=10)
    assert [teacher["model"] for teacher in generation.make(root)["teachers"]] == ["a"]
    both = Recipe(teachers=(Teacher(model="a"), Teacher(model="probe-1")))
    for status, said in ((None, "has not passed its gates"), ("refused", "was refused by its gates")):
        if status:
            Storage(root).put(schemas.promotion(1), json.dumps({"status": status}).encode())
        with pytest.raises(UsageError, match=f"TEACHER_NOT_PROMOTED: student probe-1 {said}"):
            generation.make(root, both)
    Storage(root).put(schemas.promotion(1), json.dumps({"status": "promoted", "fp": "another"}).encode())
    with pytest.raises(UsageError, match="TEACHER_NOT_PROMOTED: student probe-1 is not the one that was judged"):
        generation.make(root, both)
    promoted(root, 1, models[1])
    record = generation.make(root, both)
    assert (record["number"], record["parent"], record["lineages"]) == (2, 1, 1)


def promoted(root: str, number: int, model: MadeUpModel) -> None:
    """Write that a student has passed its gates."""
    Storage(root).put(schemas.promotion(number), json.dumps({"status": "promoted", "fp": model.fp}).encode())


def test_students_weigh_in_the_label_and_make_no_agreement_beside_others(tmp_path: Path) -> None:
    root = str(tmp_path / "store")
    probe = MadeUpModel(name="probe-1", taxonomy="iemocap4", skill=0.0)
    others = [MadeUpModel(name=name, taxonomy="iemocap4") for name in ("b", "probe-gold", "finetuned-1")]
    write_labelled_store(root, [MadeUpModel(name="a"), *others, probe], recordings=10, segments=20)
    first = generation.make(root)
    assert [teacher["model"] for teacher in first["teachers"]] == ["a", "b"]
    promoted(root, 1, probe)
    names = ("a", "b", "probe-gold", "probe-1")
    record = generation.make(root, Recipe(teachers=tuple(Teacher(model=name) for name in names)))
    assert [(teacher["lineage"], teacher["witness"]) for teacher in record["teachers"]] == [
        ("a", True),
        ("b", True),
        ("students", False),
        ("students", False),
    ]
    assert record["lineages"] == 2
    assert not any("agreement is undefined" in note for note in record["notes"])
    alone, beside = rows(root, 1).to_pylist(), rows(root, 2).to_pylist()
    # How far a and b are apart is theirs alone, what is felt is said by all.
    assert [row["jsd"] for row in alone] == pytest.approx([row["jsd"] for row in beside], abs=1e-6)
    assert any(one["soft_label"] != other["soft_label"] for one, other in zip(alone, beside, strict=True))
    students = generation.make(root, Recipe(teachers=tuple(Teacher(model=name) for name in names[2:])))
    assert students["lineages"] == 1
    assert students["notes"][0].startswith("one teacher lineage (students): agreement is undefined")


def test_the_difference_of_two_generations_and_the_commands(store: tuple[str, MadeUp, str], tmp_path: Path) -> None:
    root = copied(store, tmp_path)
    recipe = tmp_path / "strict.toml"
    recipe.write_text('classes = "C4"\n[quality]\nsnr_db = 30\n[[teachers]]\nmodel = "small"\n')
    for arguments in (["--gold", store[2]], ["--recipe", str(recipe)]):
        result = CliRunner().invoke(main, ["pseudolabel", root, *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert "generation 2: anger, happiness, sadness, neutral; teachers small (small)" in result.output
    assert "note: one teacher lineage (small)" in result.output
    first, second = rows(root, 1).to_pylist(), rows(root, 2).to_pylist()
    found = diff.diff(Storage(root), 1, 2, clips=3)
    pairs = list(zip(first, second, strict=True))
    flips = Counter((a["label"], b["label"]) for a, b in pairs if a["label"] != b["label"])
    assert {(before, after): count for before, after, count, _ in found.flips} == flips
    left = Counter((a["label"], b["reason"]) for a, b in pairs if a["kept"] and not b["kept"])
    assert {(label, reason): count for label, reason, count in found.left} == left
    assert left["neutral", "snr"] > 0
    entered = Counter((b["label"], a["reason"]) for a, b in pairs if b["kept"] and not a["kept"])
    assert {(label, reason): count for label, reason, count in found.entered} == entered
    assert (found.shared, found.only_first, found.only_second) == (len(first), 0, 0)
    assert sum(feed[2] for feed in found.feeds) == sum(flips.values())
    sure = max(min(a["confidence"], b["confidence"]) for a, b in pairs if a["label"] != b["label"])
    assert len(found.clips) == 3
    assert found.clips[0].confidence == pytest.approx(sure)
    output = CliRunner().invoke(main, ["generations", "diff", root, "1", "2"], catch_exceptions=False).output
    assert f"{sum(flips.values())} labels flipped" in output
    assert f"{found.clips[0].uri} {found.clips[0].start_s:.2f}-" in output
    output = CliRunner().invoke(main, ["generations", "list", root], catch_exceptions=False).output
    assert [line.split(":")[0] for line in output.splitlines()] == ["generation 1", "generation 2"]
    output = CliRunner().invoke(main, ["generations", "funnel", root], catch_exceptions=False).output
    assert "  snr: dropped " in output
    refused = CliRunner().invoke(main, ["generations", "diff", root, "1", "9"])
    assert refused.exit_code == 2
    assert refused.stderr.startswith("serpipe: GENERATION_UNKNOWN: ")


def test_what_serpipe_labelled_makes_a_generation(tmp_path: Path) -> None:
    """From audio, through the embedded model, without a download."""
    write_archive(tmp_path / "archive")
    root = str(tmp_path / "store")
    Bench(tmp_path / "archive", ("embedded",)).run(Storage(root))
    record = generation.make(root, Recipe(quality=Quality(min_s=0.5, speech=0, snr_db=-20)))
    opened = serpipe.open(root)
    table, predictions = rows(root).to_pylist(), opened.predictions()
    assert len(table) == opened.segments().num_rows > predictions.num_rows > 5
    said = dict(zip(predictions["segment_id"].to_pylist(), predictions["emotion"].to_pylist(), strict=True))
    # What the model failed on is considered too, and has no label.
    assert all(row["label"] == said.get(row["segment_id"]) for row in table)
    assert {row["reason"] for row in table if row["label"] is None} == {"teachers"}
    assert {Path(row["uri"]).name for row in table} >= {"long.wav", "other.wav", "short.wav"}
    assert record["teachers"][0]["model"] == "embedded"
    assert record["classes"] == ["anger", "happiness", "sadness", "neutral"]


def test_quality_that_a_store_did_not_measure_passes(tmp_path: Path) -> None:
    root = str(tmp_path / "store")
    write_labelled_store(root, [MadeUpModel(name="a", skill=6.0)], recordings=2, segments=10)
    for file in Path(root, f"segments/audio={AUDIO}").iterdir():
        table = pq.read_table(file)
        for name in ("snr_db", "speech"):
            place = table.schema.get_field_index(name)
            table = table.set_column(place, table.schema.field(name), pa.nulls(table.num_rows, pa.float32()))
        pq.write_table(table, file)
    generation.make(root, Recipe(quality=Quality(clipping=1.0)))
    verdicts = rows(root)["verdicts"].to_pylist()
    assert all(verdict["snr"] is None and verdict["speech"] is None for verdict in verdicts)
    assert not {"snr", "speech"} & set(rows(root)["reason"].to_pylist())
