"""The ranking in columns: filtered, sorted and cut into pages, in some milliseconds of a million tiles.

Must not know decisions: who filters by them brings the rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raytrain.review.kinds import ERROR_KINDS, KIND_WORDS, ErrorKind
from raytrain.review.ranking import FEATURE_NAMES

Sort = Literal["rank", "-rank", "tile_id", "location", "datetime"]
SORTS: tuple[Sort, ...] = get_args(Sort)
MOST_NEIGHBOURS = 24


@dataclass(frozen=True)
class Filter:
    """Which tiles are asked for; None is no filter. `text` is a part of the id or of the location, in any case."""

    kind: ErrorKind | None = None
    location: str | None = None
    text: str | None = None


class Catalogue:
    """The tiles of a ranking by row, from 0, which is one less than the rank."""

    def __init__(self, ranking: pa.Table) -> None:
        self._table = ranking.combine_chunks()
        self._ids: pa.Array = self._column("tile_id")
        self._rows = {tile_id: row for row, tile_id in enumerate(self._ids.to_pylist())}
        self._kinds, self._kind_names = _coded(self._column("kind"))
        self._locations, self._location_names = _coded(self._column("location"))
        self._sources, _ = _coded(self._column("source_uri"))
        self._times = self._column("datetime").cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
        self._orders: dict[Sort, NDArray[np.int64]] = {}

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def row_of(self, tile_id: str) -> int | None:
        """Return the row of a tile, None for one that the ranking does not have."""
        return self._rows.get(tile_id)

    def position(self, row: int) -> int:
        """Return where the index had a tile when it was ranked."""
        return int(self._table["position"][row].as_py())

    def largest_px(self) -> int:
        """Return how many pixels the largest tile has."""
        sizes = pc.multiply(self._table["height"].cast(pa.int64()), self._table["width"].cast(pa.int64()))
        return int(pc.max(sizes).as_py() or 0)

    def kind_counts(self) -> list[dict[str, Any]]:
        """Return each kind of error that is there, with its words and how many tiles are suspected of it."""
        counts = dict(zip(self._kind_names, np.bincount(self._kinds, minlength=len(self._kind_names)), strict=True))
        return [
            {"name": kind, "words": KIND_WORDS[kind], "count": int(counts[kind])}
            for kind in ERROR_KINDS
            if kind in counts
        ]

    def location_counts(self) -> list[dict[str, Any]]:
        """Return each location with its number of tiles, by name."""
        counts = np.bincount(self._locations, minlength=len(self._location_names))
        named = sorted(zip(self._location_names, counts.tolist(), strict=True))
        return [{"name": name, "count": count} for name, count in named]

    def find(self, wanted: Filter, among: NDArray[np.bool_] | None = None, sort: Sort = "rank") -> NDArray[np.int64]:
        """Return the rows that pass, in this order; of those where `among` `[N]` is true."""
        passes = np.ones(len(self), bool) if among is None else among.copy()
        if wanted.kind is not None:
            passes &= self._kinds == _code(self._kind_names, wanted.kind)
        if wanted.location is not None:
            passes &= self._locations == _code(self._location_names, wanted.location)
        if wanted.text:
            # Of the rest alone: text takes longest.
            left = np.flatnonzero(passes)
            in_id = pc.match_substring(self._ids.take(pa.array(left)), wanted.text, ignore_case=True)
            in_name = pc.match_substring(pa.array(self._location_names, pa.string()), wanted.text, ignore_case=True)
            in_location = in_name.to_numpy(zero_copy_only=False)[self._locations[left]]
            passes[left] = in_id.to_numpy(zero_copy_only=False) | in_location
        if sort == "rank":
            return np.flatnonzero(passes)
        order = self._order(sort)
        return np.asarray(order[passes[order]])

    def tiles(self, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Return what a list shows of the tiles in `rows`."""
        names = ["rank", "tile_id", "location", "kind", "suspicion", "sha256", "height", "width", "datetime"]
        return [plain(each) for each in self._table.select(names).take(pa.array(rows)).to_pylist()]

    def tile(self, row: int) -> dict[str, Any]:
        """Return all that the ranking says of a tile: what it is, `judgement` by kind, and the `features`."""
        values = plain(self._table.slice(row, 1).to_pylist()[0])
        judgement = {kind: values.pop(f"suspicion_{kind}") for kind in ERROR_KINDS}
        features = {name: values.pop(name) for name in FEATURE_NAMES}
        return {**values, "judgement": judgement, "features": features}

    def neighbours(self, row: int) -> NDArray[np.int64]:
        """Return the other rows of the same scene, by rank: of the same source, or of the same place and time."""
        same = self._sources == self._sources[row]
        if self._times[row] >= 0:
            same |= (self._locations == self._locations[row]) & (self._times == self._times[row])
        same[row] = False
        return np.flatnonzero(same)[:MOST_NEIGHBOURS]

    def _column(self, name: str) -> pa.Array:
        return self._table[name].combine_chunks() if self._table.num_rows else pa.array([], self._table[name].type)

    def _order(self, sort: Sort) -> NDArray[np.int64]:
        """Return all rows in an order, ties by rank; made when it is first asked for."""
        if sort not in self._orders:
            if sort == "-rank":
                order = np.arange(len(self) - 1, -1, -1)
            else:
                keys = [(sort, "ascending"), ("rank", "ascending")]
                order = pc.sort_indices(self._table, sort_keys=keys).to_numpy().astype(np.int64)
            self._orders[sort] = order
        return self._orders[sort]


def _coded(column: pa.Array) -> tuple[NDArray[np.int32], list[str]]:
    """Return a number per row and the text that each number stands for."""
    coded = column.dictionary_encode()
    return coded.indices.to_numpy(zero_copy_only=False).astype(np.int32), coded.dictionary.to_pylist()


def _code(names: list[str], name: str) -> int:
    return names.index(name) if name in names else -1


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return a row as JSON has it: times as text, no NaN, and no digits that a float32 does not have."""
    return {name: _plain_value(value) for name, value in values.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
