"""Taking secrets out of text before anybody can read it: errors, logs, tables, reports.

Uris lose their credentials and signatures in `serpipe.ids.canonical_uri`. What other libraries say in their errors, and
what people write into columns of their own, passes through here.
"""

from __future__ import annotations

import os
import re

MASK = "…"

_SIGNED = (
    r"X-(?:Amz|Goog|Ms)-[\w-]*|AWSAccessKeyId|GoogleAccessId|Signature|Key-Pair-Id|Policy|sig|se|sp|sv|sr|st|spr|srt|ss"
    r"|skoid|sktid|(?:access_?|auth_?|id_?|security_?|session_?)?token|api_?key|key|secret|password|passwd|pwd|auth|jwt"
)
_USER = re.compile(r"(\b(?!(?:abfss?|wasbs?)://[^/\s@:]*@)[A-Za-z][A-Za-z0-9+.\-]*://)[^/\s@'\"<>]+@")
"""What stands before the host. Azure's container stands there too, and only with a password is it one."""

_QUERY = re.compile(r"(://[^\s?'\"<>]*\?)[^\s'\"<>,;)]+")
_FRAGMENT = re.compile(r"(https?://[^\s#'\"<>]*#)[^\s'\"<>,;)]+", re.IGNORECASE)
_SIGNED_QUERY = re.compile(rf"(://[^\s?'\"<>]*)\?(?=[^\s'\"<>]*\b(?:{_SIGNED})=)[^\s'\"<>]+", re.IGNORECASE)
_NAMED = re.compile(
    r"((?:authorization|credential|x-(?:amz|goog|ms)-[\w-]*(?:signature|credential|token)|awsaccesskeyid|signature"
    r"|(?:\w+[_-])?(?:secret(?:[_-]access)?(?:[_-]key)?|session[_-]token|security[_-]token|access[_-]token|api[_-]?key"
    r"|account[_-]?key|sharedaccesskey|sas[_-]token|password|passwd)|(?<=[?&])sig)"
    r"['\"]?\s*[=:]\s*)['\"]?(?:(?:bearer|basic|aws4-hmac-sha256)\s+)?[^\s'\"&,;)}\]]+",
    re.IGNORECASE,
)
_PARAMETER = re.compile(rf"([?&](?:{_SIGNED})=)[^\s&'\"<>]+", re.IGNORECASE)
"""Of a path without its host, as servers and clients repeat it."""

_BEARER = re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9+/=._~-]{8,}", re.IGNORECASE)
_ENVIRONMENT = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCOUNT_?KEY|CONNECTION_STRING|SAS")
_SHORTEST = 8
"""Characters below which an environment variable's value may stand in a sentence by chance."""


def redact(text: str) -> str:
    """Take credentials, queries of uris, tokens and the values of secret environment variables out of a message.

    Args:
        text: for people to read; queries are left out whether they are secret or not.

    Returns:
        The text, with `…` for what was taken out.

    Examples:
        >>> redact("403, url='https://me:pw@h.org/a.wav?X-Amz-Signature=1'")
        "403, url='https://…@h.org/a.wav?…'"
        >>> redact("abfs://box@account/a.wav: {'Authorization': 'Bearer abc.def'}")
        "abfs://box@account/a.wav: {'Authorization': '…'}"
    """
    for value in _secret_values():
        text = text.replace(value, MASK)
    text = _USER.sub(rf"\1{MASK}@", text)
    text = _QUERY.sub(rf"\1{MASK}", text)
    text = _FRAGMENT.sub(rf"\1{MASK}", text)
    text = _PARAMETER.sub(rf"\1{MASK}", text)
    text = _NAMED.sub(lambda found: found.group(1) + _quote(found.group(0), found.group(1)) + MASK, text)
    return _BEARER.sub(rf"\1 {MASK}", text)


def strip_secrets(text: str) -> str:
    """Take what opens something out of a value that is to be stored; everything else stays as it was.

    Examples:
        >>> strip_secrets("https://me:pw@h.org/a.wav?X-Amz-Signature=1"), strip_secrets("https://h.org/watch?v=17")
        ('https://h.org/a.wav', 'https://h.org/watch?v=17')
        >>> strip_secrets("s3://key:secret@bucket/a.wav"), strip_secrets("abfs://box@account/a.wav")
        ('s3://bucket/a.wav', 'abfs://box@account/a.wav')
    """
    if "://" not in text:
        return text
    return _SIGNED_QUERY.sub(r"\1", _USER.sub(r"\1", text))


def _quote(whole: str, head: str) -> str:
    value = whole[len(head) :]
    return value[0] if value[:1] in "'\"" else ""


def _secret_values() -> list[str]:
    values = {v for name, v in os.environ.items() if len(v) >= _SHORTEST and _ENVIRONMENT.search(name.upper())}
    return sorted(values - {MASK}, key=len, reverse=True)
