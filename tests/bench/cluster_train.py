"""Training on Ray beside the same loop under `torchrun`, one rank beside two; what start, faults and checkpoints take.

    python -m tests.bench.cluster_train [--repeats 3] [--parts rate scaling ...] [--write MACHINE]

`rate`: steady images a second of `raytrain.cluster.train.train` with two ranks and of the same loop, settings and
shards under `torchrun --nproc-per-node 2`, without and with a Ray that idles on the same cores. `scaling`: of one rank
bound to one core, of two bound to one each. The sides take turns, the first epoch is left out. `start`: what the time
from the command to the end of its first step went by. `failures`: what each kind costs. `checkpoints`: what the steps
wait for them. Trainings run in processes of their own; 2 cores are needed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import checkpoint_pause, cluster_failures, record
from tests.bench.idle_ray import idle_ray
from tests.bench.record import Table
from tests.bench.trainings import TINY, Bench, Event, Sizes, Training, job_of, on_ray, on_torchrun, seconds, steady


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tiny", action="store_true", help="see that it runs; the figures say nothing")
    parser.add_argument("--write", metavar="MACHINE")
    options = parser.parse_args()
    sizes = TINY if options.tiny else Sizes()
    tables: list[Table] = []
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), sizes, options.repeats)
        for part in options.parts:
            tables += PARTS[part](bench)
    title = "Training on Ray: rate, scaling, start, failures and checkpoints"
    record.keep_tables("cluster-train", "cluster_train", options.write, title, tables)


@dataclass(frozen=True)
class Side:
    """A way to train: by Ray or by torchrun, on so many ranks, bound to as many cores or beside an idle Ray or not."""

    system: str
    ranks: int
    is_bound: bool = False
    is_beside_ray: bool = False

    def rate(self, bench: Bench, member: str, changes: dict[str, Any]) -> tuple[float, float | None]:
        """Train; return steady images a second, and what share of a profiled epoch all-reduces took, if one was."""
        cores = sorted(os.sched_getaffinity(0))[: self.ranks] if self.is_bound else []
        if self.system == "Ray":
            return steady(on_ray(bench, member, changes, self.ranks, cores)), None
        with idle_ray() if self.is_beside_ray else contextlib.nullcontext():
            found = on_torchrun(bench, member, changes, self.ranks, cores, profiled=self == TWO_BOUND)
        return steady(found["epochs"]), found.get("all_reduce")


RAY, TORCHRUN, BESIDE_RAY = Side("Ray", 2), Side("torchrun", 2), Side("torchrun", 2, is_beside_ray=True)
ONE_BOUND, TWO_BOUND = Side("torchrun", 1, is_bound=True), Side("torchrun", 2, is_bound=True)
RAY_ON_ONE_CORE = Side("Ray", 1, is_bound=True)
RATES_OF = "Images a second over all ranks, without the first epoch: median (each repeat)."


@dataclass(frozen=True)
class Rates:
    """What one member came to: its name and sizes, images a second of each side and repeat, shares of all-reduces."""

    label: str
    by_side: dict[Side, list[float]]
    shares: list[float]


def _rates(bench: Bench, sides: Sequence[Side]) -> Iterator[Rates]:
    """Train every member of the bench on every side, in turns."""
    for member, changes in bench.sizes.rate.items():
        settings = bench.settings(member, changes)
        found = Rates(
            f"{member}, {settings.crop_px} px, batch {settings.global_batch}", {side: [] for side in sides}, []
        )
        for repeat in range(bench.repeats):
            for side in sides if repeat % 2 == 0 else reversed(sides):
                rate, share = side.rate(bench, member, changes)
                found.by_side[side].append(rate)
                found.shares.extend([] if share is None else [share])
                print(f"repeat {repeat}: {member}, {side}: {rate:.1f} images/s", file=sys.stderr, flush=True)
        yield found


def measure_rate(bench: Bench) -> list[Table]:
    """Return the table of Ray beside torchrun."""
    rows = []
    for found in _rates(bench, (RAY, TORCHRUN, BESIDE_RAY)):
        ray, torchrun, beside = (found.by_side[side] for side in (RAY, TORCHRUN, BESIDE_RAY))
        rates = [_rate(each) for each in (ray, torchrun, beside)]
        rows.append([found.label, *rates, _ratios(ray, torchrun), _ratios(ray, beside)])
    headers = [
        "member, crop, batch",
        "Ray Train, images/s",
        "torchrun, images/s",
        "torchrun beside an idle Ray, images/s",
        "Ray / torchrun: median (each pair)",
        "Ray / torchrun beside an idle Ray",
    ]
    note = (
        f"{RATES_OF} Ray with checkpoints and news as users run it; one thread of torch a rank on all sides. The ranks "
        "have all cores; an idle Ray takes its part of them from torchrun, too."
    )
    return [Table("Two ranks on Ray beside the same loop under torchrun (gloo)", headers, rows, note)]


def measure_scaling(bench: Bench) -> list[Table]:
    """Return the table of one rank beside two."""
    rows = []
    for found in _rates(bench, (ONE_BOUND, TWO_BOUND, RAY_ON_ONE_CORE, RAY)):
        reduced = f"{statistics.median(found.shares):.1%}"
        for name, one, two, share in (
            ("torchrun, ranks bound to cores", found.by_side[ONE_BOUND], found.by_side[TWO_BOUND], reduced),
            ("Ray; with one rank all of it on one core", found.by_side[RAY_ON_ONE_CORE], found.by_side[RAY], "-"),
        ):
            efficiency = _ratios(two, [2 * rate for rate in one])
            rows.append([found.label, name, _rate(one), _rate(two), efficiency, share])
    headers = [
        "member, crop, batch",
        "under",
        "1 rank, images/s",
        "2 ranks, images/s",
        "efficiency: median (each)",
        "of an epoch in gloo's all-reduces, waiting for the other rank included",
    ]
    note = f"{RATES_OF} The global batch is the same, so each of two ranks has half of it."
    return [Table("One rank on one core, two ranks on two", headers, rows, note)]


def _rate(rates: list[float]) -> str:
    return f"{statistics.median(rates):.1f} ({', '.join(f'{rate:.1f}' for rate in rates)})"


def _ratios(first: list[float], second: list[float]) -> str:
    ratios = [a / b for a, b in zip(first, second, strict=True)]
    return f"{statistics.median(ratios):.3f} ({', '.join(f'{ratio:.3f}' for ratio in ratios)})"


PHASES = {
    "command has imported": "the command's imports",
    "Ray is asked for": "settings, plan of the runs",
    "Ray is there": "Ray's start",
    "run begins": "board, journal",
    "rank begins": "controller, placement, workers, process group (their import of torch included)",
    "rank has imported": "imports of a rank: timm, smp and the rest",
    "data are open": "manifest, index, tiles of the fold",
    "start is chosen": "checkpoint to begin at, told to all ranks and to the driver",
    "net is built": "net built",
    "step begins": "wrapped for ranks; first samples",
    "step ends": "first step",
}
"""What ends each phase of a start, and what the phase is."""


def phases(started: float, events: list[Event]) -> dict[str, float]:
    """Return the seconds of each phase of a start."""
    first: dict[str, float] = {}
    for event in events:
        first.setdefault(event["what"], event["at"])
    step = next(event for event in events if event["what"] == "step")
    first |= {"step begins": step["begun"], "step ends": step["at"]}
    # The processes of all ranks begin; rank 0 is the one whose step it is.
    first["rank begins"] = next(each["at"] for each in events if each["what"] == "rank begins" and each["rank"] == 0)
    ends = [started, *(first[end] for end in PHASES)]
    return {name: b - a for name, a, b in zip(PHASES.values(), ends, ends[1:], strict=False)}


def measure_start(bench: Bench) -> list[Table]:
    """Return the table of what starts take."""
    found: list[dict[str, float]] = []
    for repeat in range(bench.repeats):
        folder = bench.new_folder()
        job = job_of(bench, folder, bench.sizes.member, bench.sizes.failing | {"crops_per_tile": 8, "epochs": 1}, 2)
        training = Training(job, folder, watched=True)
        training.start()
        training.wait()
        found.append(phases(training.started, training.events))
        shutil.rmtree(folder)
        print(f"repeat {repeat}: start: {sum(found[-1].values()):.1f} s", file=sys.stderr, flush=True)
    totals = [sum(each.values()) for each in found]
    rows = [[name, *seconds([each[name] for each in found]).split(" ", 1)] for name in PHASES.values()]
    rows.append(["all", *seconds(totals).split(" ", 1)])
    note = f"{bench.sizes.member} on two ranks, a Ray of the command's own. Of rank 0, by the clock of the machine."
    return [Table("From the command to the end of its first step", ["phase", "s", "each"], rows, note)]


def measure_checkpoints(bench: Bench) -> list[Table]:
    """Return the table of what steps wait for checkpoints."""
    rows = []
    for member, changes in bench.sizes.paused.items():
        settings = bench.settings(member, changes)
        folder = bench.new_folder()
        found = checkpoint_pause.measure(settings, bench.shards, folder, bench.sizes.num_checkpoints)
        shutil.rmtree(folder)
        beside = f"{statistics.median(found.beside):.3f}" if found.beside else "-"
        rows.append(
            [
                f"{member}, {settings.crop_px} px, batch {settings.global_batch}",
                f"{found.num_bytes / 1e6:.1f}",
                f"{statistics.median(found.pauses) * 1e3:.1f} ({max(found.pauses) * 1e3:.1f})",
                f"{statistics.median(found.writes):.2f} ({max(found.writes):.2f})",
                f"{statistics.median(found.quiet):.3f}",
                beside,
                f"{found.slower_s:.2f}",
                f"{found.share(60):.2%}",
                f"{found.share(600):.3%}",
            ]
        )
        print(f"checkpoints of {member}: {rows[-1]}", file=sys.stderr, flush=True)
    headers = [
        "member, crop, batch",
        "MB of state",
        "pause, ms: median (longest)",
        "written beside the steps, s: median (longest)",
        "a step beside no write, s",
        "beside a write, s",
        "steps longer by, s a checkpoint",
        "of an interval of 1 min",
        "of 10 min (default)",
    ]
    note = (
        f"One rank, all its threads on one core; {bench.sizes.num_checkpoints} checkpoints to a local disk. "
        "The share is of the pause and of what the steps beside the write take longer."
    )
    return [Table("What the steps wait for checkpoints", headers, rows, note)]


PARTS: dict[str, Callable[[Bench], list[Table]]] = {
    "rate": measure_rate,
    "scaling": measure_scaling,
    "start": measure_start,
    "failures": cluster_failures.measure,
    "checkpoints": measure_checkpoints,
}


if __name__ == "__main__":
    main()
