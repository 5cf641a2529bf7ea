"""Scenes to masks: a scene in one go, or block by block and then put together, to the same bytes either way.

The values of a block stand below the destination until the scene is put together of them, under a key that names what
they were made from and with. Memory is that of one row of windows as wide as a block; a scene's layers lie on a local
disk until they are one Cloud Optimized GeoTIFF each. Must not know who asks for a scene.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from pydantic import ValidationError
from rasterio.io import DatasetWriter
from rasterio.windows import Window

from raytrain import storage
from raytrain.config import Settings
from raytrain.imagery.scene_files import SceneSource
from raytrain.imagery.scene_reader import SceneReader, open_scene
from raytrain.scoring.ahead import OneThread
from raytrain.scoring.blending import Region, blended_strips
from raytrain.scoring.layers import NO_DATA, Kind, Layer, create_striped, encode, finish_cog, mean_of, steps_of
from raytrain.scoring.records import Output, Record
from raytrain.scoring.sources import check_unchanged
from raytrain.scoring.units import shown_item, shown_source
from raytrain.storage.temporary import temporary_folder

if TYPE_CHECKING:  # it imports torch, which the driver does without
    from raytrain.scoring.work import Work

BLOCKS = "blocks"
RECORD_BYTES = 2**20
"""Of the record of a block: a hash of each layer."""
ROWS_COPIED = 512
"""Rows of a block in memory at a time, as it is put into its scene: those of a tile."""


class Counts(Settings):
    """What is counted of a scene's layers: pixels with data, those of them that are cloud, steps of disagreement."""

    valid_px: int = 0
    cloud_px: int = 0
    disagreement_steps: int = 0

    def plus(self, layer: Layer, stored: NDArray[Any]) -> Counts:
        """Return the counts with those of a piece of `layer`, as it is stored, added; the order changes nothing."""
        if layer.kind == "mask":
            valid, cloud = int(np.count_nonzero(stored != NO_DATA)), int(np.count_nonzero(stored == 1))
            return self.model_copy(update={"valid_px": self.valid_px + valid, "cloud_px": self.cloud_px + cloud})
        if layer.kind == "disagreement":
            return self.model_copy(update={"disagreement_steps": self.disagreement_steps + steps_of(layer, stored)})
        return self


class BlockRecord(Settings):
    """A finished block: the hash of each layer."""

    layers: dict[Kind, str]


@dataclass(frozen=True)
class OpenScene:
    """A scene that is read, in a thread of its own, and the members that score it."""

    source: SceneSource
    reader: SceneReader
    left_out: tuple[str, ...]
    thread: OneThread

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return self.reader.height

    @property
    def width(self) -> int:
        """Columns of pixels."""
        return self.reader.width

    def read(self, row: int, column: int, height: int, width: int) -> Any:
        """Return the pixels of a window."""
        return self.thread.run(lambda: self.reader.read(row, column, height, width))


@contextmanager
def opened(scene: SceneSource, work: Work) -> Iterator[OpenScene]:
    """Open a scene with the bands that the members need; raise `DataError` for one that they can't be given."""
    with OneThread("reader") as thread, ExitStack() as stack:
        context = open_scene(scene, work.nets.bands, work.scoring.settings.baseline)
        # GDAL's handles belong to the thread that opened them.
        reader = thread.run(context.__enter__)
        stack.push(lambda *error: thread.run(lambda: context.__exit__(*error)))
        yield OpenScene(scene, reader, work.members_left_out(scene.scene_id, reader.bands), thread)


def missing_blocks(source: OpenScene, blocks: Sequence[Region], work: Work) -> tuple[Region, ...]:
    """Return those of `blocks` that are still to be done: what removes blocks may have stopped between two objects."""
    names, kinds = set(storage.find(_blocks_uri(source.source, work))), work.layer_numbers(source.reader.bands)

    def wanted(block: Region) -> set[str]:
        name = _block_name(block)
        return {f"{name}.json", *(f"{name}-{kind}.tif" for kind in kinds)}

    return tuple(block for block in blocks if not wanted(block) <= names)


