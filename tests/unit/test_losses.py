"""Every term of the loss against an independent computation in float64, and its gradient; what ignored pixels do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from raytrain.config import LossWeights
from raytrain.errors import ConfigError
from raytrain.recipes import members
from raytrain.training import losses
from raytrain.training.losses import TERMS, Totals, count_valid, segmentation_loss, totals

OFF = dict.fromkeys(LossWeights.model_fields, 0.0)
ALONE = [LossWeights(**OFF | {name: 1.0}) for name in LossWeights.model_fields]
MIXED = LossWeights(jaccard=1.0, focal=0.1, dice=0.3, bce=0.2, lovasz=0.5)


def of_image(name: str, logits: np.ndarray, t: np.ndarray) -> float:
    """Return a per-image term over the valid pixels of one image, float64 `[N]` each."""
    p = 1 / (1 + np.exp(-logits))
    both = (p * t).sum()
    if name == "jaccard":
        return float(1 - (both + 1e-5) / (p.sum() + t.sum() - both + 1e-5))
    if name == "dice":
        return float(1 - (2 * both + 1e-5) / (p.sum() + t.sum() + 1e-5))
    # The Lovasz extension by its definition: errors in falling order, each times what its pixel adds to the Jaccard
    # loss of the set of mispredicted pixels, that loss being |wrong| / |wrong or cloud|.
    errors = 1 - logits * (2 * t - 1)
    order = np.argsort(-errors, kind="stable")
    total, before = 0.0, 0.0
    wrong = np.zeros(len(t), bool)
    for i in order:
        wrong[i] = True
        after = wrong.sum() / (wrong | (t == 1)).sum()
        total += max(errors[i], 0) * (after - before)
        before = after
    return total


def of_pixels(name: str, logits: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Return a per-pixel term, float64 `[N]`."""
    p = 1 / (1 + np.exp(-logits))
    if name == "bce":
        return np.asarray(-(t * np.log(p) + (1 - t) * np.log1p(-p)))
    p, t = np.clip(p, 1e-5, 1 - 1e-5), np.clip(t, 1e-5, 1 - 1e-5)
    q = p * t + (1 - p) * (1 - t)
    return np.asarray(-((1 - q) ** 2) * np.log(q))


def numpy_loss(logits: np.ndarray, labels: np.ndarray, weights: LossWeights) -> float:
    images, pixels = [], []
    for image, label in zip(logits.astype(np.float64), labels, strict=True):
        valid = label != 255
        if not valid.any():
            continue
        t = (label[valid] == 1).astype(np.float64)
        images.append(sum(getattr(weights, n) * of_image(n, image[valid], t) for n in ("jaccard", "dice", "lovasz")))
        pixels.append(sum(getattr(weights, n) * of_pixels(n, image[valid], t) for n in ("focal", "bce")))
    return float(np.mean(images) + np.mean(np.concatenate(pixels)))


def random_batch(shape: tuple[int, int, int] = (5, 17, 13)) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and labels with ignored pixels; the second image is ignored whole, the third has no cloud."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 3, shape).astype(np.float32)
    labels = generator.choice(np.array([0, 1, 255], np.uint8), shape)
    labels[1] = 255
    labels[2] = np.where(labels[2] == 1, 0, labels[2])
    return torch.from_numpy(logits), torch.from_numpy(labels)


@pytest.mark.parametrize("weights", [LossWeights(), MIXED, *ALONE], ids=str)
def test_loss_equals_the_formula_in_float64_with_ignored_pixels(weights: LossWeights) -> None:
    logits, labels = random_batch()
    loss = segmentation_loss(logits, labels, weights, totals(count_valid(labels)))
    assert float(loss) == pytest.approx(numpy_loss(logits.numpy(), labels.numpy(), weights), rel=1e-5)


@pytest.mark.parametrize("name", LossWeights.model_fields)
def test_gradient_of_every_term_is_that_of_its_values(name: str) -> None:
    """Differences of values in float64 against the gradient; the terms themselves take any dtype."""
    logits, labels = random_batch((3, 4, 5))
    target, valid = (labels == 1).double(), (labels != 255).double()

    def term(x: torch.Tensor) -> torch.Tensor:
        return TERMS[name](losses._Batch(x, target, valid))

    def hinge(x: torch.Tensor) -> torch.Tensor:
        return term(x).double()

    inputs = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(hinge if name == "lovasz" else term, (inputs,), atol=1e-6)


@pytest.mark.parametrize("weights", [LossWeights(), *ALONE], ids=str)
def test_loss_of_ignored_pixels_has_no_gradient_and_all_ignored_is_zero(weights: LossWeights) -> None:
    logits = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.zeros(2, 8, 8, dtype=torch.uint8)
    labels[:, :, 4:] = 1
    labels[0, :4] = 255
    segmentation_loss(logits, labels, weights, totals(count_valid(labels))).backward()
    assert logits.grad is not None
    assert (logits.grad[0, :4] == 0).all()
    right = logits.detach() * (2.0 * labels.float() - 1) > 1
    assert ((logits.grad[0, 4:] != 0) | right[0, 4:]).all(), "the hinge alone is flat, and only where a pixel is right"
    nothing = torch.full((2, 8, 8), 255, dtype=torch.uint8)
    logits.grad = None
    loss = segmentation_loss(logits, nothing, weights, totals(count_valid(nothing)))
    loss.backward()
    assert float(loss.detach()) == 0
    assert (logits.grad == 0).all()


def test_parts_of_the_loss_add_up_to_the_whole_for_uneven_shares() -> None:
    logits, labels = random_batch()
    divisors = totals(count_valid(labels))
    whole = segmentation_loss(logits, labels, MIXED, divisors)
    parts = [segmentation_loss(logits[s], labels[s], MIXED, divisors) for s in (slice(0, 1), slice(1, 5))]
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-5)


def test_term_of_weight_zero_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def spy(name: str) -> Any:
        return lambda batch: called.append(name) or batch.logits_BHW.sum()

    for name in TERMS:
        monkeypatch.setitem(TERMS, name, spy(name))
    logits, labels = random_batch()
    segmentation_loss(logits, labels, LossWeights(jaccard=0, focal=0, bce=1.0), Totals(*torch.ones(2)))
    assert called == ["bce"]


def test_loss_is_computed_in_float32_from_halves() -> None:
    logits, labels = random_batch()
    halves = logits.to(torch.bfloat16)
    loss = segmentation_loss(halves, labels, MIXED, totals(count_valid(labels)))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(numpy_loss(halves.float().numpy(), labels.numpy(), MIXED), rel=1e-5)


def test_every_term_falls_when_predictions_get_better() -> None:
    _, labels = random_batch()
    truth = torch.where(labels == 1, 1.0, -1.0)
    divisors = totals(count_valid(labels))
    for weights in ALONE:
        values = [float(segmentation_loss(truth * c, labels, weights, divisors)) for c in (-3.0, 0.0, 0.5, 1.0)]
        assert values == sorted(values, reverse=True), weights
        assert float(segmentation_loss(truth * 40, labels, weights, divisors)) < 1e-3, weights


def test_loss_without_any_weight_is_refused() -> None:
    from raytrain.config import change

    with pytest.raises(ConfigError, match="at least one weight must be above 0"):
        change(members(("small-byob-3b",))[0], {"loss.jaccard": 0, "loss.focal": 0})
