"""Rasters that others made: what they name is not opened, what they claim is not allocated, and good ones are read."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil

from raytrain import storage
from raytrain.errors import DataError
from raytrain.evaluation.masks import Pair, Prediction, Reading, count_pair
from raytrain.evaluation.oddities import Odd
from raytrain.evaluation.pictures import read_picture_mask
from raytrain.imagery import rasters
from raytrain.imagery.scene_files import ALL_BANDS, BandFile, SceneSource
from raytrain.imagery.scene_reader import open_scene
from raytrain.scoring.listing import list_scenes
from tests.webserver import WebServer

CANARY = 777
MEMORY_BYTES = 6 * 2**30
"""Address space of a process that opens files that claim far more; most of it is libraries and arenas of threads."""


@dataclass
class Canaries:
    """A raster outside of the archive, and an address, that nobody has a reason to read."""

    raster: Path
    server: socket.socket

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.getsockname()[1]}"

    def check_silent(self) -> None:
        """Nobody asked; a connection would wait to be accepted, whoever keeps the interpreter busy meanwhile."""
        with pytest.raises(BlockingIOError):
            self.server.accept()


@pytest.fixture
def canaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Canaries]:
    monkeypatch.setenv("GDAL_HTTP_TIMEOUT", "2")  # or a test that fails would wait for ever
    (tmp_path / "elsewhere").mkdir()
    raster = write(tmp_path / "elsewhere" / "canary.tif", CANARY, size=32)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.setblocking(False)
        yield Canaries(raster, server)


def write(path: Path, value: int, size: int = 64, dtype: str = "uint16") -> Path:
    with rasterio.open(path, "w", driver="GTiff", width=size, height=size, count=1, dtype=dtype) as target:
        target.write(np.full((1, size, size), value, dtype))
    return path


def vrt(name: str) -> str:
    return (
        '<VRTDataset rasterXSize="64" rasterYSize="64"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="0">{name}</SourceFilename><SourceBand>1</SourceBand>'
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )


def small(uri: str) -> np.ndarray:
    """Return a raster at half its size, for which GDAL looks for overviews."""
    with storage.gdal_environment(), rasters.open_geotiff(uri, "scene") as source:
        return np.asarray(source.read(1, out_shape=(32, 32)))


def read_scene(path: Path) -> str:
    source = SceneSource(scene_id="x", files={ALL_BANDS: BandFile(uri=str(path))}, identity="1")
    with pytest.raises(DataError) as caught, open_scene(source, ("B02",), "before-04.00") as reader:
        reader.read(0, 0, 8, 8)
    return str(caught.value)


def targets(canaries: Canaries) -> list[str]:
    address = canaries.address
    return [
        str(canaries.raster),
        f"/vsicurl/{address}/latest/meta-data/x.tif",
        f"/vsicurl_streaming/{address}/x.tif",
        f"{address}/latest/meta-data/",
        f"/vsizip//vsicurl/{address}/x.zip/x.tif",
        f"vrt://{canaries.raster}",
        f"GTIFF_DIR:1:{canaries.raster}",
        f'NETCDF:"{canaries.raster}":x',
        f"WMS:{address}",
        ":::BASE:::../elsewhere/canary.tif",
    ]


def test_only_the_formats_that_are_read_and_written_are_there() -> None:
    with rasterio.Env() as environment:
        assert set(environment.drivers()) == storage.GDAL_DRIVERS


@pytest.mark.parametrize("ending", [".tif", ".jp2", ".vrt", ".TIF"])
def test_a_vrt_by_any_name_reads_nothing(tmp_path: Path, canaries: Canaries, ending: str) -> None:
    (tmp_path / "archive").mkdir()
    good = write(tmp_path / "archive" / "good.tif", 5)
    for target in targets(canaries):
        bad = tmp_path / "archive" / f"bad{ending}"
        bad.write_text(vrt(target))
        assert "not a readable" in read_scene(bad)
        with pytest.raises(DataError, match="not a readable"):
            small(str(bad))
        with pytest.raises(DataError, match="not a readable"):
            read_picture_mask(str(bad))
    canaries.check_silent()
    assert (small(str(good)) == 5).all()


def test_a_chip_that_is_a_vrt_reads_nothing(canaries: Canaries) -> None:
    for target in targets(canaries):
        with pytest.raises(DataError, match="B02: not a readable TIFF"):
            rasters.read_chip({"B02": vrt(target).encode()})
    canaries.check_silent()


@pytest.mark.parametrize("driver", ["GTiff", "JP2OpenJPEG"])
def test_overviews_elsewhere_that_a_raster_names_are_not_read(tmp_path: Path, canaries: Canaries, driver: str) -> None:
    for i, target in enumerate(targets(canaries)):
        path = crafted(tmp_path, target, driver, i)
        with WebServer({"/x": path.read_bytes()}) as web:
            storage.use_stores(storage.Stores(stores={web.origin: storage.StoreSettings(private_address=True)}))
            try:
                for uri in (str(path), f"{web.origin}/x"):
                    with pytest.raises(DataError, match="no raster may name another file"):
                        small(uri)
            finally:
                storage.use_stores(storage.Stores())
    canaries.check_silent()


def crafted(folder: Path, target: str, driver: str, i: int) -> Path:
    """Return a raster whose own metadata say that its overviews are `target`."""
    path = write(folder / f"named{i}.tif", 5)
    with rasterio.open(path, "r+") as source:
        source.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=target)
    if driver == "GTiff":
        return path
    copy = folder / f"named{i}.jp2"
    rasterio.shutil.copy(path, copy, driver=driver, WRITE_METADATA="YES", quality=100, reversible=True)
    Path(f"{copy}.aux.xml").unlink(missing_ok=True)
    return copy


NAMES_OF_OVERVIEWS = [
    '<Metadata domain="OVERVIEWS"><MDI key="overview_file">{}</MDI></Metadata>',
    '<Metadata domain="overviews"><MDI key="Overview_File">{}</MDI></Metadata>',
    '<Metadata domain="OVERVIEWS"><MDI key=" OVERVIEW_FILE ">{}</MDI></Metadata>',
    '<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE:">{}</MDI></Metadata>',
    '<Metadata domain="OVERVIEWS" format="json">overview_file={}</Metadata>',
    '<Metadata domain="Overviews" format="json">OVERVIEW_FILE:{}</Metadata>',
]


@pytest.mark.parametrize("metadata", NAMES_OF_OVERVIEWS)
def test_no_spelling_of_the_name_gets_by(tmp_path: Path, canaries: Canaries, metadata: str) -> None:
    path = write(tmp_path / "a.tif", 5)
    Path(f"{path}.aux.xml").write_text(f"<PAMDataset>{metadata.format(canaries.raster)}</PAMDataset>")
    with pytest.raises(DataError, match="no raster may name another file"):
        small(str(path))


@pytest.mark.parametrize("name", ["overview_file", "Overview_File"])
def test_no_spelling_in_the_file_itself_gets_by(tmp_path: Path, canaries: Canaries, name: str) -> None:
    path = write(tmp_path / "a.tif", 5)
    with rasterio.open(path, "r+") as source:
        source.update_tags(ns="OVERVIEWS", **{name: str(canaries.raster)})
    assert not Path(f"{path}.aux.xml").exists()
    with pytest.raises(DataError, match="no raster may name another file"):
        small(str(path))


HELD = [".tif.msk", ".tif.ovr", ".tif.aux.xml", ".tif.msk.aux.xml", ".tif.ovr.msk", ".tfw", ".TAB", ".aux", ".xml"]


def test_a_pipe_beside_a_raster_holds_nobody(tmp_path: Path) -> None:
    """In a process that is ended where it waits: the open itself can't be interrupted."""
    for number, ending in enumerate(HELD):
        path = write(tmp_path / f"{number}.tif", 5)
        if ending[4:8] in (".msk", ".ovr") and len(ending) > 8:
            write(Path(f"{path}{ending[4:8]}"), 255, dtype="uint8")
        os.mkfifo(tmp_path / f"{number}{ending}")
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.test_malicious_rasters", str(tmp_path), "pipes"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for number, ending in enumerate(HELD):
        assert f"DataError {tmp_path}/{number}{ending}: a device or a pipe, expected a" in done.stdout


