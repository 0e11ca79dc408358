"""A commit: the rows of a few packs, made durable so that nothing is ever half there.

Order is the guarantee. What describes the rows comes first; then each model's predictions file, which is that model's
commit and lists in its footer every unit it settles; then the ledger, which is only an index over those footers. A
commit that is carried out twice finds its predictions files and adopts them. Its second try may come to other rows, for
a recording may be out of reach meanwhile, or back: without predictions the first try's files are replaced or deleted,
with some of them what the first try described is what the other models may settle.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from serpipe.errors import StoreError
from serpipe.labels import MAPPING_VERSION
from serpipe.store import layout, parquet, schemas
from serpipe.store.rowsets import having, lacking
from serpipe.store.storage import Storage

_UNIT = ["recording_id", "unit"]


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
        guard: called before the first file, before each that counts and before the ledger; raises where they must not
            be written.

    Returns:
        The ledger rows that now hold, its own or those of the same commit carried out before.
    """
    name, audio = commit.name, commit.audio
    common = {"audio": audio, "commit": name}
    files = {part.model: layout.predictions(part.model, part.fp, name) for part in commit.models}
    begun = {model: adoptable(storage, file) for model, file in files.items() if storage.exists(file)}
    adopted = {model: settled for model, settled in begun.items() if settled is not None}
    guard()
    if not adopted:
        for file, table, schema in (
            (layout.recordings(name), commit.recordings, schemas.RECORDINGS),
            (layout.segments(audio, name), commit.segments, schemas.SEGMENTS),
            (layout.quarantine(name), commit.quarantine, schemas.QUARANTINE),
        ):
            _describe(storage, file, table, schema, common)
    open_parts = [_agreeing(part, commit, adopted) for part in commit.models if part.model not in adopted]
    for part in open_parts:
        facts = common | _facts(part)
        for file, table, schema in (
            (layout.embeddings(part.model, part.fp, name), part.embeddings, schemas.embeddings(part.width)),
            (layout.frames(part.model, part.fp, name), part.frames, schemas.frames(part.width)),
            (layout.quarantine(name, part.model), part.quarantine, schemas.QUARANTINE),
        ):
            _describe(storage, file, table, schema, facts)
    for part in open_parts:
        facts = common | _facts(part) | {"settled": parquet.pack_table(part.settled)}
        guard()
        parquet.write(storage, files[part.model], part.predictions, schemas.PREDICTIONS, facts)
    # A writer that was away while a file went out does not vouch for it: its units may be somebody else's by now.
    guard()
    return index(storage, name, [*(part.settled for part in open_parts), *adopted.values()])


def _agreeing(part: ModelRows, commit: Commit, adopted: dict[str, pa.Table]) -> ModelRows:
    """A model's part without units that ended otherwise when the commit was begun, and are described so; they are left.

    Args:
        part: of a model that has not committed.
        commit: as it is carried out now.
        adopted: what each model that has committed settled then.
    """
    then = pa.concat_tables([schemas.LEDGER.empty_table(), *adopted.values()])
    now = [other.settled for other in commit.models if other.model in adopted]
    changed = lacking(pa.concat_tables([schemas.LEDGER.empty_table(), *now]), then, [*_UNIT, "status", "segments"])
    if not changed.num_rows:
        return part
    predictions = lacking(part.predictions, changed, _UNIT)
    return replace(
        part,
        predictions=predictions,
        embeddings=None if part.embeddings is None else having(part.embeddings, predictions, ["segment_id"]),
        frames=None if part.frames is None else having(part.frames, predictions, ["segment_id"]),
        quarantine=lacking(part.quarantine, changed, _UNIT),
        settled=lacking(part.settled, changed, _UNIT),
    )


def _describe(storage: Storage, file: str, table: pa.Table | None, schema: pa.Schema, facts: dict[str, str]) -> None:
    """Write what describes a commit's rows, or make sure that nothing does."""
    if table is not None and table.num_rows:
        parquet.write(storage, file, table, schema, facts)
    else:
        # The same commit may have been begun before, when a recording could be read that now cannot, or could not.
        storage.delete(file)


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
        StoreError: `STORE_DAMAGED`, the file is not whole, or is no commit of serpipe's.
    """
    said = parquet.facts(storage, file)
    with parquet.damage_told(storage, file):
        try:
            return parquet.unpack_table(said["settled"]).cast(schemas.LEDGER)
        except (KeyError, ValueError) as error:
            raise pa.ArrowInvalid(f"its footer does not say what it settles: {error!r}") from error


def adoptable(storage: Storage, file: str) -> pa.Table | None:
    """The same; None for a file that was damaged before it was adopted, and so is no commit."""
    try:
        return settled_by(storage, file)
    except StoreError as error:
        if error.code != "STORE_DAMAGED":
            raise
        return None


def index(storage: Storage, name: str, settled: Sequence[pa.Table]) -> pa.Table:
    """Write a commit's ledger entries."""
    rows = pa.concat_tables([schemas.LEDGER.empty_table(), *settled])
    if rows.num_rows:
        parquet.write(storage, layout.ledger(name), rows, schemas.LEDGER, {"commit": name})
    return rows
