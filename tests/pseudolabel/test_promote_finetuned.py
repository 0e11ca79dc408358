"""A whole model is judged and promoted like a probe: by its own gates, against its own gold-only and its teacher."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner, Result
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

import serpipe
from serpipe.cli import main
from serpipe.engine import request
from serpipe.errors import UsageError
from serpipe.models import generic as adapter
from serpipe.models.checkpoint import content_sha256
from serpipe.models.passport import issue
from serpipe.models.registry import resolve
from serpipe.pseudolabel import compared, gate, generation, schemas, student
from serpipe.pseudolabel import gold as golden
from serpipe.pseudolabel.finetune import finetune, keep
from serpipe.pseudolabel.fit import Settings
from serpipe.pseudolabel.promote import promote, score_final, status
from serpipe.pseudolabel.recipe import Recipe, Teacher, parse
from serpipe.pseudolabel.relabel import relabel
from serpipe.pseudolabel.train import train
from serpipe.store.storage import Storage
from serpipe.testing import generic
from serpipe.testing.speech import speech_like
from tests.bench import SEGMENTATION, Bench

PITCH = {"anger": 260.0, "sadness": 110.0}
RECIPE = parse(
    '[quality]\nmin_s = 1.0\nsnr_db = -50\nspeech = 0\n[caps]\nfeed_share = 1.0\n[calibrate]\nmethod = "none"\n'
    "[split]\ndev = 0.0\n"
)
EASY = gate.Limits(count=100, drift=0.5, flips=1.0, entropy=99.0, ece=1.0)
SETTINGS = {"steps": 200, "batch": 16, "workers": 2, "seed": 0}
QUICK = Settings(steps=60, penalty=0.1)


def taught_by(*names: str) -> Recipe:
    return RECIPE.model_copy(update={"teachers": tuple(Teacher(model=name) for name in names)})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pitch is the emotion; a tiny model without knowledge, and a store that a teacher of its kind has labelled."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "audio").mkdir()
    gold, seed = ["uri,label,speaker,split"], 0
    for split, voices, clips in (("train", 2, 3), ("pool", 4, 4), ("gate", 4, 4), ("final", 1, 3)):
        for voice in range(voices):
            for emotion, pitch in PITCH.items():
                for _ in range(clips):
                    seed += 1
                    path = folder / "audio" / f"{emotion}-{seed}.wav"
                    soundfile.write(path, 0.5 * speech_like(2.0, seed=seed, pitch_hz=pitch), 16_000)
                    if split != "pool":
                        gold.append(f"{path},{emotion},{split}-{voice},{split}")
    (folder / "gold.csv").write_text("\n".join(gold))
    spec = replace(generic.BASE_PLUS, labels=tuple(PITCH), taxonomy="canonical")
    generic.write(spec, folder / "base", size="tiny", seed=0)
    learn(folder, "teacher", seed=1)
    learn(folder, "one", seed=2)
    learn(folder, "two", seed=3)
    learn(folder, "deaf", seed=4, right=0.5)
    label(folder, str(folder / "store"), f"teacher={folder / 'teacher'}")
    return folder


def learn(folder: Path, name: str, *, seed: int, right: float = 1.0) -> None:
    """Fit the base's head on a third of the clips, of whose labels so many are right."""
    torch.manual_seed(seed)
    model = AutoModelForAudioClassification.from_pretrained(folder / "base", local_files_only=True).eval()
    features = AutoFeatureExtractor.from_pretrained(folder / "base", local_files_only=True)
    paths = sorted((folder / "audio").iterdir())[seed % 3 :: 3]
    wrong = np.random.default_rng(seed).random(len(paths)) >= right
    truth = [int(path.name.startswith("sadness")) ^ int(flip) for path, flip in zip(paths, wrong, strict=True)]
    clips = [soundfile.read(path, dtype="float32")[0] for path in paths]
    heard = features(clips, sampling_rate=16_000, padding=True, return_tensors="pt")
    with torch.no_grad():
        layers = torch.stack(model.wavlm(**heard, output_hidden_states=True).hidden_states, dim=1)
        shares = model.layer_weights.softmax(dim=-1)[None, :, None, None]
        pooled = (layers * shares).sum(dim=1).mean(dim=1)
    head = [*model.projector.parameters(), *model.classifier.parameters()]
    optimiser = torch.optim.Adam(head, lr=0.01)
    for _ in range(200):
        loss = torch.nn.functional.cross_entropy(model.classifier(model.projector(pooled)), torch.tensor(truth))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.save_pretrained(folder / name)
    features.save_pretrained(folder / name)


