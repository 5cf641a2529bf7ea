"""The number of ranks of an elastic run: Ray Train's policy, which follows the nodes, after a checkpoint.

Ray Train ends the ranks where they stand to go on with more of them; what they did since the last checkpoint would be
done again each time that a node comes.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

import ray
import ray.exceptions
from ray.train.v2._internal.constants import WORKER_GROUP_START_TIMEOUT_S_ENV_VAR
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.train.v2.api.config import ScalingConfig

from raytrain import logs
from raytrain.cluster.board import Noted
from raytrain.cluster.requests import has_saved_what_was_asked, save_soon
from raytrain.cluster.session import alive_nodes
from raytrain.errors import first_line

WAIT_S = 120
"""How long ranks get to save their state before their number changes."""
ASK_S = 5
PLACE_S = 10
"""How long ranks wait for places that are said to be there. Ray Train has 60 s: of use where a cluster has yet to grow,
but here it is a node that is lost and not missed yet, and another look at the nodes finds fewer."""
_logger = logging.getLogger(__name__)


class SavingElasticPolicy(ElasticScalingPolicy):
    """Changes the number of running ranks once the first of them has saved the state of the run."""

    def __init__(self, scaling_config: ScalingConfig, run: str, board: Any) -> None:
        super().__init__(scaling_config)
        self._run = run
        self._board = board
        self._is_waiting = False
        self._resize: ResizeDecision | None = None
        self._asked_at = 0.0

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Return how many ranks to begin with."""
        self._resize = None
        os.environ.setdefault(WORKER_GROUP_START_TIMEOUT_S_ENV_VAR, str(PLACE_S))  # of the controller's process
        decision = super().make_decision_for_non_running_worker_group()
        is_waiting = isinstance(decision, NoopDecision)
        if is_waiting and not self._is_waiting:
            text = f"waits for nodes with room for {self.scaling_config.min_workers} ranks"
            self._board.post.remote(Noted(self._run, text))
        self._is_waiting = is_waiting
        return decision

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Return whether to go on with another number of ranks now."""
        first = worker_group_state.workers[0]
        if self._resize is None:
            decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
            if not isinstance(decision, ResizeDecision):
                return decision
            self._resize, self._asked_at = decision, time.monotonic()
            now, wanted = len(worker_group_state.workers), decision.num_workers
            event = logs.fields(event="resize", ranks=now, wanted=wanted)
            _logger.info("run %s: from %d to %d ranks, once the state is saved", self._run, now, wanted, extra=event)
            first.execute_async(save_soon)
            return NoopDecision()
        if self._is_saved(first) or time.monotonic() - self._asked_at > WAIT_S:
            decision, self._resize = self._resize, None
            return decision
        return NoopDecision()

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        """Return for how many ranks there is room, on nodes that are there: what Ray Train asks is 20 s behind."""
        try:
            alive = alive_nodes()
        except Exception as error:  # noqa: BLE001  # whatever it is, Ray Train's own answer is the next best
            _logger.warning("can't look at the nodes: %s", first_line(error))
            return int(super()._count_possible_workers(reserved_resources))
        there = {node: resources for node, resources in reserved_resources.items() if node in alive}
        return int(super()._count_possible_workers(there))

    def _is_saved(self, worker: Any) -> bool:
        try:
            return bool(ray.get(worker.execute_async(has_saved_what_was_asked), timeout=ASK_S))
        except ray.exceptions.RayError:
            return False  # slow, or gone: then the controller sees that
