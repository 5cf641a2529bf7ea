"""Pretrained tensors into an encoder: by name and shape, the first convolution adapted to the member's bands.

Every tensor of the encoder has to be in the file; of what else is there only the parts that timm's whole network has
behind the encoder (its head) are passed over. Must not know where a file comes from.
"""

from __future__ import annotations

from collections.abc import Mapping

import segmentation_models_pytorch as smp
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from raytrain.config import MemberSettings
from raytrain.errors import ConfigError, first_line

RGB_BANDS = ("B04", "B03", "B02")
"""The bands of red, green and blue, in the order of the input channels of timm's networks."""
COUNTER = ".num_batches_tracked"
"""A counter of batch normalisation that nothing here computes with; older files have it not."""
SHOWN = 3
"""How many tensors a message names."""


def load_encoder(encoder: nn.Module, settings: MemberSettings, data: bytes, place: str) -> None:
    """Give `encoder` (timm's network for features, of the member's bands) the tensors of the safetensors file `data`.

    The first convolution follows `settings.first_convolution`. Raises `ConfigError`, which calls the file `place`, if
    it is damaged, lacks a tensor of the encoder, or has one of another shape or of another network.
    """
    fitting = _fitting(encoder, settings.encoder, data, place)
    name = _first_convolution(encoder, settings.encoder)
    if settings.first_convolution == "random" and set(settings.bands) != set(RGB_BANDS):
        del fitting[name]
    else:
        fitting[name] = adapt_filters(fitting[name], settings.bands)
    # Not strict only for what was left out on purpose: `_fitting` has found every other tensor.
    encoder.load_state_dict(fitting, strict=False)


def adapt_filters(filters_OIHW: Tensor, bands: tuple[str, ...]) -> Tensor:
    """Return `[O, C, H, W]`, the filters of red, green and blue (`[O, 3, H, W]`) as filters of the C `bands`.

    B04, B03 and B02 take the filters of red, green and blue, any other band takes the mean of the three. All are scaled
    by 3/C: on bands that look alike the sum is that of the three. The three visible bands are a permutation.
    """
    mean_OHW = filters_OIHW.mean(1)
    chosen = [filters_OIHW[:, RGB_BANDS.index(band)] if band in RGB_BANDS else mean_OHW for band in bands]
    stacked = torch.stack(chosen, 1)
    return stacked if len(bands) == len(RGB_BANDS) else stacked * (len(RGB_BANDS) / len(bands))


def check_encoder_file(encoder: str, data: bytes, place: str) -> None:
    """Raise `ConfigError` unless the safetensors file `data`, called `place`, has all that the encoder takes."""
    try:
        with torch.device("meta"):
            net = smp.encoders.get_encoder(f"tu-{encoder}", in_channels=len(RGB_BANDS), depth=5, weights=None)
    except (RuntimeError, KeyError, ValueError) as error:
        raise ConfigError(f"can't build encoder {encoder!r}: {first_line(error)}") from error
    _fitting(net.model, encoder, data, place)


def _fitting(encoder: nn.Module, name: str, data: bytes, place: str) -> dict[str, Tensor]:
    """Return the file's tensors by the encoder's own names; the first convolution has three input channels."""
    try:
        found = load(data)
    except SafetensorError as error:
        raise ConfigError(
            f"{place}: damaged or not a safetensors file ({len(data)} bytes): {first_line(error)}; fetch it again"
        ) from error
    own = encoder.state_dict()
    names = _names(own, found)
    shapes = {key: tuple(tensor.shape) for key, tensor in own.items()}
    first = _first_convolution(encoder, name)
    shapes[first] = (shapes[first][0], len(RGB_BANDS), *shapes[first][2:])
    missing = [key for key in own if key not in names and not key.endswith(COUNTER)]
    differing = [
        f"{names[key]} is {list(found[names[key]].shape)}, expected {list(shape)}"
        for key, shape in shapes.items()
        if key in names and tuple(found[names[key]].shape) != shape
    ]
    foreign = sorted(set(found) - set(names.values()) - _whole_network(name))
    for what, which in (("lacks", missing), ("has tensors of other shapes:", differing), ("also has", foreign)):
        if which:
            more = f" and {len(which) - SHOWN} more" if len(which) > SHOWN else ""
            raise ConfigError(
                f"{place}: {what} {'; '.join(which[:SHOWN])}{more} ({len(found)} tensors in all): not the weights "
                f"of encoder {name!r}; give a file of this encoder with timm's names, as `raytrain weights` writes it"
            )
    return {key: found[theirs] for key, theirs in names.items()}


def _names(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, str]:
    """Return `{own name: name in the file}` of the encoder's tensors that the file has."""
    # timm's networks for features lift the children of a sequence one level up: `stages.0.x` becomes `stages_0.x`.
    lifted = {name.replace(".", "_", 1): name for name in found}
    candidates = {name: name if name in found else lifted.get(name) for name in own}
    return {name: theirs for name, theirs in candidates.items() if theirs is not None}


def _whole_network(name: str) -> set[str]:
    """Return the names of all tensors of timm's whole network, its head among them."""
    with torch.device("meta"):
        return set(timm.create_model(name).state_dict())


def _first_convolution(encoder: nn.Module, name: str) -> str:
    """Return the own name of the weight of the encoder's first convolution."""
    config = timm.models.get_pretrained_cfg(name)
    first = None if config is None else config.first_conv
    own = encoder.state_dict()
    if isinstance(first, str):
        for candidate in (f"{first}.weight", f"{first}.weight".replace(".", "_", 1)):
            if candidate in own:
                return candidate
    raise ConfigError(
        f"encoder {name!r}: timm does not say which is its one first convolution, so pretrained weights can't be "
        "adapted to bands; set encoder_weights=random, or take another encoder"
    )
