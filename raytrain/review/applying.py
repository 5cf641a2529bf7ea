"""Decisions applied to one shard: labels change, tiles go, all other bytes stay as they are.

A shard none of whose tiles changes is copied; of one with changes the cells are taken over as they are encoded, but for
the labels that change. Must not know who does the work, or where.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raytrain import storage
from raytrain.config import CellEncoding
from raytrain.errors import ConfigError, DataError
from raytrain.imagery import rasters
from raytrain.review.decisions import WITH_MASK, Conflicts, Decision, Outcome
from raytrain.review.regions import label_after, name_of
from raytrain.review.standing import is_contested, latest
from raytrain.tiles import format as shards
from raytrain.tiles.parts import PlannedShard, ShardPart, standing_part, versions, write_with_part


@dataclass(frozen=True)
class ReviewedShard(PlannedShard):
    """One shard to make anew: its record and its rows of the index in the shards at `parent`, and the decisions.

    `parent_sha256` is that of the parent's manifest, `bands` are all of its bands, in order. `decisions` are those that
    stand on tiles of this shard, by tile and reviewer.
    """

    parent: str
    parent_sha256: str
    record: dict[str, Any]
    rows: list[dict[str, Any]]
    bands: tuple[str, ...]
    cell_encoding: CellEncoding
    decisions: dict[str, dict[str, Decision]]
    conflicts: Conflicts

    def digest(self) -> str:
        """Return a hash of all that the shard and its rows of the index depend on."""
        facts = [shards.FORMAT_VERSION, versions(), self.name, self.parent_sha256, self.record, self.conflicts]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        digest.update(digest_of(self.decisions).encode())
        return digest.hexdigest()


def digest_of(standing: dict[str, dict[str, Decision]]) -> str:
    """Return a hash of the decisions that stand, whatever the order in which they are given."""
    digest = hashlib.sha256()
    for tile_id in sorted(standing):
        for reviewer in sorted(standing[tile_id]):
            digest.update(f"{standing[tile_id][reviewer].model_dump_json()}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class _TileOutcome:
    """What comes of the decisions about a tile: the one that is applied, and the label by it; or why there is none."""

    applied: Decision | None = None
    label: NDArray[np.uint8] | None = None
    """Where it changes."""
    is_contested: bool = False
    problems: tuple[DataError, ...] = ()
    of_each: tuple[tuple[Decision, Outcome], ...] = ()


@dataclass(frozen=True)
class _ShardBytes:
    """The bytes of the parent's shard, and the cells in them."""

    work: ReviewedShard
    data: bytes

    def cells(self, row: dict[str, Any]) -> dict[str, bytes | None]:
        """Return the cells of the tile of a row of the index, as they are encoded; raise `ConfigError` for damage."""
        return {name: self._cell(row, name) for name in ("label", *self.work.bands)}

    def _cell(self, row: dict[str, Any], name: str) -> bytes | None:
        start, size = row[f"{name}_offset"], row[f"{name}_bytes"]
        if start is None:
            return None
        found = self.data[start : start + size]
        if zlib.crc32(found) != row[f"{name}_crc32"]:
            raise ConfigError(
                f"tile {row['tile_id']} in {storage.join(self.work.parent, self.work.name)}: {name} is not what the "
                "index names; raytrain verify tells what else is damaged"
            )
        return found

    def tile(self, row: dict[str, Any]) -> tuple[NDArray[np.uint16], NDArray[np.uint8] | None]:
        """Return the bands `[C, H, W] uint16` and the label `[H, W] uint8` of a tile."""
        cells, shape = self.cells(row), (row["height"], row["width"])
        pixels_CHW = np.empty((len(self.work.bands), *shape), "<u2")
        label_HW = None if cells["label"] is None else np.empty(shape, np.uint8)
        for name, out in [*zip(self.work.bands, pixels_CHW, strict=True), ("label", label_HW)]:
            cell = cells[name]
            if cell is not None and out is not None:
                shards.decode_cell(cell, out, self.work.cell_encoding)
        return pixels_CHW, label_HW


def apply_to_shard(work: ReviewedShard) -> ShardPart:
    """Write a shard as decisions make it, then its part; a decision that can't be applied is a problem of the result.

    A shard that stands with the part of this very work is left as it is. `facts` have reviewer, id and outcome of each
    decision, and the tiles that are `contested`. Raises `ConfigError` where the parent is not as written.
    """
    standing = standing_part(work)
    if standing is not None:
        return standing
    source = _ShardBytes(work, _parent_bytes(work))
    outcomes = {
        row["tile_id"]: _outcome(source, row, work.decisions[row["tile_id"]])
        for row in work.rows
        if row["tile_id"] in work.decisions
    }
    facts = {
        "outcomes": [
            [decision.reviewer, decision.decision_id, outcome]
            for each in outcomes.values()
            for decision, outcome in each.of_each
        ],
        "contested": [tile_id for tile_id, each in outcomes.items() if each.is_contested],
    }
    problems = [problem for each in outcomes.values() for problem in each.problems]
    if all(each.label is None and not _is_drop(each) for each in outcomes.values()):
        data, rows = source.data, work.rows
    else:
        data, rows = _rewritten(source, outcomes)
    return write_with_part(work, work.bands, data, rows, problems, facts)


