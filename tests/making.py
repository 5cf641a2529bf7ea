"""Shards made without Ray, of tiles drawn at random or of the chips of an archive; a member that trains in seconds."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from raytrain import storage
from raytrain.config import CellEncoding, MemberSettings, ShardSettings, change
from raytrain.recipes import members
from raytrain.scoring.manifest import EnsembleManifest, TrainedMember
from raytrain.scoring.manifest import write_manifest as write_ensemble
from raytrain.tiles.archive import Chip, open_archive
from raytrain.tiles.folds import assign_folds
from raytrain.tiles.format import ShardWriter, Tile, index_schema
from raytrain.tiles.ingest import ShardWork, write_manifest, write_shard
from raytrain.tiles.parts import ShardPart, standing_at, write_index
from raytrain.tiles.reader import read_manifest, shards_digest
from raytrain.training.checkpoint_files import read_checkpoint
from raytrain.training.checkpoints import TrainingState, restore_state, take_snapshot, write_checkpoint
from raytrain.training.models import build_model

BANDS = ("B02", "B03", "B04", "B08", "B11")


def make_tile(i: int, shape: tuple[int, int], *, labelled: bool = True) -> Tile:
    generator = np.random.default_rng(i)
    return Tile(
        tile_id=f"tile{i}",
        location=f"place{i % 2}",
        taken=datetime(2020, 4, 29, tzinfo=UTC) if i % 2 else None,
        bands={band: generator.integers(0, 65536, shape).astype(np.uint16) for band in BANDS},
        label=generator.integers(0, 2, shape).astype(np.uint8) if labelled else None,
        valid_fraction=1.0,
        cloud_fraction=0.5 if labelled else None,
        crs="EPSG:32636" if i % 2 else None,
        transform=(10.0, 0.0, 3e5, 0.0, -10.0, 5e6) if i % 2 else None,
        source_uri=f"s3://bucket/tile{i}",
    )


def write_tiles(
    uri: str | Path,
    tiles: list[Tile],
    encoding: CellEncoding,
    tiles_per_shard: int = 1000,
    bands: tuple[str, ...] = BANDS,
) -> None:
    """Write tiles of `bands`, alternately in folds 0 and 1."""
    records, rows = [], []
    for start in range(0, len(tiles), tiles_per_shard):
        writer = ShardWriter(f"shard-{len(records):05d}.parquet", bands, encoding)
        for tile in tiles[start : start + tiles_per_shard]:
            writer.add(tile)
        data, found = writer.finish()
        name = found[0]["shard"]
        storage.write_bytes(storage.join(str(uri), name), data)
        records.append({"name": name, "sha256": storage.sha256_of(data), "bytes": len(data), "num_tiles": len(found)})
        rows += found
    sink = pa.BufferOutputStream()
    rows = [row | {"fold": i % 2} for i, row in enumerate(rows)]
    pq.write_table(pa.Table.from_pylist(rows, schema=index_schema(bands)), sink)
    index = sink.getvalue().to_pybytes()
    storage.write_bytes(storage.join(str(uri), "index.parquet"), index)
    manifest = {
        "format_version": 1,
        "cell_encoding": encoding,
        "bands": list(bands),
        "shards": records,
        "index": {"bytes": len(index), "sha256": hashlib.sha256(index).hexdigest()},
        "settings": {},
        "source": {"folds_digest": ""},
        "left_out": [],
    }
    storage.write_bytes(storage.join(str(uri), "manifest.json"), json.dumps(manifest).encode())


def plan_chips(chips: Path | str, folder: Path | str, settings: ShardSettings) -> list[ShardWork]:
    """Return the work of each shard of an archive, with what stands of it."""
    archive = open_archive(str(chips), settings.bands)
    ids, places = [chip.chip_id for chip in archive.chips], [chip.row.location for chip in archive.chips]
    folds = assign_folds(settings.folds, ids, places, settings.seed)
    standing = standing_at(str(folder))
    size = settings.tiles_per_shard

    def work(i: int, start: int) -> ShardWork:
        some: list[Chip] = archive.chips[start : start + size]
        return ShardWork(f"shard-{i:05d}.parquet", str(folder), some, folds[start : start + size], settings)

    return [standing.work(work(i, start)) for i, start in enumerate(range(0, len(ids), size))]


def finish(folder: Path | str, settings: ShardSettings, parts: list[ShardPart]) -> None:
    totals = write_index(str(folder), settings.bands, parts)
    write_manifest(str(folder), settings, {"folds_digest": ""}, parts, [], totals)


def shard_chips(chips: Path | str, folder: Path | str, settings: ShardSettings) -> None:
    """Write the shards of an archive."""
    finish(folder, settings, [write_shard(work) for work in plan_chips(chips, folder, settings)])


def tiny_member(name: str = "small-effnet-4b-20k", **changes: object) -> MemberSettings:
    """Return a small member cut down to what trains in seconds: three epochs of batches of four crops of 32 px."""
    tiny = {"epochs": 3, "crop_px": 32, "crops_per_tile": 1, "global_batch": 4, "decoder_channels": [8, 8, 8, 4, 4]}
    return change(members((name,))[0], {**tiny, **changes})


def save_to(folder: Path, state: TrainingState, settings: MemberSettings) -> None:
    """Save the state of a run as the checkpoint `folder`, while training waits."""
    write_checkpoint(str(folder), take_snapshot(state, settings))


def restore_from(folder: Path, state: TrainingState, settings: MemberSettings) -> None:
    """Bring a fresh state to where the checkpoint `folder` stands."""
    restore_state(read_checkpoint(str(folder)), state, settings)


def make_ensemble(
    folder: Path,
    names: Sequence[str] = ("small-byob-3b", "small-effnet-4b-20k"),
    folds: Sequence[int] = (0,),
    shards: str | None = None,
    **changes: object,
) -> str:
    """Write an ensemble of small members with random weights, always the same ones, and return its URI.

    It says of itself that it was trained on `shards`, by default on some that are nowhere.
    """
    torch.manual_seed(0)
    trained = []
    for fold, settings in itertools.product(folds, members(tuple(names))):
        member = change(settings, {"decoder_channels": [8, 8, 8, 4, 4], **changes})
        net = build_model(member, with_encoder_weights=False)
        key = f"{member.name}-fold{fold}/weights.safetensors"
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        save_file(net.state_dict(), folder / key)
        sha256 = storage.sha256_of((folder / key).read_bytes())
        trained.append(
            TrainedMember(name=member.name, fold=fold, weights=key, sha256=sha256, settings=member, score=None, epoch=1)
        )
    digest = "d" if shards is None else shards_digest(read_manifest(shards))
    trained_on = {"shards": shards or "s", "shards_digest": digest}
    manifest = EnsembleManifest(raytrain_version="0", members=tuple(trained), **trained_on)
    write_ensemble(str(folder), manifest)
    return str(folder)
