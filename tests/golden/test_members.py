"""Each of the eight members takes a whole step at the recipe's size; its figures are those of `members.json`.

`python -m tests.bench.members --write` makes that file anew.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from raytrain.config import MemberSettings, change
from raytrain.recipes import further_members, members, published_members, small_members
from raytrain.training.loop import _fresh_state
from raytrain.training.ranks import Ranks
from raytrain.training.samples import Sample
from raytrain.training.step import take_step
from tests.bench.members import measure

FIGURES = json.loads((Path(__file__).parent / "members.json").read_text())
SIZE_PX = 512


def names(some: list[MemberSettings]) -> list[str]:
    return [member.name for member in some]


def switch_on(net: nn.Module) -> None:
    """Fill the scales that timm starts at 0 in a random ResNet, as pretrained ones are; else blocks get no gradient."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
            nn.init.constant_(module.weight, 0.5)


@pytest.mark.parametrize("name", names(published_members()))
def test_published_member_takes_a_step_that_moves_every_parameter(name: str) -> None:
    # The rate is a high one, since the recipe's times a small gradient is lost in the last bit of a scale of 1.
    settings = change(members((name,))[0], {"encoder_weights": "random", "optimiser.lr": 1.0})
    state = _fresh_state(settings, Ranks(), num_samples=1)
    net, figures = state.net, FIGURES[name]
    switch_on(net)
    before = {each: parameter.detach().clone() for each, parameter in net.named_parameters()}
    assert sum(parameter.numel() for parameter in before.values()) == figures["parameters"]
    shapes: list[list[int]] = []
    net.register_forward_hook(lambda _net, _image, output: shapes.append(list(output.shape)))
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, len(settings.bands), SIZE_PX, SIZE_PX, generator=generator) * 2 - 1
    label = torch.zeros(1, SIZE_PX, SIZE_PX, dtype=torch.uint8)
    label[:, 100:300, 50:400], label[:, :20] = 1, 255
    net.train()
    loss = take_step(net, state, settings, [Sample(image, label)], Ranks())
    assert 0 < loss < 2
    assert shapes == [figures["output_shape"]] == [[1, 1, SIZE_PX, SIZE_PX]]
    for each, parameter in net.named_parameters():
        assert parameter.grad is not None, f"{each} has no gradient"
        assert parameter.grad.isfinite().all(), f"{each} has a gradient that is not finite"
        assert not torch.equal(parameter, before[each]), f"{each} did not move"


@pytest.mark.parametrize("member", [*published_members(), *further_members(), *small_members()], ids=lambda m: m.name)
def test_figures_of_each_member_are_those_of_the_table(member: MemberSettings) -> None:
    ours = {name: value for name, value in FIGURES[member.name].items() if name != "original"}
    assert measure(member) == ours


def test_table_has_every_member_and_no_other() -> None:
    assert set(FIGURES) == set(names([*published_members(), *further_members(), *small_members()]))
