"""Members trained with Ray Train: each run data-parallel over its ranks, one run after the other, then the ensemble.

A run's name and place are functions of the work, so the same command goes on where it stopped: finished runs are
skipped, a run that was cut off continues from its last checkpoint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
import ray.train
import ray.train.torch
from pydantic import Field
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

from raytrain import __version__, storage
from raytrain.cluster import session
from raytrain.cluster.board import Board, Post, follow
from raytrain.cluster.runs import METRICS, SCORE, RunSettings
from raytrain.config import Settings, change, differences, parse
from raytrain.errors import ConfigError, TrainingDiverged, WorkNotFinished
from raytrain.imagery.normalisation import check_bands
from raytrain.recipes import members
from raytrain.scoring.manifest import EnsembleManifest, TrainedMember, write_manifest
from raytrain.tiles.order import check_batch
from raytrain.tiles.reader import TileReader, read_manifest, select_tiles
from raytrain.training import WEIGHTS_FILE

MAX_FAILURES = 3
RUN_FILE, RESULT_FILE = "run.json", "result.json"
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")


class TrainJob(Settings):
    """Which members to train on which shards; `changes` (dotted path -> value) apply to every member."""

    shards: str
    out: str
    experiment: str = "main"
    members: tuple[str, ...] = ("all",)
    fold: int | Literal["all", "none"] = 0
    workers: int = 1
    changes: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class TrainReport:
    """The ensemble's file if every run is done, the nets that are, and the runs that failed with the reason."""

    ensemble_uri: str | None
    trained: list[TrainedMember]
    failed: dict[str, str]


def train(job: TrainJob, cluster: session.Cluster, on_post: Callable[[Post], None]) -> TrainReport:
    """Train every run of `job` that is not done, write `ensemble.json` once all are. `on_post` gets each epoch's news.

    A run that fails does not stop the others. Raises `ConfigError` before anything starts if a run can't work.
    """
    runs = plan_runs(job)
    folder = storage.join(job.out, job.experiment)
    for run in runs:
        _claim(storage.join(folder, run.name), run)
    trained: list[TrainedMember] = []
    failed: dict[str, str] = {}
    with session.joined(cluster, [job.shards, job.out]):
        use_gpu = _placement(job.workers)
        for run in runs:
            done = _finished(folder, run)
            try:
                trained.append(done or _run(folder, run, job.workers, use_gpu, on_post))
            except (ray.train.TrainingFailedError, WorkNotFinished) as error:
                failed[run.name] = _reason(error)
    if failed:
        return TrainReport(None, trained, failed)
    manifest = EnsembleManifest(raytrain_version=__version__, shards=job.shards, members=tuple(trained))
    write_manifest(folder, manifest)
    return TrainReport(folder, trained, failed)


def plan_runs(job: TrainJob) -> list[RunSettings]:
    """Return the runs of `job`, members within folds; raise `ConfigError` for what can't be trained."""
    if not _NAME.match(job.experiment):
        raise ConfigError(f"experiment {job.experiment!r}: expected letters, digits, '.', '_' and '-'")
    if job.workers < 1:
        raise ConfigError(f"workers must be at least 1, found {job.workers}")
    chosen = [change(member, job.changes) for member in members(job.members)]
    manifest = read_manifest(job.shards)
    digest = storage.sha256_of(json.dumps(manifest["shards"]).encode())
    reader = TileReader(job.shards, ())
    folds = _folds(job, reader)
    for member in chosen:
        missing = [band for band in member.bands if band not in manifest["bands"]]
        if missing:
            raise ConfigError(
                f"member {member.name} needs {', '.join(missing)}; the shards have {', '.join(manifest['bands'])}"
            )
        check_bands(member.normalisation, member.bands)
        for fold in folds:
            num_samples = len(select_tiles(reader, fold, "train")) * member.crops_per_tile
            check_batch(num_samples, member.global_batch, job.workers)
            select_tiles(reader, fold, "validation")
    return [
        RunSettings(member=member, shards=job.shards, shards_digest=digest, fold=fold)
        for fold in folds
        for member in chosen
    ]


