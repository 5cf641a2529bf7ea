"""Temporary local folders, and those that killed processes left. Must not know what is in them."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_logger = logging.getLogger(__name__)


@contextmanager
def temporary_folder() -> Iterator[str]:
    """Yield a new local folder, removed in the end; its name tells other processes whose it is."""
    with tempfile.TemporaryDirectory(prefix=f"{_of_this_machine()}{os.getpid()}-") as folder:
        yield folder


def _of_this_machine() -> str:
    # Containers may share a disk for temporary files and still count their processes each from 1.
    return f"raytrain-{re.sub(r'[^A-Za-z0-9]', '_', socket.gethostname())}-"


def remove_folders_of_the_dead() -> None:
    """Remove temporary folders of this user whose processes, of this machine, are no more."""
    pattern = re.compile(rf"{re.escape(_of_this_machine())}(\d+)-\w+")
    for path in Path(tempfile.gettempdir()).iterdir():
        match = pattern.fullmatch(path.name)
        with suppress(FileNotFoundError):  # another process may remove it as well
            if match and not _lives(int(match[1])) and path.lstat().st_uid == os.getuid() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
                _logger.info("%s: removed, its process is no more", path)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True
