"""A search over two nodes through a job with the token; a node is lost meanwhile."""

from __future__ import annotations

from tests.chaos.searches import problems, search
from tests.chaos.trainings import Training

SEED = 0


def test_search_through_a_lost_node_comes_to_what_the_undisturbed_one_does(training: Training) -> None:
    undisturbed = search(training, "undisturbed")
    assert problems(undisturbed, undisturbed) == []
    assert len({trial.num_ranks for trial in undisturbed.trials}) == 1
    assert problems(search(training, "kill", "kill", SEED), undisturbed) == []