def label(folder: Path, store: str, model: str) -> None:
    """What `serpipe label` does, without Ray."""
    storage, found = Storage(store), resolve(model)
    Bench(folder / "audio", (model,)).run(storage)
    storage.put(request.passport(found), issue(found).text().encode())


@pytest.fixture
def store(world: Path, tmp_path: Path) -> str:
    store = str(shutil.copytree(world / "store", tmp_path / "store"))
    generation.make(store, taught_by("teacher"), gold=str(world / "gold.csv"))
    return store


def kept(world: Path, store: str, number: int, weights: str, gold: str = "gold.csv", **changed: Any) -> str:
    """Put what a fine-tuning gave into the store; its folder."""
    folder = world / weights
    storage, read = Storage(store), golden.read(str(world / gold))
    record = generation.load(storage, number) if number else {}
    training = {
        "generation": number,
        "teachers": record.get("teachers", []),
        "gold": {"hash": read.hash, "rows": 12},
        "pseudo_rows": 32 if number else 0,
        "settings": SETTINGS,
        "backbone": {"model": "base", "weights_sha256": content_sha256(world / "base", adapter.FILES)},
        "classes": list(PITCH),
        "weights_sha256": content_sha256(folder, adapter.FILES),
        **changed,
    }
    return keep(storage, number, {path.name: path.read_bytes() for path in folder.iterdir()}, training)


def made(world: Path, store: str, number: int, weights: str) -> None:
    place = kept(world, store, number, weights)
    label(world, store, f"{student.name(number, 'finetuned')}={place}")


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_whole_model_is_promoted_teaches_and_is_the_parent_of_the_next(world: Path, store: str) -> None:
    gold, storage = str(world / "gold.csv"), Storage(store)
    made(world, store, 0, "deaf")
    made(world, store, 1, "one")
    with pytest.raises(UsageError, match=r"FINAL_NOT_PROMOTED: finetuned-1 .* --generation 1 --finetuned --gold"):
        score_final(store, 1, gold, kind="finetuned")
    with pytest.raises(UsageError, match=r"TEACHER_NOT_PROMOTED: student finetuned-1 has not passed .* --finetuned`"):
        generation.make(store, taught_by("finetuned-1"), gold=gold)
    said = promote(store, 1, gold, kind="finetuned", limits=EASY)
    assert said.status == "promoted", said.verdicts
    assert said.gain["recall_macro_ua"].low > 0
    assert status(serpipe.open(store), 1, "finetuned") == "promoted"
    assert status(serpipe.open(store), 1) is None
    assert not storage.exists(schemas.promotion(1))
    assert json.loads(storage.get(schemas.promotion(1, "finetuned")))["student"] == "finetuned-1"
    assert 0 <= score_final(store, 1, gold, kind="finetuned")["recall_macro_ua"].value <= 1
    with pytest.raises(UsageError, match="FINAL_SPENT: 6 of these 6 clips judged finetuned-1"):
        score_final(store, 1, gold, kind="finetuned")
    # It may teach, and whoever it taught must not fall behind it, of either kind.
    record = generation.make(store, taught_by("teacher", "finetuned-1"), gold=gold)
    assert record["parent"] == 1
    assert [one["student_kind"] for one in record["teachers"]] == [None, "finetuned"]
    made(world, store, 2, "two")
    second = promote(store, 2, gold, kind="finetuned", limits=EASY)
    assert {one.gate for one in second.verdicts if one.passed is False} == {"parent"}, second.verdicts
    for number in (0, 2):
        train(store, number, gold, backbone=f"teacher={world / 'teacher'}", settings=QUICK)
        relabel(store, f"{store}/{student.folder(number)}", name=student.name(number))
    probe = {one.gate: one.passed for one in promote(store, 2, gold, limits=EASY).verdicts}
    assert probe["parent"] is False
    with pytest.raises(UsageError, match="TEACHER_NOT_PROMOTED: student finetuned-2 was refused by its gates"):
        generation.make(store, taught_by("finetuned-2"), gold=gold)
    listed = run("generations", "list", store).output.splitlines()
    assert listed[0].endswith(", finetuned-1 promoted")
    assert listed[1].endswith(", probe-2 refused, finetuned-2 refused")
    page = Path(store).parent / "page.html"
    assert run("report", store, "--out", str(page)).exit_code == 0
    text = re.sub(r"<[^>]+>", "", page.read_text())
    assert "probe-2 is refused, judged on gold's split gate" in text
    assert "finetuned-2 is refused, judged on gold's split gate" in text


