"""Where recordings may lie: a manifest is written by others, and what it names is opened with the operator's rights."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from urllib.parse import unquote

from serpipe.errors import UsageError
from serpipe.ids import canonical_uri
from serpipe.manifest import storage

_LINKED = re.compile(r"::")

_OBJECT_STORES = ("s3://", "gs://")
"""In their keys `..` is a name like any other. Elsewhere it may be the folder above, with Azure too, whose client has
its urls made plain on the way."""


class Roots:
    """The folders, buckets and prefixes that a manifest may name files in.

    Links are followed first, so that none leads out. A chained url (`zip://…::…`) lies in no root.

    Args:
        roots: local paths or urls; none allows everything.

    Raises:
        UsageError: `ROOT_INVALID`.

    Examples:
        >>> roots = Roots(["/data", "s3://calls/may"])
        >>> [roots.hold(uri) for uri in ("/data/a.wav", "/database/a.wav", "s3://calls/may/a.wav", "s3://calls/june.wav")]
        [True, False, True, False]
    """

    def __init__(self, roots: Sequence[str]) -> None:
        self._any = not roots
        self._local: list[str] = []
        self._remote: list[str] = []
        for root in roots:
            try:
                uri, query = canonical_uri(root)
            except ValueError as error:
                raise UsageError("ROOT_INVALID", f"--allow-root {root!r} is no place: {error}") from None
            if query or _LINKED.search(uri):
                raise UsageError("ROOT_INVALID", f"--allow-root {uri} must be a folder, a bucket or a prefix of one")
            if storage.is_local(uri):
                self._local.append(_folder(os.path.realpath(uri)))
            else:
                self._remote.append(_folder(uri))

    def hold(self, uri: str) -> bool:
        """Whether a canonical uri lies in one of the roots."""
        if self._any:
            return True
        if storage.is_local(uri):
            return os.path.realpath(uri).startswith(tuple(self._local))
        if _LINKED.search(uri) or (not uri.startswith(_OBJECT_STORES) and _climbs(uri)):
            return False
        return uri.startswith(tuple(self._remote))


def _folder(uri: str) -> str:
    return uri.rstrip("/") + "/"


def _climbs(uri: str) -> bool:
    """Whether whoever opens a uri may be led to the folder above, by `..` in any spelling."""
    path = uri
    while (plain := unquote(path)) != path:
        path = plain
    return ".." in path.replace("\\", "/").split("/")
