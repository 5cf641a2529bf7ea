"""Each random change does what the recipe says, as often as it says, to image, label and no-data alike."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from raytrain.config import AugmentationSettings, MemberSettings, change
from raytrain.imagery.normalisation import NO_DATA_VALUE
from raytrain.recipes import FLIPS_AND_QUARTER_TURNS, members, published_members, small_members
from raytrain.training.augmentation import Augmented, augment
from raytrain.training.samples import TrainingTransform, ValidationTransform

SIZE_PX = 64
NOTHING = change(FLIPS_AND_QUARTER_TURNS, {"horizontal_flip_fraction": 0, "rotation_by_90": False})
EVERYTHING = AugmentationSettings(
    horizontal_flip_fraction=1,
    affine_fraction=1,
    scale_fraction=1,
    rotation_fraction=1,
    shift_fraction=1,
    gain_fraction=1,
    elastic_fraction=1,
    rectangle_fraction=1,
)
CHANGES = ("horizontal_flip", "affine", "shift", "gain", "elastic", "rectangle")

Matrix = NDArray[np.float64]


def only(**changes: object) -> AugmentationSettings:
    return change(NOTHING, changes)


def changed(
    settings: AugmentationSettings,
    seed: int,
    values: NDArray[np.float32],
    label: NDArray[np.uint8] | None = None,
    valid: NDArray[np.bool_] | None = None,
) -> Augmented:
    """Augment an image of which, unless said, everything is clear and valid."""
    shape = values.shape[1:]
    label = np.zeros(shape, np.uint8) if label is None else label
    valid = np.ones(shape, bool) if valid is None else valid
    return augment(values, label, valid, settings, np.random.default_rng(seed))


def member(name: str, settings: AugmentationSettings) -> MemberSettings:
    return change(members((name,))[0], {"crop_px": 64}).model_copy(update={"augmentation": settings})


def noise(num_bands: int = 2, size_px: int = SIZE_PX) -> NDArray[np.float32]:
    return np.random.default_rng(0).random((num_bands, size_px, size_px), np.float32)


def ramps(size_px: int = SIZE_PX) -> NDArray[np.float32]:
    """Return two bands that tell where a pixel comes from: its column and its row, from 0 to 1."""
    along = np.linspace(0, 1, size_px, dtype=np.float32)
    return np.stack(np.broadcast_arrays(along, along[:, None])).copy()


def sources(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the column and row, in px, that each pixel of changed ramps comes from."""
    return values * (values.shape[1] - 1)


def matrix_of(values: NDArray[np.float32]) -> Matrix:
    """Return `[2, 3]`: the place in the source from the place in the result, as most pixels have it, not reflected."""
    found = sources(values)
    rows, columns = np.indices(values.shape[1:])
    linear = np.stack([np.median(np.diff(found, axis=axis), axis=(1, 2)) for axis in (2, 1)], axis=1)
    moved = found - linear[:, :1, None] * columns - linear[:, 1:, None] * rows
    return np.column_stack([linear, np.median(moved, axis=(1, 2))])


def equally_likely(count: int, num_draws: int, fraction: float) -> bool:
    """Return whether `count` is within 3 deviations of what a fraction of so many draws gives."""
    return abs(count - num_draws * fraction) <= 3 * math.sqrt(num_draws * fraction * (1 - fraction))


def test_nothing_changes_with_all_fractions_at_zero() -> None:
    values, label = noise(), (noise()[0] > 0.5).astype(np.uint8)
    valid = noise()[1] > 0.1
    for seed in range(20):
        found = changed(NOTHING, seed, values, label, valid)
        assert (found.values == values).all()
        assert (found.valid == valid).all()
        assert (found.label == np.where(valid, label, 255)).all()


def test_horizontal_flip_is_exact() -> None:
    values, label = noise(), (noise()[0] > 0.5).astype(np.uint8)
    found = changed(only(horizontal_flip_fraction=1), 0, values, label)
    assert (found.values == values[:, :, ::-1]).all()
    assert (found.label == label[:, ::-1]).all()


def test_rotation_is_by_each_multiple_of_90_degrees_equally_often_and_exact() -> None:
    values, label = noise(2, 16), (noise(2, 16)[0] > 0.5).astype(np.uint8)
    turned = [(np.rot90(values, k, (1, 2)), np.rot90(label, k)) for k in range(4)]
    counts = [0, 0, 0, 0]
    for seed in range(400):
        found = changed(only(rotation_by_90=True), seed, values, label)
        (k,) = (k for k, (image, _) in enumerate(turned) if (found.values == image).all())
        assert (found.label == turned[k][1]).all()
        counts[k] += 1
    assert all(equally_likely(count, 400, 0.25) for count in counts), counts


