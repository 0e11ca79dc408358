"""The page as text: complete, escaped, without secrets, asking nobody for anything."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from serpipe.cli import main
from serpipe.errors import UsageError
from serpipe.report import build
from serpipe.store import version
from serpipe.store.storage import Storage
from tests.report.conftest import HOSTILE, SECRET


class Elements(HTMLParser):
    """Names and attributes of a page's elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_names_stay_text(page: Path) -> None:
    text = page.read_text()
    elements = Elements(text).found
    assert HOSTILE not in text
    assert "&lt;img src=x" in text
    assert [tag for tag, _ in elements if tag in ("script", "img", "iframe", "object")] == ["script", "script"]
    assert not [name for _, attributes in elements for name in attributes if name.startswith("on")]


def test_secrets_stay_out(page: Path) -> None:
    text = page.read_text()
    assert "archive.org/feed" in text
    assert SECRET not in text


def test_nothing_is_fetched(page: Path) -> None:
    elements = Elements(page.read_text()).found
    addresses = [a[name] or "" for _, a in elements for name in ("src", "href", "xlink:href", "srcset") if name in a]
    assert addresses
    assert all(address.startswith("#") for address in addresses)
    (policy,) = [a["content"] for tag, a in elements if tag == "meta" and a.get("http-equiv")]
    assert "default-src 'none'" in (policy or "")


def test_every_link_has_an_end(page: Path) -> None:
    elements = Elements(page.read_text()).found
    names = [a["id"] for _, a in elements if "id" in a]
    assert len(names) == len(set(names))
    assert {(a["href"] or "")[1:] for tag, a in elements if tag == "a"} <= set(names)


def test_it_says_what_was_done(page: Path) -> None:
    text = re.sub(r"<[^>]+>", " ", page.read_text())
    assert "AUDIO_UNDECODABLE" in text
    assert re.search(r"Generation 1\s", text)
    assert "The gates were not asked" in text
    assert "at 3.50 an hour" in text


def test_it_sets_a_run_beside_its_forecast(page: Path) -> None:
    text = re.sub(r"\s*<[^>]+>\s*", " ", page.read_text())
    assert "wall in s 4 3 0.75" in re.sub(r" +", " ", text)
    assert "quarantine 0 1 –" in re.sub(r" +", " ", text)
    assert "cost 2.00 1.50 0.75" in re.sub(r" +", " ", text)


def test_the_report_lies_beside_the_last_run_by_default(store: str) -> None:
    done = CliRunner().invoke(main, ["report", store])
    assert done.exit_code == 0, done.output
    written = Path(done.output.strip())
    assert written.is_relative_to(Path(store, "runs"))
    assert written.read_text().startswith("<!doctype html>")
    written.unlink()


def test_recordings_that_are_gone_are_no_error(store: str, tmp_path: Path) -> None:
    moved = tmp_path / "store"
    shutil.copytree(store, moved)
    archive = Path(store).parent / "archive"
    archive.rename(tmp_path / "elsewhere")
    try:
        text = Path(build(str(moved), str(tmp_path / "r.html"))).read_text()
    finally:
        (tmp_path / "elsewhere").rename(archive)
    assert "No audio: cannot be opened any more: nothing is there" in text
    assert "data-clip" not in text.split("<script", 1)[0]


def test_a_store_without_labels_has_a_page(tmp_path: Path) -> None:
    version.check(Storage(str(tmp_path / "s")))
    assert "No emotions yet" in Path(build(str(tmp_path / "s"), str(tmp_path / "r.html"))).read_text()


@pytest.mark.parametrize(
    ("options", "code"), [({"run": "nothing"}, "RUN_UNKNOWN"), ({"generation": 9}, "GENERATION_UNKNOWN")]
)
def test_what_is_not_there_is_a_sentence(store: str, tmp_path: Path, options: dict[str, object], code: str) -> None:
    with pytest.raises(UsageError, match=code):
        build(store, str(tmp_path / "r.html"), **options)  # type: ignore[arg-type]
