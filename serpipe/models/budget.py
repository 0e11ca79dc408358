"""How many seconds of padded audio make a micro-batch, sought while labelling.

What is best depends on the model, the device and the lengths that come. So every pack is a measurement: the size
doubles and halves from where it began until neither is faster, and stays there. No warm-up is spent on it: the fastest
of some packs counts, because the first may pay for a kernel's or a cache's beginning.
"""

from __future__ import annotations

from threading import Lock

from serpipe.models.contract import SAMPLE_RATE
from serpipe.models.lanes import CUDA_CALLS, CUDA_LANES

SMALL_PARAMETERS = 10_000_000
"""Below this a call costs about as much as its work."""

CPU_S, CPU_PADDED_S, CPU_MOST_S = 16.0, 2.0, 32.0
"""Seconds to begin with on a CPU where segments lie one after another, where rows are padded, and most; a small model
begins with the most."""

CUDA_S = 128.0
"""Seconds to begin with on a GPU."""

SECOND_BYTES = 512 * SAMPLE_RATE // 5 * 4 * 4
"""Of GPU memory a second of audio in flight costs: four float32 copies of what the first convolution makes."""


class Budget:
    """The size of a model's micro-batches on a device; calls that overlap share it.

    Args:
        begin: seconds to begin with.
        most: largest size; what begins above it begins there.
        lanes: how many work side by side: a pack must hold a micro-batch for each.
        calls: packs labelled at once: at a new size, the first of each may pay for its beginning.

    Attributes:
        seconds: what the next pack's micro-batches may hold.
        settled: whether that is the fastest; before, packs are measurements.

    Examples:
        >>> budget = Budget(begin=8.0, most=32.0)
        >>> for _ in range(20):
        ...     size = budget.seconds
        ...     budget.record(size, audio_s=60.0, busy_s=1.0 if size == 16.0 else 2.0)
        >>> budget.seconds
        16.0
    """

    def __init__(self, *, begin: float, most: float, lanes: int = 1, calls: int = 1) -> None:
        self.most = most
        self.seconds = min(begin, most)
        self.settled = False
        self._lanes, self._rounds = lanes, calls + 1
        self._speeds: dict[float, list[float]] = {}
        self._lock = Lock()

    def record(self, size: float, *, audio_s: float, busy_s: float) -> None:
        """Tell how long a pack took.

        Args:
            size: seconds of its micro-batches, what `seconds` was when it began.
            audio_s: seconds of audio without padding; of a pack that fills no micro-batch nothing is learnt but, where
                it is the first, that the size is too large.
            busy_s: seconds that it kept the lanes busy, by itself: see `serpipe.models.lanes.Meter`.
        """
        if not audio_s or not busy_s:
            return
        largest = audio_s / self._lanes
        with self._lock:
            if largest < size:
                if not self._speeds:
                    self.seconds = min(self.seconds, max(size / 2, min(size, 1.0)))
                return
            self._speeds.setdefault(size, []).append(audio_s / busy_s)
            self._seek(largest)

    def _seek(self, largest: float) -> None:
        """Go on to a size that is not measured yet, or to the best; a size keeps being measured while it is used."""
        if len(self._speeds.get(self.seconds, ())) < self._rounds:
            return
        best = max(self._speeds, key=lambda size: max(self._speeds[size]))
        fresh = (
            size for size in (best / 2, best * 2) if 1.0 <= size <= min(self.most, largest) and size not in self._speeds
        )
        chosen = next(fresh, None)
        self.seconds, self.settled = chosen or best, chosen is None


def for_model(parameters: int, device: str) -> Budget:
    """Where to begin with a model of so many parameters on a device, and how far its memory lets it go."""
    import torch

    from serpipe.models.packed import packable

    if not device.startswith("cuda"):
        large = CPU_S if packable(torch.device("cpu"), torch.float32) else CPU_PADDED_S
        return Budget(begin=large if parameters > SMALL_PARAMETERS else CPU_MOST_S, most=CPU_MOST_S)
    free, _ = torch.cuda.mem_get_info(device)
    # Half for what this does not count; what is too much all the same is halved where it fails.
    return Budget(begin=CUDA_S, most=free / 2 / CUDA_LANES / SECOND_BYTES, lanes=CUDA_LANES, calls=CUDA_CALLS)
