"""The ensemble: its nets as one function from pixels to the probability of cloud.

One decode feeds all members and both flips; what members share (bands and normalisation) is computed once. Must not
know where pixels come from.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raytrain import storage
from raytrain.config import MemberSettings, ScoreSettings
from raytrain.errors import ConfigError
from raytrain.imagery.normalisation import normalise, scale_of
from raytrain.imagery.windows import reflect_up, round_up
from raytrain.scoring.manifest import EnsembleManifest, ensemble_folder
from raytrain.training.models import compute_dtype, load_weights


@dataclass(frozen=True)
class _Net:
    """A member's net on the device, and the key of what it is fed: bands and normalisation."""

    member: MemberSettings
    module: nn.Module
    key: str


class Ensemble:
    """The nets of an ensemble on one device; thread settings are the caller's.

    `bands` are the channels that the members use together. `network_s` is how long nets have computed so far, in
    seconds, the device's work included.
    """

    def __init__(
        self,
        members: Sequence[tuple[MemberSettings, nn.Module]],
        settings: ScoreSettings,
        device: torch.device,
        *,
        disagreement: bool = False,
    ) -> None:
        self.bands = tuple(dict.fromkeys(band for member, _ in members for band in member.bands))
        self.network_s = 0.0
        self._disagreement = disagreement
        self._settings = settings
        # On a CPU the last bits of an elementwise function depend on the place in the batch (the tail behind the last
        # whole vector goes another way), so each window has a pass of its own; that is no slower there.
        self._per_pass = settings.windows_per_pass if device.type == "cuda" else 1
        self._device = device
        self._dtype = compute_dtype(settings.precision, device)
        self._nets: list[_Net] = []
        for member, net in members:
            key = json.dumps([member.bands, member.normalisation.model_dump()])
            net = net.to(device)
            net.to(memory_format=torch.channels_last)
            self._nets.append(_Net(member, net.eval(), key))

    @classmethod
    def load(
        cls,
        uri: str,
        manifest: EnsembleManifest,
        settings: ScoreSettings,
        device: torch.device,
        *,
        disagreement: bool = False,
    ) -> Ensemble:
        """Load the members of `manifest`, which lies at `uri`; raise `ConfigError` for weights absent or changed."""
        folder = ensemble_folder(uri)
        members = []
        for member in manifest.members:
            with tempfile.TemporaryDirectory() as temporary:
                path = Path(temporary) / "weights.safetensors"
                path.write_bytes(_read_weights(storage.join(folder, member.weights), member.name))
                members.append((member.settings, load_weights(member.settings, path, member.sha256)))
        return cls(members, settings, device, disagreement=disagreement)

    @property
    def num_layers(self) -> int:
        """Layers of a window: the probability, and the disagreement if it was asked for."""
        return 2 if self._disagreement else 1

    def device_record(self) -> dict[str, Any]:
        """TEMP."""
        return {"device": str(self._device)}

    def usable(self, bands: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the names of the members whose bands are all among `bands`, and of those left out."""
        used = dict.fromkeys(net.member.name for net in self._nets if set(net.member.bands) <= set(bands))
        every = dict.fromkeys(net.member.name for net in self._nets)
        return tuple(used), tuple(name for name in every if name not in used)

    def layers(
        self,
        windows: Sequence[NDArray[np.uint16]],
        valid: Sequence[NDArray[np.bool_]],
        bands: Sequence[str] | None = None,
    ) -> list[NDArray[np.float32]]:
        """Return `[L, H, W] float32` of each window: the mean probability of cloud, then the disagreement if asked for.

        The mean is over members and flips; the disagreement is the population standard deviation over the members'
        probabilities, each the mean over its flips. Windows are `[C, H, W] uint16` of one shape, with the channels
        `bands`, by default `self.bands`; only the members that these suffice for count. `valid` are `[H, W] bool`. A
        side that is no multiple of 32 is reflected up for the nets and cut back. Every forward pass has the same shape,
        the last one filled up, so the result of a window does not depend on the others.

        Raises `ConfigError` where no member can be used with `bands`.
        """
        channels = self.bands if bands is None else tuple(bands)
        nets = [net for net in self._nets if set(net.member.bands) <= set(channels)]
        if not nets:
            raise ConfigError(f"no member can be used: bands found {', '.join(channels)}; see those of the members")
        results: list[NDArray[np.float32]] = []
        for start in range(0, len(windows), self._per_pass):
            height, width = valid[start].shape
            size = (round_up(height), round_up(width))
            pixels = [reflect_up(window, *size) for window in windows[start : start + self._per_pass]]
            masks = [reflect_up(mask, *size) for mask in valid[start : start + self._per_pass]]
            layers_BLHW = self._forward(nets, channels, pixels, masks)
            results += [layers[:, :height, :width] for layers in layers_BLHW[: len(pixels)]]
        return results

    @torch.inference_mode()
    def _forward(
        self,
        nets: list[_Net],
        bands: tuple[str, ...],
        pixels: list[NDArray[np.uint16]],
        masks: list[NDArray[np.bool_]],
    ) -> NDArray[np.float32]:
        """Return the layers `[windows of a pass, L, H, W] float32`."""
        by_key = {net.key: net.member for net in nets}
        inputs = {key: self._to_input(member, bands, pixels, masks) for key, member in by_key.items()}
        self._synchronise()
        start = time.perf_counter()
        probability_MBHW = torch.stack([self._probability(net.module, inputs[net.key]) for net in nets])
        layers = [probability_MBHW.mean(0)]
        if self._disagreement:
            layers.append(probability_MBHW.std(0, correction=0))
        layers_BLHW = torch.stack(layers, 1)
        self._synchronise()
        self.network_s += time.perf_counter() - start
        return np.asarray(layers_BLHW.cpu().numpy())

    def _probability(self, net: nn.Module, batch: Tensor) -> Tensor:
        """Return a member's probability `[windows of a pass, H, W] float32`, the mean over its flips."""
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype != torch.float32):
            logits = net(batch)[:, 0]
        probability = torch.sigmoid(logits.float())
        if self._settings.horizontal_flip:
            straight, flipped = probability.chunk(2)
            probability = (straight + flipped.flip(-1)) / 2
        return probability

    def _synchronise(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _to_input(
        self,
        member: MemberSettings,
        bands: tuple[str, ...],
        pixels: list[NDArray[np.uint16]],
        masks: list[NDArray[np.bool_]],
    ) -> Tensor:
        """Return `[windows of a pass (twice with flips), C, H, W]`, filled up with zeros behind the last window."""
        channels = [bands.index(band) for band in member.bands]
        shape = (self._per_pass, len(channels), *masks[0].shape)
        filled = np.zeros(shape, np.float32)
        for i, (window, mask) in enumerate(zip(pixels, masks, strict=True)):
            chosen = window[channels]
            filled[i] = normalise(chosen, mask, scale_of(chosen, mask, member.bands, member.normalisation))
        batch = torch.from_numpy(filled).to(self._device)
        if self._settings.horizontal_flip:
            batch = torch.cat([batch, batch.flip(-1)])
        return batch.contiguous(memory_format=torch.channels_last)


def _read_weights(uri: str, member: str) -> bytes:
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError as error:
        raise ConfigError(f"{uri}: no such file, but the ensemble names it as the weights of {member}") from error


def use_threads(threads: int) -> None:
    """Let torch compute with `threads` threads in this process."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
