"""A whole manifest in one process: for programs, small archives and tests."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from serpipe.manifest.collapse import bad_rows_error, collapse, mark_duplicates
from serpipe.manifest.schemas import ROWS
from serpipe.manifest.source import Manifest, open_manifest
from serpipe.manifest.stat import Listings


def read_manifest(
    location: str,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    base: str | None = None,
) -> pa.Table:
    r"""Read a manifest into recordings; every row of it must be good.

    Args:
        location: a file, a folder, or a glob pattern, as a local path or any uri that fsspec opens.
        format: see `open_manifest`.
        columns: see `open_manifest`.
        base: see `open_manifest`.

    Returns:
        Table of schema `serpipe.manifest.schemas.RECORDINGS`, the same for the same manifest in any order or
        format.

    Raises:
        UsageError: naming the first five rows that cannot be used; and what `open_manifest` raises.
        SerpipeError: MANIFEST_OUT_OF_REACH.

    Examples:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "list.csv")
        ...     _ = path.write_text("path,start,end,etag\n1.mp3,2,3,9b2c\n1.mp3,0,1,9b2c\n")
        ...     recordings = read_manifest(str(path), base="s3://calls/may")
        >>> recordings["uri"].to_pylist(), [s["start_s"] for s in recordings["given"][0].as_py()]
        (['s3://calls/may/1.mp3'], [0.0, 2.0])
    """
    recordings, bad = read_manifest_with_errors(location, format=format, columns=columns, base=base)
    if bad.num_rows:
        raise bad_rows_error(bad)
    return recordings


def read_manifest_with_errors(
    location: str,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    base: str | None = None,
) -> tuple[pa.Table, pa.Table]:
    """Read a manifest into recordings, and set aside what cannot be used: `--skip-bad-rows`.

    Returns:
        Recordings as `read_manifest` gives them, and the bad rows, a table of schema `ROWS` in the manifest's
        order.

    Raises:
        UsageError: what concerns the whole manifest; see `open_manifest`.
        SerpipeError: MANIFEST_OUT_OF_REACH.
    """
    rows = mark_duplicates(read_rows(open_manifest(location, format=format, columns=columns, base=base)))
    bad = rows.filter(pc.is_valid(rows["error"]))
    return collapse(rows), bad


def read_rows(manifest: Manifest, *, recheck: bool = False) -> pa.Table:
    """Read every part of a manifest and look up what its rows do not say about their files.

    Args:
        manifest: what to read.
        recheck: look up also what they say.

    Returns:
        Table of schema `ROWS`, in the manifest's order.
    """
    listings = Listings(recheck=recheck)
    tables = [listings.stat(rows) for part in manifest.parts for rows in manifest.read(part)]
    return pa.concat_tables(tables) if tables else ROWS.empty_table()
