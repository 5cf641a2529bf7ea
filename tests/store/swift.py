"""OpenStack Swift as an S3 server on loopback: it checks secrets and keeps data, which moto does not.

Swift runs from an environment of its own, made by uv once and kept in the user's cache. It needs nothing in `/etc`, no
memcached, no syslog and no rights, but a file system with extended attributes. `If-Match` on PUT is 501 there, and
`If-None-Match: *` may let two writers win. This module knows nothing of raytrain.
"""

from __future__ import annotations

import errno
import http.client
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

VERSION = "2.38.3"
INSTALL_LIMIT_S = 600.0
START_LIMIT_S = 60.0
STOP_LIMIT_S = 10.0
# Below what Linux hands out to outgoing connections, which would take the ports between a stop and a start, and above
# the ports of Ray's workers.
PORTS = range(20000, 32768)
SERVERS = ("account", "container", "object", "proxy")  # a proxy without the others answers 503

# One of the servers, in the environment of Swift: `SERVER CONF`. It ends when its standard input does, that is when
# whoever started it dies by whatever means.
RUN = """
import _thread, importlib, json, logging, os, sys
from pathlib import Path
_thread.start_new_thread(lambda: (os.read(0, 1), os._exit(1)), ())
import swift.common.utils
from swift.common.utils import logs
server, conf = sys.argv[1:]
swift.common.utils.SWIFT_CONF_FILE = str(Path(conf).with_name("swift.conf"))
logs.ThreadSafeSysLogHandler = lambda **_: logging.StreamHandler()  # to our log, not to the log of the machine
from swift.common.middleware import memcache
class Memory:  # in place of memcached, which may be absent, or belong to another Swift
    def __init__(self, conf, logger):
        self.values = {}
    def get(self, key, raise_on_error=False):
        return json.loads(self.values.get(key, "null"))
    def set(self, key, value, **_):
        self.values[key] = json.dumps(value)
    def delete(self, key, **_):
        self.values.pop(key, None)
memcache.load_memcache = Memory
from swift.common import wsgi
wsgi.capture_stdio = wsgi.drop_privileges = lambda *_, **__: None
module = importlib.import_module("swift.{}.server".format("obj" if server == "object" else server))
sys.argv = [server, conf]
module.main()
"""

# The three rings: `FOLDER ACCOUNT_PORT CONTAINER_PORT OBJECT_PORT`.
MAKE_RINGS = """
import sys
from pathlib import Path
from swift.common.ring import RingBuilder
for server, port in zip(("account", "container", "object"), sys.argv[2:], strict=True):
    rings = RingBuilder(4, 1, 0)
    address = {"ip": "127.0.0.1", "port": int(port), "replication_ip": "127.0.0.1", "replication_port": int(port)}
    rings.add_dev({"region": 1, "zone": 1, "device": "disk", "weight": 1.0, "meta": "", **address})
    rings.rebalance()
    rings.get_ring().save(str(Path(sys.argv[1], server + ".ring.gz")))
"""

SWIFT_CONF = """
[swift-hash]
swift_hash_path_prefix = tests
swift_hash_path_suffix = tests
[storage-policy:0]
name = one
default = yes
"""

