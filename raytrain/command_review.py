"""`raytrain review`: its commands by name. Must not know arithmetic."""

from __future__ import annotations

from collections.abc import Callable

from raytrain.command import Command
from raytrain.command_review_rank import Rank

REVIEW_COMMANDS: dict[str, Callable[..., Command]] = {
    "rank": Rank,
}
