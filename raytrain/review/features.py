"""What a label looks like beside a prediction, in numbers: contradictions, and what undoing each kind of error gains.

A label is judged by its log-likelihood under the calibrated prediction. For each kind of error there is a change that
would undo it (shift the label back, take its outline in, add the cloud that it lacks); what the label's log-likelihood
gains by it, in nats per pixel, says how well that error explains the tile. Ignored pixels and those without data count
nowhere. Must not know other tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import fft

from raytrain.imagery.rasters import LABEL_CLOUD, LABEL_IGNORE
from raytrain.review.calibration import Thresholds, bins_of

# A tile is looked at by one task, beside others: threads of OpenCV's own would only get in their way.
cv2.setNumThreads(0)
EVEN = 0.5
"""The probability from which cloud is likelier than clear."""
SEARCH_PX = 256
"""Shifts are searched at this size or less: of a larger tile to two pixels, four, ..."""
FARTHEST_FRACTION = 0.2
"""Of the shorter side: no label is taken to be shifted farther."""
THICKEST_FRACTION = 0.08
"""Of the shorter side: no outline is taken to be off by more."""
SLIVER_FRACTION = 0.03
"""Of the shorter side: contradictions that are thinner belong to an outline, not to a cloud."""
SPECKLE_PX = 1.5
"""Contradictions of single pixels are smoothed away with this standard deviation: no reviewer is called for them."""
SURE = 0.1
"""Members whose probabilities spread less (standard deviation) say the same."""
STRAIGHT_FRACTION = 0.1
"""Of the shorter side: an outline that runs along a row or a column for longer was cut, clouds are not so."""


@dataclass(frozen=True)
class Features:
    """The numbers that a tile is judged by. Gains are nats per known pixel, fractions are of the known pixels.

    - `iou`: of label and prediction; 1 where both are empty
    - `missing_fraction`, `false_fraction`: pixels labelled clear that are confidently cloud, and the other way round
    - `contradiction`: how far pixels contradict the label: the root mean square of the log-likelihood that each would
      gain by being turned, in nats, smoothed; where members disagree they count less
    - `boundary_px`: the mean distance of the outlines, both ways; NaN where one of the two has none
    - `shift_row_px`, `shift_column_px`: where the label lies beside where it would fit best; `shift_gain` of that
    - `outline_px`: by how much the label is too wide, negative where too narrow; `outline_gain` of the best outline
    - `missing_gain`, `false_gain`: of adding the clouds, and of removing the shapes, that are none of an outline's
    - `whole_gain`: of taking the prediction
    - `association`: of label and prediction (Matthews' correlation), 0 where one of the two is all clear or all cloud
    - `agreement`: pixels where all members are sure, and against the label
    - `label_fraction`, `predicted_fraction`: how much is cloud
    - `cut_fraction`: of the label's outline, how much is straight along a row or a column, or lies on the tile's edge
    - `disagreement_mean`: of the members
    """

    iou: float
    missing_fraction: float
    false_fraction: float
    contradiction: float
    boundary_px: float
    shift_row_px: float
    shift_column_px: float
    shift_gain: float
    outline_px: float
    outline_gain: float
    missing_gain: float
    false_gain: float
    whole_gain: float
    association: float
    agreement: float
    label_fraction: float
    predicted_fraction: float
    cut_fraction: float
    disagreement_mean: float


def features_of(
    label: NDArray[np.uint8],
    probability: NDArray[np.float32],
    disagreement: NDArray[np.float32] | None,
    thresholds: Thresholds,
    threshold: float = EVEN,
) -> Features:
    """Return the features of a tile: `label` `[H, W]`, `probability` of cloud and members' `disagreement`, NaN no data.

    A pixel is predicted cloud from the probability `threshold` on. Raises `ValueError` where nothing is known of both.
    """
    known = (label != LABEL_IGNORE) & ~np.isnan(probability)
    num_known = int(known.sum())
    if not num_known:
        raise ValueError("no pixel has both a label and a probability")
    filled = np.where(known, probability, np.float32(0))
    view = _View(
        cloud=(label == LABEL_CLOUD) & known,
        known=known,
        num_known=num_known,
        predicted=filled >= threshold,
        log_odds=np.where(known, thresholds.log_odds[bins_of(filled)], np.float32(0)),
    )
    cloud, clear = view.cloud, known & ~view.cloud
    spread = np.zeros_like(filled) if disagreement is None else np.where(known, disagreement, np.float32(0))
    # The largest spread that two halves of the members can have is 1/2: then they say nothing together.
    said = 1 - 2 * spread
    turned = np.where(cloud, -view.log_odds, view.log_odds)
    is_missing, is_false = _confident(cloud, clear, filled, thresholds)
    row, column, shift_gain = _shift(view)
    outline_px, outline_gain = _outline(view)
    share = 1 / num_known
    union = int((cloud | view.predicted).sum())
    return Features(
        iou=float((cloud & view.predicted).sum() / union) if union else 1.0,
        missing_fraction=float(is_missing.sum() * share),
        false_fraction=float(is_false.sum() * share),
        contradiction=_contradiction(view, turned * said),
        boundary_px=_boundary_distance(view),
        shift_row_px=row,
        shift_column_px=column,
        shift_gain=shift_gain,
        outline_px=outline_px,
        outline_gain=outline_gain,
        missing_gain=_piece_gain(turned * clear, view.to_cloud_px) * share,
        false_gain=_piece_gain(turned * cloud, _distance(view.log_odds <= 0)) * share,
        whole_gain=float(np.maximum(turned, 0).sum() * share),
        association=_association(view),
        agreement=float(((is_missing | is_false) & (spread < SURE)).sum() * share),
        label_fraction=float(cloud.sum() * share),
        predicted_fraction=float(view.predicted.sum() * share),
        cut_fraction=_cut_fraction(view),
        disagreement_mean=float(spread.sum() * share),
    )


@dataclass(frozen=True)
class _View:
    """A tile: where the label says cloud, where anything is known, the calibrated log odds of cloud there (else 0)."""

    cloud: NDArray[np.bool_]
    known: NDArray[np.bool_]
    num_known: int
    predicted: NDArray[np.bool_]
    log_odds: NDArray[np.float32]

    @property
    def side_px(self) -> int:
        """The shorter side."""
        return int(min(self.cloud.shape))

    @cached_property
    def to_cloud_px(self) -> NDArray[np.float32]:
        """How far each pixel is from the label's cloud; far beyond the tile where it has none."""
        return _distance(~self.cloud)


def _confident(
    cloud: NDArray[np.bool_], clear: NDArray[np.bool_], probability: NDArray[np.float32], thresholds: Thresholds
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which pixels labelled clear are confidently cloud, and which labelled cloud are confidently clear.

    A pixel is of the class whose threshold it reaches, of the likelier one where it reaches both (Northcutt, Jiang and
    Chuang 2021, section 3.1).
    """
    is_cloud, is_clear = probability >= thresholds.cloud, 1 - probability >= thresholds.clear
    is_likelier = probability >= EVEN
    return clear & is_cloud & (is_likelier | ~is_clear), cloud & is_clear & ~(is_likelier & is_cloud)


def _contradiction(view: _View, gain: NDArray[np.float32]) -> float:
    """Return the root mean square of the `gain` of turning pixels, where it is one.

    Squares, since few pixels of which the members are sure say more than many of which they are half sure.
    """
    smooth = np.asarray(cv2.GaussianBlur(gain, (0, 0), SPECKLE_PX)) * view.known
    return float(np.sqrt((np.maximum(smooth, 0) ** 2).sum() / view.num_known))


def _shift(view: _View) -> tuple[float, float, float]:
    """Return by how many rows and columns the label lies off, and what shifting it back gains per pixel.

    By correlation of label and log odds, over the pixels that are known and whose label comes from one that is.
    """
    step = -(-max(view.cloud.shape) // SEARCH_PX)
    odds, known = _shrunk(view.log_odds, step), _shrunk(view.known.astype(np.float32), step)
    cloud = _shrunk(view.cloud.astype(np.float32), step)
    farthest = max(1, int(FARTHEST_FRACTION * min(odds.shape)))
    shape = [fft.next_fast_len(side + farthest, real=True) for side in odds.shape]
    label_f, known_f, odds_f, both_f = (
        fft.rfft2(each, shape) for each in (cloud, known, odds, cloud * odds / np.maximum(known, 1e-6))
    )
    # Of every shift: the likelihood of the label moved, less that of the label as it is on the same pixels.
    gains = fft.irfft2(np.conj(label_f) * odds_f - np.conj(known_f) * both_f, shape)
    overlap = fft.irfft2(np.conj(known_f) * known_f, shape)
    ways = np.arange(-farthest, farthest + 1)
    gain = gains[np.ix_(ways, ways)] / np.maximum(overlap[np.ix_(ways, ways)], 1)
    gain[overlap[np.ix_(ways, ways)] < 0.5 * known.sum()] = 0
    gain[np.hypot(*np.meshgrid(ways, ways, indexing="ij")) > farthest] = 0
    down, right = np.unravel_index(int(np.argmax(gain)), gain.shape)
    best = float(gain[down, right])
    if best <= 0:
        return 0.0, 0.0, 0.0
    return float(-ways[down] * step), float(-ways[right] * step), best


def _shrunk(values: NDArray[np.float32], step: int) -> NDArray[np.float32]:
    """Return the means of squares of `step` pixels."""
    if step == 1:
        return values
    height, width = (-(-side // step) for side in values.shape)
    padded = np.pad(values, ((0, height * step - values.shape[0]), (0, width * step - values.shape[1])))
    return np.asarray(cv2.resize(padded, (width, height), interpolation=cv2.INTER_AREA))


def _outline(view: _View) -> tuple[float, float]:
    """Return by how many pixels the label's outline is too wide, and what the best outline gains per pixel."""
    if not view.cloud.any() or not (view.known & ~view.cloud).any():
        return 0.0, 0.0
    most = max(1, int(THICKEST_FRACTION * view.side_px))
    outside = np.minimum(view.to_cloud_px, most + 1)
    inside = np.minimum(_distance(view.cloud), most + 1)
    # Pixels in the order in which they change sides as the outline moves out or in.
    out = np.bincount(np.ceil(outside[~view.cloud]).astype(np.intp), view.log_odds[~view.cloud], most + 2)
    into = np.bincount(np.ceil(inside[view.cloud]).astype(np.intp), -view.log_odds[view.cloud], most + 2)
    wider, narrower = np.cumsum(out[1 : most + 1]), np.cumsum(into[1 : most + 1])
    best_out, best_in = int(np.argmax(wider)), int(np.argmax(narrower))
    if max(wider[best_out], narrower[best_in]) <= 0:
        return 0.0, 0.0
    if wider[best_out] > narrower[best_in]:
        return -float(best_out + 1), float(wider[best_out] / view.num_known)
    return float(best_in + 1), float(narrower[best_in] / view.num_known)


def _distance(inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return how far each pixel of `inside` is from the nearest one outside, in pixels."""
    return np.asarray(cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, 3), np.float32)


def _piece_gain(gain: NDArray[np.float32], to_cloud_px: NDArray[np.float32]) -> float:
    """Return the sum of `gain` over the pieces that gain, no slivers, and lie far from the cloud beside them."""
    width = max(3, round(SLIVER_FRACTION * min(gain.shape)) | 1)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    pieces = cv2.morphologyEx((gain > 0).astype(np.uint8), cv2.MORPH_OPEN, disc)
    count, numbers = cv2.connectedComponents(pieces, connectivity=8)
    if count == 1:
        return 0.0
    inside = pieces.astype(np.bool_)
    numbers = numbers[inside]
    gains = np.bincount(numbers, gain[inside], count)
    distances = np.bincount(numbers, to_cloud_px[inside], count)
    is_far = distances > THICKEST_FRACTION * min(gain.shape) * np.bincount(numbers, minlength=count)
    return float(gains[is_far].sum())


def _association(view: _View) -> float:
    both = float((view.cloud & view.predicted).sum())
    label, predicted, total = float(view.cloud.sum()), float(view.predicted.sum()), float(view.num_known)
    scale = label * predicted * (total - label) * (total - predicted)
    return float((both * total - label * predicted) / np.sqrt(scale)) if scale else 0.0


def _edges(cloud: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels of cloud that touch a clear one."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    shrunk = cv2.erode(cloud.astype(np.uint8), cross, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(cloud & (shrunk == 0))


def _boundary_distance(view: _View) -> float:
    ours, theirs = _edges(view.cloud), _edges(view.predicted)
    if not ours.any() or not theirs.any():
        return float("nan")
    return float((_distance(~ours)[theirs].mean() + _distance(~theirs)[ours].mean()) / 2)


def _cut_fraction(view: _View) -> float:
    """Return how much of the label's outline is straight along a row or a column, or on the tile's edge."""
    cloud = view.cloud.astype(np.uint8)
    length = max(5, round(STRAIGHT_FRACTION * view.side_px))
    total = straight = 0
    for axis, line in enumerate((np.ones((1, length), np.uint8), np.ones((length, 1), np.uint8))):
        steps = (np.diff(cloud, axis=axis) != 0).astype(np.uint8)
        if not steps.size:  # one row or column has no line beside another
            continue
        total += int(steps.sum())
        straight += int(cv2.morphologyEx(steps, cv2.MORPH_OPEN, line).sum())
    rim = np.concatenate([cloud[0], cloud[-1], cloud[:, 0], cloud[:, -1]])
    total += int(rim.sum())
    return (straight + int(rim.sum())) / total if total else 0.0
