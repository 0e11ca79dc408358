"""Objects under one root, local or remote: whole puts, listings, deletes. Every byte of a store passes through here.

What passes by itself is tried again for about a minute (`serpipe.remote`); what is left is one sentence.
"""

from __future__ import annotations

import os
import posixpath
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import Any, TypeVar

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs as pa_fs

from serpipe.errors import SerpipeError, StoreError, UsageError
from serpipe.redact import redact, strip_secrets
from serpipe.remote import (
    SET_CREDENTIALS,
    Trouble,
    connect,
    files_below,
    patiently,
    refused_condition,
    trouble,
    without_credentials,
)

_T = TypeVar("_T")

_EXCLUSIVE = {"file", "local", "memory", "gs", "gcs", "abfs", "abfss", "az"}
"""Protocols whose fsspec filesystem creates by a condition that the store itself checks."""


class _Handler(pa_fs.FSSpecHandler):  # type: ignore[misc]
    """Asks no `isfile` before it opens, for which fsspec takes every refusal and every broken connection as a no."""

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(self.fs.open(path, "rb"), mode="r")

    open_input_stream = open_input_file


class Storage:
    """A root directory or bucket prefix.

    Args:
        root: a local path or any fsspec URL that can be written.

    Attributes:
        root: as given, without a trailing slash; a local path is absolute.
        shown: the root without credentials, for people and records.
        fs: the fsspec filesystem beneath, for readers.

    Raises:
        UsageError: `STORE_UNSUPPORTED`, the kind of URL is not known here; `STORE_CREDENTIALS`.

    Examples:
        >>> import tempfile
        >>> storage = Storage(tempfile.mkdtemp())
        >>> storage.put("runs/a/run.json", b"{}")
        >>> storage.list("runs/"), storage.get("runs/a/run.json")
        (['runs/a/run.json'], b'{}')
    """

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/") or root
        self.shown = strip_secrets(self.root)
        if self.shown != self.root and self.root.startswith("s3"):
            raise UsageError(
                "STORE_CREDENTIALS",
                f"the URL of {self.shown} holds credentials, which S3 clients do not read there; set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile",
            )
        try:
            # A cached listing would hide what another process wrote a moment ago.
            self.fs, path = connect(self.root, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise UsageError(
                "STORE_UNSUPPORTED", f"{self.shown} is no path or URL serpipe can write ({error})"
            ) from None
        self._path = path.rstrip("/")
        self.local = isinstance(self.fs, LocalFileSystem)
        if self.local:
            # Workers open the same store from other working directories.
            self.root = self.shown = self._path

    @cached_property
    def exclusive(self) -> bool:
        """Whether of several racing creates of one name exactly one wins.

        S3 is a protocol of many servers, so it is asked: one that carries out conditions on puts answers a put with
        a wrong `If-Match` by a refusal (AWS, MinIO). OpenStack Swift says that it has no such thing; it does look
        whether an object is there, and lets several racers win.
        """
        protocols = {self.fs.protocol} if isinstance(self.fs.protocol, str) else set(self.fs.protocol)
        if "s3" not in protocols:
            return bool(protocols & _EXCLUSIVE)
        name = f".conditions-{uuid.uuid4().hex}"

        def ask() -> bool:
            try:
                self.fs.pipe_file(self.path(name), b"", IfMatch='"0"')
            except Exception as error:
                if refused_condition(error) or isinstance(error, FileNotFoundError):
                    return True
                if "NotImplemented" in str(error.__cause__):
                    return False
                raise
            return False

        self.put(name, b"")
        try:
            return self.carefully(name, ask)
        finally:
            self.delete(name)

    @cached_property
    def arrow(self) -> pa_fs.PyFileSystem:
        """The filesystem beneath, for Arrow's readers."""
        return pa_fs.PyFileSystem(_Handler(self.fs))

    def path(self, name: str = "") -> str:
        """Where an object lies, as the filesystem beneath names it."""
        return posixpath.join(self._path, name) if name else self._path

    def carefully(self, name: str, operation: Callable[[], _T]) -> _T:
        """Carry out an operation that may be repeated, for readers that use `fs` too; say in one sentence why it fails.

        Raises:
            FileNotFoundError: there is no such object.
            StoreError: `STORE_FORBIDDEN`, `STORE_FULL`; transient: `STORE_UNREACHABLE`.
        """
        try:
            return operation() if self.local else patiently()(operation)
        except (
            SerpipeError,
            FileNotFoundError,
            NotADirectoryError,
            AssertionError,
            AttributeError,
            LookupError,
            TypeError,
        ):
            raise
        except Exception as error:
            if trouble(error) is Trouble.UNSUPPORTED:
                # Of what was read, not of reading it: a file that is no Parquet.
                raise
            raise self._sentence(name, error) from error

    def put(self, name: str, data: bytes) -> None:
        """Write an object whole: a reader sees the old bytes or the new ones, never a part."""
        path = self.path(name)
        if self.local:
            self.carefully(name, lambda: os.replace(self._beside(path, data), path))
        else:
            self._write(name, lambda: self.fs.pipe_file(path, data))

    def create(self, name: str, data: bytes) -> bool:
        """Write an object only where none is; tells whether it did.

        Args:
            name: the object's name.
            data: no other writer's, so that an object is known again when the store's answer was lost on the way.

        Raises:
            StoreError: `STORE_NO_EXCLUSIVE_CREATE`, this kind of store cannot promise it.
        """
        path = self.path(name)
        if self.local:
            return self.carefully(name, lambda: self._link(path, data))

        def create() -> bool:
            try:
                self.fs.pipe_file(path, data, mode="create")
            except TypeError:
                raise StoreError(
                    "STORE_NO_EXCLUSIVE_CREATE", f"{self.shown}: this kind of store cannot create exclusively"
                ) from None
            except Exception as error:
                if refused_condition(error):
                    return False
                raise
            return True

        return self._write(name, create) or self._holds(name, data)

    def get(self, name: str) -> bytes:
        """Read an object whole.

        Raises:
            FileNotFoundError: there is none.
        """
        try:
            data: bytes = self.carefully(name, lambda: self.fs.cat_file(self.path(name)))
        except NotADirectoryError as error:
            raise FileNotFoundError(error.errno, error.strerror, error.filename) from error
        return data

    def exists(self, name: str) -> bool:
        """Whether an object is there."""
        # Not fsspec's `exists`, for which on a disk every error is a no.
        try:
            self.carefully(name, lambda: self.fs.info(self.path(name)))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def modified(self, name: str) -> float:
        """When an object was last written, in seconds by the clock of the store itself.

        Raises:
            FileNotFoundError: there is none.
        """
        return float(self.carefully(name, lambda: self.fs.modified(self.path(name))).timestamp())

    def list(self, prefix: str) -> list[str]:
        """Names of the objects that begin with a prefix, sorted; the part after the last slash may be partial."""
        return sorted(self.listing(prefix))

    def listing(self, prefix: str, *, hidden: bool = False) -> dict[str, dict[str, Any]]:
        """What a listing says of each object that begins with a prefix: its size, and more by the kind of store.

        Args:
            prefix: as for `list`.
            hidden: whether files that a local writer has not finished come too.
        """
        folder, _, start = prefix.rpartition("/")
        base = self.path(folder)
        # Remote listings take the whole prefix, so that a run's files are found without listing the table.
        options = {"prefix": start} if start else {}
        try:
            found = self.carefully(prefix, lambda: files_below(self.fs, base, **options))
        except FileNotFoundError:
            return {}
        entries = ((path[len(self._path) + 1 :], info) for path, info in found.items())
        return {
            name: info
            for name, info in entries
            if name.startswith(prefix) and (hidden or not posixpath.basename(name).startswith("."))
        }

    def delete(self, name: str) -> None:
        """Remove an object; one that is gone already is fine."""
        try:
            self.carefully(name, lambda: self.fs.rm_file(self.path(name)))
        except FileNotFoundError:
            pass

    def _write(self, name: str, operation: Callable[[], _T]) -> _T:
        try:
            return self.carefully(name, operation)
        except FileNotFoundError as error:
            raise UsageError(
                "STORE_NO_BUCKET", f"{self.shown} cannot be written: there is no such bucket; make it first"
            ) from error

    def _sentence(self, name: str, error: Exception) -> Exception:
        where = f"{self.shown}/{name}"
        match trouble(error):
            case Trouble.ABSENT if not self.local:
                return FileNotFoundError(where)
            case Trouble.FORBIDDEN:
                what = "is not allowed; check the credentials and their rights to list, read, write and delete"
                if without_credentials(error):
                    what = f"needs credentials, and {SET_CREDENTIALS}"
                return StoreError("STORE_FORBIDDEN", f"{where}: what was asked for {what}")
            case Trouble.FULL:
                return StoreError("STORE_FULL", f"{where}: the disk is full; make room, then run again", transient=True)
            case _:
                said = redact(str(error).strip()) or type(error).__name__
                return StoreError("STORE_UNREACHABLE", f"{where} cannot be reached ({said}); try again", transient=True)

    def _holds(self, name: str, data: bytes) -> bool:
        try:
            return self.get(name) == data
        except FileNotFoundError:
            return False

    def _link(self, path: str, data: bytes) -> bool:
        beside = self._beside(path, data)
        try:
            os.link(beside, path)
        except FileExistsError:
            return False
        finally:
            os.unlink(beside)
        return True

    def _beside(self, path: str, data: bytes) -> str:
        folder, name = os.path.split(path)
        try:
            os.makedirs(folder, exist_ok=True)
        except (NotADirectoryError, FileExistsError, FileNotFoundError) as error:
            raise UsageError(
                "STORE_NO_FOLDER", f"no folder can be made at {folder} ({error.strerror}); name one that is no file"
            ) from error
        beside = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.part")
        try:
            with open(beside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            # Half a file would keep a full disk full; there is none where it could not be begun.
            with suppress(FileNotFoundError):
                os.unlink(beside)
            raise
        return beside
