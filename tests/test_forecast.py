"""Forecasts as arithmetic: they move as they must when clusters, prices and archives do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serpipe import forecast as forecasts
from serpipe.cli.plan import lines
from serpipe.errors import UsageError
from serpipe.forecast import Cluster, Forecast, Pool, Range, Rehearsal, Stage, Work, Written

RATES = st.floats(1e-5, 10.0)
ACTORS = st.integers(1, 300)
PRICES = st.floats(0.0, 100.0)


def work(audio_s: float, *, recordings: int = 1000, tasks: int = 100) -> Work:
    return Work(
        recordings=recordings,
        done=0,
        failed=0,
        bad_rows=0,
        tasks=tasks,
        audio_s=Range(audio_s, 0.9 * audio_s, 1.1 * audio_s),
        probed=0,
    )


CERTAIN = Rehearsal(
    took_s=1.0,
    recordings=10,
    failed=1,
    audio_s=100.0,
    pack_s=60.0,
    decode=Stage(busy_s=0.01, cpu_s=0.01),
    models={"a": Stage(busy_s=0.1, cpu_s=0.1), "b": Stage(busy_s=0.1, cpu_s=0.1)},
    written=Written(cpu_s=0.0, commits=0.0, bytes={}, commit_bytes={}),
    segments=Range(0.2, 0.1, 0.3),
    heard=1.0,
    ray_s=1.0,
    start_s=1.0,
    load_s=1.0,
)


@st.composite
def rehearsals(draw: st.DrawFn) -> Rehearsal:
    decode, first, second = (Stage(busy_s=draw(RATES), cpu_s=draw(RATES)) for _ in range(3))
    return Rehearsal(
        took_s=120.0,
        recordings=50,
        failed=draw(st.integers(0, 50)),
        audio_s=1000.0,
        pack_s=draw(st.floats(1.0, 900.0)),
        decode=decode,
        models={"a": first, "b": second},
        written=Written(cpu_s=draw(RATES), commits=0.0, bytes={"predictions": 10.0}, commit_bytes={"predictions": 0.0}),
        segments=Range(0.2, 0.1, 0.3),
        heard=1.0,
        ray_s=draw(st.floats(0.5, 10.0)),
        start_s=draw(st.floats(0.0, 60.0)),
        load_s=1.0,
    )


def told(of: Work, found: Rehearsal, cluster: Cluster, *, decoders: int = 4, actors: int = 4) -> Forecast:
    pools = (Pool(models=("a",), actors=actors, cores=0, gpus=1.0), Pool(models=("b",), actors=2, cores=1, gpus=0.0))
    return forecasts.forecast(
        "m", "s", {"a": "0", "b": "1"}, of, found, cluster, decoders=decoders, pools=pools, before_s=1.0
    )


@given(rehearsals(), st.floats(1.0, 1e9), ACTORS, ACTORS, ACTORS)
def test_a_larger_cluster_never_takes_longer(
    found: Rehearsal, audio_s: float, cpus: int, actors: int, more: int
) -> None:
    usual = told(work(audio_s), found, Cluster(cpus=cpus, gpus=actors), actors=actors)
    for wider in (
        told(work(audio_s), found, Cluster(cpus=cpus, gpus=actors + more), actors=actors + more),
        told(work(audio_s), found, Cluster(cpus=cpus + more, gpus=actors), actors=actors),
        told(work(audio_s), found, Cluster(cpus=cpus, gpus=actors), actors=actors, decoders=4 + more),
    ):
        assert wider.wall_s <= usual.wall_s * (1 + 1e-9)
    assert usual.wall_s >= audio_s * found.decode.busy_s / 4


@given(rehearsals(), st.floats(1e4, 1e8), st.floats(1.0, 50.0))
def test_more_audio_takes_longer_in_proportion(found: Rehearsal, audio_s: float, times: float) -> None:
    cluster = Cluster(cpus=64, gpus=4)
    # Of few tasks each fills the longest packs; of many, more audio makes longer packs, and each second cheaper.
    for tasks in (10, 10_000):
        one, more = (told(work(audio_s * n, tasks=tasks), found, cluster) for n in (1.0, times))
        assert one.cpu_hours * (1 - 1e-9) <= more.cpu_hours <= times * one.cpu_hours * (1 + 1e-9)
        assert tasks > 10 or more.cpu_hours == pytest.approx(times * one.cpu_hours)
        assert more.gpu_hours == pytest.approx(times * one.gpu_hours)
        assert more.bytes == pytest.approx({table: times * count for table, count in one.bytes.items()})
        assert more.wall_s >= one.wall_s - 1e-6


@given(rehearsals(), st.floats(1.0, 5.0))
def test_a_machine_that_starts_ray_more_slowly_starts_a_run_later(found: Rehearsal, times: float) -> None:
    cluster, slower = Cluster(cpus=64, gpus=4), replace(found, ray_s=times * found.ray_s)
    usual, late = (told(work(1e6), each, cluster) for each in (found, slower))
    imports = forecasts.RAY_START + forecasts.PIPELINE_START
    assert late.start_s - usual.start_s == pytest.approx((times - 1) * found.ray_s * imports, abs=1e-6)
    assert late.wall_s - usual.wall_s == pytest.approx(late.start_s - usual.start_s, abs=1e-3)


@given(rehearsals(), st.floats(1e6, 1e9), st.integers(1, 20_000))
def test_no_cluster_is_faster_than_one_driver(found: Rehearsal, audio_s: float, tasks: int) -> None:
    of = work(audio_s, tasks=tasks)
    one = told(of, found, Cluster(cpus=1e6, gpus=1e6), decoders=10**6, actors=10**6)
    packs = audio_s / min(found.pack_s, audio_s / tasks)
    assert one.wall_s - one.start_s >= 0.999 * packs * forecasts.DRIVER_PACK_S
    assert (one.bottleneck == "driver") >= any("--shard" in note for note in one.notes)


def test_a_cluster_that_outruns_its_driver_is_told_how_many_drivers_feed_it() -> None:
    stage = Stage(busy_s=1e-3, cpu_s=1e-3)
    found = replace(CERTAIN, pack_s=300.0, decode=stage, models={"a": stage, "b": stage})
    of, cluster = work(36e6, tasks=10_000), Cluster(cpus=1024, gpus=64)
    small = told(of, found, cluster, decoders=2, actors=2)
    assert small.bottleneck == "decode"
    assert not small.notes
    pools = (Pool(models=("a", "b"), actors=64, cores=1, gpus=1.0),)
    large = forecasts.forecast("m", "s", {}, of, found, cluster, decoders=64, pools=pools, before_s=1.0)
    # 120,000 packs at 0.02 s each, where 64 actors need 1,125 s.
    assert large.bottleneck == "driver"
    assert large.wall_s - large.start_s == pytest.approx(2400.0)
    assert "3 drivers could" in large.notes[-1]


@given(rehearsals(), st.floats(1e4, 1e8))
def test_moving_audio_between_stages_costs_cores_too(found: Rehearsal, audio_s: float) -> None:
    stages = found.decode.cpu_s + found.written.cpu_s + sum(stage.cpu_s for stage in found.models.values())
    least = audio_s * (stages + forecasts.MOVE_CPU_S)
    assert told(work(audio_s), found, Cluster(cpus=64, gpus=4)).cpu_hours * 3600 >= least * (1 - 1e-9)


@given(rehearsals(), PRICES, PRICES)
def test_the_cost_is_the_clusters_time(found: Rehearsal, cpu: float, gpu: float) -> None:
    plain = Cluster(cpus=16, gpus=2)
    priced = replace(plain, price_cpu_hour=cpu, price_gpu_hour=gpu)
    one = told(work(1e6), found, priced)
    assert told(work(1e6), found, plain).cost is None
    assert one.cost == pytest.approx(one.wall_s / 3600 * (16 * cpu + 2 * gpu))
    twice = told(work(1e6), found, replace(priced, price_cpu_hour=2 * cpu, price_gpu_hour=2 * gpu))
    assert twice.cost == pytest.approx(2 * (one.cost or 0.0))


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_a_share_lies_in_its_interval(count: int, others: int) -> None:
    found = forecasts.share(count, count + others)
    assert 0.0 <= found.low <= found.value + 1e-12
    assert found.value <= found.high + 1e-12
    assert found.high <= 1.0


def test_what_was_rehearsed_whole_is_certain() -> None:
    whole = replace(work(100.0, recordings=10), audio_s=Range(100.0, 100.0, 100.0))
    one = told(whole, CERTAIN, Cluster(cpus=2, gpus=1))
    assert one.segments == Range(20.0, 20.0, 20.0)
    assert (one.quarantined.low, one.quarantined.high) == (1.0, 1.0)


def test_what_a_gpu_is_assumed_to_take_is_for_what_it_hears() -> None:
    one, three = (forecasts.assumed(95_000_000, "float32", heard) for heard in (1.0, 3.0))
    assert (three.busy_s, three.cpu_s) == pytest.approx((3 * one.busy_s, 3 * one.cpu_s))


def test_a_forecast_is_read_as_it_was_written(tmp_path: Path) -> None:
    one = forecasts.nothing_left("m", "s", work(0.0), Cluster(cpus=2, gpus=0))
    path = tmp_path / "forecast.json"
    path.write_text(one.text())
    assert forecasts.read(str(path))["work"]["tasks"] == 100
    assert list(lines(one)) == ["nothing new: 0 recordings are labelled already in s"]


WHOSE = ', "manifest": "m", "store": "s", "models": {}'
FIGURES = '"segments": {"value": 1}, "quarantined": {"value": 0}'
"""Of a forecast, as JSON."""


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "[1]",
        '{"wall_s": 1}',
        '{"wall_s": 1, "work": 1, "bytes": {}, ' + FIGURES + "}",
        '{"wall_s": "1", "work": {"recordings": 1, "audio_s": {"value": 1}}, "bytes": {}, ' + FIGURES + WHOSE + "}",
        '{"wall_s": 1, "work": {"audio_s": {"value": 1}}, "bytes": [], ' + FIGURES + "}",
        '{"wall_s": 1, "work": {"recordings": 1, "audio_s": {"value": 1}}, "bytes": {}, ' + FIGURES + "}",
    ],
)
def test_what_is_no_forecast_is_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "forecast.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=r"FORECAST_UNREADABLE.*serpipe plan"):
        forecasts.read(str(path))
