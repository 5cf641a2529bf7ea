"""Chips to tile shards, written by Ray tasks.

Pixels stay with the tasks; the driver holds the list of chips. The manifest is written last: without it nothing looks
whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from raytrain import storage
from raytrain.cluster import metrics, session
from raytrain.cluster.tasks import run_tasks
from raytrain.config import Settings, ShardSettings
from raytrain.errors import ConfigError, DataError, WorkNotFinished
from raytrain.imagery.baseline import doubt
from raytrain.tiles.archive import Chip, ChipArchive, open_archive
from raytrain.tiles.folds import assign_folds
from raytrain.tiles.ingest import ShardWork, check_shard, chip_facts, write_manifest, write_shard
from raytrain.tiles.parts import ShardPart, Standing, discard, remove_parts, standing_at, write_index
from raytrain.tiles.reader import MANIFEST, read_manifest
from raytrain.tiles.selection import Selection, select_chips

OnProgress = Callable[[int, int], None]


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

    `problems` are the chips that were left out, each with the reason; `nodes` are the ids of the Ray nodes that did the
    work, none of them if it `was_done`.
    """

    manifest: dict[str, Any] | None
    problems: list[DataError]
    was_done: bool
    nodes: frozenset[str] = frozenset()

    @property
    def warning(self) -> str | None:
        """Why the values may not be what the settings say they are."""
        return None if self.manifest is None else self.manifest["source"]["doubt"]


def shard(job: ShardJob, cluster: session.Cluster, on_progress: OnProgress | None = None) -> ShardReport:
    """Write the shards, the index and the manifest of `job`; where they stand already, do nothing.

    Work that was cut off goes on. Raises `ConfigError` if the destination holds shards of other chips or settings, and
    `WorkNotFinished` if chips changed while they were read: the same command reads those again.
    """
    if job.dst == job.src:
        raise ConfigError(f"{job.dst}: the shards would stand among the chips; choose another destination")
    archive = _chosen(job)
    if not archive.chips:
        return ShardReport(None, archive.problems, was_done=False)
    folds = assign_folds(
        job.settings.folds,
        [chip.chip_id for chip in archive.chips],
        [chip.row.location for chip in archive.chips],
        job.settings.seed,
    )
    source = {"uri": job.src, "digest": _source_digest(archive), "folds_digest": _folds_digest(archive.chips, folds)}
    done = _finished(job, source)
    if done is not None:
        remove_parts(job.dst)  # where a run was killed between its last two steps
        return ShardReport(done, _problems_of(done), was_done=True)
    with session.joined(cluster, [job.src, job.dst]):
        standing = standing_at(job.dst)
        if job.strict:
            problems = [*archive.problems, *_check(job, archive.chips, folds, standing, on_progress)]
            if problems:
                return ShardReport(None, problems, was_done=False)
        return _write(job, archive, folds, source, standing, on_progress)


def _chosen(job: ShardJob) -> ChipArchive:
    return select_chips(open_archive(job.src, job.settings.bands), job.selection)


def _write(
    job: ShardJob,
    archive: ChipArchive,
    folds: list[int],
    source: dict[str, Any],
    standing: Standing,
    on_progress: OnProgress | None,
) -> ShardReport:
    """Write all shards, then the index, then the manifest."""
    total = _num_shards(job, archive.chips)
    results = []
    for part, node in run_tasks(_write_on_node, _plan(job, archive.chips, folds, standing), total, on_progress):
        _count_chips(job.dst, part)
        results.append((part, node))
    parts = [part for part, _ in results]
    problems = [*archive.problems, *(DataError(*each) for part in parts for each in part.problems)]
    archive.chips.clear()  # the second list is as large
    if _source_digest(_chosen(job)) != source["digest"]:
        raise WorkNotFinished(f"{job.src}: chips changed while they were read; the same command reads those again")
    for name in standing.leftovers(part.name for part in parts):
        storage.remove(storage.join(job.dst, name))
    if not any(part.record for part in parts):
        discard(job.dst)
        return ShardReport(None, problems, was_done=False)
    totals = write_index(job.dst, job.settings.bands, parts)
    num_dark = sum(part.facts["num_dark"] for part in parts)
    source |= {"num_dark": num_dark, "doubt": doubt(num_dark, totals["num_tiles"], job.settings.baseline)}
    manifest = write_manifest(job.dst, job.settings, source, parts, problems, totals)
    return ShardReport(manifest, problems, was_done=False, nodes=frozenset(node for _, node in results))


