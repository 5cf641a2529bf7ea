"""Scenes to masks: overlapping windows, blended, row of windows by row of windows; a scene is never held as a whole.

Memory is that of one row of windows: four bands of `window_px` rows and two float32 rows of the same size. Must not
know who asks for a scene.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from raytrain import storage
from raytrain.config import ScoreSettings
from raytrain.errors import DataError
from raytrain.imagery import rasters
from raytrain.imagery.windows import ramp_weights, window_starts

if TYPE_CHECKING:  # it imports torch, which the driver does without
    from raytrain.scoring.ensemble import Ensemble

NO_DATA = 255
BLOCK_PX = 512


@dataclass(frozen=True)
class Strip:
    """Finished rows of a scene from `row`: probability `[h, W] float32` and `valid` `[h, W] bool`."""

    row: int
    probability: NDArray[np.float32]
    valid: NDArray[np.bool_]


def score_scene(source_uri: str, target_uri: str, ensemble: Ensemble, settings: ScoreSettings) -> str:
    """Write the mask of the scene at `source_uri` as a COG to `target_uri` and return the sha256 of its bytes.

    The mask is uint8: 0 clear, 1 cloud, 255 where a band has no data; it has the CRS and transform of the source.
    Raises `DataError` for a source that can't be read or lacks a band.
    """
    with tempfile.TemporaryDirectory(prefix="raytrain-") as temporary:
        striped, cog = Path(temporary) / "mask.tif", Path(temporary) / "cog.tif"
        with storage.gdal_environment(), rasters.open_geotiff(source_uri, "scene") as source:
            indexes = rasters.band_indexes(source, ensemble.bands)
            with rasterio.open(striped, "w", **_profile(source)) as target:
                target.write_colormap(1, rasters.MASK_COLOURS)
                for strip in blended_strips(source, indexes, ensemble, settings):
                    _write_strip(target, strip, settings.threshold)
        rasterio.shutil.copy(
            striped, cog, driver="COG", compress="deflate", blocksize=BLOCK_PX, overview_resampling="mode"
        )
        with cog.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        storage.write_file(target_uri, cog)
    return sha256


def blended_strips(
    source: DatasetReader, indexes: list[int], ensemble: Ensemble, settings: ScoreSettings
) -> Iterator[Strip]:
    """Yield the scene's probability from top to bottom, each row once.

    Windows at the edges are moved inwards. The probability of a pixel is the mean over the windows that cover it, by
    weights that fall towards a window's sides, summed in the order of the windows.
    """
    height_px, width_px = min(settings.window_px, source.height), min(settings.window_px, source.width)
    rows = window_starts(source.height, height_px, min(settings.overlap_px, height_px // 2))
    columns = window_starts(source.width, width_px, min(settings.overlap_px, width_px // 2))
    weights = np.outer(ramp_weights(height_px, settings.overlap_px), ramp_weights(width_px, settings.overlap_px))
    # Weighted probability, and weights.
    sums: NDArray[np.float32] = np.zeros((2, height_px, source.width), np.float32)
    for row, next_row in zip(rows, [*rows[1:], source.height], strict=True):
        strip = _read_strip(source, indexes, row, height_px)
        for column, probability in _window_probabilities(strip, columns, width_px, ensemble):
            sums[0, :, column : column + width_px] += probability * weights
            sums[1, :, column : column + width_px] += weights
        done = next_row - row
        yield Strip(row, sums[0, :done] / sums[1, :done], strip.valid[:done])
        sums = np.concatenate([sums[:, done:], np.zeros_like(sums[:, :done])], axis=1)


def _read_strip(source: DatasetReader, indexes: list[int], row: int, height_px: int) -> rasters.Raster:
    window = Window(0, row, source.width, height_px)
    try:
        pixels = source.read(indexes, window=window)
    except RasterioError as error:
        raise rasters.unreadable(source.name, f"scene from row {row} on", error) from error
    if pixels.dtype != np.uint16:
        raise DataError(source.name, f"expected uint16, found {pixels.dtype}")
    nodata = [source.nodatavals[i - 1] for i in indexes]
    return rasters.Raster(pixels, rasters.valid_pixels(pixels, nodata), rasters.georeference_of(source))


def _window_probabilities(
    strip: rasters.Raster, columns: list[int], width_px: int, ensemble: Ensemble
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield (column, probability `[h, width_px]`) of each window of a strip; 0 without data, no net asked."""
    boxes = [slice(column, column + width_px) for column in columns]
    asked = [box for box in boxes if strip.valid[:, box].any()]
    found: dict[int, NDArray[np.float32]] = {}
    if asked:
        pixels, valid = [strip.pixels[:, :, box] for box in asked], [strip.valid[:, box] for box in asked]
        found = {box.start: each for box, each in zip(asked, ensemble.probabilities(pixels, valid), strict=True)}
    empty = np.zeros((strip.valid.shape[0], width_px), np.float32)
    for column in columns:
        yield column, found.get(column, empty)


def to_mask(probability: NDArray[np.float32], threshold: float) -> NDArray[np.uint8]:
    """Return 1 where `probability` reaches `threshold`, else 0."""
    return (probability >= threshold).astype(np.uint8)


def _write_strip(target: Any, strip: Strip, threshold: float) -> None:
    mask = np.where(strip.valid, to_mask(strip.probability, threshold), np.uint8(NO_DATA))
    target.write(mask, 1, window=Window(0, strip.row, mask.shape[1], mask.shape[0]))


def _profile(source: DatasetReader) -> dict[str, Any]:
    return {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": 1,
        "height": source.height,
        "width": source.width,
        "crs": source.crs,
        "transform": source.transform,
        "nodata": NO_DATA,
        "tiled": True,
        "blockxsize": BLOCK_PX,
        "blockysize": BLOCK_PX,
        "compress": "deflate",
        "bigtiff": "if_safer",
    }
