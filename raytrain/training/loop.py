"""The training loop of one member, on this rank: load, step, validate, report. No Ray in it.

Everything random is a function of (seed, epoch, sample), the global batch does not depend on the number of ranks, and
losses and scores are sums over all ranks divided once, so a run is the same on any number of ranks.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from raytrain.config import LoaderSettings, MemberSettings
from raytrain.errors import ConfigError, TrainingDiverged
from raytrain.imagery.normalisation import check_bands
from raytrain.tiles.dataset import Key, TileDataset
from raytrain.tiles.loader import SampleLoader
from raytrain.tiles.order import (
    Position,
    Purpose,
    batch_groups,
    check_batch,
    epoch_batches,
    rank_share,
    stream,
)
from raytrain.tiles.reader import TileReader
from raytrain.training.batch_norm import over_all_ranks
from raytrain.training.checkpoints import StepsTaken, TrainingState
from raytrain.training.encoder_files import EncoderFile
from raytrain.training.metrics import Scores, TileScore, count_pixels, extreme_tiles, scores
from raytrain.training.models import build_model, compute_dtype
from raytrain.training.ranks import Ranks
from raytrain.training.samples import Sample, TrainingTransform, ValidationTransform
from raytrain.training.schedules import learning_rate
from raytrain.training.step import autocast, take_step, to_device

VALIDATION_BATCH = 4
"""Tiles in one forward pass of validation, on each rank; in evaluation mode results do not depend on it."""
PROBED_TILES = 4
"""Where nothing is validated, so many training tiles show whether the net still computes."""


@dataclass(frozen=True)
class TrainingData:
    """The tiles of a run: positions in the reader to train on and to validate on (may be none), and how they come."""

    reader: TileReader
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    loader: LoaderSettings = field(default_factory=LoaderSettings)


@dataclass(frozen=True)
class EpochReport:
    """What an epoch came to.

    `loss` is the mean over its global batches, `scores` are None without validation; `is_best` says that no epoch
    before was as good by the location-weighted score, where there is none that the epoch is the last so far. `epoch_s`
    is the time of the steps taken here, of which `wait_s` were spent waiting for samples, and `skipped_steps` changed
    nothing, since their gradient overflowed float16; `validation_s` is that of the validation. Of the best epoch so far
    `tiles` has the worst, median and best tiles that were validated on.
    """

    epoch: int
    loss: float
    scores: Scores | None
    is_best: bool
    learning_rate: float
    epoch_s: float
    validation_s: float
    wait_s: float
    images_per_s: float
    skipped_steps: int
    tiles: tuple[TileScore, ...] = ()


OnEpoch = Callable[[EpochReport, TrainingState], None]
OnStep = Callable[[TrainingState], None]


def train_member(
    settings: MemberSettings,
    data: TrainingData,
    ranks: Ranks,
    on_epoch: OnEpoch,
    restore: Callable[[TrainingState], None] | None = None,
    on_step: OnStep | None = None,
    encoder_file: EncoderFile | None = None,
) -> TrainingState:
    """Train the member of `settings` to its last epoch and return its state. All ranks call it with the same arguments.

    `restore`, where there is a checkpoint, brings the fresh state to it; `on_step` and `on_epoch` are called on every
    rank after each step and each epoch, when the state may be saved. The encoder's pretrained weights come from
    `encoder_file`, where it is given, else from where the settings say; a restored state needs none.

    Raises `TrainingDiverged` on every rank at once if the loss of a step, its gradient, or what the net makes of a tile
    after an epoch is not finite on any; `ConfigError` for settings that these tiles or ranks can't do.
    """
    num_samples = len(data.train) * settings.crops_per_tile
    _check(settings, num_samples, ranks)
    state = _fresh_state(settings, ranks, num_samples, encoder_file, with_encoder_weights=restore is None)
    if restore is not None:
        restore(state)
    net = _parallel(state.net, settings, ranks)
    dataset = TileDataset(data.reader, data.train, TrainingTransform(settings), settings.crops_per_tile)
    has_validation = len(data.validation) > 0
    judged = data if has_validation else replace(data, validation=data.train[:PROBED_TILES])
    with SampleLoader(dataset, data.loader) as train_samples, validation_loader(settings, judged) as judged_samples:
        while state.position.epoch < settings.epochs:
            _train_epoch(net, state, settings, train_samples, ranks, on_step)
            begun = time.monotonic()
            counts_N2 = count_tiles(state.net, settings, judged, ranks, judged_samples)
            found = _scores(settings, data, counts_N2) if has_validation else None
            report = _end_epoch(state, settings, found, time.monotonic() - begun)
            if has_validation and report.is_best:
                report = replace(report, tiles=_extreme_tiles(data, counts_N2))
            on_epoch(report, state)
    return state


def _check(settings: MemberSettings, num_samples: int, ranks: Ranks) -> None:
    """Raise `ConfigError` for settings that so many samples or these ranks can't do, before a net is built."""
    check_bands(settings.normalisation, settings.bands)
    check_batch(num_samples, ranks.world_size, settings)
    if settings.compile and ranks.world_size > 1 and ranks.device.type == "cpu":
        # On two such ranks a compiled net had not taken a step in four minutes.
        raise ConfigError(
            f"member {settings.name}: compile is for GPUs, or one rank on a CPU; here are {ranks.world_size} CPU ranks"
        )


