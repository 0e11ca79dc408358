"""Stable names: what a recording and a segment are called, in every run, format and order.

Every id is BLAKE2b (RFC 7693) over length-prefixed fields, so no two lists of fields can run into one
another. Changing anything here renames all the work that was ever done; the tests pin golden values.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from urllib.parse import unquote

from serpipe.redact import strip_secrets

ID_BYTES = 16
"""Length of a binary id: 128 bits, so that 10^12 recordings collide with a probability below 10^-14."""

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.\-]+)://")
_CHAINED = re.compile(r"^[A-Za-z][A-Za-z0-9+.\-]+(://[^:]*)?::")
_FILE_URL = re.compile(r"^file:(//(localhost)?)?(?=/)", re.IGNORECASE)
_QUERY = re.compile(
    r"\?(versionId|generation|AWSAccessKeyId|GoogleAccessId|Signature|Expires|X-Amz-[\w-]+|X-Goog-[\w-]+"
    r"|s[vseptri]|sig|spr|srt|skoid|sktid)=",
    re.IGNORECASE,
)
"""What versions and signatures of S3, Google and Azure begin with; any other `?` belongs to a key."""

_SAME_STORE = {"s3a": "s3", "s3n": "s3", "gcs": "gs"}
_CONTAINER_BEFORE_AT = {"abfs", "abfss", "wasb", "wasbs"}
_WEB = {"http", "https"}


def canonical_uri(text: str, base: str = "") -> tuple[str, str | None]:
    """Write a uri the one way serpipe stores it, and set the part that must not be stored aside.

    A local file becomes an absolute POSIX path without a scheme; `file://` urls are percent-decoded to the
    same. Relative text is taken below `base`. `s3a` and `s3n` become `s3`, `gcs` becomes `gs`. User names and
    passwords are dropped. On the web everything from `?` or `#` on is query; in object stores, where both may
    stand in a key, only what versions and signatures begin with. Keys are otherwise left untouched: neither
    percent-encoding nor Unicode normalisation changes, because stores compare bytes.

    Args:
        text: a uri or path as somebody wrote it.
        base: folder, as a uri or path, that relative text starts from; empty means the working directory.

    Returns:
        The uri without credentials and query, and the query without its `?` (None if there is none).

    Raises:
        ValueError: `text` is empty or holds a NUL character.

    Examples:
        >>> canonical_uri("a b/../é.wav", "/data")
        ('/data/é.wav', None)
        >>> canonical_uri("file:///data/a%20b.wav")
        ('/data/a b.wav', None)
        >>> canonical_uri("clips/1.wav", "s3://bucket/lists")
        ('s3://bucket/lists/clips/1.wav', None)
        >>> canonical_uri("https://me:secret@Host/a.wav?X-Amz-Signature=00#t=1")
        ('https://host/a.wav', 'X-Amz-Signature=00')
        >>> canonical_uri("zip://a.wav::https://host/b.zip?sig=00")
        ('zip://a.wav::https://host/b.zip', 'sig=00')
    """
    if not text or "\0" in text:
        raise ValueError("a uri must hold at least one character and no NUL")
    if _CHAINED.match(text):
        # zip://inner.wav::https://…?signature: only what the last link names is remote and signed.
        before, _, last = text.rpartition("::")
        uri, query = _canonical_url(last) if _SCHEME.match(last) else (last, None)
        return f"{strip_secrets(before)}::{uri}", query
    file_url = _FILE_URL.match(text)
    if file_url:
        return _absolute(unquote(text[file_url.end() :], errors="surrogateescape")), None
    if _SCHEME.match(text):
        return _canonical_url(text)
    if text.startswith("/") or not base:
        return _absolute(text), None
    if _SCHEME.match(base) and not _FILE_URL.match(base):
        return _canonical_url(_below(_canonical_url(base)[0], text))
    return _absolute(posixpath.join(canonical_uri(base)[0], text)), None


def _absolute(path: str) -> str:
    absolute = posixpath.normpath(posixpath.join(os.getcwd(), path))
    # POSIX lets exactly two leading slashes mean something else; no system that Python runs on does.
    return absolute[1:] if absolute.startswith("//") else absolute


def _below(folder: str, relative: str) -> str:
    """Join without touching the folder's own text: `//` and `..` are legal inside a key given in full."""
    head = _SCHEME.match(folder)
    root = head.group(0) if head else ""
    steps = folder[len(root) :].rstrip("/").split("/")
    for step in relative.split("/"):
        if step == ".." and len(steps) > 1:
            steps.pop()
        elif step not in ("", ".", ".."):
            steps.append(step)
    return root + "/".join(steps)


