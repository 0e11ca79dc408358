"""Units and segments of a stream against the whole recording in memory, whatever the blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serpipe.audio import recording
from serpipe.audio.quality import measure
from serpipe.audio.recording import LeftOut, Unit, units_of
from serpipe.audio.segment import GivenSegment, Segment, parse_segmentation
from serpipe.audio.speech import FRAME
from serpipe.errors import AudioError
from serpipe.testing import speech_like
from tests.audio.reference import place, segments_of

Samples = NDArray[np.float32]

SECOND = 16_000
STRETCH_S = 5
STRETCH = STRETCH_S * SECOND

NOISE = np.random.default_rng(1).standard_normal((3, 60 * SECOND)).astype(np.float32)
VOICE = np.stack([speech_like(90.0, seed=1), np.roll(speech_like(90.0, seed=2), 11 * SECOND)])
VOICE[:, 30 * SECOND : 52 * SECOND] *= 1e-3  # a pause that is longer than a stretch and a group of the detector


@pytest.fixture(scope="module", autouse=True)
def short_stretches() -> Iterator[None]:
    """Many units from little audio."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "_UNIT", STRETCH)
        yield


def blocks_of(samples: Samples, sizes: Sequence[int]) -> Iterator[Samples]:
    """Cuts (channels, n) into blocks of the given sizes and one of a second, again and again."""
    sizes = [*sizes, SECOND]
    position = turn = 0
    while position < samples.shape[1]:
        size = sizes[turn % len(sizes)]
        yield samples[:, position : position + size].copy()
        position, turn = position + size, turn + 1


