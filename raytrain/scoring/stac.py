"""What scoring says of its outputs in STAC 1.1: an item for each scene, a collection over all of them.

Both are functions of the records alone: no clock, no place, so that a rerun writes the same bytes. Keys are those of
the destination: `<id>.tif`, `probability/<id>.tif`, `disagreement/<id>.tif`, `members/<name>/<id>.tif`,
`stac/<id>.json`, `collection.json`, `items.parquet`. Must not know pixels, stores or who asks.
"""

from __future__ import annotations

import json
import math
import posixpath
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from rasterio import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError

from raytrain.config import Settings
from raytrain.imagery.footprints import Footprint, footprint
from raytrain.imagery.rasters import LABEL_CLEAR, LABEL_CLOUD, LABEL_IGNORE
from raytrain.scoring.layers import Kind, Layer, Layers
from raytrain.scoring.records import Output, Record

STAC_VERSION = "1.1.0"
COLLECTION_KEY, TABLE_KEY, ITEM_FOLDER = "collection.json", "items.parquet", "stac"
ITEM_LINKS_LIMIT = 1000
"""Collections of more items than this name the table only, not every item."""
JSON_TYPE, GEOJSON_TYPE, PARQUET_TYPE = "application/json", "application/geo+json", "application/vnd.apache.parquet"
COG_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"
SHA256_MULTIHASH = "1220"
"""What a multihash begins with that is a sha256 of 32 bytes."""

CLASSES = [
    {"value": LABEL_CLEAR, "name": "clear", "description": "no cloud", "color_hint": "000000"},
    {"value": LABEL_CLOUD, "name": "cloud", "description": "cloud", "color_hint": "FFFFFF"},
    {"value": LABEL_IGNORE, "name": "no_data", "description": "no data", "color_hint": "808080", "nodata": True},
]
ROLES: dict[Kind, list[str]] = {
    "mask": ["data", "cloud"],
    "probability": ["data", "cloud-probability"],
    "disagreement": ["data", "uncertainty"],
}
ROLES_OF_MEMBER = ["data", "member-cloud-probability"]
"""Not `cloud-probability`: of assets with that role there is one."""
EXTENSIONS = {
    "classification": "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "eo": "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
    "file": "https://stac-extensions.github.io/file/v2.1.0/schema.json",
    "processing": "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
    "proj": "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "raster": "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
}
"""By the prefix of their fields."""


class Making(Settings):
    """What all items of a destination have in common.

    `ensemble` is the hash of its nets, `license` an SPDX identifier, or `other` where nobody said.
    """

    collection_id: str
    ensemble: str
    threshold: float
    raytrain_version: str
    layers: Layers = Layers()
    license: str = "other"


def item_key(scene_id: str) -> str:
    """Return the key of the item of a scene."""
    return f"{ITEM_FOLDER}/{scene_id}.json"


def to_bytes(stac_object: dict[str, Any]) -> bytes:
    """Return the JSON of an item or a collection: the same bytes for equal objects."""
    text = json.dumps(stac_object, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def scene_item(record: Record, making: Making) -> dict[str, Any] | str:
    """Return the STAC item of a finished scene, or one line that says why it can have none."""
    if record.crs is None:
        return "no STAC item: the source has no CRS"
    if record.transform is None:
        return "no STAC item: the source has no transform"
    if record.datetime is None:
        return "no STAC item: the source has no date (give --datetime)"
    taken = _utc(record.datetime)
    if taken is None:
        return f"no STAC item: the date of the source, {record.datetime!r}, is not RFC 3339 with its offset from UTC"
    try:
        crs = CRS.from_user_input(record.crs)
    except CRSError:
        return "no STAC item: the CRS of the source can't be read"
    place = footprint(crs, Affine(*record.transform), record.height, record.width)
    if place is None:
        return "no STAC item: the outline of the source can't be brought to longitude and latitude"
    return _item(record, making, taken, place, _projection(crs, record))


def _item(record: Record, making: Making, taken: str, place: Footprint, projection: dict[str, Any]) -> dict[str, Any]:
    assets = {}
    for kind in making.layers.kinds:
        if kind in record.outputs:
            layer, output = making.layers.layer(kind), record.outputs[kind]
            href = posixpath.relpath(output.key, ITEM_FOLDER)
            assets[kind] = {"href": href} | _asset(layer) | _file(output)
    properties = {"datetime": taken} | projection | _cloud_cover(record) | _making(record, making)
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": _extensions([properties, *assets.values()]),
        "id": record.item_id,
        "collection": making.collection_id,
        "geometry": place.geometry,
        "bbox": list(place.bbox),
        "properties": properties,
        "assets": assets,
        "links": _links(record),
    }


