"""A scored archive hashed again and held against its ledger. Must not know who asks."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from raytrain import storage
from raytrain.errors import DataError
from raytrain.scoring import ledger
from raytrain.scoring.destination import REPORT_FIGURES, SCORING_FILE
from raytrain.scoring.layers import KINDS, MEMBERS, layer_folder
from raytrain.scoring.ledger import LEDGER, DamagedTable, Standing
from raytrain.scoring.records import Output
from raytrain.scoring.stac import COLLECTION_KEY, ITEM_FOLDER

OUTPUT_FOLDERS = (*map(layer_folder, KINDS), ITEM_FOLDER)
"""Where outputs lie, below the destination, beside those of members."""


@dataclass
class LedgerRead:
    """What the tables of a ledger name, table by table; those that can't be read are `differences`, not errors."""

    uri: str
    digits: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    differences: list[DataError] = field(default_factory=list)
    num_records: int = 0
    num_items: int = 0

    @property
    def num_known_items(self) -> int | None:
        """How many STAC items all tables name; None where some can't be read."""
        return None if self.damaged else self.num_items

    def keys(self) -> Iterator[str]:
        """Read all tables and yield the keys of the outputs that they name."""
        for digit in ledger.DIGITS:
            try:
                records = items = 0
                for record in ledger.read_records(self.uri, digit):
                    records += 1
                    items += "item" in record.outputs
                    yield from (output.key for output in record.outputs.values())
            except DamagedTable as error:
                self.damaged.append(digit)
                self.differences.append(DataError(error.uri, error.found))
            else:
                self.digits.append(digit)
                self.num_records += records
                self.num_items += items


def verify_outputs(uri: str, outputs: Sequence[Output]) -> list[DataError]:
    """Return what differs of these outputs of the destination `uri` from what the ledger says."""
    return [problem for output in outputs for problem in _verify(uri, output)]


def _verify(uri: str, output: Output) -> Iterator[DataError]:
    where = storage.join(uri, output.key)
    try:
        with storage.open_ranged(where) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        yield DataError(where, "missing, but the ledger names it; score again")
        return
    if found != output.sha256:
        yield DataError(where, f"sha256 is {found}, the ledger says {output.sha256}; remove it and score again")


def unknown_outputs(uri: str, known: Standing, damaged: Collection[str] = ()) -> Iterator[DataError]:
    """Yield the outputs at the destination `uri` that no record names, and records that are not in their tables yet.

    Whether there is a record of an item that belongs to a `damaged` table, nobody can tell.
    """
    loose = 0
    for name, _ in storage.walk(uri):
        folder, _, file = name.rpartition("/")
        if (
            (folder in OUTPUT_FOLDERS or folder.rpartition("/")[0] == MEMBERS)
            and file.endswith((".tif", ".json"))
            and name not in known
            and name not in OWN_FILES
            and ledger.bucket_of(file.rpartition(".")[0]) not in damaged
        ):
            yield DataError(storage.join(uri, name), "no record of the ledger names it; score again, or remove it")
        loose += name.startswith((f"{LEDGER}/new/", f"{LEDGER}/rolled/"))
    if loose:
        yield DataError(uri, f"{loose} parts of the ledger wait to be compacted: a scoring is under way or was stopped")


OWN_FILES = (SCORING_FILE, COLLECTION_KEY, REPORT_FIGURES)
"""JSON files of a destination that are no outputs of an item."""
