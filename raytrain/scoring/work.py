"""What every unit of a scoring is done with: the nets, the settings, the destination and its layout.

Must not know Ray.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from raytrain import storage
from raytrain.errors import DataError
from raytrain.scoring.destination import Scoring
from raytrain.scoring.layers import KINDS, Kind, Layers, layer_key, member_kind
from raytrain.scoring.open_shards import OpenShards
from raytrain.scoring.records import Output, Record
from raytrain.scoring.stac import Making, item_key, scene_item, to_bytes

if TYPE_CHECKING:  # it imports torch, which the driver does without
    from raytrain.scoring.ensemble import Ensemble


@dataclass(frozen=True)
class Work:
    """The destination, what its outputs are made with, the nets, and the shards that tiles are read of."""

    destination: str
    scoring: Scoring
    nets: Ensemble
    shards: OpenShards = field(default_factory=OpenShards)

    @cached_property
    def digest(self) -> str:
        """The hash of what outputs depend on, but their source."""
        return self.scoring.digest()

    @cached_property
    def layers(self) -> Layers:
        """The raster outputs of an item, and how they are stored."""
        return layers_of(self.scoring)

    def members_left_out(self, item_id: str, bands: Sequence[str]) -> tuple[str, ...]:
        """Return the members that can't be had with `bands`; raise `DataError` where none may be, or all are."""
        used, left_out = self.nets.usable(bands)
        if left_out and (not used or self.scoring.settings.missing_bands == "error"):
            missing = ", ".join(band for band in self.nets.bands if band not in bands)
            remedy = "; --set missing_bands=leave-out scores with the other members" if used else ""
            found = f"no band {missing} (bands found: {', '.join(bands) or 'none'})"
            raise DataError(item_id, f"{found}, needed by {', '.join(left_out)}{remedy}")
        return left_out

    def layer_numbers(self, bands: Sequence[str]) -> dict[Kind, int]:
        """Return, by kind, the rasters that an item with `bands` gets, and which layer of the nets each shows.

        The mask comes first. Members that are left out have none.
        """
        computed = self.nets.layer_kinds(bands)
        left_out = {member_kind(name) for name in self.nets.usable(bands)[1]}
        return {
            kind: computed.index("probability" if kind == "mask" else kind)
            for kind in self.layers.kinds
            if kind not in left_out
        }

    def remove_maps(self, item_id: str, members: Sequence[str]) -> None:
        """Remove the rasters that an item has of `members`, without which it is scored now.

        Its source may have had their bands before it changed.
        """
        for kind in set(map(member_kind, members)).intersection(self.layers.member_kinds):
            storage.remove(storage.join(self.destination, layer_key(kind, item_id)))

    def put_file(self, item_id: str, kind: Kind, path: Path) -> Output:
        """Move a finished local file to its place at the destination."""
        key = self.layers.layer(kind).key(item_id)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
        storage.write_file(storage.join(self.destination, key), path)
        return Output(key=key, sha256=sha256, num_bytes=size)

    def put_bytes(self, key: str, data: bytes) -> Output:
        """Write an output to its place at the destination."""
        storage.write_bytes(storage.join(self.destination, key), data)
        return Output(key=key, sha256=storage.sha256_of(data), num_bytes=len(data))

    def with_item(self, record: Record) -> Record:
        """Write the STAC item of a scene, and return its record with it, or with a note that says why it has none."""
        item = scene_item(record, making_of(self.scoring))
        if isinstance(item, str):
            # The source may have had a date and a CRS before it changed.
            storage.remove(storage.join(self.destination, item_key(record.item_id)))
            return record.model_copy(update={"notes": (*record.notes, item)})
        output = self.put_bytes(item_key(record.item_id), to_bytes(item))
        return record.model_copy(update={"outputs": {**record.outputs, "item": output}})


COLLECTION_ID = "cloud-masks"


def layers_of(scoring: Scoring) -> Layers:
    """Return the raster outputs of a scoring."""
    settings = scoring.settings
    return Layers(
        probability=settings.probability,
        disagreement=settings.disagreement,
        members=settings.members,
        member_names=scoring.members,
    )


def making_of(scoring: Scoring) -> Making:
    """Return what all STAC items of a scoring have in common."""
    return Making(
        collection_id=COLLECTION_ID,
        ensemble=scoring.ensemble,
        threshold=scoring.settings.threshold,
        raytrain_version=scoring.raytrain_version,
        layers=layers_of(scoring),
    )


def remove_outputs(destination: str, item_id: str, layers: Layers) -> None:
    """Remove the outputs of an item that stand at a destination: of whatever kind, and of the members of `layers`."""
    keys = [layer_key(kind, item_id) for kind in (*KINDS, *layers.member_kinds)]
    for key in (*keys, item_key(item_id)):
        storage.remove(storage.join(destination, key))
