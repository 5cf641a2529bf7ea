"""The processes of the Ray that this process started: which are ranks; programs with a Ray of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

LIMIT_S = 540


def run_program(module: str, *arguments: str) -> str:
    """Run `python -m module` to its end and return what it printed; an exit code other than 0 fails the test."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["OMP_NUM_THREADS"] = "1"
    found = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert found.returncode == 0, f"{found.stdout[-6000:]}\n{found.stderr[-6000:]}"
    return found.stdout


def ranks() -> list[int]:
    """Return the process ids of the ranks that train now, below this process."""
    return _called("ray::RayTrainWorker")


def trial_actors() -> list[int]:
    """Return the process ids of the actors of trials that run now, below this process."""
    return _called("ray::ImplicitFunc")


def scorers() -> list[int]:
    """Return the process ids of the actors that score now, below this process."""
    return _called("ray::Scorer")


def _called(title: str) -> list[int]:
    return [pid for pid in _all() if _title(pid).startswith(title) and _is_below(pid, os.getpid())]


def _all() -> list[int]:
    return sorted(int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _is_below(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return False
        pid = int(stat.rpartition(")")[2].split()[1])
    return False
