"""Raster reads and writes: bands of a chip or a scene by name, masks, and what counts as no data.

No data is decided once, here: where a file names a no-data value, a pixel is no data if any band has it; where it
names none, if every band is 0. Must not know shards or models.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader, MemoryFile

from raytrain import storage
from raytrain.errors import DataError, first_line

LABEL_CLEAR, LABEL_CLOUD, LABEL_IGNORE = 0, 1, 255
MASK_COLOURS = {0: (0, 0, 0, 0), 1: (255, 255, 255, 255), 255: (128, 128, 128, 255)}


@dataclass(frozen=True)
class Georeference:
    """Where pixels lie: `crs` as WKT or authority text, `transform` as (a, b, c, d, e, f); None where unknown."""

    crs: str | None
    transform: tuple[float, ...] | None

    def __str__(self) -> str:
        corner = f"({self.transform[2]:.6g}, {self.transform[5]:.6g})" if self.transform else "an unknown corner"
        return f"{corner} in {self.crs or 'an unknown CRS'}"

    def agrees_with(self, other: Georeference) -> bool:
        """Tell whether both mean the same place as far as both know it, to a tenth of a pixel at the corner."""
        if self.crs and other.crs and self.crs != other.crs and CRS.from_string(self.crs) != CRS.from_string(other.crs):
            return False
        if self.transform is None or other.transform is None:
            return True
        tenth = abs(self.transform[0]) / 10
        scales = [(self.transform[i], other.transform[i]) for i in (0, 1, 3, 4)]
        corners = [(self.transform[i], other.transform[i]) for i in (2, 5)]
        return all(abs(a - b) <= tenth / 100 for a, b in scales) and all(abs(a - b) <= tenth for a, b in corners)


@dataclass(frozen=True)
class Raster:
    """Pixels `[C, H, W]` as stored, with their no-data mask `valid` `[H, W]` and place."""

    pixels: NDArray[np.uint16]
    valid: NDArray[np.bool_]
    georeference: Georeference


def valid_pixels(pixels: NDArray[np.uint16], nodata: Sequence[float | None]) -> NDArray[np.bool_]:
    """Return `[H, W] bool` of the pixels that hold data, by the rule of this module; `nodata` is per band."""
    named = [pixels[i] == value for i, value in enumerate(nodata) if value is not None]
    if named:
        return np.asarray(~np.logical_or.reduce(named))
    return np.asarray(np.any(pixels != 0, axis=0))


def georeference_of(source: DatasetReader) -> Georeference:
    """Return the CRS and transform of an open raster; an identity transform without CRS counts as unknown."""
    transform = tuple(float(value) for value in source.transform[:6])
    crs = source.crs.to_string() if source.crs else None
    unknown = crs is None and source.transform.is_identity
    return Georeference(crs, None if unknown else transform)


def _read_single_band(name: str, data: bytes) -> tuple[NDArray[Any], float | None, Georeference]:
    """Return the only band of the GeoTIFF `data`, its no-data value and its place; raise `DataError`."""
    if not data:
        raise DataError(name, "an empty file (0 bytes)")
    try:
        with MemoryFile(data, filename=f"{name}.tif") as memory, memory.open(driver="GTiff") as source:
            if source.count != 1:
                raise DataError(name, f"expected one band in the file, found {source.count}")
            return source.read(1), source.nodata, georeference_of(source)
    except RasterioError as error:
        raise DataError(name, f"not a readable TIFF, perhaps truncated ({_reason(error)})") from error


def _reason(error: RasterioError) -> str:
    # rasterio hides GDAL's reason in the cause, and gives bytes in memory a random folder.
    return re.sub(r"/vsimem/[0-9a-f-]+/", "", first_line(error.__cause__ or error))


def open_geotiff(uri: str, what: str) -> DatasetReader:
    """Open the GeoTIFF at `uri` within `storage.gdal_environment()`; raise `DataError` that calls it a `what`."""
    try:
        # Only GTiff: a text file of another driver could make GDAL read from anywhere.
        return rasterio.open(storage.gdal_path(uri), driver="GTiff")
    except RasterioError as error:
        raise unreadable(uri, what, error) from error


def unreadable(uri: str, what: str, error: RasterioError) -> DataError:
    """Return the error of a `what` that GDAL can't open or read."""
    return DataError(uri, f"{what} is not a readable GeoTIFF, perhaps truncated ({_reason(error)})")


