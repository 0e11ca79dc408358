"""Every point at which a program that works on a store can be killed, and the store as it lies there then.

A killed program is one that does nothing more. So the states of the store before and after each operation of one
undisturbed pass are all there is to find after a kill, and more faithfully than by an exception, which would run
handlers that a kill does not. Points between which nothing was written share a state, and are recovered together.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import Any

from fsspec.implementations.memory import MemoryFileSystem

from serpipe.store.storage import Storage

State = dict[str, bytes]

CHANGES = ("put", "create", "delete")
LOOKS = ("get", "exists", "modified", "list", "listing")


@dataclass(frozen=True, slots=True)
class Point:
    """A moment to be killed at.

    Attributes:
        operation: of a storage, or `read` for an object opened by a reader of Parquet.
        name: the object or prefix.
        moment: `before` it; `within`, when the bytes of a local file lie beside their name; `after` it.
        state: place in `Points.states`.
    """

    operation: str
    name: str
    moment: str
    state: int

    @property
    def kind(self) -> str:
        return f"{self.operation} {table(self.name)}"


def table(name: str) -> str:
    """What an object belongs to, as the page of the guarantee names it."""
    folder, slash, rest = name.partition("/")
    if folder == "runs" and rest:
        return rest.rpartition("/")[2]
    return folder + slash if slash else folder


class Points(Storage):
    """A storage in memory that notes every point of what is done with it.

    Attributes:
        points: in order.
        states: different ones that follow each other.
    """

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.points: list[Point] = []
        self.states: list[State] = [snapshot(self)]
        self._lock, self._depth = RLock(), 0
        self.fs = _Readers(self)

    @contextmanager
    def operation(self, operation: str, name: str) -> Iterator[None]:
        """One at a time, though they come from several threads; what an operation is made of is not noted."""
        with self._lock:
            if self._depth:
                yield
                return
            self._note(operation, name, "before")
            if operation in ("put", "create"):
                self._note(operation, name, "within")
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
            if operation in CHANGES:
                now = snapshot(self)
                if now != self.states[-1]:
                    self.states.append(now)
            self._note(operation, name, "after")

    def _note(self, operation: str, name: str, moment: str) -> None:
        self.points.append(Point(operation, name, moment, len(self.states) - 1))

    def torn(self) -> list[State]:
        """The states with the file that was being written, under the name it has on a local disk until it is whole."""
        states = list(self.states)
        for point in self.points:
            if point.moment == "within":
                folder, slash, base = point.name.rpartition("/")
                part = {f"{folder}{slash}.{base}.0badcafe.part": b"PAR1 and then no more"}
                states[point.state] = states[point.state] | part
        return states


def _noted(operation: str) -> Callable[..., Any]:
    method = getattr(Storage, operation)

    def call(self: Points, name: str, *args: Any, **kwargs: Any) -> Any:
        with self.operation(operation, name):
            return method(self, name, *args, **kwargs)

    return call


for _operation in (*CHANGES, *LOOKS):
    setattr(Points, _operation, _noted(_operation))


class _Readers(MemoryFileSystem):
    """What readers of Parquet open is noted too."""

    cachable = False

    def __init__(self, storage: Points) -> None:
        super().__init__()
        self._storage = storage

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        with self._storage.operation("read" if mode == "rb" else "write", path[len(self._storage.path()) + 1 :]):
            return super()._open(path, mode=mode, **kwargs)


def operations() -> set[str]:
    """What a storage can do with objects: all of it must be noted."""
    return {
        name
        for name, member in vars(Storage).items()
        if inspect.isfunction(member) and not name.startswith("_") and name not in ("path", "carefully")
    }


def snapshot(storage: Storage) -> State:
    """Every object of a storage in memory."""
    base = storage.path() + "/"
    return {
        path[len(base) :]: file.getvalue() for path, file in MemoryFileSystem.store.items() if path.startswith(base)
    }


def restore(root: str, state: State) -> Storage:
    """A store as it was left, in memory, on disk or in a bucket."""
    storage = Storage(root)
    if storage.local:
        for name in state:
            os.makedirs(os.path.dirname(storage.path(name)), exist_ok=True)
    storage.fs.pipe({storage.path(name): data for name, data in state.items()})
    return storage
