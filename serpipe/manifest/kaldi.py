"""Kaldi data folders: `wav.scp`, and `segments` and `utt2spk` beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice

from serpipe.manifest import storage
from serpipe.manifest.formats import BATCH_ROWS, BadRowError, Described, described_batch, open_text
from serpipe.manifest.rows import Batch, Faults

COMPANIONS = ("segments", "utt2spk")
"""Files that belong to a `wav.scp` in the same folder."""

_OFFSET = re.compile(r":\d+(\[.*\])?$")
_ALL_OF_IT = -1.0
_BLANKS = " \t\r\n"
_GAP = re.compile(r"[ \t]+")


def read_kaldi(
    uri: str, query: str | None, companions: dict[str, str], batch_rows: int = BATCH_ROWS
) -> Iterator[Batch]:
    """Read a `wav.scp`; where there are `segments`, they are the rows, and it only says where they lie.

    Relative paths start from the manifest's folder, where Kaldi's recipes start from their own: give `base`.
    See https://kaldi-asr.org/doc/data_prep.html. Commands (`sph2pipe … |`) are never run: such rows are
    faults.

    Args:
        uri: the `wav.scp`.
        query: what must be added to open it.
        companions: those of `COMPANIONS` that exist, name to uri.
        batch_rows: rows that travel together.
    """
    speakers = _pairs(companions["utt2spk"])[0] if "utt2spk" in companions else {}
    if "segments" not in companions:
        seen: dict[str, int] = {}

        def recording(number: int, line: str) -> Described:
            key, _, target = line.partition(" ")
            if key in seen:
                raise BadRowError("MANIFEST_DUPLICATE_KEY", f"the key {key!r} stands in line {seen[key]} already")
            seen[key] = number
            return {"uri": _target(target)}, _meta(key, None, speakers.get(key))

        yield from _batches(uri, query, recording, batch_rows)
        return
    where, twice = _pairs(uri, query)

    def segment(_: int, line: str) -> Described:
        steps = line.split()
        if len(steps) not in (4, 5):
            raise BadRowError("MANIFEST_BAD_ROW", "the line is not `utterance recording start end`")
        utterance, key, start, end = steps[:4]
        if key not in where:
            raise BadRowError("MANIFEST_MISSING_URI", f"the recording {key!r} is not in {uri}")
        if key in twice:
            raise BadRowError("MANIFEST_DUPLICATE_KEY", f"the key {key!r} stands in {uri} twice, with other files")
        try:
            whole = float(end) == _ALL_OF_IT
        except ValueError:
            whole = False
        fields = {"uri": _target(where[key]), "start": start, "end": None if whole else end}
        if len(steps) == 5:
            fields["channel"] = steps[4]
        return fields, _meta(utterance, key, speakers.get(utterance))

    yield from _batches(companions["segments"], None, segment, batch_rows)


def find_companions(uri: str) -> dict[str, str]:
    """Look for the files that belong to a `wav.scp`."""
    folder = storage.parent(uri)
    candidates = {name: f"{folder.rstrip('/')}/{name}" for name in COMPANIONS}
    return {name: place for name, place in candidates.items() if storage.describe(place) is not None}


def _batches(
    uri: str, query: str | None, describe: Callable[[int, str], Described], batch_rows: int
) -> Iterator[Batch]:
    with open_text(uri, query) as stream:
        lines = ((number, " ".join(_key_and_rest(line))) for number, line in enumerate(stream, 1))
        lines = ((number, line) for number, line in lines if line.strip())
        while chunk := list(islice(lines, batch_rows)):
            found: list[Described] = []
            faults: Faults = {}
            for i, (number, line) in enumerate(chunk):
                try:
                    found.append(describe(number, line))
                except BadRowError as bad:
                    faults[i] = (bad.args[0], bad.args[1])
                    found.append(({}, {}))
            yield described_batch(uri, [n for n, _ in chunk], found, faults)


def _pairs(uri: str, query: str | None = None) -> tuple[dict[str, str], set[str]]:
    """What a file says of each key, and the keys of which it says several things."""
    said: dict[str, str] = {}
    twice: set[str] = set()
    with open_text(uri, query) as stream:
        for line in stream:
            key, rest = _key_and_rest(line)
            if key and said.setdefault(key, rest) != rest:
                twice.add(key)
    return said, twice


def _key_and_rest(line: str) -> tuple[str, str]:
    # Only these count as blanks: `str.split` would also cut at a no-break space within a file's name.
    steps = _GAP.split(line.strip(_BLANKS), maxsplit=1)
    return steps[0], steps[1] if len(steps) > 1 else ""


def _target(text: str) -> str:
    if text.endswith("|") or text.startswith("|"):
        raise BadRowError(
            "MANIFEST_PIPED_COMMAND", f"{text[:80]!r} is a command, which is never run; list the file itself"
        )
    if text == "-":
        raise BadRowError("MANIFEST_UNSUPPORTED", "`-` stands for standard input, which is no file")
    if _OFFSET.search(text):
        raise BadRowError("MANIFEST_UNSUPPORTED", f"{text[-80:]!r} is a place inside an archive; list audio files")
    return text


def _meta(utterance: str, recording: str | None, speaker: str | None) -> dict[str, str]:
    said = {"utterance": utterance, "recording": recording, "speaker": speaker}
    return {name: value for name, value in said.items() if value}
