"""Predictions and a label, read strip by strip so that any size fits, and counted.

A mask holds 0 clear, 1 cloud, 255 no data; a label 0, 1, 255 ignore; a map probabilities of cloud. Must not know which
files belong together, or what the counts are made into.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from raytrain import storage
from raytrain.errors import DataError
from raytrain.evaluation.counting import MapCounts, MemberCounts, Truth, near_edges
from raytrain.evaluation.oddities import PROBABILITIES, Kind, Odd
from raytrain.imagery.rasters import (
    LABEL_CLEAR,
    LABEL_CLOUD,
    LABEL_IGNORE,
    georeference_of,
    open_geotiff,
    own_mask,
    unreadable,
)

STRIP_PIXELS = 2**23
"""Shared by what is read at a time, so that a scene of any size takes 220 to 290 MiB, GDAL's cache of 128 among them.

Measured with masks alone, with a map, and with those of eight members, which took 880 MiB in strips of this size each.
"""
STRIP_ALIGNMENT_PX = 512
"""Tiled files have blocks of 256, 512 or 1024 rows: strips that end with a block decode it once."""
LABEL, PREDICTION, MAP = "label", "prediction", "map of probabilities"
"""What files are called where something is wrong with them."""
TOLERANCE = 1e-6
"""How far stored values times their scale may be from [0, 1]."""


@dataclass(frozen=True)
class Prediction:
    """What one way of predicting gave for a chip or scene, as URIs of GeoTIFFs.

    `uri` is a mask or a map; beside a mask there may be the `probability` that it was made of, and those of `members`.
    """

    uri: str
    probability: str | None = None
    members: tuple[str, ...] = ()
    disagreement: str | None = None


@dataclass(frozen=True)
class Pair:
    """A label, and the predictions that are held against it."""

    chip_id: str
    location: str
    label: str
    predictions: tuple[Prediction, ...]


@dataclass(frozen=True)
class Reading:
    """How the files of a way of predicting are understood.

    Cloud is what reaches `threshold` of a map; a mask is taken as it is unless `by_map`, for which the map beside it
    is. A map in the place of a mask is odd unless `maps_allowed`. Values of a map are multiplied by what the file says;
    where a file of whole numbers says nothing, it is a map by `scale` if there is one, and a mask if there is none.
    """

    threshold: float = 0.5
    by_map: bool = False
    scale: float | None = None
    maps_allowed: bool = False


@dataclass
class Counts:
    """What a prediction and its label come to: `confusion` `[zone, 4]`, and what there are maps for.

    `unpredicted_px` are labelled pixels without a prediction, which counts as clear.
    """

    confusion: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, 4), np.int64))
    unpredicted_px: int = 0
    maps: MapCounts | None = None
    members: MemberCounts | None = None


def count_pair(pair: Pair, readings: Sequence[Reading], edge_px: int, strip_pixels: int = STRIP_PIXELS) -> list[Counts]:
    """Return the counts of each prediction of a pair, which has one for each of `readings`.

    The counts do not depend on `strip_pixels`, which is shared by the maps that are read at a time. What the mask of a
    file itself leaves out, internal or `.msk`, has no label or no prediction. Raises `Odd` that names the file: no
    readable GeoTIFF, several bands, neither a mask of 0, 1 and 255 nor probabilities in [0, 1], of another size or
    place than the label.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(storage.gdal_environment())
        label = _Mask(stack, pair.label, LABEL)
        readers = [
            _Predicted(stack, prediction, reading, label)
            for prediction, reading in zip(pair.predictions, readings, strict=True)
        ]
        counts = [Counts() for _ in readers]
        strip_pixels //= 1 + max(reader.num_maps for reader in readers)
        for window in strips(label.source.height, label.source.width, strip_pixels):
            truth = _truth(label, window, edge_px)
            for reader, each in zip(readers, counts, strict=True):
                reader.count(window, truth, each)
        for reader in readers:
            reader.check_all_read()
    return counts


