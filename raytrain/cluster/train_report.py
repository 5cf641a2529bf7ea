"""What a training leaves to be read: the page, its figures as JSON and Parquet, and the ensemble's model card.

Gathered from the run folders of an experiment, so that the runs of all its commands are in it. What stands already as
it would be written is left as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from raytrain import storage
from raytrain.cluster.fit import finished
from raytrain.cluster.history import Epoch, Restart, RunHistory, history_if_readable
from raytrain.cluster.runs import RUN_FILE, RunSettings
from raytrain.cluster.tile_pictures import read_pictures
from raytrain.config import Settings, parse
from raytrain.errors import ConfigError, first_line
from raytrain.evaluation.card import CARD_FILE, model_card
from raytrain.evaluation.card_scores import CardEvaluation
from raytrain.evaluation.html import render_page
from raytrain.evaluation.page import version_facts
from raytrain.evaluation.trained_on import describe_shards
from raytrain.evaluation.training_page import training_page
from raytrain.evaluation.training_results import (
    EpochResult,
    RestartResult,
    State,
    TrainingResults,
    TrainingRun,
    epochs_parquet,
    results_json,
)
from raytrain.scoring.manifest import ENSEMBLE_FILE, EnsembleManifest, TrainedMember, read_manifest

REPORT_FILE, RESULTS_FILE, EPOCHS_FILE = "report.html", "report.json", "epochs.parquet"
EVALUATION_FILE = "card-evaluation.json"
"""What the last evaluation of an ensemble gave its card, beside it, since a later training writes the card again."""
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Written:
    """Where the page of a training lies, and the card of its ensemble once that is whole."""

    report_uri: str
    card_uri: str | None


class _KeptEvaluation(Settings):
    nets_digest: str
    evaluation: CardEvaluation


def write_report(folder: str, planned: Sequence[RunSettings]) -> Written | None:
    """Write what the experiment in `folder` leaves to be read, as far as it has come; None if no run has begun.

    `planned` are the runs of the command. Where the shards are gone or others by now there is no card, and a warning.
    """
    results = gather(folder, planned)
    if all(run.state == "not begun" for run in results.runs):
        return None
    page = training_page(results, read_pictures(folder, results.runs))
    report_uri = storage.join(folder, REPORT_FILE)
    _write(storage.join(folder, RESULTS_FILE), results_json(results, version_facts()).encode())
    _write(storage.join(folder, EPOCHS_FILE), epochs_parquet(results))
    _write(report_uri, render_page(page).encode())
    manifest = _standing_ensemble(folder)
    return Written(report_uri, None if manifest is None else _card_if_any(folder, manifest, results.runs))


def write_card(folder: str, evaluation: CardEvaluation | None = None) -> str:
    """Write the model card of the ensemble in `folder` and return its URI.

    `evaluation` is kept for later cards of the same nets; without one, the one that is kept stands in the card. Raises
    `ConfigError` where there is no ensemble, or its shards are gone or others by now.
    """
    manifest = read_manifest(folder)
    if evaluation is not None:
        kept = _KeptEvaluation(nets_digest=manifest.nets_digest(), evaluation=evaluation)
        _write(storage.join(folder, EVALUATION_FILE), kept.model_dump_json(indent=1).encode())
    return _write_card(folder, manifest, _runs(folder, [], manifest))


def gather(folder: str, planned: Sequence[RunSettings]) -> TrainingResults:
    """Return all runs of the experiment in `folder`, and those of `planned`, one at least, that have not begun.

    They are in the order of the ensemble, if there is one, then as planned, then by name.
    """
    manifest = _standing_ensemble(folder)
    return TrainingResults(
        experiment=storage.name_of(folder),
        shards=planned[0].shards,
        shards_digest=planned[0].shards_digest,
        runs=_runs(folder, planned, manifest),
        ensemble_digest=None if manifest is None else manifest.nets_digest(),
    )


def _runs(folder: str, planned: Sequence[RunSettings], manifest: EnsembleManifest | None) -> tuple[TrainingRun, ...]:
    runs = {run.name: run for run in planned}
    begun = {run.name: run for run in _begun_runs(folder)}
    nets = () if manifest is None else manifest.members
    first = [*(net.weights.split("/")[0] for net in nets), *runs]
    names = dict.fromkeys([*(name for name in first if name in begun or name in runs), *sorted(begun)])
    return tuple(_run(folder, runs.get(name) or begun[name], is_begun=name in begun) for name in names)


def _standing_ensemble(folder: str) -> EnsembleManifest | None:
    return read_manifest(folder) if storage.exists(storage.join(folder, ENSEMBLE_FILE)) else None


def _begun_runs(folder: str) -> list[RunSettings]:
    """Return the settings of all runs that were ever begun in `folder`; one that can't be read is a warning."""
    found = []
    for name, _ in storage.walk(folder):
        if name.count("/") != 1 or storage.name_of(name) != RUN_FILE:
            continue
        path = storage.join(folder, name)
        try:
            found.append(parse(RunSettings, storage.read_json(path), path))
        except ConfigError as error:
            _logger.warning("%s: left out of the report", error)
    return found


