"""What is wrong in a store, and the marks that tell the next run to mend it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from serpipe.errors import StoreError
from serpipe.store import parquet, schemas, steady
from serpipe.store.storage import Storage

MARKS = "damage/marks.json"
"""One object: who finds it, finds all that was found."""

UNITS = pa.schema([schemas.LEDGER.field(name) for name in ("recording_id", "unit", "model", "fp", "audio")])

Remedy = Literal["again", "orphan", "index", "record", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        code: stable.
        file: the object it is about; empty where rows of several are.
        message: what is wrong with it.
        remedy: `again`, the units are labelled again, and the file, where it is damaged, goes; `orphan`, the file
            goes; `index`, the ledger is mended from the tables; `record`, a run's record is made anew; `none`, a
            person must look.
        units: of `UNITS`.
        drop: whether the file goes with the units.
    """

    code: str
    file: str
    message: str
    remedy: Remedy
    units: pa.Table = field(default_factory=UNITS.empty_table)
    drop: bool = False

    def __str__(self) -> str:
        """One line for people."""
        units = f"; {self.units.num_rows:,} units" if self.units.num_rows else ""
        return f"{self.code} {self.file or '-'}: {self.message}{units}"


def twice(entries: pa.Table) -> Finding | None:
    """Units that several commits settle, where there are any.

    Args:
        entries: of the ledger, with the columns of `UNITS` and `commit`.
    """
    counts = entries.group_by(UNITS.names).aggregate([("commit", "count")])
    units = counts.filter(pc.greater(counts["commit_count"], 1)).select(UNITS.names).cast(UNITS)
    if not units.num_rows:
        return None
    return Finding(
        code="ROWS_TWICE",
        file="",
        message="units are labelled in two commits each, so their segments are there twice; all are labelled again",
        remedy="again",
        units=units,
    )


@dataclass(frozen=True, slots=True)
class Mark:
    """A finding as it waits to be mended.

    Attributes:
        finding: what is wrong.
        stamp: of the file when it was looked at; one that has changed since is not what was found.
    """

    finding: Finding
    stamp: str | None


def mark(storage: Storage, findings: list[Finding]) -> None:
    """Replace the marks of a store. Those that went before come back, if they still hold, with their findings."""
    texts = [
        {
            "code": found.code,
            "file": found.file,
            "message": found.message,
            "remedy": found.remedy,
            "units": parquet.pack_table(found.units),
            "drop": found.drop,
            "stamp": stamp(storage, found.file) if found.file else None,
        }
        for found in findings
        if found.remedy != "none"
    ]
    if texts:
        storage.put(MARKS, json.dumps(texts).encode())
    else:
        unmark(storage)


def marks(storage: Storage) -> list[Mark]:
    """What waits to be mended.

    Raises:
        StoreError: `STORE_DAMAGED`, that cannot be read.
    """
    if not storage.exists(MARKS):
        return []
    try:
        return [
            Mark(Finding(**text, units=parquet.unpack_table(units).cast(UNITS)), found_at)
            for text in json.loads(storage.get(MARKS))
            for units, found_at in [(text.pop("units"), text.pop("stamp"))]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            "STORE_DAMAGED",
            f"{storage.path(MARKS)}, which says what is to be mended, cannot be read; `serpipe verify {storage.shown}` "
            "writes it anew",
        ) from error


def unmark(storage: Storage) -> None:
    """Take the marks away: everything is mended, or nothing was found."""
    storage.delete(MARKS)


def stamp(storage: Storage, name: str) -> str | None:
    """Changes whenever an object is written, and not with the path that leads to it; None where there is none."""
    try:
        info = storage.carefully(name, lambda: storage.fs.info(storage.path(name)))
    except FileNotFoundError:
        return None
    return " ".join(str(info.get(sign)) for sign in steady.SIGNS)
