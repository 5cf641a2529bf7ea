"""Time and memory to open the index of a million tiles, and to plan an epoch from it.

The index is made up, of the columns and encodings of `raytrain shard`. Each step is a process of its own, whose
peak memory has the interpreter and its libraries in it; the floor is a process that imports them and reads the bytes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.bench import record

BANDS = ("B02", "B03", "B04", "B08")
TILES_PER_SHARD = 64
STEPS = ("floor", "open", "plan")


def main() -> None:
    """Measure each step in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--write", metavar="MACHINE")
    parser.add_argument("--step", nargs=2, metavar=("NAME", "FOLDER"), help="what its own processes are told")
    options = parser.parse_args()
    if options.step is not None:
        name, folder = options.step
        Path(folder, f"{name}.txt").write_text(str({"floor": floor, "open": open_index, "plan": plan}[name](folder)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        make_index(Path(folder), options.tiles)
        size_mb = (Path(folder) / "index.parquet").stat().st_size / 1e6
        for step in STEPS:
            seconds, peaks = [], []
            for _ in range(options.runs):
                peaks.append(record.run(sys.executable, "-m", "tests.bench.index", "--step", step, folder).peak_mib)
                seconds.append(float(Path(folder, f"{step}.txt").read_text()))
            rows.append([WHAT[step], f"{statistics.median(seconds):.2f}", f"{statistics.median(peaks):.0f}"])
    title = f"An index of {options.tiles} tiles, {size_mb:.0f} MB"
    record.keep("index", options.write, title, ["what", "s", "peak memory of the process, MiB"], rows)


WHAT = {
    "floor": "imports, and the bytes of the index read",
    "open": "index opened for four bands",
    "plan": "opened, training tiles of a fold chosen, an epoch planned (the time of the last two)",
}


def make_index(folder: Path, count: int) -> None:
    """Write an index of `count` made-up tiles, and its manifest."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from raytrain.tiles.format import index_schema
    from raytrain.tiles.parts import ROWS_AT_ONCE

    schema = index_schema(BANDS)
    with pq.ParquetWriter(folder / "index.parquet", schema, compression="zstd") as writer:
        for start in range(0, count, ROWS_AT_ONCE):
            writer.write_table(_rows(start, min(ROWS_AT_ONCE, count - start), schema, np.random.default_rng(start)))
    names = {"format_version": 1, "cell_encoding": "raw", "bands": BANDS, "shards": [], "index": {}, "settings": {}}
    (folder / "manifest.json").write_text(json.dumps({**names, "source": {}, "left_out": []}))
    assert pa.types.is_string(schema.field("shard").type)


def _rows(start: int, count: int, schema: object, generator: object) -> object:
    import numpy as np
    import pyarrow as pa

    assert isinstance(schema, pa.Schema)
    assert isinstance(generator, np.random.Generator)
    number = np.arange(start, start + count)
    columns: dict[str, object] = {
        "tile_id": [f"tile{i:08d}" for i in number],
        "location": [f"Place {i % 8100}" for i in number],
        "datetime": pa.array(1_588_148_447_000_000 + number * 1_000_000, pa.timestamp("us", "UTC")),
        "height": np.full(count, 512, np.int32),
        "width": np.full(count, 512, np.int32),
        "crs": ["EPSG:32636"] * count,
        "transform": [[10.0, 0.0, 3e5 + i, 0.0, -10.0, 5e6] for i in number],
        "cloud_fraction": generator.random(count).astype(np.float32),
        "valid_fraction": np.ones(count, np.float32),
        "source_uri": [f"s3://bucket/archive/train_features/tile{i:08d}" for i in number],
        "sha256": [generator.bytes(32).hex() for _ in number],
        "shard": [f"shard-{i // TILES_PER_SHARD:05d}.parquet" for i in number],
        "row_group": (number % TILES_PER_SHARD).astype(np.int32),
        "fold": (number % 8100 % 4).astype(np.int32),
    }
    end = generator.integers(200_000, 400_000, (count, 5)).cumsum(axis=1)
    for i, cell in enumerate(("label", *BANDS)):
        columns[f"{cell}_offset"] = end[:, i]
        columns[f"{cell}_bytes"] = generator.integers(200_000, 400_000, count)
        columns[f"{cell}_crc32"] = generator.integers(0, 2**32, count, dtype=np.uint32)
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def floor(folder: str) -> float:
    """Return the seconds of reading the bytes."""
    from raytrain.tiles import reader

    start = time.perf_counter()
    data = reader.storage.read_bytes(f"{folder}/index.parquet")
    assert data
    return time.perf_counter() - start


def open_index(folder: str) -> float:
    """Return the seconds of opening the index."""
    from raytrain.tiles.reader import TileReader

    start = time.perf_counter()
    reader = TileReader(folder, BANDS)
    assert len(reader)
    return time.perf_counter() - start


def plan(folder: str) -> float:
    """Return the seconds of choosing the tiles and of planning an epoch for one rank of 64."""
    from raytrain.tiles.order import epoch_batches, rank_share
    from raytrain.tiles.reader import TileReader, select_tiles

    reader = TileReader(folder, BANDS)
    start = time.perf_counter()
    tiles = select_tiles(reader, 0, "train")
    batches = epoch_batches(len(tiles), 256, 0, 3)
    shares = [rank_share(batch, 5, 64) for batch in batches]
    assert sum(map(len, batches)) == len(tiles) > 4 * sum(map(len, shares))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
