"""A file that crashes, hangs, balloons or babbles costs one verdict; the next one decodes as ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from serpipe.audio import child
from serpipe.audio.backends import BLOCK
from serpipe.audio.child import ChildDecoder, Limits
from serpipe.audio.decode import Channels, Decoding
from serpipe.audio.slots import GATHERED, SLOTS
from serpipe.errors import AudioError
from serpipe.testing import speech_like, write_speech

STALL_S = 3.0
"""Long beside what a codec takes for a block on a loaded machine, short beside a test's patience."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_speech(tmp_path_factory.mktemp("clip") / "clip.wav", seconds=5.0, sample_rate=22_050, channels=2)


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Longer than what fits between the processes, so that its child is at work while it is read."""
    path = tmp_path_factory.mktemp("clip") / "long.wav"
    soundfile.write(path, np.tile(speech_like(20.0), 30), 16_000)
    return str(path)


@pytest.fixture
def decoder() -> Iterator[ChildDecoder]:
    with ChildDecoder(Limits(stall_s=STALL_S)) as one:
        yield one


def samples_of(decoder: ChildDecoder, path: str, channels: Channels = "mix") -> np.ndarray:
    return np.concatenate(list(decoder.decode(path, channels)), axis=1)


def assert_fine(decoder: ChildDecoder, path: str) -> None:
    """The decoder does what it did before."""
    np.testing.assert_array_equal(samples_of(decoder, path), np.concatenate(list(Decoding(path)), axis=1))


def refusal_of(decoder: ChildDecoder, path: str) -> AudioError:
    with pytest.raises(AudioError) as refusal:
        samples_of(decoder, path)
    return refusal.value


def test_a_child_ends_with_the_decoder_that_nobody_holds(clip: str) -> None:
    decoder = ChildDecoder()
    assert_fine(decoder, clip)
    process = psutil.Process(decoder.pid)
    assert process.is_running()
    del decoder
    assert psutil.wait_procs([process], timeout=30)[1] == []


@pytest.mark.parametrize("channels", ["mix", "first", "split"])
def test_a_child_gives_what_its_parent_would(decoder: ChildDecoder, clip: str, channels: Channels) -> None:
    inside, outside = Decoding(clip, channels), decoder.decode(clip, channels)
    assert (outside.header, outside.channels) == (inside.header, inside.channels)
    expected, blocks = list(inside), list(outside)
    assert all(block.flags.aligned for block in blocks)
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), np.concatenate(expected, axis=1))
    assert outside.outcome == inside.outcome


@pytest.mark.parametrize(("channels", "subtype"), [(1, "PCM_16"), (2, "PCM_16"), (6, "FLOAT"), (1, "PCM_24")])
def test_what_was_given_stays_as_it_was(decoder: ChildDecoder, tmp_path: Path, channels: int, subtype: str) -> None:
    """More blocks than the shared memory holds, wider ones too, all kept until the end."""
    voice = np.tile(speech_like(20.0), 4)
    frames = np.stack([np.roll(voice, 999 * channel) for channel in range(channels)], axis=1)
    soundfile.write(tmp_path / "long.wav", frames, 16_000, subtype=subtype)
    wanted: Channels = "split" if channels > 1 else "mix"
    kept = list(decoder.decode(str(tmp_path / "long.wav"), wanted))
    assert len(kept) > SLOTS
    expected, _ = soundfile.read(tmp_path / "long.wav", dtype="float32", always_2d=True)
    np.testing.assert_array_equal(np.concatenate(kept, axis=1), expected.T)


def test_what_decodes_before_a_fault_is_given_as_in_one_process(decoder: ChildDecoder, tmp_path: Path) -> None:
    voice = np.tile(speech_like(20.0), 2)
    voice[30 * 16_000] = np.nan
    soundfile.write(tmp_path / "broken.wav", voice, 16_000, subtype="FLOAT")
    given = {}
    for name, decoding in (
        ("inside", Decoding(str(tmp_path / "broken.wav"))),
        ("outside", decoder.decode(str(tmp_path / "broken.wav"), "mix")),
    ):
        given[name] = [np.zeros((1, 0), np.float32)]
        with pytest.raises(AudioError, match="AUDIO_NOT_FINITE"):
            given[name].extend(decoding)
    inside, outside = (np.concatenate(blocks, axis=1) for blocks in given.values())
    assert inside.shape[1] > 25 * 16_000
    np.testing.assert_array_equal(outside, inside)


def test_one_child_serves_many_files(decoder: ChildDecoder, clip: str, tmp_path: Path) -> None:
    assert decoder.pid is None
    assert_fine(decoder, clip)
    first = decoder.pid
    (tmp_path / "page.wav").write_text("not found")
    assert refusal_of(decoder, str(tmp_path / "page.wav")).code == "AUDIO_UNDECODABLE"
    refusal = refusal_of(decoder, str(tmp_path / "absent.wav"))
    assert (refusal.code, refusal.transient) == ("RECORDING_UNREACHABLE", True)
    assert_fine(decoder, clip)
    assert decoder.pid == first


def test_a_recording_left_half_way_does_not_leak_into_the_next(
    decoder: ChildDecoder, clip: str, long_clip: str
) -> None:
    next(iter(decoder.decode(long_clip, "mix")))
    assert_fine(decoder, clip)


def test_a_source_that_hangs(decoder: ChildDecoder, clip: str, tmp_path: Path) -> None:
    """A named pipe that nobody writes to: no file that a mount could still give."""
    os.mkfifo(tmp_path / "pipe.wav")
    begin = time.monotonic()
    refusal = refusal_of(decoder, str(tmp_path / "pipe.wav"))
    assert (refusal.code, refusal.transient) == ("AUDIO_DECODER_HUNG", False)
    assert 2 * STALL_S <= time.monotonic() - begin < 2 * STALL_S + 60  # twice the deadline; else it lasts for ever
    assert decoder.pid is None
    assert_fine(decoder, clip)


def ended(decoder: ChildDecoder, path: str, *ends: signal.Signals) -> list[np.ndarray]:
    """Decode, with a signal to the child once it has given something, and to the one that follows it."""
    blocks, kept, met = iter(decoder.decode(path, "mix")), [], None
    for end in ends:
        # What the one before had sent comes first.
        while met == decoder.pid or not kept:
            kept.append(next(blocks))
        met = decoder.pid
        assert met is not None
        os.kill(met, end)
    return [*kept, *blocks]


@pytest.mark.parametrize(
    "end",
    [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGSTOP],
)
def test_a_child_that_ends_once_costs_nothing(decoder: ChildDecoder, long_clip: str, end: signal.Signals) -> None:
    """Every sample once, of two children."""
    (samples,) = np.concatenate(ended(decoder, long_clip, end), axis=1)
    expected, _ = soundfile.read(long_clip, dtype="float32")
    np.testing.assert_array_equal(samples, expected)


def test_a_second_child_holds_nothing_back_that_it_decoded(decoder: ChildDecoder, long_clip: str) -> None:
    """It may end as the first one did, a block later."""
    blocks = ended(decoder, long_clip, signal.SIGSEGV)
    assert blocks[-2].shape[1] == BLOCK < GATHERED


@pytest.mark.parametrize(
    ("first", "second", "code", "transient"),
    [
        (signal.SIGSEGV, signal.SIGABRT, "AUDIO_DECODER_CRASHED", False),
        (signal.SIGKILL, signal.SIGKILL, "AUDIO_DECODER_KILLED", False),
        (signal.SIGKILL, signal.SIGSEGV, "AUDIO_DECODER_STOPPED", True),
        (signal.SIGSEGV, signal.SIGTERM, "AUDIO_DECODER_STOPPED", True),
        (signal.SIGINT, signal.SIGFPE, "AUDIO_DECODER_STOPPED", True),
        (signal.SIGHUP, signal.SIGHUP, "AUDIO_DECODER_STOPPED", True),
        (signal.SIGSTOP, signal.SIGSTOP, "RECORDING_UNREACHABLE", True),
    ],
)
def test_two_children_that_end_on_a_file(
    decoder: ChildDecoder,
    clip: str,
    long_clip: str,
    first: signal.Signals,
    second: signal.Signals,
    code: str,
    transient: bool,
) -> None:
    with pytest.raises(AudioError) as refusal:
        ended(decoder, long_clip, first, second)
    assert (refusal.value.code, refusal.value.transient) == (code, transient)
    if code == "AUDIO_DECODER_CRASHED":
        assert second.name in refusal.value.message
    assert_fine(decoder, clip)


LOOPING = """
import serpipe.audio.backends as backends
def endless(*_):
    while True:
        pass
