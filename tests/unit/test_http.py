"""Reads over HTTP: whole or an error, from hosts that may be read, and no signature in any message."""

from __future__ import annotations

import datetime
import hashlib
import logging
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from raytrain import storage
from raytrain.errors import ConfigError, StoreOutOfReach
from raytrain.storage import Retries, Stores, StoreSettings, http, timely
from raytrain.storage.http import REDIRECTS, is_public
from tests.webserver import WebServer

DATA = bytes(range(256)) * 50
SIGNED = "?X-Signature=verysecret&x=1%202"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(storage.retries, "RETRIES", Retries(attempts=3, first_wait_s=0.01, longest_wait_s=0.01))
    yield
    storage.use_stores(Stores())


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer({"/a/b.bin": DATA, "/empty": b"", "/c.json": b'{"a": 1}'}) as web:
        allow(web.origin)
        yield web


def allow(*origins: str) -> None:
    storage.use_stores(Stores(stores={origin: StoreSettings(private_address=True) for origin in origins}))


def resolving(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], list[str]]) -> None:
    """Let names that end with `.test` have the addresses that `answer` gives."""
    true = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *rest: Any, **named: Any) -> Any:
        if not str(host).endswith(".test"):
            return true(host, port, *rest, **named)
        return [
            (socket.AF_INET6 if ":" in each else socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port))
            for each in answer(host)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_a_url_has_one_form_and_keeps_its_query() -> None:
    assert storage.normalise("HTTPS://Host.Example:443/A/b%20c?x=A%2Fb#part") == "https://host.example/A/b%20c?x=A%2Fb"
    assert storage.normalise("http://[::1]:8080/a") == "http://[::1]:8080/a"
    uri = storage.join(f"https://host/a/{SIGNED}", "b", "c.tif")
    assert uri == f"https://host/a/b/c.tif{SIGNED}"
    assert storage.name_of(uri) == "c.tif"
    assert storage.shown(uri) == "https://host/a/b/c.tif"
    assert not storage.is_local(uri)
    assert storage.shown("s3://bucket/a?b#c") == "s3://bucket/a?b#c", "what is part of a key stays"


@pytest.mark.parametrize("uri", ["http://", "https:///path", "http://user:pass@host/x", "http://host:99999/x"])
def test_what_is_no_plain_url_is_refused_without_its_password(uri: str) -> None:
    with pytest.raises(ConfigError) as caught:
        storage.normalise(uri)
    assert "pass@" not in str(caught.value)


def test_files_are_read_whole_and_in_ranges_by_their_whole_url(web: WebServer) -> None:
    uri = f"{web.origin}/a/b.bin{SIGNED}"
    assert storage.read_bytes(uri) == DATA
    assert storage.read_listed(uri) == DATA
    assert storage.read_range(uri, 100, 300) == DATA[100:300]
    assert storage.read_range(uri, len(DATA) - 5, len(DATA) + 5) == DATA[-5:]
    assert storage.read_range(uri, len(DATA), len(DATA) + 5) == b""
    assert {each.target for each in web.asked} == {f"/a/b.bin{SIGNED}"}
    assert storage.read_json(f"{web.origin}/c.json") == {"a": 1}
    assert storage.exists(uri)
    assert not storage.exists(f"{web.origin}/absent")