def _canonical_url(text: str) -> tuple[str, str | None]:
    head = _SCHEME.match(text)
    assert head is not None
    scheme, rest = head.group(1).lower(), text[head.end() :]
    scheme = _SAME_STORE.get(scheme, scheme)
    query: str | None = None
    if scheme in _WEB:
        rest = rest.split("#", 1)[0]
        rest, _, query = rest.partition("?")
    else:
        found = _QUERY.search(rest)
        if found:
            rest, query = rest[: found.start()], rest[found.start() + 1 :]
    host, slash, path = rest.partition("/")
    user, at, place = host.rpartition("@")
    if at and (scheme not in _CONTAINER_BEFORE_AT or ":" in user):
        host = place
    if scheme in _WEB:
        host = host.lower()
    return f"{scheme}://{host}{slash}{path}", query or None


def content_version(etag: str | None, size: int | None, mtime_ns: int | None) -> str:
    """Say which content a uri held: the etag where the store gives one, else size and time of change.

    Args:
        etag: entity tag; its quotes and a leading `W/` do not count.
        size: bytes.
        mtime_ns: last change, in nanoseconds since 1970.

    Returns:
        A short text, empty when nothing is known.

    Examples:
        >>> content_version('"9b2c"', 100, 5)
        'etag=9b2c'
        >>> content_version(None, 100, 5)
        'size=100,mtime_ns=5'
        >>> content_version(None, None, None)
        ''
    """
    if etag:
        return f"etag={plain_etag(etag)}"
    known = (("size", size), ("mtime_ns", mtime_ns))
    return ",".join(f"{name}={value}" for name, value in known if value is not None)


def plain_etag(etag: str) -> str:
    """Take the quotes and the mark of a weak tag (RFC 9110, 8.8.3) from an etag.

    Examples:
        >>> plain_etag('W/"9b2c"')
        '9b2c'
    """
    return etag.removeprefix("W/").strip('"')


def recording_id(uri: str, version: str) -> bytes:
    """Name a recording: one file in one version of its content.

    Args:
        uri: as `canonical_uri` gives it; without query.
        version: as `content_version` gives it.

    Returns:
        16 bytes.

    Examples:
        >>> recording_id("s3://bucket/a.wav", "etag=9b2c").hex()
        '62c9f2091a8b732f49573e9ab9db07af'
    """
    return _digest(ID_BYTES, b"recording", uri.encode("utf-8", "surrogateescape"), version.encode())


def segment_id(
    recording: bytes, channel: int | None, start_sample: int, end_sample: int, audio_fingerprint: str
) -> bytes:
    """Name a segment of a recording.

    Args:
        recording: its `recording_id`, 16 bytes.
        channel: counted from 0; None for the mix of all channels.
        start_sample: first sample, at the rate the models hear (16 kHz).
        end_sample: the sample after the last.
        audio_fingerprint: of the decoder, the channels' treatment and the segmentation.

    Returns:
        16 bytes.

    Raises:
        ValueError: `recording` is not 16 bytes long.

    Examples:
        >>> segment_id(bytes(16), None, 0, 16000, "00ff00ff00ff00ff").hex()
        'e22dda3a0ce40176578fa8bfa6fcb71e'
    """
    if len(recording) != ID_BYTES:
        raise ValueError(f"a recording id has {ID_BYTES} bytes, this one {len(recording)}")
    where = ("mix" if channel is None else str(int(channel)), str(int(start_sample)), str(int(end_sample)))
    return _digest(ID_BYTES, b"segment", recording, *(w.encode() for w in where), audio_fingerprint.encode())


def fingerprint(*fields: str | int | None) -> str:
    """Fold facts into 16 hexadecimal characters: for audio, models and manifests.

    Examples:
        >>> fingerprint("silero", 5, None) == fingerprint("silero", 5, None)
        True
        >>> fingerprint("ab", "c") == fingerprint("a", "bc"), fingerprint("5") == fingerprint(5)
        (False, False)
    """
    return _digest(8, b"fingerprint", *(_tagged(field) for field in fields)).hex()


def _tagged(field: str | int | None) -> bytes:
    if field is None:
        return b"n"
    if isinstance(field, int):
        return b"i" + str(int(field)).encode()
    return b"s" + field.encode("utf-8", "surrogateescape")


def _digest(size: int, *fields: bytes) -> bytes:
    state = hashlib.blake2b(digest_size=size)
    for field in fields:
        state.update(len(field).to_bytes(8, "little"))
        state.update(field)
    return state.digest()
