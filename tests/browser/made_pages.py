"""The pages that the browser tests open: one with every kind of part, and those of the commands, of small results."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import rasterio
from matplotlib.figure import Figure as Drawing

from raytrain.errors import DataError
from raytrain.evaluation import gallery, masks, pictures, plots, report, results
from raytrain.evaluation.html import render_page
from raytrain.evaluation.page import Bar, Cell, Figure, Gallery, Page, Picture, Plot, Problems, Shown, Table
from raytrain.imagery.synth import write_chips
from raytrain.search.results import write_results
from raytrain.tiles.metadata import read_metadata
from raytrain.training import metrics
from tests.unit.test_search import whole_search

NAMES = ("chip2", "chip10", "Äquator", "Berlin", "aden", "<b>Čukotka</b>", "", "chip1")
"""Text as people sort it: chip1, chip2, chip10; accents and case aside; nothing last."""
LONG_ROWS = 80
LAST_ROW = f"row {LONG_ROWS - 1}, the last"


def full_page(folder: Path) -> str:
    """A page with every kind of part, and with what is hard to lay out: long words, many columns, many rows."""
    with plots.drawing():
        halves = [
            Plot(f"Half {i}", _curve(plots.HALF, i), f"A curve, {i}", "It rises. " * i, half=True) for i in (1, 3)
        ]
        wide = Plot("Wide", _curve(plots.WIDE, 2), "A curve with its scale of colours", "It rises too.")
    long: list[list[Cell]] = [
        [LAST_ROW if i == LONG_ROWS - 1 else f"row {i}", Bar((i * 37 % 101) / 100), i * 7919 % 1000, i / 7, None]
        for i in range(LONG_ROWS)
    ]
    return render_page(
        Page(
            "A page of everything, in s3://bucket/" + "a-very-long-prefix-without-a-break/" * 4,
            "Made up, to be looked at.",
            [
                Figure("Pooled", "0.8742", "All pixels together.", "0.84 – 0.91, 95 %"),  # noqa: RUF001  # as shown
                Figure("Chips", "11,748", "How many there are."),
                Figure("Lasted", "1 h 12 min", "From the first to the last."),
            ],
            "A note on the figures.",
            [
                *halves,
                wide,
                _mixed_table(),
                Table("Long", ["Row", "Share", "Count", "Ratio", "None"], long, "Longer than a screen."),
                Table("Many columns", [f"column {i}" for i in range(16)], [[f"word{i}" for i in range(16)]] * 3),
                _gallery(folder),
                Gallery([Picture(_png(folder), "A scene", "On its own")], pictures.OUTLINE_LEGEND, "A scene"),
                Problems([DataError("chip7", "no label in s3://bucket/" + "labels" * 40)]),
            ],
            [("Predictions", "s3://bucket/" + "x" * 200), ("raytrain", "1.0")],
        )
    )


def evaluation_page(folder: Path) -> str:
    """The page of an evaluation of generated chips against a threshold on blue."""
    write_chips(folder, count=36, size_px=64, seed=1, num_places=34)
    predictions = folder / "predictions"
    for label in sorted((folder / "train_labels").glob("*.tif")):
        with rasterio.open(folder / "train_features" / label.stem / "B02.tif") as source:
            _write_tiff(predictions / label.name, (source.read(1) > 3000).astype(np.uint8))
        with rasterio.open(label) as source, rasterio.open(predictions / label.name, "r+") as target:
            target.crs, target.transform = source.crs, source.transform
    metadata = str(folder / "train_metadata.csv")
    pairs, problems = masks.pair_up(str(predictions), str(folder / "train_labels"), read_metadata(metadata).rows)
    counted, bad = masks.count_pairs(pairs)
    scores = metrics.scores(
        [each.intersection for each in counted],
        [each.union for each in counted],
        [each.pair.location for each in counted],
        "one",
    )
    inputs = results.Inputs(predictions=str(predictions), labels=str(folder / "train_labels"), metadata=metadata)
    evaluation = results.Evaluation.of(scores, [*problems, *bad], inputs)
    shown = gallery.make_gallery(counted, gallery.find_images(str(folder)))
    return render_page(report.evaluation_page(evaluation, "Cloud masks against labels", shown))


def search_page(folder: Path) -> str:
    """The page of a whole search."""
    search = whole_search(folder, lambda trial: 0.5 + 0.2 * (trial.number > 0))
    return Path(write_results(str(folder), search, {}).report_uri).read_text()


PAGES: dict[str, Callable[[Path], str]] = {"full": full_page, "evaluation": evaluation_page, "search": search_page}
"""Each gets an empty folder and returns a page's HTML; every one is opened by every test."""


def _mixed_table() -> Table:
    numbers: list[Cell] = [0.5, 12, Bar(0.07), Shown(100, "all"), float("nan"), None, "cut off", -1]
    when = [datetime(2024, 1 + i * 5 % 12, 1, tzinfo=UTC) for i in range(len(NAMES))]
    rows: list[list[Cell]] = [
        [name, number, Shown(at.timestamp(), f"{at:%-d %B}")]
        for name, number, at in zip(NAMES, numbers, when, strict=True)
    ]
    return Table("Mixed", ["Name", "Number", "When"], rows, "Sorted by what is meant, not by what is shown.")


def _curve(size: tuple[float, float], power: int) -> str:
    figure = Drawing(size)
    axes = figure.subplots()
    xs = np.linspace(0, 1, 20)
    axes.plot(xs, xs**power, color=plots.ACCENT, marker="o")
    axes.plot(xs, xs, color=plots.shade(0.9), label="a line")
    axes.set_xlabel("probability")
    axes.set_ylabel("share")
    axes.legend()
    plots.label_ends(axes, "low", "high")
    return plots.svg_of(figure)


def _gallery(folder: Path) -> Gallery:
    draw = np.random.default_rng(0)
    subjects = []
    for i in range(2):
        part = folder / str(i)
        subjects.append(
            gallery.Subject(
                name=f"chip{i}",
                caption=f"Worst: chip{i}, IoU 0.1",
                prediction=_write_tiff(part / "prediction.tif", draw.integers(0, 2, (48, 48), np.uint8)),
                label=_write_tiff(part / "label.tif", draw.integers(0, 2, (48, 48), np.uint8)),
                image={
                    band: _write_tiff(part / f"{band}.tif", draw.integers(0, 9000, (48, 48), np.uint16))
                    for band in pictures.TRUE_COLOUR_BANDS
                },
                disagreement=_write_tiff(part / "disagreement.tif", draw.random((48, 48), np.float32) / 2),
            )
        )
    return gallery.draw_gallery(subjects, "Chips", "Worst first.")


def _png(folder: Path) -> bytes:
    pixels = np.full((3, 64, 64), 2000, np.uint16)
    return pictures.picture_of_chip(pixels, pictures.TRUE_COLOUR_BANDS, np.eye(64, dtype=np.uint8))


def _write_tiff(path: Path, pixels: np.ndarray) -> str:  # type: ignore[type-arg]
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = pixels.shape
    with rasterio.open(path, "w", driver="GTiff", count=1, height=height, width=width, dtype=pixels.dtype) as target:
        target.write(pixels, 1)
    return str(path)
