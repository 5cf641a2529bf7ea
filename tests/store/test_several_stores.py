"""Source and destination in different stores, with different keys, in one process; what each request says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raytrain import storage
from raytrain.config import ShardSettings
from raytrain.errors import ConfigError
from raytrain.storage import Stores, read_stores
from raytrain.tiles.reader import TileReader
from tests.making import shard_chips
from tests.store.swift import Swift
from tests.webserver import WebServer

LISTING = b"""<?xml version="1.0"?><ListBucketResult><Name>cogs</Name><IsTruncated>false</IsTruncated>
<Contents><Key>a/b.bin</Key><Size>3</Size><ETag>"e"</ETag></Contents></ListBucketResult>"""
PAYER = "x-amz-request-payer"


class OtherSwift(Swift):
    """A server whose key is of the same name, but has another secret."""

    secret_key = "another-secret"


@pytest.fixture(scope="module")
def other_server(swift_server: Swift, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    server = OtherSwift(tmp_path_factory.mktemp("other-swift"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def no_table() -> Iterator[None]:
    yield
    storage.use_stores(Stores())


@pytest.fixture
def profiles(
    swift_server: Swift, other_server: Swift, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Swift]:
    """Both servers by the profile that has their keys; the environment has keys that neither takes."""
    servers = {"source": swift_server, "destination": other_server}
    lines = [
        f"[{name}]\naws_access_key_id = {server.access_key}\naws_secret_access_key = {server.secret_key}\n"
        for name, server in servers.items()
    ]
    (tmp_path / "credentials").write_text("".join(lines))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-the-environment")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong everywhere")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    table = "".join(
        f'[stores."s3://{name}"]\nprofile = "{name}"\nendpoint = "{server.endpoint}"\nregion = "us-east-1"\n'
        for name, server in servers.items()
    )
    storage.use_stores(read_stores(table, "table"))
    for name in servers:
        if not storage.exists(f"s3://{name}"):
            storage.filesystem(f"s3://{name}").mkdir(name)
    return servers


def test_shards_go_from_one_store_to_another_each_by_its_own_keys(profiles: dict[str, Swift], chips: Path) -> None:
    for path in chips.rglob("*"):
        if path.is_file():
            storage.write_bytes(storage.join("s3://source/chips", *path.relative_to(chips).parts), path.read_bytes())
    shard_chips("s3://source/chips", "s3://destination/shards", ShardSettings(folds="3", tiles_per_shard=5))
    names = storage.find("s3://destination/shards")
    assert {"manifest.json", "index.parquet"} < set(names)
    assert storage.find("s3://source/shards") == {}
    assert TileReader("s3://destination/shards", ("B02",)).read(0)[0].shape == (1, 64, 64)
    uri = "s3://destination/shards/index.parquet"
    with storage.arrow_filesystem(uri).open_input_file(storage.path_of(uri)) as file:
        assert pq.read_table(file).num_rows == 12
    assert storage.identity_of(uri) == storage.identity_of(uri, names["index.parquet"])
    with storage.open_ranged(uri, block_bytes=1000) as ranged:
        assert ranged.read() == storage.read_bytes(uri)


def test_wrong_keys_are_refused_with_the_settings_of_the_store(profiles: dict[str, Swift]) -> None:
    crossed = f'[stores."s3://source/x"]\nprofile = "destination"\nendpoint = "{profiles["source"].endpoint}"'
    storage.use_stores(read_stores(crossed, "table"))
    for refused in (
        lambda: storage.read_bytes("s3://source/x/y"),
        lambda: storage.read_range("s3://source/x/y", 0, 5),
        lambda: storage.find("s3://source/x"),
        lambda: storage.write_bytes("s3://source/x/y", b""),
    ):
        with pytest.raises(PermissionError, match=r'check \[stores\."s3://source/x"\] \(.*profile = destination'):
            refused()


def test_a_profile_that_is_nowhere_is_named(profiles: dict[str, Swift]) -> None:
    storage.use_stores(read_stores('[stores."s3://source"]\nprofile = "absent"', "table"))
    for asked in (lambda: storage.read_bytes("s3://source/x"), lambda: storage.find("s3://source")):
        with pytest.raises(ConfigError, match="no profile 'absent'"):
            asked()


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with WebServer({"/cogs/a/b.bin": b"abc"}, {"/cogs": [(200, {"Content-Type": "application/xml"}, LISTING)]}) as web:
        yield web


def ask_everything(web: WebServer) -> None:
    uri = "s3://cogs/a/b.bin"
    assert list(storage.find("s3://cogs/a")) == ["b.bin"]
    assert storage.read_bytes(uri) == b"abc"
    assert storage.read_range(uri, 1, 3) == b"bc"
    assert storage.exists(uri)
    assert storage.identity_of(uri).startswith("3:")
    with storage.arrow_filesystem(uri).open_input_file("cogs/a/b.bin") as file:
        assert file.read() == b"abc"
    storage.write_bytes("s3://cogs/new", b"new")
    assert {each.method for each in web.asked} == {"GET", "HEAD", "PUT"}


def test_an_anonymous_store_gets_no_signature_though_keys_are_there(
    recording: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for keys in ({}, {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}):
        for name, value in keys.items():
            monkeypatch.setenv(name, value)
        recording.answers["/cogs"] = [(200, {"Content-Type": "application/xml"}, LISTING)]
        table = f'[stores."s3://cogs"]\nanonymous = true\nendpoint = "{recording.origin}"\nregion = "us-west-2"'
        storage.use_stores(read_stores(table, "table"))
        ask_everything(recording)
    assert not any("authorization" in each.headers or "X-Amz-Signature" in each.target for each in recording.asked)
    assert not any(PAYER in each.headers for each in recording.asked)


def test_a_requester_who_pays_says_so_in_every_request_and_signs_it(
    recording: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    table = f'[stores."s3://cogs"]\nrequester_pays = true\nendpoint = "{recording.origin}"\nregion = "us-west-2"'
    storage.use_stores(read_stores(table, "table"))
    ask_everything(recording)
    for each in recording.asked:
        assert each.headers.get(PAYER) == "requester", f"{each.method} {each.target}"
        assert PAYER in each.headers["authorization"], "within what is signed"
        assert "/us-west-2/s3/" in each.headers["authorization"]
