"""The same training again and again in a lab, each time under another name: what came of it and what it was made of."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from raytrain import storage
from raytrain.cluster.runs import HISTORY_FILE, RESULT_FILE
from raytrain.config import ShardSettings
from raytrain.imagery.synth import write_chips
from raytrain.tiles.order import Position
from raytrain.tiles.reader import TileReader, select_tiles
from raytrain.training.checkpoint_files import read_index
from tests.chaos.trace import FOLDER, HOOK, Step, Verdict, attempts, judge, position, read
from tests.making import shard_chips
from tests.multinode.lab import BUCKET, ENDED, Lab

MEMBER = "small-byob-3b"
# Without validation the weights that are kept are those of the last step, so they tell of all that came before.
FOLD = None
RUN = f"{MEMBER}-foldnone"
CHIPS, PLACES, CHIP_PX = 24, 6, 64
WORKERS = 2
EPOCHS, CROPS_PER_TILE = 2, 20
SETTINGS = {
    "epochs": EPOCHS,
    "crop_px": 32,
    "crops_per_tile": CROPS_PER_TILE,
    "global_batch": 4,
    "decoder_channels": [8, 8, 8, 4, 4],
}
CHECKPOINT_S = 4.0
"""A part of an epoch of about 14 s: what is lost shows whether states within epochs are saved."""
LIMIT_S = 480.0
POLL_S = 0.2


@dataclass(frozen=True)
class Training:
    """A member to train in a lab on shards that lie in its store, `num_samples` an epoch."""

    lab: Lab
    shards: str
    num_samples: int

    def arguments(self, experiment: str, interval_s: float) -> list[str]:
        """Return the command line of one run that saves so often within an epoch."""
        where = ["--shards", self.shards, "--out", f"s3://{BUCKET}/runs", "--experiment", experiment]
        changes = [f"{name}={json.dumps(value, separators=(',', ':'))}" for name, value in SETTINGS.items()]
        return [
            *where,
            "--members",
            MEMBER,
            "--fold",
            "none",
            "--workers",
            str(WORKERS),
            "--checkpoint-minutes",
            f"{interval_s / 60:g}",
            "--set",
            *changes,
        ]


@dataclass(frozen=True)
class Disturbance:
    """What happens to the lab and the node of the rank `rank` when the part `moment` of all steps is done.

    Where the job does not outlive it (`ends_job`), the same command is submitted once more.
    """

    happen: Callable[[Lab, int], None]
    rank: int
    moment: float
    ends_job: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of a run: as its job tells, as its folder does, and as the trace does.

    `sha256` is that of its weights, None if there are none; `restarts` is what it tells of its attempts itself.
    `struck` is where it was when something happened to it; `saved` where its last checkpoint was then, and when all was
    well again: epochs, and samples done of the next.
    """

    exit_code: int | None
    log: str = field(repr=False)
    seconds: float
    sha256: str | None
    has_ensemble: bool
    restarts: list[dict[str, Any]]
    steps: list[Step] = field(repr=False)
    verdict: Verdict
    struck: tuple[int, int] | None = None
    saved: tuple[Position, Position] | None = None


def make_shards(lab: Lab, folder: Path) -> Training:
    """Generate an archive in `folder`, shard it to the store of the lab, and return the training on it."""
    write_chips(folder, count=CHIPS, size_px=CHIP_PX, seed=1, num_places=PLACES)
    shards = f"s3://{BUCKET}/shards"
    with _store_of(lab):
        if not storage.exists(f"s3://{BUCKET}"):
            storage.filesystem(f"s3://{BUCKET}").mkdir(BUCKET)
        shard_chips(folder, shards, ShardSettings())
        num_tiles = len(select_tiles(TileReader(shards, ()), FOLD, "train"))
    return Training(lab, shards, num_tiles * CROPS_PER_TILE)


def train(
    training: Training,
    experiment: str,
    disturbance: Disturbance | None = None,
    interval_s: float = CHECKPOINT_S,
) -> Outcome:
    """Train to the end, through whatever happens meanwhile."""
    lab = training.lab
    traces = lab.folder / "traces" / experiment
    traces.mkdir(parents=True)
    lab.repair()
    struck, saved = None, None
    begun = time.monotonic()
    arguments = training.arguments(experiment, interval_s)
    job = lab.submit("train", *arguments, hook=HOOK, environment={FOLDER: str(traces)})
    try:
        if disturbance is not None:
            struck, before = _wait_until(training, traces, job, disturbance.moment), _saved(lab, experiment)
            disturbance.happen(lab, _node_of(lab, traces, disturbance.rank))
            saved = before, _saved(lab, experiment)
            if disturbance.ends_job:
                job = lab.submit("train", *arguments, hook=HOOK, environment={FOLDER: str(traces)})
        found = lab.wait(job, LIMIT_S)
    except BaseException:  # the next training needs the nodes
        with contextlib.suppress(OSError, RuntimeError):
            lab.stop(job)
        raise
    steps = read(traces)
    return Outcome(
        exit_code=found["driver_exit_code"],
        log=lab.logs(job),
        seconds=time.monotonic() - begun,
        steps=steps,
        verdict=judge(attempts(steps), training.num_samples, EPOCHS),
        struck=struck,
        saved=saved,
        **_outputs(lab, f"s3://{BUCKET}/runs/{experiment}"),
    )


def _wait_until(training: Training, traces: Path, job: str, moment: float) -> tuple[int, int]:
    """Return where a run is when so much of it is done; raise RuntimeError if its job ends before."""
    wanted = moment * EPOCHS * training.num_samples
    deadline = time.monotonic() + LIMIT_S
    while True:
        epoch, done = position(traces)
        if epoch * training.num_samples + done >= wanted:
            return epoch, done
        if time.monotonic() > deadline or training.lab.job(job)["status"] in ENDED:
            raise RuntimeError(f"job {job} came to sample {done} of epoch {epoch}:\n{training.lab.logs(job)[-4000:]}")
        time.sleep(POLL_S)


def _node_of(lab: Lab, traces: Path, rank: int) -> int:
    """Return the node on which a rank took its last step."""
    return lab.node_of([step.pid for step in read(traces) if step.rank == rank][-1])


def _saved(lab: Lab, experiment: str) -> Position:
    """Return where the last checkpoint of the run is that counts, its beginning if there is none."""
    with _store_of(lab):
        last = read_index(f"s3://{BUCKET}/runs/{experiment}/{RUN}").last
    return last.position if last else Position()


def _outputs(lab: Lab, folder: str) -> dict[str, Any]:
    with _store_of(lab):
        result, history = (_json_of(f"{folder}/{RUN}/{name}") for name in (RESULT_FILE, HISTORY_FILE))
        has_ensemble = storage.exists(f"{folder}/ensemble.json")
    return {
        "sha256": result and result["sha256"],
        "restarts": history["restarts"] if history else [],
        "has_ensemble": has_ensemble,
    }


def _json_of(uri: str) -> Any:
    """Return what a file holds, None where there is none."""
    try:
        return storage.read_json(uri)
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _store_of(lab: Lab) -> Iterator[None]:
    """Let this process reach the store of a lab, also while it fails for the nodes."""
    with mock.patch.dict(os.environ, lab.swift.environment()):
        yield
