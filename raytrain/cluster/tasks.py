"""Independent tasks on Ray, a bounded number in flight, their results in the order of the work."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray

from raytrain import logs
from raytrain.cluster import growth, metrics, session
from raytrain.cluster.deaths import other_code
from raytrain.errors import ConfigError

WorkT = TypeVar("WorkT")
ResultT = TypeVar("ResultT")

IN_FLIGHT_PER_CPU = 2
RETRIES = 3


def _observed(function: Callable[[WorkT], ResultT]) -> Callable[[WorkT], ResultT]:
    """Return what does the same in a process that logs as the driver does, and tells what it asks of stores."""

    def observed(work: WorkT) -> ResultT:
        logs.begin_worker()
        with metrics.stores_watched():
            return function(work)

    return observed


def run_tasks(
    function: Callable[[WorkT], ResultT],
    work: Iterable[WorkT],
    total: int,
    on_done: Callable[[int, int], None] | None = None,
) -> Iterator[ResultT]:
    """Yield `function(each)` for each of `work`, in its order, each computed in a Ray task of one CPU.

    Tasks are spread over the nodes, and `work` is consumed as they start. A task whose worker or node is lost is run
    again; an error of the function is raised here as it is. `on_done` gets the number of results so far and `total`.
    A cluster that can grow is asked for a CPU for each task that is left.
    """
    options = {"num_cpus": 1, "max_retries": RETRIES, "scheduling_strategy": "SPREAD", "name": function.__name__}
    task: Any = ray.remote(_observed(function)).options(**options)
    if total == 0:
        return
    with growth.asked_for(total, use_gpu=False) as asked:
        yield from _results(task, work, total, on_done, asked)


def _results(
    task: Any,
    work: Iterable[WorkT],
    total: int,
    on_done: Callable[[int, int], None] | None,
    asked: growth.Growth,
) -> Iterator[Any]:
    # Tasks that wait make a cluster grow, by nodes with GPUs once no others are left: only as many as the others hold.
    limit = session.can_grow_to("CPU") or IN_FLIGHT_PER_CPU * max(session.num_cpus(), 1)
    source = iter(work)
    pending: deque[Any] = deque(task.remote(each) for each in itertools.islice(source, limit))
    done = 0
    try:
        while pending:
            try:
                result = ray.get(pending.popleft())
            except ray.exceptions.RayTaskError as error:
                if differs := other_code(error):
                    raise ConfigError(differs.text) from error
                raise error.cause from error
            pending.extend(task.remote(each) for each in itertools.islice(source, 1))
            done += 1
            asked.ask(total - done)
            if on_done is not None:
                on_done(done, total)
            yield result
    finally:
        pending.clear()  # while Ray still runs: a traceback would keep the references