def test_scale_angle_and_pivot_are_distributed_as_the_recipe_says() -> None:
    scales, angles, pivots, num_unchanged, num_draws = [], [], [], 0, 600
    for seed in range(num_draws):
        values = changed(only(affine_fraction=1), seed, ramps()).values
        if (values == ramps()).all():
            num_unchanged += 1
            continue
        matrix = matrix_of(values)
        linear, moved = matrix[:, :2], matrix[:, 2]
        assert linear[0] == pytest.approx([linear[1, 1], -linear[1, 0]], abs=1e-3), "a similarity"
        scales.append(1 / math.sqrt(np.linalg.det(linear)))
        angles.append(math.degrees(math.atan2(linear[0, 1], linear[0, 0])))
        if abs(scales[-1] - 1) > 0.05 or abs(angles[-1]) > 5:
            pivots.append((np.linalg.solve(np.eye(2) - linear, moved) - (SIZE_PX - 1) / 2) / SIZE_PX)
    assert equally_likely(num_unchanged, num_draws, 0.2 * 0.2)
    scaled = np.array([scale for scale in scales if abs(scale - 1) > 1e-3])
    assert equally_likely(len(scaled), num_draws, 0.8)
    assert scaled.mean() == pytest.approx(1, abs=0.02)
    assert scaled.std() == pytest.approx(0.1, abs=0.015)
    rotated = np.array([angle for angle in angles if abs(angle) > 0.1])
    assert equally_likely(len(rotated), num_draws, 0.8)
    assert np.abs(rotated).max() < 45.1
    assert rotated.min() < -40
    assert rotated.max() > 40
    assert rotated.std() == pytest.approx(90 / math.sqrt(12), abs=2.5)
    assert np.abs(pivots).max() < 0.41
    assert np.max(pivots, 0).min() > 0.37
    assert np.min(pivots, 0).max() < -0.37
    assert np.std(pivots, 0) == pytest.approx(0.8 / math.sqrt(12), abs=0.02)


def test_pivot_stays_and_what_is_beyond_the_border_is_reflected() -> None:
    settings = only(affine_fraction=1, pivot_fraction=0, scale_fraction=1, rotation_fraction=1)
    places = np.stack([*np.indices((SIZE_PX, SIZE_PX))[::-1], np.ones((SIZE_PX, SIZE_PX))])
    middle, last = (SIZE_PX - 1) / 2, SIZE_PX - 1
    furthest = 0.0
    for seed in range(60):
        values = changed(settings, seed, ramps()).values
        matrix = matrix_of(values)
        assert matrix @ [middle, middle, 1] == pytest.approx([middle, middle], abs=0.01)
        expected = np.einsum("ij,jhw->ihw", matrix, places)
        furthest = max(furthest, expected.max() / last)
        folded = np.abs((expected + last) % (2 * last) - last)
        assert np.abs(sources(values) - folded).max() < 0.1
    assert furthest > 1.2, "nothing came from beyond the border"


@pytest.mark.parametrize("name", ["affine", "elastic"])
def test_label_follows_the_image_where_it_is_resampled(name: str) -> None:
    y, x = np.indices((SIZE_PX, SIZE_PX))
    values = (0.5 + 0.5 * np.sin(x / 9) * np.cos(y / 7))[None].astype(np.float32)
    label = (values[0] > 0.5).astype(np.uint8)
    num_moved = 0
    for seed in range(30):
        found = changed(only(**{f"{name}_fraction": 1}), seed, values, label)
        surely = np.abs(found.values[0] - 0.5) > 0.14  # two pixels change the image by no more
        assert surely.mean() > 0.5
        assert (found.label[surely] == (found.values[0] > 0.5)[surely]).all()
        num_moved += bool((found.label != label).any())
    assert num_moved > 20


@pytest.mark.parametrize("num_bands", [1, 4, 5])
def test_any_number_of_bands_is_changed_alike(num_bands: int) -> None:
    settings = change(EVERYTHING, {"shift_fraction": 0, "gain_fraction": 0})
    values = noise(num_bands)
    for seed in range(5):
        together = changed(settings, seed, values)
        assert together.values.shape == values.shape
        for i in range(num_bands):
            alone = changed(settings, seed, values[i : i + 1])
            assert (together.values[i] == alone.values[0]).all()


def test_shift_is_one_a_band_within_its_limit_and_clipped() -> None:
    values = np.repeat(np.float32([[[0.5]], [[0.99]], [[0.01]]]), SIZE_PX * SIZE_PX).reshape(3, SIZE_PX, SIZE_PX)
    found = np.stack([changed(only(shift_fraction=1), seed, values).values for seed in range(300)])
    assert (found == found[..., :1, :1]).all()
    shifts = found[..., 0, 0] - values[:, 0, 0]
    assert np.abs(shifts).max() < 0.0501
    assert shifts[:, 0].max() > 0.048
    assert shifts[:, 0].min() < -0.048
    assert found.max() == 1
    assert found.min() == 0
    assert abs(np.corrcoef(shifts[:, 0], shifts[:, 2])[0, 1]) < 0.25


