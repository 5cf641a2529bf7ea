"""Scores of real chips, to the last digit those of a count that is written from their definitions.

The predictions are a fixed threshold on blue. The count here takes whole arrays, and calls nothing of ours.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from raytrain.evaluation.evaluation import evaluation_of
from raytrain.evaluation.masks import Reading
from raytrain.evaluation.predictions import find_predictions, pair_up
from raytrain.evaluation.results import Evaluation, Inputs, PixelScores
from raytrain.evaluation.tally import count_pairs
from raytrain.tiles.metadata import read_metadata

BLUE_OF_CLOUD = 2500
EDGE_PX = 5
Mask = NDArray[np.uint8]
Chip = tuple[str, Mask, Mask]
"""Location, prediction and label: 0 clear, 1 cloud, 255 no data."""
IOUS = ("iou_pooled", "iou_mean", "iou_location_weighted", "iou_mean_location_weighted")


def read(path: Path) -> NDArray[Any]:
    with rasterio.open(path) as source:
        return np.asarray(source.read(1))


def place_of(chip_id: str) -> str:
    """Return a made-up place of several chips: each real one has one chip, and by place would be by chip."""
    return chip_id[:4]


def as_delivered(chip_id: str, label: Mask, blue: NDArray[Any]) -> tuple[Mask, Mask]:
    """Return the prediction for a chip, and its label."""
    return (blue >= BLUE_OF_CLOUD).astype(np.uint8), label


def with_holes(chip_id: str, label: Mask, blue: NDArray[Any]) -> tuple[Mask, Mask]:
    """Return the same with places that are not labelled, and others that have no prediction."""
    prediction, label = as_delivered(chip_id, label, blue)
    row, column = np.indices(label.shape)
    label = np.where((row + column) % 97 < 9, 255, label).astype(np.uint8)
    return np.where((row - 2 * column) % 131 < 7, 255, prediction).astype(np.uint8), label


def prepare(archive: Path, folder: Path, change: Callable[..., tuple[Mask, Mask]]) -> dict[str, Chip]:
    """Write predictions, labels and metadata of all labelled chips below `folder`; return what was written."""
    chips: dict[str, Chip] = {}
    (folder / "predictions").mkdir()
    (folder / "labels").mkdir()
    for path in sorted((archive / "train_labels").glob("*.tif")):
        blue = read(archive / "train_features" / path.stem / "B02.tif")
        prediction, label = change(path.stem, read(path), blue)
        with rasterio.open(path) as source:
            profile = source.profile
        for name, pixels in (("predictions", prediction), ("labels", label)):
            with rasterio.open(folder / name / path.name, "w", **profile) as target:
                target.write(pixels, 1)
        chips[path.stem] = place_of(path.stem), prediction, label
    rows = [(chip_id, place, "", "") for chip_id, (place, _, _) in chips.items()]
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("chip_id", "location", "datetime", "cloudpath"), *rows])
    return chips


def evaluated(folder: Path) -> Evaluation:
    rows = read_metadata(str(folder / "metadata.csv")).rows
    pairs, oddities = pair_up([find_predictions(str(folder / "predictions"))], str(folder / "labels"), rows)
    tallies, odd = count_pairs(pairs, [Reading()], EDGE_PX)
    assert not oddities
    assert not odd
    inputs = Inputs(predictions="p", labels="l", metadata="m")
    return evaluation_of(tallies, [], inputs, [], rule="one", seed=0, resamples=100)


def near_an_edge(label: Mask) -> NDArray[np.bool_]:
    """Return where cloud and clear sky both lie within `EDGE_PX` rows and columns: each offset looked at by itself."""
    height, width = label.shape
    around = np.pad(label, EDGE_PX, constant_values=255)
    cloud, clear = np.zeros(label.shape, bool), np.zeros(label.shape, bool)
    for down, right in itertools.product(range(2 * EDGE_PX + 1), repeat=2):
        neighbour = around[down : down + height, right : right + width]
        cloud |= neighbour == 1
        clear |= neighbour == 0
    return cloud & clear


def confusion(prediction: Mask, label: Mask, where: NDArray[np.bool_] | None = None) -> list[int]:
    """Return tp, fp, fn, tn over labelled pixels; where there is no prediction there is none of cloud."""
    counted = (label != 255) if where is None else (label != 255) & where
    said, true = prediction[counted] == 1, label[counted] == 1
    return [int(np.sum(each)) for each in (said & true, said & ~true, ~said & true, ~said & ~true)]


def added(confusions: list[list[int]]) -> list[int]:
    return [sum(each) for each in zip(*confusions, strict=True)]


def iou(counts: list[int]) -> float:
    tp, fp, fn, _ = counts
    return tp / (tp + fp + fn) if tp + fp + fn else 1.0


def mean(values: list[float]) -> float:
    return float(np.mean(values))


def pixel_scores(counts: list[int]) -> dict[str, float | None]:
    tp, fp, fn, tn = counts
    return {
        "precision": tp / (tp + fp) if tp + fp else None,
        "recall": tp / (tp + fn) if tp + fn else None,
        "f1": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None,
        "accuracy": (tp + tn) / (tp + fp + fn + tn),
    }


def check_zone(found: PixelScores, counts: list[int]) -> None:
    assert list(found.pixels.model_dump().values()) == counts
    expected = {"iou": iou(counts), **pixel_scores(counts)}
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize("change", [as_delivered, with_holes])
def test_scores_of_real_chips_are_those_of_an_independent_count_to_the_last_digit(
    real_imagery: Path, tmp_path: Path, change: Callable[..., tuple[Mask, Mask]]
) -> None:
    chips = prepare(real_imagery / "labelled", tmp_path, change)
    assert len(chips) == 27
    found = evaluated(tmp_path)
    by_chip = {chip_id: confusion(prediction, label) for chip_id, (_, prediction, label) in chips.items()}
    of_place: dict[str, list[list[int]]] = {}
    for chip_id, (place, _, _) in chips.items():
        of_place.setdefault(place, []).append(by_chip[chip_id])
    total = added(list(by_chip.values()))
    expected: dict[str, float | None] = {
        "iou_pooled": iou(total),
        "iou_mean": mean([iou(each) for each in by_chip.values()]),
        "iou_location_weighted": mean([iou(added(some)) for some in of_place.values()]),
        "iou_mean_location_weighted": mean([mean([iou(each) for each in some]) for some in of_place.values()]),
        **pixel_scores(total),
    }
    assert {name: getattr(found, name) for name in expected} == expected
    assert list(found.pixels.model_dump().values()) == total
    assert (found.num_chips, set(found.locations)) == (27, set(of_place))
    for place, some in of_place.items():
        counts, result = added(some), found.locations[place]
        at_place = {"iou": iou(counts), "iou_mean": mean([iou(each) for each in some]), **pixel_scores(counts)}
        assert {name: getattr(result, name) for name in at_place} == at_place
        assert (result.intersection, result.union, result.num_chips) == (counts[0], sum(counts[:3]), len(some))


@pytest.mark.parametrize("change", [as_delivered, with_holes])
def test_zones_of_real_chips_are_those_of_every_pixel_held_against_all_around_it(
    real_imagery: Path, tmp_path: Path, change: Callable[..., tuple[Mask, Mask]]
) -> None:
    chips = prepare(real_imagery / "labelled", tmp_path, change)
    found = evaluated(tmp_path)
    near, away = [], []
    unpredicted = 0
    for _, prediction, label in chips.values():
        edges = near_an_edge(label)
        near.append(confusion(prediction, label, edges))
        away.append(confusion(prediction, label, ~edges))
        unpredicted += int(np.sum((label != 255) & (prediction == 255)))
    check_zone(found.near_edges, added(near))
    check_zone(found.away_from_edges, added(away))
    assert found.near_edges.pixels.true_positive > 0
    assert found.unpredicted_px == unpredicted
    assert (unpredicted > 0) == (change is with_holes)
