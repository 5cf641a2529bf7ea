"""`raytrain review export`, `merge` and `diff`: their options, what they print. Must not know arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import tyro

from raytrain import storage
from raytrain.command import Command, listed, or_dash
from raytrain.console import Narrator, print_table
from raytrain.errors import EXIT_DATA_WRONG, EXIT_DONE, ConfigError

if TYPE_CHECKING:
    from raytrain.review.decisions import Decision
    from raytrain.review.exchange import Compared


class Export(Command):
    """Write all decisions of a review as one Parquet table, masks as PNG."""

    review: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REVIEW")]
    """The folder of the review."""
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT.parquet")]
    """The file to write."""

    def run(self, narrator: Narrator) -> int:
        """Write the table."""
        from raytrain.review.exchange import export

        out = storage.normalise(self.out)
        found = export(storage.normalise(self.review), out)
        narrator.problems(found.problems, consequence="left out")
        result = {"uri": out, "num_entries": found.num_entries, "num_standing": found.num_standing}
        result["reviewers"] = [vars(each) for each in found.reviewers]
        if not self.json_output and found.reviewers:
            rows = [
                [
                    each.reviewer,
                    str(each.num_entries),
                    str(each.num_tiles),
                    ", ".join(f"{verdict} {count}" for verdict, count in sorted(each.by_verdict.items())) or "-",
                    each.last_time,
                ]
                for each in found.reviewers
            ]
            print_table("Decisions", ["reviewer", "entries", "tiles", "what stands", "the last"], rows)
        text = f"{found.num_entries} entries, {found.num_standing} of which stand: {out}"
        self._print({**result, "problems": listed(found.problems)}, [text])
        return EXIT_DATA_WRONG if found.problems else EXIT_DONE

    def uris(self) -> list[str]:
        """Return the folder and the file."""
        return [self.review, self.out]


class Merge(Command):
    """Copy the decisions of another folder into this one; of a review of other shards, those about the same tiles."""

    review: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REVIEW")]
    """The folder of the review to add to."""
    other: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OTHER")]
    """The folder of the other review, which stays as it is."""

    def run(self, narrator: Narrator) -> int:
        """Copy the decisions."""
        from raytrain.review.exchange import merge

        review, other = storage.normalise(self.review), storage.normalise(self.other)
        found = merge(review, other)
        narrator.problems(found.problems, consequence="not copied")
        counts = {"num_new": found.num_new, "num_known": found.num_known, "num_settled": found.num_settled}
        result: dict[str, Any] = {"uri": review, **counts}
        settled = f", {found.num_settled} settled by making these shards" if found.num_settled else ""
        text = f"{found.num_new} entries copied, {found.num_known} were there{settled}: {review}"
        self._print({**result, "problems": listed(found.problems)}, [text])
        return EXIT_DATA_WRONG if found.problems else EXIT_DONE

    def writes_to(self) -> str:
        """Return the folder that is added to."""
        return storage.normalise(self.review)

    def uris(self) -> list[str]:
        """Return both folders."""
        return [self.review, self.other]


class Diff(Command):
    """Tell what two reviews decide differently about the same tiles, reviewer by reviewer, or two reviewers."""

    review: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REVIEW")]
    """The folder of a review."""
    other: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="OTHER")] = None
    """The folder of another; without it two reviewers of the first are compared."""
    reviewer: str | None = None
    """A reviewer of REVIEW, to be held against another."""
    against: str | None = None
    """The other one, of OTHER."""

    def run(self, narrator: Narrator) -> int:
        """Compare them."""
        from raytrain.review.exchange import compare

        pair = None
        if self.reviewer is not None and self.against is not None:
            pair = self.reviewer, self.against
        elif self.reviewer is not None or self.against is not None:
            raise ConfigError("--reviewer and --against go together: whose decisions against whose")
        elif self.other is None:
            raise ConfigError("nothing to compare: name OTHER, or two reviewers by --reviewer and --against")
        review = storage.normalise(self.review)
        other = review if self.other is None else storage.normalise(self.other)
        found = compare(review, other, pair)
        narrator.problems(found.problems, consequence="not compared")
        self._print(_as_json(found), [])
        if not self.json_output:
            _print_differences(found)
        return EXIT_DATA_WRONG if found.problems else EXIT_DONE

    def uris(self) -> list[str]:
        """Return both folders."""
        return [self.review] if self.other is None else [self.review, self.other]


def _as_json(found: Compared) -> dict[str, Any]:
    names = ("only_first", "only_second", "both")
    return {
        "differences": [
            {
                "tile_id": each.tile_id,
                "reviewer": who,
                "first": _decided(each.first),
                "second": _decided(each.second),
                "iou": each.iou,
            }
            for who, each in found.differences
        ],
        "entries": dict(zip(names, found.num_entries, strict=True)),
        "tiles_of_one": None if found.num_alone is None else dict(zip(names, found.num_alone, strict=False)),
        "agreement": None if found.agreement is None else vars(found.agreement),
        "problems": listed(found.problems),
    }


def _decided(decision: Decision | None) -> dict[str, Any] | None:
    return None if decision is None else decision.model_dump(mode="json", exclude={"mask", "format_version"})


def _print_differences(found: Compared) -> None:
    rows = [
        [
            each.tile_id,
            who,
            "-" if each.first is None else each.first.verdict,
            "-" if each.second is None else each.second.verdict,
            or_dash(each.iou, ".2f"),
        ]
        for who, each in found.differences
    ]
    only_first, only_second, both = found.num_entries
    note = f"entries of the log: {both} in both, {only_first} in the first only, {only_second} in the second only"
    agreement = found.agreement
    if agreement is not None and found.num_alone is not None:
        note = (
            f"{agreement.first} and {agreement.second} decided {agreement.num_tiles} tiles both, the same for "
            f"{or_dash(agreement.same_fraction, '.0%')} of them (Cohen's kappa {or_dash(agreement.kappa, '.2f')}); "
            f"{found.num_alone[0]} and {found.num_alone[1]} alone"
        )
    print_table("What differs", ["tile", "reviewer", "first", "second", "IoU of the change"], rows, note)
