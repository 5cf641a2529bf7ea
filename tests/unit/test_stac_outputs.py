"""What scoring says of its outputs in STAC: valid, readable by others, the same bytes for the same records."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pystac
import pytest
import rasterio
import shapely
import stac_geoparquet.arrow
from pystac.extensions.classification import ClassificationExtension
from pystac.extensions.eo import EOExtension
from pystac.extensions.file import FileExtension
from pystac.extensions.projection import ProjectionExtension
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from rasterio.crs import CRS
from shapely.geometry import Point, shape

from raytrain import storage
from raytrain.errors import DataError
from raytrain.imagery.footprints import footprint
from raytrain.scoring import stac_table
from raytrain.scoring.layers import Layers, create_striped, encode, finish_cog
from raytrain.scoring.records import Output, Record
from raytrain.scoring.stac import (
    ITEM_LINKS_LIMIT,
    Making,
    Summary,
    collection,
    item_key,
    scene_item,
    to_bytes,
)
from raytrain.scoring.stac_table import ITEMS_PER_BATCH, write_table

NO_CODE = CRS.from_proj4("+proj=laea +lat_0=10 +lon_0=170 +datum=WGS84 +units=m").to_string()
MAKING = Making(
    collection_id="archive",
    ensemble="e" * 64,
    threshold=0.5,
    raytrain_version="0.1.0",
    layers=Layers(probability="uint8", disagreement="float32", members="uint8", member_names=("a", "b")),
)
TABLE = Output(key="items.parquet", sha256="cd" * 32, num_bytes=77)
PLACES: dict[str, dict[str, Any]] = {
    "northern-utm": {"crs": "EPSG:32636", "transform": (10, 0, 3e5, 0, -10, 5e6)},
    "southern-utm": {"crs": "EPSG:32736", "transform": (10, 0, 3e5, 0, -10, 8e6)},
    "antimeridian": {"crs": "EPSG:32701", "transform": (10, 0, 1.5e5, 0, -10, 8e6)},
    "geographic": {"crs": "EPSG:4326", "transform": (1e-4, 0, 33.5, 0, -1e-4, -1.25)},
    "no-code": {"crs": NO_CODE, "transform": (10, 0, -5e4, 0, -10, 5e4)},
    "around-a-pole": {"crs": "EPSG:3031", "transform": (100, 0, -5e5, 0, -100, 5e5)},
}
every_place = pytest.mark.parametrize("place", PLACES)


def output(key: str) -> Output:
    return Output(key=key, sha256="ab" * 32, num_bytes=1234)


def record(item_id: str = "S2A", place: str = "northern-utm", **changes: Any) -> Record:
    kinds = {kind: output(MAKING.layers.layer(kind).key(item_id)) for kind in MAKING.layers.kinds}
    values = {
        "item_id": item_id,
        "kind": "scene",
        "source_uri": f"s3://bucket/{item_id}.tif",
        "identity": "5:etag",
        "settings_digest": "5" * 64,
        "outputs": kinds,
        "height": 10980,
        "width": 10000,
        "datetime": "2020-04-29T08:26:11Z",
        "valid_px": 400,
        "cloud_px": 100,
        "shift": 1000,
        "shift_rule": "catalogue",
        **PLACES[place],
    }
    return Record(**{**values, **changes})


def item(item_id: str = "S2A", place: str = "northern-utm", **changes: Any) -> dict[str, Any]:
    found = scene_item(record(item_id, place, **changes), MAKING)
    assert isinstance(found, dict), found
    return found


def validate(stac_object: dict[str, Any], kind: pystac.STACObjectType) -> None:
    """Hold an object against the schemas of STAC itself, which pystac has; those of extensions need the network."""
    JsonSchemaSTACValidator().validate_core(json.loads(to_bytes(stac_object)), kind, "1.1.0")


@every_place
@pytest.mark.parametrize("changes", [{}, {"valid_px": 0, "cloud_px": 0}], ids=["some-data", "all-no-data"])
def test_item_is_valid_and_its_extensions_read_it(place: str, changes: dict[str, Any]) -> None:
    source = record(place=place, **changes)
    found = item(place=place, **changes)
    validate(found, pystac.STACObjectType.ITEM)
    read = pystac.Item.from_dict(json.loads(to_bytes(found)))
    projection = ProjectionExtension.ext(read)
    crs = CRS.from_string(projection.code) if projection.code else CRS.from_wkt(projection.wkt2 or "")
    assert crs == CRS.from_string(source.crs or "")
    assert (projection.code is None) == (place == "no-code")
    assert tuple(projection.transform or ()) == source.transform
    assert projection.shape == [source.height, source.width]
    bounds = rasterio.transform.array_bounds(source.height, source.width, rasterio.Affine(*source.transform or ()))
    assert projection.bbox == list(bounds)
    if changes:
        assert "eo:cloud_cover" not in read.properties
        assert not EOExtension.has_extension(read)
    else:
        assert EOExtension.ext(read).cloud_cover == 25
    classes = ClassificationExtension.ext(read.assets["mask"]).classes or []
    assert {each.value: each.name for each in classes} == {0: "clear", 1: "cloud", 255: "no_data"}
    for asset in read.assets.values():
        assert asset.media_type == pystac.MediaType.COG
        assert FileExtension.ext(asset).size == 1234
        assert FileExtension.ext(asset).checksum == "1220" + "ab" * 32


def test_item_says_what_it_was_made_with_and_nothing_of_now() -> None:
    properties = item(members_left_out=("m1",))["properties"]
    made = {name: value for name, value in properties.items() if name.startswith(("raytrain:", "processing:"))}
    assert made == {
        "processing:software": {"raytrain": "0.1.0"},
        "raytrain:baseline_rule": "catalogue",
        "raytrain:baseline_shift": 1000,
        "raytrain:ensemble": "e" * 64,
        "raytrain:members_left_out": ["m1"],
        "raytrain:settings": "5" * 64,
        "raytrain:threshold": 0.5,
    }
    assert not {"created", "updated"} & set(properties)


def test_references_hold_from_where_the_item_lies(tmp_path: Path) -> None:
    whole = record()
    found = item()
    for each in whole.outputs.values():
        (tmp_path / each.key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / each.key).touch()
    storage.write_bytes(str(tmp_path / item_key("S2A")), to_bytes(found))
    summary = Summary()
    summary.add(found)
    (tmp_path / "collection.json").write_bytes(to_bytes(collection(summary, MAKING, TABLE)))
    read = pystac.Collection.from_file(str(tmp_path / "collection.json"))
    (one,) = read.get_items()
    assert one.get_collection() is read
    hrefs = {kind: Path(str(asset.get_absolute_href())) for kind, asset in one.assets.items()}
    assert {kind: path.resolve() for kind, path in hrefs.items()} == {
        kind: (tmp_path / each.key).resolve() for kind, each in whole.outputs.items()
    }


@pytest.mark.parametrize(
    ("uri", "href"),
    [
        ("https://name:word@host/a/b.tif?sig=secret&x=1#part", "https://host/a/b.tif"),
        ("s3://bucket/a.tif?versionId=1", "s3://bucket/a.tif"),
        ("/data/what?.tif", "/data/what?.tif"),
    ],
)
def test_signatures_and_passwords_of_sources_never_appear(uri: str, href: str) -> None:
    for changes in ({"source_uri": uri}, {"source_uri": "s3://other/x?secret", "source_item_uri": uri}):
        found = item(**changes)
        (link,) = [each for each in found["links"] if each["rel"] == "derived_from"]
        assert link["href"] == href
        assert b"secret" not in to_bytes(found)
        assert b"word" not in to_bytes(found)


def test_an_item_in_a_document_of_several_is_linked_by_its_id() -> None:
    uri = f"https://host/search#{record().item_id}"
    (link,) = [each for each in item(source_item_uri=uri)["links"] if each["rel"] == "derived_from"]
    assert link["href"] == uri


def without_member(name: str, **changes: Any) -> dict[str, Any]:
    outputs = {kind: each for kind, each in record().outputs.items() if kind != f"member-{name}"}
    return item(outputs=outputs, members_left_out=(name,), **changes)


def test_map_of_a_member_is_an_asset_and_not_the_probability_that_readers_look_for() -> None:
    assets = item()["assets"]
    assert assets["member-a"]["href"] == "../members/a/S2A.tif"
    assert assets["member-a"]["title"] == "cloud probability of the member a"
    assert [name for name, each in assets.items() if "cloud-probability" in each["roles"]] == ["probability"]
    assert [name for name, each in assets.items() if "member-cloud-probability" in each["roles"]] == [
        "member-a",
        "member-b",
    ]
    assert without_member("a")["assets"].keys() == assets.keys() - {"member-a"}
    validate(without_member("a"), pystac.STACObjectType.ITEM)


def test_equal_records_give_equal_bytes() -> None:
    assert to_bytes(item()) == to_bytes(scene_item(Record.model_validate_json(record().model_dump_json()), MAKING))
    assert to_bytes({"b": 1, "a": {"d": 2.5, "c": "ü"}}) == '{"a":{"c":"ü","d":2.5},"b":1}\n'.encode()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"crs": None}, "the source has no CRS"),
        ({"transform": None}, "the source has no transform"),
        ({"datetime": None}, "the source has no date (give --datetime)"),
        ({"datetime": "last week"}, "the date of the source, 'last week', is not RFC 3339"),
        ({"datetime": "2020-04-29T08:26:11"}, "is not RFC 3339 with its offset from UTC"),
        ({"crs": "nonsense"}, "the CRS of the source can't be read"),
        ({"crs": 'LOCAL_CS["a building",UNIT["metre",1]]'}, "can't be brought to longitude and latitude"),
        ({"crs": "EPSG:3035", "transform": (1e5, 0, -1e9, 0, -1e5, 1e9)}, "can't be brought to longitude and latitude"),
        ({"transform": (10, 0, 3e5, 0, 0, 5e6)}, "can't be brought to longitude and latitude"),
    ],
)
def test_scene_that_can_have_no_item_gets_a_reason(changes: dict[str, Any], reason: str) -> None:
    found = scene_item(record(**changes), MAKING)
    assert isinstance(found, str)
    assert found.startswith("no STAC item: ")
    assert reason in found
    assert "\n" not in found


def test_times_of_other_zones_are_brought_to_utc() -> None:
    assert item(datetime="2020-04-29T10:26:11.25+02:00")["properties"]["datetime"] == "2020-04-29T08:26:11.250000Z"


def test_layers_of_real_files_are_described_as_they_are(tmp_path: Path) -> None:
    for kind in MAKING.layers.kinds:
        layer = MAKING.layers.layer(kind)
        asset = item()["assets"][kind]
        with create_striped(tmp_path / "striped.tif", layer, 32, 32, None, None) as target:
            target.write(encode(layer, np.zeros((32, 32), np.float32), np.ones((32, 32), bool), 0.5), 1)
        finish_cog(tmp_path / "striped.tif", tmp_path / "cog.tif", layer)
        with rasterio.open(tmp_path / "cog.tif") as source:
            assert source.dtypes[0] == asset["data_type"]
            assert str(source.nodata) in (str(asset["nodata"]), f"{asset['nodata']}.0")
            assert source.scales[0] == asset.get("raster:scale", 1)
            assert source.descriptions[0] == asset["title"]


@every_place
def test_footprint_holds_every_pixel_and_little_else(place: str) -> None:
    source = record(place=place)
    found = item(place=place)
    geometry = shape(found["geometry"])
    assert geometry.is_valid
    rings = [part.exterior for part in shapely.get_parts(geometry)]
    assert all(ring.is_ccw for ring in rings)
    assert all(abs(longitude) <= 180 for ring in rings for longitude, _ in ring.coords)
    a, b, c, d, e, f = source.transform or ()
    for column, row in np.random.default_rng(0).uniform(-0.3, 1.3, (200, 2)) * (source.width, source.height):
        x, y = a * column + b * row + c, d * column + e * row + f
        (longitude,), (latitude,) = rasterio.warp.transform(source.crs, "EPSG:4326", [x], [y])
        inside = 0 <= column <= source.width and 0 <= row <= source.height
        assert geometry.buffer(2e-5).contains(Point(longitude, latitude)) == inside
        west, south, east, north = found["bbox"]
        across = west <= longitude <= east if west <= east else longitude >= west or longitude <= east
        assert (across and south <= latitude <= north) or not inside


def test_footprint_across_the_antimeridian_is_cut_and_its_bbox_goes_the_short_way() -> None:
    found = item(place="antimeridian")
    assert found["geometry"]["type"] == "MultiPolygon"
    west, _, east, _ = found["bbox"]
    assert 179 < west < 180
    assert -180 < east < -179
    sides = [part.bounds for part in shapely.get_parts(shape(found["geometry"]))]
    assert sorted((bounds[0] < 0, bounds[2] == 180 or bounds[0] == -180) for bounds in sides) == [
        (False, True),
        (True, True),
    ]


def test_footprint_around_a_pole_reaches_it_at_all_longitudes() -> None:
    found = item(place="around-a-pole")
    assert found["bbox"][0::2] == [-180, 180]
    assert found["bbox"][1] == -90
    assert found["geometry"]["type"] == "Polygon"


@pytest.mark.parametrize("west", [-180, 0])
def test_footprint_of_the_globe_is_the_globe(west: int) -> None:
    found = footprint(CRS.from_epsg(4326), rasterio.Affine(1, 0, west, 0, -1, 90), 180, 360)
    assert found is not None
    assert found.bbox == (-180, -90, 180, 90)
    assert shape(found.geometry).area == pytest.approx(360 * 180)


def gathered(*bboxes: list[float]) -> Summary:
    summary = Summary()
    for i, bbox in enumerate(bboxes):
        summary.add({**item(f"s{i}"), "bbox": bbox})
    return summary


@pytest.mark.parametrize(
    ("bboxes", "expected"),
    [
        ([[10, 1, 20, 2]], [10, 1, 20, 2]),
        ([[10, 1, 20, 2], [-30, -5, -20, 0]], [-30, -5, 20, 2]),
        ([[170, 1, -175, 2]], [170, 1, -175, 2]),
        ([[170, 1, 175, 2], [-178, 0, -170, 1]], [170, 0, -170, 2]),
        ([[170, 1, -175, 2], [-5, 0, 5, 1]], [-180, 0, 180, 2]),
        ([[-180, -90, 180, 90], [1, 1, 2, 2]], [-180, -90, 180, 90]),
    ],
)
def test_extent_holds_all_items_and_goes_the_short_way_round(bboxes: list[list[float]], expected: list[float]) -> None:
    assert gathered(*bboxes).bbox == expected


def test_collection_is_valid_and_says_when_where_and_with_what() -> None:
    summary = Summary()
    summary.add(item("a", "antimeridian", datetime="2020-04-29T08:26:11Z"))
    summary.add(item("b", "no-code", datetime="2019-12-31T23:59:59.5Z", valid_px=0, cloud_px=0))
    summary.add(item("c", "northern-utm", datetime="2020-01-01T00:00:00Z", cloud_px=400))
    found = collection(summary, MAKING, TABLE)
    validate(found, pystac.STACObjectType.COLLECTION)
    assert found["extent"]["temporal"]["interval"] == [["2019-12-31T23:59:59.500000Z", "2020-04-29T08:26:11Z"]]
    assert found["summaries"]["proj:code"] == ["EPSG:32636", "EPSG:32701"]
    assert found["summaries"]["eo:cloud_cover"] == {"minimum": 25.0, "maximum": 100.0}
    assert found["summaries"]["raytrain:ensemble"] == ["e" * 64]
    assert found["assets"]["items"]["type"] == "application/vnd.apache.parquet"
    assert found["assets"]["items"]["file:checksum"] == "1220" + "cd" * 32
    assert set(found["item_assets"]) == {"mask", "probability", "disagreement", "member-a", "member-b"}
    assert pystac.Collection.from_dict(found).license == "other"


def test_items_are_linked_up_to_a_limit_and_beyond_it_by_the_table_alone() -> None:
    summary, one = Summary(), item()
    for i in range(ITEM_LINKS_LIMIT):
        summary.add({**one, "id": f"s{i}"})
    links = [link["href"] for link in collection(summary, MAKING, TABLE)["links"] if link["rel"] == "item"]
    assert links == [f"./stac/s{i}.json" for i in range(ITEM_LINKS_LIMIT)]
    summary.add({**one, "id": "one-more"})
    found = collection(summary, MAKING, TABLE)
    assert [link["rel"] for link in found["links"]] == ["root"]
    assert "items" in found["assets"]


def various(count: int) -> Iterator[dict[str, Any]]:
    """Yield items of all places in turn; those of the first half have no cloud cover, as batches may have."""
    models = [item(place=place, **changes) for changes in NOTHING_THEN_SOMETHING for place in PLACES]
    for i in range(count):
        model = models[i % len(PLACES) + (len(PLACES) if i >= count / 2 else 0)]
        yield {**model, "id": f"s{i:06d}"}


NOTHING_THEN_SOMETHING: list[dict[str, Any]] = [{"valid_px": 0, "cloud_px": 0}, {}]


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nulls(part) for name, part in value.items() if part is not None}
    return [without_nulls(part) for part in value] if isinstance(value, list) else value


def as_compared(found: dict[str, Any]) -> dict[str, Any]:
    """Return an item from the table or for it, as equal ones are equal: times as times, nulls left out."""
    found = without_nulls(json.loads(json.dumps(found).replace('"../', '"').replace('"stac/', '"')))
    found["properties"]["datetime"] = datetime.fromisoformat(found["properties"]["datetime"])
    return found


def test_table_gives_back_every_item_whatever_its_batch_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stac_table, "ITEMS_PER_BATCH", 7)
    written = list(various(40))
    written[3:12] = [{**without_member("b"), "id": f"s{i:06d}"} for i in range(3, 12)]  # a whole batch, and more
    assert write_table(iter(written), tmp_path / "items.parquet", MAKING.layers) == 40
    assert pq.ParquetFile(tmp_path / "items.parquet").num_row_groups == 6
    table = pq.read_table(tmp_path / "items.parquet")
    back = list(stac_geoparquet.arrow.stac_table_to_items(table))
    assert [as_compared(each) for each in back] == [as_compared(each) for each in written]
    assert back[0]["assets"]["probability"]["href"] == "probability/S2A.tif", "from where the table lies"
    validate(without_nulls(back[0]), pystac.STACObjectType.ITEM)


def test_table_is_geoparquet_that_others_read_and_filter(tmp_path: Path) -> None:
    write_table(various(24), tmp_path / "items.parquet", MAKING.layers)
    frame = geopandas.read_parquet(tmp_path / "items.parquet")
    assert frame.crs.to_epsg() == 4326
    assert set(frame.geometry.geom_type) == {"Polygon", "MultiPolygon"}
    assert frame["eo:cloud_cover"].isna().sum() == 12
    assert str(frame["datetime"].dt.tz) == "UTC"
    here = geopandas.read_parquet(tmp_path / "items.parquet", bbox=(30, 44, 32, 46))
    assert set(here["proj:code"]) == {"EPSG:32636"}


def test_table_of_the_same_items_has_the_same_bytes(tmp_path: Path) -> None:
    write_table(various(30), tmp_path / "a.parquet", MAKING.layers)
    turned = ({name: each[name] for name in sorted(each, reverse=True)} for each in various(30))
    write_table(turned, tmp_path / "b.parquet", MAKING.layers)
    write_table(reversed(list(various(30))), tmp_path / "c.parquet", MAKING.layers)
    first = (tmp_path / "a.parquet").read_bytes()
    assert (tmp_path / "b.parquet").read_bytes() == first
    assert (tmp_path / "c.parquet").read_bytes() != first


class Held(dict[str, Any]):
    """A dict that can be watched."""


def test_table_of_many_items_holds_few_of_them_at_a_time(tmp_path: Path) -> None:
    alive: weakref.WeakValueDictionary[int, Held] = weakref.WeakValueDictionary()
    most, most_bytes, before = 0, 0, pa.total_allocated_bytes()

    def watched() -> Iterator[dict[str, Any]]:
        nonlocal most, most_bytes
        for i, each in enumerate(various(20_000)):
            held = Held(each)
            alive[i] = held
            most, most_bytes = max(most, len(alive)), max(most_bytes, pa.total_allocated_bytes() - before)
            yield held
            del held

    summary = Summary()
    gc.collect()
    assert write_table(summary.passing(watched()), tmp_path / "items.parquet", MAKING.layers) == 20_000
    assert summary.num_items == 20_000
    assert most <= 2 * ITEMS_PER_BATCH + 2
    assert most_bytes < 64 * 2**20
    assert len(summary.item_ids) <= ITEM_LINKS_LIMIT + 1
    ids = pq.read_table(tmp_path / "items.parquet", columns=["id"])["id"].to_pylist()
    assert ids == [f"s{i:06d}" for i in range(20_000)]


def test_table_without_items_is_not_written(tmp_path: Path) -> None:
    assert write_table(iter([]), tmp_path / "items.parquet", MAKING.layers) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["properties", "assets", "links", "top"])
def test_field_that_the_table_has_no_column_for_is_refused_rather_than_dropped(where: str, tmp_path: Path) -> None:
    odd = item()
    if where == "top":
        odd["new"] = 1
    elif where == "links":
        odd["links"] = [{**odd["links"][0], "new": 1}]
    else:
        odd[where] = {**odd[where], "new": {}}
    with pytest.raises(DataError, match=r"S2A: its STAC item has .*new, which the table has no column for"):
        write_table(iter([odd]), tmp_path / "items.parquet", MAKING.layers)
