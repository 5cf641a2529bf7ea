"""One step of the optimiser on this rank's share of a global batch. Must not know tiles, epochs or who asks.

The named ranges (`raytrain: ...`) are what a profiler shows.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd.profiler import record_function
from torch.nn.parallel import DistributedDataParallel

from raytrain.config import MemberSettings
from raytrain.errors import TrainingDiverged
from raytrain.training.checkpoints import TrainingState
from raytrain.training.losses import count_valid, segmentation_loss, totals
from raytrain.training.models import compute_dtype
from raytrain.training.ranks import Ranks
from raytrain.training.samples import Sample


def take_step(
    net: nn.Module, state: TrainingState, settings: MemberSettings, samples: Sequence[Sample], ranks: Ranks
) -> float:
    """Take one optimiser step on this rank's share of a global batch; return the loss of the whole batch.

    The share comes in groups, each normalised over all ranks in a pass of its own; their gradients add up. Raises
    `TrainingDiverged` on every rank if the loss or the gradient is not finite on any.
    """
    parts = [to_device(sample, settings, ranks) for sample in samples]
    # Of the whole batch, before the first backward pass: the parts of the loss are divided by what all ranks have.
    with record_function("raytrain: counts"):
        divisors = totals(ranks.total(torch.stack([count_valid(label) for _, label in parts]).sum(0)))
    state.optimiser.zero_grad(set_to_none=True)
    loss = torch.zeros((), dtype=torch.float64, device=ranks.device)
    for i, (image, label) in enumerate(parts, 1):
        with _gradients_stay_here(net, i < len(parts)):
            with record_function("raytrain: forward"), autocast(settings, ranks):
                logits = net(image)[:, 0]
            with record_function("raytrain: loss"):
                part = segmentation_loss(logits, label, settings.loss, divisors)
            with record_function("raytrain: backward"):
                # DistributedDataParallel averages gradients over the ranks; the parts of the loss are to be added.
                state.scaler.scale(part * ranks.world_size).backward()  # type: ignore[no-untyped-call]
        loss += part.detach().double()
    with record_function("raytrain: optimiser"):
        state.scaler.unscale_(state.optimiser)
        norm = nn.utils.clip_grad_norm_(net.parameters(), settings.optimiser.clip_norm)
        whole = ranks.total(torch.stack([loss, norm.double() / ranks.world_size])).cpu()
        _judge(whole, state, settings)
        state.scaler.step(state.optimiser)
        state.scaler.update()
    return float(whole[0])


def _gradients_stay_here(net: nn.Module, wanted: bool) -> contextlib.AbstractContextManager[object]:
    """Return a context in which backward passes add to this rank's gradients without exchanging them."""
    if wanted and isinstance(net, DistributedDataParallel):
        return cast(contextlib.AbstractContextManager[object], net.no_sync())
    return contextlib.nullcontext()


def _judge(whole: Tensor, state: TrainingState, settings: MemberSettings) -> None:
    """Raise `TrainingDiverged` if the loss or the gradient norm, summed over the ranks, is not finite. All ranks alike.

    A gradient that overflows float16 is no verdict while there is scale to take back: the scaler leaves out that step.
    """
    loss, norm = whole.tolist()
    can_lower_scale = state.scaler.is_enabled() and state.scaler.get_scale() > 1
    if math.isfinite(loss) and (math.isfinite(norm) or can_lower_scale):
        return
    raise TrainingDiverged(
        f"member {settings.name}, epoch {state.position.epoch + 1}, after {state.position.samples_done} of "
        f"{state.num_samples} samples: loss {loss:g}, gradient norm {norm:g}; try a smaller optimiser.lr"
    )


def to_device(sample: Sample, settings: MemberSettings, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Return image and label on the device of this rank, the image in the layout of the settings."""
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    image = sample.image.to(ranks.device, non_blocking=True, memory_format=layout)
    return image, sample.label.to(ranks.device, non_blocking=True)


def autocast(settings: MemberSettings, ranks: Ranks) -> contextlib.AbstractContextManager[object]:
    """Return a context in which forward passes compute in the precision of the settings."""
    dtype = compute_dtype(settings.precision, ranks.device)
    return torch.autocast(ranks.device.type, dtype=dtype, enabled=dtype != torch.float32)
