"""A run: what one member's training on one fold depends on, and the names that driver and ranks share."""

from __future__ import annotations

from raytrain.config import MemberSettings, Settings

SCORE = "iou_location_weighted"
BEST = "best_epoch"
"""The metric that checkpoints are kept by: the number of an epoch that is the best so far, 0 for any other."""
"""The metric by which the best epoch of a run is kept."""
METRICS = "metrics.json"
"""The epoch's metrics, in its checkpoint."""


class RunSettings(Settings):
    """What one run depends on: recorded in its folder, and compared when the run is asked for again.

    `encoder_weights_sha256` is the hash of the file that the encoder starts from; None for random weights. Where that
    file lies is no part of a run.
    """

    member: MemberSettings
    shards: str
    shards_digest: str
    fold: int | None
    encoder_weights_sha256: str | None = None

    @property
    def name(self) -> str:
        """The run's folder."""
        return f"{self.member.name}-fold{'none' if self.fold is None else self.fold}"
