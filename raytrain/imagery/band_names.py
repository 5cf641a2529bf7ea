"""Names of Sentinel-2's bands, as products, catalogues and files write them. Must not know where a band lies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

SENTINEL_2 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
COMMON_NAMES = {
    "coastal": "B01",
    "blue": "B02",
    "green": "B03",
    "red": "B04",
    "rededge1": "B05",
    "rededge2": "B06",
    "rededge3": "B07",
    "rededge071": "B05",
    "rededge075": "B06",
    "rededge078": "B07",
    "nir": "B08",
    "nir08": "B8A",
    "nir09": "B09",
    "cirrus": "B10",
    "swir16": "B11",
    "swir22": "B12",
}
"""The common names of STAC's eo extension, and those that Earth Search numbers; `rededge` alone is any of three."""


def known_band(text: str) -> str | None:
    """Return the band that `text` names, e.g. `B02` for `b02` and for `blue`; None for anything else.

    `B2` is none: Landsat calls other bands so.
    """
    name = text.upper()
    return name if name in SENTINEL_2 else COMMON_NAMES.get(text.lower())


def first_band(names: Iterable[str], wanted: Sequence[str]) -> str | None:
    """Return which of `wanted` is meant by `names`, of which the first that is known decides; None for another band."""
    for name in names:
        if name in wanted:
            return name
        band = known_band(name)
        if band is not None:
            return band if band in wanted else None
    return None
