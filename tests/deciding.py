"""Decisions and reviews made for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raytrain.review.decisions import Decision
from raytrain.review.folder import Review, write_review
from raytrain.review.log import DecisionLog
from raytrain.tiles.reader import read_index, read_manifest, shards_digest


def decide(i: int = 1, **changes: Any) -> Decision:
    """Return the decision with the id and the number `i`: by default ann accepts tile0."""
    values: dict[str, Any] = {
        "decision_id": f"{i:032x}",
        "reviewer": "ann",
        "number": i,
        "time": "2026-11-27T10:00:00.000Z",
        "tile_id": "tile0",
        "tile_sha256": "0" * 64,
        "verdict": "accept",
    }
    return Decision(**{**values, **changes})


def make_review(folder: Path | str, shards: Path | str) -> str:
    """Write what makes a folder a review of these shards, without a ranking, and return its URI."""
    manifest = read_manifest(str(shards))
    values: dict[str, Any] = {"shards": str(shards), "shards_digest": shards_digest(manifest), "num_unlabelled": 0}
    values |= {"predictions": f"{shards}-predictions", "scoring_digest": "", "threshold": 0.5}
    bands, count = tuple(manifest["bands"]), sum(record["num_tiles"] for record in manifest["shards"])
    write_review(str(folder), Review(**values, bands=bands, num_labelled=count))
    return str(folder)


def decide_on(review: str, shards: Path | str, tile_id: str, i: int, **changes: Any) -> Decision:
    """Add the decision `i` about a tile as it stands in the shards to the log of a review, and return it."""
    hashes = {row["tile_id"]: row["sha256"] for row in read_index(str(shards), ["tile_id", "sha256"]).to_pylist()}
    decision = decide(i, tile_id=tile_id, **{"tile_sha256": hashes[tile_id], **changes})
    DecisionLog(review).append(decision)
    return decision
