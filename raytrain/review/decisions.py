"""Decisions of people about labels: what one is. Must not know where they are kept, or what comes of them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from raytrain.config import PlainName, Settings
from raytrain.review.kinds import ErrorKind

Verdict = Literal["accept", "fix", "ignore", "drop", "unsure", "undo"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
Conflicts = Literal["leave", "latest"]
"""What becomes of a tile about which reviewers contradict each other: it stays as it is, or the latest decides."""
Outcome = Literal["applied", "agrees", "unsure", "overruled", "left"]
"""What comes of a decision in new shards: its tile is made by it, or by another's that says the same; its reviewer is
unsure; the latest, which decides, says something else; or it was left out, for which there is a reason."""
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
WITH_MASK: tuple[Verdict, ...] = ("fix", "ignore")
TIME = r"^\d{4}-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-5]\d\.\d{3}Z$"


class Decided(Settings):
    """What a person decides about a tile: a `Decision` without its place in the log.

    `tile_sha256` is the hash of the tile that was looked at, bands and label. `mask` is a PNG of 8 bits grey, base64:
    of a `fix` the whole new label `[H, W]` (0 clear, 1 cloud, 255 ignore), of an `ignore` the region (1) to ignore;
    None for others. An `undo` takes the decision `undoes` back. `kind` is the error suspected then.
    """

    decision_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    reviewer: PlainName
    tile_id: PlainName
    tile_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    verdict: Verdict
    reason: Annotated[str, Field(max_length=1000)] = ""
    kind: ErrorKind | None = None
    mask: str | None = None
    undoes: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None


class Decision(Decided):
    """One entry of the log: who decided when what about which tile; nothing of it ever changes.

    `number` counts the entries of a reviewer in one folder, from 1. The last one counts, by `time`, then `number`.
    `time` is UTC, ISO 8601, with milliseconds and a Z.
    """

    format_version: Literal[1] = 1
    number: Annotated[int, Field(ge=1)]
    time: Annotated[str, Field(pattern=TIME)]

    @model_validator(mode="after")
    def _has_what_its_verdict_needs(self) -> Self:
        datetime.fromisoformat(self.time)  # there is no month 13
        if (self.mask is not None) != (self.verdict in WITH_MASK):
            raise ValueError(f"mask is given with {' or '.join(WITH_MASK)}, and only with them, not {self.verdict}")
        if (self.undoes is not None) != (self.verdict == "undo"):
            raise ValueError(f"undoes is given with undo, and only with it, not {self.verdict}")
        return self
