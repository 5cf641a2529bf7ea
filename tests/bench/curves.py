"""Curves as a picture: one line a run, one colour a name. Must not know what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

PANEL_PX = (760, 400)
LEFT_PX, TOP_PX, RIGHT_PX, BOTTOM_PX = 56, 30, 20, 36
COLOURS = ("#1f5fa8", "#c8501e", "#2f8f4e", "#8a3f9c", "#a8821f", "#3a3a3a")
DOT_PX = 3
TICKS = 5


@dataclass(frozen=True)
class Line:
    """The points (x, y) of one run; lines of one `name` have one colour."""

    name: str
    points: tuple[tuple[float, float], ...]


def draw(panels: Sequence[tuple[str, Sequence[Line]]], path: Path) -> None:
    """Write a PNG with a panel below the other for each (title, lines); both axes start at 0.

    Panels without a point are left out; raises `ValueError` if none is left.
    """
    drawn = [(title, [line for line in lines if line.points]) for title, lines in panels]
    drawn = [(title, lines) for title, lines in drawn if lines]
    if not drawn:
        raise ValueError("no curve has a point")
    image = Image.new("RGB", (PANEL_PX[0], PANEL_PX[1] * len(drawn)), "white")
    names = list(dict.fromkeys(line.name for _, lines in drawn for line in lines))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    for i, (title, lines) in enumerate(drawn):
        _panel(ImageDraw.Draw(image), i * PANEL_PX[1], title, lines, colours)
    image.save(path, format="PNG")


def _panel(draw: ImageDraw.ImageDraw, top: int, title: str, lines: Sequence[Line], colours: dict[str, str]) -> None:
    """Draw one panel, `top` pixels down."""
    font = ImageFont.load_default(size=13)
    width, height = PANEL_PX[0] - LEFT_PX - RIGHT_PX, PANEL_PX[1] - TOP_PX - BOTTOM_PX
    x_max = max(x for line in lines for x, _ in line.points) or 1.0
    y_max = max(y for line in lines for _, y in line.points) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT_PX + x / x_max * width, top + TOP_PX + (1 - y / y_max) * height

    for tick in range(TICKS + 1):
        x, y = x_max * tick / TICKS, y_max * tick / TICKS
        draw.line([place(0, y), place(x_max, y)], fill="#dddddd")
        draw.text((LEFT_PX - 8, place(0, y)[1]), f"{y:.2f}", fill="black", font=font, anchor="rm")
        draw.text((place(x, 0)[0], place(0, 0)[1] + 6), f"{x:.3g}", fill="black", font=font, anchor="mt")
    draw.text((LEFT_PX, top + 8), title, fill="black", font=font)
    for line in lines:
        points = [place(*point) for point in line.points]
        draw.line(points, fill=colours[line.name], width=2)
        draw.circle(points[-1], DOT_PX, fill=colours[line.name])  # all that is seen of a line of one point
    for i, (name, colour) in enumerate((name, colours[name]) for name in dict.fromkeys(line.name for line in lines)):
        draw.text((PANEL_PX[0] - RIGHT_PX - 6, top + TOP_PX + 4 + 17 * i), name, fill=colour, font=font, anchor="ra")
