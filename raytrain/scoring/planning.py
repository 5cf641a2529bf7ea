"""What is to be scored: an archive listed, held against what is done, cut into units. Must not know who does them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from raytrain import storage
from raytrain.config import ScoreSettings
from raytrain.errors import ConfigError, DataError
from raytrain.imagery.scene_files import FileVersion, SceneSource
from raytrain.scoring.ledger import Known
from raytrain.scoring.listed import Unlisted, file_version
from raytrain.scoring.listing import is_listed, list_scenes
from raytrain.scoring.units import ChipSource, Problem, Unit, folder_of, shown_source, units_of_chips
from raytrain.tiles.archive import Chip, bands_of_chips, holds_chips, open_archive
from raytrain.tiles.selection import Selection, select_chips

READERS = 8


@dataclass
class Listing:
    """An archive as it is listed: `units` yields what is to be done and counts the rest on the way.

    `problems` are of items that are bad, gone or refused, `unreached` of those whose store did not answer.
    """

    uri: str
    destination: str
    bands: tuple[str, ...]
    settings: ScoreSettings
    selection: Selection
    known: Known
    num_items: int = 0
    num_done: int = 0
    problems: list[Problem] = field(default_factory=list)
    unreached: list[Problem] = field(default_factory=list)

    def units(self) -> Iterator[Unit]:
        """Yield the units of what is not done; raise `ConfigError` for a source with nothing to score."""
        if is_listed(self.uri) and holds_chips(self.uri):
            yield from units_of_chips(self._chips())
            return
        if self.selection.where:
            raise ConfigError("--where chooses among chips; the source holds scenes")
        for scene in self._scenes():
            yield Unit(kind="scene", scene=scene)

    def _chips(self) -> Iterator[ChipSource]:
        bands = self.bands
        all_bands = self.settings.missing_bands == "error"
        if not all_bands:
            found = bands_of_chips(self.uri)
            bands = tuple(band for band in bands if band in found) or bands
        archive = select_chips(open_archive(self.uri, bands, for_training=False, all_bands=all_bands), self.selection)
        for problem in archive.problems:
            self._add(problem, self.uri)
        # In the order of the archive; what a local file is changes with its bytes alone, so it is read for that.
        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(archive.chips), 64 * READERS):
                for found_chip in pool.map(_chip_source, archive.chips[start : start + 64 * READERS]):
                    if isinstance(found_chip, DataError):
                        self._add(found_chip, self.uri)
                    elif not self._is_done(found_chip.chip_id, folder_of(found_chip), found_chip.identity):
                        yield found_chip

    def _scenes(self) -> Iterator[SceneSource]:
        for scene in list_scenes(self.uri, self.bands, outputs=self.destination):
            if isinstance(scene, DataError):
                self._add(scene, scene.place)
            elif not self._is_done(scene.scene_id, shown_source(scene), scene.identity):
                if storage.join(self.destination, f"{scene.scene_id}.tif") in {
                    file.uri for file in scene.files.values()
                }:
                    raise ConfigError(
                        f"{self.destination}: the mask of {scene.scene_id} would take the place of the scene; "
                        "choose another destination"
                    )
                yield scene

    def _is_done(self, item_id: str, source_uri: str, identity: str) -> bool:
        if self.known.is_of_another(item_id, source_uri):
            raise ConfigError(
                f"{self.destination} holds a mask of another {item_id}, not of {source_uri}; choose another destination"
            )
        self.num_items += 1
        done = self.known.is_done(item_id, identity)
        self.num_done += done
        return done

    def _add(self, problem: DataError, uri: str) -> None:
        self.num_items += 1
        is_unreached = isinstance(problem, Unlisted) and problem.is_out_of_reach
        (self.unreached if is_unreached else self.problems).append(
            Problem(item_id=problem.subject, source_uri=uri, found=problem.found)
        )


def _chip_source(chip: Chip) -> ChipSource | DataError:
    """Return a chip with what changes when the bytes of one of its files do, and nothing else."""
    identity = chip.identity
    versions: dict[str, FileVersion] = {}
    if storage.is_local(chip.source_uri):
        try:
            versions = {uri: file_version(uri) for uri in chip.bands.values()}
        except DataError as error:
            return DataError(chip.chip_id, f"a band that can't be read: {error.found} ({error.subject})")
        parts = [f"{band} {versions[uri].identity}" for band, uri in sorted(chip.bands.items())]
        identity = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    return ChipSource(chip_id=chip.chip_id, files=chip.bands, identity=identity, versions=versions)
