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

# Colours that nothing else is drawn in; the page's own take their place.
_TEXT, _QUIET, _LINE, _ACCENT = "#010203", "#040506", "#070809", "#0a0b0c"
_VARIABLES = {_TEXT: "--text", _QUIET: "--quiet", _LINE: "--line", _ACCENT: "--accent"}
ACCENT = _ACCENT
"""The page's colour for what matters."""
QUIET = _QUIET
"""The page's colour for what stands behind."""
COLOURS = "viridis"
"""The scale of colours for values; seen by all, and on light and dark pages (its ends are left out)."""
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "raytrain",  # the same drawing has the same bytes
    "font.family": "sans-serif",
    "font.size": 9,
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
    figure.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text


def shade(fraction: float) -> tuple[float, float, float, float]:
    """Return the colour of a value in [0, 1] on the scale of `COLOURS`, without its darkest and lightest."""
    red, green, blue, alpha = matplotlib.colormaps[COLOURS](0.12 + 0.76 * min(max(fraction, 0.0), 1.0))
    return float(red), float(green), float(blue), float(alpha)


def label_ends(axes: Axes, low: str, high: str) -> None:
    """Write below axes what the two ends of the scale of colours stand for."""
    axes.text(0.0, -0.28, low, transform=axes.transAxes, color=shade(0), fontweight="bold")
    axes.text(1.0, -0.28, high, transform=axes.transAxes, color=shade(1), ha="right", fontweight="bold")
