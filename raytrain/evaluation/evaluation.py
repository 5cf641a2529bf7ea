"""An evaluation as a whole, of tallies. Must not know files, pages or who counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import raytrain
from raytrain.config import EmptyUnionRule
from raytrain.errors import encodable
from raytrain.evaluation.intervals import LEVEL
from raytrain.evaluation.maps import calibration, member_results, threshold_curve
from raytrain.evaluation.oddities import Oddity
from raytrain.evaluation.results import Evaluation, Inputs, Problem, Resampling
from raytrain.evaluation.scores import Scored, compare, intervals_by_name, pixels_of, zones
from raytrain.evaluation.slices import Column, slice_results
from raytrain.evaluation.tally import Tally


def evaluation_of(
    tallies: Sequence[Tally],
    columns: Sequence[Column],
    inputs: Inputs,
    oddities: Iterable[Oddity],
    *,
    rule: EmptyUnionRule,
    members: Sequence[str] = (),
    decided_at: float | None = None,
    seed: int,
    resamples: int,
) -> Evaluation:
    """Return the evaluation of the first of `tallies`, compared with the second where there is one.

    Both are of the same chips, one at least. `oddities` may come in any order and leave in one; `members` are the names
    of the maps that the first was counted with, `decided_at` the threshold that made masks of its probabilities.
    """
    scored = Scored(tallies[0], rule)
    near, away, zone_intervals = zones(scored, seed, resamples)
    values, ious = scored.values, scored.ious
    theirs = None if len(tallies) == 1 else Scored(tallies[1], rule)
    against = inputs.against or ""
    return Evaluation(
        iou_pooled=ious.iou_pooled,
        iou_mean=ious.iou_mean,
        iou_location_weighted=ious.iou_location_weighted,
        iou_mean_location_weighted=ious.iou_mean_location_weighted,
        precision=values["precision"],
        recall=values["recall"],
        f1=values["f1"],
        accuracy=values["accuracy"],
        empty_union_rule=rule,
        decided_at=decided_at,
        num_chips=len(scored.tally),
        unpredicted_px=int(scored.tally.unpredicted_px.sum()),
        intervals=intervals_by_name(scored.ratios, seed, resamples),
        resampling=Resampling(level=LEVEL, resamples=resamples, seed=seed, num_locations=len(scored.by_location)),
        pixels=pixels_of(scored.by_location.sum(0)),
        near_edges=near,
        away_from_edges=away,
        zone_intervals=zone_intervals,
        locations=scored.locations,
        slices=tuple(slice_results(scored.tally, columns, rule, seed, resamples)),
        threshold_curve=threshold_curve(scored.tally, rule),
        calibration=calibration(scored.tally),
        members=member_results(scored.tally, members, rule, seed, resamples),
        comparison=None if theirs is None else compare(scored, theirs, against, seed, resamples),
        problems=tuple(_problems(oddities)),
        inputs=inputs,
        raytrain_version=raytrain.__version__,
    )


def _problems(oddities: Iterable[Oddity]) -> list[Problem]:
    listed = sorted({(each.chip_id, each.found, each.kind) for each in oddities})
    return [Problem(subject=encodable(chip_id), found=found, kind=kind) for chip_id, found, kind in listed]
