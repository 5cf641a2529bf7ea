"""What a training is looked at by: its runs over epochs and over time. Must not know where they are shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from raytrain.evaluation.page import Plot
from raytrain.evaluation.plots import drawing, shade, svg_of, time_unit
from raytrain.evaluation.training_results import EpochResult, TrainingRun

_WIDE, _HIGH = 8.6, 3.0
MOST_DOTS, MOST_POINTS = 500, 2000
"""Up to so many epochs of all runs are dots on their lines, or points of them: more make a large page."""
_DASHES = ("-", "--", ":", "-.")
_LEGEND_COLUMNS, _LEGEND_ROWS = 3, 6
_FIRST, _SPAN = 0.22, 0.66
"""The part of the scale of colours in which thin lines are seen on light and dark pages."""


@dataclass(frozen=True)
class _Line:
    """A run and how it is drawn: a colour for its member, dashes for its fold; through every `step`-th epoch."""

    run: TrainingRun
    style: dict[str, Any]
    step: int

    @property
    def epochs(self) -> list[EpochResult]:
        """The epochs that the line goes through, the first and the last among them."""
        all_epochs = self.run.epochs
        return [each for i, each in enumerate(all_epochs) if i % self.step == 0 or i == len(all_epochs) - 1]


def training_plots(runs: Sequence[TrainingRun]) -> list[Plot]:
    """Return the drawings of runs that have epochs: score, loss, learning rate, throughput; none of what nobody has."""
    lines = _lines([run for run in runs if run.epochs])
    if not lines:
        return []
    with drawing():
        scored = [line for line in lines if any(each.iou_location_weighted is not None for each in line.run.epochs)]
        return [*([_scores(scored)] if scored else []), _losses(lines), _throughput(lines)]


def _lines(runs: Sequence[TrainingRun]) -> list[_Line]:
    members = list(dict.fromkeys(run.member.name for run in runs))
    folds = sorted({run.fold for run in runs}, key=lambda fold: -1 if fold is None else fold)
    num_epochs = sum(len(run.epochs) for run in runs)
    step = max(1, -(-num_epochs // MOST_POINTS))
    colours = {name: shade(_FIRST + _SPAN * i / max(len(members) - 1, 1)) for i, name in enumerate(members)}
    return [
        _Line(
            run,
            {
                "color": colours[run.member.name],
                "linestyle": _DASHES[folds.index(run.fold) % len(_DASHES)],
                "linewidth": 1.6,
                "marker": "o" if num_epochs <= MOST_DOTS or len(run.epochs) == 1 else "",
                "markersize": 2.5 if len(run.epochs) > 1 else 5,
                "label": run.name,
            },
            step,
        )
        for run in runs
    ]


def _scores(lines: Sequence[_Line]) -> Plot:
    figure = Figure((_WIDE, _HIGH + _legend_inches(lines)))
    axes = figure.subplots()
    for line in lines:
        _curve(axes, line, lambda each: each.iou_location_weighted)
        for each in line.run.epochs:
            if each.epoch == line.run.best_epoch and each.iou_location_weighted is not None:
                ring = {"markersize": 9, "fillstyle": "none", "color": line.style["color"], "linestyle": ""}
                axes.plot(each.epoch, each.iou_location_weighted, marker="o", **ring)
    _over_epochs(axes, "IoU by location")
    _legend(figure, axes, lines)
    caption = f"A line a run; the ring is the best epoch, whose weights are kept.{_thinned(lines)}"
    return Plot("Validation score", svg_of(figure), f"Validation score by epoch of {_counted(lines)}", caption)


def _losses(lines: Sequence[_Line]) -> Plot:
    figure = Figure((_WIDE, _HIGH + _legend_inches(lines)))
    left, right = figure.subplots(1, 2)
    for line in lines:
        _curve(left, line, lambda each: each.loss)
        _curve(right, line, lambda each: each.learning_rate)
    _over_epochs(left, "loss")
    _over_epochs(right, "learning rate")
    right.set_ylim(bottom=0)
    _legend(figure, left, lines)
    caption = f"The mean loss over an epoch's steps, and the learning rate of its last one.{_thinned(lines)}"
    alt = f"Loss and learning rate by epoch of {_counted(lines)}"
    return Plot("Loss and learning rate", svg_of(figure), alt, caption)


def _throughput(lines: Sequence[_Line]) -> Plot:
    figure = Figure((_WIDE, 4.2 + _legend_inches(lines)))
    upper, lower = figure.subplots(2, 1, sharex=True)
    longest = max(epoch.seconds for line in lines for epoch in line.run.epochs)
    unit_s, unit = time_unit(longest)
    restarts = [(line, each.seconds) for line in lines for each in line.run.restarts if each.seconds is not None]
    for line in lines:
        at = [each.seconds / unit_s for each in line.epochs]
        upper.plot(at, [each.images_per_s for each in line.epochs], **line.style)
        lower.plot(at, [each.wait_fraction for each in line.epochs], **line.style)
    for line, seconds in restarts:
        for axes in (upper, lower):
            axes.axvline(seconds / unit_s, color=line.style["color"], linewidth=1.4, linestyle=(0, (1, 2)))
        place = upper.get_xaxis_transform()
        mark = {"marker": "v", "markersize": 7, "linestyle": "", "clip_on": False, "transform": place}
        upper.plot(seconds / unit_s, 1.0, color=line.style["color"], **mark)
    upper.set_ylabel("images/s")
    upper.set_ylim(0, 1.1 * max(each.images_per_s for line in lines for each in line.run.epochs))
    lower.set_ylabel("waiting for data")
    lower.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    highest = max(each.wait_fraction for line in lines for each in line.run.epochs)
    lower.set_ylim(0, max(1.15 * highest, 0.05))
    lower.set_xlabel(f"{unit} of the run")
    lower.set_xlim(left=0)
    _legend(figure, lower, lines)
    marks = " A triangle with a dotted line is a restart." if restarts else ""
    what = "Each epoch at its end: how fast its steps were, and how much of that they waited for data."
    caption = f"{what}{marks}{_thinned(lines)}"
    alt = f"Images a second and share of waiting over time of {_counted(lines)}, with {len(restarts)} restarts"
    return Plot("Throughput over time", svg_of(figure), alt, caption)


def _curve(axes: Axes, line: _Line, value: Callable[[EpochResult], float | None]) -> None:
    points = [(each.epoch, value(each)) for each in line.epochs]
    known = [(epoch, found) for epoch, found in points if found is not None]
    axes.plot([epoch for epoch, _ in known], [found for _, found in known], **line.style)


def _over_epochs(axes: Axes, what: str) -> None:
    axes.set_xlabel("epoch")
    axes.set_ylabel(what)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _legend(figure: Figure, axes: Axes, lines: Sequence[_Line]) -> None:
    """Name the runs below all axes; many are left to the tables."""
    if _legend_rows(lines):
        handles, names = axes.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(len(lines), _LEGEND_COLUMNS))


def _legend_rows(lines: Sequence[_Line]) -> int:
    rows = math.ceil(len(lines) / _LEGEND_COLUMNS)
    return rows if rows <= _LEGEND_ROWS else 0


def _legend_inches(lines: Sequence[_Line]) -> float:
    return 0.19 * _legend_rows(lines)


def _thinned(lines: Sequence[_Line]) -> str:
    return f" The lines go through one epoch in {lines[0].step}." if lines[0].step > 1 else ""


def _counted(lines: Sequence[_Line]) -> str:
    return "1 run" if len(lines) == 1 else f"{len(lines)} runs"
