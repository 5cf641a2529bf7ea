"""`raytrain review rank`: its options, what it prints. Must not know arithmetic."""

from __future__ import annotations

from typing import Annotated, Any

import tyro

from raytrain import storage
from raytrain.command import ClusterCommand, listed
from raytrain.console import Narrator, print_table
from raytrain.errors import EXIT_DATA_WRONG, EXIT_DONE

SHOWN = 10
"""Tiles of the table that is printed."""


class Rank(ClusterCommand):
    """Rank the tiles of shards by how suspicious their labels are beside out-of-fold predictions; and what has none."""

    shards: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SHARDS")]
    """The folder of the shards."""
    predictions: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PREDICTIONS")]
    """What `raytrain score SHARDS PREDICTIONS --out-of-fold` wrote."""
    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """The folder of the review; ranked again, decisions that stand there stay."""
    unlabelled: tuple[str, ...] = ()
    """Other scorings with a disagreement, of chips or scenes that have no label: which of them are worth one."""

    def run(self, narrator: Narrator) -> int:
        """Rank the tiles."""
        from raytrain.cluster.review_rank import RankJob, rank

        shards, predictions, dst = (storage.normalise(uri) for uri in (self.shards, self.predictions, self.dst))
        unlabelled = tuple(storage.normalise(uri) for uri in self.unlabelled)
        job = RankJob(shards=shards, predictions=predictions, dst=dst, unlabelled=unlabelled)
        with narrator.step(f"labels of {storage.shown(shards)}") as on_progress:
            report = rank(job, self._cluster, on_progress)
        narrator.problems(report.problems, consequence="not ranked")
        names = ["rank", "tile_id", "location", "kind", "suspicion"]
        if report.num_blank:
            narrator.say(f"{report.num_blank} labels have no pixel that is known: not ranked")
        if report.num_members == 1 and report.num_unlabelled:
            narrator.say(
                "raytrain: warning: one member has none to disagree with, so what is worth a label is not known"
            )
        top: list[dict[str, Any]] = report.table.select(names).slice(0, SHOWN).to_pylist()
        if not self.json_output:
            rows = [[*(str(row[name]) for name in names[:-1]), f"{row['suspicion']:.3f}"] for row in top]
            print_table("Labels, the most suspicious first", names, rows)
        result = {"uri": dst, "num_labelled": len(report.table), "num_unlabelled": report.num_unlabelled}
        result["num_blank"] = report.num_blank
        result |= {"top": top, "problems": listed(report.problems)}
        counts = f"{len(report.table)} labels ranked, {report.num_unlabelled} without one"
        self._print(result, [f"{counts}: {dst}", f"look at them: raytrain review serve {dst}"])
        return EXIT_DATA_WRONG if report.problems else EXIT_DONE

    def writes_to(self) -> str:
        """Return the folder of the review."""
        return storage.normalise(self.dst)

    def uris(self) -> list[str]:
        """Return the shards, the predictions, the folder of the review, and the other scorings."""
        return [self.shards, self.predictions, self.dst, *self.unlabelled]
