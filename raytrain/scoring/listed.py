"""What every kind of listing makes scenes with: ids, identities, URIs that belong to others, scenes of one file.

Must not know the kinds.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

from raytrain import storage
from raytrain.errors import ConfigError, DataError, encodable
from raytrain.imagery.baseline import baseline_in_name
from raytrain.imagery.scene_files import ALL_BANDS, BandFile, FileVersion, SceneSource, shown

_RASTER = re.compile(r"\.(tiff?|jp2)$", re.IGNORECASE)
_KEYS = re.compile(r"//[^/]*@")


class Unlisted(DataError):
    """What is wrong with a scene of a listing, which is named by its id where that is known and its own alone.

    `place` is where it lies, or what names it. What `is_out_of_reach` may be well: its store did not answer.
    """

    def __init__(self, subject: str, found: str, place: str, *, is_out_of_reach: bool = False) -> None:
        super().__init__(encodable(subject), encodable(found))
        self.place = encodable(place)
        self.is_out_of_reach = is_out_of_reach
        self.args = (self.subject, self.found, self.place)


@dataclass(frozen=True)
class Work:
    """A scene that lies at `place`, or is named there, and still has to be asked for.

    `make` may raise `DataError` and `StoreOutOfReach`. `scene_id` is None where only the scene's document tells it.
    """

    place: str
    make: Callable[[], SceneSource]
    scene_id: str | None = None


def is_raster(uri: str) -> bool:
    """Tell whether `uri` is a GeoTIFF or a JPEG 2000 file, by its name."""
    return bool(_RASTER.search(shown(uri)))


def id_by_name(uri: str) -> str:
    """Return the id of the scene of one file, by its name."""
    return _RASTER.sub("", storage.name_of(shown(uri)))


def checked_id(scene_id: str) -> str:
    """Return `scene_id`; raise `DataError` if no file of every store could have it for a name."""
    if not storage.is_plain_name(scene_id):
        raise DataError(
            scene_id,
            "an id that is no plain name: letters, digits, '.', '_' and '-' only, none of the last three first",
        )
    return scene_id


def file_identity(uri: str, info: storage.FileInfo | None = None) -> str:
    """Return what changes when the bytes of the file at `uri` do; `info` is what a listing had. Raise `DataError`."""
    try:
        refuse_special(uri)
        return storage.identity_of(uri, info)
    except IsADirectoryError as error:
        raise DataError(shown(uri), "a folder, expected a file") from error
    except FileNotFoundError as error:
        raise DataError(shown(uri), "no such file") from error
    except (OSError, ConfigError) as error:
        raise refusal(uri, error) from error


def file_version(uri: str, info: storage.FileInfo | None = None) -> FileVersion:
    """Return what the file at `uri` is now; `info` is what a listing had. Raise `DataError`."""
    stamp = storage.stamp_of(uri)  # before its content is read: who writes meanwhile changes it
    return FileVersion(identity=file_identity(uri, info), stamp=stamp)


def refuse_special(uri: str) -> None:
    """Raise `DataError` for what is no regular file, and for a name that no record could hold."""
    if encodable(uri) != uri:
        raise DataError(shown(uri), "a name that is not UTF-8; rename it")
    if storage.is_special(uri):
        raise DataError(shown(uri), "a device or a pipe, expected a file")


def refusal(uri: str, error: OSError | ConfigError) -> DataError:
    """Return what a disk, a server, a store, or our own limits, said of a file that can't be read."""
    return DataError(shown(uri), str(error).removeprefix(f"{shown(uri)}: "))


def hashed(facts: Any) -> str:
    """Return a hash of `facts`, which are plain values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def file_scene(uri: str, scene_id: str | None = None, info: storage.FileInfo | None = None) -> SceneSource:
    """Return the scene of one file of all bands, by default of the file's name."""
    scene_id = checked_id(id_by_name(uri) if scene_id is None else scene_id)
    version = file_version(uri, info)
    return SceneSource(
        scene_id=scene_id,
        files={ALL_BANDS: BandFile(uri=uri)},
        identity=version.identity,
        versions={uri: version},
        processing_baseline=baseline_in_name(shown(uri)),
    )


def band_scene(
    scene_id: str, uris: Mapping[str, str], infos: Mapping[str, storage.FileInfo], place: str
) -> SceneSource:
    """Return the scene of one file a band; `place` is its folder, whose names may tell the processing baseline."""
    versions = {band: file_version(uri, infos[band]) for band, uri in uris.items()}
    return SceneSource(
        scene_id=checked_id(scene_id),
        files={band: BandFile(uri=uri) for band, uri in uris.items()},
        identity=hashed(sorted((band, version.identity) for band, version in versions.items())),
        versions={uri: versions[band] for band, uri in uris.items()},
        processing_baseline=baseline_in_name(place),
    )


def _told(href: str) -> str:
    """Return `href` as an error tells of it: without a signature, and without keys or a password before a host."""
    return _KEYS.sub("//...@", shown(href))


def _local_path(href: str, rest: str, base: str) -> str:
    """Return the path of a `file://` URI; raise `DataError` where it is another machine that names it."""
    if not storage.is_local(base):
        raise DataError(_told(href), f"a file of this machine, named by {shown(base)}, which is not on it")
    path = rest.removeprefix("localhost")
    if not path.startswith("/"):
        raise DataError(_told(href), "expected file:///path")
    return posixpath.normpath(path)


def _joined(href: str, base: str) -> str:
    """Return the URL that `href` means in the document at the URL `base`."""
    try:
        found = urljoin(base, href)
    except ValueError as error:
        raise DataError(_told(href), f"no URL: {error}") from error
    if not storage.is_http(found):
        raise DataError(_told(href), f"no URL, but named by {shown(base)}: expected s3://, http:// or https://")
    return _plain(found)


def _plain(uri: str) -> str:
    """Return `uri`; raise `DataError`, without a password that stands in it, where nobody can ask for it."""
    try:
        found = storage.normalise(uri)
    except ConfigError as error:
        subject, _, why = str(error).partition(": ")
        raise DataError(subject, why) from error
    if found.startswith("s3://") and "/" not in found.removeprefix("s3://"):
        raise DataError(found, "a bucket, expected s3://bucket/key")
    if found.startswith("s3://") and not {".", ".."}.isdisjoint(found.split("/")):
        raise DataError(found, "a key with '.' or '..' for a folder")
    return uri


def resolved(href: str, base: str) -> str:
    """Return the URI that `href` in the document at `base` means; raise `DataError` for a scheme nobody can open."""
    scheme, separator, rest = href.partition("://")
    if "\0" in href or encodable(href) != href:
        raise DataError(repr(_told(href)), "no URI: it has a zero byte, or is no Unicode")
    if separator:
        if scheme.lower() == "file":
            return _local_path(href, rest, base)
        if scheme.lower() not in ("s3", "http", "https"):
            raise DataError(_told(href), f"scheme {scheme}://: expected a local path, s3://, http:// or https://")
        return _plain(f"{scheme.lower()}://{rest}")
    if base.startswith(("http://", "https://")):
        return _joined(href, base)
    if base.startswith("s3://"):
        bucket, _, key = base.removeprefix("s3://").partition("/")
        path = posixpath.normpath(posixpath.join("/", posixpath.dirname(key), href))
        return _plain(f"s3://{bucket}{path}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(storage.path_of(base)), href))
