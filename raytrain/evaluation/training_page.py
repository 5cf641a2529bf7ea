"""The page of a training: scores, curves, runs, locations, restarts, failures, settings.

Must not know Ray, where it is stored, or how a page is drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raytrain.config import flat
from raytrain.evaluation.intervals import FEW_LOCATIONS, LEVEL, Interval, trust_text
from raytrain.evaluation.page import (
    Bar,
    Cell,
    Comparison,
    Figure,
    Gallery,
    Page,
    Problems,
    Shown,
    Table,
    counted,
    version_facts,
)
from raytrain.evaluation.pictures import AGREEMENT_LEGEND
from raytrain.evaluation.report import EMPTY_UNION_TEXT
from raytrain.evaluation.results import Problem
from raytrain.evaluation.training_figures import training_plots
from raytrain.evaluation.training_results import Totals, TrainingResults, TrainingRun
from raytrain.storage import without_queries
from raytrain.training.progress import duration

SIDE_BY_SIDE = 4
"""Up to so many runs have a column each in the table of locations; of more, the lowest and the highest are shown."""


@dataclass(frozen=True)
class TilePictures:
    """Pictures of validation tiles, what could not be drawn, and, where there are none at all, why."""

    pictures: Sequence[Comparison] = ()
    problems: Sequence[Problem] = ()
    why_none: str = ""


def training_page(results: TrainingResults, tiles: TilePictures | None = None) -> Page:
    """Return the page of a training."""
    tiles = tiles or TilePictures()
    return Page(
        title=f"Training: {results.experiment}",
        subtitle=_subtitle(results),
        figures=_figures(results.totals, results.score_interval),
        note=" ".join(filter(None, [_score_note(results), without_queries(tiles.why_none)])),
        parts=[
            *training_plots(results.runs),
            _run_table(results.runs),
            _problems("Failed runs", [(run.name, run.failed) for run in results.runs if run.failed]),
            _restart_table(results.runs),
            _location_table(results),
            _gallery(tiles),
            _problems("Pictures that could not be made", [(each.subject, each.found) for each in tiles.problems]),
            _settings_table(results.runs),
        ],
        facts=[*_facts(results), *version_facts()],
    )


def _subtitle(results: TrainingResults) -> str:
    states = Counter(run.state for run in results.runs)
    open_runs = [f"{states[state]} {state}" for state in ("failed", "not finished", "not begun") if states[state]]
    members = len({run.member.name for run in results.runs})
    all_runs = f"{counted(len(results.runs), 'run')} of {counted(members, 'member')}"
    return f"{all_runs}: {', '.join(open_runs)}." if open_runs else f"{all_runs}, all done."


def _figures(totals: Totals, interval: Interval | None) -> list[Figure]:
    nets = Figure("Nets", f"{totals.num_done} of {totals.num_runs}", "Runs that are done, of all of this experiment.")
    restarts = "Attempts that ended before their run did."
    if totals.num_restarts:
        restarts = f"Attempts that ended before their run did; about {totals.lost_images:,} images were done again."
    speed = []
    if totals.images_per_s is not None and totals.wait_fraction is not None:
        speed = [
            Figure(
                "Images a second", f"{totals.images_per_s:,.1f}", "Of one run, while it takes steps; mean over all."
            ),
            Figure("Waiting for data", f"{totals.wait_fraction:.1%}", "Share of the time of all steps."),
        ]
    return [
        *_score_figures(totals, interval),
        nets,
        *speed,
        Figure("Restarts", str(totals.num_restarts), restarts),
        Figure("Time", duration(totals.seconds), "Of all runs together, as if one came after the other."),
    ]


def _score_figures(totals: Totals, interval: Interval | None) -> list[Figure]:
    """Return the validation scores; the interval, where there is one, is that of the score by location."""
    if totals.iou_location_weighted is None:
        return []
    of = f"Mean over {counted(totals.num_scored, 'run')}"
    by_location = Figure(
        "Validation IoU by location",
        f"{totals.iou_location_weighted:.4f}",
        f"{of}: each at its best epoch, each location counted once.",
        "" if interval is None else f"{interval.low:.4f} to {interval.high:.4f}, {LEVEL:.0%}",
    )
    if totals.iou_pooled is None:
        return [by_location]
    return [by_location, Figure("Pooled", f"{totals.iou_pooled:.4f}", f"{of}: all pixels at the same epochs.")]


def _score_note(results: TrainingResults) -> str:
    """Return what has to be known to read the scores, nothing where there are none."""
    if results.totals.iou_location_weighted is None:
        return "Nothing was validated, so there are no scores."
    rules = sorted({run.member.empty_union_rule for run in results.runs if run.score is not None})
    texts = [EMPTY_UNION_TEXT[rule] for rule in rules] if len(rules) == 1 else []
    texts.append(
        "The best epoch was chosen by these same locations, so its score is a little high for places never seen."
    )
    count = len(results.locations)
    if 0 < count < FEW_LOCATIONS:
        texts.append(trust_text(count))
    return " ".join(texts)


def _run_table(runs: Sequence[TrainingRun]) -> Table:
    are_all_done = all(run.state == "done" for run in runs)
    headers = ["Run", "Fold", *([] if are_all_done else ["State"]), "Best epoch"]
    headers += ["IoU by location", "Pooled", "Time", "Restarts", "Images done again"]
    rows: list[list[Cell]] = [
        [
            run.name,
            "none" if run.fold is None else str(run.fold),
            *([] if are_all_done else [run.state]),
            _epoch_of(run),
            _number(run.score),
            _number(run.score_pooled),
            Shown(run.seconds, duration(run.seconds)),
            len(run.restarts),
            _images_again(run),
        ]
        for run in runs
    ]
    return Table("Runs", headers, rows)


def _epoch_of(run: TrainingRun) -> Cell:
    if run.best_epoch is None:
        return Shown(0, f"- of {run.member.epochs}")
    return Shown(run.best_epoch, f"{run.best_epoch} of {run.member.epochs}")


def _number(value: float | None) -> Cell:
    return None if value is None else Shown(value, f"{value:.4f}")


def _images_again(run: TrainingRun) -> Cell:
    unknown = sum(each.lost_images is None for each in run.restarts)
    text = f"{run.lost_images:,}" if not unknown else f"{run.lost_images:,} and those of {unknown} unknown"
    return Shown(run.lost_images, text)


def _location_table(results: TrainingResults) -> Table:
    """Return one row a location, from the worst to the best."""
    runs = [run.name for run in results.runs if run.locations]
    side_by_side = runs if 1 < len(runs) <= SIDE_BY_SIDE else []
    rows: list[list[Cell]] = []
    for row in results.locations:
        ious = row.by_run.values()
        if side_by_side:
            each = [_number(row.by_run.get(name)) for name in side_by_side]
        else:
            each = [_number(min(ious)), _number(max(ious))] if len(runs) > 1 else []
        rows.append([row.name, Bar(row.iou), *each, row.num_chips])
    columns = side_by_side or (["Lowest", "Highest"] if len(runs) > 1 else [])
    unknown = [run.name for run in results.runs if run.score is not None and not run.locations]
    left_out = f" Of {', '.join(unknown)} they are not known." if unknown else ""
    return Table(
        heading="Validation locations, from worst to best",
        headers=["Location", "Mean IoU" if len(runs) > 1 else "IoU", *columns, "Tiles"],
        rows=rows,
        caption=f"At the best epoch of each run that was validated on them.{left_out}",
    )


def _gallery(tiles: TilePictures) -> Gallery:
    caption = "As a run's net alone predicts them, at its best epoch and without flips."
    return Gallery(tiles.pictures, AGREEMENT_LEGEND, "Validation tiles: worst, median and best", caption)


def _restart_table(runs: Sequence[TrainingRun]) -> Table:
    rows: list[list[Cell]] = [
        [
            run.name,
            each.kind,
            without_queries(each.cause),
            _number_of_seconds(each.seconds),
            f"epoch {each.epoch}, image {each.image:,}",
            Shown(-1, "unknown") if each.lost_images is None else Shown(each.lost_images, f"{each.lost_images:,}"),
        ]
        for run in runs
        for each in run.restarts
    ]
    headers = ["Run", "What", "Cause", "After", "Went on in", "Images done again"]
    return Table("Restarts", headers, rows, "After: the time of the run when the next attempt began.")


def _problems(heading: str, problems: Sequence[tuple[str, str]]) -> Problems:
    return Problems([Problem(subject=subject, found=without_queries(found)) for subject, found in problems], heading)


def _number_of_seconds(seconds: float | None) -> Cell:
    return None if seconds is None else Shown(seconds, duration(seconds))


def _settings_table(runs: Sequence[TrainingRun]) -> Table:
    """Return what differs between members, a column each."""
    settings = _settings(runs)
    columns = [run.member.name if _is_one(run, runs) else run.name for run in settings.values()]
    values = [flat(run.member) for run in settings.values()]
    rows: list[list[Cell]] = [
        [path, *(_text(each.get(path)) for each in values)] for path in _paths(values) if not _is_common(values, path)
    ]
    return Table("Settings that differ", ["Setting", *columns], rows)


def _facts(results: TrainingResults) -> list[tuple[str, str]]:
    values = [flat(run.member) for run in _settings(results.runs).values()]
    common = [(path, _text(values[0].get(path))) for path in _paths(values) if _is_common(values, path)]
    folds = sorted({-1 if run.fold is None else run.fold for run in results.runs})
    return [
        ("Shards", without_queries(results.shards)),
        ("Digest of the shards", results.shards_digest),
        ("Ensemble", results.ensemble_digest or "not whole yet"),
        ("Folds", ", ".join("none" if fold < 0 else str(fold) for fold in folds)),
        *common,
    ]


def _settings(runs: Sequence[TrainingRun]) -> dict[str, TrainingRun]:
    """Return one run for each distinct setting of a member."""
    found: dict[str, TrainingRun] = {}
    for run in runs:
        found.setdefault(run.member.digest(), run)
    return found


def _is_one(run: TrainingRun, runs: Sequence[TrainingRun]) -> bool:
    """Tell whether all runs of this member have the same settings."""
    return len({each.member.digest() for each in runs if each.member.name == run.member.name}) == 1


def _paths(values: Sequence[dict[str, Any]]) -> list[str]:
    return [path for path in dict.fromkeys(path for each in values for path in each) if path != "name"]


def _is_common(values: Sequence[dict[str, Any]], path: str) -> bool:
    return all(each.get(path) == values[0].get(path) for each in values)


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else without_queries(str(value))
