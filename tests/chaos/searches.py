"""Searches on several nodes with a fault at a random moment: `python -m tests.chaos.searches --fault kill --seeds 3`.

The search draws at random and stops no trial, so that what its trials come to does not depend on their order: each
disturbed search is held against one that nothing disturbed. Prints a table, and exits with 1 if any went otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from raytrain.search.records import Record, Trial
from tests.chaos.nodes import head, kill
from tests.chaos.trainings import LIMIT_S, SETTINGS, Training, make_shards
from tests.multinode.lab import BUCKET, ENDED, Lab

MEMBER = "small-byob-3b"
TRIALS, EPOCHS = 3, 6
FAULTS = {"kill": kill, "head": head}
"""The loss of a node with its ranks, or actors; of the head, with the command."""
ENDS_JOB = ("head",)
POLL_S = 0.5
COLUMNS = "seed | fault | at epoch | restarts | begun again | seconds lost | results equal"


@dataclass(frozen=True)
class Outcome:
    """What came of a search: its exit code and log, how long it took, its trials, how far it was when it was struck."""

    exit_code: int | None
    log: str = field(repr=False)
    seconds: float
    trials: Sequence[Trial]
    best: str | None
    struck: int | None = None


def arguments(training: Training, experiment: str) -> list[str]:
    """Return the command line of a search."""
    changes = SETTINGS | {"epochs": EPOCHS, "crops_per_tile": 12}
    return [
        *("--shards", training.shards, "--out", f"s3://{BUCKET}/searches", "--experiment", experiment),
        *("--member", MEMBER, "--trials", str(TRIALS), "--method", "random", "--run-to-end"),
        *("--finalists", "1", "--final-seeds", "2", "--checkpoint-minutes", "0.05"),
        *("--set", *(f"{name}={json.dumps(value, separators=(',', ':'))}" for name, value in changes.items())),
    ]


def search(training: Training, experiment: str, fault: str | None = None, seed: int = 0) -> Outcome:
    """Search to the end, through a fault at a moment drawn from the seed."""
    lab = training.lab
    lab.repair()
    begun = time.monotonic()
    command = arguments(training, experiment)
    job = lab.submit("tune", *command)
    struck = None
    try:
        if fault is not None:
            moment = random.Random(f"{fault}-{seed}").randint(2, TRIALS * EPOCHS - 2)
            struck = _wait_until(lab, job, experiment, moment)
            FAULTS[fault](lab, 1 + seed % len(lab.workers))
            if fault in ENDS_JOB:
                job = lab.submit("tune", *command)
        found = lab.wait(job, LIMIT_S)
    except BaseException:  # the next one needs the nodes
        with contextlib.suppress(OSError, RuntimeError):
            lab.stop(job)
        raise
    with _store_of(lab):
        record = Record(f"s3://{BUCKET}/searches/{experiment}")
        trials, log = record.trials(), lab.logs(job)
    best = next((line for line in log.splitlines() if line.startswith("settings: ")), None)
    return Outcome(found["driver_exit_code"], log, time.monotonic() - begun, trials, best, struck)


def _wait_until(lab: Lab, job: str, experiment: str, epochs: int) -> int:
    """Return how many epochs all trials have together once they are so many; raise RuntimeError if the job ends."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        with _store_of(lab):
            done = sum(len(trial.epochs) for trial in Record(f"s3://{BUCKET}/searches/{experiment}").trials())
        if done >= epochs:
            return done
        if time.monotonic() > deadline or lab.job(job)["status"] in ENDED:
            raise RuntimeError(f"job {job} came to {done} epochs:\n{lab.logs(job)[-4000:]}")
        time.sleep(POLL_S)


@contextlib.contextmanager
def _store_of(lab: Lab) -> Iterator[None]:
    """Let this process reach the store of a lab."""
    with mock.patch.dict(os.environ, lab.swift.environment()):
        yield


def problems(outcome: Outcome, reference: Outcome) -> list[str]:
    """Return what is wrong with a search, where it should have come to what the reference did."""
    found = []
    if outcome.exit_code != 0 or outcome.best is None:
        found.append(f"exit code {outcome.exit_code}: {outcome.log[-3000:]}")
    ours, theirs = ({trial.name: trial for trial in each.trials} for each in (outcome, reference))
    if ours.keys() != theirs.keys():
        found.append(f"trials {sorted(ours)}, without the fault {sorted(theirs)}")
    for name in ours.keys() & theirs.keys():
        if ours[name].state != "finished":
            found.append(f"{name}: {ours[name].state} ({ours[name].cause})")
        if _result(ours[name]) != _result(theirs[name]):
            found.append(f"{name}: {_result(ours[name])}, without the fault {_result(theirs[name])}")
    if outcome.struck is not None and not _again(outcome):
        found.append("no trial had to begin again: the fault struck nothing")
    return found


def _result(trial: Trial) -> dict[str, Any]:
    """Return what a trial came to, without times."""
    return {
        "point": trial.point,
        "epochs": [(each.epoch, each.score, each.loss) for each in trial.epochs],
        "judged": None if trial.judged is None else {name: vars(each) for name, each in trial.judged.items()},
    }


def _again(outcome: Outcome) -> int:
    return sum(len(trial.restarts) + trial.begun - 1 for trial in outcome.trials)


def row(outcome: Outcome, reference: Outcome, fault: str, seed: int) -> str:
    """Return a row of the table."""
    values = [
        str(seed),
        fault,
        str(outcome.struck),
        str(sum(len(trial.restarts) for trial in outcome.trials)),
        str(sum(trial.begun - 1 for trial in outcome.trials)),
        f"{outcome.seconds - reference.seconds:.0f}",
        "NO" if problems(outcome, reference) else "yes",
    ]
    return f"| {' | '.join(values)} |"


def main(options: list[str]) -> int:
    """Print the table and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fault", choices=sorted(FAULTS), nargs="+", required=True)
    parser.add_argument("--seeds", type=int, default=3, help="searches with each, of the seeds 0, 1 and so on")
    parser.add_argument("--out", type=Path, help="a file for the table, too")
    chosen = parser.parse_args(options)
    lines: list[str] = []

    def tell(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    wrong: list[str] = []
    with Lab() as lab, tempfile.TemporaryDirectory() as folder:
        training = make_shards(lab, Path(folder))
        reference = search(training, "undisturbed")
        wrong += [f"undisturbed: {problem}" for problem in problems(reference, reference)]
        tell(f"Undisturbed: {reference.seconds:.0f} s, {TRIALS} trials of {EPOCHS} epochs and 4 finals.\n")
        tell(f"| {COLUMNS} |")
        tell("|" + " --- |" * len(COLUMNS.split("|")))
        for fault, seed in itertools.product(chosen.fault, range(chosen.seeds)):
            outcome = search(training, f"{fault}-{seed}", fault, seed)
            tell(row(outcome, reference, fault, seed))
            wrong += [f"{fault}, seed {seed}: {problem}" for problem in problems(outcome, reference)]
    tell("\n" + ("\n".join(f"- {each}" for each in wrong) or "Nothing went otherwise than it should."))
    if chosen.out:
        chosen.out.write_text("\n".join(lines) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
