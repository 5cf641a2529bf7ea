"""What a scoring would take, before it is begun: the source listed, some of it looked at, one worker calibrated."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ray

from raytrain import storage
from raytrain.cluster import growth, session
from raytrain.cluster.pool import UNITS_IN_FLIGHT
from raytrain.cluster.room import actors_at_once, has_gpus
from raytrain.cluster.score import ScoreJob, listing_of, scoring_of, start_actor
from raytrain.errors import ConfigError, DataError, StoreOutOfReach, first_line
from raytrain.imagery.rasters import is_jp2
from raytrain.imagery.scene_reader import open_scene
from raytrain.scoring import ledger
from raytrain.scoring.destination import check_destination
from raytrain.scoring.estimate import Calibration, Sample, disk_bytes, hours_of, unit_bytes, windows_of, worker_bytes
from raytrain.scoring.open_shards import OpenShards
from raytrain.scoring.units import ChipSource, Unit, blocks_of
from raytrain.scoring.work import layers_of
from raytrain.tiles.archive import read_chip

SAMPLES = 24
"""Items that are looked at; of more, these are spread over the listing."""
MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class ScorePlan:
    """What there is to do and what it takes; `samples` of the items were looked at, for their size.

    Bytes to write are at most those of the rasters uncompressed. Memory of a worker is that of its nets and a pass, as
    measured, and of the units that it has at once.
    """

    num_items: int
    num_done: int
    num_samples: int
    num_units: int
    megapixels: float
    bytes_to_read: int
    bytes_to_write: int
    memory_per_worker: int
    disk_per_worker: int
    workers: int
    window_s: float
    hours: float
    problems: list[DataError]

    def lines(self) -> list[tuple[str, str]]:
        """Return the plan as a person reads it."""
        about = "" if self.num_samples >= self.num_items - self.num_done else f" (from {self.num_samples} of them)"
        return [
            ("items", f"{self.num_items}, of them done {self.num_done}, bad {len(self.problems)}"),
            ("to score", f"{self.megapixels:.1f} Mpx in {self.num_units} units{about}"),
            ("to read", f"{self.bytes_to_read / GIB:.2f} GiB{about}"),
            ("to write, at most", f"{self.bytes_to_write / GIB:.2f} GiB{about}"),
            ("workers", f"{self.workers}"),
            ("memory per worker", f"{self.memory_per_worker / MIB:.0f} MiB"),
            ("local disk per worker", f"{self.disk_per_worker / MIB:.0f} MiB"),
            ("time", f"{self.hours:.2f} h ({self.window_s:.3f} s a window on one worker)"),
        ]

    def as_json(self) -> dict[str, Any]:
        """Return the plan for a machine."""
        values = {name: value for name, value in vars(self).items() if name != "problems"}
        return {**values, "problems": [{"subject": each.subject, "found": each.found} for each in self.problems]}


def plan_score(job: ScoreJob, cluster: session.Cluster) -> ScorePlan:
    """Return what `job` would take on the cluster as it is now; nothing is written."""
    manifest, scoring = scoring_of(job)
    check_destination(job.dst, scoring, (name for name, _ in storage.walk(job.dst)))
    with session.joined(cluster, [job.src, job.dst, job.ensemble]):
        known = ledger.Known(job.dst, scoring.digest(), ledger.standing_at(job.dst))
        listing = listing_of(job, manifest, known)
        chosen, opened = _Sampler(), OpenShards()
        for unit in listing.units():
            chosen.add(unit)
        with ThreadPoolExecutor(SAMPLES) as pool:
            looked = list(pool.map(lambda item: _look(item, job, manifest.bands, opened), chosen.items))
        samples = _readable(looked)
        with growth.asked_for(1, use_gpu=has_gpus()):
            calibration = _calibrate(job, scoring, manifest)
            workers = actors_at_once(job.settings.threads, use_gpu=has_gpus())
    layers, to_do = layers_of(scoring), chosen.num_items
    share = to_do / max(1, len(samples))
    pixels = sum(each.height * each.width for each in samples) * share
    windows = sum(windows_of(each.height, each.width, job.settings) for each in samples) * share
    blocks = sum(len(blocks_of(each.height, each.width, job.settings.block_px)) for each in samples) * share
    num_units = chosen.num_units if chosen.of_small else round(blocks)
    largest = max((unit_bytes(each, len(manifest.bands), layers, job.settings) for each in samples), default=0)
    return ScorePlan(
        num_items=listing.num_items,
        num_done=listing.num_done,
        num_samples=len(samples),
        num_units=num_units,
        megapixels=pixels / 1e6,
        bytes_to_read=round(sum(each.num_bytes for each in samples) * share),
        bytes_to_write=round(sum(layers.temporary_bytes(each.height, each.width) for each in samples) * share),
        memory_per_worker=worker_bytes(calibration, largest, UNITS_IN_FLIGHT, opened.index_bytes),
        disk_per_worker=UNITS_IN_FLIGHT * max((disk_bytes(each, layers) for each in samples), default=0),
        workers=workers,
        window_s=calibration.window_s,
        hours=hours_of(windows, num_units, workers, calibration.window_s),
        problems=[DataError(each.item_id, each.found) for each in [*listing.problems, *listing.unreached]],
    )


class _Sampler:
    """Counts units and keeps some of their items, spread over all, without holding the rest."""

    def __init__(self) -> None:
        self.items: list[ChipSource | Unit] = []
        self.num_items = self.num_units = 0
        self.of_small = False
        self._every = 1

    def add(self, unit: Unit) -> None:
        """Count a unit."""
        self.num_units += 1
        self.of_small = unit.kind in ("chips", "tiles")
        for item in unit.chips or unit.of_one_item():
            if self.num_items % self._every == 0:
                self.items.append(item)
            self.num_items += 1
            if len(self.items) == 2 * SAMPLES:
                self.items = self.items[::2]
                self._every *= 2


def _readable(looked: Sequence[Sample | DataError | StoreOutOfReach]) -> list[Sample]:
    """Return the samples; where there are none, raise what keeps all items from being looked at."""
    samples = [each for each in looked if isinstance(each, Sample)]
    for each in looked:
        if not samples and isinstance(each, StoreOutOfReach):
            raise each
    if looked and not samples:
        raise ConfigError(f"none of the {len(looked)} items that were looked at can be read; the first: {looked[0]}")
    return samples


def _look(
    item: ChipSource | Unit, job: ScoreJob, bands: tuple[str, ...], opened: OpenShards
) -> Sample | DataError | StoreOutOfReach:
    """Return the size of an item, or what is wrong with it, or that its store is away, which says nothing of it."""
    try:
        if isinstance(item, ChipSource):
            chip = read_chip(item.chip_id, item.files)
            size = sum(storage.size_of(uri) for uri in item.files.values())
            height, width = chip.valid.shape
            return Sample(height, width, size, is_small=True)
        if item.shards is not None:
            tiles, (tile,) = opened.reader(item.shards), item.tiles
            height, width = tiles.read(tile.position)[0].shape[1:]
            return Sample(height, width, tiles.stored_bytes(tile.position), is_small=True)
        assert item.scene is not None, "a unit of scenes"
        sizes = {uri: storage.size_of(uri) for uri in {file.uri for file in item.scene.files.values()}}
        remote = [uri for uri in sizes if not storage.is_local(uri)]
        with open_scene(item.scene, bands, job.settings.baseline) as reader:
            return Sample(
                reader.height,
                reader.width,
                sum(sizes.values()),
                num_remote_files=len(remote),
                copied_bytes=sum(sizes[uri] for uri in remote if is_jp2(uri)),
            )
    except (DataError, StoreOutOfReach) as error:
        return error
    except (OSError, ConfigError) as error:  # a file that may not be read, a host that may not be asked
        return DataError(item.chip_id if isinstance(item, ChipSource) else item.item_ids[0], first_line(error))


def _calibrate(job: ScoreJob, scoring: Any, manifest: Any) -> Calibration:
    """Return what one worker takes, from a window that it computes twice."""
    actor = start_actor(job, scoring, manifest, use_gpu=has_gpus())
    try:
        mistake, _ = ray.get(actor.ready.remote())
        if mistake:
            raise ConfigError(mistake)
        return Calibration(*ray.get(actor.calibrate.remote()))
    finally:
        ray.kill(actor)
