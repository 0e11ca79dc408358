"""What a disk or a mount could not give is never taken for the end, or for damage, of a recording."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from serpipe.audio.decode import Decoding
from serpipe.audio.localfile import LocalFile, ReadingFailed
from serpipe.errors import AudioError
from serpipe.testing import write_speech

SHORT = Path("/sys/kernel/mm/transparent_hugepage/enabled")
"""An ordinary file by its mode, which gives fewer bytes than its size says."""

FAILING = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static int left = -1;
static int struck(int fd, off_t at) {
    char link[64], path[512];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    if (!strstr(path, "/victim.") || at < atol(getenv("FAIL_AT"))) return 0;
    if (left < 0) left = atoi(getenv("FAIL_TIMES"));
    if (!left) return 0;
    left--;
    errno = atoi(getenv("FAIL_WITH"));
    return 1;
}
ssize_t read(int fd, void *to, size_t size) {
    static ssize_t (*real)(int, void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "read");
    return struck(fd, lseek(fd, 0, SEEK_CUR)) ? -1 : real(fd, to, size);
}
static ssize_t (*pread_)(int, void *, size_t, off_t);
ssize_t pread64(int fd, void *to, size_t size, off_t at) {
    if (!pread_) pread_ = dlsym(RTLD_NEXT, "pread64");
    return struck(fd, at) ? -1 : pread_(fd, to, size, at);
}
ssize_t pread(int fd, void *to, size_t size, off_t at) { return pread64(fd, to, size, at); }
"""

PROGRAM = """
import sys, serpipe
for folder in sys.argv[1:]:
    decode = serpipe.Decode(segmentation="window:10/10", speech=False)
    (pack,) = decode(serpipe.read_manifest(folder))
    (unit,) = pack["units"][0].as_py()
    said = [(row["stage"], row["code"], row["transient"]) for row in pack["failures"][0].as_py()]
    seconds = [row["duration_s"] for row in pack["recordings"][0].as_py()]
    print(folder.rsplit("/", 1)[1], unit["status"], *said, *seconds)
"""


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that makes reads of `victim` fail beyond an offset."""
    if not (compiler := shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("no C compiler here")
    folder = tmp_path_factory.mktemp("failing")
    (folder / "failing.c").write_text(FAILING)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", "failing.so", "failing.c", "-ldl"], cwd=folder, check=True)
    return folder / "failing.so"


@pytest.mark.parametrize(
    ("number", "times"),
    [(5, "-1"), (116, "1")],
    ids=["a bad sector", "a stale handle that passes"],
)
def test_a_read_that_fails_leaves_the_recording_open(failing: Path, tmp_path: Path, number: int, times: str) -> None:
    for ending in ("wav", "flac", "mp3", "ogg"):
        write_speech(tmp_path / ending / f"victim.{ending}", seconds=60.0)
    faults = {"LD_PRELOAD": str(failing), "FAIL_AT": "150000", "FAIL_WITH": str(number), "FAIL_TIMES": times}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *(str(folder) for folder in sorted(tmp_path.iterdir()))],
        env=os.environ | faults,
        check=True,
        capture_output=True,
        text=True,
    )
    expected = dict.fromkeys(("flac", "mp3", "ogg", "wav"), "open ('read', 'RECORDING_UNREACHABLE', True)")
    if times == "1":
        # It strikes while libsndfile looks for the end of an Ogg file before it reads: nothing is lost.
        expected["ogg"] = "labelled 60.0"
    assert dict(line.split(" ", 1) for line in done.stdout.splitlines()) == expected


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg"])
def test_a_file_that_ends_before_its_size_is_not_done(tmp_path: Path, suffix: str) -> None:
    """As on a network file system that answers an error by an end; here it is cut while it is read."""
    path = write_speech(tmp_path / f"a{suffix}", seconds=60.0)
    size = os.path.getsize(path)
    blocks = iter(Decoding(path))
    next(blocks)
    os.truncate(path, size * 3 // 4)
    with pytest.raises(AudioError, match=rf"of {size} bytes") as refusal:
        list(blocks)
    assert (refusal.value.code, refusal.value.transient) == ("RECORDING_UNREACHABLE", True)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg"])
def test_a_file_that_was_cut_long_ago_is_what_it_is(tmp_path: Path, suffix: str) -> None:
    path = write_speech(tmp_path / f"a{suffix}", seconds=20.0)
    os.truncate(path, os.path.getsize(path) * 3 // 4)
    decoding = Decoding(path)
    assert 13 < sum(block.shape[1] for block in decoding) / 16_000 < 17


def test_a_file_whose_bytes_cannot_be_had_is_no_empty_one() -> None:
    with pytest.raises(AudioError) as refusal:
        Decoding("/proc/self/mem")
    assert (refusal.value.code, refusal.value.transient) == ("RECORDING_UNREACHABLE", True)
    assert "Input/output error" in refusal.value.message
    with pytest.raises(AudioError) as refusal:
        Decoding("/nowhere/a.wav")
    assert (refusal.value.code, refusal.value.transient) == ("RECORDING_UNREACHABLE", True)


@pytest.mark.skipif(not SHORT.exists(), reason="no such file here")
def test_fewer_bytes_than_the_size_says_are_no_end() -> None:
    file = LocalFile(str(SHORT))
    assert file.size is not None
    assert len(file.start(4)) == 4
    for looked in (lambda: file.start(file.size), file.look_through):
        with pytest.raises(ReadingFailed, match=f"of {file.size} bytes"):
            looked()
    file.look_through(4)


def test_a_playlist_opens_nothing_else(tmp_path: Path) -> None:
    """What one file names must not be read as another's audio."""
    secret = write_speech(tmp_path / "secret.mp3", seconds=3.0)
    for name, text in {
        "a.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{secret}\n#EXT-X-ENDLIST\n",
        "a.ffconcat": f"ffconcat version 1.0\nfile {secret}\n",
    }.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(AudioError, match="AUDIO_UNDECODABLE"):
            Decoding(str(tmp_path / name))


def test_what_is_left_half_way_holds_no_file(tmp_path: Path) -> None:
    paths = [write_speech(tmp_path / f"a{suffix}", seconds=30.0) for suffix in (".wav", ".mp3")]
    for path in paths:
        Decoding(path)
        next(iter(Decoding(path)))
        np.concatenate(list(Decoding(path)), axis=1)
    gc.collect()
    opened = Path("/proc/self/fd").iterdir()
    assert not {os.readlink(fd) for fd in opened if fd.exists()} & {*paths}
