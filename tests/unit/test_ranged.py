"""A remote object as a file: the same bytes as the object, few requests, errors where they are read."""

from __future__ import annotations

import io
import random
import threading

import pytest

from raytrain.storage import RangedFile

DATA = random.Random(0).randbytes(1003)


class Source:
    """Gives ranges of DATA and notes which."""

    def __init__(self, data: bytes = DATA) -> None:
        self.data = data
        self.asked: list[tuple[int, int]] = []
        self.threads: set[int] = set()
        self.sizes = 0
        self.failing: set[int] = set()

    def read_range(self, start: int, end: int) -> bytes:
        self.asked.append((start, end))
        self.threads.add(threading.get_ident())
        if start in self.failing:
            raise PermissionError(f"no right to {start}")
        return self.data[start:end]

    def size(self) -> int:
        self.sizes += 1
        return len(self.data)


def opened(source: Source, block_bytes: int = 100, blocks: int = 4) -> RangedFile:
    return RangedFile("it", source.read_range, source.size, block_bytes, blocks)


@pytest.mark.parametrize("length", [0, 1, 99, 100, 101, 1000, 1003])
@pytest.mark.parametrize("seed", range(5))
def test_it_reads_as_a_file_in_memory_does(length: int, seed: int) -> None:
    draw = random.Random(seed)
    ours, plain = opened(Source(DATA[:length])), io.BytesIO(DATA[:length])
    for _ in range(200):
        whence = draw.choice([0, 1, 2])
        offset = draw.randrange(-50, 300) if whence else draw.randrange(1200)
        if whence != 0 and (plain.tell() if whence == 1 else length) + offset < 0:
            continue
        assert ours.seek(offset, whence) == plain.seek(offset, whence)
        count = draw.choice([0, 1, 7, 100, 250, -1]) if draw.random() < 0.9 else 5000
        assert ours.read(count) == plain.read(count)
        assert ours.tell() == plain.tell()


def test_each_block_is_asked_for_once_while_it_is_held_and_no_more_are() -> None:
    source = Source()
    file = opened(source, blocks=2)
    for start in (250, 10, 270, 20):
        file.seek(start)
        assert file.read(20) == DATA[start : start + 20]
    assert source.asked == [(200, 300), (0, 100)]
    file.seek(500)
    file.read(1)
    file.seek(250)
    file.read(1)
    assert source.asked[2:] == [(500, 600), (200, 300)], "the one that was not used for longest had to go"


def test_sequential_reading_fetches_the_next_block_in_a_thread_and_none_twice() -> None:
    source = Source()
    with opened(source) as file:
        assert b"".join(iter(lambda: file.read(37), b"")) == DATA
    assert sorted(source.asked) == [(start, start + 100) for start in range(0, 1100, 100)]
    assert len(source.threads) == 2
    assert source.sizes == 0, "the last block had the end"


def test_an_error_comes_out_of_the_read_that_needs_it_and_passes_with_its_cause() -> None:
    source = Source()
    source.failing = {200}
    with opened(source) as file:
        assert file.read(200) == DATA[:200]  # by then block 2 was asked for ahead
        with pytest.raises(PermissionError, match="no right to 200"):
            file.read(10)
        source.failing = set()
        assert file.read(10) == DATA[200:210]


def test_a_closed_file_and_wrong_positions_are_errors() -> None:
    file = opened(Source())
    with pytest.raises(ValueError, match="before the start"):
        file.seek(-1)
    file.close()
    with pytest.raises(ValueError, match=r"closed|after close"):
        file.read(1)
