"""The page of a search: who won and how sure that is, drawings, every trial with its cost. Must not know its place."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from raytrain.config import flat
from raytrain.evaluation.intervals import FEW_LOCATIONS
from raytrain.evaluation.page import Cell, Figure, Page, Shown, Table, version_facts
from raytrain.search.figures import plots_of
from raytrain.search.finals import verdict_text
from raytrain.search.outcome import Results
from raytrain.search.records import ORIGINAL, SearchSettings, Trial
from raytrain.search.space import WEIGHTS, parse_distribution, settings_of

_DASH = "–"  # noqa: RUF001  # a dash, for a value that there is none of
STATES = {
    "finished": "finished",
    "stopped": "stopped early",
    "diverged": "diverged",
    "failed": "failed",
    "running": "cut off",
}
"""What a person reads of a state."""


def page_of(settings: SearchSettings, results: Results) -> Page:
    """Return the page of a search as far as it has come."""
    space = {path: parse_distribution(path, text) for path, text in settings.space.items()}
    count = len([trial for trial in results.trials if trial.kind == "search"])
    best = results.best
    verdict = f"{verdict_text(results.verdict)}." if results.verdict else f"{best.why}." if best else "No score so far."
    few = ""
    if results.verdict and results.verdict.num_locations < FEW_LOCATIONS:
        few = f" With fewer than {FEW_LOCATIONS} locations the interval is a rough one."
    return Page(
        title=f"Search for {settings.member.name}",
        subtitle=f"{count} settings tried; trial {best.number if best else _DASH} is in best.toml.",
        figures=_figures(results),
        note=verdict[0].upper() + verdict[1:] + few,
        parts=[
            *plots_of(space, results.trials),
            *_finals(settings, results),
            _best_table(settings, results),
            _trials(settings, results.trials),
        ],
        facts=[*_facts(settings, results), *version_facts()],
    )


def _figures(results: Results) -> list[Figure]:
    tried = {trial.number: trial for trial in results.trials if trial.kind == "search"}
    scored = [trial for trial in tried.values() if trial.is_usable]
    if not scored:
        return []
    best = max(scored, key=lambda trial: (trial.score or 0.0, -trial.number))
    original = tried[ORIGINAL].score if ORIGINAL in tried else None
    figures = [
        Figure(
            "Best of the search", f"{best.score:.4f}", f"Trial {best.number}, on the fold that trials are judged by."
        ),
        Figure("Original", _or_dash(original), "The member's own settings, trial 0, on the same fold."),
    ]
    verdict = results.verdict
    if verdict is not None and verdict.difference is not None:
        found = verdict.difference
        text = f"IoU by location, over {verdict.num_locations} locations kept back."
        interval = f"{found.low:+.4f} to {found.high:+.4f}, 95 %"
        figures.append(Figure("Winner minus original", f"{found.value:+.4f}", text, interval))
    hours = Figure("Cost", f"{results.rank_hours:.2f} h", "Rank-hours of all trials: GPU-hours where ranks have GPUs.")
    return [*figures, hours]


def _finals(settings: SearchSettings, results: Results) -> list[Table]:
    if not results.final_scores:
        return []
    rows: list[list[Cell]] = [
        [_named(each.number), each.validation, each.kept_back, *each.by_seed.values()] for each in results.final_scores
    ]
    headers = ["Setting", "Validation fold", f"Fold {settings.kept_back}, kept back"]
    headers += [f"with seed {seed}" for seed in results.final_scores[0].by_seed]
    caption = (
        "Trained to the end on all tiles, with the same seeds. The validation fold chooses, the one that no trial has "
        "seen judges."
    )
    return [Table("Finalists", headers, rows, caption)]


def _best_table(settings: SearchSettings, results: Results) -> Table:
    rows: list[list[Cell]] = []
    if results.best is not None:
        ours, theirs = (_trained(settings, point) for point in (results.best.point, None))
        rows = [[path, _text(ours[path]), _text(theirs[path])] for path in settings.space]
    return Table("The setting in best.toml", ["Setting", "Best", "Original"], rows)


def _trained(settings: SearchSettings, point: dict[str, Any] | None) -> dict[str, Any]:
    return flat(settings.member if point is None else settings_of(settings.member, point))


def _trials(settings: SearchSettings, trials: Sequence[Trial]) -> Table:
    paths = list(settings.space)
    headers = ["Trial", "State", "Score", "Best epoch", "Epochs", "Time", "Training", *map(_short, paths), "Cause"]
    ordered = sorted(trials, key=lambda each: (each.kind != "search", -(each.score or 0.0), each.number, each.seed))
    rows: list[list[Cell]] = []
    for trial in ordered:
        name = (
            _named(trial.number) if trial.kind == "search" else f"{_named(trial.number)}, seed {trial.seed}, to the end"
        )
        share = trial.training_s / trial.seconds if trial.seconds else 0.0
        cells: list[Cell] = [
            name,
            STATES[trial.state],
            trial.score,
            None if trial.best is None else trial.best.epoch,
            Shown(len(trial.epochs), f"{len(trial.epochs)} of {trial.num_epochs}"),
            Shown(trial.seconds, f"{trial.seconds:.0f} s"),
            Shown(share, f"{share:.0%}"),
        ]
        cause = "; ".join(filter(None, [trial.cause, *(f"restarted: {each}" for each in trial.restarts)]))
        rows.append([*cells, *(_cell(trial.point[path]) for path in paths), cause])
    caption = "Weights of the loss as they were drawn; they are scaled to the sum of the original's for training."
    return Table("All trials", headers, rows, caption if set(paths) & set(WEIGHTS) else "")


def _facts(settings: SearchSettings, results: Results) -> list[tuple[str, str]]:
    states = itertools.groupby(sorted(trial.state for trial in results.trials))
    training = sum(trial.training_s for trial in results.trials)
    spent = sum(trial.seconds for trial in results.trials)
    stopping = settings.stopping
    facts = [
        ("Trials", ", ".join(f"{len(list(group))} {STATES[state]}" for state, group in states)),
        (
            "Time",
            f"{results.seconds / 60:.1f} min; trials spent {training / spent if spent else 0:.1%} of theirs training",
        ),
        ("Searched by", f"{settings.method}, seed {settings.seed}"),
        (
            "Stopped early",
            f"ASHA from epoch {stopping.grace_epochs} on, 1 of {stopping.reduction}" if stopping else "no",
        ),
        ("Epochs of a trial", str(settings.trial_epochs)),
        ("Share of tiles", f"{settings.tiles_fraction:g} to train, {settings.validation_fraction:g} to validate"),
        ("Folds", f"judged by {settings.fold}, kept back {settings.kept_back}"),
        ("Shards", settings.shards),
    ]
    return [*facts, *((path, text) for path, text in settings.space.items())]


def _named(number: int) -> str:
    return "original" if number == ORIGINAL else f"trial {number}"


def _short(path: str) -> str:
    return path.rpartition(".")[2]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "off" if value == 0 else f"{value:.4g}"
    return str(value)


def _cell(value: Any) -> Cell:
    """Return the value of a setting, sorted as a number if it is one."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Shown(value, _text(value)) if is_number else None if value is None else _text(value)


def _or_dash(value: float | None) -> str:
    return _DASH if value is None else f"{value:.4f}"
