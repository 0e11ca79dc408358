"""Pages of the documentation as they are run: blocks in order, commands with the output that is shown for them."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from serpipe.cli import main
from tests.conftest import ROOT

PAGES = (ROOT / "README.md", *(page for folder in ("docs", "infra") for page in sorted((ROOT / folder).rglob("*.md"))))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
REFUSED = 4


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a terminal's transcript.

    Attributes:
        text: what is typed, all its lines.
        shown: what the page shows that it prints; `…` stands for anything.
    """

    text: str
    shown: str

    @property
    def words(self) -> list[str]:
        """Of a command of one line, without its comment."""
        return shlex.split(self.text, comments=True)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of every block of a page."""
    return [(language, text) for language, text in BLOCK.findall(page.read_text())]


def commands(transcript: str) -> Iterator[Command]:
    """The commands of a block."""
    for part in re.split(r"^\$ ", transcript, flags=re.MULTILINE)[1:]:
        first, *rest = part.rstrip("\n").split("\n")
        typed = [first]
        while rest and (rest[0].startswith("> ") or rest[0] == ">" or _open(typed)):
            typed.append(rest.pop(0).removeprefix(">").removeprefix(" "))
        yield Command("\n".join(typed), "\n".join(rest))


def _open(typed: list[str]) -> bool:
    """Whether a quotation goes on in the next line."""
    if "<<" in typed[0]:
        return False
    try:
        shlex.split("\n".join(typed), comments=True)
    except ValueError:
        return True
    return False


def run(command: Command, *, apart: bool = False) -> str:
    """Run a command where the test is; give what it prints.

    serpipe's own run in this process and on its Ray, whose workers have the environment of its start; unless apart.
    """
    if command.text.startswith("serpipe ") and not apart:
        words = [str(Path(word).expanduser()) if word.startswith("~") else word for word in command.words[1:]]
        result = CliRunner().invoke(main, words, prog_name="serpipe")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        allowed = (0, REFUSED) if words[0] == "promote" else (0,)
        assert result.exit_code in allowed, f"{command.text}\n{result.output}"
        # Where a machine is busy, Ray remarks on it in between.
        return "".join(line for line in result.stdout.splitlines(keepends=True) if "(raylet)" not in line)
    done = subprocess.run(["bash", "-ec", command.text], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, f"{command.text}\n{done.stdout}{done.stderr}"
    return done.stdout


def assert_shown(command: Command, printed: str) -> None:
    """What a command printed is what its page shows; pages that show nothing promise nothing."""
    if not command.shown.strip():
        return
    lines = []
    for line in command.shown.rstrip().split("\n"):
        # A line of an ellipsis alone is any number of lines.
        lines.append("(?:.*\n)*?" if line.strip() == "…" else ".*".join(map(re.escape, line.split("…"))) + " *\n")
    assert re.fullmatch("".join(lines), printed.rstrip() + "\n"), (
        f"$ {command.text}\n{printed}\nis not\n{command.shown}"
    )
