"""Tiles as people feed them to a training: our shards beside GeoTIFFs, LitData, MosaicML Streaming and WebDataset.

Everyone has the same chips and makes the same of them, a float32 tensor and a mask, in a random order of its own. The
contenders take turns; rates are medians over the runs. `cold` is without the page cache and without what a loader keeps
by itself, `warm` the next epoch; `2 processes` are loader processes, whose start is not counted. With `--s3` the same
from OpenStack Swift on this machine, by way of a proxy that can add latency to each request. Run it where they are:

    uv run --with litdata==0.2.76 --with mosaicml-streaming==0.13.0 --with webdataset==1.0.2 python -m tests.bench.tiles
"""

from __future__ import annotations

import argparse
import gc
import itertools
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import urllib3
from torch.utils.data import default_collate

from raytrain import storage
from raytrain.config import CellEncoding, LoaderSettings, ShardSettings
from raytrain.imagery.synth import write_chips
from raytrain.tiles.archive import Chip, open_archive
from raytrain.tiles.dataset import TileDataset
from raytrain.tiles.ingest import read_tile
from raytrain.tiles.loader import SampleLoader
from raytrain.tiles.reader import TileReader
from tests.bench import peers, record
from tests.making import shard_chips
from tests.store.faults import FaultProxy
from tests.store.swift import Swift

BANDS = ("B02", "B03", "B04", "B08")
FEWEST_TILES = 192
ENCODINGS: dict[str, CellEncoding] = {
    "ours, zstd (default)": "blosc2-bitshuffle-zstd",
    "ours, lz4": "blosc2-bitshuffle-lz4",
    "ours, raw": "raw",
}
FIRST_TILES = 8
PEER_ATTEMPTS = 3
LATENCY_S = 0.02
THREADS = 16
Sample = tuple[torch.Tensor, torch.Tensor]
Epoch = Callable[[Path, int], Iterator[Any]]
"""Takes a folder for a loader's own cache and a number of loader processes; yields what a training would take."""