def test_nothing_is_written_listed_or_removed_over_http(web: WebServer, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    uri = f"{web.origin}/a{SIGNED}"
    for refused in (
        lambda: storage.write_bytes(uri, b""),
        lambda: storage.write_file(uri, tmp_path / "x"),
        lambda: storage.find(uri),
        lambda: list(storage.walk(uri)),
        lambda: storage.remove(uri),
        lambda: storage.remove_once(uri),
        lambda: storage.filesystem(uri),
        lambda: storage.arrow_filesystem(uri),
    ):
        with pytest.raises(ConfigError, match="nothing is written or listed") as caught:
            refused()
        assert "verysecret" not in str(caught.value)
    assert web.asked == []


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_what_passes_is_asked_again(web: WebServer, status: int) -> None:
    web.answers["/a/b.bin"] = [(status, {}, b""), (status, {}, b"")]
    assert storage.read_range(f"{web.origin}/a/b.bin", 5, 9) == DATA[5:9]
    assert len(web.asked) == 3


def test_a_body_that_ends_too_soon_is_asked_for_again(web: WebServer) -> None:
    web.shortened = 1
    assert storage.read_bytes(f"{web.origin}/a/b.bin") == DATA
    web.shortened = 1
    assert storage.read_range(f"{web.origin}/a/b.bin", 5, 900) == DATA[5:900]
    web.answers["/a/b.bin"] = [(206, {"Content-Range": f"bytes 5-899/{len(DATA)}"}, DATA[5:300])]
    assert storage.read_range(f"{web.origin}/a/b.bin", 5, 900) == DATA[5:900], "a Content-Length that lies"
    web.answers["/a/b.bin"] = [(206, {"Content-Range": f"bytes 0-894/{len(DATA)}"}, DATA[:895])]
    assert storage.read_range(f"{web.origin}/a/b.bin", 5, 900) == DATA[5:900], "another range than was asked for"


def test_answers_that_stay_are_errors_that_name_the_url_without_its_query(
    web: WebServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    uri = f"{web.origin}/a/b.bin{SIGNED}"
    shown = f"{web.origin}/a/b.bin"
    for status, kind, text in (
        (403, PermissionError, "access refused .*403.*its signature"),
        (401, PermissionError, "access refused"),
        (404, FileNotFoundError, "404"),
        (410, FileNotFoundError, "410"),
        (503, StoreOutOfReach, "out of reach, 3 attempts"),
        (418, OSError, "its server answers 418"),
    ):
        web.answers["/a/b.bin"] = [(status, {}, b"secret")] * 3
        with pytest.raises(kind, match=f"{shown}: .*{text}") as caught:
            storage.read_range(uri, 0, 5)
        assert_no_secret(caught.value)
    web.files["/a/b.bin"] = b"no json"
    web.answers.clear()
    with pytest.raises(ConfigError, match="not a JSON file") as damaged:
        storage.read_json(uri)
    assert_no_secret(damaged.value)
    assert any("again in" in each.getMessage() for each in caplog.records)
    assert not any("verysecret" in each.getMessage() for each in caplog.records if each.name.startswith("raytrain"))


def assert_no_secret(error: BaseException | None) -> None:
    while error is not None:
        assert "verysecret" not in f"{error} {error!r}"
        error = error.__cause__


def test_a_server_that_can_not_be_reached_is_out_of_reach_and_shows_no_query(web: WebServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        origin = f"http://127.0.0.1:{taken.getsockname()[1]}"
        allow(origin)
        with pytest.raises(StoreOutOfReach) as caught:
            storage.read_bytes(f"{origin}/a{SIGNED}")
    assert_no_secret(caught.value)


@pytest.mark.parametrize("store", ["http", "s3"])
def test_a_server_that_dribbles_bytes_is_out_of_reach_in_time(
    web: WebServer, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    monkeypatch.setattr(timely, "READ_TIMEOUT_S", 0.3)
    web.byte_s = 0.02
    url = f"{web.origin}/a/b.bin"
    asks: list[Callable[[], Any]] = [lambda: storage.read_range(url, 0, 1000), lambda: storage.read_bytes(url)]
    asks.append(lambda: storage.persistently(url, lambda: http.hashed(url)))
    if store == "s3":
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        storage.use_stores(Stores(stores={"s3://a": StoreSettings(endpoint=web.origin, anonymous=True)}))
        asks = [lambda: storage.read_range("s3://a/b.bin", 0, 1000), lambda: storage.read_bytes("s3://a/b.bin")]
    for ask in asks:
        start = time.monotonic()
        with pytest.raises(StoreOutOfReach, match="bytes in 0 s, too slow to wait for the rest"):
            ask()
        assert time.monotonic() - start < 6
    web.byte_s = 0.0
    assert all(asks[i]() == DATA[:size] for i, size in ((0, 1000), (1, None)))


def test_a_server_without_ranges_is_named_unless_the_whole_was_asked_for(web: WebServer) -> None:
    web.has_ranges = False
    assert storage.read_range(f"{web.origin}/a/b.bin", 0, len(DATA) + 1) == DATA
    for start, end in ((0, 5), (5, 10)):
        with pytest.raises(OSError, match="answers no ranges"):
            storage.read_range(f"{web.origin}/a/b.bin", start, end)


def test_redirects_are_followed_with_their_query_but_not_for_ever(web: WebServer) -> None:
    web.answers["/old"] = [(302, {"Location": f"/a/b.bin{SIGNED}"}, b"moved")] * 2
    assert storage.read_range(f"{web.origin}/old", 3, 6) == DATA[3:6]
    assert [each.target for each in web.asked] == ["/old", f"/a/b.bin{SIGNED}"]
    web.answers["/round"] = [(307, {"Location": "/round"}, b"")] * 50
    with pytest.raises(OSError, match=f"more than {REDIRECTS} redirects"):
        storage.read_bytes(f"{web.origin}/round")
    assert len(web.asked) == 2 + REDIRECTS + 1


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://host/x", "s3://bucket/key", "http://a:b@host/"])
def test_redirects_to_other_than_plain_urls_are_refused(web: WebServer, target: str) -> None:
    web.answers["/old"] = [(302, {"Location": target}, b"")]
    with pytest.raises(PermissionError, match="redirects to"):
        storage.read_bytes(f"{web.origin}/old")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1", "fe80::1%eth0",
        "fc00::1", "fec0::1", "ff02::1", "ff0e::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1",
        "2002:7f00:1::", "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public_are_known(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "52.218.0.1", "2600:1f60::1", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_public_addresses_are_known(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "2130706433", "127.1", "0x7f000001"])
def test_hosts_of_this_machine_are_refused_however_they_are_written(web: WebServer, host: str) -> None:
    storage.use_stores(Stores())
    with pytest.raises(PermissionError, match=r"not public; if it is meant, name it in --stores: \[stores\.") as caught:
        storage.read_bytes(f"http://{host}:{web.port}/a/b.bin{SIGNED}")
    assert_no_secret(caught.value)
    assert web.asked == []


def test_a_redirect_to_a_private_address_is_not_followed(web: WebServer) -> None:
    with WebServer({"/x": b"private"}) as private:
        web.answers["/old"] = [(302, {"Location": f"{private.origin}/x"}, b"")]
        with pytest.raises(PermissionError, match="not public"):
            storage.read_bytes(f"{web.origin}/old")
        assert private.asked == []


def test_a_name_with_any_private_address_is_refused(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, lambda host: ["8.8.8.8", "127.0.0.1"])
    with pytest.raises(PermissionError, match=r"two\.test has the address 127\.0\.0\.1"):
        storage.read_bytes(f"http://two.test:{web.port}/a/b.bin")
    assert web.asked == []


def test_the_address_that_was_checked_is_the_one_that_is_connected_to(
    web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([["8.8.8.8"], ["127.0.0.1"], ["127.0.0.1"]])
    resolving(monkeypatch, lambda host: next(answers))
    connected: list[Any] = []

    def connect(self: socket.socket, address: Any) -> None:
        connected.append(address)
        raise ConnectionRefusedError("no network in tests")

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect)
        with pytest.raises(PermissionError, match=r"rebound\.test has the address 127\.0\.0\.1"):
            storage.read_bytes(f"http://rebound.test:{web.port}/a/b.bin")
    assert connected == [("8.8.8.8", web.port)], "one look at the name server for each connection"
    assert web.asked == []


def test_a_host_that_is_allowed_by_name_is_read_by_that_name_alone(
    web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, lambda host: ["127.0.0.1"])
    allow(f"http://inside.test:{web.port}")
    assert storage.read_bytes(f"http://Inside.test:{web.port}/a/b.bin") == DATA
    assert web.asked[0].headers["host"] == f"inside.test:{web.port}"
    for other in (f"http://other.test:{web.port}/a/b.bin", web.origin + "/a/b.bin"):
        with pytest.raises(PermissionError, match="not public"):
            storage.read_bytes(other)
    storage.use_stores(Stores())
    with pytest.raises(PermissionError, match="not public"):  # no connection is left from before
        storage.read_bytes(f"http://inside.test:{web.port}/a/b.bin")


def certificate(folder: Path, name: str) -> ssl.SSLContext:
    """Return what a server of this name has; its certificate, its own authority, lies in the folder."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "cert.pem").write_bytes(made.public_bytes(Encoding.PEM))
    (folder / "both.pem").write_bytes(made.public_bytes(Encoding.PEM) + secret)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "both.pem")
    return context


def test_a_certificate_has_to_be_of_the_name_in_the_url_and_not_of_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, lambda host: ["127.0.0.1"])
    with WebServer({"/x": DATA}, tls=certificate(tmp_path, "inside.test")) as web:
        names = [f"https://{name}.test:{web.port}" for name in ("inside", "other")]
        allow(*names)
        with pytest.raises(OSError, match="no certificate to trust"):
            storage.read_bytes(f"{names[0]}/x")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        allow(*names)  # anew: connections of before keep what they trusted
        assert storage.read_bytes(f"{names[0]}/x") == DATA
        assert web.asked[0].headers["host"] == f"inside.test:{web.port}"
        with pytest.raises(OSError, match=r"no certificate to trust.*other\.test"):
            storage.read_bytes(f"{names[1]}/x")
        web.answers["/old"] = [(302, {"Location": f"http://inside.test:{web.port}/x"}, b"")]
        with pytest.raises(PermissionError, match=r"redirects to http://inside\.test"):
            storage.read_bytes(f"{names[0]}/old")
        assert len(web.asked) == 2


def test_identity_follows_the_bytes_and_nothing_else(web: WebServer, tmp_path: Path) -> None:
    uri = f"{web.origin}/a/b.bin"
    first = storage.identity_of(uri + SIGNED)
    assert first == storage.identity_of(uri + "?X-Signature=another")
    assert [each.method for each in web.asked] == ["HEAD", "HEAD"]
    web.has_head = False  # as of a URL that is signed for GET
    assert storage.identity_of(uri) == first
    assert web.asked[-1].headers["range"] == "bytes=0-0"
    web.files["/a/b.bin"] = DATA[:-1] + b"x"
    assert storage.identity_of(uri) != first
    web.files["/a/b.bin"] = DATA
    web.has_etags = False
    by_content = f"{len(DATA)}:sha256:{hashlib.sha256(DATA).hexdigest()}"
    assert storage.identity_of(uri) == by_content
    web.has_ranges = False
    assert storage.identity_of(uri) == by_content
    web.has_head, web.answers["/a/b.bin"] = True, [(200, {"ETag": 'W/"weak"', "Content-Length": "12800"}, b"")]
    assert storage.identity_of(uri) == by_content, "a weak ETag may stay while bytes change"
    assert storage.identity_of(f"{web.origin}/empty") == f"0:sha256:{hashlib.sha256().hexdigest()}"
    path = tmp_path / "file"
    path.write_bytes(DATA)
    assert storage.identity_of(str(path)) == by_content
    os.utime(path, (1, 1))
    assert storage.identity_of(str(path), {"size": len(DATA), "mtime": 7}) == by_content
    with pytest.raises(FileNotFoundError):
        storage.identity_of(f"{web.origin}/absent")


def test_identity_of_a_listed_object_asks_nothing(web: WebServer) -> None:
    assert storage.identity_of("s3://bucket/key", {"size": 3, "ETag": '"abc"'}) == '3:"abc"'


def test_texts_are_shown_without_the_queries_of_addresses_of_any_scheme() -> None:
    signed = "B04.tif?X-Amz-SignedHeaders=host;x-amz-date&X-Amz-Signature=SECRET"
    for scheme in ("https", "HTTP", "az", "s3", "abfs+wasb"):
        text = f"can't read '{scheme}://h/{signed}': 403 (and {scheme}://h/a/b?sp=r,w&sig=SECRET again)"
        assert storage.without_queries(text) == f"can't read '{scheme}://h/B04.tif': 403 (and {scheme}://h/a/b again)"
    plain = "s3://bucket/key: what is this? the mask /a/b.tif has 3 bands"
    assert storage.without_queries(plain) == plain
