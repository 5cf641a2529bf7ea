"""A review that is being served: its ranking, its shards as they are now, pictures of them, and the decisions so far.

All of it blocks, and may be used by many threads. Must not know HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from raytrain import __version__, storage
from raytrain.config import LoaderSettings
from raytrain.errors import ConfigError, DataError
from raytrain.evaluation.tone import TRUE_COLOUR_BANDS
from raytrain.review.asked import AskedDecision, OtherTile
from raytrain.review.board import FINAL_VERDICTS, REFRESH_S, Board
from raytrain.review.catalogue import Catalogue, plain
from raytrain.review.decisions import Decision
from raytrain.review.folder import Review, check_shards, read_review
from raytrain.review.images import (
    PICTURE_BANDS,
    Images,
    MaskLayer,
    PictureLayer,
    Raw,
    Seen,
    Stretch,
    ValueLayer,
    zipped,
)
from raytrain.review.log import DecisionLog
from raytrain.review.predicted import Predictions, open_predictions
from raytrain.review.ranking import read_ranking, read_unlabelled
from raytrain.review.regions import label_after
from raytrain.review.shards_now import ShardsNow, Snapshot
from raytrain.tiles.reader import read_manifest

GLANCE_S = 2.0
"""How old the look at the shards may be that pictures are made by; decisions look anew."""

MadeT = TypeVar("MadeT")


class NoSuchTile(LookupError):
    """The ranking has no tile of this name, or what was asked for of it is not there."""


@dataclass(frozen=True)
class Found:
    """A tile of the ranking, in the shards as they are now; `position` and `sha256` are None where it is gone."""

    row: int
    tile_id: str
    snapshot: Snapshot
    position: int | None
    sha256: str | None


class Desk:
    """The review in the folder `uri`, opened.

    Raises `ConfigError` where there is none, its shards or predictions are others than those that it was made of, or
    the shards have no bands for a picture.
    """

    def __init__(self, uri: str, loader: LoaderSettings | None = None, refresh_s: float = REFRESH_S) -> None:
        self.uri = uri
        self.review = read_review(uri)
        check_shards(uri, self.review, read_manifest(self.review.shards))
        self.catalogue = Catalogue(read_ranking(uri))
        self.unlabelled = read_unlabelled(uri)
        self._shards = ShardsNow(self.review.shards, _bands_of_pictures(self.review), loader)
        self._images = Images(_predictions(uri, self.review))
        self.board = Board(DecisionLog(uri), self.catalogue, refresh_s)

    @cached_property
    def version(self) -> str:
        """What differs where pictures, masks or values of a tile may: a page that names it may keep what it gets."""
        parts = [self.review.shards_digest, self.review.scoring_digest, self.review.predictions, __version__]
        return storage.sha256_of("\n".join(parts).encode())[:16]

    @cached_property
    def review_id(self) -> str:
        """What tells this review from others at the same address: what a page keeps for one goes to no other."""
        parts = [self.uri, self.review.shards_digest, self.review.scoring_digest]
        return storage.sha256_of("\n".join(parts).encode())[:16]

    @property
    def has_false_colour(self) -> bool:
        """Whether the shards have the bands of false colour."""
        return set(PICTURE_BANDS["false-colour"]) <= set(self.review.bands)

    def about(self, reviewer: str) -> dict[str, Any]:
        """Return what a page shows of the review as a whole."""
        return {
            "shards": self.review.shards,
            "predictions": self.review.predictions,
            "num_tiles": len(self.catalogue),
            "num_unlabelled": self.unlabelled.num_rows,
            "threshold": self.review.threshold,
            "bands": list(self.review.bands),
            "has_false_colour": self.has_false_colour,
            "kinds": self.catalogue.kind_counts(),
            "locations": self.catalogue.location_counts(),
            "verdicts": list(FINAL_VERDICTS),
            "reviewer": reviewer,
            "version": self.version,
            "review_id": self.review_id,
            "cursor": self.board.cursor,
            "raytrain_version": __version__,
        }

    def unlabelled_items(self, offset: int, limit: int) -> list[dict[str, Any]]:
        """Return some rows of what has no label yet, those most worth one first."""
        return [plain(row) for row in self.unlabelled.slice(offset, limit).to_pylist()]

    def find(self, tile_id: str, max_age_s: float = GLANCE_S) -> Found:
        """Return where a tile is now; raise `NoSuchTile` for one that was not ranked."""
        row = self.catalogue.row_of(tile_id)
        if row is None:
            raise NoSuchTile(f"no tile {tile_id!r} in this ranking")
        snapshot = self._shards.snapshot(max_age_s)
        position = snapshot.position_of(tile_id, self.catalogue.position(row))
        sha256 = None if position is None else snapshot.sha256_of(position)
        return Found(row, tile_id, snapshot, position, sha256)

    def tile(self, tile_id: str, reviewer: str | None) -> dict[str, Any]:
        """Return all that is known of a tile, its neighbours with what `reviewer` decided, and who decided what."""
        found = self.find(tile_id)
        tile = self.catalogue.tile(found.row)
        rows = self.catalogue.neighbours(found.row)
        neighbours = [
            {"tile_id": each["tile_id"], "rank": each["rank"], "kind": each["kind"], "suspicion": each["suspicion"]}
            | {"sha256": each["sha256"], "verdict": verdicts.get(reviewer or ""), "decisions": verdicts}
            for each, verdicts in zip(self.catalogue.tiles(rows), self.board.verdicts(rows), strict=True)
        ]
        standing = self.board.standing(tile_id)
        return tile | {
            "sha256_now": found.sha256,
            "hash_changed": found.sha256 != tile["sha256"],
            "decisions": {name: shown(decision) for name, decision in standing.items()},
            "history": [shown(decision) for decision in self.board.history(tile_id)],
            "neighbours": neighbours,
        }

    def picture(
        self, tile_id: str, sha256: str, layer: PictureLayer, stretch: Stretch, max_px: int | None = None
    ) -> bytes:
        """Return a JPEG of a tile; raise `OtherTile` where `sha256` is not its hash now."""
        if layer == "false-colour" and not self.has_false_colour:
            raise NoSuchTile(f"no false colour: it needs {', '.join(PICTURE_BANDS[layer])}; there is no B08")
        return self._made(tile_id, sha256, lambda seen: self._images.picture(seen, layer, stretch, max_px))

    def mask(self, tile_id: str, sha256: str, layer: MaskLayer) -> Raw:
        """Return the label or the prediction of a tile; raise `OtherTile` where `sha256` is not its hash now."""
        return self._made(tile_id, sha256, lambda seen: self._images.mask(seen, layer))

    def values(self, tile_id: str, sha256: str, layer: ValueLayer) -> Raw:
        """Return probabilities or disagreement of a tile; raise `OtherTile` where `sha256` is not its hash now."""
        return self._made(tile_id, sha256, lambda seen: self._images.values(seen, layer))

    def label_now(self, tile_id: str, sha256: str, reviewer: str) -> Raw:
        """Return the label of a tile as what `reviewer` decided makes it: repaired, or with a region of 255."""
        decision = self.board.standing(tile_id).get(reviewer)

        def make(seen: Seen) -> Raw:
            pixels = self._images.pixels(seen)
            if decision is None or decision.tile_sha256 != sha256:
                return zipped(pixels.label)
            after = label_after(decision, pixels.label, (pixels.bands != 0).any(0))
            return zipped(pixels.label if after is None else after)

        return self._made(tile_id, sha256, make)

    def decide(self, asked: AskedDecision) -> tuple[Decision, bool]:
        """Write a decision to the log and return its entry, and whether it is new: the same may be asked again.

        One at a time of each reviewer. Raises `OtherTile` where the tile has another hash now, `NotAccepted` for what
        can't be a decision, `NoSuchTile` for a tile that was not ranked; nothing is written then.
        """
        self.board.begin_look()  # for the next one: this one does not wait for what others decided
        known = self.board.entry(asked.reviewer, asked.decision_id)
        if known is not None and asked.is_asked_again(known):
            return known, False
        found = self.find(asked.tile_id, max_age_s=0)
        if found.position is None or found.sha256 != asked.tile_sha256:
            raise OtherTile(asked.tile_id, found.sha256)
        asked.check_mask(found.snapshot.shape_of(found.position))
        asked.check_undo(None if asked.undoes is None else self.board.entry_now(asked.reviewer, asked.undoes))
        number, last_time = self.board.next_number(asked.reviewer), self.board.last_time(asked.reviewer)
        decision = asked.entry(number, last_time)
        try:
            self.board.add(decision)
        except DataError:
            # Another server wrote this very decision, perhaps one that was killed before it could say so.
            self.board.look_now()
            known = self.board.entry(asked.reviewer, asked.decision_id)
            if known is None or not asked.is_asked_again(known):
                raise
            return known, False
        return decision, True

    def _made(self, tile_id: str, sha256: str, make: Callable[[Seen], MadeT]) -> MadeT:
        """Return what `make` makes of a tile; raise `OtherTile` where `sha256` is not its hash now."""
        seen = self._seen(tile_id, sha256, GLANCE_S)
        try:
            return make(seen)
        except FileNotFoundError as error:
            raise NoSuchTile(f"tile {tile_id}: no such file: {error}") from error
        except DataError:
            # Where the shards were written anew a moment ago, this is another tile, which is told before.
            again = self._seen(tile_id, sha256, 0)
            if again.reader is seen.reader:
                raise
            return make(again)

    def _seen(self, tile_id: str, sha256: str, max_age_s: float) -> Seen:
        found = self.find(tile_id, max_age_s)
        if found.position is None or found.sha256 != sha256:
            raise OtherTile(tile_id, found.sha256)
        return Seen(found.snapshot.reader, found.position, tile_id, sha256)


def shown(decision: Decision) -> dict[str, Any]:
    """Return a decision as a page gets it: without its mask, which may be large, but with whether there is one."""
    return {
        **decision.model_dump(mode="json", exclude={"mask", "format_version"}),
        "has_mask": decision.mask is not None,
    }


def _predictions(uri: str, review: Review) -> Predictions:
    """Return the predictions; raise `ConfigError` where they are others than those that labels were held against."""
    predictions = open_predictions(review.predictions)
    found = predictions.scoring.digest()
    if found != review.scoring_digest:
        raise ConfigError(
            f"{review.predictions}: other predictions than those that {uri} is a ranking by (found {found[:12]}, "
            f"ranked {review.scoring_digest[:12]}); rank again into a new folder"
        )
    return predictions


def _bands_of_pictures(review: Review) -> tuple[str, ...]:
    missing = [band for band in TRUE_COLOUR_BANDS if band not in review.bands]
    if missing:
        raise ConfigError(f"{review.shards}: a page needs bands B04, B03 and B02; there is no {', '.join(missing)}")
    wanted = {band for bands in PICTURE_BANDS.values() for band in bands}
    return tuple(band for band in review.bands if band in wanted)
