"""Chips to tile shards, written by Ray tasks.

A shard's tiles are a function of the listing and the settings, so its bytes do not depend on who writes it or when. The
manifest is written last: without it nothing looks whole.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raytrain import __version__, storage
from raytrain.cluster import session
from raytrain.cluster.tasks import run_tasks
from raytrain.config import Settings, ShardSettings
from raytrain.errors import ConfigError, DataError
from raytrain.imagery import rasters
from raytrain.tiles import format as shards
from raytrain.tiles.archive import Chip, ChipArchive, open_archive, read_chip
from raytrain.tiles.folds import assign_folds
from raytrain.tiles.reader import INDEX, MANIFEST, is_ours, read_manifest
from raytrain.tiles.selection import Selection, select_chips

_WRITTEN = re.compile(rf"^(shard-\d{{5}}\.parquet|{re.escape(INDEX)})$")


class ShardJob(Settings):
    """Which chips to shard, where to, and how; `strict` writes nothing if any chip is bad."""

    src: str
    dst: str
    settings: ShardSettings = ShardSettings()
    selection: Selection = Selection()
    strict: bool = False


@dataclass(frozen=True)
class ShardReport:
    """What came of it: the manifest (None if nothing was written: no chip is good, or one is bad and `strict` is set).

    `problems` are the chips that were left out, each with the reason.
    """

    manifest: dict[str, Any] | None
    problems: list[DataError]
    was_done: bool


@dataclass(frozen=True)
class _ShardWork:
    name: str
    dst: str
    chips: list[Chip]
    settings: ShardSettings
    only_check: bool


@dataclass(frozen=True)
class _ShardResult:
    record: dict[str, Any] | None
    rows: list[dict[str, Any]]
    problems: list[DataError]


def shard(
    job: ShardJob, cluster: session.Cluster, on_progress: Callable[[int, int], None] | None = None
) -> ShardReport:
    """Write the shards, the index and the manifest of `job`; where they stand already, do nothing.

    Raises `ConfigError` if the destination holds shards of other chips or settings.
    """
    archive = select_chips(open_archive(job.src, job.settings.bands), job.selection)
    if not archive.chips:
        return ShardReport(None, archive.problems, was_done=False)
    folds = assign_folds(
        job.settings.folds, {chip.chip_id: chip.row.location for chip in archive.chips}, job.settings.seed
    )
    source = {"uri": job.src, "digest": _source_digest(archive), "folds_digest": _digest(folds)}
    done = _finished(job, source)
    if done is not None:
        return ShardReport(done, _problems_of(done), was_done=True)
    with session.joined(cluster, [job.src, job.dst]):
        remains = _remains_at(job.dst)
        if job.strict:
            checked = list(run_tasks(_write_shard, _plan(job, archive.chips, only_check=True), on_progress))
            problems = [*archive.problems, *(problem for result in checked for problem in result.problems)]
            if problems:
                return ShardReport(None, problems, was_done=False)
        for name in remains:
            storage.remove(storage.join(job.dst, name))
        results = list(run_tasks(_write_shard, _plan(job, archive.chips, only_check=False), on_progress))
    problems = [*archive.problems, *(problem for result in results for problem in result.problems)]
    rows = [row | {"fold": folds[row["tile_id"]]} for result in results for row in result.rows]
    if not rows:
        return ShardReport(None, problems, was_done=False)
    _write_index(job, rows)
    records = [result.record for result in results if result.record is not None]
    manifest = _manifest(job, source, records, rows, problems)
    storage.write_bytes(storage.join(job.dst, MANIFEST), json.dumps(manifest, indent=1).encode())
    return ShardReport(manifest, problems, was_done=False)


def _plan(job: ShardJob, chips: Sequence[Chip], *, only_check: bool) -> list[_ShardWork]:
    size = job.settings.tiles_per_shard
    starts = range(0, len(chips), size)
    return [
        _ShardWork(f"shard-{i:05d}.parquet", job.dst, list(chips[start : start + size]), job.settings, only_check)
        for i, start in enumerate(starts)
    ]


def _write_shard(work: _ShardWork) -> _ShardResult:
    """Read the chips of a shard and write it (a Ray task); a chip that can't be used is a problem of the result."""
    writer = shards.ShardWriter(work.name, work.settings.bands, work.settings.cell_encoding)
    problems: list[DataError] = []
    num_tiles = 0
    for chip in work.chips:
        try:
            tile = read_tile(chip)
        except DataError as error:
            problems.append(error)
            continue
        num_tiles += 1
        if not work.only_check:
            writer.add(tile)
    if work.only_check or not num_tiles:
        return _ShardResult(None, [], problems)
    data, rows = writer.finish()
    storage.write_bytes(storage.join(work.dst, work.name), data)
    record = {"name": work.name, "sha256": storage.sha256_of(data), "bytes": len(data), "num_tiles": num_tiles}
    return _ShardResult(record, rows, problems)


