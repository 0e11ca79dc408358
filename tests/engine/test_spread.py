"""How a run is spread: never more than there is, never refused where it would fit, and bundles of a sane size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import serpipe
from serpipe.audio.child import Limits
from serpipe.audio.recording import UNIT_S
from serpipe.engine import spread
from serpipe.engine.cluster import Cluster
from serpipe.engine.pipeline import Stages
from serpipe.errors import UsageError
from serpipe.manifest.schemas import RECORDINGS
from serpipe.models.registry import ModelRef, resolve
from serpipe.pack import rows_of
from serpipe.plan import Plan, make_plan
from serpipe.store.storage import Storage
from serpipe.testing import write_speech

OURS = resolve("embedded")


def models(count: int, *, large: bool = False) -> list[ModelRef]:
    size = 300_000_000 if large else 77_445
    return [replace(OURS, spec=replace(OURS.spec, name=f"model-{i}", parameters=size)) for i in range(count)]


def spread_over(
    wanted: list[ModelRef],
    cluster: Cluster,
    *,
    tasks: int = 1000,
    todo: Plan | None = None,
    decoders: int | None = None,
    own: tuple[str, ...] = (),
) -> Stages:
    return spread.stages(
        wanted, cluster, todo or plan_of(tasks / 60, tasks), decoders=decoders, own=own, segmentation="window:6/3",
        channels="mix", speech=True, embeddings="utterance", limits=Limits(),
    )  # fmt: skip


def held(stages: Stages) -> tuple[float, float]:
    cpus = stages.decoders * stages.decoder_cpus + sum(pool.actors * pool.cpus for pool in stages.pools)
    return round(cpus + 0.1, 6), sum(pool.actors * pool.gpus for pool in stages.pools)


@settings(max_examples=300, deadline=None)
@given(
    cpus=st.integers(1, 6) | st.integers(1, 64),
    gpus=st.just(0) | st.integers(0, 8),
    count=st.integers(1, 3),
    large=st.booleans(),
    tasks=st.integers(1, 200),
    decoders=st.none() | st.integers(1, 70),
    own=st.lists(
        st.tuples(st.integers(0, 2), st.none() | st.integers(1, 9)), max_size=3, unique_by=lambda pair: pair[0]
    ),
)
@example(cpus=20, gpus=0, count=2, large=False, tasks=200, decoders=22, own=[]).via(
    "decoders leave room for two actors"
)
@example(cpus=20, gpus=0, count=1, large=False, tasks=2, decoders=22, own=[]).via("the last ten-thousandth is used")
def test_every_cluster_carries_it_or_a_sentence_says_why_not(
    cpus: int, gpus: int, count: int, large: bool, tasks: int, decoders: int | None, own: list[tuple[int, int | None]]
) -> None:
    wanted = models(count, large=large)
    pools = [(f"model-{place}", actors) for place, actors in own if place < count]
    asked = tuple(name if actors is None else f"{name}:{actors}" for name, actors in pools)
    cluster = Cluster(cpus, gpus, 1 << 40)
    groups = len(pools) + (len(pools) < count)
    # The least that was asked for: without it there is no run, with it there must be one.
    least = sum(actors or 1 for _, actors in pools) + (len(pools) < count)
    busy, light = (least, decoders or 1) if large and not gpus else (decoders or 1, 0 if gpus else least)
    # One actor of each kind shares what there is; whoever asks for more must have more.
    shared = (decoders or 1) == 1 and least == groups and 0.05 * (light + 2) < cpus
    if (round(0.9 * busy + 0.05 * (light + 2), 6) > cpus and not shared) or (gpus and least > gpus):
        with pytest.raises(UsageError, match="CLUSTER_TOO_FEW_"):
            spread_over(wanted, cluster, tasks=tasks, decoders=decoders, own=asked)
        return
    stages = spread_over(wanted, cluster, tasks=tasks, decoders=decoders, own=asked)
    used_cpus, used_gpus = held(stages)
    assert used_cpus <= cpus
    assert used_gpus <= gpus
    assert sorted(model.name for pool in stages.pools for model in pool.models) == [f"model-{i}" for i in range(count)]
    assert len(stages.pools) == groups
    assert stages.decoders == decoders if decoders else 1 <= stages.decoders <= tasks
    for pool in stages.pools:
        given_actors = dict(pools).get(pool.models[0].name) if len(pool.models) == 1 else None
        # A read task of a minute makes three packs of a large model.
        packs = 3 * tasks if large and not gpus else tasks
        assert pool.actors == given_actors if given_actors else 1 <= pool.actors <= packs
        assert (pool.gpus, pool.cores) == ((1.0, 0) if gpus else (0.0, 1))


@pytest.mark.parametrize(("cpus", "decoders", "actors"), [(2, 2, 1), (3, 3, 1), (4, 4, 1), (8, 8, 2), (64, 64, 16)])
def test_without_a_gpu_every_core_decodes_for_a_small_model(cpus: int, decoders: int, actors: int) -> None:
    stages = spread_over(models(1), Cluster(cpus, 0, 1 << 40))
    assert (stages.decoders, stages.pools[0].actors) == (decoders, actors)


@pytest.mark.parametrize(("cpus", "decoders", "actors"), [(2, 1, 2), (8, 1, 8), (16, 2, 16), (64, 8, 64)])
def test_without_a_gpu_a_large_model_gets_every_core(cpus: int, decoders: int, actors: int) -> None:
    stages = spread_over(models(1, large=True), Cluster(cpus, 0, 1 << 40))
    assert (stages.decoders, stages.pools[0].actors) == (decoders, actors)


@pytest.mark.parametrize("large", [False, True])
def test_one_cpu_is_shared(large: bool) -> None:
    stages = spread_over(models(1, large=large), Cluster(1, 0, 1 << 40))
    assert (stages.decoders, stages.pools[0].actors) == (1, 1)
    assert sorted((stages.decoder_cpus, stages.pools[0].cpus)) == [0.05, 0.85]


def test_beside_gpus_every_core_decodes_and_every_gpu_labels() -> None:
    stages = spread_over(models(2), Cluster(16, 4, 1 << 40))
    assert (stages.decoders, [(pool.actors, pool.gpus) for pool in stages.pools]) == (16, [(4, 1.0)])
    stages = spread_over(models(2), Cluster(16, 4, 1 << 40), own=("model-0:1",))
    assert [(pool.models[0].name, pool.actors) for pool in stages.pools] == [("model-0", 1), ("model-1", 3)]


def test_no_more_actors_than_tasks() -> None:
    stages = spread_over(models(1), Cluster(64, 0, 1 << 40), tasks=3)
    assert (stages.decoders, stages.pools[0].actors) == (3, 3)


@pytest.mark.parametrize(
    ("recordings", "length", "cluster", "large", "expected"),
    [
        (1440, 5.0, Cluster(64, 0, 1 << 40), True, (8, 64)),  # two hours of clips
        (20, 1800.0, Cluster(128, 8, 1 << 40), True, (20, 8)),  # ten hours of podcasts
        (1, 36_000.0, Cluster(128, 8, 1 << 40), True, (1, 8)),  # the same in one file
        (4, 25.0, Cluster(128, 8, 1 << 40), True, (2, 2)),
    ],
)
def test_what_there_is_to_do_decides_how_many_work(
    recordings: int, length: float, cluster: Cluster, large: bool, expected: tuple[int, int], tmp_path: Path
) -> None:
    """As planned before anybody knows the cluster."""
    rows = [
        {"recording_id": i.to_bytes(16), "uri": f"/{i:06d}.wav", "claimed_s": length, "meta": [], "given": []}
        for i in range(recordings)
    ]
    todo = make_plan(
        Storage(str(tmp_path)), "R1", [lambda: pa.Table.from_pylist(rows, schema=RECORDINGS)],
        audio="a", models={"m": "f"}, by_length=True,
    )  # fmt: skip
    stages = spread_over(models(1, large=large), cluster, todo=todo)
    assert (stages.decoders, stages.pools[0].actors) == expected
    assert stages.decoders <= len(todo.tasks(stages.decoders))


@pytest.mark.parametrize("text", ["nobody", "model-0:0", "model-0:x", "model-0:-1", ""])
def test_a_pool_of_nobody_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"POOL_UNKNOWN: --pool .* use NAME or NAME:ACTORS with one of model-0"):
        spread_over(models(1), Cluster(8, 0, 1 << 40), own=(text,))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spread")
    write_speech(folder / "a.wav", seconds=float(UNIT_S), seed=1)
    return folder


def plan_of(hours: float, recordings: int = 24) -> Plan:
    each = hours * 3600 / recordings
    return Plan(groups=[1] * recordings, work_s=[each] * recordings, queries={}, left=recordings, done=0)


@pytest.mark.parametrize("segmentation", ["window:6/3", "window:6/6"])
@pytest.mark.parametrize("embeddings", ["utterance", "none", "frame"])
def test_a_day_of_audio_makes_few_commits_of_many_rows(recordings: Path, segmentation: str, embeddings: str) -> None:
    """The bytes that Ray gathers before a commit, against what real labelled packs weigh."""
    decode = serpipe.Decode(segmentation=segmentation, speech=False, pack_seconds=float(UNIT_S))
    predict = serpipe.Predict(["embedded"], embeddings=embeddings, threads=1)
    (pack,) = [predict(pack) for pack in decode(serpipe.read_manifest(str(recordings)))]
    rows = rows_of(pack, "segments").num_rows
    per_row = pack.nbytes / rows
    gathered = spread.bundle_bytes([OURS], plan_of(24), segmentation, embeddings)
    # Ray closes a bundle with the pack that fills it.
    packs = -(-gathered // pack.nbytes)
    hop = float(segmentation.rsplit("/", 1)[1])
    assert packs * rows >= 100
    assert 24 * 3600 / hop / (packs * rows) <= 60
    segments = max(600, 24 * 3600 / hop / 50) if hop == 3 else max(300, 24 * 3600 / hop / 50)
    assert 0.85 < gathered / per_row / segments < 1.15


@pytest.mark.parametrize("count", [1, 2, 3])
def test_rows_of_several_models_weigh_what_is_reckoned(recordings: Path, count: int, tmp_path: Path) -> None:
    from tests import thirdparty

    names = ["embedded", "spread_a", "spread_b"][:count]
    with pytest.MonkeyPatch.context() as patch:
        thirdparty.install(tmp_path, "spread_a", "spread_b")
        patch.syspath_prepend(str(tmp_path))
        references = [resolve(name) for name in names]
        decode = serpipe.Decode(segmentation="window:6/6", speech=False, pack_seconds=float(UNIT_S))
        predict = serpipe.Predict(references, threads=1)
        (pack,) = [predict(pack) for pack in decode(serpipe.read_manifest(str(recordings)))]
    real = pack.nbytes / rows_of(pack, "segments").num_rows
    reckoned = spread.bundle_bytes(references, plan_of(24), "window:6/6", "utterance") / 300
    assert reckoned == pytest.approx(real, rel=0.2)


@given(hours=st.floats(0.01, 1e6), count=st.integers(1, 10**6), kind=st.sampled_from(["vad", "window:6/3", "given"]))
def test_a_bundle_is_a_fiftieth_within_bounds(hours: float, count: int, kind: str) -> None:
    one = spread.bundle_bytes([OURS], plan_of(1e-9, 1), "window:6/3", "utterance") / 600
    segments = spread.bundle_bytes([OURS], Plan([1], [hours * 3600], {}, count, 0), kind, "utterance") / one
    each = {"vad": 5.0, "window:6/3": 3.0, "given": max(hours * 3600 / count, 1.0)}[kind]
    assert segments >= 99
    fair = hours * 3600 / each / 50
    assert segments == pytest.approx(min(max(fair, min(max(1800 / each, 100), 600)), max(18_000 / each, 100)), rel=0.01)
