"""Ray's metrics of raytrain can be read where Prometheus reads them: at the metrics port of the node."""

from __future__ import annotations

import re
import time
from urllib.request import urlopen

import pytest
import ray

from raytrain import storage
from raytrain.cluster.tracking import RunMetrics, ScoringMetrics
from raytrain.scoring.pace import Progress
from raytrain.tiles.order import Position
from raytrain.training.checkpoint_files import KeptCheckpoint
from raytrain.training.progress import RunProgress

pytestmark = pytest.mark.usefixtures("local_ray")
EXPORT_S = 90
"""A worker hands its metrics to its node's agent every 10 s; the machine may be busy."""
PROGRESS = RunProgress("a-fold0", 2, 10, 120, 480, 0.4, images_per_s=45.5, wait_fraction=0.25, score=0.75, left_s=60)
TAGS = {"experiment": "main", "run": "a-fold0", "member": "a", "fold": "0"}
DESTINATION = "s3://b/masks"
DATA = b"0123456789"
BEFORE = 2 * 480 + 20
"""Images that were done as the attempt began."""


@ray.remote
class Rank:
    """A rank that tells of its run, and lives on, so that its metrics are exported."""

    def __init__(self) -> None:
        self._metrics = RunMetrics(TAGS)

    def tell(self, progress: RunProgress) -> None:
        self._metrics.begin(4, BEFORE)
        self._metrics.set(progress)
        self._metrics.saved(KeptCheckpoint("c", Position(), False, None, 0.1, 2.0, 1000))


Series = dict[str, list[tuple[str, float]]]


def exported() -> Series:
    """Return (labels, value) of our metrics by name, as the node shows them."""
    (node,) = ray.nodes()
    with urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=60) as answer:
        lines = re.findall(r"^(ray_raytrain_\w+){(.*)} (\S+)$", answer.read().decode(), re.MULTILINE)
    found: Series = {}
    for name, labels, value in lines:
        found.setdefault(name, []).append((labels, float(value)))
    return found


def value_of(series: Series, name: str, **tags: str) -> float | None:
    """Return the sum over the series of this name that have these tags; None where there is none."""
    wanted = [f'{tag}="{value}"' for tag, value in tags.items()]
    found = [value for labels, value in series.get(name, []) if all(each in labels for each in wanted)]
    return sum(found) if found else None


def test_metrics_are_exported_with_their_names_and_values(s3: str) -> None:
    rank = Rank.remote()
    ray.get(rank.tell.remote(PROGRESS))
    scoring = ScoringMetrics(DESTINATION)
    scoring.set(Progress(units=1, total=4, items=10, casualties=2, megapixels=50, seconds=20))
    scoring.setback("failed")
    scoring.unit_done(5.0)
    scoring.workers({"busy": 3}, 7.5)
    storage.write_bytes(storage.join(s3, "gauges"), DATA)
    run, to = TAGS, {"destination": DESTINATION}
    wanted = [
        ("ray_raytrain_images_per_s", run, 45.5),
        ("ray_raytrain_images_total", run, 100.0),
        ("ray_raytrain_data_wait_fraction", run, 0.25),
        ("ray_raytrain_validation_iou", run, 0.75),
        ("ray_raytrain_epoch", run, 2.25),
        ("ray_raytrain_ranks", run, 4.0),
        ("ray_raytrain_checkpoint_seconds_count", run, 1.0),
        ("ray_raytrain_checkpoint_bytes", run, 1000.0),
        ("ray_raytrain_scored_megapixels_total", to, 50.0),
        ("ray_raytrain_scored_items_total", to, 10.0),
        ("ray_raytrain_score_units_done", to, 1.0),
        ("ray_raytrain_score_casualties", to, 2.0),
        ("ray_raytrain_score_setbacks_total", to | {"outcome": "failed"}, 1.0),
        ("ray_raytrain_score_unit_seconds_count", to, 1.0),
        ("ray_raytrain_score_workers", to | {"state": "busy"}, 3.0),
        ("ray_raytrain_score_failing_seconds", to, 7.5),
    ]
    until = time.monotonic() + EXPORT_S
    left, written_bytes = list(wanted), 0.0
    while (left or written_bytes < len(DATA)) and time.monotonic() < until:
        time.sleep(0.5)
        series = exported()
        left = [(name, tags, value) for name, tags, value in left if value_of(series, name, **tags) != value]
        # What this process asks of the store is told by a thread.
        written_bytes = value_of(series, "ray_raytrain_store_bytes_total", operation="write") or 0.0
    assert left == []
    assert written_bytes >= len(DATA)
    assert (value_of(series, "ray_raytrain_store_requests_total", operation="write") or 0) >= 1
    saved = value_of(series, "ray_raytrain_saved_timestamp_seconds", **run)
    assert saved is not None
    assert abs(saved - time.time()) < EXPORT_S
