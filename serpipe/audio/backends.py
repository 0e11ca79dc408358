"""The two codec libraries, each as one function: a path in, frames at the file's own rate out.

16-bit samples stay as they are stored: half the bytes to move, and libsndfile converts ten times slower than NumPy.

libsndfile is exact and fastest on PCM containers and on Vorbis. It trusts the frame count of an MP3 or FLAC header and
stops there, so those go to FFmpeg (PyAV) first: a header that claims too little would otherwise lose the rest of the
recording without a word. It knows only the first of several streams that an Ogg file holds one after the other: these
FFmpeg decodes too, and Opus at 48 kHz, which it has from the same libopus twice as fast.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from serpipe.audio.localfile import LocalFile, ReadingFailed, failed
from serpipe.audio.ogg import joined_streams
from serpipe.audio.riff import sample_data

if TYPE_CHECKING:
    import av
    import soundfile

Frames = NDArray[np.float32] | NDArray[np.int16]
"""float32 with full scale at 1.0, or 16 bits as they are stored."""

BLOCK = 65_536
"""Samples per channel handed on at a time: 1.4 s at 48 kHz, small beside what codecs buffer themselves."""

_LONGEST_PACKET_S = 10.0

_BETTER_DECODERS = {"amrnb": "libopencore_amrnb", "amrwb": "libopencore_amrwb", "opus": "libopus"}
"""FFmpeg's own AMR decoders refuse the frames that phones send while nobody speaks; its own Opus decoder gives other
samples than the reference one, by up to a hundredth where packets for speech and for music follow one another."""

_FULL_OPUS_HZ = 48_000
"""What FFmpeg has libopus decode to. Where a header names a lower rate, libsndfile has it decode to that right away."""

_SYSTEM_ERROR = 2
"""libsndfile's number for what the operating system refused; of reading on, that is never the file's content."""

_SNDFILE_FIRST = (b"RIFF", b"RIFX", b"RF64", b"riff", b"FORM", b".snd", b"caff", b"NIST", b"OggS")


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself before anything is decoded.

    Attributes:
        container: the demultiplexer's name, lower case.
        codec: the codec's name, lower case.
        sample_rate: Hz.
        channels: number of channels of the audio track.
        claimed_s: duration in seconds by the header; None where it states none.
    """

    container: str
    codec: str
    sample_rate: int
    channels: int
    claimed_s: float | None


class Undecodable(Exception):  # noqa: N818
    """This library cannot open the file, or found no audio in it."""


class NoAudioTrack(Undecodable):
    """The library opened the file, and there is no audio in it: a film without sound, a picture."""


@dataclass(slots=True)
class Track:
    """An opened audio track.

    Attributes:
        header: what the file claims.
        file: where its bytes come from.
        frames: yields `(sample_rate, (channels, n))`; rate, channels and dtype may change on the way. Raises
            `ReadingFailed` where the file's bytes cannot be had.
        undecoded_s: seconds inside the track that the codec refused; silence keeps their place.
        beyond_s: seconds that lie behind the track's end as the header claims it, and that no codec reads.
        cut_s: seconds that a file which was cut off holds of what its header claims; None of any other.
        error: why decoding ended early; None while it has not.
    """

    header: Header
    file: LocalFile
    frames: Iterator[tuple[int, Frames]]
    undecoded_s: float = 0.0
    beyond_s: float = 0.0
    cut_s: float | None = None
    error: str | None = None

    @property
    def expected_s(self) -> float | None:
        """Seconds that can come of the file, as far as it says: what its header claims, or what was left of that."""
        return self.header.claimed_s if self.cut_s is None else self.cut_s


def backends_for(magic: bytes) -> tuple[str, str]:
    """Which library to try first and second, by the file's first four bytes, never by its name."""
    return ("sndfile", "ffmpeg") if magic in _SNDFILE_FIRST else ("ffmpeg", "sndfile")


def open_track(path: str, backend: str) -> Track:
    """Open the first audio track of a file.

    Args:
        path: a local file.
        backend: `sndfile` or `ffmpeg`.

    Raises:
        Undecodable: the library finds nothing it can decode, with its reason.
        ReadingFailed: the file cannot be read.
    """
    # Both libraries take a file they cannot make out for headerless audio when its name ends in .au, .al, .g722
    # or the like, and play an error page as noise. No name, no guess.
    file = LocalFile(path)
    track = _open_sndfile(file) if backend == "sndfile" else _open_ffmpeg(file, file.reader)
    _compare_with_wav(track, backend)
    return track


