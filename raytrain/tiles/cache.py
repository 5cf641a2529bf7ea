"""A read-through cache of shards on local disk: bounded, shared by all processes of a machine, never trusted.

A shard's mirror is a sparse file that has the shard's bytes at their own offsets, and holes where nothing was read yet.
There is no table of what is there: who reads checks the CRC-32 that the index has of every cell, so a hole, a torn
write or a damaged disk is a miss. Two processes that write the same cell write the same bytes. Within a set of shards
nothing is evicted: an epoch reads every tile once, in a random order, so what is there is as good as what would take
its place; a full cache is passed by. Sets that no process uses make room, the least recently opened first. Must not
know Parquet, or what a cell holds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_logger = logging.getLogger(__name__)

SLACK_BYTES = 2 * 4096
"""What a write may take on disk beyond its bytes: the blocks at its ends."""
_USED_DIGITS = 20
_LOCK, _USED, _USERS, _SETS, _IN_USE = "lock", "used", "users", "sets", "in-use"


class ShardCache:
    """The cache of one set of shards in `folder`, where other sets may lie, too; all of it within `limit_bytes`.

    `set_digest` names the set by its content: other shards at the same URI are another set.
    """

    def __init__(self, folder: Path, limit_bytes: int, set_digest: str) -> None:
        self._arguments = (folder, limit_bytes, set_digest)
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._set = folder / _SETS / set_digest
        self._set.mkdir(parents=True, exist_ok=True)
        self._bypass = False
        with self._locked():
            self._users = (folder / _USERS).open("a")
            if _lock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB):  # nobody else: the count can be made right
                self._set_used(_allocated(folder / _SETS))
            fcntl.flock(self._users, fcntl.LOCK_SH)
            self._set.mkdir(exist_ok=True)
            self._in_use = (self._set / _IN_USE).open("a")
            fcntl.flock(self._in_use, fcntl.LOCK_SH)
            os.utime(self._set / _IN_USE)

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the cache again in the process that this is sent to."""
        return (ShardCache, self._arguments)

    def close(self) -> None:
        """Let other sets take this one's room."""
        self._in_use.close()
        self._users.close()

    def read(self, shard: str, start: int, end: int) -> bytes | None:
        """Return what the mirror of `shard` has from `start` to `end`, None where it has nothing; to be checked."""
        try:
            descriptor = os.open(self._set / shard, os.O_RDONLY)
        except OSError:
            return None
        try:
            if os.lseek(descriptor, start, os.SEEK_DATA) >= end:
                return None
            return os.pread(descriptor, end - start, start)
        except OSError:  # ENXIO: nothing behind `start`; or a disk that fails, which must not stop a training
            return None
        finally:
            os.close(descriptor)

    def write(self, shard: str, start: int, data: bytes | memoryview) -> None:
        """Keep `data`, the bytes of `shard` from `start`, if there is room; a full or failing disk is passed by."""
        if self._bypass:
            return
        try:
            if not self._reserve(len(data) + SLACK_BYTES):
                self._pass_by("the cache is full")
                return
            descriptor = os.open(self._set / shard, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.pwrite(descriptor, data, start)  # what is torn is a miss
            finally:
                os.close(descriptor)
        except OSError as error:  # what was reserved stays counted until the cache is opened anew
            self._pass_by(f"can't write ({errno.errorcode.get(error.errno or 0, error.errno)})")

    def _pass_by(self, why: str) -> None:
        self._bypass = True
        _logger.warning("%s: %s; further tiles are read from the store each time", self._folder, why)

    def _reserve(self, size: int) -> bool:
        """Count `size` more bytes as used, and make room for them if need be; tell whether there is room."""
        with self._locked():
            used = self._used()
            if used + size > self._limit_bytes:
                used -= self._evict(used + size - self._limit_bytes)
            fits = used + size <= self._limit_bytes
            self._set_used(used + size if fits else used)
            return fits

    def _evict(self, needed: int) -> int:
        """Remove sets that no process uses until `needed` bytes are free; return how many were freed. Locked."""
        freed = 0
        others = [path for path in (self._folder / _SETS).iterdir() if path != self._set and path.is_dir()]
        for path in sorted(others, key=_last_opened):
            if freed >= needed:
                break
            with (path / _IN_USE).open("a") as mark:
                if not _lock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    continue
                size = _allocated(path)
                shutil.rmtree(path, ignore_errors=True)
                freed += size
                _logger.info("%s: removed, %d bytes", path, size)
        return freed

    def _used(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            found = (self._folder / _USED).read_bytes()
            if len(found) == _USED_DIGITS and found.isdigit():
                return int(found)
        return _allocated(self._folder / _SETS)  # never counted, or torn

    def _set_used(self, used: int) -> None:
        descriptor = os.open(self._folder / _USED, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(descriptor, f"{used:0{_USED_DIGITS}d}".encode(), 0)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._folder / _LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _lock(file: IO[str], how: int) -> bool:
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    return True


def _last_opened(path: Path) -> float:
    try:
        return (path / _IN_USE).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _allocated(folder: Path) -> int:
    """Return the bytes that the files below `folder` take on disk, holes not counted."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            total += status.st_blocks * 512 if path.is_file() else 0
    return total