def _folds(job: TrainJob, reader: TileReader) -> list[int | None]:
    if job.fold == "none":
        return [None]
    if job.fold == "all":
        return list(sorted({int(fold) for fold in reader.index["fold"].to_pylist()}))
    return [job.fold]


def _placement(workers: int) -> bool:
    """Return whether ranks take GPUs; raise `ConfigError` if the cluster can't hold them all, or it waits forever."""
    use_gpu = session.num_gpus() > 0
    have = session.num_gpus() if use_gpu else session.num_cpus()
    if have < workers:
        kind = "GPUs" if use_gpu else "CPUs"
        raise ConfigError(f"{workers} workers need as many {kind}, the cluster has {have}; use fewer --workers")
    return use_gpu


def _claim(folder: str, run: RunSettings) -> None:
    """Record what the run in `folder` depends on; refuse if it was begun with something else."""
    uri = storage.join(folder, RUN_FILE)
    try:
        found = parse(RunSettings, json.loads(storage.read_bytes(uri)))
    except FileNotFoundError:
        storage.write_bytes(uri, run.model_dump_json(indent=1).encode())
        return
    changed = differences(found, run)
    if changed:
        raise ConfigError(f"{folder} was begun with other settings ({'; '.join(changed)}); name another --experiment")


def _finished(folder: str, run: RunSettings) -> TrainedMember | None:
    try:
        return parse(TrainedMember, json.loads(storage.read_bytes(storage.join(folder, run.name, RESULT_FILE))))
    except FileNotFoundError:
        return None


def _run(folder: str, run: RunSettings, workers: int, use_gpu: bool, on_post: Callable[[Post], None]) -> TrainedMember:
    """Train one run to its end (or from its last checkpoint to its end) and keep its best weights."""
    board: Any = ray.remote(num_cpus=0)(Board).remote()
    has_score = run.fold is not None
    trainer = ray.train.torch.TorchTrainer(
        _train_on_rank,
        train_loop_config={"run": run.model_dump(mode="json"), "board": board},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu),
        run_config=RunConfig(
            name=run.name,
            storage_path=storage.path_of(folder),
            storage_filesystem=storage.arrow_filesystem(folder),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(
                num_to_keep=1,
                checkpoint_score_attribute=SCORE if has_score else None,
                checkpoint_score_order="max",
            ),
        ),
    )
    with follow(board, on_post):
        result = trainer.fit()
    diverged = ray.get(board.verdict.remote())
    if diverged is not None:
        raise TrainingDiverged(diverged)
    checkpoint = result.get_best_checkpoint(SCORE, "max") if has_score else result.checkpoint
    if checkpoint is None:
        raise WorkNotFinished(f"run {run.name} ended without a checkpoint")
    return _keep(folder, run, checkpoint)


def _keep(folder: str, run: RunSettings, checkpoint: ray.train.Checkpoint) -> TrainedMember:
    """Copy the checkpoint's weights to their place and record the result, which marks the run as done."""
    with checkpoint.as_directory() as path:
        weights = (Path(path) / WEIGHTS_FILE).read_bytes()
        metrics = json.loads((Path(path) / METRICS).read_text())
    storage.write_bytes(storage.join(folder, run.name, WEIGHTS_FILE), weights)
    member = TrainedMember(
        name=run.member.name,
        fold=run.fold,
        weights=f"{run.name}/{WEIGHTS_FILE}",
        sha256=storage.sha256_of(weights),
        settings=run.member,
        score=metrics.get(SCORE),
        epoch=metrics["epoch"],
    )
    storage.write_bytes(storage.join(folder, run.name, RESULT_FILE), member.model_dump_json(indent=1).encode())
    return member


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if re.match(r"^[\w.]*(Error|Exception|Diverged)\b.*:", line)]
    return (causes or lines or [type(error).__name__])[-1]


def _train_on_rank(config: dict[str, Any]) -> None:
    # Here, since torch and timm take seconds to import; the driver and Ray Train's controller do without.
    from raytrain.cluster.rank import train_on_rank

    train_on_rank(parse(RunSettings, config["run"]), config["board"])
