"""`raytrain review rank`: its options, what it prints. Must not know arithmetic."""

from __future__ import annotations

from typing import Annotated

import tyro

from raytrain import storage
from raytrain.command import ClusterCommand
from raytrain.console import Narrator
from raytrain.errors import EXIT_DONE


class Rank(ClusterCommand):
    """Rank the tiles of shards by how suspicious their labels are beside out-of-fold predictions; and what has none."""

    shards: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SHARDS")]
    """The folder of the shards."""
    predictions: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PREDICTIONS")]
    """What `raytrain score SHARDS PREDICTIONS --out-of-fold` wrote."""
    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """The folder of the review."""

    def run(self, narrator: Narrator) -> int:
        """Rank the tiles."""
        return EXIT_DONE

    def writes_to(self) -> str:
        """Return the folder of the review."""
        return storage.normalise(self.dst)

    def uris(self) -> list[str]:
        """Return the shards, the predictions and the folder of the review."""
        return [self.shards, self.predictions, self.dst]
