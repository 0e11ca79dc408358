"""Reading tables beside programs that rewrite them: `retry`, `gc`, mending, and a run that closes another one.

They delete files, and put others under the name they had. Labels only ever leave that way, so whoever finds a file gone
reads without it. Rows of `segments` and `recordings` may also move from one file to another: of several files, read one
after the other, a row could then be missed or met twice, so they count only where none was touched meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

from serpipe.errors import StoreError
from serpipe.store import streaming
from serpipe.store.storage import Storage

MOVING = ("segments", "recordings")
"""Tables whose rows a rewrite may put into other files."""

SIGNS = ("size", "ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created", "modify")
"""What tells, by any path, that a file is another one under its old name; each kind of store knows some."""

_T = TypeVar("_T")

Stamps = Mapping[str, tuple[str, ...]]
"""Of files that are there, what tells that they are still the same."""


def stamps(storage: Storage, table: str) -> Stamps:
    """The files of a table; here their numbers count too, which another mount may give otherwise."""
    return {
        name: tuple(str(entry.get(sign)) for sign in (*SIGNS, "ino"))
        for name, entry in storage.listing(f"{table}/").items()
    }


def steadily(storage: Storage, names: Sequence[str], read: Callable[[Collection[str]], _T]) -> _T:
    """Read files of one table, again from the start where some of them were replaced or taken away meanwhile.

    Args:
        storage: the store.
        names: the files wanted, of which some may not be there.
        read: reads those it is given.

    Raises:
        StoreError: `STORE_CHANGING`, transient: so it was each of several times.
    """
    if not names:
        return read(())
    table = names[0].split("/", 1)[0]

    def once() -> _T:
        before = stamps(storage, table)
        try:
            rows = read([name for name in names if name in before])
        except Exception as error:
            # What was read half from the old file and half from the new one looks like damage.
            if isinstance(error, FileNotFoundError) or changed(storage, table, names, before):
                raise FileNotFoundError(table) from error
            raise
        if table in MOVING and changed(storage, table, names, before):
            raise FileNotFoundError(table)
        return rows

    try:
        return streaming.afresh(once)
    except FileNotFoundError as error:
        raise changing(storage, table) from error


def changed(storage: Storage, table: str, names: Sequence[str], before: Stamps) -> bool:
    """Whether files have come, gone or been replaced since then."""
    after = stamps(storage, table)
    return any(before.get(name) != after.get(name) for name in names)


def changing(storage: Storage, table: str) -> StoreError:
    """What to say where no quiet moment was found."""
    return StoreError(
        "STORE_CHANGING",
        f"{table} of {storage.shown} were rewritten while they were read, again and again; wait for the `retry`, `gc` "
        "or mending that is under way, then read them again",
        transient=True,
    )
