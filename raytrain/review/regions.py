"""Masks of decisions as text: PNG of 8 bits grey in base64, and back. Must not know what a decision does to a tile.

Who asks a page may send anything, and a log may hold what a stranger wrote: the size of a mask is looked at before it
is decoded, and nothing but the pixels is.
"""

from __future__ import annotations

import base64
import binascii
import io
import struct
import zlib
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raytrain.errors import DataError, first_line
from raytrain.imagery.rasters import LABEL_CLEAR, LABEL_CLOUD, LABEL_IGNORE
from raytrain.review.decisions import Decision

LABEL_VALUES = (LABEL_CLEAR, LABEL_CLOUD, LABEL_IGNORE)
"""Of the mask of a `fix`: clear, cloud, ignore."""
REGION_VALUES = (0, 1)
"""Of the mask of an `ignore`: 1 is to be ignored."""
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">IIBBBBB")
_CHUNKS = (b"IHDR", b"IDAT", b"IEND")
"""What a PNG of grey pixels needs; others hold texts and profiles, which may be packed and large."""


class BadMask(ValueError):
    """A text or bytes that are no mask of the size and the values that were expected."""


def encode_mask(mask_HW: NDArray[np.uint8]) -> str:
    """Return `[H, W] uint8` as a PNG of 8 bits grey, in base64."""
    return base64.b64encode(encode_png(mask_HW)).decode()


def decode_mask(text: str, shape: tuple[int, int], values: Collection[int]) -> NDArray[np.uint8]:
    """Return the mask `[H, W] uint8` of a text; raise `BadMask` unless it has this shape and only these values."""
    return decode_png(png_of(text), shape, values)


def png_of(text: str) -> bytes:
    """Return the bytes that a text in base64 stands for, undecoded; raise `BadMask` where it is none."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadMask(f"not base64: {first_line(error)}") from error


def encode_png(mask_HW: NDArray[np.uint8]) -> bytes:
    """Return `[H, W] uint8` as the bytes of a PNG of 8 bits grey."""
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(mask_HW, np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def decode_png(data: bytes, shape: tuple[int, int], values: Collection[int]) -> NDArray[np.uint8]:
    """Return the mask `[H, W] uint8` of a PNG; raise `BadMask` unless it has this shape and only these values."""
    _check_chunks(data, shape)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
            mask = np.array(image, np.uint8)
    except (OSError, ValueError, SyntaxError, struct.error, zlib.error) as error:
        raise BadMask(f"a damaged PNG: {first_line(error)}") from error
    others = sorted({int(value) for value in np.unique(mask)} - set(values))
    if others:
        raise BadMask(f"has the values {_few(others)}, expected {_few(sorted(values))}")
    return mask


def mask_of(decision: Decision, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the mask of a `fix` (a label) or of an `ignore` (a region) on a tile of this shape, `[H, W] uint8`.

    Raises `DataError`, which names the decision, where it is no such mask.
    """
    assert decision.mask is not None, "checked when a decision is read"
    try:
        return decode_mask(decision.mask, shape, LABEL_VALUES if decision.verdict == "fix" else REGION_VALUES)
    except BadMask as error:
        raise DataError(name_of(decision), f"its mask can't be used: {error}") from error


def label_after(
    decision: Decision, label_HW: NDArray[np.uint8] | None, valid_HW: NDArray[np.bool_]
) -> NDArray[np.uint8] | None:
    """Return the label `[H, W] uint8` that a tile has by a decision, of `label_HW`, its label now (None without one).

    Pixels without data, which `valid_HW` says, are 255 in the label of a `fix`, whatever was painted there. Raises
    `DataError`, which names the decision, where its mask is none of this tile, or there is no label to ignore parts of.
    """
    if decision.verdict == "fix":
        return np.where(valid_HW, mask_of(decision, _shape(valid_HW)), np.uint8(LABEL_IGNORE))
    if decision.verdict != "ignore":
        return label_HW
    if label_HW is None:
        raise DataError(name_of(decision), "the tile has no label to ignore a part of")
    return np.where(mask_of(decision, _shape(valid_HW)) == 1, np.uint8(LABEL_IGNORE), label_HW)


def _shape(array_HW: NDArray[Any]) -> tuple[int, int]:
    height, width = array_HW.shape
    return height, width


def name_of(decision: Decision) -> str:
    """Return what messages call a decision."""
    return f"{decision.verdict} of tile {decision.tile_id} by {decision.reviewer} ({decision.decision_id})"


def _check_chunks(data: bytes, shape: tuple[int, int]) -> None:
    """Raise `BadMask` unless `data` is a whole PNG of 8 bits grey, of this shape and nothing else."""
    if not data.startswith(_SIGNATURE):
        raise BadMask(f"not a PNG: begins with {data[:8]!r}")
    names, at = [], len(_SIGNATURE)
    while at < len(data):
        if len(data) < at + 12:
            raise BadMask("a PNG that is cut off")
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if name not in _CHUNKS:
            raise BadMask(f"a PNG with a part {name!r}, expected nothing but grey pixels")
        names.append(name)
        at += 12 + size
    if at != len(data) or len(names) < 3 or names[0] != b"IHDR" or names[-1] != b"IEND":
        raise BadMask("a PNG that is cut off, or has more behind its end")
    if set(names[1:-1]) != {b"IDAT"} or int.from_bytes(data[8:12], "big") != _HEADER.size:
        raise BadMask("a PNG whose parts are in no order")
    _check_header(_HEADER.unpack_from(data, 16), shape)


def _check_header(header: tuple[Any, ...], shape: tuple[int, int]) -> None:
    width, height, depth, colour, _, _, interlaced = header
    if (depth, colour, interlaced) != (8, 0, 0):
        raise BadMask(f"a PNG of {depth} bits, colour type {colour}, expected 8 bits grey, not interlaced")
    if (height, width) != shape:
        raise BadMask(f"has {width} x {height} px, where the tile has {shape[1]} x {shape[0]}")


def _few(values: list[int]) -> str:
    return ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
