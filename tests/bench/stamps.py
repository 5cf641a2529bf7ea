"""Times of what a training does, noted by whoever does it: lines of JSON in a file, in the order of events.

A rank of Ray Train notes its own steps if it is entered by `watched_rank` instead of raytrain's function. Nothing in
raytrain knows of it: what is called there is wrapped from here.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

EVENTS = "RAYTRAIN_BENCH_EVENTS"
"""The variable that names the file; processes of Ray inherit it."""


def note(what: str, **more: Any) -> None:
    """Add an event of now to the file. A line is written at once, so that those of several processes do not mix."""
    line = json.dumps({"at": time.time(), "what": what, "pid": os.getpid(), **more}) + "\n"
    with Path(os.environ[EVENTS]).open("a") as file:
        file.write(line)


def read(path: Path) -> list[dict[str, Any]]:
    """Return the events in the order of their times, without a line that is being written."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return sorted((json.loads(line) for line in lines if line.endswith("\n")), key=lambda event: event["at"])


def watched_rank(config: dict[str, Any]) -> None:
    """Be a rank of a run, and note what rank 0 does."""
    import ray
    import ray.train

    context = ray.train.get_context()
    rank_number = context.get_world_rank()
    note("rank begins", rank=rank_number, node=ray.get_runtime_context().get_node_id())

    import torch

    from raytrain.cluster import fit, rank
    from raytrain.training import loop

    if rank_number == 0:
        note("rank has imported", threads=torch.get_num_threads())
        rank.TrainingData = noting(rank.TrainingData, after="data are open")  # type: ignore[misc]
        loop._fresh_state = noting(loop._fresh_state, "start is chosen", "net is built")
        loop.take_step = _noting_steps(loop.take_step)
    fit._train_on_rank(config)


def noting(function: Callable[..., Any], before: str | None = None, after: str | None = None) -> Callable[..., Any]:
    """Return `function`, with a note before and after each call."""

    @functools.wraps(function)
    def noted(*arguments: Any, **options: Any) -> Any:
        if before is not None:
            note(before)
        found = function(*arguments, **options)
        if after is not None:
            note(after)
        return found

    return noted


def _noting_steps(take_step: Callable[..., Any]) -> Callable[..., Any]:
    def noted(net: Any, state: Any, settings: Any, *others: Any) -> Any:
        begun, position = time.time(), state.position
        loss = take_step(net, state, settings, *others)
        done = min(position.samples_done + settings.global_batch, state.num_samples)
        note("step", begun=begun, images=position.epoch * state.num_samples + done)
        return loss

    return noted
