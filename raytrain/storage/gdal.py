"""How GDAL is set up wherever pixels are read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

GDAL_CACHE_BYTES = 128 * 2**20
"""GDAL's own default is 5 % of the machine's memory in every process."""


@contextlib.contextmanager
def gdal_environment() -> Iterator[None]:
    """Keep GDAL from looking for files beside the one it reads, from much memory, and from threads of its own.

    Beside a remote file each would be a request; `gdal_finds_beside` is for local ones. GDAL's threads would read one
    file object at once, and JPEG 2000 opens the file anew in each.
    """
    import rasterio

    limit_gdal_cache()
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_NUM_THREADS="1"):
        yield


@contextlib.contextmanager
def gdal_finds_beside() -> Iterator[None]:
    """Let GDAL find what lies beside the file that is opened: a world file, `.aux.xml`, a mask.

    It asks for each by its name, and does not list the folder, which may hold a million scenes.
    """
    import rasterio

    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE"):
        yield


def limit_gdal_cache() -> None:
    """Limit the cache of blocks that all of the process shares, from now on.

    Not by an `Env`: the one that was entered first would give the others the default as it is left.
    """
    from rasterio.env import set_gdal_config

    set_gdal_config("GDAL_CACHEMAX", GDAL_CACHE_BYTES)
