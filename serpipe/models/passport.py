"""A model's passport: what exactly is run, and that it was looked at before the first segment.

Loading audits every tensor and the labels; the passport adds that the network listens at all: its answer changes with
what it hears, and is not the shrug of a head that was never trained.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from serpipe.errors import ModelError
from serpipe.models.contract import SAMPLE_RATE, Adapter
from serpipe.models.registry import ModelRef
from serpipe.redact import strip_secrets
from serpipe.testing.speech import speech_like

SHRUG = 1e-3
"""Nats below the greatest possible entropy within which two unlike clips may not both lie."""


RECITAL = 1e-2
"""Largest difference to a published answer: libraries differ by far less, other weights by far more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passport:
    """What a run knows of a model.

    Attributes:
        model: name.
        family: module of its family.
        hub_id: repository on the hub; None for a model that ships.
        revision: its pinned commit.
        licence: of the weights.
        location: where they were read.
        labels: raw labels in id order.
        dtype: number format.
        weights_sha256: hash over the files that decide its numbers.
        adapter_epoch: of the adapter.
        fp: model fingerprint.
        checks: what was measured, by name.
        versions: of the libraries that compute.
    """

    model: str
    family: str
    hub_id: str | None
    revision: str | None
    licence: str
    location: str
    labels: tuple[str, ...]
    dtype: str
    weights_sha256: str
    adapter_epoch: int
    fp: str
    checks: dict[str, float]
    versions: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """The passport as JSON, the same for the same facts."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False)

    def sha256(self) -> str:
        """Hash of `text`, as it stands in the footer of every file the model wrote."""
        return hashlib.sha256(self.text().encode()).hexdigest()


def issue(model: ModelRef, device: str = "cpu") -> Passport:
    """Load a model, look at it and say what it is.

    Raises:
        ModelError: what loading refuses, and `MODEL_DEAF`, `MODEL_UNTRAINED`, `MODEL_NOT_FINITE`,
            `MODEL_CHECK_VALUE`.

    Examples:
        >>> from serpipe.models.registry import resolve
        >>> issue(resolve("embedded")).labels
        ('anger', 'happiness', 'neutral', 'sadness')
    """
    spec = model.spec
    adapter = model.load(device)
    checks = listen(adapter)
    if model.published is not None and not model.random_weights:
        checks |= recite(adapter, *model.published)
    return Passport(
        model=spec.name,
        family=model.family,
        hub_id=spec.hub_id,
        revision=spec.revision,
        licence=spec.licence,
        location=strip_secrets(model.location),
        # A checkpoint may name other words than the family; they stand beside its scores.
        labels=adapter.spec.labels,
        dtype=model.dtype,
        weights_sha256=adapter.weights_sha256,
        adapter_epoch=spec.adapter_epoch,
        fp=model.fp,
        checks=checks,
        versions=versions(),
    )


def listen(adapter: Adapter) -> dict[str, float]:
    """Let a model hear two voices and silence.

    Returns:
        `change`: largest difference between the two answers; `entropy`: of its surest answer, in nats (categorical
        models).

    Raises:
        ModelError: `MODEL_NOT_FINITE`; `MODEL_DEAF`, both voices get one answer; `MODEL_UNTRAINED`, both answers are
            as even as those of a head that was never trained.
    """
    spec = adapter.spec
    seconds = min(3.0, spec.max_seconds)
    voices = [speech_like(seconds, seed=1, pitch_hz=110.0), speech_like(0.6 * seconds, seed=2, pitch_hz=240.0)]
    outputs = adapter.forward([*voices, np.zeros(SAMPLE_RATE, np.float32)], frames=False)
    answers = outputs.scores if spec.labels else outputs.embeddings
    if not (np.isfinite(answers).all() and np.isfinite(outputs.embeddings).all()):
        raise ModelError("MODEL_NOT_FINITE", f"{spec.name} gives numbers that are not finite; fetch its weights again")
    checks = {"change": float(np.max(np.abs(answers[0] - answers[1])))}
    if checks["change"] == 0.0:
        raise ModelError("MODEL_DEAF", f"{spec.name} gives the same answer whatever it hears; fetch its weights again")
    if spec.kind == "categorical" and len(spec.labels) > 1:
        entropy = -np.sum(answers[:2] * np.log(np.maximum(answers[:2], 1e-30)), axis=1)
        checks["entropy"] = float(entropy.min())
        if np.log(len(spec.labels)) - checks["entropy"] < SHRUG:
            raise ModelError(
                "MODEL_UNTRAINED",
                f"{spec.name} finds its {len(spec.labels)} labels equally likely whatever it hears: an untrained head",
            )
    return checks


def recite(adapter: Adapter, samples: int, scores: Sequence[float]) -> dict[str, float]:
    """Let a model answer what its authors published the answer to.

    Args:
        adapter: a loaded model.
        samples: length of the zeros they fed it.
        scores: what they got.

    Returns:
        `published`: largest difference to their answer.

    Raises:
        ModelError: `MODEL_CHECK_VALUE`, the difference is larger than `RECITAL`.
    """
    answer = adapter.forward([np.zeros(samples, np.float32)], frames=False).scores[0]
    difference = float(np.max(np.abs(answer - np.asarray(scores))))
    if difference > RECITAL:
        raise ModelError(
            "MODEL_CHECK_VALUE",
            f"{adapter.spec.name} answers {answer.round(4).tolist()} to {samples} zeros, its authors published "
            f"{[round(score, 4) for score in scores]}; these are not their weights",
        )
    return {"published": difference}


@cache
def versions() -> dict[str, str]:
    """The libraries that compute, and their versions."""
    found = {}
    for package in ("serpipe", "torch", "transformers", "funasr", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
