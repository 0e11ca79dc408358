"""Shards: many clips with their audio in one file, which is what object stores and data loaders like."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from serpipe.models.contract import SAMPLE_RATE

BYTES = 256 << 20
"""Audio of one shard; it is in memory while it is filled."""

_ROW_GROUP = 256


@dataclass(frozen=True, slots=True)
class Item:
    """A clip in a shard.

    Attributes:
        key: its segment id.
        beside: what stands beside the audio.
        audio: a FLAC file.
        samples: its length.
    """

    key: str
    beside: Mapping[str, Any]
    audio: bytes
    samples: int


Write = Callable[[str, int, Sequence[Item], Sequence[str]], dict[str, bytes]]
"""Makes the files of one shard, name to content, from split, number, clips and classes."""


def parquet(split: str, number: int, items: Sequence[Item], classes: Sequence[str]) -> dict[str, bytes]:
    """A Parquet file with the features that Hugging Face's `datasets` reads from its schema."""
    columns = {
        "key": (pa.string(), "string", [item.key for item in items]),
        "soft_label": (pa.list_(pa.float32()), None, _beside(items, "soft_label")),
        **{name: (pa.float32(), "float32", _beside(items, name)) for name in ("weight", "confidence")},
        **{name: (pa.float32(), "float32", _beside(items, name)) for name in ("arousal", "valence", "dominance")},
        **{name: (pa.string(), "string", _beside(items, name)) for name in ("speaker", "feed", "uri")},
        **{name: (pa.float64(), "float64", _beside(items, name)) for name in ("start_s", "end_s")},
    }
    features = {
        "audio": {"sampling_rate": SAMPLE_RATE, "_type": "Audio"},
        "label": {"names": list(classes), "_type": "ClassLabel"},
        **{name: {"dtype": kind, "_type": "Value"} for name, (_, kind, _) in columns.items() if kind},
        "soft_label": {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"},
    }
    audio = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    arrays = {
        "audio": pa.array([{"bytes": item.audio, "path": f"{item.key}.flac"} for item in items], audio),
        "label": pa.array([classes.index(name) for name in _beside(items, "label")], pa.int64()),
        **{name: pa.array(values, kind) for name, (kind, _, values) in columns.items()},
    }
    described = json.dumps({"info": {"features": {name: features[name] for name in arrays}}})
    file = io.BytesIO()
    table = pa.table(arrays).replace_schema_metadata({"huggingface": described})
    pq.write_table(table, file, row_group_size=_ROW_GROUP)
    return {f"data/{split}-{number:05d}.parquet": file.getvalue()}


def webdataset(split: str, number: int, items: Sequence[Item], _: Sequence[str]) -> dict[str, bytes]:
    """A tar of `KEY.flac` and `KEY.json`."""
    members = [
        member
        for item in items
        for member in ((f"{item.key}.flac", item.audio), (f"{item.key}.json", _json(item.beside)))
    ]
    return {f"{split}-{number:06d}.tar": _tar(members)}


def shar(split: str, number: int, items: Sequence[Item], _: Sequence[str]) -> dict[str, bytes]:
    """Shar, lhotse's own: cuts, and a tar of recordings in the same order, each followed by its manifest."""
    members = [
        member
        for item in items
        for member in ((f"{item.key}.flac", item.audio), (f"{item.key}.json", _json(_recording(item))))
    ]
    cuts = b"".join(_json(item.beside) for item in items)
    return {
        f"{split}/cuts.{number:06d}.jsonl.gz": gzip.compress(cuts, mtime=0),
        f"{split}/recording.{number:06d}.tar": _tar(members),
    }


def _recording(item: Item) -> dict[str, Any]:
    return {
        "id": item.key,
        "sources": [{"type": "shar", "channels": [0], "source": ""}],
        "sampling_rate": SAMPLE_RATE,
        "num_samples": item.samples,
        "duration": item.samples / SAMPLE_RATE,
        "channel_ids": [0],
    }


def _beside(items: Sequence[Item], name: str) -> list[Any]:
    return [item.beside[name] for item in items]


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode() + b"\n"


def _tar(members: Sequence[tuple[str, bytes]]) -> bytes:
    """A tar that says nothing of when and by whom it was made."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    return file.getvalue()
