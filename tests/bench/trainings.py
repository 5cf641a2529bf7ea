"""Trainings of a benchmark, each in processes of its own: `train` on Ray, and the same loop under torchrun."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raytrain.cluster.runs import Checkpointing, TrainJob
from raytrain.config import LoaderSettings, MemberSettings, ShardSettings, change
from raytrain.imagery.synth import write_chips
from raytrain.recipes import members
from tests.bench import stamps
from tests.making import shard_chips

FOLD = 0
ROOT = Path(__file__).parents[2]
Event = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How much is trained; `rate` and `paused` are changes of members by name, `failing` of `member`."""

    num_tiles: int = 96
    tile_px: int = 256
    rate: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {
            "small-effnet-4b-20k": {"crops_per_tile": 40, "epochs": 3},
            "lite0-4b": {"crops_per_tile": 1, "epochs": 3, "encoder_weights": "random"},
        }
    )
    member: str = "small-effnet-4b-20k"
    failing: dict[str, Any] = field(default_factory=lambda: {"crops_per_tile": 60, "epochs": 1})
    interval_s: float = 3.0
    kill_at: int = 2000
    paused: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {
            "small-effnet-4b-20k": {},
            "b0-4b-30k": {"crop_px": 64, "encoder_weights": "random"},
            "v2s-4b": {"crop_px": 64, "encoder_weights": "random"},
        }
    )
    num_checkpoints: int = 8


TINY = Sizes(
    num_tiles=12,
    tile_px=64,
    rate={"small-effnet-4b-20k": {"crops_per_tile": 8, "epochs": 2, "crop_px": 32, "global_batch": 8}},
    failing={"crops_per_tile": 100, "epochs": 1, "crop_px": 32, "global_batch": 8},
    interval_s=0.5,
    kill_at=200,
    paused={"small-effnet-4b-20k": {"crop_px": 32, "global_batch": 4}},
    num_checkpoints=2,
)
"""Enough to see that it runs."""


@dataclass
class Bench:
    """A folder with shards, in which trainings get folders of their own."""

    folder: Path
    sizes: Sizes
    repeats: int
    _count: int = 0

    def __post_init__(self) -> None:
        chips, size = self.folder / "chips", self.sizes
        write_chips(chips, count=size.num_tiles, size_px=size.tile_px, seed=0, num_places=12)
        shard_chips(chips, self.shards, ShardSettings())

    @property
    def shards(self) -> Path:
        """The shards, in four folds."""
        return self.folder / "shards"

    def new_folder(self) -> Path:
        """Return a folder that nobody has used."""
        self._count += 1
        folder = self.folder / f"training-{self._count}"
        folder.mkdir()
        return folder

    def settings(self, member: str, changes: dict[str, Any]) -> MemberSettings:
        """Return the settings that a job with these changes trains."""
        return change(members((member,))[0], changes)


@dataclass
class Training:
    """A `train` on Ray in a process of its own: its folder, its events, when it was started."""

    job: TrainJob
    folder: Path
    watched: bool = False
    kill: str | None = None
    kill_at: int = 0
    cores: Sequence[int] = ()
    started: float = 0.0
    process: subprocess.Popen[bytes] | None = None

    @property
    def events(self) -> list[Event]:
        """What was noted so far."""
        return stamps.read(self.folder / "events.jsonl")

    @property
    def run_folder(self) -> str:
        """The folder of its only run."""
        (name,) = [path.parent for path in Path(self.job.out, self.job.experiment).glob("*/run.json")]
        return str(name)

    def start(self) -> None:
        """Start it and return at once."""
        work = {
            "job": self.job.model_dump(mode="json"),
            "watched": self.watched,
            "kill": self.kill,
            "kill_at": self.kill_at,
        }
        command = [sys.executable, "-m", "tests.bench.watched_train", json.dumps(work)]
        bound = ["taskset", "-c", ",".join(map(str, self.cores))] if self.cores else []
        self.started = time.time()
        self.process = subprocess.Popen(
            [*bound, *command],
            cwd=ROOT,
            env=environment() | {stamps.EVENTS: str(self.folder / "events.jsonl")},
            stdout=sys.stderr,
            start_new_session=True,
        )

    def wait(self) -> None:
        """Wait for its end; its failure ends the program that measures."""
        assert self.process is not None
        if self.process.wait():
            sys.exit(f"a training ended with {self.process.returncode}; what it said stands above")


def environment() -> dict[str, str]:
    """Return the environment of both sides: Ray sets the threads of a worker by its CPUs, unless they are set."""
    kept = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return kept | {"PYTHONPATH": str(ROOT), "NO_ALBUMENTATIONS_UPDATE": "1"}


def on_ray(bench: Bench, member: str, changes: dict[str, Any], workers: int, cores: Sequence[int] = ()) -> list[Event]:
    """Train as users do, from the start to the end; return the metrics of its epochs."""
    folder = bench.new_folder()
    training = Training(job_of(bench, folder, member, changes, workers), folder, cores=cores)
    training.start()
    training.wait()
    epochs = [event["metrics"] for event in training.events if event["what"] == "news: epoch"]
    shutil.rmtree(folder)
    return epochs


def job_of(
    bench: Bench, folder: Path, member: str, changes: dict[str, Any], workers: int, interval_s: float | None = None
) -> TrainJob:
    """Return the job that trains one member into `folder`; checkpoints as users have them, or each so often."""
    often = Checkpointing() if interval_s is None else Checkpointing(interval_s=interval_s)
    return TrainJob(
        shards=str(bench.shards),
        out=str(folder / "runs"),
        members=(member,),
        fold=FOLD,
        workers=workers,
        changes=changes,
        checkpointing=often,
    )


def on_torchrun(
    bench: Bench, member: str, changes: dict[str, Any], ranks: int, cores: Sequence[int] = (), profiled: bool = False
) -> dict[str, Any]:
    """Train the same with plain torch; return what its rank 0 found."""
    folder = bench.new_folder()
    work = {
        "settings": bench.settings(member, changes).model_dump(mode="json"),
        "shards": str(bench.shards),
        "fold": FOLD,
        "loader": LoaderSettings().model_dump(mode="json"),
        "cores": list(cores),
        "profile": profiled,
        "out": str(folder / "found.json"),
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [*torchrun, "-m", "tests.bench.torchrun_rank", json.dumps(work)]
    subprocess.run(
        command, cwd=ROOT, env=environment() | {"OMP_NUM_THREADS": "1"}, stdout=sys.stderr, check=True, timeout=3600
    )
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    shutil.rmtree(folder)
    return found


def steady(epochs: Iterable[dict[str, float]]) -> float:
    """Return images a second over all epochs but the first."""
    later = list(epochs)[1:]
    return sum(each["images_per_s"] * each["epoch_s"] for each in later) / sum(each["epoch_s"] for each in later)


def seconds(values: list[float]) -> str:
    """Return the median and each value, for a table."""
    if not values:
        return "-"
    return f"{statistics.median(values):.2f} ({', '.join(f'{value:.2f}' for value in values)})"
