"""Shards, an ensemble or a scored archive hashed again, by Ray tasks, and held against what was recorded of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from raytrain import storage
from raytrain.cluster import session
from raytrain.cluster.tasks import run_tasks
from raytrain.config import Settings
from raytrain.errors import ConfigError, DataError
from raytrain.scoring import ledger
from raytrain.scoring.catalogue import catalogue_differences
from raytrain.scoring.destination import SCORING_FILE
from raytrain.scoring.ledger import Standing
from raytrain.scoring.manifest import ENSEMBLE_FILE, ensemble_folder, read_manifest
from raytrain.scoring.records import Output
from raytrain.scoring.verify import LedgerRead, unknown_outputs, verify_outputs
from raytrain.tiles.reader import MANIFEST
from raytrain.tiles.reader import read_manifest as read_shards
from raytrain.tiles.verify import unknown_files, verify_beside, verify_index, verify_shard

OnProgress = Callable[[int, int], None]
RECORDS_PER_TASK = 64


class VerifyJob(Settings):
    """What to verify: the folder of shards, the folder or file of an ensemble, or a destination of scoring."""

    uri: str


@dataclass(frozen=True)
class VerifyReport:
    """What was hashed, and what differs, each object by name."""

    kind: str
    num_objects: int
    num_bytes: int
    differences: list[DataError]


@dataclass(frozen=True)
class _Work:
    uri: str
    record: dict[str, Any]


def verify(job: VerifyJob, cluster: session.Cluster, on_progress: OnProgress | None = None) -> VerifyReport:
    """Hash what `job` names; raise `ConfigError` where there is nothing of the kind."""
    if storage.exists(storage.join(ensemble_folder(job.uri), ENSEMBLE_FILE)):
        return _verify_ensemble(ensemble_folder(job.uri), cluster, on_progress)
    if storage.exists(storage.join(job.uri, MANIFEST)):
        return _verify_shards(job.uri, cluster, on_progress)
    if storage.exists(storage.join(job.uri, SCORING_FILE)):
        return _verify_scored(job.uri, cluster, on_progress)
    raise ConfigError(
        f"{job.uri}: nothing to verify: neither shards ({MANIFEST}) nor an ensemble ({ENSEMBLE_FILE}) nor a scored "
        f"archive ({SCORING_FILE})"
    )


def _verify_shards(uri: str, cluster: session.Cluster, on_progress: OnProgress | None) -> VerifyReport:
    manifest = read_shards(uri)
    records: list[dict[str, Any]] = manifest["shards"]
    beside: list[dict[str, Any]] = manifest["beside"]
    differences = unknown_files(uri, [record["name"] for record in [*records, *beside]])
    differences += verify_index(uri, manifest["index"])
    for record in beside:
        differences += verify_beside(uri, record)
    with session.joined(cluster, [uri]):
        work = (_Work(uri, record) for record in records)
        for found in run_tasks(_verify_shard, work, len(records), on_progress):
            differences += found
    others = [manifest["index"], *beside]
    size = sum(record["bytes"] for record in [*records, *others])
    return VerifyReport("shards", len(records) + len(others), size, differences)


def _verify_shard(work: _Work) -> list[DataError]:
    return verify_shard(work.uri, work.record)


def _verify_scored(uri: str, cluster: session.Cluster, on_progress: OnProgress | None) -> VerifyReport:
    tables, num_objects, num_bytes = LedgerRead(uri), 0, 0
    known = Standing(tables.keys())
    differences = [*tables.differences, *unknown_outputs(uri, known, tables.damaged)]
    differences += catalogue_differences(uri, tables.num_known_items)
    with session.joined(cluster, [uri]):
        batches = _batches_of_outputs(uri, tables.digits)
        total_batches = -(-tables.num_records // RECORDS_PER_TASK)
        for found, count, size in run_tasks(_verify_outputs, batches, total_batches, on_progress):
            differences += found
            num_objects += count
            num_bytes += size
    return VerifyReport("scored archive", num_objects, num_bytes, differences)


def _batches_of_outputs(uri: str, digits: Sequence[str]) -> Iterator[tuple[str, list[Output]]]:
    """Yield the outputs of some records of these tables at a time."""
    records = ledger.read_records(uri, digits)
    while batch := list(itertools.islice(records, RECORDS_PER_TASK)):
        yield uri, [output for record in batch for output in record.outputs.values()]


def _verify_outputs(work: tuple[str, list[Output]]) -> tuple[list[DataError], int, int]:
    uri, outputs = work
    return verify_outputs(uri, outputs), len(outputs), sum(output.num_bytes for output in outputs)


def _verify_ensemble(folder: str, cluster: session.Cluster, on_progress: OnProgress | None) -> VerifyReport:
    nets = read_manifest(folder).members
    with session.joined(cluster, [folder]):
        work = (_Work(storage.join(folder, net.weights), {"sha256": net.sha256}) for net in nets)
        sizes, found = zip(*run_tasks(_verify_weights, work, len(nets), on_progress), strict=True)
    return VerifyReport("ensemble", len(nets), sum(sizes), [each for differences in found for each in differences])


def _verify_weights(work: _Work) -> tuple[int, list[DataError]]:
    try:
        data = storage.read_bytes(work.uri)
    except FileNotFoundError:
        return 0, [DataError(work.uri, "missing, but the ensemble names it")]
    digest = storage.sha256_of(data)
    if digest == work.record["sha256"]:
        return len(data), []
    return len(data), [DataError(work.uri, f"sha256 is {digest}, where the ensemble says {work.record['sha256']}")]
