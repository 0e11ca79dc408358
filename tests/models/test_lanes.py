"""Lanes work side by side, keep the order, and hand errors on."""

from __future__ import annotations

import threading
import time

import pytest

from serpipe.models.lanes import Lanes, Meter, for_device


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


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_time_beside_others_is_shared_among_them() -> None:
    """One item alone for a second, four beside another, two alone: three seconds and two, of the five that passed."""
    clock, first, second = Clock(), Meter(), Meter()
    lanes, begun, done = Lanes(clock=clock), threading.Event(), threading.Event()

    def beside(_: int) -> None:
        begun.set()
        assert done.wait(30)

    def long(_: int) -> None:
        clock.now += 1.0
        other.start()
        assert begun.wait(30)
        clock.now += 4.0
        done.set()
        other.join(30)
        clock.now += 2.0

    other = threading.Thread(target=lambda: list(lanes.map(beside, [0], meter=second)))
    list(lanes.map(long, [0], meter=first))
    assert (first.busy_s, second.busy_s) == (5.0, 2.0)
    assert first.busy_s + second.busy_s == clock.now


def test_the_seconds_of_calls_that_overlap_add_up_to_those_that_passed() -> None:
    lanes, meters = Lanes(2), [Meter(), Meter()]
    began = time.perf_counter()
    calls = [
        threading.Thread(target=lambda meter=meter: list(lanes.map(time.sleep, [0.03] * 4, meter=meter)))
        for meter in meters
    ]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    passed = time.perf_counter() - began
    assert 0.11 < sum(meter.busy_s for meter in meters) <= passed


@pytest.mark.parametrize("count", [1, 2])
def test_whoever_asks_has_the_device_alone(count: int) -> None:
    lanes, working, seen = Lanes(count), [], []
    began = threading.Event()

    def work(_: int) -> None:
        working.append(0)
        began.set()
        time.sleep(0.02)
        working.pop()

    call = threading.Thread(target=lambda: list(lanes.map(work, range(6))))
    call.start()
    assert began.wait(30)
    with lanes.alone():
        for _ in range(3):
            seen.append(len(working))
            time.sleep(0.03)
    call.join(30)
    assert seen == [0, 0, 0]
    assert not call.is_alive()


def test_a_cpu_has_one_lane_the_caller() -> None:
    (thread,) = set(for_device("cpu").map(lambda _: threading.get_ident(), range(3)))
    assert thread == threading.get_ident()
