"""How much of the time goes by inside the networks: of 100 chips and of a scene in one process, and of Ray around it.

One process does what an actor does, two units at a time; on Ray the same units go to one actor. What Ray costs is the
time from the first unit to the last against that of the one process: starting Ray and loading nets happen once.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch

from raytrain.cluster.pool import UNITS_IN_FLIGHT
from raytrain.cluster.score import ScoreJob, score, scoring_of
from raytrain.cluster.session import Cluster
from raytrain.config import ScoreSettings
from raytrain.imagery import synth
from raytrain.scoring.ensemble import Ensemble, use_threads
from raytrain.scoring.ledger import Known, Standing
from raytrain.scoring.perform import perform
from raytrain.scoring.planning import Listing
from raytrain.scoring.schedule import Schedule, Task
from raytrain.scoring.units import Answer, Unit
from raytrain.scoring.work import Work
from raytrain.tiles.selection import Selection
from tests.bench.record import Table, keep_tables
from tests.making import make_ensemble


@dataclass(frozen=True)
class Measured:
    """Seconds from the first unit to the last, and of them inside the networks; megapixels."""

    wall_s: float
    network_s: float
    megapixels: float


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--members", nargs="+", default=["v2b0-3b"], help="random weights; `all` are the recipe's eight"
    )
    parser.add_argument("--chips", type=int, default=100, help="0 for none")
    parser.add_argument("--chip-px", type=int, default=512)
    parser.add_argument("--scene-px", type=int, default=3000, help="0 for none")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--with-ray", action="store_true", help="the same on one actor of a local Ray, in turn")


def main(options: argparse.Namespace) -> None:
    """Measure, print and keep the tables."""
    use_threads(options.threads)
    settings = ScoreSettings(threads=options.threads, baseline="before-04.00")
    with tempfile.TemporaryDirectory(prefix="raytrain-bench-") as temporary:
        folder = Path(temporary)
        archives = []
        if options.chips:
            archives.append("chips")
            synth.write_chips(folder / "chips", count=options.chips, size_px=options.chip_px, seed=0, num_places=10)
        if options.scene_px:
            archives.append("scenes")
            synth.write_scenes(folder / "scenes", count=1, size_px=options.scene_px, seed=0)
        ensemble = make_ensemble(folder / "ensemble", options.members, decoder_channels=[256, 128, 64, 32, 16])
        rows, ray_rows = [], []
        for name in archives:
            alone: list[Measured] = []
            on_ray: list[Measured] = []
            for run in range(options.runs):
                job = ScoreJob(
                    src=str(folder / name), dst=str(folder / f"{name}{run}"), ensemble=ensemble, settings=settings
                )
                alone.append(one_process(job))
                if options.with_ray:
                    on_ray.append(with_ray(job.model_copy(update={"dst": f"{job.dst}-ray"})))
            rows.append([name, *_cells(alone)])
            if on_ray:
                ratio = statistics.median(r.wall_s / a.wall_s for r, a in zip(on_ray, alone, strict=True))
                ray_rows.append([name, *_cells(on_ray), f"{100 * (ratio - 1):+.1f} %"])
    sizes = {"chips": f"{options.chips} chips of {options.chip_px} px", "scenes": f"a scene of {options.scene_px} px"}
    what = ", ".join(sizes[name] for name in archives)
    nets = f"{', '.join(options.members)}, both flips"
    note = f"{what}; {nets}; {options.threads} threads; medians of {options.runs} runs."
    headers = ["what", "Mpx", "wall s", "in the networks, s", "share"]
    tables = [Table("One process", headers, rows, note)]
    if ray_rows:
        tables.append(Table("One actor on Ray, in turn with that", [*headers, "longer by"], ray_rows))
    keep_tables("score-pipeline", "score", options.machine, "Time inside the networks", tables)


def _cells(runs: Sequence[Measured]) -> list[str]:
    wall, network = (statistics.median(getattr(run, name) for run in runs) for name in ("wall_s", "network_s"))
    share = statistics.median(run.network_s / run.wall_s for run in runs)
    return [f"{runs[0].megapixels:.1f}", f"{wall:.1f}", f"{network:.1f}", f"{100 * share:.1f} %"]


def one_process(job: ScoreJob) -> Measured:
    """Do all units of `job` in this process, as an actor does them."""
    manifest, scoring = scoring_of(job)
    nets = Ensemble.load(job.ensemble, manifest, job.settings, torch.device("cpu"))
    known = Known(job.dst, scoring.digest(), Standing([]))
    units = list(Listing(job.src, job.dst, manifest.bands, job.settings, Selection(), known).units())
    work = Work(job.dst, scoring, nets)
    start = time.perf_counter()
    answers = _in_flight(units, work)
    pixels = sum(answer.pixels for answer in answers)
    return Measured(time.perf_counter() - start, nets.network_s, pixels / 1e6)


def _in_flight(units: list[Unit], work: Work) -> list[Answer]:
    schedule = Schedule(iter([units]), len(units))
    answers: list[Answer] = []
    running: dict[Future[Answer], Task] = {}
    with ThreadPoolExecutor(UNITS_IN_FLIGHT) as pool:
        while not schedule.is_over:
            while len(running) < UNITS_IN_FLIGHT and (task := schedule.take(alone=True)) is not None:
                running[pool.submit(perform, task.unit, work)] = task
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                answers.append(future.result())
                schedule.finished(running.pop(future), answers[-1])
    return answers


def with_ray(job: ScoreJob) -> Measured:
    """Do the same on Ray."""
    report = score(job, Cluster())
    assert not report.problems
    assert not report.unfinished
    return Measured(report.rate.wall_s, report.rate.network_s, report.rate.pixels / 1e6)
