"""What probes find in stores that refuse, redirect, hang or are none; and that they leave nothing."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from raytrain import storage
from raytrain.storage import StoreReport, probe, probe_answers, probe_name, probe_store
from tests.store.broken_folder import broken_folder
from tests.store.faults import ANSWER_LOST, CORRUPT, FORBIDDEN, UNAVAILABLE, Fault, FaultProxy, slow_start

DENIED = Fault("denied", 403, "AccessDenied")
REDIRECTED = Fault("redirected", 301, "PermanentRedirect")
SKEWED = Fault("skewed", 403, "RequestTimeTooSkewed")
EXPIRED = Fault("expired", 400, "ExpiredToken")
NO_BUCKET = Fault("no-bucket", 404, "NoSuchBucket")


@pytest.fixture
def proxy(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before moto, which is where the environment says that the store is."""
    monkeypatch.setattr(probe_store, "READ_S", 1.0)
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture
def place(s3: str, tmp_path: Path) -> str:
    return f"{s3}/{tmp_path.name}"


def kinds(report: StoreReport) -> dict[str, str]:
    return {name: answer.kind for name, answer in report.answers.items()}


def ask(uri: str, *, writes: bool = True) -> StoreReport:
    return probe(uri, probe_name(), writes=writes)


def test_a_good_store_answers_all_and_keeps_nothing(store: str) -> None:
    if storage.is_local(store):
        Path(store).mkdir()
    storage.write_bytes(f"{store}/shard", b"there")
    found = ask(store)
    assert kinds(found) == {"list": "ok", "write": "ok", "read": "ok", "delete": "ok"}
    assert list(storage.find(store)) == ["shard"]
    assert found.bytes_per_s
    assert kinds(ask(store, writes=False)) == {"list": "ok", "read": "ok"}
    if not storage.is_local(store):
        assert found.credentials == "environment"
        assert found.endpoint == os.environ["AWS_ENDPOINT_URL"]
        assert found.ahead_s is not None
        assert abs(found.ahead_s) < 60


def test_what_is_only_read_is_never_written(proxy: FaultProxy, place: str) -> None:
    assert kinds(ask(place, writes=False)) == {"list": "ok", "read": "nothing-there"}
    assert {method for method, _ in proxy.requests} == {"GET"}


def test_keys_that_a_store_does_not_know_are_told_from_rights_that_lack(
    swift: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    found = ask(swift)
    assert kinds(found) == {"list": "wrong-keys", "write": "not-asked", "read": "not-asked", "delete": "not-asked"}
    assert found.answers["list"].detail == "403 SignatureDoesNotMatch"


def test_each_right_is_told_by_itself(proxy: FaultProxy, place: str) -> None:
    for method, wanted in (
        ("PUT", {"list": "ok", "write": "refused", "read": "not-asked", "delete": "not-asked"}),
        ("DELETE", {"list": "ok", "write": "ok", "read": "ok", "delete": "refused"}),
    ):
        proxy.inject(DENIED, times=None, method=method)
        found = ask(place)
        assert kinds(found) == wanted
        assert bool(found.left_behind) == (method == "DELETE")
        proxy.clear()
    (name,) = storage.find(place)
    assert found.left_behind == f"{place}/{name}"
    storage.remove(found.left_behind)
    proxy.inject(DENIED, times=None, match="list-type")
    assert kinds(ask(place)) == {"list": "refused", "write": "ok", "read": "ok", "delete": "ok"}
    proxy.clear()
    proxy.inject(DENIED, times=None, method="GET", match="raytrain-doctor-probe-")
    assert kinds(ask(place)) == {"list": "ok", "write": "ok", "read": "refused", "delete": "ok"}
    assert not storage.find(place)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (FORBIDDEN, "wrong-keys"),
        (REDIRECTED, "region"),  # botocore would ask by HEAD where the bucket lies, again and again
        (SKEWED, "clock"),
        (EXPIRED, "expired"),
        (NO_BUCKET, "no-bucket"),
        (UNAVAILABLE, "unavailable"),
        (slow_start(3.0), "timeout"),
        (ANSWER_LOST, "no-connection"),
    ],
)
def test_an_answer_that_all_will_get_is_asked_for_once(proxy: FaultProxy, place: str, fault: Fault, kind: str) -> None:
    proxy.inject(fault, times=None)
    found = ask(place)
    assert kinds(found) == {"list": kind, "write": "not-asked", "read": "not-asked", "delete": "not-asked"}
    assert {method for method, _ in proxy.requests} == {"GET"}


def test_a_probe_whose_answer_is_lost_is_removed_for_all_that(proxy: FaultProxy, place: str) -> None:
    proxy.inject(ANSWER_LOST, method="PUT")
    found = ask(place)
    assert kinds(found) == {"list": "ok", "write": "no-connection", "read": "not-asked", "delete": "ok"}
    assert not storage.find(place)


def test_bytes_that_come_back_changed_are_told(proxy: FaultProxy, place: str) -> None:
    proxy.inject(CORRUPT, method="GET", match="raytrain-doctor-probe-")
    found = ask(place)
    assert found.answers["read"].kind in ("differs", "other")
    assert not storage.find(place)


