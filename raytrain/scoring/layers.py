"""The rasters of a scene as they are stored: mask, probabilities and disagreement, as Cloud Optimized GeoTIFFs.

A scene may be larger than memory: its pixels go into a plain tiled file, in any order, and the COG is made from that.
Its bytes are a function of the pixels and the georeference alone. Must not know where probabilities come from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio import Affine
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.io import DatasetWriter

from raytrain import storage
from raytrain.config import LayerEncoding, MemberName, Settings
from raytrain.errors import first_line
from raytrain.imagery import rasters

Kind = str
"""What a raster shows: one of `KINDS`, or what `member_kind` returns."""
KINDS: tuple[Kind, ...] = ("mask", "probability", "disagreement")
MEMBERS = "members"
"""The folder of the folders of members."""
BLOCK_PX = 512
NO_DATA = rasters.LABEL_IGNORE
STEPS = 254
"""A probability or disagreement in uint8 is 0 to 254 of its largest value; 255 is no data."""

BYTES_OF_ENTRY, BYTES_OF_HEADER = 32, 2**16
"""What a TIFF spends on where a block lies (written once more when it grows), and on everything else, at most."""


def member_kind(name: str) -> Kind:
    """Return the kind of the probability that a member gives by itself."""
    return f"{_OF_MEMBER}{name}"


_OF_MEMBER = "member-"


def layer_folder(kind: Kind) -> str:
    """Return the folder, below a destination, of the rasters of a kind; empty for masks, which lie at its top."""
    if kind.startswith(_OF_MEMBER):
        return f"{MEMBERS}/{kind.removeprefix(_OF_MEMBER)}"
    return "" if kind == "mask" else kind


def layer_key(kind: Kind, item_id: str) -> str:
    """Return the key, below a destination, of the raster of a kind of a chip or a scene."""
    folder = layer_folder(kind)
    return f"{folder}/{item_id}.tif" if folder else f"{item_id}.tif"


@dataclass(frozen=True)
class Layer:
    """How one kind of raster is stored: `value = scale * stored`, `nodata` where a band of the source has none.

    A float32 layer says no data by NaN: what ignores the tag then gets no number either, where -1 would pass for one.
    Deflate's level is 1 but for masks: on probabilities 6 takes twice as long for 1 to 5 % fewer bytes.
    """

    kind: Kind
    description: str
    dtype: Literal["uint8", "float32"]
    nodata: float
    largest: float
    scale: float
    predictor: Literal["NO", "STANDARD", "FLOATING_POINT"]
    level: int
    overviews: Resampling

    def key(self, scene_id: str) -> str:
        """Return the key of the layer of a scene below the destination."""
        return layer_key(self.kind, scene_id)


MASK = Layer("mask", "cloud mask", "uint8", NO_DATA, 1.0, 1.0, "NO", 6, Resampling.mode)


def _of_members(kind: Kind, description: str, largest: float, encoding: LayerEncoding) -> Layer:
    average = Resampling.average
    if encoding == "float32":
        return Layer(kind, description, "float32", math.nan, largest, 1.0, "FLOATING_POINT", 1, average)
    return Layer(kind, description, "uint8", NO_DATA, largest, largest / STEPS, "STANDARD", 1, average)


class Layers(Settings):
    """Which rasters are written beside the mask, and how; `members` are those of the members `member_names`."""

    probability: LayerEncoding = "none"
    disagreement: LayerEncoding = "none"
    members: LayerEncoding = "none"
    member_names: tuple[MemberName, ...] = ()

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds that are written, the mask first; an item has none of a member that was left out for it."""
        asked = {"mask": True, "probability": self.probability != "none", "disagreement": self.disagreement != "none"}
        return (*(kind for kind in KINDS if asked[kind]), *self.member_kinds)

    @property
    def member_kinds(self) -> tuple[Kind, ...]:
        """Those of `kinds` that show a member by itself."""
        return () if self.members == "none" else tuple(map(member_kind, self.member_names))

    @property
    def num_computed(self) -> int:
        """How many layers are computed for `kinds`: the mask is made of the probability."""
        return len({"probability", *self.kinds} - {"mask"})

    def layer(self, kind: Kind) -> Layer:
        """Return how `kind` is stored; it must be one of `kinds`."""
        assert kind in self.kinds
        if kind == "probability":
            return _of_members(kind, "cloud probability", 1.0, self.probability)
        if kind == "disagreement":
            description = "standard deviation of the members' cloud probabilities"
            return _of_members(kind, description, 0.5, self.disagreement)
        if kind in self.member_kinds:
            name = kind.removeprefix(_OF_MEMBER)
            return _of_members(kind, f"cloud probability of the member {name}", 1.0, self.members)
        return MASK

    def temporary_bytes(self, height: int, width: int) -> int:
        """Return how much disk the files of `create_striped` take in all, with overviews: 4/3 of the pixels' bytes.

        Each COG comes beside its file, and is smaller but for noise.
        """
        return sum(_temporary_bytes(self.layer(kind), height, width) for kind in self.kinds)


