"""Scenes of folders, STAC documents and lists: each once, in order, with the files and the evidence that it has."""

from __future__ import annotations

import json
import os
import re
import threading
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from rasterio import Affine

from raytrain import storage
from raytrain.config import ScoreSettings
from raytrain.errors import EXIT_CALLERS_MISTAKE, ConfigError, DataError, RaytrainError, StoreOutOfReach
from raytrain.imagery.scene_files import ALL_BANDS, SceneSource
from raytrain.imagery.scene_reader import open_scene
from raytrain.scoring import listed_stac, listing, planning
from raytrain.scoring.ledger import Known, standing_at
from raytrain.scoring.listed import Unlisted, resolved
from raytrain.scoring.listing import list_scenes
from raytrain.scoring.plan import write_plan
from raytrain.scoring.planning import Listing
from raytrain.scoring.seen import SeenNames
from raytrain.scoring.units import Problem, shown_source
from raytrain.storage import Stores, StoreSettings
from raytrain.tiles.selection import Selection
from tests.webserver import WebServer

BANDS = ("B02", "B03", "B04", "B08")
PRODUCT = "S2B_MSIL2A_20220413T150759_N0400_R025_T33XWJ_20220414T082126"


def listed(uri: str | Path, bands: Sequence[str] = BANDS) -> dict[str, SceneSource]:
    found = list(list_scenes(str(uri), bands))
    assert not [each for each in found if isinstance(each, DataError)]
    return {each.scene_id: each for each in found if isinstance(each, SceneSource)}


def problems(uri: str | Path, bands: Sequence[str] = BANDS) -> list[str]:
    return [str(each) for each in list_scenes(str(uri), bands) if isinstance(each, DataError)]


def only(uri: str | Path, bands: Sequence[str] = BANDS) -> SceneSource:
    (scene,) = listed(uri, bands).values()
    return scene


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.fsencode(name))
    return folder


def put(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def names_of(scene: SceneSource) -> dict[str, str]:
    return {band: storage.name_of(file.uri) for band, file in scene.files.items()}


# Folders


@pytest.mark.parametrize("below", ["", "scenes/"])
def test_a_file_is_a_scene(tmp_path: Path, below: str) -> None:
    touch(tmp_path, f"{below}b.tif", f"{below}a.TIF", f"{below}c.tiff", f"{below}notes.txt")
    found = listed(tmp_path)
    assert list(found) == ["a", "b", "c"]
    assert found["a"].files[ALL_BANDS].uri == str(tmp_path / below / "a.TIF")
    assert found["a"].identity != found["b"].identity


def test_files_beside_the_folder_of_scenes_are_none(tmp_path: Path) -> None:
    assert list(listed(touch(tmp_path, "scenes/a.tif", "mosaic.tif", "labels/a.tif", "x/B02.tif"))) == ["a"]


def test_a_folder_of_bands_is_a_scene(tmp_path: Path) -> None:
    touch(
        tmp_path, "one/B02.tif", "one/B8A.tif", "one/SCL.tif", "two/2024/7/S2_x/x_B02.tif", "two/2024/7/S2_x/x.b03.TIF"
    )
    found = listed(tmp_path)
    assert list(found) == ["one", "two_2024_7_S2_x"]
    assert names_of(found["one"]) == {"B02": "B02.tif"}
    assert names_of(found["two_2024_7_S2_x"]) == {"B02": "x_B02.tif", "B03": "x.b03.TIF"}


def test_acquisitions_that_share_a_folder_are_a_scene_each(tmp_path: Path) -> None:
    days = [f"T33UUP_202{day}T102021" for day in ("40531", "40610")]
    touch(tmp_path, *(f"T33UUP/{day}_{band}.tif" for day in days for band in BANDS))
    touch(tmp_path, *(f"2024/HLS.S30.{tile}.v2.0.{band}.tif" for tile in ("T33UUP", "T33UVP") for band in BANDS))
    touch(tmp_path, "2024/SCL.tif")
    found = listed(tmp_path)
    hls = ["2024_HLS.S30.T33UUP.v2.0", "2024_HLS.S30.T33UVP.v2.0"]
    assert list(found) == [*hls, *days]
    for scene_id in (*hls, *days):
        name = scene_id.removeprefix("2024_")
        assert len(found[scene_id].files) == 4
        assert all(file.startswith(name) for file in names_of(found[scene_id]).values()), "no band of the other day"
    (tmp_path / f"T33UUP/{days[0]}_B08.tif").unlink()
    assert list(names_of(listed(tmp_path)[days[0]])) == ["B02", "B03", "B04"], "not that of the other day"


def test_the_id_of_a_folder_is_its_path(tmp_path: Path) -> None:
    below = [f"tiles/33/U/{square}/2024/5/31/0" for square in ("UP", "VP")]
    touch(tmp_path, *(f"{each}/R10m/B02.jp2" for each in below), *(f"{each}/R20m/B8A.jp2" for each in below))
    touch(tmp_path, *(f"{each}/{name}" for each in below for name in ("qi/MSK_DETFOO_B02.jp2", "preview/B02.jp2")))
    touch(tmp_path, "x/10m/B02.tif", "x/60m/B02.tif", "x/20m/B8A.tif", "x/B03.tif", "x/MSK_CLOUD_B03.tif")
    found = listed(tmp_path, (*BANDS, "B8A"))
    assert list(found) == ["tiles_33_U_UP_2024_5_31_0", "tiles_33_U_VP_2024_5_31_0", "x"]
    assert [storage.name_of(scene.files["B8A"].uri) for scene in found.values()] == ["B8A.jp2", "B8A.jp2", "B8A.tif"]
    assert found["x"].files["B02"].uri == str(tmp_path / "x/10m/B02.tif")
    assert found["x"].files["B03"].uri == str(tmp_path / "x/B03.tif")


def test_the_granules_of_an_old_product_are_a_scene_each(tmp_path: Path) -> None:
    product = "S2A_OPER_PRD_MSIL1C_PDMC_20160605"
    touch(
        tmp_path, *(f"deep/{product}.SAFE/GRANULE/{tile}/IMG_DATA/{tile}_B02.jp2" for tile in ("L1C_T33UUP", "L1C_T33"))
    )
    assert sorted(listed(tmp_path)) == [f"{product}_L1C_T33", f"{product}_L1C_T33UUP"]
    assert sorted(listed(tmp_path / f"deep/{product}.SAFE")) == sorted(listed(tmp_path))


def test_hidden_files_are_none(tmp_path: Path) -> None:
    touch(tmp_path, "x/._B02.tif", "x/B02.tif", "._a.tif", "a.tif", ".trash/b.tif", "y/.old/B02.tif")
    found = listed(tmp_path)
    assert sorted(found) == ["a", "x"]
    assert names_of(found["x"]) == {"B02": "B02.tif"}
    touch(tmp_path, "scenes/._c.tif")
    assert sorted(listed(tmp_path)) == ["a", "x"], "a hidden file makes no folder of scenes"


def test_files_in_subfolders_are_scenes_where_no_bands_are(tmp_path: Path) -> None:
    touch(tmp_path, "c.tif", "2023/a.tif", "2024/07/b.tif", "S2X/B02.tif", "S2X/TCI.tif", "S2X/R20m/SCL.tif", "d/c.tif")
    found = [each for each in list_scenes(str(tmp_path), BANDS) if isinstance(each, SceneSource)]
    assert [each.scene_id for each in found] == ["a", "b", "S2X", "c"]
    assert problems(tmp_path) == [f"{tmp_path}/d/c.tif: a second scene of the id c: the first counts"]
    assert found[0].files[ALL_BANDS].uri == str(tmp_path / "2023/a.tif")


def test_outputs_below_an_archive_are_no_scenes(tmp_path: Path) -> None:
    touch(tmp_path, "a.tif", "masks/a.tif", "masks/probability/a.tif", "masks2/b.tif")
    found = list(list_scenes(str(tmp_path), BANDS, outputs=str(tmp_path / "masks")))
    assert [each.scene_id for each in found if isinstance(each, SceneSource)] == ["a", "b"]
    assert len(found) == 2


def test_a_folder_of_other_bands_is_a_problem_of_its_own(tmp_path: Path) -> None:
    touch(tmp_path, "a/B02.tif", "b/B11.tif", "b/b12.tif", "c/B02.tif")
    found = list(list_scenes(str(tmp_path), BANDS))
    assert [each.scene_id if isinstance(each, SceneSource) else str(each) for each in found] == [
        "a",
        "b: none of the bands B02, B03, B04, B08; found B11, B12",
        "c",
    ]


def test_the_bands_of_a_folder_are_taken_together_whatever_lies_between(tmp_path: Path) -> None:
    touch(tmp_path, "x/B02.tif", "x/C/B02.tif", "x/Q/deep/z.tif", "x/R20m/B8A.tif", "x/b03.tif")
    found = listed(tmp_path, (*BANDS, "B8A"))
    assert sorted(found) == ["x", "x_C", "z"]
    assert names_of(found["x"]) == {"B02": "B02.tif", "B03": "b03.tif", "B8A": "B8A.tif"}


def test_a_product_of_esa_is_a_scene_with_its_finest_bands(tmp_path: Path) -> None:
    images = f"{PRODUCT}.SAFE/GRANULE/L2A_T33XWJ_A026649_20220413T150756/IMG_DATA"
    touch(
        tmp_path,
        f"{images}/R10m/T33XWJ_20220413T150759_B02_10m.jp2",
        f"{images}/R10m/T33XWJ_20220413T150759_TCI_10m.jp2",
        f"{images}/R20m/T33XWJ_20220413T150759_B02_20m.jp2",
        f"{images}/R20m/T33XWJ_20220413T150759_B8A_20m.jp2",
        f"{images}/R60m/T33XWJ_20220413T150759_B8A_60m.jp2",
        f"{images}/R20m/T33XWJ_20220413T150759_SCL_20m.jp2",
        f"{PRODUCT}.SAFE/GRANULE/L2A_T33XWJ_A026649_20220413T150756/QI_DATA/MSK_DETFOO_B03.jp2",
    )
    scene = only(tmp_path, ("B8A", "B02", "B03"))
    assert scene.scene_id == PRODUCT
    assert list(names_of(scene).items()) == [
        ("B8A", "T33XWJ_20220413T150759_B8A_20m.jp2"),
        ("B02", "T33XWJ_20220413T150759_B02_10m.jp2"),
    ]
    assert scene.processing_baseline == "04.00"
    assert only(tmp_path / f"{PRODUCT}.SAFE", ("B8A", "B02", "B03")) == scene, "the product itself may be given"


def test_the_finest_file_of_a_band_is_taken_whatever_its_name(tmp_path: Path) -> None:
    touch(tmp_path, "x/a_B02_60m.tif", "x/a.B02_10m.tif", "x/a-B02_20m.tif", "x/a_B02_10m.jp2")
    assert names_of(only(tmp_path)) == {"B02": "a.B02_10m.tif"}


def test_of_twins_the_geotiff_is_taken(tmp_path: Path) -> None:
    assert names_of(only(touch(tmp_path, "x/B02.jp2", "x/B02.tif"))) == {"B02": "B02.tif"}


def test_resolution_folders_belong_to_the_scene_above(tmp_path: Path) -> None:
    scene = only(touch(tmp_path, "x/R10m/B02.jp2", "x/R20m/B02.jp2", "x/R20m/B8A.jp2"), ("B02", "B8A"))
    assert scene.scene_id == "x"
    assert scene.files["B02"].uri.endswith("R10m/B02.jp2")


def test_names_that_are_no_names_everywhere_are_problems(tmp_path: Path) -> None:
    touch(tmp_path, "a b.tif", "good.tif", "ünfug/B02.tif", "B02.tif")
    text = problems(tmp_path)
    assert text[0].startswith(f"{tmp_path / 'B02.tif'}: a file of one band right in the archive")
    assert text[1].startswith("a b: an id that is no plain name")
    assert text[2].startswith("ünfug: an id that is no plain name")


def test_a_folder_of_other_rasters_below_scenes_is_a_problem(tmp_path: Path) -> None:
    touch(tmp_path, "scenes/a.tif", "scenes/2024/b.tif", "scenes/2024/c.tif")
    assert problems(tmp_path) == [
        f"{tmp_path}/scenes/2024/b.tif: lies deeper than scenes/<id>.tif, in a folder of 2 rasters none of which "
        "names a band"
    ]


@pytest.mark.parametrize("names", [[], ["readme.md"], [".old/x.tif", "qi/x.tif"]])
def test_an_archive_without_scenes_is_the_callers_mistake(tmp_path: Path, names: list[str]) -> None:
    touch(tmp_path, *names)
    with pytest.raises(ConfigError, match=r"no scenes found \(expected <id>.tif"):
        list(list_scenes(str(tmp_path), BANDS))


def test_the_second_scene_of_an_id_is_a_problem(tmp_path: Path) -> None:
    touch(tmp_path, "a.tif", "a.tiff", "a/B02.tif", "b.tif")
    found = list(list_scenes(str(tmp_path), BANDS))
    assert [each.scene_id for each in found if isinstance(each, SceneSource)] == ["a", "b"]
    assert len(problems(tmp_path)) == 2
    assert all(text.startswith(str(tmp_path)) for text in problems(tmp_path))
    assert all(text.endswith(": a second scene of the id a: the first counts") for text in problems(tmp_path))


def test_the_identity_changes_when_a_band_does(tmp_path: Path) -> None:
    touch(tmp_path, "x/B02.tif", "x/B03.tif", "x/B11.tif")
    before = only(tmp_path).identity
    assert only(tmp_path).identity == before
    assert only(tmp_path, ("B02",)).identity != before
    (tmp_path / "x/B11.tif").write_bytes(b"changed, and of no use here")
    assert only(tmp_path).identity == before
    (tmp_path / "x/B03.tif").write_bytes(b"changed")
    assert only(tmp_path).identity != before


def test_a_store_lists_the_same_scenes_as_a_folder(s3: str, tmp_path: Path) -> None:
    names = [
        "scenes/a.tif",
        "scenes/b/B02.tif",
        "scenes/b/B03.jp2",
        f"scenes/{PRODUCT}.SAFE/GRANULE/g/IMG_DATA/B04.jp2",
    ]
    touch(tmp_path, *names)
    uri = storage.join(s3, tmp_path.name)
    for name in names:
        storage.write_bytes(storage.join(uri, name), name.encode())
    here, there = listed(tmp_path), listed(uri)
    assert sorted(here) == sorted(there)
    for scene_id, scene in here.items():
        assert names_of(scene) == names_of(there[scene_id])
    text = put(tmp_path / "list.txt", "\n".join(file.uri for file in there["a"].files.values()))
    assert only(text).identity == there["a"].identity, "whether it is listed in a folder or in a list"


# STAC: an item of each kind, as the catalogues write them.

COG, JP2 = "image/tiff; application=geotiff; profile=cloud-optimized", "image/jp2"
CHECKED = {"file:checksum": "1220abcd"}
COMMON = {"B02": "blue", "B03": "green", "B04": "red", "B08": "nir"}


def make_item(assets: dict[str, Any], item_id: str = "scene", **properties: Any) -> dict[str, Any]:
    properties = {"datetime": "2023-07-01T10:46:30.262000Z"} | properties
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": item_id,
        "properties": properties,
        "geometry": None,
        "links": [],
        "assets": {key: asset | CHECKED for key, asset in assets.items()},
    }


