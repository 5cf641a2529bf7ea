"""The stores of the contract: a local folder, moto in this process, OpenStack Swift as servers of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from raytrain import storage
from tests.store.swift import Swift, installed


@pytest.fixture(scope="session")
def swift_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    """An S3 server that keeps what it has on disk and refuses wrong keys."""
    try:
        installed()
    except RuntimeError as error:
        pytest.skip(f"no Swift: {error}")
    server = Swift(tmp_path_factory.mktemp("swift"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def swift(swift_server: Swift, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The URI of a folder on that server, whose address and keys stand in the environment."""
    for name, value in swift_server.environment().items():
        monkeypatch.setenv(name, value)
    if not storage.exists("s3://bucket"):
        storage.filesystem("s3://bucket").mkdir("bucket")
    return f"s3://bucket/{abs(hash(request.node.nodeid)):x}"


@pytest.fixture(params=["local", "moto", "swift"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of an empty folder in each kind of store."""
    if request.param == "local":
        return str(tmp_path / "folder")
    if request.param == "moto":
        return f"{request.getfixturevalue('s3')}/{tmp_path.name}"
    return str(request.getfixturevalue("swift"))
