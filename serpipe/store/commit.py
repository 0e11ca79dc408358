"""A commit: the rows of a few packs, made durable so that nothing is ever half there.

Order is the guarantee. What describes the rows comes first; then each model's predictions file, which is that model's
commit and lists in its footer every unit it settles; then the ledger, which is only an index over those footers. A
commit that is carried out twice finds its predictions files and adopts them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from serpipe.labels import MAPPING_VERSION
from serpipe.store import layout, parquet, schemas
from serpipe.store.storage import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRows:
    """One model's part of a commit.

    Attributes:
        model: name.
        fp: model fingerprint.
        predictions: rows of `schemas.PREDICTIONS`.
        embeddings: rows of `schemas.embeddings`; None where none were asked for.
        frames: rows of `schemas.frames`; None where none were asked for.
        width: values per embedding.
        passport: hash of the model's passport.
        quarantine: what failed in this model.
        settled: rows of `schemas.LEDGER`, the units this commit settles.
    """

    model: str
    fp: str
    predictions: pa.Table
    embeddings: pa.Table | None
    frames: pa.Table | None
    width: int
    passport: str
    quarantine: pa.Table
    settled: pa.Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """The rows of one commit.

    Attributes:
        name: stem of its files, from `layout.commit_name`.
        audio: audio fingerprint.
        recordings: recordings that are complete with this commit.
        segments: segments that no earlier commit holds.
        quarantine: what failed before any model.
        models: each model's part.
    """

    name: str
    audio: str
    recordings: pa.Table
    segments: pa.Table
    quarantine: pa.Table
    models: Sequence[ModelRows]


def write(storage: Storage, commit: Commit, *, guard: Callable[[], object] = lambda: None) -> pa.Table:
    """Make a commit durable.

    Args:
        storage: the store.
        commit: the rows.
        guard: called before the first file and before each that counts; raises where they must not be written.

    Returns:
        The ledger rows that now hold, its own or those of the same commit carried out before.
    """
    name, audio = commit.name, commit.audio
    common = {"audio": audio, "commit": name}
    files = {part.model: layout.predictions(part.model, part.fp, name) for part in commit.models}
    done = {model for model, file in files.items() if storage.exists(file)}
    guard()
    if not done:
        for file, table, schema in (
            (layout.recordings(name), commit.recordings, schemas.RECORDINGS),
            (layout.segments(audio, name), commit.segments, schemas.SEGMENTS),
            (layout.quarantine(name), commit.quarantine, schemas.QUARANTINE),
        ):
            if table.num_rows:
                parquet.write(storage, file, table, schema, common)
    open_parts = [part for part in commit.models if part.model not in done]
    for part in open_parts:
        facts = common | _facts(part)
        for file, table, schema in (
            (layout.embeddings(part.model, part.fp, name), part.embeddings, schemas.embeddings(part.width)),
            (layout.frames(part.model, part.fp, name), part.frames, schemas.frames(part.width)),
            (layout.quarantine(name, part.model), part.quarantine, schemas.QUARANTINE),
        ):
            if table is not None and table.num_rows:
                parquet.write(storage, file, table, schema, facts)
    for part in open_parts:
        facts = common | _facts(part) | {"settled": parquet.pack_table(part.settled)}
        guard()
        parquet.write(storage, files[part.model], part.predictions, schemas.PREDICTIONS, facts)
    settled = [part.settled for part in open_parts] + [settled_by(storage, files[model]) for model in sorted(done)]
    return index(storage, name, settled)


def _facts(part: ModelRows) -> dict[str, str]:
    beside = {"embeddings": part.embeddings, "frames": part.frames}
    counts = {kind: 0 if table is None else table.num_rows for kind, table in beside.items()}
    return {
        "model": part.model,
        "fp": part.fp,
        "passport": part.passport,
        "mapping": MAPPING_VERSION,
        "beside": json.dumps(counts),
    }


def settled_by(storage: Storage, file: str) -> pa.Table:
    """The units a predictions file settles, from its footer.

    Raises:
        pyarrow.ArrowInvalid: the file is not whole.
        KeyError: the file is not a commit of serpipe's.
    """
    return parquet.unpack_table(parquet.facts(storage, file)["settled"]).cast(schemas.LEDGER)


def index(storage: Storage, name: str, settled: Sequence[pa.Table]) -> pa.Table:
    """Write a commit's ledger entries."""
    rows = pa.concat_tables([schemas.LEDGER.empty_table(), *settled])
    if rows.num_rows:
        parquet.write(storage, layout.ledger(name), rows, schemas.LEDGER, {"commit": name})
    return rows
