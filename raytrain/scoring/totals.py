"""What a ledger adds up to: counts and pixels, how cloudy items are, what was noted of them, and a few to look at.

A table of the ledger at a time is held, and a bounded few of its rows. Must not know pixels, or how any of it is shown.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

COLUMNS = (
    "item_id",
    "kind",
    "source_uri",
    "source_item_uri",
    "height",
    "width",
    "datetime",
    "valid_px",
    "cloud_px",
    "disagreement_mean",
    "members_left_out",
    "shift_rule",
    "notes",
)
BINS = 20
"""Bars of the histogram of cloud fractions."""
FEW = 10
"""Items of each sort that are kept to be looked at."""
SAMPLED = 1000
"""At least so many items, spread evenly over all, stand for them where a typical one is looked for."""
TEXTS = 500
"""Different notes that are counted by themselves."""
OTHERS = "(others)"
_PLAIN_CLOUD = 0.02
"""An item with less cloud, or with less clear, has nothing to see."""


@dataclass(frozen=True)
class Item:
    """A finished item as its record has it, without what stands for it."""

    item_id: str
    kind: str
    source_uri: str
    source_item_uri: str | None
    height: int
    width: int
    valid_px: int
    cloud_px: int
    disagreement_mean: float | None
    members_left_out: tuple[str, ...]

    @property
    def cloud_fraction(self) -> float | None:
        """Share of cloud among the pixels with data; None where there are none."""
        return self.cloud_px / self.valid_px if self.valid_px else None

    @property
    def valid_fraction(self) -> float:
        """Share of the pixels that have data."""
        return self.valid_px / max(1, self.height * self.width)


@dataclass
class Totals:
    """What all records add up to.

    `cloud_counts` are items by cloud fraction, in `BINS` equal bins of [0, 1], those with data only. `disagreement_px`
    is the mean disagreement summed over pixels with data, of `with_disagreement_px`. `most_disagreeing` and so on are
    items, the first the most so; `typical` those whose disagreement, or else cloud fraction, is in the middle.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    pixels: int = 0
    valid_px: int = 0
    cloud_px: int = 0
    num_without_data: int = 0
    cloud_counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    disagreement_px: float = 0.0
    with_disagreement_px: int = 0
    members_left_out: Counter[str] = field(default_factory=Counter)
    shift_rules: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    first: str | None = None
    last: str | None = None
    most_disagreeing: list[Item] = field(default_factory=list)
    least_disagreeing: list[Item] = field(default_factory=list)
    cloudiest: list[Item] = field(default_factory=list)
    clearest: list[Item] = field(default_factory=list)
    without_data: list[Item] = field(default_factory=list)
    scored_by_fewer: list[Item] = field(default_factory=list)
    typical: list[Item] = field(default_factory=list)
    largest: list[Item] = field(default_factory=list)

    @property
    def num_items(self) -> int:
        """How many items are finished."""
        return self.kinds.total()

    @property
    def cloud_fraction(self) -> float | None:
        """Share of cloud over all pixels with data; None where there are none."""
        return self.cloud_px / self.valid_px if self.valid_px else None

    @property
    def disagreement_mean(self) -> float | None:
        """Mean disagreement over all pixels with data of items that have it; None where none has."""
        return self.disagreement_px / self.with_disagreement_px if self.with_disagreement_px else None


def add_up(tables: Iterable[pa.Table]) -> Totals:
    """Return what the records of `tables`, which have `COLUMNS`, add up to; an item may be in one only."""
    totals, picks, sample = Totals(), _Picks(), _Sample()
    for table in tables:
        numbers = _Numbers.of(table)
        _count(totals, table, numbers)
        picks.add(table, numbers)
        sample.add(table, numbers)
    totals.most_disagreeing, totals.least_disagreeing = picks.disagreeing.items(), picks.agreeing.items()
    totals.cloudiest, totals.clearest = picks.cloudiest.items(), picks.clearest.items()
    totals.without_data, totals.scored_by_fewer = picks.without_data.items(), picks.scored_by_fewer.items()
    totals.typical, totals.largest = sample.middle(), picks.largest.items()
    return totals


@dataclass(frozen=True)
class _Numbers:
    """Numbers of the records of a table, `[records]` each; fractions are NaN where there are no pixels with data.

    `is_telling` are items with something to see: cloud, clear, and data in most of them.
    """

    pixels: NDArray[np.int64]
    valid_px: NDArray[np.int64]
    cloud_px: NDArray[np.int64]
    cloud_fraction: NDArray[np.float64]
    disagreement: NDArray[np.float64]
    is_telling: NDArray[np.bool_]
    has_fewer: NDArray[np.bool_]

    @classmethod
    def of(cls, table: pa.Table) -> _Numbers:
        height, width, valid_px, cloud_px = (
            table[name].to_numpy().astype(np.int64) for name in ("height", "width", "valid_px", "cloud_px")
        )
        disagreement = pc.fill_null(table["disagreement_mean"], np.nan).to_numpy()
        has_fewer = pc.greater(pc.list_value_length(table["members_left_out"]), 0).to_numpy()
        with np.errstate(invalid="ignore", divide="ignore"):
            fraction = np.where(valid_px > 0, cloud_px / valid_px, np.nan)
        telling = (fraction >= _PLAIN_CLOUD) & (fraction <= 1 - _PLAIN_CLOUD) & (2 * valid_px >= height * width)
        return cls(height * width, valid_px, cloud_px, fraction, disagreement, telling, has_fewer)


