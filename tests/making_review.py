"""Reviews made for tests and benchmarks: shards, out-of-fold predictions and a ranking, without a net or a Ray.

Few tiles are generated, and many may share their bytes: the index names the cells of one shard again and again, and
the rasters of predictions are links. So a review of 11,748 tiles takes seconds and the room of a few.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
from numpy.typing import NDArray

from raytrain import storage
from raytrain.config import CellEncoding, ScoreSettings
from raytrain.imagery.synth import generate_window, make_places
from raytrain.imagery.synth_pixels import BAND_NAMES
from raytrain.imagery.synth_places import Place, make_acquisition
from raytrain.review.folder import Review, read_review, write_review
from raytrain.review.kinds import ERROR_KINDS, ErrorKind
from raytrain.review.ranking import (
    FEATURE_NAMES,
    RANKING,
    RANKING_SCHEMA,
    UNLABELLED,
    UNLABELLED_SCHEMA,
    write_table,
)
from raytrain.scoring.destination import Scoring, claim_destination
from raytrain.scoring.layers import NO_DATA, STEPS
from raytrain.tiles.format import ShardWriter, Tile, index_schema, row_of
from raytrain.tiles.reader import read_manifest, shards_digest

TILES_OF_SCENE = 3
"""How many tiles of a place share a day, and so are neighbours."""
SCORING = Scoring(
    ensemble="e" * 64,
    members=("one", "other"),
    settings=ScoreSettings(probability="uint8", disagreement="uint8"),
    out_of_fold=True,
)


@dataclass(frozen=True)
class MadeReview:
    """Where the parts of a made review lie, and the ids of its tiles, by rank."""

    uri: str
    shards: str
    predictions: str
    tile_ids: tuple[str, ...]
    sha256: dict[str, str]
    kinds: dict[str, ErrorKind]
    size_px: int


@dataclass(frozen=True)
class Content:
    """What tiles look like: bands `[4, H, W]`, the truth, the label with its error, what the ensemble says."""

    place: Place
    bands: NDArray[np.uint16]
    truth: NDArray[np.uint8]
    label: NDArray[np.uint8]
    probability: NDArray[np.float32]
    disagreement: NDArray[np.float32]
    kind: ErrorKind
    is_wrong: bool


def make_review(
    folder: Path,
    count: int = 24,
    size_px: int = 64,
    distinct: int = 24,
    encoding: CellEncoding = "blosc2-bitshuffle-zstd",
    num_places: int = 6,
    num_unlabelled: int = 5,
    *,
    apart: bool = False,
) -> MadeReview:
    """Make a review of `count` tiles in `folder`, of which `distinct` differ in pixels; two in three are wrong.

    Tiles of the same pixels are about equally suspicious, and so beside each other in the ranking; with `apart`, the
    first `distinct` tiles of it all differ, and the next as many, and so on. `folder/shards`, `folder/predictions` and
    `folder/review`; the same arguments give the same bytes.
    """
    distinct = min(distinct, count)
    places = make_places(min(num_places, distinct), seed=5)
    contents = [_content(i, places[i % len(places)], size_px) for i in range(distinct)]
    tiles = [_tile(contents[i % distinct], i, distinct, size_px) for i in range(count)]
    shards, predictions, review = (str(folder / name) for name in ("shards", "predictions", "review"))
    write_shared_shards(shards, tiles, distinct, encoding)
    _write_predictions(Path(predictions), tiles, contents)
    claim_destination(predictions, SCORING)
    rows = _ranked(tiles, contents, apart=apart)
    write_table(review, RANKING, pa.Table.from_pylist(rows, schema=RANKING_SCHEMA))
    write_table(review, UNLABELLED, pa.Table.from_pylist(_unlabelled(num_unlabelled), schema=UNLABELLED_SCHEMA))
    write_review(
        review,
        Review(
            shards=shards,
            shards_digest=shards_digest(read_manifest(shards)),
            predictions=predictions,
            scoring_digest=SCORING.digest(),
            threshold=0.5,
            bands=BAND_NAMES,
            num_labelled=count,
            num_unlabelled=num_unlabelled,
        ),
    )
    return MadeReview(
        review,
        shards,
        predictions,
        tuple(row["tile_id"] for row in rows),
        {row["tile_id"]: row["sha256"] for row in rows},
        {row["tile_id"]: row["kind"] for row in rows},
        size_px,
    )


def copy_to_store(made: MadeReview, uri: str) -> MadeReview:
    """Copy a made review to a store, where it is one of the shards and predictions that lie beside it there."""
    copied = replace(made, **{name: storage.join(uri, name) for name in ("shards", "predictions")}, uri=f"{uri}/review")
    for source, target in (
        (made.uri, copied.uri),
        (made.shards, copied.shards),
        (made.predictions, copied.predictions),
    ):
        for path in Path(source).rglob("*"):
            if path.is_file():
                storage.write_bytes(storage.join(target, path.relative_to(source).as_posix()), path.read_bytes())
    old = read_review(made.uri)
    places = {"shards": copied.shards, "predictions": copied.predictions}
    write_review(copied.uri, old.model_copy(update=places))
    return copied


def write_shared_shards(uri: str, tiles: list[Tile], distinct: int, encoding: CellEncoding) -> None:
    """Write one shard of the first `distinct` tiles, and an index of all: tile i has the pixels of i % distinct."""
    writer = ShardWriter("shard-00000.parquet", BAND_NAMES, encoding)
    for tile in tiles[:distinct]:
        writer.add(tile)
    data, written = writer.finish()
    storage.write_bytes(storage.join(uri, "shard-00000.parquet"), data)
    described = ("tile_id", "location", "datetime", "crs", "transform", "source_uri")
    rows = []
    for i, tile in enumerate(tiles):
        own = row_of(tile) if i < distinct else {"datetime": tile.taken, **vars(tile)}
        # The hash is over the pixels alone, so it is that of the tile whose pixels these are.
        rows.append({**written[i % distinct], **{name: own[name] for name in described}, "fold": i % 2})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=index_schema(BAND_NAMES)), sink)
    index = sink.getvalue().to_pybytes()
    storage.write_bytes(storage.join(uri, "index.parquet"), index)
    shard = {
        "name": "shard-00000.parquet",
        "sha256": storage.sha256_of(data),
        "bytes": len(data),
        "num_tiles": distinct,
    }
    manifest = {
        "format_version": 1,
        "cell_encoding": encoding,
        "bands": list(BAND_NAMES),
        "shards": [shard],
        "index": {"bytes": len(index), "sha256": storage.sha256_of(index)},
        "settings": {},
        "source": {"folds_digest": ""},
        "left_out": [],
    }
    storage.write_bytes(storage.join(uri, "manifest.json"), json.dumps(manifest).encode())


def relabel(made: MadeReview, tile_id: str) -> str:
    """Change the label of one tile of the shards, in place, and return the tile's new hash.

    As if the shards were made anew at the same URI: shard, index and manifest are others afterwards. Only for reviews
    whose tiles all differ.
    """
    from raytrain.tiles.reader import TileReader, read_index

    index = read_index(made.shards)
    reader = TileReader(made.shards, BAND_NAMES)
    encoding: CellEncoding = read_manifest(made.shards)["cell_encoding"]
    tiles = []
    for i, row in enumerate(index.to_pylist()):
        bands, label = reader.read(i)
        assert label is not None
        if row["tile_id"] == tile_id:
            label = 1 - np.minimum(label, 1)
        tiles.append(
            Tile(
                row["tile_id"],
                row["location"],
                row["datetime"],
                dict(zip(BAND_NAMES, bands, strict=True)),
                label,
                row["valid_fraction"],
                row["cloud_fraction"],
                row["crs"],
                tuple(row["transform"]),
                row["source_uri"],
            )
        )
    write_shared_shards(made.shards, tiles, len(tiles), encoding)
    return next(tile.sha256() for tile in tiles if tile.tile_id == tile_id)


def _content(i: int, place: Place, size_px: int) -> Content:
    bands, truth = generate_window(place, i, 0, size_px * (i // 8), size_px, size_px)
    if not 0.05 < (truth == 1).mean() < 0.9:  # a day without a cloud shows no error of a label
        truth = _blobs(i, size_px)
        bands = np.where(truth[None] == 1, np.uint16(8000) + bands // 8, bands).astype(np.uint16)
    kind = ERROR_KINDS[i % len(ERROR_KINDS)]
    is_wrong = i % 3 < 2
    label = corrupted(truth, kind, i) if is_wrong else truth
    soft = cv2.GaussianBlur((truth == 1).astype(np.float32), (0, 0), max(1.0, size_px / 96))
    noise = cv2.GaussianBlur(np.random.default_rng(i).normal(0, 0.2, soft.shape).astype(np.float32), (0, 0), 3)
    probability = np.clip(soft + noise, 0, 1)
    disagreement = np.sqrt(probability * (1 - probability)) * np.float32(0.6)
    return Content(place, bands, truth, label, probability, np.minimum(disagreement, 0.5), kind, is_wrong)


def corrupted(truth: NDArray[np.uint8], kind: ErrorKind, seed: int) -> NDArray[np.uint8]:
    """Return a label with an error of this kind, of 64ths of the side."""
    size = truth.shape[0]
    step = max(2, size // 20)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * step + 1, 2 * step + 1))
    match kind:
        case "empty":
            return np.zeros_like(truth)
        case "full":
            return np.ones_like(truth)
        case "noise":
            return _blobs(seed + 1000, size)
        case "shifted":
            return np.roll(truth, (step, step), (0, 1))
        case "loose-outline":
            return cv2.dilate(truth, kernel).astype(np.uint8)
        case "tight-outline":
            return cv2.erode(truth, kernel).astype(np.uint8)
    label = truth.copy()
    half = slice(None, size // 2)
    label[half] = 0 if kind == "missing-cloud" else np.maximum(label, _blobs(seed + 2000, size))[half]
    return label


def _blobs(seed: int, size_px: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(size=(size_px, size_px)).astype(np.float32)
    return (cv2.GaussianBlur(noise, (0, 0), size_px / 10) > 0).astype(np.uint8)


def _tile(content: Content, i: int, distinct: int, size_px: int) -> Tile:
    round_number = i // distinct
    scene = i // TILES_OF_SCENE
    day = make_acquisition(content.place, 0).when.replace(microsecond=0) + timedelta(days=scene // 7)
    return Tile(
        tile_id=f"p{content.place.index:02d}c{i:05d}",
        location=content.place.name,
        taken=None if i % 11 == 10 else day,
        bands=dict(zip(BAND_NAMES, content.bands, strict=True)),
        label=content.label,
        valid_fraction=1.0,
        cloud_fraction=float((content.label == 1).mean()),
        crs=f"EPSG:{content.place.epsg}",
        transform=(10.0, 0.0, 3e5 + 10.0 * size_px * round_number, 0.0, -10.0, 5e6),
        source_uri=f"s3://bucket/chips/p{content.place.index:02d}c{i:05d}",
    )


def stored(values: NDArray[np.float32], largest: float) -> NDArray[np.uint8]:
    """Return a layer as scoring stores it: 0 to 254 of its largest value."""
    return np.rint(values / largest * STEPS).astype(np.uint8)


def write_layer(path: Path, stored: NDArray[Any], scale: float = 1.0) -> None:
    """Write a raster of predictions as scoring does: one band, and by what its values are multiplied."""
    height, width = stored.shape
    shape = {"count": 1, "height": height, "width": width}
    nodata = NO_DATA if stored.dtype == np.uint8 else float("nan")
    with rasterio.open(
        path, "w", driver="GTiff", dtype=stored.dtype, nodata=nodata, compress="deflate", **shape
    ) as out:
        out.write(stored, 1)
        if scale != 1:
            out.scales = (scale,)


def _write_predictions(folder: Path, tiles: list[Tile], contents: list[Content]) -> None:
    for name in ("", "probability", "disagreement"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i, tile in enumerate(tiles):
        content = contents[i % len(contents)]
        first = tiles[i % len(contents)].tile_id
        layers = {
            "": (content.probability >= 0.5).astype(np.uint8),
            "probability": stored(content.probability, 1.0),
            "disagreement": stored(content.disagreement, 0.5),
        }
        for name, pixels in layers.items():
            path = folder / name / f"{tile.tile_id}.tif"
            if i < len(contents):
                write_layer(path, pixels, {"": 1.0, "probability": 1 / STEPS, "disagreement": 0.5 / STEPS}[name])
            else:
                os.link(folder / name / f"{first}.tif", path)


def _ranked(tiles: list[Tile], contents: list[Content], *, apart: bool) -> list[dict[str, Any]]:
    """Return the rows of the ranking: by a suspicion that the error of the label and a little chance make up.

    With `apart` it comes second, after how many tiles before have the same pixels.
    """
    rounds = -(-len(tiles) // len(contents))
    draw = np.random.default_rng(7)
    hashes = [replace(tile).sha256() for tile in tiles[: len(contents)]]
    rows = []
    for i, tile in enumerate(tiles):
        content = contents[i % len(contents)]
        predicted, labelled = content.probability >= 0.5, content.label == 1
        union = (predicted | labelled).sum()
        iou = float((predicted & labelled).sum() / union) if union else 1.0
        suspicion = float(np.clip((1 - iou) * 0.9 + draw.uniform(0, 0.1), 0, 1))
        if apart:
            suspicion = (rounds - 1 - i // len(contents) + suspicion) / rounds
        features = dict.fromkeys(FEATURE_NAMES, 0.0) | {
            "iou": iou,
            "missing_fraction": float((predicted & ~labelled).mean()),
            "false_fraction": float((labelled & ~predicted).mean()),
            "boundary_px": None,
            "label_fraction": float(labelled.mean()),
            "predicted_fraction": float(predicted.mean()),
            "disagreement_mean": float(content.disagreement.mean()),
        }
        of_kinds = {f"suspicion_{kind}": suspicion * (1.0 if kind == content.kind else 0.3) for kind in ERROR_KINDS}
        height, width = tile.shape
        rows.append(
            {
                "position": i,
                "tile_id": tile.tile_id,
                "location": tile.location,
                "sha256": hashes[i % len(contents)],
                "fold": i % 2,
                "datetime": tile.taken,
                "height": height,
                "width": width,
                "source_uri": tile.source_uri,
                "suspicion": suspicion,
                "kind": content.kind,
                **of_kinds,
                **features,
            }
        )
    rows.sort(key=lambda row: (-row["suspicion"], row["tile_id"]))
    return [{"rank": rank, **row} for rank, row in enumerate(rows, start=1)]


def _unlabelled(count: int) -> list[dict[str, Any]]:
    return [
        {
            "rank": i + 1,
            "item_id": f"scene{i}",
            "kind": "scene",
            "source_uri": f"s3://bucket/scenes/scene{i}.tif",
            "location": None,
            "datetime": None,
            "height": 10980,
            "width": 10980,
            "disagreement_mean": 0.4 - i / 100,
            "cloud_fraction": 0.5,
        }
        for i in range(count)
    ]
