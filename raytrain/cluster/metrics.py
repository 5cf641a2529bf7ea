"""The metrics that raytrain exports through Ray: the one table of their names, and how a process tells of them.

Prometheus reads them at the metrics port of each node, with `ray_` in front, counters with `_total` behind; the
dashboard and the alerts below `infra/` are held against this table by a test. Tags name a run, a destination, an
experiment, a kind: never a unit, a chip or a key, of which there are millions. Must not know what is measured.

Ray adds the process (`WorkerId`). A node forgets a gauge 20 s after it was set last, though its process lives, and
keeps counters and histograms for as long as its Ray lives, what a process told just before its end among them:
those of stores are at most 30 series for each process that asked any, 9 where it read, wrote and listed without
trouble, so some 900 a job on a node of 100 CPUs.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Literal

from ray.util.metrics import Counter, Gauge, Histogram

from raytrain.storage import counts

RUN = ("experiment", "run", "member", "fold")
TELL_S = 5.0
"""How often a process tells what it has asked of stores, and what its gauges are."""


@dataclass(frozen=True)
class Definition:
    """A metric: its name without `ray_`, what it says and in which unit, its tags, the bounds of a histogram."""

    kind: Literal["gauge", "counter", "histogram"]
    name: str
    description: str
    tags: tuple[str, ...]
    bounds: tuple[float, ...] = ()

    def exported_names(self) -> tuple[str, ...]:
        """Return the names that Prometheus has for it, but the sum of a histogram: Ray makes it of middles of bins."""
        name = f"ray_{self.name}"
        if self.kind == "counter":
            return (f"{name}_total",)
        return (f"{name}_bucket", f"{name}_count") if self.kind == "histogram" else (name,)


def _gauge(name: str, description: str, *tags: str) -> Definition:
    return Definition("gauge", name, description, tags)


def _counter(name: str, description: str, *tags: str) -> Definition:
    return Definition("counter", name, description, tags)


METRICS = {
    each.name: each
    for each in (
        # Training, from rank 0 of each run.
        _counter("raytrain_images", "Images trained on, over all ranks, those done again included.", *RUN),
        _gauge("raytrain_images_per_s", "Images trained a second, over all ranks.", *RUN),
        _gauge("raytrain_data_wait_fraction", "Share of step time spent waiting for samples.", *RUN),
        _gauge("raytrain_loss", "Mean loss of the epoch so far.", *RUN),
        _gauge("raytrain_validation_iou", "Validation IoU, weighted by location.", *RUN),
        _gauge("raytrain_epoch", "Epochs done, with the part of the one that goes on.", *RUN),
        _gauge("raytrain_epochs", "Epochs that the run has.", *RUN),
        _gauge("raytrain_left_seconds", "Seconds until the run is done, at its pace.", *RUN),
        _gauge("raytrain_ranks", "Ranks that train now; 0 once the run's part here is over.", *RUN),
        _gauge(
            "raytrain_saved_timestamp_seconds", "When state was saved last (Unix time), or the attempt began.", *RUN
        ),
        Definition(
            "histogram",
            "raytrain_checkpoint_seconds",
            "Seconds from a snapshot's turn until it is saved.",
            RUN,
            (0.1, 0.3, 1, 3, 10, 30, 100, 300),
        ),
        _gauge("raytrain_checkpoint_bytes", "Bytes of the last checkpoint.", *RUN),
        # Training, from the driver.
        _gauge("raytrain_runs", "Runs of a command by state: waiting, running, done, failed.", "experiment", "state"),
        # Where an alert has time to see it: the gauge of a driver is gone soon after it.
        _counter("raytrain_runs_failed", "Runs that failed for good.", "experiment"),
        _counter("raytrain_restarts", "Attempts that ended before their run did, by cause.", *RUN, "cause"),
        # Search, from its driver.
        _gauge("raytrain_trials", "Trials of a search by state.", "experiment", "state"),
        _gauge("raytrain_search_best_score", "Best score of a trial so far.", "experiment"),
        # Scoring, from its driver.
        _gauge("raytrain_score_units_done", "Planned units of work that are done.", "destination"),
        _gauge("raytrain_score_units_planned", "Units of work that were planned.", "destination"),
        _gauge("raytrain_score_casualties", "Chips or scenes that can't be scored.", "destination"),
        _counter("raytrain_scored_items", "Chips or scenes finished.", "destination"),
        _counter("raytrain_scored_megapixels", "Megapixels scored.", "destination"),
        _counter("raytrain_score_setbacks", "Attempts at units that failed, or were lost.", "destination", "outcome"),
        _gauge("raytrain_score_workers", "Workers: starting, busy, idle, silent.", "destination", "state"),
        _gauge(
            "raytrain_score_failing_seconds",
            "Since when units fail without a success; 0: they are done.",
            "destination",
        ),
        Definition(
            "histogram",
            "raytrain_score_unit_seconds",
            "Seconds that a unit takes on its worker.",
            ("destination",),
            (1, 3, 10, 30, 100, 300, 1000, 3000),
        ),
        # Sharding, from its driver.
        _counter(
            "raytrain_shard_chips", "Chips that were sharded (good), or left out (bad).", "destination", "outcome"
        ),
        # Stores, from every process; but for what GDAL and pyarrow ask by themselves, and processes of loaders.
        _counter("raytrain_store_requests", "Requests to stores that have ended.", "operation"),
        _counter("raytrain_store_retries", "Requests that were asked again.", "operation"),
        _counter("raytrain_store_refused", "Requests that a store refused: no right.", "operation"),
        _counter("raytrain_store_given_up", "Requests without a usable answer, however often asked.", "operation"),
        _counter("raytrain_store_bytes", "Bytes read and written.", "operation"),
        _counter("raytrain_store_seconds", "Seconds that requests took, waits between attempts included.", "operation"),
    )
}


@cache
def _metric(name: str) -> Any:
    found = METRICS[name]
    if found.kind == "histogram":
        return Histogram(name, found.description, boundaries=list(found.bounds), tag_keys=found.tags)
    return (Gauge if found.kind == "gauge" else Counter)(name, found.description, tag_keys=found.tags)


_gauges: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
_lock = threading.Lock()


def set_gauge(name: str, value: float | None, **tags: str) -> None:
    """Set the gauge of this name; None leaves it as it is. It keeps its value until it is forgotten.

    In Ray it would not: a gauge that is not set for 20 s is not exported, and what stands still shows nothing.
    """
    if value is not None:
        _meter()
        with _lock:
            _gauges[name, tuple(tags.items())] = float(value)
            _metric(name).set(float(value), tags=tags)


def forget_gauges(**tags: str) -> None:
    """Have the gauges that have these tags, among others, be exported no longer than some 20 s from now."""
    with _lock:
        for name, found in list(_gauges):
            if tags.items() <= dict(found).items():
                del _gauges[name, found]


def _set_gauges_again() -> None:
    with _lock:
        for (name, tags), value in _gauges.items():
            _metric(name).set(value, tags=dict(tags))


def count(name: str, amount: float = 1.0, **tags: str) -> None:
    """Add to the counter of this name; nothing is no event."""
    if amount > 0:
        _metric(name).inc(amount, tags=tags)


def observe(name: str, value: float, **tags: str) -> None:
    """Add a value to the histogram of this name."""
    _metric(name).observe(value, tags=tags)


class StoreMeter:
    """Tells what this process has asked of stores since it was told last: the readers only add to numbers.

    Any thread may flush it.
    """

    def __init__(self, tell: Callable[..., None] = count) -> None:
        self._tell = tell
        self._told: dict[counts.Operation, counts.Counts] = {}
        self._lock = threading.Lock()

    def flush(self) -> None:
        """Tell of what is new."""
        with self._lock:
            for operation, now in counts.so_far().items():
                before = self._told.get(operation, counts.Counts())
                for each in fields(counts.Counts):
                    more = getattr(now, each.name) - getattr(before, each.name)
                    self._tell(f"raytrain_store_{each.name}", more, operation=operation)
                self._told[operation] = now


@cache
def _meter() -> StoreMeter:
    """Return the meter of this process, which a thread flushes from now on, and the end of the process.

    The thread sets gauges again, too.
    """
    meter = StoreMeter()
    never = threading.Event()

    def tell() -> None:
        while not never.wait(TELL_S):  # it goes on beside tests, whose clocks it must not move
            meter.flush()
            _set_gauges_again()

    threading.Thread(target=tell, name="metrics", daemon=True).start()
    atexit.register(meter.flush)  # Ray is imported by now: what it does at exit comes after this
    return meter


@contextlib.contextmanager
def stores_watched() -> Iterator[None]:
    """Tell what this process asks of stores: now and then, from the first call until it ends, and behind the body.

    Behind it, since a process may end, or be ended, right after its work.
    """
    meter = _meter()
    try:
        yield
    finally:
        meter.flush()
