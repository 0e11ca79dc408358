"""The ledger: which unit is settled for which model fingerprint, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from serpipe.store import parquet, schemas
from serpipe.store.storage import Storage


def load(storage: Storage, *, columns: Sequence[str] | None = None, run: str | None = None) -> pa.Table:
    """Ledger entries.

    Args:
        storage: the store.
        columns: the columns wanted; all by default.
        run: only what this run settled.

    Returns:
        Rows of `schemas.LEDGER`.
    """
    names = storage.list(f"ledger/{run}-" if run else "ledger/")
    return parquet.read(storage, names, schemas.LEDGER, columns)
