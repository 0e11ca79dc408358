"""What can go wrong, as sentences: what, where, why, what to do next, each under a stable code."""

from __future__ import annotations

from serpipe.redact import redact


class SerpipeError(Exception):
    """An error a person can act on.

    Attributes:
        code: stable upper-case identifier, the same in messages, the quarantine and the docs.
        message: the sentence, without any credential or signature that its parts may have held.
        transient: whether the same work may well succeed later, untouched.

    Examples:
        >>> str(SerpipeError("MODEL_UNKNOWN", "no model is called 'hubrt'; try `serpipe models`"))
        "MODEL_UNKNOWN: no model is called 'hubrt'; try `serpipe models`"
    """

    def __init__(self, code: str, message: str, *, transient: bool = False) -> None:
        message = redact(message)
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.transient = transient

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.code, self.message, self.transient)


def _rebuild(kind: type[SerpipeError], code: str, message: str, transient: bool) -> SerpipeError:
    return kind(code, message, transient=transient)


class UsageError(SerpipeError):
    """A request that cannot be carried out as it was asked: an option, a manifest, a path."""


class AudioError(SerpipeError):
    """A recording or a segment that cannot be labelled, and why."""


class ModelError(SerpipeError):
    """A model that cannot be loaded, or must not be run."""


class StoreError(SerpipeError):
    """A store that is held by somebody else, damaged, or out of reach."""
