"""`raytrain review apply`: its options, what it prints. Must not know arithmetic."""

from __future__ import annotations

from typing import Annotated

import tyro

from raytrain import storage
from raytrain.command import ClusterCommand, listed
from raytrain.config import parse
from raytrain.console import Narrator
from raytrain.errors import EXIT_DATA_WRONG, EXIT_DONE
from raytrain.review.decisions import Conflicts

_OTHERWISE = {
    "agrees": "agreeing with one that is",
    "unsure": "unsure",
    "overruled": "overruled by a later one",
    "left": "left out, for the reasons above",
}
"""What is said of decisions that were not applied, by outcome."""


class Apply(ClusterCommand):
    """Make new shards of those of a review, as people decided: labels fixed, regions ignored, tiles dropped."""

    review: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REVIEW")]
    """The folder of the review, with its decisions."""
    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Where the new shards go; those of the review stay as they are."""
    reviewers: tuple[str, ...] = ()
    """Whose decisions count; all, unless some are named."""
    conflicts: Conflicts = "leave"
    """A tile about which reviewers contradict each other: leave it as it is, or take the latest decision."""

    def run(self, narrator: Narrator) -> int:
        """Write the shards."""
        from raytrain.cluster.review_apply import ApplyJob, apply

        places = {"review": storage.normalise(self.review), "dst": storage.normalise(self.dst)}
        job = parse(ApplyJob, {**places, "reviewers": self.reviewers, "conflicts": self.conflicts})
        with narrator.step(f"shards to {job.dst}") as on_progress:
            report = apply(job, self._cluster, on_progress)
        narrator.problems(report.problems, consequence="not applied")
        manifest = report.manifest
        if manifest["review"]["contested"] and job.conflicts == "leave":
            narrator.say(
                "where reviewers contradict each other: let them agree, or --conflicts latest takes the latest"
            )
        totals = {name: manifest[name] for name in ("num_tiles", "num_labelled", "num_locations", "bytes")}
        review = {name: value for name, value in manifest["review"].items() if name != "problems"}
        result = {"uri": job.dst, **totals, "parent": manifest["parent"], "review": review}
        said = ", ".join(f"{verdict} {count}" for verdict, count in review["applied"].items()) or "none"
        again = " (already there)" if report.was_done else ""
        outcomes = review["outcomes"]
        text = f"{outcomes['applied']} of {review['num_decisions']} decisions applied ({said})"
        others = [f"{outcomes[name]} {words}" for name, words in _OTHERWISE.items() if outcomes[name]]
        lines = [
            "; ".join([text, *others]),
            f"{totals['num_tiles']} tiles, {totals['bytes'] / 1e6:.1f} MB: {job.dst}{again}",
        ]
        self._print({**result, "problems": listed(report.problems)}, lines)
        return EXIT_DATA_WRONG if report.problems else EXIT_DONE

    def writes_to(self) -> str:
        """Return the destination."""
        return storage.normalise(self.dst)

    def uris(self) -> list[str]:
        """Return the folder of the review and the destination."""
        return [self.review, self.dst]
