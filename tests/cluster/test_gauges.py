"""Ray's metrics of a run can be read where Prometheus reads them: at the metrics port of the node."""

from __future__ import annotations

import re
import time
from urllib.request import urlopen

import pytest
import ray

from raytrain.cluster.tracking import Gauges, ScoringGauges
from raytrain.scoring.pace import Progress
from raytrain.training.progress import RunProgress

pytestmark = pytest.mark.usefixtures("local_ray")
EXPORT_S = 90
"""A worker hands its metrics to its node's agent every 10 s; the machine may be busy."""
PROGRESS = RunProgress("a-fold0", 2, 10, 120, 480, 0.4, images_per_s=45.5, wait_fraction=0.25, score=0.75, left_s=60)


DESTINATION = "s3://b/masks"


@ray.remote
class Rank:
    """A rank that tells of its run, and lives on, so that its metrics are exported."""

    def __init__(self) -> None:
        self._gauges = Gauges(PROGRESS.run)

    def tell(self, progress: RunProgress) -> None:
        self._gauges.set(progress)


def exported() -> dict[str, tuple[str, float]]:
    """Return name -> (run, value) of our metrics, as the node shows them; not of what this process scored before."""
    (node,) = ray.nodes()
    with urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    lines = re.findall(r'^ray_(raytrain_\w+)\{.*\brun="([^"]*)".*\} (\S+)$', text, re.MULTILINE)
    return {name: (run, float(value)) for name, run, value in lines if run in (PROGRESS.run, DESTINATION)}


def test_metrics_of_runs_and_scorings_are_exported_with_their_names() -> None:
    rank = Rank.remote()
    ray.get(rank.tell.remote(PROGRESS))
    # A scoring's stand in the driver, that is here.
    ScoringGauges(DESTINATION).set(Progress(units=1, total=4, items=10, casualties=2, megapixels=50, seconds=20))
    until = time.monotonic() + EXPORT_S
    found: dict[str, tuple[str, float]] = {}
    while len(found) < 7 and time.monotonic() < until:
        time.sleep(0.5)
        found = exported()
    assert found == {
        "raytrain_images_per_s": ("a-fold0", 45.5),
        "raytrain_data_wait_fraction": ("a-fold0", 0.25),
        "raytrain_validation_iou": ("a-fold0", 0.75),
        "raytrain_scored_megapixels_per_s": (DESTINATION, 2.5),
        "raytrain_scored_items_per_h": (DESTINATION, 1800.0),
        "raytrain_scored_fraction": (DESTINATION, 0.25),
        "raytrain_score_casualties": (DESTINATION, 2.0),
    }
