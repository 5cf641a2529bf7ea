"""A folder as a mount leaves it that is locked, stale or gone: whatever looks at it or into it gets an error.

Tests may run as root, for whom no folder is locked.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest


def broken_folder(monkeypatch: pytest.MonkeyPatch, folder: Path, number: int, *, also_listed: bool = False) -> None:
    """Answer all calls about a folder, and what is below it, with the error `number`.

    With `also_listed` it can be listed, and only what is in it can't be looked at.
    """

    def break_call(module: Any, name: str) -> None:
        real = getattr(module, name)

        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else ""
            itself = text == str(folder)
            if text.startswith(f"{folder}/") or (itself and not also_listed):
                raise OSError(number, os.strerror(number), text)
            return real(path, *arguments, **options)

        monkeypatch.setattr(module, name, call)

    for name in ("stat", "lstat", "statvfs", "listdir", "unlink"):
        break_call(os, name)
    break_call(io, "open")
