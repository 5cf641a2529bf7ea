"""Work that is cut off: a process that dies right after one of its writes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from raytrain import storage


@contextlib.contextmanager
def dies_after(writes: int) -> Iterator[None]:
    """Interrupt the body right after that many of its writes to a store, and expect that it ends so."""
    left = writes

    def dying(write: Callable[..., None]) -> Callable[..., None]:
        def attempt(uri: str, data: Any) -> None:
            nonlocal left
            write(uri, data)
            left -= 1
            if not left:
                raise KeyboardInterrupt

        return attempt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "write_bytes", dying(storage.write_bytes))
        patch.setattr(storage, "write_file", dying(storage.write_file))
        with pytest.raises(KeyboardInterrupt):
            yield