def _end_epoch(
    state: TrainingState, settings: MemberSettings, found: Scores | None, validation_s: float
) -> EpochReport:
    """Bring `state` to the start of the next epoch and return the report of this one."""
    taken = state.taken
    epoch, loss = state.position.epoch, state.loss_sum / max(state.num_steps, 1)
    value = -loss if found is None else found.iou_location_weighted
    state.plateau = state.plateau.after(epoch, value, settings.optimiser)
    state.position, state.loss_sum, state.num_steps = Position(epoch + 1), 0.0, 0
    return EpochReport(
        epoch=epoch,
        loss=loss,
        scores=found,
        is_best=found is None or state.plateau.best_epoch == epoch,
        learning_rate=state.optimiser.param_groups[0]["lr"],
        epoch_s=taken.all_s,
        validation_s=validation_s,
        wait_s=taken.wait_s,
        images_per_s=taken.num_images / taken.all_s if taken.all_s else 0.0,
        skipped_steps=taken.skipped,
    )


def _fresh_state(
    settings: MemberSettings,
    ranks: Ranks,
    num_samples: int,
    encoder_file: EncoderFile | None = None,
    *,
    with_encoder_weights: bool = True,
) -> TrainingState:
    torch.manual_seed(settings.seed)
    net = build_model(settings, with_encoder_weights=with_encoder_weights, file=encoder_file)
    net = over_all_ranks(net, ranks).to(ranks.device)
    if settings.channels_last:
        net = net.to(memory_format=torch.channels_last)
    sgd = settings.optimiser
    optimiser = torch.optim.SGD(net.parameters(), lr=sgd.lr, momentum=sgd.momentum, weight_decay=sgd.weight_decay)
    needs_scaling = compute_dtype(settings.precision, ranks.device) == torch.float16
    scaler = torch.amp.GradScaler(ranks.device.type, enabled=needs_scaling)
    return TrainingState(net, optimiser, scaler, num_samples)


def _parallel(net: nn.Module, settings: MemberSettings, ranks: Ranks) -> nn.Module:
    """Return `net` wrapped for training; the wrapper shares its parameters."""
    if settings.compile:
        net.compile()  # in place: the names of its parameters stay
    if ranks.world_size == 1:
        return net
    devices = [ranks.device.index] if ranks.device.type == "cuda" else None
    return DistributedDataParallel(net, device_ids=devices, forward_sync_buffers=False)


