"""A sample is drawn from (seed, epoch, sample) alone; its image, label and no-data go together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raytrain.config import change
from raytrain.tiles.order import Purpose, stream
from raytrain.training.samples import TrainingTransform, ValidationTransform
from tests.making import tiny_member


def test_sample_depends_on_seed_epoch_and_sample_alone() -> None:
    settings = tiny_member()
    bands = np.random.default_rng(0).integers(1, 9000, (4, 64, 48)).astype(np.uint16)
    label = (bands[0] > 4500).astype(np.uint8)
    transform = TrainingTransform(settings)
    first = transform(bands, label, 2, 7)
    again = TrainingTransform(settings)(bands.copy(), label.copy(), 2, 7)
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.label, again.label)
    others = [transform(bands, label, 3, 7), transform(bands, label, 2, 8)]
    others.append(TrainingTransform(change(settings, {"seed": 1}))(bands, label, 2, 7))
    assert all(not torch.equal(first.image, other.image) for other in others)
    assert first.image.shape == (4, 32, 32)


def test_minmax_of_a_crop_is_that_of_its_tile() -> None:
    settings = tiny_member(bands=["B02"], **{"normalisation.kind": "minmax", "normalisation.maximum": None})
    bands = np.full((1, 64, 64), 1000, np.uint16)
    bands[0, :2, :2] = 9000
    bands[0, 10:60, 10:60] = 1080
    label = np.zeros((64, 64), np.uint8)
    images = [TrainingTransform(settings)(bands, label, 0, sample).image for sample in range(20)]
    expected = torch.tensor([-1, -0.98, 1])
    assert all((image[..., None] - expected).abs().min(-1).values.max() < 1e-6 for image in images)
    assert any(image.max() < 0 for image in images), "no crop without the bright corner was drawn"
    whole = ValidationTransform(settings)(bands, label, 0, 0).image
    assert whole[0, 30, 30] == pytest.approx(-0.98)


def test_image_and_label_are_changed_together() -> None:
    bands = np.random.default_rng(0).integers(1, 9000, (1, 40, 40)).astype(np.uint16)
    label = (bands[0] > 4500).astype(np.uint8)
    settings = tiny_member(bands=["B02"], **{"normalisation.maximum": 9000})
    orientations = set()
    for sample in range(30):
        image, changed = TrainingTransform(settings)(bands, label, 0, sample)
        assert torch.equal((image[0] > 0).to(torch.uint8), changed)
        orientations.add(changed.numpy().tobytes())
    assert len(orientations) > 20


def test_no_data_is_ignored_and_a_small_tile_is_reflected_up() -> None:
    bands = np.full((4, 20, 20), 3000, np.uint16)
    bands[:, :5] = 0
    label = np.ones((20, 20), np.uint8)
    image, changed = ValidationTransform(tiny_member())(bands, label, 0, 0)
    assert image.shape == (4, 32, 32)
    assert (changed[:5] == 255).all()
    assert (changed[5:20, :20] == 1).all()
    assert (changed[20:] == 255).all()
    assert (changed[:, 20:] == 255).all()
    image, changed = TrainingTransform(tiny_member())(bands, label, 0, 0)
    assert (changed == 255).any()
    assert image.shape == (4, 32, 32)


def test_random_numbers_of_different_purposes_are_different() -> None:
    streams = [stream(0, Purpose.ORDER, 3), *(stream(0, purpose, 3, 0) for purpose in Purpose)]
    streams += [stream(1, Purpose.SAMPLE, 3, 5), stream(2**32 * 3 + 1, Purpose.SAMPLE, 5), stream(3, Purpose.SAMPLE, 0)]
    assert len({tuple(each.generate_state(4)) for each in streams}) == len(streams)
