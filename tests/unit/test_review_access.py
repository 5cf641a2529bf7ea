"""The guard of the review page: no token, no answer; other names, other sites and long bodies are turned away."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from raytrain.errors import ConfigError
from raytrain.review.access import Guard, Message, Scope, is_loopback, names_of, new_token, token_of_file

TOKEN = "t" * 43
PORT = 8642
HOST = f"127.0.0.1:{PORT}"
LIMIT_BYTES = 1000


class Inner:
    """What lies behind the guard: notes what comes to it and answers with what it was sent."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        self.seen.append((scope["method"], scope["path"]))
        body = (await receive())["body"] if scope["method"] == "POST" else b"inside"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
        await send({"type": "http.response.body", "body": body})


class Answer:
    """An answer of the guard."""

    def __init__(self, messages: list[Message]) -> None:
        start = messages[0]
        self.status = start["status"]
        self.headers = {name.decode(): value.decode() for name, value in start["headers"]}
        self.body = b"".join(message.get("body", b"") for message in messages[1:])


def ask(
    guard: Guard,
    path: str = "/api/review",
    *,
    method: str = "GET",
    query: str = "",
    host: str | None = HOST,
    token: str | None = TOKEN,
    bodies: tuple[bytes, ...] = (b"",),
    **headers: str,
) -> Answer:
    pairs = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    if host is not None:
        pairs.append((b"host", host.encode()))
    if token is not None:
        pairs.append((b"authorization", f"Bearer {token}".encode()))
    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": pairs}
    left = list(bodies)
    sent: list[Message] = []

    async def receive() -> Message:
        if not left:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    return Answer(sent)


@pytest.fixture
def inner() -> Inner:
    return Inner()


@pytest.fixture
def guard(inner: Inner) -> Guard:
    return Guard(inner, TOKEN, names_of("127.0.0.1"), PORT, LIMIT_BYTES)


