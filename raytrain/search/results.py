"""What a search leaves: `best.toml` for `train --config`, `trials.parquet`, `report.html`. Must not know who trains."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w

from raytrain import storage
from raytrain.config import MemberSettings, flat
from raytrain.evaluation.html import render_page
from raytrain.search.finals import final_scores, finalists, judge, verdict_text
from raytrain.search.outcome import Best, Results
from raytrain.search.page import page_of
from raytrain.search.records import ORIGINAL, Trial
from raytrain.search.search import Search
from raytrain.search.space import Point, settings_of

BEST_FILE, TRIALS_FILE, REPORT_FILE = "best.toml", "trials.parquet", "report.html"


def best_of(search: Search) -> Best | None:
    """Return the setting to train with: the winner of the finals, or before there is one the best trial.

    Where the winner turned out worse than the original, the original's.
    """
    trials = search.trials
    points = {trial.number: trial.point for trial in trials if trial.kind == "search"}
    verdict = judge(trials, search.finals)
    if verdict is None:
        scored = [trial for trial in trials if trial.kind == "search" and trial.is_usable]
        if not scored:
            return None
        best = max(scored, key=lambda each: (each.score or 0.0, -each.number))
        count = f"the best of {len(scored)} trials on the validation fold ({best.score:.4f})"
        why = f"{count}, not compared on places kept back"
        return Best(best.number, best.point, why)
    number = ORIGINAL if verdict.words == "worse" else verdict.winner
    return Best(number, points[number], verdict_text(verdict))


def write_best(folder: str, search: Search, changes: Mapping[str, Any]) -> str:
    """Write `best.toml`, if there is a best, and return where it lies.

    It has what the search changes, and the `changes` that the command made beside, so that `train --config` trains
    exactly what was tried.
    """
    uri = storage.join(folder, BEST_FILE)
    best = best_of(search)
    if best is not None:
        member = search.settings.member
        text = f"# Trial {best.number} of a search for {member.name}: {best.why}.\n"
        text += tomli_w.dumps(_tree(_changed(member, best.point, changes)))
        storage.write_bytes(uri, text.encode())
    return uri


def _changed(member: MemberSettings, point: Point, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is set: by the point, and by the command; TOML has no null, which stands for "not given"."""
    found = flat(settings_of(member, point))
    paths = dict.fromkeys([*changes, *point])
    paths |= dict.fromkeys(path for path, value in flat(member).items() if found.get(path) != value)
    return {path: found[path] for path in paths if found.get(path) is not None}


def _tree(values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in values.items():
        *parents, last = path.split(".")
        target = tree
        for step in parents:
            target = target.setdefault(step, {})
        target[last] = value
    return tree


def write_results(folder: str, search: Search, changes: Mapping[str, Any]) -> Results:
    """Write all that a search leaves, as far as it has come, and return it."""
    trials = search.trials
    results = Results(
        trials=trials,
        best=best_of(search),
        verdict=judge(trials, search.finals),
        final_scores=final_scores(trials, finalists(trials, search.finals)),
        seconds=search.seconds,
        rank_hours=search.rank_hours,
        best_uri=write_best(folder, search, changes),
        trials_uri=storage.join(folder, TRIALS_FILE),
        report_uri=storage.join(folder, REPORT_FILE),
    )
    storage.write_bytes(results.trials_uri, _parquet(search.settings.member, trials))
    page = page_of(search.settings, results)
    storage.write_bytes(results.report_uri, render_page(page).encode())
    return results


def _parquet(member: MemberSettings, trials: Sequence[Trial]) -> bytes:
    """Return a table of all trials: a row each, a column for each setting that was searched, as it was trained."""
    rows = []
    for trial in trials:
        row: dict[str, Any] = {
            "name": trial.name,
            "kind": trial.kind,
            "number": trial.number,
            "seed": trial.seed,
            "state": trial.state,
            "cause": trial.cause,
            "score": trial.score,
            "best_epoch": None if trial.best is None else trial.best.epoch,
            "num_epochs": len(trial.epochs),
            "seconds": trial.seconds,
            "training_s": trial.training_s,
            "num_ranks": trial.num_ranks,
            "restarts": list(trial.restarts),
            "scores": [each.score for each in trial.epochs],
            "losses": [each.loss for each in trial.epochs],
        }
        row["kept_back_iou"] = (
            None if not trial.judged else sum(each.iou for each in trial.judged.values()) / len(trial.judged)
        )
        trained = flat(settings_of(member, trial.point))
        rows.append(row | {path: _cell(trained[path]) for path in trial.point})
    sink = pa.BufferOutputStream()
    schema = pa.schema(
        [
            ("name", pa.string()),
            ("kind", pa.string()),
            ("number", pa.int32()),
            ("seed", pa.int64()),
            ("state", pa.string()),
            ("cause", pa.string()),
            ("score", pa.float64()),
            ("best_epoch", pa.int32()),
            ("num_epochs", pa.int32()),
            ("seconds", pa.float64()),
            ("training_s", pa.float64()),
            ("num_ranks", pa.int32()),
            ("restarts", pa.list_(pa.string())),
            ("scores", pa.list_(pa.float64())),
            ("losses", pa.list_(pa.float64())),
            ("kept_back_iou", pa.float64()),
        ]
    )
    paths = list(trials[0].point) if trials else []
    for path in paths:
        schema = schema.append(pa.field(path, _type([row[path] for row in rows])))
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    return bytes(sink.getvalue().to_pybytes())


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float | None) else json.dumps(value)


def _type(values: Sequence[Any]) -> pa.DataType:
    found = [value for value in values if value is not None]
    if any(isinstance(value, str) for value in found):
        return pa.string()
    if found and all(isinstance(value, bool) for value in found):
        return pa.bool_()
    if found and all(isinstance(value, int) for value in found):
        return pa.int64()
    return pa.float64()
