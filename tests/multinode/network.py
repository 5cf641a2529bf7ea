"""Network namespaces behind one bridge: machines of their own as far as addresses, ports and cables go. Needs root.

The file system is shared but for what a machine mounts. This module knows nothing of Ray.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import shutil
import socket
import subprocess
from collections.abc import Sequence

SUBNETS = 256
CLEAN_UP_S = 60.0
_COUNT = itertools.count()

# Run by a process of its own, which outlives whoever made the network by whatever means it dies: it waits for the end
# of its standard input. What was not made yet is no reason to stop. Cables are taken away by name: a connection that
# nobody can end any more keeps its namespace for minutes, and the cable with it.
CLEAN_UP = """
cat > /dev/null
for name in {names}; do
  for _ in $(seq 100); do
    pids=$(ip netns pids $name 2> /dev/null)
    [ -n "$pids" ] || break
    kill -9 $pids
    sleep 0.1
  done
  ip netns del $name
done
for link in {cables} {bridge}; do
  ip link del $link
done
rm -rf -- {folders}
"""


def missing() -> str | None:
    """Return why no network can be made here, if so."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    return None if shutil.which("ip") else "there is no `ip` (of iproute2)"


class Network:
    """A bridge with an address of this machine, and `count` machines on it; gone when closed or when this process ends.

    With them go all processes that run in them, and `folders`.
    """

    def __init__(self, count: int, folders: Sequence[str] = ()) -> None:
        prefix = f"rt{os.getpid():x}{next(_COUNT):x}"  # names of links have up to 15 characters
        self._bridge = f"{prefix}b"
        self._names = [f"{prefix}n{i}" for i in range(count)]
        self._cables = [f"{prefix}c{i}" for i in range(count)]
        self._subnet, self._claim = _claim_subnet()
        self.host = f"{self._subnet}.1"
        names, cables = " ".join(self._names), " ".join(self._cables)
        script = CLEAN_UP.format(names=names, cables=cables, bridge=self._bridge, folders=shlex.join(folders))
        self._cleaner = subprocess.Popen(
            ["bash", "-c", script], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True, cwd="/"
        )
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def address(self, i: int) -> str:
        """Return the address of a machine."""
        return f"{self._subnet}.{10 + i}"

    def inside(self, i: int) -> list[str]:
        """Return what stands before a command that is to run in a machine; its mounts are its own."""
        return ["ip", "netns", "exec", self._names[i]]

    def pids(self, i: int) -> list[int]:
        """Return the processes of a machine."""
        return [int(pid) for pid in _ip("netns", "pids", self._names[i]).split()]

    def cut(self, i: int) -> None:
        """Pull the cable of a machine."""
        _ip("link", "set", self._cables[i], "down")

    def mend(self, i: int) -> None:
        """Put the cable of a machine back."""
        _ip("link", "set", self._cables[i], "up")

    def close(self) -> None:
        """End all that runs in the machines, and take everything away."""
        assert self._cleaner.stdin is not None
        with contextlib.suppress(OSError):
            self._cleaner.stdin.close()
        self._cleaner.wait(CLEAN_UP_S)
        self._claim.close()

    def _make(self) -> None:
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("addr", "add", f"{self.host}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        for i, (name, cable) in enumerate(zip(self._names, self._cables, strict=True)):
            _ip("netns", "add", name)
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", cable, "master", self._bridge, "up")
            _ip("-n", name, "addr", "add", f"{self.address(i)}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")


def _claim_subnet() -> tuple[str, socket.socket]:
    """Return the first three numbers of a private subnet that no other network here has, and what holds the claim."""
    for i in range(SUBNETS):
        subnet = f"10.77.{(os.getpid() + i) % SUBNETS}"
        if f" {subnet}." in _ip("-4", "addr"):
            continue
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0raytrain-tests-{subnet}")  # a name in memory, which ends with its process
        except OSError:
            claim.close()
            continue
        return subnet, claim
    raise RuntimeError("every subnet of 10.77.0.0/16 is taken")


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"`ip {shlex.join(arguments)}` ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout
