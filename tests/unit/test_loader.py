"""Each sample comes once and in the order asked, whoever reads it; errors come in their place."""

from __future__ import annotations

import itertools
import logging
import pickle
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from raytrain import logs
from raytrain.config import LoaderSettings
from raytrain.errors import DataError
from raytrain.tiles.dataset import Key, TileDataset
from raytrain.tiles.loader import SampleLoader
from raytrain.tiles.order import epoch_batches, rank_share
from raytrain.tiles.reader import TileReader
from tests.making import make_tile, write_tiles

NUM_TILES = 23


def named(bands: np.ndarray, label: np.ndarray, epoch: int, sample: int) -> torch.Tensor:
    return torch.tensor([epoch, sample, int(bands.sum(dtype=np.int64))])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TileDataset[torch.Tensor]:
    folder = tmp_path_factory.mktemp("shards")
    write_tiles(folder, [make_tile(i, (8, 9)) for i in range(NUM_TILES)], "raw", tiles_per_shard=5)
    return TileDataset(TileReader(str(folder), ("B02",)), np.arange(NUM_TILES), named)


def shares(rank: int, world: int) -> list[list[Key]]:
    return [[(0, int(i)) for i in rank_share(batch, rank, world)] for batch in epoch_batches(NUM_TILES, 6, 1, 0)]


@pytest.mark.parametrize("settings", [LoaderSettings(threads=n) for n in (1, 3, 16)] + [LoaderSettings(processes=2)])
def test_each_tile_comes_once_an_epoch_on_any_number_of_ranks_threads_and_processes(
    dataset: TileDataset[torch.Tensor], settings: LoaderSettings
) -> None:
    seen = []
    with SampleLoader(dataset, settings) as loader:
        for world in (1, 3):
            for rank in range(world):
                found = list(loader.load(shares(rank, world)))
                asked = shares(rank, world)
                assert [[(int(e), int(s)) for e, s, _ in batch] for batch in found] == asked
                if world == 3:
                    seen += [row for batch in found for row in batch.tolist()]
    assert sorted(sample for _, sample, _ in seen) == list(range(NUM_TILES))
    sums = {sample: int(make_tile(sample, (8, 9)).bands["B02"].sum(dtype=np.int64)) for sample in range(NUM_TILES)}
    assert all(sums[sample] == total for _, sample, total in seen)


class Slow:
    """A reader of which no read ends before so many are under way."""

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self.barrier = threading.Barrier(at_once)

    def __reduce__(self) -> tuple[object, ...]:
        return (Slow, (self.at_once,))

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        self.barrier.wait(timeout=20)
        return np.full((1, 2, 2), i, np.uint16), np.zeros((2, 2), np.uint8)


@pytest.mark.parametrize("processes", [0, 1])
def test_so_many_reads_are_in_flight_as_there_are_threads(processes: int) -> None:
    dataset: TileDataset[torch.Tensor] = TileDataset(Slow(4), np.arange(16), named)  # type: ignore[arg-type]
    with SampleLoader(dataset, LoaderSettings(threads=4, processes=processes)) as loader:
        size = 4 if processes else 1  # a process reads a batch at a time, the threads of a rank across them
        assert len(list(loader.load([[(0, i + j) for j in range(size)] for i in range(0, 16, size)]))) == 16 // size


def test_reading_goes_on_while_the_consumer_computes_and_no_further_than_a_few_batches(
    dataset: TileDataset[torch.Tensor],
) -> None:
    asked = itertools.count()

    def endless() -> Iterator[Sequence[Key]]:
        while True:
            next(asked)
            yield [(0, 1), (0, 2)]

    with SampleLoader(dataset, LoaderSettings(threads=2)) as loader:
        batches = loader.load(endless())
        next(batches)
        time.sleep(0.05)
        assert 2 < next(asked) < 8
        batches.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("settings", [LoaderSettings(threads=3), LoaderSettings(processes=1)])
def test_a_bad_tile_is_an_error_in_its_place(tmp_path: Path, settings: LoaderSettings) -> None:
    write_tiles(tmp_path, [make_tile(i, (8, 9)) for i in range(6)], "raw", tiles_per_shard=2)
    (tmp_path / "shard-00001.parquet").unlink()
    dataset = TileDataset(TileReader(str(tmp_path), ("B02",)), np.arange(6), named)
    with SampleLoader(dataset, settings) as loader:
        batches = loader.load([[(0, 0), (0, 1)], [(0, 2)], [(0, 4)]])
        assert next(batches).shape == (2, 3)
        with pytest.raises(DataError, match=r"tile tile2 in .*shard-00001\.parquet"):
            next(batches)


def test_a_loader_process_logs_as_the_rank_it_works_for_and_shows_no_query(
    dataset: TileDataset[torch.Tensor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(logs.VARIABLE, raising=False)
    own, before = logging.getLogger(logs.LOGGER), logs.subject()
    state = (list(own.handlers), own.propagate, own.level)
    logs.be_about(run="a-fold0", rank=1)
    try:
        with SampleLoader(dataset, LoaderSettings(processes=1)) as loader:
            logs.be_about()
            assert loader._processes is not None
            pickle.loads(pickle.dumps(loader._processes.worker_init_fn))(0)  # as its process does, which begins with it
        logging.getLogger("raytrain.storage.retries").warning("https://host/a?sig=abc123 is asked again")
    finally:
        own.handlers[:], own.propagate = state[:2]
        own.setLevel(state[2])
        logs.be_about(**before)
    assert "[run=a-fold0 rank=1]: https://host/a is asked again" in capsys.readouterr().err