def read_counted(
    prediction: Prediction, reading: Reading, shape_of: Callable[[DatasetReader], tuple[int, int]]
) -> NDArray[np.uint8]:
    """Return what `count_pair` takes for a prediction as a small mask `[h, w] uint8`, of the size that `shape_of` says.

    A map is averaged down before its threshold decides; a mask is shrunk by the nearest pixel. Raises as `count_pair`.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(storage.gdal_environment())
        return _Predicted(stack, replace(prediction, members=()), reading, None).read_small(shape_of)


def strips(height_px: int, width_px: int, strip_pixels: int = STRIP_PIXELS) -> Iterator[Window]:
    """Yield windows of whole rows that cover a raster once, top to bottom, by `strip_pixels` at most or one row."""
    rows = max(1, strip_pixels // width_px)
    if rows > STRIP_ALIGNMENT_PX:
        rows -= rows % STRIP_ALIGNMENT_PX
    for start in range(0, height_px, rows):
        yield Window(0, start, width_px, min(rows, height_px - start))


def _truth(label: _Mask, window: Window, edge_px: int) -> Truth:
    """Return the truth of a strip; edges of clouds in the rows above and below it count, too."""
    top = max(0, window.row_off - edge_px)
    bottom = min(label.source.height, window.row_off + window.height + edge_px)
    values = label.read(Window(0, top, window.width, bottom - top))
    rows = slice(window.row_off - top, window.row_off - top + window.height)
    return Truth.of(values[rows], near_edges(values, edge_px)[rows])


class _Mask:
    """A file of 0, 1 and 255."""

    def __init__(self, stack: contextlib.ExitStack, uri: str, kind: str) -> None:
        self.uri, self.kind = uri, kind
        self.source = _opened(stack, uri, kind)
        if _holds_map(self.source):
            found = f"{kind} of {self.source.dtypes[0]}, expected a mask of 0, 1 and 255: are these probabilities?"
            raise Odd("label-values" if kind == LABEL else PROBABILITIES, uri, found)

    def read(self, window: Window | None, shape: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Return the values of a window `[H, W] uint8`, 255 where the file's own mask says that there is none.

        With a `shape` they are shrunk to it. Raises `Odd` for any but 0, 1 and 255.
        """
        pixels, there = _read(self.source, window, self.uri, self.kind, shape)
        if there is not None:
            pixels = np.where(there, pixels, LABEL_IGNORE)
        if not _is_mask(pixels).all():
            shown = ", ".join(str(value) for value in np.unique(pixels[~_is_mask(pixels)])[:5])
            found = f"{self.kind} values other than 0, 1 and 255: {shown}"
            if self.kind == LABEL:
                raise Odd("label-values", self.uri, found)
            hint = "for probabilities the file has to name a scale, or --scale, which is for PREDICTIONS"
            raise Odd("values", self.uri, f"{found}; {hint}")
        return np.asarray(pixels, np.uint8)


