"""Trainings on several nodes with a fault at a random moment: `python -m tests.chaos.nodes --fault kill --seeds 5`.

Even seeds strike the node of rank 0, which saves and tells, odd ones that of rank 1.
Each is held against one that nothing disturbed. Prints a table, and exits with 1 if any went otherwise.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.trainings import CHECKPOINT_S, WORKERS, Disturbance, Outcome, Training, make_shards, train
from tests.multinode.lab import Lab

NOTICE_S = 10
CUT_S = 30.0
GIVEN_UP_S = 60.0
OUTAGE_S = 20.0
FULL_S = 15.0
WRITE_S = 5.0
"""How long a checkpoint may take from its snapshot until it counts."""


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong with a node (or the head, or the store), and right again before the call is over.

    `kinds` are the causes that a run may tell of it: no attempt survives it, or every one does where there are none.
    `interval_s` is how often the run saves, `limit_s` how much of its work may be lost. It comes between `moments`,
    parts of all steps: one that takes its time must find the run still there. Where the job does not outlive it
    (`ends_job`), the same command is submitted once more. If it `is_announced`, nothing is lost that was done before.
    `saves`: checkpoints are saved while it lasts.
    """

    happen: Callable[[Lab, int], None]
    kinds: tuple[str, ...] = ()
    interval_s: float = CHECKPOINT_S
    limit_s: float = CHECKPOINT_S + WRITE_S
    moments: tuple[float, float] = (0.15, 0.85)
    ends_job: bool = False
    is_announced: bool = False
    saves: bool = False


def kill(lab: Lab, node: int) -> None:
    """Lose a node without notice; another one takes its place."""
    lab.kill(node)
    lab.bring_back(node)


def drain(lab: Lab, node: int) -> None:
    """Lose a node with the notice that clouds give; another one takes its place."""
    lab.drain(node, NOTICE_S)
    time.sleep(NOTICE_S)
    lab.kill(node)
    lab.bring_back(node)


def partition(lab: Lab, node: int) -> None:
    """Cut a node off for longer than the head waits; it ends itself when it hears of that, and is started again."""
    lab.cut(node)
    time.sleep(CUT_S)
    lab.mend(node)
    lab.wait_for_end(node, GIVEN_UP_S)
    lab.bring_back(node)


def head(lab: Lab, node: int) -> None:
    """Lose the head, on which the command runs; an operator starts a new cluster in its place."""
    lab.lose_head()
    lab.start()


def store(lab: Lab, node: int) -> None:
    """Let the store answer 503 for a while."""
    lab.fail_store()
    time.sleep(OUTAGE_S)
    lab.heal_store()


def disk(lab: Lab, node: int) -> None:
    """Let the disk of a node be full for a while, in which checkpoints are due."""
    lab.fill_disk(node)
    time.sleep(FULL_S)
    lab.free_disk(node)


FAULTS = {
    "kill": Fault(kill, ("node lost",)),
    # The interval is longer than the run and the node gone before the first epoch ends: only the notice makes it save.
    "drain": Fault(drain, ("preempted",), 600.0, NOTICE_S + WRITE_S, moments=(0.03, 0.1), is_announced=True),
    "partition": Fault(partition, ("node lost",)),
    # The ranks go on without a head for a while.
    "head": Fault(head, ("job ended",), moments=(0.15, 0.5), ends_job=True),
    "disk": Fault(disk, moments=(0.15, 0.4), saves=True),
    "store": Fault(store),
}
UNDISTURBED = Fault(lambda lab, node: None)
OF_ALL = ("head", "store")
"""Faults that are of no node with a rank."""


@dataclass(frozen=True)
class Result:
    """A training through a fault: what happened in it, what came of it, and what was wrong with that."""

    seed: int
    fault: str
    disturbance: Disturbance
    outcome: Outcome
    problems: tuple[str, ...]


def disturb(training: Training, reference: Outcome, fault: str, seed: int) -> Result:
    """Train with a fault at a moment drawn from the seed, and hold the outcome against a reference."""
    what = FAULTS[fault]
    moment = random.Random(f"{fault}-{seed}").uniform(*what.moments)
    disturbance = Disturbance(what.happen, seed % WORKERS, moment, what.ends_job)
    outcome = train(training, f"{fault}-{seed}", disturbance, what.interval_s)
    return Result(seed, fault, disturbance, outcome, tuple(problems(outcome, reference, what)))