def earth_search_v1(collection: str, *, applied: bool) -> dict[str, Any]:
    """An item of sentinel-2-l2a (values corrected, offset named all the same) or sentinel-2-c1-l2a."""
    folder = (
        "https://sentinel-cogs.s3.us-west-2.amazonaws.com/sentinel-s2-l2a-cogs/31/U/FU/2023/7/S2A_31UFU_20230701_0_L2A"
    )
    assets: dict[str, Any] = {}
    for band, common in COMMON.items():
        facts = {
            "eo:bands": [{"name": common, "common_name": common, "center_wavelength": 0.5}],
            "gsd": 10,
            "proj:transform": [10, 0, 600000, 0, -10, 5900040],
            "raster:bands": [
                {"nodata": 0, "data_type": "uint16", "spatial_resolution": 10, "scale": 0.0001, "offset": -0.1}
            ],
            "roles": ["data", "reflectance"],
        }
        original = f"s3://sentinel-s2-l2a/tiles/31/U/FU/2023/7/1/0/R10m/{band}.jp2"
        assets[f"{common}-jp2"] = facts | {"href": original, "type": JP2}
        assets[common] = facts | {"href": f"{folder}/{band}.tif", "type": COG}
    assets["nir08"] = {
        "href": f"{folder}/B8A.tif",
        "type": COG,
        "eo:bands": [{"name": "nir08", "common_name": "nir08"}],
        "roles": ["data", "reflectance"],
    }
    assets["visual"] = {
        "href": f"{folder}/TCI.tif",
        "type": COG,
        "eo:bands": [{"name": name, "common_name": name} for name in ("red", "green", "blue")],
        "roles": ["visual"],
    }
    assets["thumbnail"] = {"href": f"{folder}/thumbnail.jpg", "type": "image/jpeg", "roles": ["thumbnail"]}
    flags = {"earthsearch:boa_offset_applied": applied, "s2:processing_baseline": "05.09"}
    return make_item(assets, "S2A_31UFU_20230701_0_L2A", **flags) | {"collection": collection}


