"""Pictures to look at: true colour, masks, where two differ, where members disagree; always small.

Must not know which chips are worth a look, or the page that shows them.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader

from raytrain import storage
from raytrain.errors import DataError
from raytrain.evaluation.page import Colour
from raytrain.evaluation.plots import scale_colours
from raytrain.evaluation.tone import TRUE_COLOUR_BANDS, true_colour
from raytrain.imagery.rasters import LABEL_CLOUD, LABEL_IGNORE, band_indexes, open_geotiff, unreadable

MAX_PX = 512
GAP_PX = 8
LINE_PX = 2
JPEG_QUALITY = 85

PREDICTION_COLOUR: Colour = (255, 60, 0)
LABEL_COLOUR: Colour = (0, 170, 255)
CLOUD_COLOUR: Colour = (240, 240, 240)
CLEAR_COLOUR: Colour = (40, 44, 52)
NO_DATA_COLOUR: Colour = (120, 124, 132)
OUTLINE_LEGEND: tuple[tuple[Colour, str], ...] = (
    (PREDICTION_COLOUR, "predicted cloud"),
    (LABEL_COLOUR, "labelled cloud"),
)
MASK_LEGEND: tuple[tuple[Colour, str], ...] = (
    (CLOUD_COLOUR, "cloud"),
    (CLEAR_COLOUR, "clear"),
    (NO_DATA_COLOUR, "no data"),
)
# Found, missed and false in colours that differ in lightness too, for eyes that confuse red and green.
AGREEMENT_LEGEND: tuple[tuple[Colour, str], ...] = (
    (CLOUD_COLOUR, "cloud in both"),
    (LABEL_COLOUR, "missed: only in the label"),
    (PREDICTION_COLOUR, "false: only in the prediction"),
    (CLEAR_COLOUR, "clear in both"),
    (NO_DATA_COLOUR, "ignored: no label"),
)
DISAGREEMENT_LARGEST = 0.5
"""The largest standard deviation of probabilities: half of the members say cloud, half clear."""
DISAGREEMENT_COLOURS: tuple[Colour, ...] = scale_colours(15)
"""The colours of 0 to `DISAGREEMENT_LARGEST`, in equal steps."""


def outline(mask: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return `[H, W] bool`: the cloud pixels (1) of `mask` with a neighbour above, below or beside that is none.

    What lies outside the picture is unknown, so its border is no outline.
    """
    cloud = mask == LABEL_CLOUD
    around = np.pad(cloud, 1, mode="edge")
    inside = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return np.asarray(cloud & ~inside)


def picture_of_chip(
    pixels: NDArray[np.uint16],
    bands: Sequence[str],
    prediction: NDArray[np.uint8],
    label: NDArray[np.uint8] | None = None,
    max_px: int = MAX_PX,
) -> bytes:
    """Return a PNG of two panels: true colour, and the same with the prediction outlined, and the label if given.

    `pixels` is `[C, H, W]`, the masks `[H, W]`. A panel is at most `max_px` wide and high and has a margin of
    `LINE_PX`, so that an area of cloud that reaches the border has a closed line, and a chip all in cloud a frame. A
    small chip is enlarged by a whole number. The lines are in the colours of `OUTLINE_LEGEND`. Raises `ConfigError` as
    `true_colour` does.
    """
    if any(mask is not None and mask.shape != pixels.shape[1:] for mask in (prediction, label)):
        raise ValueError(f"masks must have the shape of the pixels, {pixels.shape[1:]}")
    chip = _fitted(Image.fromarray(true_colour(pixels, bands)), max_px)
    plain = np.pad(chip, ((LINE_PX, LINE_PX), (LINE_PX, LINE_PX), (0, 0)), mode="edge")
    drawn = plain.copy()
    if label is not None:
        # Around the labelled cloud, where the prediction's line runs inside: equal masks show both lines.
        drawn[_line(~_cloud_with_margin(label, max_px))] = LABEL_COLOUR
    drawn[_line(_cloud_with_margin(prediction, max_px))] = PREDICTION_COLOUR
    return _png([plain, drawn])