# Of every server; each takes its own settings from [DEFAULT]. A busy machine must not time out: what a container misses
# of an object's PUT would be added later by a daemon that does not run here, so the object would never be listed.
SERVER_CONF = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
fallocate_reserve = 0
disable_fallocate = true
workers = 0
log_level = WARNING
log_requests = false
conn_timeout = 60
node_timeout = 60
container_update_timeout = 60
error_suppression_limit = 1000000000
disk_chunk_size = 1048576
network_chunk_size = 1048576
object_chunk_size = 1048576
client_chunk_size = 1048576
keep_cache_size = 1073741824
account_autocreate = true
location = us-east-1
user_test_tester = {secret} .admin
[pipeline:main]
pipeline = {filters} {server}-server
[app:{server}-server]
use = egg:swift#{server}
"""
FILTERS = "catch_errors gatekeeper memcache listing_formats s3api tempauth bulk copy slo dlo versioned_writes symlink"


class Swift:
    """A Swift of four processes that keeps its data below a folder.

    Another one on the same folder, later, serves the same data. A subclass may have another `secret_key`.
    """

    access_key = "test:tester"
    secret_key = "testing"
    region = "us-east-1"

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        (self.folder / "devices" / "disk").mkdir(parents=True, exist_ok=True)
        _check_attributes(self.folder)
        self._python = installed() / "bin" / "python"
        self._ports = dict(zip(SERVERS, _free_ports(len(SERVERS)), strict=True))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.endpoint = f"http://127.0.0.1:{self._ports['proxy']}"
        (self.folder / "swift.conf").write_text(SWIFT_CONF)
        for server in SERVERS:
            (self.folder / f"{server}.conf").write_text(self._conf(server))
        ring_ports = [str(self._ports[server]) for server in ("account", "container", "object")]
        _run([self._python, "-I", "-c", MAKE_RINGS, str(self.folder), *ring_ports])

    def start(self) -> None:
        """Start the servers and return when each answers; raise RuntimeError with its log if one ends or is late."""
        assert not self._processes, "already started"
        deadline = time.monotonic() + START_LIMIT_S
        try:
            for server in SERVERS:
                self._processes[server] = self._spawn(server)
            for server in SERVERS:
                while not _answers(self._ports[server]):
                    self._check(deadline)
                    time.sleep(0.05)
        except BaseException:  # an interrupt too leaves nothing behind
            self.stop()
            raise

    def stop(self) -> None:
        """End the servers and wait for that; data stay, and do nothing if none runs."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdin is not None
            process.stdin.close()
        self._processes.clear()

    def environment(self) -> dict[str, str]:
        """Return what S3 clients read from the environment."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
        }

    def _conf(self, server: str) -> str:
        filters = FILTERS if server == "proxy" else ""
        text = SERVER_CONF.format(
            port=self._ports[server], folder=self.folder, filters=filters, server=server, secret=self.secret_key
        )
        return text + "".join(f"[filter:{name}]\nuse = egg:swift#{name}\n" for name in filters.split())

    def _spawn(self, server: str) -> subprocess.Popen[bytes]:
        command = [str(self._python), "-I", "-c", RUN, server, str(self.folder / f"{server}.conf")]
        with (self.folder / f"{server}.log").open("wb") as log:
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)

    def _check(self, deadline: float) -> None:
        """Raise RuntimeError if a server ended, or if it is too late for them to start."""
        for server, process in self._processes.items():
            if process.poll() is not None:
                raise RuntimeError(f"Swift's {server} server ended with {process.returncode}:\n{self._tail(server)}")
        if time.monotonic() > deadline:
            tails = "\n".join(f"{server}: {self._tail(server)}" for server in SERVERS)
            raise RuntimeError(f"Swift does not answer after {START_LIMIT_S:.0f} s:\n{tails}")

    def _tail(self, server: str) -> str:
        return (self.folder / f"{server}.log").read_text(errors="replace")[-2000:]


def installed() -> Path:
    """Return the environment of Swift and make it first if there is none; raise RuntimeError if that fails.

    It is built beside its place and then renamed, so that it is whole wherever it exists, also if many build at once.
    Its scripts name the old place; its `bin/python` works.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raytrain-tests"
    place = cache / f"swift-{VERSION}-py{'.'.join(map(str, sys.version_info[:3]))}"
    if (place / "bin" / "python").exists():
        return place
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".swift-", dir=cache) as building:
        uv = [shutil.which("uv")] if shutil.which("uv") else [sys.executable, "-m", "uv"]
        environment = Path(building, "environment")
        _run([*uv, "venv", "--quiet", "--python", sys.executable, environment])
        python = environment / "bin" / "python"
        _run([*uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", python, f"swift=={VERSION}"])
        try:
            environment.rename(place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if not (place / "bin" / "python").exists():  # what lay there lost its interpreter
            shutil.rmtree(place)
            environment.rename(place)
    return place


def _run(command: Sequence[str | Path]) -> None:
    try:
        done = subprocess.run(command, timeout=INSTALL_LIMIT_S, capture_output=True, text=True)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"can't run {command[0]} for Swift: {error}") from error
    if done.returncode:
        shown = " ".join(map(str, command))
        raise RuntimeError(f"Swift {VERSION} can't be set up: {shown!r} ended with {done.returncode}:\n{done.stderr}")


def _check_attributes(folder: Path) -> None:
    """Raise RuntimeError where files can't have the attributes in which Swift keeps an object's metadata."""
    try:
        os.setxattr(folder, "user.swift.tests", b"1")
    except (OSError, AttributeError) as error:
        raise RuntimeError(f"Swift needs extended attributes, which {folder} does not have: {error}") from error


def _free_ports(count: int) -> list[int]:
    ports: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError(f"fewer than {count} free ports in {PORTS}")


def _answers(port: int) -> bool:
    """Say whether a server answers anything to a request without keys."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_LIMIT_S)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status > 0
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