def _train_epoch(
    net: nn.Module,
    state: TrainingState,
    settings: MemberSettings,
    samples: SampleLoader[Sample],
    ranks: Ranks,
    on_step: OnStep | None,
) -> None:
    """Take a step for each global batch that is left of the epoch. All ranks."""
    net.train()
    taken, begun = StepsTaken(), time.monotonic()
    state.taken = taken
    num_samples, epoch = len(samples.dataset), state.position.epoch
    batches = epoch_batches(num_samples, settings.global_batch, settings.seed, epoch, state.position.samples_done)
    num_batches = -(-num_samples // settings.global_batch)
    groups = [batch_groups(batch, settings.batch_norm_group) for batch in batches]
    shares = (_keys(epoch, rank_share(group, ranks.rank, ranks.world_size)) for batch in groups for group in batch)
    loaded = samples.load(shares)
    for step, batch in enumerate(groups, num_batches - len(batches)):
        start = time.monotonic()
        parts = list(itertools.islice(loaded, len(batch)))
        taken.wait_s += time.monotonic() - start
        _seed(settings.seed, state.position, ranks)
        rate = learning_rate(settings.optimiser, (epoch * num_batches + step) / (settings.epochs * num_batches))
        for parameters in state.optimiser.param_groups:
            parameters["lr"] = rate * state.plateau.rate_factor
        scale = state.scaler.get_scale()
        state.loss_sum += take_step(net, state, settings, parts, ranks)
        state.num_steps += 1
        num_images = sum(map(len, batch))
        state.position = Position(epoch, state.position.samples_done + num_images)
        taken.num_images += num_images
        taken.skipped += state.scaler.get_scale() < scale
        taken.all_s = time.monotonic() - begun
        if on_step is not None:
            on_step(state)


def _keys(epoch: int, samples: NDArray[np.int64]) -> list[Key]:
    return [(epoch, int(i)) for i in samples]


def _seed(seed: int, position: Position, ranks: Ranks) -> None:
    """Seed torch's generators, for layers that draw: so no checkpoint has to keep their state."""
    place = (position.epoch, position.samples_done, ranks.rank)
    torch.manual_seed(int(stream(seed, Purpose.LAYERS, *place).generate_state(1, np.uint64)[0]))


def validation_loader(settings: MemberSettings, data: TrainingData) -> SampleLoader[Sample]:
    """Return the loader of the validation tiles."""
    return SampleLoader(TileDataset(data.reader, data.validation, ValidationTransform(settings)), data.loader)


def validate(
    net: nn.Module, settings: MemberSettings, data: TrainingData, ranks: Ranks, samples: SampleLoader[Sample]
) -> Scores:
    """Return the scores over the validation tiles (one at least), as `count_tiles` counts them. All ranks."""
    return _scores(settings, data, count_tiles(net, settings, data, ranks, samples))


@torch.no_grad()
def count_tiles(
    net: nn.Module, settings: MemberSettings, data: TrainingData, ranks: Ranks, samples: SampleLoader[Sample]
) -> NDArray[np.int64]:
    """Return intersection and union of each validation tile, `[N, 2] int64`, at threshold 0.5. All ranks.

    Each is counted by one rank, and known to all of them. `samples` are those of `validation_loader` for the same
    settings and data. The net stays in evaluation mode. Raises `TrainingDiverged` on every rank if a logit is not
    finite on any: it would count as clear.
    """
    net.eval()
    broken = torch.zeros((), dtype=torch.int64, device=ranks.device)
    counts = torch.zeros(len(data.validation), 2, dtype=torch.int64, device=ranks.device)
    groups = list(_equal_shapes(data, ranks))
    shares = ([(0, i) for i in group] for group in groups)
    for group, sample in zip(groups, samples.load(shares), strict=True):
        image, label = to_device(sample, settings, ranks)
        with autocast(settings, ranks):
            logits = net(image)[:, 0].float()
        broken += (~logits.isfinite()).sum()
        cloud = (logits > 0).to(torch.uint8)
        for i, prediction, truth in zip(group, cloud.cpu().numpy(), label.cpu().numpy(), strict=True):
            counts[i] = torch.tensor(count_pixels(prediction, truth))
    if ranks.total(broken):
        raise TrainingDiverged(
            f"member {settings.name}: what the net makes of tiles is not finite; try a smaller optimiser.lr"
        )
    return np.asarray(ranks.total(counts).cpu().numpy(), np.int64)


def _scores(settings: MemberSettings, data: TrainingData, counts_N2: NDArray[np.int64]) -> Scores:
    intersection, union = counts_N2.T.tolist()
    locations = data.reader.locations
    return scores(intersection, union, [locations[i] for i in data.validation], settings.empty_union_rule)


def _extreme_tiles(data: TrainingData, counts_N2: NDArray[np.int64]) -> tuple[TileScore, ...]:
    intersection, union = counts_N2.T.tolist()
    tile_ids = data.reader.tile_ids
    return extreme_tiles([tile_ids[i] for i in data.validation], intersection, union)


def _equal_shapes(data: TrainingData, ranks: Ranks) -> Iterator[list[int]]:
    """Yield this rank's validation tiles (positions in `data.validation`) in groups of one shape."""
    by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i in range(ranks.rank, len(data.validation), ranks.world_size):
        by_shape[data.reader.shapes[int(data.validation[i])]].append(i)
    for members in by_shape.values():
        for start in range(0, len(members), VALIDATION_BATCH):
            yield members[start : start + VALIDATION_BATCH]
