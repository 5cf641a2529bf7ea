"""Starting or joining Ray, in one place, and what has to be true before work starts there."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Literal, cast

import ray
import ray.exceptions
from ray._private.utils import get_num_cpus
from ray._private.worker import get_dashboard_url
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raytrain import logs, storage
from raytrain.cluster import code, token
from raytrain.cluster.deaths import last_cause
from raytrain.cluster.metrics import forget_gauges, stores_watched
from raytrain.config import Settings
from raytrain.errors import ConfigError, WorkNotFinished, first_line

LOCAL = "local"
CONNECT_S = 10
"""How long an address may take to answer."""
CODE_CHECK_S = 60
"""How long nodes are waited for to say what they run: each starts a process for it, in the job's environment."""
Resource = Literal["GPU", "CPU"]
GROWTH_LABELS: dict[Resource, str] = {"GPU": "raytrain.most-gpus", "CPU": "raytrain.most-cpus"}
"""Labels of a head that say what its cluster can grow to: no part of Ray tells a driver (`ray start --labels`).

The CPUs are those of nodes without GPUs, where there are such: for work that asks for no GPU, Ray starts nodes with
GPUs once no other type is left.
"""
MIN_LOCAL_CPUS = 2
"""Ray counts at least this many CPUs on one machine: a run's ranks, or an actor and the task that feeds it."""


class ClusterOutOfReach(ConfigError):
    """No Ray could be joined or started where the caller said: a mistake, or a cluster that is away."""


class RayNotStarted(WorkNotFinished):
    """No Ray of this machine, or no part of one that is joined, came up in the time that Ray gives it."""


class Cluster(Settings):
    """Where work runs: `local` starts a Ray on this machine; `auto` or `host:port` (its GCS) joins a cluster."""

    address: str = LOCAL
    shared_path: bool = False


@contextlib.contextmanager
def joined(cluster: Cluster, uris: Iterable[str], *, any_code: bool = False) -> Iterator[None]:
    """Run the body on Ray; a session that this process has already is used and left as it is.

    `uris` are all inputs and outputs: on more than one node a local path is refused, unless `shared_path` says that all
    nodes see it. A cluster whose nodes run another raytrain is refused but with `any_code`. Raises `ConfigError`
    for that and for an address that can't be joined, `RayNotStarted` where Ray itself does not come up in time.
    """
    check_address(cluster.address)
    with contextlib.ExitStack() as stack:
        if ray.is_initialized():
            _check_stores()
        else:
            stack.callback(ray.shutdown)
            same_code = cluster.address != LOCAL and not any_code
            _start(cluster, same_code=same_code)
            if same_code:
                _refuse_other_code()
        _refuse_local_paths(cluster, uris)
        stack.callback(forget_gauges)  # of work that is over, where this process goes on with other work
        stack.enter_context(stores_watched())
        try:
            yield
        except ray.exceptions.RayTaskError:
            raise  # an error of our own code, not of the cluster
        except ray.exceptions.RayError as error:
            raise WorkNotFinished(
                f"a part of the cluster was lost: {first_line(error)}; the same command goes on"
            ) from error


def check_address(address: str) -> None:
    """Raise `ConfigError` for an address at which no Ray can be joined; Ray itself tries one for many minutes."""
    if address.startswith("ray://"):
        raise ConfigError(f"{address}: Ray Client is not supported; send the work with `raytrain submit` instead")
    named = os.environ.get("RAY_ADDRESS", "auto") if address == "auto" else address
    if named in (LOCAL, "auto"):
        return
    host, colon, port = named.rpartition(":")
    if not (host and colon and port.isdecimal()):
        raise ConfigError(f"address {named!r}: expected local, auto or HOST:PORT of a Ray head's GCS")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S) as connection:
            found = _is_grpc(connection)
    except (OSError, OverflowError, ValueError) as error:
        raise ClusterOutOfReach(
            f"can't join Ray at {named}: {error}; expected HOST:PORT of its GCS (port 6379)"
        ) from error
    if not found:
        raise ClusterOutOfReach(f"can't join Ray at {named}: no GCS answers there; expected its HOST:PORT (port 6379)")


def _is_grpc(connection: socket.socket) -> bool:
    """Tell whether a server speaks HTTP/2, as gRPC does: its first frame is one of settings (RFC 9113, section 3.4)."""
    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return True  # it would have to be asked in TLS
    empty_settings = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + empty_settings)
    return connection.recv(9)[3:4] == b"\x04"


def _start(cluster: Cluster, *, same_code: bool) -> None:
    # Ray's notices are about Ray; those of its workers stand in its log folder.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        with _own_signals():
            _init(cluster, same_code=same_code)
        logs.begin_again()  # Ray was imported, and has told its loggers how to write
    except TimeoutError as error:
        raise _not_started(cluster, error) from error
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        remedy = "; if it wants a token, set RAY_AUTH_MODE=token and the token"
        said = f"{first_line(error)}{'' if os.environ.get('RAY_AUTH_MODE') else remedy}"
        raise ClusterOutOfReach(f"can't join Ray at {cluster.address}: {said}") from error
    except Exception as error:
        if type(error) is Exception:  # what Ray's node raises once it has waited 30 s for its raylet
            raise _not_started(cluster, error) from error
        raise


def _not_started(cluster: Cluster, error: Exception) -> RayNotStarted:
    what = "start on this machine" if cluster.address == LOCAL else f"let this process join at {cluster.address}"
    return RayNotStarted(
        f"Ray did not {what} in time: {first_line(error)}; the machine may be too busy, or out of memory or disk"
    )


