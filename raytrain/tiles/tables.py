"""CSV files that people made, row by row. Must not know what their columns mean."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass

from raytrain import storage
from raytrain.errors import ConfigError


@dataclass(frozen=True)
class CsvTable:
    """A CSV file: the names of its columns; iterated, its rows by column, a cell that lacks being blank.

    Only the bytes are held; it may be iterated again. Raises `ConfigError` where they are no CSV.
    """

    uri: str
    what: str
    data: bytes
    columns: tuple[str, ...]

    def __iter__(self) -> Iterator[dict[str, str]]:
        reader = csv.DictReader(_lines(self.data), restval="")
        try:
            for row in reader:
                yield {name: row[name] for name in self.columns}
        except csv.Error as error:
            raise _not_csv(self.uri, self.what, reader.line_num, error) from error


def read_table(uri: str, what: str) -> CsvTable:
    """Return the CSV file at `uri`; raise `ConfigError` that calls it a `what` where it is missing or no CSV file."""
    data = storage.read_text(uri, what).encode()
    reader = csv.DictReader(_lines(data))
    try:
        columns = tuple(reader.fieldnames or ())
    except csv.Error as error:
        raise _not_csv(uri, what, reader.line_num, error) from error
    return CsvTable(uri, what, data, columns)


def _lines(data: bytes) -> io.TextIOWrapper:
    # Not StringIO, which holds four bytes a character.
    return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", newline="")


def _not_csv(uri: str, what: str, line: int, error: csv.Error) -> ConfigError:
    return ConfigError(f"{uri}: not a CSV file, line {line}: {error}; expected a {what}")