def earth_search_v0(*, flag: bool) -> dict[str, Any]:
    folder = (
        "https://sentinel-cogs.s3.us-west-2.amazonaws.com/sentinel-s2-l2a-cogs/40/K/ED/2023/1/S2B_40KED_20230103_0_L2A"
    )
    visible = [{"name": name} for name in ("B04", "B03", "B02")]
    assets: dict[str, Any] = {
        "thumbnail": {"href": "https://roda.sentinel-hub.com/preview.jpg", "type": "image/png", "roles": ["thumbnail"]},
        "overview": {"href": f"{folder}/L2A_PVI.tif", "type": COG, "roles": ["overview"], "eo:bands": visible},
        "visual": {"href": f"{folder}/TCI.tif", "type": COG, "roles": ["overview"], "eo:bands": visible},
    }
    for band, common in COMMON.items():
        bands = [{"name": band, "common_name": common}]
        assets[band] = {"href": f"{folder}/{band}.tif", "type": COG, "gsd": 10, "roles": ["data"], "eo:bands": bands}
    product = "S2B_MSIL2A_20230103T062449_N0509_R091_T40KED_20230103T075000"
    flags: dict[str, Any] = {"sentinel:product_id": product}
    if flag:
        flags |= {"sentinel:boa_offset_applied": True, "sentinel:processing_baseline": "05.09"}
    return make_item(assets, "S2B_40KED_20230103_0_L2A", **flags)


def planetary_computer() -> dict[str, Any]:
    folder = f"https://sentinel2l2a01.blob.core.windows.net/sentinel2-l2/33/X/WJ/2022/04/13/{PRODUCT}.SAFE"
    assets: dict[str, Any] = {
        "visual": {
            "href": f"{folder}/T33XWJ_TCI_10m.tif",
            "type": COG,
            "roles": ["data"],
            "gsd": 10,
            "eo:bands": [{"name": name, "common_name": COMMON[name]} for name in ("B04", "B03", "B02")],
        },
        "preview": {"href": f"{folder}/T33XWJ_PVI.tif", "type": COG, "roles": ["thumbnail"]},
    }
    for band, common in COMMON.items():
        bands = [{"name": band, "common_name": common}]
        href = f"{folder}/T33XWJ_{band}_10m.tif"
        assets[band] = {"href": href, "type": COG, "gsd": 10.0, "roles": ["data"], "eo:bands": bands}
    item_id = "S2B_MSIL2A_20220413T150759_R025_T33XWJ_20220414T082126"
    return make_item(assets, item_id, **{"s2:processing_baseline": "04.00"})


def copernicus() -> dict[str, Any]:
    """STAC 1.1, JPEG 2000 in each resolution, scale and offset at the asset."""
    folder = f"s3://eodata/Sentinel-2/MSI/L2A/2022/04/13/{PRODUCT}.SAFE/GRANULE/L2A/IMG_DATA"
    assets: dict[str, Any] = {}
    for side in (60, 20, 10):
        for band, common in COMMON.items():
            assets[f"{band}_{side}m"] = {
                "href": f"{folder}/R{side}m/T33XWJ_20220413T150759_{band}_{side}m.jp2",
                "type": JP2,
                "roles": ["data", "reflectance"],
                "gsd": 10,
                "proj:transform": [side, 0, 499980, 0, -side, 8900040],
                "bands": [{"name": band, "eo:common_name": common}],
                "raster:scale": 0.0001,
                "raster:offset": -0.1,
            }
    return make_item(assets, PRODUCT, **{"processing:version": "04.00"}) | {"stac_version": "1.1.0"}


@pytest.mark.parametrize(
    ("item", "suffix", "facts", "scales"),
    [
        (earth_search_v1("sentinel-2-l2a", applied=True), ".tif", (True, "05.09"), (0.0001, -0.1)),
        (earth_search_v1("sentinel-2-c1-l2a", applied=False), ".tif", (False, "05.09"), (0.0001, -0.1)),
        (earth_search_v0(flag=True), ".tif", (True, "05.09"), (None, None)),
        (earth_search_v0(flag=False), ".tif", (None, "05.09"), (None, None)),
        (planetary_computer(), "_10m.tif", (None, "04.00"), (None, None)),
        (copernicus(), "_10m.jp2", (None, "04.00"), (0.0001, -0.1)),
    ],
    ids=["earth-search-v1", "earth-search-c1", "earth-search-v0", "without-flag", "planetary-computer", "copernicus"],
)
def test_items_of_the_large_catalogues(
    tmp_path: Path,
    item: dict[str, Any],
    suffix: str,
    facts: tuple[bool | None, str],
    scales: tuple[float | None, float | None],
) -> None:
    scene = only(put(tmp_path / "item.json", item))
    assert scene.scene_id == item["id"]
    assert list(scene.files) == list(BANDS)
    for band, file in scene.files.items():
        assert file.uri.endswith(f"{band}{suffix}")
        assert (file.index, file.scale, file.offset) == (None, *scales)
    assert (scene.offset_applied, scene.processing_baseline) == facts
    assert scene.datetime == "2023-07-01T10:46:30.262000Z"
    assert scene.item_uri == str(tmp_path / "item.json")


def test_nir08_is_not_b08(tmp_path: Path) -> None:
    path = put(tmp_path / "item.json", earth_search_v1("x", applied=True))
    assert names_of(only(path, ("B8A",))) == {"B8A": "B8A.tif"}
    assert names_of(only(path, ("B08",))) == {"B08": "B08.tif"}
    item = make_item(
        {"x": {"href": "https://a/x.tif", "type": COG, "eo:bands": [{"name": "B8A", "common_name": "nir"}]}}
    )
    assert only(put(tmp_path / "other.json", item)).files == {}, "the name goes before the common name"


def test_jpeg_2000_is_taken_where_there_is_nothing_else(tmp_path: Path) -> None:
    item = earth_search_v1("x", applied=True)
    for common in COMMON.values():
        del item["assets"][common]
    assert names_of(only(put(tmp_path / "item.json", item)))["B02"] == "B02.jp2"


@pytest.mark.parametrize(
    ("coarse", "fine"),
    [
        (("B02_60m", {"gsd": 10}), ("B02_10m", {"gsd": 10})),
        (
            ("blue", {"gsd": 10, "href": "https://h/B02_60m.jp2?s=1"}),
            ("B02", {"gsd": 10, "href": "https://h/B02_10m.jp2"}),
        ),
        (("a_20m", {"proj:transform": [60, 0, 0, 0, -60, 0]}), ("b_60m", {"proj:transform": [10, 0, 0, 0, -10, 0]})),
        (("a_10m", {"raster:spatial_resolution": 20}), ("b_60m", {"raster:spatial_resolution": 10})),
        (("a", {"gsd": 20}), ("b", {"gsd": 10})),
        (("a", {}), ("b_60m", {})),
    ],
)
def test_the_finest_asset_of_a_band_is_taken(
    tmp_path: Path, coarse: tuple[str, dict[str, Any]], fine: tuple[str, dict[str, Any]]
) -> None:
    of_blue = {"eo:bands": [{"name": "B02"}], "type": COG}
    assets = {key: {"href": f"https://h/{key}.tif", **of_blue, **facts} for key, facts in (coarse, fine)}
    (file,) = only(put(tmp_path / "item.json", make_item(assets))).files.values()
    assert file.uri == assets[fine[0]]["href"]


@pytest.mark.parametrize(
    ("key", "facts"),
    [
        ("visual", {"roles": ["data"]}),
        ("rendered_preview", {"roles": ["data"]}),
        ("image", {"roles": ["overview"]}),
        ("image", {"roles": ["data"], "href": "T33XWJ_TCI_10m.tif"}),
        ("image", {"href": "picture.png"}),
    ],
)
def test_a_picture_of_a_scene_is_none_of_its_bands(tmp_path: Path, key: str, facts: dict[str, Any]) -> None:
    picture = {"href": "rgb.tif", "eo:bands": [{"name": band} for band in ("B04", "B03", "B02")]} | facts
    assert only(put(tmp_path / "item.json", make_item({key: picture}))).files == {}


def test_an_asset_that_nobody_can_open_gives_way_to_another(tmp_path: Path) -> None:
    assets = {"B02": {"href": "gs://bucket/B02.tif"}, "blue": {"href": "https://host/blue.tif"}}
    assert names_of(only(put(tmp_path / "item.json", make_item(assets)))) == {"B02": "blue.tif"}


