"""Whether the source of an item is still what was listed: asked when its pixels are read, before anything is written.

Outputs and records bear the identity that the listing found; of a source that changed since, they may show another one,
or parts of two. A store is asked for an ETag, or lists the files of a chip; a local file is looked at, and read again
only if its stamp changed; of a server without ETags a file is read again. Of shards the manifest is read again, and
only where a tile of them can't be read: what can be is checked against their index. Must not know who asks.
"""

from __future__ import annotations

from collections.abc import Mapping

from raytrain import storage
from raytrain.errors import ConfigError, WorkNotFinished
from raytrain.imagery.scene_files import FileVersion, SceneSource
from raytrain.scoring.units import ChipSource, ShardsSource, folder_of
from raytrain.tiles.archive import identity_now
from raytrain.tiles.reader import manifest_digest, read_manifest

CHANGED = "its source changed while it was scored; run again"


class SourceChanged(WorkNotFinished):
    """A source is no more what was listed: what was made of it counts for nothing, and the next run lists it anew."""


def check_unchanged(scene: SceneSource) -> None:
    """Raise `SourceChanged` if a file of a scene is no more what was listed."""
    if scene_has_changed(scene):
        raise SourceChanged(f"{scene.scene_id}: {CHANGED}")


def scene_has_changed(scene: SceneSource) -> bool:
    """Tell whether a file of a scene is no more what was listed; none is asked that a catalogue has a checksum of."""
    return _any_changed(scene.versions)


def chip_has_changed(chip: ChipSource) -> bool:
    """Tell whether a file of a chip is no more what was listed."""
    if storage.is_local(folder_of(chip)):
        return _any_changed(chip.versions)
    return identity_now(folder_of(chip), chip.files) != chip.identity


def shards_have_changed(shards: ShardsSource) -> bool:
    """Tell whether `shards` are no more what was listed, or gone as a whole."""
    try:
        return manifest_digest(read_manifest(shards.uri)) != shards.manifest_digest
    except ConfigError:
        return True


def _any_changed(versions: Mapping[str, FileVersion]) -> bool:
    return any(not _is_still(uri, version) for uri, version in versions.items())


def _is_still(uri: str, version: FileVersion) -> bool:
    if version.stamp is not None and storage.stamp_of(uri) == version.stamp:
        return True
    try:
        now = storage.identity_of(uri)
    except (FileNotFoundError, IsADirectoryError):
        return False
    return now.replace('"', "") == version.identity.replace('"', "")  # not all listings quote an ETag
