"""A scoring through a job on nodes, with an actor on one of them; its node or its command is lost meanwhile."""

from __future__ import annotations

import pytest

from tests.chaos.scorings import FAULTS, Archive, Fault, Outcome, lose_node, make_scenes, problems, score
from tests.multinode.lab import Lab

SEED = 0
LOSSES = {"node": Fault(lose_node, Lab.repair), "driver": FAULTS["driver"]}
"""The node is lost for good: the work goes on with what is left."""


@pytest.fixture(scope="module")
def archive(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Three small scenes, and one in four blocks."""
    return make_scenes(lab, tmp_path_factory.mktemp("scenes"), small=3, large=1)


@pytest.fixture(scope="module")
def undisturbed(archive: Archive) -> Outcome:
    """What a scoring leaves that nothing disturbs."""
    return score(archive, "undisturbed")


def test_scoring_on_nodes_leaves_nothing_of_the_run(archive: Archive, undisturbed: Outcome) -> None:
    assert problems(archive, undisturbed, undisturbed) == []
    assert sorted(str(each["unit"]).partition("-")[0] for each in undisturbed.answers) == [
        "assembly",
        *["block"] * 4,
        *["scene"] * 4,
    ]


@pytest.mark.parametrize("name", LOSSES)
def test_scoring_through_a_loss_leaves_the_bytes_of_the_undisturbed_one(
    archive: Archive, undisturbed: Outcome, name: str
) -> None:
    fault = LOSSES[name]
    found = score(archive, f"{name}-{SEED}", fault, SEED, undisturbed)
    assert problems(archive, found, undisturbed, fault) == []
    if name == "node":
        assert len({each["pid"] for each in found.answers}) == 2, "the loss of the node met no actor"
