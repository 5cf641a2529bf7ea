"""What a scoring is looked at by: drawings of its course and of its clouds. Must not know where they are shown."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray

from raytrain.evaluation.page import Plot
from raytrain.evaluation.plots import ACCENT, QUIET, drawing, shade, svg_of, time_unit
from raytrain.scoring.course import Course, Timeline
from raytrain.scoring.totals import BINS, Totals

HOSTS_DRAWN = 6
BARS = 120
"""Intervals of time that are drawn, at most."""
COMMANDS_NAMED = 6
LOST_COLOUR, FAILED_COLOUR = "#d1495b", "#e08e1b"
"""Seen on light and dark pages, and by eyes that confuse red and green: they differ in lightness."""
_WIDE, _HIGH = 8.6, 3.1


def progress_plot(course: Course) -> Plot | None:
    """Return megapixels a minute by host over the working time of all commands; None where nothing was logged."""
    if not course.timeline.num_bins or not course.pixels:
        return None
    with drawing():
        figure = Figure((_WIDE, _HIGH))
        axes = figure.subplots()
        unit_s, unit = time_unit(course.seconds)
        bin_s, rates = _rates(course.timeline)
        _draw_hosts(axes, bin_s / unit_s, rates)
        top = max(float(np.sum(list(rates.values()), axis=0).max()), 1e-9)
        _draw_commands(axes, course, unit_s, top)
        marks = _draw_failures(axes, course.timeline, unit_s, top)
        axes.set_xlim(0, max(course.seconds, 1.0) / unit_s)
        axes.set_ylim(0, top * (1.22 if marks or len(course.commands) > 1 else 1.05))
        axes.set_xlabel(f"{unit} of work")
        axes.set_ylabel("Mpx a minute")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        handles, _ = axes.get_legend_handles_labels()
        if len(handles) > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
        svg = svg_of(figure)
    commands = f", by {len(course.commands)} commands" if len(course.commands) > 1 else ""
    caption = "Each colour is a machine, one above the other."
    if len(course.commands) > 1:
        caption += " A dashed line is where the command was given again; what lay between two of them is left out."
    alt = f"{course.pixels / 1e6:.0f} Mpx over {course.seconds / unit_s:.1f} {unit} of work{commands}"
    return Plot("Progress over time", svg, alt, caption)


def cloud_plot(totals: Totals) -> Plot | None:
    """Return how many items are how cloudy; None where no item has data."""
    if not totals.cloud_counts.sum():
        return None
    with drawing():
        figure = Figure((_WIDE, 2.4))
        axes = figure.subplots()
        edges = np.linspace(0, 100, BINS + 1)
        axes.bar(edges[:-1], totals.cloud_counts, width=np.diff(edges) * 0.9, align="edge", color=ACCENT)
        axes.set_xlim(0, 100)
        axes.set_xlabel("cloud, % of the pixels with data of an item")
        axes.set_ylabel("items")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.grid(visible=False, axis="x")
        axes.set_axisbelow(True)
        svg = svg_of(figure)
    left = (
        f"{totals.num_without_data:,} items without a pixel with data are left out." if totals.num_without_data else ""
    )
    clear, full = int(totals.cloud_counts[0]), int(totals.cloud_counts[-1])
    alt = f"{clear} items with less than {100 // BINS} % of cloud, {full} with more than {100 - 100 // BINS} %"
    return Plot("Cloud fraction of items", svg, alt, left)


def hosts_by_pixels(timeline: Timeline, most: int) -> tuple[float, dict[str, NDArray[np.float64]]]:
    """Return the length of an interval in seconds, and pixels in each `[bins]` by host: `most` hosts and the others."""
    pixels = timeline.pixels[:, : timeline.num_bins]
    order = np.argsort(-pixels.sum(axis=1), kind="stable")
    found = {timeline.hosts[at]: pixels[at] for at in order[:most]}
    if len(order) > most:
        found[f"{len(order) - most} others"] = pixels[order[most:]].sum(axis=0)
    return timeline.bin_s, found


def _rates(timeline: Timeline) -> tuple[float, dict[str, NDArray[np.float64]]]:
    """Return the length of an interval, and Mpx a minute in each by host, of intervals few enough to be drawn."""
    bin_s, pixels = hosts_by_pixels(timeline, HOSTS_DRAWN)
    while timeline.num_bins > BARS * bin_s / timeline.bin_s:
        bin_s *= 2
    together = round(bin_s / timeline.bin_s)
    starts = np.arange(0, timeline.num_bins, together)
    return bin_s, {host: np.add.reduceat(each, starts) / 1e6 / (bin_s / 60) for host, each in pixels.items()}


def _draw_hosts(axes: Axes, step: float, rates: dict[str, NDArray[np.float64]]) -> None:
    axes.set_axisbelow(True)
    base = np.zeros(len(next(iter(rates.values()))))
    edges = np.arange(len(base) + 1) * step
    for number, (host, rate) in enumerate(rates.items()):
        colour = ACCENT if len(rates) == 1 else shade(number / (len(rates) - 1))
        if number == HOSTS_DRAWN:  # all others together
            colour = QUIET
        axes.stairs(base + rate, edges, baseline=base, fill=True, color=colour, label=host)
        base = base + rate


def _draw_commands(axes: Axes, course: Course, unit_s: float, top: float) -> None:
    for number, (start, command) in enumerate(zip(course.starts(), course.commands, strict=True)):
        if not number:
            continue
        axes.axvline(start / unit_s, color=QUIET, linestyle="--", linewidth=1)
        if number <= COMMANDS_NAMED:
            when = datetime.fromtimestamp(command.begin, UTC).strftime("%d %b %H:%M")
            is_late = start > course.seconds / 2
            side, right = ("right", -4) if is_late else ("left", 4)
            style: dict[str, Any] = {"color": QUIET, "fontsize": 8, "va": "top", "ha": side}
            axes.annotate(when, (start / unit_s, top * 1.19), (right, 0), textcoords="offset points", **style)


def _draw_failures(axes: Axes, timeline: Timeline, unit_s: float, top: float) -> bool:
    """Mark intervals in which attempts failed or were lost; tell whether there are any."""
    drawn = False
    for counts, colour, mark, word, at in (
        (timeline.failed, FAILED_COLOUR, "x", "failed", 1.03),
        (timeline.lost, LOST_COLOUR, "v", "lost with a worker", 1.08),
    ):
        bins = np.flatnonzero(counts[: timeline.num_bins])
        if len(bins):
            places = (bins + 0.5) * timeline.bin_s / unit_s
            label = f"{int(counts.sum())} {word}"
            axes.plot(places, np.full(len(bins), top * at), mark, color=colour, markersize=5, label=label)
            drawn = True
    return drawn
