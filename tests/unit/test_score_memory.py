"""Memory of scoring depends on the width of a block alone, and what is stated beforehand is enough and not too much."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from raytrain.config import ScoreSettings, change
from raytrain.scoring.estimate import RASTER_BYTES, WASTE, Calibration, Sample, unit_bytes, worker_bytes
from raytrain.scoring.layers import Layers
from raytrain.storage import GDAL_CACHE_BYTES, gdal

BANDS = ("B02", "B03", "B04", "B08")
SETTINGS = ScoreSettings(
    window_px=128, overlap_px=32, block_px=1536, baseline="before-04.00", datetime="2022-05-06T00:00:00Z"
)
MIB = 2**20
CACHE_BYTES = 8 * MIB
"""Of GDAL: so that small scenes are larger than it, as scenes are larger than what it has in a scoring."""
ONE_ARENA = {**os.environ, "MALLOC_ARENA_MAX": "1"}
"""glibc has an arena for each thread, up to 8 a CPU: what these keep differs by more than what is looked for."""


class Brightness:
    """Nets that take no memory to speak of: a probability that is the first band's."""

    bands, network_s = BANDS, 0.0

    def layer_kinds(self, bands: Sequence[str]) -> tuple[str, ...]:
        return ("probability",)

    def usable(self, bands: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return ("first",), ()

    def layers(
        self, windows: Sequence[NDArray[np.uint16]], valid: Sequence[NDArray[np.bool_]], bands: Sequence[str]
    ) -> list[NDArray[np.float32]]:
        return [window[:1].astype(np.float32) / np.float32(65535) for window in windows]


def write_scene(path: Path, size: int) -> None:
    """Write a scene of noise, tile by tile."""
    generator = np.random.default_rng(0)
    profile = {"crs": "EPSG:32636", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 4e6), "nodata": 0, "tiled": True}
    with rasterio.open(
        path, "w", driver="GTiff", dtype="uint16", count=4, height=size, width=size, interleave="pixel", **profile
    ) as target:
        for i, band in enumerate(BANDS, start=1):
            target.set_band_description(i, band)
        for row in range(0, size, 256):
            rows = min(256, size - row)
            window = rasterio.windows.Window(0, row, size, rows)
            target.write(generator.integers(1, 9000, (4, rows, size)).astype(np.uint16), window=window)


def score(source: str, target: str) -> None:
    """Score a scene in this process, one unit after the other, and print its memory before and at most."""
    from raytrain.scoring.destination import Scoring
    from raytrain.scoring.listing import list_scenes
    from raytrain.scoring.perform import perform
    from raytrain.scoring.schedule import Schedule
    from raytrain.scoring.units import Unit
    from raytrain.scoring.work import Work

    gdal.GDAL_CACHE_BYTES = CACHE_BYTES
    work = Work(target, Scoring(ensemble="e", members=("first",), settings=SETTINGS), Brightness())  # type: ignore[arg-type]
    units = [Unit(kind="scene", scene=scene) for scene in list_scenes(source, BANDS)]  # type: ignore[arg-type]
    schedule = Schedule(iter([units]), len(units))
    before, kinds = peak_bytes(), []
    while not schedule.is_over:
        task = schedule.take(alone=True)
        assert task is not None
        kinds.append(task.unit.kind)
        schedule.finished(task, perform(task.unit, work))
    print(json.dumps({"before": before, "peak": peak_bytes(), "kinds": kinds}))


def peak_bytes() -> int:
    """Return the most resident memory of this process so far; `ru_maxrss` has that of who started it, too."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def test_scene_of_four_times_the_pixels_takes_no_more_memory_and_both_what_is_stated(tmp_path: Path) -> None:
    found = {}
    for size in (1500, 3000):
        write_scene(tmp_path / f"{size}.tif", size)
        command = [sys.executable, __file__, str(tmp_path / f"{size}.tif"), str(tmp_path / "out")]
        done = subprocess.run(command, env=ONE_ARENA, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found[size] = json.loads(done.stdout)
    assert found[1500]["kinds"] == ["scene"]
    assert found[3000]["kinds"] == ["scene", *["block"] * 4, "assembly"]
    assert found[3000]["peak"] < 1.1 * found[1500]["peak"]
    for size, each in found.items():
        unit = unit_bytes(Sample(size, size, 0), len(BANDS), Layers(), SETTINGS)
        stated = worker_bytes(Calibration(0, each["before"]), unit, 1) - GDAL_CACHE_BYTES + CACHE_BYTES
        assert each["peak"] <= stated
        assert each["peak"] > each["before"] + unit / 2, "much more is stated than is taken"


def test_cache_of_gdal_is_limited_as_long_as_any_scene_is_open() -> None:
    from rasterio.env import get_gdal_config

    one, other = gdal.gdal_environment(), gdal.gdal_environment()
    one.__enter__()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(other.__enter__).result()
        one.__exit__(None, None, None)
        assert pool.submit(get_gdal_config, "GDAL_CACHEMAX").result() == GDAL_CACHE_BYTES
        pool.submit(other.__exit__, None, None, None).result()
    assert get_gdal_config("GDAL_CACHEMAX") == GDAL_CACHE_BYTES


def test_stated_memory_counts_what_a_worker_holds() -> None:
    calibration, masks = Calibration(window_s=1.0, resident_bytes=900 * MIB), Layers()
    local = Sample(10980, 10980, 10**9)
    unit = unit_bytes(local, 4, masks, SETTINGS)
    assert worker_bytes(calibration, unit, 2) == 900 * MIB + GDAL_CACHE_BYTES + RASTER_BYTES + 2 * unit
    wide, narrow = (unit_bytes(Sample(size, size, 0), 4, masks, SETTINGS) for size in (4 * 1536, 1536))
    assert wide == narrow
    remote = Sample(10980, 10980, 10**9, num_remote_files=4)
    assert unit_bytes(remote, 4, masks, SETTINGS) == unit + 4 * 40 * MIB
    strip_px = 128 * 1536
    everything = Layers(probability="uint8", disagreement="uint8")
    assert unit_bytes(local, 4, everything, SETTINGS) > unit + WASTE * 12 * strip_px
    chip, settings = Sample(512, 512, 10**6, is_small=True), ScoreSettings()
    assert unit_bytes(chip, 4, masks, settings) > 8 * 512**2 * 9
    assert unit_bytes(chip, 4, masks, change(settings, {"windows_per_pass": 64})) > 64 * 512**2 * (9 + 4)
    names = tuple(f"m{i}" for i in range(8))
    members = Layers(members="float32", member_names=names)
    assert unit_bytes(local, 4, members, SETTINGS) > unit + WASTE * 8 * 12 * strip_px
    assert unit_bytes(chip, 4, members, settings) > unit_bytes(chip, 4, masks, settings) + 8 * 4 * 4 * 512**2
    assert unit_bytes(chip, 4, Layers(member_names=names), settings) == unit_bytes(chip, 4, masks, settings)


@pytest.mark.parametrize("kind", ["none", "uint8", "float32"])
def test_stated_disk_holds_a_scene_twice(kind: str) -> None:
    from raytrain.scoring.estimate import disk_bytes

    layers = Layers(probability=kind)  # type: ignore[arg-type]
    stated = disk_bytes(Sample(3000, 2000, 0, copied_bytes=77), layers)
    assert stated == 2 * layers.temporary_bytes(3000, 2000) + 77


if __name__ == "__main__":
    score(*sys.argv[1:])
