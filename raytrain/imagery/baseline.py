"""The shift of Sentinel-2's processing baseline 04.00: what is taken off stored values, and how that is decided.

From January 2022 on, products hold reflectance x 10000 + 1000, so that negative reflectance can be told from no data
(ESA, Sentinel-2 Products Specification, `BOA_ADD_OFFSET`). Whoever copies them may take the shift off, and may say so
in several places; `decide` is the one rule, for which infra/decisions/0007-the-shift-of-baseline-04.md has the reasons.
Must not know where pixels come from.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raytrain.config import Baseline
from raytrain.errors import DataError

SHIFT = 1000
REFLECTANCE_SCALE = 10000
"""What training tiles, and so the nets, have reflectance multiplied by."""
FIRST_SHIFTED = 4.0
REMEDY = "say what the values are with --set baseline=before-04.00 or --set baseline=from-04.00"
DARK_PIXELS_FRACTION = 0.01
"""A tile is dark if more of its valid pixels than this have a band below the shift, as water, shadow and woods have."""
DARK_TILES_FRACTION = 0.1
"""Of the tiles of unshifted archives, 60 to 80 % are dark (real chips of two sensors, generated ones)."""
FEWEST_TILES = 10
"""With fewer tiles nothing is said."""
ROWS_AT_ONCE = 32
"""Rows that are converted together: what that takes on the way stays small beside the pixels."""
DARKEST_FULL_RANGE, BRIGHTEST_ORDINARY = 0.5, 10.0
LARGEST_VALUE, ORDINARY_VALUE = 65535, 3000
"""A scale is one of reflectance if the largest stored value reaches half of white, and an ordinary one is not ten times
white: 1/65535 is, and 1/10000, and 1/1000, but not 0.01."""
_BASELINE = re.compile(r"N?(0\d)\.(\d\d)|N(0\d)(\d\d)")
"""Those of ESA are below 10. Sen2Cor writes 99.99 outside of ESA's own processing: it says nothing of the shift."""
_IN_PRODUCT_NAME = re.compile(r"S2[A-D]_MSIL(?:1C|2A)_\d{8}T\d{6}_N(\d{4})_R\d{3}_T\w{5}_\d{8}T\d{6}")


@dataclass(frozen=True)
class Conversion:
    """How stored values become those of training tiles: reflectance x 10000 is `scale` x value + `offset`.

    `shift` is what that takes off the stored values, and `rule` says in a sentence how it was decided.
    """

    scale: float
    offset: float
    rule: str

    @property
    def shift(self) -> int:
        """What is taken off the stored values before they are scaled: 1000 for products of baseline 04.00 on."""
        return round(-self.offset / self.scale)

    def apply(
        self, pixels: NDArray[np.integer[Any]], valid: NDArray[np.bool_], out: NDArray[np.uint16] | None = None
    ) -> NDArray[np.uint16]:
        """Return reflectance x 10000 `[C, H, W] uint16` of stored `pixels`, 0 where `valid` `[H, W]` is not.

        It is 0 nowhere else: what is 0 or negative becomes 1, so any choice of bands shows what has no data. Rounded
        half to even; above 65535 it is 65535. `out` takes the result, and may be `pixels` themselves.
        """
        reflectance = np.empty(pixels.shape, np.uint16) if out is None else out
        for first in range(0, len(valid), ROWS_AT_ONCE):
            rows = slice(first, first + ROWS_AT_ONCE)
            np.multiply(self._reflectance(pixels[:, rows]), valid[rows], out=reflectance[:, rows])
        return reflectance

    def _reflectance(self, pixels: NDArray[np.integer[Any]]) -> NDArray[np.uint16]:
        """Return reflectance x 10000, at least 1, of stored values."""
        if pixels.dtype == np.uint16 and self.scale == 1 and self.offset in (0, -SHIFT):  # without a float in memory
            shift = np.uint16(self.shift)
            reflectance: NDArray[np.uint16] = np.maximum(pixels, shift + np.uint16(1)) - shift
            return reflectance
        values = np.rint(pixels.astype(np.float64) * self.scale + self.offset)
        return np.clip(values, 1, 65535).astype(np.uint16)


