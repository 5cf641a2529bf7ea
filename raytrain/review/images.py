"""What the page shows of a tile: pictures of its bands, its masks and values as bytes; made on demand, and kept.

One ranged read of the shards gives all bands and the label of a tile. Must not know HTTP, or who decides what.
"""

from __future__ import annotations

import gzip
import io
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raytrain import storage
from raytrain.errors import DataError
from raytrain.evaluation.tone import TRUE_COLOUR_BANDS, true_colour
from raytrain.imagery.rasters import LABEL_CLEAR, LABEL_CLOUD
from raytrain.review.kept import Kept
from raytrain.review.predicted import PredictedKind, Predictions
from raytrain.scoring.layers import NO_DATA, STEPS
from raytrain.tiles.reader import TileReader

PictureLayer = Literal["true-colour", "false-colour"]
PICTURE_BANDS: dict[PictureLayer, tuple[str, str, str]] = {
    "true-colour": TRUE_COLOUR_BANDS,
    "false-colour": ("B08", "B04", "B03"),
}
"""Which bands are red, green and blue."""
Stretch = Literal["natural", "percentile"]
MaskLayer = Literal["label", "prediction"]
ValueLayer = Literal["probability", "disagreement"]
LARGEST_VALUE: dict[ValueLayer, float] = {"probability": 1.0, "disagreement": 0.5}

PERCENTILES = (2, 98)
JPEG_QUALITY = 92
"""With all colour samples: outlines of clouds are looked at pixel by pixel. 2 ms for 512 px; a PNG takes 25."""
GZIP_LEVEL = 1
TILE_BYTES = 256 * 2**20
"""Of decoded tiles: about a hundred of 512 px with four bands."""
MADE_BYTES = 256 * 2**20
"""Of what was made of them: pictures have some 150 KB, masks some 2."""


@dataclass(frozen=True)
class Pixels:
    """A tile as it was read: bands `[C, H, W]`, label `[H, W]`, and the hash that it was read under."""

    bands: NDArray[np.uint16]
    label: NDArray[np.uint8]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.label.shape
        return height, width

    @property
    def num_bytes(self) -> int:
        """The memory that they take."""
        return self.bands.nbytes + self.label.nbytes


@dataclass(frozen=True)
class Raw:
    """An array of bytes `[H, W] uint8` in gzip, and its size."""

    zipped: bytes
    height: int
    width: int


@dataclass(frozen=True)
class Seen:
    """A tile that is looked at: where `reader` has it, its id, and its hash."""

    reader: TileReader
    position: int
    tile_id: str
    sha256: str


class Images:
    """Pictures, masks and values of the tiles of shards, and of the predictions beside them.

    What is kept goes by the id and the hash of a tile, so that nothing made of other pixels is ever shown for it.
    """

    def __init__(self, predictions: Predictions) -> None:
        self._predictions = predictions
        self._pixels: Kept[Pixels] = Kept(TILE_BYTES, lambda pixels: pixels.num_bytes)
        self._made: Kept[bytes] = Kept(MADE_BYTES, len)
        self._raw: Kept[Raw] = Kept(MADE_BYTES, lambda raw: len(raw.zipped))

    def pixels(self, tile: Seen) -> Pixels:
        """Return the bands and the label of a tile; raise `DataError` where it can't be read or has no label."""

        def read() -> Pixels:
            bands, label = tile.reader.read(tile.position)
            if label is None:
                raise DataError(tile.reader.subject(tile.position), "has no label now; rank again")
            return Pixels(bands, label)

        return self._pixels.get((tile.tile_id, tile.sha256), read)

    def picture(self, tile: Seen, layer: PictureLayer, stretch: Stretch, max_px: int | None = None) -> bytes:
        """Return a JPEG of a tile, no side longer than `max_px`; raise `DataError` where it can't be read."""

        def make() -> bytes:
            chosen = [tile.reader.bands.index(band) for band in PICTURE_BANDS[layer]]
            return _jpeg(_stretched(self.pixels(tile).bands[chosen], stretch), max_px)

        return self._made.get((tile.tile_id, tile.sha256, layer, stretch, max_px), make)

    def mask(self, tile: Seen, layer: MaskLayer) -> Raw:
        """Return the label of a tile, or what was predicted: 0, 1 and 255.

        Raises `DataError` for a mask with other values or of another size, `FileNotFoundError` where there is none.
        """

        def make() -> Raw:
            pixels = self.pixels(tile)
            return zipped(pixels.label if layer == "label" else self._predicted(tile.tile_id, pixels.shape))

        return self._raw.get((tile.tile_id, tile.sha256, layer), make)

    def values(self, tile: Seen, layer: ValueLayer) -> Raw:
        """Return probabilities, or disagreement, as 0 to 254 of the largest value; 255 is no data.

        Raises what `mask` raises.
        """

        def make() -> Raw:
            shape = self.pixels(tile).shape
            values = self._predictions.read_values(layer, self._there(layer, tile.tile_id), shape)
            return zipped(_in_steps(values, LARGEST_VALUE[layer]))

        return self._raw.get((tile.tile_id, tile.sha256, layer), make)

    def _predicted(self, tile_id: str, shape: tuple[int, int]) -> NDArray[np.uint8]:
        found = self._predictions.read_mask(self._there("mask", tile_id), shape)
        strange = np.setdiff1d(np.unique(found), [LABEL_CLEAR, LABEL_CLOUD, NO_DATA])
        if strange.size:
            uri = self._predictions.uri_of("mask", tile_id)
            raise DataError(uri, f"no mask, it has values other than 0, 1 and 255: {strange[:5].tolist()}; score again")
        return found

    def _there(self, kind: PredictedKind, tile_id: str) -> str:
        """Return the id of a tile for which there is such a raster; raise `FileNotFoundError` where there is none."""
        uri = self._predictions.uri_of(kind, tile_id)
        if not storage.exists(uri):
            raise FileNotFoundError(uri)
        return tile_id


