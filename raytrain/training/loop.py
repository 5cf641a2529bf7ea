"""The training loop of one member, on this rank: load, step, validate, report. No Ray in it.

Everything random is a function of (seed, epoch, sample), the global batch does not depend on the number of ranks, and
losses and scores are sums over all ranks divided once, so a run is the same on any number of ranks.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raytrain.config import LoaderSettings, MemberSettings, OptimiserSettings
from raytrain.errors import TrainingDiverged
from raytrain.tiles.dataset import Key, TileDataset
from raytrain.tiles.loader import SampleLoader
from raytrain.tiles.order import Position, check_batch, epoch_batches, rank_share
from raytrain.tiles.reader import TileReader
from raytrain.training.batch_norm import over_all_ranks
from raytrain.training.checkpoints import TrainingState
from raytrain.training.losses import count_valid, segmentation_loss, totals
from raytrain.training.metrics import Scores, count_pixels, scores
from raytrain.training.models import build_model, compute_dtype
from raytrain.training.ranks import Ranks
from raytrain.training.samples import Sample, TrainingTransform, ValidationTransform

VALIDATION_BATCH = 4
"""Tiles in one forward pass of validation, on each rank; in evaluation mode results do not depend on it."""


@dataclass(frozen=True)
class TrainingData:
    """The tiles of a run: positions in the reader to train on and to validate on (may be none), and how they come."""

    reader: TileReader
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    loader: LoaderSettings = field(default_factory=LoaderSettings)


@dataclass(frozen=True)
class EpochReport:
    """What an epoch came to: mean loss over its global batches, scores (None without validation), seconds, images/s."""

    epoch: int
    loss: float
    scores: Scores | None
    epoch_s: float
    images_per_s: float


OnEpoch = Callable[[EpochReport, TrainingState], None]


def train_member(
    settings: MemberSettings,
    data: TrainingData,
    ranks: Ranks,
    on_epoch: OnEpoch,
    restore: Callable[[TrainingState], None] | None = None,
) -> TrainingState:
    """Train the member of `settings` to its last epoch and return its state. All ranks call it with the same arguments.

    `restore`, where there is a checkpoint, brings the fresh state to it; `on_epoch` is called on every rank after each
    epoch. Raises `TrainingDiverged` on every rank at once if the loss of a step is not finite on any.
    """
    num_samples = len(data.train) * settings.crops_per_tile
    check_batch(num_samples, settings.global_batch, ranks.world_size)
    state = _fresh_state(settings, ranks, pretrained=settings.pretrained and restore is None)
    if restore is not None:
        restore(state)
    net = _parallel(state.net, settings, ranks)
    dataset = TileDataset(data.reader, data.train, TrainingTransform(settings), settings.crops_per_tile)
    with SampleLoader(dataset, data.loader) as train_samples, validation_loader(settings, data) as validation_samples:
        while state.position.epoch < settings.epochs:
            epoch, done_before = state.position.epoch, state.position.samples_done
            start = time.monotonic()
            loss = _train_epoch(net, state, settings, train_samples, ranks)
            epoch_s = time.monotonic() - start
            has_validation = len(data.validation) > 0
            found = validate(state.net, settings, data, ranks, validation_samples) if has_validation else None
            state.position = Position(epoch + 1)
            on_epoch(EpochReport(epoch, loss, found, epoch_s, (num_samples - done_before) / epoch_s), state)
    return state


def _fresh_state(settings: MemberSettings, ranks: Ranks, *, pretrained: bool) -> TrainingState:
    torch.manual_seed(settings.seed)
    net = over_all_ranks(build_model(settings, pretrained=pretrained), ranks).to(ranks.device)
    if settings.channels_last:
        net = net.to(memory_format=torch.channels_last)
    sgd = settings.optimiser
    optimiser = torch.optim.SGD(net.parameters(), lr=sgd.lr, momentum=sgd.momentum, weight_decay=sgd.weight_decay)
    return TrainingState(net, optimiser)


def _parallel(net: nn.Module, settings: MemberSettings, ranks: Ranks) -> nn.Module:
    """Return `net` wrapped for training; the wrapper shares its parameters."""
    if ranks.world_size > 1:
        devices = [ranks.device.index] if ranks.device.type == "cuda" else None
        net = DistributedDataParallel(net, device_ids=devices, forward_sync_buffers=False)
    return cast(nn.Module, torch.compile(net)) if settings.compile else net


def _train_epoch(
    net: nn.Module, state: TrainingState, settings: MemberSettings, samples: SampleLoader[Sample], ranks: Ranks
) -> float:
    """Take one step for each global batch that is left of the epoch; return the mean of their losses. All ranks."""
    net.train()
    loss_sum = torch.zeros((), dtype=torch.float64)
    num_samples, epoch = len(samples.dataset), state.position.epoch
    batches = epoch_batches(num_samples, settings.global_batch, settings.seed, epoch, state.position.samples_done)
    shares = (_keys(epoch, rank_share(batch, ranks.rank, ranks.world_size)) for batch in batches)
    num_batches = -(-num_samples // settings.global_batch)
    steps = range(num_batches - len(batches), num_batches)
    for step, batch, sample in zip(steps, batches, samples.load(shares), strict=True):
        progress = (epoch * num_batches + step) / (settings.epochs * num_batches)
        for group in state.optimiser.param_groups:
            group["lr"] = learning_rate(settings.optimiser, progress)
        loss_sum += _step(net, state.optimiser, settings, sample, ranks)
        state.position = Position(epoch, state.position.samples_done + len(batch))
    return float(loss_sum) / max(len(batches), 1)


def _keys(epoch: int, samples: NDArray[np.int64]) -> list[Key]:
    return [(epoch, int(i)) for i in samples]


def _step(net: nn.Module, optimiser: torch.optim.SGD, settings: MemberSettings, sample: Sample, ranks: Ranks) -> Tensor:
    """Take one optimiser step on this rank's share of a global batch; return the loss of the whole batch."""
    image, label = _to_device(sample, settings, ranks)
    divisors = totals(ranks.total(count_valid(label)))
    with _autocast(settings, ranks):
        logits = net(image)[:, 0]
    loss = segmentation_loss(logits, label, settings.loss, divisors)
    optimiser.zero_grad(set_to_none=True)
    # DistributedDataParallel averages gradients over the ranks; the parts of the loss are to be added.
    (loss * ranks.world_size).backward()  # type: ignore[no-untyped-call]  # torch has no annotation there
    norm = nn.utils.clip_grad_norm_(net.parameters(), settings.optimiser.clip_norm)
    whole = ranks.total(torch.stack([loss.detach().double(), norm.double() / ranks.world_size]))
    if not torch.isfinite(whole).all():
        raise TrainingDiverged(
            f"member {settings.name}: the loss or its gradient is not finite; try a smaller optimiser.lr"
        )
    optimiser.step()
    return whole[0].cpu()


