"""A storage that is killed at its nth operation, and does nothing more."""

from __future__ import annotations

from collections.abc import Callable
from threading import RLock
from typing import Any

from serpipe.store.storage import Storage
from tests.faults.points import CHANGES, LOOKS


class Killed(BaseException):
    """No handler of the program's own may catch the end of its process."""


class Mortal(Storage):
    """Dies at its nth operation.

    Args:
        root: the store.
        at: number of the operation, from 0.
        done: whether the operation is still carried out, but nobody learns of it.
    """

    def __init__(self, root: str, at: int, *, done: bool = False) -> None:
        super().__init__(root)
        self._left, self._done = at, done
        self._lock, self._depth = RLock(), 0


def _mortal(operation: str) -> Callable[..., Any]:
    method = getattr(Storage, operation)

    def call(self: Mortal, name: str, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            if self._depth:
                return method(self, name, *args, **kwargs)
            self._left -= 1
            if self._left < -1 or (self._left == -1 and not self._done):
                raise Killed(name)
            self._depth += 1
            try:
                result = method(self, name, *args, **kwargs)
            finally:
                self._depth -= 1
            if self._left == -1:
                raise Killed(name)
            return result

    return call


for _operation in (*CHANGES, *LOOKS):
    setattr(Mortal, _operation, _mortal(_operation))