@pytest.mark.parametrize("ending", [".tif.aux.xml", ".tif.msk.aux.xml", ".xml"])
def test_metadata_beside_a_raster_have_a_size(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / "a.tif", 5)
    write(Path(f"{path}.msk"), 255, dtype="uint8")
    beside = tmp_path / f"a{ending}"
    beside.write_bytes(b"<PAMDataset></PAMDataset>")
    assert (small(str(path)) == 5).all()
    with beside.open("r+b") as file:
        file.truncate(2**24 + 1)
    with pytest.raises(DataError, match="16777217 bytes, expected at most") as caught:
        small(str(path))
    assert caught.value.subject == str(beside)


def pam(target: str) -> str:
    return f'<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{target}</MDI></Metadata></PAMDataset>'


@pytest.mark.parametrize("beside", [".aux.xml", ".msk.aux.xml", ".ovr.aux.xml", ".msk.ovr.aux.xml", ".OVR.aux.xml"])
def test_a_sidecar_sends_nobody_elsewhere(tmp_path: Path, canaries: Canaries, beside: str) -> None:
    for i, target in enumerate(targets(canaries)):
        path = write(tmp_path / f"{i}.tif", 5)
        parts = beside.removesuffix(".aux.xml").split(".")[1:]
        for k in range(len(parts)):
            write(Path(f"{path}.{'.'.join(parts[: k + 1])}"), 255, size=64 >> k, dtype="uint8")
        Path(f"{path}{beside}").write_text(pam(target))
        with pytest.raises(DataError, match="no raster may name another file") as caught:
            small(str(path))
        assert caught.value.subject == f"{path}{beside.removesuffix('.aux.xml')}"
    canaries.check_silent()


