"""Runs in MLflow, for those who keep their experiments there: settings, metrics of each epoch, how a run ended.

On the driver only, and an extra. Once work has begun an MLflow that fails is a warning: its client may try for minutes,
so a thread of its own talks to it. Must not know Ray.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal

from raytrain import storage
from raytrain.config import Settings, flat
from raytrain.errors import ConfigError, first_line

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

RUN_TAG, URI_TAG, KEY_TAG = "raytrain.run", "raytrain.uri", "raytrain.key"
RESTARTS_TAG, LAST_RESTART_TAG, FAILURE_TAG = "raytrain.restarts", "raytrain.last_restart", "raytrain.failure"
CLOSE_S = 60
"""How long the end of a job waits for what MLflow has not been told yet."""
_PARAMS_AT_ONCE, _PARAM_CHARACTERS, _TAG_CHARACTERS = 100, 6000, 5000
"""What MLflow's servers take."""
_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # figures about its use are its owner's to send
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # seconds until a wrong address is told; MLflow's own 7 take minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is for results
}
_logger = logging.getLogger(__name__)

EndStatus = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass
class _Known:
    """A run in MLflow, and the steps of each metric that it has."""

    run_id: str
    seen: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))


class MlflowRuns:
    """The runs of a job in one experiment of MLflow: one there for each run here, found again by what it is.

    `uri` is a server's, or a local folder. The same run (name, place and settings) goes on in the same run of MLflow
    however often the command runs; an epoch that MLflow has is not told again. Methods return at once and may be called
    from any thread. Raises `ConfigError` if the extra is not installed, or MLflow can't be asked for the experiment.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self._client = _client(uri)
        self._experiment_id = _experiment_id(self._client, uri, experiment)
        self._begun: dict[str, tuple[str, Settings]] = {}
        self._running: set[str] = set()
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        # What follows is the teller's alone.
        self._known: dict[str, _Known] = {}
        self._counted: set[str] = set()
        self._untold: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        self._is_failing = False
        self._teller = threading.Thread(target=self._tell, daemon=True)
        self._teller.start()

    def __enter__(self) -> MlflowRuns:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def begin(self, run: str, uri: str, settings: Settings) -> None:
        """Say that a run begins or goes on: its name, its folder, and all that it depends on."""
        self._begun[run] = (uri, settings)
        self._running.add(run)
        self._jobs.put(partial(self._open, run))

    def epoch(self, run: str, metrics: Mapping[str, Any]) -> None:
        """Tell the numbers among the metrics of an epoch, whose number from 0 is `metrics["epoch"]`, the step."""
        self._jobs.put(partial(self._tell_epoch, run, dict(metrics)))

    def restarted(self, run: str, reason: str) -> None:
        """Say that a run which goes on had to start again from its last checkpoint."""
        self._jobs.put(partial(self._tell_restart, run, reason))

    def end(self, run: str, failure: str | None = None) -> None:
        """Say that a run is done, or why it failed."""
        self._running.discard(run)
        self._jobs.put(partial(self._tell_end, run, "FINISHED" if failure is None else "FAILED", failure))

    def close(self) -> None:
        """Say that runs which did not end were killed, and wait up to `CLOSE_S` for the last to be told."""
        for run in sorted(self._running):
            self._jobs.put(partial(self._tell_end, run, "KILLED", None))
        self._jobs.put(None)
        self._teller.join(CLOSE_S)
        if self._teller.is_alive():
            _logger.warning("MLflow did not answer in %d s; what it was not told is left out", CLOSE_S)

    def _tell(self) -> None:
        """Do one job after the other; one that fails is a warning, said once until MLflow answers again."""
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception as error:  # noqa: BLE001  # a client raises what it likes, and training must not end of it
                self._known.clear()  # whether MLflow took it is not known: what it has is asked again
                if not self._is_failing:
                    _logger.warning("MLflow failed, training goes on: %s", first_line(error))
                self._is_failing = True
            else:
                self._is_failing = False

    def _open(self, run: str) -> _Known:
        """Return the run in MLflow, found again by its key, else created."""
        if run in self._known:
            return self._known[run]
        uri, settings = self._begun[run]
        key = hashlib.sha256(json.dumps([run, uri, settings.digest()]).encode()).hexdigest()
        order = ["attributes.start_time ASC"]
        found = self._client.search_runs([self._experiment_id], f"tags.`{KEY_TAG}` = '{key}'", order_by=order)
        if found:
            known = self._continue(found[0].info.run_id)
            if run not in self._counted:
                self._count_restart(known, "the command ran again")
        else:
            tags = {RUN_TAG: run, URI_TAG: uri[:_TAG_CHARACTERS], KEY_TAG: key}
            created = self._client.create_run(self._experiment_id, run_name=run, tags=tags)
            known = _Known(created.info.run_id)
        self._counted.add(run)
        self._tell_settings(known, settings)
        self._known[run] = known
        return known

    def _continue(self, run_id: str) -> _Known:
        """Return a run that MLflow has, with the steps that it knows; it is one that goes on again."""
        found = self._client.get_run(run_id)
        known = _Known(run_id)
        for name in found.data.metrics:
            known.seen[name] = {metric.step for metric in self._client.get_metric_history(run_id, name)}
        if found.info.status != "RUNNING":
            self._client.update_run(run_id, status="RUNNING")
        if FAILURE_TAG in found.data.tags:
            self._client.delete_tag(run_id, FAILURE_TAG)
        return known

    def _tell_settings(self, known: _Known, settings: Settings) -> None:
        from mlflow.entities import Param

        params = [Param(path, _text(value)[:_PARAM_CHARACTERS]) for path, value in flat(settings).items()]
        for start in range(0, len(params), _PARAMS_AT_ONCE):
            self._client.log_batch(known.run_id, params=params[start : start + _PARAMS_AT_ONCE])

    def _tell_epoch(self, run: str, metrics: Mapping[str, Any]) -> None:
        """Tell an epoch, and those before that could not be told."""
        self._untold[run].append(metrics)
        self._tell_untold(run)

    def _tell_untold(self, run: str) -> None:
        from mlflow.entities import Metric

        known = self._open(run)
        now_ms = int(time.time() * 1000)
        fresh: dict[tuple[str, int], Metric] = {}
        for each in self._untold[run]:
            step = int(each["epoch"])
            for name, value in _numbers(each).items():
                if step not in known.seen[name]:
                    fresh[name, step] = Metric(name, value, now_ms, step)
        if fresh:
            self._client.log_batch(known.run_id, metrics=list(fresh.values()))
        for name, step in fresh:
            known.seen[name].add(step)
        self._untold.pop(run, None)

    def _tell_restart(self, run: str, reason: str) -> None:
        self._count_restart(self._open(run), reason)

    def _count_restart(self, known: _Known, reason: str) -> None:
        count = int(self._client.get_run(known.run_id).data.tags.get(RESTARTS_TAG, 0))
        self._client.set_tag(known.run_id, RESTARTS_TAG, str(count + 1))
        self._client.set_tag(known.run_id, LAST_RESTART_TAG, reason[:_TAG_CHARACTERS])

    def _tell_end(self, run: str, status: EndStatus, failure: str | None) -> None:
        self._tell_untold(run)
        known = self._open(run)
        if failure is not None:
            self._client.set_tag(known.run_id, FAILURE_TAG, failure[:_TAG_CHARACTERS])
        self._client.set_terminated(known.run_id, status)


_SCHEMES = ("http", "https", "file")
"""Databases, which MLflow opens where there is a driver for them, are behind a server: ranks are many."""
_EXPECTED = "expected http(s)://HOST:PORT or a local folder"


def _client(uri: str) -> MlflowClient:
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    scheme, separator, rest = uri.partition("://")
    if separator and "@" in rest.partition("/")[0]:
        raise ConfigError(
            f"{scheme}://...@...: passwords never stand in a URI; set MLFLOW_TRACKING_USERNAME and _PASSWORD"
        )
    if separator and scheme not in _SCHEMES:
        raise ConfigError(f"MLflow at {uri}: {_EXPECTED}")
    if not separator:
        uri = Path(storage.normalise(uri)).as_uri()
    if uri.startswith("file:"):
        # MLflow 3 asks for this word before it uses a folder; whoever names one has said it.
        os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise ConfigError("MLflow is not installed: pip install 'raytrain[mlflow]'") from error
    try:
        return MlflowClient(tracking_uri=uri)
    except MlflowException as error:
        raise ConfigError(f"MLflow at {uri}: {_EXPECTED}; {first_line(error)}") from error


def _experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """Return the experiment of this name, created where there is none."""
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_experiment_by_name(name)
        if found is None:
            return str(client.create_experiment(name))
    except (MlflowException, OSError) as error:
        raise ConfigError(f"MLflow at {uri}: can't open experiment {name!r}: {first_line(error)}") from error
    if found.lifecycle_stage != "active":
        raise ConfigError(f"MLflow at {uri}: experiment {name!r} is deleted there; restore it or name another")
    return str(found.experiment_id)


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    return {name: float(value) for name, value in numbers.items() if name != "epoch"}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
