"""`raytrain review`: its commands by name, and which of them may be a job of a cluster. Must not know arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raytrain.command import Command
from raytrain.command_review_apply import Apply
from raytrain.command_review_effect import Effect
from raytrain.command_review_log import Diff, Export, Merge
from raytrain.command_review_rank import Rank
from raytrain.command_review_serve import Serve
from raytrain.errors import ConfigError

REVIEW_COMMANDS: dict[str, Callable[..., Command]] = {
    "rank": Rank,
    "serve": Serve,
    "export": Export,
    "merge": Merge,
    "diff": Diff,
    "apply": Apply,
    "effect": Effect,
}

_SMALL = "it moves decisions, which are small, between stores, and needs no cluster"
NO_JOBS: dict[str, str] = {
    "serve": "a job has no address that a browser reaches, and the page is for the people at this machine",
    "export": _SMALL,
    "merge": _SMALL,
    "diff": _SMALL,
}
"""Commands that run where they are typed, and why."""


def check_review_of_job(arguments: Sequence[str]) -> None:
    """Raise `ConfigError`, with the reason, for the arguments of a command of `raytrain review` that is no job's."""
    name = next(iter(arguments), "")
    if name in NO_JOBS:
        raise ConfigError(f"review {name} is not for a job: {NO_JOBS[name]}; run raytrain review {name} here")
