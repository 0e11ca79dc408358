"""Given segments of a long remote WAV: little of it travels, and the samples are those of the whole file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import soundfile

from serpipe.audio import part
from serpipe.audio.part import LEAST_BYTES
from serpipe.audio.segment import GivenSegment
from serpipe.audio.stage import Decode
from tests.audio.test_stage import Found, gather, row, table
from tests.audio.web import served

GIVEN = [
    GivenSegment(130.0, 134.2, None),
    GivenSegment(0.0, 1.5, None),
    GivenSegment(130.5, 131.0, None),
    GivenSegment(298.013, 340.0, None),
    GivenSegment(700.0, 701.0, None),
]
"""The recording has 300 s: one reaches over its end, and one lies beyond."""


def write(path: Path, *, rate: int, channels: int, subtype: str = "PCM_16", seconds: float = 300.0) -> Path:
    noise = np.random.default_rng(1).standard_normal((round(seconds * rate), channels)).astype(np.float32)
    soundfile.write(path, np.clip(0.1 * noise, -1, 1), rate, subtype=subtype)
    return path


def decoded(uri: str, *, given: list[GivenSegment] = GIVEN, **options: Any) -> Found:
    stage = Decode(segmentation="given", speech=options.pop("speech", False), channels=options.pop("channels", "mix"))
    return gather(stage(table([row(uri, given, **options)])))[uri]


def same(one: Found, other: Found) -> None:
    """All of it but the recording's name and verdict."""
    facts = ("channel", "start_s", "end_s", "rms", "peak", "clipping", "snr_db")
    assert [[each[fact] for fact in facts] for each in one.segments] == [
        [each[fact] for fact in facts] for each in other.segments
    ]
    assert len(one.audio) == len(other.audio) > 0
    assert all(np.array_equal(mine, its) for mine, its in zip(one.audio, other.audio, strict=True))
    assert one.codes == other.codes
    assert one.recordings[0]["duration_s"] == other.recordings[0]["duration_s"]
    assert one.recordings[0]["header_s"] == other.recordings[0]["header_s"]


@pytest.mark.parametrize(
    ("rate", "channels", "subtype", "wanted"),
    [
        (16_000, 1, "PCM_16", "mix"),
        (8_000, 2, "PCM_16", "split"),
        (22_050, 1, "PCM_24", "first"),
        (44_100, 1, "PCM_16", "mix"),
    ],
)
def test_samples_are_those_of_the_whole_file(
    tmp_path: Path, rate: int, channels: int, subtype: str, wanted: str
) -> None:
    path = write(tmp_path / "long.wav", rate=rate, channels=channels, subtype=subtype)
    assert path.stat().st_size > LEAST_BYTES
    with served(tmp_path) as site:
        there = decoded(f"{site.url}/long.wav", channels=wanted)
    same(there, decoded(str(path), channels=wanted))
    assert there.codes.count("SEGMENT_OUTSIDE") == 1
    assert there.recordings[0]["verdict"] == "in_part"
    assert site.sent < 0.15 * path.stat().st_size


def test_objects_of_any_store_are_read_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "long.wav", rate=16_000, channels=1)
    files = fsspec.filesystem("memory")
    files.put_file(str(path), "/part/long.wav")
    monkeypatch.setattr(type(files), "get_file", None)
    there = decoded("memory://part/long.wav", size=path.stat().st_size)
    same(there, decoded(str(path)))
    assert there.recordings[0]["verdict"] == "in_part"


def test_a_file_that_was_cut_off_is_still_told(tmp_path: Path) -> None:
    """The header claims more than the object holds; a segment that lies there is outside."""
    path = write(tmp_path / "long.wav", rate=16_000, channels=1)
    os.truncate(path, 9_000_000)
    with served(tmp_path) as site:
        there = decoded(f"{site.url}/long.wav")
    here = decoded(str(path))
    same(there, here)
    assert there.codes.count("SEGMENT_OUTSIDE") == 2
    assert there.recordings[0]["verdict"] == here.recordings[0]["verdict"] == "shorter_than_header"
    assert site.sent < 0.2 * path.stat().st_size


