"""A model's certificate: how far batching and a smaller number format move its answers, measured on real audio."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serpipe.errors import AudioError, ModelError, UsageError
from serpipe.models import batching, budget, weights
from serpipe.models.contract import SAMPLE_RATE, Outputs
from serpipe.models.exact import without_tf32
from serpipe.models.registry import ModelRef
from serpipe.redact import strip_secrets

BUCKETS_S = ((0.025, 2.0), (2.0, 5.0), (5.0, 11.0), (11.0, 30.0))
"""Seconds. Segments of one bucket are batched together, and with those of all the others."""

PROBABILITY_DRIFT = 0.02
"""Largest change of a score that is accepted by default."""

MARGIN = 0.05
"""A label may not flip where the two best scores of float32 are further apart than this."""

PER_BUCKET = 12
"""Segments measured in each bucket by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One number format on one length bucket, against float32 one segment at a time.

    Attributes:
        dtype: number format.
        bucket_s: from, to, in seconds.
        segments: how many.
        logits: largest change of a logit.
        scores: largest change of a score; infinite where an answer is no number, for a run would refuse it.
        flips: labels that changed although the margin was larger than `MARGIN`.
        batched: largest change of a score between batched and alone, within the format.
        speed: seconds of audio labelled in a second, batched or one by one, whichever was faster.
    """

    dtype: str
    bucket_s: tuple[float, float]
    segments: int
    logits: float
    scores: float
    flips: int
    batched: float
    speed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What was measured, and what follows.

    Attributes:
        model: name.
        weights_sha256: of the weights that were measured.
        adapter_epoch: of the adapter that was measured.
        torch: version of the library that computed.
        device: `cpu` or `cuda`.
        drift: budget for the change of a score.
        measures: one a format and bucket.
        chosen: fastest format within the budget.
        made: when, UTC.
    """

    model: str
    weights_sha256: str
    adapter_epoch: int
    torch: str
    device: str
    drift: float
    measures: tuple[Measure, ...]
    chosen: str
    made: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def text(self) -> str:
        """The certificate as JSON."""
        return json.dumps(asdict(self), indent=1)


