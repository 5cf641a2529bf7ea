"""What an evaluation gives the model card of its ensemble. Must not know how a card is written."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CardScore(_Row):
    """A headline score of a whole ensemble by its name, with the ends of its interval if it has one."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None


class CardLocation(_Row):
    """The score of a whole ensemble at one location, with the ends of its interval if it has one."""

    name: str
    iou: float
    low: float | None = None
    high: float | None = None
    num_chips: int


class CardEvaluation(_Row):
    """What an evaluation of the masks of a whole ensemble found; `labels` says against what."""

    labels: str
    scores: tuple[CardScore, ...]
    locations: tuple[CardLocation, ...]
