"""All that a command, a cluster and a store keep of some work, searched for secrets that stood in the environment.

A file is searched as it is, and unpacked where it is Parquet or a zip; what is compressed otherwise (pixels) is not.
"""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow.parquet as pq

from raytrain import storage


def found(secrets: Mapping[str, str], pieces: Iterable[tuple[str, bytes]]) -> set[tuple[str, str]]:
    """Return which of `secrets`, by name, stands in which of `pieces`, as it is or in base64."""
    marks = [(name, mark) for name, secret in secrets.items() for mark in _marks(secret.encode())]
    return {(name, place) for place, data in pieces for name, mark in marks if mark in data}


def _marks(secret: bytes) -> Iterator[bytes]:
    yield secret
    for before in range(3):  # base64 of it behind something else: without the characters that share bits with that
        text = base64.b64encode(b"-" * before + secret)
        yield text[-(-before * 4 // 3) + (before > 0) : len(secret) * 4 // 3 - 1]


def pieces_of_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield every file below `folder` by its path."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield from _unpacked(str(path), path.read_bytes())


def pieces_of_store(uri: str) -> Iterator[tuple[str, bytes]]:
    """Yield every object below `uri` by its URI, and its name."""
    for name in storage.find(uri):
        yield storage.join(uri, name), name.encode()
        yield from _unpacked(storage.join(uri, name), storage.read_bytes(storage.join(uri, name)))


def _unpacked(place: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    yield place, data
    if data[:4] == data[-4:] == b"PAR1":
        table = pq.read_table(io.BytesIO(data))
        yield place, repr(table.schema.metadata).encode()
        for name in table.column_names:
            yield place, repr(table[name].to_pylist()).encode()
    elif zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield place, archive.read(name)
