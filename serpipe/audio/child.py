"""Decoding in a child process with a deadline and a memory limit.

A file that crashes, hangs or balloons a codec costs one verdict; the process that asked goes on with a new child.
The child stays warm from file to file. What codecs write on stderr is counted, not shown.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, Pipe

import numpy as np
from numpy.typing import NDArray

from serpipe.audio.backends import Header
from serpipe.audio.decode import Channels, Decoding, Outcome
from serpipe.errors import AudioError

START_S = 300.0
"""Seconds the child may take to start. A cold disk or a crowded machine is no fault of the file that comes first."""

_READY, _HEADER, _AUDIO, _END, _FAILED = b"UP  ", b"HEAD", b"PCMF", b"DONE", b"FAIL"
"""Four bytes, so that the samples behind them lie where float32 must."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one file may cost.

    Attributes:
        stall_s: seconds without any new audio after which the child is ended.
        memory_bytes: what the child may allocate beyond its own start.
    """

    stall_s: float = 60.0
    memory_bytes: int = 1 << 30


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
                yield np.frombuffer(body, np.float32).reshape(self.channels, -1)
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

    def close(self) -> None:
        """End the child, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._pipe is not None:
                self._pipe.close()
        self._process, self._pipe, self._busy = None, None, False

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
        command = [
            sys.executable,
            "-m",
            "serpipe.audio.child",
            str(theirs.fileno()),
            str(self._limits.memory_bytes),
            str(os.getpid()),
        ]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
        self._process = subprocess.Popen(
            command,
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
        )
        theirs.close()
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


def main(descriptor: int, memory_bytes: int, parent: int) -> None:
    """The child: decode what is asked for until the pipe closes."""
    end_with(parent)
    pipe = Connection(descriptor)
    _warm_up()
    limit_memory(memory_bytes)
    try:
        pipe.send_bytes(_READY)
    except BrokenPipeError:
        return
    while True:
        try:
            job = json.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            _serve(pipe, job)
        except AudioError as error:
            _fail(pipe, error.code, error.message)
        except MemoryError:
            _fail(
                pipe,
                "AUDIO_DECODER_MEMORY",
                f"decoding wants more than {memory_bytes >> 20} MiB; the file is damaged or hostile",
            )
        except BrokenPipeError:
            return
        except OSError as error:
            _fail(pipe, "AUDIO_UNREADABLE", f"the file cannot be read ({error.strerror or error})")
        except Exception as error:
            _fail(pipe, "AUDIO_UNDECODABLE", f"the codec failed: {type(error).__name__}: {error}")


def _serve(pipe: Connection, job: dict[str, Channels]) -> None:
    decoding = Decoding(job["path"], job["channels"])
    opened = {"header": asdict(decoding.header), "channels": decoding.channels}
    pipe.send_bytes(_HEADER + json.dumps(opened).encode())
    for block in decoding:
        pipe.send_bytes(_AUDIO + np.ascontiguousarray(block).tobytes())
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
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
