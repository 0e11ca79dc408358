"""Reaching what lies elsewhere: one way to connect, one patience, one judgement of what went wrong.

The client libraries try again what they know to be passing: botocore a request, s3fs a request and the rest of a body.
Around them stands one patience for every kind of file system. Together they bear with a store that refuses everything
for about a minute.
"""

from __future__ import annotations

import errno
import os
import re
from enum import Enum
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.spec import AbstractFileSystem
from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_random_exponential

from serpipe.errors import SerpipeError

ATTEMPTS = 4
"""Tries of one request, or of one recording, around those of the client library."""

PATIENCE_S = 60.0
"""Seconds after which no further try begins: a server that does not answer at all takes long to fail."""

LONGEST_WAIT_S = 10.0

SET_CREDENTIALS = (
    "no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for another store "
    "than AWS also AWS_ENDPOINT_URL"
)
"""What to do where a client has nothing to ask with."""

_CREDENTIALS = re.compile(r"Credential|Token(Retrieval|Load)|SSOToken|AuthToken|RefreshError|ClientAuthentication")
"""Names of what clients raise that have nothing to ask with, or cannot renew it."""

_REFUSED_CREDENTIALS = {
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidToken",
    "RequestExpired",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
"""What S3 says of a request whatever it asks for: the key, the token or the clock is wrong."""

SILENCE_S = 300.0
"""Seconds that a web server may be silent, before it answers and within an answer."""

_FAILED = range(400, 600)
"""What HTTP answers where it did not do what it was asked for."""

_WEB = re.compile(r"^https?://", re.IGNORECASE)
_S3 = re.compile(r"^s3[an]?://", re.IGNORECASE)
_S3_RETRIES = {"mode": "standard", "total_max_attempts": 2}
"""Of botocore. Its default of five, five times over by s3fs, would hold a request for minutes."""


class Trouble(Enum):
    """What an error of a file system means for the work behind it."""

    ABSENT = "absent"
    FORBIDDEN = "forbidden"
    UNSUPPORTED = "unsupported"
    FULL = "full"
    PASSING = "passing"


def connect(url: str, **options: Any) -> tuple[Any, str]:
    """Give the fsspec file system of a url, and the path by which that file system knows it.

    `AWS_MAX_ATTEMPTS` and `AWS_RETRY_MODE` count where they are set. On the web a download may take as long as it likes
    while something comes; its client's own limit is five minutes for all of it.

    Raises:
        ImportError: what opens such urls is not installed.
        ValueError: nothing is known that opens them.
    """
    if _S3.match(url) and not {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & os.environ.keys():
        options["config_kwargs"] = {"retries": _S3_RETRIES}
    if _WEB.match(url):
        from aiohttp import ClientTimeout

        options["client_kwargs"] = {"timeout": ClientTimeout(total=None, sock_connect=SILENCE_S, sock_read=SILENCE_S)}
    fs, path = fsspec.core.url_to_fs(url, **options)
    return fs, path


def files_below(files: AbstractFileSystem, folder: str, **options: Any) -> dict[str, dict[str, Any]]:
    """Every file below a folder, with what its listing says of it; none where there is no such folder.

    fsspec's own walk, which local and network disks, SFTP and SMB have, leaves a folder out that cannot be listed, and
    whoever asked takes what lies there for absent.

    Args:
        files: a file system.
        folder: path in it.
        options: of its `find`, where it has one of its own.

    Raises:
        OSError: whatever the file system raises.

    Examples:
        >>> from serpipe.testing import write_speech
        >>> path = write_speech(seconds=1.0)
        >>> [info["size"] for info in files_below(*connect(os.path.dirname(path))).values()]
        [32044]
    """
    if isinstance(files, AsyncFileSystem) or type(files).find is not AbstractFileSystem.find:
        own: dict[str, dict[str, Any]] = files.find(folder, detail=True, **options)
        return own
    found: dict[str, dict[str, Any]] = {}
    folders = [folder]
    while folders:
        listed = folders.pop()
        try:
            inside = files.ls(listed, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            continue  # It is gone, or has become a file, since it was listed.
        for info in inside:
            if info["type"] != "directory":
                found[info["name"]] = info
            elif info["name"].rstrip("/") != listed.rstrip("/"):
                folders.append(info["name"])
    return found


def patiently() -> Retrying:
    """Tries for a request, or a whole download: what may pass is tried again, what will not is raised at once."""
    return Retrying(
        stop=stop_after_attempt(ATTEMPTS) | stop_after_delay(PATIENCE_S),
        wait=wait_random_exponential(multiplier=0.2, max=LONGEST_WAIT_S),
        retry=retry_if_exception(_may_pass),
        reraise=True,
    )


def trouble(error: Exception) -> Trouble:
    """Judge an error of a file system.

    Examples:
        >>> trouble(FileNotFoundError()), trouble(TimeoutError())
        (<Trouble.ABSENT: 'absent'>, <Trouble.PASSING: 'passing'>)
    """
    status = _status(error)
    if status in (404, 410):
        return Trouble.ABSENT
    refused = status in (401, 403) or isinstance(error, PermissionError) or _refused_by_google(error)
    if refused or without_credentials(error):
        return Trouble.FORBIDDEN
    if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)) and status is None:
        # fsspec calls every failure on the web a missing file; what is behind it tells.
        behind = error.__cause__
        known = isinstance(behind, OSError) and not isinstance(behind, FileNotFoundError)
        return trouble(behind) if known and isinstance(behind, Exception) else Trouble.ABSENT
    if isinstance(error, OSError) and error.errno in (errno.EROFS,):
        return Trouble.FORBIDDEN
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Trouble.FULL
    if isinstance(error, (ImportError, ValueError)):
        return Trouble.UNSUPPORTED
    return Trouble.PASSING


def without_credentials(error: Exception) -> bool:
    """Whether a client found no credentials to ask with."""
    return "redentials" in type(error).__name__


def bad_credentials(error: Exception) -> str | None:
    """What is wrong with the credentials themselves, in one word; None where something else is.

    Such an error says nothing of what was asked for: the same request succeeds once a machine has its role, a new token
    or the right time.

    Examples:
        >>> from botocore.exceptions import NoCredentialsError
        >>> bad_credentials(NoCredentialsError()), bad_credentials(PermissionError())
        ('NoCredentialsError', None)
    """
    found: BaseException | None = error
    while found is not None:
        if _CREDENTIALS.search(type(found).__name__):
            return type(found).__name__
        if (code := _code(found)) in _REFUSED_CREDENTIALS:
            return code
        if not hasattr(found, "status") and _store_status(found) == 401:
            # A web server says so of a page, a store of whoever asks.
            return "401"
        found = found.__cause__
    return None


def without_a_reason(error: Exception) -> bool:
    """Whether S3 refused a question that it answers without a body, and so without saying why."""
    return _status(error) in (400, 403) and (_code(error.__cause__ or error) or "400") in ("400", "403")


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, SerpipeError):
        return error.transient
    return isinstance(error, Exception) and trouble(error) is Trouble.PASSING