def _utc(text: str) -> str | None:
    """Return an RFC 3339 time in UTC in its one form; None for anything else."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return None if found.tzinfo is None else found.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _projection(crs: CRS, record: Record) -> dict[str, Any]:
    assert record.transform is not None
    a, b, c, d, e, f = record.transform
    xs = [a * column + b * row + c for column in (0, record.width) for row in (0, record.height)]
    ys = [d * column + e * row + f for column in (0, record.width) for row in (0, record.height)]
    authority = crs.to_authority(confidence_threshold=100)
    named = {"proj:code": ":".join(authority)} if authority else {"proj:wkt2": crs.to_wkt(version="WKT2_2019")}
    return {
        **named,
        "proj:shape": [record.height, record.width],
        "proj:transform": list(record.transform),
        "proj:bbox": [min(xs), min(ys), max(xs), max(ys)],
    }


def _cloud_cover(record: Record) -> dict[str, Any]:
    """Return the cloud cover in percent of the valid pixels; nothing where there are none."""
    return {"eo:cloud_cover": round(100 * record.cloud_px / record.valid_px, 4)} if record.valid_px else {}


def _making(record: Record, making: Making) -> dict[str, Any]:
    return {
        "processing:software": {"raytrain": making.raytrain_version},
        "raytrain:baseline_rule": record.shift_rule,
        "raytrain:baseline_shift": record.shift,
        "raytrain:ensemble": making.ensemble,
        "raytrain:members_left_out": list(record.members_left_out),
        "raytrain:settings": record.settings_digest,
        "raytrain:threshold": making.threshold,
    }


def _asset(layer: Layer) -> dict[str, Any]:
    """Return what holds for the asset in every item."""
    asset: dict[str, Any] = {
        "title": layer.description,
        "type": COG_TYPE,
        "roles": ROLES.get(layer.kind, ROLES_OF_MEMBER),
        "data_type": layer.dtype,
        "nodata": "nan" if math.isnan(layer.nodata) else layer.nodata,
    }
    if layer.kind == "mask":
        asset["classification:classes"] = CLASSES
    elif layer.scale != 1:
        asset |= {"raster:scale": layer.scale, "raster:offset": 0.0}
    return asset


def _file(output: Output) -> dict[str, Any]:
    return {"file:size": output.num_bytes, "file:checksum": SHA256_MULTIHASH + output.sha256}


def _links(record: Record) -> list[dict[str, str]]:
    collection = {"href": posixpath.relpath(COLLECTION_KEY, ITEM_FOLDER), "type": JSON_TYPE}
    uri = record.source_item_uri or record.source_uri
    href = _without_secrets(uri)
    if "://" in uri and uri.endswith(f"#{record.item_id}"):  # an item in a document of several
        href += f"#{record.item_id}"
    source = {"rel": "derived_from", "href": href}
    if record.source_item_uri:
        source["type"] = GEOJSON_TYPE
    return [{"rel": rel, **collection} for rel in ("root", "parent", "collection")] + [source]


def _without_secrets(uri: str) -> str:
    """Return a URI without its query, fragment, name and password: signatures stand there; a local path as it is."""
    if "://" not in uri:
        return uri
    scheme, place, path, _, _ = urlsplit(uri)
    return urlunsplit((scheme, place.rpartition("@")[2], path, "", ""))


def _extensions(parts: Iterable[dict[str, Any]]) -> list[str]:
    """Return the extensions whose fields stand in `parts`."""
    prefixes = {name.partition(":")[0] for part in parts for name in part if ":" in name}
    return sorted(EXTENSIONS[prefix] for prefix in prefixes if prefix in EXTENSIONS)


class Summary:
    """What a collection says of its items, gathered one by one: their extent, and which values occur.

    Its size does not grow with the number of items, but for the ids of the first `ITEM_LINKS_LIMIT`.
    """

    def __init__(self) -> None:
        self.num_items = 0
        self.item_ids: list[str] = []
        self.codes: set[str] = set()
        self.settings: set[str] = set()
        self.times: list[datetime] = []
        self.cloud_cover: list[float] = []
        self._latitudes: list[float] = []
        self._longitudes: dict[int, list[float]] = {-180: [], 0: []}  # by where the circle is cut

    def passing(self, items: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield `items` as they come, each after it was added."""
        for item in items:
            self.add(item)
            yield item

    def add(self, item: dict[str, Any]) -> None:
        """Take up an item of `scene_item`."""
        properties = item["properties"]
        self.num_items += 1
        if len(self.item_ids) <= ITEM_LINKS_LIMIT:
            self.item_ids.append(item["id"])
        if "proj:code" in properties:
            self.codes.add(properties["proj:code"])
        self.settings.add(properties["raytrain:settings"])
        self.times = _ends([*self.times, datetime.fromisoformat(properties["datetime"])])
        if "eo:cloud_cover" in properties:
            self.cloud_cover = _ends([*self.cloud_cover, properties["eo:cloud_cover"]])
        west, south, east, north = item["bbox"]
        self._latitudes = _ends([*self._latitudes, south, north])
        for cut, ends in self._longitudes.items():
            self._longitudes[cut] = _ends([*ends, *_arc(west, east, cut)])

    @property
    def bbox(self) -> list[float]:
        """West, south, east, north of all items; west is greater than east where that is the narrower box."""
        arcs = [ends for ends in self._longitudes.values()]
        west, east = min(arcs, key=lambda ends: ends[1] - ends[0])
        south, north = self._latitudes
        if east - west >= 360:
            return [-180.0, south, 180.0, north]
        brought = [longitude - 360 if longitude > 180 else longitude for longitude in (west, east)]
        return [brought[0], south, brought[1], north]