def test_what_follows_the_samples_and_was_not_read_is_not_judged(tmp_path: Path) -> None:
    path = write(tmp_path / "long.wav", rate=16_000, channels=1)
    picture = os.urandom(2 * part.NEAR_BYTES)
    path.write_bytes(path.read_bytes() + b"APIC" + len(picture).to_bytes(4, "little") + picture)
    with served(tmp_path) as site:
        there = decoded(f"{site.url}/long.wav")
    here = decoded(str(path))
    same(there, here)
    assert (there.recordings[0]["verdict"], here.recordings[0]["verdict"]) == ("in_part", "ok")


@pytest.mark.parametrize("why", ["speech", "most", "no ranges", "capped ranges", "float", "flac", "short", "not ended"])
def test_the_whole_is_read_where_it_must_be(tmp_path: Path, why: str) -> None:
    match why:
        case "float":
            path = write(tmp_path / "a.wav", rate=16_000, channels=1, subtype="FLOAT", seconds=150.0)
        case "flac":
            path = write(tmp_path / "a.flac", rate=16_000, channels=1)
        case _:
            path = write(tmp_path / "a.wav", rate=16_000, channels=1, seconds=150.0 if why == "short" else 300.0)
    if why == "not ended":
        # What a recorder leaves that lost its power: lengths as it wrote them at its start.
        with open(path, "r+b") as file:
            for place, length in ((4, 8), (path.read_bytes().index(b"data") + 4, 0)):
                file.seek(place)
                file.write(length.to_bytes(4, "little"))
    given = [GivenSegment(10.0, 20.0, None), *([GivenSegment(20.0, None, None)] if why == "most" else [])]
    # What a proxy leaves out of a part would be heard as silence.
    most = 300_000 if why == "capped ranges" else None
    with served(tmp_path, ranges=why != "no ranges", most=most) as site:
        there = decoded(f"{site.url}/{path.name}", given=given, speech=why == "speech")
    same(there, decoded(str(path), given=given, speech=why == "speech"))
    assert there.recordings[0]["verdict"] == "ok"
    assert site.sent >= path.stat().st_size


def test_a_file_that_is_known_to_be_short_is_asked_for_once(tmp_path: Path) -> None:
    path = write(tmp_path / "short.wav", rate=16_000, channels=1, seconds=20.0)
    with served(tmp_path) as site:
        there = decoded(f"{site.url}/short.wav", given=[GivenSegment(1.0, 2.0, None)], size=path.stat().st_size)
    assert there.codes == []
    assert site.asked == [("short.wav", None)]


@pytest.mark.parametrize("seconds", [280.0, 320.0])
def test_an_object_of_another_size_than_the_manifest_knew_is_tried_again_later(seconds: float, tmp_path: Path) -> None:
    known = write(tmp_path / "long.wav", rate=16_000, channels=1).stat().st_size
    path = write(tmp_path / "long.wav", rate=16_000, channels=1, seconds=seconds)
    files = fsspec.filesystem("memory")
    files.put_file(str(path), "/replaced/long.wav")
    try:
        there = decoded("memory://replaced/long.wav", size=known)
    finally:
        files.rm("/replaced/long.wav")
    with served(tmp_path) as site:
        assert decoded(f"{site.url}/long.wav", size=known).codes == there.codes == ["RECORDING_CHANGED"]


def test_an_empty_object_is_told_as_an_empty_file_is(tmp_path: Path) -> None:
    """A server that gives parts refuses to give one of nothing."""
    (tmp_path / "empty.wav").touch()
    with served(tmp_path) as site:
        there = decoded(f"{site.url}/empty.wav")
    assert there.codes == decoded(str(tmp_path / "empty.wav")).codes == ["AUDIO_EMPTY"]


def test_an_object_that_is_replaced_between_two_parts_is_tried_again_later(tmp_path: Path) -> None:
    path = write(tmp_path / "long.wav", rate=16_000, channels=1)
    with served(tmp_path) as site:
        answer = site.answer

        def replaced(to: Any) -> None:
            answer(to)
            os.utime(path, ns=(len(site.asked), len(site.asked)))

        site.answer = replaced  # type: ignore[method-assign]
        there = decoded(f"{site.url}/long.wav")
    assert there.codes == ["RECORDING_CHANGED"]
    assert there.failures[0]["transient"]


def test_a_header_that_is_no_plain_wav_tells_no_places() -> None:
    for head in (b"", b"RIFF", b"RIFF\0\0\0\0WAVE", b"RIFF\0\0\0\0WAVEdata\0\0\0\0", b"OggS" + bytes(100)):
        assert part.layout_of(head) is None
