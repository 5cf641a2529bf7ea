"""What the measuring programs share: whole processes measured, and a table printed and kept."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "infra" / "benchmarks"


@dataclass(frozen=True)
class Measured:
    """Wall time and peak resident memory of one process, without its children."""

    seconds: float
    peak_mib: float


def run(*command: str) -> Measured:
    """Run `command` to its end; a failure ends the program that measures."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return Measured(time.monotonic() - start, usage.ru_maxrss / 1024)


def raytrain(*arguments: str) -> Measured:
    """Run the command of this environment."""
    return run(str(Path(sys.executable).parent / "raytrain"), *arguments)


def keep(name: str, machine: str | None, title: str, headers: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table with its command; with `machine`, write it to infra/benchmarks, too."""
    today = datetime.now(UTC).date().isoformat()
    command = " ".join(["python -m", f"tests.bench.{name.partition('-')[0]}", *sys.argv[1:]])  # `-` what was measured
    lines = [f"# {title}, {today}", "", f"{_hardware()}; `{command}`", ""]
    lines += [f"| {' | '.join(row)} |" for row in (headers, ["---"] * len(headers), *rows)]
    text = "\n".join(lines) + "\n"
    print(text)
    if machine is not None:
        BENCHMARKS.mkdir(parents=True, exist_ok=True)
        (BENCHMARKS / f"{today}-{machine}-{name}.md").write_text(text)


def _hardware() -> str:
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return f"{len(os.sched_getaffinity(0))} CPUs (shared, virtual), {memory_gb:.0f} GB"
