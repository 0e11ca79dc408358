"""Manifests of lhotse: recordings, and cuts of them, one JSON object a line."""

from __future__ import annotations

from typing import Any

from serpipe.manifest.formats import BadRowError, Described
from serpipe.manifest.text import render


def describe(row: dict[str, Any]) -> Described:
    """Say what a line of `recordings.jsonl` or `cuts.jsonl` means.

    A cut is a given segment of its recording. What is said about exactly one supervision comes along: text,
    speaker, language, gender and the simple values of `custom`. A channel is named only where the recording
    has several. See lhotse's `Recording`, `MonoCut` and `SupervisionSegment`,
    https://lhotse.readthedocs.io/en/latest/api.html.

    Raises:
        BadRowError: `MANIFEST_UNSUPPORTED`, the line is something that has no one file behind it, or a command.

    Examples:
        >>> source = {"type": "file", "channels": [0], "source": "/a.wav"}
        >>> recording = {"id": "a", "sources": [source], "duration": 9.5, "channel_ids": [0]}
        >>> describe(recording)
        ({'uri': '/a.wav', 'duration': '9.5'}, {'id': 'a'})
        >>> cut = {"id": "a-1", "type": "MonoCut", "start": 2.0, "duration": 1.0, "recording": recording}
        >>> describe(cut)[0]
        {'uri': '/a.wav', 'start': '2.0', 'duration': '1.0', 'channel': None, 'claim': '9.5'}
    """
    if "sources" in row:
        return _recording(row)
    kind = row.get("type", "MonoCut")
    recording = row.get("recording")
    if kind != "MonoCut":
        raise BadRowError("MANIFEST_UNSUPPORTED", f"the cut is a {kind}; only cuts of one channel of one file are read")
    if not isinstance(recording, dict) or not isinstance(recording.get("sources"), list):
        raise BadRowError("MANIFEST_UNSUPPORTED", "the cut has no recording, so there is no audio behind it")
    fields = {
        "uri": _source(recording),
        "start": render(row.get("start")) or "0",
        "duration": render(row.get("duration")),
        "channel": render(_channel(row.get("channel"), recording)),
        "claim": render(recording.get("duration")),
    }
    said = {"id": row.get("id"), "recording": recording.get("id"), **_simple(row.get("custom"))}
    supervisions = row.get("supervisions")
    if isinstance(supervisions, list) and len(supervisions) == 1 and isinstance(supervisions[0], dict):
        one = supervisions[0]
        said |= {name: one.get(name) for name in ("text", "speaker", "language", "gender")}
        said |= _simple(one.get("custom"))
    return fields, _rendered(said)


def _recording(row: dict[str, Any]) -> Described:
    said = {"id": row.get("id"), **_simple(row.get("custom"))}
    return {"uri": _source(row), "duration": render(row.get("duration"))}, _rendered(said)


def _source(recording: dict[str, Any]) -> str | None:
    sources = recording["sources"]
    if not isinstance(sources, list) or len(sources) != 1 or not isinstance(sources[0], dict):
        raise BadRowError("MANIFEST_UNSUPPORTED", "the recording is spread over several files, or has none")
    if recording.get("transforms"):
        raise BadRowError(
            "MANIFEST_UNSUPPORTED", "the recording is transformed on loading; save it as it is heard first"
        )
    kind, source = sources[0].get("type"), sources[0].get("source")
    if kind == "command":
        raise BadRowError(
            "MANIFEST_PIPED_COMMAND", f"the source is a command ({str(source)[:80]!r}), which is never run"
        )
    if kind not in ("file", "url") or not isinstance(source, str):
        raise BadRowError("MANIFEST_UNSUPPORTED", f"the source is of type {kind!r}; only `file` and `url` are read")
    return source


def _channel(channel: object, recording: dict[str, Any]) -> object:
    if isinstance(channel, list):
        if len(channel) != 1:
            raise BadRowError("MANIFEST_UNSUPPORTED", f"the cut has the channels {channel}; only one can be read")
        channel = channel[0]
    channels = recording.get("channel_ids") or recording["sources"][0].get("channels")
    # The only channel of a mono file is its mix: two names for it would be two ids for each segment.
    return None if channels in (None, [0]) and channel == 0 else channel


def _simple(custom: object) -> dict[str, object]:
    if not isinstance(custom, dict):
        return {}
    return {str(name): value for name, value in custom.items() if isinstance(value, (str, int, float))}


def _rendered(said: dict[str, object]) -> dict[str, str]:
    return {name: text for name, value in said.items() if (text := render(value))}
