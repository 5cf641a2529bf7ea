"""Large arrays whose memory is that of the system again as soon as they are gone. Must not know what they hold."""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray


def mapped_array(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return zeros of `shape` in memory that is mapped for them alone.

    glibc keeps what is freed below 32 MiB, for each thread, and in pieces that the next array of the size may not fit:
    where strips of a scene come and go, that is as much again as they take.
    """
    size = math.prod(shape)
    memory = mmap.mmap(-1, max(1, size * dtype.itemsize), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, dtype, size).reshape(shape)
