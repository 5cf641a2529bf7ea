"""What a raster may claim before anything is allocated for it, and what it may not refer to.

A file of a few bytes can say that it has 2^31 pixels a side, that one block holds all of them, or that its overviews
lie in another file or behind an address: GDAL would allocate the first two, and open the last. Must not know what
pixels mean.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rasterio.io import DatasetReader

from raytrain.errors import DataError

LARGEST_SIDE_PX = 200_000
"""Scenes are read by windows, so a large one costs time, not memory: this is 2,000 km of 10 m, above any product."""
LARGEST_BLOCK_BYTES = 512 * 2**20
"""GDAL holds a block as a whole, and a window needs all that it touches: a granule of Sentinel-2 in one is 241 MB."""
MOST_BLOCKS = 2**22
"""GDAL keeps a place for each; 200,000 px a side in blocks of 256 are 611,524, a line each 200,000."""
MOST_BANDS = 1000
"""Instruments have up to some hundred; GDAL makes an object of each."""
LARGEST_CHIP_BYTES = 128 * 2**20
"""A band of a chip is held as a whole, several times over: 8192 px a side in uint16. What is larger is a scene."""
MOST_JP2_TILES = 2**14
"""OpenJPEG takes 9 kB for each as it opens a file, of 65,535 that the format has room for."""

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How its files begin."""
CODESTREAM = b"\xff\x4f\xff\x51"
"""How a codestream of JPEG 2000 begins, by itself or in the box `jp2c` of a file."""
BESIDE = (".msk", ".MSK", ".ovr", ".OVR")
"""What GDAL opens by itself beside a file, as whatever it is, to take pixels from."""
LARGEST_NOTES_BYTES = 16 * 2**20
"""Of a file of metadata beside a raster, which GDAL reads and parses as a whole; histograms in one are some kB."""
_NOTES = (".aux", ".wld", ".tab", ".xml", ".txt", ".imd", ".rpb", ".pvl", ".rpc", ".pass")
_NOTES_BEHIND = (
    *("_rpc.txt", "_RPC.TXT", "_metadata.txt", "_METADATA.txt"),
    *("_metadata.xml", "_METADATA.XML", "_MTL.txt", "_MTL.TXT"),
)
"""What GDAL reads beside a file for its place and metadata, by the name without the ending (seen of GDAL 3.10)."""