PATHS = [
    "/",
    "/static/app.js",
    "/static/../secret",
    "/api/review",
    "/api/tiles",
    "/docs",
    "/openapi.json",
    "//",
    "/%00",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_nothing_is_reached_without_the_token(guard: Guard, inner: Inner, path: str, method: str) -> None:
    for token in (None, "", "wrong", TOKEN[:-1], TOKEN + "t", TOKEN.upper(), f"{TOKEN} ,", "ü" * 43):
        answer = ask(guard, path, method=method, token=token, content_type="application/json")
        assert answer.status == 401
        assert TOKEN.encode() not in answer.body
        assert "content-security-policy" in answer.headers
    assert not inner.seen


def test_the_token_in_the_address_becomes_a_cookie_that_scripts_and_other_sites_do_not_get(
    guard: Guard, inner: Inner
) -> None:
    answer = ask(guard, "/", query=f"token={TOKEN}", token=None)
    assert (answer.status, answer.headers["location"]) == (303, "/")
    assert answer.headers["set-cookie"] == f"raytrain_review_{PORT}={TOKEN}; Path=/; HttpOnly; SameSite=Lax"
    assert not inner.seen
    cookie = answer.headers["set-cookie"].partition(";")[0]
    assert ask(guard, "/", token=None, cookie=f"other=1; {cookie}").status == 200
    assert inner.seen == [("GET", "/")]


@pytest.mark.parametrize(
    "cookie", ["", f"raytrain_review_{PORT}=wrong", f"raytrain_review_1={TOKEN}", f"token={TOKEN}", "=;=;", TOKEN]
)
def test_no_other_cookie_counts(guard: Guard, inner: Inner, cookie: str) -> None:
    assert ask(guard, token=None, cookie=cookie).status == 401
    assert not inner.seen


@pytest.mark.parametrize(
    "foreign",
    ['prefs={"a":1, "b":2}', "name=two words", "a/b=1", "who@where=1", "ü=ü", 'open="', "=", "flag", "a=b=c", "$x[]=1"],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_a_cookie_of_another_port_locks_nobody_out(guard: Guard, foreign: str, is_first: bool) -> None:
    own = f"raytrain_review_{PORT}={TOKEN}"
    cookie = f"{foreign}; {own}" if is_first else f"{own};{foreign}"
    assert ask(guard, token=None, cookie=cookie).status == 200


@pytest.mark.parametrize("query", ["token=", "token=wrong", f"token=x&token={TOKEN}", f"TOKEN={TOKEN}", "&" * 50])
def test_no_other_query_gives_the_cookie(guard: Guard, query: str) -> None:
    answer = ask(guard, "/", query=query, token=None)
    assert answer.status == 401
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("path", ["/api/review", "/static/app.js", "//"])
def test_the_token_in_the_query_of_any_other_address_counts_for_nothing(guard: Guard, path: str) -> None:
    assert ask(guard, path, query=f"token={TOKEN}", token=None).status == 401


@pytest.mark.parametrize("host", [HOST, "127.0.0.1", "localhost", "LOCALHOST:8642", "[::1]:8642", "localhost:9999"])
def test_this_machine_is_asked_by_its_own_names_at_any_end_of_a_tunnel(guard: Guard, host: str) -> None:
    assert ask(guard, host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "evil.example",
        "evil.example:8642",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "10.0.0.1:8642",
        "localhost:8642@evil.example",
        "localhost:x",
        "127.0.0.1:8642:1",
    ],
)
def test_a_name_that_was_bound_to_this_machine_by_others_is_refused_even_with_the_token(
    guard: Guard, inner: Inner, host: str | None
) -> None:
    assert ask(guard, host=host).status == 421
    assert ask(guard, "/", query=f"token={TOKEN}", host=host).status == 421
    assert not inner.seen


def test_two_host_headers_name_no_host(guard: Guard) -> None:
    assert ask(guard, host=HOST, Host="evil.example").status == 421
    assert ask(guard, host=HOST, Host=HOST).status == 421


def test_who_listens_everywhere_is_asked_by_any_number_and_its_own_name_alone(inner: Inner) -> None:
    guard = Guard(inner, TOKEN, names_of("0.0.0.0"), PORT, LIMIT_BYTES)
    for host in ("10.1.2.3:8642", "[2001:db8::1]:8642", socket.gethostname(), "localhost"):
        assert ask(guard, host=host).status == 200
    assert ask(guard, host="evil.example:8642").status == 421


def test_one_address_is_asked_by_that_address() -> None:
    assert names_of("192.168.0.7") == ("192.168.0.7",)
    assert names_of("2001:DB8::1") == ("[2001:db8::1]",)
    assert is_loopback("127.0.0.2")
    assert is_loopback("::1")
    assert is_loopback("localhost")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("192.168.0.7")
    assert not is_loopback("review.example")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_a_form_of_another_site_can_send_is_refused(guard: Guard, inner: Inner, kind: str) -> None:
    assert ask(guard, method="POST", content_type=kind).status == 415
    assert not inner.seen


def test_a_request_from_a_page_of_another_site_is_refused(guard: Guard, inner: Inner) -> None:
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "http://localhost:8642", ""):
        answer = ask(guard, method="POST", content_type="application/json", origin=origin)
        assert answer.status == 403, origin
    assert not inner.seen
    for origin in (f"http://{HOST}", f"https://{HOST}"):  # the latter behind what ends TLS
        assert ask(guard, method="POST", content_type="application/json; charset=utf-8", origin=origin).status == 200
    assert ask(guard, method="POST", content_type="application/json").status == 200


def test_a_write_by_the_cookie_says_that_it_is_from_this_page(guard: Guard, inner: Inner) -> None:
    """Since another site's link brings the cookie with it: see SameSite."""

    def post(**headers: str) -> int:
        cookie = f"raytrain_review_{PORT}={TOKEN}"
        return ask(guard, method="POST", token=None, cookie=cookie, content_type="application/json", **headers).status

    assert post() == 403
    assert post(authorization="Bearer wrong") == 403
    assert post(origin="http://evil.example") == 403
    assert post(origin="null") == 403
    assert not inner.seen
    assert post(origin=f"http://{HOST}") == 200
    assert post(authorization=f"Bearer {TOKEN}") == 200


