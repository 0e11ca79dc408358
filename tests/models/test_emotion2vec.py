"""emotion2vec: FunASR's numbers in any company, and a process left as it was."""

from __future__ import annotations

import logging
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from serpipe.errors import ModelError
from serpipe.models import emotion2vec
from serpipe.models.checkpoint import content_sha256
from serpipe.models.contract import Adapter, ModelSpec
from serpipe.models.emotion2vec_funasr import contained
from serpipe.models.emotion2vec_network import PaddedEmotion2vec, normalised
from serpipe.models.masking import frame_count, masked_mean, valid
from serpipe.models.passport import issue
from serpipe.models.registry import resolve
from serpipe.testing import emotion2vec as checkpoints
from tests.models.emotion2vec_cases import (
    BASE,
    LARGE,
    PLUS,
    ROOT,
    SEED,
    FunASR,
    configured,
    loaded,
    sounds,
    spread,
    waves,
    write_all,
    write_text,
)

TOLERANCE = 1e-4
"""Of the spread of the logits over clips: what an adapter promises in float32."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of each model."""
    return write_all(tmp_path_factory)


@pytest.fixture(scope="module")
def plus(folders: dict[str, Path]) -> Adapter:
    return loaded(PLUS, folders[PLUS.name])


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of emotion2vec+ base to change."""
    return Path(shutil.copytree(folders[PLUS.name], tmp_path / "checkpoint"))


@pytest.mark.parametrize("spec", emotion2vec.SPECS, ids=lambda spec: spec.name)
def test_equals_funasr(spec: ModelSpec, folders: dict[str, Path]) -> None:
    """Utterance and frame embeddings and scores, alone and in a batch."""
    reference, adapter = FunASR(folders[spec.name]), loaded(spec, folders[spec.name])
    batched = adapter.forward(waves(), frames=True)
    assert batched.frames is not None
    for place, wave in enumerate(waves()):
        utterance, by_frame = reference(wave), reference(wave, "frame")["feats"]
        single = adapter.forward([wave], frames=True)
        assert single.frames is not None
        assert utterance["labels"] == list(adapter.spec.labels)
        assert len(by_frame) == frame_count(len(wave))
        for outputs, row in ((batched, place), (single, 0)):
            assert outputs.frames is not None
            np.testing.assert_allclose(outputs.embeddings[row], utterance["feats"], atol=1e-5, rtol=0)
            np.testing.assert_allclose(outputs.frames[row], by_frame, atol=1e-5, rtol=0)
            np.testing.assert_allclose(outputs.scores[row], utterance["scores"], atol=1e-5, rtol=0)


def test_outputs_have_the_declared_shapes(folders: dict[str, Path], plus: Adapter) -> None:
    outputs = plus.forward(waves(), frames=False)
    assert outputs.logits.shape == outputs.scores.shape == (6, 9)
    assert outputs.embeddings.shape == (6, plus.spec.embedding_width)
    assert outputs.frames is None
    assert {outputs.logits.dtype, outputs.scores.dtype, outputs.embeddings.dtype} == {np.dtype(np.float32)}
    assert plus.weights_sha256 == content_sha256(folders[PLUS.name], emotion2vec.FILES)
    base = loaded(BASE, folders[BASE.name]).forward(waves(), frames=True)
    assert base.logits.shape == base.scores.shape == (6, 0)
    assert base.frames is not None
    np.testing.assert_allclose(base.frames[2].mean(0), base.embeddings[2], atol=1e-5)


def test_specs_state_the_facts() -> None:
    """Parameters by FunASR's own class in the real sizes, without the decoder."""
    with contained():
        from funasr.models.emotion2vec.model import Emotion2vec
    for spec in emotion2vec.SPECS:
        conf = checkpoints._model_conf(large=spec is LARGE, full=True)
        with torch.device("meta"):
            network = Emotion2vec(model_conf=conf, vocab_size=len(spec.labels) or -1)
        sizes = {name: value.numel() for name, value in network.state_dict().items() if ".decoder." not in name}
        assert sum(sizes.values()) == spec.parameters
        assert conf["embed_dim"] == spec.embedding_width
        assert len(sizes) == (185 if spec.labels else 183)


