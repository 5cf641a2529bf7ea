"""Random changes of a training sample: image, label and what has no data, changed together, on values in [0, 1].

Where albumentations has what the recipe asks for, it is used; the rest are transforms of our own in its frame. Must not
know tiles, names of bands, or how values came to be in [0, 1].

A sample is augmented as a stack of planes, albumentations' target `images`, one plane a band: any number of bands
works, where OpenCV takes four channels at a time, and nothing is transposed. The target `mask` is one plane of codes:
the label (0, 1, 255), and `NO_DATA` where a pixel has none, which needs no label.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raytrain.config import AugmentationSettings
from raytrain.imagery.rasters import LABEL_CLEAR, LABEL_CLOUD, LABEL_IGNORE

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for updates at import otherwise
import albumentations
import cv2

# A sample is made by one thread of a loader, beside others: threads of OpenCV's own would only get in their way.
cv2.setNumThreads(0)

Plane = NDArray[Any]

NO_DATA = 254
SCALE_RANGE = (0.5, 2.0)
"""A scale drawn beyond it is clipped; with the recipe's deviation that is five deviations away."""
ELASTIC_LIMIT_PX = (0.25, 1.2)
"""The range of the largest displacement. The original smooths displacements by a Gaussian of 0.2 px, which changes none
of them by a ten-thousandth of a pixel; so each pixel moves by itself, and nothing is smoothed here."""


class Augmented(NamedTuple):
    """Bands `[C, H, W] float32` in [0, 1], the label `[H, W] uint8` (0, 1, 255), and where there is data, `[H, W]`."""

    values: NDArray[np.float32]
    label: NDArray[np.uint8]
    valid: NDArray[np.bool_]


def augment(
    values: NDArray[np.float32],
    label: NDArray[np.uint8],
    valid: NDArray[np.bool_],
    settings: AugmentationSettings,
    generator: np.random.Generator,
) -> Augmented:
    """Return `values` `[C, H, W]` in [0, 1], `label` `[H, W]` and `valid` `[H, W]`, changed as drawn from `generator`.

    The image is resampled bilinearly, the label by the nearest pixel; beyond the border both are reflected. A pixel of
    the result is valid only if all that its value may come from is: what has no data grows by one pixel of the source
    with each resampling, and never shows as a dark rim. Its label is 255, and its values mean nothing. A rectangle sets
    values and label to 0, but what was ignored stays ignored. The arrays given are not changed, and may be returned.
    """
    mask = np.where(valid, label, np.uint8(NO_DATA))
    # What is composed holds the state of one call, so that a thread may not share it with another.
    compose = albumentations.Compose(steps(settings))
    # One stream for all steps: by `set_random_seed` each would begin the same one, and a rare step would come only
    # where all the more frequent ones do.
    compose.set_random_state(generator, random.Random(int(generator.integers(2**63))))
    changed = compose(images=values, mask=mask)
    mask = changed["mask"]
    valid = mask != NO_DATA
    return Augmented(changed["images"], np.where(valid, mask, np.uint8(LABEL_IGNORE)), valid)


def steps(settings: AugmentationSettings) -> list[albumentations.BasicTransform]:
    """Return the changes in the order of the recipe, without those that are never made."""
    turn = float(settings.rotation_by_90)
    found = [
        albumentations.HorizontalFlip(p=settings.horizontal_flip_fraction),
        albumentations.RandomRotate90(p=turn),
        Affine(settings),
        BandShift(settings),
        BandGain(settings),
        Elastic(settings),
        Rectangle(settings),
    ]
    return [step for step in found if step.p > 0]


class Affine(albumentations.DualTransform):
    """Scale and rotate about a pivot near the centre; where neither is drawn, nothing is resampled."""

    def __init__(self, settings: AugmentationSettings) -> None:
        super().__init__(p=settings.affine_fraction)
        self._settings = settings

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the matrix `[2, 3]` from places of the source to places of the result (px); None where nothing moves."""
        settings, draw = self._settings, self.random_generator
        height, width = params["shape"][:2]
        limit = settings.pivot_fraction
        # Places are counted from the middle of the first pixel.
        x, y = ((0.5 + draw.uniform(-limit, limit)) * side - 0.5 for side in (width, height))
        scale, angle_deg = 1.0, 0.0
        if draw.random() < settings.scale_fraction:
            scale = float(np.clip(draw.normal(1, settings.scale_deviation), *SCALE_RANGE))
        if draw.random() < settings.rotation_fraction:
            angle_deg = draw.uniform(-settings.rotation_limit_deg, settings.rotation_limit_deg)
        moves = scale != 1 or angle_deg != 0
        return {"matrix": cv2.getRotationMatrix2D((x, y), angle_deg, scale) if moves else None}

    def apply_to_images(self, images: Plane, matrix: NDArray[np.float64] | None, **params: Any) -> Plane:
        """Return the bands, resampled bilinearly."""
        if matrix is None:
            return images
        return _each(images, lambda band, to: _warp(band, matrix, cv2.INTER_LINEAR, to))

    def apply_to_mask(self, mask: Plane, matrix: NDArray[np.float64] | None, **params: Any) -> Plane:
        """Return the mask by the nearest pixel."""
        return mask if matrix is None else _warp(_widen_no_data(mask), matrix, cv2.INTER_NEAREST, np.empty_like(mask))


class BandShift(albumentations.ImageOnlyTransform):
    """Add to each band an amount of its own; the result is clipped to [0, 1]."""

    def __init__(self, settings: AugmentationSettings) -> None:
        super().__init__(p=settings.shift_fraction)
        self._limit = settings.shift_limit

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the amounts, `[C, 1, 1] float32`."""
        return {
            "shift": _one_a_band(data, lambda count: self.random_generator.uniform(-self._limit, self._limit, count))
        }

    def apply_to_images(self, images: Plane, shift: Plane, **params: Any) -> Plane:
        """Return the bands, shifted."""
        return np.asarray(np.clip(images + shift, 0, 1))


