"""Logs between folders of reviews: exported as a table, copied from one to another, held against each other.

Must not know the command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from raytrain import storage
from raytrain.config import choose
from raytrain.errors import ConfigError, DataError
from raytrain.review.carrying import MadeBy, carried
from raytrain.review.comparing import Difference, Pixels, differences, of_reviewer
from raytrain.review.decisions import Decision
from raytrain.review.folder import Review, check_shards, read_review
from raytrain.review.log import READERS, DecisionLog
from raytrain.review.standing import Agreement, Progress, agreement_of, progress_of, standing_of
from raytrain.review.table import decision_table, key_of, standing_keys, write_export
from raytrain.tiles.parts import DECISIONS_TABLE
from raytrain.tiles.reader import TileReader, read_index, read_manifest

Tile = tuple[str, str]
"""Id and sha256 of a tile."""


@dataclass(frozen=True)
class Exported:
    """What an export has: entries, how many of them stand, how far each reviewer is; and what in the log is wrong."""

    num_entries: int
    num_standing: int
    reviewers: list[Progress]
    problems: list[DataError]


def export(review_uri: str, out: str) -> Exported:
    """Write all entries of a log as a Parquet file at `out`, in place of an older export.

    Raises `ConfigError` for a name of another format, for a place in the review or among its shards, and where anything
    else stands there.
    """
    review = read_review(review_uri)
    for what, folder in (("review", review_uri), ("shards", review.shards), ("predictions", review.predictions)):
        if out == folder or out.startswith(f"{folder}/"):
            raise ConfigError(f"{out}: lies in the folder of the {what}; choose another place")
    if not out.endswith(".parquet"):
        raise ConfigError(f"{out}: the export is a Parquet file; give a name that ends in .parquet")
    log = DecisionLog(review_uri)
    decisions = log.read_all()
    standing = standing_of(decisions)
    keys = standing_keys(standing)
    table, problems = decision_table(decisions, keys)
    write_export(out, table)
    return Exported(len(decisions), len(keys), progress_of(decisions, standing), [*log.problems, *problems])


@dataclass(frozen=True)
class Merged:
    """What was copied: entries that are new in the log, those that it had; and what in the other log is wrong.

    `num_settled` were not copied, since the shards were made by them, or by what took their place.
    """

    num_new: int
    num_known: int
    num_settled: int
    problems: list[DataError]


def merge(review_uri: str, other_uri: str) -> Merged:
    """Copy the entries of another log into this one, which it may be gone on with; nothing is overwritten.

    Of a review of other shards those about tiles that are the same here. Of the rest those that this review's shards
    were made by (`raytrain review apply`) are counted; each other one is a problem, as is an entry whose id another one
    has here. Raises `ConfigError` where this review's shards are no more those that were ranked.
    """
    if review_uri == other_uri:
        raise ConfigError(f"{review_uri}: given as both folders; name another one, whose decisions are to be copied")
    review, of_other = read_review(review_uri), read_review(other_uri)
    log, other = DecisionLog(review_uri), DecisionLog(other_uri)
    own, entries = log.read_all(), other.read_all()
    left: list[DataError] = []
    num_settled = 0
    if review.shards_digest != of_other.shards_digest:
        manifest = read_manifest(review.shards)
        check_shards(review_uri, review, manifest)
        made_by = _made_by(review.shards, manifest, of_other.shards_digest)
        found = carried(entries, own, _hashes(review, manifest), review.shards, made_by)
        entries, left, num_settled = found.held, found.problems, found.num_settled

    def add(decision: Decision) -> bool | DataError:
        try:
            return log.append(decision)
        except DataError as error:
            return error

    with ThreadPoolExecutor(READERS) as pool:
        added = list(pool.map(add, entries))
    refused = [each for each in added if isinstance(each, DataError)]
    problems = [*other.problems, *left, *refused]
    return Merged(added.count(True), added.count(False), num_settled, problems)


def _made_by(shards: str, manifest: Mapping[str, Any], parent_digest: str) -> MadeBy:
    """Return by which decisions `shards` were made of those with this digest; none where they were not."""
    if manifest.get("parent", {}).get("shards_digest") != parent_digest:
        return MadeBy()
    path = storage.join(shards, DECISIONS_TABLE)
    try:
        with storage.open_ranged(path) as file:
            columns = ["reviewer", "decision_id", "tile_id", "outcome"]
            rows = storage.open_parquet(file).read(columns).to_pylist()
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file, but the manifest names it; raytrain verify tells more") from error
    counted = [each for each in rows if each["outcome"] != "left"]
    keys = frozenset((each["reviewer"], each["decision_id"]) for each in counted)
    return MadeBy(keys, frozenset(each["tile_id"] for each in counted if each["outcome"] == "applied"))


def _hashes(review: Review, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the hash of each tile of the shards of a review, by its id."""
    index = read_index(review.shards, ["tile_id", "sha256"], manifest["index"])
    return dict(zip(index["tile_id"].to_pylist(), index["sha256"].to_pylist(), strict=True))


