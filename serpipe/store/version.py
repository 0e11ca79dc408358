"""Which serpipe wrote a store: refused before anything is read that it would misread."""

from __future__ import annotations

import json

from serpipe.errors import StoreError
from serpipe.store.schemas import SCHEMA_VERSION
from serpipe.store.storage import Storage

NAME = "store.json"


def check(storage: Storage) -> None:
    """Make a new store, or make sure that an existing one has this version's tables.

    Raises:
        StoreError: `STORE_OTHER_VERSION`, `STORE_DAMAGED`.
    """
    try:
        said = storage.get(NAME)
    except FileNotFoundError:
        storage.put(NAME, json.dumps({"schema": SCHEMA_VERSION}).encode())
        return
    try:
        found = json.loads(said)["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            "STORE_DAMAGED",
            f"{storage.path(NAME)} is not as serpipe writes it; where {storage.shown} is another program's, name "
            f"another store, else put {json.dumps({'schema': SCHEMA_VERSION})} there again",
        ) from error
    if found != SCHEMA_VERSION:
        raise StoreError(
            "STORE_OTHER_VERSION",
            f"{storage.root} has tables of version {found}, this serpipe writes version {SCHEMA_VERSION}; "
            "use the serpipe that made it, or a new store",
        )