@dataclass(frozen=True)
class Evidence:
    """What is said about the stored values of a band; None where nothing is.

    `item_scale` and `item_offset` are a catalogue's, `file_scale` and `file_offset` those of the file itself:
    reflectance is `scale` x value + `offset`. `offset_applied` is Earth Search's word on its own GeoTIFFs, and
    `processing_baseline` what `baseline_number` returns. `is_jp2` says that the file is JPEG 2000, as ESA delivers.
    """

    item_scale: float | None = None
    item_offset: float | None = None
    file_scale: float | None = None
    file_offset: float | None = None
    offset_applied: bool | None = None
    processing_baseline: str | None = None
    is_jp2: bool = False


def conversion_of(baseline: Baseline) -> Conversion:
    """Return the conversion that somebody asked for."""
    shift = SHIFT if baseline == "from-04.00" else 0
    return Conversion(1, -shift, f"asked for: baseline {baseline}")


def to_reflectance(pixels: NDArray[np.uint16], valid: NDArray[np.bool_], baseline: Baseline) -> NDArray[np.uint16]:
    """Return reflectance x 10000 `[C, H, W] uint16` as `Conversion.apply` does."""
    return conversion_of(baseline).apply(pixels, valid)


def baseline_number(text: str) -> str | None:
    """Return a processing baseline (`05.10`, `N0510`) as `05.10`; None for what can't be one of ESA's."""
    match = _BASELINE.fullmatch(text.strip())
    return ".".join(part for part in match.groups() if part) if match else None


def baseline_in_name(text: str) -> str | None:
    """Return the processing baseline of the product of Sentinel-2 that `text`, a name or a URI, has in it, or None."""
    match = _IN_PRODUCT_NAME.search(text)
    return baseline_number(f"N{match[1]}") if match else None


def decide(subject: str, evidence: Evidence, baseline: Baseline | None) -> Conversion:
    """Return how stored values become reflectance: by `baseline` if it is given, else by evidence, in this order.

    1. `offset_applied`: the shift is off, whatever offset is named. Not for JPEG 2000: those are ESA's own files.
    2. A scale and an offset, of the item or the file.
    3. The processing baseline.

    No product before 04.00 has the shift, so for those an offset of -0.1 is not believed. Offset 0 for one from 04.00
    on may mean that the shift was taken off, or that nobody looked: JPEG 2000 files, and items that say that it was not
    taken off, have it. Raises `DataError` about `subject` where that is not known, and where nothing says anything.
    """
    if baseline is not None:
        return conversion_of(baseline)
    stated = _stated(subject, evidence)
    number = evidence.processing_baseline
    shifted = None if number is None else float(number) >= FIRST_SHIFTED
    if evidence.offset_applied and not evidence.is_jp2:
        scale = stated.scale if stated else 1 / REFLECTANCE_SCALE
        return _conversion(scale, 0, "its item says that the offset was applied to the values already")
    if stated is None:
        if shifted is None:
            raise DataError(subject, f"nothing says whether its values have the shift of baseline 04.00; {REMEDY}")
        return _conversion(1 / REFLECTANCE_SCALE, _product_offset(shifted), f"processing baseline {number}")
    offset = stated.offset
    if offset is None:
        return _conversion(stated.scale, _product_offset(bool(shifted)), f"{stated}, processing baseline {number}")
    if shifted is False and math.isclose(offset, _product_offset(True)):
        return _conversion(stated.scale, 0, f"processing baseline {number}, which has no shift, against {stated}")
    if shifted and offset == 0:
        if not (evidence.is_jp2 or evidence.offset_applied is False):
            raise DataError(
                subject,
                f"{stated} says that its values have no shift, processing baseline {number} that they have; {REMEDY}",
            )
        return _conversion(stated.scale, _product_offset(True), f"processing baseline {number} against {stated}")
    return _conversion(stated.scale, offset, str(stated))


