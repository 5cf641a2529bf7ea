"""Clouds of an invented day: fractal shapes with thick cores and thin edges, their shadows on the ground, and haze.

Optical thickness is a function of a warped fractal field; opacity is 1 - exp(-thickness). This module must not know the
ground, bands or files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from raytrain.imagery.noise import Box, FloatField, fbm, mixed_seed, refined, sampled
from raytrain.imagery.synth_places import GSD_M, Acquisition

CLOUD_OPACITY = 0.3
"""Pixels whose opacity, haze included, is over this are labelled cloud."""

_THICKNESS_AT_LABEL = -math.log(1 - CLOUD_OPACITY)
_WARP_LIMIT = 28.0
_LARGEST_SHADOW_SHIFT = 48
_EDGE = 0.25
_RELIEF_STEP = 2


@dataclass(frozen=True)
class Sky:
    """What lies between the ground and the sensor, each `[height, width] float32`."""

    cloud_opacity: FloatField
    cloud_brightness: FloatField
    shadow: FloatField
    haze_opacity: FloatField


def sky_over(day: Acquisition, box: Box) -> Sky:
    """Return the clouds, their shadows and the haze of a day over `box`."""
    # Haze has no detail under sixteen pixels, so it is made at a quarter of the resolution.
    half = box.halved()
    haze = refined(refined(fbm(mixed_seed(day.seed, 1), half.halved(), coarsest=7, finest=3), half), box)
    haze = np.clip(np.float32(0.6) + np.float32(0.35) * haze, 0, 1.25) * np.float32(day.haze_opacity)
    if day.cover_fraction <= 0:
        nothing = np.zeros((box.height, box.width), np.float32)
        return Sky(nothing, nothing, nothing, haze)
    wide = box.grown(_RELIEF_STEP)
    half = wide.halved()
    row_shift, column_shift = _shadow_shift(day)
    cast = Box(half.row0 - row_shift, half.column0 - column_shift, half.height, half.width)
    around = _hull(half, cast)
    shapes = _cloud_shapes(day, around)
    shape = refined(around.cut(shapes, half), wide)
    # Thin sheets would turn to grain by detail that only crisp clouds have.
    detail = np.float32(min(0.05, 0.006 * day.cloud_steepness))
    shape += detail * fbm(mixed_seed(day.seed, 2), wide, coarsest=2, gain=0.8)
    thickness = _thickness(wide.cut(shape, box), day)
    shadow = refined(_opacity(_thickness(around.cut(shapes, cast), day)), wide)
    return Sky(_opacity(thickness), _brightness(shape, thickness, day), wide.cut(shadow, box), haze)


def _cloud_shapes(day: Acquisition, box: Box) -> FloatField:
    """Return the field that clouds are cut from, at half the resolution: turned, stretched by the wind, warped."""
    rows = np.arange(box.row0, box.row0 + box.height, dtype=np.float64)[:, None]
    columns = np.arange(box.column0, box.column0 + box.width, dtype=np.float64)[None, :]
    cosine, sine = math.cos(day.cloud_angle) * day.cloud_scale, math.sin(day.cloud_angle) * day.cloud_scale
    along, across = (rows * cosine + columns * sine) * day.cloud_stretch, columns * cosine - rows * sine
    half = box.halved()
    swing = min(_WARP_LIMIT, 0.7 * 2 ** (day.cloud_coarsest - 3))
    for number, axis in ((3, along), (4, across)):
        bend = refined(fbm(mixed_seed(day.seed, number), half, coarsest=max(day.cloud_coarsest - 3, 3), finest=2), box)
        axis += np.clip(bend * np.float32(swing / 2), -_WARP_LIMIT, _WARP_LIMIT)
    # A wide and weak octave more, so that clouds come in fields with gaps between them.
    fields = refined(fbm(mixed_seed(day.seed, 5), half, coarsest=8, finest=5), box)
    shapes = sampled(
        lambda area: fbm(mixed_seed(day.seed, 6), area, coarsest=day.cloud_coarsest - 1, gain=day.cloud_gain),
        along,
        across,
    )
    shapes *= np.float32(0.94)
    shapes += np.float32(0.34) * fields
    return shapes


def _thickness(shape: FloatField, day: Acquisition) -> FloatField:
    """Return the optical thickness, thin at the edges, so that `cover_fraction` of the endless plane is labelled."""
    limit, steepness = day.cloud_thickness_limit, day.cloud_steepness
    needed = _THICKNESS_AT_LABEL / (1 - _THICKNESS_AT_LABEL / limit) / steepness
    rim = (math.sqrt(_EDGE**2 + 4 * needed) - _EDGE) / 2
    above = shape - np.float32(NormalDist().inv_cdf(1 - day.cover_fraction) - rim)
    np.maximum(above, 0, out=above)
    raw = above * (above + np.float32(_EDGE)) * np.float32(steepness)
    raw /= 1 + raw * np.float32(1 / limit)
    return raw


def _opacity(thickness: FloatField) -> FloatField:
    return 1 - np.exp(-thickness)


def _brightness(shape: FloatField, thickness: FloatField, day: Acquisition) -> FloatField:
    """Return how bright a cloud is itself, reflectance x 10000: thick cores and sides that face the sun are brighter.

    `shape` has `_RELIEF_STEP` more pixels on each side than `thickness`.
    """
    azimuth = math.radians(day.sun_azimuth_deg)
    step = _RELIEF_STEP
    lit = (shape[step:-step, : -2 * step] - shape[step:-step, 2 * step :]) * np.float32(math.sin(azimuth))
    lit += (shape[2 * step :, step:-step] - shape[: -2 * step, step:-step]) * np.float32(math.cos(azimuth))
    core = thickness / (thickness + np.float32(1.5))
    tone = np.float32(0.66) + np.float32(0.34) * core + np.clip(np.float32(0.30) * lit, -0.18, 0.14) * core
    return np.asarray(np.clip(tone * np.float32(day.cloud_brightness), 2500, 12000))


def _shadow_shift(day: Acquisition) -> tuple[int, int]:
    """Return how far shadows fall from their clouds, in pixels of the halved lattice, away from the sun."""
    length = day.cloud_height_m / GSD_M / math.tan(math.radians(day.sun_elevation_deg)) / 2
    length = min(length, _LARGEST_SHADOW_SHIFT)
    azimuth = math.radians(day.sun_azimuth_deg)
    return round(math.cos(azimuth) * length), round(-math.sin(azimuth) * length)


def _hull(first: Box, second: Box) -> Box:
    row0, column0 = min(first.row0, second.row0), min(first.column0, second.column0)
    row1 = max(first.row0 + first.height, second.row0 + second.height)
    column1 = max(first.column0 + first.width, second.column0 + second.width)
    return Box(row0, column0, row1 - row0, column1 - column0)
