"""Taking units out of a store: their rows leave the tables, and the next run finds them outstanding.

The only change to rows that are committed. What it is about to do is written down first, as `rewrites/ID.json`, and
every step may be carried out twice, so that whoever starts next can finish what was interrupted. The order keeps
`serpipe.open` right at every point: labels go before what describes them; what another model still needs is put to
its new place before it leaves the old one; the ledger, by which planning goes, comes last. Plain readers stay out
meanwhile. Always under the lease, and when no run is open.
"""

from __future__ import annotations

import io
import json
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serpipe.errors import StoreError
from serpipe.store import layout, ledger, parquet, schemas, seal
from serpipe.store.coverage import Ids, pairs_of
from serpipe.store.current import among
from serpipe.store.rowsets import having, lacking, tuples
from serpipe.store.storage import Storage

FOLDER = "rewrites/"

KEYS = ["recording_id", "unit", "model", "fp", "audio"]

AT_ONCE = 200_000
"""Entries of one intent; a larger rewrite has several, which are carried out one after the other."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was taken out.

    Attributes:
        units: entries of the ledger.
        recordings: recordings they belong to.
    """

    units: int
    recordings: int


def forget(storage: Storage, units: pa.Table, *, files: Sequence[str] = ()) -> Forgotten:
    """Take units out of a store, as if they had never been labelled. The quarantine log stays.

    Segments stay while another model or fingerprint holds the unit, a recording's row while another holds its end.

    Args:
        storage: the store; its lease is held and no run is open.
        units: `recording_id`, `unit`, `model`, `fp` and `audio` of each; those the ledger does not hold are ignored.
        files: damaged files to delete with them, unread.

    Raises:
        StoreError: `STORE_DAMAGED`, a file that must be rewritten is not whole; nothing was changed. `STORE_LOST`,
            another process has taken the store meanwhile.
    """
    going = _going(storage, units)
    starts = range(0, going.num_rows, AT_ONCE)
    for start in starts:
        _look_first(storage, going.slice(start, AT_ONCE), going.slice(0, start + AT_ONCE), files)
    # All that is to go is written down before anything goes: a unit must not outlive the file that it lay in.
    begun = f"{FOLDER}{uuid.uuid4().hex}"
    names = {f"{begun}-{place:04d}.json": start for place, start in enumerate(starts)}
    for name, start in names.items():
        part = going.slice(start, AT_ONCE).combine_chunks()
        storage.put(name, json.dumps({"entries": parquet.pack_table(part)}).encode())
    if not all(storage.exists(name) for name in names):
        # This process was stopped so long that another took the store and finished what it had begun.
        raise StoreError(
            "STORE_LOST",
            f"another run has {storage.shown} by now, and has done what was begun here; give the same command again "
            "when it is over",
        )
    # Not by the intents, which may be carried out twice: rows that others need may move to a place that was freed here.
    for file in files:
        storage.delete(file)
    for name in names:
        _carry_out(storage, name)
    return Forgotten(going.num_rows, len(going["recording_id"].unique()))


def finish_interrupted(storage: Storage) -> int:
    """Finish the rewrites that were begun and not ended. Safe to repeat and to interrupt.

    Returns:
        How many there were.
    """
    names = storage.list(FOLDER)
    for name in names:
        _carry_out(storage, name)
    return len(names)


def under_way(storage: Storage) -> bool:
    """Whether a rewrite is under way, or waits to be finished."""
    return bool(storage.list(FOLDER))


def _carry_out(storage: Storage, name: str) -> None:
    if not storage.exists(name):
        # This process was stopped, another took the store and finished this and what it had intended besides.
        return
    going = _intended(storage, name)
    for model, fp, commit, units in _by_model_commit(going):
        _Labels(storage, model, fp, commit).without(units)
    staying = lacking(ledger.of(storage, going["recording_id"]), going, KEYS)
    for table in _describing(storage, going, staying):
        table.move()
    for table in _describing(storage, going, staying):
        table.shrink()
    if not storage.exists(name):
        # This process was stopped, another took the store and finished this; the units may be labelled anew by now.
        return
    ledger.forget(storage, going)
    storage.delete(name)


def _intended(storage: Storage, name: str) -> pa.Table:
    """The entries that an intent takes out."""
    try:
        return parquet.unpack_table(json.loads(storage.get(name))["entries"]).cast(schemas.LEDGER)
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            "STORE_DAMAGED",
            f"{storage.path(name)}, which says what an interrupted rewrite was about, cannot be read; delete it, then "
            f"`serpipe verify {storage.shown}` marks what was left half done, and the next `serpipe label` without "
            "--shard mends it",
        ) from error


