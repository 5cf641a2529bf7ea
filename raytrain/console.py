"""What a person sees of long work: progress on a terminal, plain lines in a log, tables, the list of bad objects.

Everything goes to stderr but results, so that `--json` leaves stdout to the machine. Must not know Ray or arithmetic.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from raytrain import logs
from raytrain.console_runs import LOG_EVERY_S, RunLines, RunRows, Runs, epoch_text
from raytrain.errors import DataError


class OnProgress(Protocol):
    """Told how much of a step is done, of how much, and what else is worth a look."""

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Show it."""
        ...


_logger = logging.getLogger(logs.LOGGER)


class Narrator:
    """Tells how the work goes, on stderr: a person by bars and lines, a collector of logs by records."""

    def __init__(self, encoding: logs.Encoding = "text") -> None:
        self.encoding = encoding
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)

    @property
    def _is_live(self) -> bool:
        return self.encoding == "text" and self._console.is_terminal

    def say(self, text: str, level: int = logging.INFO, **fields: Any) -> None:
        """Print a line, or write a record of this level that has `fields` beside the text."""
        if self.encoding == "json":
            _logger.log(level, "%s", text, extra=logs.fields(**fields))
        else:
            self._console.print(escape(logs.for_person(text)))

    @contextmanager
    def step(self, title: str) -> Iterator[OnProgress]:
        """Show the progress of a step while the body runs, which calls what it gets with (done, total)."""
        start = time.monotonic()
        with self._bar(title) if self._is_live else self._lines(title) as on_progress:
            yield on_progress
        seconds = time.monotonic() - start
        self.say(f"{title}: {seconds:.1f} s", event="step done", step=title, seconds=round(seconds, 3))

    @contextmanager
    def _bar(self, title: str) -> Iterator[OnProgress]:
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
        ]
        bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self._console, transient=True)
        with bar:
            task = bar.add_task(escape(logs.for_person(title)), total=None, text="")

            def on_progress(done: int, total: int, text: str = "") -> None:
                bar.update(task, completed=done, total=total, text=escape(logs.for_person(text)))

            yield on_progress

    @contextmanager
    def _lines(self, title: str) -> Iterator[OnProgress]:
        last = time.monotonic()

        def on_progress(done: int, total: int, text: str = "") -> None:
            nonlocal last
            if time.monotonic() - last >= LOG_EVERY_S:
                last = time.monotonic()
                line = f"{title}: {done} of {total}{f', {text}' if text else ''}"
                self.say(line, event="progress", step=title, done=done, total=total)

        yield on_progress

    @contextmanager
    def runs(self) -> Iterator[Runs]:
        """Show the progress of runs while the body goes on; any thread may tell of it."""
        if self._is_live:
            with RunRows(self._console) as rows:
                yield rows
        else:
            yield RunLines(self.say)

    def epoch(self, run: str, num_epochs: int, metrics: dict[str, Any]) -> None:
        """Print the line of an epoch."""
        self.say(epoch_text(run, num_epochs, metrics))

    def problems(self, problems: Sequence[DataError], *, consequence: str) -> None:
        """Print the list of what was wrong in the data; nothing if it is empty."""
        if not problems:
            return
        count = {"event": "problems", "count": len(problems)}
        self.say(f"{len(problems)} bad in the data, {consequence}:", logging.WARNING, **count)
        for problem in sorted(problems, key=str):
            found = {"event": "problem", "subject": problem.subject, "found": problem.found}
            self.say(f"  {problem}", logging.WARNING, **found)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> None:
    """Print a table of results on stdout, and a note below it; the columns behind the first are numbers."""
    table = Table(title=escape(logs.for_person(title)), title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        table.add_row(*(escape(logs.for_person(cell)) for cell in row))
    width = None if sys.stdout.isatty() else 120
    console = Console(highlight=False, width=width)
    console.print(table)
    if note:
        console.print(escape(logs.for_person(note)), soft_wrap=True)


VERDICT_STYLES = {"ok": "green", "unchecked": "blue", "warning": "yellow", "failed": "bold red"}


def print_findings(rows: Sequence[tuple[str, str, str, str, str]]) -> None:
    """Print findings on stdout: (verdict, check, nodes, what was found, what to do), the last two below each other."""
    table = Table(box=None, padding=(0, 1, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for verdict, check, nodes, found, remedy in rows:
        text = Text()
        text.append(f"{nodes}: " if nodes else "", style="bold")
        text.append(logs.for_person(found))
        text.append(f"\n-> {logs.for_person(remedy)}" if remedy else "", style="italic")
        table.add_row(Text(verdict, style=VERDICT_STYLES[verdict]), Text(check), text)
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(table)
