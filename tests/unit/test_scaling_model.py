"""The model on paper counts what others count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench import scaling_model


def test_model_counts_what_is_counted_elsewhere_and_scales_as_it_must() -> None:
    net = scaling_model.nets()[-1]
    figures = json.loads((Path(__file__).parents[1] / "golden" / "members.json").read_text())[net.member.name]
    assert net.parameters == figures["parameters"]
    assert net.validation(1).flops / 1e9 == pytest.approx(figures["gflop"], rel=1e-3)
    assert net.step(2).flops == pytest.approx(2 * net.step(1).flops, rel=1e-3)
    assert net.step(1).flops > 2.5 * net.validation(1).flops
    assert scaling_model.step(net, 1).gradients_s == 0
    seconds = [scaling_model.step(net, ranks).seconds for ranks in (1, 2, 4)]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[0] < 4 * seconds[2], "a run gains more than it has ranks"