def test_several_bands_in_an_asset_have_their_numbers(tmp_path: Path) -> None:
    bands = [
        {"name": "B08", "raster:scale": 0.0002, "raster:offset": 0},
        {"eo:common_name": "red", "raster:scale": 0.0001, "raster:offset": -0.1},
    ]
    touch(tmp_path, "x/image.tif")
    item = make_item({"image": {"href": "./x/image.tif", "bands": bands}})
    scene = only(put(tmp_path / "item.json", item))
    assert [(band, file.index, file.scale, file.offset) for band, file in scene.files.items()] == [
        ("B04", 2, 0.0001, -0.1),
        ("B08", 1, 0.0002, 0.0),
    ]
    assert {file.uri for file in scene.files.values()} == {str(tmp_path / "x/image.tif")}


def test_an_asset_that_names_no_bands_is_a_file_of_all(tmp_path: Path) -> None:
    touch(tmp_path, "image.tif")
    item = make_item({"data": {"href": "image.tif", "type": COG}, "thumbnail": {"href": "t.png"}})
    (file,) = only(put(tmp_path / "item.json", item)).files.items()
    assert file[0] == ALL_BANDS
    assert file[1].index is None


def write_bands(path: Path, values: Sequence[int], names: Sequence[str]) -> None:
    """Write a file of bands of 8 x 8 pixels, each of one value."""
    place = Affine(10, 0, 300000, 0, -10, 5000000)
    profile = {"driver": "GTiff", "dtype": "uint16", "crs": "EPSG:32633", "transform": place}
    with rasterio.open(path, "w", count=len(values), height=8, width=8, **profile) as target:
        target.write(np.array(values, np.uint16)[:, None, None].repeat(8, 1).repeat(8, 2))
        target.descriptions = tuple(names)


@pytest.mark.parametrize(
    ("values", "names", "expected"),
    [
        ((8, 4, 3, 2), ("B08", "red", "B03", "B02"), [2, 3, 4, 8]),
        ((8, 4, 3, 2), ("", "", "", ""), "data.tif: 4 bands, none of them named B02: which one it is is not known"),
        ((8, 4, 3, 2), ("B08", "B04", "B03", "x"), "data.tif: 4 bands, none of them named B02"),
        ((8,), ("",), "data.tif: its band 1 is said to be B02 and B03"),
    ],
)
def test_assets_of_a_band_each_in_one_file_are_told_apart_by_its_descriptions(
    tmp_path: Path, values: Sequence[int], names: Sequence[str], expected: list[int] | str
) -> None:
    write_bands(tmp_path / "data.tif", values, names)
    item = make_item({band: {"href": "./data.tif", "bands": [{"name": band}]} for band in BANDS})
    scene = only(put(tmp_path / "item.json", item))
    if isinstance(expected, str):
        with pytest.raises(DataError, match=re.escape(expected)), open_scene(scene, BANDS, "before-04.00"):
            pass
        return
    with open_scene(scene, BANDS, "before-04.00") as reader:
        assert list(reader.read(0, 0, 8, 8).pixels[:, 0, 0]) == expected


def test_the_only_asset_with_a_band_is_the_only_band_of_its_file(tmp_path: Path) -> None:
    write_bands(tmp_path / "blue.tif", (5,), ("Band 1",))
    item = make_item({"B02": {"href": "./blue.tif", "bands": [{"name": "B02"}]}})
    with open_scene(only(put(tmp_path / "item.json", item)), BANDS, "before-04.00") as reader:
        assert reader.bands == ("B02",)
        assert reader.read(0, 0, 8, 8).pixels[0, 0, 0] == 5


def test_generated_scenes_are_listed_by_their_items_and_decided(scenes: Path) -> None:
    found = listed(scenes / "scenes.json")
    by_folder = listed(scenes)
    assert list(found) == list(by_folder) == ["p00s00", "p01s00"]
    for scene_id, scene in found.items():
        assert [file.index for file in scene.files.values()] == [1, 2, 3, 4]
        with open_scene(scene, BANDS, None) as reader, open_scene(by_folder[scene_id], BANDS, None) as other:
            assert (reader.read(0, 0, 200, 200).pixels == other.read(0, 0, 200, 200).pixels).all()
            assert reader.conversion.shift == other.conversion.shift == 0
            assert "of the item" in reader.conversion.rule
            assert "of the file" in other.conversion.rule
            assert reader.datetime == other.datetime == scene.datetime


def test_the_identity_of_an_item_depends_on_all_that_its_pixels_do(tmp_path: Path) -> None:
    def identity(**change: Any) -> str:
        item = earth_search_v1("x", applied=True)
        item["properties"] |= change.get("properties", {})
        for asset in (item["assets"]["blue"], item["assets"]["visual"]):
            asset |= change.get(asset["roles"][0], {})
        return only(put(tmp_path / "item.json", item)).identity

    same = identity()
    assert identity() == same
    assert identity(visual={"file:checksum": "other"}) == same, "an asset that is not used"
    different = [
        identity(data={"file:checksum": "other"}),
        identity(data={"raster:bands": [{"scale": 0.0001, "offset": 0}]}),
        identity(data={"raster:bands": [{"nodata": 7, "scale": 0.0001, "offset": -0.1}]}),
        identity(properties={"datetime": "2023-07-01T10:46:31Z"}),
        identity(properties={"earthsearch:boa_offset_applied": False}),
        identity(properties={"s2:processing_baseline": "05.10"}),
    ]
    assert len({same, *different}) == 7


@pytest.mark.parametrize(
    ("facts", "nodata"),
    [
        ({"raster:bands": [{"nodata": 0}]}, 0),
        ({"bands": [{"name": "B02", "nodata": -9999}]}, -9999),
        ({"nodata": 7}, 7),
        ({"nodata": 7, "bands": [{"name": "B02", "nodata": 8}]}, 8),
        ({"raster:bands": [{"nodata": "nan"}]}, None),
        ({}, None),
    ],
)
def test_the_value_of_no_data_is_that_of_the_band_or_the_asset(
    tmp_path: Path, facts: dict[str, Any], nodata: float | None
) -> None:
    item = make_item({"B02": {"href": "https://h/B02.tif", **facts}})
    assert only(put(tmp_path / "item.json", item)).files["B02"].nodata == nodata


def test_the_identity_of_an_asset_without_a_checksum_is_its_files(tmp_path: Path) -> None:
    touch(tmp_path, "B02.tif")
    item = make_item({"B02": {"href": "B02.tif"}})
    del item["assets"]["B02"]["file:checksum"]
    path = put(tmp_path / "item.json", item)
    before = only(path).identity
    (tmp_path / "B02.tif").write_bytes(b"other")
    assert only(path).identity != before
    (tmp_path / "B02.tif").unlink()
    assert problems(path) == [f"scene: {tmp_path / 'B02.tif'}: no such file"]


def test_a_static_catalog_is_followed_to_its_items(tmp_path: Path) -> None:
    asset = {"B02": {"href": "./B02.tif"}}
    put(tmp_path / "a/item1.json", make_item(asset, "one"))
    put(tmp_path / "a/deep/item2.json", make_item(asset, "two"))
    put(tmp_path / "three.json", make_item(asset, "three"))
    put(tmp_path / "broken.json", "{")
    links = [
        {"rel": "root", "href": "./catalog.json"},
        {"rel": "child", "href": "./a/collection.json"},
        {"rel": "item", "href": "broken.json"},
        {"rel": "item", "href": str(tmp_path / "three.json")},
        {"rel": "item", "href": "gone.json"},
        {"rel": "child", "href": "./a/collection.json"},
        {"rel": "child", "href": "gone/catalog.json"},
        {"rel": "child", "href": "gs://bucket/catalog.json"},
    ]
    put(tmp_path / "catalog.json", {"type": "Catalog", "stac_version": "1.0.0", "id": "c", "links": links})
    child = [{"rel": "item", "href": "item1.json"}, {"rel": "child", "href": "deep/c.json"}]
    put(tmp_path / "a/collection.json", {"type": "Collection", "stac_version": "1.1.0", "links": child})
    deep = [{"rel": "item", "href": "./item2.json"}, {"rel": "child", "href": "../../catalog.json"}]
    put(tmp_path / "a/deep/c.json", {"type": "Catalog", "stac_version": "1.0.0", "links": deep})
    found = list(list_scenes(str(tmp_path / "catalog.json"), BANDS))
    assert [each.scene_id if isinstance(each, SceneSource) else None for each in found] == [
        "one",
        "two",
        None,
        "three",
        None,
        None,
        None,
    ]
    text = [str(each) for each in found if isinstance(each, DataError)]
    assert text[0].startswith(f"{tmp_path / 'broken.json'}: not a JSON document")
    assert text[1] == f"{tmp_path / 'gone.json'}: no such file"
    assert text[2] == f"{tmp_path / 'gone/catalog.json'}: no such file"
    assert text[3] == "gs://bucket/catalog.json: scheme gs://: expected a local path, s3://, http:// or https://"
    first = found[0]
    assert isinstance(first, SceneSource)
    assert first.files["B02"].uri == str(tmp_path / "a/B02.tif")
    assert first.item_uri == str(tmp_path / "a/item1.json")


