"""What this process has asked of stores so far: requests, those asked again, bytes, seconds; by operation.

Counting takes some microseconds a request. Files of this machine are not counted, nor what GDAL and pyarrow ask by
themselves. Must not know who looks.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from raytrain.errors import StoreOutOfReach

Operation = Literal["read", "write", "list", "look", "remove"]
"""`look` asks whether something is there, or how large it is; a `list` is of one page."""


class AddressRefused(PermissionError):
    """A host may not be read, since its address is not public; nothing was asked of it: no store refuses that."""


@dataclass
class Counts:
    """Requests that have ended, how often one was asked again, bytes moved, seconds that they took, waits included.

    `refused` had no right to it, `given_up` no keys or no usable answer however often they were asked. A missing object
    is an answer.
    """

    requests: int = 0
    retries: int = 0
    refused: int = 0
    given_up: int = 0
    bytes: int = 0
    seconds: float = 0.0


_counts: dict[Operation, Counts] = {}
_lock = threading.Lock()


@dataclass
class Asked:
    """A request that goes on: what it has moved is said to it, and each time that it is asked again."""

    operation: Operation
    num_bytes: int = 0

    def again(self) -> None:
        """Count that it is asked again, at once: a store that is away is seen while it is."""
        with _lock:
            _counts.setdefault(self.operation, Counts()).retries += 1


@contextlib.contextmanager
def asking(operation: Operation) -> Iterator[Asked]:
    """Count the request that the body is."""
    asked, start = Asked(operation), time.monotonic()
    refused = given_up = False
    try:
        yield asked
    except PermissionError as error:
        refused = not isinstance(error, AddressRefused)
        raise
    except StoreOutOfReach:
        given_up = True
        raise
    finally:
        spent_s = time.monotonic() - start
        with _lock:
            found = _counts.setdefault(operation, Counts())
            found.requests += 1
            found.refused += refused
            found.given_up += given_up
            found.bytes += asked.num_bytes
            found.seconds += spent_s


def so_far() -> dict[Operation, Counts]:
    """Return the counts of this process; any thread may ask."""
    with _lock:
        return {operation: replace(found) for operation, found in _counts.items()}
