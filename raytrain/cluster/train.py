"""Members trained with Ray Train: each run data-parallel over its ranks, one run after the other, then the ensemble.

A run's name and place are functions of the work, so the same command goes on where it stopped: finished runs are
skipped, a run that was cut off continues from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
import ray.exceptions
import ray.train
import ray.train.torch
from pydantic import Field
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

from raytrain import __version__, storage
from raytrain.cluster import session
from raytrain.cluster.board import Board, Post, follow
from raytrain.cluster.runs import BEST, METRICS, SCORE, RunSettings
from raytrain.config import LoaderSettings, MemberSettings, Settings, change, differences, parse
from raytrain.errors import ConfigError, DataError, RaytrainError, WorkNotFinished
from raytrain.imagery.normalisation import check_bands
from raytrain.recipes import members
from raytrain.scoring.manifest import ENSEMBLE_FILE, EnsembleManifest, TrainedMember, write_manifest
from raytrain.scoring.manifest import read_manifest as read_ensemble
from raytrain.tiles.order import check_batch
from raytrain.tiles.reader import TileReader, read_manifest, select_tiles, shards_digest
from raytrain.training import WEIGHTS_FILE
from raytrain.training.encoder_files import EncoderFile, fetch, file_of
from raytrain.training.mirror import find_files

MAX_FAILURES = 3
RUN_FILE, RESULT_FILE = "run.json", "result.json"
ABORT_S = 30
"""How long an interrupted process waits for its run to end on the cluster."""
_MEMORY = re.compile(r"was ([\d.]+GB used / [\d.]+GB limit)")
"""What Ray 2.60 says of a node whose workers it killed; its text goes on with much advice."""
_LEARNT = re.compile(rf"^({re.escape(RESULT_FILE)}$|{re.escape(WEIGHTS_FILE)}$|checkpoint_)")


class TrainJob(Settings):
    """Which members to train on which shards; `changes` (dotted path -> value) apply to every member.

    `weights` is a mirror of encoder weights, from which members that ask for timm's take them. It and `loader`, which
    says how tiles get to the ranks, are no part of what a run depends on.
    """

    shards: str
    out: str
    experiment: str = "main"
    members: tuple[str, ...] = ("all",)
    fold: int | Literal["all", "none"] = 0
    workers: int = 1
    changes: dict[str, Any] = Field(default_factory=dict)
    loader: LoaderSettings = LoaderSettings()
    weights: str | None = None


@dataclass(frozen=True)
class TrainReport:
    """The ensemble's folder if every run is done, the nets of this job that are, and why the other runs failed.

    `num_members` counts the nets of the ensemble, with those of earlier jobs in the same experiment.
    """

    ensemble_uri: str | None
    num_members: int
    trained: list[TrainedMember]
    failed: dict[str, str]


def train(job: TrainJob, cluster: session.Cluster, on_post: Callable[[Post], None]) -> TrainReport:
    """Train every run of `job` that is not done, write `ensemble.json` once all are. `on_post` gets each epoch's news.

    Nets that the experiment has from earlier jobs stay in its ensemble. A run that fails does not stop the others.
    Raises `ConfigError` where a run can't work, before anything starts as far as the driver can see it.
    """
    folder = storage.join(job.out, job.experiment)
    planned = plan_runs(job)
    earlier = _earlier_nets(folder, planned[0])
    files = _encoder_files(planned, job.weights)
    runs = _with_hashes(folder, planned, files)
    for run in runs:
        _check_claim(storage.join(folder, run.name), run)
    trained: list[TrainedMember] = []
    failed: dict[str, str] = {}
    weights = [file.uri for file in files.values() if file is not None and file.uri is not None]
    with session.joined(cluster, [job.shards, job.out, *weights]):
        use_gpu = _placement(job.workers)
        for run in runs:
            done = _finished(folder, run)
            try:
                trained.append(done or _run(folder, run, _pinned(files, run), job, use_gpu, on_post))
            except (ray.train.TrainingFailedError, WorkNotFinished, DataError) as error:
                failed[run.name] = _reason(error)
    if failed:
        return TrainReport(None, 0, trained, failed)
    # An earlier net keeps its place, so that the same nets are the same ensemble.
    nets = {(net.name, net.fold): net for net in [*earlier, *trained]}
    manifest = EnsembleManifest(
        raytrain_version=__version__,
        shards=job.shards,
        shards_digest=runs[0].shards_digest,
        members=tuple(nets.values()),
    )
    write_manifest(folder, manifest)
    return TrainReport(folder, len(nets), trained, failed)


def _earlier_nets(folder: str, run: RunSettings) -> tuple[TrainedMember, ...]:
    """Return the nets of the ensemble that stands in `folder`; raise `ConfigError` if they saw other shards."""
    if not storage.exists(storage.join(folder, ENSEMBLE_FILE)):
        return ()
    manifest = read_ensemble(folder)
    if (manifest.shards, manifest.shards_digest) != (run.shards, run.shards_digest):
        same = " as they are now" if manifest.shards == run.shards else ""
        raise ConfigError(
            f"{folder} holds an ensemble trained on {manifest.shards}, not on {run.shards}{same}; "
            "name another --experiment"
        )
    return manifest.members


def plan_runs(job: TrainJob) -> list[RunSettings]:
    """Return the runs of `job`, members within folds, before the hashes of their encoders' weights are known.

    Raises `ConfigError` for what can't be trained.
    """
    if not storage.is_plain_name(job.experiment):
        raise ConfigError(f"experiment {job.experiment!r}: expected letters, digits, '.', '_' and '-'")
    if job.workers < 1:
        raise ConfigError(f"workers must be at least 1, found {job.workers}")
    if not job.members:
        raise ConfigError("no members are named; all stands for the eight of the recipe, small for two small ones")
    if "name" in job.changes:
        raise ConfigError("name is no setting to change: it says which member, and where its run lies")
    chosen = [_with_absolute_path(change(member, job.changes)) for member in members(job.members)]
    manifest = read_manifest(job.shards)
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
            check_batch(num_samples, job.workers, member)
            select_tiles(reader, fold, "validation")
    return [
        RunSettings(member=member, shards=job.shards, shards_digest=shards_digest(manifest), fold=fold)
        for fold in folds
        for member in chosen
    ]


def _with_absolute_path(member: MemberSettings) -> MemberSettings:
    """Return the member with the URI of its encoder's weights in its one form: ranks run in folders of their own."""
    file = file_of(member)
    return change(member, {"encoder_weights": file.uri}) if file is not None and file.uri is not None else member


