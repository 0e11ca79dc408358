"""What only a GPU can show: the same numbers alone, in batches, in lanes and short of memory; no wait; its peak.

Skipped where torch finds none.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch

import serpipe
from serpipe.models import batching, budget, lanes
from serpipe.models.contract import Outputs
from serpipe.models.exact import without_tf32
from serpipe.models.masking import even, pad
from serpipe.models.registry import resolve
from serpipe.pack import rows_of
from serpipe.testing import make_checkpoint, write_speech
from tests.conftest import ROOT

from .clips import sounds

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")

DEVICE = "cuda"

FAMILIES = (
    "hubert-large-superb-er",
    "wav2vec2-base-superb-er",
    "odyssey-categorical",
    "audeering-dim",
    "emotion2vec-plus-base",
    "exhubert",
    "embedded",
)

SAMPLES = (16_000, 400, 88_123, 16_100, 48_000, 160_000, 7_000, 31_999)


@pytest.fixture(autouse=True)
def _exact() -> None:
    """As the model stage has it: no convolution in TF32."""
    without_tf32()


@cache
def loaded(name: str, device: str = DEVICE, dtype: str = "float32") -> Any:
    return resolve(written(name), dtype=dtype).load(device)


@cache
def written(name: str) -> str:
    return name if name == "embedded" else f"{name}={make_checkpoint(name, mkdtemp(prefix='serpipe-gpu-'))}"


def clips() -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    return [sounds()[place % 6][:length] for place, length in enumerate(SAMPLES)]


def same(ours: Outputs, theirs: Outputs, *, within: float = 1e-4) -> None:
    """Within a share of the logits' spread over clips, and as much of the embeddings'."""
    spread = float(theirs.logits.std(axis=0).mean())
    assert spread > 0.1
    assert np.abs(ours.logits - theirs.logits).max() <= within * spread
    assert np.abs(ours.embeddings - theirs.embeddings).max() <= within * max(float(theirs.embeddings.std()), 1.0)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_segment_has_the_same_numbers_alone_and_in_a_batch(name: str) -> None:
    adapter = loaded(name)
    alone = batching.join([adapter.forward([clip], frames=False) for clip in clips()])
    same(adapter.forward(clips(), frames=False), alone)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_gpu_gives_what_a_cpu_gives(name: str) -> None:
    """Kernels sum in another order; a decoded label must not depend on where."""
    same(
        batching.run(loaded(name), clips(), budget_s=20.0),
        batching.run(loaded(name, "cpu"), clips(), budget_s=20.0),
        within=1e-3,
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_two_lanes_give_what_one_gives(name: str) -> None:
    """Ten times over: a copy that a kernel does not wait for shows now and then."""
    adapter, many, meter = loaded(name), clips() * 6, lanes.Meter()
    one = batching.run(adapter, many, budget_s=10.0)
    side_by_side = lanes.for_device(DEVICE)
    for _ in range(10):
        same(batching.run(adapter, many, budget_s=10.0, lanes=side_by_side, meter=meter), one)
    assert meter.busy_s > 0


def test_padding_copies_from_pinned_memory_without_a_wait() -> None:
    torch.zeros(1, device=DEVICE)
    with no_waits():
        batch, lengths = pad(clips(), DEVICE)
    expected, sizes = pad(clips(), "cpu")
    assert batch.device.type == lengths.device.type == DEVICE
    assert torch.equal(batch.cpu(), expected)
    assert torch.equal(lengths.cpu(), sizes)


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("name", ["hubert-large-superb-er", "odyssey-categorical", "emotion2vec-plus-base"])
def test_a_network_runs_without_a_wait(name: str, mixed: bool) -> None:
    network = loaded(name)._network
    waves = clips() if mixed else [sounds()[place][:32_000] for place in range(4)]
    with torch.inference_mode():
        batch, lengths = pad(waves, DEVICE)
        network(batch, lengths, even=even(waves))
        torch.cuda.synchronize()
        with no_waits():
            network(batch, lengths, even=even(waves))


def no_waits() -> Any:
    """A `with` block in which torch refuses whatever makes the host wait for the device."""

    class Refused:
        def __enter__(self) -> None:
            torch.cuda.set_sync_debug_mode("error")

        def __exit__(self, *_: object) -> None:
            torch.cuda.set_sync_debug_mode("default")

    return Refused()


@pytest.fixture
def _free() -> Iterator[None]:
    """All of the card's memory again, whatever a test did."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("_free")
