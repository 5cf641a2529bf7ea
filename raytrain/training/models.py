"""The U-Nets: smp's decoder on a timm encoder, made from a member's settings. Must not know data or ranks."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import cast

import segmentation_models_pytorch as smp
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from raytrain.config import MemberSettings
from raytrain.errors import ConfigError, first_line
from raytrain.training.encoder_files import EncoderFile, fetch, file_of
from raytrain.training.encoder_tensors import load_encoder


def build_model(
    settings: MemberSettings, *, with_encoder_weights: bool = True, file: EncoderFile | None = None
) -> nn.Module:
    """Return the U-Net of `settings`: `[B, C, H, W]` float in [-1, 1] -> `[B, 1, H, W]` logits; H, W multiples of 32.

    A net whose weights are loaded next goes without those of its encoder; `file` overrides where they come from. All
    draws are those of random weights, whatever is loaded over them. Raises `ConfigError` for an encoder that is unknown
    or weights that don't fit, `WorkNotFinished` where the hub is out of reach.
    """
    try:
        net = smp.Unet(
            encoder_name=f"tu-{settings.encoder}",
            encoder_weights=None,
            in_channels=len(settings.bands),
            classes=1,
            decoder_use_norm=settings.decoder_norm,
            decoder_channels=settings.decoder_channels,
        )
    except (RuntimeError, KeyError, ValueError) as error:
        raise ConfigError(
            f"member {settings.name}: can't build encoder {settings.encoder!r}: {first_line(error)}"
        ) from error
    source = (file or file_of(settings)) if with_encoder_weights else None
    if source is not None:
        load_encoder(net.encoder.model, settings, fetch(source), source.place)
    return cast(nn.Module, net)


def load_weights(settings: MemberSettings, path: Path, sha256: str) -> nn.Module:
    """Return the member's net with the weights of the safetensors file `path`, ready for scoring.

    Raises `ConfigError` if the file's hash is not `sha256`. Nothing is unpickled.
    """
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise ConfigError(f"weights of member {settings.name}: sha256 is {found}, but the ensemble names {sha256}")
    net = build_model(settings, with_encoder_weights=False)
    try:
        net.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise ConfigError(
            f"weights of member {settings.name}: not a safetensors file of its net ({path.stat().st_size} bytes): "
            f"{first_line(error)}; train it again, or bring back the file"
        ) from error
    return net.eval()


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of the forward pass.

    `auto` is bfloat16 on a CUDA device that computes in it, float16 on another one, float32 on a CPU.
    """
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
