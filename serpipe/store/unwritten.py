"""A store to plan against: read as it is, and never written."""

from __future__ import annotations

from serpipe.store.storage import Storage


class Unwritten(Storage):
    """A store whose writes go to a folder of their own, where its reads find them.

    Args:
        root: the store; none need be there.
        scratch: a local folder.

    Examples:
        >>> import os, tempfile
        >>> root, scratch = tempfile.mkdtemp(), tempfile.mkdtemp()
        >>> storage = Unwritten(root, scratch)
        >>> storage.put("runs/a/run.json", b"{}")
        >>> storage.get("runs/a/run.json"), storage.list("runs/"), os.listdir(root)
        (b'{}', ['runs/a/run.json'], [])
    """

    def __init__(self, root: str, scratch: str) -> None:
        super().__init__(root)
        self.scratch = Storage(scratch)

    def put(self, name: str, data: bytes) -> None:
        """Write an object beside the store."""
        self.scratch.put(name, data)

    def get(self, name: str) -> bytes:
        """Read an object, what was written beside the store first."""
        try:
            return self.scratch.get(name)
        except FileNotFoundError:
            return super().get(name)

    def list(self, prefix: str) -> list[str]:
        """Names in the store and beside it, sorted."""
        return sorted({*super().list(prefix), *self.scratch.list(prefix)})
