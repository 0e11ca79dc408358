"""Decoding in a child process with a deadline and a memory limit.

A file that crashes, hangs or balloons a codec costs one verdict; the process that asked goes on with a new child.
A file on which a child ended is decoded once more, in a fresh one, before anything is held against it. The child stays
warm from file to file. What codecs write on stderr is counted, not shown.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, Pipe
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from serpipe.audio.backends import Header
from serpipe.audio.deaths import IDLE_SHARE, DeathError, computed, died, judged, silent
from serpipe.audio.decode import Channels, Decoding, Outcome, unreachable
from serpipe.audio.slots import AUDIO, FREE, HELD_S, SLOT_BYTES, SLOTS, Sender, Slots, taken
from serpipe.errors import AudioError

START_S = 300.0
"""Seconds the child may take to start. A cold disk or a crowded machine is no fault of the file that comes first."""

_READY, _HEADER, _END, _FAILED = b"UP  ", b"HEAD", b"DONE", b"FAIL"
"""What a child says beside `AUDIO`; to it only jobs are said, and `FREE`."""


class _Job(TypedDict):
    path: str
    channels: Channels
    held_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one file may cost.

    Attributes:
        stall_s: seconds without any new audio after which the child is ended; once more of it in a fresh child.
        memory_bytes: what the child may allocate beyond its own start.
    """

    stall_s: float = 60.0
    memory_bytes: int = 1 << 30


class ChildDecoding:
    """A recording being decoded by the child; iterate it once. The same attributes as `Decoding`.

    Where the child ends before the file does, a fresh one decodes the file from its start, and what was handed on
    already is passed over: decoding gives the same samples each time.
    """

    def __init__(self, decoder: ChildDecoder, path: str, channels: Channels) -> None:
        self._decoder = decoder
        self._path, self._wanted = path, channels
        self._death: DeathError | None = None
        self._given = 0
        self.outcome = Outcome()
        try:
            self.header, self.channels = self._open()
        except DeathError as death:
            self.header, self.channels = self._once_more(death)

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        known = 0
        while True:
            try:
                kind, body = self._decoder.receive()
            except DeathError as death:
                if self._once_more(death) != (self.header, self.channels):
                    raise _changed() from None
                known = self._given
                continue
            if kind != AUDIO:
                if known:
                    raise _changed()
                self.outcome = Outcome(**json.loads(bytes(body)))
                return
            block = self._decoder.take(body, self.channels)
            fresh = block[:, known:]
            known -= block.shape[1] - fresh.shape[1]
            if fresh.shape[1]:
                self._given += fresh.shape[1]
                yield fresh

    def _open(self) -> tuple[Header, int]:
        # What ended one child may end the next: of what that one decodes before, nothing is held back.
        self._decoder.send(self._path, self._wanted, hold=self._death is None)
        _, body = self._decoder.receive()
        opened = json.loads(bytes(body))
        return Header(**opened["header"]), opened["channels"]

    def _once_more(self, death: DeathError) -> tuple[Header, int]:
        if self._death is not None:
            raise judged(self._death, death) from None
        self._death = death
        try:
            return self._open()
        except DeathError as second:
            raise judged(death, second) from None


