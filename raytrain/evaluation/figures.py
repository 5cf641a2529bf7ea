"""What an evaluation is looked at by: drawings of its scores. Must not know where they are shown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from raytrain.evaluation.intervals import LEVEL
from raytrain.evaluation.page import Plot
from raytrain.evaluation.plots import ACCENT, HALF, QUIET, TEXT, WIDE, drawing, shade, svg_of
from raytrain.evaluation.results import (
    SCORE_NAMES,
    Calibration,
    Comparison,
    CurvePoint,
    Ends,
    Evaluation,
    Members,
    SliceResult,
)

_ROW_INCHES = 0.28
_NUMBER_SIZE = 9
"""The smallest text that a phone shows well."""


def plots_of(evaluation: Evaluation) -> list[Plot]:
    """Return the drawings of what there is."""
    found: list[Plot] = []
    with drawing():
        if evaluation.threshold_curve is not None:
            found.append(_curve(evaluation.threshold_curve, evaluation.decided_at))
        if evaluation.calibration is not None:
            found.append(_reliability(evaluation.calibration))
        found += _by_slice(evaluation)
        if evaluation.members is not None:
            found += [_members(evaluation.members), _differ(evaluation.members), _votes(evaluation.members)]
    return found


def difference_plot(comparison: Comparison) -> Plot:
    """Return the drawing of how far the scores of two sets of predictions are apart."""
    with drawing():
        return _compared(comparison)


def _curve(points: Sequence[CurvePoint], decided_at: float | None) -> Plot:
    figure = Figure((HALF[0], HALF[1] + 0.4))
    axes = figure.subplots()
    at = [each.threshold for each in points]
    lines = (
        ("IoU, pooled", [each.iou_pooled for each in points], ACCENT, "-", 2.0),
        ("IoU by location", [each.iou_location_weighted for each in points], TEXT, "-", 1.2),
        ("Precision", [each.precision for each in points], QUIET, "--", 1.2),
        ("Recall", [each.recall for each in points], QUIET, ":", 1.6),
    )
    for name, values, colour, style, width in lines:
        known = [float("nan") if value is None else value for value in values]
        axes.plot(at, known, style, color=colour, lw=width, label=name)
    if decided_at is not None:
        axes.axvline(decided_at, color=QUIET, lw=0.8)
    axes.set_xlabel("threshold on the probability")
    axes.set_ylabel("IoU, precision, recall")
    axes.set_xlim(0, 1)
    figure.legend(loc="outside lower center", fontsize=_NUMBER_SIZE, ncols=2)
    best = max(points, key=lambda each: each.iou_pooled)
    caption = (
        f"Highest at {best.threshold:g}, with {best.iou_pooled:.4f} pooled; chosen on these labels it flatters "
        f"itself.{'' if decided_at is None else f' The upright line is the threshold in use, {decided_at:g}.'}"
    )
    return Plot(
        "Scores by threshold", svg_of(figure), f"Scores by threshold, best at {best.threshold:g}", caption, True
    )


def _reliability(found: Calibration) -> Plot:
    figure = Figure((HALF[0], HALF[1] + 0.4))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    known = [each for each in found.bins if each.num_px]
    above.plot([0, 1], [0, 1], color=QUIET, lw=0.8)
    mean = [each.mean_probability or 0.0 for each in known]
    above.plot(mean, [each.cloud_fraction or 0.0 for each in known], "o-", color=ACCENT, lw=1.6, ms=4)
    above.set_ylabel("are cloud")
    above.set_ylim(0, 1)
    places = [(each.low + each.high) / 2 for each in found.bins]
    _shares(below, places, [each.num_px / found.num_px for each in found.bins], 0.092)
    below.set_xlabel("probability of cloud")
    below.set_xlim(0, 1)
    error = found.expected_calibration_error
    caption = (
        f"Expected calibration error {error:.4f}. On the thin line a probability of 0.7 is cloud in 7 of 10 pixels."
    )
    return Plot("Calibration", svg_of(figure), f"Reliability diagram, calibration error {error:.4f}", caption, True)


def _shares(axes: Axes, places: Sequence[float], shares: Sequence[float], width: float) -> None:
    """Draw shares of all pixels as bars, which may be of a ten-thousandth beside one half."""
    axes.bar(places, shares, width, color=QUIET)
    axes.set_yscale("log")
    lowest = min((share for share in shares if share), default=1.0)
    axes.set_ylim(min(10 ** math.floor(math.log10(lowest)), 0.1), 1)
    axes.yaxis.set_major_locator(LogLocator(numticks=3))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    axes.set_ylabel("of pixels")


def _by_slice(evaluation: Evaluation) -> list[Plot]:
    columns = list(dict.fromkeys(each.column for each in evaluation.slices))
    found = []
    for column in columns:
        slices = [each for each in evaluation.slices if each.column == column]
        if len(slices) > 1:
            found.append(_sliced(column.replace("_", " "), slices))
    return found


def _sliced(name: str, slices: Sequence[SliceResult]) -> Plot:
    figure = Figure((HALF[0], max(HALF[1], _ROW_INCHES * len(slices) + 0.9)))
    axes = figure.subplots()
    values = [each.iou_location_weighted for each in slices]
    ends = [each.iou_location_weighted_interval for each in slices]
    _dots(axes, [f"{each.value} ({each.num_chips:,})" for each in slices], values, ends)
    axes.set_xlabel("IoU by location")
    worst = min(slices, key=lambda each: each.iou_location_weighted)
    caption = f"With {LEVEL:.0%} intervals where locations suffice; the number of chips in brackets."
    return Plot(f"By {name}", svg_of(figure), f"IoU by {name}, lowest for {worst.value}", caption, True)


def _dots(axes: Axes, names: Sequence[str], values: Sequence[float], ends: Sequence[Ends | None]) -> None:
    """Draw values as dots with their intervals, a row each, the first on top."""
    rows = range(len(names))
    for row, value, each in zip(rows, values, ends, strict=True):
        if each is not None:
            axes.plot([each.low, each.high], [row, row], color=QUIET, lw=2, solid_capstyle="butt")
        axes.plot(value, row, "o", color=ACCENT, ms=5)
    axes.set_yticks(rows, list(names))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")


def _members(members: Members) -> Plot:
    figure = Figure((WIDE[0], max(2.2, _ROW_INCHES * len(members.members) + 0.9)))
    alone, adds = figure.subplots(1, 2, sharey=True)
    names = [each.name for each in members.members]
    _dots(alone, names, [each.iou_location_weighted for each in members.members], [None] * len(names))
    alone.axvline(members.together_iou_location_weighted, color=TEXT, lw=1)
    alone.set_xlabel("IoU by location, alone")
    _dots(adds, names, [each.adds for each in members.members], [each.adds_interval for each in members.members])
    adds.axvline(0, color=TEXT, lw=1)
    adds.set_xlabel("what it adds to the others")
    for axes in (alone, adds):
        axes.xaxis.set_major_locator(MaxNLocator(5))
    best = max(members.members, key=lambda each: each.adds)
    caption = "The upright line on the left is all members together; on the right, no gain."
    return Plot("Members and what they add", svg_of(figure), f"{best.name} adds most", caption)


def _differ(members: Members) -> Plot:
    figure = Figure((HALF[0], max(HALF[1], _ROW_INCHES * len(members.members) + 1.4)))
    axes = figure.subplots()
    names = [each.name for each in members.members]
    largest = max((value for row in members.differ_fraction for value in row), default=0.0) or 1.0
    for i, row in enumerate(members.differ_fraction):
        for j, value in enumerate(row):
            if i == j:
                continue
            axes.add_patch(_cell(j, i, shade(value / largest)))
            axes.text(j, i, f"{100 * value:.1f}", ha="center", va="center", fontsize=_NUMBER_SIZE, color=TEXT)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False)
    caption = f"Per cent of pixels that two members call differently; all agree on {members.unanimous_fraction:.1%}."
    return Plot("Where members part", svg_of(figure), "Disagreement of each two members", caption, True)


def _cell(column: int, row: int, colour: str) -> Rectangle:
    return Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, color=colour, alpha=0.35, lw=0)


def _votes(members: Members) -> Plot:
    figure = Figure(HALF)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    known = [each for each in members.votes if each.cloud_fraction is not None]
    above.plot([each.num_members for each in known], [each.cloud_fraction for each in known], "o-", color=ACCENT, ms=4)
    above.set_ylabel("are cloud")
    above.set_ylim(0, 1)
    total = max(1, sum(each.num_px for each in members.votes))
    _shares(below, [each.num_members for each in members.votes], [each.num_px / total for each in members.votes], 0.7)
    below.set_xlabel("members that say cloud")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    caption = "How often the label says cloud where so many members do."
    return Plot("Votes", svg_of(figure), "Share of cloud by the number of members that say so", caption, True)


def _compared(comparison: Comparison) -> Plot:
    known = [each for each in comparison.scores if each.difference is not None]
    figure = Figure((WIDE[0], _ROW_INCHES * len(known) + 0.9))
    axes = figure.subplots()
    names = [SCORE_NAMES[each.name] for each in known]
    _dots(axes, names, [each.difference or 0.0 for each in known], [each.interval for each in known])
    axes.axvline(0, color=TEXT, lw=1)
    axes.set_xlabel("these less the others")
    words = ", ".join(f"{SCORE_NAMES[each.name]} {each.words}" for each in known[:3])
    caption = f"With {LEVEL:.0%} intervals; one that keeps off the upright line is a difference that can be told."
    return Plot("Difference to the others", svg_of(figure), f"Differences: {words}", caption)
