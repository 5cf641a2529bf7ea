"""The cache gives back what was read or nothing, stays within its bound, and never stands in the way."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from raytrain import storage
from raytrain.config import LoaderSettings
from raytrain.errors import ConfigError
from raytrain.tiles.cache import SLACK_BYTES, ShardCache
from raytrain.tiles.reader import TileReader
from tests.making import BANDS, make_tile, write_tiles

TILES = [make_tile(i, (64, 64), labelled=i != 2) for i in range(6)]
GB = 1.0


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_tiles(tmp_path / "shards", TILES, "blosc2-bitshuffle-zstd", tiles_per_shard=4)
    return tmp_path / "shards"


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The ranges that are read from the store: name of the object and number of bytes."""
    found: list[tuple[str, int]] = []
    true_read = storage.read_range

    def read_range(uri: str, start: int, end: int) -> bytes:
        found.append((storage.name_of(uri), end - start))
        return true_read(uri, start, end)

    monkeypatch.setattr(storage, "read_range", read_range)
    return found


def loader(folder: Path, limit_gb: float = GB) -> LoaderSettings:
    return LoaderSettings(cache_folder=str(folder), cache_limit_gb=limit_gb)


def read_all(reader: TileReader) -> None:
    for i, tile in enumerate(TILES):
        pixels, label = reader.read(i)
        assert (pixels == np.stack([tile.bands[band] for band in reader.bands])).all()
        assert (label is None) if tile.label is None else (label == tile.label).all()


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def test_what_was_read_once_is_not_fetched_again_by_any_process(
    shards: Path, tmp_path: Path, fetched: list[tuple[str, int]]
) -> None:
    read_all(TileReader(str(shards), ("B02", "B03"), loader(tmp_path / "cache")))
    assert len(fetched) == len(TILES)
    read_all(TileReader(str(shards), ("B02", "B03"), loader(tmp_path / "cache")))
    sent = pickle.loads(pickle.dumps(TileReader(str(shards), ("B03",), loader(tmp_path / "cache"))))
    read_all(sent)
    assert len(fetched) == len(TILES)


def test_member_of_more_bands_fetches_only_those_that_are_not_there(
    shards: Path, tmp_path: Path, fetched: list[tuple[str, int]]
) -> None:
    read_all(TileReader(str(shards), ("B02", "B03", "B04"), loader(tmp_path / "cache")))
    before = sum(size for _, size in fetched)
    fetched.clear()
    read_all(TileReader(str(shards), ("B02", "B03", "B04", "B08"), loader(tmp_path / "cache")))
    assert len(fetched) == len(TILES)
    assert 0 < sum(size for _, size in fetched) < before / 2


def test_damaged_and_torn_mirrors_are_misses_and_are_mended(
    shards: Path, tmp_path: Path, fetched: list[tuple[str, int]]
) -> None:
    cache = tmp_path / "cache"
    read_all(TileReader(str(shards), ("B02", "B03"), loader(cache)))
    (mirror,) = cache.rglob("shard-00000.parquet")
    data = bytearray(mirror.read_bytes())
    data[len(data) // 3 : 2 * len(data) // 3] = os.urandom(2 * len(data) // 3 - len(data) // 3)
    mirror.write_bytes(data)
    fetched.clear()
    read_all(TileReader(str(shards), ("B02", "B03"), loader(cache)))
    assert 0 < len(fetched) < 4
    os.truncate(mirror, 1000)
    fetched.clear()
    read_all(TileReader(str(shards), ("B02", "B03"), loader(cache)))
    assert {name for name, _ in fetched} == {"shard-00000.parquet"}
    fetched.clear()
    read_all(TileReader(str(shards), ("B02", "B03"), loader(cache)))
    assert fetched == []


def test_cache_keeps_within_its_bound_and_a_full_one_is_passed_by(
    shards: Path, tmp_path: Path, fetched: list[tuple[str, int]], caplog: pytest.LogCaptureFixture
) -> None:
    cache, limit_bytes = tmp_path / "cache", 150_000
    reader = TileReader(str(shards), BANDS, loader(cache, limit_bytes / 1e9))
    read_all(reader)
    read_all(reader)
    assert len(TILES) < len(fetched) < 2 * len(TILES), "some of it is kept, not all"
    assert 0 < on_disk(cache / "sets") <= limit_bytes
    assert [record.message for record in caplog.records if "the cache is full" in record.message] != []
    fetched.clear()
    read_all(TileReader(str(shards), BANDS, loader(cache)))  # a higher bound
    read_all(TileReader(str(shards), BANDS, loader(cache)))
    assert 0 < len(fetched) < len(TILES)


def test_set_that_nobody_uses_makes_room_and_one_in_use_does_not(tmp_path: Path) -> None:
    data = os.urandom(100_000)
    old, used = ShardCache(tmp_path, 250_000, "old"), ShardCache(tmp_path, 250_000, "used")
    old.write("s", 0, data)
    used.write("s", 0, data)
    old.close()
    new = ShardCache(tmp_path, 250_000, "new")
    new.write("s", 0, data)
    assert new.read("s", 0, len(data)) == data
    assert used.read("s", 0, len(data)) == data
    assert not (tmp_path / "sets" / "old").exists()
    new.write("t", 0, data)
    assert new.read("t", 0, len(data)) is None, "what is in use was removed, or the bound was passed"
    assert on_disk(tmp_path / "sets") <= 250_000


def test_other_shards_at_the_same_uri_are_another_set(
    shards: Path, tmp_path: Path, fetched: list[tuple[str, int]]
) -> None:
    read_all(TileReader(str(shards), ("B02",), loader(tmp_path / "cache")))
    others = [make_tile(i + 10, (64, 64)) for i in range(6)]
    write_tiles(shards, others, "blosc2-bitshuffle-zstd", tiles_per_shard=4)
    reader = TileReader(str(shards), ("B02",), loader(tmp_path / "cache"))
    assert all((reader.read(i)[0][0] == tile.bands["B02"]).all() for i, tile in enumerate(others))
    assert Counter(path.name for path in (tmp_path / "cache" / "sets").rglob("shard-*")) == {
        "shard-00000.parquet": 2,
        "shard-00001.parquet": 2,
    }


def test_full_disk_costs_the_cache_and_not_the_training(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*arguments: object, **options: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    reader = TileReader(str(shards), ("B02",), loader(tmp_path / "cache"))
    monkeypatch.setattr(os, "pwrite", full)
    read_all(reader)
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / 'cache'}: can't write (ENOSPC); further tiles are read from the store each time"
    ]
    monkeypatch.setattr(Path, "mkdir", full)
    read_all(TileReader(str(shards), ("B02",), loader(tmp_path / "other")))


