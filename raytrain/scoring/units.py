"""Units of work: some chips or tiles, a scene, a block of a large scene, or the putting together of its blocks.

Plain records that travel as JSON. Which chips or tiles share a unit, and how a scene is cut, changes no output. Must
not know how a unit is done.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, Field

from raytrain import storage
from raytrain.config import PlainName, Settings
from raytrain.errors import encodable
from raytrain.imagery.scene_files import FileVersion, SceneSource
from raytrain.scoring.blending import Region
from raytrain.scoring.records import Record

ITEMS_PER_UNIT = 16
"""Of chips, and of tiles."""
BLOCK_ALIGNMENT_PX = 512
"""Blocks begin where a tile of the mask begins."""
ItemT = TypeVar("ItemT")


class ChipSource(Settings):
    """One chip of an archive: its id, its files by band, what changes when one of them does.

    `versions` are what its files were, by URI, where these are local; of others `identity` is a listing's.
    """

    chip_id: PlainName
    files: dict[str, str]
    identity: str
    versions: dict[str, FileVersion] = Field(default_factory=dict)


class TileSource(Settings):
    """One tile of a set of shards: its id, where the index has it, its place on Earth, what changes when it does.

    `identity` is that of `tile_identity`.
    """

    tile_id: PlainName
    position: int
    identity: str
    crs: str | None = None
    transform: tuple[float, ...] | None = None


class ShardsSource(Settings):
    """The shards that tiles are of, as they were listed: where, a hash of their manifest, the bands to read of them."""

    uri: str
    manifest_digest: str
    bands: tuple[str, ...]


class Unit(Settings):
    """What one worker does in one go. A block has the box that is its own, an assembly all boxes of its scene.

    Tiles are those of `shards`; where these are scored out of fold, all are for the nets of `fold`.
    """

    kind: Literal["chips", "tiles", "scene", "block", "assembly"]
    chips: tuple[ChipSource, ...] = ()
    tiles: tuple[TileSource, ...] = ()
    shards: ShardsSource | None = None
    fold: int | None = None
    scene: SceneSource | None = None
    regions: tuple[Region, ...] = ()

    @property
    def unit_id(self) -> str:
        """A name for people and logs, the same in every run."""
        if self.scene is None:
            return f"{self.kind}-{hashlib.sha256(chr(0).join(self.item_ids).encode()).hexdigest()[:16]}"
        place = f"-{self.regions[0].row}-{self.regions[0].column}" if self.kind == "block" else ""
        return f"{self.kind}-{self.scene.scene_id}{place}"

    @property
    def item_ids(self) -> tuple[str, ...]:
        """The ids of the chips or tiles, or of the scene."""
        return tuple(item_id for item_id, _ in self.sources)

    @property
    def sources(self) -> tuple[tuple[str, str], ...]:
        """The id of each chip or tile, or of the scene, with the URI that stands for it."""
        if self.scene is not None:
            return ((self.scene.scene_id, shown_source(self.scene)),)
        if self.shards is not None:
            return tuple((tile.tile_id, self.shards.uri) for tile in self.tiles)
        return tuple((chip.chip_id, folder_of(chip)) for chip in self.chips)

    def of_one_item(self) -> tuple[Unit, ...]:
        """Return units of one chip or tile each that are this one together; any other unit is its own."""
        chips = [self.model_copy(update={"chips": (chip,)}) for chip in self.chips]
        tiles = [self.model_copy(update={"tiles": (tile,)}) for tile in self.tiles]
        return (*chips, *tiles) or (self,)


Said = Annotated[str, BeforeValidator(encodable)]
"""Text about data of others, which may have names that are no Unicode."""


class Problem(Settings):
    """Why a chip, tile or scene can't be scored: what was found in the data, or what went wrong every time."""

    item_id: Said
    source_uri: Said
    found: Said


class Answer(Settings):
    """What came of a unit: records of finished items, problems of the data; for a scene too large, its blocks.

    `changed` are items whose source is no more what was listed: neither finished nor bad, the next run lists them anew.
    `missing` are the blocks that are still to be done, of all `blocks`. `entry` is the object of the ledger that holds
    the records. `pixels` were computed in `seconds`; `network_s` went by inside the worker's nets so far, over all of
    its units.
    """

    records: tuple[Record, ...] = ()
    entry: str | None = None
    problems: tuple[Problem, ...] = ()
    changed: tuple[Problem, ...] = ()
    blocks: tuple[Region, ...] = ()
    missing: tuple[Region, ...] = ()
    pixels: int = 0
    seconds: float = 0.0
    network_s: float = 0.0


def units_of_chips(chips: Iterable[ChipSource]) -> Iterator[Unit]:
    """Yield units of chips, in the order given."""
    for batch in _batches(chips):
        yield Unit(kind="chips", chips=batch)


def units_of_tiles(tiles: Iterable[TileSource], shards: ShardsSource, fold: int | None) -> Iterator[Unit]:
    """Yield units of tiles of `shards`, in the order given, for the nets of `fold` if there is one."""
    for batch in _batches(tiles):
        yield Unit(kind="tiles", tiles=batch, shards=shards, fold=fold)


def _batches(items: Iterable[ItemT]) -> Iterator[tuple[ItemT, ...]]:
    rest = iter(items)
    while batch := tuple(itertools.islice(rest, ITEMS_PER_UNIT)):
        yield batch


def tile_identity(pixels: str, crs: str | None, transform: Sequence[float] | None, fold: int | None) -> str:
    """Return what changes when the outputs of a tile do: its pixels, its place, the fold of the nets out of fold.

    `pixels` is `TileReader.pixels_identity`, which no label changes.
    """
    place = None if transform is None else [float(value) for value in transform]
    return hashlib.sha256(repr((pixels, crs, place, fold)).encode()).hexdigest()[:32]


def blocks_of(height_px: int, width_px: int, block_px: int) -> tuple[Region, ...]:
    """Return the blocks of a scene, row by row: as few as have sides of at most `block_px`, of about one size."""
    rows, columns = _cuts(height_px, block_px), _cuts(width_px, block_px)
    return tuple(
        Region(row=top, column=left, height=bottom - top, width=right - left)
        for top, bottom in itertools.pairwise(rows)
        for left, right in itertools.pairwise(columns)
    )


def _cuts(length_px: int, block_px: int) -> list[int]:
    count = -(-length_px // block_px)
    step = -(-length_px // (count * BLOCK_ALIGNMENT_PX)) * BLOCK_ALIGNMENT_PX
    return [*range(0, length_px, step), length_px]


def folder_of(chip: ChipSource) -> str:
    """Return the URI that stands for a chip: the folder of its files."""
    return next(iter(chip.files.values())).rsplit("/", 1)[0]


def shown_source(scene: SceneSource) -> str:
    """Return the URI that stands for a scene: its STAC item, or else its first file; without secrets."""
    return shown_item(scene) or storage.shown(next(iter(scene.files.values())).uri)


def shown_item(scene: SceneSource) -> str | None:
    """Return the URI of a scene's STAC item without secrets; None where it has none.

    Of an item that has no URI of its own, `#` and its id stay behind that of its document.
    """
    if scene.item_uri is None:
        return None
    shown, mark = storage.shown(scene.item_uri), f"#{scene.scene_id}"
    return shown + mark if scene.item_uri.endswith(mark) and not shown.endswith(mark) else shown
