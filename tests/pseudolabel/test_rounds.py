"""The loop on a real store: a spoilt gold and a good teacher give a promoted student, a useless one is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import soundfile
from click.testing import CliRunner, Result

import serpipe
from serpipe.cli import main
from serpipe.errors import UsageError
from serpipe.ids import recording_id
from serpipe.models.registry import resolve
from serpipe.pack import ID
from serpipe.pseudolabel import gate, generation, rounds, schemas, sources, student
from serpipe.pseudolabel import gold as golden
from serpipe.pseudolabel.fit import Settings
from serpipe.pseudolabel.promote import lines as lines_of
from serpipe.pseudolabel.promote import promote, score_final, status
from serpipe.pseudolabel.recipe import Budget, Recipe, Teacher, parse
from serpipe.pseudolabel.relabel import relabel
from serpipe.pseudolabel.scoring import score, stored
from serpipe.pseudolabel.train import train
from serpipe.store import ledger, rewrite
from serpipe.store.damage import UNITS
from serpipe.store.storage import Storage
from serpipe.testing.speech import speech_like
from tests.bench import Bench

CLASSES = {"anger": 260.0, "sadness": 110.0}
QUICK = Settings(steps=60, penalty=0.1)
SMALL = parse(
    '[quality]\nmin_s = 1.0\nsnr_db = -50\nspeech = 0\n[caps]\nfeed_share = 1.0\n[calibrate]\nmethod = "none"\n'
    "[split]\ndev = 0.0\n"
)


def write_clip(path: Path, emotion: str, seed: int, *, noise: bool) -> None:
    clip = speech_like(2.0, seed=seed, pitch_hz=CLASSES[emotion])
    if noise:
        clip = clip + 0.2 * np.random.default_rng(seed).standard_normal(len(clip)).astype(np.float32)
    soundfile.write(path, 0.5 * clip, 16_000)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pitch is the emotion. In gold's training clips only the angry ones are noisy, in all others noise means nothing.

    A head trained on that gold alone hears noise instead of pitch; whoever learns from the pool hears pitch.
    """
    folder = tmp_path_factory.mktemp("rounds")
    (folder / "audio").mkdir()
    manifest, gold, honest = ["uri,speaker,corpus"], ["uri,label,speaker,split"], ["uri,label,speaker,split"]
    seed = 0
    for split, voices, clips in (("train", 2, 4), ("pool", 4, 6), ("gate", 4, 4), ("final", 1, 4)):
        for voice in range(voices):
            for emotion in CLASSES:
                for clip in range(clips):
                    seed += 1
                    path, speaker = folder / "audio" / f"{seed}.wav", f"{split}-{voice}"
                    noise = emotion == "anger" if split == "train" else bool((clip + voice) % 2)
                    write_clip(path, emotion, seed, noise=noise)
                    manifest.append(f"{path},{speaker},{'acted' if voice % 2 else 'natural'}")
                    if split != "pool":
                        gold.append(f"{path},{emotion},{speaker},{split}")
                    honest.append(f"{path},{emotion},{speaker},{'train' if split == 'pool' else 'dev'}")
    for name, rows in (("manifest", manifest), ("gold", gold), ("honest", honest)):
        (folder / f"{name}.csv").write_text("\n".join(rows))
    bench = Bench(folder / "audio", ("mel-statistics",))
    recordings = serpipe.read_manifest(str(folder / "manifest.csv"))
    # Ids decide among equals; these do not depend on where the test runs, and with them the two clips that a first
    # round may keep teach something, but not everything.
    ids = [recording_id(Path(uri).name, "7") for uri in recordings["uri"].to_pylist()]
    bench.recordings = recordings.set_column(0, recordings.schema.field(0), pa.array(ids, ID))
    bench.run(Storage(str(folder / "store")))
    # A teacher that knows: a head that was trained on the pool's true labels.
    teacher = train(str(folder / "store"), 0, str(folder / "honest.csv"), settings=QUICK)
    shutil.move(teacher.folder, folder / "teacher")
    relabel(str(folder / "store"), str(folder / "teacher"), name="teacher")
    return folder


@pytest.fixture
def store(corpus: Path, tmp_path: Path) -> str:
    return str(shutil.copytree(corpus / "store", tmp_path / "store"))


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