def refused_condition(error: Exception) -> bool:
    """Whether an object was not written because one is there already, or another writer was at it."""
    return isinstance(error, FileExistsError) or _code(error.__cause__) in ("PreconditionFailed", "412")


def _code(error: BaseException | None) -> str | None:
    """The word by which S3 says why it refused."""
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return None if code is None else str(code)


def _status(error: Exception) -> int | None:
    """The HTTP status behind an error."""
    found: BaseException | None = error
    while found is not None:
        status = getattr(found, "status", None)
        if isinstance(status, int):
            return status
        response = getattr(found, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if isinstance(status, int):
                return status
        if (status := _store_status(found)) is not None:
            return status
        found = found.__cause__
    return None


def _store_status(error: BaseException) -> int | None:
    """The HTTP status as Azure's client names it, and Google's, whose name for it others have for words."""
    for name in ("status_code", "code"):
        status = getattr(error, name, None)
        if isinstance(status, int) and status in _FAILED:
            return status
    return None


def _refused_by_google(error: Exception) -> bool:
    """Whether an error is a 403 of gcsfs, known by its text alone; a limit or quota is one too, and passes."""
    head, _, why = str(error).partition("\n")
    passes = any(word in why.lower() for word in ("limit", "quota"))
    return isinstance(error, OSError) and head.startswith("Forbidden") and not passes