def _run(folder: str, run: RunSettings, *, is_begun: bool) -> TrainingRun:
    net = finished(folder, run)
    history = history_if_readable(storage.join(folder, run.name)) if is_begun else RunHistory()
    best_epoch = net.epoch if net is not None else None if history.best is None else history.best.number
    found = history.best if history.best is not None and history.best.number == best_epoch else None
    epochs = tuple(_epochs(run.name, history.epochs))
    of_best = next((each.iou_location_weighted for each in epochs if each.epoch == best_epoch), None)
    return TrainingRun(
        name=run.name,
        member=run.member,
        fold=run.fold,
        state=_state(net, history, is_begun=is_begun),
        encoder_weights_sha256=run.encoder_weights_sha256,
        weights_sha256=None if net is None else net.sha256,
        failed=None if net is not None else history.failed,
        seconds=history.seconds,
        best_epoch=best_epoch,
        score=of_best if net is None else net.score,
        epochs=epochs,
        restarts=tuple(_restart(each) for each in history.restarts),
        locations=None if found is None else found.locations,
        tiles=() if found is None else found.tiles,
    )


def _state(net: TrainedMember | None, history: RunHistory, *, is_begun: bool) -> State:
    if net is not None:
        return "done"
    if history.failed is not None:
        return "failed"
    return "not finished" if is_begun else "not begun"


def _epochs(run: str, epochs: Iterable[Epoch]) -> Iterator[EpochResult]:
    """Return epochs with their metrics; one that lacks some is a warning."""
    for epoch in epochs:
        metrics = {name: value for name, value in epoch.metrics.items() if name in EpochResult.model_fields}
        metrics |= {"epoch": epoch.number}
        try:
            yield EpochResult.model_validate({**metrics, "seconds": epoch.seconds, "ended": epoch.ended})
        except ValidationError as error:
            wrong = ", ".join(".".join(map(str, each["loc"])) for each in error.errors())
            _logger.warning("run %s: epoch %d is left out of the report: %s", run, epoch.number, wrong)


def _restart(restart: Restart) -> RestartResult:
    return RestartResult(
        attempt=restart.attempt,
        kind=restart.kind.value,
        cause=restart.cause,
        epoch=restart.resumed.epoch + 1,
        image=restart.resumed.samples_done,
        lost_images=restart.lost_images,
        seconds=restart.seconds,
    )


def _card_if_any(folder: str, manifest: EnsembleManifest, runs: Sequence[TrainingRun]) -> str | None:
    try:
        return _write_card(folder, manifest, runs)
    except (ConfigError, FileNotFoundError) as error:
        _logger.warning("%s: no model card: %s", folder, first_line(error))
        return None


def _write_card(folder: str, manifest: EnsembleManifest, runs: Sequence[TrainingRun]) -> str:
    data = describe_shards(manifest.shards, manifest.shards_digest)
    text = model_card(storage.name_of(folder), manifest, runs, data, _kept_evaluation(folder, manifest))
    uri = storage.join(folder, CARD_FILE)
    _write(uri, text.encode())
    return uri


def _kept_evaluation(folder: str, manifest: EnsembleManifest) -> CardEvaluation | None:
    """Return what an evaluation of these very nets has found."""
    path = storage.join(folder, EVALUATION_FILE)
    try:
        kept = parse(_KeptEvaluation, storage.read_json(path), path)
    except FileNotFoundError:
        return None
    return kept.evaluation if kept.nets_digest == manifest.nets_digest() else None


def _write(uri: str, data: bytes) -> None:
    """Write what does not stand so already: a command with nothing to do changes nothing."""
    try:
        if storage.read_bytes(uri) == data:
            return
    except FileNotFoundError:
        pass
    storage.write_bytes(uri, data)
