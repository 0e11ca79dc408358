"""Ids, keys and numbers that come out the same wherever and in whatever company a row is computed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serpipe.ids import ID_BYTES

FIXED = 1 << 30
"""Confidences are compared and added up as multiples of 2^-30: sums of integers have no order."""

SAMPLES = 16_000
"""Times are exact multiples of a sample at 16 kHz."""

_NOTHING = np.uint64(0x7FC00001)


def words(identifiers: pa.Array | pa.ChunkedArray) -> NDArray[np.uint64]:
    """Ids as numbers that sort as the bytes do.

    Args:
        identifiers: fixed-size binary of 16 bytes, (n,).

    Returns:
        uint64 (2, n): the first and the last eight bytes.

    Examples:
        >>> words(pa.array([bytes(15) + b"a"], pa.binary(16))).tolist()
        [[0], [97]]
    """
    column = identifiers.combine_chunks() if isinstance(identifiers, pa.ChunkedArray) else identifiers
    if not len(column):
        return np.zeros((2, 0), np.uint64)
    raw = np.frombuffer(column.buffers()[1], ">u8", 2 * len(column), column.offset * ID_BYTES)
    return raw.reshape(-1, 2).T.astype(np.uint64)


def by_id(table: pa.Table) -> pa.Table:
    """A table in the order of its `segment_id`."""
    high, low = words(table["segment_id"])
    return table.take(pa.array(np.lexsort((low, high))))


def places(wanted: pa.ChunkedArray, among: pa.ChunkedArray) -> pa.Array:
    """For each id its place among others, null where it is not there."""
    # Arrow has no lookup of fixed-size binaries.
    found = pc.index_in(wanted.cast(pa.binary()), value_set=among.cast(pa.binary()))
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit numbers, one to one (the finaliser of SplitMix64, Steele et al. 2014).

    Examples:
        >>> hex(mixed(np.array([0x9E3779B97F4A7C15], np.uint64))[0])
        '0xe220a8397b1dcdaf'
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def seeded(values: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Hashes of ids for a seed: an order that favours nobody."""
    return mixed(values ^ np.uint64(text_key(f"seed {seed}")))


def text_key(text: str) -> int:
    """64 bits of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def text_keys(column: pa.Array | pa.ChunkedArray) -> NDArray[np.uint64]:
    """`text_key` of each value, null as the empty text; each different text is hashed once."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    coded = pc.fill_null(column, "").dictionary_encode()
    keys = np.array([text_key(text) for text in coded.dictionary.to_pylist()], np.uint64)
    return keys[coded.indices.to_numpy()] if len(keys) else np.zeros(len(column), np.uint64)


def audio_keys(segments: pa.Table) -> NDArray[np.uint64]:
    """Keys that are equal for equal audio, from what was measured on it while it was decoded.

    Length in samples, RMS, peak, clipping and SNR, each to its last bit: together more than 64 bits that two
    different recordings share by chance only, and no audio has to be read.

    Args:
        segments: columns of `serpipe.store.schemas.SEGMENTS`.
    """
    samples = np.rint((floats(segments["end_s"]) - floats(segments["start_s"])) * SAMPLES)
    keys = mixed(samples.astype(np.int64).view(np.uint64))
    for name in ("rms", "peak", "clipping", "snr_db"):
        column = segments[name].combine_chunks()
        bits = pc.fill_null(column, 0.0).to_numpy(zero_copy_only=False).view(np.uint32).astype(np.uint64)
        bits[column.is_null().to_numpy(zero_copy_only=False)] = _NOTHING
        keys = mixed(keys ^ bits)
    return keys


def floats(column: pa.Array | pa.ChunkedArray) -> NDArray[np.float64]:
    """A column of numbers as float64, null as NaN."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)


def fixed(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Numbers of [0, 1] as multiples of 2^-30; NaN as 0."""
    return np.rint(np.nan_to_num(values) * FIXED).astype(np.int64)


def first_known(metas: Iterable[pa.Array], names: Sequence[str]) -> pa.Array:
    """The first of the owner's columns that says something, in the first of several maps that has it.

    Args:
        metas: map arrays of one length.
        names: columns, the likeliest first; as in a manifest, their case counts only where two are alike but for it.

    Examples:
        >>> kind = pa.map_(pa.string(), pa.string())
        >>> metas = pa.array([[("Speaker", "Ann")], None, [("SPEAKER", "Bo"), ("speaker", "Cy")]], kind)
        >>> first_known([metas], ["speaker"]).to_pylist()
        ['Ann', None, 'Cy']
    """
    columns = []
    for meta in metas:
        lower = pa.MapArray.from_arrays(meta.offsets, pc.utf8_lower(meta.keys), meta.items)
        for name in names:
            columns.append(pc.map_lookup(meta, pa.scalar(name), "first"))
            columns.append(pc.map_lookup(lower, pa.scalar(name.lower()), "first"))
    return pc.coalesce(*columns)
