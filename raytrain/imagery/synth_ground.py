"""The ground of an invented place, from forests to snow, as reflectance in four bands.

Kinds are laid over one another, each with its own outline, texture and spectrum. This module must not know clouds, days
(but for the sun) or files.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from raytrain.imagery.noise import Box, FloatField, cell_hashes, fbm, mixed_seed, refined, white
from raytrain.imagery.synth_places import Acquisition, Place, Spectrum

_BEACH: Spectrum = (1500, 1850, 2150, 2700)
_ROOFS: Spectrum = (3900, 4000, 4050, 4300)
_STUBBLE: Spectrum = (1050, 1450, 1850, 2900)


def ground_bands(place: Place, day: Acquisition, box: Box) -> NDArray[np.float32]:
    """Return the sunlit ground, `[4, height, width] float32`, reflectance x 10000, before haze, clouds and noise."""
    heights = fbm(_seed(place, 1), box.grown(1), coarsest=10, finest=1, gain=0.46)
    elevation = heights[1:-1, 1:-1]
    shade = _hillshade(heights, place, day)
    wetness = _coarse(place, 2, box, coarsest=9)
    grain = fbm(_seed(place, 3), box, coarsest=5, gain=0.75)
    tone = 1 + np.float32(0.09) * grain
    bands = np.empty((4, box.height, box.width), np.float32)
    for band, level in zip(bands, place.spectra["forest"], strict=True):
        np.multiply(tone, np.float32(level), out=band)
    rough = np.float32(0.12) * grain
    _lay(bands, _outline(wetness + rough, place.fractions["grass"], 0.5), place.spectra["grass"], tone)
    _lay(bands, _outline(rough - wetness, place.fractions["soil"], 0.7), place.spectra["soil"], tone)
    _lay_fields(bands, place, box, tone)
    _lay_sand(bands, place, box, rough, tone)
    bands *= shade
    _lay_city(bands, place, box, rough)
    _lay_snow(bands, place, elevation + rough, shade)
    _lay_water(bands, place, box, elevation, wetness)
    return bands


def _seed(place: Place, number: int) -> int:
    return mixed_seed(place.ground_seed, number)


def _coarse(place: Place, number: int, box: Box, *, coarsest: int, gain: float = 0.5) -> FloatField:
    """Return noise without detail under four pixels, for outlines that get their detail from the shared grain."""
    return refined(fbm(_seed(place, number), box.halved(), coarsest=coarsest - 1, finest=1, gain=gain), box)


def _outline(field: FloatField, fraction: float, softness: float) -> FloatField:
    """Return each pixel's share of a kind, in [0, 1], so that it covers about `fraction` of the endless plane."""
    threshold = NormalDist().inv_cdf(1 - min(max(fraction, 1e-4), 0.9999))
    share = field - np.float32(threshold - 0.5 * softness)
    share *= np.float32(1 / softness)
    return np.clip(share, 0, 1, out=share)


def _lay(bands: NDArray[np.float32], share: FloatField, spectrum: Spectrum, tone: FloatField | float) -> None:
    """Lay a kind over what is there."""
    for band, level in zip(bands, spectrum, strict=True):
        over = tone * np.float32(level)
        over -= band
        over *= share
        band += over


def _hillshade(heights: FloatField, place: Place, day: Acquisition) -> FloatField:
    """Return how brightly the sun lights the slopes, 1 on level ground; `heights` has one more pixel on each side."""
    azimuth = math.radians(day.sun_azimuth_deg)
    strength = place.relief / math.tan(math.radians(max(day.sun_elevation_deg, 30)))
    # Slopes that face the sun fall towards it.
    shade = (heights[1:-1, :-2] - heights[1:-1, 2:]) * np.float32(strength * math.sin(azimuth))
    shade += (heights[2:, 1:-1] - heights[:-2, 1:-1]) * np.float32(strength * math.cos(azimuth))
    shade += 1
    return np.clip(shade, 0.4, 1.45, out=shade)


