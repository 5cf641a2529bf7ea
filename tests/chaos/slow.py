"""A trace of runs in which a rank that is alone takes its time, since a node needs some to come back."""

from __future__ import annotations

import sys
import time
from typing import Any

from tests.chaos import trace

HOOK = f"{__name__}.install"
ALONE_S = 0.2


def install() -> None:
    """Trace a worker's runs, and slow down those of one rank (a `worker_process_setup_hook`)."""
    trace.install()
    sys.meta_path.insert(0, trace.WhenImported(_slow_down))


def _slow_down(loop: Any) -> None:
    step = loop.take_step

    def take_step(net: Any, state: Any, settings: Any, samples: Any, ranks: Any) -> Any:
        if ranks.world_size == 1:
            time.sleep(ALONE_S)
        return step(net, state, settings, samples, ranks)

    loop.take_step = take_step
