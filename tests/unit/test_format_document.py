"""What infra/tile-shards.md says is so: its examples run, its columns are those of the files."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from raytrain.config import CellEncoding, ShardSettings
from raytrain.review.table import SCHEMA
from raytrain.tiles.format import index_schema, shard_schema
from raytrain.tiles.reader import TileReader
from tests.making import shard_chips

DOCUMENT = (Path(__file__).parents[2] / "infra" / "tile-shards.md").read_text()
BANDS = ("B02", "B03", "B04", "B08")


def examples(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)


@pytest.mark.parametrize("encoding", ["raw", "blosc2-bitshuffle-zstd", "blosc2-bitshuffle-lz4"])
def test_examples_read_the_pixels_that_the_reader_reads(
    chips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: CellEncoding
) -> None:
    shard_chips(chips, tmp_path / "shards", ShardSettings(folds="3", cell_encoding=encoding, tiles_per_shard=5))
    monkeypatch.chdir(tmp_path)
    pixels, _ = TileReader("shards", BANDS).read(0)
    whole, ranged = examples("python")
    found: dict[str, np.ndarray] = {}
    exec(whole, found)
    exec(ranged, found)
    assert (found["b08"] == pixels[3]).all()
    assert (found["b04"] == pixels[2]).all()
    by_place, sizes = (statement for statement in examples("sql")[0].split(";") if statement.strip())
    places = duckdb.sql(by_place).fetchall()
    assert sum(tiles for _, _, tiles, _ in places) == 12
    index = pq.read_table("shards/index.parquet").to_pylist()
    expected = {row["tile_id"]: sum(row[f"{band}_bytes"] for band in BANDS) for row in index}
    assert dict(duckdb.sql(sizes).fetchall()) == expected


def test_table_of_columns_names_every_column_and_no_other() -> None:
    rows = [line.split("|")[1:4] for line in DOCUMENT.splitlines() if re.match(r"\| `.* (shard|both|index) \|", line)]
    told: dict[str, set[str]] = {"shard": set(), "index": set()}
    for names, _, where in rows:
        for name in re.findall(r"`([^`]+)`", names):
            cells = [name.replace("<cell>", cell) for cell in ("label", *BANDS)] if "<cell>" in name else [name]
            for place in told if where.strip() == "both" else [where.strip()]:
                told[place].update(cells)
    assert told["shard"] == set(shard_schema(BANDS, "raw").names)
    assert told["index"] == set(index_schema(BANDS).names)


def test_columns_of_the_decisions_are_named() -> None:
    told = DOCUMENT.partition("That has a row for each decision that stood:")[2].partition("\n\n")[0]
    assert re.findall(r"`([^`]+)`", told) == [*SCHEMA.names, "outcome"]