@pytest.mark.skipif(os.geteuid() != 0, reason="a real full disk is a small tmpfs, which only root can mount")
def test_really_full_disk_is_survived(shards: Path, tmp_path: Path, fetched: list[tuple[str, int]]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)], check=True)
    try:
        reader = TileReader(str(shards), BANDS, loader(disk / "cache"))
        read_all(reader)
        read_all(reader)
        assert len(TILES) < len(fetched) < 2 * len(TILES)
        del reader
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_place_where_there_can_be_no_cache_is_a_mistake(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"no cache can be in .*file"):
        TileReader(str(shards), ("B02",), loader(tmp_path / "file"))


def test_many_processes_and_threads_share_one_bounded_cache(shards: Path, tmp_path: Path) -> None:
    cache, limit_bytes = tmp_path / "cache", 150_000
    program = (
        "import sys, threading\n"
        "from raytrain.config import LoaderSettings\n"
        "from raytrain.tiles.reader import TileReader\n"
        "settings = LoaderSettings(cache_folder=sys.argv[2], cache_limit_gb=float(sys.argv[3]))\n"
        "reader = TileReader(sys.argv[1], ('B02', 'B03', 'B04', 'B08'), settings)\n"
        "work = lambda: [reader.read(i)[0].sum() for _ in range(10) for i in range(len(reader))]\n"
        "threads = [threading.Thread(target=work) for _ in range(4)]\n"
        "[each.start() for each in threads]\n[each.join() for each in threads]\n"
        "print(sum(int(reader.read(i)[0].sum()) for i in range(len(reader))))\n"
    )
    command = [sys.executable, "-c", program, str(shards), str(cache), str(limit_bytes / 1e9)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    sums = {process.communicate(timeout=120)[0].strip() for process in processes}
    expected = sum(int(tile.bands[band].sum(dtype=np.int64)) for tile in TILES for band in BANDS[:4])
    assert sums == {str(expected)}
    assert 0 < on_disk(cache / "sets") <= limit_bytes


def test_count_of_what_is_used_is_right_however_many_write(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom raytrain.tiles.cache import ShardCache\n"
        "cache = ShardCache(Path(sys.argv[1]), 10**9, 'set')\n"
        "[cache.write(sys.argv[2], 20_000 * i, bytes(10_000)) for i in range(300)]\n"
        "input()\n"
    )
    first = ShardCache(tmp_path, 10**9, "set")  # so that none of them counts anew
    commands = [[sys.executable, "-c", program, str(tmp_path), f"shard{i}"] for i in range(4)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE) for command in commands]
    for process in processes:
        process.communicate(b"\n", timeout=120)
    assert int((tmp_path / "used").read_text()) == 4 * 300 * (10_000 + SLACK_BYTES)
    first.close()


@pytest.mark.parametrize("content", [b"", b"12", b"x" * 20])
def test_torn_count_is_counted_again(tmp_path: Path, content: bytes) -> None:
    data = os.urandom(100_000)
    cache = ShardCache(tmp_path, 250_000, "set")
    cache.write("s", 0, data)
    (tmp_path / "used").write_bytes(content)
    cache.write("s", 200_000, data)
    cache.write("s", 400_000, data)
    assert cache.read("s", 200_000, 300_000) == data
    assert on_disk(tmp_path / "sets") <= 250_000


def test_cache_that_vanishes_costs_the_cache_and_not_the_training(shards: Path, tmp_path: Path) -> None:
    reader = TileReader(str(shards), ("B02",), loader(tmp_path / "cache"))
    reader.read(0)
    shutil.rmtree(tmp_path / "cache")
    read_all(reader)
