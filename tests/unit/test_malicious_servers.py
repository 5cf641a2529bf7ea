"""Servers that send more than they were asked for: no more of it is read than was wanted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytrain import storage
from raytrain.errors import StoreOutOfReach
from raytrain.storage import NoRanges, Retries, Stores, StoreSettings, http
from raytrain.tiles import reader
from tests.making import make_tile, write_tiles

ENDLESS_MIB = 256
"""What the server would send: far more than lies in the buffers of sockets."""


@dataclass
class Flood:
    """A server that answers each GET with pieces of a MiB, whatever was asked, by `status` and with a `length`."""

    status: int = 206
    length: str = ""
    sent_mib: int = 0
    origin: str = ""


@pytest.fixture
def flood(monkeypatch: pytest.MonkeyPatch) -> Iterator[Flood]:
    found = Flood()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()

        def do_GET(self) -> None:
            self.send_response(found.status)
            if found.status == 206:
                self.send_header("Content-Range", "bytes 0-65535/100000000")
            if found.length:
                self.send_header("Content-Length", found.length)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                for _ in range(ENDLESS_MIB):
                    self.wfile.write(b"100000\r\n" + bytes(2**20) + b"\r\n")
                    found.sent_mib += 1
                self.wfile.write(b"0\r\n\r\n")
            except OSError:
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    monkeypatch.setattr(storage.retries, "RETRIES", Retries(attempts=2, first_wait_s=0.01, longest_wait_s=0.01))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        found.origin = f"http://127.0.0.1:{server.server_address[1]}"
        storage.use_stores(
            Stores(
                stores={
                    found.origin: StoreSettings(private_address=True),
                    "s3://bucket": StoreSettings(endpoint=found.origin, anonymous=True, region="us-east-1"),
                }
            )
        )
        yield found
        storage.use_stores(Stores())
        server.shutdown()


@pytest.mark.parametrize(("status", "length"), [(206, ""), (206, "65536"), (200, "65536")])
@pytest.mark.parametrize("kind", ["http", "s3"])
def test_more_than_the_asked_range_is_not_read(flood: Flood, kind: str, status: int, length: str) -> None:
    flood.status, flood.length = status, length
    uri = f"{flood.origin}/a.tif" if kind == "http" else "s3://bucket/a.tif"
    with pytest.raises(StoreOutOfReach, match="bytes or more where 65536 were asked"):
        storage.read_range(uri, 0, 65536)
    assert flood.sent_mib < 64


def test_what_a_server_says_of_an_error_is_not_read_without_end(flood: Flood) -> None:
    flood.status = 404
    with pytest.raises(FileNotFoundError):
        storage.read_range("s3://bucket/a.tif", 0, 4)
    assert flood.sent_mib < 64


def test_a_body_of_unknown_size_is_counted_up_to_a_limit(flood: Flood, monkeypatch: pytest.MonkeyPatch) -> None:
    flood.status = 200
    monkeypatch.setattr(http, "LARGEST_UNSAID_BYTES", 4 * 2**20)
    for ask in (storage.size_of, storage.identity_of):
        with pytest.raises(NoRanges, match=r"/a\.tif: more than 4194304 bytes, and its server does not say how many"):
            ask(f"{flood.origin}/a.tif")
    assert flood.sent_mib < 64
    monkeypatch.setattr(http, "LARGEST_UNSAID_BYTES", 2 * ENDLESS_MIB * 2**20)
    before = peak_kib()
    assert storage.size_of(f"{flood.origin}/a.tif") == ENDLESS_MIB * 2**20
    assert peak_kib() - before < 64 * 2**10, "it is counted, not held"


def peak_kib() -> int:
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def test_whose_a_file_is_is_told_by_its_footer_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiles(tmp_path, [make_tile(i, (32, 32)) for i in range(3)], "raw")
    large = tmp_path / "large.parquet"
    noise = np.random.default_rng(0).integers(0, 2**62, 4_000_000)
    pq.write_table(pa.table({"x": noise}), large, use_dictionary=False)
    assert large.stat().st_size > 30 * 2**20
    read = []
    whole = storage.objects.read_range

    def read_range(uri: str, start: int, end: int) -> bytes:
        data = whole(uri, start, end)
        read.append(len(data))
        return data

    monkeypatch.setattr(storage.objects, "read_range", read_range)
    monkeypatch.setattr(storage.objects, "_local_bytes", None)
    assert reader.is_ours(str(tmp_path / "shard-00000.parquet"))
    assert not reader.is_ours(str(large))
    assert sum(read) < 10 * 2**20
