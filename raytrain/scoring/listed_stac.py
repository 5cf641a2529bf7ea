"""Scenes of STAC documents: items, collections of items, static catalogs, the pages of an API's answer.

Versions 1.0 and 1.1, and what the large public catalogues write: see tests/unit/test_listing.py for an item of each.
One document at a time is held. Must not know pixels.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

from raytrain import storage
from raytrain.errors import ConfigError, DataError, StoreOutOfReach
from raytrain.imagery.band_names import first_band
from raytrain.imagery.baseline import baseline_in_name, baseline_number
from raytrain.imagery.raster_limits import MOST_BANDS
from raytrain.imagery.rasters import is_jp2
from raytrain.imagery.scene_files import ALL_BANDS, BandFile, SceneSource, shown, utc_text
from raytrain.scoring.listed import (
    Work,
    checked_id,
    file_version,
    hashed,
    id_by_name,
    is_raster,
    refusal,
    refuse_special,
    resolved,
)
from raytrain.scoring.seen import SeenNames

Json = Mapping[str, Any]

DOCUMENT_BYTES = 256 * 2**20
"""Of one document: collections of ten thousand items have 200 MB."""
DEEPEST = 64
"""Catalogs within catalogs; public ones have up to ten: mission, product, grid, year, month, day."""
NO_DATA_ROLES = {"thumbnail", "overview", "preview", "visual", "metadata"}
_PICTURE_KEY = re.compile(r"(^|[_-])(visual|preview|overview|thumbnail|tci|pvi)([_-]|$)", re.IGNORECASE)
_PICTURE_FILE = re.compile(r"(^|[_-])(TCI|PVI)([_.-]|$)")
_RASTER_TYPE = re.compile(r"image/(tiff|jp2|vnd\.stac\.geotiff)")
_NAMED_RESOLUTION = re.compile(r"_(\d+)m$", re.IGNORECASE)
_BAND_NAMES = ("name", "common_name", "eo:common_name", "description")
_VALUES = ("scale", "offset", "nodata", "spatial_resolution")
_SAID_OF_BANDS = (*_BAND_NAMES, *_VALUES, *(f"raster:{name}" for name in _VALUES), "proj:transform", "gsd")
_USED = ("href", *_SAID_OF_BANDS)
"""What of an asset, and of its bands, is looked at."""
_FLAGS = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")
_BASELINES = ("s2:processing_baseline", "sentinel:processing_baseline", "processing:version")
_PRODUCTS = ("s2:product_uri", "sentinel:product_id")


def read_document(uri: str) -> dict[str, Any]:
    """Return the JSON object at `uri`; raise `DataError` for anything else."""
    try:
        refuse_special(uri)
        document = json.loads(storage.read_bytes(uri, DOCUMENT_BYTES))
    except FileNotFoundError as error:
        raise DataError(shown(uri), "no such file") from error
    except IsADirectoryError as error:
        raise DataError(shown(uri), "a folder, expected a STAC document") from error
    except (OSError, ConfigError) as error:
        raise refusal(uri, error) from error
    except (ValueError, RecursionError) as error:
        raise DataError(shown(uri), f"not a JSON document: {error}") from error
    if not isinstance(document, dict):
        raise DataError(shown(uri), "not a STAC document: expected a JSON object")
    return document


def document_works(
    uri: str, document: Json, bands: Sequence[str], visited: SeenNames | None = None, depth: int = 0
) -> Iterator[Work | DataError]:
    """Yield the work of each item that the document at `uri` is, has or links to, in its order.

    Links of a static catalog are followed down, `next` from page to page; what was visited is not read again. A
    document that can't be read, is no STAC, or lies deeper than `DEEPEST` is a `DataError` in its place. `depth` is how
    many catalogs lead to this one.
    """
    visited = visited or SeenNames()
    visited.add(uri)
    if document.get("type") == "Feature":
        yield Work(shown(uri), partial(item_scene, document, uri, bands))
    elif "features" in document:
        yield from _page_works(uri, document, bands, visited)
    elif document.get("type") in ("Catalog", "Collection") or "stac_version" in document:
        yield from _link_works(uri, document, bands, visited, depth)
    else:
        kinds = "an item, a collection of items, or a catalog"
        yield DataError(shown(uri), f"type {document.get('type')!r} is no STAC document: expected {kinds}")


def _page_works(uri: str, document: Json, bands: Sequence[str], visited: SeenNames) -> Iterator[Work | DataError]:
    """Yield the items of a page, then those of the pages after it."""
    while True:
        features = document["features"]
        for number, item in enumerate(features if isinstance(features, list) else [features]):
            place = f"{shown(uri)}, feature {number}"
            if not isinstance(item, dict):
                yield DataError(place, "not a STAC item: expected a JSON object")
            elif not isinstance(item.get("id"), str):
                yield DataError(place, _no_id(item))
            else:
                yield Work(shown(uri), partial(item_scene, item, uri, bands, is_alone=False), item["id"])
        try:
            next_uri = _next_page(uri, document)
            if next_uri is None:
                return
            if not visited.add(next_uri):
                raise DataError(shown(uri), "its next page is one that came before")
            uri, document = next_uri, read_document(next_uri)
            if "features" not in document:
                raise DataError(shown(uri), "the next page of an answer has no features")
        except DataError as error:
            yield DataError(error.subject, f"{error.found}; pages from here on are not listed")
            return


def _no_id(item: Json) -> str:
    return f"not a STAC item: id is {item.get('id')!r}, expected text"


def _next_page(uri: str, document: Json) -> str | None:
    for link in _links(document):
        if link.get("rel") == "next":
            if str(link.get("method", "GET")).upper() != "GET":
                raise DataError(shown(uri), f"its next page is asked for by {link['method']}; search with GET")
            return resolved(str(link.get("href")), uri)
    return None


def _link_works(
    uri: str, document: Json, bands: Sequence[str], visited: SeenNames, depth: int
) -> Iterator[Work | DataError]:
    """Yield what a catalog links to: items and catalogs, or what an API has at `items` where there are none."""
    links = [link for link in _links(document) if link.get("rel") in ("item", "child")]
    links = links or [link for link in _links(document) if link.get("rel") == "items"]
    for link in links:
        try:
            at = resolved(str(link.get("href")), uri)
            if not visited.add(at):
                continue
            if link["rel"] == "item":
                yield Work(shown(at), partial(_linked_item, at, bands))
                continue
            if depth == DEEPEST:
                found = f"a catalog with {DEEPEST + 1} above it, expected at most {DEEPEST}"
                raise DataError(shown(at), f"{found}; list it by itself")
            child = read_document(at)
        except DataError as error:
            yield error
            continue
        except StoreOutOfReach as error:
            yield Work(shown(at), partial(_fail, error))
            continue
        yield from document_works(at, child, bands, visited, depth + 1)


def _fail(error: StoreOutOfReach) -> SceneSource:
    raise error


def _links(document: Json) -> list[Json]:
    links = document.get("links")
    return [link for link in links if isinstance(link, dict)] if isinstance(links, list) else []


def _linked_item(uri: str, bands: Sequence[str]) -> SceneSource:
    return item_scene(read_document(uri), uri, bands)


@dataclass(frozen=True)
class _Candidate:
    """An asset that has a band, and how good it is: less is better."""

    rank: tuple[bool, float, bool, int, int]
    file: BandFile
    checksum: str | None


def item_scene(
    item: Json, uri: str, bands: Sequence[str], scene_id: str | None = None, *, is_alone: bool = True
) -> SceneSource:
    """Return the scene of a STAC item that is the document at `uri`, or one of those in it; raise `DataError`.

    The identity is that of the used assets (their `file:checksum`, else what their store says), of what is said of
    their values, and of the datetime. A band that no asset has is left out.
    """
    if not isinstance(item.get("id"), str):
        raise DataError(shown(uri), _no_id(item))
    name = str(item["id"]) if scene_id is None else scene_id
    try:
        return _scene(item, uri, bands, scene_id, is_alone=is_alone)
    except DataError as error:
        raise error if error.subject == name else DataError(name, str(error)) from error
    except (TypeError, ValueError, AttributeError, LookupError, OverflowError) as error:
        raise DataError(name, f"not a valid STAC item, {shown(uri)}: {error}") from error


def unchecked_scene(item: Json, uri: str, bands: Sequence[str]) -> SceneSource:
    """Return the scene of a STAC item in the document at `uri` for a look at it; raise `DataError`.

    Its files are not asked what they are: `identity` is empty.
    """
    try:
        scene_id = checked_id(item["id"])
        return _described(scene_id, item, uri, _chosen(scene_id, item.get("assets", {}), uri, bands), is_alone=True)
    except (TypeError, ValueError, AttributeError, LookupError, OverflowError) as error:
        raise DataError(shown(uri), f"not a valid STAC item: {error}") from error


def _scene(item: Json, uri: str, bands: Sequence[str], scene_id: str | None, *, is_alone: bool) -> SceneSource:
    scene_id = checked_id(item["id"] if scene_id is None else scene_id)
    chosen = _chosen(scene_id, item.get("assets", {}), uri, bands)
    identities = {each.file.uri: each.checksum or "" for each in chosen.values()}
    versions = {at: file_version(at) for at, checksum in identities.items() if not checksum}
    identities |= {at: version.identity for at, version in versions.items()}
    facts = _described(scene_id, item, uri, chosen, is_alone=is_alone)
    meant = {
        "files": {
            band: [identities[file.uri], file.index, file.scale, file.offset, file.nodata]
            for band, file in facts.files.items()
        },
        "datetime": facts.datetime,
        "offset_applied": facts.offset_applied,
        "processing_baseline": facts.processing_baseline,
    }
    return facts.model_copy(update={"identity": hashed(meant), "versions": versions})


def _described(scene_id: str, item: Json, uri: str, chosen: Mapping[str, _Candidate], *, is_alone: bool) -> SceneSource:
    """Return a scene as its item describes it; nobody was asked for its files, and its identity is empty."""
    properties = item.get("properties") or {}
    return SceneSource(
        scene_id=scene_id,
        files={band: each.file for band, each in chosen.items()},
        identity="",
        datetime=_datetime(scene_id, properties),
        item_uri=_own_uri(item, uri) or (uri if is_alone else f"{shown(uri)}#{scene_id}"),
        offset_applied=next((properties[name] for name in _FLAGS if isinstance(properties.get(name), bool)), None),
        processing_baseline=_baseline(item, properties, chosen),
    )


def _own_uri(item: Json, uri: str) -> str | None:
    """Return where an item says that it lies, in whichever document it was found; None if it does not, or in vain."""
    for link in _links(item):
        if link.get("rel") == "self" and isinstance(link.get("href"), str):
            with contextlib.suppress(DataError, ConfigError):
                return storage.shown(storage.normalise(resolved(link["href"], uri)))
    return None


def _datetime(scene_id: str, properties: Json) -> str | None:
    text = properties.get("datetime") or properties.get("start_datetime")
    if text is None:
        return None
    try:
        return utc_text(datetime.fromisoformat(str(text)))
    except ValueError as error:
        raise DataError(scene_id, f"datetime {text!r} is not like 2024-05-31T10:20:30Z") from error


def _baseline(item: Json, properties: Json, chosen: Mapping[str, _Candidate]) -> str | None:
    """Return the processing baseline that an item names, or else the product's name in it or in a file's URI."""
    stated = [baseline_number(str(properties[name])) for name in _BASELINES if name in properties]
    names = [item["id"], *(str(properties.get(name)) for name in _PRODUCTS)]
    told = [baseline_in_name(name) for name in (*names, *(each.file.uri for each in chosen.values()))]
    return next((number for number in (*stated, *told) if number is not None), None)


def _chosen(scene_id: str, assets: Json, uri: str, bands: Sequence[str]) -> dict[str, _Candidate]:
    """Return the best asset of each band, in the order of `bands`.

    Data before other roles, finer before coarser pixels, GeoTIFF before JPEG 2000, one band before several. A single
    asset whose bands have no names is a file of all bands, which its own descriptions name.
    """
    best: dict[str, _Candidate] = {}
    refused: dict[str, DataError] = {}
    data = {key: asset for key, asset in assets.items() if _is_data(key, asset)}
    for position, (key, asset) in enumerate(data.items()):
        listed = _listed_bands(asset)
        for number, each in enumerate(listed):
            names = _names(key, each, alone=len(listed) == 1)
            band = first_band(names, bands)
            if band is None:
                continue
            try:
                candidate = _candidate(scene_id, key, asset, uri, each, (number, len(listed), position))
            except DataError as error:  # a scheme that nobody can open; the band may have another asset
                refused.setdefault(band, error)
                continue
            if band not in best or candidate.rank < best[band].rank:
                best[band] = candidate
    for band, why in refused.items():
        if band not in best:
            raise why
    if not best:
        return _unnamed(scene_id, data, uri)
    return {band: best[band] for band in bands if band in best}


def _unnamed(scene_id: str, data: Json, uri: str) -> dict[str, _Candidate]:
    """Return the only asset as a file of all bands if it names none of them."""
    if len(data) != 1:
        return {}
    ((key, asset),) = data.items()
    listed = _listed_bands(asset)
    if any(isinstance(each.get(name), str) for each in listed for name in _BAND_NAMES):
        return {}
    only = _candidate(scene_id, key, asset, uri, listed[0], (0, 1, 0))
    return {ALL_BANDS: replace(only, file=only.file.model_copy(update={"index": None}))}


def _is_data(key: str, asset: Json) -> bool:
    """Tell whether an asset may hold reflectance: a raster, and no picture of it, whatever its roles say."""
    href = str(asset.get("href", ""))
    roles = set(asset.get("roles") or ())
    is_file = is_raster(href) or bool(href and _RASTER_TYPE.match(str(asset.get("type", ""))))
    is_picture = bool(_PICTURE_KEY.search(key) or _PICTURE_FILE.search(storage.name_of(shown(href))))
    return is_file and not is_picture and not (roles & NO_DATA_ROLES and "data" not in roles)


def _listed_bands(asset: Json) -> list[dict[str, Any]]:
    """Return what an asset says of each of its bands, by one name for each thing; one band if it lists none."""
    unified, named, measured = (asset.get(name) or [] for name in ("bands", "eo:bands", "raster:bands"))
    bands = unified or named or measured or [{}]
    if len(bands) > MOST_BANDS:
        raise ValueError(f"an asset of {len(bands)} bands, expected at most {MOST_BANDS}")
    # A copy of the whole asset for each of its bands could be gigabytes.
    of_asset = {**_picked(asset, _USED), "name": None, "common_name": None, "description": None}
    merged = []
    for number, band in enumerate(bands):
        values = measured[number] if len(measured) == len(bands) else {}
        merged.append({**of_asset, **_picked(values, _SAID_OF_BANDS), **_picked(band, _SAID_OF_BANDS)})
    return merged


def _picked(said: Json, names: Sequence[str]) -> dict[str, Any]:
    if not isinstance(said, Mapping):
        raise TypeError(f"a band is {type(said).__name__}, expected an object")
    return {name: said[name] for name in names if name in said}


def _names(key: str, band: Json, *, alone: bool) -> list[str]:
    """Return what may name a band, the surest first; the asset's key does if it has no other band."""
    first, *others = (band.get(name) for name in _BAND_NAMES)
    names = [first, _NAMED_RESOLUTION.sub("", key) if alone else None, *others]
    return [name for name in names if isinstance(name, str)]


