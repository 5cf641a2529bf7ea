"""Independent tasks on Ray, a bounded number in flight, their results in the order of the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray

from raytrain.cluster import session

WorkT = TypeVar("WorkT")
ResultT = TypeVar("ResultT")

IN_FLIGHT_PER_CPU = 2
RETRIES = 3


def run_tasks(
    function: Callable[[WorkT], ResultT], work: Sequence[WorkT], on_done: Callable[[int, int], None] | None = None
) -> Iterator[ResultT]:
    """Yield `function(each)` for each of `work`, in its order, each computed in a Ray task of one CPU.

    A task whose worker or node is lost is run again; an error of the function is raised here as it is. `on_done` gets
    the number of results so far and the number of all.
    """
    task: Any = ray.remote(num_cpus=1, max_retries=RETRIES)(function)
    limit = IN_FLIGHT_PER_CPU * max(session.num_cpus(), 1)
    pending: list[Any] = []
    try:
        for done in range(len(work)):
            while len(pending) < limit and done + len(pending) < len(work):
                pending.append(task.remote(work[done + len(pending)]))
            try:
                result: ResultT = ray.get(pending.pop(0))
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            if on_done is not None:
                on_done(done + 1, len(work))
            yield result
    finally:
        pending.clear()  # while Ray still runs: a traceback would keep the references