def test_what_is_wrong_with_an_endpoint_has_its_own_name(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_store, "READ_S", 1.0)

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>a web server</html>")

        def log_message(self, *arguments: object) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    silent = socket.create_server(("127.0.0.1", 0))
    cases = {
        "http://127.0.0.1:1": "no-connection",
        "http://store.invalid": "unknown-host",
        f"https://127.0.0.1:{web.server_address[1]}": "tls",
        f"http://127.0.0.1:{silent.getsockname()[1]}": "timeout",
        f"http://127.0.0.1:{web.server_address[1]}": "not-s3",
    }
    found = {}
    for endpoint in cases:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        start = time.monotonic()
        found[endpoint] = kinds(ask(place))["list"]
        assert time.monotonic() - start < 10
    web.shutdown()
    silent.close()
    assert found == cases


def test_a_machine_without_keys_says_so(place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    found = ask(place)
    assert (kinds(found)["list"], found.credentials) == ("no-credentials", "")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "only-one")
    assert kinds(ask(place))["list"] == "no-credentials"


def test_the_region_of_a_bucket_is_what_a_redirect_names() -> None:
    wire = probe_store._Wire()
    headers = {"x-amz-bucket-region": "eu-west-1", "Date": "Thu, 26 Nov 2026 12:00:00 GMT"}
    wire.note({}, {"status_code": 301, "headers": headers})
    wire.note({}, {"status_code": 200, "headers": {}})
    assert (wire.was_redirected, wire.bucket_region) == (True, "eu-west-1")
    malformed = {"Error": {"Code": "AuthorizationHeaderMalformed", "Region": "us-west-2"}}
    wire = probe_store._Wire()
    wire.note({}, {"status_code": 400, "headers": {}}, malformed)
    assert (wire.was_redirected, wire.bucket_region) == (True, "us-west-2")


def test_a_bucket_that_is_not_there_is_told(s3: str) -> None:
    assert kinds(ask("s3://absent/x"))["list"] == "no-bucket"


def test_a_folder_that_is_not_there_or_read_only_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kinds(ask(str(tmp_path / "absent")))["list"] == "no-folder"
    assert kinds(ask("/proc/self"))["write"] in ("no-folder", "refused", "other")
    assert not [each for each in tmp_path.iterdir()]


# Folders that fail, and bodies without end: nothing of it may end the look


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.ENOTCONN, errno.EIO])
@pytest.mark.parametrize("writes", [True, False])
def test_a_folder_that_can_not_be_looked_into_is_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, writes: bool
) -> None:
    broken_folder(monkeypatch, tmp_path / "broken", number)
    found = ask(str(tmp_path / "broken"), writes=writes)
    kind = "refused" if number == errno.EACCES else "other"
    assert (found.answers["list"].kind, found.answers["list"].detail) == (kind, os.strerror(number))
    assert found.answers["read"].kind == "not-asked"
    assert not found.left_behind


def test_files_that_can_be_listed_but_not_looked_at_are_not_called_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "chip").write_bytes(b"pixels")
    broken_folder(monkeypatch, tmp_path, errno.EACCES, also_listed=True)
    assert kinds(ask(str(tmp_path), writes=False)) == {"list": "ok", "read": "refused"}
    monkeypatch.undo()
    assert kinds(ask(str(tmp_path), writes=False)) == {"list": "ok", "read": "ok"}
    (tmp_path / "chip").write_bytes(b"")
    assert kinds(ask(str(tmp_path), writes=False)) == {"list": "ok", "read": "nothing-there"}


def test_a_written_file_that_can_not_be_removed_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object, **_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    for name in ("unlink", "lstat"):
        monkeypatch.setattr(os, name, refuse)
    found = ask(str(tmp_path))
    monkeypatch.undo()
    assert (kinds(found)["delete"], found.left_behind) == ("refused", str(next(tmp_path.iterdir())))


class EndlessBody:
    """A body of which any amount can be read: a store that does not know ranges, of a huge object."""

    def __init__(self) -> None:
        self.amounts: list[int | None] = []
        self.closed = False

    def read(self, amount: int | None = None) -> bytes:
        self.amounts.append(amount)
        return bytes(amount or 0)

    def close(self) -> None:
        self.closed = True


class EndlessStore:
    """A client whose objects have no end."""

    def __init__(self) -> None:
        self.body = EndlessBody()
        self.asked: list[str] = []

    def get_object(self, **wanted: str) -> dict[str, EndlessBody]:
        self.asked.append(wanted["Key"])
        return {"Body": self.body}

    def put_object(self, **_: object) -> dict[str, str]:
        return {"ETag": "x"}

    def delete_object(self, **_: object) -> dict[str, str]:
        return {}


def test_of_a_body_without_end_a_probe_s_bytes_are_read_and_it_is_closed() -> None:
    for writes in (True, False):
        client, questions = EndlessStore(), probe_answers.Questions(probe_store._kind_of)
        if writes:
            probe_store._write_read_delete(client, {"Bucket": "b", "Key": "k"}, questions)
        else:
            sizes = {"large": 10**12, "empty": 0, "small": 5, "middle": 10**6}
            page = {"Contents": [{"Key": key, "Size": size} for key, size in sizes.items()]}
            probe_store._read_one_of(client, {"Bucket": "b"}, page, questions)
            assert client.asked == ["small"]
        assert questions.answers["read"].kind == ("differs" if writes else "ok")
        assert client.body.amounts == [probe_answers.PROBE_BYTES + 1]
        assert client.body.closed
