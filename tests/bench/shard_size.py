"""What the number of tiles in a shard costs and gives: memory to write one, bytes beside the pixels, reading rate.

A shard is made in memory by one task and written at once; a tile is read by one range whatever the size. So the
number decides how much memory a task takes, how many objects there are, and how much is lost with a task.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.bench import record

BANDS = ("B02", "B03", "B04", "B08")
SIZES = (1, 16, 64, 256)
CHIPS = 256


def main() -> None:
    """Measure each size in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--write", metavar="MACHINE")
    parser.add_argument(
        "--step", nargs=3, metavar=("SIZE", "ARCHIVE", "FOLDER"), help="what its own processes are told"
    )
    options = parser.parse_args()
    if options.step is not None:
        write(int(options.step[0]), *options.step[1:])
        return
    from raytrain.imagery.synth import write_chips

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        archive = f"{folder}/archive"
        write_chips(Path(archive), count=CHIPS, size_px=512, seed=0, num_places=16)
        for size in SIZES:
            shards = f"{folder}/{size}"
            this = [sys.executable, "-m", "tests.bench.shard_size", "--step", str(size), archive, shards]
            written = record.run(*this)
            beside, rate = _read(shards, options.runs)
            rows.append(
                [
                    str(size),
                    f"{1e6 / size:.0f}",
                    f"{CHIPS / written.seconds:.0f}",
                    f"{written.peak_mib:.0f}",
                    f"{beside:.0f}",
                    f"{rate:.0f}",
                ]
            )
    headers = ["tiles a shard", "objects for 10^6 tiles", "written, chips/s", "peak memory of the writer, MiB"]
    headers += ["bytes a tile beside the cells", "read at random, chips/s"]
    record.keep(
        "shard_size", options.write, f"{CHIPS} generated chips of 512 px in shards of several sizes", headers, rows
    )


def write(size: int, archive: str, folder: str) -> None:
    """Write the shards of an archive, one after the other."""
    from raytrain.config import ShardSettings
    from tests.making import shard_chips

    shard_chips(archive, folder, ShardSettings(folds="1", tiles_per_shard=size))


def _read(folder: str, runs: int) -> tuple[float, float]:
    """Return the bytes a tile that are no cell's, and tiles a second read at random, pixels and labels."""
    import numpy as np
    import pyarrow.parquet as pq

    from raytrain.tiles.reader import TileReader

    index = pq.read_table(f"{folder}/index.parquet")
    cells = sum(index[f"{cell}_bytes"].to_numpy().sum() for cell in ("label", *BANDS))
    whole = sum(path.stat().st_size for path in Path(folder).glob("shard-*"))
    reader = TileReader(folder, BANDS)
    rates = []
    for run in range(runs):
        order = np.random.default_rng(run).permutation(len(reader))
        start = time.perf_counter()
        for i in order:
            reader.read(int(i))
        rates.append(len(reader) / (time.perf_counter() - start))
    return float(whole - cells) / len(reader), statistics.median(rates)


if __name__ == "__main__":
    main()
