"""Scorings on several nodes with a fault at a random moment: `python -m tests.chaos.scorings --fault node --seeds 3`.

A moment is a number of writes to the destination, drawn from the seed, and a part of a second more: it may come between
a mask and its entry in the ledger, or as the books are closed. Even seeds score scenes, two of them in blocks, odd ones
chips. Each destination is held, byte for byte, against one that nothing disturbed. Prints a table, and exits with 1 if
any went otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from raytrain import storage
from raytrain.imagery import synth
from raytrain.scoring import ledger
from raytrain.scoring.destination import tells_of_the_run
from tests.bench.record import Table, keep_tables
from tests.chaos.trace import WhenImported
from tests.chaos.trainings import LIMIT_S
from tests.making import make_ensemble
from tests.multinode.lab import BUCKET, ENDED, Lab

SETTINGS = ("window_px=96", "overlap_px=32", "threads=1", "block_px=512", "probability=uint8")
MEMBERS = ("small-byob-3b", "small-effnet-4b-20k")
SCENES, SCENE_PX = 6, 150
LARGE_SCENES, LARGE_PX = 2, 900
CHIPS, CHIP_PX, PLACES = 96, 64, 6
"""Six units of chips."""
NODES = 3
"""With a CPU each: two actors, and a node to go to."""
OUTAGE_S = 15.0
SLOW_S = 0.3
JITTER_S = 0.3
TURN, PERFORM = "RAYTRAIN_HOG_TURN", "raytrain.scoring.perform"
ROOM_BYTES, PIECE_BYTES = 6 * 2**30, 2**28
"""What may be taken on the machine beyond what it uses before the lab is there, and in which pieces it is taken."""
POLL_S = 0.02
WRITES = ("PUT", "POST", "DELETE")
OF_THE_RUN = ("plan/", "blocks/", "ledger/new/", "ledger/rolled/")
"""What a finished scoring leaves nothing of."""


@dataclass(frozen=True)
class Archive:
    """Scenes or chips in the store of a lab, `num_items` of them, and an ensemble to score them with."""

    lab: Lab
    source: str
    ensemble: str
    num_items: int


@dataclass(frozen=True)
class Outcome:
    """What came of a scoring: its exit code, its log, how long it took, what it left, and its entries.

    `objects` are all but those that tell of the run. `answers` are the lines of `log/`, one a unit; `writes` the
    objects that were written or removed, in that order. `struck` says what the fault met.
    """

    exit_code: int | None
    log: str = field(repr=False)
    seconds: float
    objects: dict[str, bytes] = field(repr=False)
    entered: Sequence[str]
    answers: Sequence[dict[str, Any]] = field(repr=False)
    writes: Sequence[str] = field(repr=False)
    struck: str | None = None


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong: `happen` says what it met, `mend` makes it good after the end of the scoring.

    It comes while units are done or, if it may come `anytime`, also before and after. Where the job does not outlive it
    (`ends_job`), the same command is submitted once more, at once. `blames`: a unit may be held to have brought its
    actor down. `hook` runs in each worker of the job. It comes before the part `latest` of what units write.
    """

    happen: Callable[[Lab, random.Random], str]
    mend: Callable[[Lab], None] = lambda lab: None
    anytime: bool = False
    ends_job: bool = False
    blames: bool = False
    hook: str | None = None
    latest: float = 0.8


def kill_worker(lab: Lab, chance: random.Random) -> str:
    """Kill an actor that scores."""
    pid = chance.choice(scorers(lab))
    node = lab.node_of(pid)
    os.kill(pid, signal.SIGKILL)
    return f"an actor on node {node}"


def lose_node(lab: Lab, chance: random.Random) -> str:
    """Lose a node with an actor that scores, until the end of the scoring."""
    node = lab.node_of(chance.choice(scorers(lab)))
    lab.kill(node)
    return f"node {node}, for good"


def kill_node(lab: Lab, chance: random.Random) -> str:
    """Lose a node with an actor that scores, for good or until another takes its place at once."""
    if chance.random() < 0.5:
        return lose_node(lab, chance)
    node = lab.node_of(chance.choice(scorers(lab)))
    lab.kill(node)
    lab.bring_back(node)
    return f"node {node}, back at once"


def kill_driver(lab: Lab, chance: random.Random) -> str:
    """Kill the command that a job runs on the head."""
    pids = [pid for pid in lab.network.pids(0) if arguments_of(pid)[1:2] == ["jobs/score.py"]]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return f"{len(pids)} driver"


