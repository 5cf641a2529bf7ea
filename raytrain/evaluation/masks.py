"""Predictions and labels: which belong together, and their counts, read strip by strip so that any size fits.

A prediction holds 0 clear, 1 cloud, 255 no data; a label 0, 1, 255 ignore. Must not know what the counts are made into.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from raytrain import storage
from raytrain.errors import ConfigError, DataError
from raytrain.imagery.rasters import LABEL_CLEAR, LABEL_CLOUD, LABEL_IGNORE, georeference_of, open_geotiff, unreadable
from raytrain.tiles.metadata import MetadataRow
from raytrain.training import metrics

# About 100 MB with the copies that counting makes, whatever the size of a scene.
STRIP_PIXELS = 2**24
# Tiled files have blocks of 256, 512 or 1024 rows: strips that end with a block decode it once.
STRIP_ALIGNMENT_PX = 512


@dataclass(frozen=True)
class Pair:
    """A prediction and the label that it is held against, each the URI of a GeoTIFF."""

    chip_id: str
    location: str
    prediction: str
    label: str


def pair_up(predictions: str, labels: str, rows: Sequence[MetadataRow]) -> tuple[list[Pair], list[DataError]]:
    """Return the pairs of `<chip_id>.tif` in two folders for the rows, and a problem per row that lacks one of them.

    Each folder is listed once. Predictions and labels without a row are left alone. Raises `ConfigError` for a folder
    that is not there or has no `.tif`, and where not one pair is left.
    """
    predictions, labels = storage.normalise(predictions), storage.normalise(labels)
    predicted, labelled = _masks_in(predictions), _masks_in(labels)
    pairs, problems = [], []
    for row in rows:
        name = f"{row.chip_id}.tif"
        lacks = [
            f"no {kind} {name} in {folder}"
            for kind, folder, names in (("prediction", predictions, predicted), ("label", labels, labelled))
            if name not in names
        ]
        if lacks:
            problems.append(DataError(row.chip_id, ", ".join(lacks)))
        else:
            pair = Pair(row.chip_id, row.location, storage.join(predictions, name), storage.join(labels, name))
            pairs.append(pair)
    if not pairs:
        first = f" (the first: {problems[0]})" if problems else ""
        raise ConfigError(
            f"nothing to evaluate: no prediction in {predictions} has both a label in {labels} "
            f"and one of the {len(rows)} chosen rows of the metadata{first}"
        )
    return pairs, problems


def _masks_in(folder: str) -> set[str]:
    try:
        names = [name for name in storage.find(folder) if name.endswith(".tif")]
    except FileNotFoundError:
        names = []
    masks = {name for name in names if "/" not in name}
    if masks:
        return masks
    if names:
        raise ConfigError(f"{folder}: no .tif here, but further down ({names[0]}); name the folder that holds them")
    if not storage.exists(folder):
        raise ConfigError(f"{folder}: no such folder")
    raise ConfigError(f"{folder}: a folder without any .tif")


def count_pair(pair: Pair, strip_pixels: int = STRIP_PIXELS) -> tuple[int, int]:
    """Return intersection and union (pixels) of the cloud of a pair, by the rules of `metrics.count_pixels`.

    No more than about `strip_pixels` of each file are in memory; the counts don't depend on it.
    Raises `DataError` naming the chip and the file for what is no readable GeoTIFF, has several bands, is no mask of
    0, 1 and 255, or where the two differ in size or place.
    """
    intersection = union = 0
    try:
        with (
            storage.gdal_environment(),
            _opened(pair.prediction, "prediction") as prediction,
            _opened(pair.label, "label") as label,
        ):
            if prediction.shape != label.shape:
                raise DataError(
                    pair.prediction, f"prediction of {_size(prediction)} px for a label of {_size(label)} px"
                )
            place, true_place = georeference_of(prediction), georeference_of(label)
            if not place.agrees_with(true_place):
                raise DataError(pair.prediction, f"prediction lies at {place}, but the label at {true_place}")
            for window in strips(prediction.height, prediction.width, strip_pixels):
                counts = metrics.count_pixels(
                    _read_mask(prediction, window, pair.prediction, "prediction"),
                    _read_mask(label, window, pair.label, "label"),
                )
                intersection, union = intersection + counts[0], union + counts[1]
    except DataError as error:
        raise DataError(pair.chip_id, str(error)) from error
    return intersection, union


def strips(height_px: int, width_px: int, strip_pixels: int = STRIP_PIXELS) -> Iterator[Window]:
    """Yield windows of whole rows that cover a raster once, top to bottom, by `strip_pixels` at most or one row."""
    rows = max(1, strip_pixels // width_px)
    if rows > STRIP_ALIGNMENT_PX:
        rows -= rows % STRIP_ALIGNMENT_PX
    for start in range(0, height_px, rows):
        yield Window(0, start, width_px, min(rows, height_px - start))


@contextlib.contextmanager
def _opened(uri: str, kind: str) -> Iterator[DatasetReader]:
    with open_geotiff(uri, kind) as source:
        if source.count != 1:
            raise DataError(uri, f"{kind} with {source.count} bands, expected one")
        if not np.issubdtype(np.dtype(source.dtypes[0]), np.integer):
            found = f"{kind} of {source.dtypes[0]}, expected a mask of 0, 1 and 255"
            raise DataError(uri, f"{found}: are these probabilities?")
        yield source


def _read_mask(source: DatasetReader, window: Window, uri: str, kind: str) -> NDArray[np.uint8]:
    try:
        pixels = source.read(1, window=window)
    except RasterioError as error:
        raise unreadable(uri, kind, error) from error
    strange = (pixels != LABEL_CLEAR) & (pixels != LABEL_CLOUD) & (pixels != LABEL_IGNORE)
    if strange.any():
        shown = ", ".join(str(value) for value in np.unique(pixels[strange])[:5])
        raise DataError(uri, f"{kind} values other than 0, 1 and 255: {shown}")
    return np.asarray(pixels, np.uint8)


def _size(source: DatasetReader) -> str:
    return f"{source.width} x {source.height}"


@dataclass(frozen=True)
class CountedPair:
    """A pair with the pixels of its intersection and of its union."""

    pair: Pair
    intersection: int
    union: int

    @property
    def iou(self) -> float | None:
        """The pair's IoU; None where there is no cloud and none was predicted."""
        return self.intersection / self.union if self.union else None


def count_pairs(pairs: Sequence[Pair]) -> tuple[list[CountedPair], list[DataError]]:
    """Return the counts of every pair that can be counted, and what is wrong with the others."""
    counted: list[CountedPair] = []
    problems: list[DataError] = []
    for pair in pairs:
        try:
            counted.append(CountedPair(pair, *count_pair(pair)))
        except DataError as error:
            problems.append(error)
    return counted, problems
