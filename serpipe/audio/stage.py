"""The decode stage: recordings in, packs out. Runs in anyone's Ray Data pipeline, and without Ray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serpipe import ids
from serpipe.allocator import keep_some_freed_memory
from serpipe.audio.ahead import Copy, one_ahead
from serpipe.audio.child import ChildDecoder, ChildDecoding, Limits
from serpipe.audio.decode import DECODER_EPOCH, Channels
from serpipe.audio.packing import PackBuilder
from serpipe.audio.recording import LONGEST_SEGMENT_S, UNIT_S, Clip, LeftOut, Unit, units_of
from serpipe.audio.segment import GivenSegment, parse_segmentation
from serpipe.audio.verdict import verdict
from serpipe.errors import AudioError
from serpipe.models.contract import SAMPLE_RATE


def audio_fingerprint(segmentation: str, channels: Channels) -> str:
    """What decides the segments and samples of a recording, as 16 hexadecimal digits.

    Examples:
        >>> audio_fingerprint("window:6/3", "mix") == audio_fingerprint("window:6.0/3.0", "mix")
        True
    """
    return ids.fingerprint("audio", str(DECODER_EPOCH), str(parse_segmentation(segmentation)), channels, str(UNIT_S))


def audio_facts(segmentation: str, channels: Channels) -> dict[str, str | int]:
    """What `audio_fingerprint` is made of, by name, for records that people compare."""
    return {
        "segmentation": str(parse_segmentation(segmentation)),
        "channels": channels,
        "decoder_epoch": DECODER_EPOCH,
        "unit_s": UNIT_S,
    }


class Decode:
    """Decodes recordings, cuts them into segments and yields packs.

    The process that it is in keeps some of the memory that it frees: `serpipe.allocator.SOME_BYTES`.

    Args:
        segmentation: `given`, `whole`, `window:6/3` or `vad`.
        channels: `mix`, `first` or `split`.
        speech: whether to run voice detection for each segment's speech share; `vad` always does.
        pack_seconds: audio of a pack.
        models: name to fingerprint of the models that will follow; a unit they have all settled is not emitted.
        limits: what one file may cost.

    Examples:
        >>> import serpipe
        >>> from serpipe.testing import write_speech
        >>> import pathlib
        >>> folder = pathlib.Path(write_speech(seconds=8.0)).parent
        >>> decode = serpipe.Decode(segmentation="window:4/4")
        >>> (pack,) = decode(serpipe.read_manifest(str(folder)))
        >>> [(segment["start_s"], segment["end_s"]) for segment in pack["segments"][0].as_py()]
        [(0.0, 4.0), (4.0, 8.0)]
    """

    def __init__(
        self,
        *,
        segmentation: str = "vad",
        channels: Channels = "mix",
        speech: bool = True,
        pack_seconds: float = 60.0,
        models: dict[str, str] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._segmentation = parse_segmentation(segmentation)
        self._channels = channels
        self._speech = speech
        self._seconds = pack_seconds
        self._models = models or {}
        self._audio = audio_fingerprint(segmentation, channels)
        self._decoder = ChildDecoder(limits)
        keep_some_freed_memory()
        # Who lets calls overlap gives a lock here: one decodes, and the other's first recording is fetched meanwhile.
        self._turn: AbstractContextManager[object] = nullcontext()

    def __call__(self, recordings: pa.Table) -> Iterator[pa.Table]:
        """Decode recordings.

        Args:
            recordings: rows of `serpipe.read_manifest`, or of a plan.

        Yields:
            Tables of one row of `serpipe.pack.PACK`.
        """
        builder = PackBuilder(self._seconds)
        # What only segments are asked of need not all come; speech is told from all there is.
        in_part = self._segmentation.kind == "given" and not self._speech
        with closing(one_ahead(recordings.to_pylist(), in_part=in_part)) as recordings_and_copies:
            for row, copy in recordings_and_copies:
                yield from self._recording(row, copy, builder)
                if builder.full:
                    yield from builder.flush()
        yield from builder.flush()

    def give_up(self, recording: pa.Table, units: Sequence[tuple[int, bool, list[str]]], error: AudioError) -> pa.Table:
        """A pack that settles units of a recording as failed, without reading it.

        Args:
            recording: one row, as for decoding.
            units: number, whether it is the last, and the models it fails for.
            error: why.

        Returns:
            One row of `serpipe.pack.PACK`.
        """
        builder = PackBuilder(0.0)
        job = _Job(recording.to_pylist()[0], self._models, self._audio)
        job.given_up(builder, units, error)
        (pack,) = builder.flush()
        return pack

    def _recording(self, row: dict[str, Any], copy: Copy, builder: PackBuilder) -> Iterator[pa.Table]:
        job = _Job(row, self._models, self._audio)
        try:
            given = job.given(builder, mixed=self._channels == "mix") if self._segmentation.kind == "given" else None
            with copy as path, self._turn:
                messages = self._decoder.messages
                decoding = self._decoder.decode(path, self._channels)
                left_out: dict[int, LeftOut] = {}
                for unit in units_of(
                    job.listen(decoding),
                    channels=decoding.channels,
                    segmentation=self._segmentation,
                    given=given,
                    speech=self._speech,
                    left_out=left_out,
                ):
                    if builder.would_burst(unit):
                        yield from builder.flush()
                    job.unit(builder, unit)
                    # The last unit waits: its recording's row travels with it.
                    if builder.full and not unit.final:
                        yield from builder.flush()
                if not decoding.outcome.samples:
                    raise AudioError("AUDIO_UNDECODABLE", "nothing in the file decodes (no samples)")
                job.end(builder, decoding, left_out, self._decoder.messages - messages, in_part=copy.in_part)
        except AudioError as error:
            job.failed(builder, error)
        except Exception as error:
            # A fault of ours must cost this recording alone, not the read task's other recordings.
            what = f"serpipe failed on this recording ({type(error).__name__}: {error})"
            job.failed(builder, AudioError("INTERNAL_ERROR", what, transient=True))


def unsettled(entries: Sequence[Mapping[str, Any]], *, since: int = 0) -> list[tuple[int, bool]]:
    """Units of a recording that one model lacks, each with whether it is the last.

    Args:
        entries: what is settled for the model: `unit`, and `final` where it is the recording's last.
        since: the units before are settled by now.

    Examples:
        >>> unsettled([{"unit": 0, "final": False}, {"unit": 2, "final": False}])
        [(1, False), (3, True)]
        >>> unsettled([{"unit": 1, "final": True}]), unsettled([{"unit": 1, "final": True}], since=1)
        ([(0, False)], [])
    """
    held = {entry["unit"] for entry in entries}
    after = max(max(held, default=-1) + 1, since)
    gaps = [(number, False) for number in range(since, after) if number not in held]
    return gaps if any(entry.get("final") for entry in entries) else [*gaps, (after, True)]


class _Job:
    """One recording on its way into packs."""

    def __init__(self, row: dict[str, Any], models: dict[str, str], audio: str) -> None:
        self.uri: str = row["uri"]
        self._row = row
        self._id: bytes = row["recording_id"]
        self._audio = audio
        self._attempt = (row.get("attempts") or 0) + 1
        settled = row.get("settled") or []
        self._settled = {
            (entry["unit"], entry["model"]) for entry in settled if models.get(entry["model"]) == entry["fp"]
        }
        self._held = {
            model: [entry for entry in settled if (entry["model"], entry["fp"]) == (model, fp)]
            for model, fp in models.items()
        }
        self._stored = {entry["unit"] for entry in settled if entry["status"] != "failed"}
        # What fails before any model is logged once, with whichever model's commit settles the unit first.
        self._logged = {entry["unit"] for entry in settled}
        self._failed = {entry["unit"] for entry in settled if entry["status"] == "failed"}
        kept = row.get("kept") or ()
        self._models = [model for model in models if model not in kept]
        self._next = 0
        self._peak = 0.0
        self._given: list[dict[str, Any]] = row.get("given") or []

    def given(self, builder: PackBuilder, *, mixed: bool) -> Sequence[GivenSegment] | None:
        """The manifest's segments, those that no memory should hold left out with a reason; None where it has none.

        Args:
            builder: is told the reasons.
            mixed: whether channels are made one, of which then every segment is.
        """
        if not self._given:
            return None
        kept = []
        for entry in self._given:
            if entry["end_s"] is not None and entry["end_s"] - entry["start_s"] > LONGEST_SEGMENT_S:
                error = AudioError(
                    "SEGMENT_TOO_LONG", f"a given segment is longer than {LONGEST_SEGMENT_S // 60} minutes"
                )
                if 0 not in self._logged:
                    where = {"unit": 0, "start_s": entry["start_s"], "end_s": entry["end_s"]}
                    builder.add_failure(self._failure(error, "segment", **where))
            else:
                kept.append(entry)
        self._given = kept
        return [GivenSegment(entry["start_s"], entry["end_s"], None if mixed else entry["channel"]) for entry in kept]

    def listen(self, blocks: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        """Passes blocks on and remembers how loud the recording gets."""
        for block in blocks:
            self._peak = max(self._peak, -float(np.min(block, initial=0.0)), float(np.max(block, initial=0.0)))
            yield block

    def unit(self, builder: PackBuilder, unit: Unit) -> None:
        self._next = unit.number + 1
        todo = self._todo(unit.number)
        if self._models and not todo:
            return
        segments = [self._segment(unit, clip) for clip in unit.clips]
        row = self._unit_row(unit.number, final=unit.final, status="labelled" if segments else "empty", todo=todo)
        builder.add_unit(row, unit, segments)
        if not row["new"]:
            return
        for segment in segments:
            if segment["peak"] == 0.0:
                error = AudioError("SEGMENT_SILENT", "every sample is zero; there is nothing to label")
                builder.add_failure(
                    self._failure(
                        error,
                        "segment",
                        segment_id=segment["segment_id"],
                        unit=unit.number,
                        start_s=segment["start_s"],
                        end_s=segment["end_s"],
                    )
                )

    def end(
        self,
        builder: PackBuilder,
        decoding: ChildDecoding,
        left_out: Mapping[int, LeftOut],
        messages: int,
        *,
        in_part: bool,
    ) -> None:
        outcome, header = decoding.outcome, decoding.header
        for index, why in sorted(left_out.items()) if self._next - 1 not in self._logged else ():
            entry = self._given[index]
            match why:
                case "outside":
                    said = f"it starts at {entry['start_s']:.2f} s, the recording ends at {outcome.duration_s:.2f} s"
                    error = AudioError("SEGMENT_OUTSIDE", said)
                case "channel":
                    said = f"it is of channel {entry['channel']}, counted from 0, which is none that is labelled"
                    error = AudioError("SEGMENT_NO_CHANNEL", said)
                case "twice":
                    said = "another given segment holds the very same samples, and is labelled"
                    error = AudioError("SEGMENT_TWICE", said)
            where = {"unit": self._next - 1, "start_s": entry["start_s"], "end_s": entry["end_s"]}
            builder.add_failure(self._failure(error, "segment", **where))
        if self._row.get("known"):
            return
        builder.add_recording(
            {
                **{
                    name: self._row.get(name)
                    for name in ("recording_id", "uri", "size", "etag", "mtime_ns", "claimed_s", "meta")
                },
                "duration_s": outcome.duration_s,
                "header_s": header.claimed_s,
                "container": header.container,
                "codec": header.codec,
                "sample_rate": header.sample_rate,
                "channels": header.channels,
                "verdict": verdict(
                    outcome,
                    header_s=header.claimed_s,
                    claimed_s=self._row.get("claimed_s"),
                    peak=None if in_part else self._peak,
                ),
                "undecoded_s": outcome.undecoded_s,
                "codec_messages": messages,
                "first_seen": datetime.now(UTC),
            }
        )

    def failed(self, builder: PackBuilder, error: AudioError) -> None:
        """The rest of the recording cannot be had: settled as failed, or left open when it may work later."""
        status = "open" if error.transient else "failed"
        gaps = self._gaps()
        for (number, final), models in sorted(gaps.items()):
            builder.add_unit(self._unit_row(number, final=final, status=status, todo=models))
        numbers = {number for number, _ in gaps}
        if numbers and (error.transient or not numbers <= self._failed):
            stage = "read" if error.code.startswith("RECORDING_") else "decode"
            builder.add_failure(self._failure(error, stage, unit=min(numbers)))

    def _gaps(self) -> dict[tuple[int, bool], list[str]]:
        """The units from here on that some model lacks, each with whether it is the last, and those models."""
        gaps: dict[tuple[int, bool], list[str]] = {} if self._models else {(self._next, True): []}
        for model in self._models:
            for gap in unsettled(self._held[model], since=self._next):
                gaps.setdefault(gap, []).append(model)
        return gaps

    def given_up(self, builder: PackBuilder, units: Sequence[tuple[int, bool, list[str]]], error: AudioError) -> None:
        """Nothing more of the recording is tried."""
        for number, final, todo in units:
            builder.add_unit(self._unit_row(number, final=final, status="failed", todo=todo))
        builder.add_failure(self._failure(error, "decode", unit=units[0][0] if units else None))

    def _todo(self, number: int) -> list[str]:
        return [model for model in self._models if (number, model) not in self._settled]

    def _unit_row(self, number: int, *, final: bool, status: str, todo: list[str]) -> dict[str, Any]:
        return {
            "recording_id": self._id,
            "uri": self.uri,
            "unit": number,
            "final": final,
            "status": status,
            "new": number not in self._stored,
            "todo": todo,
            "attempt": self._attempt,
        }

    def _segment(self, unit: Unit, clip: Clip) -> dict[str, Any]:
        segment, quality = clip.segment, clip.quality
        return {
            "segment_id": ids.segment_id(self._id, unit.channel, segment.start, segment.end, self._audio),
            "recording_id": self._id,
            "channel": unit.channel,
            "start_s": segment.start / SAMPLE_RATE,
            "end_s": segment.end / SAMPLE_RATE,
            "short": segment.short,
            "rms": quality.rms,
            "peak": quality.peak,
            "clipping": quality.clipping,
            "speech": quality.speech,
            "snr_db": quality.snr_db,
            "meta": None if segment.given is None else self._given[segment.given]["meta"],
        }

    def _failure(self, error: AudioError, stage: str, **where: Any) -> dict[str, Any]:
        return {
            "recording_id": self._id,
            "uri": self.uri,
            "stage": stage,
            "code": error.code,
            "message": error.message,
            "transient": error.transient,
            "attempt": self._attempt,
            **where,
        }
