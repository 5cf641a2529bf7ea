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

from pydantic import ValidationError

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


SPEED_SETTINGS = ("settings.windows_per_pass", "settings.threads")
"""May change when the work goes on: a probability depends on them in its last bits at most."""


class Scoring(Settings):
    """What all outputs of a destination were made from and with: a source's URI, a hash of the nets, the settings."""

    source: str
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
    """Return a unit for each `<uri>/scenes/<id>.tif`, or else for each `<uri>/<id>.tif`.

    Raises `ConfigError` for a scene in a folder below `scenes`: a mask is named by the scene alone.
    """
    files = storage.find(uri)
    rasters_found = [name for name in files if name.endswith(".tif")]
    names = [name for name in rasters_found if name.startswith("scenes/")]
    deep = [name for name in names if name.count("/") > 1]
    if deep:
        raise ConfigError(f"{uri}: {deep[0]} lies deeper than scenes/<id>.tif; name the folder that holds the scenes")
    names = names or [name for name in rasters_found if "/" not in name]
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

    An item that can't be used is a problem of the entry, and has no mask, not even an older one; the others are done.
    Any other failure (a store, memory) is raised, and nothing is entered.
    """
    outputs: dict[str, str] = {}
    problems: list[tuple[str, str]] = []
    if unit.kind == "scene":
        item = unit.items[0]
        try:
            outputs[item.item_id] = score_scene(
                item.sources["scene"], _mask_uri(target_uri, item.item_id), ensemble, settings
            )
        except DataError as error:
            problems.append((item.item_id, error.found))
    else:
        _score_chips(unit, target_uri, ensemble, settings, outputs, problems)
    for item_id, _ in problems:
        storage.remove(_mask_uri(target_uri, item_id))
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
            storage.write_bytes(_mask_uri(target_uri, item.item_id), data)
            outputs[item.item_id] = storage.sha256_of(data)


def _mask_uri(target_uri: str, item_id: str) -> str:
    return storage.join(target_uri, f"{item_id}.tif")


def _ledger_uri(target_uri: str, unit: Unit) -> str:
    return storage.join(target_uri, LEDGER, f"{unit.unit_id}.json")


def finished_units(target_uri: str, units: Sequence[Unit]) -> dict[str, LedgerEntry]:
    """Return the entries, by unit id, of those of `units` that are done: all outputs stand, none of a changed source.

    A unit with a bad item is tried again, since the item may have been mended.
    """
    standing = set(storage.find(target_uri))
    entries: dict[str, LedgerEntry] = {}
    for unit in units:
        if f"{LEDGER}/{unit.unit_id}.json" not in standing:
            continue
        try:
            entry = LedgerEntry.model_validate_json(storage.read_bytes(_ledger_uri(target_uri, unit)))
        except ValidationError:  # a damaged entry: the unit is done again, to the same bytes
            continue
        whole = all(f"{item_id}.tif" in standing for item_id in entry.outputs)
        if whole and entry.unit == unit and not entry.problems:
            entries[unit.unit_id] = entry
    return entries


def check_destination(target_uri: str, scoring: Scoring, units: Sequence[Unit]) -> None:
    """Raise `ConfigError` if masks of `units` would take the place of anything but masks made by `scoring`.

    That is: a source; rasters that came from elsewhere; masks that were made with something else.
    """
    for unit in units:
        for item in unit.items:
            if _mask_uri(target_uri, item.item_id) in item.sources.values():
                raise ConfigError(
                    f"{target_uri}: the mask of {item.item_id} would overwrite its source; choose another"
                )
    changed = _changes(target_uri, scoring)
    if changed == []:
        return
    standing = [name for name in storage.find(target_uri) if name.endswith(".tif") and "/" not in name]
    if standing and changed is None:
        raise ConfigError(
            f"{target_uri} holds {len(standing)} .tif files that are no masks of ours (no {SCORING_FILE}), "
            f"among them {standing[0]}; choose another destination"
        )
    if standing and changed:
        raise ConfigError(f"{target_uri} holds masks of other work ({'; '.join(changed)}); choose another destination")


def claim_destination(target_uri: str, scoring: Scoring) -> None:
    """Record what the outputs at `target_uri` are made with, before the first of them."""
    if _changes(target_uri, scoring) != []:
        storage.write_bytes(storage.join(target_uri, SCORING_FILE), scoring.model_dump_json(indent=1).encode())


def remove_masks(target_uri: str, problems: Sequence[DataError]) -> None:
    """Remove the masks, from an earlier run, of chips that can't be scored any more."""
    standing = set(storage.find(target_uri))
    for problem in problems:
        name = f"{problem.subject}.tif"
        if name in standing and "/" not in name:
            storage.remove(storage.join(target_uri, name))


def _changes(target_uri: str, scoring: Scoring) -> list[str] | None:
    """Return what differs from what is recorded at `target_uri`; None if nothing is."""
    path = storage.join(target_uri, SCORING_FILE)
    try:
        found = parse(Scoring, storage.read_json(path), path)
    except FileNotFoundError:
        return None
    return [text for text in differences(found, scoring) if not text.startswith(SPEED_SETTINGS)]
