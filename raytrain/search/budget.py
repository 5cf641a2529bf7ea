"""What a search may spend, and what it has: trials, rank-hours, time. Must not know what trials are about."""

from __future__ import annotations

from pydantic import Field, model_validator

from raytrain.config import Settings

FINALS_SHARE = 0.4
"""The share of a budget in hours that is kept for the finalists."""


class Budget(Settings):
    """When a search ends: whichever comes first of `trials` tried, `rank_hours` and `wall_hours` spent.

    Rank-hours are GPU-hours where ranks have GPUs. Hours are of everything, finalists included, over all commands.
    """

    trials: int | None = Field(default=None, ge=1)
    rank_hours: float | None = Field(default=None, gt=0)
    wall_hours: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _ends(self) -> Budget:
        if self.trials is None and self.rank_hours is None and self.wall_hours is None:
            raise ValueError("a search needs a budget: --trials, --gpu-hours or --wall-hours")
        return self

    def spent(self, rank_hours: float, wall_hours: float, *, share: float = 1.0) -> str | None:
        """Return which hours are spent, all of them or a `share`, in a few words; None while there are some left."""
        for name, limit, used in (("rank", self.rank_hours, rank_hours), ("wall", self.wall_hours, wall_hours)):
            if limit is not None and used >= share * limit:
                return f"{share * limit:.3g} {name}-hours are spent"
        return None
