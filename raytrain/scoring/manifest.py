"""The ensemble's file: which nets it has, where their weights lie, how they came about. Must not know nets."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence

from raytrain import storage
from raytrain.config import MemberName, MemberSettings, PlainKey, Settings, parse
from raytrain.errors import ConfigError

ENSEMBLE_FILE = "ensemble.json"
FORMAT_VERSION = 2


class TrainedMember(Settings):
    """One trained net: where its weights lie (a key beside the ensemble file), their hash, and how it came about.

    `epoch` is that of the weights, from 1.
    """

    name: MemberName
    fold: int | None
    weights: PlainKey
    sha256: str
    settings: MemberSettings
    score: float | None
    epoch: int


class EnsembleManifest(Settings):
    """The content of `ensemble.json`."""

    format_version: int = FORMAT_VERSION
    raytrain_version: str
    shards: str
    shards_digest: str
    members: tuple[TrainedMember, ...]

    @property
    def bands(self) -> tuple[str, ...]:
        """All bands that some member needs, in the order of the members."""
        return tuple(dict.fromkeys(band for member in self.members for band in member.settings.bands))

    def nets_digest(self) -> str:
        """Return a hash of the nets: their weights and settings, in order."""
        nets = [[member.sha256, member.settings.digest()] for member in self.members]
        return hashlib.sha256(json.dumps(nets).encode()).hexdigest()

    def of_fold(self, fold: int | str | None) -> EnsembleManifest:
        """Return the manifest with the members of one fold: `fold`, or the lowest for None; `all` keeps every one."""
        if fold == "all":
            return self
        folds = sorted({-1 if member.fold is None else member.fold for member in self.members})
        chosen = folds[0] if fold is None else fold
        if chosen not in folds:
            raise ConfigError(f"the ensemble has no fold {fold}; it has {', '.join(map(str, folds))}")
        kept = tuple(member for member in self.members if (-1 if member.fold is None else member.fold) == chosen)
        return self.model_copy(update={"members": kept})


def member_names(members: Sequence[TrainedMember]) -> tuple[str, ...]:
    """Return what the nets of an ensemble are called at a destination: a name each, by which `Scoring` lists them.

    That is the member's, or `<member>-fold<k>` for every net of a member that has several, `<member>-foldnone` for one
    without a fold. Two nets may come to have one name: see `check_names_differ`.
    """
    counts = Counter(member.name for member in members)
    folds = ["none" if member.fold is None else str(member.fold) for member in members]
    return tuple(
        member.name if counts[member.name] == 1 else f"{member.name}-fold{fold}"
        for member, fold in zip(members, folds, strict=True)
    )


def check_names_differ(names: Sequence[str]) -> None:
    """Raise `ConfigError` for two nets of one name, where the maps of each are to be written by its name."""
    for name, count in Counter(names).items():
        if count > 1:
            found = f"the ensemble has {count} nets that would be called {name}"
            raise ConfigError(f"{found}; choose a fold, or rename a member")


def ensemble_folder(uri: str) -> str:
    """Return the folder of the ensemble, given it or its file."""
    return uri.rsplit("/", 1)[0] if storage.name_of(uri) == ENSEMBLE_FILE else uri


def read_manifest(uri: str) -> EnsembleManifest:
    """Return the manifest of the ensemble at `uri`, the folder or the file; raise `ConfigError` where there is none."""
    path = storage.join(ensemble_folder(uri), ENSEMBLE_FILE)
    try:
        values = storage.read_json(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no ensemble there; train writes it when all members are done") from error
    if values.get("format_version") != FORMAT_VERSION:
        raise ConfigError(f"{path}: not an ensemble file of format version {FORMAT_VERSION}")
    return parse(EnsembleManifest, values, path)


def write_manifest(uri: str, manifest: EnsembleManifest) -> None:
    """Write `ensemble.json` into the folder `uri`."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=1)
    storage.write_bytes(storage.join(uri, ENSEMBLE_FILE), text.encode())
