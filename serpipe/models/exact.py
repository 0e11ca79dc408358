"""Float32 that is float32."""

from __future__ import annotations


def without_tf32() -> None:
    """Have a GPU multiply and convolve float32 in float32, in the whole process.

    PyTorch lets convolutions round to TF32, which keeps ten bits: far too few for a label that does not change with its
    batch, or for what other formats are held against.

    Examples:
        >>> import torch
        >>> without_tf32()
        >>> torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        (False, False)
    """
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
