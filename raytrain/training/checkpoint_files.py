"""What the checkpoints of a run are in a store: their files with hashes, and the index of those that count.

Below `checkpoints/` in the run's folder each attempt to train it has an index of its own, `attempt-0003.json`, and its
own checkpoints, `<position>-a0003/`: the index of the highest attempt counts. So no attempt writes what another one has
written, however late its requests arrive. Must not know torch, nor who writes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from raytrain import storage
from raytrain.errors import ConfigError, DataError, first_line
from raytrain.tiles.order import Position
from raytrain.training import WEIGHTS_FILE

MOMENTUM_FILE, STATE_FILE = "momentum.safetensors", "state.json"
CHECKPOINTS_FOLDER = "checkpoints"
_INDEX = re.compile(r"attempt-(\d{4,})\.json")
FORMAT_VERSION = 3
INDEX_BYTES, LARGEST_FILE_BYTES = 16 * 2**20, 8 * 2**30
"""Of an index, which has some checkpoints, and of a file of one: weights of two thousand million parameters."""
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptCheckpoint:
    """A checkpoint that counts: where its run stands, the metrics of the epoch that it ends (None within an epoch).

    `is_best` says that no epoch before was as good. `pause_s` is what training waited for it, `write_s` what writing
    took beside.
    """

    name: str
    position: Position
    is_best: bool
    metrics: dict[str, Any] | None
    pause_s: float
    write_s: float
    num_bytes: int


@dataclass(frozen=True)
class CheckpointIndex:
    """The attempt that may write, and the checkpoints that count, from old to new.

    `owner` tells apart two that have begun as the same number, as two commands at the same moment may.
    """

    attempt: int = 0
    owner: str = ""
    kept: tuple[KeptCheckpoint, ...] = ()

    @property
    def last(self) -> KeptCheckpoint | None:
        """The newest checkpoint."""
        return self.kept[-1] if self.kept else None

    @property
    def best(self) -> KeptCheckpoint | None:
        """The checkpoint of the best epoch."""
        return next((each for each in reversed(self.kept) if each.is_best), None)

    def with_checkpoint(self, new: KeptCheckpoint, keep_last: int) -> CheckpointIndex:
        """Return the index with `new` as its newest: the last `keep_last` stay, and the best one."""
        grown = replace(self, kept=(*(each for each in self.kept if each.name != new.name), new))
        stay = {each.name for each in grown.kept[-keep_last:]} | ({grown.best.name} if grown.best else set())
        return replace(self, kept=tuple(each for each in grown.kept if each.name in stay))


def read_index(run_folder: str) -> CheckpointIndex:
    """Return the index of the last attempt to train the run in the folder of this URI, an empty one if there is none.

    Raises `DataError` for an index that can't be read, and for checkpoints without any.
    """
    found = list(storage.find(storage.join(run_folder, CHECKPOINTS_FOLDER)))
    numbers = [int(match[1]) for match in map(_INDEX.fullmatch, found) if match]
    if not numbers:
        if any(storage.name_of(name) == STATE_FILE for name in found):
            raise DataError(run_folder, "has checkpoints, but no index of them; remove this folder to begin anew")
        return CheckpointIndex()
    number = max(numbers)
    while storage.exists(index_uri(run_folder, number + 1)):  # which the listing did not have yet
        number += 1
    return _parse_index(index_uri(run_folder, number))


def _parse_index(uri: str) -> CheckpointIndex:
    try:
        found = json.loads(storage.read_listed(uri, INDEX_BYTES))
        kept = tuple(KeptCheckpoint(**each | {"position": Position(**each["position"])}) for each in found["kept"])
        for each in kept:
            if not storage.is_plain_name(each.name):  # what counts no longer is removed by its name
                raise ValueError(f"{each.name!r} is no name of a checkpoint")
        return CheckpointIndex(found["attempt"], found["owner"], kept)
    except (ValueError, TypeError, KeyError, RecursionError, storage.TooLarge) as error:
        raise DataError(uri, f"damaged: {error!r}; remove it to go on from the attempt before") from error


def index_uri(run_folder: str, attempt: int) -> str:
    """Return where the index of an attempt lies."""
    return storage.join(run_folder, CHECKPOINTS_FOLDER, f"attempt-{attempt:04d}.json")


def checkpoint_uri(run_folder: str, name: str) -> str:
    """Return where the files of the checkpoint of this name lie."""
    return storage.join(run_folder, CHECKPOINTS_FOLDER, name)


def remove_checkpoints(run_folder: str) -> None:
    """Remove all checkpoints of the run in the folder of this URI, and their indexes; what can't be is left over."""
    folder = storage.join(run_folder, CHECKPOINTS_FOLDER)
    try:
        storage.remove_below(folder)
    except Exception as error:
        if not (storage.is_out_of_reach(error) or storage.is_passing(error)):
            raise
        _logger.info("%s: left over, the next command removes it: %s", folder, first_line(error))


def read_checkpoint(folder: str) -> dict[str, bytes]:
    """Return the files of the checkpoint in the folder of this URI, by name.

    Raises `DataError` if it is torn: a file is missing, cut off or not as it was written.
    """
    name = storage.name_of(folder)
    files = {STATE_FILE: _read_file(folder, STATE_FILE)}
    for file, digest in record_of(files, name)["sha256"].items():
        if file not in (WEIGHTS_FILE, MOMENTUM_FILE):
            raise DataError(f"checkpoint {name}", f"{STATE_FILE} names a file {file!r}, which no checkpoint has")
        files[file] = _read_file(folder, file)
        if hashlib.sha256(files[file]).hexdigest() != digest:
            raise DataError(f"checkpoint {name}", f"{file} is not as it was written ({len(files[file])} bytes)")
    return files


def _read_file(folder: str, name: str) -> bytes:
    try:
        return storage.read_listed(storage.join(folder, name), LARGEST_FILE_BYTES)
    except FileNotFoundError as error:
        raise DataError(f"checkpoint {storage.name_of(folder)}", f"{name} is absent") from error
    except storage.TooLarge as error:
        raise DataError(f"checkpoint {storage.name_of(folder)}", f"{name}: {error.found}") from error


def record_of(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """Return what `state.json` says; raise `DataError` if it is torn, `ConfigError` for another format.

    `name` is that of the checkpoint.
    """
    try:
        record: dict[str, Any] = json.loads(files[STATE_FILE])
    except (ValueError, RecursionError) as error:
        raise DataError(f"checkpoint {name}", f"{STATE_FILE} is cut off") from error
    version = record.get("format_version")
    if version != FORMAT_VERSION:
        raise ConfigError(f"checkpoint of format version {version}; this raytrain reads {FORMAT_VERSION}")
    if record.pop("record_sha256", None) != digest_of(record):
        raise DataError(f"checkpoint {name}", f"{STATE_FILE} is not as it was written")
    return record


def digest_of(record: dict[str, Any]) -> str:
    """Return the sha256 (hex) of a record, which stands beside it."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