@dataclass(frozen=True)
class Compared:
    """What differs: tiles by reviewer of two logs (`agreement` is None), or between two reviewers.

    `num_entries` are how many entries only the first log has, only the second, and both. Of two reviewers only tiles
    that both decided differ; `num_alone` are how many only the first, and only the second, decided (None of two logs).
    """

    differences: list[tuple[str, Difference]]
    num_entries: tuple[int, int, int]
    num_alone: tuple[int, int] | None
    agreement: Agreement | None
    problems: list[DataError] = field(default_factory=list)


def compare(review_uri: str, other_uri: str, pair: tuple[str, str] | None = None) -> Compared:
    """Hold two logs against each other, reviewer by reviewer; or of a `pair` the first's against the second's.

    With a pair the first one's decisions are those of the first log, the second one's those of the second. The reviews
    may be of other shards: two decisions are compared if they are about the same tile, and a problem if it changed in
    between. Raises `ConfigError` for reviewers that have no entry.
    """
    pixels = _TilePixels(read_review(uri).shards for uri in (review_uri, other_uri))
    logs = DecisionLog(review_uri), DecisionLog(other_uri)
    entries = [log.read_all() for log in logs]
    ours, theirs = ({key_of(each): each for each in found} for found in entries)
    same = sum(theirs.get(key) == each for key, each in ours.items())
    counts = len(ours) - same, len(theirs) - same, same
    problems = {str(each): each for log in logs for each in log.problems}
    found = _between_logs(pixels, entries) if pair is None else _between_reviewers(pixels, entries, pair)
    more = {str(each): each for each in found.problems}
    return Compared(found.differences, counts, found.num_alone, found.agreement, list((problems | more).values()))


def _between_logs(pixels: _TilePixels, entries: Sequence[Sequence[Decision]]) -> Compared:
    ours, theirs = (standing_of(each) for each in entries)
    found: list[tuple[str, Difference]] = []
    problems: list[DataError] = []
    for reviewer in sorted({each.reviewer for of_log in entries for each in of_log}):
        some, wrong = differences(of_reviewer(ours, reviewer), of_reviewer(theirs, reviewer), pixels)
        found += [(reviewer, each) for each in some]
        problems += wrong
    return Compared(found, (0, 0, 0), None, None, problems)


def _between_reviewers(pixels: _TilePixels, entries: Sequence[Sequence[Decision]], pair: tuple[str, str]) -> Compared:
    for name, of_log in zip(pair, entries, strict=True):
        choose("reviewer", [name], {each.reviewer for each in of_log})
    ours, theirs = (of_reviewer(standing_of(each), name) for name, each in zip(pair, entries, strict=True))
    both = ours.keys() & theirs.keys()
    found, problems = differences(
        {tile_id: ours[tile_id] for tile_id in both},
        {tile_id: theirs[tile_id] for tile_id in both},
        pixels,
    )
    same = {tile_id for tile_id in both if ours[tile_id].tile_sha256 == theirs[tile_id].tile_sha256}
    agreement = agreement_of(*pair, [(ours[tile_id].verdict, theirs[tile_id].verdict) for tile_id in sorted(same)])
    alone = len(ours) - len(same), len(theirs) - len(same)
    return Compared([(" / ".join(pair), each) for each in found], (0, 0, 0), alone, agreement, problems)


class _TilePixels:
    """Labels and valid pixels of the tiles of shards, each of which are opened when a tile is looked for there."""

    def __init__(self, shards: Iterable[str]) -> None:
        self._uris = list(dict.fromkeys(shards))
        self._opened: dict[str, tuple[TileReader, dict[Tile, int]]] = {}

    def __call__(self, tile_id: str, sha256: str) -> Pixels:
        """Return the label of a tile and which of its pixels have data; raise `DataError` where there is no such."""
        for uri in self._uris:
            reader, positions = self._open(uri)
            if (tile_id, sha256) in positions:
                pixels_CHW, label_HW = reader.read(positions[tile_id, sha256])
                return label_HW, (pixels_CHW != 0).any(0)
        raise DataError(f"tile {tile_id}", f"{' and '.join(self._uris)}: no such tile, or not with the sha256 {sha256}")

    def _open(self, uri: str) -> tuple[TileReader, dict[Tile, int]]:
        if uri not in self._opened:
            manifest = read_manifest(uri)
            reader = TileReader(uri, manifest["bands"])
            index = read_index(uri, ["tile_id", "sha256"], manifest["index"])
            tiles = zip(index["tile_id"].to_pylist(), index["sha256"].to_pylist(), strict=True)
            self._opened[uri] = reader, {tile: i for i, tile in enumerate(tiles)}
        return self._opened[uri]
