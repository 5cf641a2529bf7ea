"""What a page asks for: tiles to list, and a decision to be written, with the checks that it must pass.

Must not know HTTP: what is wrong is an exception with a sentence.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import Field

from raytrain.config import Settings, parse
from raytrain.errors import ConfigError
from raytrain.review.decisions import WITH_MASK, Decided, Decision
from raytrain.review.regions import LABEL_VALUES, REGION_VALUES, BadMask, decode_mask

MOST_ROWS = 1000


class NotAccepted(ValueError):
    """A decision that can't be one, whoever asks again; nothing was written."""


class OtherTile(Exception):
    """A decision about a tile whose hash is another now, `found`, None where the tile is gone; nothing was written."""

    def __init__(self, tile_id: str, found: str | None) -> None:
        super().__init__(tile_id, found)
        self.tile_id, self.found = tile_id, found


class AskedTiles(Settings):
    """Which tiles, in which order; an empty value is no filter.

    `verdict` is one that stands, `none`, `any`, or `disputed`, which two reviewers see differently; of anyone, or of
    `reviewer`. `others` is a reviewer whom tiles are asked for that somebody else decided on. `query` is text.
    """

    kind: str = ""
    location: str = ""
    verdict: str = ""
    reviewer: str = ""
    others: str = ""
    query: Annotated[str, Field(max_length=200)] = ""
    sort: str = ""


class AskedPage(AskedTiles):
    """Some of these tiles, by their place among them, or those of `ranks`, numbers with commas, whatever the filter."""

    offset: Annotated[int, Field(ge=0)] = 0
    limit: Annotated[int, Field(ge=1, le=MOST_ROWS)] = 200
    ranks: Annotated[str, Field(pattern=r"^([1-9][0-9]{0,8}(,[1-9][0-9]{0,8}){0,199})?$")] = ""


class AskedDecision(Decided):
    """What a page asks to enter into the log; the server gives it its number and its time."""

    def is_asked_again(self, stands: Decision) -> bool:
        """Tell whether the entry of this id says the same; raise `NotAccepted` where it says something else."""
        same = all(getattr(stands, name) == value for name, value in self.model_dump().items())
        if not same:
            raise NotAccepted(f"decision_id {self.decision_id}: another decision has it; draw a new one")
        return True

    def entry(self, number: int, last_time: str | None) -> Decision:
        """Return the entry of the log, as of now, and after `last_time`, that of the reviewer's last one.

        Raises `NotAccepted` where mask or undoes do not fit the verdict.
        """
        values: dict[str, Any] = {**self.model_dump(), "number": number, "time": time_after(last_time)}
        try:
            return parse(Decision, values)
        except ConfigError as error:
            raise NotAccepted(str(error)) from error

    def check_mask(self, shape: tuple[int, int]) -> None:
        """Raise `NotAccepted` unless the mask is what the verdict needs on a tile of this shape."""
        if (self.mask is not None) != (self.verdict in WITH_MASK):
            raise NotAccepted(f"mask: {'needed with' if self.mask is None else 'no part of'} {self.verdict}")
        if self.mask is None:
            return
        try:
            mask = decode_mask(self.mask, shape, LABEL_VALUES if self.verdict == "fix" else REGION_VALUES)
        except BadMask as error:
            raise NotAccepted(f"mask: {error}") from error
        if self.verdict == "ignore" and not mask.any():
            raise NotAccepted("mask: no pixel to ignore; mark a region, or give another verdict")

    def check_undo(self, undone: Decision | None) -> None:
        """Raise `NotAccepted` unless an undo takes back what this reviewer decided about this tile, and no other."""
        if (self.undoes is not None) != (self.verdict == "undo"):
            raise NotAccepted(f"undoes: {'needed with' if self.undoes is None else 'no part of'} {self.verdict}")
        if self.undoes is None:
            return
        if undone is None or undone.tile_id != self.tile_id:
            raise NotAccepted(f"undoes: {self.reviewer} has no decision {self.undoes} about {self.tile_id}")


def now() -> str:
    """Return the time as entries of the log have it: UTC, with milliseconds and a Z."""
    return _text_of(datetime.now(UTC))


def time_after(last: str | None) -> str:
    """Return the time of an entry that comes after one of the time `last`: now, or a millisecond later than that.

    A clock may be set back, and servers on one log have clocks of their own; but the later decision counts.
    """
    found = now()
    if last is None or found > last:
        return found
    try:
        return _text_of(datetime.fromisoformat(last) + timedelta(milliseconds=1))
    except OverflowError:  # the last moment of the year 9999: then the number says which is the later one
        return last


def _text_of(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
