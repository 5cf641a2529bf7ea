"""How GDAL is set up wherever pixels are read, and what of it a process of ours has at all.

GDAL opens some 150 formats, by names that may be commands (`vrt://`, `NETCDF:`, `WMS:`), and some of them name further
files and addresses. Files come from others, so only the formats are there that raytrain reads and writes.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator

GDAL_DRIVERS = frozenset({"GTiff", "COG", "JP2OpenJPEG", "MEM"})
"""What is read and written; the last is what GDAL keeps a raster in that it is about to write."""
_NO_ADDRESS = "/vsicurl/none"
"""The only name that GDAL may ask a network for. Bytes from stores and servers come through this package."""
_limiting = threading.Lock()
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
    with rasterio.Env(
        GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_NUM_THREADS="1", CPL_VSIL_CURL_ALLOWED_FILENAME=_NO_ADDRESS
    ):
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


def limit_gdal_drivers() -> None:
    """Take all formats but `GDAL_DRIVERS` from this process, for good; again is no harm.

    Only before threads open files. GDAL's own way, GDAL_SKIP, wants the names of all that it shall leave out, which a
    new version adds to; and rasterio has no function for this, so it is asked of the library that rasterio has loaded.
    """
    import rasterio
    import rasterio._env

    with _limiting, rasterio.Env():  # which registers them
        gdal = ctypes.CDLL(rasterio._env.__file__)
        gdal.GDALGetDriver.restype = ctypes.c_void_p
        gdal.GDALGetDescription.restype = ctypes.c_char_p
        gdal.GDALGetDescription.argtypes = gdal.GDALDeregisterDriver.argtypes = [ctypes.c_void_p]
        for driver in [gdal.GDALGetDriver(i) for i in range(gdal.GDALGetDriverCount())]:
            if gdal.GDALGetDescription(driver).decode() not in GDAL_DRIVERS:
                gdal.GDALDeregisterDriver(driver)