def _init(cluster: Cluster, *, same_code: bool) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    variables = storage.for_workers()
    if cluster.address != LOCAL:  # a Ray that is started here has the environment of this process
        variables |= logs.for_workers()
    if same_code:
        variables |= code.for_workers()
    if variables:
        # Beside those of a job, which has other names: Ray joins the two.
        options["runtime_env"] = {"env_vars": variables}
    if cluster.address == LOCAL:
        options["num_cpus"] = max(MIN_LOCAL_CPUS, int(get_num_cpus(override_docker_cpu_warning=True)))
        options["include_dashboard"] = False
    with token.kept_from_others():
        ray.init(address=cluster.address, **options)


def _check_stores() -> None:
    """Raise `ConfigError` where this process was told of other stores since Ray started: no worker would know them."""
    given: dict[str, str] = ray.get_runtime_context().runtime_env.get("env_vars") or {}
    wanted = storage.for_workers()
    if {name: value for name, value in given.items() if name == storage.stores.VARIABLE} != wanted:
        raise ConfigError("Ray was started in this process with other stores; call storage.use_stores before ray.init")


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's answer to SIGTERM: Ray's own, set as it starts, ends with the code of a failure."""
    answer = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, answer)


def _refuse_other_code() -> None:
    """Raise `ConfigError` where a node that the cluster has now can't run this raytrain, or runs another one.

    A node that does not answer in time, or comes later, is held against this one as its workers begin.
    """
    task: Any = ray.remote(num_cpus=0, max_retries=0)(code.check)
    asked = {}
    for node in _nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[task.options(scheduling_strategy=there).remote()] = node["NodeManagerAddress"]
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=CODE_CHECK_S)
    for ref in answered:
        try:
            ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            text = code.difference_in(str(error)) or f"{code.DIFFERS}: {last_cause(error)}"
            raise ConfigError(f"node {asked[ref]}: {text}") from error
        except ray.exceptions.RayError:
            continue  # it went away meanwhile


def _refuse_local_paths(cluster: Cluster, uris: Iterable[str]) -> None:
    local = [uri for uri in uris if storage.is_local(uri)]
    if not local or cluster.shared_path:
        return
    nodes = [node for node in _nodes() if node["Alive"]]
    can_grow = any(can_grow_to(resource) for resource in GROWTH_LABELS)
    if len(nodes) > 1 or can_grow:
        found = "can grow to several nodes" if can_grow else f"has {len(nodes)} nodes"
        raise ConfigError(
            f"{local[0]} is a path of one machine, but the cluster {found}; "
            "use s3://..., or say --shared-path if all nodes see it"
        )


def has_dashboard() -> bool:
    """Tell whether this Ray has a dashboard, as clusters do."""
    return bool(get_dashboard_url())  # type: ignore[no-untyped-call]  # Ray has no annotation there


def alive_nodes() -> set[str]:
    """Return the ids of the nodes that the cluster has now."""
    return {node["NodeID"] for node in _nodes() if node["Alive"]}


def num_cpus() -> int:
    """Return the CPUs that the cluster has now."""
    return int(_resources().get("CPU", 0))


def cpus_of_nodes() -> list[int]:
    """Return the CPUs of each node that the cluster has now and that has any."""
    counts = [int(node["Resources"].get("CPU", 0)) for node in _nodes() if node["Alive"]]
    return [count for count in counts if count]


def num_gpus() -> int:
    """Return the GPUs that the cluster has now."""
    return int(_resources().get("GPU", 0))


def can_grow_to(resource: Resource) -> int:
    """Return how many GPUs or CPUs the cluster can grow to by what its head's labels say; 0 if they say nothing.

    Raises `ConfigError` for a label that is no number.
    """
    label = GROWTH_LABELS[resource]
    found = next((node["Labels"][label] for node in _nodes() if node["Alive"] and label in node["Labels"]), "0")
    if not found.isdecimal():
        raise ConfigError(f"the head's label {label} is {found!r}; expected how many {resource}s it can grow to")
    return int(found)


def has_gpus() -> bool:
    """Return whether the cluster has GPUs now, or can grow to some."""
    return num_gpus() > 0 or can_grow_to("GPU") > 0


def uses_gpus(workers: int) -> bool:
    """Return whether ranks take GPUs; raise `ConfigError` if the cluster can't hold so many, or they wait forever."""
    use_gpu = has_gpus()
    have = num_gpus() if use_gpu else num_cpus()
    most = max(have, can_grow_to("GPU" if use_gpu else "CPU"))
    if most < workers:
        kind = "GPUs" if use_gpu else "CPUs"
        found = f"has {have}" if most == have else f"has {have} and can grow to {most}"
        raise ConfigError(f"{workers} workers need as many {kind}, the cluster {found}; use fewer --workers")
    return use_gpu


def room(workers: int, use_gpu: bool) -> int:
    """Return how many times `workers` ranks fit into the cluster as it is now."""
    return (num_gpus() if use_gpu else num_cpus()) // workers


def _resources() -> dict[str, float]:
    return cast(dict[str, float], ray.cluster_resources())  # type: ignore[no-untyped-call]  # Ray has no annotation there


def _nodes() -> list[dict[str, Any]]:
    return cast(list[dict[str, Any]], ray.nodes())  # type: ignore[no-untyped-call]  # as above
