"""A remote object as a file that is read in pieces: large aligned blocks, a few of them kept, one read ahead.

What libraries open that know nothing of stores, so that credentials, retries and limits stand in one place. Must not
know what is read.
"""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

BLOCK_BYTES = 4 * 2**20
BLOCKS = 10


class RangedFile(io.RawIOBase):
    """A read-only file with a position, for one thread; `read_range` gives bytes from start to end, `size` how many.

    At most `blocks` blocks of `block_bytes` are held. Where the block before is held too, reading is taken for
    sequential, and the block behind is fetched by a thread. Errors of either come out of `read`.
    """

    def __init__(
        self,
        name: str,
        read_range: Callable[[int, int], bytes],
        size: Callable[[], int],
        block_bytes: int = BLOCK_BYTES,
        blocks: int = BLOCKS,
    ) -> None:
        super().__init__()
        if block_bytes < 1 or blocks < 2:
            raise ValueError(f"block_bytes {block_bytes}, blocks {blocks}: expected at least 1 and 2")
        self.name = name
        self._read_range, self._find_size = read_range, size
        self._block_bytes, self._most = block_bytes, blocks
        self._blocks: OrderedDict[int, Future[bytes]] = OrderedDict()
        self._ahead: ThreadPoolExecutor | None = None
        self._position = 0
        self._size: int | None = None

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def seekable(self) -> bool:
        """Tell that it has a position."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position, also behind the end, and return it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}
        target = offset + (self.size() if whence == os.SEEK_END else base[whence])
        if target < 0:
            raise ValueError(f"{self.name}: a position before the start")
        self._position = target
        return target

    def size(self) -> int:
        """Return the number of bytes of the whole; asked for once, and only if no block had its end."""
        if self._size is None:
            self._size = self._find_size()
        return self._size

    def read(self, size: int | None = -1) -> bytes:
        """Return `size` bytes from the position on, fewer at the end; all that follow for -1."""
        if self.closed:
            raise ValueError(f"{self.name}: read after close")
        wanted = self.size() - self._position if size is None or size < 0 else size
        pieces: list[bytes] = []
        while wanted > 0:
            number, offset = divmod(self._position, self._block_bytes)
            piece = self._block(number)[offset : offset + wanted]
            if not piece:
                break
            pieces.append(piece)
            self._position += len(piece)
            wanted -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_at(self, position: int, size: int) -> bytes:
        """Return what `read` does from `position` on."""
        self.seek(position)
        return self.read(size)

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as bytes follow and return how many did."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Let go of the blocks and of the thread."""
        if not self.closed:
            self._blocks.clear()
            if self._ahead is not None:
                self._ahead.shutdown(wait=False, cancel_futures=True)
        super().close()

    def _block(self, number: int) -> bytes:
        start = number * self._block_bytes
        if self._size is not None and start >= self._size:
            return b""
        held = self._blocks.get(number)
        if held is None:
            held = Future()
            held.set_result(self._fetch(number))
            self._keep(number, held)
        self._blocks.move_to_end(number)
        try:
            data = held.result()
        except BaseException:
            del self._blocks[number]  # it may be asked again
            raise
        if len(data) < self._block_bytes and self._size is None:
            # An empty block says only that the end lies before it.
            self._size = start + len(data) if data or number == 0 else None
        if number - 1 in self._blocks and len(data) == self._block_bytes:
            self._fetch_ahead(number + 1)
        return data

    def _fetch(self, number: int) -> bytes:
        start = number * self._block_bytes
        end = start + self._block_bytes
        return self._read_range(start, end if self._size is None else min(end, self._size))

    def _fetch_ahead(self, number: int) -> None:
        if number in self._blocks or (self._size is not None and number * self._block_bytes >= self._size):
            return
        if self._ahead is None:
            self._ahead = ThreadPoolExecutor(1, thread_name_prefix="raytrain-ahead")
        self._keep(number, self._ahead.submit(self._fetch, number))

    def _keep(self, number: int, block: Future[bytes]) -> None:
        self._blocks[number] = block
        while len(self._blocks) > self._most:
            _, dropped = self._blocks.popitem(last=False)
            dropped.cancel()