def read_tile(chip: Chip) -> shards.Tile:
    """Return the tile of `chip`: no-data pixels are 0 in every band and 255 in the label. Raises `DataError`."""
    raster = read_chip(chip.chip_id, chip.bands)
    pixels = raster.pixels * raster.valid
    label = None
    cloud_fraction = None
    if chip.label is not None:
        try:
            found = rasters.read_label("label", storage.read_bytes(chip.label), raster)
        except DataError as error:
            raise DataError(chip.chip_id, str(error)) from error
        except FileNotFoundError as error:
            raise DataError(chip.chip_id, f"the label vanished after the listing: {error}") from error
        label = np.where(raster.valid, found, np.uint8(rasters.LABEL_IGNORE))
        known = label != rasters.LABEL_IGNORE
        cloud_fraction = float((label == rasters.LABEL_CLOUD).sum() / known.sum()) if known.any() else None
    return shards.Tile(
        tile_id=chip.chip_id,
        location=chip.row.location,
        taken=chip.row.taken,
        bands=dict(zip(chip.bands, pixels, strict=True)),
        label=label,
        valid_fraction=float(raster.valid.mean()),
        cloud_fraction=cloud_fraction,
        crs=raster.georeference.crs,
        transform=raster.georeference.transform,
        source_uri=chip.source_uri,
    )


def _source_digest(archive: ChipArchive) -> str:
    """Return a hash of what was listed: each good chip with its files' identities, place and time, and each bad one."""
    listed = [[chip.chip_id, chip.row.location, str(chip.row.taken), chip.identity] for chip in archive.chips]
    return _digest([listed, [str(problem) for problem in archive.problems]])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _finished(job: ShardJob, source: dict[str, str]) -> dict[str, Any] | None:
    """Return the manifest that stands at the destination, if it is of this very work; else raise or return None."""
    try:
        manifest = read_manifest(job.dst)
    except ConfigError:
        if storage.exists(storage.join(job.dst, MANIFEST)):
            raise
        return None
    wanted = job.settings.model_dump(mode="json")
    changed = [
        f"{k}: {manifest['settings'].get(k)} -> {v}" for k, v in wanted.items() if manifest["settings"].get(k) != v
    ]
    if manifest["source"]["digest"] != source["digest"]:
        changed.append(f"the chips at {job.src} are not those that the shards were made from")
    elif manifest["source"]["folds_digest"] != source["folds_digest"]:
        changed.append(f"the folds in {job.settings.folds} are not those of the shards")
    if changed:
        raise ConfigError(f"{job.dst} holds other shards ({'; '.join(changed)}); choose another destination")
    return manifest


def _remains_at(dst: str) -> list[str]:
    """Return the names of what a run without an end left behind: there is no manifest, so nobody reads it.

    Raises `ConfigError` if files of these names came from elsewhere.
    """
    names = [name for name in storage.find(dst) if _WRITTEN.match(storage.partial_of(name) or name)]
    for name in names:
        if storage.partial_of(name) is None and not is_ours(storage.join(dst, name)):
            raise ConfigError(f"{dst} holds a {name} that raytrain did not write; choose another destination")
    return names


def _write_index(job: ShardJob, rows: list[dict[str, Any]]) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=shards.index_schema(job.settings.bands)), sink, compression="zstd")
    storage.write_bytes(storage.join(job.dst, INDEX), sink.getvalue().to_pybytes())


def _manifest(
    job: ShardJob,
    source: dict[str, str],
    records: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    problems: list[DataError],
) -> dict[str, Any]:
    return {
        "format_version": shards.FORMAT_VERSION,
        "cell_encoding": job.settings.cell_encoding,
        "bands": shards.band_order(job.settings.bands),
        "num_tiles": len(rows),
        "num_labelled": sum(row["label_bytes"] is not None for row in rows),
        "num_locations": len({row["location"] for row in rows}),
        "bytes": sum(record["bytes"] for record in records),
        "shards": records,
        "settings": job.settings.model_dump(mode="json"),
        "source": source,
        "left_out": [{"subject": problem.subject, "found": problem.found} for problem in problems],
        "versions": {"raytrain": __version__, "pyarrow": version("pyarrow"), "blosc2": version("blosc2")},
    }


def _problems_of(manifest: dict[str, Any]) -> list[DataError]:
    return [DataError(each["subject"], each["found"]) for each in manifest["left_out"]]
