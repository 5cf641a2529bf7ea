"""The torch dataset over the tiles of a reader. Must not know models, or what is done to a tile after it is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from raytrain.errors import DataError
from raytrain.tiles.reader import TileReader

SampleT = TypeVar("SampleT")
Key = tuple[int, int]
"""What a sample is asked by: the epoch, and its number in it."""


class TileDataset(Dataset[SampleT], Generic[SampleT]):
    """A torch dataset over chosen tiles. An item is asked by (epoch, sample), so that its random changes can be too.

    Sample `s` is tile `tiles[s % len(tiles)]`; `transform` makes the item from (bands, label, epoch, sample).
    """

    def __init__(
        self,
        reader: TileReader,
        tiles: NDArray[np.int64],
        transform: Callable[[NDArray[np.uint16], NDArray[np.uint8], int, int], SampleT],
        samples_per_tile: int = 1,
    ) -> None:
        self._reader = reader
        self._tiles = tiles
        self._transform = transform
        self._samples_per_tile = samples_per_tile

    def __len__(self) -> int:
        return len(self._tiles) * self._samples_per_tile

    def __getitem__(self, key: Key) -> SampleT:
        epoch, sample = key
        bands, label = self._reader.read(int(self._tiles[sample % len(self._tiles)]))
        if label is None:
            raise DataError(self._reader.subject(int(self._tiles[sample % len(self._tiles)])), "has no label")
        return self._transform(bands, label, epoch, sample)
