"""Asking a cluster that can grow for what work can use, and waiting until the least of it is there.

A cluster that begins without workers has no GPU and no CPU, and grows only for what is asked of it: a pool that starts
as many actors as there is room for would stay with one. What it can grow to stands in labels of its head
(`session.can_grow_to`). Requests go to the coordinator that Ray Train asks, too: they add up over commands, and that of
a killed command ends by itself. Of `ray.autoscaler.sdk.request_resources` there is one for all, which would keep nodes
until somebody takes it back. Must not know what the work is.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import ray
import ray.exceptions

# Private, as is all of it: Ray has no public way in 2.60 to ask for resources beside others.
from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import ResourceRequestPriority
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator

from raytrain.cluster import session
from raytrain.errors import WorkNotFinished

RENEW_S, EXPIRE_S = 20.0, 180.0
"""How often a request is made again, and how long one counts of which nobody hears any more."""
LIMIT_S = 1800.0
"""How long the least may take to come: a machine boots and pulls an image of several GB in some minutes, but spot
capacity may have to be waited for."""
LOOK_S, TELL_S = 2.0, 30.0
ANSWER_S = 10.0
_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def asked_for(count: int, *, use_gpu: bool, at_least: int = 1) -> Iterator[Growth]:
    """Run the body once the cluster has `at_least` GPUs, or CPUs; while it runs, ask for `count` or what it says then.

    On a cluster that can't grow the body begins at once. Raises `WorkNotFinished` if the least does not come.
    """
    growth = Growth("GPU" if use_gpu else "CPU")
    try:
        growth.ask(count)
        growth.wait_for(at_least)
        yield growth
    finally:
        growth.end()


class Growth:
    """One command's request for GPUs, or for CPUs: how many it could use now, as far as the cluster can grow."""

    def __init__(self, resource: session.Resource) -> None:
        self._resource = resource
        self._most = session.can_grow_to(resource)
        self._name = f"raytrain-{uuid.uuid4().hex}"
        self._asked = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._renewing: threading.Thread | None = None

    @property
    def is_possible(self) -> bool:
        """Whether the cluster can grow at all."""
        return self._most > 0

    def ask(self, count: int) -> None:
        """Say how many could be used now, those that are there included; 0 takes the request back."""
        wanted = max(0, min(count, self._most))
        with self._lock:
            if wanted == self._asked:
                return
            self._asked = wanted
            self._send()
        if self._renewing is None:
            self._renewing = threading.Thread(target=self._renew, name="growth", daemon=True)
            self._renewing.start()

    def wait_for(self, count: int) -> None:
        """Wait until the cluster has `count`, if it can grow; raise `WorkNotFinished` if that takes too long."""
        begun, told = time.monotonic(), -TELL_S
        while self.is_possible and (have := self._have()) < count:
            waited_s = time.monotonic() - begun
            if waited_s > LIMIT_S:
                raise WorkNotFinished(
                    f"the cluster has {have} of at least {count} {self._resource}s after {waited_s / 60:.0f} min: "
                    "`ray status` on its head tells what keeps nodes from coming (quotas, spot capacity, the head's "
                    "role, an image that can't be pulled); the same command goes on"
                )
            if waited_s - told >= TELL_S:
                told = waited_s
                _logger.warning(
                    "waiting for nodes: the cluster has %d %ss, %d are the least to begin with, and %d are asked for",
                    have,
                    self._resource,
                    count,
                    self._asked,
                )
            time.sleep(LOOK_S)

    def end(self) -> None:
        """Take the request back."""
        self._ended.set()
        if self._renewing is None:
            return
        self._renewing.join(timeout=ANSWER_S)
        with self._lock, contextlib.suppress(ray.exceptions.RayError):  # else it ends by itself
            ray.get(_coordinator().cancel_request.remote(self._name), timeout=ANSWER_S)

    def _have(self) -> int:
        return session.num_gpus() if self._resource == "GPU" else session.num_cpus()

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_S):
            with self._lock:
                self._send()

    def _send(self) -> None:
        """Tell the coordinator; the lock is held, and what it answers is waited for by nobody."""
        with contextlib.suppress(ray.exceptions.RayError):  # the cluster is lost: the work itself hears of that
            _coordinator().request_resources.remote(
                requester_id=self._name,
                resources=[{self._resource: 1}] * self._asked,
                expire_after_s=EXPIRE_S,
                # What the coordinator sets aside for a run of Ray Train comes before what it sets aside for this.
                priority=ResourceRequestPriority.LOW,
            )


def _coordinator() -> Any:
    return get_or_create_autoscaling_coordinator()  # type: ignore[no-untyped-call]  # Ray has no annotation there
