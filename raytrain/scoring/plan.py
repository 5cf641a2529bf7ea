"""The plan of a scoring: its units as Parquet parts, written as the source is listed, read one by one.

A million scenes never sit in one process. The destination may have other writers, and a plan names what workers read
with their rights: its writer keeps the hash of each part, and takes no other one back. Must not know what lists, or who
does the units.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Plan:
    """A plan as it was written: its name, its number of units, the SHA-256 of each of its parts."""

    run: str
    num_units: int = 0
    digests: tuple[str, ...] = ()


def write_plan(uri: str, run: str, units: Iterable[Unit]) -> Plan:
    """Write the plan of the destination `uri`, in place of an older one, and return what is known of it.

    `run` names the plan, so that a command which reads an older one finds it gone, not changed.
    """
    for name in storage.find(storage.join(uri, PLAN)):
        if name != STARTED:
            storage.remove(storage.join(uri, PLAN, name))
    batch: list[Unit] = []
    digests: list[str] = []
    count = 0
    for unit in units:
        batch.append(unit)
        count += 1
        if len(batch) == UNITS_PER_PART:
            digests.append(_write_part(uri, run, len(digests), batch))
            batch = []
    if batch:
        digests.append(_write_part(uri, run, len(digests), batch))
    return Plan(run, count, tuple(digests))


def read_parts(uri: str, plan: Plan) -> Iterator[list[Unit]]:
    """Return the parts of a `plan` of the destination `uri`, each read when it is asked for.

    One that is out of reach leaves an empty list, and is asked for again later; after half an hour of that the error
    is raised. Raises `WorkNotFinished` if a part is gone or not what was written, `PermissionError` where the store
    refuses.
    """
    return _Parts(uri, plan)


class _Parts(Iterator[list[Unit]]):
    """A generator would be at its end once it raised."""

    def __init__(self, uri: str, plan: Plan) -> None:
        self._uri, self._run = uri, plan.run
        self._left = deque(enumerate(plan.digests))
        self._patience = Patience()

    def __next__(self) -> list[Unit]:
        if not self._left:
            raise StopIteration
        if self._patience.is_wait:
            return []
        number, digest = self._left[0]
        part = _part_uri(self._uri, self._run, number)
        try:
            data = storage.read_listed(part, PART_BYTES)
        except FileNotFoundError as error:
            raise WorkNotFinished(
                f"{part}: the plan is gone; does another command score to {self._uri}? Only one may: "
                "the same command goes on"
            ) from error
        except storage.TooLarge as error:
            raise _changed(part) from error
        except PermissionError:
            raise
        except (StoreOutOfReach, OSError) as error:
            self._patience.failed()
            if self._patience.spent_s > GIVE_UP_S:
                raise
            _logger.warning("%s; this part of the plan is asked for again later", first_line(error))
            return []
        self._patience.succeeded()
        if storage.sha256_of(data) != digest:
            raise _changed(part)
        self._left.popleft()
        table = storage.read_parquet(pa.BufferReader(data))
        return [Unit.model_validate_json(text) for text in table["unit"].to_pylist()]


def _changed(part: str) -> WorkNotFinished:
    return WorkNotFinished(
        f"{part}: not what this command wrote there: torn, or changed by somebody else, and nothing of it is done; "
        "see who may write to the destination; the same command lists the source anew and goes on"
    )


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


def _write_part(uri: str, run: str, number: int, units: list[Unit]) -> str:
    """Write a part of the plan and return its SHA-256."""
    rows = [{"unit_id": unit.unit_id, "unit": unit.model_dump_json()} for unit in units]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), sink, compression="zstd")
    data = bytes(sink.getvalue())
    storage.write_bytes(_part_uri(uri, run, number), data)
    return storage.sha256_of(data)
