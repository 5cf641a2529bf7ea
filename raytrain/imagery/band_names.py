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

_EARTH_ENGINE = {name.replace("B0", "B"): name for name in SENTINEL_2}


def known_band(text: str) -> str | None:
    """Return the band that `text` names, e.g. `B02` for `b02` and for `blue`; None for anything else.

    `B2` is none: Landsat calls other bands so; see `known_bands`.
    """
    name = text.upper()
    return name if name in SENTINEL_2 else COMMON_NAMES.get(text.lower())


def known_bands(texts: Sequence[str | None]) -> list[str | None]:
    """Return what the bands of one file are, by what each is called; what names none is left as it is.

    Earth Engine's names count (`B2` is `B02`) where the file shows that they are Sentinel-2's: by B8A or B12, which no
    Landsat has, or as just the four bands of 10 m.
    """
    called = _EARTH_ENGINE.keys() & texts
    are_sentinel_2s = bool(called & {"B8A", "B12"}) or called == {"B2", "B3", "B4", "B8"}
    others = _EARTH_ENGINE if are_sentinel_2s else {}
    return [(others.get(text) or known_band(text) or text) if text else None for text in texts]


def first_band(names: Iterable[str], wanted: Sequence[str]) -> str | None:
    """Return which of `wanted` is meant by `names`, of which the first that is known decides; None for another band."""
    for name in names:
        if name in wanted:
            return name
        band = known_band(name)
        if band is not None:
            return band if band in wanted else None
    return None
