"""The pages that the browser tests open: one with every kind of part, and those of the commands, of small results."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from matplotlib.figure import Figure as Drawing
from numpy.typing import NDArray

from raytrain.config import change
from raytrain.errors import DataError
from raytrain.evaluation import gallery, pictures, plots
from raytrain.evaluation.html import render_page
from raytrain.evaluation.page import Bar, Cell, Figure, Gallery, Page, Picture, Plot, Problems, Shown, Table
from raytrain.evaluation.results import Problem
from raytrain.evaluation.scoring_report import read_scored, write_report
from raytrain.evaluation.training_page import TilePictures, training_page
from raytrain.review.effect_page import effect_page
from raytrain.scoring.casualties import write_casualties
from raytrain.search.results import write_results
from tests.browser.made_evaluation import made_evaluation
from tests.unit.test_course import done, failed, write
from tests.unit.test_perform import SETTINGS, noise, score, work_at, write_scene
from tests.unit.test_review_effect import made_effect
from tests.unit.test_search import whole_search
from tests.unit.test_training_report import RESULTS

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
                Figure("Pooled", "0.8742", "All pixels together.", "0.8412 to 0.9133, 95%"),
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


def search_page(folder: Path) -> str:
    """The page of a whole search."""
    search = whole_search(folder, lambda trial: 0.5 + 0.2 * (trial.number > 0))
    return Path(write_results(str(folder), search, {}).report_uri).read_text()


def training_page_of_three(folder: Path) -> str:
    """The page of a training: a run with restarts, one without, one that failed, and pictures of tiles."""
    draw = np.random.default_rng(0)
    tiles = []
    for i, (word, share) in enumerate((("worst", 0.3), ("median", 0.1), ("best", 0.02))):
        label = np.kron(draw.integers(0, 2, (8, 8), np.uint8), np.ones((6, 6), np.uint8))
        prediction = np.where(draw.random((48, 48)) < share, 1 - label, label).astype(np.uint8)
        pixels = np.full((3, 48, 48), 1200, np.uint16) + 5000 * label.astype(np.uint16)
        tiles.append(gallery.compare(f"tile{i}", f"{RESULTS.runs[0].name}, {word}: tile{i}", prediction, label, pixels))
    unread = (Problem(subject="tile9", found="its shard s3://b/shards/shard-00003.parquet is gone"),)
    return render_page(training_page(RESULTS, TilePictures(tiles, unread)))


def scoring_page_of_four(folder: Path) -> str:
    """The page of a scoring: of three machines and two commands, with attempts that failed and items left out."""
    for number in range(4):
        write_scene(folder / "in" / f"s{number}.tif", noise(60 + 10 * number, 50, seed=number))
    work = work_at(folder / "out", change(SETTINGS, {"disagreement": "uint8"}))
    score(folder / "in", work)
    hosts = [
        [
            done(60 * i, 55, 10**8 + i * 10**7, host=f"10.0.0.{host}", pid=host, network_s_so_far=45 * i)
            for i in range(1, 12)
        ]
        for host in range(3)
    ]
    lost = failed(300, "the worker died: out of memory", "lost", host="10.0.0.1", pid=1)
    write(
        folder / "out",
        "20261118T070640Z-aa",
        *hosts,
        [lost, failed(310, "s3://b/S2_1/B02.tif: no answer", host="10.0.0.2", pid=2)],
    )
    write(folder / "out", "20261119T070640Z-bb", [done(90_000, 60, 10**8, host="10.0.0.1", network_s_so_far=50)])
    write_casualties(
        work.destination,
        [["b", "/in/b.tif", "true", "not readable"], ["c", "/in/c.tif", "false", "no answer in 4 attempts"]],
    )
    scored = read_scored(
        work.destination, work.scoring, source=str(folder / "in"), ensemble="/runs/main", ended_by="too many failures"
    )
    return Path(write_report(work.destination, scored)).read_text()


def effect_of_cleaning_page(folder: Path) -> str:
    """The page of the effect of cleaning labels, with a test set."""
    return render_page(effect_page(made_effect(with_test=True)))


PAGES: dict[str, Callable[[Path], str]] = {
    "full": full_page,
    "evaluation": made_evaluation,
    "training": training_page_of_three,
    "scoring": scoring_page_of_four,
    "search": search_page,
    "effect": effect_of_cleaning_page,
}
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


def _write_tiff(path: Path, pixels: NDArray[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = pixels.shape
    with rasterio.open(path, "w", driver="GTiff", count=1, height=height, width=width, dtype=pixels.dtype) as target:
        target.write(pixels, 1)
    return str(path)
