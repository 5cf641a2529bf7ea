"""What a person sees of runs: lines in a log that say all and not too often, rows on a terminal, from any thread."""

from __future__ import annotations

import io
import re
import threading
from dataclasses import replace

import pytest
from rich.console import Console

from raytrain.console import Narrator, print_findings, print_table
from raytrain.console_runs import RunLines, RunRows, progress_text
from raytrain.errors import DataError
from raytrain.training.progress import RunProgress, duration

RUN = "small-byob-4b-fold0"
PROGRESS = RunProgress(
    run=RUN,
    epoch=2,
    num_epochs=10,
    samples_done=120,
    num_samples=480,
    loss=0.43214,
    images_per_s=45.12,
    wait_fraction=0.021,
    score=0.8123,
    left_s=250.2,
)
METRICS = {"epoch": 2, "loss": 0.5, "images_per_s": 12.34, "iou_location_weighted": 0.75, "empty_union_rule": "one"}
EPOCH_LINE = f"{RUN}: epoch 3 of 10, loss 0.5000, validation IoU by location 0.7500 (empty union one), 12.3 images/s"


def terminal(width: int = 80) -> tuple[Console, io.StringIO]:
    """Return a terminal as narrow as they come, and what is written to it."""
    screen = io.StringIO()
    return Console(file=screen, force_terminal=True, width=width, soft_wrap=True, color_system=None), screen


def lines_of(screen: io.StringIO) -> list[str]:
    """Return what was written, without the codes that move the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).splitlines()


def test_a_line_says_epoch_images_rate_waiting_loss_score_and_time_left() -> None:
    assert progress_text(PROGRESS) == (
        "small-byob-4b-fold0: epoch 3 of 10, 120 of 480 images, 45.1 images/s (2 % waiting), loss 0.4321, "
        "score 0.8123, 4 min 10 s left"
    )


def test_what_is_not_known_yet_is_left_out_of_the_line() -> None:
    unknown = replace(PROGRESS, loss=None, score=None, left_s=None)
    assert progress_text(unknown) == f"{RUN}: epoch 3 of 10, 120 of 480 images, 45.1 images/s (2 % waiting)"


def test_a_person_is_shown_no_secret_and_no_control_character(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIS_PASSWORD", "a-secret-of-redis")
    monkeypatch.setattr("raytrain.console.LOG_EVERY_S", 0.0)
    bad = "\x1b[2J a-secret-of-redis at https://h/a?sig=abc123"
    narrator = Narrator()
    narrator.say(bad)
    with narrator.step(bad) as on_progress, narrator.runs() as runs:
        on_progress(1, 2, bad)
        runs.end("run", bad)
    narrator.problems([DataError(bad, bad)], consequence="left out")
    print_table(bad, ["x"], [[bad]], bad)
    print_findings([("ok", "check", "node", bad, bad)])
    console, screen = terminal(200)
    with RunRows(console) as rows:
        rows.note(bad)
    narrator._console = console
    with narrator.step("bar") as on_progress:
        on_progress(1, 2, bad)
    assert "1/2" in screen.getvalue()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Zhlm]", "", screen.getvalue().replace("\x1b[2J", "BAD"))
    for text in (*capsys.readouterr(), shown):
        assert "https://h/a" in text.replace("\n", "")
        for hidden in ("BAD", "\x1b", "a-secret", "abc123"):
            assert hidden not in text.replace("\n", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (250, "4 min 10 s"), (7500, "2 h 5 min"), (273_600, "3 d 4 h")],
)
def test_a_duration_is_told_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_log_gets_at_most_one_line_in_ten_seconds_for_each_run() -> None:
    lines: list[str] = []
    now_s = 0.0
    runs = RunLines(lambda text, **fields: lines.append(text), clock=lambda: now_s)
    for now_s in range(31):
        runs.progress(replace(PROGRESS, samples_done=now_s))
        if now_s >= 5:
            runs.progress(replace(PROGRESS, run="other-fold0", samples_done=now_s))
    told = [(line.split(":")[0], int(line.split(", ")[1].split()[0])) for line in lines]
    assert told == [(RUN, 10), ("other-fold0", 15), (RUN, 20), ("other-fold0", 25), (RUN, 30)]


def test_a_log_gets_every_epoch_and_note_and_then_some_quiet() -> None:
    lines: list[str] = []
    now_s = 0.0
    runs = RunLines(lambda text, **fields: lines.append(text), clock=lambda: now_s)
    runs.progress(PROGRESS)
    now_s = 9.5
    runs.epoch(RUN, 10, METRICS)
    runs.note("an attempt begins")
    now_s = 10.5
    runs.progress(PROGRESS)
    assert lines == [EPOCH_LINE, "an attempt begins"]


def test_a_log_is_plain_text_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with Narrator().runs() as runs:
        runs.progress(PROGRESS)
        runs.epoch(RUN, 10, METRICS)
        runs.note("[bold] is no markup")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [EPOCH_LINE, "[bold] is no markup"]


def test_a_terminal_gets_a_row_for_each_run_and_the_epochs_lines_above() -> None:
    console, screen = terminal()
    with RunRows(console) as rows:
        rows.expect([RUN, "other-fold0"])
        rows.progress(PROGRESS)
        rows._live.refresh()
        titles, first, second = lines_of(screen)[-3:]
        assert titles.split() == ["run", "epoch", "images/s", "wait", "loss", "score", "left"]
        name, epoch, bar, *rest = first.split()
        assert (name, epoch, bar) == (RUN, "3/10", "━━╸")  # a quarter of ten
        assert rest == ["45.1", "2%", "0.4321", "0.8123", "4", "min", "10", "s"]
        assert (second.split()[0], second.split()[-1]) == ("other-fold0", "waiting")
        rows.epoch(RUN, 10, METRICS)
        rows.note("[bold] is no markup")
    assert EPOCH_LINE in screen.getvalue()
    assert "[bold] is no markup" in screen.getvalue()


def test_the_row_of_a_run_behind_its_last_epoch_says_done() -> None:
    console, screen = terminal()
    with RunRows(console) as rows:
        rows.expect([RUN])
        rows.progress(PROGRESS)
        rows.epoch(RUN, 3, METRICS)
        rows._live.refresh()
        assert "done" in lines_of(screen)[-1]


def test_rows_can_be_told_of_by_many_threads_at_once() -> None:
    console, screen = terminal()
    names = [f"run-{i}-fold0" for i in range(8)]

    def tell(name: str) -> None:
        for i in range(50):
            rows.progress(replace(PROGRESS, run=name, samples_done=i))
            if i % 10 == 0:
                rows.epoch(name, 10, METRICS)

    with RunRows(console) as rows:
        threads = [threading.Thread(target=tell, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rows._live.refresh()
        shown = lines_of(screen)[-len(names) :]
        assert sorted(line.split()[0] for line in shown) == names
    for name in names:
        assert screen.getvalue().count(f"{name}: epoch 3 of 10, loss") == 5


def test_a_run_that_has_ended_has_a_line_and_no_row() -> None:
    said: list[str] = []
    lines = RunLines(lambda text, **fields: said.append(text))
    lines.end("trial", "trial: finished")
    assert said == ["trial: finished"]
    printed = io.StringIO()
    rows = RunRows(Console(force_terminal=True, width=100, file=printed))
    rows.expect(["trial", "other"])
    rows.end("trial", "trial: finished")
    assert list(rows._rows) == ["other"]
    assert "trial: finished" in printed.getvalue()
    rows.end("unknown", "unknown: failed")
