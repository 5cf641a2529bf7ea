"""What a command of `raytrain` is: options, `run`, and the forms that several of them print."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import BaseModel, ConfigDict

from raytrain import logs, storage
from raytrain.config import parse, toml_changes
from raytrain.console import Narrator
from raytrain.errors import ConfigError, DataError

TOML_BYTES = 2**20
"""Of a file of settings that a person wrote."""


class Command(BaseModel):
    """Base of the commands: frozen options and `run`, which returns the exit code."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print the results as JSON on stdout."""
    log: Annotated[logs.Encoding | None, tyro.conf.arg(metavar="text|json")] = None
    """How progress and warnings are written to stderr, and by workers: for a person, or one JSON object a line. By
    default JSON in a job of a cluster, text otherwise."""
    stores: str | None = None
    """TOML file (a path or a URI): how stores are asked, by prefix, as [stores."s3://bucket"] anonymous = true."""

    def run(self, narrator: Narrator) -> int:
        """Do the work and return the exit code."""
        raise NotImplementedError

    def use_stores(self) -> None:
        """Ask stores as the environment and the file of --stores say, here and on all workers."""
        storage.use_stores(storage.Stores())
        if self.stores is not None:
            where = storage.normalise(self.stores)
            text = storage.read_text(where, "file of stores", TOML_BYTES)
            storage.use_stores(storage.read_stores(text, storage.shown(where)))

    def uris(self) -> list[str]:
        """Return the URIs among the options, as they were given."""
        return []

    def writes_to(self) -> str | None:
        """Return what the command makes, and no other may make at the same time; None where there is no such thing."""
        return None

    def read_by_driver(self) -> list[str]:
        """Return the files of settings among the options, as they were given: no worker reads them."""
        return [self.stores] if self.stores else []

    def _print(self, result: dict[str, Any], lines: Sequence[str]) -> None:
        """Print the results: as JSON, or as lines for a person."""
        if self.json_output:
            print(json.dumps(result, indent=1))
        else:
            for line in lines:
                print(line)


class ClusterCommand(Command):
    """A command that runs on Ray."""

    address: str = "local"
    """Where to run: `local` starts a Ray on this machine, `auto` or HOST:PORT (GCS) joins a cluster."""
    shared_path: bool = False
    """All nodes of the cluster see the local paths that are given."""

    @property
    def _cluster(self) -> Any:
        from raytrain.cluster.session import Cluster

        return Cluster(address=self.address, shared_path=self.shared_path)


def load_changes(uri: str | Path) -> dict[str, Any]:
    """Return `{dotted path: value}` from the TOML file of settings at a path or a URI."""
    where = storage.normalise(str(uri))
    try:
        return toml_changes(storage.read_bytes(where, TOML_BYTES).decode(), storage.shown(where))
    except FileNotFoundError as error:
        raise ConfigError(f"no such settings file: {storage.shown(where)}") from error
    except storage.TooLarge as error:
        raise ConfigError(f"{error}, of settings") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{storage.shown(where)}: not a TOML file: {error}") from error


def listed(problems: Sequence[DataError]) -> list[dict[str, str]]:
    """Return the problems as `metrics.json` and `manifest.json` have them."""
    return [{"subject": problem.subject, "found": problem.found} for problem in problems]


def or_dash(value: float | None, how: str) -> str:
    """Return `value` formatted, or a dash for None."""
    return "-" if value is None else format(value, how)


def local_folder(option: str, uri: str) -> str:
    """Return the absolute path of a folder that has to be on a disk of this machine."""
    if not storage.is_local(uri):
        raise ConfigError(f"{option} {uri}: expected a folder on a local disk")
    return storage.normalise(uri)


def selection(where: tuple[str, ...], metadata: str | None) -> Any:
    """Return which chips are chosen; raise `ConfigError` for filters without a table, or a table without filters."""
    from raytrain.tiles.selection import Selection

    return parse(Selection, {"where": where, "metadata": None if metadata is None else storage.normalise(metadata)})
