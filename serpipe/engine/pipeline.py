"""The road of a pack through Ray Data: plan, decoders, model pools, sink."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data.exceptions import ExecutionTimeoutError, SystemException

from serpipe.audio.child import Limits
from serpipe.audio.decode import Channels
from serpipe.audio.stage import Decode
from serpipe.engine.cluster import placed
from serpipe.engine.metrics import Weighed
from serpipe.engine.preflight import LIGHT_CPUS
from serpipe.engine.progress import Board
from serpipe.engine.sink import StoreSink
from serpipe.engine.source import PlanSource
from serpipe.errors import SerpipeError
from serpipe.models.contract import SAMPLE_RATE
from serpipe.models.lanes import CUDA_CALLS
from serpipe.models.registry import ModelRef
from serpipe.models.stage import Predict
from serpipe.pack import rows_of, samples_of

TASK_RETRIES = 2
"""How often a task or an actor's call is tried again after its worker died. Ray's own default is for ever."""

LEAST_BLOCK_BYTES = 1 << 20
"""What Ray cuts no block below; the rows of a read task stay together."""

NO_PROGRESS_S = 7200.0
"""Seconds without any block after which Ray gives a run up; nodes of a spot market take their time to come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """One pool of model actors.

    Attributes:
        models: what each of its actors hosts.
        actors: how many.
        cores: CPU cores of one actor; 0 beside a GPU.
        cpus: CPUs that one actor reserves.
        gpus: GPUs of one actor.
    """

    models: tuple[ModelRef, ...]
    actors: int
    cores: int
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """How a run is spread over a cluster, and how it decodes.

    Attributes:
        decoders: decode actors.
        decoder_cpus: CPUs that one of them reserves.
        pools: model pools, in the order a pack passes them.
        segmentation: how recordings are cut.
        channels: which channels are labelled.
        speech: whether each segment's speech share is measured.
        embeddings: `utterance`, `frame` or `none`.
        pack_seconds: audio of a pack.
        limits: what one file may cost.
    """

    decoders: int
    decoder_cpus: float
    pools: tuple[Pool, ...]
    segmentation: str
    channels: Channels
    speech: bool
    embeddings: str
    pack_seconds: float
    limits: Limits

    @property
    def models(self) -> dict[str, str]:
        """Every model's name and fingerprint."""
        return {model.name: model.fp for pool in self.pools for model in pool.models}

    @property
    def decode(self) -> dict[str, Any]:
        """Keyword arguments of `Decode`."""
        return {
            "segmentation": self.segmentation,
            "channels": self.channels,
            "speech": self.speech,
            "pack_seconds": self.pack_seconds,
            "models": self.models,
            "limits": self.limits,
        }


class _Decode(Decode):
    """The decode stage that lets a run drain whose store cannot be written any more."""

    def __init__(self, *, board: Board, **options: Any) -> None:
        super().__init__(**options)
        self._board = board
        self._turn = threading.Lock()

    def __call__(self, recordings: pa.Table) -> Iterator[pa.Table]:
        if self._board.stopped() is None:
            yield from super().__call__(recordings)


class _Predict(Predict):
    """The model stage that tells the board what it has labelled."""

    def __init__(self, models: list[ModelRef], *, board: Board, **options: Any) -> None:
        super().__init__(models, **options)
        self._board = board
        self._weighed = [Weighed(adapter) for adapter in self._adapters.values()]
        self._adapters = dict(zip(self._adapters, self._weighed, strict=True))

    def __call__(self, pack: pa.Table) -> pa.Table:
        segments = rows_of(pack, "segments")
        labelled = super().__call__(pack)
        counts = {"given_s": 0.0, "padded_s": 0.0}
        # Of calls that overlap, one may tell what another was given: the board wants the sum.
        for adapter in self._weighed:
            given, padded = adapter.take()
            counts["given_s"] += given / SAMPLE_RATE
            counts["padded_s"] += padded / SAMPLE_RATE
        if not self.keeps_audio:
            counts |= {"audio_s": len(samples_of(pack)) / SAMPLE_RATE, "segments": segments.num_rows}
        self._board.add(**counts)
        return labelled


