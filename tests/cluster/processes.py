"""The processes of the Ray that this process started: which are ranks of a training."""

from __future__ import annotations

import os
from pathlib import Path


def ranks() -> list[int]:
    """Return the process ids of the ranks that train now, below this process."""
    return [pid for pid in _all() if _title(pid).startswith("ray::RayTrainWorker") and _is_below(pid, os.getpid())]


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
