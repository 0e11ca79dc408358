"""The whole pipeline against its own parts, and against the script that Ray's documentation would have one write.

The pipeline's speed is that of the slope: the audio by which a large run is larger than a small one, over the time by
which it takes longer. What a run costs before its first and after its last pack is the same for both and cancels; it is
told apart. The small one is timed before the large one and after it, as most of what the slope errs by is its. One as
large comes first, untimed: it finds a machine that has rested, which is faster by a twentieth, and a Ray without
workers. Parts are bare loops over the files of the small run, twice, one process a core.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import ray
import torch
from ray._private.utils import get_num_cpus

import serpipe
from benchmarks import material, resources
from benchmarks.bare import Codec, label_with_every_core
from benchmarks.figures import Figure, figure, take_turns
from benchmarks.peers import auto
from serpipe.engine.cluster import joined

HUBERT = "hubert-large-superb-er"

TIMES = 4
"""How much larger the large run is."""

CORES, GPUS = int(get_num_cpus()), torch.cuda.device_count()
"""As Ray counts them: in a container those that it may use, not the machine's."""

PEER = Path(__file__).with_name("peer_ray_data.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A kind of archive and what labels it.

    Attributes:
        name: of its figures.
        model: as `serpipe label --model` takes it.
        dtype: number format, of the bare network too.
        segmentation: how recordings are cut.
        write: writes an archive of about so many seconds into a folder, and gives how many they are.
        seconds: audio of the small run.
        pack_s: seconds of audio that the bare network is given at once.
        spread: what `serpipe.label` is told of decoders and pools. Of both runs it must be the same: left to itself
            a small one has fewer actors, and the slope would count those that the large one has beyond it as speed.
    """

    name: str
    model: str
    dtype: str
    segmentation: str
    write: Callable[[Path, float], float]
    seconds: float
    pack_s: float
    spread: dict[str, Any]


def work_of(name: str, *, quick: bool) -> Work:
    """Utterances for a large model, whose network takes all the time, or podcasts for a small one, which decodes.

    Both divide evenly: every core gets the same number of packs of equal length, in the small run and in the large one.
    Of the large model's at least two, for that many Ray gives to the actor that is ready first.
    """
    if name == "embedded":
        return Work(
            name=name,
            model="embedded",
            dtype="float32",
            segmentation="window:10/10",
            write=lambda folder, seconds: material.write_podcasts(folder, CORES * ceil(seconds / 300 / CORES)),
            # Two runs of the same length are a second or two apart: of the time between both that is a tenth.
            seconds=3600.0 if quick else 18000.0,
            pack_s=60.0,
            spread={"decoders": CORES, "pools": ["embedded:1"]},
        )
    return Work(
        name=name,
        model=material.checkpoint(HUBERT),
        dtype=auto(HUBERT, "cuda" if torch.cuda.is_available() else "cpu").dtype,
        segmentation="whole",
        write=material.write_even_clips,
        seconds=material.SET_S * max(1, CORES // 2) * (1 if quick else 3),
        pack_s=material.PACK_S,
        spread={"decoders": CORES if GPUS else 1, "pools": [f"{HUBERT}:{GPUS or CORES}"]},
    )


def measure(*, quick: bool, only: str) -> list[Figure]:
    """Figures of one kind of work, in a Ray that starts once; see `Work` and `figures_of`."""
    work = work_of(only, quick=quick)
    with joined(None), tempfile.TemporaryDirectory(prefix="benchmark-pipeline-") as place:
        return figures_of(work, Path(place), rounds=1 if quick else 3, both_dtypes=not quick)


def figures_of(work: Work, place: Path, *, rounds: int, both_dtypes: bool) -> list[Figure]:
    """What is measured on one kind of work.

    Args:
        work: what.
        place: folder for its archives and stores.
        rounds: turns of every arm.
        both_dtypes: whether float32 is held against the script of plain Ray Data too.

    Returns:
        `end-to-end/parts:NAME`; for podcasts `end-to-end/parts-libopus:NAME`, over loops with the codec that is fastest
        at them; `start-up:NAME`, seconds of a run that do not grow with its audio;
        `memory/model:NAME`, of a model actor in MB; for a Transformers checkpoint `peer/ray-data`, its speed over that
        of the script.
    """
    small, large = place / "small", place / "large"
    work.write(small, work.seconds)
    work.write(large, TIMES * work.seconds)
    files = 2 * sorted(map(str, small.iterdir()))
    first, met = place / "first", place / "met"
    work.write(first, work.seconds)
    watch = resources.Watch(os.getpid())
    label(work, first, met)
    peaks = watch.end()
    fixed: list[float] = []

    def ran(work: Work) -> tuple[tuple[float, float], tuple[float, float]]:
        before, long, after = timed(work, small, met), timed(work, large, met), timed(work, small, met)
        return ((before[0] + after[0]) / 2, before[1]), long

    def pipeline() -> float:
        short, long = ran(work)
        speed = slope(short, long)
        fixed.append(short[0] - short[1] / speed)
        return speed

    def parts(codec: Codec = "soundfile") -> float:
        return label_with_every_core(work.model, work.dtype, files, pack_s=work.pack_s, processes=CORES, codec=codec)

    def peer() -> float:
        # It is slow enough for half a small run to be told apart from one that little more than starts.
        return slope((plain(work, little), little_s), (plain(work, beyond), beyond_s))

    arms: dict[str, Callable[[], float]] = {"pipeline": pipeline, "parts": parts}
    if "=" in work.model:
        little, beyond = place / "little", place / "beyond"
        little_s = work.write(little, work.seconds / TIMES)
        beyond_s = work.write(beyond, little_s + work.seconds / 2)
        arms["peer"] = peer
        if both_dtypes:
            exact = replace(work, dtype="float32")
            arms["float32"] = lambda: slope(*ran(exact))
    else:
        arms["libopus"] = lambda: parts("libopus")
    speeds = take_turns(arms, rounds=rounds)
    found = [figure(f"end-to-end/parts:{work.name}", speeds["pipeline"], speeds["parts"])]
    if "libopus" in arms:
        found.append(figure(f"end-to-end/parts-libopus:{work.name}", speeds["pipeline"], speeds["libopus"]))
    if "peer" in arms:
        found.append(figure("peer/ray-data", speeds["pipeline"], speeds["peer"]))
    if "float32" in arms:
        found.append(figure("peer/ray-data:float32", speeds["float32"], speeds["peer"]))
    return [
        *found,
        figure(f"start-up:{work.name}", fixed, [1.0] * rounds, unit="s"),
        resources.memory(f"memory/model:{work.name}", peaks, "memory/model"),
    ]


def slope(short: tuple[float, float], long: tuple[float, float]) -> float:
    """Seconds of audio in a second, from the seconds that two runs took and the audio they labelled."""
    return (long[1] - short[1]) / (long[0] - short[0])


def plain(work: Work, archive: Path) -> float:
    """Seconds that the script of plain Ray Data takes for an archive, in the Ray that runs."""
    out = tempfile.mkdtemp(prefix="plain-", dir=archive.parent)
    command = [sys.executable, str(PEER), work.model.partition("=")[2], str(archive), out]
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    began = time.monotonic()
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"the script of plain Ray Data ended with {done.returncode}:\n{done.stderr[-4000:]}")
    taken = time.monotonic() - began
    shutil.rmtree(out)
    return taken


def timed(work: Work, archive: Path, met: Path) -> tuple[float, float]:
    """Seconds that labelling an archive takes, and seconds of audio that were labelled.

    Args:
        work: what labels it.
        archive: what is labelled.
        met: a store that has met the model and has nothing of the archive; a copy of it is written to, for a model is
            looked at once a store, not once a run.
    """
    store = Path(tempfile.mkdtemp(prefix="store-", dir=archive.parent))
    shutil.copytree(met, store, dirs_exist_ok=True)
    taken = label(work, archive, store)
    shutil.rmtree(store)
    return taken


def label(work: Work, archive: Path, store: Path) -> tuple[float, float]:
    """The same into a given store."""
    manifest = material.write_manifest(archive)
    began = time.monotonic()
    result = serpipe.label(
        str(manifest),
        str(store),
        models=[work.model],
        segmentation=work.segmentation,
        dtype=work.dtype,
        speech=False,
        **work.spread,
    )
    taken = time.monotonic() - began
    if result.failed:
        raise RuntimeError(f"{result.failed} of {result.recordings} recordings failed: {result.codes}")
    return taken, result.audio_s
