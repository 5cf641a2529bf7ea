"""One `raytrain train` in a process of its own, which notes its times and news, and lets something fail if told to.

`python -m tests.bench.watched_train WORK`, where WORK is JSON: the `job`; whether ranks are `watched`; what to `kill`
(`rank 0`, `rank 1`, `node`) once the run has trained on `kill_at` images. For `node` the Ray is one of four nodes on
this machine: the driver's without CPUs and three of one CPU, so that there is another node for the ranks of a lost one.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import raytrain.cli  # noqa: F401  # what the command imports, too
from raytrain.cluster import fit, session, train
from raytrain.cluster.board import Begun, Failed, News, Post, Stepped
from raytrain.cluster.runs import TrainJob
from raytrain.config import parse
from tests.bench import stamps

NUM_NODES = 3


def main() -> None:
    """Train the job of the first argument."""
    work: dict[str, Any] = json.loads(sys.argv[1])
    stamps.note("command has imported")
    session._init = stamps.noting(session._init, "Ray is asked for", "Ray is there")
    train.fit = stamps.noting(train.fit, "run begins")
    if work["watched"]:
        fit._train_on_rank = stamps.watched_rank
    job = parse(TrainJob, work["job"], "job")
    if work["kill"] == "node":
        with _nodes() as remove:
            report = train.train(job, session.Cluster(shared_path=True), _Listener(work["kill_at"], remove))
    else:
        kill = None if work["kill"] is None else _rank_killer(int(work["kill"].split()[1]))
        report = train.train(job, session.Cluster(), _Listener(work["kill_at"], kill))
    stamps.note("train returned")
    if report.failed:
        sys.exit(str(report.failed))


class _Listener:
    """Notes the news, and kills once when it is time."""

    def __init__(self, kill_at: int, kill: Callable[[], None] | None) -> None:
        self._kill_at = kill_at
        self._kill = kill

    def __call__(self, news: News) -> None:
        match news:
            case Begun(attempt=attempt, position=position, num_ranks=num_ranks):
                stamps.note("news: begun", attempt=attempt, position=[*vars(position).values()], num_ranks=num_ranks)
            case Post(metrics=metrics):
                stamps.note("news: epoch", metrics=metrics)
            case Failed(kind=kind, cause=cause):
                stamps.note("news: failed", kind=kind, cause=cause)
            case Stepped(progress=progress):
                stamps.note("news: step", images=progress.images_done, images_per_s=progress.images_per_s)
                if self._kill is not None and progress.images_done >= self._kill_at:
                    kill, self._kill = self._kill, None
                    kill()


def _ranks() -> dict[int, dict[str, Any]]:
    """Return where each rank of the newest attempt runs: its process and its node."""
    return {
        each["rank"]: each for each in stamps.read(Path(os.environ[stamps.EVENTS])) if each["what"] == "rank begins"
    }


def _rank_killer(rank: int) -> Callable[[], None]:
    def kill() -> None:
        pid = _ranks()[rank]["pid"]
        stamps.note("kill", which=f"rank {rank}")
        os.kill(pid, signal.SIGKILL)

    return kill


@contextlib.contextmanager
def _nodes() -> Iterator[Callable[[], None]]:
    """Start a Ray of several nodes, join it, and give the body what takes the node of rank 1 away."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(NUM_NODES)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")

    def remove() -> None:
        lost = _ranks()[1]["node"]
        node = next(each for each in nodes if each.node_id == lost)
        stamps.note("kill", which="node")
        cluster.remove_node(node, allow_graceful=False)

    try:
        yield remove
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
