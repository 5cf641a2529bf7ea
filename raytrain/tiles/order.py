"""The order of tiles in an epoch: a function of (seed, epoch) alone, never of the number of ranks.

Pure functions of integers. Must not know pixels, torch or who reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from raytrain.config import MemberSettings
from raytrain.errors import ConfigError

DOWNSAMPLING = 32
"""How many pixels of an image become one value behind the encoder, along each side."""


class Purpose(IntEnum):
    """What random numbers are drawn for; each purpose has streams of its own."""

    ORDER = 0
    SAMPLE = 1
    LAYERS = 2


def stream(seed: int, purpose: Purpose, *place: int) -> np.random.SeedSequence:
    """Return what seeds the generator of (seed, purpose, place), where a place is an epoch, a sample and so on."""
    return np.random.SeedSequence(seed, spawn_key=(purpose, *place))


@dataclass(frozen=True, order=True)
class Position:
    """How far a run has come: whole epochs, and in the one that is going on the samples done over all ranks.

    With (seed, epoch) it is all that the rest of the order depends on: a run goes on from here on any number of ranks.
    """

    epoch: int = 0
    samples_done: int = 0


def epoch_batches(
    num_samples: int, global_batch: int, seed: int, epoch: int, samples_done: int = 0
) -> list[NDArray[np.int64]]:
    """Return the global batches of an epoch: every sample in exactly one of them, in an order drawn from (seed, epoch).

    The sizes differ by at most one and are at most `global_batch`: no sample is dropped, or seen twice to fill one up.
    With `samples_done`, the rest of the epoch: where that many samples are whole batches, just the batches that are
    left; with another `global_batch`, still each sample once.
    """
    generator = np.random.default_rng(stream(seed, Purpose.ORDER, epoch))
    rest = generator.permutation(num_samples)[samples_done:]
    return np.array_split(rest, -(-len(rest) // global_batch)) if len(rest) else []


def rank_share(batch: NDArray[np.int64], rank: int, world_size: int) -> NDArray[np.int64]:
    """Return the samples of a global batch that `rank` takes; shares are in order and differ by at most one."""
    return np.array_split(batch, world_size)[rank]


def batch_groups(batch: NDArray[np.int64], group_size: int | None) -> list[NDArray[np.int64]]:
    """Return a global batch in the groups that are normalised together, of at most `group_size`, as equal as can be."""
    return np.array_split(batch, -(-len(batch) // (group_size or len(batch))))


def check_batch(num_samples: int, world_size: int, member: MemberSettings) -> None:
    """Raise `ConfigError` if some rank would get no sample of some group of some batch of `member`.

    The same where a group is one image that its encoder shrinks to one value, which can't be normalised.
    """
    global_batch, group_size = member.global_batch, member.batch_norm_group
    smallest = num_samples // -(-num_samples // global_batch) if num_samples else 0
    if smallest < world_size:
        raise ConfigError(
            f"{num_samples} samples in batches of at most {global_batch} leave a batch of {smallest} for {world_size} "
            "ranks; use fewer workers, a larger global_batch or more tiles"
        )
    sizes = {smallest, -(-num_samples // -(-num_samples // global_batch))}
    group = min(len(group) for size in sizes for group in batch_groups(np.arange(size), group_size))
    if group < world_size:
        raise ConfigError(
            f"batch_norm_group {group_size} makes a group of {group} of batches of {sorted(sizes)}, too few for "
            f"{world_size} ranks; use fewer workers or a larger batch_norm_group"
        )
    if group == 1 and member.crop_px == DOWNSAMPLING:
        raise ConfigError(
            f"member {member.name}: a batch of one image of {member.crop_px} px comes to one value a channel, which "
            "has no variance; use a larger crop_px, global_batch or batch_norm_group"
        )
