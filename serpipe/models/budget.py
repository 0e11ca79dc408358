"""How many seconds of padded audio make a micro-batch, sought while labelling.

What is best depends on the model, the device and the lengths that come. So every pack is a measurement: the size
doubles and halves from where it began until neither is faster, and stays there. No warm-up is spent on it.
"""

from __future__ import annotations

from serpipe.models.contract import SAMPLE_RATE
from serpipe.models.lanes import CUDA_LANES

ROUNDS = 2
"""Packs at each size; the faster one counts, because the first may pay for a kernel's or a cache's beginning."""

SMALL_PARAMETERS = 10_000_000
"""Below this a call costs about as much as its work."""

CPU_S, CPU_MOST_S = 2.0, 32.0
"""Seconds to begin with, and most, on a CPU, where a segment alone runs as fast as a batch; a small model begins with
the most."""

CUDA_S = 128.0
"""Seconds to begin with on a GPU."""

SECOND_BYTES = 512 * SAMPLE_RATE // 5 * 4 * 4
"""Of GPU memory a second of audio in flight costs: four float32 copies of what the first convolution makes."""


class Budget:
    """The size of a model's micro-batches on a device.

    Args:
        begin: seconds to begin with.
        most: largest size; what begins above it begins there.
        lanes: how many work side by side: a pack must hold a micro-batch for each.

    Examples:
        >>> budget = Budget(begin=8.0, most=32.0)
        >>> for _ in range(20):
        ...     budget.record(60.0, 1.0 if budget.seconds == 16.0 else 2.0)
        >>> budget.seconds
        16.0
    """

    def __init__(self, *, begin: float, most: float, lanes: int = 1) -> None:
        self.seconds = min(begin, most)
        self.most = most
        self._lanes = lanes
        self._speeds: dict[float, list[float]] = {}

    def record(self, audio_s: float, elapsed_s: float) -> None:
        """Tell how long a pack took in micro-batches of `seconds`.

        Args:
            audio_s: seconds of audio without padding; of a pack that fills no micro-batch nothing is learnt but, where
                it is the first, that the size is too large.
            elapsed_s: seconds it took.
        """
        largest = audio_s / self._lanes
        if largest < self.seconds:
            if not self._speeds:
                self.seconds = max(self.seconds / 2, min(self.seconds, 1.0))
            return
        speeds = self._speeds.setdefault(self.seconds, [])
        speeds.append(audio_s / elapsed_s)
        if len(speeds) < ROUNDS:
            return
        best = max(self._speeds, key=lambda size: max(self._speeds[size]))
        fresh = (
            size for size in (best / 2, best * 2) if 1.0 <= size <= min(self.most, largest) and size not in self._speeds
        )
        self.seconds = next(fresh, best)


def for_model(parameters: int, device: str) -> Budget:
    """Where to begin with a model of so many parameters on a device, and how far its memory lets it go."""
    if not device.startswith("cuda"):
        return Budget(begin=CPU_S if parameters > SMALL_PARAMETERS else CPU_MOST_S, most=CPU_MOST_S)
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    # Half for what this does not count; what is too much all the same is halved where it fails.
    return Budget(begin=CUDA_S, most=free / 2 / CUDA_LANES / SECOND_BYTES, lanes=CUDA_LANES)
