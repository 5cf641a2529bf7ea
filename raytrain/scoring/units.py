"""Units of work: a batch of chips or a scene, how each is scored, and its entry in the ledger.

A unit's outputs have keys that depend on the work alone, appear whole or not at all, and are entered in the ledger
after they stand; a unit done twice writes the same bytes. Must not know who runs a unit.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from raytrain import storage
from raytrain.config import ScoreSettings, Settings, differences, parse
from raytrain.errors import ConfigError, DataError
from raytrain.imagery import rasters
from raytrain.scoring.scenes import score_scene, to_mask
from raytrain.tiles.archive import Chip, read_chip

if TYPE_CHECKING:  # it imports torch, which the driver does without
    from raytrain.scoring.ensemble import Ensemble

CHIPS_PER_UNIT = 16
SCORING_FILE, LEDGER = "scoring.json", "ledger"


class Item(Settings):
    """One chip or scene: its id, its source (per band for a chip) and the source's identity."""

    item_id: str
    sources: dict[str, str]
    identity: str


class Unit(Settings):
    """Some items that one worker scores in one go."""

    unit_id: str
    kind: Literal["chips", "scene"]
    items: tuple[Item, ...]


class LedgerEntry(Settings):
    """A finished unit: what it was made from and the hash of each output; nothing of time, place or attempt."""

    unit: Unit
    outputs: dict[str, str]
    problems: tuple[tuple[str, str], ...] = ()


class Scoring(Settings):
    """What all outputs of a destination were made with."""

    ensemble: str
    settings: ScoreSettings


def chip_units(chips: Sequence[Chip]) -> list[Unit]:
    """Return the units of chips, in the order given; the size of a unit is fixed, so that units stay the same."""
    units = []
    for start in range(0, len(chips), CHIPS_PER_UNIT):
        batch = chips[start : start + CHIPS_PER_UNIT]
        items = tuple(Item(item_id=chip.chip_id, sources=chip.bands, identity=chip.identity) for chip in batch)
        digest = hashlib.sha256(json.dumps([item.item_id for item in items]).encode()).hexdigest()
        units.append(Unit(unit_id=f"chips-{digest[:16]}", kind="chips", items=items))
    return units


def scene_units(uri: str) -> list[Unit]:
    """Return a unit for each `<uri>/scenes/<id>.tif`, or else for each `<uri>/<id>.tif`."""
    files = storage.find(uri)
    names = [name for name in files if name.startswith("scenes/") and name.endswith(".tif")]
    names = names or [name for name in files if "/" not in name and name.endswith(".tif")]
    units = []
    for name in names:
        scene_id = storage.name_of(name).removesuffix(".tif")
        item = Item(
            item_id=scene_id, sources={"scene": storage.join(uri, name)}, identity=storage.identity(files[name])
        )
        units.append(Unit(unit_id=f"scene-{scene_id}", kind="scene", items=(item,)))
    return units


def score_unit(unit: Unit, target_uri: str, ensemble: Ensemble, settings: ScoreSettings) -> LedgerEntry:
    """Score the items of `unit` into `<target_uri>/<item_id>.tif`, enter the unit in the ledger, return the entry.

    An item that can't be used is a problem of the entry; the others are done.
    """
    outputs: dict[str, str] = {}
    problems: list[tuple[str, str]] = []
    if unit.kind == "scene":
        item = unit.items[0]
        try:
            outputs[item.item_id] = score_scene(item.sources["scene"], _mask_uri(target_uri, item), ensemble, settings)
        except DataError as error:
            problems.append((item.item_id, error.found))
    else:
        _score_chips(unit, target_uri, ensemble, settings, outputs, problems)
    entry = LedgerEntry(unit=unit, outputs=outputs, problems=tuple(problems))
    storage.write_bytes(_ledger_uri(target_uri, unit), entry.model_dump_json(indent=1).encode())
    return entry


def _score_chips(
    unit: Unit,
    target_uri: str,
    ensemble: Ensemble,
    settings: ScoreSettings,
    outputs: dict[str, str],
    problems: list[tuple[str, str]],
) -> None:
    by_shape: dict[tuple[int, ...], list[tuple[Item, rasters.Raster]]] = defaultdict(list)
    for item in unit.items:
        try:
            raster = read_chip(item.item_id, {band: item.sources[band] for band in ensemble.bands})
            by_shape[raster.valid.shape].append((item, raster))
        except DataError as error:
            problems.append((item.item_id, error.found))
    for group in by_shape.values():
        found = ensemble.probabilities([each.pixels for _, each in group], [each.valid for _, each in group])
        for (item, raster), probability in zip(group, found, strict=True):
            mask = to_mask(probability, settings.threshold) * raster.valid
            data = rasters.mask_tiff(mask, raster.georeference)
            storage.write_bytes(_mask_uri(target_uri, item), data)
            outputs[item.item_id] = storage.sha256_of(data)


def _mask_uri(target_uri: str, item: Item) -> str:
    return storage.join(target_uri, f"{item.item_id}.tif")


def _ledger_uri(target_uri: str, unit: Unit) -> str:
    return storage.join(target_uri, LEDGER, f"{unit.unit_id}.json")


def read_ledger(target_uri: str) -> dict[str, LedgerEntry]:
    """Return the entries of the ledger by unit id."""
    folder = storage.join(target_uri, LEDGER)
    names = [name for name in storage.find(folder) if name.endswith(".json") and not name.startswith(".")]
    entries = [LedgerEntry.model_validate_json(storage.read_bytes(storage.join(folder, name))) for name in names]
    return {entry.unit.unit_id: entry for entry in entries}


def claim_destination(target_uri: str, scoring: Scoring) -> None:
    """Record what the outputs at `target_uri` are made with; raise `ConfigError` if others stand there."""
    uri = storage.join(target_uri, SCORING_FILE)
    try:
        found = parse(Scoring, json.loads(storage.read_bytes(uri)))
    except FileNotFoundError:
        storage.write_bytes(uri, scoring.model_dump_json(indent=1).encode())
        return
    changed = differences(found, scoring)
    if changed:
        raise ConfigError(f"{target_uri} holds masks made otherwise ({'; '.join(changed)}); choose another destination")