def test_gain_is_one_a_band_of_its_deviation_and_clipped() -> None:
    values = np.repeat(np.float32([[[0.5]], [[0.95]]]), SIZE_PX * SIZE_PX).reshape(2, SIZE_PX, SIZE_PX)
    values[:, 0, 0] = 0.25
    found = np.stack([changed(only(gain_fraction=1), seed, values).values for seed in range(300)])
    gains = found[..., 1, 1] / values[:, 1, 1]
    assert found[:, 0, 0, 0] == pytest.approx(gains[:, 0] * 0.25, abs=1e-6)
    assert gains[:, 0].mean() == pytest.approx(1, abs=0.025)
    assert gains[:, 0].std() == pytest.approx(0.1, abs=0.018)
    assert found.max() == 1
    assert abs(np.corrcoef(gains[:, 0], gains[:, 1])[0, 1]) < 0.25


def test_elastic_takes_pixels_from_about_one_pixel_away() -> None:
    largest = []
    for seed in range(60):
        values = changed(only(elastic_fraction=1), seed, ramps()).values
        moves = (sources(values) - sources(ramps()))[:, 2:-2, 2:-2]
        largest.append(np.abs(moves).max())
        assert np.abs(moves.mean()) < 0.05
        assert moves.std() == pytest.approx(largest[-1] / math.sqrt(3), rel=0.1)
    assert max(largest) < 1.25
    assert max(largest) > 1.1
    assert 0.24 < min(largest) < 0.35


def test_rectangle_is_zero_in_image_and_label_and_bounded() -> None:
    sides, places = [], []
    values = np.full((3, 50, 80), 0.5, np.float32)
    for seed in range(300):
        found = changed(only(rectangle_fraction=1), seed, values, np.ones((50, 80), np.uint8))
        zero = found.values == 0
        assert (zero[0] == zero).all()
        assert (found.values[~zero] == 0.5).all()
        rows, columns = np.flatnonzero(zero[0].any(1)), np.flatnonzero(zero[0].any(0))
        assert zero[0].sum() == len(rows) * len(columns)
        assert (found.label == ~zero[0]).all()
        assert found.valid.all()
        sides.append((len(rows), len(columns)))
        places.append((rows[0], columns[0], rows[-1], columns[-1]))
    assert np.max(sides, 0).tolist() == [20, 32]
    assert np.min(sides, 0).tolist() == [1, 1]
    assert np.min(places, 0)[:2].tolist() == [0, 0]
    assert np.max(places, 0)[2:].tolist() == [49, 79]


@pytest.mark.parametrize("name", CHANGES)
def test_change_is_made_as_often_as_its_fraction_says(name: str) -> None:
    fraction = getattr(AugmentationSettings(), f"{name}_fraction")
    settings = only(**{f"{name}_fraction": fraction}, scale_fraction=1)
    values, num_draws = noise(2, 16), max(300, int(24 / fraction))
    count = sum((changed(settings, seed, values).values != values).any() for seed in range(num_draws))
    assert equally_likely(count, num_draws, fraction), (count, num_draws)


def test_changes_are_drawn_independently() -> None:
    """A rare change comes with a frequent one as often as chance has it, not always and not never."""
    settings = only(horizontal_flip_fraction=0.5, affine_fraction=0.5, rectangle_fraction=0.5, pivot_fraction=0)
    settings = change(settings, {"scale_fraction": 0, "rotation_fraction": 1, "rectangle_side_fraction": 0.3})
    counts: dict[tuple[bool, ...], int] = dict.fromkeys(itertools.product((False, True), repeat=3), 0)
    values = ramps(16)
    for seed in range(1200):
        found = changed(settings, seed, values, np.ones((16, 16), np.uint8))
        kept = found.label == 1
        columns = np.where(kept, found.values[0], np.nan)
        flipped = np.nanmean(columns[:, 10:]) < np.nanmean(columns[:, :6])
        exact = values[0, :, ::-1] if flipped else values[0]
        counts[bool(flipped), bool((found.values[0] != exact)[kept].any()), bool((~kept).any())] += 1
    assert all(equally_likely(count, 1200, 1 / 8) for count in counts.values()), counts


def test_label_is_never_a_value_between_and_what_is_ignored_stays_ignored() -> None:
    label = np.random.default_rng(1).choice(np.uint8([0, 1, 255]), (SIZE_PX, SIZE_PX))
    ignored = np.full((SIZE_PX, SIZE_PX), 255, np.uint8)
    seen = set()
    for seed in range(40):
        seen |= set(np.unique(changed(EVERYTHING, seed, noise(), label).label).tolist())
        found = changed(EVERYTHING, seed, noise(), ignored)
        assert (found.label == 255).all()
        assert found.valid.all(), "an ignored label is no missing data"
    assert seen == {0, 1, 255}


