"""A store's passing faults change no pixel of a scene, and are no fault of the scene."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from raytrain import storage
from raytrain.errors import DataError
from raytrain.imagery.scene_files import BandFile, SceneSource
from raytrain.imagery.scene_reader import open_scene
from raytrain.storage import Retries
from tests.store.faults import (
    ANSWER_LOST,
    INTERNAL_ERROR,
    NOT_FOUND,
    RESET,
    RESET_MID_BODY,
    SHORT,
    TRUNCATED,
    UNAVAILABLE,
    Fault,
    FaultProxy,
)

FAULTS = [UNAVAILABLE, INTERNAL_ERROR, NOT_FOUND, RESET, ANSWER_LOST, RESET_MID_BODY, TRUNCATED, SHORT]


@pytest.fixture
def pixels() -> NDArray[np.uint16]:
    return np.random.default_rng(0).integers(1, 12000, (1024, 1024)).astype(np.uint16)


@pytest.fixture
def source(s3: str, tmp_path: Path, pixels: NDArray[np.uint16]) -> SceneSource:
    path = tmp_path / "B02.tif"
    profile = {"driver": "GTiff", "count": 1, "height": 1024, "width": 1024, "dtype": "uint16", "tiled": True}
    transform = rasterio.Affine(10, 0, 3e5, 0, -10, 5e6)
    with rasterio.open(path, "w", crs="EPSG:32633", transform=transform, **profile) as target:
        target.write(pixels, 1)
    uri = storage.join(s3, tmp_path.name, path.name)
    storage.write_bytes(uri, path.read_bytes())
    return SceneSource(scene_id="scene", files={"B02": BandFile(uri=uri)}, identity="")


@pytest.fixture
def proxy(s3: str, source: SceneSource, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    monkeypatch.setattr(storage.retries, "RETRIES", Retries(first_wait_s=0.01))
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.mark.parametrize("when", ["open", "read"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_passing_fault_changes_nothing(
    proxy: FaultProxy, source: SceneSource, pixels: NDArray[np.uint16], fault: Fault, when: str
) -> None:
    if when == "open":
        proxy.inject(fault, times=2, match="B02.tif")
    with open_scene(source, ["B02"], "before-04.00") as reader:
        if when == "read":
            proxy.inject(fault, times=2, match="B02.tif")
        np.testing.assert_array_equal(reader.read(0, 0, 1024, 1024).pixels[0], pixels)


def test_a_file_that_is_truncated_in_the_store_is_given_up(proxy: FaultProxy, source: SceneSource) -> None:
    uri = source.files["B02"].uri
    storage.write_bytes(uri, storage.read_bytes(uri)[:1_000_000])
    before = len(proxy.requests)
    with (
        pytest.raises(DataError, match="scene from row 0 on is not a readable GeoTIFF, perhaps truncated"),
        open_scene(source, ["B02"], "before-04.00") as reader,
    ):
        reader.read(0, 0, 1024, 1024)
    assert len(proxy.requests) - before < 20
