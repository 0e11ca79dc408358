"""A generation: from predictions that are stored already to rows with a verdict each, and a record of how.

No audio is read and no model is run. `generation.json` is written last and is the generation's commit: files without
it are what an interrupted attempt left, and the next attempt removes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from serpipe.errors import UsageError
from serpipe.pseudolabel import gold as golds
from serpipe.pseudolabel import passes, schemas
from serpipe.pseudolabel.arrays import by_id
from serpipe.pseudolabel.balance import Selection
from serpipe.pseudolabel.gold import Barred
from serpipe.pseudolabel.planted import measure
from serpipe.pseudolabel.prepare import prepare
from serpipe.pseudolabel.recipe import Recipe
from serpipe.pseudolabel.record import describe
from serpipe.pseudolabel.sources import labels_held
from serpipe.store import runs
from serpipe.store.lease import Lease
from serpipe.store.reading import Store
from serpipe.store.reading import open as open_store
from serpipe.store.storage import Storage


def make(
    store: str,
    recipe: Recipe | None = None,
    *,
    gold: str | None = None,
    address: str | None = None,
    ungated: bool = False,
    say: Callable[[str], object] = lambda _: None,
) -> dict[str, Any]:
    """Make the next generation of a store.

    Args:
        store: directory or fsspec URL.
        recipe: the default one if left out.
        gold: labels by people, see `serpipe.pseudolabel.gold.read`; without them nothing is calibrated.
        address: of a running cluster; a store of one bucket needs none.
        ungated: let students teach that passed no gates, as an experiment does that measures what rounds are worth;
            the record says so.
        say: receives a line at a time.

    Returns:
        The generation's record, as `generation.json` holds it.

    Raises:
        UsageError: what the recipe, the gold or the store does not have, see `recipe`, `gold`, `teachers`, `agree`.
        StoreError: `STORE_HELD`.
    """
    recipe = recipe or Recipe()
    opened = open_store(store)
    storage = opened.storage
    run = runs.new_run_id()
    with Lease(storage, run) as lease:
        number = max(numbers(storage), default=0) + 1
        rules, buckets, facts = prepare(opened, recipe, gold, number, ungated=ungated)
        for line in facts["notes"]:
            say(line)
        _clear(storage, rules.number)
        # What may be kept widens with a teacher that passed the gates, not with the number of attempts.
        first = not any(voter.student_of for voter in rules.voters)
        with _cluster(address, len(buckets)), Selection(recipe, rules.classes, first=first) as selection:
            for gathered in passes.run(passes.gather, rules, buckets):
                selection.add(gathered.candidates, gathered.totals)
            chosen = selection.choose()
            fates = [passes.Fates(bucket, *selection.fates(bucket.number)) for bucket in buckets]
            written = list(passes.run(passes.write, rules, fates))
        record = describe(rules, chosen, written, facts, run)
        record["labels"] = labels_held(opened, record["audio"], _teachers(record))
        if gold is not None:
            matched = golds.match(opened, golds.read(gold), record["audio"])
            record["gold"]["planted"] = asdict(measure(storage, number, record["thresholds"], matched))
        lease.check()
        storage.put(schemas.record(rules.number), json.dumps(record, indent=1).encode())
    return record


def outgrown(store: Store, record: Mapping[str, Any]) -> bool:
    """Whether the store holds more labels of a generation's teachers, or fewer, than when it was made."""
    return labels_held(store, record["audio"], _teachers(record)) != record.get("labels")


def _teachers(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(teacher["model"], teacher["fp"]) for teacher in record["teachers"]]


def numbers(storage: Storage) -> list[int]:
    """The generations of a store, oldest first."""
    names = [name for name in storage.list("pseudo_labels/") if name.endswith("/generation.json")]
    return sorted(int(name.split("=", 1)[1].split("/", 1)[0]) for name in names)


def load(storage: Storage, number: int) -> dict[str, Any]:
    """A generation's record.

    Raises:
        UsageError: `GENERATION_UNKNOWN`.
    """
    try:
        record: dict[str, Any] = json.loads(storage.get(schemas.record(number)))
    except FileNotFoundError:
        there = ", ".join(map(str, numbers(storage))) or "none; `serpipe pseudolabel` makes one"
        raise UsageError("GENERATION_UNKNOWN", f"{storage.shown} has no generation {number}; it has {there}") from None
    return record


def dataset(storage: Storage, number: int) -> ds.Dataset:
    """A generation's rows, of `schemas.PSEUDO_LABELS`, to scan in batches or read whole.

    Raises:
        UsageError: `GENERATION_UNKNOWN`.
    """
    load(storage, number)
    names = [name for name in storage.list(f"{schemas.folder(number)}part-") if name.endswith(".parquet")]
    paths = [storage.path(name) for name in names]
    return ds.dataset(paths, schema=schemas.PSEUDO_LABELS, format="parquet", filesystem=storage.fs)


def rows(storage: Storage, number: int, *, kept: bool = False, columns: Sequence[str] | None = None) -> pa.Table:
    """A generation's rows, sorted by `segment_id`.

    Args:
        storage: the store.
        number: of the generation.
        kept: only those that were kept.
        columns: the columns wanted; all by default.

    Raises:
        UsageError: `GENERATION_UNKNOWN`.
    """
    wanted = list(columns or schemas.PSEUDO_LABELS.names)
    read = wanted if "segment_id" in wanted else ["segment_id", *wanted]
    table = dataset(storage, number).to_table(columns=read, filter=ds.field("kept") if kept else None)
    return by_id(table).select(wanted)


def to_train_on(storage: Storage, record: Mapping[str, Any], barred: Barred, columns: Sequence[str]) -> pa.Table:
    """Kept rows of split `train`, sorted by `segment_id`, without what gold as it is now keeps out.

    A generation may have been made without gold, or with another one, than its student is trained with.

    Args:
        storage: the store.
        record: of the generation.
        barred: what gold keeps out.
        columns: the columns wanted.
    """
    needed = ["segment_id", "recording_id", "uri", "speaker", "audio_key", "split"]
    table = rows(storage, int(record["number"]), kept=True, columns=list(dict.fromkeys([*columns, *needed])))
    table = table.filter(pc.equal(table["split"], "train"))
    out = barred.of(table, table["speaker"].combine_chunks(), table["audio_key"].to_numpy())
    return table.filter(pa.array(~out)).select(list(columns))


def _clear(storage: Storage, number: int) -> None:
    """Remove what an interrupted attempt left under a number that was never committed."""
    for name in storage.list(schemas.folder(number)):
        storage.delete(name)


def _cluster(address: str | None, buckets: int) -> Any:
    if buckets <= 1:
        return nullcontext()
    # Imported first: Ray Data sets its log level when it is imported, and `joined` quietens it.
    import ray.data  # noqa: F401

    from serpipe.engine.cluster import joined

    return joined(address)
