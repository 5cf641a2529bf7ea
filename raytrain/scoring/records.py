"""What the ledger keeps of a finished chip, tile or scene: nothing of it depends on time, place or attempt."""

from __future__ import annotations

from typing import Literal

from raytrain.config import PlainKey, PlainName, Settings


class Output(Settings):
    """One file of the destination: its key below it, the hash of its bytes, how many they are."""

    key: PlainKey
    sha256: str
    num_bytes: int


class Record(Settings):
    """A finished chip, tile or scene: what it was made from and with, what stands for it, what was found.

    `settings_digest` is that of everything the outputs depend on but the source. `source_item_uri` is where the STAC
    item of the source lies. `outputs` are by kind, those of rasters and `item`. `members_left_out` lacked bands: they
    have no share in the mask, and no raster. `shift` is what was taken off the stored values for baseline 04.00, and
    `shift_rule` how that was decided. `notes` say what could not be made of it, e.g. why it has no STAC item, and what
    its mask may suffer from, e.g. coarse pixels. `disagreement_mean` is that of the members over the valid pixels, in
    [0, 0.5]; None without that layer, without a valid pixel, and in records of before it was kept. Of tiles, `bands`
    are those of the shards that `identity` was made of, in this order, and `fold` is that of the nets, None where they
    were not chosen out of fold: with both `tile_identity` tells whether the shards still have what was scored. Records
    of before these were kept, and those of chips and scenes, have neither.
    """

    item_id: PlainName
    kind: Literal["chip", "tile", "scene"]
    source_uri: str
    source_item_uri: str | None = None
    identity: str
    settings_digest: str
    outputs: dict[str, Output]
    height: int
    width: int
    crs: str | None = None
    transform: tuple[float, ...] | None = None
    datetime: str | None = None
    valid_px: int
    cloud_px: int
    disagreement_mean: float | None = None
    members_left_out: tuple[str, ...] = ()
    shift: int = 0
    shift_rule: str = ""
    notes: tuple[str, ...] = ()
    fold: int | None = None
    bands: tuple[str, ...] = ()
