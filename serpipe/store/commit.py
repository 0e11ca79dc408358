"""A commit: the rows of a few packs, made durable so that nothing is ever half there.

Order is the guarantee. What describes the rows comes first; then each model's predictions file, which is that model's
commit and lists in its footer every unit it settles; then the ledger, which is only an index over those footers. A
commit that is carried out twice finds its predictions files and adopts them. Its second try may come to other rows, for
a recording may be out of reach meanwhile, or back: without predictions the first try's files are replaced or deleted,
with some of them what the first try described is what the other models may settle. Models may settle different units of
a commit: where one did and another could not, what describes the units of the other alone is taken out again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from serpipe.errors import StoreError
from serpipe.labels import MAPPING_VERSION
from serpipe.store import layout, parquet, schemas
from serpipe.store.look import look
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
    open_parts = [part for part in commit.models if part.model not in adopted]
    if adopted and open_parts:
        changed = _changed(storage, commit, adopted)
        open_parts = [_without(part, changed) for part in open_parts]
        only_settled(storage, name, audio, [*(part.settled for part in open_parts), *adopted.values()], guard=guard)
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


def _changed(storage: Storage, commit: Commit, adopted: dict[str, pa.Table]) -> pa.Table:
    """Units that ended otherwise when the commit was begun, or that its files describe otherwise; they are left.

    Args:
        storage: the store.
        commit: as it is carried out now.
        adopted: what each model that has committed settled then.
    """
    nothing = schemas.LEDGER.empty_table()
    then = pa.concat_tables([nothing, *adopted.values()])
    settled = pa.concat_tables([nothing, *(part.settled for part in commit.models)])
    now = pa.concat_tables([nothing, *(part.settled for part in commit.models if part.model in adopted)])
    segments = _differing(storage, layout.segments(commit.audio, commit.name), commit.segments, ["segment_id", *_UNIT])
    ended = _differing(storage, layout.recordings(commit.name), commit.recordings, ["recording_id"])
    # Of units that no model has settled only the files tell, and of failures not even they.
    untold = pa.concat_tables(
        [
            having(settled, segments, _UNIT),
            having(settled, ended, ["recording_id"]),
            settled.filter(pc.equal(settled["status"], "failed")),
        ]
    )
    return pa.concat_tables([lacking(now, then, [*_UNIT, "status", "segments"]), lacking(untold, then, _UNIT)])


def _differing(storage: Storage, file: str, rows: pa.Table, keys: list[str]) -> pa.Table:
    """Keys of rows that a file has and that are not among these, and of those of these that it has not."""
    now = rows.select(keys)
    then = parquet.read(storage, [file] if storage.exists(file) else [], now.schema)
    return pa.concat_tables([lacking(then, now, keys), lacking(now, then, keys)])


def _without(part: ModelRows, changed: pa.Table) -> ModelRows:
    """A part of a commit without some units."""
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


def only_settled(
    storage: Storage, name: str, audio: str, settled: Sequence[pa.Table], *, guard: Callable[[], object] = lambda: None
) -> None:
    """Take out of what describes a commit the rows of units that no model settles there; who settles them writes them.

    Safe to repeat and to interrupt, before the ledger knows the commit.

    Args:
        storage: the store.
        name: of the commit.
        audio: audio fingerprint.
        settled: what each of its models settles, rows of `schemas.LEDGER`.
        guard: called before a file is written; raises where none must be.
    """
    held = pa.concat_tables([schemas.LEDGER.empty_table(), *settled])
    held = held.filter(pc.not_equal(held["status"], "failed"))
    ended = held.filter(held["final"])
    for file, schema, units in (
        (layout.segments(audio, name), schemas.SEGMENTS, held.select(_UNIT)),
        (layout.recordings(name), schemas.RECORDINGS, ended.select(["recording_id"])),
    ):
        seen = look(storage, file)
        if seen is None or seen.code is not None or seen.content is None:
            # One that is damaged is for `verify` to judge.
            continue
        if lacking(seen.content, units, units.column_names).num_rows:
            rows = having(parquet.read(storage, [file], schema), units, units.column_names)
            guard()
            _describe(storage, file, rows, schema, {"audio": audio, "commit": name})


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
