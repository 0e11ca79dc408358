"""The page in a real browser: no errors, charts drawn, clips that play, usable by everybody in both themes."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import serpipe

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium; apt-get install chromium, or set CHROMIUM"
)

PHONE = {"width": 360, "height": 780}

A4 = {"width": 717, "height": 1047}
"""Within the margins of a browser, in pixels of CSS."""

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


class Seen:
    """A page that is open, what it complained about and what it asked for."""

    def __init__(self, browser: Any, page: Path, **options: Any) -> None:
        self.page = browser.new_context(**options).new_page()
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda said: self.complaints.append(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url.split(":", 1)[0]))
        self.page.goto(page.as_uri())
        self.page.wait_for_selector("html[data-ready]")

    def close(self) -> None:
        self.page.context.close()


@pytest.fixture
def seen(browser: Any, page: Path) -> Iterator[Seen]:
    found = Seen(browser, page)
    yield found
    found.close()


def test_charts_are_drawn(seen: Seen, store: str) -> None:
    charts = seen.page.evaluate(
        """[...document.querySelectorAll('.chart svg')].map(svg =>
            [...svg.querySelectorAll('.role-mark path, .role-mark text')].filter(mark => {
                const box = mark.getBoundingClientRect();
                return box.width > 0.5 && box.height > 0.5;
            }).length)"""
    )
    over_time, sure, apart, plane, points = charts
    assert min(over_time, sure, apart) > 1
    assert plane > 20
    assert points == serpipe.open(store).predictions("embedded").num_rows
    assert seen.page.evaluate("window.pwned") is None


def test_a_clip_plays(seen: Seen) -> None:
    button = seen.page.locator("button.play").first
    button.focus()
    seen.page.keyboard.press("Enter")
    sync_api.expect(button).to_have_attribute("style", re.compile("--done: [1-9]"))
    sync_api.expect(button).to_have_attribute("aria-pressed", "true")
    seen.page.keyboard.press("Enter")
    sync_api.expect(button).to_have_attribute("aria-pressed", "false")


def test_every_clip_can_be_decoded(seen: Seen) -> None:
    seconds = seen.page.evaluate(
        """async () => {
            const made = new OfflineAudioContext(1, 16000, 16000);
            const all = Object.values(JSON.parse(document.getElementById('audio').textContent));
            const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
            return Promise.all(all.map(async (text) => (await made.decodeAudioData(bytes(text))).duration));
        }"""
    )
    assert len(seconds) > 10
    assert min(seconds) >= 1.0


def test_the_episode_plays_and_its_timeline_follows(seen: Seen) -> None:
    track = seen.page.locator("#timeline .axis .track")
    track.click(position={"x": track.bounding_box()["width"] / 2, "y": 2})
    sync_api.expect(seen.page.locator("#head")).to_be_visible()
    at, end = seen.page.evaluate("[document.getElementById('player').currentTime, Number(timeline.dataset.end)]")
    assert 0.45 * end < at < 0.75 * end


def _violations(page: Any) -> list[tuple[str, list[str]]]:
    """What axe-core calls serious, with all that is folded open."""
    page.evaluate("document.querySelectorAll('details').forEach((folded) => { folded.open = true; })")
    return [
        (one["id"], [node["html"][:200] for node in one["nodes"][:3]])
        for one in axe.Axe().run(page).response["violations"]
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it(browser: Any, page: Path, scheme: str) -> None:
    found = Seen(browser, page, color_scheme=scheme, bypass_csp=True)
    assert not _violations(found.page)
    found.close()


@pytest.mark.parametrize("which", ["calls", "words", "alone"])
def test_pages_of_other_stores_are_as_good(browser: Any, pages: dict[str, Path], which: str) -> None:
    found = Seen(browser, pages[which], color_scheme="dark", bypass_csp=True, viewport=PHONE)
    assert not found.complaints
    assert not _violations(found.page)
    assert found.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    found.close()


def test_the_file_is_small_and_soon_usable(
    browser: Any, pages: dict[str, Path], record_property: Callable[[str, object], None]
) -> None:
    for name, path in pages.items():
        found = Seen(browser, path)
        usable = found.page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
        found.close()
        record_property(f"{name}: usable after ms", usable)
        assert path.stat().st_size < 15_000_000
        # Two seconds are promised on a machine of its own; here many programs share one.
        assert 0 < usable < 10_000


@pytest.mark.parametrize("which", ["usual", "calls", "words", "alone"])
def test_it_fits_on_paper(browser: Any, pages: dict[str, Path], which: str, tmp_path: Path) -> None:
    found = Seen(browser, pages[which], color_scheme="dark", viewport=A4)
    found.page.emulate_media(media="print")
    wide = found.page.evaluate(
        """[...document.body.querySelectorAll('*')]
            .filter((one) => one.getBoundingClientRect().right > innerWidth + 1 && !one.closest('.hidden'))
            .map((one) => one.outerHTML.slice(0, 200))"""
    )
    assert wide == []
    assert found.page.evaluate("document.documentElement.scrollWidth") <= A4["width"]
    written = found.page.pdf(path=str(tmp_path / "report.pdf"), format="A4", print_background=True)
    assert written.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", written)) > 1
    found.close()


def test_it_complains_about_nothing_and_asks_nobody(seen: Seen) -> None:
    seen.page.locator("button.play").first.click()
    seen.page.locator("#theme").click()
    seen.page.wait_for_timeout(300)
    assert seen.complaints == []
    assert set(seen.asked) <= {"file", "data"}


def test_the_theme_can_be_changed(browser: Any, page: Path) -> None:
    found = Seen(browser, page, color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    before = found.page.evaluate(ground)
    found.page.locator("#theme").click()
    assert found.page.evaluate(ground) != before
    found.page.emulate_media(media="print")
    assert found.page.evaluate(ground) == before
    found.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_is_wide_enough(browser: Any, page: Path, scheme: str) -> None:
    found = Seen(browser, page, viewport=PHONE, color_scheme=scheme)
    assert found.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    found.close()
