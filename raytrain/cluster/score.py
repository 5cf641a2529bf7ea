"""Bulk scoring with Ray Data: one row is one unit of work, actors hold the ensemble, and only small rows come back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import ray.data
from ray.data import ActorPoolStrategy

from raytrain.cluster import session
from raytrain.config import ScoreSettings, Settings, parse
from raytrain.errors import ConfigError, DataError
from raytrain.scoring.manifest import EnsembleManifest, read_manifest
from raytrain.scoring.units import (
    LedgerEntry,
    Scoring,
    Unit,
    chip_units,
    claim_destination,
    read_ledger,
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
    """How many masks stand at the destination, how many of them were there before, and what could not be scored."""

    num_masks: int
    num_skipped: int
    problems: list[DataError]


def score(
    job: ScoreJob, cluster: session.Cluster, on_progress: Callable[[int, int], None] | None = None
) -> ScoreReport:
    """Score every unit of `job` that the ledger at the destination does not have; see `raytrain.scoring.units`."""
    manifest = read_manifest(job.ensemble).of_fold(job.fold)
    units, problems = _list_units(job, manifest.bands)
    claim_destination(job.dst, Scoring(ensemble=manifest.nets_digest(), settings=job.settings))
    ledger = read_ledger(job.dst)
    todo = [unit for unit in units if not _is_done(unit, ledger)]
    entries = [ledger[unit.unit_id] for unit in units if _is_done(unit, ledger)]
    num_skipped = sum(len(entry.outputs) for entry in entries)
    if todo:
        with session.joined(cluster, [job.src, job.dst, job.ensemble]):
            entries += _run(job, manifest, todo, on_progress)
    for entry in entries:
        problems += [DataError(subject, found) for subject, found in entry.problems]
    return ScoreReport(sum(len(entry.outputs) for entry in entries), num_skipped, problems)


def _list_units(job: ScoreJob, bands: tuple[str, ...]) -> tuple[list[Unit], list[DataError]]:
    if holds_chips(job.src):
        archive = select_chips(open_archive(job.src, bands, with_labels=False), job.selection)
        return chip_units(archive.chips), list(archive.problems)
    if job.selection.where:
        raise ConfigError("--where chooses among chips; the source holds scenes")
    units = scene_units(job.src)
    if not units:
        raise ConfigError(
            f"{job.src}: nothing to score: no chips (<split>_features/<chip>/<band>.tif), no scenes (scenes/<id>.tif)"
        )
    return units, []


def _is_done(unit: Unit, ledger: dict[str, LedgerEntry]) -> bool:
    entry = ledger.get(unit.unit_id)
    return entry is not None and entry.unit == unit and not entry.problems


class _Scorer:
    """An actor: loads the ensemble once, scores units."""

    def __init__(self, job: dict[str, Any], manifest: dict[str, Any], use_gpu: bool) -> None:
        # Here, since torch and timm take seconds to import and the driver does without.
        import torch

        from raytrain.scoring.ensemble import Ensemble, use_threads

        self._job = parse(ScoreJob, job)
        use_threads(self._job.settings.threads)
        device = torch.device("cuda" if use_gpu else "cpu")
        loaded = parse(EnsembleManifest, manifest)
        self._ensemble = Ensemble.load(self._job.ensemble, loaded, self._job.settings, device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        unit = Unit.model_validate_json(row["unit"])
        entry = score_unit(unit, self._job.dst, self._ensemble, self._job.settings)
        return {"entry": entry.model_dump_json()}


def _run(
    job: ScoreJob, manifest: EnsembleManifest, todo: list[Unit], on_progress: Callable[[int, int], None] | None
) -> list[LedgerEntry]:
    """Score `todo` on a pool of actors: one a GPU, else one for each `threads` CPUs, with a CPU kept free.

    A pool that takes every CPU hangs for good when a node is lost.
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
    for row in scored.iter_rows():
        entries.append(LedgerEntry.model_validate_json(row["entry"]))
        if on_progress is not None:
            on_progress(len(entries), len(todo))
    return entries
