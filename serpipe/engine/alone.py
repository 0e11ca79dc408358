"""One recording in a child process, segment by segment: what kills it is known by name, and costs only itself.

The child says what it is about to label. When it dies, its parent knows what it was at and how it died, and starts
another one. A machine that is lost takes parent and child, and so blames nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serpipe.audio.child import end_with, limit_memory
from serpipe.audio.stage import Decode
from serpipe.models import batching
from serpipe.models.contract import SAMPLE_RATE, Adapter, Outputs
from serpipe.models.registry import ModelRef
from serpipe.models.stage import ALONE, Predict, Refusal, failed
from serpipe.pack import rows_of

DEATHS = 2
"""How often something must end the child, alone, before it is to blame."""

MOST_DEATHS = 40
"""Deaths in one recording after which it is left: each costs a start of the models."""

START_S = 1800.0
"""Seconds until the models of a child must work. Weights may come from a slow disk."""

Place = tuple[Any, ...]
"""What a child is at: `("decode", unit)` or `("label", model, segment_id)`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a child does.

    Attributes:
        decode: keyword arguments of `serpipe.Decode`.
        models: what it labels with.
        embeddings: `utterance`, `frame` or `none`.
        threads: CPU threads of a network.
        memory_bytes: what it may allocate once its models are loaded; on a GPU there is no limit.
    """

    decode: dict[str, Any]
    models: tuple[ModelRef, ...]
    embeddings: str
    threads: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Undecodable:
    """The recording cannot be decoded any further.

    Attributes:
        how: what happened, in words.
    """

    how: str


@dataclass(frozen=True, slots=True)
class Unusable:
    """The models do not work at all here; nothing of the recording is to blame.

    Attributes:
        how: what happened, in words.
    """

    how: str


@dataclass(frozen=True, slots=True)
class Deadly:
    """The recording has cost so many processes that it is left as it is; the next one may be harmless.

    Attributes:
        how: what happened, in words.
    """

    how: str


class Alone:
    """Decodes and labels recordings one at a time in a child process.

    Args:
        work: what the child does.

    Examples:
        >>> from serpipe.models.registry import resolve
        >>> from serpipe.testing import write_speech
        >>> import pathlib, serpipe
        >>> folder = pathlib.Path(write_speech(seconds=8.0)).parent
        >>> embedded = resolve("embedded")
        >>> work = Work(decode={"segmentation": "window:4/4", "models": {"embedded": embedded.fp}},
        ...     models=(embedded,), embeddings="none", threads=1, memory_bytes=1 << 30)
        >>> with Alone(work) as alone:
        ...     (pack,) = alone.label(serpipe.read_manifest(str(folder)))
        >>> len(pack["results:embedded"][0])
        2
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    def label(self, recording: pa.Table) -> Iterator[pa.Table | Undecodable | Unusable | Deadly]:
        """Label one recording.

        Args:
            recording: one row of a plan, or of `serpipe.read_manifest`.

        Yields:
            Labelled packs of one unit each; `Undecodable`, `Unusable` or `Deadly` instead of what cannot be had.
        """
        deaths: Counter[Place] = Counter()
        poison: dict[Place, Refusal] = {}
        done = 0
        while deaths.total() < MOST_DEATHS:
            place: Place = ("decode", done)
            try:
                self._start()
                self._send((recording, poison))
                while True:
                    kind, value = self._receive()
                    if kind == "end":
                        return
                    if kind == "at":
                        place = value
                        continue
                    yield value
                    recording = with_settled(recording, [value], self._fingerprints)
                    units = rows_of(value, "units").to_pylist()
                    if any(unit["final"] for unit in units):
                        self._discard_until_end()
                        return
                    done += 1
                    place = ("decode", done)
            except _NotStartedError as error:
                yield Unusable(str(error))
                return
            except _DiedError as death:
                deaths[place] += 1
                if deaths[place] < DEATHS:
                    continue
                if place[0] == "decode":
                    yield Undecodable(death.how)
                    return
                poison[place] = death.refusal
        yield Deadly(f"its process died {MOST_DEATHS} times, of {len(poison)} segments and more")

    def close(self) -> None:
        """End the child, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._pipe is not None:
            self._pipe.close()
        self._process, self._pipe = None, None

    def __enter__(self) -> Alone:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _fingerprints(self) -> dict[str, str]:
        return {model.name: model.fp for model in self._work.models}

    def _start(self) -> None:
        if self._process is not None:
            return
        self._pipe, theirs = Pipe()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "serpipe.engine.alone", str(theirs.fileno()), str(os.getpid())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        theirs.close()
        try:
            self._send(self._work)
            if not self._pipe.poll(START_S):
                self.close()
                raise _NotStartedError(f"the models did not start within {START_S:.0f} s")
            self._receive()
        except _DiedError as death:
            raise _NotStartedError(death.how) from None

    def _send(self, message: object) -> None:
        assert self._pipe is not None
        try:
            self._pipe.send(message)
        except ConnectionError:
            raise self._death() from None

    def _receive(self) -> tuple[str, Any]:
        assert self._pipe is not None
        try:
            kind, value = self._pipe.recv()
        except (EOFError, ConnectionError):
            raise self._death() from None
        if kind == "failed":
            # What raised may have left the device or the libraries broken: the next segment gets a new child.
            self.close()
            raise _DiedError(value, failed(value))
        return kind, value

    def _discard_until_end(self) -> None:
        """The last unit is here: what may still happen concerns nothing."""
        try:
            while self._receive()[0] != "end":
                continue
        except _DiedError:
            return

    def _death(self) -> _DiedError:
        assert self._process is not None
        status = self._process.wait()
        self.close()
        how = f"died of {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
        return _DiedError(f"its process {how}", ("MODEL_DIED", f"the model's process {how} on it, alone and twice"))


class _DiedError(Exception):
    def __init__(self, how: str, refusal: Refusal) -> None:
        super().__init__(how)
        self.how, self.refusal = how, refusal


class _NotStartedError(Exception):
    pass


def with_settled(recording: pa.Table, packs: Sequence[pa.Table], models: dict[str, str]) -> pa.Table:
    """A recording of a plan, the units of labelled packs settled beside those that were before."""
    (row,) = recording.to_pylist()
    settled = list(row.get("settled") or [])
    for pack in packs:
        for unit in rows_of(pack, "units").to_pylist():
            settled += [
                {"model": model, "fp": models[model], **{name: unit[name] for name in ("unit", "status", "final")}}
                for model in unit["todo"]
            ]
    if "settled" not in recording.column_names:
        return recording.append_column("settled", pa.array([settled]))
    return pa.Table.from_pylist([row | {"settled": settled}], recording.schema)


class _Watched(Predict):
    """The model stage, one segment at a time, telling each before it begins."""

    def __init__(self, work: Work, tell: Callable[[Place], None]) -> None:
        super().__init__(work.models, embeddings=work.embeddings, threads=work.threads)
        self._tell = tell
        self.poison: dict[Place, Refusal] = {}
        noise = 0.1 * np.random.default_rng(0).standard_normal(30 * SAMPLE_RATE, np.float32)
        for adapter in self._adapters.values():
            # A model that cannot label this is to blame itself, not a segment.
            seconds = max(adapter.spec.min_seconds, 1.0)
            waveform = noise[: round(seconds * SAMPLE_RATE)]
            batching.run(adapter, [waveform], budget_s=ALONE, frames=False)
        if self._device == "cpu":
            limit_memory(work.memory_bytes)

    def _forward(
        self, adapter: Adapter, names: Sequence[bytes], waveforms: Sequence[NDArray[np.float32]], *, frames: bool
    ) -> tuple[Outputs, dict[int, Refusal]]:
        # What nothing is labelled with still has the widths of the model's columns.
        outputs = [batching.run(adapter, [], budget_s=ALONE, frames=frames)]
        refused: dict[int, Refusal] = {}
        for number, (name, waveform) in enumerate(zip(names, waveforms, strict=True)):
            place = ("label", adapter.spec.name, name)
            if place in self.poison:
                refused[number] = self.poison[place]
            else:
                self._tell(place)
                outputs.append(batching.run(adapter, [waveform], budget_s=ALONE, frames=frames))
        return batching.join(outputs), refused


def main(descriptor: int, parent: int) -> None:
    """The child: decode and label what is asked for until the pipe closes."""
    end_with(parent)
    pipe = Connection(descriptor)
    try:
        _serve(pipe)
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:
        pipe.send(("failed", f"{type(error).__name__}: {error}"))


def _serve(pipe: Connection) -> None:
    work: Work = pipe.recv()
    decode = Decode(**work.decode | {"pack_seconds": 0.0})
    predict = _Watched(work, lambda place: pipe.send(("at", place)))
    pipe.send(("up", None))
    while True:
        recording, predict.poison = pipe.recv()
        for pack in decode(recording):
            pipe.send(("pack", predict(pack)))
        pipe.send(("end", None))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