EASY = gate.Limits(count=200, drift=0.2, flips=0.5, entropy=5.0)


def made(store: str, number: int, gold: str, settings: Settings = QUICK) -> None:
    """Train a student and let it label."""
    train(store, number, gold, settings=settings)
    relabel(store, f"{store}/{student.folder(number)}", name=student.name(number))


TAUGHT = SMALL.model_copy(update={"teachers": (Teacher(model="teacher"),)})


def test_a_better_student_is_promoted_and_a_killed_loop_goes_on(corpus: Path, store: str) -> None:
    gold, said = str(corpus / "gold.csv"), []
    limits = EASY

    def dies(line: str) -> None:
        said.append(line)
        if line.startswith("generation 1:"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rounds.run(store, gold, recipe=TAUGHT, settings=QUICK, limits=limits, say=dies)
    assert generation.numbers(Storage(store)) == [1]
    rest: list[str] = []
    ended = rounds.run(store, gold, recipe=TAUGHT, settings=QUICK, limits=limits, most=1, say=rest.append)
    assert ended.promoted == 1, rest
    assert ended.rounds == (1,)
    assert not any(line.startswith(("generation 1:", "probe-gold")) for line in rest)
    assert status(serpipe.open(store), 1) == "promoted"
    record = json.loads(Storage(store).get("pseudo_labels/generation=1/promotion.json"))
    assert {verdict["gate"] for verdict in record["gates"]} >= {"majority", "gold-only", "corpora", "classes", "drift"}
    assert record["gain"]["recall_macro_ua"]["low"] > 0
    (drift,) = (verdict for verdict in record["gates"] if verdict["gate"] == "drift")
    assert " on 48 canaries " in drift["why"], "the pool is watched, and no gold"
    assert record["split"] == "gate"
    # A promoted student may teach, and no other that is trained in its place.
    second = TAUGHT.model_copy(update={"teachers": (Teacher(model="probe-1"),)})
    assert generation.make(store, second, gold=gold)["parent"] == 1
    train(store, 1, gold, settings=replace(QUICK, seed=5))
    relabel(store, f"{store}/{student.folder(1)}", name="again")
    other = TAUGHT.model_copy(update={"teachers": (Teacher(model="again"),)})
    with pytest.raises(UsageError, match="TEACHER_NOT_PROMOTED: student again is not the one that was judged"):
        generation.make(store, other, gold=gold)


def test_a_student_that_gains_nothing_is_refused_and_never_teaches(corpus: Path, store: str) -> None:
    """Its only teacher is the student of the gold alone: nothing new can come of it."""
    gold = str(corpus / "gold.csv")
    ended = rounds.run(store, gold, recipe=SMALL, settings=QUICK, limits=gate.Limits(count=200))
    assert ended.promoted is None
    assert ended.rounds == (1,)
    assert "refused" in ended.why
    assert Storage(store).exists("students/generation=1/probe.json")
    with pytest.raises(UsageError, match="TEACHER_NOT_PROMOTED"):
        generation.make(store, SMALL.model_copy(update={"teachers": (Teacher(model="probe-1"),)}), gold=gold)
    # Nor under another name, nor unasked.
    relabel(store, f"{store}/{student.folder(1)}", name="honest")
    with pytest.raises(UsageError, match="TEACHER_NOT_PROMOTED: student honest was refused by its gates"):
        generation.make(store, SMALL.model_copy(update={"teachers": (Teacher(model="honest"),)}), gold=gold)
    with pytest.raises(UsageError, match="TEACHER_WITHOUT_PREDICTIONS: no categorical model has labelled"):
        generation.make(store, SMALL, gold=gold)
    # An experiment that asks what rounds are worth says so.
    recipe = SMALL.model_copy(update={"teachers": (Teacher(model="honest"),)})
    record = generation.make(store, recipe, gold=gold, ungated=True)
    assert record["parent"] == 1
    assert any(note.startswith("an experiment: ") for note in record["notes"])
    # The final split is not spent on it.
    result = run("promote", store, "--generation", "1", "--gold", gold, "--final")
    assert result.exit_code == 4
    assert "was not spent on a refused student" in result.output
    with pytest.raises(UsageError, match="FINAL_NOT_PROMOTED: probe-1 has not passed its gates"):
        score_final(store, 1, gold)
    assert not Storage(store).list("students/final/")


def test_the_final_split_judges_once(corpus: Path, store: str, tmp_path: Path) -> None:
    gold = str(corpus / "gold.csv")
    ended = rounds.run(store, gold, recipe=TAUGHT, settings=QUICK, limits=EASY, most=1)
    assert ended.promoted == 1
    assert 0 <= score_final(store, 1, gold)["recall_macro_ua"].value <= 1
    with pytest.raises(UsageError, match=r"FINAL_SPENT: 8 of these 8 clips judged probe-1 on 20"):
        score_final(store, 1, gold)
    # Other gold of which most clips are the same: one corrected, one left out.
    head, *lines = (corpus / "gold.csv").read_text().splitlines()
    first, second, *rest = (line for line in lines if line.endswith(",final"))
    corrected = first.replace(",anger,", ",sadness,")
    other = tmp_path / "other.csv"
    other.write_text("\n".join([head, *(line for line in lines if not line.endswith(",final")), corrected, *rest]))
    assert rounds.run(store, str(other), recipe=TAUGHT, settings=QUICK, limits=EASY, most=1).promoted == 2
    with pytest.raises(UsageError, match=r"FINAL_SPENT: 7 of these 7 clips judged probe-1 on 20"):
        score_final(store, 2, str(other))
    assert second


def test_two_rounds_are_promoted_and_the_third_gains_nothing(corpus: Path, store: str) -> None:
    """The first round may keep two clips, the second what is left: a student that passed widens what is allowed."""
    recipe = TAUGHT.model_copy(
        update={
            "teachers": (Teacher(model="teacher", weight=20.0),),
            "budget": Budget(first=0.03, later=0.9, least_hours=0.0),
        }
    )
    limits = replace(EASY, drift=1.0, flips=1.0, entropy=99.0, ece=1.0)
    ended = rounds.run(store, str(corpus / "gold.csv"), recipe=recipe, settings=QUICK, limits=limits)
    assert (ended.rounds, ended.promoted) == ((1, 2, 3), 2)
    assert ended.why == "probe-3 was refused by its gates"
    storage = Storage(store)
    said = [json.loads(storage.get(schemas.promotion(number))) for number in (1, 2, 3)]
    records = [generation.load(storage, number) for number in (1, 2, 3)]
    assert [one["status"] for one in said] == ["promoted", "promoted", "refused"]
    assert [record["parent"] for record in records] == [None, 1, 2]
    assert records[0]["kept"]["segments"] < records[1]["kept"]["segments"]
    assert {verdict["gate"] for verdict in said[2]["gates"] if verdict["passed"] is False} == {"parent"}


def test_the_loop_stops_at_a_gain_whose_interval_includes_zero(corpus: Path, store: str, tmp_path: Path) -> None:
    """Gates ask for a one-sided bound above zero, the loop for a two-sided interval."""
    gold = str(corpus / "gold.csv")
    rounds.run(store, gold, recipe=TAUGHT, settings=QUICK, limits=EASY, most=1)
    opened = serpipe.open(store)
    audio = sources.audio_of(opened, None)
    clips = golden.match(opened, golden.read(gold), audio)
    clips = clips.filter(pc.equal(clips["split"], "gate"))
    alone, taught = (
        score(opened, audio, stored(opened, audio, name), clips).answers for name in ("probe-gold", "probe-1")
    )
    right = taught.predicted == taught.truth
    gained, both = (
        np.flatnonzero(right & mask) for mask in (alone.predicted != alone.truth, alone.predicted == alone.truth)
    )
    # Of four voices with four clips two gain by one clip and one by two: in 3 % of the replicates nobody gains.
    voices = [(2, 2), (1, 3), (1, 3), (0, 4)]
    places, speakers = [], []
    for voice, (gains, others) in enumerate(voices):
        places += [*gained[:gains], *both[:others]]
        gained, both = gained[gains:], both[others:]
        speakers += [f"voice-{voice}"] * 4
    rows = clips.select(["uri", "label"]).to_pylist()
    lines = [
        f"{rows[place]['uri']},{rows[place]['label']},{speaker},gate"
        for place, speaker in zip(places, speakers, strict=True)
    ]
    lines += [f"{row['uri']},{row['label']},rest,dev" for place, row in enumerate(rows) if place not in places]
    lines += [line for line in (corpus / "gold.csv").read_text().splitlines() if line.endswith((",train", ",final"))]
    narrow = tmp_path / "narrow.csv"
    narrow.write_text("\n".join(["uri,label,speaker,split", *lines]))
    ended = rounds.run(store, str(narrow), recipe=TAUGHT, settings=QUICK, limits=replace(EASY, count=2000))
    assert ended.promoted == 2, ended
    assert ended.rounds == (2,)
    assert ended.why == "the interval of what probe-2 gains includes zero"


def test_what_another_recipe_or_gold_made_is_not_taken_for_a_round(corpus: Path, store: str) -> None:
    gold = str(corpus / "gold.csv")
    generation.make(store, TAUGHT)
    generation.make(store, TAUGHT.model_copy(update={"seed": 9}), gold=gold)
    again = [rounds.run(store, gold, recipe=TAUGHT, settings=QUICK, limits=EASY, most=1) for _ in range(2)]
    assert [ended.rounds for ended in again] == [(3,), (3,)]
    said: list[str] = []
    other = replace(QUICK, seed=1)
    assert rounds.run(store, gold, recipe=TAUGHT, settings=other, limits=EASY, most=1, say=said.append).rounds == (3,)
    assert any(line.startswith("probe-gold: UA") for line in said)
    assert student.training(Storage(store), 3)["settings"]["seed"] == 1


def test_a_store_that_has_grown_gets_a_round_of_its_own(corpus: Path, store: str, tmp_path: Path) -> None:
    """What was labelled since the last generation is learnt from; a repetition without any more is the same round."""
    gold = str(corpus / "gold.csv")

    def rounds_of() -> tuple[int, ...]:
        return rounds.run(store, gold, recipe=TAUGHT, settings=QUICK, limits=EASY, most=1).rounds

    assert [rounds_of(), rounds_of()] == [(1,), (1,)]
    (tmp_path / "new").mkdir()
    for seed in range(1000, 1004):
        write_clip(tmp_path / "new" / f"{seed}.wav", "anger" if seed % 2 else "sadness", seed, noise=False)
    Bench(tmp_path / "new", ("mel-statistics",)).run(Storage(store))
    assert rounds_of() == (1,), "its teacher has not labelled more"
    relabel(store, str(corpus / "teacher"), name="teacher")
    assert [rounds_of(), rounds_of()] == [(2,), (2,)]
    considered = [generation.load(Storage(store), number)["considered"]["segments"] for number in (1, 2)]
    assert considered[1] == considered[0] + 4


def test_no_clip_that_gold_judges_by_is_trained_on_whatever_the_generation_was_made_with(
    corpus: Path, store: str
) -> None:
    """README's own line makes a generation without gold."""
    gold = str(corpus / "gold.csv")
    record = generation.make(store, TAUGHT)
    opened = serpipe.open(store)
    read = golden.read(gold)
    matched = golden.match(opened, read, record["audio"])
    kept = generation.rows(opened.storage, 1, kept=True, columns=["segment_id", "speaker"])
    barred = golden.barred(read, matched)
    ours = generation.to_train_on(opened.storage, record, barred, ["segment_id", "speaker"])
    assert set(matched["segment_id"].to_pylist()) & set(kept["segment_id"].to_pylist())
    assert not set(matched["segment_id"].to_pylist()) & set(ours["segment_id"].to_pylist())
    assert {name.split("-")[0] for name in ours["speaker"].to_pylist()} == {"pool"}
    assert train(store, 1, gold, settings=QUICK).training["pseudo_rows"] == ours.num_rows > 10


def test_a_voice_that_gold_judges_by_teaches_nothing_before_its_clip_is_labelled(
    corpus: Path, store: str, tmp_path: Path
) -> None:
    """Tomorrow the clip is in the store, and judges who was trained today."""
    gold = tmp_path / "gold.csv"
    gold.write_text((corpus / "gold.csv").read_text() + f"\n{tmp_path}/tomorrow.wav,anger,pool-0,gate")
    before, after = (generation.make(store, TAUGHT, gold=given) for given in (None, str(gold)))
    opened, read = serpipe.open(store), golden.read(str(gold))
    barred = golden.barred(read, golden.match(opened, read, before["audio"]))
    kept = generation.rows(opened.storage, after["number"], kept=True, columns=["speaker"])
    ours = generation.to_train_on(opened.storage, before, barred, ["speaker"])
    for rows in (kept, ours):
        assert set(rows["speaker"].to_pylist()) == {"pool-1", "pool-2", "pool-3"}


def test_who_learnt_other_gold_or_was_trained_otherwise_is_not_judged(corpus: Path, store: str, tmp_path: Path) -> None:
    gold = str(corpus / "gold.csv")
    generation.make(store, TAUGHT, gold=gold)
    made(store, 1, gold)
    made(store, 0, gold, replace(QUICK, seed=3))
    with pytest.raises(UsageError, match="PROMOTE_UNLIKE: probe-1 and probe-gold were trained with other settings"):
        promote(store, 1, gold)
    made(store, 0, gold)
    moved = tmp_path / "moved.csv"
    moved.write_text((corpus / "gold.csv").read_text().replace("train-0,train", "train-0,gate"))
    with pytest.raises(UsageError, match="PROMOTE_OTHER_GOLD: probe-1 was trained with other gold than"):
        promote(store, 1, str(moved))
    chosen = tmp_path / "chosen.csv"
    chosen.write_text((corpus / "gold.csv").read_text().replace(",gate", ",dev").replace(",final", ",dev"))
    with pytest.raises(UsageError, match=r"PROMOTE_NO_GOLD: .* has no split gate or test"):
        promote(store, 1, str(chosen))


def test_a_student_of_more_gold_than_the_store_held_before_is_compared_with_its_like(
    corpus: Path, store: str, tmp_path: Path
) -> None:
    """Better by clips that people labelled, it would be promoted for its pseudo-labels."""
    (tmp_path / "new").mkdir()
    lines = [(corpus / "gold.csv").read_text()]
    for seed, emotion in enumerate([*CLASSES] * 2, 1000):
        write_clip(tmp_path / "new" / f"{seed}.wav", emotion, seed, noise=False)
        lines.append(f"{tmp_path}/new/{seed}.wav,{emotion},train-0,train")
    gold = tmp_path / "gold.csv"
    gold.write_text("\n".join(lines))
    made(store, 0, str(gold))
    Bench(tmp_path / "new", ("mel-statistics",)).run(Storage(store))
    relabel(store, str(corpus / "teacher"), name="teacher")
    generation.make(store, TAUGHT, gold=str(gold))
    made(store, 1, str(gold))
    assert [student.training(Storage(store), number)["gold"]["rows"] for number in (0, 1)] == [16, 20]
    with pytest.raises(UsageError, match="PROMOTE_UNLIKE: probe-1 and probe-gold were trained with other gold clips"):
        promote(store, 1, str(gold))
    # A loop makes the one of before again.
    assert rounds.run(store, str(gold), recipe=TAUGHT, settings=QUICK, limits=EASY, most=1).rounds == (1,)
    assert student.training(Storage(store), 0)["gold"]["rows"] == 20


def test_a_student_that_was_not_asked_is_not_wrong(corpus: Path, store: str) -> None:
    """The archive grew, and only the newer student has labelled what was added: it would win by that alone."""
    gold = str(corpus / "gold.csv")
    generation.make(store, TAUGHT, gold=gold)
    for number in (0, 1):
        made(store, number, gold)
    opened = serpipe.open(store)
    matched = golden.match(opened, golden.read(gold), sources.audio_of(opened, None))
    judging = matched.filter(pc.equal(matched["split"], "gate"))["recording_id"][0].as_py()
    entries = ledger.load(opened.storage)
    lost = pc.and_(
        pc.equal(entries["model"], "probe-gold"),
        pc.equal(entries["recording_id"].cast(pa.binary()), pa.scalar(judging, pa.binary())),
    )
    rewrite.forget(opened.storage, entries.filter(lost).select(UNITS.names).cast(UNITS))
    with pytest.raises(UsageError, match=r"PROMOTE_NOT_RELABELLED: probe-gold has not labelled \d+ of the \d+ clips"):
        promote(store, 1, gold, limits=gate.Limits(count=20))
    assert relabel(store, f"{store}/{student.folder(0)}", name="probe-gold").segments
    assert promote(store, 1, gold, limits=gate.Limits(count=20)).figures


def test_a_recipe_may_name_a_student_that_rounds_name_too(corpus: Path, store: str) -> None:
    gold = str(corpus / "gold.csv")
    generation.make(store, TAUGHT, gold=gold)
    for number in (0, 1):
        made(store, number, gold)
    named = (Teacher(model="teacher"), Teacher(model="probe-gold", fp=student.ref(Storage(store), 0).fp))
    taught = rounds._taught(Storage(store), TAUGHT.model_copy(update={"teachers": named}), 1)
    assert [teacher.model for teacher in taught.teachers] == ["teacher", "probe-gold", "probe-1"]


def test_students_of_unlike_classes_are_judged_by_what_all_can_name(corpus: Path, store: str, tmp_path: Path) -> None:
    """Gold names three emotions, the teacher two: the gold-only student is not punished for knowing more."""
    wide, narrow = tmp_path / "wide.csv", tmp_path / "narrow.csv"
    head, *lines = (corpus / "gold.csv").read_text().splitlines()
    for split in ("train", "gate"):
        for clip in range(3):
            place = [n for n, line in enumerate(lines) if line.endswith(f"{split}-1,{split}")][clip]
            lines[place] = lines[place].replace(",anger,", ",fear,")
    wide.write_text("\n".join([head, *lines]))
    generation.make(store, TAUGHT, gold=str(wide))
    for number in (0, 1):
        made(store, number, str(wide))
    assert student.training(Storage(store), 0)["classes"] == ["anger", "fear", "sadness"]
    said = promote(store, 1, str(wide), limits=gate.Limits(count=20))
    assert (said.classes, said.left_out) == (("anger", "sadness"), 3)
    assert "  3 clips are left out: not all of the students can name more than anger, sadness" in lines_of(said)
    narrow.write_text(
        "\n".join(line.replace(",anger,", ",fear,") if "gate" in line else line for line in [head, *lines])
    )
    for number in (0, 1):
        made(store, number, str(narrow))
    with pytest.raises(UsageError, match=r"PROMOTE_NOTHING_SHARED: the clips that judge in .* have 1 of the classes"):
        promote(store, 1, str(narrow))


def test_a_student_is_the_same_whoever_trains_it_again(corpus: Path, store: str) -> None:
    gold = str(corpus / "gold.csv")
    generation.make(store, TAUGHT, gold=gold)
    first = train(store, 1, gold, settings=QUICK)
    one = resolve(f"probe-1={first.folder}").fp
    again = train(store, 1, gold, settings=QUICK)
    assert resolve(f"probe-1={again.folder}").fp == one
    assert first.training["pseudo_rows"] > 10
    assert (Path(first.folder) / "card.md").read_text().startswith("# probe-1\n")


def test_the_commands_do_the_same(corpus: Path, store: str) -> None:
    gold = str(corpus / "gold.csv")
    generation.make(store, TAUGHT, gold=gold)
    for number in ("0", "1"):
        result = run("train", store, "--generation", number, "--gold", gold)
        assert result.exit_code == 0, result.output
        assert "UA on gold voices it did not hear: " in result.output
        assert "predictions of probe-" in run("relabel", store, "--student", number).output
    result = run("evaluate", store, "--model", "probe-1", "--gold", gold, "--split", "gate", "--by", "corpus")
    assert result.exit_code == 0
    assert "on 32 clips of 4 speakers, split gate" in result.output
    assert "recall_macro_ua" in result.output
    assert "corpus=natural: accuracy_wa" in result.output
    result = run("promote", store, "--generation", "1", "--gold", gold)
    assert result.exit_code in (0, 4)
    assert result.output.splitlines()[0] in ("probe-1 is promoted", "probe-1 is refused")
    assert (result.exit_code == 4) == ("is refused" in result.output)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("train", "{store}", "--generation", "7", "--gold", "{gold}"), "GENERATION_UNKNOWN"),
        (("train", "{store}", "--gold", "{gold}", "--backbone", "embedded"), "TRAIN_NO_EMBEDDINGS"),
        (("relabel", "{store}"), "RELABEL_WHICH"),
        (("relabel", "{store}", "--student", "3"), "MODEL_"),
        (("evaluate", "{store}", "--model", "nobody", "--gold", "{gold}"), "EVALUATE_NO_PREDICTIONS"),
        (("evaluate", "{store}", "--model", "teacher", "--gold", "{gold}", "--split", "cal"), "EVALUATE_NO_GOLD"),
        (("promote", "{store}", "--generation", "1", "--gold", "{gold}"), "GENERATION_UNKNOWN"),
    ],
)
def test_a_wrong_request_is_one_sentence(corpus: Path, arguments: tuple[str, ...], code: str) -> None:
    result = run(*(text.format(store=corpus / "store", gold=corpus / "gold.csv") for text in arguments))
    assert result.exit_code in (1, 2)
    assert result.stderr.startswith(f"serpipe: {code}")
    assert result.stderr.count("\n") == 1