def check_claims(source: DatasetReader, subject: str) -> None:
    """Raise `DataError`, which names `subject`, for an open raster that claims more than there is memory for.

    Nor may it name other files: GDAL takes overviews from wherever the metadata of a file say that they are.
    """
    width, height = int(source.width), int(source.height)
    if max(width, height) > LARGEST_SIDE_PX:
        raise DataError(subject, f"claims {width} x {height} px, expected at most {LARGEST_SIDE_PX} a side; cut it")
    if source.count > MOST_BANDS:
        raise DataError(subject, f"claims {source.count} bands, expected at most {MOST_BANDS}")
    together = source.count if source.interleaving is not None and source.interleaving.value == "PIXEL" else 1
    for (rows, columns), dtype in zip(source.block_shapes, source.dtypes, strict=True):
        num_bytes = min(rows, height) * columns * np.dtype(dtype).itemsize * together
        if num_bytes > LARGEST_BLOCK_BYTES:
            found = f"claims blocks of {columns} x {rows} px, {num_bytes / 2**20:.0f} MiB each"
            raise DataError(subject, f"{found}, expected at most {LARGEST_BLOCK_BYTES >> 20} MiB; write it in tiles")
        num_blocks = -(-height // rows) * -(-width // columns)
        if num_blocks > MOST_BLOCKS:
            raise DataError(subject, f"claims {num_blocks} blocks, expected at most {MOST_BLOCKS}; write larger ones")
    for name, elsewhere in source.tags(ns="OVERVIEWS").items():  # GDAL takes names in any case
        if name.strip().casefold().startswith("overview_file"):
            found = f"says that its overviews lie in {elsewhere!r}"
            raise DataError(subject, f"{found}, and no raster may name another file")


def check_chip_size(source: DatasetReader, subject: str) -> None:
    """Raise `DataError`, which names `subject`, for an open raster of one band that is too large to be held."""
    num_bytes = int(source.width) * int(source.height) * np.dtype(source.dtypes[0]).itemsize
    if num_bytes > LARGEST_CHIP_BYTES:
        found = f"claims {source.width} x {source.height} px of {source.dtypes[0]}, {num_bytes / 2**20:.0f} MiB"
        raise DataError(
            subject, f"{found}, expected at most {LARGEST_CHIP_BYTES >> 20} MiB of a chip; `score` takes it as a scene"
        )


def files_beside(path: str) -> Iterator[str]:
    """Yield the local files that GDAL would take pixels from beside the raster `path`, and beside those again."""
    for ending in BESIDE:
        beside = f"{path}{ending}"
        if len(os.path.basename(beside)) <= 255 and os.path.exists(beside):
            yield beside
            yield from files_beside(beside)


def check_notes(path: str) -> None:
    """Raise `DataError` for a local file that GDAL would read beside the raster `path`, and that has no or a far end.

    A pipe would hold the process that opens it for ever.
    """
    for beside in _notes_beside(path):
        if beside == path:  # whatever it is called
            continue
        try:
            found = os.stat(beside)
        except OSError:  # there is none, or its name is too long for one
            continue
        if stat.S_ISDIR(found.st_mode):
            continue
        if not stat.S_ISREG(found.st_mode):
            raise DataError(beside, f"a device or a pipe, expected a file beside {path}; remove it")
        if found.st_size > LARGEST_NOTES_BYTES:
            expected = f"expected at most {LARGEST_NOTES_BYTES} of metadata beside {path}; move it elsewhere"
            raise DataError(beside, f"{found.st_size} bytes, {expected}")


def _notes_beside(path: str) -> Iterator[str]:
    stem, ending = os.path.splitext(path)
    letters = ending.removeprefix(".")
    world = (f".{letters[0]}{letters[-1]}w", f".{letters}w") if letters else ()
    yield f"{path}.aux.xml"
    for each in (*_NOTES, *world):
        yield from (f"{stem}{each.lower()}", f"{stem}{each.upper()}")
    for each in _NOTES_BEHIND:
        yield f"{stem}{each}"
    yield from (f"{path}.aux", f"{path}.AUX")


def check_tiles(path: str, subject: str) -> None:
    """Raise `DataError`, which names `subject`, for a local JPEG 2000 file that claims too many tiles to open it.

    What is damaged is left to OpenJPEG to say.
    """
    with Path(path).open("rb") as file:
        start = _codestream(file.read(12), os.path.getsize(path), path)
        if start is None:
            return
        file.seek(start)
        head = file.read(40)
    if not head.startswith(CODESTREAM) or len(head) < 40:
        return
    width, height, left, top, tile_width, tile_height, tile_left, tile_top = struct.unpack(">8I", head[8:40])
    if not tile_width or not tile_height:
        return
    across, down = -(-(width - tile_left) // tile_width), -(-(height - tile_top) // tile_height)
    if across * down > MOST_JP2_TILES or max(width - left, height - top) > LARGEST_SIDE_PX:
        found = f"claims {width - left} x {height - top} px in {across * down} tiles"
        raise DataError(subject, f"{found}, expected at most {LARGEST_SIDE_PX} a side and {MOST_JP2_TILES} tiles")


def _codestream(head: bytes, size: int, path: str) -> int | None:
    """Return where the codestream of a JPEG 2000 file begins; None where no box says so."""
    if head.startswith(CODESTREAM):
        return 0
    at = 0
    with Path(path).open("rb") as file:
        while at + 8 <= size:
            file.seek(at)
            length, kind = struct.unpack(">I4s", file.read(8))
            header = 8
            if length == 1:
                length, header = int.from_bytes(file.read(8)), 16
            if kind == b"jp2c":
                return at + header
            if length < header:  # 0: up to the end of the file
                return None
            at += length
    return None
