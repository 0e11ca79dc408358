"""The documentation: pages are fresh, every block runs, every public name is described, Sphinx is content."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import serpipe
from serpipe.cli import main
from serpipe.testing import write_speech
from tests.conftest import ROOT
from tests.documents import PAGES, Command, assert_shown, blocks, commands, run
from tests.test_cli import COMMANDS as COMMANDS_OF_HELP
from tests.test_cli import example

GENERATED = runpy.run_path(str(ROOT / "docs" / "generate.py"))["PAGES"]

ELSEWHERE = ("make", "hf", "kubectl", "ray", "docker", "terraform", "serpipe submit")
"""Programs of a machine or a cluster that a test is not; what of their lines can be looked at, is."""

ELSEWHERE_PAGES = ("generations.md", "design.md", "performance.md")
"""Pages whose commands take a corpus, or minutes; `tests/pseudolabel` runs what they show."""


@pytest.mark.parametrize("name", sorted(GENERATED))
def test_generated_pages_are_fresh(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == GENERATED[name](), "run `python docs/generate.py`"


COMMANDS = [
    (page.relative_to(ROOT), command)
    for page in PAGES
    for language, text in blocks(page)
    if language == "console"
    for command in commands(text)
]


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda value: str(getattr(value, "text", value))[:60])
def test_every_command_is_spelled_right(page: Path, command: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs, targets and scripts exist, and every option of serpipe's."""
    words = command.words if "<<" not in command.text else ["cat"]  # type: ignore[attr-defined]
    match words:
        case ["serpipe", *rest]:
            _parse(main, rest)
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        case ["python", script, *rest] if script.startswith("jobs/"):
            # As `python jobs/…` does: a script's own folder comes first.
            monkeypatch.syspath_prepend(str(ROOT / "jobs"))
            found = runpy.run_path(str(ROOT / script))
            job = next(value for value in reversed(found.values()) if isinstance(value, click.Command))
            job.make_context(script, list(rest))
        case ["kubectl", *rest]:
            assert all((ROOT / word).exists() for word in rest if word.startswith("infra/"))