def page(name: str, ids: list[Any], next_link: dict[str, Any] | None) -> dict[str, Any]:
    features = [make_item({"B02": {"href": f"{each}.tif"}}, each) if isinstance(each, str) else each for each in ids]
    links = [{"rel": "self", "href": name}] + ([{"rel": "next"} | next_link] if next_link else [])
    return {"type": "FeatureCollection", "features": features, "links": links}


def test_an_item_has_one_source_through_whichever_document_it_is_found(tmp_path: Path) -> None:
    item = make_item({"B02": {"href": "https://h/B02.tif"}}, "a")
    item["links"] = [{"rel": "self", "href": "https://api/items/a?sig=secret"}]
    search = {"type": "FeatureCollection", "features": [item]}
    for name, document in (("item.json", item), ("search.json", search), ("other/search.json", search)):
        assert shown_source(only(put(tmp_path / name, document))) == "https://api/items/a"
    item["links"] = [{"rel": "self", "href": "../items/a.json"}]
    assert shown_source(only(put(tmp_path / "deep/search.json", search))) == str(tmp_path / "items/a.json")


@pytest.mark.parametrize("href", ["gs://bucket/a.json", "https://name:word@host/a.json", "", 7])
def test_an_item_without_a_uri_of_its_own_is_named_within_its_document(
    href: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [make_item({"B02": {"href": f"{each}.tif"}}, each) for each in ("a", "b")]
    for item in items:
        item["links"] = [{"rel": "self", "href": href}] if href else []
    search = json.dumps({"type": "FeatureCollection", "features": items}).encode()
    monkeypatch.setattr(listed_stac.storage, "read_bytes", lambda uri, limit_bytes: search)
    found = listed("https://api/search?sig=secret")
    assert {each: shown_source(scene) for each, scene in found.items()} == {
        "a": "https://api/search#a",
        "b": "https://api/search#b",
    }
    assert found["a"].files["B02"].uri == "https://api/a.tif"


def test_pages_of_an_answer_are_followed(tmp_path: Path) -> None:
    put(tmp_path / "1.json", page("1.json", ["a", "b"], {"href": "2.json"}))
    put(tmp_path / "2.json", page("2.json", [3, "c"], {"href": "./3.json", "method": "get"}))
    put(tmp_path / "3.json", page("3.json", ["d"], None))
    found = list(list_scenes(str(tmp_path / "1.json"), BANDS))
    assert [each.scene_id for each in found if isinstance(each, SceneSource)] == ["a", "b", "c", "d"]
    assert problems(tmp_path / "1.json") == [
        f"{tmp_path / '2.json'}, feature 0: not a STAC item: expected a JSON object"
    ]


@pytest.mark.parametrize(
    ("link", "says"),
    [
        ({"href": "1.json", "method": "POST", "body": {}}, "1.json: its next page is asked for by POST"),
        ({"href": "gone.json"}, "gone.json: no such file; pages from here on are not listed"),
        ({"href": "1.json"}, "1.json: its next page is one that came before"),
        ({"href": "no-page.json"}, "no-page.json: the next page of an answer has no features"),
    ],
)
def test_pages_that_cannot_be_had_are_problems(tmp_path: Path, link: dict[str, Any], says: str) -> None:
    put(tmp_path / "no-page.json", {"type": "Catalog", "links": []})
    text = problems(put(tmp_path / "1.json", page("1.json", ["a"], link)))
    assert len(text) == 1
    assert says in text[0]


def test_an_api_that_has_its_items_at_a_link_is_followed(tmp_path: Path) -> None:
    put(tmp_path / "items.json", page("items.json", ["a"], None))
    links = [{"rel": "items", "href": "items.json"}]
    path = put(tmp_path / "collection.json", {"type": "Collection", "stac_version": "1.0.0", "links": links})
    assert list(listed(path)) == ["a"]


@pytest.mark.parametrize(
    ("item", "says"),
    [
        (make_item({}, "a/b"), "a/b: an id that is no plain name"),
        (make_item({}) | {"id": None}, "c.json, feature 0: not a STAC item: id is None, expected text"),
        (make_item({}) | {"id": 7}, "c.json, feature 0: not a STAC item: id is 7, expected text"),
        (make_item({}, datetime="last week"), "datetime 'last week' is not like"),
        (make_item({"B02": {"href": "gs://bucket/B02.tif"}}), "asset B02: gs://bucket/B02.tif: scheme gs://"),
        (make_item({"B02": {"href": "B02.tif", "raster:bands": [{"scale": "x"}]}}), "not a valid STAC item"),
        (make_item({"B02": {"href": "B02.tif", "raster:bands": [{"offset": float("nan")}]}}), "offset is nan"),
        (make_item({}) | {"assets": []}, "not a valid STAC item"),
    ],
)
def test_a_bad_item_is_a_problem_that_names_it(tmp_path: Path, item: dict[str, Any], says: str) -> None:
    collection = {"type": "FeatureCollection", "features": [item, make_item({"B02": {"href": "B02.tif"}}, "good")]}
    found = list(list_scenes(str(put(tmp_path / "c.json", collection)), BANDS))
    assert isinstance(found[0], DataError)
    assert says in str(found[0])
    assert isinstance(found[1], SceneSource)


@pytest.mark.parametrize(
    ("text", "says"), [("{", "not a JSON"), ("[1]", "expected a JSON object"), (None, "no such file")]
)
def test_a_document_that_is_none_is_the_callers_mistake(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "c.json" if text is None else put(tmp_path / "c.json", text)
    with pytest.raises(ConfigError, match=says):
        list(list_scenes(str(path), BANDS))
    assert "type 'Topology' is no STAC document" in problems(put(tmp_path / "t.json", {"type": "Topology"}))[0]


def test_items_in_a_store_lead_to_their_assets(s3: str, tmp_path: Path) -> None:
    folder = storage.join(s3, tmp_path.name)
    item = make_item(
        {"B02": {"href": "../B02.tif"}, "B03": {"href": f"{folder}/B03.tif"}, "B04": {"href": "/top/B04.tif"}}
    )
    del item["assets"]["B02"]["file:checksum"]
    storage.write_bytes(storage.join(folder, "items/x.json"), json.dumps(item).encode())
    storage.write_bytes(storage.join(folder, "B02.tif"), b"pixels")
    scene = only(storage.join(folder, "items/x.json"))
    assert [file.uri for file in scene.files.values()] == [
        f"{folder}/B02.tif",
        f"{folder}/B03.tif",
        "s3://bucket/top/B04.tif",
    ]
    storage.write_bytes(storage.join(folder, "B02.tif"), b"other pixels")
    assert only(storage.join(folder, "items/x.json")).identity != scene.identity


@pytest.mark.parametrize(
    ("href", "base", "uri"),
    [
        ("./x.tif", "/a/b/c.json", "/a/b/x.tif"),
        ("../x.tif", "/a/b/c.json", "/a/x.tif"),
        ("file:///q/x.tif", "/a/c.json", "/q/x.tif"),
        ("file://localhost/q/x.tif", "/a/c.json", "/q/x.tif"),
        ("x.tif", "s3://b/c.json", "s3://b/x.tif"),
        ("../../x.tif", "s3://b/k/c.json", "s3://b/x.tif"),
        ("x.tif", "https://h/a/c.json?token=1", "https://h/a/x.tif"),
        ("/x.tif", "https://h/a/c.json", "https://h/x.tif"),
        ("S3://b/x.tif", "/a/c.json", "s3://b/x.tif"),
    ],
)
def test_hrefs_are_from_where_their_document_lies(href: str, base: str, uri: str) -> None:
    assert resolved(href, base) == uri


@pytest.mark.parametrize("base", ["s3://b/c.json", "https://h/c.json", "HTTPS://h/c.json"])
@pytest.mark.parametrize("href", ["file:///etc/passwd", "FILE:///etc/passwd", "file://localhost/etc/passwd"])
def test_no_document_of_elsewhere_names_a_file_of_this_machine(href: str, base: str) -> None:
    with pytest.raises(DataError, match="a file of this machine, named by"):
        resolved(href, base)


@pytest.mark.parametrize("base", ["/list.txt", "s3://b/list.txt", "https://h/list.txt"])
@pytest.mark.parametrize("place", ["KEY:SECRET@b/a.tif", "KEY:SECRET@b/a\0.tif", "KEY:SECRET@b/\ud800"])
@pytest.mark.parametrize("scheme", ["s3", "https", "gs", "ftp"])
def test_an_error_about_a_uri_keeps_its_secret(base: str, place: str, scheme: str) -> None:
    with pytest.raises(DataError) as caught:
        resolved(f"{scheme}://{place}", base)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("href", ["file:/etc/passwd", "mailto:x", "//[x", "a\0b", "file://host/x.tif"])
def test_what_is_no_uri_of_a_document_is_refused(href: str) -> None:
    with pytest.raises(DataError):
        resolved(href, "https://h/c.json")


def test_what_a_disk_keeps_for_its_repair_is_not_entered(tmp_path: Path) -> None:
    touch(tmp_path, "a.tif", "lost+found/b.tif", "x/c.tif")
    assert [name for name, _ in storage.walk(str(tmp_path))] == ["a.tif", "x/c.tif"]


def test_a_pipe_is_no_scene_and_no_item(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tif")
    os.mkfifo(tmp_path / "pipe.json")
    text = problems(put(tmp_path / "list.txt", "pipe.tif\npipe.json\n"))
    assert text == [
        f"pipe: {tmp_path}/pipe.tif: a device or a pipe, expected a file",
        f"{tmp_path}/pipe.json: a device or a pipe, expected a file",
    ]


# What one scene has no other suffers from.


def test_one_odd_url_is_one_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def identity(uri: str, info: object = None) -> str:
        if "away" in uri:
            raise StoreOutOfReach(f"{uri}: out of reach")
        if "odd" in uri:
            raise OSError(f"{uri}: its server answers 451")
        return uri

    monkeypatch.setattr(listing.storage, "identity_of", identity)
    text = "https://h/a.tif\nhttps://h/odd.tif\nhttps://h/away.tif\nhttps://name:word@h/x.json\nhttps://h/b.tif\n"
    found = list(list_scenes(str(put(tmp_path / "list.txt", text)), BANDS))
    assert [each.scene_id if isinstance(each, SceneSource) else each.subject for each in found] == [
        "a",
        "odd",
        "https://h/away.tif",  # not by its id: what stands of it is as good as before
        "https://...@...",
        "b",
    ]
    assert str(found[1]) == "odd: https://h/odd.tif: its server answers 451"
    assert str(found[2]).endswith("out of reach; run again for it")
    assert [isinstance(each, Unlisted) and each.is_out_of_reach for each in found] == [False, False, True, False, False]
    nothing = Known(str(tmp_path / "out"), "d", standing_at(str(tmp_path / "out")))
    counted = Listing(str(tmp_path / "list.txt"), str(tmp_path / "out"), BANDS, ScoreSettings(), Selection(), nothing)
    assert len(list(counted.units())) == 2
    assert [each.source_uri for each in counted.unreached] == ["https://h/away.tif"]
    assert [each.item_id for each in counted.problems] == ["odd", "https://...@..."]


def test_chip_whose_band_is_refused_is_one_problem(
    chips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = sorted(path.name for path in (chips / "train_features").iterdir())[3]
    identity_of = storage.identity_of

    def refusing(uri: str, info: object = None) -> str:
        if uri.endswith(f"{bad}/B03.tif"):
            raise PermissionError(13, "Permission denied", uri)
        return identity_of(uri)

    monkeypatch.setattr(planning.storage, "identity_of", refusing)
    nothing = Known(str(tmp_path / "out"), "d", standing_at(str(tmp_path / "out")))
    found = Listing(str(chips), str(tmp_path / "out"), BANDS, ScoreSettings(), Selection(), nothing)
    assert sum(len(unit.chips) for unit in found.units()) == 11
    (problem,) = found.problems
    assert problem.item_id == bad
    assert "a band that can't be read: [Errno 13] Permission denied" in problem.found


ODD = ["s3://", "s3:///", "s3://KEY:SECRET@b/a.tif", "s3://My bucket/a.tif", "s3://bucket", "s3://ü/a.tif", "s3://b"]


@pytest.mark.parametrize("href", ODD)
def test_one_odd_uri_of_a_store_is_one_problem(tmp_path: Path, href: str) -> None:
    touch(tmp_path, "a.tif", "b.tif")
    asset = {"B02": {"href": "./a.tif"}}
    put(tmp_path / "child/one.json", make_item(asset, "one"))
    put(tmp_path / "child/two.json", make_item({"B02": {"href": href, "type": COG}}, "two"))
    links = [{"rel": rel, "href": at} for rel, at in [("item", href), ("child", href), ("item", "one.json")]]
    links.append({"rel": "item", "href": "two.json"})
    put(tmp_path / "child/c.json", {"type": "Catalog", "stac_version": "1.0.0", "links": links})
    put(tmp_path / "list.txt", f"a.tif\n{href}\nb.tif")
    for path, good, num_bad in ((tmp_path / "list.txt", ["a", "b"], 1), (tmp_path / "child/c.json", ["one"], 3)):
        found = list(list_scenes(str(path), BANDS))
        assert [each.scene_id for each in found if isinstance(each, SceneSource)] == good
        text = problems(path)
        assert len(text) == len(found) - len(good) == num_bad
        assert "SECRET" not in "".join(text)
        assert all("expected" in each or "keys never stand" in each for each in text)


@pytest.fixture
def no_keys(s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))


@pytest.mark.usefixtures("no_keys")
def test_missing_keys_are_told_of_with_their_bucket_and_what_to_do(tmp_path: Path) -> None:
    touch(tmp_path, "a.tif")
    says = (
        r"no keys for the bucket sentinel-cogs; .* --stores: \[stores\.\"s3://sentinel-cogs\"\] with anonymous = true"
    )
    place = "s3://sentinel-cogs/x.tif"
    path = put(tmp_path / "list.txt", f"a.tif\n{place}\ns3://sentinel-cogs/S2X.SAFE")
    found = list(list_scenes(str(path), BANDS))
    assert [isinstance(each, SceneSource) for each in found] == [True, False, False]
    assert re.search(says, str(found[1]))
    assert isinstance(found[1], Unlisted)
    assert found[1].subject == place, "not by its id: a mask that stands of it is as good as before"
    for whole in ("s3://sentinel-cogs/folder", "s3://sentinel-cogs/c.json", "s3://sentinel-cogs/list.txt", place):
        with pytest.raises(RaytrainError, match=says) as caught:
            list(list_scenes(whole, BANDS))
        assert caught.value.exit_code == EXIT_CALLERS_MISTAKE


def test_names_that_are_no_unicode_are_one_problem_each_which_a_record_can_hold(tmp_path: Path) -> None:
    latin = os.fsdecode(b"K\xf6ln")
    touch(
        tmp_path, "a.tif", f"{latin}.tif", f"{latin}/2024/B02.tif", f"{latin}/{PRODUCT}.SAFE/GRANULE/g/IMG_DATA/B02.jp2"
    )
    touch(tmp_path, f"2023/{latin}.tif")
    found = list(list_scenes(str(tmp_path), BANDS))
    assert [each.scene_id for each in found if isinstance(each, SceneSource)] == ["a"]
    assert len(found) == 5
    for each in [each for each in found if not isinstance(each, SceneSource)]:
        assert Problem(item_id=each.subject, source_uri=each.place, found=each.found).model_dump_json().encode()
        assert "K\\udcf6ln" in str(each)
    item = make_item({"B02": {"href": "\ud800.tif"}}, "x")
    collection = {"type": "FeatureCollection", "features": [item, make_item({}, "\ud800"), make_item({}, "good")]}
    text = problems(put(tmp_path / "c.json", collection))
    assert len(text) == 2
    assert text[0].startswith("x: asset B02: '\\ud800.tif': no URI")
    assert text[1].startswith("\\ud800: an id that is no plain name")
    with pytest.raises(ConfigError, match="a name that is not UTF-8; rename it"):
        list(list_scenes(str(put(tmp_path / latin / "c.json", collection)), BANDS))


@pytest.mark.parametrize(("away", "there"), [(20, 1), (3, 0)])
def test_a_store_that_is_away_ends_the_listing(
    away: int, there: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def identity(uri: str, info: object = None) -> str:
        if "away" in uri:
            raise StoreOutOfReach(uri)
        return uri

    monkeypatch.setattr(listing.storage, "identity_of", identity)
    names = [f"https://h/{number}.tif" for number in range(there)] + [f"https://h/away{n}.tif" for n in range(away)]
    with pytest.raises(StoreOutOfReach):
        list(list_scenes(str(put(tmp_path / "list.txt", "\n".join(names))), BANDS))
    names.insert(there + 2, "https://h/between.tif")
    assert len(list(list_scenes(str(put(tmp_path / "list.txt", "\n".join(names))), BANDS))) == len(names)


def test_a_second_scene_of_an_id_is_told_of_by_its_place_though_it_is_broken(tmp_path: Path) -> None:
    touch(tmp_path, "a.tif", "B02.tif")
    put(tmp_path / "item.json", make_item({"B02": {"href": "gs://x/B02.tif"}}, "a"))
    put(tmp_path / "first.json", make_item({"B02": {"href": "gs://x/B02.tif"}}, "b"))
    put(tmp_path / "second.json", make_item({"B02": {"href": "B02.tif"}}, "b"))
    text = "a.tif\nitem.json\nfirst.json\nsecond.json"
    found = list(list_scenes(str(put(tmp_path / "list.txt", text)), BANDS))
    assert [each.subject if isinstance(each, DataError) else each.scene_id for each in found] == [
        "a",
        str(tmp_path / "item.json"),
        "b",
        str(tmp_path / "second.json"),
    ]
    assert "gs://x/B02.tif" in str(found[1])
    assert isinstance(found[2], Unlisted)
    assert found[2].place == str(tmp_path / "first.json")


# What is planned of it.


def of(uri: str | Path, destination: Path) -> Listing:
    known = Known(str(destination), "", standing_at(str(destination)))
    return Listing(str(uri), str(destination), BANDS, ScoreSettings(), Selection(), known)


def test_scenes_that_are_wrong_keep_no_others_from_the_plan(tmp_path: Path) -> None:
    source = touch(tmp_path / "in", "a.tif", "b/B11.tif", "c/B02.tif", os.fsdecode(b"K\xf6ln.tif"))
    listing = of(source, tmp_path / "out")
    assert write_plan(str(tmp_path / "out"), "run", listing.units()).num_units == 2
    assert sorted(problem.item_id for problem in listing.problems) == ["K\\udcf6ln", "b"]
    for problem in listing.problems:
        assert problem.model_dump_json().encode()


def test_masks_below_their_archive_are_not_scored(tmp_path: Path) -> None:
    touch(tmp_path, "a.tif", "masks/a.tif", "masks/b.tif")
    listing = of(tmp_path, tmp_path / "masks")
    assert [unit.item_ids for unit in listing.units()] == [("a",)]
    assert not listing.problems


@pytest.mark.parametrize("name", ["c.json", "list.txt", "list.parquet", "a.tif"])
def test_a_store_that_lists_nothing_may_hold_what_names_scenes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(uri: str) -> Iterator[Any]:
        raise PermissionError(f"{uri}: access refused (ListObjectsV2)")

    touch(tmp_path, "a.tif")
    put(tmp_path / "c.json", make_item({"B02": {"href": "a.tif"}}, "a"))
    put(tmp_path / "list.txt", "a.tif")
    pq.write_table(pa.table({"uri": ["a.tif"]}), tmp_path / "list.parquet")
    listing = of(tmp_path / name, tmp_path / "out")
    monkeypatch.setattr(storage, "walk", refuse)
    assert [unit.item_ids for unit in listing.units()] == [("a",)]


# Lists


def test_a_text_lists_files_and_items(tmp_path: Path) -> None:
    touch(tmp_path, "a.tif", "deep/b.tif", "deep/c.tif")
    put(tmp_path / "deep/item.json", make_item({"B02": {"href": "b.tif"}}, "item"))
    text = f"\ufeff# scenes\n{tmp_path}/a.tif\r\n\n  deep/b.tif\ndeep/item.json\nnone.tif\nmailto://x\ndeep"
    found = list(list_scenes(str(put(tmp_path / "list.txt", text)), BANDS))
    assert [each.scene_id for each in found if isinstance(each, SceneSource)] == ["a", "b", "item"]
    assert found[1].files[ALL_BANDS].uri == str(tmp_path / "deep/b.tif")  # type: ignore[union-attr]
    assert [str(each) for each in found if isinstance(each, DataError)] == [
        f"none: {tmp_path}/none.tif: no such file",
        "mailto://x: scheme mailto://: expected a local path, s3://, http:// or https://",
        f"{tmp_path}/deep: a folder of several scenes; in a list name each of them, or score the folder itself",
    ]


def test_a_list_names_folders_of_bands(tmp_path: Path, s3: str) -> None:
    image = f"{PRODUCT}.SAFE/GRANULE/g/IMG_DATA/R10m/T33_B02_10m.jp2"
    touch(tmp_path, image, "x/B02.tif", "x/B03.tif", "none/readme.md")
    there = storage.join(s3, f"{tmp_path.name}-folders")
    for name in (image, "0/R10m/B02.jp2"):
        storage.write_bytes(storage.join(there, name), name.encode())
    text = f"x/\n{there}/{PRODUCT}.SAFE\n{there}/0/\nnone\n{there}/nothing"
    found = list(list_scenes(str(put(tmp_path / "list.txt", text)), BANDS))
    assert [each.scene_id if isinstance(each, SceneSource) else str(each) for each in found] == [
        "x",
        PRODUCT,
        "0",
        f"{tmp_path}/none: a folder without rasters, expected a scene's or a STAC document",
        f"{there}/nothing: no such file",
    ]
    assert isinstance(found[0], SceneSource)
    assert found[0].identity == listed(tmp_path)["x"].identity
    pq.write_table(pa.table({"uri": [str(tmp_path / "x")], "id": ["other"]}), tmp_path / "list.parquet")
    assert list(listed(tmp_path / "list.parquet")) == ["other"]


def test_an_item_of_a_store_that_lists_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def walk(uri: str) -> Iterator[Any]:
        raise PermissionError(f"{uri}: access refused")

    item = json.dumps(make_item({"B02": {"href": "https://h/B02.tif"}}, "a")).encode()
    monkeypatch.setattr(storage, "walk", walk)
    monkeypatch.setattr(storage, "read_bytes", lambda uri, limit_bytes: item)
    assert list(listed(put(tmp_path / "list.txt", "s3://bucket/items/a"))) == ["a"]


def test_a_csv_has_one_column(tmp_path: Path) -> None:
    touch(tmp_path, "a.tif", "b,c.tif")
    text = 'uri\na.tif\n"b,c.tif"\na.tif,2024\n'
    found = list(list_scenes(str(put(tmp_path / "list.csv", text)), BANDS))
    assert [each.scene_id for each in found if isinstance(each, SceneSource)] == ["a"]
    assert [str(each) for each in found if isinstance(each, DataError)] == [
        "b,c: an id that is no plain name: letters, digits, '.', '_' and '-' only, none of the last three first",
        f"{tmp_path}/list.csv, line 4: 2 columns, expected one, the URI",
    ]


def test_a_parquet_list_gives_ids_and_datetimes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "LIST_ROWS", 2)
    touch(tmp_path, "a.tif")
    put(tmp_path / "item.json", make_item({"B02": {"href": "b.tif"}}, "item"))
    taken = datetime(2024, 5, 31, 10, tzinfo=UTC)
    table = pa.table(
        {
            "uri": ["a.tif", "item.json", "a.tif", None, "a.tif"],
            "id": ["first", "second", None, "third", "no name"],
            "datetime": pa.array([taken, taken, None, None, None], pa.timestamp("us", "UTC")),
            "cloud_cover": [1, 2, 3, 4, 5],
        }
    )
    path = tmp_path / "list.parquet"
    pq.write_table(table, path)
    found = list(list_scenes(str(path), BANDS))
    assert [(each.scene_id, each.datetime) for each in found if isinstance(each, SceneSource)] == [
        ("first", "2024-05-31T10:00:00Z"),
        ("second", "2024-05-31T10:00:00Z"),
        ("a", None),
    ]
    assert str(found[3]) == f"{path}, row 4: uri is None"
    assert str(found[4]).startswith("no name: an id that is no plain name")
    assert len(found) == 5


def test_the_identity_depends_on_the_datetime_of_a_list(tmp_path: Path) -> None:
    touch(tmp_path, "a.tif")
    put(tmp_path / "item.json", make_item({"B02": {"href": "b.tif"}}, "item"))

    def identities(moment: datetime | None) -> list[str]:
        moments = pa.array([moment, moment], pa.timestamp("us", "UTC"))
        pq.write_table(pa.table({"uri": ["a.tif", "item.json"], "datetime": moments}), tmp_path / "list.parquet")
        return [scene.identity for scene in listed(tmp_path / "list.parquet").values()]

    undated, dated = identities(None), identities(datetime(2024, 5, 31, 10, tzinfo=UTC))
    assert dated == identities(datetime(2024, 5, 31, 10, tzinfo=UTC))
    assert len({*undated, *dated, *identities(datetime(2024, 5, 31, 11, tzinfo=UTC))}) == 6
    assert identities(datetime(2023, 7, 1, 10, 46, 30, 262000, tzinfo=UTC))[1] == undated[1], "what the item says, too"


def test_an_odd_line_of_a_text_is_one_problem(tmp_path: Path) -> None:
    touch(tmp_path, "a.tif", "b.tif")
    path = tmp_path / "list.csv"
    path.write_bytes(b"a.tif\nK\xf6ln.tif\n" + b"x" * 200_000 + b"\nb.tif")
    found = list(list_scenes(str(path), BANDS))
    assert [each.scene_id for each in found if isinstance(each, SceneSource)] == ["a", "b"]
    assert problems(path) == [
        f"{path}, line 2: not UTF-8 text, expected a URI",
        f"{path}, line 3: field larger than field limit (131072), expected one column, the URI",
    ]


def test_an_odd_row_of_a_table_is_one_problem(tmp_path: Path) -> None:
    touch(tmp_path, "a.tif", "b.tif", "c.tif")
    uris = pa.StringArray.from_buffers(
        5, pa.py_buffer(np.array([0, 5, 10, 15, 20, 25], np.int32)), pa.py_buffer(b"a.tif\xf6.tifc.tifb.tifa.tif")
    )
    moments = pa.array([0, 0, 2**62, 1_700_000_000_000_000, 0], pa.int64()).cast(pa.timestamp("us"))
    texts = [None, None, None, None, "0001-01-01T00:00:00+05:00"]
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"uri": uris, "datetime": moments}), path)
    found = list(list_scenes(str(path), BANDS))
    assert [each.scene_id for each in found if isinstance(each, SceneSource)] == ["a", "b"]
    text = problems(path)
    assert text[0].startswith(f"{path}, row 2: a value that can't be read: 'utf-8' codec can't decode")
    assert text[1].startswith(f"{path}, row 3: a value that can't be read: ")
    pq.write_table(pa.table({"uri": ["a.tif", "b.tif"], "datetime": texts[3:]}), path)
    assert problems(path) == [
        "b: datetime '0001-01-01T00:00:00+05:00' of the list is not like 2024-05-31T10:20:30Z",
    ]


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64(), pa.timestamp("ns"), pa.timestamp("s", "UTC")])
def test_dates_and_moments_of_any_kind_are_taken_from_a_table(tmp_path: Path, kind: pa.DataType) -> None:
    touch(tmp_path, "a.tif")
    moment = pa.array([datetime(2024, 5, 31)], pa.timestamp("us")).cast(kind)
    if kind == pa.timestamp("ns"):
        moment = pa.array([moment[0].value + 1], pa.int64()).cast(kind)  # Python has no such moment
    pq.write_table(pa.table({"uri": ["a.tif"], "datetime": moment}), tmp_path / "list.parquet")
    assert only(tmp_path / "list.parquet").datetime == "2024-05-31T00:00:00Z"


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("x.txt", None, "no such list"),
        ("x.parquet", None, "no such list"),
        ("x.parquet", b"no parquet", "not a readable Parquet file"),
        ("x.csv", b"\xff\xfe\xfa", "not a UTF-8 text file"),
        ("x.txt", b"# nothing\n", "no scenes found"),
    ],
)
def test_a_list_that_is_none_is_the_callers_mistake(tmp_path: Path, name: str, data: bytes | None, says: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=says):
        list(list_scenes(str(tmp_path / name), BANDS))


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer({}) as web:
        storage.use_stores(Stores(stores={web.origin: StoreSettings(private_address=True)}))
        yield web
    storage.use_stores(Stores())