def _compare_with_wav(track: Track, backend: str) -> None:
    """Note what a WAV claims and the file lacks, of which libsndfile is silent, and what follows, of which both are."""
    stated, file = track.header.claimed_s, track.file
    try:
        data = None if stated is None or file.size is None else sample_data(file.descriptor, file.size)
    except OSError as error:
        raise ReadingFailed(error.errno or errno.EIO, error.strerror or os.strerror(errno.EIO)) from error
    if stated is None or data is None:
        return
    if backend == "sndfile" and data.present < data.claimed:
        track.cut_s = stated
        track.header = replace(track.header, claimed_s=stated * (data.claimed / data.present))
    track.beyond_s = stated * data.behind / data.present


def _open_sndfile(source: LocalFile) -> Track:
    import soundfile

    class Forward(soundfile.SoundFile):  # type: ignore[misc]
        """Seeks to where it should be after every read, unless it cannot: past a lost Ogg page that repeats audio."""

        def seekable(self) -> bool:
            return False

    try:
        file = Forward(source.descriptor, closefd=False)
    except (soundfile.LibsndfileError, TypeError, ValueError) as error:
        raise Undecodable(_plain(error)) from error
    # libsndfile marks an unknown length with a frame count near 2^63.
    claimed = file.frames / file.samplerate if 0 < file.frames < 2**40 else None
    header = Header(file.format.lower(), file.subtype.lower(), file.samplerate, file.channels, claimed)
    track = Track(header, source, iter(()))
    try:
        joined = joined_streams(source.descriptor) if header.container == "ogg" and source.size is not None else []
    except OSError as error:
        # Unread is not the same as alone: the streams behind the first would be lost without a word.
        raise ReadingFailed(error.errno or errno.EIO, error.strerror or os.strerror(errno.EIO)) from error
    if joined or (header.container, header.codec, header.sample_rate) == ("ogg", "opus", _FULL_OPUS_HZ):
        file.close()
        track.frames = _stream_by_stream(track, joined)
    else:
        track.frames = _sndfile_frames(file, track)
    return track


def _stream_by_stream(track: Track, joined: list[tuple[int, int]]) -> Iterator[tuple[int, Frames]]:
    """What FFmpeg makes of a whole file, or of each of its streams as a file of its own."""
    if not joined:
        track.file.reader.seek(0)
    readers: list[object] = [track.file.part(*stream) for stream in joined]
    for reader in readers or [track.file.reader]:
        try:
            stream = _open_ffmpeg(track.file, reader)
        except Undecodable as error:
            track.error = track.error or str(error)
            continue
        yield from stream.frames
        track.undecoded_s += stream.undecoded_s
        track.error = track.error or stream.error


def _sndfile_frames(file: soundfile.SoundFile, track: Track) -> Iterator[tuple[int, Frames]]:
    import soundfile

    dtype = "int16" if file.subtype == "PCM_16" else "float32"
    # A read() loop, never blocks(): blocks() repeats stale audio when a header claims more than the file holds.
    with file:
        while True:
            try:
                block = file.read(BLOCK, dtype=dtype, always_2d=True)
            except soundfile.LibsndfileError as error:
                if error.code == _SYSTEM_ERROR:
                    track.file.look_through()
                    raise ReadingFailed(errno.EIO, os.strerror(errno.EIO)) from error
                track.error = _plain(error)
                return
            if not len(block):
                return
            yield file.samplerate, block.T


def _open_ffmpeg(source: LocalFile, reader: object) -> Track:
    import av

    try:
        # Through Python its reads can be told from its own troubles. A playlist may send it nowhere else.
        container = av.open(reader, "r", metadata_errors="replace", options={"protocol_whitelist": "none"})
    except MemoryError:
        raise
    except (av.FFmpegError, ValueError, OSError) as error:
        if fault := failed(error):
            raise fault from error
        raise Undecodable(_plain(error)) from error
    if not container.streams.audio:
        container.close()
        raise NoAudioTrack("the file has no audio track")
    stream = container.streams.audio[0]
    codec = stream.codec_context
    if codec is None or (not codec.sample_rate and codec.name not in ("flac",)):
        container.close()
        raise Undecodable("the audio track has no sampling rate")
    claimed: float | None = None
    if stream.duration and stream.time_base:
        claimed = float(stream.duration * stream.time_base)
    elif container.duration:
        claimed = container.duration / av.time_base
    header = Header(container.format.name.split(",")[0], codec.name, codec.sample_rate or 0, codec.channels, claimed)
    track = Track(header, source, iter(()))
    track.frames = _ffmpeg_frames(container, stream, track)
    return track


