"""From a tile to what a net takes: crop, normalisation, augmentation; the same sample whoever makes it.

Every random choice is drawn from (seed, epoch, sample). Must not know ranks or shards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raytrain.config import MemberSettings
from raytrain.imagery.normalisation import Scale, from_unit_range, normalise, scale_of, to_unit_range
from raytrain.imagery.rasters import LABEL_IGNORE
from raytrain.imagery.windows import reflect_up, round_up
from raytrain.tiles.order import Purpose, stream
from raytrain.training.augmentation import augment


class Sample(NamedTuple):
    """An image `[C, H, W] float32` in [-1, 1] and its label `[H, W] uint8` (0, 1, 255)."""

    image: Tensor
    label: Tensor


@dataclass(frozen=True)
class TrainingTransform:
    """Make the training sample of a tile: a random crop, normalised by the range of the whole tile, and augmented."""

    settings: MemberSettings

    def __call__(self, bands: NDArray[np.uint16], label: NDArray[np.uint8], epoch: int, sample: int) -> Sample:
        """Return the sample of `bands` `[C, H, W]` and `label` `[H, W]`, sides `crop_px`.

        What has no data after the changes is `NO_DATA_VALUE` in the image and 255 in the label.
        """
        settings = self.settings
        generator = np.random.default_rng(stream(settings.seed, Purpose.SAMPLE, epoch, sample))
        scale = _scale(bands, settings)
        bands, label = _random_crop(bands, label, settings.crop_px, generator)
        unit = to_unit_range(bands, scale)
        values, label, valid = augment(unit, label, _valid(bands), settings.augmentation, generator)
        return Sample(torch.from_numpy(from_unit_range(values, valid)), torch.from_numpy(label))


@dataclass(frozen=True)
class ValidationTransform:
    """Make the validation sample of a tile: all of it, reflected up to multiples of 32 with the label ignored there."""

    settings: MemberSettings

    def __call__(self, bands: NDArray[np.uint16], label: NDArray[np.uint8], epoch: int, sample: int) -> Sample:
        """Return the sample of `bands` `[C, H, W]` and `label` `[H, W]`."""
        height, width = label.shape
        padded = np.full((round_up(height), round_up(width)), LABEL_IGNORE, np.uint8)
        image, known = _to_sample(bands, label, _scale(bands, self.settings))
        padded[:height, :width] = known.numpy()
        return Sample(torch.from_numpy(reflect_up(image.numpy(), *padded.shape)), torch.from_numpy(padded))


def _scale(tile: NDArray[np.uint16], settings: MemberSettings) -> Scale:
    return scale_of(tile, _valid(tile), settings.bands, settings.normalisation)


def _valid(bands: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """Return where a tile has data, `[H, W]`: its pixels without are 0 in every band."""
    return np.asarray(np.any(bands != 0, axis=0))


def _to_sample(bands: NDArray[np.uint16], label: NDArray[np.uint8], scale: Scale) -> Sample:
    valid = _valid(bands)
    image = normalise(bands, valid, scale)
    ignored = np.where(valid, label, np.uint8(LABEL_IGNORE))
    return Sample(torch.from_numpy(image), torch.from_numpy(ignored))


def _random_crop(
    bands: NDArray[np.uint16], label: NDArray[np.uint8], size_px: int, generator: np.random.Generator
) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Return a box of `size_px` at a random place; a smaller side is reflected up first."""
    height, width = (max(side, size_px) for side in label.shape)
    if (height, width) != label.shape:
        bands, label = reflect_up(bands, height, width), reflect_up(label, height, width)
    row = int(generator.integers(height - size_px + 1))
    column = int(generator.integers(width - size_px + 1))
    box = (slice(row, row + size_px), slice(column, column + size_px))
    return bands[:, *box], label[box]
