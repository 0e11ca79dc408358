"""What a run lost on its way, done again with care before the run ends.

Ray tries a block a few times and lets it go. Mostly nothing was wrong with it: its node went, or something beside it in
a pack killed the worker. So what is missing is labelled once more, each recording in a child process of its own
(`serpipe.engine.alone`), segment by segment; what kills that child twice is poison and goes to quarantine by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from serpipe import plan
from serpipe.audio.stage import Decode, unsettled
from serpipe.engine import pipeline
from serpipe.engine.alone import Alone, Deadly, Undecodable, Unusable, Work, with_settled
from serpipe.engine.preflight import BUSY_CPUS
from serpipe.engine.progress import Board
from serpipe.engine.sink import StoreSink
from serpipe.engine.source import PlanSource
from serpipe.errors import AudioError
from serpipe.manifest.schemas import RECORDINGS as CATALOGUE
from serpipe.models.stage import unlabelled
from serpipe.pack import rows_of
from serpipe.store import closing, ledger, parquet, plans, runs, schemas
from serpipe.store.lease import Lease
from serpipe.store.rows import RunFacts
from serpipe.store.storage import Storage

MOST_ALONE = 64
"""Lost recordings up to which each is done alone at once. Of more, most were merely lost: the usual pass is faster."""

MOST_LOST = 10
"""How often one recording may lose its worker, or its node, before it is left to the next run."""

MOST_DEADLY = 2
"""Recordings, one after the other, that may cost as many processes as one may: then the fault is not theirs."""

START_S = 600.0
"""Seconds that the cluster has to find room for a worker."""


def finish(
    storage: Storage,
    facts: RunFacts,
    stages: pipeline.Stages,
    sink: StoreSink,
    board: Board,
    queries: dict[int, pa.Array],
    *,
    held: Lease,
    relabel: bool,
) -> dict[bytes, str]:
    """Label what a run's plan holds and its ledger does not, but for what failed with a reason that may pass.

    Args:
        storage: the store.
        facts: the run.
        stages: how it was spread and decodes.
        sink: where it commits.
        board: where it tells what it did.
        queries: signed queries of its plan, by row group.
        held: the lease of the run.
        relabel: whether the run labels again what is whole under other fingerprints.

    Returns:
        Of recordings that are left even so, by id, why, in words.

    Raises:
        SerpipeError: as `pipeline.execute`; the store cannot be written.
    """
    careful = _Careful(storage, facts, stages, sink, queries, held, relabel=relabel)
    lost = careful.lost()
    if len(lost) > MOST_ALONE:
        name, again = careful.planned("again", lost, stages.models)
        source = PlanSource(storage.root, name, again, decoders=stages.decoders)
        pipeline.execute(source, stages, careful.sink_of(facts, "again"), board)
        lost = careful.lost()
    for pool in stages.pools:
        if len(lost):
            careful.label(lost, pool)
    careful.tidy()
    return careful.why


class _Careful:
    def __init__(
        self,
        storage: Storage,
        facts: RunFacts,
        stages: pipeline.Stages,
        sink: StoreSink,
        queries: dict[int, pa.Array],
        held: Lease,
        *,
        relabel: bool,
    ) -> None:
        self._storage, self._facts, self._stages, self._sink, self._queries = storage, facts, stages, sink, queries
        self._held, self._step, self._relabel = held, 0, relabel
        self.why: dict[bytes, str] = {}

    def lost(self) -> pa.Array:
        """Ids of recordings that are not settled and have no reason to wait for the next run."""
        if not self._missing().num_rows:
            return pa.array([], pa.binary())
        # Who was given up may live on, out of Ray's sight and not out of the store's: nothing of its counts any more.
        self._step = self._held.advance()
        # What a dead worker left half written belongs to no commit, and its units will be in another one.
        self.tidy()
        log = parquet.read(
            self._storage,
            self._storage.list(f"quarantine/{self._facts.run_id}-"),
            schemas.QUARANTINE,
            ["recording_id", "transient"],
        )
        waiting = log.filter(log["transient"])["recording_id"].combine_chunks().cast(pa.binary())
        missing = self._missing()["recording_id"].combine_chunks().cast(pa.binary())
        return missing.filter(pc.invert(pc.is_in(missing, value_set=waiting)))

    def tidy(self) -> None:
        """Take away what workers that were given up have left, or written since."""
        if self._step:
            run = runs.Run(run_id=self._facts.run_id, audio=self._facts.audio, models=self._facts.models)
            closing.tidy(self._storage, run)

    def sink_of(self, facts: RunFacts, stage: str) -> StoreSink:
        """Where a later pass commits."""
        return self._sink.of(facts, stage, self._step)

    def planned(self, name: str, lost: pa.Array, models: dict[str, str]) -> tuple[str, plan.Plan]:
        """Plan recordings of the run's plan again, with what is settled by now."""
        name = f"{self._facts.run_id}/{name}"
        return name, plan.make_plan(
            self._storage,
            name,
            [lambda: self._recordings(lost)],
            audio=self._facts.audio,
            models=models,
            by_length=False,
            relabel=self._relabel,
        )

    def label(self, lost: pa.Array, pool: pipeline.Pool) -> None:
        """Label recordings with the models of a pool, one at a time, each alone in a child process."""
        models = {model.name: model.fp for model in pool.models}
        stage = f"alone-{self._stages.pools.index(pool)}"
        name, again = self.planned(stage, lost, models)
        if not again.left:
            return
        rows = pa.concat_tables(plans.groups(self._storage, name))
        queries = again.queries_of(range(len(again.groups)))
        rows = rows.append_column("query", pa.nulls(rows.num_rows, pa.string()) if queries is None else queries)
        lane = _Lane(
            Work(
                decode=self._stages.decode | {"models": models},
                models=pool.models,
                embeddings=self._stages.embeddings,
                threads=max(pool.cores, 1),
                memory_bytes=_node_memory(),
            ),
            # Beside a GPU it needs no more than the pool's own actors, which a node without CPUs for Ray can have.
            cpus=0.0 if pool.gpus else BUSY_CPUS,
            gpus=pool.gpus,
        )
        sink = self.sink_of(replace(self._facts, models=models), stage)
        try:
            deadly = 0
            for row, recording in enumerate(rows["recording_id"].to_pylist()):
                end = self._one(lane, rows.slice(row, 1), sink, models)
                deadly = deadly + 1 if isinstance(end, Deadly) else 0
                if isinstance(end, Unusable | Deadly | Faulty):
                    self.why[recording] = end.how
                    if isinstance(end, Unusable) or deadly == MOST_DEADLY:
                        # No other would fare better.
                        how = f"not tried, for of the {deadly} before it {end.how}" if deadly else end.how
                        self.why |= dict.fromkeys(rows["recording_id"].to_pylist()[row + 1 :], how)
                        return
        finally:
            lane.close()

    def _one(self, lane: _Lane, recording: pa.Table, sink: StoreSink, models: dict[str, str]) -> _End | None:
        """Label one recording; what ended it early, if anything did."""
        for _ in range(MOST_LOST):
            packs: list[pa.Table] = []
            end = lane.label(recording, packs.append)
            if packs:
                sink.commit(packs)
            if isinstance(end, Lost):
                recording = with_settled(recording, packs, models)
                if any(unit["final"] for pack in packs for unit in rows_of(pack, "units").to_pylist()):
                    return None
                continue
            if isinstance(end, Undecodable):
                self._give_up(recording, end)
            return end
        return Faulty(f"its worker or node was lost {MOST_LOST} times")

    def _give_up(self, recording: pa.Table, end: Undecodable) -> None:
        """Settle what is left of a recording as failed, for every model of the run."""
        models = self._wanted(recording)
        entries = ledger.of(self._storage, recording["recording_id"])
        mine = entries.filter(pc.equal(entries["audio"], self._facts.audio)).to_pylist()
        units = [
            (number, final, [model])
            for model, fp in models.items()
            for number, final in unsettled([row for row in mine if (row["model"], row["fp"]) == (model, fp)])
        ]
        error = AudioError("AUDIO_WORKER_DIED", f"decoding it alone failed twice: {end.how}")
        pack = Decode(**self._stages.decode).give_up(recording, units, error)
        specs = [model.spec for pool in self._stages.pools for model in pool.models]
        self.sink_of(self._facts, "given-up").commit([unlabelled(pack, specs)])

    def _wanted(self, recording: pa.Table) -> dict[str, str]:
        """The models that the run's plan wants for a recording."""
        kept: list[str] = []
        for rows in plans.groups(self._storage, self._facts.run_id, ["recording_id", "kept"]):
            mine = pc.equal(rows["recording_id"].cast(pa.binary()), recording["recording_id"][0].as_py())
            kept += [name for names in rows["kept"].filter(mine).to_pylist() for name in names]
        return {name: fp for name, fp in self._stages.models.items() if name not in kept}

    def _missing(self) -> pa.Table:
        return plan.missing(self._storage, self._facts.run_id, audio=self._facts.audio, models=self._facts.models)

    def _recordings(self, lost: pa.Array) -> pa.Table:
        """Recordings of the run's plan as the catalogue had them."""
        found = [CATALOGUE.empty_table()]
        names = [name for name in CATALOGUE.names if name != "query"]
        for group, rows in enumerate(plans.groups(self._storage, self._facts.run_id, names)):
            rows = rows.append_column("query", self._queries.get(group, pa.nulls(rows.num_rows, pa.string())))
            wanted = pc.is_in(rows["recording_id"].cast(pa.binary()), value_set=lost)
            found.append(rows.filter(wanted).select(CATALOGUE.names).cast(CATALOGUE))
        return pa.concat_tables(found)