def problems(outcome: Outcome, reference: Outcome, fault: Fault = UNDISTURBED) -> list[str]:
    """Return what is wrong with a training, where it should have ended as the reference did."""
    found = list(outcome.verdict.problems)
    if outcome.exit_code != 0 or not outcome.has_ensemble:
        found.append(f"exit code {outcome.exit_code}: {outcome.log[-2000:]}")
    if outcome.sha256 is None or outcome.sha256 != reference.sha256:
        found.append(f"weights {outcome.sha256}, without the fault {reference.sha256}")
    return found + _problems_of_restarts(outcome, fault)


def _problems_of_restarts(outcome: Outcome, fault: Fault) -> list[str]:
    found = []
    restarts, kinds = outcome.verdict.restarts, [each["kind"] for each in outcome.restarts]
    if restarts and not fault.kinds:
        found.append(f"{len(restarts)} restarts ({kinds}), though no attempt had to end")
    if fault.kinds and not restarts:
        found.append("no restart: the fault did not come between steps")
    if len(kinds) < len(restarts) or not set(kinds) <= set(fault.kinds):
        found.append(f"{len(restarts)} restarts, told as {kinds}, not as {' or '.join(fault.kinds) or 'none'}")
    for each in restarts:
        if each.lost_s > fault.limit_s:
            lost = f"{each.lost_images} images of {each.lost_s:.1f} s lost"
            found.append(f"{lost} from {each.resumed} to {each.reached}; {fault.limit_s:.0f} s may be")
        if fault.is_announced and outcome.struck and each.resumed < outcome.struck:
            found.append(f"it went on at {each.resumed}, but was at {outcome.struck} when its end was announced")
    if fault.saves and outcome.saved and outcome.saved[0] >= outcome.saved[1]:
        found.append(f"nothing was saved meanwhile: the last checkpoint stayed at {outcome.saved[0]}")
    return found


COLUMNS = (
    "seed | fault | moment | restarts | images lost | pauses, s | seconds lost | weights equal | every sample once"
)


def row(result: Result, reference: Outcome) -> str:
    """Return a row of the table."""
    outcome = result.outcome
    causes = ", ".join(str(each["kind"]) for each in outcome.restarts)
    values = [
        str(result.seed),
        result.fault if result.fault in OF_ALL else f"{result.fault}, node of rank {result.disturbance.rank}",
        f"{result.disturbance.moment:.0%}",
        f"{len(outcome.verdict.restarts)} ({causes or 'no cause is told'})",
        str(sum(each.lost_images for each in outcome.verdict.restarts)),
        ", ".join(f"{each.pause_s:.0f}" for each in outcome.verdict.restarts) or "none",
        f"{outcome.seconds - reference.seconds:.0f}",
        "yes" if outcome.sha256 == reference.sha256 else "NO",
        "yes" if not outcome.verdict.problems else "NO",
    ]
    return f"| {' | '.join(values)} |"


def main(arguments: list[str]) -> int:
    """Print the table and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fault", choices=sorted(FAULTS), nargs="+", required=True)
    parser.add_argument("--seeds", type=int, default=3, help="trainings with each, of the seeds 0, 1 and so on")
    parser.add_argument("--out", type=Path, help="a file for the table, too")
    chosen = parser.parse_args(arguments)
    lines: list[str] = []

    def tell(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    wrong: list[str] = []
    with Lab() as lab, tempfile.TemporaryDirectory() as folder:
        training = make_shards(lab, Path(folder))
        reference = train(training, "undisturbed")
        wrong += [f"undisturbed: {problem}" for problem in problems(reference, reference)]
        tell(f"Undisturbed: {reference.seconds:.0f} s, {training.num_samples} images an epoch.\n")
        tell(f"| {COLUMNS} |")
        tell("|" + " --- |" * len(COLUMNS.split("|")))
        for fault, seed in itertools.product(chosen.fault, range(chosen.seeds)):
            result = disturb(training, reference, fault, seed)
            tell(row(result, reference))
            wrong += [f"{fault}, seed {seed}: {problem}" for problem in result.problems]
    tell("\n" + ("\n".join(f"- {each}" for each in wrong) or "Nothing went otherwise than it should."))
    if chosen.out:
        chosen.out.write_text("\n".join(lines) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
