"""The ensemble: its nets as one function from pixels to the probability of cloud.

One decode feeds all members and both flips; what members share (bands and normalisation) is computed once. Must not
know where pixels come from.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
class _Input:
    """What members of one normalisation and one set of bands are fed."""

    channels: tuple[int, ...]
    member: MemberSettings


class Ensemble:
    """The nets of an ensemble on one device; thread settings are the caller's."""

    def __init__(
        self, members: Sequence[tuple[MemberSettings, nn.Module]], settings: ScoreSettings, device: torch.device
    ) -> None:
        self.bands = tuple(dict.fromkeys(band for member, _ in members for band in member.bands))
        self._settings = settings
        # On a CPU the last bits of an elementwise function depend on the place in the batch (the tail behind the last
        # whole vector goes another way), so each window has a pass of its own; that is no slower there.
        self._per_pass = settings.windows_per_pass if device.type == "cuda" else 1
        self._device = device
        self._dtype = compute_dtype(settings.precision, device)
        self._nets: list[tuple[str, nn.Module]] = []
        self._inputs: dict[str, _Input] = {}
        for member, net in members:
            key = json.dumps([member.bands, member.normalisation.model_dump()])
            self._inputs[key] = _Input(tuple(self.bands.index(band) for band in member.bands), member)
            net = net.to(device)
            net.to(memory_format=torch.channels_last)
            self._nets.append((key, net.eval()))

    @classmethod
    def load(cls, uri: str, manifest: EnsembleManifest, settings: ScoreSettings, device: torch.device) -> Ensemble:
        """Load the members of `manifest`, which lies at `uri`; raise `ConfigError` for weights absent or changed."""
        folder = ensemble_folder(uri)
        members = []
        for member in manifest.members:
            with tempfile.TemporaryDirectory() as temporary:
                path = Path(temporary) / "weights.safetensors"
                path.write_bytes(_read_weights(storage.join(folder, member.weights), member.name))
                members.append((member.settings, load_weights(member.settings, path, member.sha256)))
        return cls(members, settings, device)

    def probabilities(
        self, windows: Sequence[NDArray[np.uint16]], valid: Sequence[NDArray[np.bool_]]
    ) -> list[NDArray[np.float32]]:
        """Return the probability of cloud, `[H, W] float32`, of each window.

        Windows are `[C, H, W] uint16` with the channels `self.bands` and one shape; `valid` are `[H, W] bool`. A side
        that is no multiple of 32 is reflected up for the nets and cut back. Every forward pass has the same shape,
        the last one filled up, so the result of a window does not depend on the others.
        """
        height, width = valid[0].shape
        size = (round_up(height), round_up(width))
        results: list[NDArray[np.float32]] = []
        for start in range(0, len(windows), self._per_pass):
            pixels = [reflect_up(window, *size) for window in windows[start : start + self._per_pass]]
            masks = [reflect_up(mask, *size) for mask in valid[start : start + self._per_pass]]
            mean_BHW = self._forward(pixels, masks)
            results += [mean[:height, :width] for mean in mean_BHW[: len(pixels)]]
        return results

    @torch.inference_mode()
    def _forward(self, pixels: list[NDArray[np.uint16]], masks: list[NDArray[np.bool_]]) -> NDArray[np.float32]:
        """Return the mean probability `[windows of a pass, H, W] float32` over all members and flips."""
        inputs = {key: self._to_input(each, pixels, masks) for key, each in self._inputs.items()}
        sum_BHW: Tensor | None = None
        for key, net in self._nets:
            with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype != torch.float32):
                logits = net(inputs[key])[:, 0]
            probability = torch.sigmoid(logits.float())
            if self._settings.horizontal_flip:
                straight, flipped = probability.chunk(2)
                probability = (straight + flipped.flip(-1)) / 2
            sum_BHW = probability if sum_BHW is None else sum_BHW + probability
        assert sum_BHW is not None, "an ensemble has at least one member"
        return np.asarray((sum_BHW / len(self._nets)).cpu().numpy())

    def _to_input(self, each: _Input, pixels: list[NDArray[np.uint16]], masks: list[NDArray[np.bool_]]) -> Tensor:
        """Return `[windows of a pass (twice with flips), C, H, W]`, filled up with zeros behind the last window."""
        member, channels = each.member, list(each.channels)
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
