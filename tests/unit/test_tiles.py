"""Shards give back what went in, by one ranged read; folds and orders are functions of integers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain import storage
from raytrain.config import CellEncoding, MemberSettings, change
from raytrain.errors import ConfigError, DataError
from raytrain.recipes import members
from raytrain.tiles.folds import assign_folds, deal_folds
from raytrain.tiles.format import Tile
from raytrain.tiles.order import Position, check_batch, epoch_batches, rank_share
from raytrain.tiles.reader import TileReader, select_tiles, shards_digest
from tests.making import BANDS, make_tile, write_tiles

ENCODINGS: tuple[CellEncoding, ...] = ("raw", "blosc2-bitshuffle-lz4", "blosc2-bitshuffle-zstd")
TILES = [make_tile(0, (5, 7)), make_tile(1, (64, 64)), make_tile(2, (32, 40), labelled=False), make_tile(3, (1, 1))]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_tiles_read_as_written_for_any_subset_of_bands(tmp_path: Path, encoding: CellEncoding) -> None:
    write_tiles(tmp_path, TILES, encoding)
    for bands in (("B02",), ("B08", "B02"), ("B04", "B11"), BANDS):
        reader = TileReader(str(tmp_path), bands)
        assert len(reader) == 4
        for i, tile in enumerate(TILES):
            pixels, label = reader.read(i)
            assert pixels.dtype == np.uint16
            assert (pixels == np.stack([tile.bands[band] for band in bands])).all()
            assert (label is None) == (tile.label is None)
            assert label is None or (label == tile.label).all()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_index_places_are_the_bytes_of_the_cells(tmp_path: Path, encoding: CellEncoding) -> None:
    write_tiles(tmp_path, TILES, encoding)
    data = (tmp_path / "shard-00000.parquet").read_bytes()
    cells = pq.read_table(tmp_path / "shard-00000.parquet").to_pylist()
    for row, cell in zip(pq.read_table(tmp_path / "index.parquet").to_pylist(), cells, strict=True):
        for name in ("label", *BANDS):
            start, size = row[f"{name}_offset"], row[f"{name}_bytes"]
            assert (None if start is None else data[start : start + size]) == cell[name]


def test_label_and_the_three_first_bands_are_one_short_range(tmp_path: Path) -> None:
    write_tiles(tmp_path, TILES, "raw")
    row = pq.read_table(tmp_path / "index.parquet").to_pylist()[1]
    span = row["B04_offset"] + row["B04_bytes"] - row["label_offset"]
    assert span - (64 * 64 * 7) < 200
    assert row["B08_offset"] > row["B04_offset"]


def test_member_of_three_bands_fetches_no_byte_of_the_fourth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiles(tmp_path, TILES, "blosc2-bitshuffle-zstd")
    fetched: list[tuple[int, int]] = []
    true_read = storage.read_range

    def read_range(uri: str, start: int, end: int) -> bytes:
        fetched.append((start, end))
        return true_read(uri, start, end)

    monkeypatch.setattr(storage, "read_range", read_range)
    row = pq.read_table(tmp_path / "index.parquet").to_pylist()[1]
    TileReader(str(tmp_path), ("B02", "B03", "B04")).read(1)
    assert fetched == [(row["label_offset"], row["B04_offset"] + row["B04_bytes"])]
    assert fetched[0][1] <= row["B08_offset"]


def test_raw_cells_are_read_by_numpy_pandas_and_duckdb(tmp_path: Path) -> None:
    write_tiles(tmp_path, TILES, "raw")
    path = tmp_path / "shard-00000.parquet"
    frame = pd.read_parquet(path)
    assert frame["tile_id"].tolist() == [tile.tile_id for tile in TILES]
    row = frame.iloc[1]
    assert (np.frombuffer(row["B08"], "<u2").reshape(row["height"], row["width"]) == TILES[1].bands["B08"]).all()
    counts = duckdb.sql(f"select location, count(*) from '{path}' group by location order by 1").fetchall()
    assert counts == [("place0", 2), ("place1", 2)]


def test_damaged_cell_names_tile_and_shard(tmp_path: Path) -> None:
    write_tiles(tmp_path, TILES, "blosc2-bitshuffle-zstd")
    path = tmp_path / "shard-00000.parquet"
    row = pq.read_table(tmp_path / "index.parquet").to_pylist()[1]
    data = bytearray(path.read_bytes())
    data[row["B02_offset"] : row["B02_offset"] + row["B02_bytes"]] = bytes(row["B02_bytes"])
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"tile tile1 in .*shard-00000\.parquet: can't be read"):
        TileReader(str(tmp_path), ("B02",)).read(1)
    path.write_bytes(data[:1000])
    with pytest.raises(DataError, match="tile tile1"):
        TileReader(str(tmp_path), ("B02",)).read(1)
    path.unlink()
    with pytest.raises(DataError, match=r"tile tile1 in .*: no such file, but the index names it"):
        TileReader(str(tmp_path), ("B02",)).read(1)


def test_a_changed_byte_that_still_decodes_is_noticed(tmp_path: Path) -> None:
    write_tiles(tmp_path, TILES, "raw")
    path = tmp_path / "shard-00000.parquet"
    row = pq.read_table(tmp_path / "index.parquet").to_pylist()[1]
    data = bytearray(path.read_bytes())
    data[row["B03_offset"] + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"tile tile1 in .*: can't be read: B03: its 8192 bytes are not those"):
        TileReader(str(tmp_path), ("B02", "B03")).read(1)
    assert TileReader(str(tmp_path), ("B02",)).read(1)[0].shape == (1, 64, 64), (
        "a band that is not read is not looked at"
    )


def test_store_out_of_reach_is_no_fault_of_the_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiles(tmp_path, TILES, "raw")
    reader = TileReader(str(tmp_path), ("B02",))

    def unreachable(uri: str, start: int, end: int) -> bytes:
        raise ConnectionError("no route to the store")

    monkeypatch.setattr(storage, "read_range", unreachable)
    with pytest.raises(ConnectionError, match="no route"):
        reader.read(1)


def test_hash_covers_bands_in_the_formats_order_and_the_label() -> None:
    tile = TILES[1]
    backwards = Tile(**{**tile.__dict__, "bands": dict(reversed(tile.bands.items()))})
    assert backwards.sha256() == tile.sha256()
    assert Tile(**{**tile.__dict__, "label": None}).sha256() != tile.sha256()


def test_missing_shards_other_version_and_unknown_band_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no manifest\.json.*raytrain shard"):
        TileReader(str(tmp_path), ("B02",))
    write_tiles(tmp_path, TILES, "raw")
    with pytest.raises(ConfigError, match=r"no band B09 .*the shards have B02"):
        TileReader(str(tmp_path), ("B09",))
    (tmp_path / "manifest.json").write_text('{"format_version": 9}')
    with pytest.raises(ConfigError, match="format version 9"):
        TileReader(str(tmp_path), ("B02",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("manifest.json", b"", r"manifest\.json: damaged, not a JSON file"),
        ("manifest.json", b"[]", r"manifest\.json: damaged, expected a JSON object"),
        (
            "manifest.json",
            b'{"format_version": 1, "bands": []}',
            r"is damaged, or of an older raytrain: it has no cell_encoding, index, left_out",
        ),
        ("index.parquet", b"PAR1", r"index\.parquet: damaged"),
        ("index.parquet", None, r"index\.parquet: no such file, but manifest\.json stands beside it"),
    ],
)
def test_damaged_manifest_and_index_are_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    write_tiles(tmp_path, TILES, "raw")
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        TileReader(str(tmp_path), ("B02",))


def test_what_nets_learn_from_is_told_apart_by_pixels_and_by_folds() -> None:
    manifest = {"shards": [{"name": "a", "sha256": "1"}], "source": {"folds_digest": "x"}}
    others = [
        {**manifest, "shards": [{"name": "a", "sha256": "2"}]},
        {**manifest, "source": {"folds_digest": "y"}},
    ]
    assert shards_digest({**manifest, "versions": {}}) == shards_digest(manifest)
    assert len({shards_digest(each) for each in (manifest, *others)}) == 3


def test_training_and_validation_tiles_share_nothing_and_have_labels(tmp_path: Path) -> None:
    write_tiles(tmp_path, TILES, "raw")
    reader = TileReader(str(tmp_path), ())
    assert select_tiles(reader, 0, "train").tolist() == [1, 3]
    assert select_tiles(reader, 0, "validation").tolist() == [0]
    assert select_tiles(reader, None, "train").tolist() == [0, 1, 3]
    assert select_tiles(reader, None, "validation").tolist() == []
    with pytest.raises(ConfigError, match="no fold 7; the shards have"):
        select_tiles(reader, 7, "train")


@given(st.lists(st.sampled_from("abcdefghij"), min_size=10, max_size=200), st.integers(1, 4), st.integers(0, 5))
def test_no_location_is_in_two_folds_and_every_fold_has_its_share(places: list[str], folds: int, seed: int) -> None:
    count = len(set(places))
    if count < folds:
        with pytest.raises(ConfigError, match="at least that many locations"):
            deal_folds(places, folds, seed)
        return
    dealt = deal_folds(places, folds, seed)
    assert dealt == deal_folds(places, folds, seed)
    assert set(dealt) == set(places)
    sizes = Counter(dealt.values())
    assert max(sizes.values()) - min(sizes.get(fold, 0) for fold in range(folds)) <= 1


def test_folds_of_the_real_locations_differ_by_less_than_a_tenth(real_imagery: Path) -> None:
    frame = pd.read_csv(real_imagery / "on_cloud_n_train_metadata.csv")
    assert len(frame) == 11748
    sizes = Counter(assign_folds("4", frame["chip_id"].tolist(), frame["location"].tolist(), seed=0))
    assert max(sizes.values()) < 1.1 * min(sizes.values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"chip_id,fold\na,1\na,2\n", "chip a: two rows name its fold"),
        (b"chip_id,fold\na\n", "chip a: expected a whole number in column fold, found ''"),
        (b"chip_id,fold\na," + b"9" * 5000 + b"\n", "chip a: expected at most 9 digits in column fold, found '9{40}'$"),
        (b"chip_id,fold\n../\x1b[2J" + b"x" * 9999 + b",b\n", r"chip '\.\./\\x1b\[2Jx{33}': expected a whole number"),
        (b"chip_id,fold\n\xe9,1\n", "not a UTF-8 text file"),
        (b'chip_id,fold\n"' + b"x" * 200_000, "not a CSV file"),
        (b"chip,fold\na,1\n", "expected columns chip_id and fold or split"),
        (b"", "expected columns chip_id and fold or split"),
    ],
)
def test_folds_from_a_csv_that_cannot_be_meant_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "folds.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        assign_folds(str(path), ["a"], ["X"], 0)


def test_folds_from_a_csv_by_split_or_number(tmp_path: Path) -> None:
    path = tmp_path / "folds.csv"
    path.write_text("chip_id,split\na,train\nb,val\n")
    assert assign_folds(str(path), ["a", "b"], ["X", "Y"], 0) == [1, 0]
    path.write_text("chip_id,fold\na,3\nb,0\n")
    assert assign_folds(str(path), ["a", "b"], ["X", "Y"], 0) == [3, 0]
    with pytest.raises(ConfigError, match="no fold for 1 chips, among them c"):
        assign_folds(str(path), ["c"], ["X"], 0)
    path.write_text("chip_id,fold\na,first\n")
    with pytest.raises(ConfigError, match="chip a: expected a whole number in column fold, found 'first'"):
        assign_folds(str(path), ["a"], ["X"], 0)


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 3), st.integers(0, 3), st.integers(1, 6))
def test_every_tile_is_read_once_per_epoch_for_any_world_size(
    num: int, batch: int, seed: int, epoch: int, world: int
) -> None:
    batches = epoch_batches(num, batch, seed, epoch)
    assert max(map(len, batches)) <= batch
    assert max(map(len, batches)) - min(map(len, batches)) <= 1
    shares = [rank_share(each, rank, world) for each in batches for rank in range(world)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(num))
    whole = np.concatenate(batches)
    again = np.concatenate([rank_share(each, rank, world) for each in batches for rank in range(world)])
    assert (whole == again).all()


@given(
    st.integers(1, 300),
    st.integers(1, 40),
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), max_size=4),
)
def test_epoch_cut_off_anywhere_goes_on_on_any_number_of_ranks_with_no_tile_repeated_or_lost(
    num: int, batch: int, seed: int, attempts: list[tuple[int, int]]
) -> None:
    """Each attempt takes so many steps on so many ranks; the last one goes to the end. The state is one number."""
    whole = epoch_batches(num, batch, seed, 3)
    seen: list[np.ndarray] = []
    position = Position(3, 0)
    for steps, world in [*attempts, (num, 2)]:
        rest = epoch_batches(num, batch, seed, position.epoch, position.samples_done)
        for each in rest[:steps]:
            seen.append(np.concatenate([rank_share(each, rank, world) for rank in range(world)]))
            position = Position(3, position.samples_done + len(each))
    assert [each.tolist() for each in seen] == [each.tolist() for each in whole], "not the steps of a run never cut off"


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 40), st.integers(0, 300))
def test_epoch_goes_on_with_another_global_batch_and_still_each_sample_once(
    num: int, batch: int, other: int, steps: int
) -> None:
    before = epoch_batches(num, batch, 0, 0)[:steps]
    after = epoch_batches(num, other, 0, 0, sum(map(len, before)))
    assert sorted(np.concatenate([*before, *after]).tolist()) == list(range(num))


def batches_of(global_batch: int, group: int | None = None, crop_px: int = 64) -> MemberSettings:
    """Return a member of such batches."""
    changes = {"global_batch": global_batch, "batch_norm_group": group, "crop_px": crop_px}
    return change(members(("small-effnet-4b-20k",))[0], changes)


def test_batch_that_has_no_variance_is_refused() -> None:
    check_batch(4, 1, batches_of(1))
    check_batch(4, 2, batches_of(2, crop_px=32))
    for member in (batches_of(1, crop_px=32), batches_of(4, 1, crop_px=32)):
        with pytest.raises(ConfigError, match="member small-effnet-4b-20k: a batch of one image of 32 px"):
            check_batch(4, 1, member)


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 6))
def test_batch_check_refuses_just_what_leaves_a_rank_without_a_sample(num: int, batch: int, world: int) -> None:
    empty = any(not len(rank_share(each, r, world)) for each in epoch_batches(num, batch, 0, 0) for r in range(world))
    if empty:
        with pytest.raises(ConfigError, match="use fewer workers"):
            check_batch(num, world, batches_of(batch))
    else:
        check_batch(num, world, batches_of(batch))


def test_epochs_differ_and_seeds_differ() -> None:
    orders = {tuple(np.concatenate(epoch_batches(50, 8, seed, epoch))) for seed in range(2) for epoch in range(3)}
    assert len(orders) == 6


def test_index_opens_from_a_uri_with_a_trailing_slash(tmp_path: Path) -> None:
    write_tiles(tmp_path, TILES, "raw")
    assert storage.normalise(f"{tmp_path}/") == str(tmp_path)
    assert len(TileReader(f"{tmp_path}/", ("B02",))) == 4
