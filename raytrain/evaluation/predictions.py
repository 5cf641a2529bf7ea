"""Which predictions there are and which labels they belong to. Must not know what is in the files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from raytrain import storage
from raytrain.errors import ConfigError, DataError
from raytrain.evaluation.masks import Pair, Prediction
from raytrain.evaluation.oddities import Oddity
from raytrain.scoring.destination import Scoring, read_scoring
from raytrain.scoring.layers import layer_folder, member_kind
from raytrain.scoring.ledger import read_all
from raytrain.tiles.metadata import MetadataRow

SUFFIX = ".tif"


@dataclass(frozen=True)
class PredictionSet:
    """A folder of predictions `<id>.tif`, and what lies beside them if `raytrain score` wrote it.

    `layers` are the ids that a folder beside the masks has a file for: `probability`, `disagreement`, `members/<name>`.
    `left_out` are, by id, the members that had no share in a mask for want of bands.
    """

    uri: str
    ids: frozenset[str]
    scoring: Scoring | None = None
    members: tuple[str, ...] = ()
    layers: dict[str, frozenset[str]] = field(default_factory=dict)
    left_out: dict[str, frozenset[str]] = field(default_factory=dict)

    @property
    def has_probability(self) -> bool:
        """Whether masks come with the probabilities that they were made of."""
        return "probability" in self.layers

    def of(self, chip_id: str) -> Prediction:
        """Return the files of one chip or scene, which must be among `ids`."""
        return Prediction(
            uri=storage.join(self.uri, f"{chip_id}{SUFFIX}"),
            probability=self._layer("probability", chip_id),
            members=self._members(chip_id),
            disagreement=self._layer("disagreement", chip_id),
        )

    def lack_of(self, chip_id: str) -> str | None:
        """Return what a chip or scene lacks here, if anything."""
        name = f"{chip_id}{SUFFIX}"
        if chip_id not in self.ids:
            return f"no prediction {name} in {self.uri}"
        if self.has_probability and chip_id not in self.layers["probability"]:
            return f"no probability/{name} in {self.uri}, where it was asked for"
        for member in self.members:
            folder = layer_folder(member_kind(member))
            if chip_id not in self.layers[folder] and member not in self.left_out.get(chip_id, ()):
                return f"no {folder}/{name} in {self.uri}, where it was asked for"
        return None

    def _layer(self, folder: str, chip_id: str) -> str | None:
        if chip_id not in self.layers.get(folder, ()):
            return None
        return storage.join(self.uri, folder, f"{chip_id}{SUFFIX}")

    def _members(self, chip_id: str) -> tuple[str, ...]:
        """Return the maps of all members; none where one was left out of this chip or scene."""
        found = [self._layer(layer_folder(member_kind(name)), chip_id) for name in self.members]
        return tuple(uri for uri in found if uri) if all(found) else ()


def find_predictions(uri: str) -> PredictionSet:
    """Return the predictions in the folder `uri`; raise `ConfigError` where there are none."""
    uri = storage.normalise(uri)
    ids, scoring = _masks_in(uri), read_scoring(uri)
    if scoring is None:
        return PredictionSet(uri, ids)
    settings = scoring.settings
    members = scoring.members if settings.members != "none" and len(scoring.members) > 1 else ()
    folders = [layer_folder(member_kind(name)) for name in members]
    folders += [name for name in ("probability", "disagreement") if getattr(settings, name) != "none"]
    layers = {folder: _names_in(storage.join(uri, folder)) for folder in folders}
    is_whole = all(ids <= layers[layer_folder(member_kind(name))] for name in members)
    return PredictionSet(uri, ids, scoring, members, layers, {} if is_whole else _left_out(uri))


def _left_out(uri: str) -> dict[str, frozenset[str]]:
    """Return the members that were left out of each item of which one was, as the ledger has it."""
    found: dict[str, frozenset[str]] = {}
    for table in read_all(uri, ["item_id", "members_left_out"]):
        ids, names = table["item_id"].to_pylist(), table["members_left_out"].to_pylist()
        found |= {each: frozenset(left_out) for each, left_out in zip(ids, names, strict=True) if left_out}
    return found


def pair_up(
    sets: Sequence[PredictionSet], labels: str, rows: Sequence[MetadataRow], bad: Sequence[DataError] = ()
) -> tuple[list[Pair], list[Oddity]]:
    """Return the pairs of the rows with a label and a prediction of every set, and what each of the others lacks.

    `bad` is what is wrong with rows that would have been there, too. Predictions and labels without a row are left
    alone. Of a set of scored masks, a chip without a map that was asked for lacks a prediction, too, unless it is that
    of a member that was left out. Raises `ConfigError` for a folder of labels that is not there or has no `.tif`, and
    where not one pair is left.
    """
    labels = storage.normalise(labels)
    labelled = _masks_in(labels)
    pairs: list[Pair] = []
    oddities = [Oddity("metadata", problem.subject, problem.found) for problem in bad]
    for row in rows:
        lacks = [each.lack_of(row.chip_id) for each in sets]
        oddities += [Oddity("missing-prediction", row.chip_id, lack) for lack in lacks if lack]
        name = f"{row.chip_id}{SUFFIX}"
        if row.chip_id not in labelled:
            oddities.append(Oddity("missing-label", row.chip_id, f"no label {name} in {labels}"))
        elif not any(lacks):
            predictions = tuple(each.of(row.chip_id) for each in sets)
            pairs.append(Pair(row.chip_id, row.location, storage.join(labels, name), predictions))
    if not pairs:
        first = f" (the first: {oddities[0].problem})" if oddities else ""
        raise ConfigError(
            f"nothing to evaluate: no prediction in {' and in '.join(each.uri for each in sets)} has both a label in "
            f"{labels} and one of the {len(rows)} chosen rows of the metadata{first}"
        )
    return pairs, oddities


def _masks_in(folder: str) -> frozenset[str]:
    names = _all_in(folder)
    masks = frozenset(name.removesuffix(SUFFIX) for name in names if "/" not in name)
    if masks:
        return masks
    if names:
        raise ConfigError(f"{folder}: no .tif here, but further down ({names[0]}); name the folder that holds them")
    if not storage.exists(folder):
        raise ConfigError(f"{folder}: no such folder")
    raise ConfigError(f"{folder}: a folder without any .tif")


def _names_in(folder: str) -> frozenset[str]:
    return frozenset(name.removesuffix(SUFFIX) for name in _all_in(folder) if "/" not in name)


def _all_in(folder: str) -> list[str]:
    try:
        return [name for name in storage.find(folder) if name.endswith(SUFFIX)]
    except FileNotFoundError:
        return []
