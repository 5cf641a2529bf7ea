"""A trained net rewritten for inference on a CPU: the same function, by fewer operations.

Batch normalisation becomes part of the convolution before it. In the decoder, doubling by nearest neighbour and a 3 x 3
convolution become one transposed convolution of 4 x 4 with stride 2, which needs 4 products where the two need 9, and
no map of double size in between; the skip connection is convolved by itself and added, so nothing is concatenated.
Results agree to float32 rounding. Must not know members, windows or devices.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, cast

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoderBlock
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

PROBE_PX = 64
CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
"""Not what derives from them: a convolution that changes its weight on the way can't be scaled by it."""
NORMS = (nn.BatchNorm2d, BatchNormAct2d)


def rewritten(net: nn.Module, num_bands: int) -> nn.Module:
    """Return a copy of `net` for inference, `[B, num_bands, H, W]` -> logits; `net` stays as it is."""
    net = copy.deepcopy(net).eval().requires_grad_(False)
    if any(type(module) in NORMS for module in net.modules()):
        _fold_batch_norm(net, num_bands)
    if isinstance(net, smp.Unet):
        _rewrite_decoder(net)
    return net


def _fold_batch_norm(net: nn.Module, num_bands: int) -> None:
    names = {module: name for name, module in net.named_modules()}
    for convolution, norm in _pairs(net, num_bands):
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight,
            convolution.bias,
            cast(Tensor, norm.running_mean),
            cast(Tensor, norm.running_var),
            norm.eps,
            norm.weight,
            norm.bias,
        )
        parent, _, name = names[norm].rpartition(".")
        # timm's BatchNormAct2d holds the activation that follows.
        setattr(net.get_submodule(parent), name, getattr(norm, "act", nn.Identity()))


def _pairs(net: nn.Module, num_bands: int) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Return each convolution whose result goes to a batch normalisation and nowhere else, with that normalisation.

    Found by a look at a forward pass, since fx can't trace what pads by the size of its input, as many encoders do.
    """
    made_by: dict[int, nn.Conv2d] = {}
    fed: list[tuple[int, nn.BatchNorm2d]] = []
    calls: Counter[nn.Module] = Counter()

    def convolved(module: nn.Module, arguments: Any, result: Tensor) -> None:
        calls[module] += 1
        made_by[id(result)] = cast(nn.Conv2d, module)

    def norm_begins(module: nn.Module, arguments: Any) -> None:
        calls[module] += 1
        fed.append((id(arguments[0]), cast(nn.BatchNorm2d, module)))

    handles = [m.register_forward_hook(convolved) for m in net.modules() if type(m) in CONVOLUTIONS]
    handles += [m.register_forward_pre_hook(norm_begins) for m in net.modules() if type(m) in NORMS]
    with torch.no_grad(), _Uses() as uses:
        net(torch.zeros(1, num_bands, PROBE_PX, PROBE_PX))
    for handle in handles:
        handle.remove()
    return [
        (made_by[key], norm)
        for key, norm in fed
        if key in made_by and uses.counts[key] == 1 and calls[made_by[key]] == 1 and calls[norm] == 1
    ]


class _Uses(TorchFunctionMode):
    """Counts how many operations take each tensor; all are kept meanwhile, so that no id stands for two."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()
        self._kept: list[Any] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._kept += [args, kwargs, result]
        if any(True for _ in _tensors(result)):  # what gives no tensor (`shape`, `dim()`) is no use of one
            self.counts.update(id(each) for each in _tensors([args, kwargs]))
        return result


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in `value`, in lists and dictionaries, too."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _rewrite_decoder(net: smp.Unet) -> None:
    """Replace the decoder's blocks that double, concatenate and convolve; others (with attention, say) stay."""
    inputs = net.encoder.out_channels[-1]
    for i, block in enumerate(net.decoder.blocks):
        norm = block.conv1[1]
        plain = all(isinstance(each.attention, nn.Identity) for each in (block.attention1, block.attention2))
        if plain and isinstance(norm, nn.Identity) and block.interpolation_mode == "nearest":
            net.decoder.blocks[i] = _DoublingBlock(block, inputs)
        inputs = block.conv2[0].out_channels


class _DoublingBlock(nn.Module):
    """What smp's block of a U-Net's decoder does, in another order; `inputs` is the number of channels from below."""

    def __init__(self, block: UnetDecoderBlock, inputs: int) -> None:
        super().__init__()
        convolution, _, self.activation = block.conv1
        weight = convolution.weight
        self.doubling = nn.Parameter(doubling_weight(weight[:, :inputs]), requires_grad=False)
        self.skip: nn.Parameter | None = None
        if convolution.in_channels > inputs:
            self.skip = nn.Parameter(weight[:, inputs:].clone(), requires_grad=False)
        self.bias = convolution.bias
        self.conv2 = block.conv2

    def forward(
        self, feature_map: Tensor, target_height: int, target_width: int, skip_connection: Tensor | None = None
    ) -> Tensor:
        below = F.conv_transpose2d(feature_map, self.doubling, self.bias, stride=2, padding=1)
        assert below.shape[-2:] == (target_height, target_width), "each stage of an encoder halves a side"
        if self.skip is not None:
            below += F.conv2d(cast(Tensor, skip_connection), self.skip, padding=1)
        return cast(Tensor, self.conv2(self.activation(below)))


def doubling_weight(weight_OI33: Tensor) -> Tensor:
    """Return the `[I, O, 4, 4]` weight of the transposed convolution (stride 2, padding 1) that doubles and convolves.

    Doubling is a transposed convolution with 2 x 2 ones; with the 3 x 3 weight turned by 180 degrees these give 4 x 4.
    """
    outputs, inputs = weight_OI33.shape[:2]
    turned = weight_OI33.double().flip(-1, -2).reshape(-1, 1, 3, 3)
    ones = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    full = F.conv2d(turned, ones, padding=1).reshape(outputs, inputs, 4, 4)
    return full.to(weight_OI33.dtype).transpose(0, 1).contiguous()
