"""CSV files that people made. Must not know what their columns mean."""

from __future__ import annotations

import csv
import io

from raytrain import storage
from raytrain.errors import ConfigError


def read_table(uri: str, what: str) -> tuple[list[str], list[dict[str, str]]]:
    """Return the names of the columns and the rows, by column, of the CSV file at `uri`; a cell that lacks is blank.

    Raises `ConfigError` that calls the file a `what` where it is missing or no CSV file.
    """
    reader = csv.DictReader(io.StringIO(storage.read_text(uri, what)), restval="")
    try:
        columns = list(reader.fieldnames or [])
        rows = [{name: row[name] for name in columns} for row in reader]
    except csv.Error as error:
        raise ConfigError(f"{uri}: not a CSV file, line {reader.line_num}: {error}; expected a {what}") from error
    return columns, rows