def _turned(
    place: Place, box: Box, angle: float, size_px: float, bend: FloatField
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return coordinates along two axes turned by `angle`, in units of `size_px`, bent by a smooth field."""
    rows = np.arange(box.row0, box.row0 + box.height)[:, None] / size_px
    columns = np.arange(box.column0, box.column0 + box.width)[None, :] / size_px
    along = (rows * math.cos(angle) + columns * math.sin(angle)).astype(np.float32)
    across = (columns * math.cos(angle) - rows * math.sin(angle)).astype(np.float32)
    along += bend
    across += bend
    return along, across


def _cells(
    place: Place, number: int, along: FloatField, across: FloatField
) -> tuple[NDArray[np.uint32], FloatField, FloatField]:
    """Return the hash of each pixel's cell, and where in it the pixel lies, in [0, 1); cells shift like bricks."""
    cell_rows = np.floor(along)
    along = along - cell_rows
    row_indices = cell_rows.astype(np.int64)
    shifts = cell_hashes(_seed(place, number), row_indices, np.zeros((), np.int64)) >> np.uint32(8)
    across = across + shifts.astype(np.float32) * np.float32(2.0**-24)
    cell_columns = np.floor(across)
    across -= cell_columns
    return cell_hashes(_seed(place, number + 1), row_indices, cell_columns.astype(np.int64)), along, across


def _byte(hashes: NDArray[np.uint32], number: int) -> FloatField:
    """Return one byte of the hashes as a fraction in [0, 1]."""
    return ((hashes >> np.uint32(8 * number)) & np.uint32(255)).astype(np.float32) * np.float32(1 / 255)


def _lay_fields(bands: NDArray[np.float32], place: Place, box: Box, tone: FloatField) -> None:
    """Lay fields in crop, in stubble and ploughed, with tracks between them."""
    if place.fractions["fields"] < 0.02:
        return
    share = _outline(_coarse(place, 10, box, coarsest=9), place.fractions["fields"], 0.05)
    if not share.any():
        return
    bend = _coarse(place, 11, box, coarsest=8, gain=0.3) * np.float32(0.5)
    along, across = _turned(place, box, place.pattern_angle, place.field_px, bend)
    hashes, along, across = _cells(place, 12, along, across * np.float32(0.6))
    tone = tone * (np.float32(0.75) + np.float32(0.5) * _byte(hashes, 1))
    _lay(bands, share, place.spectra["fields"], tone)
    bare = _byte(hashes, 0) * np.float32(3) - 1
    np.clip(bare, 0, 1, out=bare)
    tracks = (along < np.float32(1.2 / place.field_px)) | (across < np.float32(0.7 / place.field_px))
    bare[tracks] = 0.6
    bare *= share
    _lay(bands, bare, _STUBBLE, tone)


def _lay_sand(bands: NDArray[np.float32], place: Place, box: Box, rough: FloatField, tone: FloatField) -> None:
    """Lay bright sand in dunes: a hard negative for thresholds on brightness."""
    if place.fractions["sand"] < 0.02:
        return
    share = _outline(_coarse(place, 20, box, coarsest=10) + rough, place.fractions["sand"], 0.5)
    if not share.any():
        return
    bend = _coarse(place, 21, box, coarsest=7)
    along, _ = _turned(place, box, place.pattern_angle + 0.8, place.block_px * 2.5, bend * np.float32(0.9))
    crests = np.abs(along - np.floor(along) - np.float32(0.6))
    brightness = np.float32(0.86) + np.float32(0.34) * crests + np.float32(0.07) * bend
    _lay(bands, share, place.spectra["sand"], brightness * tone)


def _lay_city(bands: NDArray[np.float32], place: Place, box: Box, rough: FloatField) -> None:
    """Lay streets and blocks, with single bright roofs and gardens."""
    if place.fractions["city"] < 0.02:
        return
    share = _outline(_coarse(place, 30, box, coarsest=9) + 2 * rough, place.fractions["city"], 0.35)
    if not share.any():
        return
    bend = _coarse(place, 34, box, coarsest=7, gain=0.3)
    along, across = _turned(place, box, place.pattern_angle + 0.3, place.block_px, bend)
    hashes, along, across = _cells(place, 31, along, across * np.float32(0.7))
    houses = white(_seed(place, 33), box)
    tone = np.float32(0.7) + np.float32(0.45) * _byte(hashes, 0) + np.float32(0.28) * houses
    streets = (along < np.float32(1.5 / place.block_px)) | (across < np.float32(1.0 / place.block_px))
    tone[streets] = 0.72
    gardens = ((hashes >> np.uint32(8)) & np.uint32(255) < 40) & ~streets
    built = np.where(gardens, np.float32(0.25), np.float32(0.92)) * share
    _lay(bands, built, place.spectra["city"], tone)
    halls = ((hashes >> np.uint32(16)) & np.uint32(255) < 5) & ~streets & ~gardens
    _lay(bands, halls * share, _ROOFS, 1 + np.float32(0.25) * houses)


def _lay_snow(bands: NDArray[np.float32], place: Place, elevation: FloatField, shade: FloatField) -> None:
    """Lay snow on high ground, thinner where slopes are dark: bright in the visible, lower in the near infrared."""
    if place.fractions["snow"] < 0.02:
        return
    share = _outline(elevation + np.float32(0.8) * (shade - 1), place.fractions["snow"], 0.35)
    if share.any():
        _lay(bands, share, place.spectra["snow"], np.float32(0.35) + np.float32(0.65) * shade)


def _lay_water(bands: NDArray[np.float32], place: Place, box: Box, elevation: FloatField, wetness: FloatField) -> None:
    """Lay sea and lakes on low ground with a rim of beach, and a river along a contour of a field of its own."""
    if place.fractions["water"] < 0.02:
        return
    depth = _outline(-elevation, place.fractions["water"], 0.06)
    if depth.any():
        rim = _outline(-elevation, place.fractions["water"] + 0.012, 0.04)
        rim -= depth
        _lay(bands, np.clip(rim, 0, 1, out=rim) * np.float32(0.8), _BEACH, 1.0)
    winding = np.abs(_coarse(place, 40, box, coarsest=9))
    river = np.clip(1.6 - winding * np.float32(45), 0, 1)
    np.maximum(depth, river, out=depth)
    _lay(bands, depth, place.spectra["water"], 1 + np.float32(0.22) * wetness)