def _look_first(storage: Storage, going: pa.Table, gone: pa.Table, files: Sequence[str]) -> None:
    """Make sure that everything to be rewritten is whole, for a rewrite that has begun must come to its end.

    Args:
        storage: the store.
        going: entries that are taken out at once.
        gone: they and those that have left before them.
        files: what is deleted unread.
    """
    names: list[str] = []
    for model, fp, commit, _ in _by_model_commit(going):
        names += [kind(model, fp, commit) for kind in (layout.predictions, layout.embeddings, layout.frames)]
    gone = gone.filter(pa.array(Ids(pairs_of(going["recording_id"])).holds(gone["recording_id"])))
    staying = lacking(ledger.of(storage, going["recording_id"]), gone, KEYS)
    for table in _describing(storage, going, staying):
        names += table.sources + list(table.homes_of_all())
    unread = set(files)
    for name in dict.fromkeys(names):
        if name in unread or not storage.exists(name):
            continue
        why = seal.broken(io.BytesIO(storage.get(name)))
        if why:
            raise StoreError(
                "STORE_DAMAGED",
                f"{storage.path(name)}: {why}; nothing was changed. `serpipe verify {storage.shown}` marks the damage, "
                "the next `serpipe label` without --shard mends it; then do this again",
            )


class _Labels:
    """One model's files of one commit."""

    def __init__(self, storage: Storage, model: str, fp: str, commit: str) -> None:
        self._storage = storage
        self._predictions = layout.predictions(model, fp, commit)
        self._beside = {"embeddings": layout.embeddings(model, fp, commit), "frames": layout.frames(model, fp, commit)}

    def without(self, units: pa.Table) -> None:
        """Take units (`recording_id`, `unit`) out; a commit that settles nothing more is deleted."""
        storage = self._storage
        if not storage.exists(self._predictions):
            self._delete()
            return
        facts = parquet.facts(storage, self._predictions)
        settled = parquet.unpack_table(facts["settled"])
        left = lacking(settled, units, ["recording_id", "unit"])
        if not left.num_rows:
            self._delete()
            return
        rows, _ = _read(storage, self._predictions)
        kept = lacking(rows, units, ["recording_id", "unit"])
        beside = {}
        for kind, name in self._beside.items():
            if storage.exists(name):
                table, told = _read(storage, name)
                beside[kind] = table.filter(among(table["segment_id"], kept["segment_id"])), table.num_rows, told
        if left.num_rows < settled.num_rows:
            counts = {kind: beside[kind][0].num_rows if kind in beside else 0 for kind in self._beside}
            facts |= {"settled": parquet.pack_table(left), "beside": json.dumps(counts)}
            parquet.write(storage, self._predictions, kept, schemas.PREDICTIONS, facts)
        for kind, (table, before, told) in beside.items():
            _replace(storage, self._beside[kind], table, before, told)

    def _delete(self) -> None:
        for name in (self._predictions, *self._beside.values()):
            self._storage.delete(name)


