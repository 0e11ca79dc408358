"""Lanes work side by side, keep the order, and hand errors on."""

from __future__ import annotations

import threading
import time

import pytest

from serpipe.models.lanes import Lanes, for_device


def test_lanes_work_at_the_same_time_and_begin_once() -> None:
    meeting, begun = threading.Barrier(2, timeout=30), []
    lanes = Lanes(2, begin=lambda: begun.append(threading.get_ident()))

    def meet(item: int) -> int:
        meeting.wait()
        return item * item

    assert list(lanes.map(meet, range(6))) == [0, 1, 4, 9, 16, 25]
    assert len(set(begun)) == len(begun) == 2


@pytest.mark.parametrize("count", [1, 2])
def test_the_first_error_is_the_callers(count: int) -> None:
    with pytest.raises(ZeroDivisionError):
        list(Lanes(count).map(lambda item: 1 // item, [2, 1, 0, 1]))


def test_an_error_is_told_when_no_lane_works_any_more() -> None:
    failed, done = threading.Event(), []

    def work(item: int) -> None:
        if item == 0:
            failed.set()
            raise ZeroDivisionError
        failed.wait(30)
        time.sleep(0.2)
        done.append(item)

    with pytest.raises(ZeroDivisionError):
        list(Lanes(2).map(work, range(50)))
    finished = list(done)
    time.sleep(0.3)
    assert 1 <= len(finished) == len(done) < 10


def test_a_cpu_has_one_lane_the_caller() -> None:
    (thread,) = set(for_device("cpu").map(lambda _: threading.get_ident(), range(3)))
    assert thread == threading.get_ident()
