"""One contract for every store: a local folder, moto, and OpenStack Swift, a real object store, both on loopback."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytrain import storage
from raytrain.config import ShardSettings
from raytrain.errors import ConfigError
from raytrain.recipes import members
from raytrain.search.budget import Budget
from raytrain.search.finals import Finals
from raytrain.search.records import Record, SearchSettings
from raytrain.search.results import write_results
from raytrain.search.search import Search
from raytrain.tiles.archive import open_archive, read_chip
from raytrain.tiles.ingest import write_shard
from raytrain.tiles.reader import TileReader
from tests.making import plan_chips, shard_chips

BANDS = ("B02", "B03", "B04", "B08")


def test_what_is_written_is_read_whole_and_in_ranges(store: str) -> None:
    uri = storage.join(store, "a", "b.bin")
    data = bytes(range(256)) * 40
    assert not storage.exists(uri)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(uri)
    storage.write_bytes(uri, data)
    assert storage.exists(uri)
    assert storage.read_bytes(uri) == data
    assert storage.read_range(uri, 100, 300) == data[100:300]
    storage.write_bytes(uri, b"shorter")
    assert storage.read_bytes(uri) == b"shorter"


def test_listing_has_names_sizes_and_an_identity_that_changes(store: str) -> None:
    assert storage.find(store) == {}
    for name in ("z", "a/x", "a/b/y"):
        storage.write_bytes(storage.join(store, *name.split("/")), name.encode())
    listed = storage.find(store)
    assert list(listed) == ["a/b/y", "a/x", "z"]
    before = {name: storage.identity(info) for name, info in listed.items()}
    storage.write_bytes(storage.join(store, "z"), b"Z")
    after = {name: storage.identity(info) for name, info in storage.find(store).items()}
    assert [name for name in after if after[name] != before[name]] == ["z"]


def test_local_links_are_followed_and_their_targets_change_is_seen(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere" / "b"
    target.parent.mkdir()
    target.write_bytes(b"one")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").symlink_to(target)
    (folder / "linked").symlink_to(target.parent)
    (folder / "round").symlink_to(folder)
    (folder / "nowhere").symlink_to(tmp_path / "absent")
    (folder / "itself").symlink_to(folder / "itself")
    before = storage.find(str(folder))
    assert list(before) == ["file", "linked/b"]
    target.write_bytes(b"two")
    os.utime(target, (1, 1))
    after = storage.find(str(folder))
    assert all(storage.identity(after[name]) != storage.identity(before[name]) for name in before)


def test_file_is_moved_in_and_objects_are_removed(store: str, tmp_path: Path) -> None:
    path = tmp_path / "made.bin"
    path.write_bytes(b"content")
    uri = storage.join(store, "made.bin")
    storage.write_file(uri, path)
    assert not path.exists()
    assert storage.read_bytes(uri) == b"content"
    storage.remove(uri)
    storage.remove(uri)
    assert list(storage.find(store)) == []


def test_the_same_filesystem_serves_pyarrow(store: str) -> None:
    storage.write_bytes(storage.join(store, "keep"), b"")
    with storage.arrow_filesystem(store).open_output_stream(storage.path_of(storage.join(store, "t.parquet"))) as sink:
        pq.write_table(pa.table({"a": [1, 2]}), sink)
    assert pq.read_table(pa.BufferReader(storage.read_bytes(storage.join(store, "t.parquet"))))["a"].to_pylist() == [
        1,
        2,
    ]


def test_interrupted_local_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        storage.write_bytes(str(tmp_path / "x.bin"), None)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_other_schemes_are_refused() -> None:
    for uri in ("gs://bucket/x", "ftp://host/x", "s3://"):
        with pytest.raises(ConfigError, match="expected a local path or s3://"):
            storage.normalise(uri)


def test_listing_of_many_pages_has_each_name_once(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.s3, "LISTING_PAGE", 3)
    names = sorted(f"{folder}/{i}" for folder in "ab" for i in range(5))
    for name in names:
        storage.write_bytes(storage.join(store, name), b"x")
    storage.write_bytes(f"{store}-beside/c", b"x")
    assert [name for name, _ in storage.walk(store)] == names


def test_names_of_any_letters_are_written_listed_and_read_in_ranges(store: str) -> None:
    names = ["a b.bin", "a+b.bin", "a%20b.bin", "größe/ü.bin", "q?x=1&y#z.bin", "quote'\".bin"]
    for i, name in enumerate(names):
        storage.write_bytes(storage.join(store, name), bytes(range(i, i + 9)))
    assert sorted(storage.find(store)) == sorted(names)
    for i, name in enumerate(names):
        assert storage.read_range(storage.join(store, name), 2, 5) == bytes(range(i + 2, i + 5))
        assert storage.read_range(storage.join(store, name), 7, 99) == bytes(range(i + 7, i + 9))
        assert storage.read_range(storage.join(store, name), 20, 99) == b""
        storage.remove(storage.join(store, name))
    with pytest.raises(FileNotFoundError):
        storage.read_range(storage.join(store, names[0]), 2, 5)


def test_shards_of_a_store_are_those_of_a_folder(store: str, chips: Path, tmp_path: Path) -> None:
    settings = ShardSettings(folds="3", tiles_per_shard=5)
    shard_chips(chips, store, settings)
    shard_chips(chips, tmp_path / "here", settings)
    names = ["index.parquet", "manifest.json", *(f"shard-0000{i}.parquet" for i in range(3))]
    assert list(storage.find(store)) == names
    for name in names:
        assert storage.read_bytes(storage.join(store, name)) == (tmp_path / "here" / name).read_bytes()
    one, other = TileReader(store, ("B02", "B08")), TileReader(str(tmp_path / "here"), ("B02", "B08"))
    for i in range(len(other)):
        assert (one.read(i)[0] == other.read(i)[0]).all()


def test_ingest_in_the_public_layout_goes_on_where_it_was_cut_off(
    store: str, chips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = storage.join(store, "archive")
    for path in chips.rglob("*"):
        if path.is_file():
            uri = storage.join(source, "public", *path.relative_to(chips).parts)
            storage.write_bytes(uri.replace("/train_", "/public_"), path.read_bytes())
    settings = ShardSettings(folds="3", tiles_per_shard=5)
    shard_chips(source, storage.join(store, "whole"), settings)
    cut = storage.join(store, "cut")
    for work in plan_chips(source, cut, settings)[:2]:
        write_shard(work)
    written: list[str] = []
    true_write = storage.write_bytes

    def write_bytes(uri: str, data: bytes) -> None:
        written.append(storage.name_of(uri))
        true_write(uri, data)

    monkeypatch.setattr(storage, "write_bytes", write_bytes)
    shard_chips(source, cut, settings)
    assert written == ["shard-00002.parquet", "shard-00002.parquet", "manifest.json"], "the shard, its part, the end"
    for name in storage.find(cut):
        assert storage.read_bytes(storage.join(cut, name)) == storage.read_bytes(storage.join(store, "whole", name))


def test_tiles_and_chips_read_the_same_from_the_store(store: str, chips: Path) -> None:
    for path in chips.rglob("*"):
        if path.is_file():
            storage.write_bytes(storage.join(store, "chips", str(path.relative_to(chips))), path.read_bytes())
    ours = open_archive(storage.join(store, "chips"), BANDS)
    local = open_archive(str(chips), BANDS)
    assert [chip.chip_id for chip in ours.chips] == [chip.chip_id for chip in local.chips]
    for one, other in zip(ours.chips, local.chips, strict=True):
        pixels = read_chip(one.chip_id, one.bands).pixels
        assert (pixels == read_chip(other.chip_id, other.bands).pixels).all()
        assert pixels.dtype == np.uint16


def test_everything_below_a_folder_is_removed_and_nothing_beside_it(store: str) -> None:
    for name in ("gone/a", "gone/b/c", "gone/b/d/e", "gone-not/a", "stays"):
        storage.write_bytes(storage.join(store, *name.split("/")), b"x")
    storage.remove_below(storage.join(store, "gone"))
    assert list(storage.find(store)) == ["gone-not/a", "stays"]
    assert not storage.exists(storage.join(store, "gone"))
    storage.remove_below(storage.join(store, "absent"))


def test_a_search_goes_on_from_its_record_in_any_store(store: str) -> None:
    """One trial is done, one was cut off: another process finds both as they were."""
    settings = SearchSettings(
        member=members(("small-byob-4b",))[0],
        shards=store,
        shards_digest="d",
        fold=0,
        kept_back=1,
        space={"optimiser.lr": "loguniform(0.001, 1)"},
        trial_epochs=1,
    )
    record = Record(store)
    assert record.trials() == []
    record.claim(settings)
    search = Search(record, settings, Budget(trials=2), Finals(finalists=0))
    values = {"score": 0.5, "loss": 1.0, "learning_rate": 0.1, "train_s": 1.0, "validation_s": 1.0}
    for _ in range(2):
        trial = search.next(1)
        assert trial is not None
        search.add_epoch(trial.name, 1, values)
    search.end("trial-0000", "finished")
    search.leave()
    again = Search(Record(store), settings, Budget(trials=2), Finals(finalists=0))
    assert again.trials == search.trials
    assert [trial.state for trial in again.trials] == ["finished", "running"]
    with pytest.raises(ConfigError, match=r"fold: 0 -> 2"):
        Record(store).claim(settings.model_copy(update={"fold": 2}))
    results = write_results(store, again, {})
    for uri in (results.best_uri, results.trials_uri, results.report_uri):
        assert storage.exists(uri)