@pytest.mark.parametrize("kind", ["txt", "parquet"])
def test_a_list_on_a_web_server_leads_to_its_scenes(web: WebServer, kind: str) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"uri": ["a.tif", "deep/b.tif"]}), sink)
    web.files["/lists/x"] = bytes(sink.getvalue()) if kind == "parquet" else b"a.tif\ndeep/b.tif\n"
    web.files |= {f"/lists/x.{kind}": web.files["/lists/x"], "/lists/a.tif": b"a", "/lists/deep/b.tif": b"b"}
    found = listed(f"{web.origin}/lists/x.{kind}?sig=secret")
    assert [scene.files[ALL_BANDS].uri for scene in found.values()] == [
        f"{web.origin}/lists/a.tif",
        f"{web.origin}/lists/deep/b.tif",
    ]


@pytest.mark.parametrize("num_lines", [2, 5000])
def test_a_text_is_read_from_a_server_without_ranges(
    web: WebServer, num_lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "LIST_BYTES", 2**10)
    monkeypatch.setattr("raytrain.scoring.listed.file_identity", lambda *_: "identity")
    web.files["/x.txt"] = "".join(f"{number}.tif\n" for number in range(num_lines)).encode()
    web.has_ranges = False
    assert list(listed(f"{web.origin}/x.txt")) == [str(number) for number in range(num_lines)]
    assert len(web.asked) == (1 if num_lines == 2 else 2), "nothing is asked behind a short first block"


