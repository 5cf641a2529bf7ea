"""Time and memory of a ledger of a million scenes: compacted after a run, read at the start of the next, added to.

The records are made up, and rolled into tables of 2,000 as the driver rolls them. Each step is a process of its own,
whose peak memory has the interpreter and its libraries in it; the floor is a process that imports them.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import record

if TYPE_CHECKING:
    from raytrain.scoring.records import Record

# Steps import what they need: the peak of a process counts from that of the process that started it.

FRESH = 5000
PER_ROLL = 2000
WHAT = {
    "floor": "imports",
    "first": "compacted: all records in tables of 2,000",
    "known": "read as what is known, of all outputs listed",
    "asked": "read, and every item asked for as a listing does",
    "again": f"compacted: {FRESH} records entered one by one beside all others",
}

Times = tuple[float, float]


class Clock:
    """Seconds since it was made: by the wall, and of this process's CPUs, which other processes do not add to."""

    def __init__(self) -> None:
        self._start = time.monotonic(), time.process_time()

    def times(self) -> Times:
        """Return both."""
        return time.monotonic() - self._start[0], time.process_time() - self._start[1]


def main() -> None:
    """Make the records and measure each step in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--write", metavar="MACHINE")
    parser.add_argument("--step", nargs=3, metavar=("NAME", "FOLDER", "RECORDS"), help="what its own processes do")
    options = parser.parse_args()
    if options.step is not None:
        name, folder, count = options.step
        Path(folder, f"{name}.txt").write_text(" ".join(map(str, STEPS[name](f"{folder}/masks", int(count)))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in STEPS:
            this = [sys.executable, "-m", "tests.bench.ledger", "--step", name, folder, str(options.records)]
            peak_mib = record.run(*this).peak_mib
            if name in WHAT:
                wall_s, cpu_s = map(float, Path(folder, f"{name}.txt").read_text().split())
                rows.append([WHAT[name], f"{wall_s:.1f}", f"{cpu_s:.1f}", f"{peak_mib:.0f}"])
        size = sum(path.stat().st_size for path in Path(folder, "masks", "ledger").glob("records-*.parquet"))
    title = f"A ledger of {options.records + FRESH} scenes, {size / 1e6:.0f} MB"
    headers = ["what", "s", "CPU s", "peak memory of the process, MiB"]
    record.keep("ledger", options.write, title, headers, rows)


def floor(uri: str, count: int) -> Times:
    """Import what the other steps use."""
    clock = Clock()
    from raytrain.scoring import ledger

    assert ledger.SCHEMA
    return clock.times()


def make(uri: str, count: int) -> Times:
    """Roll made-up records into tables, as the driver does."""
    from raytrain.scoring import ledger

    clock = Clock()
    for first in range(0, count, PER_ROLL):
        ledger.roll(uri, list(_records(first, min(PER_ROLL, count - first))), [])
    return clock.times()


def compact(uri: str, count: int) -> Times:
    """Bring all records into the canonical tables."""
    from raytrain.scoring import ledger

    clock = Clock()
    ledger.compact(uri)
    return clock.times()


def known(uri: str, count: int) -> Times:
    """Read what is known of a destination whose outputs all stand."""
    return _known(uri, count, ask=False)


def asked(uri: str, count: int) -> Times:
    """Read it, and ask for every item."""
    return _known(uri, count, ask=True)


def _known(uri: str, count: int, *, ask: bool) -> Times:
    from raytrain.scoring import ledger

    keys = (f"{key} {10**6 + i}" for i in range(count) for key in (f"{_name(i)}.tif", f"stac/{_name(i)}.json"))
    items = [(_name(i), _uri(i), _identity(i)) for i in range(count)] if ask else []
    clock = Clock()
    found = ledger.Known(uri, _digest("settings"), ledger.Standing(keys))
    assert found.num_done == count
    for item_id, source_uri, identity in items:
        assert found.is_done(item_id, identity)
        assert not found.is_of_another(item_id, source_uri)
    return clock.times()


def enter(uri: str, count: int) -> Times:
    """Enter more records, each in an object of its own."""
    from raytrain.scoring import ledger

    clock = Clock()
    for each in _records(count, FRESH):
        ledger.enter(uri, [each])
    return clock.times()


def _records(first: int, count: int) -> Iterator[Record]:
    from raytrain.scoring.records import Output, Record

    for i in range(first, first + count):
        keys = {"mask": f"{_name(i)}.tif", "item": f"stac/{_name(i)}.json"}
        yield Record(
            item_id=_name(i),
            kind="scene",
            source_uri=_uri(i),
            source_item_uri=f"s3://archive/items/{_name(i)}.json",
            identity=_identity(i),
            settings_digest=_digest("settings"),
            outputs={kind: Output(key=key, sha256=_digest(key), num_bytes=10**6 + i) for kind, key in keys.items()},
            height=10980,
            width=10980,
            crs=f"EPSG:{32601 + i % 60}",
            transform=(10.0, 0.0, 3e5 + i, 0.0, -10.0, 5e6),
            datetime="2024-05-31T10:20:30Z",
            valid_px=10980**2 - i,
            cloud_px=i,
            shift=1000,
            shift_rule="scale 0.0001 and offset -0.1 of the item",
        )


def _name(i: int) -> str:
    return f"S2A_{i % 60 + 1:02d}TQM_20240531_{i:07d}_L2A"


def _uri(i: int) -> str:
    return f"s3://archive/scenes/{_name(i)}/B02.tif"


def _identity(i: int) -> str:
    return _digest(str(i))[:32]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


STEPS = {
    "floor": floor,
    "make": make,
    "first": compact,
    "known": known,
    "asked": asked,
    "enter": enter,
    "again": compact,
}

if __name__ == "__main__":
    main()
