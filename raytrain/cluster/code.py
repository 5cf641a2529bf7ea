"""Which raytrain a process runs, and whether a worker runs the one of its driver.

A driver may come from a submitted tree and a worker from its node's image: then their results are of two programs. Each
worker process holds itself against its driver as it imports `raytrain.cluster`, on nodes that come later, too. Must not
import ray: it is asked before ray is.
"""

from __future__ import annotations

import hashlib
import os
from functools import cache
from importlib import metadata
from pathlib import Path

import raytrain
from raytrain.errors import ConfigError

VARIABLE = "RAYTRAIN_CODE"
"""What a driver tells its workers of its own code; no setting: they refuse to be anything else."""
LIBRARIES = ("numpy", "pyarrow", "rasterio", "torch")
"""What the bytes of results come from, beside raytrain."""
DIFFERS = "driver and workers differ"
"""Begins the message of a worker that is not its driver's, so that it is known again in what Ray makes of it."""


@cache
def digest() -> str:
    """Return the sha256 (hex) of raytrain's own modules: of their relative paths and bytes, sorted by path."""
    folder = Path(raytrain.__file__).parent
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        data = path.read_bytes()
        found.update(f"{path.relative_to(folder).as_posix()}\0{len(data)}\0".encode())
        found.update(data)
    return found.hexdigest()


@cache
def identity() -> str:
    """Return in one line what this process runs: raytrain by version and digest, and the libraries by version.

    Builds of a library for different devices (`2.14.1+cpu`) count as the same.
    """
    libraries = ", ".join(f"{name} {metadata.version(name).partition('+')[0]}" for name in LIBRARIES)
    return f"raytrain {raytrain.__version__} ({digest()[:12]}), {libraries}"


def origin(working_folder: Path) -> str:
    """Return whose raytrain this is: of a tree that was submitted, unpacked as `working_folder`, or of this machine."""
    folder = Path(raytrain.__file__).resolve().parent
    own = folder.is_relative_to(working_folder.resolve())
    return "of the submitted tree" if own else f"of this machine, {folder}"


def for_workers() -> dict[str, str]:
    """Return the environment variables by which workers know what their driver runs."""
    return {VARIABLE: identity()}


def check() -> None:
    """Raise `ConfigError` where this process is the worker of a driver that runs something else."""
    expected = os.environ.get(VARIABLE)
    if expected not in (None, identity()):
        raise ConfigError(
            f"{DIFFERS}: a worker on {os.uname().nodename} runs {identity()}, its driver {expected}; use one image on "
            "all nodes, or submit the tree (`raytrain submit` does)"
        )


def difference_in(text: str) -> str | None:
    """Return the message of `check` in what Ray tells of a worker that failed, None where there is none."""
    return next((line[line.index(DIFFERS) :] for line in text.splitlines() if DIFFERS in line), None)
