"""What a rehearsal's processes tell, summed up."""

from __future__ import annotations

import pytest

from serpipe.rehearsal import summary
from serpipe.rehearsal.company import Decoded, Labelled, Pace


def labelled(**paces: Pace) -> Labelled:
    done = Labelled()
    for phase, pace in paces.items():
        done.paces["a", phase] = pace  # type: ignore[index]
    return done


def test_what_was_measured_beside_rushing_decoders_counts_where_decoders_never_waited() -> None:
    done = [labelled(cold=Pace(10, 50, 50), rushing=Pace(100, 20, 10), calm=Pace(100, 10, 10))]
    free = summary.stage_of(done, "a", 2.0, waited=False, where="cpu")
    assert (free.busy_s, free.cpu_s) == (pytest.approx(0.3), pytest.approx(0.2))
    assert summary.stage_of(done, "a", 2.0, waited=True, where="cpu").busy_s == pytest.approx(0.2)


def test_a_first_piece_counts_where_there_is_no_other() -> None:
    assert summary.stage_of([labelled(cold=Pace(10, 5, 5))], "a", 1.0, waited=True, where="cpu").busy_s == 0.5


def test_kinds_count_by_their_share_of_the_audio_and_not_of_the_sample() -> None:
    decoded = [Decoded("wav", audio_s=100.0, busy_s=1.0), Decoded("opus", audio_s=10.0, busy_s=1.0)]
    assert summary.mixed(decoded, {"wav": 0.5, "opus": 0.5}, "busy_s") == pytest.approx(0.055)
    assert summary.mixed(decoded, {"wav": 0.0, "opus": 1.0, "mp3": 9.0}, "busy_s") == pytest.approx(0.1)


def test_bytes_are_of_rows_and_of_commits() -> None:
    """A commit of 100 s: 1,000 bytes of rows, and 300 of its own; it is half as large as a run's commits."""
    done = Labelled(written_s=100.0, sink_cpu_s=2.0, row_bytes=500, bytes={"t": 1300}, commit_bytes={"t": 300})
    found = summary.written([done, Labelled()], 0.5, bundle_bytes=1000)
    assert found.cpu_s == pytest.approx(0.01)
    assert found.of(400.0) == pytest.approx({"t": 2000 + 300})
    assert found.of(1000.0) == pytest.approx({"t": 5000 + 3 * 300})
