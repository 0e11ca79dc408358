"""A run in small, without Ray and without a store: as many workers as this machine would have, for a few minutes.

Decoders and models work side by side, so that each is as fast as beside the other. What a worker tells are seconds in
which it worked, not those in which it waited; so a stage that is rarely asked is measured as well as one that lags.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from serpipe.audio.child import end_with
from serpipe.errors import SerpipeError
from serpipe.forecast import Rehearsal, Stage
from serpipe.rehearsal import decoding, labelling, summary
from serpipe.rehearsal.company import Batch, Clock, Company, Crew, Decoded, Labelled

__all__ = ["Batch", "Company", "Crew", "rehearse"]

RUSH_SHARE = 0.2
"""Share of a rehearsal after which decoders wait for models that are slower than they."""

NICENESS = 15
"""That Ray gives its workers: on a machine that others use, a rehearsal comes no sooner to its turn than a run."""

_READY_S = 900.0


def rehearse(batches: Sequence[Batch], company: Company, *, seconds: float, shares: Mapping[str, float]) -> Rehearsal:
    """Decode and label a sample as a run on this machine would.

    Args:
        batches: in an order of which every beginning stands for the whole.
        company: the workers.
        seconds: after which no new work is begun; what is under way is ended.
        shares: of all audio, that of each kind.

    Returns:
        What each stage takes for a second of audio of the mix that `shares` describes.

    Raises:
        ModelError: a model that must not be run.
        SerpipeError: `REHEARSAL_FAILED`.
    """
    # The least of three: the first may have to fetch from disk what a run will find in memory.
    ray_s = min(_ray_import_s() for _ in range(3))
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")
    clock = Clock(context.Event(), context.Value("d", 0.0), context.Value("d", 0.0))
    packs, told = [context.Queue(maxsize=2 * crew.actors) for crew in company.crews], context.Queue()
    jobs: list[tuple[Any, Any]] = [(decoding.work, batches[i :: company.decoders]) for i in range(company.decoders)]
    pools = [pool for pool, crew in enumerate(company.crews) for _ in range(crew.actors)]
    jobs += [(labelling.work, (pool, gpu)) for gpu, pool in enumerate(pools)]
    workers = [
        context.Process(target=_work, args=(os.getpid(), job, mine, company, clock, packs, told), daemon=True)
        for job, mine in jobs
    ]
    try:
        for worker in workers:
            worker.start()
        ready = [_next(told, workers, _READY_S) for _ in workers]
        started = time.monotonic()
        clock.rush_until.value = started + RUSH_SHARE * seconds
        clock.until.value = started + seconds
        clock.go.set()
        decoded = [_next(told, workers, seconds + _READY_S)[1:] for _ in range(company.decoders)]
        # A pool ends when those before it have: they hand their packs on to it.
        labelled = [
            done
            for crew, queue_ in zip(company.crews, packs, strict=True)
            for done in _ended(queue_, told, workers, crew.actors)
        ]
    finally:
        for worker in workers:
            if worker.pid is not None:
                worker.kill()
                worker.join()
    done: list[Decoded] = [batch for some, _, _ in decoded for batch in some]
    cpu = sum(cpu_s for _, cpu_s, _ in decoded) / max(sum(batch.busy_s for batch in done), 1e-9)
    waited = any(waited for _, _, waited in decoded)
    decode_s, heard = summary.mixed(done, shares, "busy_s"), summary.mixed(done, shares, "labelled_s")
    where = "cuda" if company.gpu else "cpu"
    audio_s = sum(batch.audio_s for batch in done)
    return Rehearsal(
        took_s=time.monotonic() - began,
        recordings=sum(batch.ended for batch in done),
        failed=sum(batch.failed for batch in done),
        audio_s=audio_s,
        pack_s=audio_s / max(sum(batch.packs for batch in done), 1),
        decode=Stage(busy_s=decode_s, cpu_s=decode_s * cpu),
        models={
            model.name: summary.stage_of(labelled, model.name, heard, waited=waited, where=where)
            for model in company.models
        },
        written=summary.written(labelled, heard, bundle_bytes=company.bundle_bytes),
        segments=summary.segments_of(done, shares),
        heard=heard,
        ray_s=ray_s,
        start_s=started - began,
        load_s=sum(
            min((at - began for _, at, of in ready if of == pool), default=0.0) for pool in range(len(company.crews))
        ),
    )


def _ray_import_s() -> float:
    began = time.monotonic()
    # Captured: what a library says as it is imported is no part of a forecast.
    done = subprocess.run([sys.executable, "-c", "import ray.data"], check=False, capture_output=True, text=True)
    if done.returncode:
        raise _failed(f"a process that imports Ray Data ends with {done.returncode}: {done.stderr.strip()[-300:]}")
    return time.monotonic() - began


def _work(parent: int, job: Callable[..., None], *arguments: Any) -> None:
    # Nobody would end it after a parent that was killed.
    end_with(parent)
    os.nice(NICENESS)
    job(*arguments)


def _ended(packs: Any, told: Any, workers: Sequence[Any], actors: int) -> list[Labelled]:
    """Tell model processes that no more packs come, and hear what they did."""
    until = time.monotonic() + _READY_S
    owed, words = actors, []
    while owed and time.monotonic() < until:
        try:
            packs.put(None, timeout=1.0)
            owed -= 1
        except queue.Full:
            # A process that failed makes no room.
            if (word := _word(told, workers, 0.0)) is not None:
                words.append(word)
    words += [_next(told, workers, _READY_S) for _ in range(actors - len(words))]
    return [done for _, done in words]


def _next(told: Any, workers: Sequence[Any], seconds: float) -> Any:
    """The next word of a worker; a worker that died or failed is an error."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (word := _word(told, workers, 1.0)) is not None:
            return word
    raise _failed("its processes do not answer; this machine may be overloaded")


def _word(told: Any, workers: Sequence[Any], seconds: float) -> Any:
    """The next word of a worker, None where none comes in time; a worker that died or failed is an error."""
    try:
        word = told.get(timeout=seconds)
    except queue.Empty:
        if any(worker.exitcode not in (None, 0) for worker in workers):
            raise _failed("one of its processes died; this machine may be short of memory") from None
        return None
    if word[0] != "failed":
        return word
    if isinstance(word[1], SerpipeError):
        raise word[1]
    raise _failed(f"{type(word[1]).__name__}: {word[1]}") from word[1]


def _failed(why: str) -> SerpipeError:
    return SerpipeError(
        "REHEARSAL_FAILED",
        f"the rehearsal on this machine failed ({why}); plan where the run will be, or label a part of the manifest",
    )
