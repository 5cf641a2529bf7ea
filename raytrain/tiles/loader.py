"""Samples in batches, read ahead while the consumer computes: by threads of this process, or by processes of threads.

What is read, and in which order, is said by who asks; the settings change only how fast it comes. Must not know models.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast

from torch.utils.data import DataLoader, Dataset, default_collate

from raytrain import logs
from raytrain.config import LoaderSettings
from raytrain.errors import RaytrainError
from raytrain.tiles.dataset import Key, TileDataset

SampleT = TypeVar("SampleT")

BATCHES_AHEAD = 2
"""What is read ahead: so many batches, or enough samples that no thread waits, whichever is more."""
BATCHES_AHEAD_OF_PROCESS = 4
"""The same for each loader process, which takes them one by one; torch's 2 leave it waiting for the consumer's turn."""


class SampleLoader(Generic[SampleT]):
    """Batches of the samples of `dataset`. Processes live as long as the loader: close it, or use it as a context."""

    def __init__(self, dataset: TileDataset[SampleT], settings: LoaderSettings) -> None:
        self.dataset = dataset
        self._settings = settings
        self._batches: Iterable[Sequence[Key]] = ()
        self._pool = ThreadPoolExecutor(settings.threads) if not settings.processes else None
        self._processes = self._start_processes() if settings.processes else None

    def load(self, batches: Iterable[Sequence[Key]]) -> Iterator[SampleT]:
        """Yield each batch of samples, stacked, in the order asked; an error of a sample is raised in its place.

        `batches` is consumed as reading goes on, never as a whole. One call at a time.
        """
        if self._pool is not None:
            yield from self._by_threads(self._pool, batches)
        else:
            assert self._processes is not None, "closed"
            self._batches = batches
            for batch in self._processes:
                if isinstance(batch, (RaytrainError, OSError)):
                    raise batch
                yield batch

    def close(self) -> None:
        """End threads and processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._processes = None  # torch ends its processes with the loader

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _by_threads(self, pool: ThreadPoolExecutor, batches: Iterable[Sequence[Key]]) -> Iterator[SampleT]:
        waiting: deque[list[Future[SampleT]]] = deque()
        try:
            for batch in batches:
                waiting.append([pool.submit(self.dataset.__getitem__, key) for key in batch])
                enough = sum(map(len, waiting)) > 2 * self._settings.threads
                if enough and len(waiting) > BATCHES_AHEAD:
                    yield _stacked(waiting.popleft())
            while waiting:
                yield _stacked(waiting.popleft())
        finally:
            for future in (each for batch in waiting for each in batch):
                future.cancel()

    def _start_processes(self) -> DataLoader[Any]:
        return DataLoader(
            _InProcess(self.dataset, self._settings.threads),
            batch_sampler=_Asked(self),
            num_workers=self._settings.processes,
            collate_fn=_collate,
            # A process with threads, as every rank is, must not be forked.
            multiprocessing_context="forkserver",
            persistent_workers=True,
            worker_init_fn=partial(_begin_process, logs.subject()),
            prefetch_factor=BATCHES_AHEAD_OF_PROCESS,
        )


def _begin_process(subject: dict[str, Any], number: int) -> None:
    """Have a loader process log as the rank that it works for."""
    logs.begin_worker(**subject)


def _stacked(futures: Sequence[Future[SampleT]]) -> SampleT:
    return cast(SampleT, default_collate([future.result() for future in futures]))


class _Asked:
    """The batches that the loader was asked for last, as torch wants them."""

    def __init__(self, loader: SampleLoader[Any]) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[list[Key]]:
        for batch in self._loader._batches:
            yield list(batch)


class _InProcess(Dataset[Any], Generic[SampleT]):
    """The dataset as a loader process has it: the samples of a batch are made by threads."""

    def __init__(self, dataset: TileDataset[SampleT], threads: int) -> None:
        self._dataset = dataset
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None

    def __getitem__(self, key: Key) -> SampleT:
        return self._dataset[key]

    def __getitems__(self, keys: Sequence[Key]) -> list[SampleT] | RaytrainError | OSError:
        try:
            if self._threads == 1:
                return [self._dataset[key] for key in keys]
            if self._pool is None:  # in the loader process; a pool can't be sent to one
                self._pool = ThreadPoolExecutor(self._threads)
            return list(self._pool.map(self._dataset.__getitem__, keys))
        except (RaytrainError, OSError) as error:
            return error  # raised in the process, torch would make a RuntimeError of it


def _collate(samples: list[SampleT] | RaytrainError | OSError) -> SampleT | RaytrainError | OSError:
    return samples if isinstance(samples, (RaytrainError, OSError)) else cast(SampleT, default_collate(samples))