@pytest.mark.parametrize("beside", [".msk", ".MSK", ".ovr", ".OVR", ".msk.ovr", ".ovr.msk"])
def test_a_sidecar_of_another_format_is_refused(tmp_path: Path, canaries: Canaries, beside: str) -> None:
    path = write(tmp_path / "a.tif", 5)
    if beside.count(".") == 2:
        write(Path(f"{path}{beside[:4]}"), 255, dtype="uint8")
    Path(f"{path}{beside}").write_text(vrt(str(canaries.raster)))
    with pytest.raises(DataError, match=rf"{beside}: not a GeoTIFF, expected one that is the"):
        small(str(path))


def test_sidecars_of_its_own_still_count(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", 5)
    write(Path(f"{path}.ovr"), 6, size=32)
    Path(f"{path}.aux.xml").write_text('<PAMDataset><Metadata><MDI key="seen">yes</MDI></Metadata></PAMDataset>')
    assert (small(str(path)) == 6).all()
    with storage.gdal_environment(), rasters.open_geotiff(str(path), "scene") as source:
        assert source.tags()["seen"] == "yes"


def test_no_address_is_asked_for_by_a_name_of_gdal(tmp_path: Path, canaries: Canaries) -> None:
    """Even where a name gets as far as GDAL: the file systems of its network answer that there is nothing."""
    for name in (f"/vsicurl/{canaries.address}/x.tif", "/vsis3/bucket/x.tif", "/vsigs/bucket/x.tif"):
        with storage.gdal_environment(), pytest.raises(rasterio.errors.RasterioError):
            rasterio.open(name)
        with pytest.raises(DataError, match=r"no such file|a name that GDAL takes|expected a local path"):
            named(name)
    canaries.check_silent()


def named(name: str) -> None:
    try:
        small(name)
    except storage.uris.ConfigError as error:
        raise DataError(name, str(error)) from error


def tiff(width: int, height: int, *, rows: int = 1, tile: int = 0, bits: int = 16, count: int = 1) -> bytes:
    """Return a deflated TIFF of about 150 bytes that claims all this and has none of its pixels."""
    tags = {256: width, 257: height, 258: bits, 259: 8, 262: 1, 277: count}
    tags |= {322: tile, 323: tile, 324: 0, 325: 0} if tile else {273: 0, 278: rows, 279: 0}
    short = (258, 259, 262, 277)
    entries = b"".join(struct.pack("<HHII", tag, 3 if tag in short else 4, 1, tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def codestream(width: int, height: int, tile: int, count: int = 1) -> bytes:
    """Return a codestream of JPEG 2000 that claims all this."""
    size = struct.pack(">H8IH", 0, width, height, 0, 0, tile, tile, 0, 0, count) + b"\x0f\x01\x01" * count
    coding = b"\xff\x52" + struct.pack(">HBBHBBBBBB", 12, 0, 0, 1, 0, 5, 4, 4, 0, 1)
    quantised = b"\xff\x5c" + struct.pack(">HB", 19, 0x40) + bytes([64] * 16)
    part = b"\xff\x90" + struct.pack(">HHIBB", 10, 0, 14, 0, 1) + b"\xff\x93\xff\xd9"
    return b"\xff\x4f\xff\x51" + struct.pack(">H", len(size) + 2) + size + coding + quantised + part


def boxed(stream: bytes) -> bytes:
    """Return a JPEG 2000 file with a box before its codestream, which holds a smaller one to look at."""
    signature = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
    decoy = codestream(64, 64, 64)
    return signature + struct.pack(">I4s", 8 + len(decoy), b"xml ") + decoy + struct.pack(">I4s", 0, b"jp2c") + stream


SIDE = 2**31 - 1
CLAIMS = {
    "lines.tif": (tiff(SIDE, SIDE), "claims 2147483647 x 2147483647 px"),
    "strip.tif": (tiff(SIDE, SIDE, rows=SIDE), "claims 2147483647 x 2147483647 px"),
    "long.tif": (tiff(16, SIDE), "claims 16 x 2147483647 px"),
    "block.tif": (tiff(30000, 30000, rows=30000), "claims blocks of 30000 x 30000 px, 1717 MiB each"),
    "tile.tif": (tiff(200000, 200000, tile=199984), "claims blocks of 199984 x 199984 px"),
    "blocks.tif": (tiff(200000, 200000, tile=16), "claims 156250000 blocks"),
    "bands.tif": (tiff(64, 64, count=65000), "claims 65000 bands"),
    "one.jp2": (codestream(SIDE, SIDE, SIDE), "claims 2147483647 x 2147483647 px"),
    "tiles.jp2": (codestream(190000, 190000, 750), "in 64516 tiles"),
    "boxed.jp2": (boxed(codestream(190000, 190000, 750)), "in 64516 tiles"),
    "components.jp2": (codestream(1000, 1000, 1000, count=16384), "claims 16384 bands"),
}


def test_what_a_raster_claims_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    """In a process of little address space: without the limits these end it, or are a `MemoryError`."""
    for name, (data, _) in CLAIMS.items():
        (tmp_path / name).write_bytes(data)
    for name in CLAIMS:
        if name.endswith(".tif"):
            write(tmp_path / f"beside-{name}", 5)
            (tmp_path / f"beside-{name}.msk").write_bytes(CLAIMS[name][0])
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.test_malicious_rasters", str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stdout
    for name, (_, expected) in CLAIMS.items():
        if name.endswith(".tif"):
            assert f"scene {name}: DataError {tmp_path / name}: {expected}" in said
            assert f"chip {name}: DataError B02: " in said
            assert f"label {name}: Odd {expected}" in said
            assert f"beside {name}: DataError {tmp_path / f'beside-{name}.msk'}: {expected}" in said
        else:
            assert f"scene {name}: DataError {tmp_path / name}: " in said
            assert expected in said
    peak_mib = int(said.rsplit("peak MiB ", 1)[1])
    assert peak_mib < 600, "what was held while all were refused; 330 MiB are the libraries"


def test_a_chip_larger_than_a_chip_is_refused_by_its_bytes() -> None:
    data = tiff(9000, 9000, tile=1024)
    with pytest.raises(DataError, match=r"B02: (claims 9000 x 9000 px of uint16, 154 MiB|not a readable)"):
        rasters.read_chip({"B02": data})


def test_a_bad_scene_costs_no_other(tmp_path: Path, canaries: Canaries) -> None:
    for name in ("a", "c"):
        write(tmp_path / f"{name}.tif", 5)
    (tmp_path / "b.tif").write_text(vrt(str(canaries.raster)))
    listed = [each for each in list_scenes(str(tmp_path), ("B02",)) if isinstance(each, SceneSource)]
    assert {"a", "b", "c"} <= {each.scene_id for each in listed}
    assert "not a readable GeoTIFF" in read_scene(tmp_path / "b.tif")
    assert (small(str(tmp_path / "c.tif")) == 5).all()


def main(folder: Path) -> None:
    """Read all that is refused, in little address space, and print what was said of each."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    good = write(folder / "good-label.tif", 1, dtype="uint8")
    for name in CLAIMS:
        path = folder / name
        print(f"scene {name}: {said(lambda path=path: small(str(path)))}")
        if name.endswith(".tif"):
            data = path.read_bytes()
            print(f"chip {name}: {said(lambda data=data: rasters.read_chip({'B02': data}))}")
            pair = Pair("x", "place", str(path), (Prediction(str(good)),))
            print(f"label {name}: {said(lambda pair=pair: count_pair(pair, [Reading()], 5))}")
            print(f"beside {name}: {said(lambda name=name: small(str(folder / f'beside-{name}')))}")
    # Not `ru_maxrss`, which begins with what the process had that started this one.
    status = Path("/proc/self/status").read_text()
    print(f"peak MiB {int(status.split('VmHWM:')[1].split()[0]) // 1024}")


def said(operation: object) -> str:
    try:
        operation()  # type: ignore[operator]
    except Odd as error:
        return f"Odd {error.found}"
    except DataError as error:
        return f"DataError {error}"
    return "read"


def read_beside_pipes(folder: Path) -> None:
    """Read the raster beside each pipe, and print what was said of it."""
    for number in range(len(HELD)):
        print(said(lambda number=number: small(str(folder / f"{number}.tif"))), flush=True)


if __name__ == "__main__":
    (read_beside_pipes if sys.argv[2:] == ["pipes"] else main)(Path(sys.argv[1]))
