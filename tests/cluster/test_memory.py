"""A rank that takes more memory than there is: survived once; each has a Ray with a limit of its own."""

from __future__ import annotations

from tests.cluster.processes import run_program


def test_rank_that_runs_out_of_memory_once_is_started_again_and_the_run_ends_well() -> None:
    log = run_program("tests.chaos.memory", "--times", "1")
    assert "1 times out of memory: finished" in log
