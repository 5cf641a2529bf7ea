"""The ensemble: its nets as one function from pixels to probabilities of cloud and the members' disagreement.

One decode feeds all members and both flips; what members share (normalised bands) is computed once. Must not know where
pixels come from.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raytrain import storage
from raytrain.config import MemberSettings, ScoreSettings
from raytrain.errors import ConfigError
from raytrain.imagery.windows import reflect_up, round_up
from raytrain.scoring import devices
from raytrain.scoring.inputs import InputKey, input_key, shared_inputs
from raytrain.scoring.layers import Kind, member_kind
from raytrain.scoring.manifest import EnsembleManifest, ensemble_folder, member_names
from raytrain.scoring.rewriting import rewritten
from raytrain.storage.temporary import temporary_folder
from raytrain.training.models import load_weights

STRAIGHT, FLIPPED = False, True
ResultT = TypeVar("ResultT")
LARGEST_WEIGHTS_BYTES = 4 * 2**30
"""Of the weights of a member: a thousand million parameters."""


@dataclass(frozen=True)
class _Net:
    """A member's net on the device, and what it is called; `compiled` is for windows of full size."""

    name: str
    member: MemberSettings
    module: nn.Module
    compiled: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Pass:
    """A net, and the flips that it computes as one batch."""

    net: _Net
    flips: tuple[bool, ...]


class NetThreads:
    """The threads that nets compute in on a device, and how long they did; of one ensemble, or of several in turn."""

    def __init__(self, settings: ScoreSettings, device: torch.device) -> None:
        on_cuda = device.type == "cuda"
        self.num = 1 if on_cuda else settings.threads
        self._pool = ThreadPoolExecutor(self.num, "nets", None if on_cuda else _one_thread_each)
        self._lock = threading.Lock()
        self._busy_s = 0.0

    def submit(self, what: Callable[[], ResultT]) -> Future[ResultT]:
        """Have `what` done by one of the threads."""
        return self._pool.submit(what)

    def count(self, seconds: float) -> None:
        """Count so much time of a thread inside nets."""
        with self._lock:
            self._busy_s += seconds

    @property
    def network_s(self) -> float:
        """How long nets have computed so far, in seconds, the device's work included; of several threads the mean."""
        return self._busy_s / self.num