def score_block(scene: SceneSource, block: Region, work: Work) -> None:
    """Score a block of a scene; its layers stand at the destination, and are recorded, when this returns.

    Raises `SourceChanged`, before anything is written.
    """
    folder = _blocks_uri(scene, work)
    with opened(scene, work) as source, temporary_folder() as temporary:
        paths, _ = _write_layers(source, block, work, Path(temporary))
        check_unchanged(scene)
        hashes = {}
        for kind, path in paths.items():
            hashes[kind] = _sha256(path)
            storage.write_file(storage.join(folder, f"{_block_name(block)}-{kind}.tif"), path)
    record = BlockRecord(layers=hashes)
    storage.write_bytes(storage.join(folder, f"{_block_name(block)}.json"), record.model_dump_json().encode())


def score_whole(source: OpenScene, work: Work) -> Record:
    """Score a scene in one go and return its record; its outputs stand then. Raises `SourceChanged`, before they do."""
    whole = Region(row=0, column=0, height=source.height, width=source.width)
    with temporary_folder() as temporary:
        paths, counts = _write_layers(source, whole, work, Path(temporary))
        return _finish(source, paths, counts, work)


def assemble(source: OpenScene, blocks: Sequence[Region], work: Work) -> Record:
    """Put the layers of a scene together from its blocks and return its record; its outputs stand then.

    Raises `SourceChanged`, before they do, and `FileNotFoundError` if a block is gone or damaged. `remove_blocks`
    removes them, once the record stands.
    """
    folder, counts = _blocks_uri(source.source, work), Counts()
    with temporary_folder() as temporary:
        paths = {kind: Path(temporary) / f"{kind}.tif" for kind in work.layer_numbers(source.reader.bands)}
        with ExitStack() as stack:
            targets = {kind: stack.enter_context(_striped(path, kind, source, work)) for kind, path in paths.items()}
            for block in blocks:
                for kind, target in targets.items():
                    piece = Path(temporary) / "piece.tif"
                    _fetch(folder, block, kind, piece)
                    counts = _copy(piece, block, target, work.layers.layer(kind), counts)
        return _finish(source, paths, counts, work)


def remove_blocks(scene: SceneSource, destination: str) -> None:
    """Remove all blocks of a scene, of whatever settings."""
    storage.remove_below(storage.join(destination, BLOCKS, scene.scene_id), persistent=True)


def remove_all_blocks(destination: str, but: Collection[str]) -> None:
    """Remove the blocks of all scenes but those whose ids are given."""
    folder = storage.join(destination, BLOCKS)
    for scene_id in {name.partition("/")[0] for name in storage.find(folder)}.difference(but):
        storage.remove_below(storage.join(folder, scene_id), persistent=True)
    storage.remove_empty_folder(folder)


def _write_layers(source: OpenScene, region: Region, work: Work, folder: Path) -> tuple[dict[Kind, Path], Counts]:
    """Write the layers of a region into local files, by kind."""
    settings, counts = work.scoring.settings, Counts()
    numbers = work.layer_numbers(source.reader.bands)
    paths = {kind: folder / f"{kind}.tif" for kind in numbers}
    with ExitStack() as stack:
        targets = {
            kind: stack.enter_context(_striped(path, kind, source, work, region)) for kind, path in paths.items()
        }
        for strip in blended_strips(source, source.reader.bands, region, work.nets, settings):
            box = Window(0, strip.row - region.row, region.width, len(strip.valid))
            for kind, target in targets.items():
                layer = work.layers.layer(kind)
                values = encode(layer, strip.layers[numbers[kind]], strip.valid, settings.threshold)
                target.write(values, 1, window=box)
                counts = counts.plus(layer, values)
    return paths, counts