def zipped(array: NDArray[np.uint8]) -> Raw:
    """Return `array` `[H, W]` in gzip, row by row; the same pixels give the same bytes."""
    height, width = array.shape
    return Raw(gzip.compress(np.ascontiguousarray(array).tobytes(), GZIP_LEVEL, mtime=0), height, width)


def _in_steps(values: NDArray[np.float32], largest: float) -> NDArray[np.uint8]:
    """Return values, NaN for no data, as 0 to 254 of the largest and 255: what uint8 layers store, in any encoding."""
    is_none = np.isnan(values)
    steps = np.rint(np.clip(np.where(is_none, 0, values) / np.float32(largest), 0, 1) * STEPS)
    return np.where(is_none, NO_DATA, steps).astype(np.uint8)


def _stretched(red_green_blue: NDArray[np.uint16], stretch: Stretch) -> NDArray[np.uint8]:
    """Return `[3, H, W]` reflectance as `[H, W, 3] uint8`: of each of 65,536 values it is known what becomes of it."""
    if stretch == "natural":
        return np.stack([_NATURAL[band] for band in red_green_blue], axis=-1)
    recorded = (red_green_blue != 0).any(0)
    return np.stack([_by_percentiles(band, recorded)[band] for band in red_green_blue], axis=-1)


def _natural() -> NDArray[np.uint8]:
    """Return the tone of all pictures of raytrain as a table, `[65536] uint8`."""
    every = np.broadcast_to(np.arange(2**16, dtype=np.uint16), (3, 1, 2**16))
    return true_colour(every, TRUE_COLOUR_BANDS)[0, :, 0]


_NATURAL = _natural()


def _by_percentiles(band: NDArray[np.uint16], recorded: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return a table from the values of `band` to 0 to 255: linear between `PERCENTILES` of the recorded pixels."""
    counts = np.bincount(band[recorded], minlength=2**16)
    total = int(counts.sum())
    if total == 0:
        return np.zeros(2**16, np.uint8)
    below = np.cumsum(counts)
    low, high = (int(np.searchsorted(below, max(1, total * share / 100))) for share in PERCENTILES)
    ramp = (np.arange(2**16, dtype=np.float32) - low) / max(1, high - low)
    return np.rint(np.clip(ramp, 0, 1) * 255).astype(np.uint8)


def _jpeg(pixels: NDArray[np.uint8], max_px: int | None) -> bytes:
    image = Image.fromarray(pixels)
    if max_px is not None and max(image.size) > max_px:
        factor = max_px / max(image.size)
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        image = image.resize(size, Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


assert set(get_args(PictureLayer)) == set(PICTURE_BANDS)
