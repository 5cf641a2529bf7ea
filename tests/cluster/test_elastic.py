"""An elastic run that loses a node and gets one back; it has a Ray of two nodes, so it runs in a process of its own."""

from __future__ import annotations

from tests.cluster.processes import run_program


def test_elastic_run_goes_from_two_ranks_to_one_and_back_to_the_same_weights() -> None:
    log = run_program("tests.chaos.elastic", "--seeds", "1")
    assert "seed 0: ranks [2, 1, 2]" in log
