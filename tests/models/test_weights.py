"""Weights from a folder, an object store, or the local copy of a hub; never from the network."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner

from serpipe.cli import main
from serpipe.errors import ModelError
from serpipe.models.registry import resolve
from serpipe.testing import make_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(make_checkpoint("odyssey-attributes", tmp_path / "checkpoint"))


def test_a_url_and_a_folder_give_one_model(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERPIPE_CACHE", str(tmp_path / "cache"))
    fs = fsspec.filesystem("memory")
    for path in checkpoint.iterdir():
        fs.pipe_file(f"/weights/{path.name}", path.read_bytes())
    (tmp_path / "cache").mkdir()
    remote, local = resolve("odyssey-attributes=memory://weights"), resolve(f"odyssey-attributes={checkpoint}")
    assert remote.fp == local.fp
    assert remote.random_weights
    assert remote.load("cpu").weights_sha256 == local.weights_sha256
    (copy,) = (tmp_path / "cache" / "models").iterdir()
    assert {path.name for path in copy.iterdir()} <= {path.name for path in checkpoint.iterdir()}
    fs.rm("/weights", recursive=True)
    with pytest.raises(ModelError, match="MODEL_WEIGHTS_MISSING: there is no checkpoint at memory://weights"):
        remote.load("cpu")
    with pytest.raises(ModelError, match="MODEL_WEIGHTS_MISSING: there is no checkpoint at memory://elsewhere"):
        resolve("odyssey-attributes=memory://elsewhere")


@pytest.mark.parametrize("where", ["folder", "url"])
def test_weights_that_were_replaced_are_another_model(
    where: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERPIPE_CACHE", str(tmp_path / "cache"))
    other = Path(make_checkpoint("odyssey-attributes", tmp_path / "other", seed=1))
    root = "memory://trained-again" if where == "url" else str(tmp_path / "place")

    def put(folder: Path) -> None:
        fs, path = fsspec.core.url_to_fs(root)
        fs.makedirs(path, exist_ok=True)
        for file in folder.iterdir():
            fs.pipe_file(f"{path}/{file.name}", file.read_bytes())

    put(checkpoint)
    before = resolve(f"odyssey-attributes={root}")
    put(other)
    with pytest.raises(ModelError, match=r"MODEL_WEIGHTS_CHANGED: .* holds other weights on"):
        before.load("cpu")
    now = resolve(f"odyssey-attributes={root}")
    assert now.fp == resolve(f"odyssey-attributes={other}").fp != before.fp
    assert now.load("cpu").weights_sha256 == now.weights_sha256


def test_a_hub_copy_at_the_pinned_revision_is_found_without_a_network(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a hub was asked")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(
        ModelError, match="hf download 3loi/SER-Odyssey-Baseline-WavLM-Multi-Attributes --revision 00d0e"
    ):
        resolve("odyssey-attributes")
    revision = "00d0e12ba9bf957f5aeea36e8663c8c61cb50ac9"
    snapshots = tmp_path / "hub" / "models--3loi--SER-Odyssey-Baseline-WavLM-Multi-Attributes" / "snapshots"
    shutil.copytree(checkpoint, snapshots / revision)
    assert resolve("odyssey-attributes").fp == resolve(f"odyssey-attributes={checkpoint}").fp
    shutil.copytree(checkpoint, snapshots / ("a" * 40))
    assert resolve(f"odyssey-attributes@{'a' * 40}").location.endswith("a" * 40)


def test_check_says_why_a_checkpoint_must_not_run(checkpoint: Path) -> None:
    good = CliRunner().invoke(main, ["models", "check", f"odyssey-attributes={checkpoint}"])
    assert good.exit_code == 0
    assert '"model": "odyssey-attributes"' in good.output
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    bad = CliRunner().invoke(main, ["models", "check", f"odyssey-attributes={checkpoint}"])
    assert bad.exit_code == 1
    assert "MODEL_WEIGHTS_UNREADABLE" in bad.output
    assert "Traceback" not in bad.output
