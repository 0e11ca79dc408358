"""Decoding in a child process with a deadline and a memory limit.

A file that crashes, hangs or balloons a codec costs one verdict; the process that asked goes on with a new child.
The child stays warm from file to file. What codecs write on stderr is counted, not shown.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, Pipe
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serpipe.audio.backends import Frames, Header, as_float
from serpipe.audio.decode import Channels, Decoding, Outcome
from serpipe.errors import AudioError

START_S = 300.0
"""Seconds the child may take to start. A cold disk or a crowded machine is no fault of the file that comes first."""

_READY, _HEADER, _AUDIO, _END, _FAILED, _FREE = b"UP  ", b"HEAD", b"PCM ", b"DONE", b"FAIL", b"FREE"
"""What the two say to each other; `_FREE` alone goes from parent to child, for a slot that was read."""

SLOTS = 4
SLOT_BYTES = 1 << 20
"""Samples lie in memory that both share, in slots used in turn: a pipe would copy them twice more."""

_PIECE = struct.Struct("<cxxxI")
"""Behind `_AUDIO`: the samples' type, as NumPy has it, and how many each channel has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one file may cost.

    Attributes:
        stall_s: seconds without any new audio after which the child is ended.
        memory_bytes: what the child may allocate beyond its own start.
    """

    stall_s: float = 60.0
    memory_bytes: int = 1 << 30


class Slots:
    """Samples on their way from one process to the other, in slots of shared memory that are used in turn.

    Args:
        descriptor: an anonymous file of `SLOTS * SLOT_BYTES`, which both processes have open.
    """

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, SLOTS * SLOT_BYTES)
        self._turn = 0

    def next(self, dtype: np.dtype[Any], channels: int, length: int) -> Frames:
        """The next slot as an array (channels, length)."""
        start = self._turn * SLOT_BYTES
        self._turn = (self._turn + 1) % SLOTS
        return np.frombuffer(self._memory, dtype, channels * length, start).reshape(channels, length)


class ChildDecoding:
    """A recording being decoded by the child; iterate it once. The same attributes as `Decoding`."""

    def __init__(self, decoder: ChildDecoder, path: str, channels: Channels) -> None:
        self._decoder = decoder
        self.outcome = Outcome()
        decoder.send({"path": path, "channels": channels})
        _, body = decoder.receive()
        opened = json.loads(bytes(body))
        self.header = Header(**opened["header"])
        self.channels: int = opened["channels"]

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        while True:
            kind, body = self._decoder.receive()
            if kind == _AUDIO:
                yield self._decoder.take(body, self.channels)
            else:
                self.outcome = Outcome(**json.loads(bytes(body)))
                return


class ChildDecoder:
    """Decodes files one after the other in a child process that it starts, watches and replaces.

    Args:
        limits: deadline and memory of one file.

    Attributes:
        messages: lines the codecs have written on stderr so far, all files together.

    Examples:
        >>> from serpipe.testing import write_speech
        >>> with ChildDecoder() as decoder:
        ...     decoding = decoder.decode(write_speech(seconds=2.0), "mix")
        ...     samples = sum(block.shape[1] for block in decoding)
        >>> samples
        32000
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._slots: Slots | None = None
        self._busy = False
        self.messages = 0

    def decode(self, path: str, channels: Channels) -> ChildDecoding:
        """Open a local file.

        Raises:
            AudioError: what `Decoding` raises, and `AUDIO_DECODER_CRASHED`, `AUDIO_DECODER_HUNG`,
                `AUDIO_DECODER_MEMORY`; transient: `AUDIO_DECODER_KILLED`, `AUDIO_DECODER_NOT_STARTED`; the same
                while iterating.
        """
        if self._busy:
            # The caller left a recording half-way: its audio is still in the pipe.
            self.close()
        return ChildDecoding(self, path, channels)

    def send(self, job: dict[str, str]) -> None:
        """Hand the child a file, starting the child when there is none."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._pipe is not None
        self._pipe.send_bytes(json.dumps(job).encode())
        self._busy = True

    def receive(self) -> tuple[bytes, memoryview]:
        """The child's next message: its kind and its body; a failure is raised."""
        assert self._pipe is not None
        try:
            if not self._pipe.poll(self._limits.stall_s):
                self.close()
                raise AudioError(
                    "AUDIO_DECODER_HUNG",
                    f"the codec gave nothing for {self._limits.stall_s:.0f} s; the file is damaged or hostile",
                )
            message = self._pipe.recv_bytes()
        except (EOFError, ConnectionError):
            raise self._death() from None
        kind, body = message[:4], memoryview(message)[4:]
        if kind in (_END, _FAILED):
            self._busy = False
        if kind == _FAILED:
            failed = json.loads(bytes(body))
            if failed["code"] == "AUDIO_DECODER_MEMORY":
                # What libraries leave behind when memory runs out must not count against the next file.
                self.close()
            raise AudioError(failed["code"], failed["message"])
        return kind, body

    def take(self, body: memoryview, channels: int) -> NDArray[np.float32]:
        """The samples of an audio message, float32 (channels, n), out of the shared memory."""
        assert self._pipe is not None
        assert self._slots is not None
        kind, length = _PIECE.unpack(body)
        shared = self._slots.next(np.dtype(kind.decode()), channels, length)
        samples = as_float(shared if shared.dtype == np.int16 else shared.copy())
        with suppress(ConnectionError):
            # A child that died is noticed where its next message is missing.
            self._pipe.send_bytes(_FREE)
        return samples

    def close(self) -> None:
        """End the child, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._pipe is not None:
                self._pipe.close()
        self._process, self._pipe, self._slots, self._busy = None, None, None, False

    @property
    def pid(self) -> int | None:
        """The child's process id; None while there is no child."""
        return self._process.pid if self._process is not None else None

    def __enter__(self) -> ChildDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        self.close()
        ours, theirs = Pipe()
        memory = os.memfd_create("serpipe-samples")
        try:
            os.ftruncate(memory, SLOTS * SLOT_BYTES)
            self._slots = Slots(memory)
            self._process = self._spawn(theirs, memory)
        except OSError as error:
            ours.close()
            self.close()
            raise AudioError(
                "AUDIO_DECODER_NOT_STARTED",
                f"the decoder cannot be started ({error.strerror or error}); the machine has no memory or no room for "
                "another process",
                transient=True,
            ) from error
        finally:
            theirs.close()
            os.close(memory)
        self._pipe = ours
        threading.Thread(target=self._count, args=(self._process,), daemon=True).start()
        try:
            started = ours.poll(START_S) and ours.recv_bytes() == _READY
        except (EOFError, ConnectionError):
            started = False
        if not started:
            self.close()
            raise AudioError(
                "AUDIO_DECODER_NOT_STARTED",
                "the decoder did not start; the machine is overloaded or its Python is broken",
                transient=True,
            )

    def _spawn(self, theirs: Connection, memory: int) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-m",
            "serpipe.audio.child",
            str(theirs.fileno()),
            str(memory),
            str(self._limits.memory_bytes),
            str(os.getpid()),
        ]
        return subprocess.Popen(
            command,
            pass_fds=(theirs.fileno(), memory),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
        )

    def _count(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        with process.stderr as stream:
            for _ in stream:
                self.messages += 1

    def _death(self) -> AudioError:
        assert self._process is not None
        status = self._process.wait()
        self.close()
        if status == -signal.SIGKILL:
            return AudioError(
                "AUDIO_DECODER_KILLED",
                "something ended the decoder from outside; it is tried again",
                transient=True,
            )
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return AudioError("AUDIO_DECODER_CRASHED", f"the codec died of {how}; the file is damaged or hostile")


def main(descriptor: int, memory: int, memory_bytes: int, parent: int) -> None:
    """The child: decode what is asked for until the pipe closes."""
    end_with(parent)
    pipe = Connection(descriptor)
    slots = Slots(memory)
    _warm_up()
    limit_memory(memory_bytes)
    try:
        pipe.send_bytes(_READY)
    except BrokenPipeError:
        return
    while True:
        try:
            while (message := pipe.recv_bytes()) == _FREE:
                pass
            job = json.loads(message)
        except EOFError:
            return
        try:
            _serve(pipe, slots, job)
        except AudioError as error:
            _fail(pipe, error.code, error.message)
        except MemoryError:
            _fail(
                pipe,
                "AUDIO_DECODER_MEMORY",
                f"decoding wants more than {memory_bytes >> 20} MiB; the file is damaged or hostile",
            )
        except (BrokenPipeError, EOFError):
            return
        except OSError as error:
            _fail(pipe, "AUDIO_UNREADABLE", f"the file cannot be read ({error.strerror or error})")
        except Exception as error:
            _fail(pipe, "AUDIO_UNDECODABLE", f"the codec failed: {type(error).__name__}: {error}")


def _serve(pipe: Connection, slots: Slots, job: dict[str, Channels]) -> None:
    decoding = Decoding(job["path"], job["channels"])
    opened = {"header": asdict(decoding.header), "channels": decoding.channels}
    pipe.send_bytes(_HEADER + json.dumps(opened).encode())
    free = SLOTS
    for block in decoding.blocks():
        longest = SLOT_BYTES // block[:, :1].nbytes
        for start in range(0, block.shape[1], longest):
            piece = block[:, start : start + longest]
            while not free:
                free += pipe.recv_bytes() == _FREE
            slots.next(piece.dtype, *piece.shape)[:] = piece
            free -= 1
            pipe.send_bytes(_AUDIO + _PIECE.pack(piece.dtype.char.encode(), piece.shape[1]))
    pipe.send_bytes(_END + json.dumps(asdict(decoding.outcome)).encode())


def _fail(pipe: Connection, code: str, message: str) -> None:
    pipe.send_bytes(_FAILED + json.dumps({"code": code, "message": message}).encode())


def _warm_up() -> None:
    import av
    import soundfile

    del av, soundfile


def limit_memory(allowance: int) -> None:
    """Let this process allocate so many bytes beyond what it has; more raises `MemoryError`, or kills it."""
    import resource

    # RLIMIT_DATA counts private writable memory only, so mapped libraries and thread stacks reserved for later do not.
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used + allowance, used + allowance))


def end_with(parent: int) -> None:
    """Have this process killed when its parent ends."""
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    # It may have died before; in a container it may well be process 1.
    if os.getppid() != parent:
        sys.exit()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
