"""Where a raster lies on the globe: its outline in longitude and latitude, as GeoJSON wants it (RFC 7946).

Must not know what the raster holds.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
import shapely.affinity
from numpy.typing import NDArray
from rasterio import Affine
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.warp import transform as reproject
from shapely.geometry import Polygon, box, mapping
from shapely.geometry.polygon import orient

WGS84 = CRS.from_epsg(4326)
EDGE_POINTS = 32
"""Points on each side of the raster that are reprojected: a straight side is a curve on the globe."""
TOLERANCE_DEG = 1e-5
"""Points that lie no farther from the line of their neighbours are left out: 1 m."""
DECIMALS = 7


@dataclass(frozen=True)
class Footprint:
    """An outline as a GeoJSON geometry, and its `bbox` (west, south, east, north) in degrees.

    Across the antimeridian the geometry is a MultiPolygon, cut there, and west is greater than east.
    """

    geometry: dict[str, Any]
    bbox: tuple[float, float, float, float]


def footprint(crs: CRS, transform: Affine, height: int, width: int) -> Footprint | None:
    """Return the footprint of a raster; None where its CRS has no way to the globe or its outline does not lie on it.

    A raster around a pole reaches up to it, at all longitudes.
    """
    longitudes, latitudes = _outline(crs, transform, height, width)
    if not (np.isfinite(longitudes).all() and np.isfinite(latitudes).all()):
        return None
    longitudes = np.unwrap(longitudes, period=360)
    points = list(zip(longitudes.tolist(), latitudes.tolist(), strict=True))
    if abs(longitudes[-1] - longitudes[0]) > 180:  # once around a pole
        pole = math.copysign(90, float(latitudes.mean()))
        points += [(points[-1][0], pole), (points[0][0], pole)]
    whole = Polygon(points).simplify(TOLERANCE_DEG)
    if whole.is_empty or not whole.is_valid:
        return None
    west, south, east, north = whole.bounds
    turns = math.floor((west + 180) / 360)
    geometry = _cut(shapely.affinity.translate(whole, -360 * turns))
    return Footprint(_as_json(geometry), _bbox(west - 360 * turns, south, east - 360 * turns, north))


def _outline(crs: CRS, transform: Affine, height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return longitudes and latitudes along the sides of a raster, back to the first corner; infinite where unknown."""
    corners = [(0, 0), (0, height), (width, height), (width, 0), (0, 0)]
    steps = np.arange(EDGE_POINTS) / EDGE_POINTS
    sides = [np.outer(1 - steps, start) + np.outer(steps, end) for start, end in itertools.pairwise(corners)]
    columns, rows = np.vstack([*sides, corners[-1:]]).T
    xs = transform.a * columns + transform.b * rows + transform.c
    ys = transform.d * columns + transform.e * rows + transform.f
    try:
        longitudes, latitudes = reproject(crs, WGS84, xs, ys)
    except (RasterioError, CPLE_BaseError):  # e.g. the axes of a building
        longitudes, latitudes = [math.inf], [math.inf]
    return np.asarray(longitudes, np.float64), np.asarray(latitudes, np.float64)


def _cut(whole: Polygon) -> Any:
    """Return a polygon whose west is in [-180, 180) with all longitudes brought to [-180, 180]."""
    if whole.bounds[2] <= 180:
        return whole
    here = whole.intersection(box(-180, -90, 180, 90))
    beyond = shapely.affinity.translate(whole.intersection(box(180, -90, 540, 90)), -360)
    parts = [part for part in shapely.get_parts([here, beyond]) if isinstance(part, Polygon)]
    return shapely.unary_union(parts)


def _bbox(west: float, south: float, east: float, north: float) -> tuple[float, float, float, float]:
    if east - west >= 360 - TOLERANCE_DEG:
        west, east = -180.0, 180.0
    elif east > 180:
        east -= 360
    return round(west, DECIMALS), round(south, DECIMALS), round(east, DECIMALS), round(north, DECIMALS)


def _as_json(geometry: Any) -> dict[str, Any]:
    """Return GeoJSON with rings counterclockwise from outside, and coordinates to a centimetre."""
    polygons = [mapping(orient(part))["coordinates"] for part in shapely.get_parts(geometry)]
    rounded = [
        [[[round(value, DECIMALS) for value in point] for point in ring] for ring in rings] for rings in polygons
    ]
    if len(rounded) == 1:
        return {"type": "Polygon", "coordinates": rounded[0]}
    return {"type": "MultiPolygon", "coordinates": rounded}
