"""The places of a search's ranks: given back to the cluster where the actor that held them is gone.

A placement group outlives the actor that made it for as long as the job lives. Ray Train's own helper against that asks
the dashboard, which a local Ray has not: a trial's actor that was ended would keep its places for ever.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
from ray.util.placement_group import remove_placement_group

_logger = logging.getLogger(__name__)


@dataclass
class _Held:
    desk: Any
    ended: Any
    places: Any


class HeldPlaces:
    """The placement groups of the ranks of all desks that live."""

    def __init__(self) -> None:
        self._held: list[_Held] = []

    def add(self, desk: Any, places: Any) -> None:
        """Take in the group of a desk's ranks, in place of the one that they had before."""
        before = next((each for each in self._held if each.desk == desk), None)
        if before is None:
            self._held.append(_Held(desk, desk.stay.remote(), places))
        else:
            before.places = places

    def look(self) -> int:
        """Give back the places of desks that are gone; return how many."""
        lost = [each for each in self._held if ray.wait([each.ended], timeout=0)[0]]
        for each in lost:
            self._held.remove(each)
            _logger.info("the places of an actor that is gone are given back: %s", each.places.id)
            with contextlib.suppress(ray.exceptions.RayError):
                remove_placement_group(each.places)
        return len(lost)