class Ensemble:
    """The nets of an ensemble on one device; `bands` are the channels that the members use together.

    `names` are what the nets are called, by default as their members: each another where `member_maps` asks for the
    layer of each. `threads` are those of other ensembles that compute in the same place, by default its own.

    On a CPU each window, member and flip has a pass of its own, by one thread, and `threads` of these run side by side:
    the result is that of one thread, to the bit, and a busy core delays one pass instead of all. (In a batch the last
    bits of an elementwise function depend on the place there: the tail behind the last whole vector goes another way.)
    On a CUDA device a pass has `windows_per_pass` windows and their flips, the last one filled up.

    Nets compiled by torch are for windows of full size alone, since a compiler may choose by what it saw before.
    """

    def __init__(
        self,
        members: Sequence[tuple[MemberSettings, nn.Module]],
        settings: ScoreSettings,
        device: torch.device,
        *,
        names: Sequence[str] | None = None,
        disagreement: bool = False,
        member_maps: bool = False,
        threads: NetThreads | None = None,
    ) -> None:
        self.bands = tuple(dict.fromkeys(band for member, _ in members for band in member.bands))
        self._settings = settings
        self._device = device
        self._disagreement, self._member_maps = disagreement, member_maps
        self._dtype = devices.scoring_dtype(settings.precision, device)
        self._on_cuda = device.type == "cuda"
        self._per_pass = settings.windows_per_pass if self._on_cuda else 1
        self._threads = threads or NetThreads(settings, device)
        called = [member.name for member, _ in members] if names is None else names
        assert not member_maps or len(set(called)) == len(called), "layers of members are known by their names"
        self._nets = [self._prepare(name, *pair) for name, pair in zip(called, members, strict=True)]
        if settings.compile:
            self._compile()

    @classmethod
    def load(
        cls,
        uri: str,
        manifest: EnsembleManifest,
        settings: ScoreSettings,
        device: torch.device,
        *,
        disagreement: bool = False,
        member_maps: bool = False,
        threads: NetThreads | None = None,
    ) -> Ensemble:
        """Load the members of `manifest`, which lies at `uri`; raise `ConfigError` for weights absent or changed."""
        folder = ensemble_folder(uri)
        members = []
        for member in manifest.members:
            with temporary_folder() as temporary:
                path = Path(temporary) / "weights.safetensors"
                path.write_bytes(_read_weights(storage.join(folder, member.weights), member.name))
                members.append((member.settings, load_weights(member.settings, path, member.sha256)))
        names = member_names(manifest.members)
        asked = {"disagreement": disagreement, "member_maps": member_maps}
        return cls(members, settings, device, names=names, threads=threads, **asked)

    def _prepare(self, name: str, member: MemberSettings, net: nn.Module) -> _Net:
        net = net.eval() if self._on_cuda else rewritten(net, len(member.bands))
        module = net.to(self._device)
        module.to(memory_format=torch.channels_last)
        compiled = torch.compile(module, dynamic=False, fullgraph=True) if self._settings.compile else module
        return _Net(name, member, module, compiled)

    def _compile(self) -> None:
        """Have every net compiled before the first window, one after the other, in the threads that will use them."""
        # Torch keeps what it compiled by the code of `forward`, which all nets of a kind share.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * len(self._nets))
        side = self._settings.window_px
        empty = np.zeros((len(self.bands), side, side), np.uint16)
        inputs = self._inputs(self._nets, self.bands, [empty], [np.zeros((side, side), np.bool_)])
        for job in self._jobs(self._nets):
            self._threads.submit(partial(self._computed, job, inputs)).result()

    @property
    def network_s(self) -> float:
        """How long nets have computed so far in its threads, see `NetThreads`."""
        return self._threads.network_s

    def device_record(self) -> dict[str, Any]:
        """Return what a forward pass is computed with, as plain values: for a log, or beside results."""
        return devices.device_record(self._settings, self._device)

    def usable(self, bands: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the names of the members whose bands are all among `bands`, and of those left out."""
        used = dict.fromkeys(net.name for net in self._usable(bands))
        every = dict.fromkeys(net.name for net in self._nets)
        return tuple(used), tuple(name for name in every if name not in used)

    def _usable(self, bands: Sequence[str]) -> list[_Net]:
        return [net for net in self._nets if set(net.member.bands) <= set(bands)]

    def layer_kinds(self, bands: Sequence[str]) -> tuple[Kind, ...]:
        """Return what the layers of a window with the channels `bands` show, in the order of `layers`."""
        disagreement = ("disagreement",) if self._disagreement else ()
        members = [member_kind(net.name) for net in self._usable(bands)] if self._member_maps else ()
        return ("probability", *disagreement, *members)

    def layers(
        self,
        windows: Sequence[NDArray[np.uint16]],
        valid: Sequence[NDArray[np.bool_]],
        bands: Sequence[str] | None = None,
    ) -> list[NDArray[np.float32]]:
        """Return `[L, H, W] float32` of each window: the mean probability of cloud, and what was asked for beside it.

        That is the disagreement, and then the probability of each member that counts. A member's probability is the
        mean over its flips; the first layer is the mean of these, the disagreement their population standard deviation.

        Windows are `[C, H, W] uint16` of one shape, with the channels `bands`, by default `self.bands`; only the
        members that these suffice for count. `valid` are `[H, W] bool`. A side that is no multiple of 32 is reflected
        up for the nets and cut back. Every forward pass has the same shape, the last one filled up, so the result of a
        window does not depend on the others.

        Raises `ConfigError` where no member can be used with `bands`.
        """
        channels = self.bands if bands is None else tuple(bands)
        nets = self._usable(channels)
        if not nets:
            raise ConfigError(f"no member can be used: bands found {', '.join(channels)}; members use {self._needed()}")
        jobs = self._jobs(nets)
        ahead = -(-self._threads.num // len(jobs))  # passes to begin before one is waited for, so no thread idles
        running: deque[list[Future[list[Tensor]]]] = deque()
        found: list[NDArray[np.float32]] = []
        for start in range(0, len(windows), self._per_pass):
            part = slice(start, start + self._per_pass)
            inputs = self._inputs(nets, channels, windows[part], valid[part])
            running.append([self._threads.submit(partial(self._maps, job, inputs)) for job in jobs])
            if len(running) > ahead:
                found += self._merge(running.popleft())
        for futures in running:
            found += self._merge(futures)
        return [layers[:, : mask.shape[0], : mask.shape[1]] for layers, mask in zip(found, valid, strict=False)]

    def _needed(self) -> str:
        return "; ".join(dict.fromkeys(f"{net.member.name} {', '.join(net.member.bands)}" for net in self._nets))

    def _jobs(self, nets: list[_Net]) -> list[list[_Pass]]:
        """Return what threads do at a time: one pass of a CPU; all passes on a CUDA device, waited for once."""
        flips = (STRAIGHT, FLIPPED) if self._settings.horizontal_flip else (STRAIGHT,)
        if self._on_cuda:
            return [[_Pass(net, flips) for net in nets]]
        return [[_Pass(net, (flip,))] for net in nets for flip in flips]

    def _inputs(
        self,
        nets: list[_Net],
        bands: tuple[str, ...],
        windows: Sequence[NDArray[np.uint16]],
        valid: Sequence[NDArray[np.bool_]],
    ) -> dict[InputKey, Tensor]:
        """Return the inputs of a pass, filled up with windows without data."""
        height, width = (round_up(length) for length in valid[0].shape)
        pixels_BCHW = np.zeros((self._per_pass, len(bands), height, width), np.uint16)
        valid_BHW = np.zeros((self._per_pass, height, width), np.bool_)
        for i, (window, mask) in enumerate(zip(windows, valid, strict=True)):
            pixels_BCHW[i], valid_BHW[i] = reflect_up(window, height, width), reflect_up(mask, height, width)
        keys = [input_key(net.member) for net in nets]
        with torch.inference_mode():
            return shared_inputs(keys, bands, pixels_BCHW, valid_BHW, self._device)

    @torch.inference_mode()
    def _maps(self, job: list[_Pass], inputs: dict[InputKey, Tensor]) -> list[Tensor]:
        """Return the probability `[windows of a pass, H, W] float32` of each pass and flip of `job`, flipped back."""
        self._synchronise()
        start = time.perf_counter()
        maps = self._computed(job, inputs)
        self._threads.count(time.perf_counter() - start)
        return maps

    @torch.inference_mode()
    def _computed(self, job: list[_Pass], inputs: dict[InputKey, Tensor]) -> list[Tensor]:
        """Return what `_maps` does, once it is there; the time that it takes counts as none of scoring."""
        with _exact_cudnn():
            maps = [each for one in job for each in self._forward(one, inputs[input_key(one.net.member)])]
        self._synchronise()
        return maps

    def _forward(self, one: _Pass, straight: Tensor) -> list[Tensor]:
        batch = torch.cat([straight.flip(-1) if flip else straight for flip in one.flips])
        batch = batch.contiguous(memory_format=torch.channels_last)
        full_size = batch.shape[-2:] == (self._settings.window_px,) * 2
        net = one.net.compiled if full_size else one.net.module
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype != torch.float32):
            logits = net(batch)[:, 0]
        maps = torch.sigmoid(logits.float()).chunk(len(one.flips))
        return [each.flip(-1) if flip else each for flip, each in zip(one.flips, maps, strict=True)]

    @torch.inference_mode()
    def _merge(self, futures: list[Future[list[Tensor]]]) -> list[NDArray[np.float32]]:
        """Return the layers `[L, H, W] float32` of each window of a pass, each sum in the order of the members.

        Nothing but sums and products of single pixels: their bits are the same for any number of threads.
        """
        maps = [each for future in futures for each in future.result()]
        num_flips = 2 if self._settings.horizontal_flip else 1
        members = [_mean(maps[i : i + num_flips]) for i in range(0, len(maps), num_flips)]
        mean = _mean(members)
        layers = [mean]
        if self._disagreement:
            layers.append(_mean([(each - mean).square() for each in members]).sqrt())
        if self._member_maps:
            layers += members
        return list(torch.stack(layers, 1).cpu().numpy())

    def _synchronise(self) -> None:
        if self._on_cuda:
            torch.cuda.synchronize(self._device)


def _exact_cudnn() -> AbstractContextManager[None]:
    """Keep cuDNN to algorithms that give the same bits each time, and float32 from the shorter TF32; no CPU minds."""
    return cast(
        AbstractContextManager[None],
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
    )


def _mean(maps: Sequence[Tensor]) -> Tensor:
    total = maps[0]
    for each in maps[1:]:
        total = total + each
    return total / len(maps)


def _one_thread_each() -> None:
    torch.set_num_threads(1)


def _read_weights(uri: str, member: str) -> bytes:
    try:
        return storage.read_bytes(uri, LARGEST_WEIGHTS_BYTES)
    except storage.TooLarge as error:
        raise ConfigError(str(error)) from error
    except FileNotFoundError as error:
        raise ConfigError(f"{uri}: no such file, but the ensemble names it as the weights of {member}") from error


def use_threads(threads: int) -> None:
    """Let torch compute with `threads` threads in this process, and keep the memory that it frees."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    devices.keep_freed_memory()