@pytest.mark.parametrize("name", ["affine", "elastic"])
def test_no_data_never_shows_in_valid_pixels(name: str) -> None:
    valid = np.random.default_rng(2).random((SIZE_PX, SIZE_PX)) > 0.002
    valid[:20, :9] = False
    values = np.where(valid, np.float32(0.75), np.float32(0))[None]
    for seed in range(60):
        found = changed(only(**{f"{name}_fraction": 1}), seed, values, np.ones(valid.shape, np.uint8), valid)
        assert found.values[0][found.valid] == pytest.approx(0.75, abs=1e-6)
        assert (found.label == np.where(found.valid, 1, 255)).all()
        assert 0.5 < found.valid.mean() < 0.99


def test_no_data_is_fixed_after_all_changes() -> None:
    settings = member("r34-4b-20k", EVERYTHING)
    bands = np.random.default_rng(0).integers(8000, 12000, (4, 64, 64)).astype(np.uint16)
    bands[:, 20:40, :30] = 0
    label = np.ones((64, 64), np.uint8)
    num_cleared = 0
    for sample in range(20):
        image, known = TrainingTransform(settings)(bands, label, 0, sample)
        absent = known == 255
        assert absent.any()
        assert (image[:, absent] == NO_DATA_VALUE).all()
        assert (image[:, known == 1] > -0.9).all(), "values of no-data in valid pixels"
        num_cleared += bool((known == 0).any())
    assert num_cleared > 15, "rectangles are missing"


@pytest.mark.parametrize("name", ["v2s-4b", "v2b0-4b-minmax", "r34-4b-20k"])
def test_sample_without_changes_is_that_of_validation(name: str) -> None:
    settings = member(name, NOTHING)
    generator = np.random.default_rng(0)
    bands = generator.integers(1, 25000, (4, 64, 64)).astype(np.uint16)
    bands[:, :9, :30] = 0
    label = generator.choice(np.uint8([0, 1, 255]), (64, 64))
    training = TrainingTransform(settings)(bands, label, 3, 5)
    validation = ValidationTransform(settings)(bands, label, 0, 0)
    assert torch.equal(training.image, validation.image)
    assert torch.equal(training.label, validation.label)


def test_arrays_given_are_not_changed() -> None:
    values, label, valid = noise(), np.ones((SIZE_PX, SIZE_PX), np.uint8), noise()[1] > 0.1
    for name in CHANGES:
        changed(only(**{f"{name}_fraction": 1}), 0, values, label, valid)
    assert (values == noise()).all()
    assert (label == 1).all()
    assert (valid == (noise()[1] > 0.1)).all()


def test_samples_made_side_by_side_by_threads_are_those_made_alone() -> None:
    settings = member("v2s-4b", EVERYTHING)
    bands = np.random.default_rng(0).integers(1, 25000, (4, 96, 96)).astype(np.uint16)
    label = (bands[0] > 12000).astype(np.uint8)
    transform = TrainingTransform(settings)
    alone = [transform(bands, label, 1, sample) for sample in range(200)]
    with ThreadPoolExecutor(8) as pool:
        beside = list(pool.map(lambda sample: transform(bands, label, 1, sample), range(200)))
    assert all(
        torch.equal(a.image, b.image) and torch.equal(a.label, b.label) for a, b in zip(alone, beside, strict=True)
    )
    assert len({sample.image.numpy().tobytes() for sample in alone}) == 200


def test_bits_do_not_depend_on_the_threads_of_opencv() -> None:
    assert cv2.getNumThreads() == 1, "a sample is made by one thread"
    values = noise(4, 512)
    alone = [changed(EVERYTHING, seed, values) for seed in range(3)]
    try:
        cv2.setNumThreads(2)
        beside = [changed(EVERYTHING, seed, values) for seed in range(3)]
    finally:
        cv2.setNumThreads(0)
    for one, two in zip(alone, beside, strict=True):
        assert (one.values == two.values).all()
        assert (one.label == two.label).all()


def test_published_members_have_all_changes_and_small_ones_flips_and_quarter_turns() -> None:
    assert all(member.augmentation == AugmentationSettings() for member in published_members())
    assert all(member.augmentation == FLIPS_AND_QUARTER_TURNS for member in small_members())
    assert FLIPS_AND_QUARTER_TURNS.horizontal_flip_fraction == 0.5
    assert FLIPS_AND_QUARTER_TURNS.rotation_by_90
    assert all(getattr(FLIPS_AND_QUARTER_TURNS, f"{name}_fraction") == 0 for name in CHANGES[1:])
