"""The services of other tests: Swift keeps data and checks keys, and the proxy does to requests what it says."""

from __future__ import annotations

import hashlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import botocore.session
import numpy as np
import pytest
import rasterio
import s3fs
from botocore.config import Config
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer
from pyarrow import fs
from rasterio.io import MemoryFile

from tests.store import faults
from tests.store.faults import Fault, FaultProxy
from tests.store.swift import Swift

BUCKET = "services"
BODY = bytes(range(256)) * 24_000  # 6 MB: more than the buffers between two sockets
LIMIT_S = 20.0


@pytest.fixture(scope="module")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    server = Swift(tmp_path_factory.mktemp("swift"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def _client(endpoint: str, *, secret: str = Swift.secret_key, key: str = Swift.access_key) -> Any:
    config = Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1})
    return botocore.session.Session().create_client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        region_name=Swift.region,
        config=config,
    )


def _digest(data: bytes) -> str:
    """Return what tells megabytes apart, and fits into the message of a failed assertion."""
    return hashlib.sha256(data).hexdigest()


class Plain:
    """A server whose every GET is answered with BODY, and that keeps what it gets."""

    def __init__(self) -> None:
        plain = self
        self.seen: list[tuple[str, str]] = []
        self.uploads: list[str] = []  # their digests
        self.hosts: list[str | None] = []
        self.clients: set[socket.socket] = set()  # one a connection

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _note(self) -> None:
                plain.seen.append((self.command, self.path))
                plain.hosts.append(self.headers["Host"])
                plain.clients.add(self.connection)

            def _answer(self, status: int, body: bytes, length: int | None) -> None:
                self.send_response(status)
                self.send_header("ETag", '"of-the-server"')
                if length is not None:
                    self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                self._note()
                if self.path.startswith("/status/"):
                    self._answer(int(self.path.removeprefix("/status/")), b"", None)
                elif self.path == "/chunked":
                    self.send_response(200)
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    self.wfile.write(b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n")
                elif self.path == "/to-the-end":
                    self.close_connection = True
                    self._answer(200, BODY, None)
                else:
                    self._answer(200, BODY, len(BODY))

            def do_HEAD(self) -> None:
                self._note()
                self._answer(200, b"", len(BODY))

            def do_PUT(self) -> None:
                self._note()
                if self.headers["Transfer-Encoding"] == "chunked":
                    body = b""
                    while count := int(self.rfile.readline(), 16):
                        body += self.rfile.read(count)
                        self.rfile.readline()
                    self.rfile.readline()
                else:
                    body = self.rfile.read(int(self.headers["Content-Length"]))
                plain.uploads.append(_digest(body))
                self._answer(200, b"", 0)

            def handle_expect_100(self) -> bool:
                if self.path != "/refused":
                    return super().handle_expect_100()
                self._note()
                self._answer(403, b"no", 2)
                self.close_connection = True
                return False

            def log_message(self, *arguments: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *arguments: object) -> None:
                """Clients may go away."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def drop_connections(self) -> None:
        for client in self.clients:
            client.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def plain() -> Iterator[Plain]:
    server = Plain()
    yield server
    server.stop()


@pytest.fixture
def proxy(plain: Plain) -> Iterator[FaultProxy]:
    with FaultProxy(plain.endpoint) as proxy:
        yield proxy


@pytest.fixture
def connection(proxy: FaultProxy) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(str(urlsplit(proxy.endpoint).netloc), timeout=LIMIT_S)
    yield connection
    connection.close()


def _ask(connection: http.client.HTTPConnection, method: str, path: str = "/x") -> tuple[int, bytes]:
    connection.request(method, path)
    answer = connection.getresponse()
    return answer.status, answer.read()


def _raw(endpoint: str, *messages: bytes) -> tuple[bytes, str]:
    """Send messages, each once something came back to the one before; return all that came and how it ended."""
    url = urlsplit(endpoint)
    got = bytearray()
    with socket.create_connection((url.hostname or "", url.port or 0), timeout=LIMIT_S) as raw:
        for number, message in enumerate(messages):
            if number:
                got += raw.recv(1 << 16)
            raw.sendall(message)
        try:
            while piece := raw.recv(1 << 16):
                got += piece
        except ConnectionResetError:
            return bytes(got), "reset"
        return bytes(got), "end"


# Swift


def test_data_survive_a_restart_of_swift_and_wrong_secrets_get_nothing(tmp_path: Path) -> None:
    swift = Swift(tmp_path / "with 100% odd name")
    swift.start()
    try:
        client = _client(swift.endpoint)
        client.create_bucket(Bucket=BUCKET)
        client.put_object(Bucket=BUCKET, Key="kept", Body=BODY)
        swift.stop()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(swift.endpoint.rsplit(":", 1)[1])))
        swift.start()
        assert client.get_object(Bucket=BUCKET, Key="kept", Range="bytes=300-699")["Body"].read() == BODY[300:700]
        assert [entry["Key"] for entry in client.list_objects_v2(Bucket=BUCKET)["Contents"]] == ["kept"]
        for wrong in (_client(swift.endpoint, secret="wrong"), _client(swift.endpoint, key="test:nobody")):
            with pytest.raises(ClientError) as refused:
                wrong.get_object(Bucket=BUCKET, Key="kept")
            assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    finally:
        swift.stop()


def test_swift_that_can_not_start_says_why(tmp_path: Path) -> None:
    swift = Swift(tmp_path)
    (tmp_path / "container.conf").write_text("[DEFAULT]\n")
    with pytest.raises(RuntimeError, match=r"container server ended with 1:\n.*No section 'container-server'"):
        swift.start()


# The clients


def _put_s3fs(endpoint: str, key: str, data: bytes) -> None:
    with _s3fs(endpoint).open(f"{BUCKET}/{key}", "wb", block_size=5 << 20) as sink:
        sink.write(data)


def _put_botocore(endpoint: str, key: str, data: bytes) -> None:
    _client(endpoint).put_object(Bucket=BUCKET, Key=key, Body=data)


def _put_arrow(endpoint: str, key: str, data: bytes) -> None:
    with _arrow(endpoint).open_output_stream(f"{BUCKET}/{key}") as sink:
        sink.write(data)


def _get_s3fs(endpoint: str, key: str) -> bytes:
    return bytes(_s3fs(endpoint).cat_file(f"{BUCKET}/{key}"))


def _get_botocore(endpoint: str, key: str) -> bytes:
    return bytes(_client(endpoint).get_object(Bucket=BUCKET, Key=key)["Body"].read())


def _get_arrow(endpoint: str, key: str) -> bytes:
    with _arrow(endpoint).open_input_file(f"{BUCKET}/{key}") as source:
        return bytes(source.read())


def _s3fs(endpoint: str) -> s3fs.S3FileSystem:
    return s3fs.S3FileSystem(
        endpoint_url=endpoint,
        key=Swift.access_key,
        secret=Swift.secret_key,
        client_kwargs={"region_name": Swift.region},
        skip_instance_cache=True,
    )


def _arrow(endpoint: str) -> fs.S3FileSystem:
    return fs.S3FileSystem(
        endpoint_override=endpoint, access_key=Swift.access_key, secret_key=Swift.secret_key, region=Swift.region
    )


PUTS = {"s3fs": _put_s3fs, "botocore": _put_botocore, "arrow": _put_arrow}
GETS = {"s3fs": _get_s3fs, "botocore": _get_botocore, "arrow": _get_arrow}


@pytest.fixture(scope="module")
def raster() -> tuple[bytes, np.ndarray]:
    """A GeoTIFF of more than one part of an upload, and its pixels."""
    pixels = np.random.default_rng(1).integers(0, 65536, (1, 1536, 2048), dtype=np.uint16)
    profile = {"driver": "GTiff", "count": 1, "height": 1536, "width": 2048, "dtype": "uint16", "tiled": True}
    with MemoryFile() as memory:
        with memory.open(**profile) as target:
            target.write(pixels)
        return memory.read(), pixels


@pytest.fixture(params=["moto", "swift"])
def endpoint(request: pytest.FixtureRequest) -> str:
    server = request.getfixturevalue(request.param)
    return server.endpoint if isinstance(server, Swift) else str(server)


def test_each_client_reads_what_every_other_wrote_through_the_proxy(
    endpoint: str, raster: tuple[bytes, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, pixels = raster
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", Swift.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", Swift.secret_key)
    with FaultProxy(endpoint) as proxy:
        _client(proxy.endpoint).create_bucket(Bucket=BUCKET)
        host = urlsplit(proxy.endpoint).netloc
        options = {"AWS_S3_ENDPOINT": host, "AWS_HTTPS": False, "AWS_VIRTUAL_HOSTING": False}
        for writer, put in PUTS.items():
            key = f"{tmp_path.name}/by {writer}.tif"
            put(proxy.endpoint, key, data)
            for reader, get in GETS.items():
                assert _digest(get(proxy.endpoint, key)) == _digest(data), reader
            with rasterio.Env(**options), rasterio.open(f"/vsis3/{BUCKET}/{key}") as source:
                assert (source.read() == pixels).all()
            methods = [method for method, target in proxy.requests if f"by%20{writer}.tif" in target]
            assert "PUT" in methods
            assert ("POST" in methods) == (writer != "botocore"), "the others upload in parts"
            assert methods.count("GET") > len(GETS)


# The proxy without faults


def test_requests_are_forwarded_with_their_host_on_kept_connections(
    plain: Plain, proxy: FaultProxy, connection: http.client.HTTPConnection
) -> None:
    for method, path, expected in (
        ("GET", "/a?b=c", (200, BODY)),
        ("HEAD", "/a", (200, b"")),
        ("GET", "/status/304", (304, b"")),
        ("GET", "/status/204", (204, b"")),
        ("GET", "/chunked", (200, b"hello world")),
        ("GET", "/a", (200, BODY)),
    ):
        assert _ask(connection, method, path) == expected
        assert proxy.requests[-1] == plain.seen[-1] == (method, path)
    assert set(plain.hosts) == {urlsplit(proxy.endpoint).netloc}
    assert len(plain.clients) == 1


def test_answer_without_a_length_ends_with_its_connection(plain: Plain, connection: http.client.HTTPConnection) -> None:
    assert _ask(connection, "GET", "/to-the-end") == (200, BODY)
    assert _ask(connection, "GET") == (200, BODY)
    assert len(plain.clients) == 2


def test_uploads_arrive_whole_in_each_form(plain: Plain, connection: http.client.HTTPConnection) -> None:
    pieces = (BODY[at : at + 1_000_000] for at in range(0, len(BODY), 1_000_000))
    connection.request("PUT", "/x", body=BODY)
    assert connection.getresponse().read() == b""
    connection.request("PUT", "/x", body=pieces, encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
    assert connection.getresponse().read() == b""
    assert plain.uploads == [_digest(BODY)] * 2
    assert len(plain.clients) == 1


def test_uploads_that_ask_first_are_let_on_or_refused(plain: Plain, proxy: FaultProxy) -> None:
    head = b"PUT /x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\nExpect: 100-continue\r\n" % len(BODY)
    waits, at_once = [head + b"Connection: close\r\n\r\n", BODY], [head + b"Connection: close\r\n\r\n" + BODY]
    for messages in (waits, at_once):
        got, _ = _raw(proxy.endpoint, *messages)
        assert got.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
        assert plain.uploads.pop() == _digest(BODY)
    refused, end = _raw(proxy.endpoint, head.replace(b"/x", b"/refused") + b"\r\n")
    assert refused.startswith(b"HTTP/1.1 403 ")
    assert b"\r\nConnection: close\r\n" in refused
    assert (refused[-2:], end) == (b"no", "end")
    proxy.inject(faults.UNAVAILABLE)
    got, _ = _raw(proxy.endpoint, *waits)
    assert got.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 ")


# The faults


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (faults.UNAVAILABLE, 503, "SlowDown"),
        (faults.INTERNAL_ERROR, 500, "InternalError"),
        (faults.NOT_FOUND, 404, "NoSuchKey"),
        (faults.FORBIDDEN, 403, "SignatureDoesNotMatch"),
    ],
)
def test_errors_are_answered_as_s3_does_and_the_server_never_sees_the_request(
    method: str, fault: Fault, status: int, code: str, plain: Plain, proxy: FaultProxy
) -> None:
    client = _client(proxy.endpoint)
    call: dict[str, Callable[[], Any]] = {
        "GET": lambda: client.get_object(Bucket="b", Key="k"),
        "HEAD": lambda: client.head_object(Bucket="b", Key="k"),
        "PUT": lambda: client.put_object(Bucket="b", Key="k", Body=BODY),
    }
    proxy.inject(fault)
    with pytest.raises(ClientError) as failed:
        call[method]()
    assert failed.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert failed.value.response["Error"]["Code"] == (str(status) if method == "HEAD" else code)
    assert plain.seen == []
    assert call[method]()["ETag"] == '"of-the-server"'
    assert [seen for seen, _ in proxy.requests] == [method, method]


def test_error_to_head_has_no_body(proxy: FaultProxy) -> None:
    proxy.inject(faults.NOT_FOUND)
    got, _ = _raw(proxy.endpoint, b"HEAD /x HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 404 ")
    assert got.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("fault", [faults.RESET, faults.ANSWER_LOST])
def test_reset_comes_before_any_answer(fault: Fault, plain: Plain, proxy: FaultProxy) -> None:
    proxy.inject(fault)
    assert _raw(proxy.endpoint, b"PUT /x HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc") == (b"", "reset")
    assert plain.seen == ([("PUT", "/x")] if fault == faults.ANSWER_LOST else [])


@pytest.mark.parametrize(("fault", "end"), [(faults.RESET_MID_BODY, "reset"), (faults.TRUNCATED, "end")])
@pytest.mark.parametrize(("path", "body"), [("/x", BODY), ("/chunked", b"hello world"), ("/to-the-end", BODY)])
def test_connection_ends_after_half_of_the_promised_body(
    fault: Fault, end: str, path: str, body: bytes, proxy: FaultProxy
) -> None:
    proxy.inject(fault)
    got, ended = _raw(proxy.endpoint, f"GET {path} HTTP/1.1\r\n\r\n".encode())
    head, _, half = got.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")
    assert (_digest(half), ended) == (_digest(body[: len(body) // 2]), end)


def test_short_and_corrupt_answers_are_well_formed(proxy: FaultProxy, connection: http.client.HTTPConnection) -> None:
    proxy.inject(faults.SHORT)
    proxy.inject(faults.CORRUPT)
    assert _ask(connection, "GET") == (200, BODY[: len(BODY) // 2])
    status, corrupt = _ask(connection, "GET")
    assert (status, len(corrupt)) == (200, len(BODY))
    assert 0 < sum(one != other for one, other in zip(corrupt, BODY, strict=True)) < len(BODY) // 100
    assert _ask(connection, "GET") == (200, BODY)


@pytest.mark.parametrize("fault", [faults.TRUNCATED, faults.SHORT, faults.CORRUPT])
def test_answers_without_a_body_come_whole(
    fault: Fault, plain: Plain, proxy: FaultProxy, connection: http.client.HTTPConnection
) -> None:
    proxy.inject(fault, times=None)
    connection.request("HEAD", "/x")
    answer = connection.getresponse()
    assert (answer.read(), answer.headers["Content-Length"]) == (b"", str(len(BODY)))
    assert _ask(connection, "GET", "/status/304") == (304, b"")
    assert _ask(connection, "GET", "/status/204") == (204, b"")
    assert len(plain.clients) == 1


def test_slow_starts_and_latency_delay_their_own_request_only(plain: Plain, proxy: FaultProxy) -> None:
    def timed(path: str) -> float:
        connection = http.client.HTTPConnection(str(urlsplit(proxy.endpoint).netloc), timeout=LIMIT_S)
        start = time.monotonic()
        assert _ask(connection, "HEAD", path)[0] == 200
        connection.close()
        return time.monotonic() - start

    proxy.inject(faults.slow_start(1.0), match="slow")
    proxy.latency_s = 0.3
    with ThreadPoolExecutor(16) as pool:
        start = time.monotonic()
        slow, *others = pool.map(timed, ["/slow", *["/x"] * 15])
        whole = time.monotonic() - start
    assert slow >= 1.3
    assert min(others) >= 0.3
    assert whole < 4.0, "15 times 0.3 s one after the other are more"


def test_rules_are_taken_in_their_order_as_often_as_they_say_and_by_method_and_path(
    proxy: FaultProxy, connection: http.client.HTTPConnection
) -> None:
    proxy.inject(faults.NOT_FOUND, times=2, method="GET", match="/a")
    proxy.inject(faults.INTERNAL_ERROR, times=1, match="?part=2")
    proxy.inject(faults.FORBIDDEN, times=None, method="HEAD")
    asked = ["GET /b", "GET /a?part=2", "HEAD /a", "GET /c/a", "GET /a", "GET /a?part=2", "GET /a?part=2", "HEAD /b"]
    answers = [_ask(connection, *one.split())[0] for one in asked]
    assert answers == [200, 404, 403, 404, 200, 500, 200, 403]
    proxy.clear()
    assert _ask(connection, "HEAD", "/b") == (200, b"")
    assert [f"{method} {path}" for method, path in proxy.requests] == [*asked, "HEAD /b"]


def test_connection_is_replaced_when_the_server_came_back(plain: Plain) -> None:
    with FaultProxy(plain.endpoint) as proxy:
        connection = http.client.HTTPConnection(str(urlsplit(proxy.endpoint).netloc), timeout=LIMIT_S)
        assert _ask(connection, "HEAD") == (200, b"")
        plain.drop_connections()
        assert _ask(connection, "HEAD") == (200, b"")
        assert len(plain.clients) == 2
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection(str(urlsplit(proxy.endpoint).netloc)).connect()
    connection.close()
