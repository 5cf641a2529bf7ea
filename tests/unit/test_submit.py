"""What `raytrain submit` asks of a job API, below Ray: one in this process answers as Ray's does."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from raytrain.cli import _parse, main
from raytrain.cluster import code, submit, token
from raytrain.cluster.submit import JobServer, Server, Work
from raytrain.command_submit import Submit, _Log
from raytrain.errors import ConfigError, WorkNotFinished
from tests.job_api import TOKEN, JobApi

VERIFY = ("verify", "s3://bucket/shards")


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobApi]:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setattr(submit, "MOST_WAIT_S", 0.05)
    with JobApi() as api:
        yield api


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def server(api: JobApi, said: list[str]) -> JobServer:
    return JobServer(Server(address=api.address), said.append)


def work(*arguments: str, **fields: Any) -> Work:
    return Work(verb="verify", arguments=arguments, meaning={"uri": arguments[0]}, **fields)


# Attempts


def test_same_work_attaches_while_an_attempt_runs_and_begins_the_next_one_after_it(
    api: JobApi, server: JobServer
) -> None:
    first = server.submit(work("s3://b/x"))
    again = server.submit(work("s3://b/x"))
    assert (first.attempt, first.is_joined) == (1, False)
    assert (again.id, again.is_joined) == (first.id, True)
    api.end(first.id, "FAILED", 3)
    second = server.submit(work("s3://b/x"))
    assert (second.attempt, second.is_joined) == (2, False)
    assert second.id == first.id.removesuffix("1") + "2"
    assert len(api.jobs) == 2


def test_other_work_is_another_submission(server: JobServer) -> None:
    assert server.submit(work("s3://b/x")).id != server.submit(work("s3://b/y")).id


def test_other_options_for_what_a_job_makes_now_are_refused_until_it_has_ended(api: JobApi, server: JobServer) -> None:
    one, other = work("s3://b/x", writes="s3://b/out"), work("s3://b/y", writes="s3://b/out")
    first = server.submit(one)
    with pytest.raises(ConfigError, match=f"{first.id} makes s3://b/out now, with other options"):
        server.submit(other)
    assert server.submit(one).is_joined
    assert not server.submit(work("s3://b/z", writes="s3://b/elsewhere")).is_joined
    api.end(first.id, "FAILED", 3)
    assert server.submit(other).attempt == 1


@pytest.mark.parametrize(
    ("arguments", "writes"),
    [
        (("shard", "s3://b/a", "s3://b/s/"), "s3://b/s"),
        (("score", "s3://b/a", "s3://b/m", "--ensemble", "s3://b/r"), "s3://b/m"),
        (("tune", "--shards", "s3://b/s", "--out", "s3://b/t", "--member", "x", "--trials", "2"), "s3://b/t/main"),
        (("train", "--shards", "s3://b/s", "--out", "s3://b/r", "--members", "b", "a"), "s3://b/r/main (a, b)"),
        (("verify", "s3://b/s"), None),
    ],
)
def test_what_a_job_makes_is_known_before_it_runs(arguments: tuple[str, ...], writes: str | None) -> None:
    assert parsed(*arguments).writes == writes


def test_plain_submission_of_a_clone_packs_code_and_settings_alone(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    clone = tmp_path / "clone"
    for name in (".env", "key.pem", "masks/a.tif", "raytrain/cli.py", "jobs/train.py", "own.toml", "tests/a.py"):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_text("")
    for name in (".rayignore", ".gitignore"):
        shutil.copy(Path(submit.raytrain.__file__).parents[1] / name, clone)
    create_package(str(clone), tmp_path / "package.zip", include_gitignore=True)
    names = {name for name in zipfile.ZipFile(tmp_path / "package.zip").namelist() if not name.endswith("/")}
    assert names == {"raytrain/cli.py", "jobs/train.py", "own.toml"}


def test_digest_depends_on_what_options_mean_and_files_hold_but_not_on_their_order_or_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.toml").write_text("x = 1")
    one = Work(verb="train", arguments=("--a", "1", "--b", "2"), meaning={"a": 1, "b": 2}, files=("a.toml",))
    other = Work(
        verb="train", arguments=("--b", "2", "--a", "1"), meaning={"b": 2, "a": 1}, files=("a.toml",), ships="image"
    )
    assert one.digest() == other.digest()
    before = one.digest()
    Path("a.toml").write_text("x = 2")
    assert one.digest() != before


def test_lost_answer_to_a_submission_is_known_as_our_own(api: JobApi, server: JobServer) -> None:
    lost: list[str] = []

    def lose_first(method: str, path: str) -> bool:
        if (method, path) == ("POST", "/api/jobs/") and not lost:
            lost.append(path)
            return True
        return False

    api.after = lose_first
    found = server.submit(work("s3://b/x"))
    assert lost
    assert (found.attempt, found.is_joined) == (1, False)
    assert len(api.jobs) == 1


def test_who_comes_second_to_a_name_attaches_to_who_was_first(api: JobApi, server: JobServer) -> None:
    name = f"raytrain-verify-{work('s3://b/x').digest()}-1"

    def other_is_faster(method: str, path: str) -> None:
        if (method, path) == ("POST", "/api/jobs/") and name not in api.jobs:
            api.add(name, "RUNNING")

    api.before = other_is_faster
    found = server.submit(work("s3://b/x"))
    assert (found.id, found.is_joined) == (name, True)


def test_job_says_which_raytrain_it_runs(api: JobApi, server: JobServer) -> None:
    of_tree = api.jobs[server.submit(work("s3://b/x")).id]
    of_image = api.jobs[server.submit(work("s3://b/y", ships="image")).id]
    assert of_tree["metadata"]["raytrain_sha256"] == code.digest()
    assert of_image["metadata"]["raytrain_sha256"] == "of the image"


def test_entrypoint_keeps_arguments_apart_whatever_a_shell_makes_of_them(api: JobApi, server: JobServer) -> None:
    strange = "s3://b/a b;touch $HOME'\"x"
    found = server.submit(work(strange))
    import shlex

    assert shlex.split(api.jobs[found.id]["entrypoint"]) == ["python", "jobs/verify.py", strange]


# What is sent


def packed(api: JobApi) -> set[str]:
    (data,) = api.packages.values()
    return set(zipfile.ZipFile(io.BytesIO(data)).namelist())


def test_only_the_script_its_files_and_raytrain_are_sent(
    api: JobApi, server: JobServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("deep").mkdir()
    Path("deep/stores.toml").write_text("")
    Path("secret.env").write_text("AWS_SECRET_ACCESS_KEY=x")
    server.submit(work("s3://b/x", files=("deep/stores.toml",)))
    names = {name for name in packed(api) if not name.endswith("/")}
    assert {name for name in names if not name.startswith("raytrain/")} == {"jobs/verify.py", "deep/stores.toml"}
    own = Path(submit.raytrain.__file__).parent
    assert {name for name in names if name.startswith("raytrain/")} == {
        f"raytrain/{path.relative_to(own)}" for path in own.rglob("*.py")
    }


def test_raytrain_of_the_image_is_not_sent(api: JobApi, server: JobServer) -> None:
    server.submit(work("s3://b/x", ships="image"))
    assert {name for name in packed(api) if not name.endswith("/")} == {"jobs/verify.py"}


def test_no_credential_of_this_machine_is_sent(api: JobApi, server: JobServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecretindeed")
    found = server.submit(work("s3://b/x"))
    record = json.dumps(api.jobs[found.id])
    assert "verysecretindeed" not in record
    assert TOKEN not in record
    assert list(api.jobs[found.id]["runtime_env"]["env_vars"]) == ["RAY_JOB_STOP_WAIT_TIME_S"]


# Watching


def test_log_over_breaking_connections_is_passed_on_once_and_whole(api: JobApi, server: JobServer) -> None:
    name = server.submit(work("s3://b/x")).id
    api.logs[name] = "".join(f"line {i}\n" for i in range(1000))
    api.log_pieces = [1, 700, 701, 5000, 5002, 20]
    written: list[str] = []

    def write(text: str) -> None:
        written.append(text)
        if sum(map(len, written)) >= 5002:
            api.end(name, "SUCCEEDED", 0)

    ended = server.follow(name, write)
    assert api.log_pieces == [20]
    assert "".join(written) == api.logs[name]
    assert submit.exit_code_of(ended) == 0


def test_silent_connection_is_made_anew_and_the_rest_of_the_log_is_had(
    api: JobApi, server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "SILENCE_S", 0.2)
    name = server.submit(work("s3://b/x")).id
    api.logs[name] = "begin\n"
    written: list[str] = []

    def write(text: str) -> None:
        written.append(text)
        if text == "begin\n":
            import threading

            def later() -> None:
                api.logs[name] += "end\n"
                api.end(name, "FAILED", 1)

            threading.Timer(0.7, later).start()

    ended = server.follow(name, write)
    assert written == ["begin\n", "end\n"]
    assert submit.exit_code_of(ended) == 1
    assert sum(path.endswith("/logs/tail") for _, path in api.requests) >= 3


def test_server_that_is_away_for_a_while_is_asked_again(api: JobApi, server: JobServer, said: list[str]) -> None:
    name = server.submit(work("s3://b/x")).id
    api.end(name, "SUCCEEDED", 0)
    left = [503] * 3

    def away(method: str, path: str) -> web.Response | None:
        return web.Response(status=left.pop()) if left else None

    api.before = away
    assert server.submission(name).status == "SUCCEEDED"
    assert [line for line in said if "asking again" in line] == [said[0]]


def test_server_that_stays_away_is_unfinished_work(
    api: JobApi, server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = server.submit(work("s3://b/x")).id
    monkeypatch.setattr(submit, "PATIENCE_S", 0.2)
    api.before = lambda method, path: web.Response(status=502)
    with pytest.raises(WorkNotFinished, match="same command attaches"):
        server.submission(name)


def test_head_that_lost_its_jobs_is_unfinished_work(api: JobApi, server: JobServer) -> None:
    name = server.submit(work("s3://b/x")).id
    api.logs[name] = "begin\n"
    api.log_pieces = [6]
    with pytest.raises(WorkNotFinished, match="begins an attempt that goes on"):
        server.follow(name, lambda text: api.jobs.clear())


@pytest.mark.parametrize(
    ("status", "driver", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 1, 1),
        ("FAILED", 2, 2),
        ("FAILED", None, 3),
        ("FAILED", -9, 3),
        ("FAILED", 137, 3),
        ("FAILED", 130, 130),
        ("FAILED", 143, 143),
        ("STOPPED", None, 143),
    ],
)
def test_exit_code_is_that_of_the_command_on_the_cluster(
    api: JobApi, server: JobServer, status: str, driver: int | None, expected: int
) -> None:
    name = server.submit(work("s3://b/x")).id
    api.end(name, status, driver)
    assert submit.exit_code_of(server.submission(name)) == expected


# Tokens and addresses


@pytest.mark.parametrize(("sent", "told"), [(None, "wants a token"), ("of-another-cluster", "refuses this token")])
def test_refused_token_is_the_callers_mistake_and_not_asked_again(
    api: JobApi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sent: str | None, told: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    if sent:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text(f"{sent}\n")
    with pytest.raises(ConfigError, match=told) as raised:
        JobServer(Server(address=api.address), print).submissions()
    assert len(api.requests) == 1
    assert "of-another-cluster" not in str(raised.value)


def test_no_server_is_the_callers_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setattr(submit, "FIRST_ANSWER_S", 0.1)
    with pytest.raises(ConfigError, match="is the tunnel there"):
        JobServer(Server(address="http://127.0.0.1:9"), lambda text: None).submissions()


def test_token_is_not_sent_after_a_redirect(api: JobApi, server: JobServer) -> None:
    api.before = lambda method, path: web.Response(status=307, headers={"Location": "http://192.0.2.1/"})
    with pytest.raises(ConfigError, match="a redirect; the token is not sent elsewhere"):
        server.submissions()
    assert len(api.requests) == 1


def test_server_that_is_no_job_api_is_the_callers_mistake_in_one_line(
    api: JobApi, capfd: pytest.CaptureFixture[str]
) -> None:
    api.before = lambda method, path: web.Response(status=404, text="<html>")
    assert main(["submit", "--address", api.address, "status"]) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert f"no job API of Ray at {api.address}" in line


def test_answer_of_a_job_api_that_can_not_serve_is_unfinished_work(api: JobApi, server: JobServer) -> None:
    assert server.submissions() == []
    api.before = lambda method, path: web.Response(status=400, text="no")
    with pytest.raises(WorkNotFinished, match="status 400"):
        server.submissions()


def test_token_for_this_machine_goes_to_no_proxy(
    api: JobApi, server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert server.submissions() == []


@pytest.mark.parametrize("host", ["10.0.0.5", "ray-head", "ray.example.com", "[fd00::1]", "127.0.0.1.example.com"])
def test_token_does_not_go_to_another_host_in_the_clear_unless_told(host: str) -> None:
    with pytest.raises(ConfigError, match="in the clear"):
        token.check_server(f"http://{host}:8265", sends_token=True, allow_plain_http=False)
    token.check_server(f"http://{host}:8265", sends_token=True, allow_plain_http=True)
    token.check_server(f"http://{host}:8265", sends_token=False, allow_plain_http=False)
    token.check_server(f"https://{host}:8265", sends_token=True, allow_plain_http=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "127.8.0.1"])
def test_token_goes_to_this_machine(host: str) -> None:
    token.check_server(f"http://{host}:8265", sends_token=True, allow_plain_http=False)


@pytest.mark.parametrize(
    "address",
    ["ray://h:10001", "h:8265", "http://", "http://h:x", "ftp://h", "http://h/?a=1", "https://me:secretword@h"],
)
def test_address_that_is_none_of_a_job_api_is_refused(address: str) -> None:
    with pytest.raises(ConfigError) as raised:
        token.check_server(address, sends_token=False, allow_plain_http=False)
    assert "secretword" not in str(raised.value)


def test_token_is_found_where_ray_finds_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert token.find_token() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of-home\n")
    assert token.find_token() == "of-home"
    (tmp_path / "named").write_text("of-path")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "named"))
    assert token.find_token() == "of-path"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-environment")
    assert token.find_token() == "of-environment"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert token.find_token() is None


def test_token_that_ray_makes_is_its_owners_alone_and_one_that_was_there_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ".ray" / "auth_token"
    path.parent.mkdir()
    with token.kept_from_others():
        path.write_text("made by Ray")
        path.chmod(0o644)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with token.kept_from_others():
        pass
    assert path.stat().st_mode & 0o777 == 0o640


def test_missing_or_impossible_token_is_told_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="there is no file"):
        token.find_token()
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(ConfigError, match="there is no token in"):
        token.find_token()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "two\nlines-of-secret")
    with pytest.raises(ConfigError, match="is no token") as raised:
        token.find_token()
    assert "secret" not in str(raised.value)


# The command line


def parsed(*arguments: str) -> Submit:
    found = _parse(["submit", *arguments])
    assert isinstance(found, Submit)
    return found


def test_what_follows_the_verb_is_the_verbs_own() -> None:
    found = parsed("--detach", "--address", "http://h:1", "score", "s3://b/a", "s3://b/m", "--ensemble", "s3://b/r")
    assert (found.detach, found.address, found.what) == (True, "http://h:1", "score")
    assert found.arguments == ("s3://b/a", "s3://b/m", "--ensemble", "s3://b/r")


def test_order_and_printing_are_no_part_of_the_work() -> None:
    one = parsed("verify", "s3://b/x", "--json")
    other = parsed("verify", "s3://b/x")
    assert one.meaning == other.meaning
    assert parsed("verify", "s3://b/x/", "--log", "json").meaning == other.meaning
    where = ["train", "--shards", "s3://b/x", "--out", "s3://b/r"]
    sets = [["epochs=3", "optimiser.lr=0.01"], ["optimiser.lr=0.01", "epochs=3"], ["epochs=4", "optimiser.lr=0.01"]]
    first, same, changed = (parsed(*where, "--set", *each).meaning for each in sets)
    assert first == same != changed
    two = parsed("score", "s3://b/a", "s3://b/m", "--ensemble", "s3://b/r", "--max-failures", "3")
    three = parsed("score", "s3://b/a", "s3://b/m", "--max-failures", "3", "--ensemble", "s3://b/r")
    assert two.meaning == three.meaning


def test_commands_of_a_review_are_sent_and_told_apart() -> None:
    found = parsed("--detach", "review", "apply", "s3://b/review", "s3://b/new", "--conflicts", "latest")
    assert (found.detach, found.what, found.writes) == (True, "review", "s3://b/new")
    assert found.arguments == ("apply", "s3://b/review", "s3://b/new", "--conflicts", "latest")
    same = parsed("review", "apply", "--conflicts", "latest", "s3://b/review/", "s3://b/new")
    assert found.meaning == same.meaning
    rank = parsed("review", "rank", "s3://b/shards", "s3://b/predictions", "s3://b/new")
    assert (rank.meaning["command"], found.meaning["command"]) == ("rank", "apply")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("verify",), "URI"),
        (("verify", "shards"), "a job needs s3://"),
        (("verify", "s3://b/x", "--address", "10.0.0.1:6379"), "before the verb"),
        (("verify", "s3://b/x", "--address=local"), "before the verb"),
        (("verify", "https://me:secretword@h/x"), "a user or a password"),
        (("verify", "https://h/x?X-Amz-Signature=abc"), "may be signed"),
        (("verify", "s3://b/x", "--stores", "none.toml"), "expected a file below this folder"),
        (("verify", "s3://b/x", "--stores", "../pyproject.toml"), "expected a file below this folder"),
        (("review",), "apply"),
        (("review", "serve", "s3://b/review"), "review serve is not for a job: a job has no address"),
        (("review", "merge", "s3://b/review", "s3://b/other"), "needs no cluster; run raytrain review merge here"),
        (("review", "apply", "review", "s3://b/new"), "a job needs s3://"),
        (("review", "apply", "s3://b/review", "new"), "a job needs s3://"),
        (("review", "apply", "s3://b/review"), "DST"),
        (("frobnicate",), "frobnicate"),
    ],
)
def test_what_no_job_can_do_is_refused_before_anything_is_sent(arguments: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as raised:
        parsed(*arguments)
    assert "X-Amz-Signature=abc" not in str(raised.value)
    assert "secretword" not in str(raised.value)


def test_command_watches_to_the_end_and_ends_as_the_job_did(
    api: JobApi, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", api.address)

    def run(job: dict[str, Any]) -> None:
        api.logs[job["submission_id"]] = "one difference\n"
        api.end(job["submission_id"], "FAILED", 1)

    api.on_start = run
    assert main(["submit", *VERIFY]) == 1
    out, told = capfd.readouterr()
    assert out == "one difference\n"
    assert "attempt 1, raytrain 0.1.0 of the submitted tree" in told
    assert "failed, exit code 1" in told


def test_detached_submission_is_asked_for_and_stopped_by_its_id(
    api: JobApi, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", api.address)
    assert main(["submit", "--detach", *VERIFY]) == 0
    name = capfd.readouterr().out.strip()
    assert submit.NAME.fullmatch(name)
    assert main(["submit", "status", "--json"]) == 0
    (listed,) = json.loads(capfd.readouterr().out)["submissions"]
    assert (listed["id"], listed["status"]) == (name, "RUNNING")
    assert main(["submit", "stop", name]) == 0
    assert f"{name}: stopped" in capfd.readouterr().out
    assert main(["submit", "logs", name]) == 143
    assert main(["submit", "status", name]) == 0
    assert "status: STOPPED" in capfd.readouterr().out


def test_word_behind_a_request_is_its_id() -> None:
    for request in ("status", "logs", "stop"):
        assert (parsed(request, "train").what, parsed(request, "train").id) == (request, "train")


def test_unknown_or_foreign_id_is_the_callers_mistake(api: JobApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", api.address)
    assert main(["submit", "logs", "raytrain-verify-0123456789ab-1"]) == 2
    assert main(["submit", "stop", "../../api/jobs"]) == 2
    assert main(["submit", "stop"]) == 2
    assert ("POST", "/api/jobs/../../api/jobs/stop") not in api.requests


def test_a_log_on_a_terminal_is_readable_and_steers_nothing_to_its_last_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"time": "2026-11-26T21:58:36.878Z", "level": "INFO", "logger": "raytrain", "message": "a \x1b[2J"}
    pieces = [json.dumps(record)[:20], f"{json.dumps(record)[20:]}\nTraceback \x1b]0;x\x07\n", "\x1b[2J killed"]
    shown = {}
    for is_terminal in (True, False):
        monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal)  # noqa: B023  # called within this turn
        log = _Log()
        for piece in pieces:
            log.write(piece)
        log.end()
        shown[is_terminal] = capsys.readouterr().out
    assert shown[True] == "21:58:36 a \\x1b[2J\nTraceback \\x1b]0;x\\x07\n\\x1b[2J killed"
    assert shown[False] == "".join(pieces)  # for a program, which may want each byte
