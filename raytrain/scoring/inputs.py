"""What nets are fed: windows of reflectance as normalised tensors on a device, computed once for all members.

A window goes to the device once, as integers. Every normalisation is by band, so a member of three bands takes its
channels of what one of four is fed. Must not know nets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raytrain.config import MemberSettings, Normalisation
from raytrain.imagery.normalisation import NO_DATA_VALUE, scale_of

InputKey = tuple[tuple[str, ...], Normalisation]
"""What decides a member's input: its bands and its normalisation."""


def input_key(member: MemberSettings) -> InputKey:
    """Return the key of the input that `member` shares with others."""
    return member.bands, member.normalisation


def shared_inputs(
    keys: Iterable[InputKey],
    bands: Sequence[str],
    pixels_BCHW: NDArray[np.uint16],
    valid_BHW: NDArray[np.bool_],
    device: torch.device,
) -> dict[InputKey, Tensor]:
    """Return the input of each key, `[B, its bands, H, W] float32` in [-1, 1], channels last, on `device`.

    The channels of `pixels_BCHW` are `bands`. The values are, to the bit, those of `normalise` for each window alone.
    """
    keys = tuple(dict.fromkeys(keys))
    values_BCHW = _to_float(pixels_BCHW, device)
    no_data_B1HW = torch.from_numpy(~valid_BHW).to(device)[:, None]
    by_normalisation: dict[Normalisation, dict[str, None]] = {}
    for wanted, normalisation in keys:
        by_normalisation.setdefault(normalisation, {}).update(dict.fromkeys(wanted))
    inputs: dict[InputKey, Tensor] = {}
    for normalisation, used in by_normalisation.items():
        channels = [bands.index(band) for band in used]
        low, span = _scales(pixels_BCHW[:, channels], valid_BHW, tuple(used), normalisation, device)
        normalised = _normalise(values_BCHW[:, channels], low, span, no_data_B1HW)
        for key in keys:
            if key[1] == normalisation:
                own = normalised[:, [tuple(used).index(band) for band in key[0]]]
                inputs[key] = own.contiguous(memory_format=torch.channels_last)
    return inputs


def _to_float(pixels: NDArray[np.uint16], device: torch.device) -> Tensor:
    """Return `pixels` as float32 on `device`; torch computes little with uint16, so they go there as int16."""
    signed = torch.from_numpy(np.ascontiguousarray(pixels).view(np.int16)).to(device)
    return signed.to(torch.int32).bitwise_and_(0xFFFF).to(torch.float32)


def _scales(
    pixels_BCHW: NDArray[np.uint16],
    valid_BHW: NDArray[np.bool_],
    bands: Sequence[str],
    normalisation: Normalisation,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Return low and span, each `[B, C, 1, 1]`, every window by itself."""
    scales = [
        scale_of(pixels, valid, bands, normalisation) for pixels, valid in zip(pixels_BCHW, valid_BHW, strict=True)
    ]
    low, span = np.stack([scale.low for scale in scales]), np.stack([scale.span for scale in scales])
    return torch.from_numpy(low).to(device), torch.from_numpy(span).to(device)


def _normalise(values: Tensor, low: Tensor, span: Tensor, no_data: Tensor) -> Tensor:
    """Do what `raytrain.imagery.normalisation.normalise` does, in the same steps, on the device of `values`."""
    normalised = (values - low).div_(span).clamp_(0, 1).mul_(2).sub_(1)
    return normalised.masked_fill_(no_data, NO_DATA_VALUE)
