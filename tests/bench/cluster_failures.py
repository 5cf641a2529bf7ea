"""What failures cost a training: a rank, a node or the command is killed, and the time to the next step is taken."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from raytrain.cluster.history import read_history
from raytrain.cluster.runs import TrainJob
from raytrain.training.checkpoint_files import read_index
from tests.bench import stamps
from tests.bench.record import Table
from tests.bench.trainings import Bench, Event, Training, job_of, seconds

SOON_S = 0.2
GONE_S = 60
"""How long processes that nobody needs any more may take to end."""


@dataclass(frozen=True)
class Loss:
    """What one failure took: seconds until it was noticed, until ranks began again, to the end of the next step.

    `noticed_s` is None where the command itself was killed. `images` were trained on again, which took `again_s`;
    `told` is what `history.json` says of them.
    """

    noticed_s: float | None
    ranks_s: float
    step_s: float
    images: int
    again_s: float
    told: int | None
    kind: str
    pause_s: float


def loss_of(events: list[Event], told: int | None, kind: str, pause_s: float = 0.0) -> Loss:
    """Return what the only kill among `events` took."""
    killed = next(event for event in events if event["what"] == "kill")
    steps = [each for each in events if each["what"] == "step"]
    old = next(each["pid"] for each in reversed(steps) if each["at"] <= killed["at"])
    # Those of a rank that lived on for a moment are among its steps: they were taken, too.
    before, after = ([each for each in steps if (each["pid"] == old) == is_old] for is_old in (True, False))
    begun = next(each for each in events if each["what"] == "news: begun" and each["at"] > killed["at"])
    ranks = next(each for each in events if each["what"] == "rank begins" and each["pid"] == after[0]["pid"])
    noticed = next((each["at"] for each in events if each["what"] == "news: failed"), None)
    epoch, done = begun["position"]
    assert epoch == 0, "the run is one epoch"
    images = before[-1]["images"] - done
    rate = (before[-1]["images"] - before[0]["images"]) / (before[-1]["at"] - before[0]["at"])
    return Loss(
        noticed_s=None if noticed is None else noticed - killed["at"],
        ranks_s=ranks["at"] - killed["at"],
        step_s=after[0]["at"] - killed["at"],
        images=images,
        again_s=images / rate,
        told=told,
        kind=kind,
        pause_s=pause_s,
    )


def measure(bench: Bench) -> list[Table]:
    """Return the table of what each kind of failure takes."""
    kinds: dict[str, Callable[[Bench], Loss]] = {
        "rank 0 killed": lambda bench: _fail_inside(bench, "rank 0"),
        "another rank killed": lambda bench: _fail_inside(bench, "rank 1"),
        "node of a rank lost, another one stands by": lambda bench: _fail_inside(bench, "node"),
        "command killed, run again at once": _kill_command,
    }
    losses: dict[str, list[Loss]] = {kind: [] for kind in kinds}
    for repeat in range(bench.repeats):
        for kind, fail in kinds.items():
            loss = fail(bench)
            losses[kind].append(loss)
            print(f"repeat {repeat}: {kind}: {loss}", file=sys.stderr, flush=True)
    rows = []
    for kind, found in losses.items():
        rows.append(
            [
                kind,
                found[0].kind,
                seconds([each.noticed_s for each in found if each.noticed_s is not None]),
                seconds([each.ranks_s for each in found]),
                seconds([each.step_s for each in found]),
                ", ".join(f"{each.images}" for each in found),
                ", ".join("-" if each.told is None else f"{each.told}" for each in found),
                seconds([each.again_s for each in found]),
                seconds([each.step_s + each.again_s for each in found]),
            ]
        )
    headers = [
        "what",
        "kind in history.json",
        "s to the news of it",
        "s to the ranks of the next attempt",
        "s to the end of the next step",
        "images trained on again",
        "as history.json tells",
        "s of training in them",
        "s lost in all",
    ]
    sizes = bench.sizes
    pauses = ", ".join(f"{each.pause_s * 1000:.1f}" for each in losses["rank 0 killed"])
    note = (
        f"{sizes.member} on two ranks, {_failing_images(bench)} images an epoch, a checkpoint each "
        f"{sizes.interval_s:g} s, the kill behind image {sizes.kill_at}. A checkpoint each t seconds costs t/2 of "
        "training on average, t and the time of a write at most; with the default of 10 min that is 300 s on average, "
        f"and all else is the same. The last pause of the steps for a checkpoint, as its index has it: {pauses} ms. "
        "The command that is run again starts Ray, too."
    )
    return [Table("What a failure costs", headers, rows, note)]


def _failing_images(bench: Bench) -> int:
    return bench.sizes.num_tiles * 3 // 4 * int(bench.sizes.failing["crops_per_tile"])


def _failing_job(bench: Bench, folder: Path) -> TrainJob:
    sizes = bench.sizes
    return job_of(bench, folder, sizes.member, sizes.failing, 2, sizes.interval_s)


def _fail_inside(bench: Bench, what: str) -> Loss:
    """Train, and let the training itself kill a part of it."""
    folder = bench.new_folder()
    training = Training(_failing_job(bench, folder), folder, watched=True, kill=what, kill_at=bench.sizes.kill_at)
    training.start()
    training.wait()
    loss = _loss(training)
    shutil.rmtree(folder)
    return loss


def _loss(training: Training) -> Loss:
    restart = read_history(training.run_folder).restarts[-1]
    last = read_index(training.run_folder).last
    assert last is not None
    return loss_of(training.events, restart.lost_images, str(restart.kind), last.pause_s)


def _kill_command(bench: Bench) -> Loss:
    """Kill the command and start it again."""
    folder = bench.new_folder()
    first = Training(_failing_job(bench, folder), folder, watched=True)
    first.start()
    assert first.process is not None
    with _ended_below(first.process.pid):
        while not any(each.get("images", 0) >= bench.sizes.kill_at for each in first.events):
            assert first.process.poll() is None, "the training ended before it could be killed"
            time.sleep(SOON_S)
        with _environment_variable(stamps.EVENTS, str(folder / "events.jsonl")):
            stamps.note("kill", which="command")
        first.process.kill()
        first.process.wait()
        again = Training(first.job, folder, watched=True)
        again.start()
        again.wait()
    loss = _loss(again)
    shutil.rmtree(folder)
    return loss


@contextlib.contextmanager
def _environment_variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})


@contextlib.contextmanager
def _ended_below(leader: int) -> Iterator[None]:
    """See to it that what the session of `leader` has started is gone behind the body; end what is left by its id."""
    yield
    deadline = time.monotonic() + GONE_S
    while left := _in_session(leader):
        if time.monotonic() > deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return
        time.sleep(SOON_S)


def _in_session(leader: int) -> list[int]:
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                if os.getsid(int(path.name)) == leader:
                    found.append(int(path.name))
    return found
