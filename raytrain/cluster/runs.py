"""A run: what one member's training on one fold depends on, what a command asks for, the names that all sides share."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from raytrain.config import Fraction, LoaderSettings, MemberSettings, PlainName, Settings
from raytrain.training.encoder_files import EncoderFile

SCORE = "iou_location_weighted"
"""The metric by which the best epoch of a run is kept."""
RUN_FILE, RESULT_FILE, HISTORY_FILE = "run.json", "result.json", "history.json"


class RunSettings(Settings):
    """What one run depends on: recorded in its folder, and compared when the run is asked for again.

    `encoder_weights_sha256` is the hash of the file that the encoder starts from; None for random weights. Where that
    file lies is no part of a run. The tiles of the fold `kept_back` are neither trained on nor validated on, as in
    trials of a search; `tiles_fraction` and `validation_fraction` are shares of the others of each location, drawn with
    `share_seed`.
    """

    member: MemberSettings
    shards: str
    shards_digest: str
    fold: int | None
    encoder_weights_sha256: str | None = None
    kept_back: int | None = None
    tiles_fraction: Fraction = Field(default=1.0, gt=0)
    validation_fraction: Fraction = Field(default=1.0, gt=0)
    share_seed: int = Field(default=0, ge=0)

    @property
    def name(self) -> str:
        """The run's folder."""
        return f"{self.member.name}-fold{'none' if self.fold is None else self.fold}"


def run_tags(experiment: str, run: RunSettings) -> dict[str, str]:
    """Return the tags that the metrics of a run have."""
    fold = "none" if run.fold is None else str(run.fold)
    return {"experiment": experiment, "run": run.name, "member": run.member.name, "fold": fold}


class Checkpointing(Settings):
    """How often a run's state is saved within an epoch, and how many of the last ones stay, the best one beside them.

    The end of an epoch is saved always.
    """

    interval_s: float = Field(default=600.0, gt=0)
    keep_last: int = Field(default=2, ge=1)


class RankWork(Settings):
    """What a rank needs to train a run of an experiment, whose folder is at the URI `folder`."""

    experiment: PlainName
    run: RunSettings
    folder: str
    checkpointing: Checkpointing = Checkpointing()
    loader: LoaderSettings = LoaderSettings()
    encoder_file: EncoderFile | None = None


class TrainJob(Settings):
    """Which members to train on which shards; `changes` (dotted path -> value) apply to every member.

    `workers` are the ranks of a run, or the fewest and the most of an elastic one, which goes on with what the cluster
    has. `weights` is a mirror of encoder weights, from which members that ask for timm's take them. It, `loader`, which
    says how tiles get to the ranks, `workers` and `checkpointing` are no part of what a run depends on. `mlflow` is the
    address of an MLflow, a server's or a local folder, that is told of the runs.
    """

    shards: str
    out: str
    experiment: PlainName = "main"
    members: tuple[str, ...] = ("all",)
    fold: int | Literal["all", "none"] = 0
    workers: int | tuple[int, int] = 1
    changes: dict[str, Any] = Field(default_factory=dict)
    loader: LoaderSettings = LoaderSettings()
    checkpointing: Checkpointing = Checkpointing()
    weights: str | None = None
    mlflow: str | None = None

    @property
    def fewest_workers(self) -> int:
        """The ranks without which no run goes on."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """The ranks of a run where the cluster has room."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]