def check(
    units: list[Unit],
    samples: Samples,
    segments: list[list[Segment]],
    speech: list[NDArray[np.float32]] | None = None,
) -> None:
    """The promises of `units_of`, one by one."""
    channels, total = samples.shape
    stretches = -(-total // STRETCH)
    assert [unit.number for unit in units] == list(range(stretches * channels))
    assert [unit.channel for unit in units] == [number % channels for number in range(stretches * channels)]
    assert [unit.final for unit in units] == [False] * (len(units) - 1) + [True]
    for channel in range(channels):
        mine = [unit for unit in units if unit.channel == channel]
        got = [clip.segment for unit in mine for clip in unit.clips]
        assert sorted(got, key=place) == segments[channel]
    for unit in units:
        audio = np.concatenate([*unit.audio, np.zeros(0, np.float32)])
        assert len(audio) == unit.samples
        covered = np.zeros(total, bool)
        for clip in unit.clips:
            start, end = clip.segment.start, clip.segment.end
            assert start // STRETCH * channels + unit.channel == unit.number
            np.testing.assert_array_equal(
                audio[clip.offset : clip.offset + clip.length], samples[unit.channel, start:end]
            )
            heard = None if speech is None else speech[unit.channel][start // FRAME : -(-end // FRAME)]
            assert clip.quality == measure(samples[unit.channel, start:end], heard)
            covered[start:end] = True
        # Overlapping segments share their samples, and nothing else travels.
        assert unit.samples == np.count_nonzero(covered)
        assert all(a.segment.start <= b.segment.start for a, b in pairwise(unit.clips))


sizes_ = st.lists(st.integers(1, 3 * SECOND) | st.integers(1, 30 * SECOND), max_size=8)
totals_ = st.integers(1, 60 * SECOND) | st.integers(1, 12).map(lambda n: n * STRETCH)


@settings(max_examples=60, deadline=None)
@given(
    text=st.sampled_from(["whole", "given", "window:6/3", "window:6/6", "window:0.5/0.3", "window:12/1"]),
    channels=st.integers(1, 3),
    total=totals_,
    sizes=sizes_,
)
@example(text="window:6/6", channels=1, total=2 * STRETCH, sizes=[STRETCH])
@example(text="whole", channels=2, total=STRETCH + 1, sizes=[1_600])
def test_blocks_cannot_be_seen(text: str, channels: int, total: int, sizes: list[int]) -> None:
    samples, segmentation = NOISE[:channels, :total], parse_segmentation(text)
    segments, _, _ = segments_of(segmentation, None, samples)
    units = list(units_of(blocks_of(samples, sizes), channels=channels, segmentation=segmentation, speech=False))
    check(units, samples, segments)


seconds_ = st.floats(0, 70) | st.integers(0, 70).map(float) | st.sampled_from([4.99996, 5.0, 5.00003])
given_ = st.lists(
    st.builds(GivenSegment, seconds_, st.none() | seconds_, st.sampled_from([None, 0, 1, 7])), min_size=1, max_size=12
)


@settings(max_examples=80, deadline=None)
@given(given_=given_, channels=st.integers(1, 2), total=totals_, sizes=sizes_)
@example([GivenSegment(1.0, 9.0, None), GivenSegment(2.0, 3.0, None), GivenSegment(2.5, 8.0, None)], 1, 160_000, [99])
@example([GivenSegment(1.0, 2.0, None), GivenSegment(2.0, 3.0, None), GivenSegment(50, 60, None)], 2, 960_000, [9_999])
@example([GivenSegment(0.0, 5.0, 0), GivenSegment(4.0, None, 1)], 2, 20 * SECOND, [SECOND])
@example(
    [GivenSegment(5.0, 8.0, 0), GivenSegment(5.0, 12.0, 0), GivenSegment(5.0, None, None)], 2, 8 * SECOND, [SECOND]
)
@example([GivenSegment(0.1, 2.0, None), GivenSegment(0.10001, 2.0, None)], 1, 8 * SECOND, [SECOND])
@example([GivenSegment(1.0, 2.0, 1)], 1, 8 * SECOND, [SECOND])
def test_given_segments_travel_as_they_are(
    given_: list[GivenSegment], channels: int, total: int, sizes: list[int]
) -> None:
    samples, segmentation = NOISE[:channels, :total], parse_segmentation("given")
    segments, expected, _ = segments_of(segmentation, given_, samples)
    left_out: dict[int, LeftOut] = {}
    units = list(
        units_of(
            blocks_of(samples, sizes),
            channels=channels,
            segmentation=segmentation,
            given=given_,
            speech=False,
            left_out=left_out,
        )
    )
    check(units, samples, segments)
    assert left_out == expected
    # Each is a segment, or told why not; and no samples of a channel are labelled twice.
    clips = [(unit.channel, clip.segment) for unit in units for clip in unit.clips]
    assert {segment.given for _, segment in clips} | left_out.keys() == set(range(len(given_)))
    assert len({(channel, segment.start, segment.end) for channel, segment in clips}) == len(clips)


@settings(max_examples=8, deadline=None)
@given(channels=st.integers(1, 2), total=st.integers(SECOND, VOICE.shape[1]), sizes=sizes_)
@example(channels=2, total=VOICE.shape[1], sizes=[1_365])
def test_speech_is_cut_alike_in_any_blocks(channels: int, total: int, sizes: list[int]) -> None:
    samples, segmentation = VOICE[:channels, :total], parse_segmentation("vad")
    segments, _, speech = segments_of(segmentation, None, samples)
    units = list(units_of(blocks_of(samples, sizes), channels=channels, segmentation=segmentation))
    check(units, samples, segments, speech)
    if total > 60 * SECOND:
        assert all(segments)
        assert not any(unit.clips for unit in units if unit.number // channels == 8)  # the pause
        assert any(clip.segment.end > (unit.number // channels + 1) * STRETCH for unit in units for clip in unit.clips)


@settings(max_examples=5, deadline=None)
@given(sizes=sizes_, text=st.sampled_from(["window:6/3", "whole", "given"]))
def test_speech_shares_are_those_of_the_whole_recording(sizes: list[int], text: str) -> None:
    samples, segmentation = VOICE[:1, : 40 * SECOND], parse_segmentation(text)
    segments, _, _ = segments_of(segmentation, None, samples)
    _, _, speech = segments_of(parse_segmentation("vad"), None, samples)
    units = list(units_of(blocks_of(samples, sizes), channels=1, segmentation=segmentation))
    check(units, samples, segments, speech)
    assert any(clip.quality.speech for unit in units for clip in unit.clips)


def test_units_come_as_soon_as_nothing_can_change_them() -> None:
    pulled = 0

    def blocks() -> Iterator[Samples]:
        nonlocal pulled
        for block in blocks_of(NOISE[:1], []):
            pulled += SECOND
            yield block

    for unit in units_of(blocks(), channels=1, segmentation=parse_segmentation("window:2/1"), speech=False):
        assert pulled <= (unit.number + 1) * STRETCH + 3 * SECOND


def test_nothing_comes_from_nothing() -> None:
    for text in ("whole", "given", "vad", "window:6/3"):
        assert not list(units_of([], channels=2, segmentation=parse_segmentation(text)))


def test_a_segment_without_end_is_refused_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "_LONGEST", 20 * SECOND)
    pulled = 0

    def blocks() -> Iterator[Samples]:
        nonlocal pulled
        for block in blocks_of(NOISE[:1], []):
            pulled += SECOND
            yield block

    with pytest.raises(AudioError) as refusal:
        list(units_of(blocks(), channels=1, segmentation=parse_segmentation("whole"), speech=False))
    assert refusal.value.code == "SEGMENT_TOO_LONG"
    assert pulled <= 27 * SECOND
    # As long as the longest is still given, to the last sample.
    for total in (20 * SECOND, 25 * SECOND):
        units = list(units_of([NOISE[:1, :total]], channels=1, segmentation=parse_segmentation("whole"), speech=False))
        check(units, NOISE[:1, :total], [[Segment(0, total)]])


def test_units_before_a_failure_are_whole() -> None:
    def blocks() -> Iterator[Samples]:
        yield from blocks_of(NOISE[:1, : 22 * SECOND], [7_000])
        raise AudioError("AUDIO_NOT_FINITE", "samples after 22.0 s are NaN")

    units = []
    with pytest.raises(AudioError, match="AUDIO_NOT_FINITE"):
        units.extend(units_of(blocks(), channels=1, segmentation=parse_segmentation("window:2/2"), speech=False))
    undisturbed = list(
        units_of([NOISE[:1, : 40 * SECOND]], channels=1, segmentation=parse_segmentation("window:2/2"), speech=False)
    )
    assert 0 < len(units) < 5
    for got, expected in zip(units, undisturbed, strict=False):
        assert (got.number, got.final, got.clips) == (expected.number, False, expected.clips)
        np.testing.assert_array_equal(np.concatenate(got.audio), np.concatenate(expected.audio))
