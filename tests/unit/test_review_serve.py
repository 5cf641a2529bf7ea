"""`raytrain review serve` as a process: its address, its end, and what a kill leaves of decisions."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from raytrain.cli import main
from raytrain.config import PLAIN_NAME
from raytrain.review import serving
from tests.making_review import MadeReview, make_review

KILLS = 3


@pytest.fixture
def made(tmp_path: Path) -> MadeReview:
    return make_review(tmp_path, count=6, size_px=32, distinct=6)


class Served:
    """The command as a process that listens, and a client that has opened its address."""

    def __init__(self, uri: str, *options: str) -> None:
        command = [sys.executable, "-m", "raytrain.cli", "review", "serve", uri, *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        self.origin = self.url.partition("/?")[0]
        self.client = httpx.Client(base_url=self.origin, timeout=30)

    def open(self) -> httpx.Response:
        return self.client.get(self.url, follow_redirects=True)

    def ended(self) -> tuple[int, str]:
        """Wait for the end and return the exit code and what stands on stderr."""
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


@contextlib.contextmanager
def served(uri: str, *options: str) -> Iterator[Served]:
    one = Served(uri, *options)
    try:
        with one.client:
            yield one
    finally:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()


def asked(made: MadeReview, i: int, reviewer: str = "ann") -> dict[str, Any]:
    tile_id = made.tile_ids[i % len(made.tile_ids)]
    return {
        "decision_id": uuid.uuid4().hex,
        "reviewer": reviewer,
        "tile_id": tile_id,
        "tile_sha256": made.sha256[tile_id],
        "verdict": ("accept", "drop", "unsure")[i % 3],
    }


def test_the_address_that_is_printed_opens_the_page_and_ctrl_c_ends_it(made: MadeReview) -> None:
    with served(made.uri, "--port", "0", "--reviewer", "bea") as one:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[A-Za-z0-9_-]{43}", one.url)
        assert httpx.get(f"{one.client.base_url}/api/review").status_code == 401
        page = one.open()
        assert (page.status_code, page.url.path, page.url.query) == (200, "/", b"")
        assert one.client.get("/api/review").json()["reviewer"] == "bea"
        one.process.send_signal(signal.SIGINT)
        code, errors = one.ended()
    assert code == 130
    assert "Traceback" not in errors
    assert one.url.partition("token=")[2] not in errors


def test_neither_ray_nor_torch_is_loaded_to_serve(made: MadeReview) -> None:
    program = (
        "import sys, raytrain.cli, raytrain.review.serving; from raytrain.review.desk import Desk\n"
        f"Desk({made.uri!r}); sys.exit(bool({{'ray', 'torch', 'matplotlib'}} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_traversal_in_the_bytes_of_a_request_leads_nowhere(made: MadeReview) -> None:
    """As no client writes it: what a client tidies up before it asks would not be asked."""
    with served(made.uri, "--port", "0") as one:
        port, token = httpx.URL(one.url).port, one.url.partition("token=")[2]
        for target in (
            "/static/../server.py",
            "/static/../../../../../../../../etc/passwd",
            "/../../etc/passwd",
            "//etc/passwd",
            "/static/..%2f..%2fserver.py",
            "/static/%00app.js",
            "/api/tiles/../../etc/passwd",
            f"/api/tiles/..%2f..%2fmanifest/{'0' * 64}/image/true-colour",
            "http://evil.example/api/review",
        ):
            with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
                request = f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n"
                connection.sendall(f"{request}Connection: close\r\n\r\n".encode())
                answer = b"".join(iter(lambda c=connection: c.recv(65536), b""))
            assert re.match(rb"HTTP/1\.1 (404|400|421)", answer), (target, answer[:200])
            assert b"root:" not in answer
            assert b"import" not in answer


def test_a_killed_server_loses_no_decision_and_doubles_none(made: MadeReview) -> None:
    """Killed in the middle of decisions of two reviewers, who ask the next one again for what was not answered."""
    token_file = Path(made.uri).parent / "token"
    acknowledged: set[str] = set()
    wanted: set[str] = set()
    pending: dict[str, list[dict[str, Any]]] = {
        name: [asked(made, i, name) for i in range(60)] for name in ("ann", "bea")
    }

    def review(one: Served, name: str, kill_after: int, enough: threading.Event) -> None:
        while pending[name]:
            decision = pending[name][0]
            wanted.add(decision["decision_id"])
            try:
                answer = one.client.post("/api/decisions", json=decision, headers={"Origin": one.origin})
            except httpx.HTTPError:
                return  # the same one goes to the next server
            assert answer.status_code in (200, 201), answer.text
            acknowledged.add(decision["decision_id"])
            pending[name].pop(0)
            if len(acknowledged) >= kill_after:
                enough.set()

    for i in range(KILLS + 1):
        with served(made.uri, "--port", "0", "--token-file", str(token_file)) as one:
            assert one.url.partition("token=")[2] == token_file.read_text().strip()
            one.open()
            listed = one.client.get("/api/decisions").json()["decisions"]
            assert acknowledged <= {each["decision_id"] for each in listed} <= wanted
            enough = threading.Event()
            with ThreadPoolExecutor(2) as pool:
                reviews = [pool.submit(review, one, name, 25 * (i + 1), enough) for name in pending]
                if i < KILLS:
                    assert enough.wait(60)
                    one.process.kill()
                for each in reviews:
                    each.result()
    folder = Path(made.uri, "decisions")
    found = [json.loads(path.read_text()) for path in folder.rglob("*.json")]
    assert {each["decision_id"] for each in found} == acknowledged == wanted
    assert len(found) == 120
    for name in pending:
        numbers = sorted(each["number"] for each in found if each["reviewer"] == name)
        assert numbers == list(range(1, 61))


def test_a_write_that_outlasts_the_server_is_told_to_be_asked_again(made: MadeReview) -> None:
    """By a store that is slower than the server waits for when it ends."""
    program = (
        "import sys, time; from raytrain import storage; from raytrain.review import serving; "
        "from raytrain.cli import main; write = storage.write_bytes; serving.CLOSING_S = 1\n"
        "def slowly(*args, **named):\n    print('writing', flush=True); time.sleep(4); write(*args, **named)\n"
        f"storage.write_bytes = slowly; sys.exit(main(['review', 'serve', {made.uri!r}, '--port', '0']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        address, _, token = process.stdout.readline().strip().partition("/?token=")
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(
                httpx.post,
                f"{address}/api/decisions",
                json=asked(made, 0),
                headers={"Authorization": f"Bearer {token}"},
                timeout=30,
            )
            assert process.stdout.readline().strip() == "writing"
            process.send_signal(signal.SIGINT)
            assert answer.result().status_code == 503
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "the server is ending" in answer.result().text


def test_a_browser_is_opened_by_a_file_that_only_its_owner_may_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """And it may keep the foreground as long as it likes."""
    opened: list[str] = []
    left, is_open = threading.Event(), threading.Event()

    def browse(url: str) -> bool:
        opened.append(url)
        is_open.set()
        return left.wait(30)

    monkeypatch.setattr("webbrowser.open", browse)
    with serving.opened("http://127.0.0.1:1/?token=secret"):
        assert is_open.wait(30)
        (url,) = opened
        assert url.startswith("file:///")
        assert "secret" not in url
        path = Path(url.removeprefix("file://"))
        assert path.stat().st_mode & 0o777 == 0o600
        assert 'content="0; url=http://127.0.0.1:1/?token=secret"' in path.read_text()
    assert not path.exists()
    left.set()


def test_others_are_let_in_with_a_warning_and_by_number(made: MadeReview) -> None:
    with served(made.uri, "--port", "0", "--host", "0.0.0.0", "--json") as one:
        assert one.process.stdout is not None
        values = json.loads(one.url + "".join(iter(one.process.stdout.readline, "}\n")) + "}")
        assert values["num_tiles"] == 6
        assert values["url"].startswith(f"http://{socket.gethostname()}:")
        port, token = httpx.URL(values["url"]).port, values["url"].partition("token=")[2]
        header = {"Authorization": f"Bearer {token}"}
        assert httpx.get(f"http://127.0.0.1:{port}/api/review", headers=header).status_code == 200
        rebound = httpx.get(f"http://127.0.0.1:{port}/api/review", headers={**header, "Host": "evil.example"})
        assert rebound.status_code == 421
        one.process.terminate()
        code, errors = one.ended()
    assert code == 143
    assert "others reach it, and what goes to and fro is not encrypted" in errors


def test_a_review_that_can_not_be_served_is_told_in_one_line(
    made: MadeReview, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended(*arguments: str) -> tuple[int, str]:
        code = main(["review", "serve", *arguments])
        return code, capsys.readouterr().err.strip()

    code, text = ended(str(tmp_path / "nothing"))
    assert code == 2
    assert "no finished ranking; make it with raytrain review rank" in text
    assert len(text.splitlines()) == 1
    code, text = ended(made.uri, "--reviewer", "../x")
    assert code == 2
    assert "--reviewer '../x': expected letters" in text
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, text = ended(made.uri, "--port", port)
    assert code == 2
    assert f"--port {port}: in use by another" in text
    code, text = ended(made.uri, "--host", "nowhere.invalid", "--port", "0")
    assert code == 2
    assert "--host nowhere.invalid --port 0: can't listen there" in text
    for host in ("", "0", "[]"):
        code, text = ended(made.uri, "--host", host, "--port", "0")
        assert code == 2
        assert f"--host {host!r}: means all addresses of this machine; if that is wanted, say 0.0.0.0" in text
    (tmp_path / "token").write_text("x")
    code, text = ended(made.uri, "--token-file", str(tmp_path / "token"))
    assert code == 2
    assert "--token-file" in text


@pytest.mark.parametrize(
    ("user", "offered"), [("ann", "ann"), ("DOM\\ann b", "DOMannb"), (".x", "x"), ("å", "reviewer")]
)
def test_the_name_that_is_offered_can_be_a_folder(monkeypatch: pytest.MonkeyPatch, user: str, offered: str) -> None:
    from raytrain.command_review_serve import Serve

    monkeypatch.setattr("getpass.getuser", lambda: user)
    found = Serve(dst="x")._reviewer()
    assert found == offered
    assert re.fullmatch(PLAIN_NAME, found)
