"""Train and score small ensembles on the real labelled chips, beside a threshold on blue fitted on the same chips.

`python -m tests.bench.real_chips PART --archive ../shared/data/labelled --out DIR`, where PART is `folds`
(cross-validation by places inside the split train: where settings are chosen), `val` (trained on train, tested on val)
or `all27` (cross-validation over the places of all chips). No Ray: one process a net, of one thread, `--processes` at a
time. The same command goes on where it was stopped; what is finished stays, as long as settings, chips and the files
that settings name are the same.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raytrain.config import MemberSettings, change, parse_changes
from raytrain.errors import EXIT_NOT_FINISHED, ConfigError, RaytrainError
from raytrain.imagery.normalisation import check_bands
from raytrain.recipes import members
from raytrain.scoring.ensemble import use_threads
from tests.bench import record
from tests.bench.curves import Line, draw
from tests.bench.real_data import RealChips, open_chips, part_folds
from tests.bench.real_runs import Run, curve, is_finished, plan_run, probabilities, tried
from tests.bench.real_scores import Maps, chip_table, score_blue, score_nets, score_table

TITLES = {
    "folds": "Cross-validation inside the split train of the real chips",
    "val": "Trained on the split train of the real chips, tested on val",
    "all27": "Cross-validation over the places of all real chips",
}
FOLDS = 5
NOT_BY_SET = {"name": "it says which member it is", "seed": "seeds are given by --seeds"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; end with the exit code of what raytrain raised."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except RaytrainError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def _run(options: argparse.Namespace) -> None:
    if options.part != "folds":
        print("WARNING: this scores chips of the split val; each look is to be logged in infra/log.md", flush=True)
    if options.watch and options.part != "folds":
        raise ConfigError("--watch looks at the chips of the test after every few epochs; only folds allows that")
    if options.folds is not None and options.part == "val":
        raise ConfigError("--folds is for a cross-validation; val has the two splits of the chips")
    out: Path = options.out
    use_threads(1)  # in the environment, too, for the processes to come
    chosen = changed_members(options.members, options.set)
    found = open_chips(options.archive, out)
    folds = part_folds(options.part, found.chips, options.folds or FOLDS)
    runs = [
        plan_run(change(member, {"seed": seed}), fold, found.shards, out, options.watch)
        for seed in options.seeds
        for fold in folds
        for member in chosen
    ]
    failed = train_all([run for run in runs if not is_finished(run)], options.processes)
    write_curves(runs, out, options.part)
    if failed:
        for name, text in failed.items():
            print(f"{name}: {text}", file=sys.stderr)
        sys.exit(EXIT_NOT_FINISHED)
    report(runs, found, out, options.part, options.write)


def changed_members(names: Sequence[str], assignments: Sequence[str]) -> list[MemberSettings]:
    """Return the members by name, changed by `path=value` each, or by `NAME:path=value` one of them.

    Raises `ConfigError` for unknown names and settings, and for what is not to be changed here.
    """
    chosen = members(tuple(names))
    for assignment in assignments:
        before, colon, after = assignment.partition(":")
        is_for_one = bool(colon) and "=" not in before
        if is_for_one and before not in [member.name for member in chosen]:
            raise ConfigError(f"--set {assignment}: no member {before!r} is trained")
        changes = parse_changes([after if is_for_one else assignment])
        for path in NOT_BY_SET.keys() & changes.keys():
            raise ConfigError(f"--set {assignment}: {path} is no setting to change: {NOT_BY_SET[path]}")
        chosen = [change(each, changes) if before == each.name or not is_for_one else each for each in chosen]
    for member in chosen:
        check_bands(member.normalisation, member.bands)
    return chosen


def train_all(runs: Sequence[Run], processes: int) -> dict[str, str]:
    """Train `runs`, `processes` at a time (with 1 in this process); return why those that failed did, by name.

    One that fails does not stop the others.
    """
    if processes == 1:
        texts = {run.name: tried(run) for run in runs}
    else:
        context = multiprocessing.get_context("spawn")  # a process with threads must not be forked
        with ProcessPoolExecutor(processes, mp_context=context, max_tasks_per_child=1) as pool:
            waiting = {pool.submit(tried, run): run.name for run in runs}
            texts = {waiting[each]: each.result() for each in as_completed(waiting)}
    return {name: text for name, text in texts.items() if text is not None}


def gather(runs: Sequence[Run]) -> dict[tuple[str, int], Maps]:
    """Return what the nets of each (member, seed) predicted over all folds; each chip comes from one fold."""
    maps: dict[tuple[str, int], dict[int, NDArray[np.float32]]] = {}
    for run in runs:
        known = maps.setdefault((run.member.name, run.member.seed), {})
        found = probabilities(run)
        assert not known.keys() & found.keys(), "a chip is tested in one fold"
        known.update(found)
    return dict(maps)


def report(runs: Sequence[Run], found: RealChips, out: Path, part: str, machine: str | None) -> None:
    """Print the scores and write them as CSV; with `machine`, as dated files in infra/benchmarks, too."""
    blue_chips = found.blue()
    labels = [label for _, label in blue_chips]
    folds = list(dict.fromkeys(run.fold for run in runs))
    scored = [*score_nets(gather(runs), labels), score_blue(folds, blue_chips)]
    for suffix, title, (headers, rows) in (
        ("", TITLES[part], score_table(scored, found.chips)),
        ("-chips", f"{TITLES[part]}: IoU of each chip", chip_table(scored, found.chips, labels)),
    ):
        _write_csv(out / f"{part}{suffix}.csv", headers, rows)
        record.keep(f"real_chips-{part}{suffix}", machine, title, headers, rows)


def write_curves(runs: Sequence[Run], out: Path, part: str) -> None:
    """Write the curves of all runs, as far as they are, as `PART-curves.csv` and `PART-curves.png`."""
    curves = [(run, curve(run)) for run in runs]
    rows = [
        [run.member.name, run.fold.name, str(run.member.seed), *("" if v is None else str(v) for v in values)]
        for run, epochs in curves
        for values in (asdict(epoch).values() for epoch in epochs)
    ]
    headers = ["member", "fold", "seed", "epoch", "loss", "learning_rate", "images_per_s", "wait_s", "watched_iou"]
    _write_csv(out / f"{part}-curves.csv", headers, rows)
    losses = [Line(run.member.name, tuple((each.epoch + 1, each.loss) for each in epochs)) for run, epochs in curves]
    watched = [
        Line(run.member.name, tuple((e.epoch + 1, e.watched_iou) for e in epochs if e.watched_iou is not None))
        for run, epochs in curves
    ]
    if rows:
        panels = [("loss, by epoch", losses), ("pooled IoU on the chips of the test, by epoch", watched)]
        draw(panels, out / f"{part}-curves.png")


def _write_csv(path: Path, headers: list[str], rows: list[list[str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([headers, *rows])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(TITLES))
    parser.add_argument("--archive", type=Path, required=True, help="the chips, with provenance.csv")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--members", nargs="+", default=["small"], metavar="NAME")
    parser.add_argument("--set", nargs="+", default=[], metavar="[NAME:]SETTING=VALUE", action="extend")
    parser.add_argument("--seeds", type=_integers, default=[0], metavar="0,1")
    parser.add_argument("--folds", type=int, metavar="N", help=f"of a cross-validation ({FOLDS})")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--watch", type=int, default=0, metavar="N", help="folds: IoU on the test after N epochs each")
    parser.add_argument("--write", metavar="MACHINE")
    return parser


def _integers(text: str) -> list[int]:
    return list(dict.fromkeys(int(part) for part in text.split(",")))


if __name__ == "__main__":
    main()