def execute(source: PlanSource, stages: Stages, sink: StoreSink, board: Board) -> None:
    """Run the pipeline to its end. That Ray returns says nothing: the caller compares the plan with the ledger.

    Raises:
        SerpipeError: `RUN_BROKEN`, Ray gave up, with its reason; what made the store refuse commits for good.
    """
    # Ray would start more than there is work for, and warn of it.
    decoders = min(stages.decoders, len(source))
    with _context(stages), warnings.catch_warnings():
        # The bounded retries have no other name in Ray 2.60; see `_bounded`.
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        dataset = ray.data.read_datasource(
            source,
            num_cpus=LIGHT_CPUS,
            override_num_blocks=len(source),
            # Decoders want no more at a time. Beyond that each would have a process of its own, and Ray's scheduler
            # slows down with what waits.
            concurrency=decoders,
            ray_remote_args={"max_retries": TASK_RETRIES},
        )
        dataset = dataset.map_batches(
            _Decode,
            fn_constructor_kwargs={"board": board, **stages.decode},
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=stages.decoder_cpus,
            label_selector=placed("decode"),
            # While one task's last recording is decoded, the next one's first is fetched.
            compute=ray.data.ActorPoolStrategy(
                size=decoders,
                max_concurrent_calls_per_actor=2 if source.remote else 1,
                max_tasks_in_flight_per_actor=2,
                enable_true_multi_threading=source.remote,
            ),
            **_bounded(),
        )
        for place, pool in enumerate(stages.pools):
            dataset = dataset.map_batches(
                _Predict,
                fn_constructor_args=(list(pool.models),),
                fn_constructor_kwargs={
                    "board": board,
                    "embeddings": stages.embeddings,
                    "keep_audio": place + 1 < len(stages.pools),
                    "threads": max(pool.cores, 1),
                },
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=pool.cpus,
                num_gpus=pool.gpus,
                label_selector=placed("label"),
                compute=actors(pool),
                **_bounded(),
            )
        try:
            dataset.write_datasink(sink, ray_remote_args={"num_cpus": LIGHT_CPUS, "max_retries": TASK_RETRIES})
        except (ray.exceptions.RayError, SystemException, ExecutionTimeoutError) as error:
            cause = str(error).strip().splitlines()[-1]
            raise SerpipeError(
                "RUN_BROKEN", f"Ray gave the run up ({cause}); what is committed counts, run the same command again"
            ) from error
    stopped = board.stopped()
    if stopped is not None:
        raise stopped


def actors(pool: Pool) -> ray.data.ActorPoolStrategy:
    """The actors of a pool. Beside a GPU the next pack is unpacked, and the last one packed, while the network runs."""
    if not pool.gpus:
        return ray.data.ActorPoolStrategy(size=pool.actors)
    # Ray would take the calls at once and still run them one after the other, on one thread.
    return ray.data.ActorPoolStrategy(
        size=pool.actors, max_concurrent_calls_per_actor=CUDA_CALLS, enable_true_multi_threading=True
    )


def _bounded() -> dict[str, Any]:
    """Retries of an actor's calls. Ray 2.60 takes them as keyword arguments that 2.64 will drop."""
    return {"max_restarts": -1, "max_task_retries": TASK_RETRIES}


@contextmanager
def _context(stages: Stages) -> Iterator[None]:
    """Ray Data's settings for the length of a run; the caller's own are put back."""
    context = ray.data.DataContext.get_current()
    wanted = {
        # A lost block is found by comparing plan and ledger; without this it would end the run.
        "max_errored_blocks": -1,
        "max_consecutive_actor_init_deaths": 3,
        "execution_no_progress_timeout_s": NO_PROGRESS_S,
        "enable_progress_bars": False,
        # Every worker would walk its own memory map every second, for a figure that nobody reads.
        "memory_usage_poll_interval_s": None,
        # A block a pack: gathered to more, a pool's actors would wait for the end of what one of them is given.
        "target_max_block_size": max(round(stages.pack_seconds * SAMPLE_RATE * 4 / 2), LEAST_BLOCK_BYTES),
    }
    before = {name: getattr(context, name) for name in wanted}
    for name, value in wanted.items():
        setattr(context, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
