"""The command line: exit codes, one line for a mistake, results for machines."""

from __future__ import annotations

import errno
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError

from raytrain import __version__, cli
from raytrain.errors import ConfigError, DataError, RaytrainError, StoreOutOfReach, TrainingDiverged, WorkNotFinished


class Quiet(BaseHTTPRequestHandler):
    """A web server that says nothing on stderr."""

    def log_message(self, *arguments: object) -> None:
        pass


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must end with 2 and return its one line."""
    assert cli.main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("raytrain: ")
    return line.removeprefix("raytrain: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Expected one of"),
        (["shard"], "Missing"),
        (["shard", "a", "b", "--bogus", "1"], "Unrecognized options: --bogus"),
        (["synth", "/tmp/x", "--count", "0"], "greater than or equal to 1 (found 0)"),
        (["synth", "/tmp/x", "--count", "many"], "invalid literal for int"),
        (["synth", ""], "an empty path"),
        (["synth", "/tmp/x", "--size-px", "10000"], "a chip has at most 8192 px"),
        (["synth", "/tmp/x", "--kind", "scenes", "--size-px", "1000000"], "less than or equal to 200000"),
        (["synth", "s3://bucket/x"], "expected a folder on a local disk"),
        (["shard", "/absent", "/tmp/never"], "no chips found"),
        (["shard", "a", "b", "--bands", "B02", "B02"], "bands must be distinct"),
        (["shard", "a", "b", "--metadata", ""], "an empty path"),
        (["demo", "--out", "/tmp/never", "--address", "127.0.0.1:1"], "can't join Ray at 127.0.0.1:1"),
        (["demo", "--out", "/tmp/never", "--address", "head"], "expected local, auto or HOST:PORT"),
        (["shard", "gs://bucket/x", "/tmp/never"], "expected a local path or s3://"),
        (["train", "--shards", "/absent", "--out", "/tmp/never"], "no finished shards"),
        (["train", "--shards", "/absent", "--out", "x", "--members", "r35"], "unknown member 'r35'"),
        (["train", "--shards", "/absent", "--out", "x", "--set", "lr=1"], "unknown setting 'lr'"),
        (["train", "--shards", "/absent", "--out", "x", "--set", "epochs=0"], "epochs: "),
        (["train", "--shards", "/absent", "--out", "x", "--set", "name=other"], "name is no setting to change"),
        (["train", "--shards", "/absent", "--out", "x", "--members"], "members"),
        (["train", "--shards", "/absent", "--out", "x", "--config", "/tmp"], "a file stands where a folder"),
        (["evaluate", "/absent", "/absent", "--metadata", "/tmp", "--out", "x"], "a folder, expected a metadata file"),
        (["train", "--shards", "/absent", "--out", "x", "--fold", "first"], "expected a number, all or none"),
        (["train", "--shards", "/absent", "--out", "x", "--config", "/absent.toml"], "no such settings file"),
        (["train", "--shards", "/absent", "--out", "x", "--experiment", "a/b"], "experiment: String should match"),
        (["train", "--shards", "/absent", "--out", "x", "--cache", "s3://bucket/x"], "--cache s3://bucket/x: expected"),
        (["train", "--shards", "/absent", "--out", "x", "--cache-limit-gb", "0"], "cache_limit_gb: Input should be"),
        (["train", "--shards", "/absent", "--out", "x", "--loader-threads", "0"], "threads: Input should be"),
        (["score", "/absent", "/tmp/never", "--ensemble", "/absent"], "no ensemble there"),
        (["score", "a", "b", "--ensemble", "c", "--set", "window_px=100"], "window_px"),
        (["score", "a", "b", "--ensemble", "c", "--where", "x=y"], "where and metadata are given together"),
        (["evaluate", "/absent", "/absent", "--metadata", "/absent.csv", "--out", "x"], "no such metadata file"),
        (["demo", "--out", "s3://bucket/demo"], "a local disk"),
    ],
)
def test_mistakes_end_with_2_and_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in failed(capsys, *arguments)


@pytest.mark.parametrize("error", [Exception("The current node timed out during startup."), TimeoutError("5 s")])
def test_ray_that_does_not_come_up_in_time_is_told_as_that_with_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, chips: Path, error: Exception
) -> None:
    def never(**options: object) -> None:
        raise error

    # Another test of this process may have a Ray, which stays as it is.
    for name, answer in {"is_initialized": lambda: False, "init": never, "shutdown": lambda: None}.items():
        monkeypatch.setattr(f"ray.{name}", answer)
    assert cli.main(["shard", str(chips), str(tmp_path / "shards")]) == 3
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"Ray did not start on this machine in time: {error}" in told
    assert "internal error" not in told


def test_address_of_ray_client_is_refused_with_the_way_out(chips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "raytrain submit" in failed(capsys, "shard", str(chips), "/tmp/never", "--address", "ray://head:10001")


def test_address_of_a_web_server_is_refused_at_once(chips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        message = failed(capsys, "shard", str(chips), "/tmp/never", "--address", address)
        server.shutdown()
    assert f"can't join Ray at {address}: no GCS answers there" in message
    assert "can't join Ray at ..:6379" in failed(capsys, "shard", str(chips), "/tmp/never", "--address", "..:6379")


def test_options_that_only_the_data_show_to_be_wrong_end_with_2(
    chips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(chips)
    assert "would stand among the chips" in failed(capsys, "shard", source, source)
    assert "no chip has a band B99" in failed(capsys, "shard", source, str(tmp_path), "--bands", "B02", "B99")
    assert "keys never stand in a URI" in failed(capsys, "shard", "s3://key:secret@bucket/x", str(tmp_path))
    assert "nothing to verify" in failed(capsys, "verify", source)
    assert "no finished shards" in failed(capsys, "audit", source)
    assert "no such metadata file" in failed(capsys, "audit", f"{source}/absent.csv")
    assert list(tmp_path.iterdir()) == []


def test_synth_prints_its_result_for_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["synth", str(tmp_path), "--count", "2", "--size-px", "32", "--places", "1", "--json"]
    assert cli.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"listing": str(tmp_path / "train_metadata.csv"), "count": 2}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (DataError("chip", "x"), 1),
        (WorkNotFinished("x"), 3),
        (TrainingDiverged("x"), 3),
        (KeyboardInterrupt(), 130),
        (ConnectionError("x"), 3),
        (FileNotFoundError("x"), 2),
        (NotADirectoryError("x"), 2),
        (PermissionError("x"), 2),
        (StoreOutOfReach("x"), 3),
        (OSError(errno.ENOSPC, "x"), 3),
        (EndpointConnectionError(endpoint_url="x"), 3),
        (NoCredentialsError(), 3),
        (ZeroDivisionError("x"), 3),
    ],
)
def test_every_error_has_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    def broken(self: cli.Synth, narrator: object) -> int:
        raise error

    monkeypatch.setattr(cli.Synth, "run", broken)
    assert cli.main(["synth", "/tmp/never"]) == code
    shown = capsys.readouterr().err
    assert ("Traceback" in shown) == isinstance(error, ZeroDivisionError)
    if isinstance(error, RaytrainError):
        assert len(shown.strip().splitlines()) == 1


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--help"])
    assert stop.value.code == 0
    assert "--experiment" in capsys.readouterr().out


def test_job_needs_a_cluster_or_an_address(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("sys.argv", ["jobs/shard.py", "/absent", "/tmp/never"])
    assert cli.job("shard") == 2
    assert "no RAY_ADDRESS" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["jobs/shard.py", "/absent", "/tmp/never", "--address", "local"])
    assert cli.job("shard") == 2
    assert "no chips found" in capsys.readouterr().err


def test_job_of_a_review_is_one_that_needs_a_cluster(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("sys.argv", ["jobs/review.py", "export", "/absent", "/tmp/never.parquet"])
    assert cli.job("review") == 2
    assert "review export is not for a job" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["jobs/review.py", "apply", "/absent", "/tmp/never"])
    assert cli.job("review") == 2
    assert "no RAY_ADDRESS" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["jobs/review.py", "apply", "/absent", "/tmp/never", "--address", "local"])
    assert cli.job("review") == 2
    assert "/absent/review.json: no such file" in capsys.readouterr().err


def test_job_refuses_a_relative_path_since_its_folder_goes_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["jobs/shard.py", "s3://bucket/chips", "shards"])
    assert cli.job("shard") == 2
    assert "shards: a job needs s3://... or an absolute path" in capsys.readouterr().err