class _Describing:
    """Rows of `segments` or `recordings`, which stay while any model of any commit still needs them.

    A row lies in a commit that has an entry for what it describes; that is how readers and rewrites find it.

    Args:
        storage: the store.
        schema: of the table.
        name_of: name of the table's file in a commit.
        facts: what goes into the footer of a new file, but for its commit.
        keys: columns that say what a row describes.
        row_id: column that tells rows apart.
        going: entries that are taken out.
        staying: entries of the same recordings that hold such rows on.
    """

    def __init__(
        self,
        storage: Storage,
        schema: pa.Schema,
        name_of: Callable[[str], str],
        facts: dict[str, str],
        keys: list[str],
        row_id: str,
        going: pa.Table,
        staying: pa.Table,
    ) -> None:
        self._storage, self._schema, self._name_of, self._facts = storage, schema, name_of, facts
        self._keys, self._row_id = keys, row_id
        self._going = set(tuples(going, keys))
        self._homes: dict[tuple[object, ...], set[str]] = defaultdict(set)
        for *key, commit in tuples(staying, [*keys, "commit"]):
            self._homes[tuple(key)].add(str(commit))
        self._commits = sorted(going["commit"].unique().to_pylist())

    @property
    def sources(self) -> list[str]:
        """Files that may lose rows."""
        return [self._name_of(commit) for commit in self._commits]

    def homes_of_all(self) -> Iterator[str]:
        """Files that may receive rows."""
        homes = {min(self._homes[key]) for key in self._going if key in self._homes}
        return map(self._name_of, sorted(homes))

    def move(self) -> None:
        """Put the rows that somebody else still needs where an entry of theirs leads to."""
        moving: dict[str, list[pa.Table]] = defaultdict(list)
        for commit in self._commits:
            if self._storage.exists(self._name_of(commit)):
                rows, _ = _read(self._storage, self._name_of(commit))
                homes = [self._home(key, commit) for key in tuples(rows, self._keys)]
                for home in {home for home in homes if home not in (None, commit)}:
                    moving[str(home)].append(rows.filter(pa.array([place == home for place in homes])))
        for home, tables in sorted(moving.items()):
            name, facts = self._name_of(home), self._facts | {"commit": home}
            there = self._schema.empty_table()
            if self._storage.exists(name):
                there, facts = _read(self._storage, name)
            new = pa.concat_tables([table.cast(self._schema) for table in tables])
            new = new.filter(pc.invert(among(new[self._row_id], there[self._row_id])))
            _replace(self._storage, name, pa.concat_tables([there.cast(self._schema), new]), there.num_rows, facts)

    def shrink(self) -> None:
        """Take the rows that have left, or that nobody needs, from where they were."""
        for commit in self._commits:
            name = self._name_of(commit)
            if self._storage.exists(name):
                rows, facts = _read(self._storage, name)
                stay = pa.array([self._home(key, commit) == commit for key in tuples(rows, self._keys)], pa.bool_())
                _replace(self._storage, name, rows.filter(stay), rows.num_rows, facts)

    def _home(self, key: tuple[object, ...], commit: str) -> str | None:
        """Where a row of a commit belongs; None where nobody needs it."""
        if key not in self._going or commit in self._homes.get(key, ()):
            return commit
        return min(self._homes[key]) if key in self._homes else None


def _describing(storage: Storage, going: pa.Table, staying: pa.Table) -> Iterable[_Describing]:
    labelled = staying.filter(pc.not_equal(staying["status"], "failed"))
    for audio in going["audio"].unique().to_pylist():
        yield _Describing(
            storage,
            schemas.SEGMENTS,
            lambda commit, audio=audio: layout.segments(audio, commit),  # type: ignore[misc]
            {"audio": audio},
            ["recording_id", "unit"],
            "segment_id",
            going.filter(pc.equal(going["audio"], audio)),
            labelled.filter(pc.equal(labelled["audio"], audio)),
        )
    ended = labelled.filter(labelled["final"])
    yield _Describing(
        storage,
        schemas.RECORDINGS,
        layout.recordings,
        {},
        ["recording_id"],
        "recording_id",
        going,
        ended,
    )


def _going(storage: Storage, units: pa.Table) -> pa.Table:
    """The ledger's entries of units, in the order of their commits."""
    held = ledger.of(storage, units["recording_id"])
    entries = having(held, units, KEYS)
    return entries.take(pc.sort_indices(entries["commit"]))


def _by_model_commit(entries: pa.Table) -> Iterator[tuple[str, str, str, pa.Table]]:
    """Entries as model, fp, commit and the units they settle there."""
    order = entries.sort_by([(key, "ascending") for key in ("commit", "model", "fp")])
    start, keys = 0, list(tuples(order, ["model", "fp", "commit"]))
    for place in range(1, len(keys) + 1):
        if place == len(keys) or keys[place] != keys[start]:
            model, fp, commit = map(str, keys[start])
            yield model, fp, commit, order.slice(start, place - start).select(["recording_id", "unit"])
            start = place


def _read(storage: Storage, name: str) -> tuple[pa.Table, dict[str, str]]:
    """A file's rows and what its footer says."""
    data = pa.BufferReader(storage.get(name))
    with parquet.damage_told(storage, name), pq.ParquetFile(data) as file:
        return file.read().replace_schema_metadata(None), parquet.facts_of(file.metadata)


def _replace(storage: Storage, name: str, rows: pa.Table, before: int, facts: dict[str, str]) -> None:
    """Put a file's rows anew where their number has changed; a file without rows is deleted."""
    if not rows.num_rows:
        storage.delete(name)
    elif rows.num_rows != before:
        parquet.write(storage, name, rows, rows.schema, facts)
