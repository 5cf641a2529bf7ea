"""Units of work: some chips, a scene, a block of a large scene, or the putting together of its blocks.

Plain records that travel as JSON. Which chips share a unit, and how a scene is cut, changes no output. Must not know
how a unit is done.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from raytrain import storage
from raytrain.config import PlainName, Settings
from raytrain.errors import encodable
from raytrain.imagery.scene_files import FileVersion, SceneSource
from raytrain.scoring.blending import Region
from raytrain.scoring.records import Record

CHIPS_PER_UNIT = 16
BLOCK_ALIGNMENT_PX = 512
"""Blocks begin where a tile of the mask begins."""


class ChipSource(Settings):
    """One chip of an archive: its id, its files by band, what changes when one of them does.

    `versions` are what its files were, by URI, where these are local; of others `identity` is a listing's.
    """

    chip_id: PlainName
    files: dict[str, str]
    identity: str
    versions: dict[str, FileVersion] = Field(default_factory=dict)


class Unit(Settings):
    """What one worker does in one go. A block has the box that is its own, an assembly all boxes of its scene."""

    kind: Literal["chips", "scene", "block", "assembly"]
    chips: tuple[ChipSource, ...] = ()
    scene: SceneSource | None = None
    regions: tuple[Region, ...] = ()

    @property
    def unit_id(self) -> str:
        """A name for people and logs, the same in every run."""
        if self.scene is None:
            ids = "\0".join(chip.chip_id for chip in self.chips)
            return f"chips-{hashlib.sha256(ids.encode()).hexdigest()[:16]}"
        place = f"-{self.regions[0].row}-{self.regions[0].column}" if self.kind == "block" else ""
        return f"{self.kind}-{self.scene.scene_id}{place}"

    @property
    def item_ids(self) -> tuple[str, ...]:
        """The ids of the chips, or of the scene."""
        return (self.scene.scene_id,) if self.scene is not None else tuple(chip.chip_id for chip in self.chips)


Said = Annotated[str, BeforeValidator(encodable)]
"""Text about data of others, which may have names that are no Unicode."""


class Problem(Settings):
    """Why a chip or scene can't be scored: what was found in the data, or what went wrong every time."""

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
    batch: list[ChipSource] = []
    for chip in chips:
        batch.append(chip)
        if len(batch) == CHIPS_PER_UNIT:
            yield Unit(kind="chips", chips=tuple(batch))
            batch = []
    if batch:
        yield Unit(kind="chips", chips=tuple(batch))


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
