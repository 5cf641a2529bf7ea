"""`raytrain evaluate`: its options and what it prints. Must not know arithmetic."""

from __future__ import annotations

from typing import Annotated, Any

import tyro

from raytrain import storage
from raytrain.command import ClusterCommand, listed, or_dash
from raytrain.config import EmptyUnionRule, parse
from raytrain.console import Narrator, print_table
from raytrain.errors import EXIT_DATA_WRONG, EXIT_DONE


class Evaluate(ClusterCommand):
    """Hold predictions against labels: scores with intervals over locations, by slices; compared with others."""

    predictions: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PREDICTIONS")]
    """Folder of masks <id>.tif (0, 1, 255 no data): what `score` wrote, or anybody; or of maps of probabilities."""
    labels: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="LABELS")]
    """Folder of labels <id>.tif."""
    metadata: str
    """CSV with chip_id and location; its rows say what is evaluated."""
    out: str
    """Where metrics.json, report.html and the tables (Parquet) go."""
    against: str | None = None
    """Other predictions, compared with the first in pairs on the same labels: better, worse, or can't tell."""
    where: tuple[str, ...] = ()
    """COLUMN=VALUE filters on the metadata, or on --where-metadata for columns that it has not."""
    where_metadata: str | None = None
    """CSV with chip_id and the columns of --where or --by, if the metadata has them not."""
    by: tuple[str, ...] = ()
    """Columns by whose values chips are parted, beside cloud fraction and month (in their place, if so named)."""
    images: str | None = None
    """The scored chips or scenes, for the pictures of the report."""
    ensemble: str | None = None
    """The ensemble that made the predictions: its model card gets the scores."""
    allow: tuple[str, ...] = ()
    """Kinds of oddities to leave out instead of scoring nothing: missing-prediction, missing-label, size, place,
    values and unreadable (of predictions), label-values, label-unreadable, no-probabilities (masks where --threshold
    wants maps), metadata. With `probabilities`, maps in the place of masks are read as such."""
    threshold: float | None = None
    """Cloud is what reaches this probability. By default masks are taken as they are, maps at 0.5."""
    scale: float | None = None
    """What whole numbers in maps of PREDICTIONS are multiplied by to be probabilities, where the file does not say."""
    edge_px: int = 5
    """How far from cloud edges pixels count as near."""
    empty_union_rule: EmptyUnionRule = "one"
    """IoU where there is no cloud and none was predicted."""
    resamples: int = 10_000
    """Resamples of locations for the intervals."""
    seed: int = 0
    """Seed of these."""

    def run(self, narrator: Narrator) -> int:
        """Evaluate the predictions."""
        from raytrain.cluster.evaluate import EvaluateJob, evaluate

        uris = {name: getattr(self, name) for name in ("predictions", "labels", "metadata", "out")}
        uris |= {
            name: getattr(self, name)
            for name in ("against", "where_metadata", "images", "ensemble")
            if getattr(self, name)
        }
        values = {name: storage.normalise(uri) for name, uri in uris.items()}
        same = ("where", "by", "threshold", "scale", "edge_px", "empty_union_rule", "resamples", "seed")
        job = parse(EvaluateJob, {**values, **{name: getattr(self, name) for name in same}, "allowed": self.allow})
        with narrator.step("counting pixels") as on_progress:
            report = evaluate(job, self._cluster, on_progress)
        found = report.evaluation
        narrator.problems(report.problems, consequence="not counted" if found else "nothing was written")
        if found is None:
            if report.refused:
                narrator.say(f"raytrain: no scores, unless allowed by name: --allow {' '.join(report.refused)}")
            else:
                narrator.say("raytrain: no scores: every pair was left out, each for a kind that was allowed")
            self._print({"problems": listed(report.problems), "refused": list(report.refused)}, [])
            return EXIT_DATA_WRONG
        if not self.json_output:
            print_scores(found)
        lines = [f"metrics: {report.metrics_uri}", f"report: {report.page_uri}"]
        lines += [f"model card: {report.card_uri}"] if report.card_uri else []
        self._print(found.model_dump(mode="json"), lines)
        return EXIT_DATA_WRONG if report.problems else EXIT_DONE

    def writes_to(self) -> str:
        """Return the destination."""
        return storage.normalise(self.out)

    def uris(self) -> list[str]:
        """Return the inputs and the destination."""
        named = (self.predictions, self.labels, self.metadata, self.out)
        given = (self.against, self.where_metadata, self.images, self.ensemble)
        return [*named, *(uri for uri in given if uri)]


def print_scores(found: Any) -> None:
    """Print the scores with their intervals, the comparison if there is one, and the locations, worst first."""
    from raytrain.evaluation.intervals import trust_text
    from raytrain.evaluation.results import SCORE_NAMES

    rule = f"an empty union counts {found.empty_union_rule}"
    rows = [
        [text, or_dash(getattr(found, name), ".4f"), _ends(found.intervals[name], ".4f")]
        for name, text in SCORE_NAMES.items()
    ]
    rows += [
        [text, f"{getattr(found, name).iou:.4f}", _ends(found.zone_intervals[name], ".4f")]
        for name, text in (("near_edges", "IoU near edges"), ("away_from_edges", "IoU away from edges"))
    ]
    level = f"{found.resampling.level:.0%} interval"
    trust = trust_text(found.resampling.num_locations)
    print_table(f"Scores of cloud, chips: {found.num_chips} ({rule})", ["", "value", level], rows, trust)
    if found.comparison is not None:
        rows = [
            [
                SCORE_NAMES[each.name],
                or_dash(each.ours, ".4f"),
                or_dash(each.theirs, ".4f"),
                or_dash(each.difference, "+.4f"),
                _ends(each.interval, "+.4f"),
                each.words,
            ]
            for each in found.comparison.scores
        ]
        title = f"Against {found.comparison.against}"
        print_table(title, ["", "these", "those", "difference", level, ""], rows)
    ordered = sorted(found.locations.items(), key=lambda item: item[1].iou)
    places = [[name, f"{each.iou:.4f}", str(each.num_chips)] for name, each in ordered]
    print_table("Locations, worst first", ["location", "IoU", "chips"], places)


def _ends(ends: Any, how: str) -> str:
    return "-" if ends is None else f"{ends.low:{how}} to {ends.high:{how}}"
