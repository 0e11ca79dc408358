"""What a person sees of a run: a bar on a terminal, logfmt lines in a log."""

from __future__ import annotations

import io
import os
import pty
import re
import sys
import termios
import threading
import time

import pytest

from serpipe.engine import progress
from serpipe.store import runs

pytestmark = pytest.mark.usefixtures("ray_session")


def shown(board: progress.Board) -> list[runs.Progress]:
    """Show a run of two hours of which one is done until the board was looked at; give what was noted."""
    noted: list[runs.Progress] = []
    with progress.Progress(board, 7200.0, noted.append):
        board.add(audio_s=3600.0, segments=9, quarantined=2)
        time.sleep(3.5)
    return noted


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, (24, 120))
    read: list[bytes] = []

    def drain() -> None:
        while True:
            try:
                read.append(os.read(reader, 4096))
            except OSError:
                return

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    with os.fdopen(writer, "w", buffering=1) as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        shown(progress.Board())
        monkeypatch.undo()
    thread.join(timeout=10)
    os.close(reader)
    text = b"".join(read).decode()
    assert re.search(r" 50%\|.*\| 1\.00/2\.00 h , \d+ x real time, \d+ s left, 2 quarantined", text), text
    assert "audio_h=" not in text


def test_a_log_has_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(progress, "LINE_EVERY_S", 1.0)
    noted = shown(progress.Board())
    monkeypatch.undo()
    lines = log.getvalue().splitlines()
    assert 1 <= len(lines) <= 3
    last = dict(pair.split("=") for pair in lines[-1].split())
    assert (last["audio_h"], last["of_h"], last["segments"], last["quarantined"]) == ("1.00", "2.00", "9", "2")
    assert float(last["x_realtime"]) > 0
    assert float(last["left_s"]) == pytest.approx(noted[-1].elapsed_s, abs=1.0)
    assert (noted[0].segments, noted[-1].segments) == (0, 9)
