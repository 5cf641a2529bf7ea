"""The course of a scoring by its log: commands, workers, pixels over time, attempts that failed, over all its life.

The log is read a few files at a time; what is held is bounded by the workers, not by the units. Must not know the
ledger, or how any of it is shown.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json
from numpy.typing import NDArray

from raytrain import storage
from raytrain.scoring.causes import Causes
from raytrain.scoring.destination import LOG

READERS = 8
"""Files that are read, and held, at a time."""
FILE_BYTES = 256 * 2**20
"""Of a file of the log, which has some thousand lines."""
MOST_BINS = 240
"""Intervals of time that pixels are counted by; as the work goes on, each becomes twice as long."""
_COLUMNS = pa.schema(
    [
        ("time", pa.timestamp("s")),
        ("unit", pa.string()),
        ("outcome", pa.string()),
        ("seconds", pa.float64()),
        ("network_s_so_far", pa.float64()),
        ("pixels", pa.int64()),
        ("cause", pa.string()),
        ("host", pa.string()),
        ("pid", pa.int64()),
        ("device", pa.string()),
    ]
)
_NEEDED = ("time", "outcome")
_YEAR_S = 366 * 86400
_PLAUSIBLE: dict[str, tuple[Any, Any]] = {
    "time": (datetime(2000, 1, 1), datetime(2200, 1, 1)),
    "seconds": (0, 10 * _YEAR_S),
    "network_s_so_far": (0, 10 * _YEAR_S),
    "pixels": (0, 10**13),
}
"""What is outside of these was not logged by us: the line is damaged."""


@dataclass
class Worker:
    """A worker of one command: what it did, and when: its first unit's begin and the time of its last line.

    `network_s` went by inside its nets. `is_lost` if a unit was lost with it. Times are seconds since 1970.
    """

    host: str
    pid: int
    command: int
    device: str = ""
    begin: float = np.inf
    end: float = -np.inf
    network_s: float = 0.0
    units: int = 0
    pixels: int = 0
    failed: int = 0
    lost: int = 0

    @property
    def is_lost(self) -> bool:
        """Whether it died, or was given up, with a unit under way."""
        return self.lost > 0


@dataclass
class Command:
    """A command that did some of the work: from the begin of its first unit to the end of its last, since 1970."""

    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it worked."""
        return max(0.0, self.end - self.begin)


