"""Why a rank should save its state before its next checkpoint is due: it was asked to, or its node will be taken away.

Ray Train's controller and its watcher of preemptions speak to the process of a rank, beside the thread that trains; a
process has one rank.
"""

from __future__ import annotations

import threading

from ray.train.v2._internal.execution.context import get_train_context

_asked = threading.Event()


def save_soon() -> None:
    """Ask the rank of this process to save its state after its next step."""
    _asked.set()


def has_saved_what_was_asked() -> bool:
    """Tell whether nothing that was asked for is left to save."""
    return not _asked.is_set()


def is_asked() -> bool:
    """Tell whether the state should be saved now."""
    return _asked.is_set()


def set_saved() -> None:
    """Say that the state was saved."""
    _asked.clear()


def is_preempted() -> bool:
    """Tell whether a node of this run will be taken away: rank 0 has been told, as all ranks are.

    Ray Train's own `get_preemption_info` makes all ranks meet at each call; a checkpoint of ours needs one rank only.
    """
    return get_train_context().preemption_context.preemption_info is not None
