"""Windows of remote rasters: the same pixels as of a local file, by any number of threads, and errors as they are."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.windows import Window

from raytrain import storage
from raytrain.errors import DataError, StoreOutOfReach
from raytrain.imagery import rasters
from raytrain.storage import Retries, Stores, StoreSettings
from tests.webserver import Asked, WebServer

SIZE_PX = 700


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(storage.retries, "RETRIES", Retries(attempts=3, first_wait_s=0.01, longest_wait_s=0.01))
    yield
    storage.use_stores(Stores())


def made(path: Path, seed: int, driver: str = "COG", **options: Any) -> NDArray[np.uint16]:
    pixels = np.random.default_rng(seed).integers(1, 4000, (2, SIZE_PX, SIZE_PX)).astype(np.uint16)
    shape = {"width": SIZE_PX, "height": SIZE_PX, "count": 2, "dtype": "uint16"}
    with rasterio.open(path, "w", driver=driver, **shape, **options) as target:
        target.write(pixels)
    return pixels


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, NDArray[np.uint16]]]:
    """Files by their path on the server, with their pixels."""
    folder = tmp_path_factory.mktemp("images")
    found = {}
    for i in range(3):
        pixels = made(folder / f"{i}.tif", i, compress="deflate", blocksize=128, interleave="band" if i else "pixel")
        found[f"/{i}.tif"] = ((folder / f"{i}.tif").read_bytes(), pixels)
    pixels = made(folder / "a.jp2", 7, "JP2OpenJPEG", quality=100, reversible=True, blockxsize=128, blockysize=128)
    found["/a.jp2"] = ((folder / "a.jp2").read_bytes(), pixels)
    return found


@pytest.fixture
def web(images: dict[str, tuple[bytes, NDArray[np.uint16]]]) -> Iterator[WebServer]:
    with WebServer({path: data for path, (data, _) in images.items()}) as web:
        storage.use_stores(Stores(stores={web.origin: StoreSettings(private_address=True)}))
        yield web


def read_all(uri: str) -> None:
    """Read all pixels as whoever scores a scene does."""
    with storage.gdal_environment(), rasters.open_geotiff(uri, "scene") as source:
        try:
            source.read()
        except rasterio.errors.RasterioError as error:
            raise rasters.unreadable(source.name, "scene", error) from error


def in_small_blocks(monkeypatch: pytest.MonkeyPatch, block_bytes: int = 1 << 16) -> None:
    monkeypatch.setattr(storage, "open_ranged", partial(storage.open_ranged, block_bytes=block_bytes))


@pytest.mark.parametrize("path", ["/0.tif", "/1.tif", "/a.jp2"])
def test_windows_have_the_pixels_of_the_file(
    web: WebServer, images: dict[str, tuple[bytes, NDArray[np.uint16]]], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_small_blocks(monkeypatch)
    data, pixels = images[path]
    with storage.gdal_environment(), rasters.open_geotiff(f"{web.origin}{path}?signed=1", "scene") as source:
        for row, column in ((0, 0), (300, 200), (SIZE_PX - 90, 17)):
            window = Window(column, row, 80, 90)
            assert (source.read(window=window) == pixels[:, row : row + 90, column : column + 80]).all()
        assert (source.read() == pixels).all()
    assert {each.target for each in web.asked} == {f"{path}?signed=1"}, "nothing is looked for beside it"
    assert sum(each.method == "GET" for each in web.asked) <= len(data) / (1 << 16) + 20


def test_a_window_takes_a_small_part_of_a_file(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    in_small_blocks(monkeypatch)
    with storage.gdal_environment(), rasters.open_geotiff(f"{web.origin}/1.tif", "scene") as source:
        source.read(1, window=Window(0, 0, 64, 64))
    # Two at the start, one with the window's tile, and one that may have been asked ahead.
    assert sum(each.method == "GET" for each in web.asked) <= 4


def test_many_threads_open_read_and_close_the_same_and_other_files(
    web: WebServer, images: dict[str, tuple[bytes, NDArray[np.uint16]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_small_blocks(monkeypatch)
    start = threading.Barrier(8)

    def work(number: int) -> None:
        draw = random.Random(number)
        start.wait()
        for _ in range(12):
            path = draw.choice(list(images))
            with storage.gdal_environment(), rasters.open_geotiff(web.origin + path, "scene") as source:
                for _ in range(3):
                    row, column = draw.randrange(SIZE_PX - 100), draw.randrange(SIZE_PX - 100)
                    found = source.read(window=Window(column, row, 100, 100))
                    assert (found == images[path][1][:, row : row + 100, column : column + 100]).all()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


@pytest.mark.parametrize(("status", "kind"), [(403, PermissionError), (404, FileNotFoundError), (503, StoreOutOfReach)])
@pytest.mark.parametrize("asked_before", [0, 2])
def test_what_the_server_says_is_the_error_in_opening_and_in_reading(
    web: WebServer, status: int, kind: type[Exception], asked_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_small_blocks(monkeypatch, 1 << 15)

    def answered(asked: Asked) -> tuple[int, dict[str, str], bytes]:
        return status, {}, b""

    good = [partial(WebServer.answer, WebServer(dict(web.files)))] * asked_before
    web.answers["/1.tif"] = [*good, *[answered] * 100]
    with pytest.raises(kind, match=rf"{web.origin}/1\.tif: ") as caught:
        read_all(f"{web.origin}/1.tif?signature=verysecret")
    assert "verysecret" not in str(caught.value)
    most = asked_before + 2 * {403: 1, 404: storage.objects.LISTED_ATTEMPTS, 503: 3}[status]
    assert len(web.asked) <= most, "after an error nothing more is asked, but what was asked ahead"


def test_what_can_not_be_read_is_named_by_its_url_without_the_query(web: WebServer) -> None:
    good = web.files["/1.tif"]
    for damaged in (b"", b"<VRTDataset/>", b"P5 2 2 255\n\x00\x00\x00\x00", good[:3000], good[: len(good) // 2]):
        web.files["/1.tif"] = damaged
        with pytest.raises(DataError, match="scene") as caught:
            read_all(f"{web.origin}/1.tif?signature=verysecret")
        assert caught.value.subject == f"{web.origin}/1.tif"
        assert "verysecret" not in str(caught.value)
        assert "vsipython" not in str(caught.value)


def test_nothing_but_geotiff_and_jpeg_2000_is_opened(tmp_path: Path, web: WebServer) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "x.png")
    with rasterio.open(tmp_path / "x.tif", "w", driver="GTiff", width=8, height=8, count=1, dtype="uint8") as target:
        target.write(np.zeros((1, 8, 8), np.uint8))
    (tmp_path / "x.vrt").write_text(
        '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="0">{tmp_path}/x.tif</SourceFilename><SourceBand>1</SourceBand>'
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    for name in ("x.png", "x.vrt"):
        web.files[f"/{name}"] = (tmp_path / name).read_bytes()
        for uri in (str(tmp_path / name), f"{web.origin}/{name}"):
            with (
                pytest.raises(DataError, match="not a readable GeoTIFF"),
                storage.gdal_environment(),
                rasters.open_geotiff(uri, "image"),
            ):
                pass
    with storage.gdal_environment(), rasters.open_geotiff(str(tmp_path / "x.tif"), "image") as source:
        assert source.shape == (8, 8)