def outage(lab: Lab, chance: random.Random) -> str:
    """Let the store answer 503 for a while."""
    lab.fail_store()
    time.sleep(OUTAGE_S)
    lab.heal_store()
    return f"503 for {OUTAGE_S:.0f} s"


def slow(lab: Lab, chance: random.Random) -> str:
    """Let the store be slow to answer from now on."""
    lab.store.latency_s = SLOW_S
    return f"{SLOW_S:g} s more a request"


def quicken(lab: Lab) -> None:
    """Let the store be quick again."""
    lab.store.latency_s = 0.0


def hog(lab: Lab, chance: random.Random) -> str:
    """Let the actor that begins the next unit take all memory that its node may."""
    turn = lab.folder / TURN
    turn.touch()
    deadline = time.monotonic() + LIMIT_S
    while turn.exists() and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return "no actor" if turn.exists() else "an actor that takes all memory"


def install() -> None:
    """Let an actor of this worker take a turn to hog memory (a `worker_process_setup_hook`)."""
    if os.environ.get(TURN) and PERFORM not in sys.modules:
        sys.meta_path.insert(0, WhenImported(_watch, PERFORM))


def _watch(module: Any) -> None:
    perform = module.perform

    def hogging(unit: Any, work: Any) -> Any:
        with contextlib.suppress(FileNotFoundError):
            Path(os.environ[TURN]).unlink()  # one can
            held = []
            while len(held) * PIECE_BYTES < 2 * ROOM_BYTES:
                held.append(b"\1" * PIECE_BYTES)
                time.sleep(0.05)
            time.sleep(60)  # until Ray's monitor has seen it
        return perform(unit, work)

    module.perform = hogging


def memory_limits() -> dict[str, str]:
    """Return what lets Ray end an actor once `ROOM_BYTES` more are taken on this machine than now.

    All nodes see the memory of the one machine: with the limit on the head, Ray ends the job's own process there.
    """
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    memory = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}
    limit = (memory["MemTotal"] - memory["MemAvailable"] + ROOM_BYTES) / memory["MemTotal"]
    return {"RAY_memory_usage_threshold": f"{limit:.3f}", "RAY_memory_monitor_refresh_ms": "100"}


FAULTS = {
    "worker": Fault(kill_worker, blames=True),
    "node": Fault(kill_node, Lab.repair),
    "driver": Fault(kill_driver, anytime=True, ends_job=True),
    "outage": Fault(outage, anytime=True),
    "slow": Fault(slow, quicken, anytime=True),
    "memory": Fault(hog, blames=True, hook="tests.chaos.scorings.install", latest=0.4),
}


def make_scenes(lab: Lab, folder: Path, small: int = SCENES, large: int = LARGE_SCENES) -> Archive:
    """Generate scenes in `folder`, some of them scored in blocks, and bring them to the store with an ensemble."""
    synth.write_scenes(folder / "small", count=small, size_px=SCENE_PX, seed=3)
    synth.write_scenes(folder / "large", count=large, size_px=LARGE_PX, seed=4, first_place=50)
    paths = [path for name in ("small", "large") for path in (folder / name / "scenes").iterdir()]
    return _uploaded(lab, "scenes", {path.name: path for path in paths}, folder, small + large)


def make_chips(lab: Lab, folder: Path) -> Archive:
    """Generate chips in `folder`, and bring them to the store with an ensemble."""
    synth.write_chips(folder / "chips", count=CHIPS, size_px=CHIP_PX, seed=1, num_places=PLACES)
    return _uploaded(lab, "chips", _below(folder / "chips"), folder, CHIPS)


def _uploaded(lab: Lab, name: str, paths: dict[str, Path], folder: Path, num_items: int) -> Archive:
    source, ensemble = f"s3://{BUCKET}/archives/{name}", f"s3://{BUCKET}/archives/ensemble"
    make_ensemble(folder / "ensemble", MEMBERS)
    with store_of(lab):
        if not storage.exists(f"s3://{BUCKET}"):
            storage.filesystem(f"s3://{BUCKET}").mkdir(BUCKET)
        for uri, files in ((source, paths), (ensemble, _below(folder / "ensemble"))):
            for key, path in files.items():
                storage.write_bytes(storage.join(uri, key), path.read_bytes())
    return Archive(lab, source, ensemble, num_items)


def _below(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}


def destination_of(name: str) -> str:
    """Return where the scoring `name` puts its masks."""
    return f"s3://{BUCKET}/masks/{name}"


