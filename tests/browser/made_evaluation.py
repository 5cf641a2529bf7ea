"""The page of an evaluation with all that one can have: a scored archive with maps of members, against other masks."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray

from raytrain.config import ScoreSettings
from raytrain.evaluation.evaluation import evaluation_of
from raytrain.evaluation.gallery import draw_gallery, find_images
from raytrain.evaluation.html import render_page
from raytrain.evaluation.masks import Reading
from raytrain.evaluation.oddities import Oddity
from raytrain.evaluation.predictions import find_predictions, pair_up
from raytrain.evaluation.report import evaluation_page, subjects_of
from raytrain.evaluation.results import Inputs
from raytrain.evaluation.slices import columns_of, read_columns
from raytrain.evaluation.tally import count_pairs
from raytrain.imagery.synth import write_chips
from raytrain.scoring.destination import Scoring, claim_destination
from raytrain.scoring.layers import Layers, encode, member_kind
from raytrain.tiles.metadata import read_metadata

MEMBERS = ("v2s-4b", "v2b0-4b-minmax", "r34-4b-20k", "small-effnet-4b-20k")
SKILLS = (1.0, 0.8, 0.9, 0.5)
THRESHOLD = 0.4
SIZE_PX = 64


def made_evaluation(folder: Path) -> str:
    """Return the page of generated chips: one without a label, one whose prediction is of another size."""
    write_chips(folder, count=30, size_px=SIZE_PX, seed=1, num_places=22)
    labels, metadata = folder / "train_labels", folder / "train_metadata.csv"
    chips = sorted(path.stem for path in labels.glob("*.tif"))
    ours, theirs = folder / "scored", folder / "others"
    _write_scored(ours, labels, chips)
    for chip_id in chips:
        with rasterio.open(folder / "train_features" / chip_id / "B02.tif") as source:
            _write(theirs / f"{chip_id}.tif", (source.read(1) > 3000).astype(np.uint8), labels / f"{chip_id}.tif")
    (labels / f"{chips[3]}.tif").unlink()
    _write(theirs / f"{chips[5]}.tif", np.zeros((SIZE_PX, SIZE_PX - 1), np.uint8), labels / f"{chips[5]}.tif")
    sensors = folder / "sensors.csv"
    with sensors.open("w") as file:
        csv.writer(file).writerows(
            [("chip_id", "sensor"), *((each, ("S2A", "S2B", "L8")[i % 3]) for i, each in enumerate(chips))]
        )
    inputs = Inputs(
        predictions=str(ours),
        labels=str(labels),
        metadata=str(metadata),
        where_metadata=str(sensors),
        against=str(theirs),
        allowed=("missing-label", "size"),
    )
    return _page(inputs, sensors, str(folder))


def _page(inputs: Inputs, sensors: Path, images: str) -> str:
    sets = [find_predictions(uri) for uri in (inputs.predictions, inputs.against or "")]
    rows = read_metadata(inputs.metadata).rows
    pairs, oddities = pair_up(sets, inputs.labels, rows)
    tallies, odd = count_pairs(pairs, [Reading(threshold=THRESHOLD), Reading()], inputs.edge_px)
    assert {each.kind for each in (*oddities, *odd)} == {"missing-label", "size"}
    months = {row.chip_id: f"{row.taken:%m}" for row in rows if row.taken is not None}
    columns = columns_of(tallies[0], months, read_columns([str(sensors)], ["sensor"]))
    every: list[Oddity] = [*oddities, *odd]
    evaluation = evaluation_of(
        tallies,
        columns,
        inputs,
        every,
        rule="one",
        members=sets[0].members,
        decided_at=THRESHOLD,
        seed=0,
        resamples=500,
    )
    reading = Reading(threshold=THRESHOLD)
    subjects = subjects_of(tallies[0], {pair.chip_id: pair for pair in pairs}, find_images(images), reading)
    return render_page(evaluation_page(evaluation, "Cloud masks against labels", draw_gallery(subjects)))


def _write_scored(folder: Path, labels: Path, chips: list[str]) -> None:
    """Write what scoring leaves: masks, probabilities, disagreement, and the maps of members that see the label dimly.

    One sees less than the others; all are too cautious.
    """
    settings = ScoreSettings(threshold=THRESHOLD, probability="uint8", disagreement="uint8", members="uint8")
    claim_destination(str(folder), Scoring(ensemble="e" * 64, members=MEMBERS, settings=settings))
    layers = Layers(probability="uint8", disagreement="uint8", members="uint8", member_names=MEMBERS)
    draw = np.random.default_rng(0)
    for chip_id in chips:
        label = labels / f"{chip_id}.tif"
        with rasterio.open(label) as source:
            truth = source.read(1)
        shared = _smooth(draw)
        maps = [
            np.clip(0.15 + 0.6 * skill * (truth == 1) + 0.15 * shared + (0.4 - 0.2 * skill) * _smooth(draw), 0, 1)
            for skill in SKILLS
        ]
        values = dict(zip(map(member_kind, MEMBERS), maps, strict=True))
        values["probability"] = values["mask"] = np.mean(maps, 0)
        values["disagreement"] = np.std(maps, 0)
        for kind in layers.kinds:
            layer = layers.layer(kind)
            stored = encode(layer, values[kind].astype(np.float32), truth != 255, THRESHOLD)
            _write(folder / layer.key(chip_id), stored, label, nodata=layer.nodata, scale=layer.scale)


def _smooth(draw: np.random.Generator) -> NDArray[np.float64]:
    """Return noise in blots of 8 px, standard normal, `[SIZE_PX, SIZE_PX]`."""
    return np.kron(draw.normal(0, 1, (SIZE_PX // 8, SIZE_PX // 8)), np.ones((8, 8)))


def _write(
    path: Path, pixels: NDArray[np.generic], beside: Path, nodata: float | None = None, scale: float = 1
) -> None:
    """Write one band at the place of another file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(beside) as source:
        place = {"crs": source.crs, "transform": source.transform}
    height, width = pixels.shape
    form = {"driver": "GTiff", "count": 1, "height": height, "width": width, "dtype": pixels.dtype, "nodata": nodata}
    with rasterio.open(path, "w", **form, **place) as target:
        target.write(pixels, 1)
        target.scales = (scale,)
