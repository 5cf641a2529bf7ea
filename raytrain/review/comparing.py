"""What two logs, or two reviewers, say differently about the same tiles. Must not know where labels come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raytrain.errors import DataError
from raytrain.review.decisions import Decision
from raytrain.review.standing import Standing, iou_of_changes

Pixels = tuple[NDArray[np.uint8] | None, NDArray[np.bool_]]
"""The label of a tile, `[H, W] uint8` or None, and which of its pixels have data, `[H, W] bool`."""


@dataclass(frozen=True)
class Difference:
    """A tile about which two decisions differ, or there is one only: who decided what (None: nothing), the IoU.

    `iou` is that of the pixels that two fixes, or two ignores, change (`standing.iou_of_changes`); None for others.
    """

    tile_id: str
    first: Decision | None
    second: Decision | None
    iou: float | None = None


def differences(
    first: Mapping[str, Decision], second: Mapping[str, Decision], pixels_of: Callable[[str, str], Pixels]
) -> tuple[list[Difference], list[DataError]]:
    """Return the tiles about which decisions, by tile, differ, by name; and what can't be compared, which differs, too.

    Two differ by verdict, or by what they draw; reasons, times and ids may differ. Decisions about tiles of
    one name that were not the same can't be compared. `pixels_of` is asked, by id and sha256, for tiles whose masks
    differ, and raises `DataError` for one that it has not.
    """
    found: list[Difference] = []
    problems: list[DataError] = []
    for tile_id in sorted({*first, *second}):
        one, other = first.get(tile_id), second.get(tile_id)
        iou = None
        if one is not None and other is not None and one.tile_sha256 != other.tile_sha256:
            seen = f"the first looked at a tile with the sha256 {one.tile_sha256}, the second at {other.tile_sha256}"
            problems.append(DataError(f"tile {tile_id}", f"{seen}; what they decided can't be compared"))
        elif one is not None and other is not None and one.verdict == other.verdict:
            if one.mask == other.mask:
                continue
            try:
                label_HW, valid_HW = pixels_of(tile_id, one.tile_sha256)
                iou = iou_of_changes(one, other, label_HW, valid_HW)
            except DataError as error:
                problems.append(error)
            if iou == 1:  # two files of the same pixels
                continue
        found.append(Difference(tile_id, one, other, iou))
    return found, problems


def of_reviewer(standing: Standing, reviewer: str) -> dict[str, Decision]:
    """Return the decisions of a reviewer that stand, by tile."""
    return {tile_id: found[reviewer] for tile_id, found in standing.items() if reviewer in found}
