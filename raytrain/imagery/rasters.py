"""Raster reads and writes: bands of a chip or a scene by name, masks, and what counts as no data.

No data is decided once, here: where a file names a no-data value, a pixel is no data if any band has it; where none
does, if every band is 0. What masks and alpha bands leave out has none, either. Must not know shards or models.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader, FilePath, MemoryFile
from rasterio.windows import Window

from raytrain import storage
from raytrain.errors import DataError, first_line
from raytrain.imagery.band_names import COMMON_NAMES, known_bands
from raytrain.imagery.raster_limits import (
    TIFF,
    check_chip_size,
    check_claims,
    check_notes,
    check_tiles,
    files_beside,
)
from raytrain.storage.temporary import temporary_folder

ResultT = TypeVar("ResultT")

storage.limit_gdal_drivers()  # as it is imported: no thread of ours has anything open yet

LABEL_CLEAR, LABEL_CLOUD, LABEL_IGNORE = 0, 1, 255
JPEG_2000 = (b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
"""How its files and its bare codestreams begin."""
HEAD_BYTES = 12
COLOURS = {ColorInterp[name]: COMMON_NAMES[name] for name in ("red", "green", "blue", "nir")}
MASK_COLOURS = {0: (0, 0, 0, 0), 1: (255, 255, 255, 255), 255: (128, 128, 128, 255)}


@dataclass(frozen=True)
class Georeference:
    """Where pixels lie: `crs` as WKT or authority text, `transform` as (a, b, c, d, e, f); None where unknown."""

    crs: str | None
    transform: tuple[float, ...] | None

    def __str__(self) -> str:
        corner = f"({self.transform[2]:.6g}, {self.transform[5]:.6g})" if self.transform else "an unknown corner"
        return f"{corner} in {self.crs or 'an unknown CRS'}"

    def of_rasterio(self) -> tuple[CRS | None, rasterio.Affine | None]:
        """Return what rasterio writes into a raster."""
        crs = None if self.crs is None else CRS.from_string(self.crs)
        return crs, None if self.transform is None else rasterio.Affine(*self.transform)

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


def valid_pixels(pixels: NDArray[np.integer[Any]], nodata: Sequence[float | None]) -> NDArray[np.bool_]:
    """Return `[H, W] bool` of the pixels that hold data, by the rule of this module; `nodata` is per band."""
    named = [(i, value) for i, value in enumerate(nodata) if value is not None]
    valid = np.full(pixels.shape[1:], bool(named))
    for i, value in named:
        valid &= pixels[i] != value
    if not named:
        for plane in pixels:
            valid |= plane != 0
    return valid


def holdable(value: float | None, dtype: str) -> float | None:
    """Return a no-data value that pixels of `dtype`, an integer type, may have; None for any other: it names none."""
    if value is None or not float(value).is_integer():
        return None
    limits = np.iinfo(dtype)
    return value if limits.min <= value <= limits.max else None


def own_mask(
    source: DatasetReader, index: int, window: Window | None = None, shape: tuple[int, int] | None = None
) -> NDArray[np.bool_] | None:
    """Return `[H, W] bool` of where a raster says that a band has data: by a mask, internal or `.msk`, or by alpha.

    With a `shape` it is shrunk to it. None where it has neither.
    """
    mask: NDArray[Any]
    if MaskFlags.per_dataset in source.mask_flag_enums[index - 1]:
        mask = source.read_masks(index, window=window, out_shape=shape)
    elif ColorInterp.alpha in source.colorinterp:  # GDAL takes none where a value of no data is named
        mask = source.read(source.colorinterp.index(ColorInterp.alpha) + 1, window=window, out_shape=shape)
    else:
        return None
    has_data: NDArray[np.bool_] = mask != 0
    return has_data


def georeference_of(source: DatasetReader) -> Georeference:
    """Return the CRS and transform of an open raster; an identity transform without CRS counts as unknown."""
    transform = tuple(float(value) for value in source.transform[:6])
    crs = source.crs.to_string() if source.crs else None
    unknown = crs is None and source.transform.is_identity
    return Georeference(crs, None if unknown else transform)


class _SingleBand(NamedTuple):
    """The only band of a GeoTIFF: its pixels, value of no data, mask where it has one, and place."""

    pixels: NDArray[Any]
    nodata: float | None
    mask: NDArray[np.bool_] | None
    place: Georeference


def _read_single_band(name: str, data: bytes) -> _SingleBand:
    """Return the only band of the GeoTIFF `data`; raise `DataError`."""
    if not data:
        raise DataError(name, "an empty file (0 bytes)")
    try:
        with MemoryFile(data, filename=f"{name}.tif") as memory, memory.open(driver="GTiff") as source:
            if source.count != 1:
                raise DataError(name, f"expected one band in the file, found {source.count}")
            check_claims(source, name)
            check_chip_size(source, name)
            return _SingleBand(source.read(1), source.nodata, own_mask(source, 1), georeference_of(source))
    except RasterioError as error:
        raise DataError(name, f"not a readable TIFF, perhaps truncated ({_reason(error)})") from error


def _reason(error: RasterioError) -> str:
    # rasterio hides GDAL's reason in the cause, and gives bytes in memory, file objects and copies random names.
    copy = rf"{re.escape(tempfile.gettempdir())}/raytrain-[\w-]+/copy\.jp2"
    names = rf"/vsimem/[0-9a-f-]+/|/vsipythonfilelike/[0-9a-f/-]+|{copy}"
    return re.sub(names, "", first_line(error.__cause__ or error))


def is_jp2(uri: str) -> bool:
    """Tell whether the file at `uri` is JPEG 2000, by its name."""
    return uri.partition("?")[0].lower().endswith(".jp2")


@contextlib.contextmanager
def open_geotiff(uri: str, what: str) -> Iterator[DatasetReader]:
    """Open the GeoTIFF or JPEG 2000 file at `uri` for the body, within `storage.gdal_environment()`, in one thread.

    Beside a local file, a world file, `.aux.xml` and `.msk` count as GDAL has it. Raises `DataError` that calls it a
    `what` where it is neither; errors of a store or a server that GDAL met, in opening or in the body, come out as they
    are (`PermissionError`, `FileNotFoundError`, `StoreOutOfReach`).
    """
    if storage.is_local(uri):
        with _opened_local(storage.path_of(uri), uri, what) as source:
            yield source
        return
    failures: list[Exception] = []
    with storage.open_ranged(uri) as ranged:
        driver = _driver(ranged.read(HEAD_BYTES))
        with _for_gdal(ranged, driver, failures) as file:
            name = file if isinstance(file, str) else file.name
            try:
                with _opened(file, driver, uri, what) as source:
                    check_claims(source, storage.shown(uri))
                    yield source
            except (RasterioError, DataError) as error:
                if failures:
                    raise failures[0] from error
                if isinstance(error, DataError) and error.subject == name:  # GDAL's name for it, not ours
                    raise DataError(storage.shown(uri), error.found) from error
                raise
        if failures:  # GDAL may make do without what it could not read
            raise failures[0]


@contextlib.contextmanager
def _for_gdal(ranged: storage.RangedFile, driver: str, failures: list[Exception]) -> Iterator[str | FilePath]:
    """Yield what GDAL opens for a remote file: the file by its ranges, or a copy of it on disk for JPEG 2000.

    Of that, each window is looked for from the start, tile by tile, which would fetch a file anew for each.
    """
    if driver == "GTiff":
        with contextlib.closing(_NamedForGdal(_FileForGdal(ranged, failures))) as named:
            yield named
        return
    ranged.seek(0)
    with temporary_folder() as folder:
        path = Path(folder) / "copy.jp2"
        with path.open("wb") as copy:
            shutil.copyfileobj(ranged, copy, storage.ranged.BLOCK_BYTES)
        yield str(path)


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:  # GDAL says it again, by the name that the caller gave it
        return b""


def _driver(head: bytes) -> str:
    """Return the driver for a file that begins so; never any other: text could make GDAL read from anywhere."""
    return "JP2OpenJPEG" if head.startswith(JPEG_2000) else "GTiff"


def _opened_local(path: str, uri: str, what: str) -> DatasetReader:
    if path.startswith("/vsi"):  # GDAL's own file systems: archives, addresses, parts of files
        raise DataError(uri, f"{what} has a name that GDAL takes for an address; move it to another folder")
    with storage.gdal_finds_beside():
        check_notes(path)
        for beside in files_beside(path):
            _check_beside(beside, uri)
        source = _opened(path, _driver(_head(path)), uri, what)
        try:
            check_claims(source, uri)
        except DataError:
            source.close()
            raise
        return source


def _check_beside(path: str, uri: str) -> None:
    """Raise `DataError` for a file beside the raster at `uri` that is none of its own: GDAL would open anything."""
    kind = "mask" if path.lower().endswith(".msk") else "smaller copy"
    if storage.is_special(path):  # to open a pipe is to wait for ever
        raise DataError(path, f"a device or a pipe, expected a GeoTIFF that is the {kind} of {uri}")
    check_notes(path)
    if not _head(path).startswith(TIFF):
        raise DataError(path, f"not a GeoTIFF, expected one that is the {kind} of {uri}")
    with _opened(path, "GTiff", path, kind) as source:
        check_claims(source, path)


def _opened(name: str | FilePath, driver: str, uri: str, what: str) -> DatasetReader:
    if driver == "JP2OpenJPEG":
        check_tiles(str(name), storage.shown(uri))
    try:
        return rasterio.open(name, driver=driver)
    except RasterioError as error:
        raise unreadable(storage.shown(uri), what, error) from error


class _NamedForGdal(FilePath):  # type: ignore[misc]  # rasterio has no types
    """A file object under a name by which GDAL opens it.

    Not by `opener=`: that installs a file system for each data set, in a table of GDAL that other threads read without
    a lock; within 60,000 opens by 8 threads the process crashed (rasterio 1.4.4, GDAL 3.10.3; see rasterio#3636). This
    way all have one file system, whose state the interpreter's lock guards; it will go with rasterio 2.0.
    """

    def __init__(self, file: _FileForGdal) -> None:
        super(FilePath, self).__init__(file)  # FilePath's own adds only that it will go


class _FileForGdal:
    """A view of a file with a position of its own; the first error is kept in `failures`, since GDAL can't pass it on.

    After an error there is nothing to read. Each time that GDAL opens it, it asks for another view in fsspec's words:
    `fs.open(path, mode)`.
    """

    mode = "rb"

    def __init__(self, file: storage.RangedFile, failures: list[Exception]) -> None:
        self.fs, self.path = self, file.name
        self._file, self._failures = file, failures
        self._position = 0

    def open(self, path: str, mode: str) -> _FileForGdal:
        """Return another view, at the start."""
        return _FileForGdal(self._file, self._failures)

    def read(self, size: int = -1) -> bytes:
        """Return bytes as the file does, none after an error."""
        data = self._tried(lambda: self._file.read_at(self._position, size), b"")
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position as the file does; leave it after an error."""
        if whence == os.SEEK_CUR:
            offset, whence = self._position + offset, os.SEEK_SET
        self._position = self._tried(lambda: self._file.seek(offset, whence), self._position)
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def _tried(self, operation: Callable[[], ResultT], otherwise: ResultT) -> ResultT:
        if self._failures:
            return otherwise
        try:
            return operation()
        except Exception as error:  # noqa: BLE001  # below are frames of C++
            self._failures.append(error)
            return otherwise


def unreadable(uri: str, what: str, error: RasterioError) -> DataError:
    """Return the error of a `what` that GDAL can't open or read."""
    kind = "JPEG 2000 file" if is_jp2(uri) else "GeoTIFF"
    return DataError(uri, f"{what} is not a readable {kind}, perhaps truncated ({_reason(error)})")


def read_chip(files: Mapping[str, bytes]) -> Raster:
    """Return the chip whose bands are the GeoTIFFs `files` (band name -> bytes), bands in the order given.

    Raises `DataError` naming the band for what can't be decoded, is not uint16, or differs in size or place from the
    first; a band without a place fits any.
    """
    bands = {name: _read_single_band(name, data) for name, data in files.items()}
    first = next(iter(files))
    for name, band in bands.items():
        if band.pixels.dtype != np.uint16:
            raise DataError(name, f"expected uint16, found {band.pixels.dtype}")
        if band.pixels.shape != bands[first].pixels.shape:
            found, expected = _size(band.pixels), _size(bands[first].pixels)
            raise DataError(name, f"size {found} differs from the {expected} of {first}")
        if not band.place.agrees_with(bands[first].place):
            raise DataError(name, f"lies at {band.place}, but {first} at {bands[first].place}")
    stack = np.stack([band.pixels for band in bands.values()])
    valid = valid_pixels(stack, [band.nodata for band in bands.values()])
    for band in bands.values():
        if band.mask is not None:
            valid &= band.mask
    return Raster(stack, valid, bands[first].place)


def read_label(name: str, data: bytes, chip: Raster) -> NDArray[np.uint8]:
    """Return the label `[H, W] uint8` of `chip`; raise `DataError` for another size, another place or other values."""
    label = _read_single_band(name, data)
    pixels, place = label.pixels, label.place
    if pixels.shape != chip.valid.shape:
        raise DataError(name, f"label of {_size(pixels)} px for bands of {_size(chip.valid)} px")
    if not place.agrees_with(chip.georeference):
        raise DataError(name, f"lies at {place}, but the bands at {chip.georeference}")
    strange = np.setdiff1d(np.unique(pixels), [LABEL_CLEAR, LABEL_CLOUD, LABEL_IGNORE])
    if strange.size:
        shown = ", ".join(str(value) for value in strange[:5])
        raise DataError(name, f"label values other than 0, 1 and 255: {shown}")
    return pixels.astype(np.uint8)


def cloud_fraction(label: NDArray[np.uint8]) -> float | None:
    """Return the share of cloud in the pixels of a label that are not ignored; None where all of them are."""
    known = label != LABEL_IGNORE
    return float((label == LABEL_CLOUD).sum() / known.sum()) if known.any() else None


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
    """Return the 1-based index of each of `bands` in an open raster; raise `DataError` that names those it lacks."""
    names = band_names(source)
    missing = [band for band in bands if band not in names]
    if missing:
        raise DataError(source.name, f"no band {', '.join(missing)} (bands found: {', '.join(map(str, names))})")
    return [names.index(band) + 1 for band in bands]


def band_names(source: DatasetReader) -> list[str | None]:
    """Return what the bands of an open raster are, by `named_bands`; of just four without names B02, B03, B04, B08."""
    names = named_bands(source)
    return ["B02", "B03", "B04", "B08"] if source.count == 4 and not any(names) else names


def named_bands(source: DatasetReader) -> list[str | None]:
    """Return what an open raster says that its bands are, None for those of which it says nothing.

    That is by their descriptions, see `known_bands`; without one, by a colour interpretation that no other band has. Of
    four bands without any, three of which are red, green and blue, the other one is B08, unless it is an alpha band.
    """
    names = known_bands(source.descriptions)
    colours = [COLOURS.get(colour) for colour in source.colorinterp]
    if source.count == 4 and not any(names) and sorted(map(str, colours)) == ["B02", "B03", "B04", "None"]:
        other = colours.index(None)
        colours[other] = None if source.colorinterp[other] == ColorInterp.alpha else "B08"
    return [
        colour if name is None and colours.count(colour) == 1 and colour not in names else name
        for name, colour in zip(names, colours, strict=True)
    ]
