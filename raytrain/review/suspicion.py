"""How suspicious each label is, and of what error: from the features of all tiles at once. Must not know pixels.

What contradicts a label is counted beyond what is normal at its location: where a model is weak, all labels are
contradicted. Which error it is comes from what undoing each would gain. Nothing depends on the order of the tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raytrain.review.features import Features
from raytrain.review.kinds import ERROR_KINDS, ErrorKind

PRIOR_TILES = 2.0
"""A location says as much of what is normal there as all locations together when it has so many tiles."""
HALF = 0.5
"""The contradiction beyond the normal, in nats, that makes a suspicion of 1/2."""
SOFTNESS = 0.05
"""In nats: by so much around the normal, suspicion goes over to nothing, and stays in order."""
ALL_FRACTION = 0.998
"""A label with more of one class is taken to have only that."""
OUTLINE_WEIGHT = 1.3
"""An outline explains the contradictions beside it, though pieces of these may gain as much alone."""
UNRELATED = 0.2
"""Label and prediction that are associated less have less and less to do with each other."""
MIXED_FRACTION = 0.02
"""A prediction with less of one class has nothing that a label could be associated with."""
NOISE_WEIGHT = 1.1
"""What is unrelated is noise, though it is mostly missing or false cloud as well."""
LEAST_GAIN = 1e-3
"""In nats per pixel; by less no kind is told from another, and all have a part in the suspicion."""


@dataclass(frozen=True)
class Judgement:
    """How suspicious a label is, in [0, 1], the kind of error that explains most, and the suspicion of each kind.

    The suspicion of a kind is that of any error times how much this one explains beside the one that explains most.
    """

    suspicion: float
    kind: ErrorKind
    of_kind: dict[ErrorKind, float]


def judge(features: Sequence[Features], locations: Sequence[str]) -> list[Judgement]:
    """Return the judgement of each tile, by its features, among all tiles and those of its location.

    Raises `ValueError` where there are not as many locations as features.
    """
    if len(features) != len(locations):
        raise ValueError(f"{len(features)} features, but {len(locations)} locations")
    if not features:
        return []
    contradiction = np.array([each.contradiction for each in features])
    beyond = SOFTNESS * np.logaddexp(0, (contradiction - _normal(contradiction, locations)) / SOFTNESS)
    suspicion = beyond / (beyond + HALF)
    gains_NK = np.array([_gains(each) for each in features])
    most_N = gains_NK.max(1)
    shares_NK = gains_NK / np.maximum(most_N, LEAST_GAIN)[:, None]
    return [
        Judgement(
            suspicion=float(suspicion[i]),
            kind=ERROR_KINDS[int(gains_NK[i].argmax())],
            of_kind=dict(zip(ERROR_KINDS, (suspicion[i] * shares_NK[i]).tolist(), strict=True)),
        )
        for i in range(len(features))
    ]


def _normal(values: NDArray[np.float64], locations: Sequence[str]) -> NDArray[np.float64]:
    """Return the median of `values` at each tile's location, drawn towards that of all tiles."""
    numbers = np.unique(np.asarray(locations, dtype=np.str_), return_inverse=True)[1]
    order = np.lexsort((values, numbers))
    counts = np.bincount(numbers)
    starts = np.cumsum(counts) - counts
    middles = values[order][starts + (counts - 1) // 2]
    weights = counts / (counts + PRIOR_TILES)
    return np.asarray((weights * middles + (1 - weights) * np.median(values))[numbers])


def _gains(features: Features) -> list[float]:
    """Return what undoing each kind of error gains, in the order of the kinds; 0 for kinds that can't be."""
    found = dict.fromkeys(ERROR_KINDS, 0.0)
    if features.label_fraction < 1 - ALL_FRACTION:
        found["empty"] = features.whole_gain
    elif features.label_fraction > ALL_FRACTION:
        found["full"] = features.whole_gain
    else:
        found["missing-cloud"] = features.missing_gain
        found["false-cloud"] = features.false_gain
        found["shifted"] = features.shift_gain
        outline: ErrorKind = "loose-outline" if features.outline_px > 0 else "tight-outline"
        found[outline] = OUTLINE_WEIGHT * features.outline_gain
        found["noise"] = _noise(features)
    return [found[kind] for kind in ERROR_KINDS]


def _noise(features: Features) -> float:
    """Return what taking the prediction gains where clouds are missing and false alike, or nothing fits."""
    both = 2 * min(features.missing_gain, features.false_gain)
    if not MIXED_FRACTION <= features.predicted_fraction <= 1 - MIXED_FRACTION:
        return both
    unrelated = min(1.0, max(0.0, 1 - features.association / UNRELATED))
    return max(both, NOISE_WEIGHT * unrelated * features.whole_gain)