def read_chip(files: Mapping[str, bytes]) -> Raster:
    """Return the chip whose bands are the GeoTIFFs `files` (band name -> bytes), bands in the order given.

    Raises `DataError` naming the band for what can't be decoded, is not uint16, or differs in size or place from the
    first; a band without a place fits any.
    """
    bands: list[NDArray[Any]] = []
    nodata: list[float | None] = []
    places: list[Georeference] = []
    for name, data in files.items():
        pixels, value, place = _read_single_band(name, data)
        if pixels.dtype != np.uint16:
            raise DataError(name, f"expected uint16, found {pixels.dtype}")
        bands.append(pixels)
        nodata.append(value)
        places.append(place)
    first = next(iter(files))
    for name, pixels, place in zip(files, bands, places, strict=True):
        if pixels.shape != bands[0].shape:
            raise DataError(name, f"size {_size(pixels)} differs from the {_size(bands[0])} of {first}")
        if not place.agrees_with(places[0]):
            raise DataError(name, f"lies at {place}, but {first} at {places[0]}")
    stack = np.stack(bands)
    return Raster(stack, valid_pixels(stack, nodata), places[0])


def read_label(name: str, data: bytes, chip: Raster) -> NDArray[np.uint8]:
    """Return the label `[H, W] uint8` of `chip`; raise `DataError` for another size, another place or other values."""
    pixels, _, place = _read_single_band(name, data)
    if pixels.shape != chip.valid.shape:
        raise DataError(name, f"label of {_size(pixels)} px for bands of {_size(chip.valid)} px")
    if not place.agrees_with(chip.georeference):
        raise DataError(name, f"lies at {place}, but the bands at {chip.georeference}")
    strange = np.setdiff1d(np.unique(pixels), [LABEL_CLEAR, LABEL_CLOUD, LABEL_IGNORE])
    if strange.size:
        shown = ", ".join(str(value) for value in strange[:5])
        raise DataError(name, f"label values other than 0, 1 and 255: {shown}")
    return pixels.astype(np.uint8)


def _size(pixels: NDArray[Any]) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[0]}"


def mask_tiff(mask: NDArray[np.uint8], georeference: Georeference) -> bytes:
    """Return `mask` `[H, W] uint8` as the bytes of a single-band deflated GeoTIFF."""
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": 1,
        "height": mask.shape[0],
        "width": mask.shape[1],
        "compress": "deflate",
        "crs": georeference.crs,
    }
    if georeference.transform is not None:
        profile["transform"] = rasterio.Affine(*georeference.transform)
    buffer = io.BytesIO()
    with rasterio.open(buffer, "w", **profile) as target:
        target.write(mask, 1)
    return buffer.getvalue()


def band_indexes(source: DatasetReader, bands: Sequence[str]) -> list[int]:
    """Return the 1-based index of each of `bands` in an open raster, by the descriptions of its bands.

    A raster without descriptions is read as B02, B03, B04, B08 if it has just four bands. Raises `DataError`.
    """
    names = list(source.descriptions)
    if not any(names) and source.count == 4:
        names = ["B02", "B03", "B04", "B08"]
    missing = [band for band in bands if band not in names]
    if missing:
        found = ", ".join(str(name) for name in names)
        raise DataError(source.name, f"no band {', '.join(missing)} (bands found: {found})")
    return [names.index(band) + 1 for band in bands]