def encode(layer: Layer, values_HW: NDArray[np.float32], valid_HW: NDArray[np.bool_], threshold: float) -> NDArray[Any]:
    """Return `[H, W]` of what `layer` stores for `values_HW`, its no-data value where `valid_HW` is false.

    `values_HW` are probabilities; for disagreement, population standard deviations. `threshold` is the mask's: it holds
    cloud where the probability reaches it. Raises `ValueError` for a valid value that is not between 0 and the largest.
    """
    low, high = values_HW.min(where=valid_HW, initial=0), values_HW.max(where=valid_HW, initial=0)
    if not (low >= 0 and high <= layer.largest + 0.5 * layer.largest / STEPS):  # NaN fails both
        raise ValueError(f"{layer.kind} between {low} and {high}, expected 0 to {layer.largest:g}")
    if layer.kind == "mask":
        return np.where(valid_HW, (values_HW >= threshold).astype(np.uint8), np.uint8(NO_DATA))
    if layer.dtype == "float32":
        return np.where(valid_HW, values_HW, np.float32(math.nan)).astype(np.float32, copy=False)
    stored = np.rint(np.where(valid_HW, values_HW, np.float32(0)) / np.float32(layer.scale))
    return np.where(valid_HW, stored.astype(np.uint8), np.uint8(NO_DATA))


def steps_of(layer: Layer, stored_HW: NDArray[Any]) -> int:
    """Return the sum of what `encode` returned, in `STEPS`-ths of the layer's largest value; no data counts nothing.

    An integer, so that parts of a scene add up to the same in any order, and the same for either encoding.
    """
    if layer.dtype == "uint8":
        return int(stored_HW.sum(where=stored_HW != NO_DATA, dtype=np.int64))
    steps = np.rint(np.nan_to_num(stored_HW, nan=0.0) / np.float32(layer.largest / STEPS))
    return int(steps.sum(dtype=np.float64))  # whole numbers, exact up to 2^53


def mean_of(layer: Layer, steps: int, valid_px: int) -> float | None:
    """Return the mean value over `valid_px` pixels whose `steps_of` add up to `steps`; None for no pixels."""
    return steps * layer.largest / (STEPS * valid_px) if valid_px else None


