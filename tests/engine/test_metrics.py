"""The counts of a run in Prometheus form, as a node's endpoint gives them out."""

from __future__ import annotations

import time
import urllib.request

import numpy as np
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from serpipe.engine.metrics import Weighed, padding_share
from serpipe.engine.progress import Board
from serpipe.models.registry import resolve

PATIENCE_S = 120.0
"""Workers hand their metrics to their node every ten seconds."""


def scraped() -> dict[str, float]:
    """The project's metrics on this machine's node."""
    (node,) = ray.nodes()
    with urllib.request.urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics") as page:
        families = text_string_to_metric_families(page.read().decode())
    found: dict[str, float] = {}
    for family in families:
        for sample in family.samples:
            if sample.name.startswith("ray_serpipe_"):
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


@pytest.mark.usefixtures("ray_session")
def test_a_run_can_be_watched_from_outside() -> None:
    before = time.monotonic()
    board = Board()
    board.add(audio_s=20.0, segments=3, given_s=30.0, padded_s=40.0)
    board.add(audio_s=40.0, segments=5, quarantined=2, given_s=30.0, padded_s=60.0)
    assert board.totals()["audio_s"] == 60.0
    while True:
        try:
            found = scraped()
        except OSError:
            found = {}
        # Other runs of this session have counted too, and their gauge is the same.
        if found.get("ray_serpipe_audio_seconds_total", 0.0) >= 60.0 or time.monotonic() - before > PATIENCE_S:
            break
        time.sleep(1.0)
    assert found["ray_serpipe_audio_seconds_total"] >= 60.0
    assert found["ray_serpipe_segments_total"] >= 8
    assert found["ray_serpipe_quarantined_total"] >= 2
    assert found["ray_serpipe_given_seconds_total"] >= 60.0
    assert found["ray_serpipe_padded_seconds_total"] >= 100.0
    assert 0 <= found["ray_serpipe_padding_share"] < 1


def test_padding_is_what_a_micro_batch_is_filled_up_with() -> None:
    adapter = Weighed(resolve("embedded").load("cpu"))
    seconds = (1.0, 2.0, 4.0)
    rng = np.random.default_rng(7)
    clips = [rng.normal(0, 0.1, round(length * 16_000)).astype(np.float32) for length in seconds]
    outputs = adapter.forward(clips, frames=False)
    assert len(outputs.scores) == 3
    given, padded = adapter.take()
    assert (given, padded) == (7 * 16_000, 12 * 16_000)
    assert padding_share({"given_s": given, "padded_s": padded}) == pytest.approx(5 / 12)
    assert adapter.take() == (0, 0)
