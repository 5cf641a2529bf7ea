"""A Ray cluster of several nodes on one machine, with a token and an S3 store; nodes, cables, disks and store can fail.

Node 0 is the head and has no CPUs to give; what is said to happen to a node can happen to the others, 1 and up. The
head can be lost, with the cluster.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import filterfalse
from pathlib import Path
from typing import Any, Self

from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR

from tests.multinode.network import Network
from tests.store.faults import UNAVAILABLE, FaultProxy
from tests.store.swift import Swift

ROOT = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).with_name("ray")
BUCKET = "bucket"
START_S = 180.0
END_S = 60.0
POLL_S = 0.5
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")

# A node of its own: what Ray keeps on disk, its shared memory and its temporary files are in file systems that no other
# process sees, and that go away with it. Small ones, so that a full disk is soon made.
NODE = """
set -e
mkdir -p /tmp/ray
mount -t tmpfs -o size=2g node /tmp/ray
mount -t tmpfs -o size=1g node /dev/shm
mount -t tmpfs -o size=256m node "$TMPDIR"
exec "$@"
"""

# What a job's workers do beside its work is told by a sheet that lies there as they start, not by the job, which is
# submitted as anybody's is. Ray runs the hook that this variable names in each worker.
HOOK_VARIABLE = WORKER_PROCESS_SETUP_HOOK_ENV_VAR
SHEET = "sheet.json"
SITE = f"""
import json, os, sys

if any(each.endswith("default_worker.py") for each in sys.orig_argv):
    try:
        with open(os.path.join(os.path.dirname(__file__), "{SHEET}")) as sheet:
            told = json.load(sheet)
        os.environ.update(told["environment"])
        sys.path[:0] = told["paths"]
    except FileNotFoundError:
        pass
