"""The machines of a network reach each other while their cables hold, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.multinode.network import Network, missing

ROOT = Path(__file__).resolve().parents[2]
LISTEN = "import socket; s = socket.create_server(('', 5000)); print(1, flush=True)\nwhile True: s.accept()"
LEAVE_BEHIND = """
import os, subprocess, sys, time
from tests.multinode.network import Network
network = Network(1, [sys.argv[1]])
subprocess.Popen([*network.inside(0), "sleep", "1000"])
while not network.pids(0):
    time.sleep(0.05)
print(network.inside(0)[-1], network.pids(0)[0], flush=True)
time.sleep(1000)
"""


@pytest.fixture(autouse=True)
def _can_have_networks() -> None:
    if reason := missing():
        pytest.skip(reason)


@pytest.fixture
def network() -> Iterator[Network]:
    network = Network(2)
    yield network
    network.close()


def reaches(address: str) -> bool:
    try:
        socket.create_connection((address, 5000), timeout=1).close()
    except OSError:
        return False
    return True


def test_machine_is_out_of_reach_while_its_cable_is_cut(network: Network) -> None:
    server = subprocess.Popen([*network.inside(1), sys.executable, "-c", LISTEN], stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert server.stdout.readline()
    assert network.pids(1) == [server.pid]
    assert reaches(network.address(1))
    network.cut(1)
    assert not reaches(network.address(1))
    network.mend(1)
    deadline = time.monotonic() + 20
    while not reaches(network.address(1)):
        assert time.monotonic() < deadline
    server.kill()
    server.wait()
    server.stdout.close()


def test_two_networks_at_once_have_nothing_in_common(network: Network) -> None:
    other = Network(1)
    try:
        assert other.host != network.host
        assert other.inside(0) != network.inside(0)
    finally:
        other.close()


def test_nothing_is_left_when_its_process_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    maker = subprocess.Popen(
        [sys.executable, "-c", LEAVE_BEHIND, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert maker.stdout is not None
    name, pid = maker.stdout.readline().split()
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    maker.stdout.close()
    deadline = time.monotonic() + 20
    while folder.exists() or os.path.exists(f"/run/netns/{name}") or _runs(int(pid)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert name[:-2] not in subprocess.run(["ip", "link"], capture_output=True, text=True).stdout


def _runs(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
