"""How the learning rate goes over a run: pure functions of progress, and the plateau's memory of the score."""

from __future__ import annotations

import math
from dataclasses import dataclass

from raytrain.config import OptimiserSettings

WARMUP_START = 0.05
"""Where a linear warm-up begins, as a share of the full rate."""
ONE_CYCLE_START, ONE_CYCLE_END = 1 / 25, 1 / 25e4
"""Where one-cycle begins and ends, as shares of the full rate: the usual divisors of Smith's schedule."""


def learning_rate(optimiser: OptimiserSettings, progress: float) -> float:
    """Return the learning rate when `progress` in [0, 1) of all steps is done: warm-up, then the schedule.

    A plateau's reductions come on top (`Plateau`). One-cycle (Smith and Topin 2017) moves the rate alone, not the
    momentum.
    """
    warmup, peak = optimiser.warmup_fraction, optimiser.lr
    if optimiser.schedule == "one-cycle":
        if progress < warmup:
            return _cosine(ONE_CYCLE_START * peak, peak, progress / warmup)
        return _cosine(peak, ONE_CYCLE_END * peak, (progress - warmup) / (1 - warmup))
    if progress < warmup:
        return peak * (WARMUP_START + (1 - WARMUP_START) * progress / warmup)
    if optimiser.schedule == "cosine":
        return _cosine(peak, 0, (progress - warmup) / (1 - warmup))
    return peak


def _cosine(start: float, end: float, share: float) -> float:
    """Return the value `share` of the way from `start` to `end`, along half a cosine."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


@dataclass(frozen=True)
class Plateau:
    """The best value so far (the more the better) and its epoch, how long ago it was, what the rate is multiplied by.

    Every run keeps it, since it also says which epoch is the best; only schedule `plateau` changes the rate.
    """

    best: float | None = None
    best_epoch: int | None = None
    epochs_without_gain: int = 0
    rate_factor: float = 1.0

    def after(self, epoch: int, value: float, optimiser: OptimiserSettings) -> Plateau:
        """Return what is known after `epoch` came to `value`; an equal value is no gain."""
        if self.best is None or value > self.best:
            return Plateau(value, epoch, 0, self.rate_factor)
        waited, factor = self.epochs_without_gain + 1, self.rate_factor
        if optimiser.schedule == "plateau" and waited >= optimiser.plateau_epochs:
            waited, factor = 0, factor * optimiser.plateau_factor
        return Plateau(self.best, self.best_epoch, waited, factor)
