"""How the learning rate goes, against torch's own schedules where there is one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from raytrain.config import OptimiserSettings
from raytrain.training.schedules import Plateau, learning_rate


def rates(optimiser: OptimiserSettings, num_steps: int = 100) -> list[float]:
    return [learning_rate(optimiser, i / num_steps) for i in range(num_steps)]


def test_constant_and_plateau_stay_at_the_full_rate() -> None:
    for schedule in ("constant", "plateau"):
        assert set(rates(OptimiserSettings(lr=0.1, schedule=schedule))) == {0.1}


def test_cosine_warms_up_then_falls() -> None:
    found = rates(OptimiserSettings(lr=0.1, schedule="cosine", warmup_fraction=0.2))
    assert np.argmax(found) == 20
    assert found[20] == pytest.approx(0.1)
    assert found[0] < 0.01
    assert found[99] < 0.001
    assert all(a >= b for a, b in itertools.pairwise(found[20:]))
    assert np.diff(found[:21]) == pytest.approx(np.diff(found[:21])[0])


def test_every_schedule_can_warm_up() -> None:
    for schedule in ("constant", "plateau", "cosine", "one-cycle"):
        found = rates(OptimiserSettings(lr=0.1, schedule=schedule, warmup_fraction=0.3))
        assert found[0] == pytest.approx(0.004 if schedule == "one-cycle" else 0.005)
        assert found[30] == pytest.approx(0.1)


def test_one_cycle_is_that_of_torch() -> None:
    """torch ends at the last step, we at the end of it: a step's difference in the length of the fall."""
    num_steps = 1000
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, num_steps, pct_start=0.3, cycle_momentum=False)
    expected = []
    for _ in range(num_steps):
        expected.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        theirs.step()
    found = rates(OptimiserSettings(lr=0.1, schedule="one-cycle", warmup_fraction=0.3), num_steps)
    assert found == pytest.approx(expected, abs=0.0005)
    assert found[300] == pytest.approx(0.1)
    assert found[0] == pytest.approx(0.004)


def test_plateau_counts_epochs_since_the_last_gain() -> None:
    optimiser = OptimiserSettings(schedule="plateau", plateau_epochs=2, plateau_factor=0.5)
    state = Plateau()
    factors = []
    for epoch, value in enumerate([0.1, 0.2, 0.2, 0.15, 0.1, 0.3, 0.1, 0.1, 0.1, 0.1]):
        state = state.after(epoch, value, optimiser)
        factors.append(state.rate_factor)
    assert factors == [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125]
    assert (state.best, state.best_epoch) == (0.3, 5)


def test_published_plateau_never_fires_within_a_hundred_epochs() -> None:
    state = Plateau()
    for epoch in range(100):
        state = state.after(epoch, 0.5 if epoch == 0 else 0.1, OptimiserSettings(schedule="plateau"))
    assert state.rate_factor == 1


def test_only_schedule_plateau_changes_the_rate() -> None:
    state = Plateau()
    for epoch in range(300):  # more than the 200 of the default
        state = state.after(epoch, -1.0, OptimiserSettings(schedule="cosine"))
    assert state.rate_factor == 1
    assert state.best_epoch == 0