def learning_rate(optimiser: OptimiserSettings, progress: float) -> float:
    """Return the learning rate when `progress` in [0, 1) of all steps is done: linear warm-up, then the schedule."""
    warmup = optimiser.warmup_fraction
    if progress < warmup:
        return optimiser.lr * (0.05 + 0.95 * progress / warmup)
    if optimiser.schedule == "constant":
        return optimiser.lr
    return optimiser.lr * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def validation_loader(settings: MemberSettings, data: TrainingData) -> SampleLoader[Sample]:
    """Return the loader of the validation tiles."""
    return SampleLoader(TileDataset(data.reader, data.validation, ValidationTransform(settings)), data.loader)


@torch.no_grad()
def validate(
    net: nn.Module, settings: MemberSettings, data: TrainingData, ranks: Ranks, samples: SampleLoader[Sample]
) -> Scores:
    """Return the scores over the validation tiles, each counted once, at threshold 0.5. All ranks."""
    net.eval()
    counts = torch.zeros(len(data.validation), 2, dtype=torch.int64, device=ranks.device)
    groups = list(_equal_shapes(data, ranks))
    shares = ([(0, i) for i in group] for group in groups)
    for group, sample in zip(groups, samples.load(shares), strict=True):
        image, label = _to_device(sample, settings, ranks)
        with _autocast(settings, ranks):
            cloud = (net(image)[:, 0].float() > 0).to(torch.uint8)
        for i, prediction, truth in zip(group, cloud.cpu().numpy(), label.cpu().numpy(), strict=True):
            counts[i] = torch.tensor(count_pixels(prediction, truth))
    intersection, union = ranks.total(counts).cpu().T.tolist()
    locations = data.reader.locations
    return scores(intersection, union, [locations[i] for i in data.validation], settings.empty_union_rule)


def _equal_shapes(data: TrainingData, ranks: Ranks) -> Iterator[list[int]]:
    """Yield this rank's validation tiles (positions in `data.validation`) in groups of one shape."""
    by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i in range(ranks.rank, len(data.validation), ranks.world_size):
        by_shape[data.reader.shapes[int(data.validation[i])]].append(i)
    for members in by_shape.values():
        for start in range(0, len(members), VALIDATION_BATCH):
            yield members[start : start + VALIDATION_BATCH]


def _to_device(sample: Sample, settings: MemberSettings, ranks: Ranks) -> tuple[Tensor, Tensor]:
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    image = sample.image.to(ranks.device, non_blocking=True, memory_format=layout)
    return image, sample.label.to(ranks.device, non_blocking=True)


def _autocast(settings: MemberSettings, ranks: Ranks) -> contextlib.AbstractContextManager[object]:
    dtype = compute_dtype(settings.precision, ranks.device)
    return torch.autocast(ranks.device.type, dtype=dtype, enabled=dtype != torch.float32)
