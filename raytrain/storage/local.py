"""Local files: writes that appear at once or not at all, and listings that follow links.

Must not know any other store.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOST_AND_FOUND = "lost+found"
_MAKING = threading.Lock()
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def read_range(path: str, start: int, end: int) -> bytes:
    """Return bytes `start` to `end` (exclusive) of a file: without fsspec's checks, in a tenth of the time."""
    with open(path, "rb", buffering=0) as file:
        try:
            return os.pread(file.fileno(), end - start, start)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from error


def write_bytes(path: Path, data: bytes, *, durably: bool, exclusively: bool = False) -> None:
    """Write the whole file, and wait until it lies on its disk if it shall last.

    With `exclusively` a file that stands there already stays; that is a `FileExistsError`.
    """
    _make_folder(path.parent, durably=durably)
    with _linked_into_place(path) if exclusively else _renamed_into_place(path) as partial:
        partial.write_bytes(data)
        if durably:
            _to_disk(partial)
    if durably:
        _to_disk(path.parent)


def _make_folder(folder: Path, *, durably: bool) -> None:
    """Make a folder and those above it that are missing; if it shall last, wait until their names lie on the disk."""
    if not durably:
        folder.mkdir(parents=True, exist_ok=True)
        return
    with _MAKING:  # a thread that finds the folder there may rely on it
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for each in reversed(missing):
            _to_disk(each.parent)


def move_in(path: Path, target: Path) -> None:
    """Move the finished file `path` to `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _renamed_into_place(target) as partial:
        shutil.move(path, partial)


@contextlib.contextmanager
def _renamed_into_place(path: Path) -> Iterator[Path]:
    with _partial(path) as partial:
        yield partial
        os.replace(partial, path)


@contextlib.contextmanager
def _linked_into_place(path: Path) -> Iterator[Path]:
    """Raise `FileExistsError` where a file stands already: unlike a rename, a link never takes another's place.

    A file system without links (some of networks and of sticks) tells only what was there a moment before.
    """
    with _partial(path) as partial:
        yield partial
        try:
            os.link(partial, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if path.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
            os.replace(partial, path)


@contextlib.contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """Give the name of a file beside `path` to be written first; it is gone afterwards."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """Wait until what was written to a file or a folder lies on its disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def walk(folder: str, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the files below a local folder, nothing where there is none; a link to a folder above is not entered.

    Nor is `lost+found`, which a disk of its own has and only root may read.
    """
    try:
        status = os.stat(folder)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):  # it may have gone since its own folder was listed
        return
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in entries:
        try:
            found = entry.stat()
        except FileNotFoundError:  # gone as well, or a link to nothing
            continue
        except OSError as error:
            if error.errno == errno.ELOOP:  # a link to itself
                continue
            raise
        if stat.S_ISDIR(found.st_mode):
            if entry.name != LOST_AND_FOUND:
                yield from walk(entry.path, above | {here})
        else:
            yield entry.path, {"size": found.st_size, "mtime": found.st_mtime}