@pytest.mark.parametrize("count", [1, 2])
def test_short_of_memory_a_micro_batch_is_halved_and_the_numbers_stay(count: int) -> None:
    adapter, many = loaded("hubert-large-superb-er"), [sounds()[place % 6][:160_000] for place in range(64)]
    side_by_side = lanes.Lanes() if count == 1 else lanes.for_device(DEVICE)
    enough = batching.run(adapter, many, budget_s=40.0)
    few = peak_of(lambda: batching.run(adapter, many[:4], budget_s=1e6))
    all_of_them = peak_of(lambda: batching.run(adapter, many, budget_s=1e6))
    limit = few + (all_of_them - few) // 3
    tried: list[int] = []

    class Counted:
        spec = adapter.spec

        def forward(self, waveforms: Any, *, frames: bool) -> Outputs:
            tried.append(len(waveforms))
            outputs: Outputs = adapter.forward(waveforms, frames=frames)
            return outputs

    free()
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(DEVICE).total_memory)
    made = batching.run(Counted(), many, budget_s=1e6, lanes=side_by_side)  # type: ignore[arg-type]
    assert tried[0] == 64
    assert len(tried) > 2
    same(made, enough)


def peak_of(work: Any) -> int:
    """Bytes that the allocator took at most."""
    free()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_reserved()


def free() -> None:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def test_packs_that_overlap_are_labelled_as_in_turn(tmp_path: Path) -> None:
    """As an actor has it: two calls at once, two lanes, and micro-batches whose size is being sought."""
    for seed in range(6):
        write_speech(tmp_path / f"{seed}.wav", seconds=40.0 + seed, seed=seed)
    decode = serpipe.Decode(segmentation="window:3/2", speech=False, pack_seconds=60.0)
    packs = list(decode(serpipe.read_manifest(str(tmp_path)))) * 3
    names = ["embedded", written("hubert-base-superb-er"), written("emotion2vec-plus-base")]
    stage = serpipe.Predict(names, device=DEVICE)
    in_turn = [stage(pack) for pack in packs]
    with ThreadPoolExecutor(lanes.CUDA_CALLS) as calls:
        together = list(calls.map(stage, packs))
    for ours, theirs in zip(together, in_turn, strict=True):
        assert ours.column_names == theirs.column_names
        for column in ours.column_names:
            if column.startswith("results:"):
                left, right = (rows_of(table, column) for table in (ours, theirs))
                assert left["segment"].equals(right["segment"])
                assert left.num_rows > 0
                mine, others = (np.asarray(rows["scores"].combine_chunks().flatten()) for rows in (left, right))
                np.testing.assert_allclose(mine, others, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_close(dtype: str) -> None:
    name = "hubert-large-superb-er"
    half = batching.run(loaded(name, dtype=dtype), clips(), budget_s=20.0)
    exact = batching.run(loaded(name), clips(), budget_s=20.0)
    assert np.isfinite(half.logits).all()
    assert 0 < np.abs(half.embeddings - exact.embeddings).max() < 0.1 * float(np.abs(exact.embeddings).max())


def test_a_budget_fits_the_card() -> None:
    sizes = budget.for_model(300_000_000, DEVICE)
    free_bytes, _ = torch.cuda.mem_get_info(DEVICE)
    assert 1.0 <= sizes.seconds <= sizes.most
    assert sizes.most * budget.SECOND_BYTES * lanes.CUDA_LANES <= free_bytes


def test_a_network_reaches_a_share_of_the_cards_peak() -> None:
    sys.path.insert(0, str(ROOT / "jobs"))
    from benchmarks import models

    rows = models.figures_of("hubert-base-superb-er", DEVICE, "bfloat16", quick=True, size="tiny")
    ratios = {row.name.partition(":")[0]: row.ratio for row in rows}
    assert set(ratios) == {"adapter/model", "model/peak"}
    assert 0 < ratios["model/peak"] < 1
    assert models.peak("bfloat16", size=4096) > models.peak("float32", size=4096) > 1e11
