"""Names of things: local paths, `s3://bucket/key` and `https://host/path` in their one form, and their parts.

Must not know how anything is read.
"""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit, urlunsplit

from raytrain.errors import ConfigError

HTTP_SCHEMES = ("http", "https")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_WORD = re.compile(r"[^\s'\"]+")
_HTTP = re.compile("https?://", re.IGNORECASE)
_PARTIAL_NAME = re.compile(r"^\.(?P<name>.+)\.[0-9a-f]{32}\.partial$")


def normalise(uri: str) -> str:
    """Return `uri` in its one form: an absolute local path, `s3://bucket/key` without a trailing slash, or a URL.

    A URL (`http://`, `https://`) keeps its path and its query, which may be a signature; a fragment is dropped.
    """
    if not uri.strip():
        raise ConfigError("an empty path; expected a local path or s3://bucket/prefix")
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return os.path.abspath(os.path.expanduser(uri))
    if scheme == "file":
        return os.path.abspath(rest)
    if scheme.lower() in HTTP_SCHEMES:
        return _normalised_url(uri)
    if "@" in rest.partition("/")[0]:
        raise ConfigError(f"{scheme}://...@...: keys never stand in a URI; set AWS_ACCESS_KEY_ID and the like")
    if scheme != "s3" or not rest.strip("/"):
        raise ConfigError(f"{uri}: expected a local path or s3://bucket/prefix (to read, also https://host/path)")
    place = rest.strip("/")
    bucket = place.partition("/")[0]
    if not _BUCKET.fullmatch(bucket):
        raise ConfigError(f"{uri}: no bucket is named {bucket!r}; expected letters, digits, '.', '_' and '-'")
    return f"s3://{place}"


def _normalised_url(uri: str) -> str:
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{shown(uri)}: not a URL; expected https://host/path") from error
    if "@" in parts.netloc:
        raise ConfigError(f"{parts.scheme}://...@...: passwords never stand in a URI; use a signed URL or a store")
    if not parts.hostname or "\\" in parts.netloc:
        raise ConfigError(f"{shown(uri)}: a URL without a host; expected https://host/path")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    default = {"http": 80, "https": 443}[parts.scheme]
    place = host if port in (None, default) else f"{host}:{port}"
    return urlunsplit((parts.scheme, place, parts.path, parts.query, ""))


def is_local(uri: str) -> bool:
    """Tell whether `uri` is a path on this machine."""
    return "://" not in normalise(uri)


def is_http(uri: str) -> bool:
    """Tell whether `uri` is one that can only be read: `http://` or `https://`."""
    return uri.partition("://")[0].lower() in HTTP_SCHEMES and "://" in uri


def shown(uri: str) -> str:
    """Return `uri` as messages and records show it: without the query of a URL, which may be a signature."""
    return uri.partition("?")[0].partition("#")[0] if is_http(uri) else uri


def without_queries(text: str) -> str:
    """Return `text` without the queries of the addresses in it, of any scheme: they may be signatures.

    An address goes up to a blank or a quote. Time grows with the length of `text` alone, which may be a stranger's.
    """
    return _WORD.sub(lambda word: _without_query(word[0]), text) if "://" in text else text


def _without_query(word: str) -> str:
    start = word.find("://")
    if start < 0:
        return word
    ends = [word.find("?", start)]
    if http := _HTTP.search(word):  # of these a fragment goes, too
        ends.append(word.find("#", http.end()))
    return word[: min((end for end in ends if end >= 0), default=len(word))]


def join(uri: str, *names: str) -> str:
    """Return the URI of `names` below `uri`; the query of a URL stays at its end."""
    if is_http(uri):
        path, mark, query = uri.partition("?")
        return "/".join([path.rstrip("/"), *names]) + mark + query
    return "/".join([uri.rstrip("/"), *names])


def name_of(uri: str) -> str:
    """Return the last part of `uri`."""
    return shown(uri).rstrip("/").rsplit("/", 1)[-1]


def is_plain_name(text: str) -> bool:
    """Tell whether `text` can be the name of one file anywhere: letters, digits, '.', '_', '-', no dot in front.

    At most 200 of them: a name has 255 bytes on a disk, some of which are endings and those of a half-written file.
    """
    return bool(_PLAIN_NAME.fullmatch(text))


def is_plain_key(text: str) -> bool:
    """Tell whether `text` is plain names joined by '/': a key that stays below the prefix that it is joined to."""
    return all(map(is_plain_name, text.split("/")))


def is_hidden(name: str) -> bool:
    """Tell whether a relative name is a hidden file's, or of one in a hidden folder.

    So are half-written files, and those that file managers leave.
    """
    return any(part.startswith(".") for part in name.split("/"))


def partial_of(name: str) -> str | None:
    """Return the name that a half-written local file was to get; None for any other file."""
    match = _PARTIAL_NAME.match(name)
    return match["name"] if match else None


def path_of(uri: str) -> str:
    """Return what the filesystem of `uri` calls it: the local path, or `bucket/key`."""
    return normalise(uri).removeprefix("s3://")