def _parse(group: click.Group, words: list[str]) -> None:
    name, *rest = words
    if name.startswith("-"):
        return
    command = group.commands[name]
    if isinstance(command, click.Group) and rest:
        _parse(command, rest)
    else:
        command.make_context(
            name, rest, parent=click.Context(main, help_option_names=main.context_settings["help_option_names"])
        )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Iterator[Path]:
    """Where the pages are read: what `make demo` makes is there, and a folder of podcasts of one's own."""
    from serpipe.demo import run as demo

    folder = tmp_path_factory.mktemp("home")
    write_speech(folder / "user/podcasts/a.mp3", seconds=20.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HOME", str(folder / "user"))
        patch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        patch.setenv("SERPIPE_CACHE", str(folder / "cache"))
        demo("demo", say=lambda _: None)
        yield folder


@pytest.fixture
def s3(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An S3 server with the bucket of the pages."""
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    files = fsspec.filesystem("s3")
    files.mkdir("bucket")
    files.put(f"{home}/demo/archive", "bucket/archive", recursive=True)
    yield
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


RUN = [
    page
    for page in PAGES
    # What stands under infra/ is done to clusters and clouds; tests/infra and the tests on a real store do it.
    if page.name not in ELSEWHERE_PAGES and not page.is_relative_to(ROOT / "infra") and blocks(page)
]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_runs(page: Path, home: Path, request: pytest.FixtureRequest) -> None:
    """In the order of the page; Python blocks of a page share their names, commands print what the page shows."""
    on_s3 = page.name == "s3.md"
    if on_s3:
        request.getfixturevalue("s3")
    names: dict[str, object] = {}
    for language, text in blocks(page):
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(text, str(page), "exec"), names)
        elif language == "console":
            for command in commands(text):
                if not command.text.startswith((*ELSEWHERE, ". ", "eval ", "infra/")):
                    assert_shown(command, run(command, apart=on_s3))


ORDER = (
    *("label", "models", "models check", "models certify", "plan", "status", "failures", "retry", "verify"),
    *("evaluate", "pseudolabel", "generations", "generations list", "generations funnel", "generations diff"),
    *("export", "train", "relabel", "promote", "gc", "report", "demo"),
)
"""Commands whose examples follow from each other, and nothing but what `make demo` makes and a person's `gold.csv`."""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_session")
def test_every_example_of_a_help_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from serpipe.demo import run as demo

    assert {*ORDER, "submit"} == {" ".join(words) for words in COMMANDS_OF_HELP}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SERPIPE_CACHE", str(tmp_path / "cache"))
    demo("demo", say=lambda _: None)
    rows = ["uri,start,end,label,speaker,split"]
    for name, turns, split in (("show-a/monday.wav", 12, "train"), ("show-b/tuesday.opus", 15, "test")):
        for turn in range(turns):
            label = ("anger", "neutral", "sadness")[turn % 3]
            rows.append(f"demo/archive/{name},{6 * turn},{6 * turn + 6},{label},{name[5:]},{split}")
    (tmp_path / "gold.csv").write_text("\n".join(rows))
    before = {
        # Each student is held against the one that heard gold alone, and two generations are told apart.
        "generations diff": ["serpipe pseudolabel demo/store"],
        "promote": ["serpipe train demo/store --gold gold.csv", "serpipe relabel demo/store --student 0"],
    }
    for name in ORDER:
        shown = example(*name.split())
        # The one that names a place of its own is kept to this test's.
        words = [str(tmp_path / "another") if word == "/tmp/serpipe-demo" else word for word in shown]
        for line in (*before.get(name, ()), shlex.join(["serpipe", *words])):
            run(Command(line, ""))


def test_every_block_is_of_a_language_that_is_run() -> None:
    """`text` is what programs print; a block that could be run and is not would go stale."""
    known = {"console", "python", "text", "toml"}
    assert {language for page in PAGES for language, _ in blocks(page)} <= known
    assert all(page.name == "recipe.md" for page in PAGES for language, _ in blocks(page) if language == "toml")


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page}: {link}"


def _public(node: ast.AST, where: str) -> Iterator[tuple[str, ast.AST]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            yield f"{where}.{child.name}", child
            if isinstance(child, ast.ClassDef):
                yield from _public(child, f"{where}.{child.name}")


def test_every_public_name_is_documented() -> None:
    """Modules, classes, functions and methods, all of them: 100 %."""
    missing, count = [], 0
    for path in sorted((ROOT / "serpipe").rglob("*.py")):
        module = ast.parse(path.read_text())
        for name, node in [(str(path), module), *_public(module, str(path))]:
            count += 1
            if ast.get_docstring(node) is None:  # type: ignore[arg-type]
                missing.append(name)
    assert count > 500
    assert missing == []


def _own(function: ast.AST) -> Iterator[ast.AST]:
    """What stands in a function and in none inside it."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            yield child
            yield from _own(child)


def test_every_code_that_a_public_function_raises_is_in_its_description() -> None:
    """Commands are left out: their docstring is the help that people read."""
    untold, count = [], 0
    for path in sorted((ROOT / "serpipe").rglob("*.py")):
        if path.parent.name == "cli":
            continue
        for name, node in _public(ast.parse(path.read_text()), str(path.relative_to(ROOT))):
            if not isinstance(node, ast.FunctionDef):
                continue
            for statement in _own(node):
                match statement:
                    case ast.Raise(exc=ast.Call(args=[ast.Constant(value=str(code)), *_])) if code.isupper():
                        count += 1
                        if code not in (ast.get_docstring(node) or ""):
                            untold.append((name, code))
    assert count > 50
    assert untold == []


@pytest.mark.parametrize("name", serpipe.__all__)
def test_what_is_imported_from_serpipe_describes_every_parameter(name: str) -> None:
    found = getattr(serpipe, name)
    described = inspect.getdoc(found) or ""
    for parameter in inspect.signature(found).parameters:
        assert re.search(rf"^\s*\*{{0,2}}{parameter}: ", described, re.MULTILINE), parameter
    if not inspect.isclass(found):
        assert "Returns:" in described or "Raises:" in described


@pytest.mark.slow
def test_sphinx_builds_without_a_warning(tmp_path: Path) -> None:
    options = ["--fail-on-warning", "--quiet", "--keep-going", "-d", tmp_path / "trees"]
    made = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, ROOT / "docs", tmp_path / "html"],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert made.returncode == 0, made.stderr
    reference = (tmp_path / "html/reference/python.html").read_text()
    assert all(f'id="serpipe.{name}"' in reference for name in serpipe.__all__)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_get_their_completion(shell: str) -> None:
    """Click writes it; the page about completion says where it goes."""
    program = Path(sys.executable).parent / "serpipe"
    asked = os.environ | {"COMP_WORDS": "serpipe lab", "COMP_CWORD": "1" if shell != "fish" else "lab"}
    source, completed = (
        subprocess.run(
            [program], env=asked | {"_SERPIPE_COMPLETE": f"{shell}_{what}"}, capture_output=True, text=True, timeout=60
        ).stdout
        for what in ("source", "complete")
    )
    assert "_serpipe_completion" in source
    assert "label" in completed
    assert "relabel" not in completed


def test_the_table_of_errors_has_every_code() -> None:
    page = (ROOT / "docs/reference/errors.md").read_text()
    told = set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE))
    families = {code.split("_")[0] for code in told}
    source = [node for path in (ROOT / "serpipe").rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    words = {node.value for node in source if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    codes = {word for word in words if re.fullmatch(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+", word)}
    assert len(told) > 150
    assert {code for code in codes if code.split("_")[0] in families} - told == set()