@pytest.mark.parametrize("kind", ["txt", "parquet"])
@pytest.mark.parametrize("status", [400, 403])
def test_a_list_that_its_server_refuses_is_the_callers_mistake(web: WebServer, kind: str, status: int) -> None:
    web.answers[f"/x.{kind}"] = [(status, {}, b"")] * 20
    with pytest.raises(ConfigError, match=f"a list that can't be read: .*{status}") as caught:
        list(list_scenes(f"{web.origin}/x.{kind}?sig=secret", BANDS))
    assert "secret" not in str(caught.value)


def test_a_parquet_list_needs_a_column_of_uris(tmp_path: Path) -> None:
    pq.write_table(pa.table({"href": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match=r"needs a column uri \(found: href\)"):
        list(list_scenes(str(tmp_path / "x.parquet"), BANDS))


def test_one_file_is_one_scene(tmp_path: Path) -> None:
    touch(tmp_path, "a.tif")
    assert only(tmp_path / "a.tif").scene_id == "a"
    assert problems(tmp_path / "none.tif") == [f"none: {tmp_path / 'none.tif'}: no such file"]


@pytest.mark.parametrize("kind", ["txt", "parquet"])
def test_memory_does_not_grow_with_a_list(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "LIST_BYTES", 2**14)
    monkeypatch.setattr("raytrain.scoring.listed.file_identity", lambda *_: "identity")

    def peak_bytes(count: int) -> int:
        uris = [f"s3://bucket/some/longer/prefix/of/an/archive/scene-{number:08d}.tif" for number in range(count)]
        path = tmp_path / f"{count}.{kind}"
        if kind == "txt":
            put(path, "\n".join(uris))
        else:
            pq.write_table(pa.table({"uri": uris}), path, row_group_size=1000)
        del uris
        tracemalloc.start()
        found = sum(isinstance(each, SceneSource) for each in list_scenes(str(path), BANDS))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found == count
        return peak

    peak_bytes(100)
    # 16,000 more rows have 1 MB of text; their scenes would take 30 MB.
    assert peak_bytes(20_000) - peak_bytes(4_000) < 16_000 * 100


def test_identities_are_asked_for_side_by_side_and_come_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, most = 0, 0
    lock = threading.Lock()

    def slow(uri: str, info: object = None) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02 if uri.endswith("0.tif") else 0.002)
        with lock:
            running -= 1
        return uri

    monkeypatch.setattr("raytrain.scoring.listed.file_identity", slow)
    names = [f"scene{number:03d}" for number in range(100)]
    path = put(tmp_path / "list.txt", "\n".join(f"s3://bucket/{name}.tif" for name in names))
    found = [each.scene_id for each in list_scenes(str(path), BANDS, threads=4) if isinstance(each, SceneSource)]
    assert found == names
    assert 2 <= most <= 4


def test_a_listing_may_be_left_before_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("raytrain.scoring.listed.file_identity", lambda uri, *_: asked.append(uri) or uri)
    path = put(tmp_path / "list.txt", "\n".join(f"s3://bucket/{number}.tif" for number in range(10_000)))
    scenes = list_scenes(str(path), BANDS, threads=2)
    assert isinstance(next(scenes), SceneSource)
    scenes.close()  # type: ignore[attr-defined]
    assert len(asked) < 20
    assert not [each for each in threading.enumerate() if each.name.startswith("listing")]


def test_seen_names_are_known_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raytrain.scoring.seen._RECENT", 100)
    seen = SeenNames()
    assert all(seen.add(str(number)) for number in range(1050))
    assert not any(seen.add(str(number)) for number in range(1050))
    assert seen.add("another")


def test_documents_are_read_from_anywhere_by_storage_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {
        "https://api/search?limit=1": page("", ["a"], {"href": "/search?limit=1&token=2"}),
        "https://api/search?limit=1&token=2": page("", ["b"], None),
    }
    monkeypatch.setattr(listed_stac.storage, "read_bytes", lambda uri, limit_bytes: json.dumps(pages[uri]).encode())
    found = listed("https://api/search?limit=1")
    assert list(found) == ["a", "b"]
    assert found["a"].files["B02"].uri == "https://api/a.tif"
