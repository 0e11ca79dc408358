"""What to label: manifests of every convention, read as rows and folded into recordings.

`open_manifest` finds out what something is, `Manifest.read` streams the rows of one part, `Listings.stat`
learns sizes and etags, `mark_duplicates` and `collapse` fold rows into recordings, and `read_manifest` does
all of it in one process.
"""

from __future__ import annotations

from serpipe.manifest.claim import claim_seconds
from serpipe.manifest.collapse import bad_rows_error, collapse, mark_duplicates
from serpipe.manifest.columns import ROLES
from serpipe.manifest.read import read_manifest, read_manifest_with_errors, read_rows
from serpipe.manifest.schemas import GIVEN, META, RECORDINGS, ROWS
from serpipe.manifest.source import FORMATS, Manifest, Part, open_manifest
from serpipe.manifest.stat import Listings, stat

__all__ = [
    "FORMATS",
    "GIVEN",
    "META",
    "RECORDINGS",
    "ROLES",
    "ROWS",
    "Listings",
    "Manifest",
    "Part",
    "bad_rows_error",
    "claim_seconds",
    "collapse",
    "mark_duplicates",
    "open_manifest",
    "read_manifest",
    "read_manifest_with_errors",
    "read_rows",
    "stat",
]
