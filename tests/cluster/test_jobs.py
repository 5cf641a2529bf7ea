"""`raytrain submit` and `ray job submit -- python jobs/VERB.py` against a head of its own, started with a token."""

from __future__ import annotations

import io
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytrain import storage
from raytrain.cluster import code
from tests import leftovers
from tests.cluster.test_stores_on_ray import DRIVER, SEEN
from tests.flaky import FlakyProxy

ROOT = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).with_name("ray")
START_S = 90
STOP_S = 5
"""How long Ray may take to end by itself; often it does not."""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Head:
    """A Ray head on loopback with a token, its own ports and its own session folder."""

    more_environment: dict[str, str] = {}  # noqa: RUF012  # of a kind of head

    def __init__(self) -> None:
        gcs, self.dashboard, agent, agent_grpc, metrics, client = free_ports(6)
        self.gcs = f"127.0.0.1:{gcs}"
        # Short: Ray puts sockets below it, whose names may have about 100 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="rt"))
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self.dashboard}",
            "PATH": f"{RAY.parent}:{os.environ['PATH']}",
            **self.more_environment,
        }
        options = {
            "node-ip-address": "127.0.0.1",
            "port": gcs,
            "dashboard-host": "127.0.0.1",
            "dashboard-port": self.dashboard,
            "dashboard-agent-listen-port": agent,
            "dashboard-agent-grpc-port": agent_grpc,
            "metrics-export-port": metrics,
            "ray-client-server-port": client,
            "num-cpus": 2,
            "object-store-memory": 150_000_000,
            "temp-dir": self.folder,
            **self.more_options(),
        }
        self.log = (self.folder / "start.log").open("w")
        self.process = subprocess.Popen(
            [RAY, "start", "--head", "--block", *(f"--{name}={value}" for name, value in options.items())],
            env=self.environment,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def get(self, path: str) -> Any:
        """Return what the job API answers."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.dashboard}{path}",
            headers={"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def more_options(self) -> dict[str, Any]:
        """What a kind of head is started with beside these; its ports and its folder are known by now."""
        return {}

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while self.ray("job", "list").returncode != 0:
            assert self.process.poll() is None, (self.folder / "start.log").read_text()
            assert time.monotonic() < deadline, (self.folder / "start.log").read_text()
            time.sleep(1)

    def ray(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [RAY, *arguments], env=self.environment | environment, cwd=ROOT, capture_output=True, text=True, timeout=300
        )

    def raytrain(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run our command to its end."""
        command = [sys.executable, "-m", "raytrain.cli", *arguments]
        return subprocess.run(
            command, env=self.environment | environment, cwd=ROOT, capture_output=True, text=True, timeout=400
        )

    def submit(self, *arguments: str, **environment: str) -> str:
        """Run a job to its end and return its log; it must succeed."""
        done = self.raytrain("submit", *arguments, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def train_runs(self) -> dict[str, str]:
        """Return what the dashboard shows of Ray Train: the status of runs by name, of the last of a name."""
        runs = self.get("/api/train/v2/runs/v1")["train_runs"]
        return {run["name"]: run["status"] for run in reversed(runs)}

    def stop(self) -> None:
        """End what was started here, and only that: the process group of the head."""
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


EPOCHS = 4
"""Of the training that is stopped and gone on with."""


def the_log_is_records_of_what_happened(log: str) -> None:
    """Check what raytrain wrote to a job's log: records that say how the run went, and nothing else but results."""
    records = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    events = [record.get("event") for record in records if record.get("run") == "small-byob-3b-fold0"]
    assert {"run begins", "epoch", "run done"} <= set(events)
    epoch = next(record for record in records if record.get("event") == "epoch")
    assert (epoch["epochs"], epoch["level"], epoch["logger"]) == (EPOCHS, "INFO", "raytrain")


class HeadWithSecrets(Head):
    """One in whose environment keys of a store stand, as well as the token; it keeps what its commands wrote."""

    more_environment = {  # noqa: RUF012
        name: f"{name.title().replace('_', '')}{secrets.token_hex(16)}"
        for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    }

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def ray(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self._kept(super().ray(*arguments, **environment))

    def raytrain(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self._kept(super().raytrain(*arguments, **environment))

    def _kept(self, done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
        self.said += [done.stdout, done.stderr]
        return done

    def secrets_left(self, *places: str) -> set[tuple[str, str]]:
        """Return which secrets stand where: in `places`, what was written, what Ray keeps and what its API answers."""
        names = (*self.more_environment, "RAY_AUTH_TOKEN")
        return leftovers.found({name: self.environment[name] for name in names}, self._pieces(places))

    def _pieces(self, places: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        yield "stdout and stderr", "\n".join(self.said).encode()
        answers = {path: self.get(path) for path in ANSWERS}
        answers |= {f"{path}?detail=true": self.get(f"{path}?detail=true&limit=1000") for path in STATES}
        for job in answers[JOBS]:
            answers[f"{JOBS}{job['submission_id']}/logs"] = self.get(f"{JOBS}{job['submission_id']}/logs")
        yield from ((path, json.dumps(answer).encode()) for path, answer in answers.items())
        yield from leftovers.pieces_of_folder(self.folder)  # Ray's, with its logs and what jobs brought along
        for place in places:
            yield from leftovers.pieces_of_store(place)


JOBS = "/api/jobs/"
ANSWERS = (JOBS, "/api/train/v2/runs/v1", "/nodes?view=summary")
STATES = tuple(f"/api/v0/{name}" for name in ("actors", "tasks", "workers", "jobs", "runtime_envs"))


@pytest.fixture(scope="module")
def head(s3: str) -> Iterator[HeadWithSecrets]:
    """A head that reaches the S3 server, too."""
    head = HeadWithSecrets()
    try:
        head.wait_until_ready()
        yield head
    finally:
        head.stop()


@pytest.mark.timeout(1200)  # the whole chain as jobs, a stop and a bad network among them
def test_jobs_do_what_the_commands_do_and_leave_no_secret_behind(
    head: HeadWithSecrets, s3: str, chips: Path, tmp_path: Path
) -> None:
    shards, runs = (str(tmp_path / name) for name in ("shards", "runs"))
    masks, scores = (f"{s3}/jobs/{name}" for name in ("masks", "scores"))
    assert "12 tiles of 6 locations" in head.submit("shard", str(chips), shards)
    tiny = ["epochs=1", "crop_px=32", "crops_per_tile=1", "global_batch=4", "decoder_channels=[8,8,8,4,4]"]
    where, small = ["--shards", shards, "--out", runs], ["--trials", "2", "--finalists", "0"]
    log = head.submit(
        "tune",
        *where,
        "--experiment",
        "search",
        "--member",
        "small-byob-3b",
        "--keep-back",
        "2",
        *small,
        "--set",
        *tiny,
    )
    found = f"{runs}/search/best.toml"
    assert f"settings: {found}" in log
    log = head.submit("train", *where, "--experiment", "found", "--members", "small-byob-3b", "--config", found)
    assert f"ensemble: {runs}/found" in log
    log = _trained_through_a_stop_over_a_flaky_network(head, shards, runs, tiny)
    assert f"ensemble: {runs}/main" in log
    the_log_is_records_of_what_happened(log)
    assert head.train_runs() | {"small-byob-3b-fold0": "FINISHED"} == head.train_runs()
    assert "12 masks" in head.submit("score", str(chips), masks, "--ensemble", f"{runs}/main")
    metadata, labels = str(chips / "train_metadata.csv"), str(chips / "train_labels")
    head.submit("evaluate", masks, labels, "--metadata", metadata, "--out", scores)
    assert storage.read_json(f"{scores}/metrics.json")["num_chips"] == 12
    plain = head.ray("job", "submit", "--working-dir", str(ROOT), "--", "python", "jobs/verify.py", shards)
    assert plain.returncode == 0, plain.stdout + plain.stderr
    for log in (plain.stdout, head.submit("verify", shards)):
        assert f"raytrain: {code.identity()}; of the submitted tree" in log
        assert "shards as written: " in log
    assert f"{code.identity()}; of this machine" in head.submit("--code", "image", "verify", f"{runs}/main")
    assert head.secrets_left(shards, runs, f"{s3}/jobs") == set()
    _a_job_that_tells_is_found(head, f"{s3}/told")


def _a_job_that_tells_is_found(head: HeadWithSecrets, place: str) -> None:
    """Check that the search sees what the jobs had: one writes its keys to its log, one has a key in its metadata."""
    key, token = (head.environment[name] for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"))
    told = ("printenv", "AWS_SECRET_ACCESS_KEY")
    assert key in head.ray("job", "submit", "--metadata-json", json.dumps({"k": token}), "--", *told).stdout
    table = pa.table({"cause": [head.environment["RAY_AUTH_TOKEN"]] * 2})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    storage.write_bytes(f"{place}/a.parquet", sink.getvalue())
    left = head.secrets_left(place)
    assert {("AWS_SECRET_ACCESS_KEY", "stdout and stderr"), ("AWS_SESSION_TOKEN", JOBS)} <= left
    assert ("RAY_AUTH_TOKEN", f"{place}/a.parquet") in left
    (log,) = [Path(where) for name, where in left if name == "AWS_SECRET_ACCESS_KEY" and "/job-driver-" in where]
    assert log.parent.name == "logs"


def _trained_through_a_stop_over_a_flaky_network(head: Head, shards: str, runs: str, settings: list[str]) -> str:
    """Train in two attempts, the first of which is stopped, and return the log of the second as it was passed on."""
    work = ["train", "--shards", shards, "--out", runs, "--members", "small-byob-3b", "--workers", "2"]
    work += ["--set", *settings, f"epochs={EPOCHS}"]
    first = head.submit("--detach", *work).strip()
    again = head.raytrain("submit", "--detach", *work)
    assert again.stdout.strip() == first
    assert "runs already" in again.stderr
    deadline = time.monotonic() + START_S
    while "; of the submitted tree" not in head.ray("job", "logs", first).stdout:
        assert time.monotonic() < deadline
        time.sleep(1)
    assert f"{first}: stopped" in head.submit("stop", first)
    # It heard of it, and ended by itself: Ray's own limit would have killed it.
    assert "raytrain: terminated; the same command goes on" in head.ray("job", "logs", first).stdout
    with FlakyProxy(("127.0.0.1", head.dashboard), good_s=4.0, away_s=1.5) as proxy:
        address = f"http://127.0.0.1:{proxy.port}"
        done = head.raytrain("submit", *work, RAY_API_SERVER_ADDRESS=address)
    assert done.returncode == 0, done.stdout + done.stderr
    second = f"{first.removesuffix('1')}2"
    assert f"{second}: submitted; attempt 2" in done.stderr
    assert proxy.num_cut >= 2
    whole: str = head.get(f"/api/jobs/{second}/logs")["logs"]
    assert done.stdout == whole
    listed = json.loads(head.submit("--json", "status"))["submissions"]
    assert {each["id"]: each["status"] for each in listed}[first] == "STOPPED"
    history = json.loads(Path(f"{runs}/main/small-byob-3b-fold0/history.json").read_text())
    assert history["programs"] == [code.identity()]
    return whole


def test_workers_of_a_job_see_its_stores_beside_its_own_environment(head: Head, tmp_path: Path) -> None:
    (tmp_path / "driver.py").write_text(DRIVER)
    own = json.dumps({"env_vars": {"OF_THE_JOB": "1"}})
    folder = ["--working-dir", str(tmp_path), "--runtime-env-json", own]
    done = head.ray("job", "submit", *folder, "--", sys.executable, "driver.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert SEEN.format(job="1") in done.stdout


def test_submission_without_the_token_or_with_another_is_refused(head: Head, tmp_path: Path) -> None:
    assert head.raytrain("submit", "status").returncode == 0
    for token, told in (("", "wants a token (401)"), ("0" * 64, "refuses this token (403)")):
        refused = head.raytrain("submit", "status", RAY_AUTH_TOKEN=token, RAY_AUTH_MODE="", HOME=str(tmp_path))
        assert refused.returncode == 2
        assert told in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1


def test_job_without_the_token_is_refused(head: Head) -> None:
    refused = head.ray("job", "list", RAY_AUTH_TOKEN="0" * 64)
    assert refused.returncode != 0
    assert "token authentication is enabled" in refused.stderr
