"""Pictures of some of what was evaluated: worst, median and best. Must not know how a page is made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raytrain import storage
from raytrain.errors import ConfigError, DataError
from raytrain.evaluation.masks import CountedPair
from raytrain.evaluation.page import Gallery, Picture
from raytrain.evaluation.pictures import (
    AGREEMENT_LEGEND,
    OUTLINE_LEGEND,
    TRUE_COLOUR_BANDS,
    Colour,
    picture_of_chip,
    picture_of_masks,
    read_picture_mask,
    read_picture_source,
)
from raytrain.tiles.archive import holds_chips, open_archive

Source = str | Mapping[str, str]
Legend = tuple[tuple[Colour, str], ...]
PICTURE_PX = 384


def choose(counted: Sequence[CountedPair], each: int) -> list[tuple[str, CountedPair]]:
    """Return up to `each` of the worst, median and best pairs with that word, worst first, none twice.

    Pairs without an IoU (no cloud, none predicted) show nothing and are not chosen.
    """
    ordered = sorted((pair for pair in counted if pair.iou is not None), key=lambda pair: pair.iou or 0.0)
    if len(ordered) <= 3 * each:
        return [("", pair) for pair in ordered]
    middle = (len(ordered) - each) // 2
    groups = (("worst", ordered[:each]), ("median", ordered[middle : middle + each]), ("best", ordered[-each:]))
    return [(word, pair) for word, pairs in groups for pair in pairs]


def find_images(uri: str) -> dict[str, Source]:
    """Return `{id: source}` of the chips or scenes at `uri`, for pictures; raise `ConfigError` where there are none."""
    if holds_chips(uri):
        archive = open_archive(uri, TRUE_COLOUR_BANDS, for_training=False)
        return {chip.chip_id: chip.bands for chip in archive.chips}
    names = [name for name in storage.find(uri) if name.endswith(".tif") and not name.startswith("scene_labels/")]
    if not names:
        raise ConfigError(f"{uri}: no chips and no scenes for the pictures")
    return {storage.name_of(name).removesuffix(".tif"): storage.join(uri, name) for name in names}


def make_gallery(counted: Sequence[CountedPair], images: Mapping[str, Source] | None, each: int = 3) -> Gallery:
    """Return pictures of the chosen pairs: true colour with outlines where `images` has the source, else the masks.

    A source that can't be drawn costs its picture, not the page: the masks are shown, and the caption says why.
    """
    pictures = []
    legends: set[Legend] = set()
    for word, pair in choose(counted, each):
        name = f"{pair.pair.chip_id}, {pair.pair.location}"
        caption = f"{f'{word}: ' if word else ''}{name}, IoU {pair.iou:.3f}"
        source = images.get(pair.pair.chip_id) if images else None
        try:
            png, legend = _draw(pair, source)
        except DataError as error:
            png, legend = _draw(pair, None)
            caption += f" (no true colour: {error.found})"
        legends.add(legend)
        pictures.append(Picture(png, f"Cloud mask of {name}", caption))
    shown = [legend for legend in (OUTLINE_LEGEND, AGREEMENT_LEGEND) if legend in legends]
    return Gallery(pictures, tuple(entry for legend in shown for entry in legend))


def _draw(pair: CountedPair, source: Source | None) -> tuple[bytes, Legend]:
    prediction = read_picture_mask(pair.pair.prediction, PICTURE_PX)
    label = read_picture_mask(pair.pair.label, PICTURE_PX)
    if source is None:
        return picture_of_masks(prediction, label, PICTURE_PX), AGREEMENT_LEGEND
    pixels = read_picture_source(source, TRUE_COLOUR_BANDS, PICTURE_PX)
    if pixels.shape[1:] != label.shape:
        raise DataError(pair.pair.chip_id, "the image is of another shape than the label")
    return picture_of_chip(pixels, TRUE_COLOUR_BANDS, prediction, label, PICTURE_PX), OUTLINE_LEGEND