def _count_chips(destination: str, part: ShardPart) -> None:
    good = 0 if part.record is None else part.record["num_tiles"]
    metrics.count("raytrain_shard_chips", good, destination=destination, outcome="good")
    metrics.count("raytrain_shard_chips", len(part.problems), destination=destination, outcome="bad")


def _check(
    job: ShardJob, chips: Sequence[Chip], folds: list[int], standing: Standing, on_progress: OnProgress | None
) -> list[DataError]:
    work = _plan(job, chips, folds, standing)
    return [each for found in run_tasks(check_shard, work, _num_shards(job, chips), on_progress) for each in found]


def _num_shards(job: ShardJob, chips: Sequence[Chip]) -> int:
    return -(-len(chips) // job.settings.tiles_per_shard)


def _plan(job: ShardJob, chips: Sequence[Chip], folds: list[int], standing: Standing) -> Iterator[ShardWork]:
    size = job.settings.tiles_per_shard
    for i in range(_num_shards(job, chips)):
        box = slice(i * size, (i + 1) * size)
        yield standing.work(ShardWork(f"shard-{i:05d}.parquet", job.dst, list(chips[box]), folds[box], job.settings))


def _write_on_node(work: ShardWork) -> tuple[ShardPart, str]:
    """Write a shard and say where (a Ray task)."""
    return write_shard(work), ray.get_runtime_context().get_node_id()


def _source_digest(archive: ChipArchive) -> str:
    """Return a hash of what was listed: each good chip with its files' identities, place and time, and each bad one."""
    digest = hashlib.sha256()
    for chip in archive.chips:
        digest.update(json.dumps(chip_facts(chip)).encode())
    for problem in archive.problems:
        digest.update(str(problem).encode())
    return digest.hexdigest()


def _folds_digest(chips: Sequence[Chip], folds: list[int]) -> str:
    digest = hashlib.sha256()
    for chip, fold in zip(chips, folds, strict=True):
        digest.update(f"{chip.chip_id} {fold}\n".encode())
    return digest.hexdigest()


def _finished(job: ShardJob, source: dict[str, Any]) -> dict[str, Any] | None:
    """Return the manifest that stands at the destination, if it is of this very work; else raise or return None."""
    try:
        manifest = read_manifest(job.dst)
    except ConfigError:
        if storage.exists(storage.join(job.dst, MANIFEST)):
            raise
        return None
    if "parent" in manifest:  # whose chips and settings are those of the first shards, but not its labels
        raise ConfigError(
            f"{job.dst} holds shards that raytrain review apply made of those at {manifest['parent']['uri']}; choose "
            "another destination"
        )
    wanted = job.settings.model_dump(mode="json")
    changed = [
        f"{k}: {manifest['settings'].get(k)} -> {v}" for k, v in wanted.items() if manifest["settings"].get(k) != v
    ]
    if manifest["source"]["digest"] != source["digest"]:
        changed.append(f"the chips at {job.src} are not those that the shards were made from")
    elif manifest["source"]["folds_digest"] != source["folds_digest"]:
        changed.append(f"the folds in {job.settings.folds} are not those of the shards")
    if job.strict and manifest["left_out"]:
        changed.append(f"made without --strict, {len(manifest['left_out'])} chips are left out")
    if changed:
        raise ConfigError(f"{job.dst} holds other shards ({'; '.join(changed)}); choose another destination")
    return manifest


def _problems_of(manifest: dict[str, Any]) -> list[DataError]:
    return [DataError(each["subject"], each["found"]) for each in manifest["left_out"]]
