"""Pictures of some of what was scored: true colour, the mask, where members disagree. Always small.

Must not know how a page is made of them, or how the few items were chosen out of all.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raytrain import storage
from raytrain.errors import DataError, RaytrainError, StoreOutOfReach, first_line
from raytrain.evaluation.gallery import DISAGREEMENT_SCALE, PICTURE_PX, compare
from raytrain.evaluation.page import Comparison, Gallery
from raytrain.evaluation.pictures import MASK_LEGEND, averaged_down, read_picture_mask, read_picture_values
from raytrain.evaluation.tone import TRUE_COLOUR_BANDS
from raytrain.imagery.scene_reader import open_scene
from raytrain.scoring.destination import Scoring
from raytrain.scoring.source_again import baseline_again, source_again
from raytrain.scoring.totals import Item, Totals
from raytrain.scoring.work import layers_of
from raytrain.tiles.reader import TileReader

EACH = 3
PICTURES_S = 60.0
"""How long sources are read for pictures; what comes later is shown without true colour, and later still not at all."""
LARGEST_READ_PX = 150_000_000
"""Pixels of a source that are read for a picture, some seconds of work in which nothing else is heard."""

TOO_LATE = "the pictures before it took too long"


def choose_items(totals: Totals) -> list[tuple[str, Item]]:
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
    uri: str, scoring: Scoring, chosen: Sequence[tuple[str, Item]], archive: str, limit_s: float = PICTURES_S
) -> tuple[Gallery, list[DataError]]:
    """Return pictures of the `chosen` items of `archive` at the destination `uri`, and which can't be drawn and why.

    A source that can't be read costs its true colour: the mask is shown, and the caption says why. So does one of more
    than `LARGEST_READ_PX` without overviews. After `limit_s`, or once a store does not answer, no more sources are
    read, and after twice that no masks; a read that has begun is ended.
    """
    start = time.monotonic()
    artist = _Artist(uri, scoring, archive, start + limit_s, start + 2 * limit_s)
    pictures, problems = [], []
    for word, item in chosen:
        try:
            pictures.append(artist.draw(item, f"{word}: {item.item_id}, {_numbers(item)}"))
        except (RaytrainError, OSError) as error:
            found = error.found if isinstance(error, DataError) and error.subject == item.item_id else first_line(error)
            problems.append(DataError(item.item_id, storage.without_queries(found)))
    scales = (DISAGREEMENT_SCALE,) if "disagreement" in layers_of(scoring).kinds else ()
    return Gallery(pictures, MASK_LEGEND, "Some items", "All averaged down.", scales), problems


def _numbers(item: Item) -> str:
    cloud = "no pixel with data" if item.cloud_fraction is None else f"{item.cloud_fraction:.1%} cloud"
    mean = item.disagreement_mean
    return cloud if mean is None else f"{cloud}, mean disagreement {mean:.4f}"


@dataclass
class _Artist:
    """Draws items until `masks_until`, with their sources until `until`, both of a monotonic clock.

    `away` says why no more sources are read; `tiles` are those of the archive, opened for the first that is drawn.
    """

    uri: str
    scoring: Scoring
    archive: str
    until: float
    masks_until: float
    away: str = ""
    tiles: TileReader | None = None

    def draw(self, item: Item, caption: str) -> Comparison:
        """Return the panels of an item, the caption with why it has no true colour; raise if its mask can't be read."""
        if time.monotonic() > self.masks_until:
            raise DataError(item.item_id, TOO_LATE)
        layers = layers_of(self.scoring)
        mask = read_picture_mask(storage.join(self.uri, layers.layer("mask").key(item.item_id)), PICTURE_PX)
        disagreement = None
        if "disagreement" in layers.kinds:
            key = layers.layer("disagreement").key(item.item_id)
            disagreement = read_picture_values(storage.join(self.uri, key), PICTURE_PX)
        pixels, missing = None, ""
        try:
            pixels = self._pixels(item, mask.shape)
        except StoreOutOfReach as error:
            self.away = missing = f"a store does not answer: {first_line(error)}"
        except (RaytrainError, OSError) as error:
            missing = error.found if isinstance(error, DataError) else first_line(error)
        why = f" (no true colour: {storage.without_queries(missing)})" if missing else ""
        return compare(item.item_id, f"{caption}{why}", mask, None, pixels, disagreement)

    def _pixels(self, item: Item, shape: tuple[int, ...]) -> NDArray[np.uint16]:
        if self.away:
            raise DataError(item.item_id, self.away)
        if time.monotonic() > self.until:
            raise DataError(item.item_id, TOO_LATE)
        if item.kind == "tile":
            return averaged_down(self._tile(item), shape)
        source = source_again(item, TRUE_COLOUR_BANDS, self.archive)
        with open_scene(source, TRUE_COLOUR_BANDS, baseline_again(item, self.scoring.settings.baseline)) as reader:
            missing = [band for band in TRUE_COLOUR_BANDS if band not in reader.bands]
            if missing:
                raise DataError(item.item_id, f"the source has no {', '.join(missing)}")
            if (reader.height, reader.width) != (item.height, item.width):
                found = f"the source is {reader.height} x {reader.width} px now, not what was scored"
                raise DataError(item.item_id, found)
            if (size := reader.small_read_px(PICTURE_PX)) > LARGEST_READ_PX:
                found = f"{size / 1e6:,.0f} Mpx would have to be read, since the source has no fitting overviews"
                raise DataError(item.item_id, found)
            pixels = reader.read_small(PICTURE_PX).pixels
        if pixels.shape[1:] != shape:
            raise DataError(item.item_id, "the mask has other sides than its source")
        return pixels

    def _tile(self, item: Item) -> NDArray[np.uint16]:
        """Return the pixels of a tile of the archive, and of no other shards: a record may name any."""
        if item.source_uri != self.archive:
            raise DataError(item.item_id, f"it is a tile of {item.source_uri}, not of {self.archive}")
        if self.tiles is None:
            self.tiles = TileReader(self.archive, TRUE_COLOUR_BANDS, labels=False)
        at = self.tiles.position(item.item_id)
        if at is None:
            raise DataError(item.item_id, "not among the shards any more")
        pixels, _ = self.tiles.read(at)
        if pixels.shape[1:] != (item.height, item.width):
            found = f"the tile is {pixels.shape[1]} x {pixels.shape[2]} px now, not what was scored"
            raise DataError(item.item_id, found)
        return pixels
