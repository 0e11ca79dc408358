"""Objects under one root, local or remote: whole puts, listings, deletes. Every byte of a store passes through here."""

from __future__ import annotations

import os
import posixpath
import uuid

import fsspec
from fsspec.implementations.local import LocalFileSystem

from serpipe.errors import StoreError, UsageError


class Storage:
    """A root directory or bucket prefix.

    Args:
        root: a local path or any fsspec URL that can be written.

    Attributes:
        root: as given, without a trailing slash; a local path is absolute.
        fs: the fsspec filesystem beneath, for readers.

    Raises:
        UsageError: `STORE_UNSUPPORTED`, the kind of URL is not known here.

    Examples:
        >>> import tempfile
        >>> storage = Storage(tempfile.mkdtemp())
        >>> storage.put("runs/a/run.json", b"{}")
        >>> storage.list("runs/"), storage.get("runs/a/run.json")
        (['runs/a/run.json'], b'{}')
    """

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/") or root
        try:
            # A cached listing would hide what another process wrote a moment ago.
            self.fs, path = fsspec.core.url_to_fs(self.root, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise UsageError(
                "STORE_UNSUPPORTED", f"{self.root} is no path or URL serpipe can write ({error})"
            ) from None
        self._path = path.rstrip("/")
        self.local = isinstance(self.fs, LocalFileSystem)
        if self.local:
            # Workers open the same store from other working directories.
            self.root = self._path

    def path(self, name: str = "") -> str:
        """Where an object lies, as the filesystem beneath names it."""
        return posixpath.join(self._path, name) if name else self._path

    def put(self, name: str, data: bytes) -> None:
        """Write an object whole: a reader sees the old bytes or the new ones, never a part."""
        path = self.path(name)
        if self.local:
            os.replace(self._beside(path, data), path)
        else:
            self.fs.pipe_file(path, data)

    def create(self, name: str, data: bytes) -> bool:
        """Write an object only where none is; tells whether it did.

        Raises:
            StoreError: `STORE_NO_EXCLUSIVE_CREATE`, this kind of store cannot promise it.
        """
        path = self.path(name)
        if self.local:
            beside = self._beside(path, data)
            try:
                os.link(beside, path)
            except FileExistsError:
                return False
            finally:
                os.unlink(beside)
            return True
        try:
            self.fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except TypeError:
            raise StoreError(
                "STORE_NO_EXCLUSIVE_CREATE", f"{self.root}: this kind of store cannot create exclusively"
            ) from None
        return True

    def get(self, name: str) -> bytes:
        """Read an object whole.

        Raises:
            FileNotFoundError: there is none.
        """
        data: bytes = self.fs.cat_file(self.path(name))
        return data

    def exists(self, name: str) -> bool:
        """Whether an object is there."""
        return bool(self.fs.exists(self.path(name)))

    def list(self, prefix: str) -> list[str]:
        """Names of the objects that begin with a prefix, sorted; the part after the last slash may be partial."""
        folder, _, start = prefix.rpartition("/")
        base = self.path(folder)
        try:
            # Remote listings take the whole prefix, so that a run's files are found without listing the table.
            kwargs = {} if self.local or not start else {"prefix": start}
            found = self.fs.find(base, **kwargs)
        except FileNotFoundError:
            return []
        names = (name[len(self._path) + 1 :] for name in found)
        return sorted(
            name for name in names if name.startswith(prefix) and not posixpath.basename(name).startswith(".")
        )

    def delete(self, name: str) -> None:
        """Remove an object; one that is gone already is fine."""
        try:
            self.fs.rm_file(self.path(name))
        except FileNotFoundError:
            pass

    def _beside(self, path: str, data: bytes) -> str:
        folder, name = os.path.split(path)
        os.makedirs(folder, exist_ok=True)
        beside = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.part")
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return beside
