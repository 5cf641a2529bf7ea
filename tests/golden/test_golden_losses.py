"""Losses of the repository: what a refactor must not move."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.golden.losses import CASES, GOLDEN, losses_of

FIRST_STEPS, FIRST_TOLERANCE, TOLERANCE = 5, 5e-5, 1e-3
"""Relative. Other kernels (channels_last off) differ by 1e-6 in the first five steps and by up to 3e-4 after them; one
percent more focal loss by 4e-4 from the first step on, momentum 0.905 instead of 0.9 by 1e-3 to 4e-3."""


@pytest.mark.parametrize("name", CASES)
def test_losses_of_20_steps_are_those_of_the_repository(chips: Path, name: str) -> None:
    expected = json.loads(GOLDEN.read_text())[name]
    found = losses_of(name, chips)
    assert found[:FIRST_STEPS] == pytest.approx(expected[:FIRST_STEPS], rel=FIRST_TOLERANCE)
    assert found == pytest.approx(expected, rel=TOLERANCE)