def test_who_is_not_there_has_labelled_nothing_or_is_unlike_is_not_judged(world: Path, store: str) -> None:
    gold = str(world / "gold.csv")
    with pytest.raises(UsageError, match=r"PROMOTE_NO_STUDENT: .* no student finetuned-1; .* 1 --finetune MODEL"):
        promote(store, 1, gold, kind="finetuned")
    place = kept(world, store, 1, "one")
    asked = f"`serpipe label MANIFEST {store} --model finetuned-1={place} --relabel` does"
    with pytest.raises(UsageError, match="PROMOTE_NOT_RELABELLED: finetuned-1 has not labelled") as error:
        promote(store, 1, gold, kind="finetuned")
    assert asked in error.value.message
    label(world, store, f"finetuned-1={place}")
    # Of other weights under its name nothing has been heard.
    kept(world, store, 1, "two")
    with pytest.raises(UsageError, match="PROMOTE_NOT_RELABELLED: finetuned-1"):
        promote(store, 1, gold, kind="finetuned")
    kept(world, store, 1, "one")
    with pytest.raises(UsageError, match=r"PROMOTE_NO_STUDENT: .* no student finetuned-gold; .*--generation 0"):
        promote(store, 1, gold, kind="finetuned")
    label(world, store, f"finetuned-gold={kept(world, store, 0, 'deaf')}")
    kept(world, store, 0, "deaf", settings=SETTINGS | {"steps": 100})
    with pytest.raises(UsageError, match="PROMOTE_UNLIKE: finetuned-1 and finetuned-gold were trained with other set"):
        promote(store, 1, gold, kind="finetuned")
    kept(world, store, 0, "deaf", backbone={"model": "base", "weights_sha256": "another"})
    with pytest.raises(UsageError, match="PROMOTE_UNLIKE: finetuned-1 and finetuned-gold were trained with another b"):
        promote(store, 1, gold, kind="finetuned")
    (world / "moved.csv").write_text((world / "gold.csv").read_text().replace("train-0,train", "train-0,dev"))
    kept(world, store, 0, "deaf", "moved.csv")
    with pytest.raises(UsageError, match=r"PROMOTE_OTHER_GOLD: finetuned-gold was .* 0 --finetune MODEL --gold"):
        promote(store, 1, gold, kind="finetuned")
    # Called otherwise, the base is the same.
    sha256 = content_sha256(world / "base", adapter.FILES)
    kept(world, store, 0, "deaf", backbone={"model": "elsewhere", "weights_sha256": sha256})
    assert promote(store, 1, gold, kind="finetuned", limits=EASY).status == "promoted"