def _parent_bytes(work: ReviewedShard) -> bytes:
    uri = storage.join(work.parent, work.name)
    try:
        data = storage.read_listed(uri)
    except FileNotFoundError as error:
        raise ConfigError(f"{uri}: no such file, but the manifest names it") from error
    found = storage.sha256_of(data)
    if found != work.record["sha256"]:
        raise ConfigError(
            f"{uri}: sha256 is {found}, where the manifest says {work.record['sha256']}; raytrain verify tells more"
        )
    return data


def _is_drop(outcome: _TileOutcome) -> bool:
    return outcome.applied is not None and outcome.applied.verdict == "drop"


def _outcome(source: _ShardBytes, row: dict[str, Any], decisions: dict[str, Decision]) -> _TileOutcome:
    """Return what comes of the decisions of all reviewers about the tile of a row of the index."""
    of_others = [each for each in decisions.values() if each.tile_sha256 != row["sha256"]]
    own = [each for each in decisions.values() if each.tile_sha256 == row["sha256"]]
    found = _outcome_of_own(source, row, [each for each in own if each.verdict != "unsure"])
    left: list[tuple[Decision, Outcome]] = [(each, "left") for each in of_others]
    unsure: list[tuple[Decision, Outcome]] = [(each, "unsure") for each in own if each.verdict == "unsure"]
    return replace(
        found,
        problems=(*(_of_another(each, row["sha256"]) for each in of_others), *found.problems),
        of_each=(*left, *unsure, *found.of_each),
    )


def _outcome_of_own(source: _ShardBytes, row: dict[str, Any], sure: list[Decision]) -> _TileOutcome:
    """Return what comes of the decisions about this very tile, of those who are sure."""
    all_left: tuple[tuple[Decision, Outcome], ...] = tuple((each, "left") for each in sure)
    pixels_CHW, label_HW = (None, None)
    valid_HW = np.ones((row["height"], row["width"]), bool)
    if any(each.verdict in WITH_MASK for each in sure):
        pixels_CHW, label_HW = source.tile(row)
        valid_HW = (pixels_CHW != 0).any(0)
    try:
        contested = is_contested(sure, label_HW, valid_HW)
        if contested and source.work.conflicts == "leave":
            return _TileOutcome(is_contested=True, problems=(_left(row["tile_id"], sure),), of_each=all_left)
        applied = latest(sure)
        if applied is None:
            return _TileOutcome()
        after_HW = label_after(applied, label_HW, valid_HW)
        of_each = tuple((each, _beside(applied, each, label_HW, valid_HW)) for each in sure)
    except DataError as error:
        others = [each for each in sure if name_of(each) != error.subject]
        problems = error, *(_beside_unusable(each, error) for each in others)
        return _TileOutcome(problems=problems, of_each=all_left)
    is_same = after_HW is None or (label_HW is not None and np.array_equal(after_HW, label_HW))
    return _TileOutcome(applied, None if is_same else after_HW, contested, of_each=of_each)


def _beside(
    applied: Decision, decision: Decision, label_HW: NDArray[np.uint8] | None, valid_HW: NDArray[np.bool_]
) -> Outcome:
    """Return what comes of a decision where `applied`, of perhaps another reviewer, makes the tile."""
    if decision is applied:
        return "applied"
    return "overruled" if is_contested([applied, decision], label_HW, valid_HW) else "agrees"


def _beside_unusable(decision: Decision, error: DataError) -> DataError:
    return DataError(name_of(decision), f"the tile stays as it is, for another decision can't be used: {error.subject}")


def _of_another(decision: Decision, sha256: str) -> DataError:
    found = f"the tile that was looked at had the sha256 {decision.tile_sha256}, that of the shards has {sha256}"
    return DataError(name_of(decision), f"{found}; not applied, look again")


def _left(tile_id: str, decisions: list[Decision]) -> DataError:
    said = ", ".join(f"{each.reviewer} {each.verdict}" for each in sorted(decisions, key=lambda each: each.reviewer))
    return DataError(f"tile {tile_id}", f"reviewers contradict each other ({said}); it stays as it is")


def _rewritten(source: _ShardBytes, outcomes: dict[str, _TileOutcome]) -> tuple[bytes, list[dict[str, Any]]]:
    """Return the bytes of the shard with the changes in it, and its rows of the index."""
    work = source.work
    writer = shards.ShardWriter(work.name, work.bands, work.cell_encoding)
    columns = shards.row_schema(work.bands).names
    folds = []
    for row in work.rows:
        outcome = outcomes.get(row["tile_id"], _TileOutcome())
        if _is_drop(outcome):
            continue
        kept = {name: row[name] for name in columns}
        cells = source.cells(row)
        if outcome.label is not None:
            cells["label"] = shards.encode_cell(outcome.label, work.cell_encoding)
            kept |= _facts_of_label(source, row, outcome.label)
        writer.add_encoded(kept, cells)
        folds.append(row["fold"])
    data, rows = writer.finish()
    return data, [row | {"fold": fold} for row, fold in zip(rows, folds, strict=True)]


def _facts_of_label(source: _ShardBytes, row: dict[str, Any], label_HW: NDArray[np.uint8]) -> dict[str, Any]:
    """Return what a row of the index says of the label: the share of cloud, and the hash of the tile."""
    pixels_CHW, _ = source.tile(row)
    bands = dict(zip(source.work.bands, pixels_CHW, strict=True))
    return {"cloud_fraction": rasters.cloud_fraction(label_HW), "sha256": shards.sha256_of_tile(bands, label_HW)}
