"""What a search is looked at by: drawings of its trials. Must not know where they are shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from raytrain.evaluation.page import Plot
from raytrain.evaluation.plots import ACCENT, QUIET, drawing, label_ends, shade, svg_of, time_unit
from raytrain.search.records import ORIGINAL, Trial
from raytrain.search.sampling import importances
from raytrain.search.space import Choice, Distribution, LogUniform, Space, Weight

LR = "optimiser.lr"
_WIDE, _HIGH = 8.6, 3.0
_OFF = "off"


def plots_of(space: Space, trials: Sequence[Trial]) -> list[Plot]:
    """Return the drawings of the trials of a search, those that there is something for."""
    scored = [trial for trial in trials if trial.kind == "search" and trial.score is not None]
    if not scored:
        return []
    with drawing():
        found = [_best_over_time(scored), _curves(space, scored), _by_setting(space, scored)]
        weighed = _importances(space, scored)
        return [*found, *([weighed] if weighed else []), _parallel(space, scored)]


def _best_over_time(trials: Sequence[Trial]) -> Plot:
    unit_s, unit = time_unit(max(each.at_s for trial in trials for each in trial.epochs))
    told = sorted((each.at_s / unit_s, each.score, trial.number) for trial in trials for each in trial.epochs)
    figure = Figure((_WIDE, _HIGH))
    axes = figure.subplots()
    axes.plot([at for at, _, _ in told], [score for _, score, _ in told], ".", color=QUIET, alpha=0.35, markersize=4)
    best_at: list[float] = []
    best: list[float] = []
    number = ORIGINAL
    for at, score, of in told:
        if not best or score > best[-1]:
            number = of
        best_at.append(at)
        best.append(max(score, best[-1]) if best else score)
    axes.step(best_at, best, where="post", color=ACCENT, linewidth=2)
    axes.set_xlabel(f"{unit} of the search")
    axes.set_ylabel("IoU by location")
    caption = "Each dot is an epoch of a trial; the line is the best so far."
    return Plot("The best over time", svg_of(figure), f"Best score {best[-1]:.4f}, of trial {number}", caption)


def _curves(space: Space, trials: Sequence[Trial]) -> Plot:
    figure = Figure((_WIDE, _HIGH))
    axes = figure.subplots()
    place = _scale(space[LR]) if LR in space else None
    for trial in trials:
        epochs, scores = [each.epoch for each in trial.epochs], [each.score for each in trial.epochs]
        colour = shade(place(trial.point[LR])) if place else QUIET
        width = 2.5 if trial.number == ORIGINAL else 1.1
        axes.plot(epochs, scores, color=colour, linewidth=width, marker="o", markersize=2.5, alpha=0.9)
    axes.set_xlabel("epoch")
    axes.set_ylabel("IoU by location")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if place:
        rates = [trial.point[LR] for trial in trials]
        low, high = _ends(space[LR], rates)
        label_ends(axes, f"learning rate {low:g}", f"{high:g}")
    caption = "A line a trial, coloured by its learning rate; the thick one has the member's own settings."
    return Plot("Learning curves", svg_of(figure), f"Learning curves of {len(trials)} trials", caption)


def _by_setting(space: Space, trials: Sequence[Trial]) -> Plot:
    columns = min(3, len(space))
    rows = math.ceil(len(space) / columns)
    figure = Figure((_WIDE, 2.1 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, (path, distribution) in zip(grid.flat, space.items(), strict=False):
        _scatter(axes, distribution, [(trial.point[path], trial) for trial in trials])
        axes.set_title(path, loc="left")
    for axes in list(grid.flat)[len(space) :]:
        axes.set_visible(False)
    for row in grid:
        row[0].set_ylabel("IoU by location")
    caption = "A dot a trial; faint ones were stopped early, the ring is the member's own setting."
    return Plot("The score by each setting", svg_of(figure), f"Score against {', '.join(space)}", caption)


def _scatter(axes: Axes, distribution: Distribution, points: Sequence[tuple[Any, Trial]]) -> None:
    if isinstance(distribution, Choice):
        axes.set_xticks(range(len(distribution.values)), [str(value) for value in distribution.values])
        axes.set_xlim(-0.5, len(distribution.values) - 0.5)
        placed = [
            (distribution.values.index(x) if x in distribution.values else math.nan, trial) for x, trial in points
        ]
    elif isinstance(distribution, Weight):
        off = distribution.low / 2
        axes.set_xscale("log")
        placed = [(x or off, trial) for x, trial in points]  # a weight is never None
        ticks = [each for each in (0.01, 0.1, 1.0, 10.0) if distribution.low <= each <= distribution.high]
        axes.set_xticks([off, *ticks], [_OFF, *(f"{each:g}" for each in ticks)])
        axes.minorticks_off()
    else:
        if isinstance(distribution, LogUniform):
            axes.set_xscale("log")
        placed = list(points)
    for x, trial in placed:
        if x is None:  # the original does without
            continue
        is_original = trial.number == ORIGINAL
        axes.plot(
            x,
            trial.score or 0.0,
            "o",
            color=ACCENT,
            alpha=1.0 if trial.state == "finished" else 0.35,
            markersize=8 if is_original else 4.5,
            fillstyle="none" if is_original else "full",
        )


def _importances(space: Space, trials: Sequence[Trial]) -> Plot | None:
    found = importances(space, trials)
    if not found:
        return None
    names = list(found)[::-1]
    figure = Figure((_WIDE, 0.26 * len(names) + 0.8))
    axes = figure.subplots()
    axes.barh(names, [found[name] for name in names], color=ACCENT, height=0.6)
    axes.set_xlabel("share of what tells good trials from the others")
    axes.grid(visible=False, axis="y")
    first = next(iter(found))
    caption = "By PED-ANOVA; of a term of the loss, whether it is on. With few trials a hint, no more."
    return Plot("Which settings matter", svg_of(figure), f"The most important setting is {first}", caption)


def _parallel(space: Space, trials: Sequence[Trial]) -> Plot:
    figure = Figure((_WIDE, 3.4))
    axes = figure.subplots()
    scores = [trial.score or 0.0 for trial in trials]
    low, high = min(scores), max(scores)
    span = (high - low) or 1.0
    places = [_scale(distribution) for distribution in space.values()]
    xs = range(len(space) + 1)
    for trial in sorted(trials, key=lambda each: each.score or 0.0):
        height = ((trial.score or 0.0) - low) / span
        values = [trial.point[path] for path in space]
        ys = [0.5 if value is None else place(value) for place, value in zip(places, values, strict=True)]
        axes.plot(xs, [*ys, height], color=shade(height), linewidth=0.6 + 1.6 * height, alpha=0.85)
    names = [path.rpartition(".")[2] for path in space]
    axes.set_xticks(xs, [*names, "score"], rotation=30, ha="right")
    axes.set_yticks([])
    axes.set_ylim(-0.12, 1.08)
    for x, (path, distribution) in enumerate(space.items()):
        bottom, top = _ends(distribution, [trial.point[path] for trial in trials])
        axes.text(x, -0.11, _text(bottom), ha="center", va="bottom", fontsize=8, color=QUIET)
        axes.text(x, 1.03, _text(top), ha="center", va="bottom", fontsize=8, color=QUIET)
    axes.text(len(space), -0.11, f"{low:.3f}", ha="center", va="bottom", fontsize=8, color=QUIET)
    axes.text(len(space), 1.03, f"{high:.3f}", ha="center", va="bottom", fontsize=8, color=QUIET)
    axes.grid(visible=True, axis="x")
    caption = "A line a trial from setting to setting, bright where its score is high. A term that is off lies below."
    return Plot("All settings of all trials", svg_of(figure), "Parallel coordinates of the trials", caption)


def _scale(distribution: Distribution) -> Callable[[Any], float]:
    """Return what maps a value to [0, 1]: its place between the ends; a weight that is off lies a little below 0."""
    if isinstance(distribution, Choice):
        last = len(distribution.values) - 1
        return lambda value: distribution.values.index(value) / last if value in distribution.values else 0.5
    low, high = distribution.low, distribution.high
    if isinstance(distribution, (LogUniform, Weight)):
        width = math.log(high / low)
        return lambda value: math.log(value / low) / width if value > 0 else -0.06
    return lambda value: (value - low) / (high - low)


def _ends(distribution: Distribution, values: Sequence[Any]) -> tuple[Any, Any]:
    """Return what stands at the lower and at the upper end of a scale."""
    if isinstance(distribution, Choice):
        return distribution.values[0], distribution.values[-1]
    if isinstance(distribution, Weight):
        return (_OFF if 0 in values else distribution.low), distribution.high
    return distribution.low, distribution.high


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
