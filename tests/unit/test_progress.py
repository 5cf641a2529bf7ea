"""The meter of a run: rates of now, the share of waiting, the time left, and when a heartbeat is due."""

from __future__ import annotations

import pytest

from raytrain.tiles.order import Position
from raytrain.training.progress import Meter, RunProgress


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


START = Position()


def steps(
    meter: Meter, clock: Clock, *, count: int, took_s: float, start: Position = START, wait_s: float = 0.0
) -> list[RunProgress | None]:
    """Take `count` steps of 8 images, each `took_s`, from `start` on."""
    told = []
    for i in range(1, count + 1):
        clock.now_s += took_s
        told.append(meter.step(Position(start.epoch, start.samples_done + 8 * i), 8, wait_s, 0.5))
    return told


def last(told: list[RunProgress | None]) -> RunProgress:
    assert told[-1] is not None
    return told[-1]


def test_rate_is_that_of_the_last_half_minute_and_not_of_the_whole_run() -> None:
    clock = Clock()
    meter = Meter("a-fold0", 10, 10_000, clock=clock)
    meter.begin_epoch()
    assert last(steps(meter, clock, count=50, took_s=2.0)).images_per_s == pytest.approx(4)
    told = last(steps(meter, clock, count=20, took_s=2.0 / 3, start=Position(0, 400)))
    assert 4 < told.images_per_s < 12  # the window has both
    told = last(steps(meter, clock, count=40, took_s=1.0, start=Position(0, 560)))
    assert told.images_per_s == pytest.approx(8)


def test_a_step_longer_than_the_window_still_has_a_rate() -> None:
    clock = Clock()
    meter = Meter("a-fold0", 1, 100, clock=clock)
    meter.begin_epoch()
    assert last(steps(meter, clock, count=2, took_s=80.0)).images_per_s == pytest.approx(0.1)


def test_after_a_resume_only_the_steps_taken_here_count() -> None:
    clock = Clock()
    meter = Meter("a-fold0", 10, 400, score=0.7, clock=clock)
    clock.now_s += 300  # the net is built and restored
    meter.begin_epoch()
    told = last(steps(meter, clock, count=1, took_s=1.0, start=Position(7, 200)))
    assert (told.epoch, told.samples_done, told.score) == (7, 208, 0.7)
    assert told.images_done == 7 * 400 + 208
    assert told.images_per_s == pytest.approx(8)
    assert told.left_s == pytest.approx((3 * 400 - 208) / 8)


def test_wait_fraction_is_the_share_of_step_time_that_went_by_waiting() -> None:
    clock = Clock()
    meter = Meter("a-fold0", 1, 400, clock=clock)
    meter.begin_epoch()
    assert last(steps(meter, clock, count=4, took_s=2.0, wait_s=0.5)).wait_fraction == pytest.approx(0.25)


def test_validation_slows_no_rate_and_is_reckoned_once_for_each_epoch_that_is_left() -> None:
    clock = Clock()
    meter = Meter("a-fold0", 4, 80, clock=clock)
    meter.begin_epoch()
    assert last(steps(meter, clock, count=10, took_s=1.0)).left_s == pytest.approx(30)  # no pause is known yet
    clock.now_s += 6  # validation
    ended = meter.end_epoch(0, 0.4, 0.8)
    assert (ended.samples_done, ended.score, ended.loss) == (80, 0.8, 0.4)
    assert ended.left_s == pytest.approx(30 + 3 * 6)
    clock.now_s += 1  # a checkpoint
    meter.begin_epoch()
    told = last(steps(meter, clock, count=5, took_s=1.0, start=Position(1)))
    assert told.images_per_s == pytest.approx(8)
    assert told.left_s == pytest.approx(25 + 3 * 7)
    last(steps(meter, clock, count=5, took_s=1.0, start=Position(1, 40)))
    clock.now_s += 9
    assert meter.end_epoch(1, 0.4, 0.9).left_s == pytest.approx(20 + 2 * (7 + 9) / 2)


def test_nothing_is_left_behind_the_last_epoch() -> None:
    clock = Clock()
    meter = Meter("a-fold0", 1, 80, clock=clock)
    meter.begin_epoch()
    steps(meter, clock, count=10, took_s=1.0)
    clock.now_s += 5
    assert meter.end_epoch(0, 0.4, None).left_s == 0


def test_heartbeats_are_due_at_most_once_a_second() -> None:
    clock = Clock()
    meter = Meter("a-fold0", 1, 10_000, clock=clock)
    meter.begin_epoch()
    told = steps(meter, clock, count=100, took_s=0.125)
    assert [i for i, each in enumerate(told) if each is not None] == list(range(0, 100, 8))


def test_a_step_that_took_no_time_has_no_rate_and_no_time_left() -> None:
    clock = Clock()
    meter = Meter("a-fold0", 1, 100, clock=clock)
    meter.begin_epoch()
    told = last(steps(meter, clock, count=1, took_s=0.0))
    assert (told.images_per_s, told.left_s) == (0.0, None)