def true_colour_panel(pixels: NDArray[np.uint16], bands: Sequence[str], max_px: int = MAX_PX) -> bytes:
    """Return a JPEG of `pixels` `[C, H, W]`, as large as a panel of `picture_of_chip` without its margin.

    Raises `ConfigError` as `true_colour` does.
    """
    buffer = io.BytesIO()
    image = Image.fromarray(_fitted(Image.fromarray(true_colour(pixels, bands)), max_px))
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return buffer.getvalue()


def mask_panel(mask: NDArray[np.uint8], max_px: int = MAX_PX) -> bytes:
    """Return a PNG of a mask `[H, W]`, in the colours of `MASK_LEGEND`; the size is as in `true_colour_panel`."""
    mask = _fitted_mask(mask, max_px)
    return _palette_png(np.select([mask == LABEL_CLOUD, mask != LABEL_IGNORE], [0, 1], 2), MASK_LEGEND)


def agreement_panel(prediction: NDArray[np.uint8], label: NDArray[np.uint8], max_px: int = MAX_PX) -> bytes:
    """Return a PNG of two masks `[H, W]` laid over each other, in the colours of `AGREEMENT_LEGEND`.

    The size is as in `true_colour_panel`.
    """
    if prediction.shape != label.shape:
        raise ValueError(f"masks must have one shape, found {prediction.shape} and {label.shape}")
    prediction, label = _fitted_mask(prediction, max_px), _fitted_mask(label, max_px)
    predicted, labelled = prediction == LABEL_CLOUD, label == LABEL_CLOUD
    cases = [label == LABEL_IGNORE, labelled & predicted, labelled, predicted]
    return _palette_png(np.select(cases, [4, 0, 1, 2], 3), AGREEMENT_LEGEND)


def disagreement_panel(values: NDArray[np.float32], max_px: int = MAX_PX) -> bytes:
    """Return a PNG of the members' disagreement `[H, W]`, 0 to `DISAGREEMENT_LARGEST`; NaN is no data.

    The colours are `DISAGREEMENT_COLOURS`; the size is as in `true_colour_panel`.
    """
    values = _fitted(Image.fromarray(np.asarray(values, np.float32)), max_px)
    steps = len(DISAGREEMENT_COLOURS)
    fractions = np.nan_to_num(values / DISAGREEMENT_LARGEST)
    indexes = np.where(np.isnan(values), steps, np.clip(fractions * steps, 0, steps - 1))
    return _palette_png(indexes, [*((colour, "") for colour in DISAGREEMENT_COLOURS), (NO_DATA_COLOUR, "")])


def picture_shape(source: DatasetReader, max_px: int = MAX_PX) -> tuple[int, int]:
    """Return the height and width in which a raster is read for a picture: no side longer than `max_px`."""
    shrink = max(1.0, max(source.shape) / max_px)
    return max(1, round(source.height / shrink)), max(1, round(source.width / shrink))


def read_picture_source(
    source: str | Mapping[str, str], bands: Sequence[str] = TRUE_COLOUR_BANDS, max_px: int = MAX_PX
) -> NDArray[np.uint16]:
    """Return `bands` as `[C, h, w] uint16`, averaged down so that no side is longer than `max_px`.

    `source` is the URI of a scene with all bands, or the URIs of a chip's bands by name. A file with overviews is read
    from them; without, GDAL passes over all of it but holds no more than its block cache. Raises `DataError` for what
    can't be read or has no such band.
    """
    if isinstance(source, str):
        return np.asarray(_read_small(source, bands, max_px, Resampling.average), np.uint16)
    missing = [band for band in bands if band not in source]
    if missing:
        raise DataError(next(iter(source.values()), ""), f"no band {', '.join(missing)} (found: {', '.join(source)})")
    found = [_read_small(source[band], None, max_px, Resampling.average)[0] for band in bands]
    if any(band.shape != found[0].shape for band in found):
        raise DataError(source[bands[0]], "the bands differ in size")
    return np.stack(found).astype(np.uint16)


