"""Labels made wrong on purpose, in known ways: what a ranking of labels is measured by. Must not know rankings.

Each corruption is drawn from a generator, and again until it changes enough of the label; where a label can't be
changed so (there is no cloud to drop), that is said by None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from raytrain.imagery.rasters import LABEL_CLEAR, LABEL_CLOUD, LABEL_IGNORE
from raytrain.review.kinds import ErrorKind

Corruption = Literal["shift", "dilate", "erode", "drop", "add", "empty", "full", "other"]
CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)
"""`other` is the label of another tile."""
KIND_OF: dict[Corruption, ErrorKind] = {
    "shift": "shifted",
    "dilate": "loose-outline",
    "erode": "tight-outline",
    "drop": "missing-cloud",
    "add": "false-cloud",
    "empty": "empty",
    "full": "full",
    "other": "noise",
}
"""What each ought to be called."""
LEAST_CHANGED_FRACTION = 0.03
"""Of the pixels of a label that are not ignored: less is no error that a reviewer would be called for."""
SHIFT_FRACTIONS = (0.04, 0.15)
"""Of the tile's side, of each way that a label is shifted at least one is drawn from here."""
RADIUS_FRACTIONS = (0.02, 0.06)
"""Of the tile's side, by how much an outline grows or shrinks."""
REDRAWS = 8
"""Attempts, after which a label can't be corrupted in this way."""
Label = NDArray[np.uint8]


@dataclass(frozen=True)
class Corrupted:
    """A label made wrong: how, and what it is now, `[H, W] uint8`."""

    corruption: Corruption
    label: Label


def corrupt_some(labels: Sequence[Label], fraction: float, seed: int) -> dict[int, Corrupted]:
    """Return what becomes of a `fraction` of `labels` (of one shape), by position; kinds have equal shares, to one.

    Raises `ValueError` where too few labels can be corrupted in one of the ways.
    """
    random = np.random.default_rng(seed)
    total = round(fraction * len(labels))
    order = list(random.permutation(len(CORRUPTIONS)))
    turns = [CORRUPTIONS[order[i % len(CORRUPTIONS)]] for i in range(total)]
    free = [int(i) for i in random.permutation(len(labels))]
    found: dict[int, Corrupted] = {}
    for corruption in turns:
        for i in free:
            label = corrupt(labels, i, corruption, random)
            if label is not None:
                found[i] = Corrupted(corruption, label)
                free.remove(i)
                break
        else:
            raise ValueError(f"none of the {len(free)} labels left can be corrupted by {corruption}")
        # Those that were passed by come first for the next kind otherwise: kinds would have tiles of their own.
        random.shuffle(free)
    return found


def corrupt(labels: Sequence[Label], i: int, corruption: Corruption, random: np.random.Generator) -> Label | None:
    """Return label `i` corrupted, ignored pixels as they were; None where no draw changes enough of it."""
    known = labels[i] != LABEL_IGNORE
    cloud = labels[i] == LABEL_CLOUD
    for _ in range(REDRAWS):
        wrong = _WAYS[corruption](cloud, labels, i, random)
        changed = (wrong != cloud) & known
        if changed.sum() >= LEAST_CHANGED_FRACTION * known.sum() > 0:
            return np.where(known, wrong.astype(np.uint8), np.uint8(LABEL_IGNORE))
    return None


_Cloud = NDArray[np.bool_]
_Way = Callable[[_Cloud, Sequence[Label], int, np.random.Generator], _Cloud]
"""From where a label says cloud, all labels, its position and the generator to where it says cloud then."""


def _shift(cloud: _Cloud, labels: Sequence[Label], i: int, random: np.random.Generator) -> _Cloud:
    """Move by as much as drawn in a direction drawn; what comes in repeats the edge."""
    far = random.uniform(*SHIFT_FRACTIONS) * min(cloud.shape)
    angle = random.uniform(0, 2 * np.pi)
    down, right = round(far * np.sin(angle)), round(far * np.cos(angle))
    by = max(abs(down), abs(right))
    padded = np.pad(cloud, by, mode="edge")
    height, width = cloud.shape
    return np.asarray(padded[by - down : by - down + height, by - right : by - right + width])


def _grown(cloud: _Cloud, random: np.random.Generator) -> _Cloud:
    radius = max(1, round(random.uniform(*RADIUS_FRACTIONS) * min(cloud.shape)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return np.asarray(cv2.dilate(cloud.astype(np.uint8), disc), np.bool_)


def _dilate(cloud: _Cloud, labels: Sequence[Label], i: int, random: np.random.Generator) -> _Cloud:
    """Grow; a label that is all cloud afterwards is left as it was, since that is another kind of error."""
    grown = _grown(cloud, random)
    return cloud if grown.all() else grown


def _erode(cloud: _Cloud, labels: Sequence[Label], i: int, random: np.random.Generator) -> _Cloud:
    """Shrink; a label without cloud afterwards is left as it was, for the same reason."""
    shrunk = ~_grown(~cloud, random)
    return shrunk if shrunk.any() else cloud


def _drop(cloud: _Cloud, labels: Sequence[Label], i: int, random: np.random.Generator) -> _Cloud:
    """Drop one cloud of several."""
    clouds = _clouds(cloud)
    if len(clouds) < 2:
        return cloud
    return cloud & ~clouds[random.integers(len(clouds))]


def _add(cloud: _Cloud, labels: Sequence[Label], i: int, random: np.random.Generator) -> _Cloud:
    """Add a cloud of another label, where it is there, turned and mirrored by chance; never so that all is cloud."""
    clouds = _clouds(labels[_another(labels, i, random)] == LABEL_CLOUD)
    if not clouds:
        return cloud
    shape = np.rot90(clouds[random.integers(len(clouds))], random.integers(4))
    shape = shape[:, ::-1] if random.integers(2) else shape
    more = cloud | shape if shape.shape == cloud.shape else cloud
    return cloud if more.all() else more


def _empty(cloud: _Cloud, labels: Sequence[Label], i: int, random: np.random.Generator) -> _Cloud:
    return np.full_like(cloud, LABEL_CLEAR)


def _full(cloud: _Cloud, labels: Sequence[Label], i: int, random: np.random.Generator) -> _Cloud:
    return np.full_like(cloud, LABEL_CLOUD)


def _other(cloud: _Cloud, labels: Sequence[Label], i: int, random: np.random.Generator) -> _Cloud:
    """Take another label that says something: neither all clear nor all cloud, which are kinds of their own."""
    theirs = labels[_another(labels, i, random)] == LABEL_CLOUD
    says_something = theirs.any() and not theirs.all() and theirs.shape == cloud.shape
    return theirs if says_something else cloud


def _another(labels: Sequence[Label], i: int, random: np.random.Generator) -> int:
    return int((i + 1 + random.integers(len(labels) - 1)) % len(labels))


def _clouds(cloud: _Cloud) -> list[_Cloud]:
    """Return the clouds that are large enough to count by themselves, by 8-connectivity."""
    count, numbers = cv2.connectedComponents(cloud.astype(np.uint8), connectivity=8)
    each = [numbers == number for number in range(1, count)]
    return [one for one in each if one.sum() >= LEAST_CHANGED_FRACTION * cloud.size]


_WAYS: dict[Corruption, _Way] = {
    "shift": _shift,
    "dilate": _dilate,
    "erode": _erode,
    "drop": _drop,
    "add": _add,
    "empty": _empty,
    "full": _full,
    "other": _other,
}
