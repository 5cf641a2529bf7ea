"""What a training came to: its runs with their epochs, restarts and locations, as JSON and as a table of epochs.

Must not know Ray, who trained, where anything is written, or how it is shown.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from raytrain import storage
from raytrain.config import EmptyUnionRule, MemberSettings
from raytrain.evaluation.intervals import Interval
from raytrain.evaluation.resampling import Ratio, intervals
from raytrain.training.metrics import LocationScore, TileScore

State = Literal["done", "failed", "not finished", "not begun"]


class EpochResult(BaseModel):
    """One epoch of a run, by its number from 1: its metrics, and when it ended, in time and in seconds of the run.

    `epoch_s` is the time of its steps, of which `wait_s` went by waiting for samples. Scores are None without
    validation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epoch: int
    loss: float
    learning_rate: float
    images_per_s: float
    epoch_s: float
    wait_s: float
    validation_s: float
    skipped_steps: int
    iou_pooled: float | None = None
    iou_mean: float | None = None
    iou_location_weighted: float | None = None
    iou_mean_location_weighted: float | None = None
    empty_union_rule: EmptyUnionRule | None = None
    seconds: float
    ended: datetime

    @property
    def wait_fraction(self) -> float:
        """The share of the time of its steps that went by waiting for samples."""
        return min(self.wait_s / self.epoch_s, 1.0) if self.epoch_s else 0.0


@dataclass(frozen=True)
class RestartResult:
    """One attempt at a run that ended before the run did, and where the next one went on.

    `epoch` (from 1) and `image` say where; `lost_images` were trained on again, None where that is not known. The next
    attempt began when the run had taken `seconds`, None in runs of older versions.
    """

    attempt: int
    kind: str
    cause: str
    epoch: int
    image: int
    lost_images: int | None
    seconds: float | None


@dataclass(frozen=True)
class TrainingRun:
    """One run: what it trains, how far it came, and what its best epoch found.

    `locations` and `tiles` are those of the best epoch; they are empty without validation, and where they are not
    known. `failed` says why the run has no net. `weights_sha256` is that of the net, once the run is done.
    """

    name: str
    member: MemberSettings
    fold: int | None
    state: State
    encoder_weights_sha256: str | None = None
    weights_sha256: str | None = None
    failed: str | None = None
    seconds: float = 0.0
    best_epoch: int | None = None
    score: float | None = None
    epochs: tuple[EpochResult, ...] = ()
    restarts: tuple[RestartResult, ...] = ()
    locations: dict[str, LocationScore] | None = None
    tiles: tuple[TileScore, ...] = ()

    @property
    def score_pooled(self) -> float | None:
        """The pooled IoU of the best epoch."""
        return next((each.iou_pooled for each in self.epochs if each.epoch == self.best_epoch), None)

    @property
    def lost_images(self) -> int:
        """How many images were trained on again, as far as that is known."""
        return sum(each.lost_images or 0 for each in self.restarts)


@dataclass(frozen=True)
class Totals:
    """The headline figures of a training. Rates are over all steps.

    Scores are means over the runs that are done and have one; before there is any, over those that have one so far.
    """

    num_done: int
    num_runs: int
    num_scored: int
    iou_location_weighted: float | None
    iou_pooled: float | None
    num_restarts: int
    lost_images: int
    images_per_s: float | None
    wait_fraction: float | None
    seconds: float


@dataclass(frozen=True)
class LocationRow:
    """One validation location: the mean of its IoUs over the runs that validated on it, each of these, its chips."""

    name: str
    iou: float
    by_run: dict[str, float]
    num_chips: int