def main() -> None:
    """Measure one archive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archive", help="chips in the challenge's layout; generated ones of 512 px without it")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--s3", action="store_true", help="read from an S3 server, instead of a folder")
    parser.add_argument("--write", metavar="MACHINE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = Path(options.archive or folder / "archive")
        if options.archive is None:
            write_chips(archive, count=FEWEST_TILES, size_px=512, seed=0, num_places=12)
        chips = open_archive(str(archive), BANDS).chips
        copies = -(-FEWEST_TILES // len(chips))
        kind = "generated" if options.archive is None else "real"
        what = f"{len(chips)} {kind} chips" + (f", each {copies} times" if copies > 1 else "")
        measure = measure_store if options.s3 else measure_folder
        name = "tiles-s3" if options.s3 else "tiles"
        title, headers, rows = measure(archive, chips, copies, folder, options.runs)
        record.keep(name, options.write, f"{what}: {title}", headers, rows)


def convert(bands: Any, label: Any, epoch: int = 0, sample: int = 0) -> Sample:
    """Return what every contender ends with: `[C, H, W] float32` and `[H, W] uint8`."""
    return torch.from_numpy(np.asarray(bands).astype(np.float32)), torch.from_numpy(np.array(label))


def collate(samples: list[Any]) -> Any:
    """Return a batch of converted samples."""
    return default_collate([convert(*sample) for sample in samples])


# From a folder


@dataclass
class Contender:
    """One format: its name, the bytes it takes, how an epoch is read, which files to drop from the page cache."""

    name: str
    num_bytes: int
    epoch: Epoch
    folder: Path


def measure_folder(
    archive: Path, chips: list[Chip], copies: int, folder: Path, runs: int
) -> tuple[str, list[str], list[list[str]]]:
    """Return the table of all formats on a local disk."""
    contenders = [*_geotiffs(archive, chips, copies, folder), *_ours(archive, copies, folder)]
    contenders += _peers(chips, copies, folder)
    num_tiles = len(chips) * copies
    rates: dict[tuple[str, str], list[float]] = {}
    for run, contender in itertools.product(range(runs), contenders):
        for processes in (0, 2):
            cache = folder / "cache" / f"{contender.name}-{run}-{processes}"
            for state in ("cold", "warm"):
                if state == "cold":
                    gc.collect()
                    peers.cold(contender.folder)
                cache.mkdir(parents=True, exist_ok=True)
                rate = _rate(contender.epoch(cache, processes), num_tiles)
                rates.setdefault((contender.name, f"{processes} {state}"), []).append(rate)
                print(f"run {run}: {contender.name}, {processes} {state}: {rate:.0f} chips/s", flush=True)
            shutil.rmtree(cache)
    medians = {key: statistics.median(each) for key, each in rates.items()}
    base = contenders[0]
    columns = ["0 cold", "0 warm", "2 cold", "2 warm"]
    rows = []
    for each in contenders:
        mb = each.num_bytes / num_tiles / 1e6
        found = [medians[each.name, column] for column in columns]
        ratio = found[1] / medians[base.name, "0 warm"]
        row = [each.name, f"{mb:.2f}", f"{each.num_bytes / base.num_bytes:.3f}"]
        rows.append([*row, *(f"{rate:.0f}" for rate in found), f"{found[1] * mb:.0f}", f"{ratio:.1f}"])
    headers = [
        "stored as",
        "MB a chip",
        "of the GeoTIFFs",
        "chips/s, 1 process, cold",
        "warm",
        "2 processes, cold",
        "warm",
    ]
    headers += ["stored MB/s, 1 process, warm", "of the GeoTIFFs' rate"]
    return "size, and tiles a second from a local disk", headers, rows


def _rate(epoch: Iterator[Any], num_tiles: int) -> float:
    """Return tiles a second behind the first ones, which wait until every process has started and has delivered."""
    first = sum(1 for _ in itertools.islice(epoch, FIRST_TILES))
    start = time.perf_counter()
    count = sum(1 for _ in epoch)
    assert first + count == num_tiles, f"{first + count} tiles instead of {num_tiles}"
    return count / (time.perf_counter() - start)


def _shuffled(count: int) -> list[int]:
    return [int(i) for i in np.random.default_rng().permutation(count)]


class GeoTiffs(torch.utils.data.Dataset[Sample]):
    """The chips as delivered, by rasterio."""

    def __init__(self, chips: list[Chip], copies: int) -> None:
        self._chips = chips * copies

    def __len__(self) -> int:
        return len(self._chips)

    def __getitem__(self, i: int) -> Sample:
        tile, _ = read_tile(self._chips[i], "before-04.00")
        return convert(np.stack(list(tile.bands.values())), tile.label)


def _geotiffs(archive: Path, chips: list[Chip], copies: int, folder: Path) -> list[Contender]:
    """Return the GeoTIFFs; `copies` read the same files again, in their favour where it is cold."""
    files = [Path(uri) for chip in chips for uri in (*chip.bands.values(), chip.label) if uri]

    def epoch(cache: Path, processes: int) -> Iterator[Any]:
        dataset = GeoTiffs(chips, copies)
        return iter(torch.utils.data.DataLoader(dataset, shuffle=True, batch_size=1, num_workers=processes))

    return [Contender("four GeoTIFFs and a label", sum(f.stat().st_size for f in files) * copies, epoch, archive)]


def _ours(archive: Path, copies: int, folder: Path) -> list[Contender]:
    contenders = []
    for name, encoding in ENCODINGS.items():
        sets = []
        for i in range(copies):
            uri = folder / encoding / str(i)
            shard_chips(archive, uri, ShardSettings(cell_encoding=encoding, folds="1"))
            sets.append(uri)
        size = sum(path.stat().st_size for path in (folder / encoding).rglob("shard-*"))
        contenders.append(Contender(name, size, partial(_our_epoch, sets, 0), folder / encoding))
    first = contenders[0]
    ahead = partial(_our_epoch, [folder / first.folder.name / str(i) for i in range(copies)], 2)
    return [*contenders, Contender("ours, zstd, by its loader of 2 threads", first.num_bytes, ahead, first.folder)]


def _our_epoch(sets: list[Path], threads: int, cache: Path, processes: int) -> Iterator[Any]:
    """Read tile by tile in this process, or by our loader: so many threads of it, or processes of so many."""
    readers = [TileReader(str(uri), BANDS) for uri in sets]
    joined = _Joined(readers)
    order = _shuffled(sum(map(len, readers)))
    if not processes and not threads:
        for i in order:
            yield collate([joined.read(i)])
        return
    # The rows of one process and of two are the same for the loader of threads, which needs no second process.
    processes = 0 if threads else processes
    dataset = TileDataset(joined, np.arange(len(order)), convert)  # type: ignore[arg-type]
    with SampleLoader(dataset, LoaderSettings(processes=processes, threads=threads or 1)) as loader:
        yield from loader.load([[(0, i)] for i in order])


class _Joined:
    """Several sets of shards as one."""

    def __init__(self, readers: list[TileReader]) -> None:
        self._readers = readers

    def read(self, i: int) -> Any:
        each, position = divmod(i, len(self._readers[0]))
        return self._readers[each].read(position)


def _peers(chips: list[Chip], copies: int, folder: Path) -> list[Contender]:
    def tiles() -> Iterable[peers.Tile]:
        for i, chip in itertools.product(range(copies), chips):
            tile, _ = read_tile(chip, "before-04.00")
            assert tile.label is not None
            yield f"{chip.chip_id}-{i}", np.stack(list(tile.bands.values())), tile.label

    contenders = []
    for peer in peers.PEERS:
        source = folder / peer.name.replace(" ", "-")
        source.mkdir()
        peer.write(tiles(), source)

        def epoch(cache: Path, processes: int, peer: peers.Peer = peer, source: Path = source) -> Iterator[Any]:
            return iter(peer.loader(peer.dataset(source, cache, 1), 1, processes, collate))

        contenders.append(Contender(peer.name, peers.size(source), epoch, source))
    return contenders


# From an S3 server


def measure_store(
    archive: Path, chips: list[Chip], copies: int, folder: Path, runs: int
) -> tuple[str, list[str], list[list[str]]]:
    """Return the table of rates from an S3 server, without and with latency."""
    swift = Swift(folder / "swift")
    swift.start()
    try:
        with FaultProxy(swift.endpoint) as proxy:
            os.environ.update({**swift.environment(), "AWS_ENDPOINT_URL": proxy.endpoint})
            storage.filesystem("s3://bucket").mkdir("bucket")
            uri = "s3://bucket/shards"
            shard_chips(archive, uri, ShardSettings(folds="1"))
            return _store_table(proxy, uri, _remote_peers(chips, folder), folder, runs)
    finally:
        swift.stop()


def _remote_peers(chips: list[Chip], folder: Path) -> list[tuple[peers.Peer, str]]:
    """Write what the peers read best, the cells of our shards in their containers, to the store."""
    found = []
    for peer in peers.PEERS:
        if not peer.name.endswith("cells"):
            continue
        source = folder / peer.name.replace(" ", "-")
        source.mkdir()
        tiles = (read_tile(chip, "before-04.00")[0] for chip in chips)
        peer.write(
            ((t.tile_id, np.stack(list(t.bands.values())), t.label) for t in tiles if t.label is not None), source
        )
        uri = f"s3://bucket/{source.name}"
        for path in source.rglob("*"):
            if path.is_file():
                storage.write_bytes(storage.join(uri, *path.relative_to(source).parts), path.read_bytes())
        found.append((peer, uri))
    return found


def _store_table(
    proxy: FaultProxy,
    uri: str,
    remote: list[tuple[peers.Peer, str]],
    folder: Path,
    runs: int,
) -> tuple[str, list[str], list[list[str]]]:
    reader = TileReader(uri, BANDS)
    ranges = _ranges(reader)
    kept = LoaderSettings(threads=THREADS, cache_folder=str(folder / "kept"))
    filled = TileReader(uri, BANDS, kept)
    _load(filled, kept)
    many = LoaderSettings(processes=2, threads=THREADS)
    floor = f"floor: plain ranged GETs of the same ranges, {THREADS} threads"
    ways: dict[str, Callable[[], float]] = {
        floor: partial(_in_threads, _plain_get(reader.uri), ranges),
        f"ours, {THREADS} threads, not decoded": partial(_in_threads, _our_get, ranges),
        f"ours, {THREADS} threads, to tensors": partial(_load, reader, LoaderSettings(threads=THREADS)),
        f"ours, 2 processes of {THREADS} threads, to tensors": partial(_load, reader, many),
        "ours, 2 processes, kept on disk": partial(_load, filled, kept.model_copy(update={"processes": 2})),
    }
    for peer, source in remote:
        ways[f"{peer.name}, 2 processes"] = partial(_load_peer, peer, source, folder, len(reader))
    rates: dict[tuple[str, float], list[float]] = {}
    for run, latency_s in itertools.product(range(runs), (0.0, LATENCY_S)):
        proxy.latency_s = latency_s
        for name, way in ways.items():
            rate = way()
            rates.setdefault((name, latency_s), []).append(rate)
            print(f"run {run}, {latency_s:.2f} s: {name}: {rate:.0f} chips/s", flush=True)
    medians = {key: float(np.nanmedian(each)) for key, each in rates.items()}
    mb = sum(end - start for _, start, end in ranges) / len(ranges) / 1e6
    rows = [
        [
            name,
            f"{medians[name, 0.0]:.0f}",
            f"{medians[name, 0.0] * mb:.0f}",
            f"{medians[name, 0.0] / medians[floor, 0.0]:.2f}",
            f"{medians[name, LATENCY_S]:.0f}",
            f"{medians[name, LATENCY_S] / medians[name, 0.0]:.2f}",
        ]
        for name in ways
    ]
    headers = [
        "read by",
        "chips/s",
        "MB/s",
        "of the floor",
        f"chips/s, {LATENCY_S * 1000:.0f} ms a request",
        "of without",
    ]
    return f"tiles of {mb:.2f} MB a second from an S3 server on this machine", headers, rows


def _ranges(reader: TileReader) -> list[tuple[str, int, int]]:
    """Return the ranged read of each tile, in a random order: URI of the shard, first byte, byte behind the last."""
    found = []
    for i in _shuffled(len(reader)):
        cells = [reader._place(cell, i) for cell in ("label", *BANDS)]
        uri = storage.join(reader.uri, reader._shard(i))
        found.append((uri, min(cell.start for cell in cells), max(cell.end for cell in cells)))
    return found


def _in_threads(get: Callable[[tuple[str, int, int]], int], ranges: list[tuple[str, int, int]]) -> float:
    """Return ranges a second with `THREADS` requests in flight."""
    with ThreadPoolExecutor(THREADS) as pool:
        start = time.perf_counter()
        sizes = list(pool.map(get, ranges))
        seconds = time.perf_counter() - start
    assert sizes == [end - first for _, first, end in ranges]
    return len(ranges) / seconds


def _plain_get(uri: str) -> Callable[[tuple[str, int, int]], int]:
    """Return a GET of a range with an address signed before: no more than HTTP."""
    pool = urllib3.PoolManager(maxsize=THREADS)
    store = storage.filesystem(uri)
    shards = [storage.join(uri, name) for name in storage.find(uri) if name.startswith("shard-")]
    signed = {shard: store.sign(storage.path_of(shard), expiration=24 * 3600) for shard in shards}

    def get(place: tuple[str, int, int]) -> int:
        shard, start, end = place
        return len(pool.request("GET", signed[shard], headers={"Range": f"bytes={start}-{end - 1}"}).data)

    return get


def _our_get(place: tuple[str, int, int]) -> int:
    return len(storage.read_range(*place))


def _load(reader: TileReader, settings: LoaderSettings) -> float:
    """Return tiles a second through our loader, whose processes have started before."""
    dataset = TileDataset(reader, np.arange(len(reader)), convert)
    order = _shuffled(len(reader))
    with SampleLoader(dataset, settings) as loader:
        list(loader.load([[(0, i)] for i in order[:4]]))
        start = time.perf_counter()
        count = sum(
            len(labels)
            for _, labels in loader.load([[(0, i) for i in order[j : j + 8]] for j in range(0, len(order), 8)])
        )
        seconds = time.perf_counter() - start
    assert count == len(reader)
    return count / seconds


def _load_peer(peer: peers.Peer, uri: str, folder: Path, num_tiles: int) -> float:
    """Return tiles a second through a peer's loader, from nothing on disk, behind its first tiles; NaN if it fails.

    In a process of its own: MDS takes what an earlier epoch of this process left in shared memory for its own. Even so
    it reads, now and then, a shard that its other process has not downloaded to the end: it has three attempts.
    """
    for _ in range(PEER_ATTEMPTS):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            try:
                return pool.submit(_read_peer, peer, uri, folder, num_tiles).result()
            except (ValueError, IndexError, OSError) as error:
                print(f"{peer.name} failed: {str(error).splitlines()[-1]}", flush=True)
    return float("nan")


def _read_peer(peer: peers.Peer, uri: str, folder: Path, num_tiles: int) -> float:
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    # What LitData is told of plain HTTP has to reach its own processes.
    multiprocessing.set_start_method("fork", force=True)
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as cache:
        return _rate(iter(peer.loader(peer.remote(uri, Path(cache), 1), 1, 2, collate)), num_tiles)


if __name__ == "__main__":
    main()
