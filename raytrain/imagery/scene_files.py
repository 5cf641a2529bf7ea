"""What is known of a scene before it is opened: its files by band, its date, what its values mean.

Plain records that travel as JSON, made by whoever lists an archive. Must not know how files are read.
"""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import Field

from raytrain.config import PlainName, Settings

ALL_BANDS = "*"
"""Stands for the name of the band where one file holds several, which its own descriptions name."""


class BandFile(Settings):
    """Where a band lies: a file and the number of the band in it, from 1; None where the file's descriptions say it.

    Reflectance is `scale` times the stored value plus `offset`, where a catalogue says so; None where it says nothing.
    `nodata` is the stored value of no data by a catalogue, for a file that names none.
    """

    uri: str
    index: int | None = Field(default=None, ge=1)
    scale: float | None = None
    offset: float | None = None
    nodata: float | None = None


class FileVersion(Settings):
    """What a file was when its archive was listed: its identity, and for a local one the stamp that it had then."""

    identity: str
    stamp: str | None = None


class SceneSource(Settings):
    """One scene of an archive: its id, its files by band (or one by `ALL_BANDS`), and what a catalogue says of it.

    `identity` changes when a file of the scene, or what its values mean, changes; it depends on neither place nor time.
    `versions` are what its files were, by URI, but those that a catalogue has a checksum of, which is their identity.
    `datetime` is RFC 3339 in UTC. `offset_applied` says that the shift of baseline 04.00 is off the values already;
    `processing_baseline` is like `05.10`. Both are None where the source says nothing. `item_uri` is where its STAC
    item lies, by its own word; else the document that it is, or the document that it is in, `#` and its id.
    """

    scene_id: PlainName
    files: dict[str, BandFile]
    identity: str
    versions: dict[str, FileVersion] = Field(default_factory=dict)
    datetime: str | None = None
    item_uri: str | None = None
    offset_applied: bool | None = None
    processing_baseline: str | None = None


def shown(uri: str) -> str:
    """Return `uri` as messages name it: without the query of an address, where signatures stand."""
    return uri.partition("?")[0] if "://" in uri else uri


def utc_text(moment: datetime) -> str:
    """Return `moment` as RFC 3339 in UTC; one without a zone is in UTC."""
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.isoformat().replace("+00:00", "Z")