class BandGain(albumentations.ImageOnlyTransform):
    """Multiply each band by a factor of its own; the result is clipped to [0, 1]."""

    def __init__(self, settings: AugmentationSettings) -> None:
        super().__init__(p=settings.gain_fraction)
        self._deviation = settings.gain_deviation

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the factors, `[C, 1, 1] float32`."""
        return {"gain": _one_a_band(data, lambda count: self.random_generator.normal(1, self._deviation, count))}

    def apply_to_images(self, images: Plane, gain: Plane, **params: Any) -> Plane:
        """Return the bands, multiplied."""
        return np.asarray(np.clip(images * gain, 0, 1))


class Elastic(albumentations.DualTransform):
    """Take each pixel from a place about one pixel away, at random in both directions."""

    def __init__(self, settings: AugmentationSettings) -> None:
        super().__init__(p=settings.elastic_fraction)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw where each pixel comes from, columns and rows, `[H, W] float32` each."""
        height, width = params["shape"][:2]
        limit = np.float32(self.random_generator.uniform(*ELASTIC_LIMIT_PX))
        x, y = self.random_generator.random((2, height, width), np.float32) * (2 * limit) - limit
        x += np.arange(width, dtype=np.float32)
        y += np.arange(height, dtype=np.float32)[:, None]
        return {"x": x, "y": y}

    def apply_to_images(self, images: Plane, x: Plane, y: Plane, **params: Any) -> Plane:
        """Return the bands, resampled bilinearly."""
        return _each(images, lambda band, to: _remap(band, x, y, cv2.INTER_LINEAR, to))

    def apply_to_mask(self, mask: Plane, x: Plane, y: Plane, **params: Any) -> Plane:
        """Return the mask by the nearest pixel."""
        return _remap(_widen_no_data(mask), x, y, cv2.INTER_NEAREST, np.empty_like(mask))


class Rectangle(albumentations.DualTransform):
    """Set one rectangle to 0 in all bands and to clear in the label; what is ignored or has no data stays so."""

    def __init__(self, settings: AugmentationSettings) -> None:
        super().__init__(p=settings.rectangle_fraction)
        self._side_fraction = settings.rectangle_side_fraction

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the rectangle: its sides, then a place that has all of it inside."""
        return {"box": tuple(self._stretch(side) for side in params["shape"][:2])}

    def _stretch(self, side_px: int) -> slice:
        longest = int(self._side_fraction * side_px)
        length = int(self.random_generator.integers(min(1, longest), longest, endpoint=True))
        start = int(self.random_generator.integers(side_px - length, endpoint=True))
        return slice(start, start + length)

    def apply_to_images(self, images: Plane, box: tuple[slice, slice], **params: Any) -> Plane:
        """Return the bands with the rectangle at 0."""
        images = images.copy()
        images[:, *box] = 0
        return images

    def apply_to_mask(self, mask: Plane, box: tuple[slice, slice], **params: Any) -> Plane:
        """Return the mask with no cloud in the rectangle."""
        mask = mask.copy()
        mask[box][mask[box] == LABEL_CLOUD] = LABEL_CLEAR
        return mask


def _each(images: Plane, resample: Callable[[Plane, Plane], object]) -> Plane:
    """Return planes `[C, H, W]`, each written to its place by `resample(from, to)`.

    Fresh memory is what costs: joined to an image of four channels and back, which OpenCV is quickest with, they took
    twice as long.
    """
    changed = np.empty_like(images)
    for band, place in zip(images, changed, strict=True):
        resample(band, place)
    return changed


def _warp(plane: Plane, matrix: NDArray[np.float64], interpolation: int, to: Plane) -> Plane:
    border, size = cv2.BORDER_REFLECT_101, (plane.shape[1], plane.shape[0])
    return np.asarray(cv2.warpAffine(plane, matrix, size, dst=to, flags=interpolation, borderMode=border))


def _remap(plane: Plane, x: Plane, y: Plane, interpolation: int, to: Plane) -> Plane:
    return np.asarray(cv2.remap(plane, x, y, interpolation, dst=to, borderMode=cv2.BORDER_REFLECT_101))


def _widen_no_data(mask: Plane) -> Plane:
    """Return the mask with no data also around what has none: a bilinear value comes from neighbours of the nearest."""
    absent = mask == NO_DATA
    if not absent.any():
        return mask
    around = cv2.dilate(absent.astype(np.uint8), np.ones((3, 3), np.uint8))
    return np.where(around, np.uint8(NO_DATA), mask)


def _one_a_band(data: dict[str, Any], draw: Callable[[int], NDArray[np.float64]]) -> NDArray[np.float32]:
    return draw(len(data["images"])).astype(np.float32)[:, None, None]
