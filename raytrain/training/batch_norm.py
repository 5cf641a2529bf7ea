"""Batch normalisation over the global batch, on any backend.

torch's SyncBatchNorm refuses CPU tensors; here is the same arithmetic with a differentiable all-reduce of sums and
counts (Ioffe and Szegedy 2015, over all ranks). Parameter names stay those of the net that is converted. Must not know
which net that is.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn

from raytrain.training.ranks import Ranks


class _SumOverRanks(torch.autograd.Function):
    """All-reduce whose gradient is all-reduced too, since what a rank adds is used on every rank."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        summed = values.clone()
        torch.distributed.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].contiguous().clone()
        torch.distributed.all_reduce(summed)
        return summed


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """`BatchNorm2d` whose statistics are those of the batch of all ranks; takes over timm's fused activation too."""

    def __init__(self, source: nn.BatchNorm2d) -> None:
        super().__init__(source.num_features, source.eps, source.momentum, source.affine, source.track_running_stats)
        self.load_state_dict(nn.BatchNorm2d.state_dict(source))
        self.drop = getattr(source, "drop", nn.Identity())
        self.act = getattr(source, "act", nn.Identity())

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `[B, C, H, W]`; in evaluation by the running statistics, which the training updates."""
        return cast(
            Tensor, self.act(self.drop(self._over_all_ranks(input) if self.training else super().forward(input)))
        )

    def _over_all_ranks(self, x: Tensor) -> Tensor:
        values = x.float()
        count = values.numel() // values.shape[1]
        # Sums of what is centred on this rank's mean, put together as float64: the mean square of large values that
        # differ little has no digits left for their variance.
        pivot = values.detach().mean((0, 2, 3))
        centred = values - pivot[:, None, None]
        sums = torch.stack([centred.sum((0, 2, 3)), centred.square().sum((0, 2, 3))]).double()
        near, at = sums[0], pivot.double()
        whole = torch.cat([near + count * at, sums[1] + 2 * at * near + count * at.square(), at.new_tensor([count])])
        whole = cast(Tensor, _SumOverRanks.apply(whole))
        total = whole[-1].detach()
        mean, mean_square = whole[:-1].view(2, -1) / total
        variance = (mean_square - mean.square()).clamp_min(0)
        bessel = total / (total - 1).clamp_min(1)
        self._update_running(mean.detach().float(), (variance.detach() * bessel).float())
        scale = self.weight * torch.rsqrt(variance.float() + self.eps)
        shift = self.bias - (mean - at).float() * scale
        return cast(Tensor, (centred * scale[:, None, None] + shift[:, None, None]).to(x.dtype))

    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def over_all_ranks(net: nn.Module, ranks: Ranks) -> nn.Module:
    """Return `net` with every batch normalisation computed over the global batch; with one rank as it is."""
    if ranks.world_size == 1:
        return net
    if ranks.device.type == "cuda":
        return cast(nn.Module, convert_sync_batchnorm(net))  # type: ignore[no-untyped-call]  # as above
    return _converted(net)


def _converted(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.BatchNorm2d):
        return GlobalBatchNorm2d(module)
    for name, child in module.named_children():
        setattr(module, name, _converted(child))
    return module
