"""How a run goes on: from what each step tells, a rate, the share of waiting, and the time that is left.

Pure, with the clock handed in. Must not know torch, Ray, or who looks.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from raytrain.tiles.order import Position

WINDOW_S = 30.0
"""Rates are over the last steps that took so long together: long enough to be calm, short enough to be of now."""
HEARTBEAT_S = 1.0
"""A step tells others of the run at most so often."""


@dataclass(frozen=True)
class RunProgress:
    """How far a run has come and how fast it goes.

    `epoch` counts from 0, `samples_done` of its `num_samples` are done over all ranks. `loss` is the mean over the
    steps of the epoch so far, `score` that of the last validation; None before there is any. `wait_fraction` of the
    time of the steps went by waiting for samples. `left_s` is None until a step has been timed.
    """

    run: str
    epoch: int
    num_epochs: int
    samples_done: int
    num_samples: int
    loss: float | None
    images_per_s: float
    wait_fraction: float
    score: float | None
    left_s: float | None

    @property
    def images_done(self) -> int:
        """How many images the run has trained on over all epochs, those of earlier attempts that count included."""
        return self.epoch * self.num_samples + self.samples_done


@dataclass(frozen=True)
class _Step:
    took_s: float
    num_images: int
    wait_s: float


class Meter:
    """Turns what the steps of a run tell into its progress (rank 0 only).

    `num_samples` is the length of an epoch. Rates are over the steps taken here in the last `WINDOW_S` of step time:
    neither validation nor what another attempt did counts. After a resume `score` is that of the last validation.
    """

    def __init__(
        self,
        run: str,
        num_epochs: int,
        num_samples: int,
        score: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._num_epochs = num_epochs
        self._num_samples = num_samples
        self._score = score
        self._clock = clock
        self._steps: deque[_Step] = deque()
        self._pauses_s: list[float] = []
        self._since = clock()
        self._told = -float("inf")
        self._after_epoch = False

    def begin_epoch(self) -> None:
        """Start the clock of the epoch's first step: call it before that step asks for its samples.

        The time since the last step of the epoch before, validation and checkpoint, was a pause; `left_s` reckons with
        one of the mean length for each epoch that is left.
        """
        now = self._clock()
        if self._after_epoch:
            self._pauses_s[-1] = now - self._since
        self._since, self._after_epoch = now, False

    def step(self, position: Position, num_images: int, wait_s: float, loss: float | None) -> RunProgress | None:
        """Take in a step and return the progress if a heartbeat is due, at most one in `HEARTBEAT_S`; else None.

        `position` is where the run stands behind the step, `num_images` are those of the step over all ranks, `wait_s`
        is how long it waited for samples, and `loss` the mean of the epoch so far.
        """
        now = self._clock()
        self._steps.append(_Step(now - self._since, num_images, wait_s))
        self._since = now
        # The oldest step goes if the others fill the window without it: at least one stays.
        total_s = sum(step.took_s for step in self._steps)
        while len(self._steps) > 1 and total_s - self._steps[0].took_s >= WINDOW_S:
            total_s -= self._steps.popleft().took_s
        if now - self._told < HEARTBEAT_S:
            return None
        self._told = now
        return self._progress(position, loss)

    def end_epoch(self, epoch: int, loss: float | None, score: float | None) -> RunProgress:
        """Take in that `epoch` (from 0) was validated just now, with what result, and return the progress."""
        now = self._clock()
        self._pauses_s.append(now - self._since)
        self._score, self._told, self._after_epoch = score, now, True
        return self._progress(Position(epoch, self._num_samples), loss)

    def _progress(self, position: Position, loss: float | None) -> RunProgress:
        took_s = sum(step.took_s for step in self._steps)
        rate = sum(step.num_images for step in self._steps) / took_s if took_s > 0 else 0.0
        waited = sum(step.wait_s for step in self._steps) / took_s if took_s > 0 else 0.0
        return RunProgress(
            run=self._run,
            epoch=position.epoch,
            num_epochs=self._num_epochs,
            samples_done=position.samples_done,
            num_samples=self._num_samples,
            loss=loss,
            images_per_s=rate,
            wait_fraction=min(waited, 1.0),
            score=self._score,
            left_s=self._left_s(position, rate) if rate > 0 else None,
        )

    def _left_s(self, position: Position, rate: float) -> float:
        epochs = self._num_epochs - position.epoch
        pauses = epochs - self._after_epoch
        pause_s = sum(self._pauses_s) / len(self._pauses_s) if self._pauses_s else 0.0
        return (epochs * self._num_samples - position.samples_done) / rate + pauses * pause_s


def duration(seconds: float) -> str:
    """Return a length of time in its two largest units: `45 s`, `4 min 10 s`, `2 h 5 min`, `3 d 4 h`."""
    whole = round(seconds)
    for size, unit, smaller_size, smaller_unit in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller_size} {smaller_unit}"
    return f"{whole} s"