def _encoder_files(runs: list[RunSettings], mirror: str | None) -> dict[str, EncoderFile | None]:
    """Return the file that the encoder of each member starts from, by the member's name."""
    chosen = {run.member.name: run.member for run in runs}
    return dict(zip(chosen, find_files(list(chosen.values()), mirror), strict=True))


def _with_hashes(folder: str, runs: list[RunSettings], files: dict[str, EncoderFile | None]) -> list[RunSettings]:
    """Return the runs with the hashes of their encoders' weights.

    A run that began with the hub's keeps the hash that it recorded then, so that it goes on while the hub is out of
    reach; a fresh one has its file fetched here.
    """
    found: dict[EncoderFile, str] = {}
    complete = []
    for run in runs:
        file = files[run.member.name]
        sha256 = None if file is None else file.sha256 or (_recorded_hash(folder, run) if file.uri is None else None)
        if file is not None and sha256 is None:
            found[file] = found.get(file) or storage.sha256_of(fetch(file))
            sha256 = found[file]
        complete.append(run.model_copy(update={"encoder_weights_sha256": sha256}))
    return complete


def _recorded_hash(folder: str, run: RunSettings) -> str | None:
    """Return the hash that the run's folder has, if its encoder is this one with timm's weights."""
    path = storage.join(folder, run.name, RUN_FILE)
    try:
        found = parse(RunSettings, storage.read_json(path), path)
    except FileNotFoundError:
        return None
    same = (found.member.encoder, found.member.encoder_weights) == (run.member.encoder, run.member.encoder_weights)
    return found.encoder_weights_sha256 if same else None


def _pinned(files: dict[str, EncoderFile | None], run: RunSettings) -> EncoderFile | None:
    """Return the file of the run's encoder with the hash that the run depends on."""
    file = files[run.member.name]
    return None if file is None else file.model_copy(update={"sha256": run.encoder_weights_sha256})


def _folds(job: TrainJob, reader: TileReader) -> list[int | None]:
    if job.fold == "none":
        return [None]
    if job.fold == "all":
        return list(sorted({int(fold) for fold in reader.folds}))
    return [job.fold]


def _placement(workers: int) -> bool:
    """Return whether ranks take GPUs; raise `ConfigError` if the cluster can't hold them all, or it waits forever."""
    use_gpu = session.num_gpus() > 0
    have = session.num_gpus() if use_gpu else session.num_cpus()
    if have < workers:
        kind = "GPUs" if use_gpu else "CPUs"
        raise ConfigError(f"{workers} workers need as many {kind}, the cluster has {have}; use fewer --workers")
    return use_gpu