class Lost:
    """The worker, or its node, is gone; nothing of the recording is to blame."""


@dataclass(frozen=True, slots=True)
class Faulty:
    """What labels it failed, and is not the models nor a process that died; the next one may fare better.

    Attributes:
        how: what happened, in words.
    """

    how: str


_End = Undecodable | Unusable | Deadly | Faulty


class _Lane:
    """An actor that labels recordings alone, replaced when it or its node is lost."""

    def __init__(self, work: Work, *, cpus: float, gpus: float) -> None:
        self._make = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0)(_Worker).remote
        self._work = work
        self._actor: Any = None

    def label(self, recording: pa.Table, take: Callable[[pa.Table], None]) -> _End | Lost | None:
        """Label one recording.

        Args:
            recording: one row of a plan.
            take: is given each labelled pack as it comes.

        Returns:
            What ended it early, or None.
        """
        try:
            if self._actor is None:
                self._actor = self._make(self._work)
                ray.get(self._actor.ready.remote(), timeout=START_S)
            for reference in self._actor.label.remote(recording):
                found: pa.Table | _End = ray.get(reference)
                if isinstance(found, _End):
                    return found
                take(found)
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError, ray.exceptions.ObjectLostError):
            self.close()
            return Lost()
        except ray.exceptions.GetTimeoutError:
            self.close()
            return Unusable(f"the cluster found no room for it in {START_S:.0f} s")
        except ray.exceptions.RayTaskError as error:
            return Faulty(str(error.cause))
        return None

    def close(self) -> None:
        if self._actor is not None:
            ray.kill(self._actor)
        self._actor = None


class _Worker:
    def __init__(self, work: Work) -> None:
        self._alone = Alone(work)

    def ready(self) -> None:
        return

    def label(self, recording: pa.Table) -> Any:
        yield from self._alone.label(recording)


def _node_memory() -> int:
    """What every node of the cluster has for workers, in bytes."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return int(min(node["Resources"].get("memory", 1 << 30) for node in nodes if node["Alive"]))
