"""One run on Ray Train: its ranks, what becomes of their failures, and its result once it is done."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from typing import Any

import ray
import ray.exceptions
from ray.train.constants import RAY_TRAIN_ENABLE_STATE_TRACKING
from ray.train.torch import TorchConfig
from ray.train.v2._internal.callbacks.backend_setup import BackendSetupCallback
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.callbacks.state_manager import StateManagerCallback
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RunningState
from ray.train.v2._internal.execution.failure_handling import FailurePolicy
from ray.train.v2._internal.execution.scaling_policy import ScalingPolicy

# These are what ray.train names, too; there type checkers see those of Ray Train V1.
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.train.v2.torch.torch_trainer import TorchTrainer

from raytrain import logs, storage
from raytrain.cluster.board import Noted, Placed
from raytrain.cluster.elastic import SavingElasticPolicy
from raytrain.cluster.failures import RunFailurePolicy, final_error
from raytrain.cluster.runs import RESULT_FILE, RUN_FILE, SCORE, RankWork, RunSettings, TrainJob
from raytrain.cluster.session import has_dashboard
from raytrain.config import parse
from raytrain.errors import DataError, WorkNotFinished
from raytrain.scoring.manifest import TrainedMember
from raytrain.training import WEIGHTS_FILE
from raytrain.training.checkpoint_files import checkpoint_uri, read_checkpoint, read_index
from raytrain.training.encoder_files import EncoderFile

RESIZE_CHECK_S = 60.0
"""How often an elastic run looks whether it could have another number of ranks."""
MEETING_LIMIT_S = 600
"""How long ranks wait for each other in one exchange before they take the others for lost."""
_logger = logging.getLogger(__name__)


def fit(
    folder: str, run: RunSettings, encoder_file: EncoderFile | None, job: TrainJob, use_gpu: bool, board: Any
) -> TrainedMember:
    """Train one run to its end, from where it was saved last, and keep its best weights in the experiment's `folder`.

    Raises the error of ours that ended it for good.
    """
    storage.write_bytes(storage.join(folder, run.name, RUN_FILE), run.model_dump_json(indent=1).encode())
    work = RankWork(
        experiment=job.experiment,
        run=run,
        folder=storage.join(folder, run.name),
        checkpointing=job.checkpointing,
        loader=job.loader,
        encoder_file=encoder_file,
    )
    config = {"work": _Masked(work), "board": board}
    run_ranks(folder, run.name, _train_on_rank, config, job.workers, use_gpu, board)
    return _keep(folder, run)


def run_ranks(
    folder: str,
    name: str,
    function: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    workers: int | tuple[int, int],
    use_gpu: bool,
    board: Any,
    *,
    frees_places: bool = True,
) -> None:
    """Run `function(config)` on the ranks of one Ray Train run, called `name`, until all have returned.

    They begin again after what may pass. Raises the error of ours that ended them for good. What Ray Train itself
    writes goes below `folder`. `frees_places` has Ray Train see to it that the places of the ranks are free again where
    their controller is lost, by an actor for each run; without it that is the caller's.
    """
    scaling = ScalingConfig(
        num_workers=workers,
        use_gpu=use_gpu,
        placement_strategy="PACK",
        elastic_resize_monitor_interval_s=RESIZE_CHECK_S,
    )
    watchers: list[Any] = [_Watch(name, board)]
    run_config = RunConfig(
        name=name,
        storage_path=storage.path_of(folder),
        storage_filesystem=storage.arrow_filesystem(folder),
        callbacks=watchers,
    )
    trainer = _Trainer(
        frees_places,
        RunFailurePolicy(FailureConfig(), name, board),
        SavingElasticPolicy(scaling, name, board) if scaling.elasticity_enabled else None,
        function,
        train_loop_config=config,
        torch_config=TorchConfig(timeout_s=MEETING_LIMIT_S),
        scaling_config=scaling,
        run_config=run_config,
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise final_error(name, error) from error


class _Masked:
    """A rank's work, which Ray Train's record of runs shows without queries of addresses: its dashboard may be read."""

    def __init__(self, work: RankWork) -> None:
        self.work = work

    def __str__(self) -> str:
        return logs.without_secrets(self.work.model_dump_json())


class _Trainer(TorchTrainer):
    """A TorchTrainer with policies of ours: Ray Train has no public way to name one."""

    def __init__(
        self,
        frees_places: bool,
        failure_policy: FailurePolicy,
        scaling_policy: ScalingPolicy | None,
        *arguments: Any,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._left_out = (DatasetsCallback,) if frees_places else (DatasetsCallback, PlacementGroupCleanerCallback)
        self._policies: dict[str, Any] = {"failure_policy": failure_policy}
        if scaling_policy is not None:
            self._policies["scaling_policy"] = scaling_policy

    def _create_default_callbacks(self) -> Any:
        # Of ours is the one about the torch backend, in its place; those about datasets serve none, see _Watch.
        found = [each for each in super()._create_default_callbacks() if not isinstance(each, self._left_out)]
        if RAY_TRAIN_ENABLE_STATE_TRACKING not in os.environ and has_dashboard():
            # The dashboard's record of runs, in a process on the head; Ray Train keeps one only where it is told to.
            found.append(StateManagerCallback(datasets={}))
        return [_Backend(self.backend_config) if isinstance(each, BackendSetupCallback) else each for each in found]

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        return super()._initialize_and_run_controller(**(options | self._policies))


class _Backend(BackendSetupCallback):
    """Ray Train's torch backend, which a rank that is gone keeps from nothing.

    In Ray 2.60 a rank that the memory monitor ended makes every later attempt fail: what its shutdown raises
    (`OutOfMemoryError`) is no `RayActorError`, which is all that is expected there.
    """

    def before_execution_group_shutdown(self, execution_group: Any) -> None:
        """Let the ranks that are left end their process group."""
        with contextlib.suppress(ray.exceptions.RayError):
            super().before_execution_group_shutdown(execution_group)


class _Watch(ControllerCallback, WorkerGroupCallback):
    """Tells the driver who controls a run, where its ranks are, and when it waits for nodes (in the controller)."""

    def __init__(self, run: str, board: Any) -> None:
        self._run = run
        self._board = board
        self._is_waiting = False

    def before_init_train_context(self, workers: Any) -> dict[str, list[Any]]:
        """Give ranks no datasets of Ray Data, in place of an actor for each run that serves none."""
        return {"dataset_shard_provider": [None] * len(workers)}

    def after_controller_start(self, train_run_context: Any) -> None:
        """Say who controls the run, so that an interrupted driver can end it."""
        logs.begin_worker(run=self._run)
        self._board.set_controller.remote(self._run, ray.get_runtime_context().current_actor)

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Say where the ranks are."""
        nodes = tuple((each.metadata.node_id, each.metadata.node_ip) for each in worker_group.get_workers())
        places = worker_group.get_worker_group_state().placement_group_handle.placement_group
        self._board.hold.remote(places, ray.get_runtime_context().current_actor)
        self._board.post.remote(Placed(self._run, nodes))

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Say once that the run waits for nodes, each time that it does."""
        if isinstance(current_state, ReschedulingState) and not self._is_waiting:
            self._is_waiting = True
            _logger.info("run %s waits for nodes", self._run, extra=logs.fields(event="waits for nodes"))
            self._board.post.remote(Noted(self._run, "waits for nodes with room for its ranks"))
        elif isinstance(current_state, RunningState):
            self._is_waiting = False


def finished(folder: str, run: RunSettings) -> TrainedMember | None:
    """Return the net of `run` if its result is recorded and its weights stand."""
    path = storage.join(folder, run.name, RESULT_FILE)
    try:
        net = parse(TrainedMember, storage.read_json(path), path)
    except FileNotFoundError:
        return None
    return net if storage.exists(storage.join(folder, net.weights)) else None


def _keep(folder: str, run: RunSettings) -> TrainedMember:
    """Copy the best checkpoint's weights to their place and record the result, which marks the run as done."""
    run_folder = storage.join(folder, run.name)
    best = read_index(run_folder).best
    if best is None or best.metrics is None:
        raise WorkNotFinished(f"run {run.name} ended without the checkpoint of an epoch")
    try:
        weights = read_checkpoint(checkpoint_uri(run_folder, best.name))[WEIGHTS_FILE]
    except DataError as error:
        raise DataError(
            error.subject, f"{error.found}; it is the best of {run_folder}: remove that folder to train anew"
        ) from error
    storage.write_bytes(storage.join(run_folder, WEIGHTS_FILE), weights)
    member = TrainedMember(
        name=run.member.name,
        fold=run.fold,
        weights=f"{run.name}/{WEIGHTS_FILE}",
        sha256=storage.sha256_of(weights),
        settings=run.member,
        score=best.metrics.get(SCORE),
        epoch=best.metrics["epoch"] + 1,
    )
    storage.write_bytes(storage.join(run_folder, RESULT_FILE), member.model_dump_json(indent=1).encode())
    return member


def _train_on_rank(config: dict[str, Any]) -> None:
    # Here, since torch and timm take seconds to import; the driver and Ray Train's controller do without.
    from raytrain.cluster.rank import train_on_rank

    train_on_rank(config["work"].work, config["board"])
