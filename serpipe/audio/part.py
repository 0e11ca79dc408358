"""What the given segments of a long remote recording need, and nothing else of it.

Only where samples lie at places that a header tells, in a WAV of plain PCM, can a part be read without all before it.
Its stand-in decodes as the whole file does: silence where nothing was read, and the wanted samples bit by bit.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor

from serpipe.audio.ranges import HEAD_BYTES, NoRangesError, Remote, Span, write_parts
from serpipe.audio.riff import chunks

LEAST_BYTES = 8 << 20
"""Of an object that is read in part: a shorter one comes as fast whole."""

MOST_SHARE = 0.5
"""Of an object that may be wanted; beyond, one request for all of it is better than many."""

NEAR_BYTES = 1 << 20
"""Between two parts that come in one request: about what passes while a store begins to answer."""

MARGIN_S = 2.0
"""Seconds read on either side of a segment: what the resampler's blocks reach over, so that they hold the same."""

_PCM, _EXTENSIBLE = 1, 0xFFFE


@dataclass(slots=True)
class Part:
    """What is wanted of a recording.

    Attributes:
        segments: start and end in seconds; an end of None is the recording's.
        alone: whether this was all that was read, known once it was fetched.
    """

    segments: Sequence[tuple[float, float | None]]
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the samples of a WAV lie.

    Attributes:
        start: offset of the first.
        end: offset behind the last, as the header claims.
        rate: Hz.
        frame: bytes that all channels' samples of one moment take.
    """

    start: int
    end: int
    rate: int
    frame: int


def fetch_part(remote: Remote, path: str, part: Part) -> bool:
    """Read what is wanted of an object into a stand-in.

    Args:
        remote: the object.
        path: of the stand-in.
        part: what is wanted; what came of it is noted there.

    Returns:
        False where the whole object has to be read: it is short, no WAV of plain PCM, or most of it is wanted.
    """
    part.alone = False
    if remote.size is not None and remote.size < LEAST_BYTES:
        return False
    try:
        head = remote.read(Span(0, HEAD_BYTES))
        layout = layout_of(head)
        if layout is None or remote.size is None or remote.size < LEAST_BYTES:
            return False
        spans = spans_of(part.segments, layout, remote.size)
        if sum(span.end - span.start for span in spans) > MOST_SHARE * remote.size:
            return False
        with open(path, "wb") as file:
            file.write(head)
        write_parts(remote, spans, path)
    except NoRangesError:
        return False
    part.alone = True
    return True


def layout_of(head: bytes) -> Layout | None:
    """Where the samples of a WAV of plain PCM lie; None of any other file.

    Args:
        head: its first bytes.
    """
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    facts = None
    for kind, body, length in chunks(lambda count, at: head[at : at + count]):
        if kind == b"fmt " and 16 <= length <= len(head) - body:
            form, _, rate, _, frame, _ = struct.unpack_from("<HHIIHH", head, body)
            if form == _EXTENSIBLE and length >= 26:
                (form,) = struct.unpack_from("<H", head, body + 24)
            if form != _PCM or not rate or not frame:
                return None
            facts = rate, frame
        if kind == b"data":
            # A writer that was not ended left 0 there, and codecs read such a file to its end.
            return None if facts is None or not length else Layout(body, body + length, *facts)
    return None


def spans_of(segments: Iterable[tuple[float, float | None]], layout: Layout, size: int) -> list[Span]:
    """What segments need of a file of so many bytes, in order, what is near joined; and what follows its samples.

    Examples:
        >>> spans_of([(100.0, 110.0), (3.0, 4.0)], Layout(44, 32_000_044, 16_000, 2), 32_000_044)
        [Span(start=32044, end=192044), Span(start=3136044, end=3584044)]
    """
    wanted = [Span(min(layout.end, size), size)] if size - layout.end < NEAR_BYTES else []
    for start_s, end_s in segments:
        first = layout.start + max(floor((start_s - MARGIN_S) * layout.rate), 0) * layout.frame
        last = layout.end if end_s is None else layout.start + ceil((end_s + MARGIN_S) * layout.rate) * layout.frame
        wanted.append(Span(first, min(last, layout.end, size)))
    joined: list[Span] = []
    for span in sorted(span for span in wanted if span.start < span.end):
        if joined and span.start - joined[-1].end < NEAR_BYTES:
            joined[-1] = Span(joined[-1].start, max(joined[-1].end, span.end))
        else:
            joined.append(span)
    return joined
