"""A member trained over two nodes through a job with the token; nodes, cables and store that fail meanwhile."""

from __future__ import annotations

import shutil
from urllib.error import HTTPError

import pytest

from tests.chaos.nodes import FAULTS, disturb, problems
from tests.chaos.trainings import WORKERS, Outcome, Training
from tests.multinode.lab import ROOT, Lab

SEED = 0
"""An even one: the faults come to the node of rank 0, which saves and tells."""


def test_job_on_two_nodes_trains_on_every_sample_once_per_epoch(lab: Lab, undisturbed: Outcome) -> None:
    assert problems(undisturbed, undisturbed) == []
    assert {(step.rank, step.world_size) for step in undisturbed.steps} == {(rank, WORKERS) for rank in range(WORKERS)}
    assert len({step.pid for step in undisturbed.steps}) == WORKERS


def test_job_without_the_token_is_refused(lab: Lab) -> None:
    options = ["--no-wait", "--working-dir", str(lab.folder / "t0"), "--", "true"]
    wrong = lab.ray("job", "submit", *options, RAY_AUTH_TOKEN="0" * 64)
    assert wrong.returncode != 0
    assert "token authentication is enabled" in wrong.stderr
    for token in ("", "0" * 64):
        with pytest.raises(HTTPError) as refused:
            lab.ask("/api/jobs/", token=token)
        assert refused.value.code == (403 if token else 401)


def test_workers_that_run_another_raytrain_than_their_driver_are_refused_by_name(lab: Lab, training: Training) -> None:
    other = lab.folder / "other-image"
    shutil.copytree(ROOT / "raytrain", other / "raytrain", ignore=shutil.ignore_patterns("__pycache__"))
    (other / "raytrain" / "__init__.py").open("a").write("# another image\n")
    job = lab.submit("verify", training.shards, code="image", paths=[str(other)])
    found = lab.wait(job, 120)
    assert found["driver_exit_code"] == 2, lab.logs(job)
    told = lab.logs(job).strip().splitlines()[-1]
    assert "driver and workers differ" in told
    # The head counts: its driver starts with the job's modules, its workers with those of their image.
    assert any(f"node {lab.network.address(node)}: " in told for node in (0, *lab.workers))


@pytest.mark.parametrize("fault", FAULTS)
def test_training_through_a_fault_ends_as_the_undisturbed_one(
    training: Training, undisturbed: Outcome, fault: str
) -> None:
    assert list(disturb(training, undisturbed, fault, SEED).problems) == []