def test_a_body_beyond_the_limit_is_not_passed_on_whether_it_says_its_length_or_not(guard: Guard, inner: Inner) -> None:
    def post(*bodies: bytes, **headers: str) -> Answer:
        return ask(guard, method="POST", content_type="application/json", bodies=bodies, **headers)

    assert post(b"x", content_length=str(LIMIT_BYTES + 1)).status == 413
    assert post(*[b"x" * 100] * 11).status == 413
    assert post(b"x" * (LIMIT_BYTES + 1), content_length="5").status == 413
    assert not inner.seen
    whole = post(*[b"x" * 100] * 10)
    assert (whole.status, whole.body) == (200, b"x" * LIMIT_BYTES)


def test_every_answer_forbids_scripts_of_others_frames_and_guessed_types(guard: Guard) -> None:
    for answer in (ask(guard), ask(guard, token=None), ask(guard, host="evil.example"), ask(guard, method="POST")):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"].startswith("private")


def test_what_the_end_of_the_server_cuts_off_is_told_to_ask_again(inner: Inner) -> None:
    sent: list[Message] = []

    async def endless(scope: Scope, receive: Any, send: Any) -> None:
        if scope["path"] == "/begun":
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(60)

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def ended(path: str) -> Answer:
        sent.clear()
        guard = Guard(endless, TOKEN, names_of("127.0.0.1"), PORT, LIMIT_BYTES)
        headers = [(b"host", HOST.encode()), (b"authorization", f"Bearer {TOKEN}".encode())]
        scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": headers}
        task = asyncio.ensure_future(guard(scope, receive, send))
        await asyncio.sleep(0.05)
        task.cancel()
        await task
        return Answer(sent)

    answer = asyncio.run(ended("/api/review"))
    assert (answer.status, b"the server is ending" in answer.body) == (503, True)
    assert "content-security-policy" in answer.headers
    answer = asyncio.run(ended("/begun"))
    assert (answer.status, answer.body) == (200, b"")


def test_a_websocket_is_closed(guard: Guard, inner: Inner) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    asyncio.run(guard({"type": "websocket", "path": "/", "headers": []}, receive, send))
    assert [message["type"] for message in sent] == ["websocket.close"]
    assert not inner.seen


def test_every_start_has_a_token_of_its_own_of_at_least_128_bits() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(len(token) * 6 >= 128 for token in tokens)


def test_a_token_file_is_made_for_its_owner_alone_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token = token_of_file(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert token_of_file(path) == token


def test_a_token_file_that_others_may_read_or_that_holds_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token_of_file(path)
    os.chmod(path, 0o640)
    with pytest.raises(ConfigError, match="others may read it \\(640\\); chmod 600"):
        token_of_file(path)
    os.chmod(path, 0o600)
    for text in ("", "short", "a b" * 20, "x" * 500):
        path.write_text(text)
        with pytest.raises(ConfigError, match="holds no token"):
            token_of_file(path)
    with pytest.raises(ConfigError, match="can't be made"):
        token_of_file(tmp_path / "nowhere" / "token")


def test_a_token_file_is_a_file_of_this_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for path in (pipe, tmp_path):
        with pytest.raises(ConfigError, match="no regular file"):
            token_of_file(path)
    path = tmp_path / "token"
    token_of_file(path)
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with pytest.raises(ConfigError, match=f"belongs to user {user}, expected {user + 1}"):
        token_of_file(path)


def test_the_home_of_a_user_is_known_in_the_name_of_a_token_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    token = token_of_file(Path("~/token"))
    assert (tmp_path / "token").read_text().strip() == token
    with pytest.raises(ConfigError, match="nobody's home"):
        token_of_file(Path("~no-such-user/token"))