def _check_claim(folder: str, run: RunSettings) -> None:
    """Raise `ConfigError` if something was learnt in `folder` with other settings than those of `run`."""
    path = storage.join(folder, RUN_FILE)
    try:
        found = parse(RunSettings, storage.read_json(path), path)
    except FileNotFoundError:
        return
    changed = differences(found, run)
    if changed and any(_LEARNT.match(name) for name in storage.find(folder)):
        raise ConfigError(f"{folder} was begun with other settings ({'; '.join(changed)}); name another --experiment")


def _finished(folder: str, run: RunSettings) -> TrainedMember | None:
    """Return the net of `run` if its result is recorded and its weights stand."""
    path = storage.join(folder, run.name, RESULT_FILE)
    try:
        net = parse(TrainedMember, storage.read_json(path), path)
    except FileNotFoundError:
        return None
    return net if storage.exists(storage.join(folder, net.weights)) else None


def _run(
    folder: str,
    run: RunSettings,
    encoder_file: EncoderFile | None,
    job: TrainJob,
    use_gpu: bool,
    on_post: Callable[[Post], None],
) -> TrainedMember:
    """Train one run to its end (or from its last checkpoint to its end) and keep its best weights."""
    storage.write_bytes(storage.join(folder, run.name, RUN_FILE), run.model_dump_json(indent=1).encode())
    board: Any = ray.remote(num_cpus=0)(Board).remote()
    trainer = _Trainer(
        _train_on_rank,
        train_loop_config={
            "run": run.model_dump(mode="json"),
            "loader": job.loader.model_dump(mode="json"),
            "encoder_file": None if encoder_file is None else encoder_file.model_dump(mode="json"),
            "board": board,
        },
        scaling_config=ScalingConfig(num_workers=job.workers, use_gpu=use_gpu),
        run_config=RunConfig(
            name=run.name,
            storage_path=storage.path_of(folder),
            storage_filesystem=storage.arrow_filesystem(folder),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(
                num_to_keep=1,
                checkpoint_score_attribute=BEST,
                checkpoint_score_order="max",
            ),
        ),
    )
    with follow(board, on_post):
        result = _fit(trainer, board)
    checkpoint = result.get_best_checkpoint(BEST, "max")
    if checkpoint is None:
        raise WorkNotFinished(f"run {run.name} ended without a checkpoint")
    return _keep(folder, run, checkpoint)


class _Trainer(ray.train.torch.TorchTrainer):
    """A TorchTrainer that leaves Ctrl-C to this process, and ends its run when the process is told to stop.

    Ray Train's own handler ends the process with 0 or 1, and stays in place when the training is over.
    """

    _controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        self._controller = controller

    def fit(self) -> ray.train.Result:
        """Run the training to its end; an interrupt ends it on the cluster, too."""
        try:
            return super().fit()
        except Exception:
            raise
        except BaseException:
            if self._controller is not None:
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.get(self._controller.abort.remote(), timeout=ABORT_S)
            raise


def _fit(trainer: _Trainer, board: Any) -> ray.train.Result:
    """Return what came of the run; raise the verdict where its ranks found one, whatever Ray Train makes of it."""
    failed: ray.train.TrainingFailedError | None = None
    result: ray.train.Result | None = None
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        failed = error
    verdict: RaytrainError | None = ray.get(board.verdict.remote())
    if verdict is not None:
        raise verdict from failed
    if failed is not None:
        raise failed
    assert result is not None
    return result


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
        epoch=metrics["epoch"] + 1,
    )
    storage.write_bytes(storage.join(folder, run.name, RESULT_FILE), member.model_dump_json(indent=1).encode())
    return member


def _reason(error: Exception) -> str:
    """Return the one line of Ray Train's long text that says why."""
    if "killed due to the node running low on memory" in str(error):
        full = _MEMORY.search(str(error))
        found = f" ({full[1]})" if full else ""
        return f"out of memory on a node{found}; lower global_batch, crop_px or the number of ranks on a node"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if re.match(r"^[\w.]*(Error|Exception|Diverged)\b.*:", line)]
    return (causes or lines or [type(error).__name__])[-1]


def _train_on_rank(config: dict[str, Any]) -> None:
    # Here, since torch and timm take seconds to import; the driver and Ray Train's controller do without.
    from raytrain.cluster.rank import train_on_rank

    encoder_file = None if config["encoder_file"] is None else parse(EncoderFile, config["encoder_file"])
    loader = parse(LoaderSettings, config["loader"])
    train_on_rank(parse(RunSettings, config["run"]), loader, encoder_file, config["board"])
