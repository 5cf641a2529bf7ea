"""Predictions at a destination of scoring without nets: each tile's is what a function makes of its label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raytrain import storage
from raytrain.config import ScoreSettings
from raytrain.imagery import rasters
from raytrain.scoring import ledger
from raytrain.scoring.destination import Scoring, claim_destination
from raytrain.scoring.layers import create_striped, encode, finish_cog
from raytrain.scoring.records import Output, Record
from raytrain.scoring.units import tile_identity
from raytrain.scoring.work import layers_of
from raytrain.tiles.reader import TileReader, read_index

Predict = Callable[[str, NDArray[np.uint8] | None], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""From a tile's id and label `[H, W]` to its probability and the members' disagreement."""
BANDS = ("B02", "B04")
"""Those that the predictions are said to be made of."""
LAYERS = ScoreSettings(probability="uint8", disagreement="uint8")


def predict_tiles(uri: str, shards: str, predict: Predict, **changes: object) -> Scoring:
    """Write masks, layers and the ledger of all tiles of `shards`, as scoring out of fold does."""
    scoring = Scoring(**{"ensemble": "e", "members": ("m",), "settings": LAYERS, "out_of_fold": True, **changes})
    claim_destination(uri, scoring)
    reader = TileReader(shards, BANDS)
    enter(
        uri,
        shards,
        [
            _record(uri, scoring, tile_id, *predict(tile_id, reader.read(i)[1]))
            for i, tile_id in enumerate(reader.tile_ids)
        ],
    )
    return scoring


def enter(uri: str, shards: str, records: Sequence[Record]) -> None:
    """Write the ledger of all tiles of `shards`, from records in their order that lack what a tile is known by."""
    reader = TileReader(shards, BANDS, labels=False)
    places = read_index(shards, ["crs", "transform"]).to_pylist()
    whole = []
    for i, record in enumerate(records):
        identity = tile_identity(reader.pixels_identity(i), **places[i], fold=0)
        known_by = {"source_uri": shards, "identity": identity, "fold": 0, "bands": BANDS}
        whole.append(record.model_copy(update=known_by))
    ledger.enter(uri, whole)
    ledger.compact(uri)


def _record(
    uri: str,
    scoring: Scoring,
    tile_id: str,
    probability: NDArray[np.float32],
    disagreement: NDArray[np.float32],
) -> Record:
    cloud = (probability >= scoring.settings.threshold).astype(np.uint8)
    mask = rasters.mask_tiff(cloud, rasters.Georeference(None, None))
    storage.write_bytes(storage.join(uri, f"{tile_id}.tif"), mask)
    outputs = {"mask": Output(key=f"{tile_id}.tif", sha256=storage.sha256_of(mask), num_bytes=len(mask))}
    layers = layers_of(scoring)
    for kind, values in (("probability", probability), ("disagreement", disagreement)):
        if kind in layers.kinds:
            path = Path(storage.path_of(uri)) / f"{kind}-{tile_id}"
            layer = layers.layer(kind)
            with create_striped(path, layer, *values.shape, None, None) as target:
                target.write(encode(layer, values, np.ones(values.shape, bool), 0.5), 1)
            at = Path(storage.path_of(storage.join(uri, layer.key(tile_id))))
            at.parent.mkdir(exist_ok=True)
            finish_cog(path, at, layer)
            path.unlink()
            data = at.read_bytes()
            outputs[kind] = Output(key=layer.key(tile_id), sha256=storage.sha256_of(data), num_bytes=len(data))
    height, width = probability.shape
    return Record(
        item_id=tile_id,
        kind="tile",
        source_uri="",
        identity="",
        settings_digest=scoring.digest(),
        outputs=outputs,
        height=height,
        width=width,
        valid_px=height * width,
        cloud_px=int(cloud.sum()),
        disagreement_mean=float(disagreement.mean()) if "disagreement" in layers.kinds else None,
    )
