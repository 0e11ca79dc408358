"""Ending a run on request: Ctrl-C, or the SIGTERM of a job manager."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class RunStopped(KeyboardInterrupt):
    """A run that was ended on request; its text says what is committed and how to go on."""


@contextmanager
def sigterm_stops() -> Iterator[None]:
    """Turn SIGTERM into `KeyboardInterrupt` for the length of a `with` block, so that a run can end in order.

    Ray's own handler kills the cluster beneath the driver first. It is set whenever Ray starts, so this is entered
    again after that. Without effect outside the main thread, where Python runs no signal handlers.

    Examples:
        >>> import os, signal
        >>> try:
        ...     with sigterm_stops():
        ...         os.kill(os.getpid(), signal.SIGTERM)
        ... except KeyboardInterrupt:
        ...     print("stopped")
        stopped
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        # None stands for a handler that Python did not set, and cannot set again.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _stop(_signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
