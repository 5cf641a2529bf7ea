"""What a person sees of runs that go on: a row for each on a terminal, a line now and then in a log.

Both may be called from any thread. Must not know Ray, or how progress is measured.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from raytrain import logs
from raytrain.training.progress import RunProgress, duration

LOG_EVERY_S = 10.0
"""In a log, work tells of itself at most so often."""


class Runs(Protocol):
    """What is told of runs while they go on."""

    def expect(self, runs: Sequence[str]) -> None:
        """Say which runs are going to be trained."""

    def progress(self, progress: RunProgress) -> None:
        """Show how far a run has come."""

    def epoch(self, run: str, num_epochs: int, metrics: dict[str, Any]) -> None:
        """Print the line of an epoch that is over."""

    def end(self, run: str, text: str) -> None:
        """Print a line about a run that has ended, and show nothing more of it."""

    def note(self, text: str) -> None:
        """Print a line."""


class Say(Protocol):
    """Told a line, and what a record has beside it."""

    def __call__(self, text: str, **fields: Any) -> None:
        """Print or write it."""
        ...


class RunLines:
    """Runs in a log: one line for each at most every `LOG_EVERY_S`, and one for each epoch."""

    def __init__(self, say: Say, clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._said: dict[str, float] = {}
        self._lock = threading.Lock()

    def expect(self, runs: Sequence[str]) -> None:
        """Print what there is to train."""
        if runs:
            self.note(f"to train: {', '.join(runs)}")

    def progress(self, progress: RunProgress) -> None:
        """Print the line of a run, unless one was printed, or the run was first heard of, a moment ago."""
        with self._lock:
            now = self._clock()
            if now - self._said.setdefault(progress.run, now) < LOG_EVERY_S:
                return
            self._said[progress.run] = now
            self._say(progress_text(progress), event="progress", **_progress_fields(progress))

    def epoch(self, run: str, num_epochs: int, metrics: dict[str, Any]) -> None:
        """Print the line of an epoch that is over."""
        with self._lock:
            self._said[run] = self._clock()
            found = {**metrics, "epoch": metrics["epoch"] + 1, "epochs": num_epochs}
            self._say(epoch_text(run, num_epochs, metrics), event="epoch", run=run, **found)

    def end(self, run: str, text: str) -> None:
        """Print a line about a run that has ended."""
        with self._lock:
            self._said.pop(run, None)
            self._say(text, event="run ended", run=run)

    def note(self, text: str) -> None:
        """Print a line."""
        with self._lock:
            self._say(text)


class RunRows:
    """Runs on a terminal: a table with a row for each below the lines that are printed. To be entered and left.

    The bar is that of the epoch. What there is to say fits 80 columns, where the run's name has at most 22 characters.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rows: dict[str, _Row] = {}
        self._lock = threading.Lock()
        self._live = Live(console=console, get_renderable=self._table, transient=True)

    def __enter__(self) -> RunRows:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def expect(self, runs: Sequence[str]) -> None:
        """Show a row for each run that is going to be trained."""
        with self._lock:
            self._rows |= {run: _Row() for run in runs}

    def progress(self, progress: RunProgress) -> None:
        """Show how far a run has come."""
        row = _Row(
            epoch=f"{progress.epoch + 1}/{progress.num_epochs}",
            done_fraction=progress.samples_done / max(progress.num_samples, 1),
            images_per_s=f"{progress.images_per_s:.1f}",
            wait=f"{progress.wait_fraction:.0%}",
            loss="" if progress.loss is None else f"{progress.loss:.4f}",
            score="" if progress.score is None else f"{progress.score:.4f}",
            left="" if progress.left_s is None else duration(progress.left_s),
        )
        with self._lock:
            self._rows[progress.run] = row

    def epoch(self, run: str, num_epochs: int, metrics: dict[str, Any]) -> None:
        """Print the line of an epoch that is over above the rows, and fill the run's bar."""
        epoch = metrics["epoch"] + 1
        with self._lock:
            row = replace(self._rows.get(run, _Row()), epoch=f"{epoch}/{num_epochs}", done_fraction=1.0)
            self._rows[run] = replace(row, left="done") if epoch == num_epochs else row
        self.note(epoch_text(run, num_epochs, metrics))

    def end(self, run: str, text: str) -> None:
        """Print a line about a run that has ended above the rows, and take its row away."""
        with self._lock:
            self._rows.pop(run, None)
        self.note(text)

    def note(self, text: str) -> None:
        """Print a line above the rows."""
        self._console.print(escape(logs.for_person(text)))

    def _table(self) -> Table:
        """Return the table as it is now; the thread that draws asks for it, several times a second."""
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
        for title in ("run", "epoch", ""):
            table.add_column(title, no_wrap=True)
        for title in ("images/s", "wait", "loss", "score"):
            table.add_column(title, no_wrap=True, justify="right")
        table.add_column("left", no_wrap=True)
        with self._lock:
            rows = dict(self._rows)
        for name, row in rows.items():
            bar = ProgressBar(total=1, completed=row.done_fraction, width=10)
            table.add_row(escape(name), row.epoch, bar, row.images_per_s, row.wait, row.loss, row.score, row.left)
        return table


def _progress_fields(progress: RunProgress) -> dict[str, Any]:
    numbers = {
        "epoch": progress.epoch + 1,
        "epochs": progress.num_epochs,
        "done": progress.samples_done,
        "total": progress.num_samples,
        "images_per_s": round(progress.images_per_s, 3),
        "wait_fraction": round(progress.wait_fraction, 4),
        "loss": progress.loss,
        "score": progress.score,
        "left_s": None if progress.left_s is None else round(progress.left_s),
    }
    return {"run": progress.run, **numbers}


@dataclass(frozen=True)
class _Row:
    """The cells of a run, of which nothing was heard yet."""

    epoch: str = ""
    done_fraction: float = 0.0
    images_per_s: str = ""
    wait: str = ""
    loss: str = ""
    score: str = ""
    left: str = "waiting"


def progress_text(progress: RunProgress) -> str:
    """Return the line of a run that goes on; what is not known yet is left out."""
    parts = [
        f"{progress.run}: epoch {progress.epoch + 1} of {progress.num_epochs}",
        f"{progress.samples_done} of {progress.num_samples} images",
        f"{progress.images_per_s:.1f} images/s ({100 * progress.wait_fraction:.0f} % waiting)",
        *([] if progress.loss is None else [f"loss {progress.loss:.4f}"]),
        *([] if progress.score is None else [f"score {progress.score:.4f}"]),
        *([] if progress.left_s is None else [f"{duration(progress.left_s)} left"]),
    ]
    return ", ".join(parts)


def epoch_text(run: str, num_epochs: int, metrics: dict[str, Any]) -> str:
    """Return the line of an epoch that is over."""
    score = metrics.get("iou_location_weighted")
    text = f"{run}: epoch {metrics['epoch'] + 1} of {num_epochs}, loss {metrics['loss']:.4f}"
    if score is not None:
        text += f", validation IoU by location {score:.4f} (empty union {metrics['empty_union_rule']})"
    return f"{text}, {metrics['images_per_s']:.1f} images/s"