"""

# With Ray's own numbers a dead node is noticed after about 15 s. These leave a busy machine time to answer.
HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}


class Lab:
    """A cluster with `workers` nodes of `cpus` CPUs beside its head, in a `with`; at its end nothing is left of it.

    `variables` are of Ray, in the environment of the nodes beside the head.
    """

    def __init__(self, workers: int = 2, cpus: int = 1, variables: Mapping[str, str] | None = None) -> None:
        self.workers = range(1, workers + 1)
        self._cpus = cpus
        self._variables = dict(variables or {})
        self._stack = ExitStack()
        self._nodes: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            # Short: sockets lie below it, whose names may have about 100 characters.
            self.folder = Path(tempfile.mkdtemp(prefix="rt"))
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self._site = self.folder / "site"
            self._site.mkdir()
            (self._site / "sitecustomize.py").write_text(SITE)
            self.network = Network(1 + len(self.workers), [str(self.folder)])
            stack.callback(self._reap)
            stack.callback(self.network.close)
            self.swift = Swift(self.folder / "swift")
            self.swift.start()
            stack.callback(self.swift.stop)
            self.store = stack.enter_context(FaultProxy(self.swift.endpoint, self.network.host))
            self._make_token()
            self.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def store_environment(self) -> dict[str, str]:
        """What S3 clients on the nodes read from the environment: the way that can be made to fail."""
        return self.swift.environment() | {"AWS_ENDPOINT_URL": self.store.endpoint}

    # Jobs

    def submit(
        self,
        verb: str,
        *arguments: str,
        hook: str | None = None,
        environment: dict[str, str] | None = None,
        code: str = "tree",
        paths: Sequence[str] = (),
    ) -> str:
        """Submit a command and return the job's id; `hook` runs in each of its workers, with this environment.

        `code` says whose raytrain runs; workers look for modules in `paths` first, as if it were their image.
        """
        # One whose process was just killed may still be taken for running, and the same command would attach to it.
        self._until(lambda: not self._running(), END_S, "an earlier job goes on")
        known = {HOOK_VARIABLE: hook} if hook else {}
        told = {"environment": (environment or {}) | known, "paths": list(paths)}
        (self._site / SHEET).write_text(json.dumps(told))
        return self.raytrain("submit", "--plain-http", "--code", code, "--detach", verb, *arguments).stdout.strip()

    def _running(self) -> list[str]:
        found: list[dict[str, Any]] = self._get("/api/jobs/") or []
        return [each["submission_id"] for each in found if each["status"] not in ENDED and each["submission_id"]]

    def job(self, job: str) -> dict[str, Any]:
        """Return what Ray knows of a job: its `status`, a `message`, its `driver_exit_code`."""
        found: dict[str, Any] | None = self._get(f"/api/jobs/{job}")
        return found or {"status": "UNKNOWN", "message": "the head does not answer", "driver_exit_code": None}

    def wait(self, job: str, limit_s: float) -> dict[str, Any]:
        """Return what Ray knows of a job when it has ended; raise TimeoutError, with its log, if that takes longer."""
        self._until(lambda: self.job(job)["status"] in ENDED, limit_s, f"job {job} goes on", lambda: self.logs(job))
        return self.job(job)

    def logs(self, job: str) -> str:
        """Return what a job wrote so far."""
        found = self._get(f"/api/jobs/{job}/logs")
        return str(found["logs"]) if found else ""

    def stop(self, job: str) -> None:
        """Stop a job, and return when it has ended."""
        self.raytrain("submit", "--plain-http", "stop", job)

    def raytrain(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run our command on this machine, which is none of the nodes; it must succeed."""
        done = subprocess.run(
            [sys.executable, "-m", "raytrain.cli", *arguments],
            env=self._environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=START_S,
        )
        if done.returncode:
            raise RuntimeError(f"raytrain {arguments} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def ray(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Ray's command on this machine, which is none of the nodes."""
        return subprocess.run(
            [RAY, *arguments],
            env=self._environment | environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=START_S,
        )

    # What goes wrong

    def kill(self, node: int) -> None:
        """Lose a node at once, with all its processes and files."""
        while pids := self.network.pids(node):
            subprocess.run(["kill", "-9", *map(str, pids)], stderr=subprocess.DEVNULL)  # some ended meanwhile
            time.sleep(0.05)
        self._nodes[node].wait(END_S)

    def bring_back(self, node: int) -> None:
        """Start an empty node in the place of a lost one, and wait until the cluster has it."""
        self.kill(node)
        self._start(node)
        self.wait_for_nodes()

    def lose_head(self) -> None:
        """Lose the head at once, and with it the cluster and all that it knew of jobs."""
        self.kill(0)

    def wait_for_end(self, node: int, limit_s: float) -> None:
        """Return when the Ray of a node has ended, by whatever means, or after so long."""
        deadline = time.monotonic() + limit_s
        while not self.has_ended(node) and time.monotonic() < deadline:
            time.sleep(POLL_S)

    def drain(self, node: int, deadline_s: int) -> None:
        """Tell the cluster that a node will be taken away after so long, as clouds do; to take it is the caller's."""
        (found,) = [each["nodeId"] for each in self.alive() if each["ip"] == self.network.address(node)]
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "preempted by a test"]
        target = ["--address", f"{self.network.address(0)}:6379", "--node-id", found]
        done = self.ray("drain-node", *target, *reason, "--deadline-remaining-seconds", str(deadline_s))
        if done.returncode:
            raise RuntimeError(f"node {node} can't be drained:\n{done.stdout}{done.stderr}")

    def cut(self, node: int) -> None:
        """Part a node from all others and from the store."""
        self.network.cut(node)

    def mend(self, node: int) -> None:
        """Join it again. A node that the head gave up meanwhile ends itself then: see `has_ended`."""
        self.network.mend(node)

    def has_ended(self, node: int) -> bool:
        """Return whether the Ray of a node has ended, by whatever means."""
        return self._nodes[node].poll() is not None

    def fill_disk(self, node: int) -> None:
        """Leave no byte on the disks of a node: for temporary files, and for what Ray keeps and logs."""
        for path in self._ballast(node):
            with path.open("ab", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(1 << 20))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def free_disk(self, node: int) -> None:
        """Take away what fills the disks of a node."""
        for path in self._ballast(node):
            path.unlink(missing_ok=True)

    def fail_store(self) -> None:
        """Let the store answer 503 to everything, until `heal_store`."""
        self.store.inject(UNAVAILABLE, times=None)

    def heal_store(self) -> None:
        """Let the store answer again."""
        self.store.clear()

    def repair(self) -> None:
        """Make good all that went wrong and was left so."""
        self.heal_store()
        for node in self.workers:
            self.mend(node)
        if self.has_ended(0):
            self.start()
        for node in filterfalse(self.has_ended, self.workers):
            self.free_disk(node)
        for node in filter(self.has_ended, self.workers):
            self.kill(node)  # what Ray left running
            self._start(node)
        self.wait_for_nodes()

    # The cluster

    def start(self) -> None:
        """Start the head and the nodes, as an operator does, also where a head was lost.

        The nodes of the cluster that was lost with it end, since the new head does not know them, and start once more.
        """
        self._start(0)
        # The others would wait for it, too, but give up sooner.
        self._until(lambda: self._get("/api/version") is not None, START_S, "the head does not answer")
        for node in self.workers:
            if node in self._nodes:
                self.wait_for_end(node, END_S)
                self.kill(node)
            self._start(node)
        self.wait_for_nodes()

    def node_of(self, pid: int) -> int:
        """Return the node that runs a process; raise LookupError if none does."""
        for node in (0, *self.workers):
            if pid in self.network.pids(node):
                return node
        raise LookupError(f"process {pid} runs on no node")

    def alive(self) -> list[dict[str, Any]]:
        """Return the nodes that the head takes for alive: their `nodeId` and `ip`."""
        found = self._get("/nodes?view=summary")
        nodes = found["data"]["summary"] if found else []
        return [
            {"nodeId": each["raylet"]["nodeId"], "ip": each["raylet"]["nodeManagerAddress"]}
            for each in nodes
            if each.get("raylet", {}).get("state") == "ALIVE"
        ]

    def wait_for_nodes(self, limit_s: float = START_S) -> None:
        """Return when the cluster has each node exactly once."""
        wanted = sorted(self.network.address(node) for node in (0, *self.workers))

        def all_are_there() -> bool:
            if ended := [node for node in self._nodes if self.has_ended(node)]:
                raise RuntimeError(f"the Ray of nodes {ended} has ended:\n{self._node_logs()}")
            return sorted(each["ip"] for each in self.alive()) == wanted

        self._until(all_are_there, limit_s, "nodes are missing", self._node_logs)

    def _make_token(self) -> None:
        token_path = self.folder / "token"
        token_path.touch(mode=0o600)
        self._token = secrets.token_hex(32)
        token_path.write_text(self._token)
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_", "PYTHONPATH"))
        }
        self._environment = kept | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token_path),
            "RAY_API_SERVER_ADDRESS": f"http://{self.network.address(0)}:8265",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            "PATH": f"{RAY.parent}:{os.environ['PATH']}",
        }

    def _start(self, node: int) -> None:
        address, head = self.network.address(node), f"{self.network.address(0)}:6379"
        temporary = self.folder / f"t{node}"
        temporary.mkdir(exist_ok=True)
        options = {"node-ip-address": address, "object-store-memory": 150_000_000}
        if node == 0:
            # By default that is below the head's TMPDIR, and the other nodes would take the same path, all of them.
            options |= {"port": 6379, "dashboard-host": address, "num-cpus": 0, "temp-dir": "/tmp/ray"}
        else:
            options |= {"address": head, "num-cpus": self._cpus}
        command = [str(RAY), "start", "--block", *(["--head", "--disable-usage-stats"] if node == 0 else [])]
        command += [f"--{name}={value}" for name, value in options.items()]
        own = {"GLOO_SOCKET_IFNAME": "eth0", "TMPDIR": str(temporary), "PYTHONPATH": str(self._site)}
        own |= self.store_environment
        with (self.folder / f"node-{node}.log").open("ab") as log:
            self._nodes[node] = subprocess.Popen(
                [*self.network.inside(node), "bash", "-c", NODE, "node", *command],
                env=self._environment | own | (self._variables if node else HEALTH_CHECKS),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.folder,
            )

    def _reap(self) -> None:
        for process in self._nodes.values():
            process.wait(END_S)

    def _ballast(self, node: int) -> list[Path]:
        """Return the path of a file on each disk of a node, as it is seen from outside its mounts."""
        disks = (self.folder / f"t{node}", Path("/tmp/ray"))
        return [Path(f"/proc/{self._nodes[node].pid}/root{disk}/ballast") for disk in disks]

    def _node_logs(self) -> str:
        tails = (path.read_text(errors="replace")[-2000:] for path in sorted(self.folder.glob("node-*.log")))
        return "\n".join(tails)

    def ask(self, path: str, method: str = "GET", token: str | None = None) -> Any:
        """Return what the head answers to a request with the token, or with another one, or with "" none.

        Raises OSError where it answers with an error or not at all.
        """
        request = urllib.request.Request(f"{self._environment['RAY_API_SERVER_ADDRESS']}{path}", method=method)
        if token != "":
            request.add_header("Authorization", f"Bearer {token or self._token}")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the bridge is on no proxy's way
        with opener.open(request, timeout=10) as answer:
            return json.load(answer)

    def _get(self, path: str) -> Any:
        """Return what the head answers, None if it does not."""
        try:
            return self.ask(path)
        except (OSError, json.JSONDecodeError):
            return None

    def _until(
        self, is_so: Callable[[], bool], limit_s: float, otherwise: str, details: Callable[[], str] = lambda: ""
    ) -> None:
        """Return as soon as something is so; raise TimeoutError if it is not after so long."""
        deadline = time.monotonic() + limit_s
        while not is_so():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{otherwise} after {limit_s:.0f} s\n{details()[-6000:]}")
            time.sleep(POLL_S)
