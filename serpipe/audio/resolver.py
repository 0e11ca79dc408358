"""Opening again what a store only names: its uris hold neither credentials nor signatures."""

from __future__ import annotations

from contextlib import AbstractContextManager

import pyarrow as pa

from serpipe.audio.source import local_copy


class Resolver:
    """Reopens the recordings behind a store's rows.

    Args:
        recordings: of `serpipe.read_manifest`, with signatures that are fresh; None where uris open by themselves.

    Examples:
        >>> import serpipe
        >>> from serpipe.testing import write_speech
        >>> row = serpipe.read_manifest(write_speech(seconds=1.0)).to_pylist()[0]
        >>> with Resolver().local_copy(row["uri"]) as path:
        ...     path == row["uri"]
        True
    """

    def __init__(self, recordings: pa.Table | None = None) -> None:
        rows = [] if recordings is None else recordings.select(["uri", "query"]).to_pylist()
        self._queries = {row["uri"]: row["query"] for row in rows}

    def local_copy(self, uri: str) -> AbstractContextManager[str]:
        """A path at which a recording can be read while the context lasts.

        Args:
            uri: as in the store's `recordings` and `quarantine`.

        Raises:
            AudioError: as `serpipe.audio.source.local_copy` has it.
        """
        return local_copy(uri, query=self._queries.get(uri))