@dataclass(frozen=True)
class TrainingResults:
    """All runs of an experiment; `ensemble_digest` is that of its nets once it is whole."""

    experiment: str
    shards: str
    shards_digest: str
    runs: tuple[TrainingRun, ...]
    ensemble_digest: str | None = None

    @property
    def judged(self) -> list[TrainingRun]:
        """The runs that the scores are of: those that are done and have one, before there is any all that have one."""
        scored = [run for run in self.runs if run.score is not None]
        return [run for run in scored if run.state == "done"] or scored

    @property
    def totals(self) -> Totals:
        """The headline figures."""
        scored = [run.score for run in self.judged if run.score is not None]
        pooled = [run.score_pooled for run in self.judged if run.score_pooled is not None]
        epochs = [epoch for run in self.runs for epoch in run.epochs]
        steps_s = sum(epoch.epoch_s for epoch in epochs)
        return Totals(
            num_done=sum(run.state == "done" for run in self.runs),
            num_runs=len(self.runs),
            num_scored=len(scored),
            iou_location_weighted=_mean(scored),
            iou_pooled=_mean(pooled),
            num_restarts=sum(len(run.restarts) for run in self.runs),
            lost_images=sum(run.lost_images for run in self.runs),
            images_per_s=sum(each.images_per_s * each.epoch_s for each in epochs) / steps_s if steps_s else None,
            wait_fraction=sum(each.wait_s for each in epochs) / steps_s if steps_s else None,
            seconds=sum(run.seconds for run in self.runs),
        )

    @property
    def locations(self) -> list[LocationRow]:
        """The validation locations, from the worst to the best."""
        found: dict[str, dict[str, LocationScore]] = {}
        for run in self.runs:
            for name, score in (run.locations or {}).items():
                found.setdefault(name, {})[run.name] = score
        rows = [
            LocationRow(
                name,
                sum(score.iou for score in scores.values()) / len(scores),
                {run: score.iou for run, score in scores.items()},
                max(score.num_chips for score in scores.values()),
            )
            for name, scores in found.items()
        ]
        return sorted(rows, key=lambda row: (row.iou, row.name))

    @property
    def score_interval(self) -> Interval | None:
        """The interval of the score by location; None if a run that it is of has other locations, or unknown ones."""
        found = [run.locations or {} for run in self.judged]
        if not found or not found[0] or any(each.keys() != found[0].keys() for each in found):
            return None
        ious = sorted(sum(each[name].iou for each in found) / len(found) for name in found[0])
        return intervals([Ratio.mean(np.array(ious))])[0]


def results_json(results: TrainingResults, versions: Sequence[tuple[str, str]]) -> str:
    """Return the text of `report.json`: what the page shows, as numbers, and all that they come from."""
    content = {
        "experiment": results.experiment,
        "shards": results.shards,
        "shards_digest": results.shards_digest,
        "ensemble_digest": results.ensemble_digest,
        "figures": asdict(results.totals),
        "score_interval": None if results.score_interval is None else asdict(results.score_interval),
        "runs": [_run_json(run) for run in results.runs],
        "locations": [asdict(row) for row in results.locations],
        "versions": dict(versions),
    }
    return json.dumps(_without_queries(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def epochs_parquet(results: TrainingResults) -> bytes:
    """Return a table as the bytes of a Parquet file: one row a run and epoch, with all metrics of the epoch."""
    rows = [
        {"run": run.name, "member": run.member.name, "fold": run.fold, **epoch.model_dump()}
        for run in results.runs
        for epoch in run.epochs
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=_EPOCHS_SCHEMA), sink)
    return bytes(sink.getvalue().to_pybytes())


_EPOCHS_SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("member", pa.string()),
        ("fold", pa.int32()),
        ("epoch", pa.int32()),
        ("loss", pa.float64()),
        ("learning_rate", pa.float64()),
        ("images_per_s", pa.float64()),
        ("epoch_s", pa.float64()),
        ("wait_s", pa.float64()),
        ("validation_s", pa.float64()),
        ("skipped_steps", pa.int64()),
        ("iou_pooled", pa.float64()),
        ("iou_mean", pa.float64()),
        ("iou_location_weighted", pa.float64()),
        ("iou_mean_location_weighted", pa.float64()),
        ("empty_union_rule", pa.string()),
        ("seconds", pa.float64()),
        ("ended", pa.timestamp("us", tz="UTC")),
    ]
)


def _run_json(run: TrainingRun) -> dict[str, Any]:
    return {
        "name": run.name,
        "member": run.member.model_dump(mode="json"),
        "fold": run.fold,
        "state": run.state,
        "failed": run.failed,
        "encoder_weights_sha256": run.encoder_weights_sha256,
        "weights_sha256": run.weights_sha256,
        "score": run.score,
        "iou_pooled": run.score_pooled,
        "best_epoch": run.best_epoch,
        "seconds": run.seconds,
        "lost_images": run.lost_images,
        "restarts": [asdict(each) for each in run.restarts],
        "epochs": [each.model_dump(mode="json") for each in run.epochs],
        "locations": {name: asdict(score) for name, score in (run.locations or {}).items()},
        "tiles": [asdict(each) for each in run.tiles],
    }


def _without_queries(value: Any) -> Any:
    """Return what JSON holds with none of the queries of addresses in its texts."""
    if isinstance(value, dict):
        return {name: _without_queries(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_queries(each) for each in value]
    return storage.without_queries(value) if isinstance(value, str) else value


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