backends._sndfile_frames = endless
"""


def test_a_codec_that_never_ends_is_told_from_a_disk_that_does_not_answer(
    clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(LOOPING)
    monkeypatch.syspath_prepend(str(tmp_path))
    with ChildDecoder(Limits(stall_s=1.0)) as decoder:
        refusal = refusal_of(decoder, clip)
    assert (refusal.code, refusal.transient) == ("AUDIO_DECODER_HUNG", False)


def test_a_file_that_is_another_when_it_is_decoded_again(decoder: ChildDecoder, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.tile(speech_like(20.0), 30), 16_000)
    blocks = iter(decoder.decode(str(path), "mix"))
    next(blocks)
    next(blocks)
    assert decoder.pid is not None
    soundfile.write(tmp_path / "b.wav", speech_like(2.0), 16_000)
    os.replace(tmp_path / "b.wav", path)
    os.kill(decoder.pid, signal.SIGKILL)
    with pytest.raises(AudioError) as refusal:
        list(blocks)
    assert (refusal.value.code, refusal.value.transient) == ("RECORDING_CHANGED", True)


def test_a_child_that_died_between_two_files_costs_neither(decoder: ChildDecoder, clip: str) -> None:
    assert_fine(decoder, clip)
    assert decoder.pid is not None
    os.kill(decoder.pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(decoder.pid)], timeout=10)
    assert_fine(decoder, clip)


def test_a_file_that_balloons(clip: str, tmp_path: Path) -> None:
    """64 channels at the highest rate: one block of it is more than the child may take."""
    soundfile.write(tmp_path / "wide.wav", np.zeros((200_000, 64), np.float32), 384_000)
    with ChildDecoder(Limits(memory_bytes=16 << 20, stall_s=STALL_S)) as decoder:
        refusal = refusal_of(decoder, str(tmp_path / "wide.wav"))
        assert (refusal.code, refusal.transient) == ("AUDIO_DECODER_MEMORY", False)
        assert "16 MiB" in refusal.message
        assert decoder.pid is None
        assert_fine(decoder, clip)
    with ChildDecoder(Limits(memory_bytes=512 << 20, stall_s=STALL_S)) as decoder:
        assert samples_of(decoder, str(tmp_path / "wide.wav")).shape == (1, 8_333)


@pytest.mark.parametrize("suffix", [".wav", ".mp3", ".opus"])
@pytest.mark.parametrize("memory_kb", [512, 6_144])
def test_no_room_is_never_mistaken_for_damage(tmp_path: Path, suffix: str, memory_kb: int) -> None:
    """Wherever the limit strikes, in a library or in Python: a code, or the whole audio; never half of it as whole."""
    path = write_speech(tmp_path / f"clip{suffix}", seconds=8.0, sample_rate=48_000, channels=2)
    (expected,) = np.concatenate(list(Decoding(path)), axis=1)
    with ChildDecoder(Limits(memory_bytes=memory_kb << 10, stall_s=STALL_S)) as decoder:
        try:
            decoding = decoder.decode(path, "mix")
            (samples,) = np.concatenate(list(decoding), axis=1)
        except AudioError as refusal:
            code = refusal.code
        else:
            code = None
            assert decoding.outcome.error is None
            assert decoding.outcome.undecoded_s == 0
            np.testing.assert_array_equal(samples, expected)
    assert code in {None, "AUDIO_DECODER_MEMORY", "AUDIO_DECODER_CRASHED"}


BABBLER = """
import av
av.logging.restore_default_callback()
av.logging.set_level(av.logging.INFO)
"""


def test_what_codecs_write_is_counted_and_not_shown(
    decoder: ChildDecoder, clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """PyAV keeps FFmpeg quiet; the child of this test lets it write to stderr, as libraries do."""
    (tmp_path / "sitecustomize.py").write_text(BABBLER)
    monkeypatch.syspath_prepend(str(tmp_path))
    spoken = Path(write_speech(tmp_path / "clip.mp3", seconds=20.0)).read_bytes()
    half = len(spoken) // 2
    (tmp_path / "broken.mp3").write_bytes(spoken[:half] + b"\xff\xfb" * 3_000 + spoken[half:])
    assert samples_of(decoder, str(tmp_path / "broken.mp3")).size
    deadline = time.monotonic() + 10
    while not decoder.messages:  # they travel on their own
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert capfd.readouterr() == ("", "")
    assert_fine(decoder, clip)


ORPHAN = """
import sys
from serpipe.audio.child import ChildDecoder
decoder = ChildDecoder()
sum(block.shape[1] for block in decoder.decode(sys.argv[1], "mix"))
print(decoder.pid, flush=True)
decoder.decode(sys.argv[2], "mix")
"""


def test_the_child_dies_with_its_parent(clip: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    program = [sys.executable, "-c", ORPHAN, clip, str(tmp_path / "pipe.wav")]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        orphan = psutil.Process(int(parent.stdout.readline()))
        assert orphan.ppid() == parent.pid
        time.sleep(0.5)  # it is in the pipe now, where closing its connection would not reach it
        assert orphan.is_running()
        parent.send_signal(signal.SIGKILL)
    # Wherever orphans go, it may stay there as a zombie.
    deadline = time.monotonic() + 30
    while orphan.is_running() and orphan.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, orphan
        time.sleep(0.05)


def test_a_child_that_cannot_start_is_not_the_fault_of_the_file(
    clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(3)")
    with pytest.MonkeyPatch.context() as patch, ChildDecoder() as decoder:
        patch.syspath_prepend(str(tmp_path))
        refusal = refusal_of(decoder, clip)
        assert (refusal.code, refusal.transient) == ("AUDIO_DECODER_NOT_STARTED", True)
        patch.undo()
        assert_fine(decoder, clip)
    (tmp_path / "sitecustomize.py").write_text("import time; time.sleep(60)")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(child, "START_S", 0.5)
    with ChildDecoder() as decoder:
        assert refusal_of(decoder, clip).code == "AUDIO_DECODER_NOT_STARTED"
        assert decoder.pid is None


def test_a_process_that_cannot_be_made_leaves_nothing_open(clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with ChildDecoder() as decoder:
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
        assert "No such file" in refusal_of(decoder, clip).message
        before = os.listdir("/proc/self/fd")
        for _ in range(3):
            refusal = refusal_of(decoder, clip)
            assert (refusal.code, refusal.transient) == ("AUDIO_DECODER_NOT_STARTED", True)
        assert len(os.listdir("/proc/self/fd")) == len(before)
        monkeypatch.undo()
        assert_fine(decoder, clip)


def test_a_slow_start_does_not_count_against_the_first_file(
    clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import time; time.sleep(4)")
    monkeypatch.syspath_prepend(str(tmp_path))
    with ChildDecoder(Limits(stall_s=STALL_S)) as decoder:
        assert_fine(decoder, clip)


def test_decoders_work_side_by_side(clip: str, long_clip: str) -> None:
    (expected,) = np.concatenate(list(Decoding(clip)), axis=1)
    found: list[np.ndarray] = []

    def work() -> None:
        with ChildDecoder() as decoder:
            for _ in range(3):
                found.append(samples_of(decoder, clip)[0])

    with ChildDecoder() as other:
        blocks = iter(other.decode(long_clip, "mix"))
        next(blocks)
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(block.shape[1] for block in blocks) > 500 * 16_000
    assert len(found) == 9
    for samples in found:
        np.testing.assert_array_equal(samples, expected)


def test_closing_leaves_nothing_behind(clip: str) -> None:
    before = len(psutil.Process().children()), psutil.Process().num_fds(), threading.active_count()
    for _ in range(3):
        with ChildDecoder() as decoder:
            assert_fine(decoder, clip)
    deadline = time.monotonic() + 10
    while (after := (len(psutil.Process().children()), psutil.Process().num_fds(), threading.active_count())) > before:
        assert time.monotonic() < deadline, (before, after)
        time.sleep(0.05)