def test_of_recordings_cut_two_ways_one_is_named(
    corpus: Path, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gold, audio = str(corpus / "gold.csv"), sources.audio_of(serpipe.open(store), None)
    (tmp_path / "new").mkdir()
    write_clip(tmp_path / "new" / "1000.wav", "anger", 1000, noise=False)
    monkeypatch.setattr("tests.bench.SEGMENTATION", "window:1/1")
    Bench(tmp_path / "new", ("mel-statistics",)).run(Storage(store))
    asked = (
        ("train", store, "--gold", gold),
        ("evaluate", store, "--model", "teacher", "--gold", gold, "--split", "gate", "--replicates", "9"),
    )
    for arguments in asked:
        refused = run(*arguments)
        assert refused.stderr.startswith("serpipe: AUDIO_AMBIGUOUS: ")
        assert audio in refused.stderr.split(" with --audio-fp, or ")[0]
        assert run(*arguments, "--audio-fp", audio).exit_code == 0
    recipe = TAUGHT.model_copy(update={"audio": audio})
    again = [rounds.run(store, gold, recipe=recipe, settings=QUICK, limits=EASY, most=1) for _ in range(2)]
    assert [ended.rounds for ended in again] == [(1,), (1,)]
    (other,) = {*serpipe.open(store).entries["audio"].to_pylist()} - {audio}
    refused = run("train", store, "--generation", "1", "--gold", gold, "--audio-fp", other)
    assert refused.stderr.startswith("serpipe: AUDIO_OF_GENERATION: generation 1 of ")


def test_a_student_that_labelled_nothing_is_not_judged(corpus: Path, store: str) -> None:
    gold = str(corpus / "gold.csv")
    generation.make(store, TAUGHT, gold=gold)
    with pytest.raises(UsageError, match="PROMOTE_NO_STUDENT"):
        promote(store, 1, gold)
    train(store, 1, gold, settings=QUICK)
    with pytest.raises(UsageError, match="PROMOTE_NOT_RELABELLED"):
        promote(store, 1, gold)
    relabel(store, f"{store}/{student.folder(1)}", name="probe-1")
    train(store, 0, gold, settings=QUICK)
    relabel(store, f"{store}/{student.folder(0)}", name="probe-gold")
    assert promote(store, 1, gold, limits=gate.Limits(count=20)).status in ("promoted", "refused")


def test_teachers_of_later_rounds_keep_the_anchor(corpus: Path, store: str) -> None:
    gold = str(corpus / "gold.csv")
    generation.make(store, TAUGHT, gold=gold)
    fps = [resolve(f"x={train(store, number, gold, settings=QUICK).folder}").fp for number in (0, 1)]
    first = rounds._taught(Storage(store), Recipe(), None)
    later = rounds._taught(Storage(store), Recipe(), 1)
    assert [(teacher.model, teacher.fp) for teacher in first.teachers] == [("probe-gold", fps[0])]
    assert [(teacher.model, teacher.fp, teacher.weight) for teacher in later.teachers] == [
        ("probe-gold", fps[0], rounds.ANCHOR),
        ("probe-1", fps[1], 1 - rounds.ANCHOR),
    ]
    assert len({teacher.lineage for teacher in later.teachers}) == 1