def _ffmpeg_frames(
    container: av.container.InputContainer, stream: av.AudioStream, track: Track
) -> Iterator[tuple[int, Frames]]:
    import av

    fifo: av.AudioFifo | None = None
    shape: tuple[int, str, str] | None = None
    gap_s = 0.0

    decoder = _decoder(stream)

    def drain() -> Iterator[tuple[int, Frames]]:
        if fifo is not None and shape is not None and (frame := fifo.read(0, partial=True)) is not None:
            yield shape[0], _samples(frame)

    with container:
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except MemoryError:
                raise
            except (av.FFmpegError, OSError) as error:
                if fault := failed(error):
                    raise fault from error
                track.error = _plain(error)
                break
            if packet is None:
                break
            try:
                frames = decoder.decode(packet)
            except MemoryError:
                raise
            except (av.FFmpegError, ValueError):
                if packet.duration and packet.time_base:
                    gap_s += min(float(packet.duration * packet.time_base), _LONGEST_PACKET_S)
                continue
            for frame in frames:
                now = (frame.sample_rate, frame.format.name, frame.layout.name)
                if now != shape or gap_s:
                    yield from drain()
                    fifo, shape = av.AudioFifo(), now
                if gap_s:
                    # What follows keeps its time; a tail that never decodes again is not part of the recording.
                    track.undecoded_s += gap_s
                    yield (
                        frame.sample_rate,
                        np.zeros((frame.layout.nb_channels, round(gap_s * frame.sample_rate)), np.float32),
                    )
                    gap_s = 0.0
                frame.pts = None
                assert fifo is not None
                fifo.write(frame)
            if fifo is not None and fifo.samples >= BLOCK:
                yield from drain()
        yield from drain()
        if gap_s and track.error is None:
            track.error = f"the last {gap_s:.2f} s cannot be decoded"


def _decoder(stream: av.AudioStream) -> av.AudioCodecContext:
    """The stream's own decoder, or one that knows more of its codec where this FFmpeg has it."""
    import av

    codec: av.AudioCodecContext = stream.codec_context
    better = _BETTER_DECODERS.get(codec.name)
    if better is None or better not in av.codecs_available:
        return codec
    other = av.CodecContext.create(better, "r")
    assert isinstance(other, av.AudioCodecContext)
    other.sample_rate, other.layout, other.extradata = codec.sample_rate, codec.layout, codec.extradata
    # Where there is a choice the default is 16 bits.
    other.options = {"request_sample_fmt": "flt"}
    return other


def _samples(frame: av.AudioFrame) -> Frames:
    """A decoded frame as (channels, n): 16 bits as they are, anything else as float32, full scale at 1.0."""
    array: NDArray[Any] = frame.to_ndarray()
    if not frame.format.is_planar:
        array = array.reshape(-1, frame.layout.nb_channels).T
    if array.dtype == np.int16:
        return array
    samples: NDArray[np.float32] = array.astype(np.float32, copy=False)
    if array.dtype == np.uint8:
        samples = (samples - np.float32(128)) / np.float32(128)
    elif np.issubdtype(array.dtype, np.integer):
        samples = samples * np.float32(-1.0 / np.iinfo(array.dtype).min)
    return samples


def as_float(samples: Frames) -> NDArray[np.float32]:
    """Samples as float32, full scale at 1.0; 16 bits lose nothing by it.

    Examples:
        >>> as_float(np.int16([-32768, 16384])).tolist()
        [-1.0, 0.5]
    """
    if samples.dtype == np.float32:
        return samples.astype(np.float32, copy=False)
    floats = samples.astype(np.float32)
    floats *= np.float32(1 / 32_768)
    return floats


def _plain(error: Exception) -> str:
    """A library's reason without the path, which is the recording's own and may carry a signature."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return re.sub(r"Error opening .*?: ", "", text).strip().rstrip(".") or type(error).__name__
