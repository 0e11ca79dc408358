"""Size, etag and time of change of recordings: from the manifest, or from one listing for each folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc

from serpipe.errors import SerpipeError
from serpipe.manifest import storage
from serpipe.manifest.schemas import ROWS

_AT_ONCE = 16
_FEW = 4
"""So few files of one folder are asked about one by one: a listing costs a request per thousand files."""

_KEPT = 1_000_000
_Names = dict[str, storage.Entry]


class Listings:
    """Listings of folders, kept from one batch of rows to the next.

    Bounded: beyond a million names, the oldest folders are forgotten.

    Args:
        recheck: ask also about files of which the manifest says enough, and take what is found where it differs.
    """

    def __init__(self, *, recheck: bool = False) -> None:
        self._recheck = recheck
        self._folders: dict[str, _Names | None] = {}

    def stat(self, rows: pa.Table) -> pa.Table:
        """Fill `size`, `etag` and `mtime_ns` where a row has neither an etag nor both of the others.

        Local files are asked one by one, web servers not at all, or, to recheck, about files with an etag or a size in
        the manifest that open without a signature. What does not exist stays empty: whoever decodes it will say so. A
        fact that is looked up replaces one that the manifest gives; to recheck, only where the two tell that the
        content has changed: an etag is compared with an etag alone.

        Args:
            rows: table of schema `ROWS`.

        Returns:
            The same rows, in their order.

        Raises:
            SerpipeError: MANIFEST_OUT_OF_REACH: a store that does not answer must not give its recordings new
            ids.

        Examples:
            >>> Listings().stat(ROWS.empty_table()).num_rows
            0
        """
        known = pc.or_(pc.is_valid(rows["etag"]), pc.and_(pc.is_valid(rows["size"]), pc.is_valid(rows["mtime_ns"])))
        usable = pc.and_(pc.is_valid(rows["uri"]), pc.is_null(rows["error"]))
        asked = pc.and_(usable, _may_be_asked(rows) if self._recheck else pc.invert(known))
        if not pc.any(asked).as_py():
            return rows
        wanted = pc.if_else(asked, rows["uri"], pa.scalar(None, pa.string()))
        coded = pa.concat_arrays(wanted.chunks).dictionary_encode()
        entries = self._entries(coded.dictionary.to_pylist())
        found = pa.array([entry is not None for entry in entries]).take(coded.indices)
        facts = {
            name: pa.array([getattr(entry, name, None) for entry in entries], kind).take(coded.indices)
            for name, kind in (("size", pa.int64()), ("etag", pa.string()), ("mtime_ns", pa.int64()))
        }
        taken = pc.and_(pc.fill_null(found, False), pc.or_(pc.invert(known), _changed(rows, facts)))
        for name, column in facts.items():
            column = pc.if_else(taken, column, rows[name])
            rows = rows.set_column(ROWS.get_field_index(name), ROWS.field(name), column)
        return rows

    def _entries(self, uris: list[str]) -> list[storage.Entry | None]:
        remote = [uri for uri in uris if not storage.is_local(uri) and (self._recheck or not storage.is_web(uri))]
        wanted = Counter(storage.parent(uri) for uri in remote if not storage.is_web(uri))
        folders = [f for f, count in wanted.items() if count > _FEW and f not in self._folders]
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            self._folders.update(zip(folders, threads.map(_list, folders), strict=True))
            single = [uri for uri in remote if self._folders.get(storage.parent(uri)) is None]
            asked = dict(zip(single, threads.map(_ask, single), strict=True))
        here = {uri: _ask(uri) for uri in uris if storage.is_local(uri)}
        for answers in (asked, here):
            refused = [answer for answer in answers.values() if isinstance(answer, SerpipeError)]
            # S3 refuses to say that a file is missing to those who may not list, and a folder may be somebody else's:
            # only where nothing at all is answered are the credentials, or the mount, to blame.
            if refused and not any(isinstance(answer, storage.Entry) for answer in answers.values()):
                raise refused[0]
        told = {uri: answer if isinstance(answer, storage.Entry) else None for uri, answer in (asked | here).items()}
        entries = [told[uri] if uri in told else self._look_up(uri) for uri in uris]
        while len(self._folders) > 1 and sum(len(names or ()) for names in self._folders.values()) > _KEPT:
            del self._folders[next(iter(self._folders))]
        return entries

    def _look_up(self, uri: str) -> storage.Entry | None:
        names = self._folders.get(storage.parent(uri))
        return names.get(uri) if names else None


def _may_be_asked(rows: pa.Table) -> pa.ChunkedArray:
    """Which files there is something to hold against what a store says of them, and a way to ask."""
    web = pc.match_substring_regex(rows["uri"], "^https?://")
    something = pc.or_(pc.is_valid(rows["etag"]), pc.is_valid(rows["size"]))
    return pc.or_(pc.invert(web), pc.and_(something, pc.is_null(rows["query"])))


def _changed(rows: pa.Table, facts: Mapping[str, pa.Array]) -> pa.ChunkedArray:
    """Which rows say something else of their file's content than a store does."""
    said = pc.replace_substring_regex(rows["etag"], '^(W/)?"?|"$', "")
    differ = {"etag": pc.not_equal(said, facts["etag"])}
    for name in ("size", "mtime_ns"):
        differ[name] = pc.not_equal(rows[name], facts[name])
    untagged = pc.and_(pc.is_null(said), pc.is_null(facts["etag"]))
    by_time = pc.and_(untagged, pc.fill_null(differ["mtime_ns"], False))
    return pc.or_(pc.or_(pc.fill_null(differ["etag"], False), pc.fill_null(differ["size"], False)), by_time)


def _list(folder: str) -> _Names | None:
    """List a folder; None where that is not allowed, nothing where it does not exist."""
    try:
        return {entry.uri: entry for entry in storage.list_folder(folder)[0]}
    except FileNotFoundError:
        return {}
    except PermissionError:
        return None


def _ask(uri: str) -> storage.Entry | SerpipeError | None:
    try:
        return storage.describe(uri)
    except SerpipeError as error:
        if error.transient:
            raise
        return error


def stat(rows: pa.Table) -> pa.Table:
    """Fill `size`, `etag` and `mtime_ns` of one batch of rows; see `Listings.stat`."""
    return Listings().stat(rows)
