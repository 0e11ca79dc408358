"""The whole pipeline against its own parts, and against the script that Ray's documentation would have one write.

The pipeline's speed is that of the slope: the audio by which a large run is larger than a small one, over the time by
which it takes longer. What a run costs before its first and after its last pack is the same for both and cancels; it is
told apart. The parts are bare loops over the files of the large run (`bare`), one process a core.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import serpipe
from benchmarks import material
from benchmarks.bare import label_with_every_core
from benchmarks.figures import Figure, figure, take_turns

HUBERT = "hubert-large-superb-er"

TIMES = 4
"""How much larger the large run is."""

PEER = Path(__file__).with_name("peer_ray_data.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A kind of archive and what labels it.

    Attributes:
        name: of its figures.
        model: as `serpipe label --model` takes it.
        dtype: number format, of the bare network too.
        segmentation: how recordings are cut.
        write: writes an archive of so many seconds into a folder.
        seconds: audio of the small run.
        pack_s: seconds of audio that the bare network is given at once.
    """

    name: str
    model: str
    dtype: str
    segmentation: str
    write: Callable[[Path, float], None]
    seconds: float
    pack_s: float


def works(*, quick: bool) -> list[Work]:
    """Utterances for a large model, whose network takes all the time; podcasts for a small one, which decodes."""
    return [
        Work(
            name="hubert-large",
            model=material.checkpoint(HUBERT),
            dtype=fast_dtype(),
            segmentation="whole",
            write=material.write_clips,
            seconds=45.0 if quick else 180.0,
            pack_s=20.0,
        ),
        Work(
            name="embedded",
            model="embedded",
            dtype="float32",
            segmentation="window:10/10",
            write=lambda folder, seconds: material.write_podcasts(folder, round(seconds / 300)),
            seconds=4500.0 if quick else 18000.0,
            pack_s=60.0,
        ),
    ]


def measure(*, quick: bool) -> list[Figure]:
    """Figures of every kind of work; see `Work`."""
    found: list[Figure] = []
    for work in works(quick=quick):
        found += against_parts(work, rounds=1 if quick else 3)
    return found


def against_parts(work: Work, *, rounds: int) -> list[Figure]:
    """`end-to-end/parts:NAME`, and the seconds of a run that do not grow with its audio, as `start-up:NAME`."""
    with tempfile.TemporaryDirectory(prefix="benchmark-pipeline-") as place:
        small, large = Path(place, "small"), Path(place, "large")
        work.write(small, work.seconds)
        work.write(large, TIMES * work.seconds)
        files = sorted(map(str, large.iterdir()))
        fixed: list[float] = []

        def pipeline() -> float:
            short, long = timed(work, small), timed(work, large)
            speed = (long[1] - short[1]) / (long[0] - short[0])
            fixed.append(short[0] - short[1] / speed)
            return speed

        def parts() -> float:
            return label_with_every_core(
                work.model, work.dtype, files, pack_s=work.pack_s, processes=os.cpu_count() or 1
            )

        speeds = take_turns({"pipeline": pipeline, "parts": parts}, rounds=rounds)
    ones = [1.0] * len(fixed)
    return [
        figure(f"end-to-end/parts:{work.name}", speeds["pipeline"], speeds["parts"]),
        figure(f"start-up:{work.name}", fixed, ones, unit="s"),
    ]


def timed(work: Work, archive: Path) -> tuple[float, float]:
    """Seconds that labelling an archive takes, and seconds of audio that were labelled."""
    store = tempfile.mkdtemp(prefix="store-", dir=archive.parent)
    began = time.monotonic()
    result = serpipe.label(
        str(archive),
        store,
        models=[work.model],
        segmentation=work.segmentation,
        dtype=work.dtype,
        speech=False,
    )
    taken = time.monotonic() - began
    shutil.rmtree(store)
    if result.failed:
        raise RuntimeError(f"{result.failed} of {result.recordings} recordings failed: {result.codes}")
    return taken, result.audio_s


def fast_dtype() -> str:
    """The number format in which this machine's cores multiply fastest."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"
