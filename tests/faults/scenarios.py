"""What is done to stores, and killed: runs, closing, retry, compaction, gc, mending."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from serpipe.shard import Shard
from serpipe.store.gc import gc
from serpipe.store.reading import Store
from serpipe.store.retry import retry
from serpipe.store.storage import Storage
from serpipe.store.verify import verify
from tests.faults.crashes import Pass, observe, prepare, readable
from tests.faults.mortal import Killed, Mortal
from tests.faults.points import State
from tests.faults.world import Recording, World, compact, held

ARCHIVE = (
    Recording(uri="/long.wav", units=(2, 1, 1)),
    Recording(uri="/plain.wav", units=(2,)),
    Recording(uri="/broken.wav", units=(), ends="failed"),
    Recording(uri="/torn.wav", units=(1,), ends="failed"),
    Recording(uri="/later.wav", units=(1,), ends="open"),
    Recording(uri="/empty.wav", units=(0,)),
    Recording(uri="/half.wav", units=(1, 0)),
)


def world() -> World:
    return World(models={"m1": "f1", "m2": "f1"}).add(*ARCHIVE)


@dataclass(frozen=True, slots=True)
class Scenario:
    """Something done to a store.

    Attributes:
        before: what made the store.
        act: what is killed.
        then: what the operator does then; the same again by default.
        between: what must hold in each state before anything mends it.
    """

    before: tuple[Callable[[Storage], object], ...]
    act: Callable[[Storage], object]
    then: Callable[[Storage], object] | None = None
    between: Callable[[Storage], None] | None = readable

    @property
    def again(self) -> Callable[[Storage], object]:
        return self.then or self.act


def _one_model(storage: Storage) -> object:
    return World(models={"m1": "f1"}).add(*ARCHIVE).label(storage)


def _label(storage: Storage) -> object:
    return world().label(storage)


def _changed(storage: Storage) -> object:
    """New content, a new recording, one that can be read now."""
    later = world().add(
        Recording(uri="/plain.wav", version=2, units=(1, 2)),
        Recording(uri="/new.wav", units=(3,)),
        Recording(uri="/later.wav", units=(1, 1)),
    )
    return later.label(storage)


def _cut_otherwise(storage: Storage) -> object:
    """Other segments, new recordings, and a model more: it alone labels what the other keeps."""
    later = world().add(Recording(uri="/m.wav", units=(3,)), Recording(uri="/z.wav", units=(1,)))
    later.audio = "a2"
    return later.label(storage)


def _retry(storage: Storage) -> object:
    return retry(Store(storage))


def _gc(storage: Storage) -> object:
    return gc(Store(storage))


def _damage(storage: Storage) -> None:
    """A file cut short, one that is another's, one that is gone, one that nobody vouches for."""
    predictions, embeddings = storage.list("predictions/model=m1/"), storage.list("embeddings/")
    (segments, *_), ledger_parts = storage.list("segments/"), storage.list("ledger/")
    stray = predictions[0].replace("Z-", "Y-")
    storage.put(stray, storage.get(predictions[0]))
    storage.put(predictions[0], storage.get(predictions[0])[:-20])
    storage.put(segments, storage.get(storage.list("recordings/")[0]))
    storage.delete(embeddings[-1])
    storage.delete(ledger_parts[-1])


def _verify_and_mend(storage: Storage) -> None:
    assert verify(storage).findings
    _label(storage)


def _mend_and_verify(storage: Storage) -> None:
    """Begun rewrites are finished, the damage is looked for again."""
    _close(storage)
    verify(storage)
    _label(storage)
    assert not verify(storage).findings


def label_and_die(storage: Storage) -> None:
    """With one model's part of the second commit written, and the other's begun."""
    points = observe({}, _label).points
    steps = [point for point in points if point.moment == "before" and point.operation != "read"]
    of_predictions = [place for place, step in enumerate(steps) if step.kind == "put predictions/"]
    with suppress(Killed):
        _label(Mortal(storage.root, of_predictions[3]))


def in_shards(storage: Storage) -> None:
    """One after the other, then what joins the ledger."""
    for shard in (Shard(0, 2), Shard(1, 2), None):
        world().label(storage, shard=shard)


def _close(storage: Storage) -> None:
    with held(storage):
        pass


def _relabel(storage: Storage) -> object:
    """Other weights of one model."""
    return World(models={"m1": "f2", "m2": "f1"}).add(*ARCHIVE).label(storage, relabel=True)


SCENARIOS = {
    "first run": Scenario((), _label),
    "second run": Scenario((_label,), _label),
    "closing": Scenario((label_and_die,), _close),
    "shards": Scenario((), in_shards),
    "model added": Scenario((_one_model,), _label),
    "cut otherwise": Scenario((_one_model,), _cut_otherwise),
    "archive changed": Scenario((_label,), _changed),
    "relabelled": Scenario((_label,), _relabel),
    "retry": Scenario((_label,), _retry),
    "run after retry": Scenario((_label, _retry), _label),
    "compaction": Scenario((_label,), compact),
    "second compaction": Scenario((_label, compact, _changed), compact),
    "retry after compaction": Scenario((_label, compact), _retry),
    "gc": Scenario((_label, _relabel), _gc),
    "mending": Scenario((_label, _damage), _verify_and_mend, _mend_and_verify, None),
}


IN_FULL = ("first run", "closing", "retry", "compaction", "gc")
"""Every point of these is tried by `make test`; of the others every third state, by `make test-slow` all."""


def pass_of(name: str) -> Pass:
    """The undisturbed pass."""
    state: State = {}
    for act in SCENARIOS[name].before:
        state = prepare(state, act)
    return observe(state, SCENARIOS[name].act)
