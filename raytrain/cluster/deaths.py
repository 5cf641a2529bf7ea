"""Why a process on the cluster is no more: told from Ray's errors and their texts. Must not know what it did."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

import ray.exceptions

from raytrain.cluster import code
from raytrain.errors import ConfigError, RaytrainError

_MEMORY = re.compile(r"was ([\d.]+GB used / [\d.]+GB limit)")
"""What Ray 2.60 says of a node whose workers it killed; its text goes on with much advice."""
_NODE_GONE = re.compile(
    r"node (has died|was (terminated|marked dead|removed)|is dead)|node .{0,80} died", re.IGNORECASE
)


class Kind(StrEnum):
    """What may end work on a cluster; the texts stand in `history.json` and in tables."""

    PREEMPTED = "preempted"
    NODE_LOST = "node lost"
    WORKER_KILLED = "worker killed"
    OUT_OF_MEMORY = "out of memory"
    STORE_OUT_OF_REACH = "store out of reach"
    NO_WORKERS = "no workers"
    UNEXPECTED = "unexpected error"
    FINAL = "final"
    ACTOR_LOST = "actor lost"
    JOB_ENDED = "job ended"
    RESIZED = "resized"


@dataclass(frozen=True)
class Cause:
    """Why something ended: its kind, one line, and the error of ours that says it, if there is one."""

    kind: Kind
    text: str
    error: RaytrainError | None = None


def cause_of_death(whose: str, error: Exception, remedy: str) -> Cause:
    """Return why a process is no more; `remedy` says what to do where memory was short."""
    if isinstance(error, ray.exceptions.RayActorError) and error.preempted:
        return Cause(Kind.PREEMPTED, f"the node of {whose} was taken away, with notice")
    text = str(error)
    if differs := other_code(error):
        return differs
    if isinstance(error, ray.exceptions.OutOfMemoryError) or "low on memory" in text:
        full = _MEMORY.search(text)
        return Cause(Kind.OUT_OF_MEMORY, f"out of memory on a node{f' ({full[1]})' if full else ''}; {remedy}")
    if isinstance(error, ray.exceptions.NodeDiedError) or _NODE_GONE.search(text):
        return Cause(Kind.NODE_LOST, f"the node of {whose} is gone")
    return Cause(Kind.WORKER_KILLED, f"the process of {whose} is gone ({last_cause(error)})")


def other_code(error: Exception) -> Cause | None:
    """Return the cause where an error is that of a worker that runs another raytrain than its driver."""
    text = code.difference_in(str(error))
    return None if text is None else Cause(Kind.FINAL, text, ConfigError(text))


def last_cause(error: Exception) -> str:
    """Return the one line of Ray's long text that says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if re.match(r"^[\w.]*(Error|Exception|Diverged)\b.*:", line)]
    return (causes or lines or [type(error).__name__])[-1]