def _candidate(scene_id: str, key: str, asset: Json, uri: str, band: Json, place: tuple[int, int, int]) -> _Candidate:
    number, count, position = place
    href = str(asset["href"])
    try:
        at = resolved(href, uri)
    except DataError as error:
        raise DataError(scene_id, f"asset {key}: {error}") from error
    roles = set(asset.get("roles") or ())
    nodata = _number(band, "nodata")
    file = BandFile(
        uri=at,
        index=number + 1 if count > 1 else None,  # of one band it is not said which of the file's it is
        scale=_finite(band, "scale"),
        offset=_finite(band, "offset"),
        nodata=nodata if nodata is not None and math.isfinite(nodata) else None,  # no integer is NaN
    )
    is_other = bool(roles) and not roles & {"data", "reflectance"}
    return _Candidate((is_other, _pixel_m(key, band), is_jp2(at), count, position), file, asset.get("file:checksum"))


def _finite(band: Json, name: str) -> float | None:
    value = _number(band, name)
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{name} is {value}, expected a finite number")
    return value


def _number(band: Json, name: str) -> float | None:
    value = band.get(name, band.get(f"raster:{name}"))
    return None if value is None else float(value)


def _pixel_m(key: str, band: Json) -> float:
    """Return the side of a pixel as far as an asset says it, infinity where it does not.

    `gsd` comes last: it is the instrument's, and the same for files of coarser pixels.
    """
    transform = band.get("proj:transform") or [None]
    named = _NAMED_RESOLUTION.search(key) or _NAMED_RESOLUTION.search(id_by_name(str(band["href"])))
    said = (
        band.get("spatial_resolution"),
        band.get("raster:spatial_resolution"),
        transform[0],
        named and named[1],
        band.get("gsd"),
    )
    return next((abs(float(value)) for value in said if value), math.inf)
