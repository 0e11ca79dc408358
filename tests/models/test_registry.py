"""Models by name: shipped ones, installed ones, unknown ones, and what makes two of them different."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serpipe.errors import UsageError
from serpipe.labels import TAXONOMIES
from serpipe.models import embedded, registry
from tests import thirdparty

UNPINNED = {
    "emotion2vec-plus-base",
    "emotion2vec-plus-seed",
    "odyssey-arousal",
    "odyssey-categorical",
    "odyssey-dominance",
    "odyssey-valence",
}
"""Models of which no commit could be established; `serpipe models` says so. The list may only get shorter."""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    thirdparty.install(tmp_path, "installed_model")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "installed_model"


@pytest.mark.parametrize("name", sorted(registry.specs()))
def test_facts_of_every_shipped_model(name: str) -> None:
    spec = registry.specs()[name]
    assert spec.name == name
    assert spec.licence
    assert (spec.hub_id is None or name in UNPINNED) == (spec.revision is None)
    assert len(set(spec.labels)) == len(spec.labels)
    if spec.taxonomy in TAXONOMIES:
        assert set(spec.labels) == set(TAXONOMIES[spec.taxonomy]) & set(spec.labels)
    assert (spec.kind == "embeddings") == (not spec.labels)
    assert 0 < spec.min_seconds < spec.max_seconds
    assert spec.embedding_width > 0


def test_an_installed_model_is_found_and_loaded(installed: str) -> None:
    assert installed in registry.specs()
    reference = registry.resolve(installed)
    assert reference.spec.labels == ("neutral", "anger")
    assert reference.load("cpu").spec is reference.spec


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"MODEL_UNKNOWN: no model is called 'embeded'; did you mean .*embedded"):
        registry.resolve("embeded")
    with pytest.raises(UsageError, match="`serpipe models` lists them"):
        registry.resolve("xyzzyxyzzy")


@pytest.mark.parametrize(
    ("name", "better"),
    [("superb/wav2vec2", "wav2vec2"), ("", "mine"), ("../x", "x"), (".hidden", "hidden")],
)
def test_a_name_that_makes_no_folder_is_refused(name: str, better: str) -> None:
    with pytest.raises(UsageError, match=rf"MODEL_NAME: .* as in {better}$"):
        registry.resolve(f"{name}=/models/x")


def test_a_fingerprint_is_weights_and_format(tmp_path: Path) -> None:
    ours = registry.resolve("embedded")
    assert registry.resolve("embedded") == ours
    assert registry.resolve("embedded", dtype="bfloat16").fp != ours.fp
    weights = Path(embedded.__file__).with_name("weights.safetensors")
    shutil.copy(weights, tmp_path)
    copy = registry.resolve(f"embedded={tmp_path}")
    assert (copy.name, copy.location, copy.fp) == ("embedded", str(tmp_path), ours.fp)
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    (tmp_path / "weights.safetensors").write_bytes(changed)
    assert registry.resolve(f"embedded={tmp_path}").fp != ours.fp


def test_finding_and_hashing_needs_no_torch() -> None:
    program = (
        "import sys\n"
        "from serpipe.models import registry\n"
        "assert len(registry.specs()) >= 1\n"
        "registry.resolve('embedded')\n"
        "assert not {'torch', 'ray', 'transformers', 'funasr'} & set(sys.modules), sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