def create_striped(
    path: Path, layer: Layer, height: int, width: int, crs: CRS | None, transform: Affine | None
) -> DatasetWriter:
    """Create the file that takes the pixels of a scene, and return it open; close it before `finish_cog`.

    Windows may be written in any order, and again; fastest are whole blocks of `BLOCK_PX`. What is never written is no
    data. It is not compressed, so that a block written twice takes no more room. The palette of a mask is that of
    `rasters.MASK_COLOURS`, but TIFF has no transparency: only no data shows as transparent.
    """
    unknown = transform is None or (crs is None and transform.is_identity)
    target = rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype=layer.dtype,
        count=1,
        height=height,
        width=width,
        crs=crs,
        nodata=layer.nodata,
        tiled=True,
        blockxsize=BLOCK_PX,
        blockysize=BLOCK_PX,
        bigtiff="if_safer",
        **({} if unknown else {"transform": transform}),
    )
    target.set_band_description(1, layer.description)
    if layer.kind == "mask":
        target.write_colormap(1, rasters.MASK_COLOURS)
    elif layer.scale != 1:
        target.scales, target.offsets = (layer.scale,), (0.0,)
    return target


def finish_cog(temporary: Path, target: Path, layer: Layer, threads: int = 1) -> None:
    """Write the pixels of `temporary`, a closed file of `create_striped`, to `target` as a COG.

    The overviews go into `temporary` first: the COG driver would make them in a compressed file of its own, which takes
    up to half as long again. `threads` change nothing but the time; memory is GDAL's cache and little else. Raises
    `OSError` where a file could not be written, `temporary` included.
    """
    storage.limit_gdal_cache()
    with rasterio.Env(GDAL_NUM_THREADS=threads):
        _check_written(temporary)
        try:
            factors = _add_overviews(temporary, layer)
            _check_written(temporary)
            rasterio.shutil.copy(
                str(temporary),
                str(target),
                driver="COG",
                compress="deflate",
                level=layer.level,
                predictor=layer.predictor,
                blocksize=BLOCK_PX,
                overviews="FORCE_USE_EXISTING" if factors else "NONE",
                bigtiff="if_safer",
                num_threads=threads,
            )
        except (RasterioError, CPLE_BaseError, SystemError) as error:  # all three happen on a full disk
            raise OSError(f"{target}: the COG can't be written, perhaps a full disk ({first_line(error)})") from error


def _add_overviews(path: Path, layer: Layer) -> list[int]:
    """Add the overviews to a file of `create_striped`; return by how much each is smaller."""
    with rasterio.open(path, "r+", driver="GTiff") as source:
        factors = _overview_factors(source.height, source.width)
        if factors:
            source.build_overviews(factors, layer.overviews)
    return factors


def _check_written(path: Path) -> None:
    """Raise `OSError` if a block of a closed file, or of its overviews, is not in it.

    GDAL says nothing when a disk is full while it closes a file or makes overviews: such a block would read as no data.
    A file that was closed well has all blocks, those that nobody wrote as no data.
    """
    size = path.stat().st_size
    with rasterio.open(path, driver="GTiff") as source:
        for i, factor in enumerate([1, *source.overviews(1)]):
            level = {"ovr": i - 1} if i else {}
            for x, y in np.ndindex(_blocks(source.width, factor), _blocks(source.height, factor)):
                start, length = (
                    source.get_tag_item(f"BLOCK_{what}_{x}_{y}", "TIFF", bidx=1, **level) for what in ("OFFSET", "SIZE")
                )
                if start is None or int(start) + int(length) > size:
                    raise OSError(f"{path}: not written as a whole, perhaps a full disk")


def _blocks(length_px: int, factor: int) -> int:
    return math.ceil(math.ceil(length_px / factor) / BLOCK_PX)


def _overview_factors(height: int, width: int) -> list[int]:
    """Return by how much each overview is smaller: 2, 4, ... until a block holds all."""
    factors: list[int] = []
    while max(height, width) > BLOCK_PX << len(factors):
        factors.append(2 << len(factors))
    return factors


def _temporary_bytes(layer: Layer, height: int, width: int) -> int:
    """Return the size of the file of a layer with its overviews: whole blocks, and the entries of their places."""
    blocks = sum(_blocks(height, factor) * _blocks(width, factor) for factor in (1, *_overview_factors(height, width)))
    return blocks * (BLOCK_PX**2 * np.dtype(layer.dtype).itemsize + BYTES_OF_ENTRY) + BYTES_OF_HEADER
