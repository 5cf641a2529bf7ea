"""What a device computes nets in, and how a process prepares for it. Must not know nets."""

from __future__ import annotations

import ctypes
import platform
from typing import Any

import torch

from raytrain.config import ScoreSettings
from raytrain.errors import ConfigError
from raytrain.training.models import compute_dtype

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_KEPT_BYTES = 2**31 - 1


def scoring_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a forward pass; raise `ConfigError` for float16 on a CPU.

    bfloat16 is emulated on a CPU with neither AMX nor AVX512-BF16, and slower there than float32.
    """
    if device.type != "cuda" and precision == "float16":
        raise ConfigError("precision float16 is for a GPU; a CPU takes float32 or bfloat16")
    return compute_dtype(precision, device)


def device_record(settings: ScoreSettings, device: torch.device) -> dict[str, Any]:
    """Return what a forward pass is computed with, as plain values: for a log, or beside results."""
    on_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_cuda else f"CPU {torch.backends.cpu.get_cpu_capability()}",
        "dtype": str(scoring_dtype(settings.precision, device)).removeprefix("torch."),
        "compiled": settings.compile,
        "windows_per_pass": settings.windows_per_pass if on_cuda else 1,
        "horizontal_flip": settings.horizontal_flip,
        "threads": settings.threads,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_cuda else None,
        "python": platform.python_version(),
    }


def keep_freed_memory() -> None:
    """Have the allocator keep what it frees, where it is glibc's; nothing happens elsewhere.

    The maps of a net at 512 px are larger than what glibc keeps: it would give the memory of each back to the system
    and get it again, page by page, which takes a tenth of the time of a pass.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_ARENA_MAX, 1)  # the arena of another thread can't hold a large map
    libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