def _product_offset(shifted: bool) -> float:
    return -SHIFT / REFLECTANCE_SCALE if shifted else 0.0


@dataclass(frozen=True)
class _Stated:
    scale: float
    offset: float | None
    place: str

    def __str__(self) -> str:
        offset = "no offset" if self.offset is None else f"offset {self.offset:g}"
        return f"scale {self.scale:g} and {offset} of the {self.place}"


def _stated(subject: str, evidence: Evidence) -> _Stated | None:
    """Return the scale and offset of the item or, where it has none, of the file; raise `DataError` if they differ."""
    of_item = _checked(subject, evidence.item_scale, evidence.item_offset, "item")
    of_file = _checked(subject, evidence.file_scale, evidence.file_offset, "file")
    if of_item is None or of_file is None or evidence.offset_applied:
        return of_item or of_file
    offsets_differ = None not in (of_item.offset, of_file.offset) and not math.isclose(
        of_item.offset or 0, of_file.offset or 0, abs_tol=1e-6
    )
    if offsets_differ or not math.isclose(of_item.scale, of_file.scale, rel_tol=1e-6):
        raise DataError(subject, f"{of_item} differ from {of_file}; {REMEDY}")
    return of_item if of_item.offset is not None else of_file


def _checked(subject: str, scale: float | None, offset: float | None, place: str) -> _Stated | None:
    """Return what is stated, None for nothing; scale 1 and offset 0 are what formats have where nobody set them.

    Raises `DataError` for what does not make reflectance: an offset in stored values (-1000), or above 0, which no
    product has, since 0 is no data; a scale of other units; what is no number.
    """
    if (scale is None or scale == 1) and not offset:
        return None
    if scale is None or not _is_of_reflectance(scale) or not -1 < (offset or 0) <= 0:
        found = f"scale {scale} and offset {offset} of the {place} do not make reflectance of its values"
        raise DataError(subject, f"{found}, as 0.0001 and -0.1 do; {REMEDY}")
    return _Stated(scale, offset, place)


def _is_of_reflectance(scale: float) -> bool:
    return scale * LARGEST_VALUE >= DARKEST_FULL_RANGE and scale * ORDINARY_VALUE <= BRIGHTEST_ORDINARY


def _conversion(scale: float, offset: float, rule: str) -> Conversion:
    return Conversion(_whole(scale * REFLECTANCE_SCALE), _whole(offset * REFLECTANCE_SCALE), rule)


def _whole(value: float) -> float:
    """Return the whole number that `value` was meant to be: 0.0001 may come as a float32."""
    return float(round(value)) if math.isclose(value, round(value), rel_tol=1e-6, abs_tol=1e-9) else value


def is_dark(pixels: NDArray[np.uint16], valid: NDArray[np.bool_]) -> bool:
    """Tell whether a tile as stored, `pixels` `[C, H, W]`, has more than a few values that the shift rules out."""
    below = pixels.min(axis=0)[valid] < SHIFT
    return bool(below.size and below.mean() > DARK_PIXELS_FRACTION)


def doubt(num_dark: int, num_tiles: int, baseline: Baseline) -> str | None:
    """Return why the values of an archive do not look like those of `baseline`, and what to do; None where they do."""
    if num_tiles < FEWEST_TILES:
        return None
    found = f"{num_dark} of {num_tiles} tiles have more than {DARK_PIXELS_FRACTION:.0%} of pixels below {SHIFT}"
    if baseline == "before-04.00" and num_dark < DARK_TILES_FRACTION * num_tiles:
        return f"the values look shifted by {SHIFT} ({found}); products of baseline 04.00 on need --baseline from-04.00"
    if baseline == "from-04.00" and num_dark > DARK_TILES_FRACTION * num_tiles:
        return f"the values do not look shifted by {SHIFT} ({found}); is --baseline from-04.00 right for this source?"
    return None
