"""With faults between client and store every tile arrives intact, or the error says which tile, where, what to do."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from raytrain import storage
from raytrain.config import LoaderSettings, ShardSettings
from raytrain.errors import DataError, StoreOutOfReach
from raytrain.storage import Retries
from raytrain.tiles.reader import TileReader
from tests.making import BANDS, make_tile, shard_chips, write_tiles
from tests.store import faults
from tests.store.faults import Fault, FaultProxy
from tests.store.swift import Swift

TILES = [make_tile(i, (40, 50)) for i in range(4)]
PASSING = {
    "503": faults.UNAVAILABLE,
    "500": faults.INTERNAL_ERROR,
    "reset": faults.RESET,
    "reset mid-body": faults.RESET_MID_BODY,
    "truncated": faults.TRUNCATED,
    "short": faults.SHORT,
    "corrupt": faults.CORRUPT,
    "404 once": faults.NOT_FOUND,
    "slow": faults.slow_start(0.6),
}


@pytest.fixture
def proxy(swift: str, swift_server: Swift, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before Swift, which the environment names as the store; retries wait little, and not for long."""
    monkeypatch.setattr(storage.retries, "RETRIES", Retries(attempts=5, first_wait_s=0.01, longest_wait_s=0.05))
    monkeypatch.setattr(storage.s3, "READ_TIMEOUT_S", 0.4)
    with FaultProxy(swift_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture
def reader(proxy: FaultProxy, swift: str) -> TileReader:
    write_tiles(swift, TILES, "blosc2-bitshuffle-zstd", tiles_per_shard=2)
    reader = TileReader(swift, BANDS[:4])
    proxy.requests.clear()
    return reader


def assert_intact(reader: TileReader) -> None:
    for i, tile in enumerate(TILES):
        pixels, label = reader.read(i)
        assert (pixels == np.stack([tile.bands[band] for band in reader.bands])).all()
        assert label is not None
        assert (label == tile.label).all()


def test_tile_is_one_ranged_read_and_a_kept_one_is_none(reader: TileReader, proxy: FaultProxy, tmp_path: Path) -> None:
    assert_intact(reader)
    assert [method for method, _ in proxy.requests] == ["GET"] * len(TILES)
    kept = TileReader(reader.uri, reader.bands, LoaderSettings(cache_folder=str(tmp_path / "cache")))
    assert_intact(kept)
    proxy.requests.clear()
    proxy.inject(faults.RESET, times=None)
    assert_intact(kept)
    assert proxy.requests == []


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING.keys())
def test_every_tile_arrives_intact_through_a_fault_that_passes(
    reader: TileReader, proxy: FaultProxy, fault: Fault
) -> None:
    proxy.inject(fault, times=2, match="shard-00000")
    assert_intact(reader)
    assert len(proxy.requests) == len(TILES) + 2, "asked no more often than needed"


def test_tile_and_shard_are_named_once_the_attempts_are_used_up(reader: TileReader, proxy: FaultProxy) -> None:
    for fault in (faults.UNAVAILABLE, faults.INTERNAL_ERROR, faults.RESET, faults.TRUNCATED, faults.slow_start(0.6)):
        proxy.clear()
        proxy.requests.clear()
        proxy.inject(fault, times=None, match="shard-00001")
        with pytest.raises(StoreOutOfReach) as caught:
            reader.read(3)
        assert str(caught.value).startswith(f"tile tile3 in {reader.uri}/shard-00001.parquet: out of reach, 5 attempts")
        # aiohttp repeats a request by itself, once, where a connection that it had kept open is reset.
        assert len(proxy.requests) == 5 or (fault is faults.RESET and len(proxy.requests) <= 10)
        assert reader.read(0)[0].shape == (4, 40, 50), "a good shard beside it goes on"
    for fault, found in (
        (faults.NOT_FOUND, "no such file"),
        (faults.CORRUPT, "not those"),
        (faults.SHORT, "bytes where"),
    ):
        proxy.clear()
        proxy.inject(fault, times=None, match="shard-00001")
        with pytest.raises(DataError, match=rf"tile tile3 in .*/shard-00001\.parquet: .*{found}"):
            reader.read(3)


