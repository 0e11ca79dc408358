"""The loop on a real store: a spoilt gold and a good teacher give a promoted student, a useless one is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

import serpipe
from serpipe.cli import main
from serpipe.errors import UsageError
from serpipe.models.registry import resolve
from serpipe.pseudolabel import gate, generation, rounds, student
from serpipe.pseudolabel.fit import Settings
from serpipe.pseudolabel.promote import promote, score_final, status
from serpipe.pseudolabel.recipe import Recipe, Teacher, parse
from serpipe.pseudolabel.relabel import relabel
from serpipe.pseudolabel.train import train
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
    bench.recordings = serpipe.read_manifest(str(folder / "manifest.csv"))
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


TAUGHT = SMALL.model_copy(update={"teachers": (Teacher(model="teacher"),)})


def test_a_better_student_is_promoted_and_a_killed_loop_goes_on(corpus: Path, store: str) -> None:
    gold, said = str(corpus / "gold.csv"), []
    limits = gate.Limits(count=200, drift=0.2, flips=0.5, entropy=5.0)

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
    assert record["split"] == "gate"
    # A promoted student may teach.
    second = TAUGHT.model_copy(update={"teachers": (Teacher(model="probe-1"),)})
    assert generation.make(store, second, gold=gold)["parent"] == 1


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


def test_the_final_split_judges_once(corpus: Path, store: str) -> None:
    gold = str(corpus / "gold.csv")
    rounds.run(store, gold, recipe=TAUGHT, settings=QUICK, limits=gate.Limits(count=50), most=1)
    first = score_final(store, 1, gold)
    assert 0 <= first["recall_macro_ua"].value <= 1
    reordered = Path(store).parent / "reordered.csv"
    head, *lines = (corpus / "gold.csv").read_text().splitlines()
    reordered.write_text("\n".join([head, *reversed(lines)]))
    with pytest.raises(UsageError, match=r"FINAL_SPENT: these 8 clips judged probe-1 on 20"):
        score_final(store, 1, str(reordered))


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


def test_teachers_of_later_rounds_keep_the_anchor() -> None:
    first = rounds._taught(Recipe(), None)
    later = rounds._taught(Recipe(), 2)
    assert [teacher.model for teacher in first.teachers] == ["probe-gold"]
    assert [(teacher.model, teacher.weight) for teacher in later.teachers] == [
        ("probe-gold", rounds.ANCHOR),
        ("probe-2", 1 - rounds.ANCHOR),
    ]
    assert len({teacher.lineage for teacher in later.teachers}) == 1
