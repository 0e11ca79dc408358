"""Which column means what, in every convention that people write manifests in."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from serpipe.errors import UsageError

SYNONYMS: dict[str, tuple[str, ...]] = {
    "uri": (
        "uri", "path", "audio", "audio_filepath", "wav", "url", "file", "filepath", "file_path", "filename",
        "file_name", "audio_path", "audio_file", "audio_uri", "audio_url", "wav_path", "location",
    ),
    "start": ("start", "offset", "start_s", "start_time", "start_sec", "start_seconds", "begin", "onset"),
    "end": ("end", "end_s", "end_time", "end_sec", "end_seconds", "stop"),
    "duration": ("duration", "duration_s", "duration_sec", "duration_seconds", "dur"),
    "channel": ("channel",),
    "size": ("size", "size_bytes", "file_size", "filesize"),
    "etag": ("etag", "e_tag"),
    "mtime_ns": ("mtime_ns",),
}  # fmt: skip
"""What a row may say to serpipe, and the names it is known by, the likeliest first.

Sources: audformat (`file`, `start`, `end`), NeMo (`audio_filepath`, `offset`, `duration`), Common Voice
(`path`), SpeechBrain (`wav`, `start`, `stop`), Hugging Face audio folders (`file_name`), serpipe's own tables
(`uri`, `start_s`).
"""

ROLES = tuple(SYNONYMS)
"""The keys of `SYNONYMS`."""


def find_columns(
    names: Sequence[str],
    named: Mapping[str, str] | None = None,
    *,
    unfit: Collection[str] = (),
) -> dict[str, str]:
    """Find the column that plays each role.

    Case and surrounding spaces do not count. Where two columns fit a role, the likelier name wins and the
    other one remains the owner's.

    Args:
        names: the columns of the manifest.
        named: role to column, by hand; an empty name means that no column plays the role.
        unfit: columns that cannot be the uri, because they hold no text.

    Returns:
        Role to column name as it is spelt in `names`; roles that nobody plays are absent, `uri` too.

    Raises:
        UsageError: MANIFEST_NO_SUCH_COLUMN, MANIFEST_NO_SUCH_ROLE or MANIFEST_SAME_COLUMN.

    Examples:
        >>> find_columns(["Path", " offset", "duration", "speaker"])
        {'uri': 'Path', 'start': ' offset', 'duration': 'duration'}
        >>> find_columns(["path", "channel"], {"channel": ""})
        {'uri': 'path'}
    """
    named = dict(named or {})
    check_roles(named)
    plain: dict[str, str] = {}
    for name in names:
        if name.strip() and plain.setdefault(name.strip(), name) != name:
            raise _same_column(name.strip())
    folded: dict[str, str] = {}
    for stripped, name in plain.items():
        folded.setdefault(stripped.casefold(), name)
    taken = {wanted.strip() for wanted in named.values()}
    found: dict[str, str] = {}
    for role, synonyms in SYNONYMS.items():
        if role in named:
            wanted = named[role].strip()
            if not wanted:
                continue
            if wanted not in plain and wanted.casefold() not in folded:
                raise UsageError(
                    "MANIFEST_NO_SUCH_COLUMN",
                    f"`--column {role}={wanted}`: the manifest has no such column; it has {listed(names)}",
                )
            found[role] = plain.get(wanted) or folded[wanted.casefold()]
            continue
        for synonym in synonyms:
            fits = plain.get(synonym) or folded.get(synonym)
            if fits is not None and fits.strip() not in taken and not (role == "uri" and fits in unfit):
                found[role] = fits
                break
    return found


def check_roles(named: Mapping[str, str]) -> None:
    """Refuse a role that does not exist.

    Raises:
        UsageError: MANIFEST_NO_SUCH_ROLE.
    """
    for role in named:
        if role not in SYNONYMS:
            raise UsageError(
                "MANIFEST_NO_SUCH_ROLE",
                f"`--column {role}=…` is not understood; a column can be named for {', '.join(ROLES)}",
            )


def refuse_twins(names: Sequence[str], source: str) -> None:
    """Refuse a header that holds one name twice: nobody can say which of the two was meant.

    Raises:
        UsageError: MANIFEST_SAME_COLUMN.
    """
    seen: set[str] = set()
    for name in (n.strip() for n in names):
        if name and name in seen:
            raise _same_column(name, source)
        seen.add(name)


def no_uri_column(names: Sequence[str], source: str) -> UsageError:
    """Say that nothing in the manifest says where the audio is, and how to name the column."""
    return UsageError(
        "MANIFEST_NO_URI_COLUMN",
        f"{source} has no column that says where the audio is; it has {listed(names)}; "
        "name the right one with `--column uri=NAME`",
    )


def listed(names: Sequence[str]) -> str:
    """Quote up to 20 names for a message.

    Examples:
        >>> listed(["id", "text"])
        "the columns 'id', 'text'"
    """
    if not names:
        return "no columns"
    shown = ", ".join(repr(name.strip()) for name in names[:20])
    return f"the columns {shown}" + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _same_column(name: str, source: str = "the manifest") -> UsageError:
    return UsageError("MANIFEST_SAME_COLUMN", f"{source} has two columns called {name!r}; rename or drop one of them")
