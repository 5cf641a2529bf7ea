"""Independent tasks on Ray, a bounded number in flight, their results in the order of the work."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray

from raytrain.cluster import session
from raytrain.cluster.deaths import other_code
from raytrain.errors import ConfigError

WorkT = TypeVar("WorkT")
ResultT = TypeVar("ResultT")

IN_FLIGHT_PER_CPU = 2
RETRIES = 3


def run_tasks(
    function: Callable[[WorkT], ResultT],
    work: Iterable[WorkT],
    total: int,
    on_done: Callable[[int, int], None] | None = None,
) -> Iterator[ResultT]:
    """Yield `function(each)` for each of `work`, in its order, each computed in a Ray task of one CPU.

    Tasks are spread over the nodes, and `work` is consumed as they start. A task whose worker or node is lost is run
    again; an error of the function is raised here as it is. `on_done` gets the number of results so far and `total`.
    """
    task: Any = ray.remote(num_cpus=1, max_retries=RETRIES, scheduling_strategy="SPREAD")(function)
    limit = IN_FLIGHT_PER_CPU * max(session.num_cpus(), 1)
    source = iter(work)
    pending: deque[Any] = deque(task.remote(each) for each in itertools.islice(source, limit))
    done = 0
    try:
        while pending:
            try:
                result: ResultT = ray.get(pending.popleft())
            except ray.exceptions.RayTaskError as error:
                if differs := other_code(error):
                    raise ConfigError(differs.text) from error
                raise error.cause from error
            pending.extend(task.remote(each) for each in itertools.islice(source, 1))
            done += 1
            if on_done is not None:
                on_done(done, total)
            yield result
    finally:
        pending.clear()  # while Ray still runs: a traceback would keep the references