def _count(totals: Totals, table: pa.Table, numbers: _Numbers) -> None:
    totals.kinds.update(_counts_of(table["kind"]))
    totals.pixels += int(numbers.pixels.sum())
    totals.valid_px += int(numbers.valid_px.sum())
    totals.cloud_px += int(numbers.cloud_px.sum())
    totals.num_without_data += int(np.count_nonzero(numbers.valid_px == 0))
    totals.cloud_counts += np.histogram(numbers.cloud_fraction[numbers.valid_px > 0], BINS, (0, 1))[0]
    known = ~np.isnan(numbers.disagreement)
    totals.disagreement_px += float(numbers.disagreement[known] @ numbers.valid_px[known])
    totals.with_disagreement_px += int(numbers.valid_px[known].sum())
    for counter, column in (
        (totals.members_left_out, pc.list_flatten(table["members_left_out"])),
        (totals.shift_rules, table["shift_rule"]),
        (totals.notes, pc.list_flatten(table["notes"])),
    ):
        for text, count in _counts_of(column).items():
            counter[text if text in counter or len(counter) < TEXTS else OTHERS] += count
    ends = pc.min_max(table["datetime"]).as_py()
    totals.first = min(filter(None, (totals.first, ends["min"])), default=None)
    totals.last = max(filter(None, (totals.last, ends["max"])), default=None)


def _counts_of(column: pa.ChunkedArray) -> dict[str, int]:
    """Return how often each text is in a column; an empty one says nothing."""
    counts = ((each["values"], each["counts"]) for each in pc.value_counts(column).to_pylist())
    return {text: count for text, count in counts if text}


@dataclass
class _Top:
    """The rows of the largest keys so far, `FEW` of them; of equal keys, by id."""

    rows: list[tuple[float, str, dict[str, Any]]] = field(default_factory=list)

    def add(self, table: pa.Table, keys: NDArray[Any], wanted: NDArray[np.bool_]) -> None:
        """Add those rows of `table` that are `wanted`, by `keys`."""
        at = np.flatnonzero(wanted)
        if len(self.rows) == FEW:
            at = at[keys[at] >= -self.rows[-1][0]]
        if len(at) > FEW:
            last = np.partition(keys[at], -FEW)[-FEW]
            at = np.concatenate([at[keys[at] > last], at[keys[at] == last][:FEW]])  # tables are in the order of ids
        if len(at):
            fresh = [
                (-float(keys[i]), row["item_id"], row) for i, row in zip(at, table.take(at).to_pylist(), strict=True)
            ]
            self.rows = heapq.nsmallest(FEW, [*self.rows, *fresh], key=lambda each: each[:2])

    def items(self) -> list[Item]:
        """Return the items, the one of the largest key first."""
        return [_item(row) for _, _, row in self.rows]


@dataclass
class _Picks:
    """The few items of each sort."""

    disagreeing: _Top = field(default_factory=_Top)
    agreeing: _Top = field(default_factory=_Top)
    cloudiest: _Top = field(default_factory=_Top)
    clearest: _Top = field(default_factory=_Top)
    without_data: _Top = field(default_factory=_Top)
    scored_by_fewer: _Top = field(default_factory=_Top)
    largest: _Top = field(default_factory=_Top)

    def add(self, table: pa.Table, numbers: _Numbers) -> None:
        """Look at all rows of a table."""
        known, telling = ~np.isnan(numbers.disagreement), numbers.is_telling
        self.disagreeing.add(table, numbers.disagreement, known)
        self.agreeing.add(table, -numbers.disagreement, known & telling)
        self.cloudiest.add(table, numbers.cloud_fraction, telling)
        self.clearest.add(table, -numbers.cloud_fraction, telling)
        self.without_data.add(table, numbers.pixels, numbers.valid_px == 0)
        self.scored_by_fewer.add(table, numbers.pixels, numbers.has_fewer)
        self.largest.add(table, numbers.valid_px, numbers.valid_px > 0)


@dataclass
class _Sample:
    """Telling items spread evenly over all, and so over the hashes of ids: at most twice `SAMPLED`."""

    rows: list[tuple[float, str, dict[str, Any]]] = field(default_factory=list)
    by_disagreement: bool = False
    _every: int = 1
    _num: int = 0

    def add(self, table: pa.Table, numbers: _Numbers) -> None:
        """Take the next ones of a table."""
        telling = np.flatnonzero(numbers.is_telling)
        while True:
            start = -self._num % self._every
            chosen = telling[start :: self._every]
            if len(self.rows) + len(chosen) <= 2 * SAMPLED:
                break
            self.rows, self._every = self.rows[::2], 2 * self._every
        self._num += len(telling)
        for at, row in zip(chosen, table.take(chosen).to_pylist(), strict=True):
            disagreement = numbers.disagreement[at]
            self.by_disagreement |= not np.isnan(disagreement)
            self.rows.append((float(disagreement), row["item_id"], row))

    def middle(self) -> list[Item]:
        """Return `FEW` items around the middle: of disagreement if any has it, else of cloud fraction."""
        if self.by_disagreement:
            keyed = [(key, row["item_id"], row) for key, _, row in self.rows if not np.isnan(key)]
        else:
            keyed = [(row["cloud_px"] / row["valid_px"], row["item_id"], row) for _, _, row in self.rows]
        ordered = sorted(keyed, key=lambda each: each[:2])
        from_middle = sorted(range(len(ordered)), key=lambda at: abs(2 * at + 1 - len(ordered)))
        return [_item(ordered[at][2]) for at in from_middle[:FEW]]


def _item(row: dict[str, Any]) -> Item:
    names = Item.__dataclass_fields__
    left_out = tuple(row["members_left_out"])
    return Item(**{name: row[name] for name in names if name != "members_left_out"}, members_left_out=left_out)
