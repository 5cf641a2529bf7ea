"""Encoder weights in a store of one's own, so that the ranks of a cluster ask no hub: written once, read by training.

A mirror is a folder of `<encoder>.safetensors` and `weights.json`, which has the hash and the source of each. Must not
know how weights get into nets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from raytrain import __version__, storage
from raytrain.config import TIMM_WEIGHTS, MemberSettings, PlainName, Settings, parse
from raytrain.errors import ConfigError
from raytrain.training.encoder_files import SUFFIX, EncoderFile, fetch, file_of, refuse_pickled

MIRROR_FILE = "weights.json"
FORMAT_VERSION = 1


class MirroredWeights(Settings):
    """One encoder's file in a mirror: its name there, hash and size, timm's tag, and where it was taken from."""

    file: PlainName
    sha256: str
    bytes: int
    timm_tag: str
    source: str


class Mirror(Settings):
    """The content of `weights.json`: files by encoder."""

    format_version: int = FORMAT_VERSION
    raytrain_version: str
    encoders: dict[str, MirroredWeights] = Field(default_factory=dict)


@dataclass(frozen=True)
class MirrorReport:
    """The mirror as it stands now, and the encoders that were there already."""

    mirror: Mirror
    skipped: list[str]


def read_mirror(uri: str) -> Mirror:
    """Return what the mirror at `uri` has; raise `ConfigError` where there is none."""
    path = storage.join(uri, MIRROR_FILE)
    try:
        values = storage.read_json(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no mirror of weights there; `raytrain weights {uri}` makes one") from error
    if values.get("format_version") != FORMAT_VERSION:
        raise ConfigError(f"{path}: not a mirror of format version {FORMAT_VERSION}")
    return parse(Mirror, values, path)


def find_files(members: Sequence[MemberSettings], uri: str | None) -> list[EncoderFile | None]:
    """Return the file that each member's encoder starts from; None for random weights.

    A member that asks for timm's weights takes them from the mirror at `uri`, from the hub where `uri` is None. Raises
    `ConfigError` for an encoder that the mirror lacks, and for a mirror that no member asks for.
    """
    files = [file_of(member) for member in members]
    if uri is None:
        return files
    mirror = read_mirror(uri)
    if all(member.encoder_weights != TIMM_WEIGHTS for member in members):
        raise ConfigError(f"--weights {uri}: no member asks for timm's weights (encoder_weights={TIMM_WEIGHTS})")
    return [_mirrored(uri, mirror, file.encoder) if file is not None and file.uri is None else file for file in files]


def _mirrored(uri: str, mirror: Mirror, encoder: str) -> EncoderFile:
    if encoder not in mirror.encoders:
        raise ConfigError(
            f"the mirror {uri} has no weights of encoder {encoder!r}; it has "
            f"{', '.join(sorted(mirror.encoders)) or 'none'}; `raytrain weights {uri} --members ...` adds to it"
        )
    entry = mirror.encoders[encoder]
    return EncoderFile(encoder=encoder, uri=storage.join(uri, entry.file), sha256=entry.sha256)


def write_mirror(
    uri: str, encoders: Sequence[str], files: Mapping[str, str], on_progress: Callable[[int, int], None]
) -> MirrorReport:
    """Bring the weights of `encoders` into the mirror at `uri`, each from `files` (URI by encoder) or from timm's hub.

    What stands with its hash is left as it is; what the mirror has of other encoders stays. Every file is checked
    against its encoder before it is written, and recorded once it stands, so a call that was cut off goes on. Raises
    `ConfigError` for a file that is pickled, damaged or not of the encoder, and for one that differs from what stands;
    `WorkNotFinished` where the hub is out of reach.
    """
    # Here, since checking takes timm and torch, which a driver that reads a mirror does without.
    from raytrain.training.encoder_tensors import check_encoder_file

    for file_uri in files.values():
        refuse_pickled(file_uri)
    mirror = _standing(uri)
    skipped: list[str] = []
    for i, encoder in enumerate(encoders):
        on_progress(i, len(encoders))
        source = EncoderFile(encoder=encoder, uri=files.get(encoder))
        if _is_whole(uri, mirror.encoders.get(encoder)):
            _refuse_other(uri, mirror.encoders[encoder], source)
            skipped.append(encoder)
            continue
        data = fetch(source)
        check_encoder_file(encoder, data, source.place)
        entry = MirroredWeights(
            file=f"{encoder}{SUFFIX}",
            sha256=storage.sha256_of(data),
            bytes=len(data),
            timm_tag=encoder,
            source=source.place,
        )
        storage.write_bytes(storage.join(uri, entry.file), data)
        mirror = mirror.model_copy(update={"encoders": {**mirror.encoders, encoder: entry}})
        storage.write_bytes(storage.join(uri, MIRROR_FILE), mirror.model_dump_json(indent=1).encode())
    on_progress(len(encoders), len(encoders))
    return MirrorReport(mirror, skipped)


def _standing(uri: str) -> Mirror:
    if not storage.exists(storage.join(uri, MIRROR_FILE)):
        return Mirror(raytrain_version=__version__)
    return read_mirror(uri)


def _is_whole(uri: str, entry: MirroredWeights | None) -> bool:
    """Tell whether the file of `entry` stands in the mirror with its hash."""
    if entry is None:
        return False
    try:
        return storage.sha256_of(storage.read_bytes(storage.join(uri, entry.file))) == entry.sha256
    except FileNotFoundError:
        return False


def _refuse_other(uri: str, entry: MirroredWeights, source: EncoderFile) -> None:
    """Raise `ConfigError` if a file that was given differs from what stands: runs may have begun with that."""
    if source.uri is None:
        return
    found = storage.sha256_of(fetch(source))
    if found != entry.sha256:
        raise ConfigError(
            f"{uri} has other weights of encoder {source.encoder!r} (sha256 {entry.sha256}, from {entry.source}) than "
            f"{source.uri} (sha256 {found}); name another destination"
        )
