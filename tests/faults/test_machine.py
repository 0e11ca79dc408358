"""Nights in any order: runs, new models, changed recordings, retries, kills; the store is what a dictionary says."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from serpipe.store import rewrite, version
from serpipe.store.gc import gc
from serpipe.store.reading import Store
from serpipe.store.storage import Storage
from tests.faults.contents import Rows, on_disk, shown
from tests.faults.crashes import forget
from tests.faults.expected import Expected, Key
from tests.faults.mortal import Killed, Mortal
from tests.faults.points import restore, snapshot
from tests.faults.world import RUN_IDS, Ends, Recording, World, compact, forget_failed, held
from tests.tables import KEYS

_serial = itertools.count()

KILLS = st.none() | st.tuples(st.integers(0, 90), st.booleans())
"""At which operation a program dies, and whether that one is still carried out."""

UNITS = st.lists(st.integers(0, 2), min_size=1, max_size=3).map(tuple)


class Nights(RuleBasedStateMachine):
    @initialize()
    def empty(self) -> None:
        self.root = f"memory://nights-{next(_serial)}"
        self.world, self.expected = World(), Expected()
        self.names = itertools.count()
        RUN_IDS.count = 0
        self.started = False

    def teardown(self) -> None:
        if hasattr(self, "root"):
            forget(self.root)

    @rule(units=UNITS, ends=st.sampled_from(["well", "well", "failed", "open"]))
    def a_recording_appears(self, units: tuple[int, ...], ends: Ends) -> None:
        self.world.add(Recording(uri=f"/{next(self.names)}.wav", units=units, ends=ends))

    @rule(data=st.data(), units=UNITS)
    def a_recording_changes(self, data: st.DataObject, units: tuple[int, ...]) -> None:
        if self.world.recordings:
            old = data.draw(st.sampled_from(sorted(self.world.recordings.values(), key=lambda r: r.uri)))
            self.world.add(Recording(uri=old.uri, version=old.version + 1, units=units))

    @rule(more=UNITS)
    def what_could_not_be_read_can_be_read_now(self, more: tuple[int, ...]) -> None:
        for recording in list(self.world.recordings.values()):
            if recording.ends == "open":
                whole = Recording(uri=recording.uri, version=recording.version, units=recording.units + more)
                self.world.add(whole)

    @rule()
    def a_model_is_added(self) -> None:
        self.world.models["m2"] = "f1"

    @rule(model=st.sampled_from(["m1", "m2"]), fp=st.sampled_from(["f1", "f2"]))
    def a_model_has_other_weights(self, model: str, fp: str) -> None:
        if model in self.world.models:
            self.world.models[model] = fp

    @rule(audio=st.sampled_from(["a1", "a2"]))
    def segments_are_cut_otherwise(self, audio: str) -> None:
        self.world.audio = audio

    @rule(kill=KILLS, relabel=st.booleans())
    def label(self, kill: tuple[int, bool] | None, relabel: bool) -> None:
        self._do(
            kill,
            lambda storage: self.world.label(storage, relabel=relabel),
            lambda expected: expected.label(self.world, relabel=relabel),
        )

    @rule(kill=KILLS)
    def compact(self, kill: tuple[int, bool] | None) -> None:
        self._do(kill, compact, lambda expected: None)

    @rule(kill=KILLS)
    def forget_what_failed(self, kill: tuple[int, bool] | None) -> None:
        self._do(kill, forget_failed, lambda expected: expected.forget(expected.failed()))

    @rule(kill=KILLS)
    def gc(self, kill: tuple[int, bool] | None) -> None:
        """It takes away, and nobody who reads the store sees a difference."""
        if not self.started:
            return
        _, before = self._closed()
        try:
            gc(Store(Storage(self.root) if kill is None else Mortal(self.root, kill[0], done=kill[1])))
        except Killed:
            pass
        found, after = self._closed()
        assert after == before
        assert found <= self.expected.units.keys()
        self.expected = Expected({key: self.expected.units[key] for key in found})

    def _do(
        self,
        kill: tuple[int, bool] | None,
        act: Callable[[Storage], object],
        expect: Callable[[Expected], object],
    ) -> None:
        """Do something, and maybe die of it."""
        self.started = True
        after = self.expected.copy()
        expect(after)
        if kill is None:
            act(Storage(self.root))
            self.expected = after
            return
        try:
            act(Mortal(self.root, kill[0], done=kill[1]))
            self.expected = after
        except Killed:
            self._survived(self.expected, after)

    def _survived(self, before: Expected, after: Expected) -> None:
        """What the next to come will find: some of what the killed one did, and nothing else."""
        found, _ = self._closed()
        either = before.units | after.units
        assert found <= either.keys(), "settled what was not there to settle"
        assert before.units.keys() & after.units.keys() <= found, "lost what was settled"
        self.expected = Expected({key: either[key] for key in found})

    def _closed(self) -> tuple[set[Key], Rows]:
        """The settled units and the labels that are shown, once a copy of the store has been closed."""
        copy = f"{self.root}-copy"
        storage = restore(copy, snapshot(Storage(self.root)))
        with held(storage):
            pass
        entries = Store(storage).entries.select(KEYS["ledger"]).to_pylist()
        rows = shown(Store(storage))["predictions"]
        forget(copy)
        return {tuple(row.values()) for row in entries}, rows  # type: ignore[misc]

    @invariant()
    def readers_see_nothing_wrong(self) -> None:
        """Whoever died a moment ago, and whatever waits to be finished."""
        storage = Storage(self.root) if self.started else None
        if storage is None or not storage.exists(version.NAME):
            return
        seen = shown(Store(storage))
        if not rewrite.under_way(storage):
            assert seen["ledger"].keys() <= self.expected.units.keys()
            assert seen["predictions"].keys() <= self.expected.predictions().keys()

    @rule()
    def a_quiet_moment(self) -> None:
        """Once nobody is dying, all of it is there, once, as any reader sees it."""
        if not self.started:
            return
        storage = Storage(self.root)
        version.check(storage)
        with held(storage):
            pass
        tables, seen = on_disk(storage), shown(Store(storage))
        expected = self.expected
        assert {key: (row["status"], row["final"]) for key, row in tables["ledger"].items()} == {
            key: (unit.status, unit.final) for key, unit in expected.units.items()
        }
        predictions = expected.predictions()
        assert tables["predictions"].keys() == predictions.keys() == tables["embeddings"].keys()
        assert {key: row["embedding"] for key, row in tables["embeddings"].items()} == predictions
        assert {key[0] for key in tables["segments"]} == expected.segments()
        assert {key[0] for key in tables["recordings"]} == expected.recordings()
        assert seen["ledger"].keys() == tables["ledger"].keys()
        self._what_is_current_is_shown(seen["predictions"])

    def _what_is_current_is_shown(self, rows: Rows) -> None:
        """What the archive and the models of today were labelled with is shown, and of nothing two answers."""
        assert len({(model, name) for model, _, name in rows}) == len(rows)
        today = {
            key: unit
            for key, unit in self.expected.units.items()
            if self.world.recordings[unit.uri].id == key[0]
            and (self.world.models.get(key[2]), self.world.audio) == key[3:]
            and self.expected.whole(key[0], *key[2:])
        }
        assert Expected(today).predictions().keys() <= rows.keys()
        columns = ("recording_id", "segment_id", "model", "fp")
        failing = Store(Storage(self.root)).failing().select(columns).to_pylist()
        assert Expected(today).failing() <= {tuple(row.values()) for row in failing}


def _nights(examples: int, steps: int, *, derandomize: bool) -> None:
    run_state_machine_as_test(
        Nights,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            derandomize=derandomize,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_nights() -> None:
    _nights(12, 16, derandomize=True)


@pytest.mark.long
def test_many_nights() -> None:
    _nights(60, 30, derandomize=False)