def test_refused_keys_are_an_error_at_once_that_says_what_to_check(
    reader: TileReader, proxy: FaultProxy, swift_server: Swift, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.inject(faults.FORBIDDEN, times=None)
    with pytest.raises(PermissionError, match=r"shard-00000\.parquet: access refused .*check AWS_ACCESS_KEY_ID"):
        reader.read(0)
    assert len(proxy.requests) == 1
    monkeypatch.setenv("AWS_ENDPOINT_URL", swift_server.endpoint)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a wrong one")
    with pytest.raises(PermissionError, match=r"manifest\.json: access refused .*check AWS_ACCESS_KEY_ID"):
        TileReader(reader.uri, ("B02",))


@pytest.mark.parametrize("fault", [*PASSING.values(), faults.ANSWER_LOST], ids=[*PASSING.keys(), "answer lost"])
def test_ingest_through_faults_ends_with_the_same_bytes(
    proxy: FaultProxy, swift: str, chips: Path, fault: Fault
) -> None:
    source = upload(chips, storage.join(swift, "chips"))
    settings = ShardSettings(folds="3", tiles_per_shard=5)
    shard_chips(source, storage.join(swift, "calm"), settings)
    matches = ["B08.tif", "_labels/", "rough/unfinished/shard-00001"]
    if fault is not faults.NOT_FOUND:  # of these that is an answer: nobody named them before
        matches += ["train_metadata.csv", "rough/shard-00001"]
    if fault not in (faults.SHORT, faults.CORRUPT, faults.NOT_FOUND):  # a listing has no hash
        matches += ["list-type=2", "rough/index.parquet"]
    for match in matches:
        proxy.inject(fault, times=2, match=match, method="GET" if fault is faults.NOT_FOUND else None)
    proxy.requests.clear()
    shard_chips(source, storage.join(swift, "rough"), settings)
    assert all(any(match in path for _, path in proxy.requests) for match in matches), "some fault was not met"
    assert bytes_of(storage.join(swift, "rough")) == bytes_of(storage.join(swift, "calm"))


def test_no_key_stands_in_a_log_an_object_or_an_error(
    s3: str, chips: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key, secret = "AKIAVERYSECRETKEYID1", "wJalrXUtnFEMI/K7MDENG/bPxRfiCY+verysecret"
    caplog.set_level(logging.DEBUG, logger="raytrain")
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(storage.retries, "RETRIES", Retries(attempts=3, first_wait_s=0.01, longest_wait_s=0.01))
    texts: list[str] = []
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        source = upload(chips, storage.join(s3, "secrets", "chips"))
        shards = storage.join(s3, "secrets", "shards")
        proxy.inject(faults.UNAVAILABLE, times=2)
        shard_chips(source, shards, ShardSettings(folds="3"))
        reader = TileReader(shards, ("B02",))
        for fault in (faults.UNAVAILABLE, faults.FORBIDDEN, faults.NOT_FOUND, faults.RESET, faults.SHORT):
            proxy.clear()
            proxy.inject(fault, times=None)
            with pytest.raises((StoreOutOfReach, DataError, PermissionError)) as caught:
                reader.read(0)
            error: BaseException | None = caught.value
            while error is not None:
                texts += [str(error), repr(error)]
                error = error.__cause__
        proxy.clear()
        written = b"".join(bytes_of(shards).values())
    assert any("again in" in record.message for record in caplog.records), "retries are in the log"
    texts += [f"{record.getMessage()} {record.exc_text}" for record in caplog.records]
    for hidden in (key, secret):
        assert not any(hidden in text for text in texts)
        assert hidden.encode() not in written


def upload(folder: Path, uri: str) -> str:
    for path in folder.rglob("*"):
        if path.is_file():
            storage.write_bytes(storage.join(uri, *path.relative_to(folder).parts), path.read_bytes())
    return uri


def bytes_of(uri: str) -> dict[str, bytes]:
    return {name: storage.read_bytes(storage.join(uri, name)) for name in storage.find(uri)}
