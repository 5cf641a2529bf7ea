"""Size and reading rate of tile shards in each encoding, beside the GeoTIFFs that they were made from.

One process reads all tiles of one set after the other, pixels and labels, from a warm page cache: the time is that of
decoding. The sets take turns, and the rates are medians over the runs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from raytrain.cluster.session import Cluster, joined
from raytrain.cluster.shard import ShardJob, read_tile, shard
from raytrain.config import CellEncoding, ShardSettings
from raytrain.imagery.synth import write_chips
from raytrain.tiles.archive import open_archive
from raytrain.tiles.reader import TileReader
from tests.bench import record


def main() -> None:
    """Measure each encoding on one archive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archive", help="chips in the challenge's layout; 48 generated ones of 512 px without it")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--write", metavar="MACHINE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        archive = options.archive or f"{folder}/archive"
        if options.archive is None:
            write_chips(Path(archive), count=48, size_px=512, seed=0, num_places=12)
        bands = ShardSettings().bands
        chips = open_archive(archive, bands).chips
        files = [Path(path) for chip in chips for path in (*chip.bands.values(), chip.label) if path]
        sizes = {"GeoTIFFs": sum(path.stat().st_size for path in files)}
        readers: dict[str, Callable[[], object]] = {"GeoTIFFs": lambda: [read_tile(chip) for chip in chips]}
        with joined(Cluster(), []):
            for encoding in get_args(CellEncoding):
                uri = f"{folder}/{encoding}"
                found = shard(ShardJob(src=archive, dst=uri, settings=_settings(encoding)), Cluster())
                assert found.manifest is not None, found.problems
                sizes[encoding] = found.manifest["bytes"]
                readers[encoding] = _read_all(uri, bands)
        seconds: dict[str, list[float]] = {name: [] for name in readers}
        for _ in range(options.runs):
            for name, read in readers.items():
                start = time.perf_counter()
                read()
                seconds[name].append(time.perf_counter() - start)
    rates = {name: len(chips) / statistics.median(each) for name, each in seconds.items()}
    rows = [
        [
            name,
            f"{sizes[name] / len(chips) / 1e6:.2f}",
            f"{sizes[name] / sizes['GeoTIFFs']:.2f}",
            f"{rates[name]:.0f}",
            f"{rates[name] / rates['GeoTIFFs']:.1f}",
        ]
        for name in readers
    ]
    kind = "generated" if options.archive is None else "real"
    headers = ["cells", "MB a chip", "ratio", "chips/s", "ratio"]
    record.keep(
        "tiles", options.write, f"{len(chips)} {kind} chips as shards: size, and reading by one process", headers, rows
    )


def _settings(encoding: CellEncoding) -> ShardSettings:
    return ShardSettings(cell_encoding=encoding, folds="1")


def _read_all(uri: str, bands: tuple[str, ...]) -> Callable[[], object]:
    reader = TileReader(uri, bands)
    return lambda: [reader.read(i) for i in range(len(reader))]


if __name__ == "__main__":
    main()
