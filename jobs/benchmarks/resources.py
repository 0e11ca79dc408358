"""What a run takes besides time: memory of every kind of process, and the seconds before the first label.

A run by itself, in a process of its own, that starts Ray as `serpipe label` does. Memory is what a process has for
itself alone, at its largest; the object store that all share is not in it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks import material
from benchmarks.figures import Figure

ROLES = {
    "memory/decoder": "_Decode",
    "memory/decoder-child": "serpipe.audio.child",
    "memory/model": "_Predict",
    "memory/driver": "import serpipe",
}
"""Figure, to what tells its processes by their command line."""

LOOK_EVERY_S = 0.1

_RUN = """
import time
began = time.monotonic()
import serpipe
imported = time.monotonic()
import json, sys
from serpipe.engine.cluster import joined
with joined(None):
    ray = time.monotonic()
    first = serpipe.label(sys.argv[1], sys.argv[3], segmentation="window:10/10")
    short = time.monotonic()
    serpipe.label(sys.argv[2], sys.argv[3], segmentation="window:10/10")
print(json.dumps({"import": imported - began, "ray": ray - imported, "one-file": short - ray}))
"""


def measure(*, quick: bool) -> list[Figure]:
    """`memory/…` in MB and `start-up/…` in seconds; their ratio is the figure itself."""
    return measured(files=8 if quick else 48)


def measured(*, files: int) -> list[Figure]:
    """The same of a run of so many podcasts."""
    with tempfile.TemporaryDirectory(prefix="benchmark-resources-") as place:
        one, many = Path(place, "one"), Path(place, "many")
        material.write_clips(one, 5.0)
        material.write_podcasts(many, files)
        process = subprocess.Popen(
            [sys.executable, "-c", _RUN, str(one), str(many), str(Path(place, "store"))],
            stdout=subprocess.PIPE,
            text=True,
        )
        watch = Watch(process.pid)
        out, _ = process.communicate()
        peaks = watch.end()
    if process.returncode:
        raise RuntimeError("the run whose memory is measured broke; its error is above")
    found = [memory(role, peaks, role) for role in ROLES]
    seconds = {"help": help_s(), **json.loads(out)}
    return found + [plain(f"start-up/{name}", value, "s") for name, value in seconds.items()]


def help_s() -> float:
    """Seconds of `serpipe --help`, of a few the quickest: what else the machine does is not its own."""
    command = [sys.executable, "-m", "serpipe", "--help"]
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - began)
    return min(taken)


def memory(name: str, peaks: Mapping[str, int], role: str) -> Figure:
    """What the largest process of a role had for itself alone.

    Raises:
        RuntimeError: no such process was seen; the sign by which it is told is another one now.
    """
    if not peaks.get(role):
        raise RuntimeError(f"no process with {ROLES[role]!r} in its command line was seen, so {name} is not known")
    return plain(name, peaks[role] / 2**20, "MB")


def plain(name: str, value: float, unit: str) -> Figure:
    """A figure that is no ratio, measured once."""
    return Figure(name=name, ratio=value, median=value, spread=None, unit=unit)


class Watch:
    """Looks at a process and all that descend from it, until it is told to end."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peaks: dict[str, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def end(self) -> dict[str, int]:
        """The largest process of each role, in bytes."""
        self._ended.set()
        self._thread.join()
        return self._peaks

    def _look(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            for pid in _family(self._pid):
                try:
                    command = Path(f"/proc/{pid}/cmdline").read_text()
                    held = _private_bytes(pid)
                except OSError:
                    continue
                role = next((role for role, sign in ROLES.items() if sign in command), None)
                if role is not None:
                    self._peaks[role] = max(self._peaks.get(role, 0), held)


def _private_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def _family(pid: int) -> list[int]:
    """A process and its descendants."""
    children: dict[int, list[int]] = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(place.name))
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found
