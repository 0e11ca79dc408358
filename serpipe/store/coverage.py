"""Which recordings the ledger holds whole, in a few bytes each: millions of entries become sorted ids.

Entries come in any order, twice, and spread over any number of tables. What a table completes is an id from then on;
only recordings of which units are still missing are held as bits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serpipe.pack import ID

Key = tuple[str, str, str]
"""Model name, model fingerprint, audio fingerprint."""

KEY = ("model", "fp", "audio")

COLUMNS = ("recording_id", "unit", "final", *KEY)
"""Of the ledger, what it takes to tell which recordings are whole."""

_FOLD_ROWS = 1_000_000


class Ids:
    """A set of ids as two sorted columns of eight bytes.

    Args:
        pairs: uint64 (n, 2), in any order; ids may stand there twice.

    Examples:
        >>> ids = Ids(pairs_of(pa.array([b"b" * 16, b"a" * 16], ID)))
        >>> ids.holds(pa.array([b"a" * 16, b"c" * 16], ID)).tolist(), len(ids)
        ([True, False], 2)
    """

    def __init__(self, pairs: NDArray[np.uint64]) -> None:
        order = np.argsort(pairs[:, 0])
        self._first, self._second = pairs[order, 0], pairs[order, 1]

    @classmethod
    def none(cls) -> Ids:
        """The empty set."""
        return cls(np.zeros((0, 2), np.uint64))

    def __len__(self) -> int:
        return len(self._first)

    def holds(self, ids: pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
        """Tell for each id whether it is in the set."""
        asked = pairs_of(ids)
        found = np.zeros(len(asked), np.bool_)
        open_ = np.arange(len(asked))
        place = np.searchsorted(self._first, asked[:, 0])
        # Ids that share their first half lie side by side; one round looks at one neighbour of each.
        while len(open_):
            there = place < len(self)
            open_, place = open_[there], place[there]
            there = self._first[place] == asked[open_, 0]
            open_, place = open_[there], place[there]
            same = self._second[place] == asked[open_, 1]
            found[open_[same]] = True
            open_, place = open_[~same], place[~same] + 1
        return found


class Coverage:
    """The recordings of one model and audio fingerprint of which a final unit and every unit before it were added."""

    def __init__(self) -> None:
        self._whole: list[NDArray[np.uint64]] = []
        self._open = _Open.none()

    def add(self, entries: pa.Table) -> None:
        """Take in ledger entries: `recording_id`, `unit` and `final`."""
        unit = entries["unit"].to_numpy().astype(np.int64)
        new = _Open(
            pairs_of(entries["recording_id"]),
            unit // 64,
            np.uint64(1) << (unit % 64).astype(np.uint64),
            np.where(entries["final"].to_numpy(), unit, -1),
        )
        whole, rest = new.fold()
        self._whole.append(whole)
        self._open = self._open.joined(rest)
        if len(self._open.word) > _FOLD_ROWS and len(rest.word) < len(self._open.word) // 2:
            self._fold()

    def ids(self) -> Ids:
        """The recordings that are whole."""
        self._fold()
        return Ids(np.concatenate(self._whole))

    def _fold(self) -> None:
        whole, self._open = self._open.fold()
        self._whole.append(whole)


class _Open:
    """Units of recordings, a row for 64 of them: id, which 64, bits, and the highest final unit met (-1: none)."""

    def __init__(
        self, pairs: NDArray[np.uint64], word: NDArray[np.int64], bits: NDArray[np.uint64], last: NDArray[np.int64]
    ) -> None:
        self.pairs, self.word, self.bits, self.last = pairs, word, bits, last

    @classmethod
    def none(cls) -> _Open:
        return cls(np.zeros((0, 2), np.uint64), np.zeros(0, np.int64), np.zeros(0, np.uint64), np.zeros(0, np.int64))

    def joined(self, other: _Open) -> _Open:
        return _Open(
            *(np.concatenate([getattr(self, name), getattr(other, name)]) for name in ("pairs", "word", "bits", "last"))
        )

    def fold(self) -> tuple[NDArray[np.uint64], _Open]:
        """Ids that are whole, and the rows of the others, each 64 of a recording once."""
        if not len(self.word):
            return self.pairs, self
        coded = _ids(self.pairs).dictionary_encode()
        ids, code = pairs_of(coded.dictionary), coded.indices.to_numpy()
        words = int(self.word.max()) + 1
        slots = pa.array(code * words + self.word).dictionary_encode()
        owner, word = np.divmod(slots.dictionary.to_numpy(), words)
        bits = np.zeros(len(owner), np.uint64)
        np.bitwise_or.at(bits, slots.indices.to_numpy(), self.bits)
        last = np.full(len(ids), -1, np.int64)
        np.maximum.at(last, code, self.last)
        # Of each 64 the bits up to the last unit; a shift by 64 would be none.
        wanted = np.clip(last[owner] + 1 - 64 * word, 0, 64).astype(np.uint64)
        upto = np.where(wanted == 64, ~np.uint64(0), (np.uint64(1) << (wanted % np.uint64(64))) - np.uint64(1))
        held = np.bincount(owner, np.bitwise_count(bits & upto), len(ids))
        whole = (last >= 0) & (held == last + 1)
        rest = ~whole[owner]
        return ids[whole], _Open(ids[owner[rest]], word[rest], bits[rest], last[owner[rest]])


def whole(entries: Iterable[pa.Table], models: Collection[str], keys: Collection[Key] | None = None) -> dict[Key, Ids]:
    """The whole recordings of every fingerprint that some models have in the ledger.

    Args:
        entries: ledger entries table by table, with `COLUMNS`.
        models: names.
        keys: the only fingerprints that are wanted.
    """
    found: dict[Key, Coverage] = {}
    for table in entries:
        for key, mine in _by_key(table):
            if key[0] in models and (keys is None or key in keys):
                found.setdefault(key, Coverage()).add(mine)
    return {key: coverage.ids() for key, coverage in found.items()}


def pairs_of(ids: pa.Array | pa.ChunkedArray) -> NDArray[np.uint64]:
    """Ids as uint64 (n, 2), for comparing; the numbers mean nothing."""
    array: Any = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    data = array.buffers()[1]
    if not len(array):
        return np.zeros((0, 2), np.uint64)
    return np.frombuffer(data, np.uint64, 2 * len(array), array.offset * 16).reshape(-1, 2)


def _ids(pairs: NDArray[np.uint64]) -> pa.FixedSizeBinaryArray:
    return pa.FixedSizeBinaryArray.from_buffers(ID, len(pairs), [None, pa.py_buffer(np.ascontiguousarray(pairs))])


def _by_key(entries: pa.Table) -> Iterator[tuple[Key, pa.Table]]:
    kinds = entries.group_by(list(KEY)).aggregate([]).to_pylist()
    for kind in kinds:
        if len(kinds) > 1:
            same = [pc.equal(entries[name], kind[name]) for name in KEY]
            mine = entries.filter(pc.and_(pc.and_(same[0], same[1]), same[2]))
        else:
            mine = entries
        yield (kind["model"], kind["fp"], kind["audio"]), mine
