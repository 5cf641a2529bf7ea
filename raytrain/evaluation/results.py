"""The result of an evaluation, and the `metrics.json` that it becomes. Must not know how it was counted or is shown."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict

from pydantic import BaseModel, ConfigDict

import raytrain
from raytrain import storage
from raytrain.config import EmptyUnionRule
from raytrain.errors import DataError
from raytrain.training.metrics import Scores

METRICS_NAME = "metrics.json"


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Inputs(_Result):
    """What was evaluated: three URIs, and the `COLUMN=VALUE` filters on the metadata."""

    predictions: str
    labels: str
    metadata: str
    where: tuple[str, ...] = ()


class Problem(_Result):
    """One thing that was left out of the scores, and why."""

    subject: str
    found: str


class LocationResult(_Result):
    """One location: its IoU over all its chips, the mean of its chips' IoUs, and the counts behind it (pixels)."""

    iou: float
    iou_mean: float
    intersection: int
    union: int
    num_chips: int


class Evaluation(_Result):
    """The four IoUs, each in [0, 1], the locations behind them, and what was left out."""

    iou_pooled: float
    iou_mean: float
    iou_location_weighted: float
    iou_mean_location_weighted: float
    empty_union_rule: EmptyUnionRule
    num_chips: int
    locations: dict[str, LocationResult]
    problems: tuple[Problem, ...]
    inputs: Inputs
    raytrain_version: str

    @classmethod
    def of(cls, scores: Scores, problems: Iterable[DataError], inputs: Inputs) -> Evaluation:
        """Return the result of `scores`; `problems` may come in any order and leave in one."""
        listed = sorted((problem.subject, problem.found) for problem in problems)
        return cls(
            **asdict(scores),
            problems=tuple(Problem(subject=subject, found=found) for subject, found in listed),
            inputs=inputs,
            raytrain_version=raytrain.__version__,
        )

    def to_json(self) -> str:
        """Return the text of `metrics.json`: the same evaluation gives the same text, whenever it is made."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def write_metrics(uri: str, evaluation: Evaluation) -> str:
    """Write `metrics.json` into the folder `uri` and return its URI."""
    target = storage.join(uri, METRICS_NAME)
    storage.write_bytes(target, evaluation.to_json().encode())
    return target
