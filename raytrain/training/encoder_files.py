"""Files of pretrained encoder weights: on timm's hub, at a URI, or in a mirror; fetched as bytes, held against a hash.

A file is safetensors with timm's names; nothing pickled is ever opened. The driver of a training hashes files without
the nets, so this module must not know torch or timm.
"""

from __future__ import annotations

from pathlib import Path

from raytrain import storage
from raytrain.config import RANDOM_WEIGHTS, TIMM_WEIGHTS, MemberSettings, Settings
from raytrain.errors import ConfigError, WorkNotFinished, first_line

SUFFIX = ".safetensors"
LARGEST_BYTES = 4 * 2**30
"""Of the weights of an encoder: a thousand million parameters."""
HUB_FILE = "model.safetensors"
"""The name of the weights in each repository of timm's organisation on the hub."""


class EncoderFile(Settings):
    """Where the pretrained weights of an encoder lie, and their hash where it is known.

    `uri` None stands for timm's hub.
    """

    encoder: str
    uri: str | None = None
    sha256: str | None = None

    @property
    def place(self) -> str:
        """What messages and records call it."""
        return f"hf://timm/{self.encoder}/{HUB_FILE}" if self.uri is None else self.uri


def file_of(settings: MemberSettings) -> EncoderFile | None:
    """Return the file that the member's settings name; None for random weights.

    Raises `ConfigError` for a file that is not safetensors by its name.
    """
    if settings.encoder_weights == RANDOM_WEIGHTS:
        return None
    if settings.encoder_weights == TIMM_WEIGHTS:
        return EncoderFile(encoder=settings.encoder)
    uri = storage.normalise(settings.encoder_weights)
    refuse_pickled(uri)
    return EncoderFile(encoder=settings.encoder, uri=uri)


def refuse_pickled(uri: str) -> None:
    """Raise `ConfigError` unless `uri` is a safetensors file by its name."""
    if not uri.endswith(SUFFIX):
        raise ConfigError(
            f"{uri}: expected weights as *{SUFFIX} (or timm, random); .pth, .pt, .bin and the like are pickled, which "
            "may run anything when opened: convert them with safetensors.torch.save_file, where they are trusted"
        )


def fetch(file: EncoderFile) -> bytes:
    """Return the bytes of `file`.

    Raises `ConfigError` for a file that is absent or has another hash, `WorkNotFinished` where the hub is out of reach,
    and what `storage` raises where a store is.
    """
    data = _from_hub(file) if file.uri is None else _from_store(file.uri)
    found = storage.sha256_of(data)
    if file.sha256 not in (None, found):
        raise ConfigError(
            f"{file.place}: sha256 is {found}, expected {file.sha256}; the weights of {file.encoder} changed or are "
            "damaged: bring back the old ones, or begin another --experiment with these"
        )
    return data


def _from_store(uri: str) -> bytes:
    try:
        return storage.read_bytes(uri, LARGEST_BYTES)
    except storage.TooLarge as error:
        raise ConfigError(str(error)) from error
    except FileNotFoundError as error:
        raise ConfigError(f"no such file of encoder weights: {uri}") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{uri}: a folder, expected a {SUFFIX} file") from error


def _from_hub(file: EncoderFile) -> bytes:
    # Here, since most runs have no need of it and its import takes half a second.
    import httpx2
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError, RepositoryNotFoundError

    remedy = (
        "give a file (--set encoder_weights=FILE, or --file of `raytrain weights`), a mirror (--weights), or "
        "encoder_weights=random"
    )
    try:
        return Path(hf_hub_download(f"timm/{file.encoder}", HUB_FILE)).read_bytes()
    except (RepositoryNotFoundError, RemoteEntryNotFoundError, HFValidationError) as error:
        raise ConfigError(
            f"timm's hub has no {HUB_FILE} of encoder {file.encoder!r}; encoders carry their full tag, such as "
            f"resnet34.bt_in1k; or {remedy}"
        ) from error
    except (OSError, httpx2.HTTPError) as error:  # the hub's own errors are OSErrors of several kinds
        raise WorkNotFinished(
            f"can't fetch pretrained weights of {file.encoder!r} from timm's hub: "
            f"{first_line(error).rstrip('.')}; {remedy}"
        ) from error