def test_what_is_told_beside_a_model_neither_harms_nor_changes_it(world: Path, store: str, tmp_path: Path) -> None:
    plain = resolve(f"x={world / 'one'}")
    beside = resolve(f"x={kept(world, store, 1, 'one')}")
    assert {"card.md", "training.json"} <= {path.name for path in Path(beside.location).iterdir()}
    assert (beside.fp, beside.weights_sha256) == (plain.fp, plain.weights_sha256)
    assert np.isfinite(beside.load("cpu").forward([speech_like(2.0, seed=1)], frames=False).scores).all()
    card = Path(beside.location, "card.md").read_text()
    assert card.startswith("# finetuned-1\n")
    assert "| Pseudo-labelled rows | 32 of generation 1, taught by teacher |" in card
    # A model that lies elsewhere is known to the store all the same.
    training = student.training(Storage(store), 1, "finetuned")
    elsewhere = tmp_path / "elsewhere"
    assert keep(Storage(store), 1, {"config.json": b"{}"}, training, out=str(elsewhere)) == str(elsewhere)
    assert (elsewhere / "training.json").exists()
    assert student.training(Storage(store), 1, "finetuned")["folder"] == str(elsewhere)


def test_of_two_kinds_that_taught_the_own_one_is_the_parent() -> None:
    teachers = [{"student_of": 1, "student_kind": kind} for kind in ("probe", "finetuned")]
    record = {"parent": 1, "teachers": [{"student_of": 0, "student_kind": "probe"}, *teachers]}
    assert compared.parent_of(record, "finetuned") == (1, "finetuned")
    assert compared.parent_of(record, "probe") == (1, "probe")
    assert compared.parent_of({"parent": 1, "teachers": [{"student_of": 1}]}, "finetuned") == (1, "probe")
    assert compared.parent_of({"parent": None, "teachers": []}, "probe") is None


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ray_session")
def test_the_commands_close_the_loop(world: Path, tmp_path: Path) -> None:
    """Those that docs/generations.md shows; six steps teach little, and whatever the gates say of that holds."""
    store, gold = str(tmp_path / "store"), str(world / "gold.csv")
    cut = ("--segment", SEGMENTATION, "--channels", "mix")
    assert run("label", str(world / "audio"), store, *cut, "--model", f"teacher={world / 'teacher'}").exit_code == 0
    generation.make(store, taught_by("teacher"), gold=gold)
    for number in (0, 1):
        # As `serpipe train --finetune` does, but that the GPUs of this test's Ray are pretended.
        finetune(store, number, gold, str(world / "base"), steps=6, gpu=False)
    for name in ("finetuned-1", "finetuned-gold"):
        # What the refusal says to do is done as it is said.
        refused = run("promote", store, "--generation", "1", "--gold", gold, "--finetuned")
        assert refused.exit_code == 2, refused.output
        found = re.search(rf"PROMOTE_NOT_RELABELLED: {name} has .*; `serpipe (.*)` does", refused.stderr)
        assert found is not None, refused.stderr
        done = run(*shlex.split(found[1]))
        assert done.exit_code == 0, done.output
        assert "82 predictions" in done.output
    judged = run("promote", store, "--generation", "1", "--gold", gold, "--finetuned")
    assert judged.exit_code in (0, 4), judged.output
    assert judged.output.splitlines()[0] in ("finetuned-1 is promoted", "finetuned-1 is refused")
    told = student.training(Storage(store), 1, "finetuned")
    assert told["settings"] == {"steps": 6, "batch": 16, "workers": 2, "seed": 0, "rates": [1e-5, 1e-4]}
    assert (told["gold"]["rows"], told["pseudo_rows"] > 10, told["classes"]) == (12, True, list(PITCH))
    assert told["weights_sha256"] == resolve(f"x={told['folder']}").weights_sha256
    with pytest.raises(UsageError, match="TEACHER_NOT_PROMOTED") if judged.exit_code else nullcontext():
        assert generation.make(store, taught_by("finetuned-1"), gold=gold)["parent"] == 1
