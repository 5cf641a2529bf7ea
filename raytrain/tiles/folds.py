"""Folds by location: seeded, no location in two folds, folds of about equal size.

Locations in the order of their number of chips are dealt out one to each fold at a time, in random order. Must not know
pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from raytrain import storage
from raytrain.errors import ConfigError
from raytrain.tiles.tables import read_table

SPLIT_FOLDS = {"val": 0, "train": 1}
"""A CSV with a column `split` means one fold: `train --fold 0` trains on `train` and validates on `val`."""

FOLD_DIGITS = 9
"""Of a fold's number: an index keeps it in 32 bits."""
_TOLD = 40
"""Characters that an error tells of a cell, which may have a hundred thousand."""


def deal_folds(locations: Sequence[str], num_folds: int, seed: int) -> dict[str, int]:
    """Return the fold of each distinct location; `locations` names the location of every chip.

    Raises `ConfigError` if there are fewer locations than folds.
    """
    counts = Counter(locations)
    if num_folds < 1 or len(counts) < num_folds:
        raise ConfigError(f"{num_folds} folds need at least that many locations, found {len(counts)}")
    generator = np.random.default_rng(seed)
    ordered = sorted(counts, key=lambda name: (-counts[name], name))
    folds = {}
    for start in range(0, len(ordered), num_folds):
        for name, fold in zip(ordered[start : start + num_folds], generator.permutation(num_folds), strict=False):
            folds[name] = int(fold)
    return folds


def read_folds(uri: str) -> dict[str, int]:
    """Return `{chip_id: fold}` from a CSV with chip_id and a column fold (integers) or split (train, val)."""
    table = read_table(uri, "file of folds")
    if "chip_id" not in table.columns or not {"fold", "split"} & set(table.columns):
        raise ConfigError(f"{uri}: expected columns chip_id and fold or split, found {', '.join(table.columns)}")
    column = "fold" if "fold" in table.columns else "split"
    folds: dict[str, int] = {}
    for row in table:
        chip_id = row["chip_id"]
        if chip_id in folds:
            raise ConfigError(f"{uri}: chip {_told(chip_id)}: two rows name its fold")
        folds[chip_id] = _fold_of(uri, chip_id, column, row[column].strip())
    return folds


def _fold_of(uri: str, chip_id: str, column: str, text: str) -> int:
    if column == "split" and text in SPLIT_FOLDS:
        return SPLIT_FOLDS[text]
    if column == "fold" and text.isdecimal() and len(text) <= FOLD_DIGITS:
        return int(text)
    is_long = column == "fold" and text.isdecimal()
    wanted = "train or val" if column == "split" else f"at most {FOLD_DIGITS} digits" if is_long else "a whole number"
    raise ConfigError(f"{uri}: chip {_told(chip_id)}: expected {wanted} in column {column}, found {text[:_TOLD]!r}")


def _told(chip_id: str) -> str:
    """Return an id as errors name it: one that no chip can have may be anything, of any length."""
    return chip_id if storage.is_plain_name(chip_id) else repr(chip_id[:_TOLD])


def assign_folds(spec: str, chip_ids: Sequence[str], locations: Sequence[str], seed: int) -> list[int]:
    """Return the fold of each chip for `spec`, a number of folds or the URI of a CSV; `locations` is by chip, too."""
    if spec.isdecimal():
        by_location = deal_folds(locations, int(spec), seed)
        return [by_location[location] for location in locations]
    folds = read_folds(spec)
    missing = [chip_id for chip_id in chip_ids if chip_id not in folds]
    if missing:
        raise ConfigError(f"{spec}: no fold for {len(missing)} chips, among them {', '.join(missing[:3])}")
    return [folds[chip_id] for chip_id in chip_ids]