def _ends(values: list[Any]) -> list[Any]:
    return [min(values), max(values)]


def _arc(west: float, east: float, cut: int) -> tuple[float, float]:
    """Return the longitudes from `west` to `east` on a circle cut at `cut`, counted from there; all where it is cut."""
    if west > east:
        east += 360
    turns = math.floor((west - cut) / 360)
    west, east = west - 360 * turns, east - 360 * turns
    return (west, east) if east <= cut + 360 else (cut, cut + 360)


def collection(summary: Summary, making: Making, table: Output) -> dict[str, Any]:
    """Return the STAC collection over the items of `summary`, which must be some; `table` is their `items.parquet`.

    Up to `ITEM_LINKS_LIMIT` items are linked; more stand in the table only, which is an asset in any case.
    """
    assert summary.num_items, "a collection has an extent, so it has items"
    table_asset = {
        "href": f"./{table.key}",
        "title": "all items, as STAC-GeoParquet",
        "type": PARQUET_TYPE,
        "roles": ["collection-mirror"],
    } | _file(table)
    item_assets = {kind: _asset(making.layers.layer(kind)) for kind in making.layers.kinds}
    links = [{"rel": "root", "href": f"./{COLLECTION_KEY}", "type": JSON_TYPE}]
    if summary.num_items <= ITEM_LINKS_LIMIT:
        hrefs = [f"./{item_key(scene_id)}" for scene_id in summary.item_ids]
        links += [{"rel": "item", "href": href, "type": GEOJSON_TYPE} for href in hrefs]
    interval = [time.isoformat().replace("+00:00", "Z") for time in summary.times]
    return {
        "type": "Collection",
        "stac_version": STAC_VERSION,
        "stac_extensions": _extensions([table_asset, *item_assets.values()]),
        "id": making.collection_id,
        "title": "cloud masks",
        "description": f"Clouds in {summary.num_items} scenes, found by raytrain with ensemble {making.ensemble}.",
        "license": making.license,
        "extent": {"spatial": {"bbox": [summary.bbox]}, "temporal": {"interval": [interval]}},
        "summaries": _summaries(summary, making),
        "item_assets": item_assets,
        "assets": {"items": table_asset},
        "links": links,
    }


def _summaries(summary: Summary, making: Making) -> dict[str, Any]:
    found: dict[str, Any] = {
        "raytrain:ensemble": [making.ensemble],
        "raytrain:settings": sorted(summary.settings),
        "raytrain:threshold": [making.threshold],
    }
    if summary.codes:
        found["proj:code"] = sorted(summary.codes)
    if summary.cloud_cover:
        found["eo:cloud_cover"] = {"minimum": summary.cloud_cover[0], "maximum": summary.cloud_cover[1]}
    return found