def averaged_down(pixels: NDArray[np.uint16], shape: tuple[int, ...]) -> NDArray[np.uint16]:
    """Return `pixels` `[C, H, W]` as `[C, *shape]`, each the mean of what it covers; those of `shape` as they are."""
    if pixels.shape[1:] == shape:
        return pixels
    size = shape[1], shape[0]
    planes = [Image.fromarray(band.astype(np.float32)).resize(size, Image.Resampling.BOX) for band in pixels]
    return np.asarray(np.rint(np.stack([np.asarray(plane) for plane in planes])), np.uint16)


def read_picture_mask(uri: str, max_px: int = MAX_PX) -> NDArray[np.uint8]:
    """Return a mask as `[h, w] uint8`, of the size that `read_picture_source` gives, by the nearest pixel."""
    return np.asarray(_read_small(uri, None, max_px, Resampling.nearest)[0], np.uint8)


def read_picture_values(uri: str, max_px: int = MAX_PX) -> NDArray[np.float32]:
    """Return a layer of scoring (probability, disagreement) as `[h, w] float32`, NaN where there is no data.

    The size is that of `read_picture_source`, and so is what it raises.
    """
    with storage.gdal_environment(), open_geotiff(uri, "layer") as source:
        try:
            shape = (1, *picture_shape(source, max_px))
            stored = source.read([1], out_shape=shape, resampling=Resampling.average, masked=True)[0]
        except RasterioError as error:
            raise unreadable(uri, "layer", error) from error
        values = stored.astype(np.float32) * np.float32(source.scales[0])
        return np.asarray(values.filled(np.float32(np.nan)), np.float32)


def _read_small(uri: str, bands: Sequence[str] | None, max_px: int, how: Resampling) -> NDArray[np.generic]:
    """Return the named bands, or the first, as `[C, h, w]`."""
    with storage.gdal_environment(), open_geotiff(uri, "image") as source:
        indexes = [1] if bands is None else band_indexes(source, bands)
        try:
            return np.asarray(
                source.read(indexes, out_shape=(len(indexes), *picture_shape(source, max_px)), resampling=how)
            )
        except RasterioError as error:
            raise unreadable(uri, "image", error) from error


def _fitted(image: Image.Image, max_px: int) -> NDArray[Any]:
    """Return the image as an array, shrunk to `max_px` or enlarged by the largest whole number that stays below it."""
    longest = max(image.size)
    factor = max_px / longest if longest > max_px else max_px // longest
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    shrinking = Image.Resampling.NEAREST if image.mode == "L" else Image.Resampling.BOX
    return np.array(image.resize(size, shrinking if factor < 1 else Image.Resampling.NEAREST))


def _fitted_mask(mask: NDArray[np.uint8], max_px: int) -> NDArray[np.uint8]:
    return np.asarray(_fitted(Image.fromarray(mask), max_px), np.uint8)


def _cloud_with_margin(mask: NDArray[np.uint8], max_px: int) -> NDArray[np.bool_]:
    return np.pad(_fitted_mask(mask, max_px) == LABEL_CLOUD, LINE_PX)


def _line(area: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the outline of `area` `[H, W] bool`, `LINE_PX` wide: a thinner one is lost where a page shrinks it."""
    line = np.zeros_like(area)
    for _ in range(LINE_PX):
        line |= outline((area & ~line).astype(np.uint8))
    return line


def _palette_png(indexes: NDArray[Any], legend: Sequence[tuple[Colour, str]]) -> bytes:
    """Return `[H, W]` indexes of a legend's colours as a PNG that stores no more than these."""
    image = Image.fromarray(indexes.astype(np.uint8))
    image.putpalette([channel for colour, _ in legend for channel in colour])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _png(panels: Sequence[NDArray[np.uint8]]) -> bytes:
    """Return panels of one size side by side; the gaps are transparent, to be of the page's colour."""
    height, width = panels[0].shape[:2]
    sheet = Image.new("RGBA", (len(panels) * (width + GAP_PX) - GAP_PX, height))
    for i, panel in enumerate(panels):
        sheet.paste(Image.fromarray(panel), (i * (width + GAP_PX), 0))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
