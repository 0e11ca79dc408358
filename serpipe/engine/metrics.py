"""Counts of a run as Ray metrics, which every node of a cluster exposes in Prometheus form.

They are for dashboards and alerts over many nights; what counts is the ledger. Ray puts `ray_` before each name and
`_total` behind a counter's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from ray.util.metrics import Counter, Gauge

from serpipe.models.contract import Adapter, ModelSpec, OnEmbeddings, Outputs

COUNTERS = {
    "audio_s": ("serpipe_audio_seconds", "Seconds of audio that every model of the run has seen."),
    "segments": ("serpipe_segments", "Segments that every model of the run has seen."),
    "quarantined": ("serpipe_quarantined", "Rows put in quarantine."),
    "given_s": ("serpipe_given_seconds", "Seconds of audio that networks were given, all models together."),
    "padded_s": ("serpipe_padded_seconds", "The same, were each segment as long as the longest of its micro-batch."),
}
"""Count of a run's board, to the name and meaning of its metric."""

PADDING_SHARE = (
    "serpipe_padding_share",
    "Of what networks were given, the share that is padding where they take rows of one length, since the run began.",
)


class Metrics:
    """Mirrors the counts of one run; lives where they are added up, so that no node has a part of the truth."""

    def __init__(self) -> None:
        self._counters = {count: Counter(name, meaning) for count, (name, meaning) in COUNTERS.items()}
        self._padding = Gauge(*PADDING_SHARE)

    def add(self, counts: Mapping[str, float]) -> None:
        """Add to the counters that have a metric."""
        for name, count in counts.items():
            if name in self._counters and count > 0:
                self._counters[name].inc(count)

    def pad(self, totals: Mapping[str, float]) -> None:
        """Tell the share of padding.

        Args:
            totals: the counts since the run began.
        """
        share = padding_share(totals)
        if share is not None:
            self._padding.set(share)


def padding_share(totals: Mapping[str, float]) -> float | None:
    """Of what networks were given, the share that is padding; None before they were given anything.

    Examples:
        >>> padding_share({"given_s": 30.0, "padded_s": 40.0}), padding_share({})
        (0.25, None)
    """
    padded = totals.get("padded_s", 0.0)
    return 1 - totals.get("given_s", 0.0) / padded if padded else None


class Weighed:
    """An adapter that remembers how many samples it was given, with padding and without.

    Args:
        adapter: what does the work.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        if isinstance(adapter, OnEmbeddings):
            # What answers from embeddings must be known for it here too.
            self.answer = adapter.answer
        self._lock = Lock()
        self._given = self._padded = 0

    @property
    def spec(self) -> ModelSpec:
        """The model's frozen facts."""
        return self._adapter.spec

    @property
    def weights_sha256(self) -> str:
        """Hash of the weights that are loaded."""
        return self._adapter.weights_sha256

    def take(self) -> tuple[int, int]:
        """What was given since somebody last took, without padding and with it; each sample is taken once."""
        with self._lock:
            taken = self._given, self._padded
            self._given = self._padded = 0
        return taken

    def forward(self, waveforms: Sequence[NDArray[np.float32]], *, frames: bool) -> Outputs:
        """One micro-batch, as the adapter does it."""
        outputs = self._adapter.forward(waveforms, frames=frames)
        lengths = [len(waveform) for waveform in waveforms]
        # Beside a GPU two threads run micro-batches.
        with self._lock:
            self._given += sum(lengths)
            self._padded += len(lengths) * max(lengths, default=0)
        return outputs
