"""What may be wrong with a prediction or a label, by names that a user may allow. Must not know how it was found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from raytrain.errors import DataError, encodable

Kind = Literal[
    "missing-prediction",
    "missing-label",
    "size",
    "place",
    "values",
    "probabilities",
    "no-probabilities",
    "unreadable",
    "label-values",
    "label-unreadable",
    "metadata",
]
"""`values` and `unreadable` are of predictions; `no-probabilities` is a mask where a threshold was asked for."""
KINDS: tuple[Kind, ...] = get_args(Kind)
PROBABILITIES: Kind = "probabilities"
"""Allowed, they are read as such but among masks of `raytrain score`; what else is wrong is left out where allowed."""


@dataclass(frozen=True)
class Oddity:
    """What is wrong with one chip or scene: it can't be counted."""

    kind: Kind
    chip_id: str
    found: str

    @property
    def problem(self) -> DataError:
        """The oddity as an error of the data."""
        return DataError(self.chip_id, f"{self.found} [{self.kind}]")


class Odd(DataError):
    """Raised while a file is read: its URI, what was found, and of what kind that is."""

    def __init__(self, kind: Kind, uri: str, found: str) -> None:
        super().__init__(uri, found)
        self.kind = kind


def oddity_of(chip_id: str, error: DataError) -> Oddity:
    """Return the oddity of a chip whose files raised `error`."""
    kind: Kind = error.kind if isinstance(error, Odd) else "unreadable"
    return Oddity(kind, chip_id, encodable(str(error)))


def not_allowed(oddities: Iterable[Oddity], allowed: Iterable[str]) -> list[Oddity]:
    """Return the oddities whose kind is not among `allowed`, in order of chips."""
    names = set(allowed)
    return sorted((each for each in oddities if each.kind not in names), key=lambda each: (each.chip_id, each.found))
