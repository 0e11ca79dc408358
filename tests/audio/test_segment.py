"""Every segmentation, fed in random pieces, against whole-array references that share no code with it."""

from __future__ import annotations

import csv
import os
import tracemalloc
from fractions import Fraction
from itertools import chain, count, pairwise, repeat
from pathlib import Path

import numpy as np
import pytest
import silero_vad
import soundfile
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from silero_vad.utils_vad import get_speech_timestamps_from_probs

from serpipe.audio.segment import GivenSegment, NoSegments, Segment, Segmenter, parse_segmentation
from serpipe.audio.speech import SpeechDetector
from serpipe.errors import UsageError

DATA = Path(os.environ.get("SERPIPE_TEST_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
SILENT = np.empty(0, np.float32)
SECOND = 16_000


def follow(segmenter: Segmenter, total: int, steps: list[int]) -> list[Segment]:
    """Decodes `total` samples in the given steps, then in quarter seconds; checks `keep_from` on the way."""
    segments: list[Segment] = []
    promises = [segmenter.keep_from]
    due: list[int] = [0]
    frontier = 0
    for step in chain(steps, repeat(SECOND // 4)):
        if frontier + step >= total:
            break
        frontier += step
        fresh = segmenter.advance(frontier, SILENT)
        assert all(segment.end <= frontier for segment in fresh)
        assert segmenter.keep_from <= frontier
        segments += fresh
        promises.append(segmenter.keep_from)
        due.append(len(segments))
    segments += segmenter.finish(total, SILENT)
    check_promises(segments, promises, due)
    return segments


def check_promises(segments: list[Segment], promises: list[int], due: list[int]) -> None:
    """No segment that came after a promise starts before it, and promises only rise."""
    assert promises == sorted(promises)
    starts = [segment.start for segment in segments]
    assert starts == sorted(starts)
    for promise, given_so_far in zip(promises, due, strict=True):
        assert all(start >= promise for start in starts[given_so_far:])


steps_ = st.lists(st.integers(1, 50_000), min_size=1, max_size=20)


# --- the language


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("given", "given"),
        ("whole", "whole"),
        ("vad", "vad"),
        ("window:6/3", "window:6/3"),
        ("window:6.0/3", "window:6/3"),
        ("window:06/3.50", "window:6/3.5"),
        ("window:10/10", "window:10/10"),
        ("window:100/20", "window:100/20"),
        ("window:0.0001/0.0001", "window:0.000125/0.000125"),
    ],
)
def test_segmentations_have_one_canonical_text(text: str, canonical: str) -> None:
    segmentation = parse_segmentation(text)
    assert str(segmentation) == canonical
    assert parse_segmentation(canonical) == segmentation
    assert segmentation.needs_speech == (text == "vad")


@settings(deadline=None)
@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_canonical_text_is_exact_to_the_sample(one: int, other: int) -> None:
    length, hop = max(one, other), min(one, other)
    texts = [str(Fraction(n * 625, 1)) for n in (length, hop)]  # 1/16000 s = 0.0000625 s
    spelled = "/".join(f"{text.zfill(8)[:-7]}.{text.zfill(8)[-7:]}" for text in texts)
    segmentation = parse_segmentation(f"window:{spelled}")
    assert (segmentation.length, segmentation.hop) == (length, hop)
    assert parse_segmentation(str(segmentation)) == segmentation


@pytest.mark.parametrize(
    "text",
    ["", "VAD", "windows:6/3", "window", "window:6", "window:6/", "window:/3", "window:6/3/1", "window:-6/3",
     "window:6/-3", "window:nan/3", "window:inf/3", "window:6/0", "window:0/0", "window:0.00001/0.00001",
     "window:3/6", "window:1e1/3", "window:6/3 ", "window:٦/٣", "given,vad"],
)  # fmt: skip
def test_nonsense_is_refused_with_what_is_accepted(text: str) -> None:
    with pytest.raises(UsageError) as refusal:
        parse_segmentation(text)
    assert refusal.value.code == "SEGMENTATION_INVALID"
    assert repr(text) in str(refusal.value)
    for form in ("given", "whole", "window:LENGTH/HOP", "window:6/3", "vad"):
        assert form in str(refusal.value)


# --- whole, nothing


@settings(deadline=None)
@given(st.integers(0, 500_000), steps_)
def test_whole_is_one_segment(total: int, steps: list[int]) -> None:
    segments = follow(parse_segmentation("whole").segmenter([]), total, steps)
    assert segments == ([Segment(0, total)] if total else [])
    assert follow(NoSegments(), total, steps) == []


@pytest.mark.parametrize("text", ["given", "whole", "window:6/3", "vad"])
def test_a_recording_without_samples_has_no_segments(text: str) -> None:
    segmenter = parse_segmentation(text).segmenter([GivenSegment(0.0, None, None)])
    assert segmenter.finish(0, SILENT) == []
    assert segmenter.outside == ([0] if text == "given" else [])


# --- window


def windows(total: int, length: int, hop: int) -> list[tuple[int, int]]:
    """The rule as the documentation words it."""
    if total == 0:
        return []
    full = [(k * hop, k * hop + length) for k in range(total // hop + 1) if k * hop + length <= total]
    if not full:
        return [(0, total)]
    tail = total - full[-1][1]
    if tail == 0:
        return full
    if tail < 8_000:
        return [*full[:-1], (full[-1][0], total)]
    return [*full, (full[-1][0] + hop, total)]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 400_000), st.integers(400, 120_000), st.integers(400, 120_000), steps_)
@example(96_000 + 7_999, 96_000, 48_000, [1])
@example(96_000 + 8_000, 96_000, 48_000, [1])
@example(96_000, 96_000, 96_000, [96_000])
@example(95_999, 96_000, 96_000, [96_000])
def test_windows(total: int, one: int, other: int, steps: list[int]) -> None:
    length, hop = max(one, other), min(one, other)
    segmentation = parse_segmentation(f"window:{length * 625 / 10**7:.7f}/{hop * 625 / 10**7:.7f}")
    segments = follow(segmentation.segmenter([]), total, steps)
    assert [(segment.start, segment.end) for segment in segments] == windows(total, length, hop)
    covered = 0
    for segment in segments:
        assert segment.start <= covered  # nothing is left out
        covered = segment.end
    assert covered == total
    assert all(b.start - a.start == hop for a, b in pairwise(segments))


# --- given


def seconds_or_odd(low: float, high: float) -> st.SearchStrategy[float]:
    return (
        st.floats(low, high) | st.integers(0, 40).map(lambda n: n / 2) | st.sampled_from([0.5 / SECOND, 1.5 / SECOND])
    )


given_ = st.lists(
    st.builds(GivenSegment, seconds_or_odd(0, 25), st.none() | seconds_or_odd(0, 25), st.none()),
    min_size=1,
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(given_, st.integers(0, 20 * SECOND), steps_)
def test_given_segments_are_kept_clipped_or_named(given: list[GivenSegment], total: int, steps: list[int]) -> None:
    segmenter = parse_segmentation("given").segmenter(given)
    segments = follow(segmenter, total, steps)
    expected = {}
    for index, row in enumerate(given):
        start = round(row.start_s * 16_000.0)  # Python's round is half to even
        asked = total if row.end_s is None else round(row.end_s * 16_000.0)
        if start < asked and start < total:
            expected[index] = (start, min(asked, total))
    assert {segment.given: (segment.start, segment.end) for segment in segments} == expected
    assert len(segments) == len(expected)
    assert segmenter.outside == [index for index in range(len(given)) if index not in expected]


def test_given_nonsense_is_outside() -> None:
    rows = [
        (float("nan"), 1.0),
        (-1.0, 1.0),
        (1.0, float("nan")),
        (2.0, 1.0),
        (float("inf"), None),
        (1.0, 1.00001),
    ]
    segmenter = parse_segmentation("given").segmenter([GivenSegment(a, b, None) for a, b in rows])
    assert segmenter.finish(5 * SECOND, SILENT) == []
    assert segmenter.outside == [0, 1, 2, 3, 4, 5]


def test_given_without_an_end_reaches_the_end() -> None:
    segmenter = parse_segmentation("given").segmenter(
        [GivenSegment(1, float("inf"), None), GivenSegment(2, None, None)]
    )
    assert segmenter.finish(50_000, SILENT) == [
        Segment(16_000, 50_000, given=0),
        Segment(32_000, 50_000, given=1),
    ]


def test_a_recording_without_given_segments_is_one_segment() -> None:
    assert parse_segmentation("given").segmenter([]).finish(1234, SILENT) == [Segment(0, 1234)]


# --- vad


def merge(regions: list[dict[str, int]]) -> list[tuple[int, int]]:
    stretches: list[tuple[int, int]] = []
    for region in regions:
        if stretches and region["start"] - stretches[-1][1] <= 0.5 * SECOND:
            stretches[-1] = (stretches[-1][0], region["end"])
        else:
            stretches.append((region["start"], region["end"]))
    return stretches


def cut(stretch: tuple[int, int], speech: list[float]) -> list[tuple[int, int]]:
    start, end = stretch
    pieces = []
    while end - start > 11 * SECOND:
        candidates = [
            frame
            for frame in range(start // 512, end // 512 + 1)
            if start + 2.75 * SECOND <= frame * 512 <= start + 11 * SECOND and end - frame * 512 >= 2.75 * SECOND
        ]
        # Fractions: no order of summing can matter.
        frame = min(candidates, key=lambda f: (sum(map(Fraction, speech[f - 4 : f + 4])), -f))
        pieces.append((start, frame * 512))
        start = frame * 512
    return [*pieces, (start, end)]


def pieces_of(speech: NDArray[np.float32], total: int, regions: list[dict[str, int]] | None = None) -> list[Segment]:
    """The whole-array reference: Silero's own timestamps, merged, cut."""
    probabilities = speech.tolist()
    if regions is None:
        regions = get_speech_timestamps_from_probs(probabilities, audio_length_samples=total)
    pieces = [piece for stretch in merge(regions) for piece in cut(stretch, probabilities)]
    return [Segment(start, end, short=end - start < 2.75 * SECOND) for start, end in pieces]


def follow_speech(speech: NDArray[np.float32], total: int, steps: list[int]) -> list[Segment]:
    """Feeds the probabilities in the given steps of frames, and checks that nothing comes early or late."""
    segmenter = parse_segmentation("vad").segmenter([])
    segments: list[Segment] = []
    promises, due, frame, frontiers = [segmenter.keep_from], [0], 0, [0]
    for step in (steps[min(i, len(steps) - 1)] for i in count()):
        if (frame + step) * 512 > total:
            break
        fresh = segmenter.advance((frame + step) * 512, speech[frame : frame + step])
        frame += step
        assert all(segment.end + 30 * SECOND <= frame * 512 for segment in fresh)
        assert segmenter.keep_from <= frame * 512
        # What is held back is bounded: 30 s, a piece, and what it takes to know a piece.
        assert segmenter.keep_from > frame * 512 - 60 * SECOND
        segments += fresh
        promises.append(segmenter.keep_from)
        due.append(len(segments))
        frontiers.append(frame * 512)
    segments += segmenter.finish(total, speech[frame:])
    check_promises(segments, promises, due)
    for frontier, given_so_far in zip(frontiers, due, strict=True):
        assert all(segment.end + 30 * SECOND > frontier for segment in segments[given_so_far:])
    return segments


def levels(runs: list[tuple[float, int]], jitter: float, seed: int) -> NDArray[np.float32]:
    speech = np.concatenate([np.full(length, level) for level, length in runs])
    speech += jitter * np.random.default_rng(seed).uniform(-1, 1, len(speech))
    return np.clip(speech, 0, 1).astype(np.float32)


level_ = st.sampled_from([0.0, 0.1, 0.3, 0.35, 0.42, 0.5, 0.7, 1.0])
length_ = st.integers(1, 24) | st.integers(1, 400)
speech_ = st.builds(
    levels,
    st.lists(st.tuples(level_, length_), min_size=1, max_size=40),
    st.sampled_from([0.0, 0.0, 0.02, 0.2, 0.6]),
    st.integers(0, 1000),
)
frames_ = st.lists(st.integers(1, 40) | st.integers(1, 600), min_size=1, max_size=20)


@settings(max_examples=400, deadline=None)
@given(speech_, st.integers(0, 511), frames_)
def test_streamed_speech_segments_are_those_of_the_whole(
    speech: NDArray[np.float32], missing: int, steps: list[int]
) -> None:
    total = len(speech) * 512 - missing
    segments = follow_speech(speech, total, steps)
    assert segments == pieces_of(speech, total)
    for segment in segments:
        assert 0 <= segment.start < segment.end <= total
        assert segment.end - segment.start <= 11 * SECOND
    for before, after in pairwise(segments):
        assert after.start == before.end or after.start - before.end > 0.5 * SECOND


@pytest.mark.parametrize("end_s", [10.9, 11.1, 13.6, 13.74, 13.76, 13.9, 22.1, 24.6, 24.8, 60.0])
@pytest.mark.parametrize("pushed", [1, 7, 256, 10_000])
def test_ends_near_the_limits(end_s: float, pushed: int) -> None:
    rng = np.random.default_rng(round(end_s * 100))
    spoken = round(end_s * SECOND / 512)
    speech = np.concatenate([rng.uniform(0.4, 1, spoken), np.zeros(2000)]).astype(np.float32)
    total = len(speech) * 512
    expected = pieces_of(speech, total)
    assert len(expected) > (end_s > 11)
    assert follow_speech(speech, total, [pushed]) == expected
    # The same speech, ending with the recording.
    total = spoken * 512 - 100
    assert follow_speech(speech[:spoken], total, [pushed]) == pieces_of(speech[:spoken], total)


def test_cuts_fall_into_the_pause() -> None:
    speech = np.full(500, 0.9, np.float32)  # 16 s, with a pause too short to end a region
    speech[200:203] = 0.1
    (first, second) = follow_speech(speech, 500 * 512, [256])
    assert first.end == second.start
    assert 199 * 512 <= first.end <= 204 * 512
    assert [first.short, second.short] == [False, False]


def test_short_pieces_are_kept_and_flagged() -> None:
    speech = np.zeros(400, np.float32)
    speech[50:60] = 0.9
    speech[200:300] = 0.9
    assert follow_speech(speech, 400 * 512, [100]) == [
        Segment(50 * 512 - 480, 60 * 512 + 480, short=True),
        Segment(200 * 512 - 480, 300 * 512 + 480, short=False),
    ]


def test_probabilities_must_match_the_samples() -> None:
    segmenter = parse_segmentation("vad").segmenter([])
    with pytest.raises(ValueError, match="2 speech probabilities for 1500 samples"):
        segmenter.finish(1500, np.zeros(2, np.float32))


@pytest.mark.parametrize("kind", ["random", "speech without end", "silence", "sparse"])
def test_memory_does_not_grow_with_the_recording(kind: str) -> None:
    def group(n: int) -> NDArray[np.float32]:
        rng = np.random.default_rng(n)
        match kind:
            case "random":
                return rng.random(256, np.float32)
            case "speech without end":
                return rng.uniform(0.5, 1, 256).astype(np.float32)
            case "silence":
                return np.zeros(256, np.float32)
        return np.repeat(rng.random(8, np.float32) > 0.8, 32).astype(np.float32)

    def run(hours: float) -> tuple[int, int]:
        segmenter = parse_segmentation("vad").segmenter([])
        segments = 0
        groups = round(hours * 3600 * SECOND / 512 / 256)
        tracemalloc.start()
        for n in range(groups):
            segments += len(segmenter.advance((n + 1) * 256 * 512, group(n)))
        segments += len(segmenter.finish(groups * 256 * 512, SILENT))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak, segments

    run(0.1)  # what is loaded at first use is not the stream's
    short, few = run(0.1)
    long, many = run(10)
    assert long < short + 50_000
    assert (many > 50 * few > 0) != (kind == "silence")


# --- real speech


@pytest.fixture(scope="module")
def timeline() -> NDArray[np.float32]:
    path = DATA / "long" / "emodb_timeline_test.flac"
    if not path.exists():
        pytest.skip(f"real audio is not there: {path}; set SERPIPE_TEST_DATA")
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == SECOND
    return samples


@pytest.fixture(scope="module")
def streamed(timeline: NDArray[np.float32]) -> tuple[list[Segment], NDArray[np.float32]]:
    """The recording in blocks of odd sizes, through the detector into the segmenter."""
    rng = np.random.default_rng(0)
    detector, segmenter = SpeechDetector(), parse_segmentation("vad").segmenter([])
    segments, heard, frontier = [], [], 0
    while frontier < len(timeline):
        block = timeline[frontier : frontier + int(rng.integers(1, 60_000))]
        frontier += len(block)
        heard.append(detector.push(block))
        segments += segmenter.advance(frontier, heard[-1])
    heard.append(detector.finish())
    segments += segmenter.finish(len(timeline), heard[-1])
    return segments, np.concatenate(heard)


def test_real_speech_streamed_equals_silero_on_the_whole_file(
    timeline: NDArray[np.float32], streamed: tuple[list[Segment], NDArray[np.float32]]
) -> None:
    segments, speech = streamed
    model = silero_vad.load_silero_vad(onnx=True)
    regions = silero_vad.get_speech_timestamps(torch.from_numpy(timeline), model)
    assert len(regions) > len(segments) > 20
    assert segments == pieces_of(speech, len(timeline), regions)


def test_annotated_speech_lies_inside_segments(
    timeline: NDArray[np.float32], streamed: tuple[list[Segment], NDArray[np.float32]]
) -> None:
    """The annotation is whole clips, with the silence at their edges and the long pauses of sad speech.

    By Silero's thresholds 0.934 of that time is speech, and nearly all of its energy.
    """
    segments, _ = streamed
    covered = np.zeros(len(timeline), bool)
    for segment in segments:
        covered[segment.start : segment.end] = True
    with (DATA / "long" / "emodb_timeline_test.segments.csv").open() as file:
        spoken = [
            slice(round(float(row["start_s"]) * SECOND), round(float(row["end_s"]) * SECOND))
            for row in csv.DictReader(file)
        ]
    assert all(covered[clip].any() for clip in spoken)
    assert np.concatenate([covered[clip] for clip in spoken]).mean() > 0.92
    energy = np.concatenate([np.square(timeline[clip], dtype=np.float64) for clip in spoken])
    assert energy[np.concatenate([covered[clip] for clip in spoken])].sum() > 0.995 * energy.sum()
    assert max(segment.end - segment.start for segment in segments) <= 11 * SECOND
    assert any(segment.short for segment in segments)
