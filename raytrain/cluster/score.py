"""Bulk scoring with Ray Data: one row is one unit of work, actors hold the ensemble, and only small rows come back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import ray.data
from ray.data import ActorPoolStrategy

from raytrain.cluster import session
from raytrain.config import ScoreSettings, Settings, parse
from raytrain.errors import ConfigError, DataError, first_line
from raytrain.scoring.manifest import EnsembleManifest, read_manifest
from raytrain.scoring.units import (
    LedgerEntry,
    Scoring,
    Unit,
    check_destination,
    chip_units,
    claim_destination,
    finished_units,
    remove_masks,
    scene_units,
    score_unit,
)
from raytrain.tiles.archive import holds_chips, open_archive
from raytrain.tiles.selection import Selection, select_chips


class ScoreJob(Settings):
    """What to score with which ensemble, where to; `fold` is a number, `all`, or None for the lowest."""

    src: str
    dst: str
    ensemble: str
    fold: int | str | None = None
    settings: ScoreSettings = ScoreSettings()
    selection: Selection = Selection()


@dataclass(frozen=True)
class ScoreReport:
    """How many masks stand at the destination, how many of them were there before, and what could not be scored.

    `unfinished` says for a unit's id why it failed through no fault of its data: the same command tries it again.
    """

    num_masks: int
    num_skipped: int
    problems: list[DataError]
    unfinished: dict[str, str]


def score(
    job: ScoreJob, cluster: session.Cluster, on_progress: Callable[[int, int], None] | None = None
) -> ScoreReport:
    """Score every unit of `job` that is not done at the destination; see `raytrain.scoring.units`.

    What can't be scored has no mask, not even one from an earlier run.
    """
    manifest = read_manifest(job.ensemble).of_fold(job.fold)
    units, problems = _list_units(job, manifest.bands)
    scoring = Scoring(source=job.src, ensemble=manifest.nets_digest(), settings=job.settings)
    check_destination(job.dst, scoring, units)
    done = finished_units(job.dst, units)
    todo = [unit for unit in units if unit.unit_id not in done]
    entries = list(done.values())
    num_skipped = sum(len(entry.outputs) for entry in entries)
    unfinished: dict[str, str] = {}
    if todo:
        with session.joined(cluster, [job.src, job.dst, job.ensemble]):
            claim_destination(job.dst, scoring)
            found, unfinished = _run(job, manifest, todo, on_progress)
            entries += found
    remove_masks(job.dst, problems)
    for entry in entries:
        problems += [DataError(subject, what) for subject, what in entry.problems]
    return ScoreReport(sum(len(entry.outputs) for entry in entries), num_skipped, problems, unfinished)


def _list_units(job: ScoreJob, bands: tuple[str, ...]) -> tuple[list[Unit], list[DataError]]:
    if holds_chips(job.src):
        archive = select_chips(open_archive(job.src, bands, for_training=False), job.selection)
        return chip_units(archive.chips), list(archive.problems)
    if job.selection.where:
        raise ConfigError("--where chooses among chips; the source holds scenes")
    units = scene_units(job.src)
    if not units:
        raise ConfigError(
            f"{job.src}: nothing to score: no chips (<split>_features/<chip>/<band>.tif), no scenes (scenes/<id>.tif)"
        )
    return units, []


class _Scorer:
    """An actor: loads the ensemble once, scores units.

    What goes wrong is an answer, not an error: Ray Data would give up all other units for one.
    """

    def __init__(self, job: dict[str, Any], manifest: dict[str, Any], use_gpu: bool) -> None:
        # Here, since torch and timm take seconds to import and the driver does without.
        import torch

        from raytrain.scoring.ensemble import Ensemble, use_threads

        self._job = parse(ScoreJob, job)
        use_threads(self._job.settings.threads)
        device = torch.device("cuda" if use_gpu else "cpu")
        loaded = parse(EnsembleManifest, manifest)
        self._mistake = ""
        try:
            self._ensemble = Ensemble.load(self._job.ensemble, loaded, self._job.settings, device)
        except ConfigError as error:
            self._mistake = str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        answer = {"unit_id": "", "entry": "", "failure": "", "mistake": self._mistake}
        if self._mistake:
            return answer
        unit = Unit.model_validate_json(row["unit"])
        answer["unit_id"] = unit.unit_id
        try:
            answer["entry"] = score_unit(unit, self._job.dst, self._ensemble, self._job.settings).model_dump_json()
        except Exception as error:  # a unit's bulkhead: the others go on, the driver reports it
            logging.getLogger(__name__).warning("unit %s failed", unit.unit_id, exc_info=True)
            answer["failure"] = f"{type(error).__name__}: {first_line(error)}"
        return answer


def _run(
    job: ScoreJob, manifest: EnsembleManifest, todo: list[Unit], on_progress: Callable[[int, int], None] | None
) -> tuple[list[LedgerEntry], dict[str, str]]:
    """Score `todo` on a pool of actors; return the entries, and why the other units failed, by unit id.

    An actor takes a GPU, or else `threads` CPUs, with a CPU kept free: a pool that takes every one hangs for good when
    a node is lost.
    """
    gpus = session.num_gpus()
    cpus_each = min(job.settings.threads, max(1, session.num_cpus() - 1))
    most = gpus or max(1, (session.num_cpus() - 1) // cpus_each)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    rows: Any = ray.data.from_items([{"unit": unit.model_dump_json()} for unit in todo], override_num_blocks=len(todo))
    scored = rows.map(
        _Scorer,
        fn_constructor_args=(job.model_dump(mode="json"), manifest.model_dump(mode="json"), gpus > 0),
        compute=ActorPoolStrategy(min_size=1, max_size=min(most, len(todo))),
        num_gpus=1 if gpus else None,
        num_cpus=None if gpus else cpus_each,
    )
    entries: list[LedgerEntry] = []
    unfinished: dict[str, str] = {}
    for row in scored.iter_rows():
        if row["mistake"]:
            raise ConfigError(row["mistake"])
        if row["failure"]:
            unfinished[row["unit_id"]] = row["failure"]
        else:
            entries.append(LedgerEntry.model_validate_json(row["entry"]))
        if on_progress is not None:
            on_progress(len(entries) + len(unfinished), len(todo))
    return entries, unfinished
