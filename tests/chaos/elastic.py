"""An elastic run whose second node goes and comes back at random moments: `python -m tests.chaos.elastic --seeds 5`.

One machine, a Ray of two nodes with a CPU each. The weights are held against those of a run that always had two ranks:
BatchNorm's groups are the same on any number of ranks, so they differ by the order of sums only.
Prints a table, and exits with 1 if any went otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import torch
from safetensors.torch import load_file

from raytrain.cluster import fit
from raytrain.cluster.board import Begun, News, Stepped
from raytrain.cluster.deaths import Kind
from raytrain.cluster.history import Restart
from raytrain.cluster.runs import Checkpointing, TrainJob
from raytrain.cluster.session import Cluster
from raytrain.cluster.train import train
from raytrain.config import ShardSettings, change
from raytrain.imagery.synth import write_chips
from raytrain.recipes import members
from raytrain.training.models import build_model
from tests.chaos import slow, trace
from tests.making import shard_chips

MEMBER = "small-byob-3b"
CHIPS, CROPS_PER_TILE, EPOCHS = 12, 40, 3
LR = 1e-4
"""Small, so that what the order of sums changes in a step is not blown up by hundreds of others."""
NUM_SAMPLES = CHIPS * CROPS_PER_TILE
CHANGES = {
    "epochs": EPOCHS,
    "crop_px": 32,
    "crops_per_tile": CROPS_PER_TILE,
    "global_batch": 8,
    "decoder_channels": [8, 8, 8, 4, 4],
    "optimiser.lr": LR,
}
INTERVAL_S = 600.0
"""Longer than a run: what is saved within an epoch is saved since the number of ranks is going to change."""
MAX_RESIZE_IMAGES = 100
"""What may be trained on again after a resize: steps of seconds, where an epoch has 480."""
MAX_APART = 2e-3
"""How far an elastic run may be from one of two ranks, as a share of how far that one has moved."""
HEALTH = {"initial_delay_ms": 1000, "period_ms": 1000, "timeout_ms": 1000, "failure_threshold": 3}
"""How Ray's head looks after nodes here, so that a lost one is noticed in seconds."""


@dataclass(frozen=True)
class Outcome:
    """What came of a run: its weights, what it tells of its restarts, how many ranks it had, what the trace says.

    `pauses` are the seconds between the last step of an attempt and the first one of the next.
    """

    weights: dict[str, torch.Tensor]
    restarts: tuple[Restart, ...]
    num_ranks: list[int]
    problems: tuple[str, ...]
    pauses: tuple[float, ...]


class Nodes:
    """A Ray with a head of one CPU, and a second node that goes and comes."""

    def __init__(self) -> None:
        import ray
        from ray.cluster_utils import Cluster as RayNodes

        for name, value in HEALTH.items():
            os.environ[f"RAY_health_check_{name}"] = str(value)
        self._nodes = RayNodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        self._second = self._nodes.add_node(num_cpus=1)
        hook = {"worker_process_setup_hook": slow.HOOK}
        ray.init(address=self._nodes.address, log_to_driver=False, logging_level="ERROR", runtime_env=hook)

    @property
    def cluster(self) -> Cluster:
        """The cluster as commands name it."""
        return Cluster(address=self._nodes.address, shared_path=True)

    def lose(self) -> None:
        """Kill the second node."""
        self._nodes.remove_node(self._second, allow_graceful=False)

    def regain(self) -> None:
        """Start another one in its place."""
        self._second = self._nodes.add_node(num_cpus=1)

    def close(self) -> None:
        """End all of them."""
        import ray

        ray.shutdown()
        self._nodes.shutdown()


class Disturber:
    """Has the second node taken away once so many images are done, and brought back so many later.

    What is to be done goes to `orders`: Ray starts nodes in the main thread only.
    """

    def __init__(self, nodes: Nodes, lose_at: int, regain_after: int) -> None:
        self.orders: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._nodes = nodes
        self._lose_at = lose_at
        self._regain_after = regain_after
        self._alone_at: int | None = None
        self.is_lost = self.is_regained = False

    def __call__(self, news: News) -> None:
        """Take in news of the run."""
        if isinstance(news, Begun) and self.is_lost and news.num_ranks == 1 and self._alone_at is None:
            self._alone_at = news.position.epoch * NUM_SAMPLES + news.position.samples_done
        if not isinstance(news, Stepped):
            return
        if not self.is_lost and news.progress.images_done >= self._lose_at:
            self.is_lost = True
            self.orders.put(self._nodes.lose)
        elif self._is_time_to_regain(news.progress.images_done):
            self.is_regained = True
            self.orders.put(self._nodes.regain)

    def _is_time_to_regain(self, images_done: int) -> bool:
        return (
            self._alone_at is not None and not self.is_regained and images_done >= self._alone_at + self._regain_after
        )


