"""The counts of many pairs, by chip and by location. Must not know files, or what is made of the counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from raytrain.errors import DataError
from raytrain.evaluation.counting import MapCounts, MemberCounts
from raytrain.evaluation.masks import Counts, Pair, Reading, count_pair
from raytrain.evaluation.oddities import Oddity, oddity_of


@dataclass(frozen=True)
class Summed:
    """What is kept of maps by location alone: counts, and of how many chips."""

    maps: MapCounts | None = None
    num_maps: int = 0
    members: MemberCounts | None = None
    num_members: int = 0

    def plus(self, other: Summed) -> Summed:
        """Return both together."""
        return Summed(
            MapCounts.sum(self.maps, other.maps),
            self.num_maps + other.num_maps,
            MemberCounts.sum(self.members, other.members),
            self.num_members + other.num_members,
        )


@dataclass(frozen=True)
class Tally:
    """What one way of predicting came to, chip by chip: ids, locations, `confusions` `[N, zone, 4]`, and more.

    `unpredicted_px` `[N]` are labelled pixels without a prediction. What maps came to is summed `by_location`.
    """

    chip_ids: list[str] = field(default_factory=list)
    locations: list[str] = field(default_factory=list)
    confusions: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2, 4), np.int64))
    unpredicted_px: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    by_location: dict[str, Summed] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.chip_ids)

    @cached_property
    def totals(self) -> NDArray[np.int64]:
        """The confusions `[N, 4]` over both zones."""
        return np.asarray(self.confusions.sum(1))

    @cached_property
    def location_names(self) -> list[str]:
        """The names of the locations, in order."""
        return sorted(set(self.locations))

    @cached_property
    def location_of(self) -> NDArray[np.intp]:
        """The position in `location_names` of each chip `[N]`."""
        place = {name: i for i, name in enumerate(self.location_names)}
        return np.array([place[name] for name in self.locations], np.intp)

    def chosen(self, chips: NDArray[np.bool_]) -> Tally:
        """Return the chips of which `chips` `[N]` is true, without what maps came to."""
        places = np.flatnonzero(chips)
        return Tally(
            [self.chip_ids[i] for i in places],
            [self.locations[i] for i in places],
            self.confusions[places],
            self.unpredicted_px[places],
        )


class Gathering:
    """Tallies of different chips put together as they come; what maps came to is summed at once, and not kept."""

    def __init__(self) -> None:
        self._parts: list[Tally] = []
        self._by_location: dict[str, Summed] = {}

    def add(self, tally: Tally) -> None:
        """Add the chips of `tally` behind the others."""
        for name, summed in tally.by_location.items():
            self._by_location[name] = self._by_location.get(name, Summed()).plus(summed)
        self._parts.append(replace(tally, by_location={}))

    def tally(self) -> Tally:
        """Return all chips so far, in their order."""
        return Tally(
            [chip_id for part in self._parts for chip_id in part.chip_ids],
            [location for part in self._parts for location in part.locations],
            np.concatenate([Tally().confusions, *(part.confusions for part in self._parts)]),
            np.concatenate([Tally().unpredicted_px, *(part.unpredicted_px for part in self._parts)]),
            self._by_location,
        )


def joined(tallies: Iterable[Tally]) -> Tally:
    """Return tallies of different chips as one, in their order."""
    gathering = Gathering()
    for tally in tallies:
        gathering.add(tally)
    return gathering.tally()


def count_pairs(pairs: Sequence[Pair], readings: Sequence[Reading], edge_px: int) -> tuple[list[Tally], list[Oddity]]:
    """Return a tally for each of `readings` over the pairs that can be counted, and what is wrong with the others."""
    counted: list[tuple[Pair, list[Counts]]] = []
    oddities: list[Oddity] = []
    for pair in pairs:
        try:
            counted.append((pair, count_pair(pair, readings, edge_px)))
        except DataError as error:
            oddities.append(oddity_of(pair.chip_id, error))
    tallies = [_tally([(pair, counts[i]) for pair, counts in counted]) for i in range(len(readings))]
    return tallies, oddities


def _tally(counted: Sequence[tuple[Pair, Counts]]) -> Tally:
    by_location: dict[str, Summed] = {}
    for pair, counts in counted:
        summed = Summed(counts.maps, int(counts.maps is not None), counts.members, int(counts.members is not None))
        by_location[pair.location] = by_location.get(pair.location, Summed()).plus(summed)
    return Tally(
        [pair.chip_id for pair, _ in counted],
        [pair.location for pair, _ in counted],
        np.array([counts.confusion for _, counts in counted], np.int64).reshape(-1, 2, 4),
        np.array([counts.unpredicted_px for _, counts in counted], np.int64),
        by_location,
    )
