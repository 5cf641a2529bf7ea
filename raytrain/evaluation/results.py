"""The result of an evaluation as plain, frozen values: what `metrics.json` has. Must not know how it is made.

All scores are fractions in [0, 1]; None stands for one that is not defined (0 by 0), and for an interval that can't be
had. Counts are of pixels or chips, as named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

from raytrain import storage
from raytrain.config import EmptyUnionRule

METRICS_NAME = "metrics.json"
SCORE_NAMES: Mapping[str, str] = {
    "iou_pooled": "IoU, pooled",
    "iou_location_weighted": "IoU by location",
    "iou_mean": "IoU by chip",
    "iou_mean_location_weighted": "IoU by chip and location",
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1",
    "accuracy": "Accuracy",
}
"""What a person reads of each score."""
Words = Literal["better", "worse", "can't tell"]


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Inputs(_Result):
    """What was evaluated: URIs, `COLUMN=VALUE` filters on the metadata, columns to part it by, how files were read."""

    predictions: str
    labels: str
    metadata: str
    where: tuple[str, ...] = ()
    where_metadata: str | None = None
    by: tuple[str, ...] = ()
    images: str | None = None
    against: str | None = None
    threshold: float | None = None
    scale: float | None = None
    edge_px: int = 5
    allowed: tuple[str, ...] = ()


class Problem(_Result):
    """One thing that was left out of the scores, and why; `kind` is the name by which it was allowed."""

    subject: str
    found: str
    kind: str = ""


class Ends(_Result):
    """The ends of an interval."""

    low: float
    high: float


class Resampling(_Result):
    """What intervals were made by: `level` of all samples of locations would have the truth between their ends."""

    level: float
    resamples: int
    seed: int
    num_locations: int


class Pixels(_Result):
    """Labelled pixels: cloud found, clear called cloud, cloud missed, clear found."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int


class PixelScores(_Result):
    """The scores of pixels taken together."""

    iou: float
    precision: float | None
    recall: float | None
    f1: float | None
    accuracy: float | None
    pixels: Pixels


class LocationResult(_Result):
    """One location: its IoU over all its chips, the mean of its chips' IoUs, and the counts behind it (pixels)."""

    iou: float
    iou_mean: float
    intersection: int
    union: int
    num_chips: int
    precision: float | None
    recall: float | None
    f1: float | None
    accuracy: float | None


class SliceResult(_Result):
    """The chips that have one value of a column."""

    column: str
    value: str
    num_chips: int
    num_locations: int
    iou_pooled: float
    iou_location_weighted: float
    precision: float | None
    recall: float | None
    f1: float | None
    accuracy: float | None
    iou_pooled_interval: Ends | None
    iou_location_weighted_interval: Ends | None


class CurvePoint(_Result):
    """The scores if cloud were what reaches `threshold` of the probability."""

    threshold: float
    iou_pooled: float
    iou_location_weighted: float
    precision: float | None
    recall: float | None
    f1: float | None


class ReliabilityBin(_Result):
    """Pixels whose probability is from `low` to below `high`: the mean of these, and how many of them are cloud."""

    low: float
    high: float
    num_px: int
    mean_probability: float | None
    cloud_fraction: float | None


class Calibration(_Result):
    """How far probabilities are what they say.

    The expected calibration error is the mean over pixels of the difference between the two columns of their bin.
    """

    expected_calibration_error: float
    num_px: int
    num_chips: int
    bins: tuple[ReliabilityBin, ...]


class MemberResult(_Result):
    """A member by itself, and what it adds: the IoU by location of all together less that of the others."""

    name: str
    iou_pooled: float
    iou_location_weighted: float
    precision: float | None
    recall: float | None
    without_iou_pooled: float
    without_iou_location_weighted: float
    adds: float
    adds_interval: Ends | None


class Votes(_Result):
    """Pixels that `num_members` members call cloud, and how many of them are."""

    num_members: int
    num_px: int
    cloud_fraction: float | None


class Members(_Result):
    """How the members of an ensemble do and how they part; `differ_fraction` is of labelled pixels, by two members."""

    num_chips: int
    together_iou_pooled: float
    together_iou_location_weighted: float
    members: tuple[MemberResult, ...]
    differ_fraction: tuple[tuple[float, ...], ...]
    votes: tuple[Votes, ...]
    unanimous_fraction: float


class Compared(_Result):
    """One score of two sets of predictions on the same chips, and what can be said of their difference."""

    name: str
    ours: float | None
    theirs: float | None
    difference: float | None
    interval: Ends | None
    words: Words


class Comparison(_Result):
    """Two sets of predictions in pairs, on the same labels."""

    against: str
    num_chips: int
    num_locations: int
    scores: tuple[Compared, ...]
    locations: dict[str, float]
    """The difference of the IoU at each location."""


class Evaluation(_Result):
    """The scores of predictions against labels, what is behind them, and what was left out.

    `decided_at` is the threshold on the probability from which on pixels are cloud; None where masks don't tell it.
    """

    iou_pooled: float
    iou_mean: float
    iou_location_weighted: float
    iou_mean_location_weighted: float
    precision: float | None
    recall: float | None
    f1: float | None
    accuracy: float | None
    empty_union_rule: EmptyUnionRule
    decided_at: float | None
    num_chips: int
    unpredicted_px: int
    intervals: dict[str, Ends | None]
    resampling: Resampling
    pixels: Pixels
    near_edges: PixelScores
    away_from_edges: PixelScores
    zone_intervals: dict[str, Ends | None]
    locations: dict[str, LocationResult]
    slices: tuple[SliceResult, ...]
    threshold_curve: tuple[CurvePoint, ...] | None
    calibration: Calibration | None
    members: Members | None
    comparison: Comparison | None
    problems: tuple[Problem, ...]
    inputs: Inputs
    raytrain_version: str

    def to_json(self) -> str:
        """Return the text of `metrics.json`: the same evaluation gives the same text, whenever it is made."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_metrics(uri: str, evaluation: Evaluation) -> str:
    """Write `metrics.json` into the folder `uri` and return its URI."""
    target = storage.join(uri, METRICS_NAME)
    storage.write_bytes(target, evaluation.to_json().encode())
    return target