def certify(
    model: ModelRef,
    audio: str | Sequence[NDArray[np.float32]],
    *,
    device: str,
    drift: float = PROBABILITY_DRIFT,
    per_bucket: int = PER_BUCKET,
) -> Certificate:
    """Measure a model on audio and keep the certificate for `--dtype auto`.

    Args:
        model: any dtype; every one the device knows is measured.
        audio: folder of recordings, or waveforms: mono at 16 kHz.
        device: `cpu` or `cuda`.
        drift: largest change of a score that is accepted.
        per_bucket: segments measured in each length bucket; fewer take less time and prove less.

    Raises:
        UsageError: `CERTIFICATE_NO_AUDIO`, nothing in the folder decodes, or no waveform was given; `DEVICE_MISSING`;
            `CERTIFICATE_OF_STUDENT`, the model has but one format.
    """
    import torch

    if model.own_dtype is not None:
        raise UsageError(
            "CERTIFICATE_OF_STUDENT",
            f"{model.name} computes in {model.own_dtype}, as the model that it hears did when it was trained, and in "
            "no other format, so that there is nothing to choose; certify that model before it labels what trains",
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "DEVICE_MISSING",
            "this machine has no GPU that torch can use; certify on one that has, or leave --device out. With a GPU: "
            "`nvidia-smi` shows its driver, and torch must be a build for CUDA",
        )
    clips = _clips(_decoded(audio, 4 * per_bucket) if isinstance(audio, str) else audio, per_bucket)
    # As large as a run may take them: a batch of many rows is what moves an answer.
    budget_s = budget.for_model(model.spec.parameters, device).most
    alone: dict[int, Outputs] = {}
    measures: list[Measure] = []
    without_tf32()
    for dtype in ("float32", "bfloat16", *(("float16",) if device == "cuda" else ())):
        try:
            adapter = replace(model, dtype=dtype).load(device)
        except ModelError as error:
            if error.code == "MODEL_DTYPE_UNSUPPORTED":
                continue
            raise
        # Of all lengths at once: what pads pads most there.
        mixed = batching.run(adapter, [clip for members in clips.values() for clip in members], budget_s=budget_s)
        for place, (bucket, members) in enumerate(clips.items()):
            began = time.perf_counter()
            single = [batching.run(adapter, [clip], budget_s=budget_s) for clip in members]
            halfway = time.perf_counter()
            together = batching.run(adapter, members, budget_s=budget_s)
            # The faster of two passes: what else a machine does for a moment must not choose a format.
            elapsed = min(halfway - began, time.perf_counter() - halfway)
            lonely = batching.join(single)
            reference = alone.setdefault(place, lonely)
            seconds = sum(len(clip) for clip in members) / SAMPLE_RATE
            among = _part(mixed, range(place * per_bucket, (place + 1) * per_bucket))
            measures.append(_compare(dtype, bucket, reference, lonely, (together, among), seconds / elapsed))
    certificate = Certificate(
        model=model.name,
        weights_sha256=model.weights_sha256,
        adapter_epoch=model.spec.adapter_epoch,
        torch=version("torch"),
        device=device,
        drift=drift,
        measures=tuple(measures),
        chosen=_choose(measures, drift),
    )
    path = _path(model, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(certificate.text())
    return certificate


def best_dtype(model: ModelRef, device: str) -> tuple[str, str]:
    """What `--dtype auto` stands for on a device.

    Args:
        model: any dtype.
        device: `cpu` or `cuda`, where the run computes; what was measured on the other says nothing of its kernels.

    Returns:
        The number format, and in words where that comes from. Float32 where there is no certificate of this device, or
        one that measured other code than would compute: another adapter or another torch.
    """
    if model.own_dtype is not None:
        return model.own_dtype, "as the model that it hears"
    path, torch = _path(model, device), version("torch")
    command = f"`serpipe models certify {strip_secrets(model.asked)} --audio DIR --device {device}` makes"
    if not path.exists():
        return "float32", f"it has no certificate for {device}, where this run labels; {command} one"
    found = json.loads(path.read_text())
    if (found.get("adapter_epoch"), found.get("torch")) != (model.spec.adapter_epoch, torch):
        return "float32", f"its certificate for {device} is not of this adapter and torch {torch}; {command} a new one"
    return found["chosen"], f"certified on {device}, where this run labels"


def _compare(
    dtype: str,
    bucket: tuple[float, float],
    reference: Outputs,
    alone: Outputs,
    batched: Sequence[Outputs],
    speed: float,
) -> Measure:
    theirs = _answers(reference)
    ranked = np.sort(theirs, axis=1)
    margin = ranked[:, -1] - ranked[:, -2] if theirs.shape[1] > 1 else np.zeros(len(theirs))
    judged = (margin > MARGIN) & bool(reference.scores.shape[1])
    flips = [(_answers(one).argmax(axis=1) != theirs.argmax(axis=1)) & judged for one in batched]
    return Measure(
        dtype=dtype,
        bucket_s=bucket,
        segments=len(theirs),
        logits=max(_largest(one.logits, reference.logits) for one in batched),
        scores=max(_moved(one, reference) for one in batched),
        flips=int(np.sum(np.any(flips, axis=0))),
        batched=max(_moved(one, alone) for one in batched),
        speed=speed,
    )


def _part(outputs: Outputs, those: range) -> Outputs:
    rows = slice(those.start, those.stop)
    return Outputs(outputs.logits[rows], outputs.scores[rows], outputs.embeddings[rows], None)


def _moved(outputs: Outputs, reference: Outputs) -> float:
    if not all(np.isfinite(one.scores).all() and np.isfinite(one.embeddings).all() for one in (outputs, reference)):
        return float("inf")
    return _largest(_answers(outputs), _answers(reference))


def _answers(outputs: Outputs) -> NDArray[np.float32]:
    """Scores; of a model without labels its embeddings, in units of their spread."""
    if outputs.scores.shape[1]:
        return outputs.scores
    spread = max(float(outputs.embeddings.std()), 1e-12)
    return (outputs.embeddings / np.float32(spread)).astype(np.float32)


def _largest(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    # The logit of a label that a checkpoint has switched off is minus infinity.
    both = np.isfinite(left) & np.isfinite(right)
    return float(np.max(np.abs(left[both] - right[both]), initial=0.0))


def _choose(measures: Sequence[Measure], drift: float) -> str:
    speeds: dict[str, float] = {}
    for dtype in dict.fromkeys(measure.dtype for measure in measures):
        mine = [measure for measure in measures if measure.dtype == dtype]
        if dtype == "float32" or all(m.scores <= drift and m.batched <= drift and not m.flips for m in mine):
            speeds[dtype] = sum(1 / m.speed for m in mine)
    return min(speeds, key=lambda dtype: speeds[dtype])


def _decoded(audio: str, most: int) -> list[NDArray[np.float32]]:
    """Whatever decodes in a folder, up to so many recordings."""
    # Waveforms are certified on machines without codecs too.
    from serpipe.audio.decode import Decoding

    waveforms: list[NDArray[np.float32]] = []
    for path in sorted(Path(audio).rglob("*")):
        if path.is_file() and len(waveforms) < most:
            try:
                waveforms.append(np.concatenate([block[0] for block in Decoding(str(path))]))
            except (AudioError, OSError, ValueError):
                continue
    if not waveforms:
        raise UsageError("CERTIFICATE_NO_AUDIO", f"nothing in {audio} decodes; give a folder of speech")
    return waveforms


def _clips(
    waveforms: Sequence[NDArray[np.float32]], per_bucket: int
) -> dict[tuple[float, float], list[NDArray[np.float32]]]:
    """Cut waveforms into segments of every bucket, until each has enough."""
    if not sum(map(len, waveforms)):
        raise UsageError("CERTIFICATE_NO_AUDIO", "there is no audio to measure on; give a folder of speech")
    clips: dict[tuple[float, float], list[NDArray[np.float32]]] = {bucket: [] for bucket in BUCKETS_S}
    rng = np.random.default_rng(0)
    everything = np.concatenate(waveforms)
    for (least, most), members in clips.items():
        while len(members) < per_bucket:
            length = min(int(rng.uniform(least, most) * SAMPLE_RATE) + 1, len(everything))
            start = int(rng.integers(0, len(everything) - length + 1))
            members.append(everything[start : start + length])
    return clips


def _path(model: ModelRef, device: str) -> Path:
    return weights.cache() / "certificates" / f"{model.name}-{model.weights_sha256[:16]}-{device}.json"