def _changed() -> AudioError:
    return AudioError(
        "RECORDING_CHANGED",
        "the file was another one when it was decoded again; the next run takes the new version",
        transient=True,
    )


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
        self._plain_file = True
        self.messages = 0

    def decode(self, path: str, channels: Channels) -> ChildDecoding:
        """Open a local file.

        Raises:
            AudioError: what `Decoding` raises, and `AUDIO_DECODER_CRASHED`, `AUDIO_DECODER_HUNG`,
                `AUDIO_DECODER_MEMORY`, `AUDIO_DECODER_KILLED`, each only where a fresh child ended on the file too;
                transient: `AUDIO_DECODER_STOPPED`, `AUDIO_DECODER_NOT_STARTED`, `RECORDING_CHANGED`; the same while
                iterating.
        """
        if self._busy:
            # The caller left a recording half-way: its audio is still in the pipe.
            self.close()
        return ChildDecoding(self, path, channels)

    def send(self, path: str, channels: Channels, *, hold: bool) -> None:
        """Hand the child a file, starting the child when there is none; `hold` lets it gather what it decodes."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._pipe is not None
        self._plain_file = os.path.isfile(path)
        job: _Job = {
            "path": path,
            "channels": channels,
            "held_s": min(HELD_S, self._limits.stall_s / 4) if hold else 0.0,
        }
        self._pipe.send_bytes(json.dumps(job).encode())
        self._busy = True

    def receive(self) -> tuple[bytes, memoryview]:
        """The child's next message: its kind and its body; a failure is raised."""
        assert self._pipe is not None
        try:
            self._wait()
            message = self._pipe.recv_bytes()
        except (EOFError, ConnectionError):
            raise self._death() from None
        kind, body = message[:4], memoryview(message)[4:]
        if kind in (_END, _FAILED):
            self._busy = False
        if kind == _FAILED:
            failed = json.loads(bytes(body))
            if failed["code"] == "AUDIO_DECODER_MEMORY":
                # What libraries leave behind, of this file or of earlier ones, must not count against the next.
                self.close()
                raise DeathError(AudioError(failed["code"], failed["message"]))
            raise AudioError(failed["code"], failed["message"], transient=failed["transient"])
        return kind, body

    def _wait(self) -> None:
        """Wait for a message as long as the deadline allows."""
        assert self._pipe is not None
        assert self._process is not None
        half = self._limits.stall_s / 2
        if self._pipe.poll(half):
            return
        before = computed(self._process.pid)
        if self._pipe.poll(half):
            return
        idle = computed(self._process.pid) - before < IDLE_SHARE * half
        self.close()
        raise silent(self._limits.stall_s, waiting=idle and self._plain_file)

    def take(self, body: memoryview, channels: int) -> NDArray[np.float32]:
        """The samples of an audio message, float32 (channels, n), out of the shared memory."""
        assert self._pipe is not None
        assert self._slots is not None
        return taken(self._pipe, self._slots, body, channels)

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
        # Neither the thread nor the child outlives a decoder that nobody holds any more.
        threading.Thread(target=_count, args=(weakref.ref(self), self._process), daemon=True).start()
        weakref.finalize(self, _end, self._process)
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

    def _death(self) -> DeathError:
        assert self._process is not None
        status = self._process.wait()
        self.close()
        return died(status)


def _count(decoder: weakref.ref[ChildDecoder], process: subprocess.Popen[bytes]) -> None:
    """Count what a child's codecs write on stderr."""
    assert process.stderr is not None
    with process.stderr as stream:
        for _ in stream:
            if (mine := decoder()) is not None:
                mine.messages += 1


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def main(descriptor: int, memory: int, memory_bytes: int, parent: int) -> None:
    """The child: decode what is asked for until the pipe closes."""
    end_with(parent)
    # Python would end with a trace of wherever it was, or inside a library's callback not at all.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
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
            while (message := pipe.recv_bytes()) == FREE:
                pass
            job = json.loads(message)
        except EOFError:
            return
        try:
            _serve(pipe, slots, job)
        except (BrokenPipeError, EOFError):
            return
        except Exception as error:
            _fail(pipe, _said(error, memory_bytes))


def _said(error: Exception, memory_bytes: int) -> AudioError:
    """What an exception says of the file that was being decoded."""
    import av

    if isinstance(error, AudioError):
        return error
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return AudioError(
            "AUDIO_DECODER_MEMORY",
            f"decoding wants more than {memory_bytes >> 20} MiB, in a fresh process too; the file is damaged or "
            "hostile",
        )
    if isinstance(error, OSError) and not isinstance(error, av.FFmpegError):
        return unreachable(error)
    return AudioError("AUDIO_UNDECODABLE", f"the codec failed: {type(error).__name__}: {error}")


def _serve(pipe: Connection, slots: Slots, job: _Job) -> None:
    decoding = Decoding(job["path"], job["channels"])
    opened = {"header": asdict(decoding.header), "channels": decoding.channels}
    pipe.send_bytes(_HEADER + json.dumps(opened).encode())
    sender = Sender(pipe, slots, decoding.channels, held_s=job["held_s"])
    try:
        for block in decoding.blocks():
            sender.add(block)
    finally:
        # Before what ended it: a recording that fails half-way keeps what was decoded.
        sender.flush()
    pipe.send_bytes(_END + json.dumps(asdict(decoding.outcome)).encode())


def _fail(pipe: Connection, error: AudioError) -> None:
    told = {"code": error.code, "message": error.message, "transient": error.transient}
    pipe.send_bytes(_FAILED + json.dumps(told).encode())


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
