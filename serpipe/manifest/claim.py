"""How long recordings probably are, before anything has been decoded."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_BYTES_PER_SECOND = {
    "wav": 64_000, "wave": 64_000, "aif": 64_000, "aiff": 64_000, "au": 64_000, "w64": 64_000, "rf64": 64_000,
    "caf": 64_000, "flac": 50_000, "mp3": 12_000, "opus": 6_000, "ogg": 6_000, "oga": 6_000, "m4a": 12_000,
    "aac": 12_000, "mp4": 12_000, "amr": 1_600,
}  # fmt: skip
_OTHER_BYTES_PER_SECOND = 16_000
_UNKNOWN_SECONDS = 60.0


def claim_seconds(recordings: pa.Table) -> NDArray[np.float64]:
    """Estimate the length of recordings, to cut work into even pieces; nothing else may rest on it.

    The manifest's claim where it makes one, else the size divided by what the ending usually needs (bytes per
    second of speech at common settings), else a minute.

    Args:
        recordings: table of schema `RECORDINGS`.

    Returns:
        Seconds, float64 (recordings,), none below 0, none NaN.

    Examples:
        >>> facts = {"uri": ["/a.mp3", "/b"], "size": [24000, None], "claimed_s": [None, None]}
        >>> claim_seconds(pa.table(facts)).tolist()
        [2.0, 60.0]
    """
    ending = pc.utf8_lower(pc.struct_field(pc.extract_regex(recordings["uri"], r"\.(?P<e>[^./]*)$"), "e"))
    if isinstance(ending, pa.ChunkedArray):
        ending = pa.concat_arrays(ending.chunks) if ending.num_chunks else pa.array([], pa.string())
    coded = ending.dictionary_encode()
    rates = pa.array([_BYTES_PER_SECOND.get(e, _OTHER_BYTES_PER_SECOND) for e in coded.dictionary.to_pylist()])
    rate = pc.fill_null(rates.cast(pa.float64()).take(coded.indices), _OTHER_BYTES_PER_SECOND)
    size = recordings["size"].cast(pa.float64())
    claimed = recordings["claimed_s"].cast(pa.float64())
    estimate = pc.coalesce(claimed, pc.divide(size, rate), pa.scalar(_UNKNOWN_SECONDS))
    seconds: NDArray[np.float64] = estimate.to_numpy()
    return seconds