def score(
    archive: Archive, name: str, fault: Fault | None = None, seed: int = 0, like: Outcome | None = None
) -> Outcome:
    """Score to the end, through a fault at a moment drawn from the seed, among those of a scoring `like` this one."""
    lab, destination = archive.lab, destination_of(name)
    lab.repair()
    first, begun = len(lab.store.requests), time.monotonic()
    command = [archive.source, destination, "--ensemble", archive.ensemble, "--set", *SETTINGS]
    hook = fault.hook if fault is not None else None
    turn = {TURN: str(lab.folder / TURN)} if hook else {}
    job = lab.submit("score", *command, hook=hook, environment=turn)
    struck = None
    try:
        if fault is not None:
            assert like is not None
            struck = _strike(lab, job, fault, random.Random(f"{seed} of {name}"), first, destination, like)
            if fault.ends_job:
                job = lab.submit("score", *command)
        found = lab.wait(job, LIMIT_S)
        seconds = time.monotonic() - begun
    except BaseException:  # the next one needs the nodes
        with contextlib.suppress(OSError, RuntimeError):
            lab.stop(job)
        raise
    finally:
        if fault is not None:
            fault.mend(lab)
    with store_of(lab):
        objects = {key: storage.read_bytes(storage.join(destination, key)) for key in storage.find(destination)}
        entered = [record.item_id for record in ledger.read_records(destination)]
    return Outcome(
        exit_code=found["driver_exit_code"],
        log=lab.logs(job),
        seconds=seconds,
        objects={key: data for key, data in objects.items() if not tells_of_the_run(key)},
        entered=entered,
        answers=[
            json.loads(line) for key in objects if key.startswith("log/") for line in objects[key].decode().splitlines()
        ],
        writes=_writes(lab, first, destination),
        struck=struck,
    )


def _strike(
    lab: Lab, job: str, fault: Fault, chance: random.Random, first: int, destination: str, like: Outcome
) -> str:
    """Let the fault happen after a number of writes; return what it met. Raise RuntimeError if the job ends before."""
    of_units = [i for i, key in enumerate(like.writes) if _is_of_a_unit(key)]
    first_write, last_write = of_units[0], of_units[int(fault.latest * (len(of_units) - 1))]
    moment = chance.randint(1, len(like.writes) - 1) if fault.anytime else chance.randint(first_write, last_write)
    _until(lab, job, lambda: len(_writes(lab, first, destination)) >= moment)
    time.sleep(chance.uniform(0, JITTER_S))
    if not fault.anytime:  # an actor may be on its way
        _until(lab, job, lambda: bool(scorers(lab)) or lab.job(job)["status"] in ENDED)
    met = fault.happen(lab, chance) if fault.anytime or scorers(lab) else "nothing: it was over"
    return f"{met}; write {moment} of {len(like.writes)}"


def _is_of_a_unit(key: str) -> bool:
    return key.startswith(("blocks/", "ledger/new/", "probability/", "stac/")) or (
        "/" not in key and key.endswith(".tif")
    )


def _until(lab: Lab, job: str, is_so: Callable[[], bool]) -> None:
    deadline, looked = time.monotonic() + LIMIT_S, time.monotonic()
    while not is_so():
        if time.monotonic() - looked > 1.0:
            looked = time.monotonic()
            if looked > deadline or lab.job(job)["status"] in ENDED:
                raise RuntimeError(f"job {job} came to no such moment:\n{lab.logs(job)[-4000:]}")
        time.sleep(POLL_S)


def _writes(lab: Lab, first: int, destination: str) -> list[str]:
    """Return the objects of a destination that the nodes asked to write or to remove since the request `first`."""
    prefix = f"/{destination.removeprefix('s3://')}/"
    asked = lab.store.requests[first:]
    return [
        target.removeprefix(prefix).partition("?")[0]
        for method, target in asked
        if method in WRITES and target.startswith(prefix)
    ]


def scorers(lab: Lab) -> list[int]:
    """Return the process ids of the actors that score on the nodes of a lab."""
    pids = (pid for node in lab.workers for pid in lab.network.pids(node))
    return sorted(pid for pid in pids if arguments_of(pid)[0].startswith("ray::Scorer"))


