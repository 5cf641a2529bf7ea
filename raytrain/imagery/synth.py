"""Generated imagery with clouds, true masks and georeference: chips and scenes in the layouts of real archives.

For demos, tests and benchmarks. The same seed gives the same bytes, for any count and size, and a scene of any size is
written in strips of bounded memory. A chip is a function of (seed, place, number in its place, size), so more chips may
be asked for later. This module must not know stores, settings or training.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.io import MemoryFile
from rasterio.transform import xy
from rasterio.warp import transform_geom
from rasterio.windows import Window

from raytrain.errors import ConfigError
from raytrain.imagery.noise import mixed_seed
from raytrain.imagery.synth_clouds import CLOUD_OPACITY
from raytrain.imagery.synth_pixels import BAND_NAMES, BLOCK_PX, CLOUD, NO_DATA_LABEL, generate_window
from raytrain.imagery.synth_places import (
    GSD_M,
    Acquisition,
    Place,
    SwathEdge,
    make_acquisition,
    make_places,
    make_swath_edge,
)
from raytrain.storage import GDAL_CACHE_BYTES

__all__ = ["BLOCK_PX", "CLOUD_OPACITY", "Place", "generate_window", "make_places", "write_chips", "write_scenes"]

OnProgress = Callable[[int, int], None]

_CHIPS_PER_ROW = 8
_CHIP_GAP_PX = 64
_CHIPS_PER_DAY = 3
_CHIPS_AT_EDGE_FRACTION = 0.08
_SCENES_AT_EDGE_FRACTION = 0.4
_FIRST_SCENE_DAY = 1 << 32
_COLUMNS = ("chip_id", "location", "datetime", "cloudpath")
REFLECTANCE_SCALE = 0.0001
"""Reflectance is this times a value; nothing is added."""
_COMMON_NAMES = ("blue", "green", "red", "nir")


def write_chips(
    dst: Path,
    *,
    count: int,
    size_px: int,
    seed: int,
    num_places: int,
    first_place: int = 0,
    split: str = "train",
    on_progress: OnProgress | None = None,
) -> Path:
    """Write `count` chips in the layout of the challenge On Cloud N, dealt evenly to places; return its CSV.

    `dst/<split>_features/<chip_id>/<band>.tif` (uint16), `dst/<split>_labels/<chip_id>.tif` (uint8: 0 clear, 1 cloud,
    255 no data) and, last of all, `dst/<split>_metadata.csv`. Files of the same names are overwritten. `on_progress`
    gets the chips done and `count`. Chips of one place lie apart on a grid; every three in a row were taken on one day.
    Raises ConfigError for a count, size or number of places under 1, a bad split, or a folder with chips of other
    names.
    """
    _check(count=count, size_px=size_px, num_places=num_places)
    _check_first(first_place)
    if not split or any(sign in split for sign in "/\\\0") or split.startswith("."):
        raise ConfigError(
            f"split is {split!r}: it becomes the start of folder names, so give a plain word such as 'train'"
        )
    places = make_places(min(num_places, count), seed, first_place)
    planned = [(places[i % len(places)], i // len(places)) for i in range(count)]
    ids = [f"p{place.index:02d}c{number:03d}" for place, number in planned]
    _refuse_others(dst / f"{split}_features", ids)
    metadata = dst / f"{split}_metadata.csv"
    # Metadata of an earlier run would vouch for a folder that this one has only half overwritten.
    metadata.unlink(missing_ok=True)
    rows = []
    for done, (chip_id, (place, number)) in enumerate(zip(ids, planned, strict=True), start=1):
        features = dst / f"{split}_features" / chip_id
        day = _write_chip(place, number, size_px, features, dst / f"{split}_labels" / f"{chip_id}.tif")
        rows.append((chip_id, place.name, _iso(day), f"./{split}_features/{chip_id}"))
        if on_progress is not None:
            on_progress(done, count)
    _write_whole(metadata, _csv(rows))
    return metadata


def write_scenes(
    dst: Path, *, count: int, size_px: int, seed: int, first_place: int = 0, on_progress: OnProgress | None = None
) -> Path:
    """Write `count` Cloud Optimized GeoTIFFs, one place each, and a STAC item collection; return the latter's path.

    `dst/scenes/<id>.tif` (uint16, nodata 0), `dst/scene_labels/<id>.tif` (uint8: 0 clear, 1 cloud, 255 no data),
    `dst/scenes_metadata.csv` and, last of all, `dst/scenes.json`. Files of the same names are overwritten.
    The scenes come to their folder when all of them are made. `on_progress` gets the strips of `BLOCK_PX` rows done
    and their number over all scenes. Place k is the ground of place k of `write_chips` with the same seed, on another
    day. Raises ConfigError for a count or size under 1, or a folder with scenes of other names.
    """
    _check(count=count, size_px=size_px)
    _check_first(first_place)
    places = make_places(count, seed, first_place)
    ids = [f"p{place.index:02d}s00" for place in places]
    folders = (dst / "scene_labels", dst / "scenes")
    for folder in folders:
        _refuse_others(folder, [f"{scene_id}.tif" for scene_id in ids])
    collection, metadata = dst / "scenes.json", dst / "scenes_metadata.csv"
    collection.unlink(missing_ok=True)
    metadata.unlink(missing_ok=True)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    with _scratch_beside(collection) as scratch:
        items, rows = _write_all(places, ids, size_px, scratch, on_progress)
        for folder in folders:
            os.replace(scratch / folder.name, folder)
    _write_whole(metadata, _csv(rows))
    _write_whole(collection, json.dumps({"type": "FeatureCollection", "features": items}, indent=1).encode())
    return collection


def _write_all(
    places: list[Place], ids: list[str], size_px: int, folder: Path, on_progress: OnProgress | None
) -> tuple[list[dict[str, Any]], list[tuple[str, str, str, str]]]:
    """Write a scene of each place and its label below `folder`; return the STAC items and the rows of the metadata."""
    num_strips = -(-size_px // BLOCK_PX)
    items, rows = [], []
    for number, (scene_id, place) in enumerate(zip(ids, places, strict=True)):

        def strip_done(strips: int, before: int = number * num_strips) -> None:
            if on_progress is not None:
                on_progress(before + strips, len(ids) * num_strips)

        day, cloud_fraction = _write_scene(
            place,
            size_px,
            folder / "scenes" / f"{scene_id}.tif",
            folder / "scene_labels" / f"{scene_id}.tif",
            strip_done,
        )
        items.append(_item(scene_id, place, day, size_px, cloud_fraction))
        rows.append((scene_id, place.name, _iso(day), f"./scenes/{scene_id}.tif"))
    return items, rows


def _write_chip(place: Place, number: int, size_px: int, features: Path, label_path: Path) -> Acquisition:
    """Write the bands and the label of one chip; return its day."""
    pitch = size_px + _CHIP_GAP_PX
    row0, column0 = number // _CHIPS_PER_ROW * pitch, number % _CHIPS_PER_ROW * pitch
    day_number = number // _CHIPS_PER_DAY
    edge = _edge(place, mixed_seed(1, number), size_px, row0, column0, _CHIPS_AT_EDGE_FRACTION)
    bands, label = generate_window(place, day_number, row0, column0, size_px, size_px, edge)
    profile = _profile(place, size_px, row0, column0)
    for name, band in zip(BAND_NAMES, bands, strict=True):
        _write_whole(features / f"{name}.tif", _encoded(band, profile))
    _write_whole(label_path, _encoded(label, profile))
    return make_acquisition(place, day_number)


def _write_scene(
    place: Place, size_px: int, path: Path, label_path: Path, strip_done: Callable[[int], None]
) -> tuple[Acquisition, float]:
    """Write one scene and its label; return its day and the share of cloud in its recorded pixels."""
    day = make_acquisition(place, _FIRST_SCENE_DAY)
    edge = _edge(place, _FIRST_SCENE_DAY, size_px, 0, 0, _SCENES_AT_EDGE_FRACTION)
    profile = _profile(place, size_px, 0, 0) | {
        "tiled": True,
        "blockxsize": BLOCK_PX,
        "blockysize": BLOCK_PX,
        "BIGTIFF": "IF_SAFER",
    }
    with (
        rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES),
        _scratch_beside(path) as scratch,
        _scratch_beside(label_path) as label_scratch,
    ):
        strips, cog, labels = scratch / "strips.partial", scratch / "cog.partial", label_scratch / "labels.partial"
        raw = profile | {
            "count": 4,
            "dtype": "uint16",
            "nodata": 0,
            "compress": None,
            "photometric": "minisblack",
            "alpha": "no",
            "interleave": "band",
        }
        masks = profile | {"count": 1, "dtype": "uint8", "nodata": NO_DATA_LABEL}
        with rasterio.open(strips, "w", **raw) as image, rasterio.open(labels, "w", **masks) as mask:
            image.descriptions = BAND_NAMES
            image.scales, image.offsets = [REFLECTANCE_SCALE] * len(BAND_NAMES), [0.0] * len(BAND_NAMES)
            image.update_tags(TIFFTAG_DATETIME=day.when.strftime("%Y:%m:%d %H:%M:%S"))
            cloud_fraction = _write_strips(place, size_px, edge, image, mask, strip_done)
        # nodata=0 keeps pixels without data out of the averages of the overviews.
        options = {
            "COMPRESS": "DEFLATE",
            "PREDICTOR": "YES",
            "LEVEL": "4",
            "BLOCKSIZE": str(BLOCK_PX),
            "OVERVIEW_RESAMPLING": "AVERAGE",
        }
        rasterio.shutil.copy(strips, cog, driver="COG", BIGTIFF="IF_SAFER", STATISTICS="NO", **options)
        os.replace(labels, label_path)
        os.replace(cog, path)
    return day, cloud_fraction


def _write_strips(
    place: Place, size_px: int, edge: SwathEdge | None, image: Any, mask: Any, strip_done: Callable[[int], None]
) -> float:
    """Fill both files block by block from the top; return the share of cloud in the recorded pixels."""
    num_cloud = num_recorded = 0
    for strip, row in enumerate(range(0, size_px, BLOCK_PX)):
        for column in range(0, size_px, BLOCK_PX):
            height, width = min(BLOCK_PX, size_px - row), min(BLOCK_PX, size_px - column)
            bands, label = generate_window(place, _FIRST_SCENE_DAY, row, column, height, width, edge)
            image.write(bands, window=Window(column, row, width, height))
            mask.write(label, 1, window=Window(column, row, width, height))
            num_cloud += int(np.count_nonzero(label == CLOUD))
            num_recorded += int(np.count_nonzero(label != NO_DATA_LABEL))
        strip_done(strip + 1)
    return num_cloud / max(num_recorded, 1)


def _edge(place: Place, number: int, size_px: int, row0: int, column0: int, fraction: float) -> SwathEdge | None:
    """Return the edge of the swath, for this share of all images, else None."""
    seed = mixed_seed(place.ground_seed, number, 7)
    if seed / 2**64 >= fraction:
        return None
    return make_swath_edge(seed, size_px, row0, column0)


def _profile(place: Place, size_px: int, row0: int, column0: int) -> dict[str, Any]:
    return {
        "driver": "GTiff",
        "width": size_px,
        "height": size_px,
        "crs": f"EPSG:{place.epsg}",
        "transform": _transform(place, row0, column0),
        "compress": "deflate",
    }


def _transform(place: Place, row0: int, column0: int) -> Affine:
    easting, northing = place.origin_m
    return Affine(GSD_M, 0, easting + GSD_M * column0, 0, -GSD_M, northing - GSD_M * row0)


def _item(scene_id: str, place: Place, day: Acquisition, size_px: int, cloud_fraction: float) -> dict[str, Any]:
    """Return the STAC item of a scene."""
    transform = _transform(place, 0, 0)
    # Counter-clockwise, as GeoJSON asks.
    rows, columns = (0, size_px, size_px, 0, 0), (0, 0, size_px, size_px, 0)
    corners = list(zip(*xy(transform, rows, columns, offset="ul"), strict=True))
    outline = transform_geom(
        f"EPSG:{place.epsg}", "EPSG:4326", {"type": "Polygon", "coordinates": [corners]}, precision=7
    )
    ring = [list(point) for point in outline["coordinates"][0]]
    longitudes, latitudes = [point[0] for point in ring], [point[1] for point in ring]
    bands = [{"name": name, "common_name": common} for name, common in zip(BAND_NAMES, _COMMON_NAMES, strict=True)]
    image = {
        "href": f"./scenes/{scene_id}.tif",
        "type": "image/tiff; application=geotiff; profile=cloud-optimized",
        "roles": ["data"],
        "eo:bands": bands,
        "raster:bands": [
            {"nodata": 0, "data_type": "uint16", "spatial_resolution": GSD_M, "scale": REFLECTANCE_SCALE, "offset": 0}
            for _ in BAND_NAMES
        ],
    }
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [
            "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
            "https://stac-extensions.github.io/projection/v1.1.0/schema.json",
            "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
        ],
        "id": scene_id,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [min(longitudes), min(latitudes), max(longitudes), max(latitudes)],
        "properties": {
            "datetime": _iso(day),
            "location": place.name,
            "gsd": GSD_M,
            "eo:cloud_cover": round(100 * cloud_fraction, 2),
            "proj:epsg": place.epsg,
            "proj:shape": [size_px, size_px],
            "proj:transform": list(transform)[:6],
        },
        "links": [],
        "assets": {"image": image},
    }


def _iso(day: Acquisition) -> str:
    return day.when.strftime("%Y-%m-%dT%H:%M:%SZ")


def _csv(rows: list[tuple[str, str, str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(rows)
    return text.getvalue().encode()


def _encoded(pixels: NDArray[np.uint16] | NDArray[np.uint8], profile: dict[str, Any]) -> bytes:
    """Return a one-band GeoTIFF as bytes."""
    with MemoryFile() as memory:
        with memory.open(**profile, count=1, dtype=pixels.dtype.name) as image:
            image.write(pixels, 1)
        return bytes(memory.getbuffer())


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file so that its name never stands for half of it; no reader takes the temporary name for an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.chmod(name, _readable_mode())
        os.replace(name, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise


def _readable_mode() -> int:
    """Return the mode of an ordinary new file; temporary files are private."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


@contextmanager
def _scratch_beside(path: Path) -> Iterator[Path]:
    """Lend a folder on the file system of `path`, which is gone afterwards whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.stem}.", suffix=".partial", dir=path.parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _refuse_others(folder: Path, names: list[str]) -> None:
    """Raise ConfigError if `folder` holds images that this run does not overwrite: readers would take them for its own.

    Names that start with a dot are remains of a run that was cut off.
    """
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    others = sorted(name for name in found - set(names) if not name.startswith("."))
    if others:
        raise ConfigError(
            f"{folder} holds images of another run ({others[0]} is one of {len(others)}): choose an empty folder"
        )


def _check(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ConfigError(f"{name} is {value}: it must be at least 1")


def _check_first(first_place: int) -> None:
    if first_place < 0:
        raise ConfigError(f"first_place is {first_place}: places are numbered from 0")
