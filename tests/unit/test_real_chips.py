"""The programs of the run on real chips: the threshold on blue, the folds, and a tiny run from end to end."""

from __future__ import annotations

import numpy as np
import pytest

from raytrain.training.metrics import count_pixels
from tests.bench import blue


def blue_chips(seed: int, count: int = 5) -> list[blue.BlueChip]:
    """Chips of different sizes and labels 0, 1, 255, in which cloud is brighter by little."""
    generator = np.random.default_rng(seed)
    chips = []
    for i in range(count):
        label = generator.choice(np.array([0, 1, 255], np.uint8), (8 + i, 9), p=[0.5, 0.3, 0.2])
        b02 = generator.normal(2000 + 3000 * (label == 1), 1500).clip(0, 65535).astype(np.uint16)
        chips.append((b02, label))
    return chips


def test_the_threshold_on_blue_is_the_best_of_all_by_brute_force() -> None:
    for seed in range(10):
        chips = blue_chips(seed)
        ious = []
        for threshold in blue.THRESHOLDS:
            counts = np.array([count_pixels(blue.predict(b02, int(threshold)), label) for b02, label in chips])
            ious.append(counts[:, 0].sum() / counts[:, 1].sum())
        np.testing.assert_array_equal(blue.pooled_ious(chips), ious)
        best = blue.fit(chips)
        assert best == blue.THRESHOLDS[ious.index(max(ious))]
        assert blue.pooled_iou(chips, best) == max(ious)


def test_no_threshold_is_fitted_on_chips_without_cloud() -> None:
    clear = [(b02, np.where(label == 1, 0, label).astype(np.uint8)) for b02, label in blue_chips(0)]
    with pytest.raises(ValueError, match="without any cloud"):
        blue.fit(clear)