def arguments_of(pid: int) -> list[str]:
    """Return the command line of a process, that of one that is gone is empty."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return [""]


@contextlib.contextmanager
def store_of(lab: Lab) -> Iterator[None]:
    """Let this process reach the store of a lab, also while it fails for the nodes."""
    with mock.patch.dict(os.environ, lab.swift.environment()):
        yield


def problems(archive: Archive, outcome: Outcome, reference: Outcome, fault: Fault | None = None) -> list[str]:
    """Return what is wrong with a scoring, where it should have left what the reference did."""
    found = []
    if fault is not None and fault.hook and "out of memory on a node" not in outcome.log:
        found.append("no actor was told to be out of memory")
    if outcome.exit_code != 0:
        found.append(f"exit code {outcome.exit_code}: {outcome.log[-3000:]}")
    ours, theirs = outcome.objects, reference.objects
    for what, keys in (("missing", theirs.keys() - ours.keys()), ("too many", ours.keys() - theirs.keys())):
        if keys:
            found.append(f"{what}: {', '.join(sorted(keys))}")
    if different := sorted(key for key in ours.keys() & theirs.keys() if ours[key] != theirs[key]):
        found.append(f"not the bytes of the undisturbed scoring: {', '.join(different)}")
    if left := sorted(key for key in ours if key.startswith(OF_THE_RUN)):
        found.append(f"left of the run: {', '.join(left)}")
    if len(outcome.entered) != archive.num_items or len(set(outcome.entered)) != archive.num_items:
        found.append(f"{len(outcome.entered)} entries of {len(set(outcome.entered))} items, not {archive.num_items}")
    if (fault is None or not fault.blames) and (blamed := [each["unit"] for each in outcome.answers if each["deaths"]]):
        found.append(f"held to have brought an actor down: {', '.join(blamed)}")
    return found


COLUMNS = ["seed", "fault", "of", "what it met", "answers", "actors", "blamed", "seconds lost", "objects equal"]


def row(outcome: Outcome, reference: Outcome, fault: str, seed: int, kind: str) -> list[str]:
    """Return a row of the table."""
    return [
        str(seed),
        fault,
        kind,
        str(outcome.struck),
        str(len(outcome.answers)),
        str(len({(each["host"], each["pid"]) for each in outcome.answers})),
        str(sum(each["deaths"] > 0 for each in outcome.answers)),
        f"{outcome.seconds - reference.seconds:.0f}",
        f"{len(outcome.objects)} of {len(reference.objects)}" if outcome.objects == reference.objects else "NO",
    ]


def main(options: list[str]) -> int:
    """Print the table and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fault", choices=sorted(FAULTS), nargs="+", required=True)
    parser.add_argument("--seeds", type=int, default=3, help="scorings with each, of the seeds 0, 1 and so on")
    parser.add_argument("--write", metavar="MACHINE", help="keep the table in infra/benchmarks")
    chosen = parser.parse_args(options)
    rows: list[list[str]] = []
    wrong: list[str] = []
    variables = memory_limits() if "memory" in chosen.fault else {}
    with Lab(workers=NODES, variables=variables) as lab, tempfile.TemporaryDirectory() as folder:
        archives = {"scenes": make_scenes(lab, Path(folder)), "chips": make_chips(lab, Path(folder))}
        references = {kind: score(archive, kind) for kind, archive in archives.items()}
        for kind, reference in references.items():
            wrong += [f"undisturbed: {problem}" for problem in problems(archives[kind], reference, reference)]
            print(f"{kind}: {reference.seconds:.0f} s, {len(reference.answers)} answers", flush=True)
        for fault, seed in itertools.product(chosen.fault, range(chosen.seeds)):
            kind = ("scenes", "chips")[seed % 2]
            archive, reference, what = archives[kind], references[kind], FAULTS[fault]
            outcome = score(archive, f"{fault}-{seed}", what, seed, reference)
            rows.append(row(outcome, reference, fault, seed, kind))
            found = [f"{fault}, seed {seed}: {each}" for each in problems(archive, outcome, reference, what)]
            print(" | ".join(rows[-1]), *found, sep="\n", flush=True)
            wrong += found
    note = "; ".join(
        f"{archives[kind].num_items} {kind}: {reference.seconds:.0f} s, {len(reference.answers)} units, "
        f"{len(reference.writes)} writes"
        for kind, reference in references.items()
    )
    verdict = "\n".join(f"- {each}" for each in wrong) or "Nothing went otherwise than it should."
    table = Table("Each against an undisturbed scoring", COLUMNS, rows, f"Undisturbed: {note}.\n\n{verdict}")
    keep_tables("chaos-scorings", "scorings", chosen.write, "Scorings through faults", [table], package="tests.chaos")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