@dataclass
class Timeline:
    """Pixels of each of `hosts` `[hosts, MOST_BINS]`, and attempts that failed or were lost, by intervals of `bin_s`.

    Time is working time: that of the commands, one after the other without what lay between them. The first `num_bins`
    intervals have any.
    """

    bin_s: float = 1.0
    num_bins: int = 0
    hosts: list[str] = field(default_factory=list)
    pixels: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, MOST_BINS)))
    failed: NDArray[np.int64] = field(default_factory=lambda: np.zeros(MOST_BINS, np.int64))
    lost: NDArray[np.int64] = field(default_factory=lambda: np.zeros(MOST_BINS, np.int64))

    def reach(self, at_s: float) -> None:
        """Make the intervals long enough for `at_s` of working time."""
        while at_s >= self.bin_s * MOST_BINS:
            self.bin_s *= 2
            self.failed, self.lost, self.pixels = _paired(self.failed), _paired(self.lost), _paired(self.pixels)
            self.num_bins = -(-self.num_bins // 2)
        self.num_bins = max(self.num_bins, int(at_s // self.bin_s) + 1)

    def add(self, hosts: NDArray[Any], begin_s: NDArray[Any], end_s: NDArray[Any], pixels: NDArray[Any]) -> None:
        """Add units `[units]`, whose pixels were computed evenly from begin to end."""
        names, of_names = np.unique(hosts, return_inverse=True)
        new = [str(name) for name in names if str(name) not in self.hosts]
        self.hosts += new
        self.pixels = np.concatenate([self.pixels, np.zeros((len(new), MOST_BINS))])
        rows = np.array([self.hosts.index(str(name)) for name in names], np.int64)[of_names]
        end_s = np.maximum(end_s, begin_s + 1e-6)
        first, last = (begin_s // self.bin_s).astype(np.int64), (end_s // self.bin_s).astype(np.int64)
        for step in range(int((last - first).max(initial=-1)) + 1):
            low = (first + step) * self.bin_s
            share = np.minimum(end_s, low + self.bin_s) - np.maximum(begin_s, low)
            here = share > 0
            np.add.at(self.pixels, (rows[here], (first + step)[here]), (pixels * share / (end_s - begin_s))[here])


def _paired(counts: NDArray[Any]) -> NDArray[Any]:
    """Return `counts` `[..., MOST_BINS]` of intervals twice as long."""
    pairs = counts[..., ::2] + counts[..., 1::2]
    return np.concatenate([pairs, np.zeros_like(pairs)], axis=-1)


@dataclass
class Course:
    """What the log of a destination tells; `num_damaged` lines of it can't be read, and nothing is known of them."""

    commands: list[Command] = field(default_factory=list)
    workers: dict[tuple[int, str, int], Worker] = field(default_factory=dict)
    causes: Causes = field(default_factory=Causes)
    timeline: Timeline = field(default_factory=Timeline)
    num_damaged: int = 0

    @property
    def seconds(self) -> float:
        """Working time of all commands."""
        return sum(command.seconds for command in self.commands)

    @property
    def pixels(self) -> int:
        """Pixels computed, those of units that were done twice as often."""
        return sum(worker.pixels for worker in self.workers.values())

    def worker_s(self, worker: Worker) -> float:
        """Return how long a worker was there: from its first unit to its command's end, or else until it was lost."""
        end = worker.end if worker.is_lost else self.commands[worker.command].end
        return max(0.0, end - worker.begin) if worker.units else 0.0

    @property
    def network_fraction(self) -> float | None:
        """Share of the workers' time that went by inside the nets; None before anything was done."""
        workers_s = sum(self.worker_s(worker) for worker in self.workers.values())
        return sum(worker.network_s for worker in self.workers.values()) / workers_s if workers_s else None

    def starts(self) -> list[float]:
        """Return at what working time each command began."""
        return list(itertools.accumulate((each.seconds for each in self.commands[:-1]), initial=0.0))


def read_course(uri: str) -> Course:
    """Return the course of the scoring to the destination `uri` by its log; one without a log has no commands."""
    names = sorted(name for name in storage.find(storage.join(uri, LOG)) if name.endswith(".jsonl"))
    course = Course()
    with ThreadPoolExecutor(READERS) as pool:
        for _, files in itertools.groupby(names, key=lambda name: name.rpartition("-")[0]):
            _add_command(course, _tables(uri, list(files), pool, course))
    return course


def _tables(uri: str, names: Sequence[str], pool: ThreadPoolExecutor, course: Course) -> Iterator[pa.Table]:
    """Yield the lines of the files of a command, in their order, some files at a time; damaged ones are counted."""
    for start in range(0, len(names), READERS):
        uris = [storage.join(uri, LOG, name) for name in names[start : start + READERS]]
        tables, damaged = zip(*pool.map(_read, uris), strict=True)
        course.num_damaged += sum(damaged)
        table = pa.concat_tables(tables)
        if table.num_rows:
            yield table


def _read(uri: str) -> tuple[pa.Table, int]:
    """Return the lines of a file of the log, and how many more can't be read."""
    try:
        data = storage.read_bytes(uri, FILE_BYTES)
    except FileNotFoundError:
        return _COLUMNS.empty_table(), 0
    except storage.TooLarge:
        return _COLUMNS.empty_table(), 1
    try:
        return _whole(_parsed(data))
    except pa.ArrowInvalid:
        pass
    lines = data.splitlines()
    tables = [table for table in map(_parsed_line, lines) if table is not None]
    found, damaged = _whole(pa.concat_tables([_COLUMNS.empty_table(), *tables]))
    return found, damaged + len(lines) - len(tables)


def _parsed(data: bytes) -> pa.Table:
    options = pa_json.ParseOptions(explicit_schema=_COLUMNS, unexpected_field_behavior="ignore")
    return pa_json.read_json(pa.BufferReader(data), parse_options=options).select(_COLUMNS.names)


def _parsed_line(line: bytes) -> pa.Table | None:
    try:
        return _parsed(line) if isinstance(json.loads(line), dict) else None
    except (ValueError, RecursionError, pa.ArrowInvalid):
        return None


def _whole(table: pa.Table) -> tuple[pa.Table, int]:
    """Return the lines that say what came of a unit and when, in numbers that can be, and how many others there are."""
    known = table
    for name in _NEEDED:
        known = known.filter(pc.is_valid(known[name]))
    for name, (lowest, highest) in _PLAUSIBLE.items():
        kind = _COLUMNS.field(name).type
        is_plausible = pc.and_(
            pc.greater_equal(known[name], pa.scalar(lowest, kind)), pc.less_equal(known[name], pa.scalar(highest, kind))
        )
        known = known.filter(pc.fill_null(is_plausible, True))  # not every line has every number
    return known, table.num_rows - known.num_rows


def _add_command(course: Course, tables: Iterator[pa.Table]) -> None:
    """Add what a command logged."""
    number, start_s, command = len(course.commands), course.seconds, None
    for table in tables:
        lines = _Lines.of(table)
        if command is None:
            command = Command(float(lines.begin.min()), float(lines.end.max()))
            course.commands.append(command)
        command.end = max(command.end, float(lines.end.max()))
        at = start_s - command.begin
        course.timeline.reach(command.end + at + 1e-3)  # a unit of no time has a little
        begin = np.maximum(lines.begin + at, start_s)  # before all of the first file: a long unit, or a clock set back
        end, done = np.maximum(lines.end + at, begin), lines.is_done
        course.timeline.add(lines.hosts[done], begin[done], end[done], lines.pixels[done])
        bins = (end // course.timeline.bin_s).astype(np.int64)
        np.add.at(course.timeline.failed, bins[lines.outcomes == "failed"], 1)
        np.add.at(course.timeline.lost, bins[lines.outcomes == "lost"], 1)
        _add_workers(course, number, lines)
        for line in table.filter(pc.is_valid(table["cause"])).select(["cause", "unit", "outcome", "host"]).to_pylist():
            course.causes.add(line["cause"], line["unit"] or "", line["outcome"], line["host"] or "")


@dataclass(frozen=True)
class _Lines:
    """The lines of a table as arrays, `[lines]` each; times are seconds since 1970."""

    outcomes: NDArray[np.object_]
    hosts: NDArray[np.object_]
    pids: NDArray[np.int64]
    devices: NDArray[np.object_]
    begin: NDArray[np.float64]
    end: NDArray[np.float64]
    network_s: NDArray[np.float64]
    pixels: NDArray[np.int64]

    @property
    def is_done(self) -> NDArray[np.bool_]:
        return np.asarray(self.outcomes == "done")

    @classmethod
    def of(cls, table: pa.Table) -> _Lines:
        def numbers(name: str) -> NDArray[Any]:
            return np.asarray(pc.fill_null(table[name], 0).to_numpy())

        def texts(name: str) -> NDArray[np.object_]:
            return np.asarray(pc.fill_null(table[name], "").to_numpy(), object)

        end = table["time"].cast(pa.int64()).to_numpy().astype(np.float64)
        begin = end - np.maximum(numbers("seconds"), 0.0)
        return cls(
            texts("outcome"),
            texts("host"),
            numbers("pid"),
            texts("device"),
            begin,
            end,
            numbers("network_s_so_far"),
            numbers("pixels"),
        )


def _add_workers(course: Course, number: int, lines: _Lines) -> None:
    hosts = np.unique(lines.hosts, return_inverse=True)[1]
    _, first, of = np.unique(hosts * 2**32 + lines.pids, return_index=True, return_inverse=True)  # a pid has 32 bits
    begin, end, network_s = np.full(len(first), np.inf), np.full(len(first), -np.inf), np.zeros(len(first))
    done = lines.is_done
    np.minimum.at(begin, of[done], lines.begin[done])
    np.maximum.at(end, of, lines.end)
    np.maximum.at(network_s, of, lines.network_s)
    pixels = np.zeros(len(first), np.int64)
    np.add.at(pixels, of[done], lines.pixels[done])
    units, failed, lost = (
        np.bincount(of[lines.outcomes == outcome], minlength=len(first)) for outcome in ("done", "failed", "lost")
    )
    for i, at in enumerate(first):
        host, pid = str(lines.hosts[at]), int(lines.pids[at])
        worker = course.workers.get((number, host, pid)) or Worker(host, pid, number)
        course.workers[number, host, pid] = worker
        worker.device = worker.device or str(lines.devices[at])
        worker.begin, worker.end = min(worker.begin, float(begin[i])), max(worker.end, float(end[i]))
        worker.network_s = max(worker.network_s, float(network_s[i]))
        worker.units += int(units[i])
        worker.pixels += int(pixels[i])
        worker.failed += int(failed[i])
        worker.lost += int(lost[i])
