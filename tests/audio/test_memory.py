"""What decoding holds does not grow with a recording: minutes of work, so marked slow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

pytestmark = pytest.mark.slow

MOST_MORE_MB = 50
"""What a recording of hours may take beyond short ones in packs of the same size."""

MEASURE = """
import json, sys, threading, time
import psutil
from serpipe.audio.stage import Decode
from tests.audio.test_stage import row, table

segmentation, speech, copies, path = sys.argv[1], sys.argv[2] == "speech", int(sys.argv[3]), sys.argv[4]
decode = Decode(segmentation=segmentation, speech=speech, pack_seconds=60.0)
peaks = {"parent": 0, "child": 0}
over = threading.Event()

def watch():
    me = psutil.Process()
    while not over.wait(0.01):
        peaks["parent"] = max(peaks["parent"], me.memory_info().rss)
        for child in me.children():
            try:
                peaks["child"] = max(peaks["child"], child.memory_info().rss)
            except psutil.NoSuchProcess:
                pass

watcher = threading.Thread(target=watch)
watcher.start()
seconds = packs = largest = 0
for pack in decode(table([row(path)] * copies)):
    packs += 1
    audio = pack["audio"][0].as_buffer().size
    largest = max(largest, audio)
    for one in pack["recordings"][0].as_py():
        seconds += one["duration_s"]
    assert not any(one["code"] != "SEGMENT_SILENT" for one in pack["failures"][0].as_py()), pack["failures"]
over.set()
watcher.join()
print(json.dumps(peaks | {"seconds": seconds, "packs": packs, "largest_mb": largest / 2**20}))
"""


def measure(segmentation: str, speech: bool, copies: int, path: str | Path) -> dict[str, float]:
    """Peaks of a fresh process and its child, in MB."""
    program = [sys.executable, "-c", MEASURE, segmentation, "speech" if speech else "no", str(copies), str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(program, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    return found | {name: found[name] / 2**20 for name in ("parent", "child")}


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("segmentation", "speech"), [("window:6/3", False), ("window:6/6", True), ("vad", True)], ids=str
)
def test_memory_does_not_grow_with_the_recording(
    real_audio: Path, tmp_path: Path, segmentation: str, speech: bool
) -> None:
    recorded = real_audio / "long" / "librivox_fr_4h24.opus"
    # Five minutes, which is a unit: so packs are of the same size, by the same voice.
    rate = soundfile.info(recorded).samplerate
    samples, _ = soundfile.read(recorded, start=1_200 * rate, frames=299 * rate, dtype="float32")
    soundfile.write(tmp_path / "short.opus", samples, rate, format="OGG", subtype="OPUS")
    # As many packs as it takes until the allocator keeps what it will keep; the peak no longer moves after some 20.
    few = measure(segmentation, speech, 30, tmp_path / "short.opus")
    many = measure(segmentation, speech, 1, recorded)
    print(f"\n{segmentation} speech={speech}: short {few}, 4 h 24 min {many}")
    assert many["seconds"] > 15_800
    assert many["packs"] > 50 > few["packs"] >= 30
    assert many["parent"] + many["child"] <= few["parent"] + few["child"] + MOST_MORE_MB
