"""Pictures of some of what was scored: true colour, the mask, where members disagree. Always small.

Must not know how a page is made of them, or how the few items were chosen out of all.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from raytrain import storage
from raytrain.errors import DataError, RaytrainError, StoreOutOfReach, first_line
from raytrain.evaluation.page import Gallery, Picture
from raytrain.evaluation.pictures import (
    PREDICTION_COLOUR,
    TRUE_COLOUR_BANDS,
    Colour,
    picture_of_chip,
    picture_of_panels,
    read_picture_layer,
    read_picture_mask,
)
from raytrain.evaluation.plots import shade
from raytrain.imagery.rasters import LABEL_CLOUD, LABEL_IGNORE
from raytrain.imagery.scene_reader import open_scene
from raytrain.scoring.causes import without_queries
from raytrain.scoring.destination import Scoring
from raytrain.scoring.source_again import baseline_again, source_again
from raytrain.scoring.totals import Item, Totals
from raytrain.scoring.work import layers_of

PICTURE_PX = 384
EACH = 3
PICTURES_S = 60.0
"""How long sources are read for pictures; what comes later is shown without true colour."""
DISAGREEMENT_SHOWN = 0.25
"""Disagreement that has the last colour, as has more: members of which a third says cloud have 0.47, most pixels none.
"""
CLEAR_COLOUR, CLOUD_COLOUR, NO_DATA_COLOUR = (40, 44, 52), (240, 240, 240), (120, 124, 132)


def choose(totals: Totals) -> list[tuple[str, Item]]:
    """Return up to nine items with a word each, none twice: by disagreement where it is known, else by cloud."""
    if totals.most_disagreeing:
        groups = [
            ("most disagreement", totals.most_disagreeing),
            ("typical disagreement", totals.typical),
            ("least disagreement", totals.least_disagreeing),
        ]
    else:
        groups = [("most cloud", totals.cloudiest), ("typical", totals.typical), ("least cloud", totals.clearest)]
    chosen: dict[str, tuple[str, Item]] = {}
    for word, items in groups:
        for item in [each for each in items if each.item_id not in chosen][:EACH]:
            chosen[item.item_id] = word, item
    if not chosen:  # all clear, all cloud, or hardly any data
        chosen = {item.item_id: ("largest", item) for item in totals.largest[:EACH]}
    return list(chosen.values())


def make_gallery(
    uri: str, scoring: Scoring, chosen: Sequence[tuple[str, Item]], limit_s: float = PICTURES_S
) -> tuple[Gallery, list[DataError]]:
    """Return pictures of the `chosen` items of the destination `uri`, and which can't be drawn and why.

    A source that can't be read costs its true colour: the mask is shown, and the caption says why. After `limit_s`, or
    once a store does not answer, no more sources are read.
    """
    artist = _Artist(uri, scoring, time.monotonic() + limit_s)
    pictures, problems = [], []
    for word, item in chosen:
        try:
            png, missing = artist.draw(item)
        except (RaytrainError, OSError) as error:
            problems.append(DataError(item.item_id, without_queries(first_line(error))))
            continue
        caption = f"{word}: {item.item_id}, {_numbers(item)}"
        if missing:
            caption += f" (no true colour: {without_queries(missing)})"
        pictures.append(Picture(png, f"{item.item_id}: cloud mask, {_numbers(item)}", caption))
    return Gallery(pictures, tuple(artist.legend), "Some items", artist.caption), problems


def _numbers(item: Item) -> str:
    cloud = "no pixel with data" if item.cloud_fraction is None else f"{item.cloud_fraction:.1%} cloud"
    mean = item.disagreement_mean
    return cloud if mean is None else f"{cloud}, mean disagreement {mean:.4f}"


@dataclass
class _Artist:
    """Draws items until `until` (of a monotonic clock), and knows which colours it used."""

    uri: str
    scoring: Scoring
    until: float
    away: str = ""
    _colours: dict[str, Colour] = field(default_factory=dict)
    _with_disagreement: bool = False

    @property
    def legend(self) -> list[tuple[Colour, str]]:
        """The colours that were used, and what they mean."""
        scale = [(_bytes(0.0), "members agree"), (_bytes(1.0), f"disagreement {DISAGREEMENT_SHOWN:g} or more")]
        return [(colour, text) for text, colour in self._colours.items()] + (scale if self._with_disagreement else [])

    @property
    def caption(self) -> str:
        """What the panels of a picture are."""
        last = ", and the standard deviation of the members' probabilities" if self._with_disagreement else ""
        return f"From left to right: true colour, the same with the mask outlined{last}. All averaged down."

    def draw(self, item: Item) -> tuple[bytes, str]:
        """Return a PNG, and why it has no true colour; raise for an item whose mask can't be read."""
        layers = layers_of(self.scoring)
        mask = read_picture_mask(storage.join(self.uri, layers.layer("mask").key(item.item_id)), PICTURE_PX)
        beside = []
        if "disagreement" in layers.kinds:
            layer = layers.layer("disagreement")
            stored = read_picture_layer(storage.join(self.uri, layer.key(item.item_id)), PICTURE_PX)
            valid = stored != layer.nodata if layer.dtype == "uint8" else ~np.isnan(stored.astype(np.float32))
            beside = [_scaled(stored.astype(np.float32) * layer.scale, valid)]
            self._with_disagreement = True
        try:
            pixels = self._pixels(item, mask.shape)
        except StoreOutOfReach as error:
            self.away = f"a store does not answer: {first_line(error)}"
            return self._masks(mask, beside), self.away
        except (RaytrainError, OSError) as error:
            found = error.found if isinstance(error, DataError) else first_line(error)
            return self._masks(mask, beside), found
        self._colours["cloud by the mask"] = PREDICTION_COLOUR
        return picture_of_chip(pixels, TRUE_COLOUR_BANDS, mask, max_px=PICTURE_PX, beside=beside), ""

    def _pixels(self, item: Item, shape: tuple[int, ...]) -> NDArray[np.uint16]:
        if self.away:
            raise DataError(item.item_id, self.away)
        if time.monotonic() > self.until:
            raise DataError(item.item_id, "the pictures before it took too long")
        source = source_again(item, TRUE_COLOUR_BANDS)
        with open_scene(source, TRUE_COLOUR_BANDS, baseline_again(item, self.scoring.settings.baseline)) as reader:
            missing = [band for band in TRUE_COLOUR_BANDS if band not in reader.bands]
            if missing:
                raise DataError(item.item_id, f"the source has no {', '.join(missing)}")
            if (reader.height, reader.width) != (item.height, item.width):
                found = f"the source is {reader.height} x {reader.width} px now, not what was scored"
                raise DataError(item.item_id, found)
            pixels = reader.read_small(PICTURE_PX).pixels
        assert pixels.shape[1:] == shape, "the mask has the size of its source"
        return pixels

    def _masks(self, mask: NDArray[np.uint8], beside: Sequence[NDArray[np.uint8]]) -> bytes:
        self._colours |= {"cloud": CLOUD_COLOUR, "clear": CLEAR_COLOUR, "no data": NO_DATA_COLOUR}
        picture = np.full((*mask.shape, 3), CLEAR_COLOUR, np.uint8)
        picture[mask == LABEL_CLOUD] = CLOUD_COLOUR
        picture[mask == LABEL_IGNORE] = NO_DATA_COLOUR
        return picture_of_panels([picture, *beside], PICTURE_PX)


def _scaled(values: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return disagreement `[H, W]` in colours `[H, W, 3]`, that of no data where `valid` is not."""
    colours = np.array([_bytes(step / 255) for step in range(256)], np.uint8)
    steps = np.clip(np.nan_to_num(values) / DISAGREEMENT_SHOWN * 255, 0, 255).astype(np.uint8)
    return np.where(valid[..., None], colours[steps], np.array(NO_DATA_COLOUR, np.uint8))


def _bytes(fraction: float) -> Colour:
    red, green, blue, _ = shade(fraction)
    return round(red * 255), round(green * 255), round(blue * 255)
