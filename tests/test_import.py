"""`import serpipe` and `serpipe --help` cost nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import serpipe

HEAVY = ("torch", "ray", "funasr", "transformers", "pandas", "onnxruntime", "scipy", "av", "pyarrow", "duckdb")


def _imported(program: str) -> set[str]:
    out = subprocess.run(
        [sys.executable, "-c", f"import sys\n{program}\nprint('MODULES', *sys.modules)"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert out.returncode == 0, out.stderr
    (line,) = [line for line in out.stdout.splitlines() if line.startswith("MODULES ")]
    return set(line.split())


def test_import_is_light() -> None:
    assert not set(HEAVY) & _imported("import serpipe")


HELP = """
from click.testing import CliRunner
from serpipe.cli import main
for arguments in (["--help"], ["label", "--help"], ["status", "--help"], ["--version"]):
    assert CliRunner().invoke(main, arguments).exit_code == 0
"""


def test_help_is_light() -> None:
    assert not set(HEAVY) & _imported(HELP)


def test_reading_a_store_needs_neither_ray_nor_torch() -> None:
    program = "import serpipe\nserpipe.open, serpipe.Store, serpipe.read_manifest, serpipe.flatten"
    assert not {"torch", "ray", "transformers", "funasr"} & _imported(program)


def test_the_stages_need_no_ray() -> None:
    assert "ray" not in _imported("import serpipe\nserpipe.Decode, serpipe.Predict")


def test_the_process_that_decodes_has_codecs_and_little_else() -> None:
    mine = _imported("import serpipe.audio.child as child\nchild._warm_up()")
    assert mine >= {"av", "soundfile", "soxr"}
    assert not ({*HEAVY, "fsspec", "tenacity"} - {"av"}) & mine


def test_everything_public_is_there() -> None:
    for name in serpipe.__all__:
        assert getattr(serpipe, name).__name__ == name
    assert set(serpipe.__all__) <= set(dir(serpipe))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = serpipe.nothing
