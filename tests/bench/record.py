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


@dataclass(frozen=True)
class Table:
    """A part of a result: a title, columns, rows of as many cells, and what a reader has to know about them."""

    title: str
    headers: list[str]
    rows: list[list[str]]
    note: str = ""


def keep(name: str, machine: str | None, title: str, headers: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table with its command; with `machine`, write it to infra/benchmarks, too."""
    module = name.partition("-")[0]  # `-` what was measured
    _keep(name, f"tests.bench.{module}", machine, title, _lines(headers, rows))


def keep_tables(
    name: str, module: str, machine: str | None, title: str, tables: list[Table], package: str = "tests.bench"
) -> None:
    """Print what `module` of `package` found as several tables, each with its own title; write them as `keep` does."""
    lines = []
    for table in tables:
        note = [table.note, ""] if table.note else []
        lines += [f"## {table.title}", "", *note, *_lines(table.headers, table.rows), ""]
    _keep(name, f"{package}.{module}", machine, title, lines[:-1])


def _lines(headers: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (headers, ["---"] * len(headers), *rows)]


def _keep(name: str, module: str, machine: str | None, title: str, lines: list[str]) -> None:
    today = datetime.now(UTC).date().isoformat()
    command = " ".join(["python -m", module, *sys.argv[1:]])
    text = "\n".join([f"# {title}, {today}", "", f"{_hardware()}; `{command}`", "", *lines]) + "\n"
    print(text)
    if machine is not None:
        BENCHMARKS.mkdir(parents=True, exist_ok=True)
        (BENCHMARKS / f"{today}-{machine}-{name}.md").write_text(text)


def _hardware() -> str:
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return f"{len(os.sched_getaffinity(0))} CPUs (shared, virtual), {memory_gb:.0f} GB"
