"""Losses of the repository: what a refactor must not move."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.golden.losses import CASES, GOLDEN, losses_of

TOLERANCE = 1e-3
"""Relative."""


@pytest.mark.parametrize("name", CASES)
def test_losses_of_20_steps_are_those_of_the_repository(chips: Path, name: str) -> None:
    expected = json.loads(GOLDEN.read_text())[name]
    assert losses_of(name, chips) == pytest.approx(expected, rel=TOLERANCE)
