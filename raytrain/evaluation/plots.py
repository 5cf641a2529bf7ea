"""Drawings for pages: matplotlib's, as SVG that takes the page's colours and fonts, in the light and in the dark.

Must not know what is drawn.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Transform, offset_copy

from raytrain.evaluation.look import SCALE_STEPS
from raytrain.evaluation.page import Colour

# Colours that nothing else is drawn in; the page's own take their place.
_TEXT, _QUIET, _LINE, _ACCENT = "#010203", "#040506", "#070809", "#0a0b0c"
_SCALE = [f"#0b0c{step:02x}" for step in range(SCALE_STEPS)]
_VARIABLES = {_TEXT: "--text", _QUIET: "--quiet", _LINE: "--line", _ACCENT: "--accent"}
_VARIABLES |= {marker: f"--scale-{step}" for step, marker in enumerate(_SCALE)}
TEXT = _TEXT
"""The page's colour of text."""
ACCENT = _ACCENT
"""The page's colour for what matters."""
QUIET = _QUIET
"""The page's colour for what stands behind."""
COLOURS = "viridis"
"""The scale of colours for values: even steps to every eye. In drawings the page has its own shades of it."""
WIDE, HALF = (8.6, 3.0), (4.6, 3.0)
"""Sizes of drawings (width and height in inches) over the width of a page, and of a `Plot` that is `half`."""
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "raytrain",  # the same drawing has the same bytes
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,  # names of machines and locations may have dollars in them
    "text.color": _TEXT,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _QUIET,
    "axes.titlecolor": _TEXT,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": _QUIET,
    "ytick.color": _QUIET,
    "figure.constrained_layout.use": True,  # all that is drawn finds room in the size asked for
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in the style of the pages while the body runs."""
    with matplotlib.rc_context(_STYLE):
        yield


def svg_of(figure: Figure) -> str:
    """Return a figure as an SVG element for a page. To be called within `drawing`."""
    file = io.StringIO()
    # Without a date the same drawing has the same bytes.
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    # Its style is for every element of the page that it comes to stand in; the page has it for drawings.
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text


def shade(fraction: float) -> str:
    """Return the colour of a value in [0, 1] on the scale: one of `SCALE_STEPS`, seen on a light and on a dark page."""
    return _SCALE[min(int(min(max(fraction, 0.0), 1.0) * SCALE_STEPS), SCALE_STEPS - 1)]


def scale_colours(count: int) -> tuple[Colour, ...]:
    """Return `count` colours of the scale from end to end, for images, which are the same on any page."""
    steps = matplotlib.colormaps[COLOURS].resampled(count)
    return tuple(
        (round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue, _ in steps(range(count))
    )


def time_unit(seconds: float) -> tuple[float, str]:
    """Return the unit in which an axis up to `seconds` is read best: its seconds and its name."""
    if seconds > 2 * 3600:
        return 3600.0, "hours"
    return (60.0, "minutes") if seconds > 120 else (1.0, "seconds")


def label_ends(axes: Axes, low: str, high: str) -> None:
    """Draw the scale of colours below axes, between the words for what its two ends stand for."""
    step, below = 9.0, -44.0  # points, from the middle of the lower edge
    half = step * SCALE_STEPS / 2

    def at(right: float) -> Transform:
        return offset_copy(axes.transAxes, axes.get_figure(root=True), right, below, units="points")

    for i, colour in enumerate(_SCALE):
        x = (i + 0.5) * step - half
        axes.plot(0.5, 0, "s", color=colour, markersize=step + 0.4, markeredgewidth=0, transform=at(x), clip_on=False)
    axes.text(0.5, 0, low, transform=at(-half - 6), ha="right", va="center")
    axes.text(0.5, 0, high, transform=at(half + 6), ha="left", va="center")