def test_listing_the_models_imports_no_framework() -> None:
    program = (
        "import sys; from serpipe.models import emotion2vec; "
        "print([m for m in ('torch', 'funasr', 'omegaconf', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


lengths = st.one_of(st.sampled_from([400, 401, 719, 720, 721]), st.integers(min_value=400, max_value=64_000))


@given(st.lists(st.tuples(lengths, st.integers(min_value=0, max_value=5)), min_size=2, max_size=5), st.randoms())
@settings(max_examples=15, deadline=None)
def test_alone_batched_and_shuffled_agree(plus: Adapter, cuts: list[tuple[int, int]], shuffler: random.Random) -> None:
    cut = [sounds()[which][-length:] for length, which in cuts]
    order = list(range(len(cut)))
    shuffler.shuffle(order)
    batched, shuffled = plus.forward(cut, frames=True), plus.forward([cut[i] for i in order], frames=True)
    bound = TOLERANCE * spread_of(plus)
    for place, i in enumerate(order):
        alone = plus.forward([cut[i]], frames=True)
        assert alone.frames is not None
        for other, row in ((batched, i), (shuffled, place)):
            assert other.frames is not None
            assert np.abs(alone.logits[0] - other.logits[row]).max() <= bound
            np.testing.assert_allclose(other.embeddings[row], alone.embeddings[0], atol=1e-5)
            np.testing.assert_allclose(other.frames[row], alone.frames[0], atol=2e-5)


@cache
def spread_of(adapter: Adapter) -> float:
    return spread(adapter)


def test_random_heads_tell_clips_apart(folders: dict[str, Path]) -> None:
    for spec in (SEED, PLUS, LARGE):
        assert spread(loaded(spec, folders[spec.name])) >= 1.0


def test_shortest_beside_longest_and_silence(plus: Adapter) -> None:
    longest, shortest, silent = np.tile(sounds()[0], 3), sounds()[1][50_000:50_400], np.zeros(16_000, np.float32)
    together = plus.forward([shortest, longest, silent], frames=True)
    assert together.frames is not None
    for array in (together.logits, together.scores, together.embeddings, *together.frames):
        assert np.isfinite(array).all()
    for row, wave in enumerate((shortest, longest, silent)):
        alone = plus.forward([wave], frames=False)
        assert np.abs(alone.logits[0] - together.logits[row]).max() <= TOLERANCE * spread_of(plus)


SAFEGUARDS = ("normalised first", "zeros before layer 0", "zeros before later layers", "keys", "extra keys", "mean")


def unguarded(adapter: Any, batch: list[NDArray[np.float32]], without: str | None) -> Tensor:
    """Logits of a batch by the adapter's own layers, with one safeguard left out."""
    network: PaddedEmotion2vec = adapter._network
    lengths = torch.tensor([len(wave) for wave in batch])
    if without == "normalised first":
        rows = torch.nn.utils.rnn.pad_sequence([torch.tensor(wave) for wave in batch], batch_first=True)
        padded = F.layer_norm(rows, rows.shape[1:])
    else:
        rows = [torch.tensor(normalised(wave)) for wave in batch]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    hidden = network.project(network.front(padded, lengths))
    mask = valid(frame_count(lengths), hidden.shape[1])
    position = hidden
    for place, layer in enumerate(network.positional):
        left_out = "zeros before layer 0" if place == 0 else "zeros before later layers"
        position = layer(position if without == left_out else position * mask.unsqueeze(-1))
    hidden = hidden + position
    hidden = network.norm(torch.cat([network.extra_tokens.expand(len(hidden), -1, -1), hidden], dim=1))
    bias = network._bias(mask.shape[1], None)
    if without != "keys" and not mask.all():
        keys = F.pad(mask, (10, 0), value=without != "extra keys")
        bias = bias.masked_fill(~keys[:, None, None], -torch.inf)
    for block in network.blocks:
        hidden, _ = block(hidden, None, bias)
    hidden = hidden[:, 10:]
    pooled = hidden.mean(1) if without == "mean" else masked_mean(hidden, mask)
    logits: Tensor = adapter._head(pooled)
    return logits


@pytest.mark.parametrize("without", [None, *SAFEGUARDS])
@torch.inference_mode()
def test_the_tolerance_notices_each_missing_safeguard(plus: Adapter, without: str | None) -> None:
    batch = [sounds()[0][:16_000], sounds()[1][:40_000]]
    alone = plus.forward(batch[:1], frames=False).logits[0]
    difference = np.abs(unguarded(plus, batch, without)[0].numpy() - alone).max()
    if without is None:
        assert difference <= TOLERANCE * spread_of(plus)
    else:
        assert difference > 10 * TOLERANCE * spread_of(plus)


def test_an_empty_batch_and_lengths_outside_the_spec(plus: Adapter) -> None:
    nothing = plus.forward([], frames=True)
    assert (nothing.logits.shape, nothing.embeddings.shape, nothing.frames) == ((0, 9), (0, 48), [])
    for samples in (0, 399, 480_001):
        with pytest.raises(ModelError, match=f"segment 1 of this batch has {samples};") as caught:
            plus.forward([np.zeros(400, np.float32), np.zeros(samples, np.float32)], frames=False)
        assert caught.value.code == "MODEL_SEGMENT_LENGTH"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_stays_close(folders: dict[str, Path], plus: Adapter, dtype: str) -> None:
    half = loaded(PLUS, folders[PLUS.name], dtype).forward(waves(), frames=True)
    exact = plus.forward(waves(), frames=False)
    assert half.frames is not None
    assert {half.logits.dtype, half.embeddings.dtype, half.frames[0].dtype} == {np.dtype(np.float32)}
    assert 0 < np.abs(half.embeddings - exact.embeddings).max() < 0.1


def test_labels_switched_off_get_nothing(folder: Path) -> None:
    names = [f"unuse_{place}" if place in (1, 2, 5) else name for place, name in enumerate(PLUS.labels)]
    (folder / "tokens.txt").write_text("\n".join(names), encoding="utf-8")
    adapter, reference = loaded(PLUS, folder), FunASR(folder)
    outputs = adapter.forward(waves(), frames=False)
    assert adapter.spec.labels == tuple(names)
    assert issue(resolve(f"{PLUS.name}={folder}")).labels == tuple(names), "the passport's are those of the rows"
    assert np.isneginf(outputs.logits[:, [1, 2, 5]]).all()
    assert (outputs.scores[:, [1, 2, 5]] == 0).all()
    used = [0, 3, 4, 6, 7, 8]
    for wave, scores in zip(waves(), outputs.scores, strict=True):
        expected = reference(wave)
        assert expected["labels"] == [names[place] for place in used]
        np.testing.assert_allclose(scores[used], expected["scores"], atol=1e-5, rtol=0)


UNTOUCHED = """
import logging, os, random, socket, sys, warnings
import numpy as np, torch

def refuse(*_, **__):
    raise OSError("the network is off")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
torch.set_num_threads(3)
logging.getLogger().addHandler(logging.StreamHandler(sys.stdout))
logging.getLogger().setLevel(logging.WARNING)

def state():
    root = logging.getLogger()
    return (root.handlers[:], root.level, root.filters[:], torch.get_num_threads(), random.getstate(),
            np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), warnings.filters[:],
            os.environ.get("HYDRA_FULL_ERROR"))

from serpipe.models import emotion2vec
spec = emotion2vec.SPECS[2]
before = state()
adapter = emotion2vec.load(spec, sys.argv[1], device="cpu", dtype="float32")
outputs = adapter.forward([np.ones(800, np.float32)], frames=False)
assert "funasr" in sys.modules and "torchaudio" not in sys.modules
assert [i for i, (old, new) in enumerate(zip(before, state())) if old != new] == []
print(outputs.scores.shape)
"""


def test_the_process_is_left_as_it_was_and_the_network_alone(folder: Path, tmp_path: Path) -> None:
    """Though the configuration asks for code of its own and for another model."""
    write_text(tmp_path / "remote.py", f"open({str(tmp_path / 'ran')!r}, 'w')")
    configured(
        trust_remote_code=True, remote_code=str(tmp_path / "remote.py"), vad_model="fsmn-vad", hub="hf", frontend="x"
    )(folder)
    done = subprocess.run(
        [sys.executable, "-c", UNTOUCHED, str(folder)], check=False, capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (0, "(1, 9)\n"), done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def talkative_root() -> Iterator[list[str]]:
    """A root logger that keeps what reaches it."""
    kept: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(record.getMessage())

    handler, level = Keep(), logging.getLogger().level
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.INFO)
    yield kept
    logging.getLogger().removeHandler(handler)
    logging.getLogger().setLevel(level)


def test_only_funasrs_records_are_dropped(talkative_root: list[str]) -> None:
    with contained():
        logging.info("ckpt: model.pt")
        logging.getLogger("somebody.else").info("still heard")
    logging.getLogger().info("heard again")
    assert talkative_root == ["still heard", "heard again"]


def test_the_writer_repeats_itself(folders: dict[str, Path], tmp_path: Path) -> None:
    checkpoints.write(PLUS, tmp_path / "again", size="tiny", seed=3)
    checkpoints.write(PLUS, tmp_path / "other", size="tiny", seed=4)
    files = emotion2vec.FILES
    assert content_sha256(tmp_path / "again", files) == content_sha256(folders[PLUS.name], files)
    assert content_sha256(tmp_path / "other", files) != content_sha256(folders[PLUS.name], files)
    assert sorted(path.name for path in folders[BASE.name].iterdir()) == [
        "config.yaml",
        "configuration.json",
        "emotion2vec_base.pt",
    ]
    assert sorted(path.name for path in folders[SEED.name].iterdir()) == [
        "config.yaml",
        "configuration.json",
        "model.pt",
        "tokens.txt",
    ]
