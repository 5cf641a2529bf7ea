"""What a folder of a review holds: `review.json` says of which shards and predictions, the rest lies beside it.

Must not know what a ranking or a decision is made of.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from raytrain import __version__, storage
from raytrain.config import Settings, parse
from raytrain.errors import ConfigError
from raytrain.tiles.reader import shards_digest

REVIEW_FILE = "review.json"
RANKING = "ranking.parquet"
"""Labelled tiles, the most suspicious first."""
UNLABELLED = "unlabelled.parquet"
"""Tiles and scenes without a label, those most worth one first."""
DECISIONS = "decisions"
"""The folder of the log of decisions: `<reviewer>/<decision_id>.json`."""
FORMAT_VERSION = 1


class Review(Settings):
    """What was ranked: the shards, and the predictions that their labels were held against.

    `shards_digest` is that of `tiles.reader.shards_digest`; `scoring_digest` that of what the predictions were made
    with. `threshold` is the probability from which a pixel is predicted cloud. `bands` are those of the shards.
    """

    format_version: int = FORMAT_VERSION
    shards: str
    shards_digest: str
    predictions: str
    scoring_digest: str
    threshold: float
    bands: tuple[str, ...]
    num_labelled: int
    num_unlabelled: int
    raytrain_version: str = __version__


def read_review(uri: str) -> Review:
    """Return what the folder `uri` is a review of; raise `ConfigError` where it is none."""
    path = storage.join(uri, REVIEW_FILE)
    try:
        values = storage.read_json(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file, so no finished ranking; make it with raytrain review rank") from error
    if values.get("format_version") != FORMAT_VERSION:
        found = values.get("format_version")
        raise ConfigError(f"{path}: a review of format version {found}; this raytrain reads {FORMAT_VERSION}")
    return parse(Review, values, path)


def is_ranked(uri: str) -> bool:
    """Tell whether a ranking stands in the folder `uri`, of whichever version."""
    return storage.exists(storage.join(uri, REVIEW_FILE))


def is_of_review(name: str) -> bool:
    """Tell whether a file of this name, relative to a folder, is one that a review has there."""
    return name in (REVIEW_FILE, RANKING, UNLABELLED) or name.startswith(f"{DECISIONS}/")


def withdraw(uri: str) -> None:
    """Remove `review.json`, before what it speaks of changes: the ranking is unfinished then."""
    storage.remove(storage.join(uri, REVIEW_FILE))


def check_shards(uri: str, review: Review, manifest: Mapping[str, Any]) -> None:
    """Raise `ConfigError` where the shards, by their `manifest`, are others than those that were ranked in `uri`."""
    found = shards_digest(manifest)
    if found != review.shards_digest:
        raise ConfigError(
            f"{review.shards}: other shards than those that {uri} is a ranking of (found {found[:12]}, ranked "
            f"{review.shards_digest[:12]}); rank again into a new folder NEW, and take the decisions along whose tiles "
            f"are the same: raytrain review merge NEW {uri}"
        )


def write_review(uri: str, review: Review) -> None:
    """Write `review.json`, which makes the ranking whole: after all that lies beside it."""
    storage.write_bytes(storage.join(uri, REVIEW_FILE), f"{review.model_dump_json(indent=1)}\n".encode())


def check_apart(uri: str, others: Mapping[str, str]) -> None:
    """Raise `ConfigError` for a destination that is, or lies in, one of `others`, by what it is, or would hold it."""
    dst = _real(uri)
    for what, other_uri in others.items():
        other = _real(other_uri)
        if dst == other or dst.startswith(f"{other}/") or other.startswith(f"{dst}/"):
            raise ConfigError(
                f"{uri}: nothing is written over or into what is read, here the {what} at {other_uri}; choose another "
                "destination"
            )


def _real(uri: str) -> str:
    place = storage.normalise(uri)
    return os.path.realpath(place) if storage.is_local(place) else place
