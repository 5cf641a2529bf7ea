"""The plan of a scoring: its units as Parquet parts, written as the source is listed, read one by one.

A million scenes never sit in one process. Must not know what lists, or who does the units.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from raytrain import storage
from raytrain.errors import StoreOutOfReach, WorkNotFinished, first_line
from raytrain.scoring.patience import GIVE_UP_S, Patience
from raytrain.scoring.units import Unit

PLAN, STARTED = "plan", "started"
UNITS_PER_PART = 1000
PART_BYTES = 256 * 2**20
"""Of a part as it is stored: units have some kilobytes, those of scenes shared by many blocks more."""
_logger = logging.getLogger(__name__)
_SCHEMA = pa.schema([("unit_id", pa.string()), ("unit", pa.string())])


def write_plan(uri: str, run: str, units: Iterable[Unit]) -> int:
    """Write the plan of the destination `uri`, in place of an older one, and return its number of units.

    `run` names the plan, so that a command which reads an older one finds it gone, not changed.
    """
    for name in storage.find(storage.join(uri, PLAN)):
        if name != STARTED:
            storage.remove(storage.join(uri, PLAN, name))
    batch: list[Unit] = []
    count = 0
    for unit in units:
        batch.append(unit)
        count += 1
        if len(batch) == UNITS_PER_PART:
            _write_part(uri, run, count // UNITS_PER_PART - 1, batch)
            batch = []
    if batch:
        _write_part(uri, run, count // UNITS_PER_PART, batch)
    return count


def read_parts(uri: str, run: str, num_units: int) -> Iterator[list[Unit]]:
    """Return the parts of the plan `run`, which has `num_units`, each read when it is asked for.

    One that is out of reach leaves an empty list, and is asked for again later; after half an hour of that the error
    is raised. Raises `WorkNotFinished` if the plan is gone, `PermissionError` where the store refuses.
    """
    return _Parts(uri, run, num_units)


class _Parts(Iterator[list[Unit]]):
    """A generator would be at its end once it raised."""

    def __init__(self, uri: str, run: str, num_units: int) -> None:
        self._uri, self._run = uri, run
        self._numbers = deque(range(-(-num_units // UNITS_PER_PART)))
        self._patience = Patience()

    def __next__(self) -> list[Unit]:
        if not self._numbers:
            raise StopIteration
        if self._patience.is_wait:
            return []
        part = _part_uri(self._uri, self._run, self._numbers[0])
        try:
            data = storage.read_listed(part, PART_BYTES)
        except FileNotFoundError as error:
            raise WorkNotFinished(
                f"{part}: the plan is gone; does another command score to {self._uri}? Only one may: "
                "the same command goes on"
            ) from error
        except PermissionError:
            raise
        except (StoreOutOfReach, OSError) as error:
            self._patience.failed()
            if self._patience.spent_s > GIVE_UP_S:
                raise
            _logger.warning("%s; this part of the plan is asked for again later", first_line(error))
            return []
        self._patience.succeeded()
        self._numbers.popleft()
        table = storage.read_parquet(pa.BufferReader(data))
        return [Unit.model_validate_json(text) for text in table["unit"].to_pylist()]


def start(uri: str) -> None:
    """Note that work at the destination `uri` is under way, until `remove_plan`."""
    storage.write_bytes(storage.join(uri, PLAN, STARTED), b"")


def is_started(uri: str) -> bool:
    """Tell whether work at the destination `uri` was begun and its books were not closed."""
    return storage.exists(storage.join(uri, PLAN, STARTED))


def remove_plan(uri: str) -> None:
    """Remove the plan, which says what is still to be done, of a destination; last, that there was one."""
    storage.remove_below(storage.join(uri, PLAN), persistent=True)  # `part-...` comes before `started`


def _part_uri(uri: str, run: str, number: int) -> str:
    return storage.join(uri, PLAN, f"part-{run}-{number:05d}.parquet")


def _write_part(uri: str, run: str, number: int, units: list[Unit]) -> None:
    rows = [{"unit_id": unit.unit_id, "unit": unit.model_dump_json()} for unit in units]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), sink, compression="zstd")
    storage.write_bytes(_part_uri(uri, run, number), bytes(sink.getvalue()))
