"""What was predicted for a tile: mask, probability and disagreement, read from the destination of a scoring.

Must not know labels, or what predictions are held against.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from raytrain import storage
from raytrain.errors import ConfigError, DataError
from raytrain.imagery.rasters import open_geotiff, unreadable
from raytrain.scoring.destination import Scoring, read_scoring
from raytrain.scoring.layers import layer_key

SCORE_UNSEEN = "raytrain score SHARDS PREDICTIONS --ensemble ENSEMBLE --out-of-fold"
SCORE_UNLABELLED = "raytrain score SRC PREDICTIONS --ensemble ENSEMBLE --set disagreement=uint8"
"""What makes predictions as they are needed of labelled tiles, and of what has no label."""

PredictedKind = Literal["mask", "probability", "disagreement"]


@dataclass(frozen=True)
class Predictions:
    """The predictions at `uri`, all made with `scoring`."""

    uri: str
    scoring: Scoring

    def uri_of(self, kind: PredictedKind, item_id: str) -> str:
        """Return where the raster of an item lies."""
        return storage.join(self.uri, layer_key(kind, item_id))

    def read_mask(self, item_id: str, shape: tuple[int, int]) -> NDArray[np.uint8]:
        """Return the mask of an item, `[H, W] uint8`: 0 clear, 1 cloud; raises as `read_values` does."""
        stored, _, _ = self._read("mask", item_id, shape)
        return stored.astype(np.uint8)

    def read_values(
        self, kind: Literal["probability", "disagreement"], item_id: str, shape: tuple[int, int]
    ) -> NDArray[np.float32]:
        """Return probabilities, or disagreement in [0, 0.5], of an item as `[H, W] float32`, NaN without data.

        Raises `DataError` for a raster that is not there, can't be read or is not of `shape`.
        """
        stored, scale, nodata = self._read(kind, item_id, shape)
        values = stored.astype(np.float32) * np.float32(scale)
        return values if nodata is None or np.isnan(nodata) else np.where(stored == nodata, np.float32(np.nan), values)

    def _read(
        self, kind: PredictedKind, item_id: str, shape: tuple[int, int]
    ) -> tuple[NDArray[np.generic], float, float | None]:
        uri = self.uri_of(kind, item_id)
        try:
            with storage.gdal_environment(), open_geotiff(uri, "prediction") as source:
                if source.count != 1 or source.shape != shape:
                    found = f"{source.count} bands of {source.width} x {source.height} px"
                    raise DataError(storage.shown(uri), f"{found}, but the tile has {shape[1]} x {shape[0]} px")
                try:
                    return np.asarray(source.read(1)), float(source.scales[0]), source.nodata
                except RasterioError as error:
                    raise unreadable(uri, "prediction", error) from error
        except (FileNotFoundError, DataError) as error:  # of a local file that is not there GDAL says the latter
            if storage.exists(uri):
                raise
            raise DataError(storage.shown(uri), f"gone, the {kind} predicted for {item_id}; score again") from error


def open_predictions(uri: str, *, unseen: bool = True) -> Predictions:
    """Return the predictions that `raytrain score` wrote to `uri`; raise `ConfigError` where they are no use here.

    They need a map of disagreement, and, where `unseen`, one of probability, too, and nets that never saw the place
    they predict.
    """
    needed = ("probability", "disagreement") if unseen else ("disagreement",)
    remedy = SCORE_UNSEEN if unseen else SCORE_UNLABELLED
    scoring = read_scoring(uri)
    if scoring is None:
        raise ConfigError(f"{uri}: no predictions of raytrain score; make them, in a folder of their own: {remedy}")
    if unseen and not scoring.out_of_fold:
        raise ConfigError(
            f"{uri}: predictions of nets that may have seen the labels, and would agree with them whatever they are; "
            f"score anew, into another folder: {remedy}"
        )
    lacking = [name for name in needed if getattr(scoring.settings, name) == "none"]
    if lacking:
        raise ConfigError(
            f"{uri}: predictions without {' and '.join(lacking)}; score anew, into another folder: {remedy}"
        )
    return Predictions(uri, scoring)