def run(nodes: Nodes, shards: Path, folder: Path, workers: Any, on_news: Callable[[News], None], name: str) -> Outcome:
    """Train once as the experiment `name`."""
    traces = Path(os.environ[trace.FOLDER])
    (traces / trace.FILE).unlink(missing_ok=True)
    job = TrainJob(
        shards=str(shards),
        out=str(folder / "runs"),
        experiment=name,
        members=(MEMBER,),
        fold="none",
        workers=workers,
        changes=CHANGES,
        checkpointing=Checkpointing(interval_s=INTERVAL_S),
    )
    num_ranks: list[int] = []

    def watch(news: News) -> None:
        if isinstance(news, Begun):
            num_ranks.append(news.num_ranks)
        on_news(news)

    report = train(job, nodes.cluster, watch)
    assert not report.failed, report.failed
    verdict = trace.judge(trace.attempts(trace.read(traces)), NUM_SAMPLES, EPOCHS)
    (found,) = report.runs
    weights = load_file(folder / "runs" / name / found.name / "weights.safetensors")
    pauses = tuple(each.pause_s for each in verdict.restarts)
    return Outcome(weights, found.restarts, num_ranks, verdict.problems, pauses)


def distance(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Return how far apart two nets are: the norm of the difference over all tensors of floats."""
    apart = [
        (left[name].double() - right[name].double()).square().sum() for name in left if left[name].is_floating_point()
    ]
    return float(torch.stack(apart).sum().sqrt())


def _untrained() -> dict[str, torch.Tensor]:
    """Return the weights that every run begins with."""
    settings = change(members((MEMBER,))[0], CHANGES)
    torch.manual_seed(settings.seed)
    return build_model(settings).state_dict()


def main() -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    fit.RESIZE_CHECK_S = 2.0
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ[trace.FOLDER] = str(folder / "trace")
        (folder / "trace").mkdir()
        write_chips(folder / "chips", count=CHIPS, size_px=64, seed=1, num_places=6)
        shard_chips(folder / "chips", folder / "shards", ShardSettings(folds="3"))
        nodes = Nodes()
        try:
            two = run(nodes, folder / "shards", folder, 2, lambda news: None, "fixed")
            scale = distance(_untrained(), two.weights)
            for seed in range(options.seeds):
                failed |= not _seed(nodes, folder, seed, two, scale)
        finally:
            nodes.close()
    return int(failed)


def _seed(nodes: Nodes, folder: Path, seed: int, two: Outcome, scale: float) -> bool:
    """Run one elastic training, print its row, and return whether all is as it should be."""
    draw = random.Random(seed)
    disturber = Disturber(nodes, draw.randrange(NUM_SAMPLES // 4, NUM_SAMPLES), draw.randrange(40, NUM_SAMPLES // 3))
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run, nodes, folder / "shards", folder, (1, 2), disturber, f"elastic-{seed}")
        while not future.done():
            with contextlib.suppress(Empty):
                disturber.orders.get(timeout=0.2)()
        found = future.result()
    apart = distance(found.weights, two.weights) / scale
    again = [restart.lost_images for restart in found.restarts]
    problems = [*found.problems]
    if found.num_ranks != [2, 1, 2]:
        problems.append(f"it had {found.num_ranks} ranks, not 2, 1 and 2")
    lost = [restart.lost_images or 0 for restart in found.restarts if restart.kind is Kind.RESIZED]
    if len(lost) != 1 or lost[0] > MAX_RESIZE_IMAGES:
        problems.append(f"{lost} images were trained on again after its resize")
    if apart > MAX_APART:
        problems.append(f"its weights are {apart:.2g} of the way from those of 2 ranks")
    causes = "; ".join(f"{restart.kind} ({restart.cause})" for restart in found.restarts)
    paused = ", ".join(f"{pause_s:.0f}" for pause_s in found.pauses)
    counts = f"ranks {found.num_ranks}, apart {apart:.2g}, done again {again}, paused {paused} s"
    print(f"seed {seed}: {counts}, {causes}", flush=True)
    for problem in problems:
        print(f"seed {seed}: WRONG: {problem}", flush=True)
    return not problems


if __name__ == "__main__":
    sys.exit(main())
