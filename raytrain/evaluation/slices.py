"""Chips by what they share: cloud fraction, month, any column of the metadata. Must not know how scores are made."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raytrain.config import EmptyUnionRule, choose
from raytrain.errors import ConfigError
from raytrain.evaluation.counting import FN, TP
from raytrain.evaluation.resampling import RESAMPLES
from raytrain.evaluation.results import SliceResult
from raytrain.evaluation.scores import Scored, intervals_by_name
from raytrain.evaluation.tally import Tally
from raytrain.tiles.tables import read_table

CLOUD, MONTH = "cloud_fraction", "month"
CLOUD_ENDS = ((0.1, "below 10 %"), (0.5, "10 to 50 %"), (0.9, "50 to 90 %"), (1.0, "90 % and more"))
UNKNOWN = "not known"
MOST_VALUES = 24
"""A column of more different values is cut into quarters where it has numbers, and refused where it has not."""


@dataclass(frozen=True)
class Column:
    """A way to part chips: the value of each, and the values in the order in which they are shown."""

    name: str
    values: list[str]
    order: list[str]


def read_columns(uris: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return `{column: {chip id: value}}` of the columns `names`, each from the first of the tables that has it.

    A blank value is `UNKNOWN`. Raises `ConfigError` for a column that none of the tables has.
    """
    tables = [read_table(uri, "metadata file") for uri in uris]
    choose("column", names, {column for table in tables for column in table.columns})
    found: dict[str, dict[str, str]] = {}
    for name in names:
        table = next(table for table in tables if name in table.columns)
        found[name] = {row["chip_id"]: row[name].strip() or UNKNOWN for row in table}
    return found


def read_parts(chip_ids: Sequence[str], read: Mapping[str, Mapping[str, str]]) -> list[Column]:
    """Return how the columns read part chips.

    Raises `ConfigError` for one that has too many different values to be looked at; for some of the chips there is
    none if there was none for all.
    """
    return [_of_column(name, [by_chip.get(chip_id, UNKNOWN) for chip_id in chip_ids]) for name, by_chip in read.items()]


def columns_of(tally: Tally, months: Mapping[str, str], read: Mapping[str, Mapping[str, str]]) -> list[Column]:
    """Return the ways to part the chips of a tally: cloud fraction of the label, month where known, columns read.

    `months` has the month (`07`) of the chips that have a date. A column read takes the place of one of ours that has
    its name. Raises `ConfigError` as `read_parts` does.
    """
    found = [_by_cloud(tally)]
    if any(chip_id in months for chip_id in tally.chip_ids):
        values = [months.get(chip_id, UNKNOWN) for chip_id in tally.chip_ids]
        found.append(Column(MONTH, values, sorted(set(values), key=_known_first)))
    return [each for each in found if each.name not in read] + read_parts(tally.chip_ids, read)


def _by_cloud(tally: Tally) -> Column:
    cloud = tally.totals[:, TP] + tally.totals[:, FN]
    labelled = tally.totals.sum(1)
    values = [_cloud_word(int(some), int(all_)) for some, all_ in zip(cloud, labelled, strict=True)]
    order = ["no cloud", *(word for _, word in CLOUD_ENDS), UNKNOWN]
    return Column(CLOUD, values, [word for word in order if word in set(values)])


def _cloud_word(cloud_px: int, labelled_px: int) -> str:
    if not labelled_px:
        return UNKNOWN
    if not cloud_px:
        return "no cloud"
    fraction = cloud_px / labelled_px
    return next((word for end, word in CLOUD_ENDS if fraction < end), CLOUD_ENDS[-1][1])


def _of_column(name: str, values: list[str]) -> Column:
    distinct = set(values)
    if len(distinct) <= MOST_VALUES:
        return Column(name, values, sorted(distinct, key=_known_first))
    numbers = {value: _number(value) for value in distinct - {UNKNOWN}}
    if any(number is None for number in numbers.values()):
        raise ConfigError(
            f"column {name!r} has {len(distinct)} different values, which are no numbers; at most {MOST_VALUES} can be "
            "looked at"
        )
    known = {value: number for value, number in numbers.items() if number is not None}
    ends = np.unique(np.quantile([known[value] for value in values if value in known], [0.25, 0.5, 0.75]))
    words = _words(ends)
    place = {value: words[int(np.searchsorted(ends, number, side="right"))] for value, number in known.items()}
    parted = [place.get(value, UNKNOWN) for value in values]
    return Column(name, parted, [word for word in [*words, UNKNOWN] if word in set(parted)])


def _words(ends: NDArray[np.float64]) -> list[str]:
    whole_digits = len(str(int(np.abs(ends).max())))
    for digits in range(min(max(4, whole_digits), 17), 18):  # 17 tell any two apart
        shown = [f"{end:.{digits}g}" for end in ends]
        if len(set(shown)) == len(shown):
            break
    between = [f"{low} to below {high}" for low, high in itertools.pairwise(shown)]
    return [f"below {shown[0]}", *between, f"{shown[-1]} and more"]


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def _known_first(value: str) -> tuple[bool, bool, float, list[tuple[bool, float, str]]]:
    """Return what values are ordered by: numbers, then texts with the whole numbers in them as such, then unknown."""
    number = _number(value)
    parts = [part for part in re.split(r"(\d+)", value) if part]
    in_text = [(not part.isdecimal(), float(part) if part.isdecimal() else 0.0, part) for part in parts]
    return value == UNKNOWN, number is None, 0.0 if number is None else number, in_text


def slice_results(
    tally: Tally, columns: Sequence[Column], rule: EmptyUnionRule, seed: int = 0, resamples: int = RESAMPLES
) -> list[SliceResult]:
    """Return the scores of the chips of every value of every column, with intervals over the locations that it has."""
    found = []
    for column in columns:
        values = np.array(column.values)
        for value in column.order:
            scored = Scored(tally.chosen(values == value), rule)
            names = ("iou_pooled", "iou_location_weighted")
            ends = intervals_by_name({name: scored.ratios[name] for name in names}, seed, resamples)
            found.append(
                SliceResult(
                    column=column.name,
                    value=value,
                    num_chips=len(scored.tally),
                    num_locations=len(scored.tally.location_names),
                    iou_pooled=scored.ious.iou_pooled,
                    iou_location_weighted=scored.ious.iou_location_weighted,
                    iou_pooled_interval=ends["iou_pooled"],
                    iou_location_weighted_interval=ends["iou_location_weighted"],
                    precision=scored.values["precision"],
                    recall=scored.values["recall"],
                    f1=scored.values["f1"],
                    accuracy=scored.values["accuracy"],
                )
            )
    return found
