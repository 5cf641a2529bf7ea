"""Invented places and their days: what a place is made of, where it lies, and a day's sun and clouds.

Everything is drawn from seeds with the standard library's generator, whose stream is the same on every version of
Python. This module must not know pixels or files.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from rasterio.warp import transform

from raytrain.imagery.noise import mixed_seed

Spectrum = tuple[float, float, float, float]

GSD_M = 10
KINDS = ("forest", "grass", "soil", "fields", "sand", "city", "snow", "water")

# Reflectance x 10000 in B02, B03, B04, B08, from looking at real Sentinel-2 and Landsat chips.
_SPECTRA: dict[str, Spectrum] = {
    "forest": (330, 520, 330, 2700),
    "grass": (560, 900, 760, 3300),
    "soil": (1050, 1500, 2050, 2850),
    "fields": (480, 860, 560, 3900),
    "sand": (3000, 3700, 4350, 5150),
    "city": (1350, 1480, 1560, 2150),
    "salt": (3950, 4550, 4950, 5500),
    "snow": (7600, 7500, 7250, 5900),
    "water": (620, 520, 300, 140),
}

# How much of a place is covered by each kind; they are laid over one another in this order, so later kinds hide earlier
# ones.
_CHARACTERS: dict[str, dict[str, float]] = {
    "farmland": {"grass": 0.4, "soil": 0.2, "sand": 0.12, "fields": 0.7, "city": 0.06, "water": 0.05},
    "snowy range": {"grass": 0.2, "soil": 0.35, "snow": 0.8, "water": 0.02},
    "woodland": {"grass": 0.25, "soil": 0.1, "fields": 0.12, "water": 0.12},
    "dunes": {"grass": 0.05, "soil": 0.9, "sand": 0.85},
    "coast": {"grass": 0.45, "soil": 0.25, "fields": 0.1, "sand": 0.25, "city": 0.1, "water": 0.4},
    "ice field": {"grass": 0.1, "soil": 0.5, "snow": 0.85, "water": 0.1},
    "metropolis": {"grass": 0.4, "soil": 0.35, "sand": 0.25, "fields": 0.2, "city": 0.6, "water": 0.08},
    "salt flats": {"grass": 0.05, "soil": 0.6, "sand": 0.8, "water": 0.04},
    "winter farmland": {"grass": 0.3, "soil": 0.2, "fields": 0.4, "city": 0.05, "snow": 0.75, "water": 0.03},
    "savanna": {"grass": 0.4, "soil": 0.75, "sand": 0.5, "fields": 0.06, "water": 0.02},
}
_LATITUDES: dict[str, tuple[float, float]] = {
    "snowy range": (36, 58),
    "ice field": (52, 64),
    "winter farmland": (40, 58),
    "dunes": (15, 33),
    "salt flats": (18, 34),
    "savanna": (3, 22),
}
_NAME_STARTS = ("Al", "Bel", "Cor", "Da", "El", "Fen", "Gal", "Hes", "Il", "Ka", "Lor", "Mar", "Ne", "Or", "Pel", "Ris")
_NAME_MIDDLES = ("ba", "de", "go", "li", "ma", "mi", "no", "ra", "ri", "so", "ta", "vi", "za", "the")
_NAME_ENDS = ("bury", "dal", "grad", "ka", "lund", "mere", "na", "nor", "polis", "ria", "stad", "ton", "vik", "wa")


@dataclass(frozen=True)
class Place:
    """An invented place: the same ground on every day, its own mix of ground, light and weather."""

    index: int
    name: str
    character: str
    ground_seed: int
    longitude: float
    latitude: float
    epsg: int
    origin_m: tuple[float, float]  # UTM easting and northing of the upper left corner of pixel (0, 0)
    fractions: dict[str, float]
    spectra: dict[str, Spectrum]
    relief: float
    pattern_angle: float
    field_px: float
    block_px: float
    gain: float
    haze_opacity: float
    cover_range: tuple[float, float]


@dataclass(frozen=True)
class Acquisition:
    """One day over a place: its date, its sun and its clouds."""

    seed: int
    when: datetime
    sun_azimuth_deg: float
    sun_elevation_deg: float
    cover_fraction: float
    haze_opacity: float
    cloud_brightness: float
    cloud_coarsest: int
    cloud_scale: float
    cloud_stretch: float
    cloud_angle: float
    cloud_gain: float
    cloud_steepness: float
    cloud_thickness_limit: float
    cloud_height_m: float


@dataclass(frozen=True)
class SwathEdge:
    """A straight edge of the recorded swath: pixels on the side that the normal points to hold no data."""

    row: float
    column: float
    normal_row: float
    normal_column: float


def make_places(count: int, seed: int, first: int = 0) -> list[Place]:
    """Return places number `first` to `first + count - 1`.

    A place depends on (seed, number) alone, so places to hold out are made with another `first`. Each run of ten has
    every character once, in a shuffled order, so that a few places hold bright sand and snow too.
    """
    return [_make_place(index, seed) for index in range(first, first + count)]


def make_acquisition(place: Place, scene_seed: int) -> Acquisition:
    """Return the day that `scene_seed` names; about one in nine is cloudless and one in 25 nearly overcast."""
    draw = random.Random(mixed_seed(place.ground_seed, scene_seed, 1))
    when = datetime(2018, 1, 1, tzinfo=UTC) + timedelta(
        days=draw.randrange(6 * 365), hours=10.5 - place.longitude / 15, seconds=draw.randrange(1800)
    )
    azimuth, elevation = _sun(place.latitude, when.timetuple().tm_yday)
    sky = draw.random()
    cover = 0.0 if sky < 0.11 else draw.uniform(0.93, 0.99) if sky < 0.15 else draw.uniform(*place.cover_range)
    style = draw.choice(("cumulus", "cumulus", "towers", "sheet", "cirrus", "cirrus"))
    coarsest, stretch, gain, steepness, limit, height_m = {
        "cumulus": (6, draw.uniform(0.7, 1.0), 0.56, draw.uniform(4, 9), 30.0, draw.uniform(450, 900)),
        "towers": (8, draw.uniform(0.6, 1.0), 0.56, draw.uniform(3, 7), 30.0, draw.uniform(700, 1300)),
        "sheet": (8, draw.uniform(0.5, 0.9), 0.47, draw.uniform(1.5, 4), 12.0, draw.uniform(600, 1000)),
        "cirrus": (
            8,
            draw.uniform(0.2, 0.35),
            0.5,
            draw.uniform(1.0, 2.0),
            draw.uniform(1.3, 2.2),
            draw.uniform(900, 1500),
        ),
    }[style]
    return Acquisition(
        seed=mixed_seed(place.ground_seed, scene_seed, 2),
        when=when.replace(microsecond=0),
        sun_azimuth_deg=azimuth,
        sun_elevation_deg=elevation,
        cover_fraction=cover,
        haze_opacity=place.haze_opacity * draw.uniform(0.4, 1.2),
        cloud_brightness=place.gain * draw.uniform(3600, 8200),
        cloud_coarsest=coarsest,
        cloud_scale=draw.uniform(0.75, 1.4),
        cloud_stretch=stretch,
        cloud_angle=draw.uniform(0, math.pi),
        cloud_gain=gain,
        cloud_steepness=steepness,
        cloud_thickness_limit=limit,
        cloud_height_m=height_m,
    )


def make_swath_edge(seed: int, size_px: int, row0: int = 0, column0: int = 0) -> SwathEdge:
    """Return an edge across the square of `size_px` at (`row0`, `column0`), steep as those of a descending orbit.

    It leaves more than half of the square.
    """
    draw = random.Random(mixed_seed(seed, 3))
    angle = math.radians(draw.uniform(8, 24))
    side = draw.choice((-1, 1))
    column = size_px * (0.5 + side * draw.uniform(0.12, 0.36))
    return SwathEdge(row0 + size_px / 2, column0 + column, side * math.sin(angle), side * math.cos(angle))


def _make_place(index: int, seed: int) -> Place:
    draw = random.Random(mixed_seed(seed, index, 4))
    character = _character(index, seed)
    other = draw.choice(tuple(_CHARACTERS))
    share = draw.uniform(0.15, 0.35)
    fractions = {
        kind: (1 - share) * _CHARACTERS[character].get(kind, 0.0) + share * _CHARACTERS[other].get(kind, 0.0)
        for kind in KINDS
    }
    north_to, south_to = _LATITUDES.get(character, (5, 55))
    latitude = draw.uniform(north_to, south_to) * (1 if draw.random() < 0.65 or north_to > 35 else -1)
    zone = draw.randrange(5, 57)
    # Near the middle of its zone, so that a wide place stays in it.
    longitude = -180 + 6 * zone - 3 + draw.uniform(-1.5, 0.5)
    epsg = (32600 if latitude >= 0 else 32700) + zone
    eastings, northings = transform("EPSG:4326", f"EPSG:{epsg}", [longitude], [latitude])
    spectra = {kind: _tinted(spectrum, draw) for kind, spectrum in _SPECTRA.items()}
    if character == "salt flats":
        spectra["sand"] = spectra["salt"]
    lowest = draw.uniform(0.07, 0.32)
    return Place(
        index=index,
        name=f"{draw.choice(_NAME_STARTS)}{draw.choice(_NAME_MIDDLES)}{draw.choice(_NAME_ENDS)} {index:02d}",
        character=character,
        ground_seed=mixed_seed(seed, index, 5),
        longitude=longitude,
        latitude=latitude,
        epsg=epsg,
        origin_m=(round(eastings[0] / GSD_M) * float(GSD_M), round(northings[0] / GSD_M) * float(GSD_M)),
        fractions=fractions,
        spectra=spectra,
        relief=draw.uniform(60, 110)
        * {
            "snowy range": 1.6,
            "ice field": 0.7,
            "farmland": 0.35,
            "metropolis": 0.3,
            "dunes": 0.6,
            "salt flats": 0.2,
            "winter farmland": 0.35,
        }.get(character, 0.9),
        pattern_angle=draw.uniform(0, math.pi / 2),
        field_px=draw.uniform(14, 40),
        block_px=draw.uniform(8, 14),
        gain=draw.uniform(0.82, 1.12),
        haze_opacity=draw.uniform(0.01, 0.17),
        cover_range=(lowest, lowest + draw.uniform(0.22, 0.48)),
    )


def _character(index: int, seed: int) -> str:
    """Return the character of place `index`: a shuffled deck per ten places."""
    deck = sorted(_CHARACTERS)
    random.Random(mixed_seed(seed, index // len(deck), 6)).shuffle(deck)
    return deck[index % len(deck)]


def _tinted(spectrum: Spectrum, draw: random.Random) -> Spectrum:
    """Return the spectrum a little brighter or darker and redder or bluer, as one place differs from another."""
    tone, tilt = draw.uniform(0.80, 1.18), draw.uniform(-0.06, 0.06)
    blue, green, red, infrared = spectrum
    return blue * tone * (1 - tilt), green * tone, red * tone * (1 + tilt), infrared * tone * draw.uniform(0.96, 1.04)


def _sun(latitude: float, day_of_year: int) -> tuple[float, float]:
    """Return the sun's azimuth, clockwise from north, and elevation (at least 22), in degrees, at 10:30 solar time."""
    declination = math.radians(-23.44 * math.cos(2 * math.pi * (day_of_year + 10) / 365.25))
    phi, hour = math.radians(latitude), math.radians(-22.5)
    elevation = math.asin(
        math.sin(phi) * math.sin(declination) + math.cos(phi) * math.cos(declination) * math.cos(hour)
    )
    east = -math.sin(hour) * math.cos(declination)
    north = math.sin(declination) * math.cos(phi) - math.cos(declination) * math.sin(phi) * math.cos(hour)
    return math.degrees(math.atan2(east, north)) % 360, max(22.0, math.degrees(elevation))
