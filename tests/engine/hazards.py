"""What somebody installs on a machine and wishes they had not: a model and a filesystem that kill their processes.

`install` makes a folder of packages for `PYTHONPATH`: the model `fragile` (`serpipe.models`) and the filesystem
`hazard://` (`fsspec.specs`), which is the local disk but for what its options in the environment do.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

FRAGILE = '''
"""Labels by loudness; what is louder than any voice ends its process, or breaks it for all that comes after."""
import os
import pathlib
import signal
import numpy as np
from serpipe.models.checkpoint import content_sha256
from serpipe.models.contract import ModelSpec, Outputs

SPEC = ModelSpec(name="fragile", hub_id=None, revision=None, licence="Apache-2.0", labels=("neutral", "anger"),
    taxonomy="ekman", parameters=0, min_seconds=0.1, max_seconds=30.0, embedding_width=2, frame_rate=None,
    adapter_epoch=1)
SPECS, FILES, SHIPPED = (SPEC,), ("fragile.py",), str(pathlib.Path(__file__).parent)

class Fragile:
    spec, weights_sha256 = SPEC, content_sha256(SHIPPED, FILES)
    broken = False
    def forward(self, waveforms, *, frames):
        for waveform in waveforms:
            peak = np.abs(waveform).max()
            self.broken |= 0.91 < peak < 0.93
            if self.broken:
                raise RuntimeError("the device is gone")
            if 0.94 < peak < 0.96:
                os.kill(os.getpid(), signal.SIGSEGV)
            if 0.97 < peak < 0.99:
                os._exit(3)
        level = np.array([[0.0, np.sqrt(np.mean(w**2)) * 10 - 1] for w in waveforms], np.float32).reshape(-1, 2)
        scores = np.exp(level) / np.exp(level).sum(axis=1, keepdims=True)
        return Outputs(level, scores.astype(np.float32), level, None)

def load(spec, directory, *, device, dtype):
    return Fragile()
'''

HAZARD = '''
"""The local disk, dangerous to work with. What happens is written down, a line each, in the file HAZARD_LOG."""
import os
import random
import signal
import time
import uuid
from collections import Counter
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

def log(what):
    with open(os.environ["HAZARD_LOG"], "a") as file:
        file.write(what + "\\n")

class Hazard(AbstractFileSystem):
    protocol, root_marker, cachable = "hazard", "/", False
    tries = Counter()

    def __init__(self, **options):
        super().__init__(**options)
        self._disk = LocalFileSystem(auto_mkdir=True)

    def _meet(self, doing, path):
        """HAZARD_KILL ends every process but HAZARD_DRIVER at DOING:PART-OF-NAME; HAZARD_FAIL and _DOWN break reads."""
        for fatal in os.environ.get("HAZARD_KILL", "").split():
            act, _, part = fatal.partition(":")
            if act == doing and part in path and str(os.getpid()) != os.environ.get("HAZARD_DRIVER"):
                log(fatal)
                os.kill(os.getpid(), signal.SIGSEGV)
                # The signal is another thread's to die of, and this one would read on meanwhile.
                time.sleep(600)

    def get_file(self, rpath, lpath, **options):
        self._meet("get", rpath)
        self.tries[rpath] += 1
        draw = random.Random(f"{os.getpid()} {rpath} {self.tries[rpath]}").random()
        log("read")
        if any(part in rpath for part in os.environ.get("HAZARD_DOWN", "").split()):
            log("down")
            raise ConnectionResetError("the connection broke, and will break again")
        if draw < float(os.environ.get("HAZARD_FAIL", "0")):
            log("fail")
            raise ConnectionResetError("the connection broke")
        self._disk.get_file(rpath, lpath)

    def _open(self, path, mode="rb", **options):
        self._meet("open", path)
        return self._disk.open(path, mode)

    def pipe_file(self, path, value, mode="overwrite", **options):
        self._meet("put", path)
        if mode == "create" and self._disk.exists(path):
            raise FileExistsError(path)
        beside = f"{os.path.dirname(path)}/.{uuid.uuid4().hex}"
        self._disk.pipe_file(beside, value)
        os.replace(beside, path)

    def cat_file(self, path, **options):
        return self._disk.cat_file(path)

    def ls(self, path, detail=True, **options):
        return self._disk.ls(path, detail=detail)

    def info(self, path, **options):
        return self._disk.info(path)

    def modified(self, path):
        return self._disk.modified(path)

    def rm_file(self, path):
        self._disk.rm_file(path)
'''

ENTRIES = "[serpipe.models]\nfragile = fragile\n\n[fsspec.specs]\nhazard = hazard:Hazard\n"


def install(site: Path) -> None:
    """Write the packages into a folder."""
    (site / "fragile.py").write_text(FRAGILE)
    (site / "hazard.py").write_text(HAZARD)
    info = site / "hazards-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hazards\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRIES)


def environment(site: Path, **hazards: str) -> dict[str, str]:
    """The environment of a machine with the packages of `site`."""
    path = os.pathsep.join([str(site), *(entry for entry in sys.path if entry)])
    return os.environ | {"PYTHONPATH": path, "HAZARD_LOG": str(site / "log"), **hazards}


def log(site: Path) -> list[str]:
    """What happened."""
    return (site / "log").read_text().splitlines() if (site / "log").exists() else []
