"""What an evaluation gives the model card of its ensemble. Must not know how a card is written."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from raytrain.config import EmptyUnionRule

MadeBy = int | Literal["all"]
"""Whose nets made masks: all, or those of one fold, -1 for nets without one, as in `EnsembleManifest.of_fold`."""


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CardScore(_Row):
    """A headline score by its name, with the ends of its interval if it has one."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None


class CardLocation(_Row):
    """The score at one location."""

    name: str
    iou: float
    num_chips: int


class CardEvaluation(_Row):
    """What an evaluation of masks found, against which labels, of whose nets, and by which rules.

    `where` are the `COLUMN=VALUE` filters on the chips, `threshold` is that on the probability, None where masks don't
    tell it. `num_left_out` chips or rows could not be counted for a reason among the `allowed` kinds.
    """

    labels: str
    made_by: MadeBy
    where: tuple[str, ...]
    threshold: float | None
    allowed: tuple[str, ...]
    num_left_out: int
    empty_union_rule: EmptyUnionRule
    num_chips: int
    scores: tuple[CardScore, ...]
    locations: tuple[CardLocation, ...]