class _Map:
    """A file of probabilities; `scale` is that of whole numbers whose file names none."""

    def __init__(self, stack: contextlib.ExitStack, uri: str, scale: float | None) -> None:
        self.uri, self.source = uri, _opened(stack, uri, MAP)
        self._scale, self._offset = float(self.source.scales[0]), float(self.source.offsets[0])
        self._is_bare = not _holds_map(self.source)
        if self._is_bare:
            if scale is None:
                raise Odd("values", uri, f"a map of {self.source.dtypes[0]} that names no scale")
            self._scale = scale
        self._has_one = self._has_others = False

    def read(
        self, window: Window | None, shape: tuple[int, int] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the probabilities of a window `[H, W] float32`, 0 where there is none, and where there is one.

        With a `shape` they are averaged down to it.
        """
        pixels, there = _read(self.source, window, self.uri, MAP, shape, Resampling.average)
        if pixels.dtype == np.uint8:  # looked up: several times as fast, and the same
            table, in_table = self._decoded(np.arange(256, dtype=np.uint8))
            values = np.asarray(cv2.LUT(pixels.view(np.uint8), table), np.float32)
            given = np.asarray(cv2.LUT(pixels.view(np.uint8), in_table.view(np.uint8))).view(np.bool_)
        else:
            values, given = self._decoded(pixels)
        if there is not None:
            given &= there
            values[~given] = 0
        if self._is_bare:
            self._has_one |= bool(((pixels == LABEL_CLOUD) & given).any())
            self._has_others |= bool((given & ~_is_mask(pixels)).any())
        low, high = float(values.min(initial=0)), float(values.max(initial=0))
        if low < -TOLERANCE or high > 1 + TOLERANCE:
            hint = "" if _is_integer(self.source) else " (--scale is for whole numbers alone)"
            raise Odd("values", self.uri, f"probabilities between {low:.4g} and {high:.4g}, expected 0 to 1{hint}")
        return np.clip(values, 0, 1, out=values), given

    def check_all_read(self) -> None:
        """Raise `Odd` if all that was read by a scale from outside might be a mask: 1 would be cloud, or almost 0."""
        if self._is_bare and self._has_one and not self._has_others:
            found = (
                f"0, 1 and 255 alone: a mask, or a map by --scale {self._scale:g}? A map has to name its scale itself"
            )
            raise Odd("values", self.uri, found)

    def _decoded(self, pixels: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        nodata = self.source.nodata
        given = ~np.isnan(pixels) if nodata is None or math.isnan(nodata) else (pixels != nodata) & ~np.isnan(pixels)
        values = np.where(given, pixels, 0)
        if self._scale != 1 or self._offset:
            # In float64, or 5 x 0.01 would be less than 0.05.
            values = np.where(given, values * np.float64(self._scale) + self._offset, 0)
        return values.astype(np.float32), given


class _Predicted:
    """The files of one prediction, open; each of the size and at the place of the label, if one is given."""

    def __init__(
        self, stack: contextlib.ExitStack, prediction: Prediction, reading: Reading, label: _Mask | None
    ) -> None:
        self._reading = reading
        self._mask: _Mask | None = None
        self._map: _Map | None = None
        if reading.maps_allowed and _is_map(stack, prediction.uri, reading):
            self._map = _Map(stack, prediction.uri, reading.scale)
        else:
            self._mask = _Mask(stack, prediction.uri, PREDICTION)
            if prediction.probability is not None:
                self._map = _Map(stack, prediction.probability, None)
        if reading.by_map and self._map is None:
            raise Odd("no-probabilities", prediction.uri, "a mask, where --threshold wants probabilities")
        self._members = [_Map(stack, uri, None) for uri in prediction.members]
        for each in (self._mask, self._map, *self._members):
            if each is not None and label is not None:
                _check_place(each.uri, each.source, label.source)

    @property
    def num_maps(self) -> int:
        """How many maps are read at a time."""
        return len(self._members) + (self._map is not None)

    def check_all_read(self) -> None:
        """Raise `Odd` for what only the whole of a file shows."""
        if self._map is not None:
            self._map.check_all_read()

    def count(self, window: Window, truth: Truth, counts: Counts) -> None:
        """Add what a strip comes to."""
        predicted: NDArray[np.bool_] | None = None
        if self._map is not None:
            probability, given = self._map.read(window)
            counts.maps = counts.maps or MapCounts()
            counts.maps.add(truth.map_counts(probability, given))
            predicted = (probability >= np.float32(self._reading.threshold)) & given
        if self._mask is not None and not (self._reading.by_map and predicted is not None):
            values = self._mask.read(window)
            predicted, given = values == LABEL_CLOUD, values != LABEL_IGNORE
        assert predicted is not None, "a prediction is a mask or a map"
        counts.confusion += truth.confusion(predicted)
        counts.unpredicted_px += int(np.count_nonzero(truth.valid & ~given))
        if self._members:
            read = [each.read(window) for each in self._members]
            found = truth.member_counts(
                [each for each, _ in read], np.logical_and.reduce([given for _, given in read]), self._reading.threshold
            )
            counts.members = counts.members or MemberCounts.of(len(read))
            counts.members.add(found)

    def read_small(self, shape_of: Callable[[DatasetReader], tuple[int, int]]) -> NDArray[np.uint8]:
        """Return what is counted as a mask of the size that `shape_of` says."""
        if self._mask is not None and not self._reading.by_map:
            return self._mask.read(None, shape_of(self._mask.source))
        assert self._map is not None, "a prediction is a mask or a map"
        probability, given = self._map.read(None, shape_of(self._map.source))
        is_cloud = probability >= np.float32(self._reading.threshold)
        return np.where(given, is_cloud, LABEL_IGNORE).astype(np.uint8)


def _opened(stack: contextlib.ExitStack, uri: str, what: str) -> DatasetReader:
    try:
        source = stack.enter_context(open_geotiff(uri, what))
    except (FileNotFoundError, DataError) as error:
        if not storage.exists(uri):  # It was there when the folder was listed.
            missing: Kind = "missing-label" if what == LABEL else "missing-prediction"
            raise Odd(missing, uri, f"{what} is gone") from error
        if isinstance(error, DataError):
            raise Odd(_unreadable(what), error.subject, error.found) from error
        raise
    if source.count != 1:
        raise Odd(_unreadable(what), uri, f"{what} with {source.count} bands, expected one")
    return source


def _unreadable(what: str) -> Kind:
    return "label-unreadable" if what == LABEL else "unreadable"


def _is_map(stack: contextlib.ExitStack, uri: str, reading: Reading) -> bool:
    source = _opened(stack, uri, PREDICTION)
    return _holds_map(source) or reading.scale is not None


def _is_mask(pixels: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray((pixels == LABEL_CLEAR) | (pixels == LABEL_CLOUD) | (pixels == LABEL_IGNORE))


def _holds_map(source: DatasetReader) -> bool:
    """Tell whether a file says that it holds no mask: it has no whole numbers, or a scale for them."""
    return not _is_integer(source) or source.scales[0] != 1


def _is_integer(source: DatasetReader) -> bool:
    return bool(np.issubdtype(np.dtype(source.dtypes[0]), np.integer))


def _check_place(uri: str, source: DatasetReader, label: DatasetReader) -> None:
    if source.shape != label.shape:
        raise Odd("size", uri, f"prediction of {_size(source)} px for a label of {_size(label)} px")
    place, true_place = georeference_of(source), georeference_of(label)
    if not place.agrees_with(true_place):
        raise Odd("place", uri, f"prediction lies at {place}, but the label at {true_place}")


def _read(
    source: DatasetReader,
    window: Window | None,
    uri: str,
    what: str,
    shape: tuple[int, int] | None = None,
    how: Resampling = Resampling.nearest,
) -> tuple[NDArray[np.generic], NDArray[np.bool_] | None]:
    """Return the band or a window of it as stored, shrunk to a `shape` given, and the file's own mask if any."""
    try:
        pixels = np.asarray(source.read(1, window=window, out_shape=shape, resampling=how))
        return pixels, own_mask(source, 1, window, shape)
    except RasterioError as error:
        failed = unreadable(uri, what, error)
        raise Odd(_unreadable(what), failed.subject, failed.found) from error


def _size(source: DatasetReader) -> str:
    return f"{source.width} x {source.height}"