def _striped(path: Path, kind: Kind, source: OpenScene, work: Work, region: Region | None = None) -> DatasetWriter:
    """Open the local file of a layer for writing, of the size of `region`, or of the whole scene."""
    height, width = (region.height, region.width) if region is not None else (source.height, source.width)
    return create_striped(path, work.layers.layer(kind), height, width, *source.reader.georeference.of_rasterio())


def _fetch(folder: str, block: Region, kind: Kind, target: Path) -> None:
    """Copy a layer of a block into a local file, piece by piece: it may be larger than memory.

    One that is not what the block's record says is to be done again: raises `FileNotFoundError`.
    """
    uri, record_uri = (storage.join(folder, f"{_block_name(block)}{end}") for end in (f"-{kind}.tif", ".json"))
    with storage.open_ranged(uri) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file, storage.ranged.BLOCK_BYTES)
    if _sha256(target) != _recorded(record_uri).layers.get(kind):
        storage.remove(record_uri)
        raise FileNotFoundError(f"{uri}: damaged, not what its record says; the block is done again")


def _recorded(uri: str) -> BlockRecord:
    """Return the record of a block; one that is torn, or too large for one, says nothing of any layer."""
    try:
        return BlockRecord.model_validate_json(storage.read_bytes(uri, RECORD_BYTES))
    except (ValidationError, storage.TooLarge):
        return BlockRecord(layers={})


def _copy(piece: Path, block: Region, target: Any, layer: Layer, counts: Counts) -> Counts:
    """Copy a block's `layer` into that of its scene, by rows of tiles; return `counts` with it added."""
    with rasterio.open(piece, driver="GTiff") as source:  # its record lies beside it, where others may write, too
        for row in range(0, block.height, ROWS_COPIED):
            rows = min(ROWS_COPIED, block.height - row)
            values = source.read(1, window=Window(0, row, block.width, rows))
            target.write(values, 1, window=Window(block.column, block.row + row, block.width, rows))
            counts = counts.plus(layer, values)
    return counts


def _finish(source: OpenScene, paths: dict[Kind, Path], counts: Counts, work: Work) -> Record:
    """Turn the finished local layers into outputs of the destination, the mask last, and return the scene's record."""
    scene, reader = source.source, source.reader
    check_unchanged(scene)
    work.remove_maps(scene.scene_id, source.left_out)
    outputs: dict[str, Output] = {}
    for kind in sorted(paths, key=lambda kind: kind == "mask"):
        cog = paths[kind].with_suffix(".cog.tif")
        finish_cog(paths[kind], cog, work.layers.layer(kind))
        paths[kind].unlink()
        outputs[kind] = work.put_file(scene.scene_id, kind, cog)
    record = Record(
        item_id=scene.scene_id,
        kind="scene",
        source_uri=shown_source(scene),
        source_item_uri=shown_item(scene),
        identity=scene.identity,
        settings_digest=work.digest,
        outputs=outputs,
        height=source.height,
        width=source.width,
        crs=reader.georeference.crs,
        transform=reader.georeference.transform,
        datetime=reader.datetime or work.scoring.settings.datetime,
        valid_px=counts.valid_px,
        cloud_px=counts.cloud_px,
        disagreement_mean=(
            mean_of(work.layers.layer("disagreement"), counts.disagreement_steps, counts.valid_px)
            if "disagreement" in outputs
            else None
        ),
        members_left_out=source.left_out,
        shift=reader.conversion.shift,
        shift_rule=reader.conversion.rule,
        notes=reader.notes,
    )
    return work.with_item(record)


def _blocks_uri(scene: SceneSource, work: Work) -> str:
    """Return the folder of a scene's blocks: its name holds what they are made from and with."""
    digest = hashlib.sha256(f"{scene.identity} {work.digest} {work.scoring.settings.block_px}".encode()).hexdigest()
    return storage.join(work.destination, BLOCKS, scene.scene_id, digest[:16])


def _block_name(block: Region) -> str:
    return f"{block.row}-{block.column}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
