"""Starting or joining Ray, in one place, and what has to be true before work starts there."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from typing import Any, cast

import ray
import ray.exceptions

from raytrain import storage
from raytrain.config import Settings
from raytrain.errors import ConfigError, WorkNotFinished

LOCAL = "local"
MIN_LOCAL_CPUS = 2
"""Ray counts at least this many CPUs on one machine: a run's ranks, or an actor and the task that feeds it."""


class Cluster(Settings):
    """Where work runs: `local` starts a Ray on this machine; `auto` or `host:port` (its GCS) joins a cluster."""

    address: str = LOCAL
    shared_path: bool = False


@contextlib.contextmanager
def joined(cluster: Cluster, uris: Iterable[str]) -> Iterator[None]:
    """Run the body on Ray; a session that this process has already is used and left as it is.

    `uris` are all inputs and outputs: on more than one node a local path is refused, unless `shared_path` says that all
    nodes see it. Raises `ConfigError` for that and for an address that can't be joined.
    """
    if cluster.address.startswith("ray://"):
        raise ConfigError(
            f"{cluster.address}: Ray Client is not supported; send the work with `ray job submit` instead"
        )
    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            stack.callback(ray.shutdown)
            _start(cluster)
        _refuse_local_paths(cluster, uris)
        try:
            yield
        except (
            ray.exceptions.RayActorError,
            ray.exceptions.RaySystemError,
            ray.exceptions.WorkerCrashedError,
        ) as error:
            reason = str(error).strip().splitlines()[0]
            raise WorkNotFinished(f"a part of the cluster was lost: {reason}; the same command goes on") from error


def _start(cluster: Cluster) -> None:
    # Ray's notices are about Ray; those of its workers stand in its log folder.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        if cluster.address == LOCAL:
            ray.init(
                address=LOCAL,
                num_cpus=max(MIN_LOCAL_CPUS, os.cpu_count() or 1),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"can't join Ray at {cluster.address}: {reason}") from error


def _refuse_local_paths(cluster: Cluster, uris: Iterable[str]) -> None:
    nodes = [node for node in _nodes() if node["Alive"]]
    local = [uri for uri in uris if storage.is_local(uri)]
    if len(nodes) > 1 and local and not cluster.shared_path:
        raise ConfigError(
            f"{local[0]} is a path of one machine, but the cluster has {len(nodes)} nodes; "
            "use s3://..., or say --shared-path if all nodes see it"
        )


def num_cpus() -> int:
    """Return the CPUs that the cluster has now."""
    return int(_resources().get("CPU", 0))


def num_gpus() -> int:
    """Return the GPUs that the cluster has now."""
    return int(_resources().get("GPU", 0))


def _resources() -> dict[str, float]:
    return cast(dict[str, float], ray.cluster_resources())  # type: ignore[no-untyped-call]  # Ray has no annotation there


def _nodes() -> list[dict[str, Any]]:
    return cast(list[dict[str, Any]], ray.nodes())  # type: ignore[no-untyped-call]  # as above
