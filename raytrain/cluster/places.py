"""The places of a search's ranks: given back to the cluster where the actor that held them is gone.

A placement group outlives the actor that made it for as long as the job lives. Ray Train's own helper against that asks
the dashboard, which a local Ray has not: a trial's actor that was ended would keep its places for ever.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

UNKNOWN_S = 300.0
"""How long a group may be there without ranks that tell of it: Ray Train gives up a group that takes longer."""
END_S = 10.0
"""How long ranks that are started anew at the end of a search are looked for."""
_logger = logging.getLogger(__name__)


@dataclass
class _Held:
    desk: Any
    ended: Any
    places: Any
    controller: Any


class HeldPlaces:
    """The placement groups of the ranks of all desks that live, `workers` ranks each, on GPUs or CPUs."""

    def __init__(self, workers: int, use_gpu: bool) -> None:
        self._workers = workers
        self._resource = "GPU" if use_gpu else "CPU"
        self._held: list[_Held] = []
        self._unknown_since: dict[str, float] = {}
        self._not_ours = set(self._groups())

    def add(self, desk: Any, places: Any, controller: Any) -> None:
        """Take in the group of a desk's ranks and who controls them, in place of those that it had before."""
        before = next((each for each in self._held if each.desk == desk), None)
        if before is None:
            self._held.append(_Held(desk, desk.stay.remote(), places, controller))
        else:
            before.places, before.controller = places, controller

    def free_lost(self) -> None:
        """Give back the places of desks that are gone."""
        for each in [each for each in self._held if ray.wait([each.ended], timeout=0)[0]]:
            _logger.info("the places of an actor that is gone are given back: %s", each.places.id)
            self._free(each)

    def free_unknown(self) -> None:
        """Give back groups like those of ranks, of this job, of which no ranks have told for long.

        Their actor was lost before the ranks were up.
        """
        known = {each.places.id.hex() for each in self._held} | self._not_ours
        unknown = [name for name in self._groups() if name not in known]
        self._unknown_since = {name: self._unknown_since.get(name, time.monotonic()) for name in unknown}
        for name, since in list(self._unknown_since.items()):
            if time.monotonic() - since >= UNKNOWN_S:
                _logger.info("places that nobody tells of are given back: %s", name)
                _remove(name)

    def free_all(self) -> None:
        """Give back all places: no trial runs any more. What still starts ranks anew is ended first."""
        for each in list(self._held):
            self._free(each)
        deadline = time.monotonic() + END_S
        while (left := set(self._groups()) - self._not_ours) and time.monotonic() < deadline:
            for name in left:
                _remove(name)
            time.sleep(0.5)

    def _free(self, held: _Held) -> None:
        self._held.remove(held)
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(held.controller)
        _remove(held.places.id.hex())

    def _groups(self) -> list[str]:
        """Return the ids of this job's groups that are as large as those of ranks."""
        job = ray.get_runtime_context().get_job_id()
        table: Mapping[str, Any] = placement_group_table()
        return [
            name
            for name, group in table.items()
            if name.endswith(job) and group["state"] != "REMOVED" and self._is_of_ranks(group["bundles"].values())
        ]

    def _is_of_ranks(self, bundles: Any) -> bool:
        return len(bundles) == self._workers and all(bundle.get(self._resource) == 1 for bundle in bundles)


def _remove(name: str) -> None:
    with contextlib.suppress(ray.exceptions.RayError):
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(name)))
