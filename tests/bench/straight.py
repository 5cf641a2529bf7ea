"""The straightforward way to an ensemble's probability, to measure ours against, and random nets fit to be measured.

Straightforward: every member and each flip in turn, read and normalised for each, float32, one chip at a time, by the
net as it was trained. Must not know how ours does it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raytrain.config import MemberSettings, ScoreSettings
from raytrain.imagery.normalisation import normalise, scale_of
from raytrain.imagery.windows import axis_weights, window_starts
from raytrain.recipes import members
from raytrain.tiles.archive import Chip, read_chip
from raytrain.training.models import build_model

Image = tuple[NDArray[np.uint16], NDArray[np.bool_]]
"""Pixels `[C, H, W]` and where they hold data, `[H, W]`."""
Members = Sequence[tuple[MemberSettings, nn.Module]]


def straightforward(chip: Chip, nets: Members) -> NDArray[np.float32]:
    """Return the mean probability `[H, W] float32` of a chip over members and flips."""

    def read(member: MemberSettings) -> Image:
        raster = read_chip(chip.chip_id, {band: chip.bands[band] for band in member.bands})
        return raster.pixels, raster.valid

    return _mean(nets, read)


def straightforward_scene(
    pixels: NDArray[np.uint16], valid: NDArray[np.bool_], bands: Sequence[str], nets: Members, settings: ScoreSettings
) -> NDArray[np.float64]:
    """Return the mean probability `[H, W] float64` of a scene, `pixels` `[C, H, W]`, 0 where it has no data.

    Every window in turn, weighted and summed in float64 over the whole scene.
    """
    height, width = valid.shape
    side, overlap = settings.window_px, settings.overlap_px
    rows, columns = (window_starts(length, side, overlap) for length in (height, width))
    weights = [axis_weights(length, starts, side, overlap) for length, starts in ((height, rows), (width, columns))]
    total = np.zeros((height, width))
    for row, row_weights in zip(rows, weights[0], strict=True):
        for column, column_weights in zip(columns, weights[1], strict=True):
            box = (slice(row, row + side), slice(column, column + side))

            def read(member: MemberSettings, box: tuple[slice, slice] = box) -> Image:
                return pixels[[bands.index(band) for band in member.bands]][:, *box], valid[box]

            total[box] += np.outer(row_weights, column_weights) * _mean(nets, read)
    return total * valid


def _mean(nets: Members, read: Callable[[MemberSettings], Image]) -> NDArray[np.float32]:
    """Return the mean probability over members and flips of what `read` reads, for each anew."""
    total: NDArray[np.float32] | None = None
    for member, net in nets:
        for flip in (False, True):
            pixels, valid = read(member)
            scale = scale_of(pixels, valid, member.bands, member.normalisation)
            image = torch.from_numpy(normalise(pixels, valid, scale))[None]
            with torch.no_grad():
                probability = torch.sigmoid(net(image.flip(-1) if flip else image))
            found = (probability.flip(-1) if flip else probability)[0, 0].numpy()
            total = found if total is None else total + found
    assert total is not None, "there is a member"
    return total / np.float32(2 * len(nets))


def random_nets(names: tuple[str, ...], chips: Sequence[Chip]) -> list[tuple[MemberSettings, nn.Module]]:
    """Return members with random weights whose maps stay of the size of those of trained ones.

    The statistics of batch normalisation are those of `chips`, and logits have a deviation of 3 around 0: else values
    run off, over the layers, to where rounding alone decides.
    """
    nets = []
    for member in members(names):
        torch.manual_seed(0)
        net = build_model(member, with_encoder_weights=False).train()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the mean over all passes
        images = torch.stack([_image(chip, member) for chip in chips])
        with torch.no_grad():
            net(images)
            logits = net.eval()(images)
            head = net.segmentation_head[0]
            head.weight *= 3 / logits.std()
            head.bias -= 3 * logits.mean() / logits.std()
        nets.append((member, net))
    return nets


def _image(chip: Chip, member: MemberSettings) -> torch.Tensor:
    raster = read_chip(chip.chip_id, {band: chip.bands[band] for band in member.bands})
    scale = scale_of(raster.pixels, raster.valid, member.bands, member.normalisation)
    return torch.from_numpy(normalise(raster.pixels, raster.valid, scale))
