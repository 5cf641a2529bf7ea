"""The full state of a run in a folder: weights and momentum as safetensors, the rest as JSON; nothing is pickled.

There is no random generator to keep: every draw of a sample is made from (seed, epoch, sample), and torch's generators
are seeded before each step from (seed, epoch, samples done, rank). `state.json` is written last and has the hashes of
the other files, so that a torn checkpoint is found out. Must not know which checkpoints of a run are kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from raytrain import storage
from raytrain.config import MemberSettings, differences, parse
from raytrain.errors import ConfigError, DataError, first_line
from raytrain.tiles.order import Position
from raytrain.training import WEIGHTS_FILE
from raytrain.training.checkpoint_files import FORMAT_VERSION, MOMENTUM_FILE, STATE_FILE, digest_of, record_of
from raytrain.training.schedules import Plateau


@dataclass
class StepsTaken:
    """What the steps of an epoch that were taken by this process came to.

    `wait_s` of `all_s` were spent waiting for samples; `skipped` steps changed nothing, since their gradient overflowed
    float16.
    """

    num_images: int = 0
    skipped: int = 0
    wait_s: float = 0.0
    all_s: float = 0.0


@dataclass
class TrainingState:
    """What changes while a member trains.

    `num_samples` are those of a whole epoch; `loss_sum` and `num_steps` are those of the epoch that is going on;
    `plateau` knows the best epoch. `taken` is what the steps of this epoch came to that were taken here; it is no part
    of a checkpoint.
    """

    net: nn.Module
    optimiser: torch.optim.SGD
    scaler: torch.amp.GradScaler
    num_samples: int
    position: Position = field(default_factory=Position)
    loss_sum: float = 0.0
    num_steps: int = 0
    plateau: Plateau = field(default_factory=Plateau)
    taken: StepsTaken = field(default_factory=StepsTaken)

    @property
    def mean_loss(self) -> float | None:
        """The mean loss over the steps of this epoch; None before the first."""
        return self.loss_sum / self.num_steps if self.num_steps else None


@dataclass(frozen=True)
class Snapshot:
    """A copy of a state at one moment, in the memory of this process: what training goes on from there can't reach it.

    `weights` and `momentum` are tensors by name, on the CPU; `record` is all the rest.
    """

    position: Position
    weights: dict[str, Tensor]
    momentum: dict[str, Tensor]
    record: dict[str, Any]

    @property
    def name(self) -> str:
        """What its position is called; names sort as positions do."""
        return f"epoch-{self.position.epoch:04d}-{self.position.samples_done:08d}"

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Yield name and content of each file; the last one is `state.json`, which has the hashes of the others."""
        hashes = {}
        for name, tensors in ((WEIGHTS_FILE, self.weights), (MOMENTUM_FILE, self.momentum)):
            content = save(tensors)
            hashes[name] = hashlib.sha256(content).hexdigest()
            yield name, content
        record = self.record | {"sha256": hashes}
        yield STATE_FILE, json.dumps(record | {"record_sha256": digest_of(record)}, indent=1, sort_keys=True).encode()


def take_snapshot(state: TrainingState, settings: MemberSettings) -> Snapshot:
    """Return a copy of `state`. Rank 0 only; this is all that training waits for when it is saved in the background."""
    weights = {name: _copy(tensor) for name, tensor in state.net.state_dict().items()}
    record = {
        "format_version": FORMAT_VERSION,
        "num_samples": state.num_samples,
        "position": asdict(state.position),
        "learning_rate": state.optimiser.param_groups[0]["lr"],
        "loss_sum": state.loss_sum,
        "num_steps": state.num_steps,
        "plateau": asdict(state.plateau),
        "scaler": state.scaler.state_dict(),
        "settings": settings.model_dump(mode="json"),
        "settings_digest": settings.digest(),
    }
    return Snapshot(state.position, weights, _momentum(state), record)


def write_checkpoint(folder: str, snapshot: Snapshot) -> None:
    """Write `snapshot` to the folder of this URI, `state.json` last: without it there is no checkpoint. Rank 0 only.

    What is written lies on its disk, or in its store, when this returns. Raises `FileExistsError` if there is one.
    """
    if storage.exists(storage.join(folder, STATE_FILE)):
        raise FileExistsError(folder)
    for name, content in snapshot.files():
        storage.write_bytes(storage.join(folder, name), content, durably=True)


def restore_state(files: Mapping[str, bytes], state: TrainingState, settings: MemberSettings) -> None:
    """Bring `state` to where the checkpoint of these files (of `read_checkpoint`) stands.

    Raises `ConfigError` with the differences if the checkpoint was made with other settings or on another number of
    samples.
    """
    record = record_of(files, settings.name)
    changed = differences(parse(MemberSettings, record["settings"], STATE_FILE), settings)
    if changed:
        raise ConfigError(f"the checkpoint of {settings.name} was made with other settings ({'; '.join(changed)})")
    if record["num_samples"] != state.num_samples:
        raise ConfigError(
            f"the checkpoint of {settings.name} was made with {record['num_samples']} samples an epoch, here are "
            f"{state.num_samples}: the tiles are others"
        )
    load_weights(files, state.net)
    buffers = _tensors(files, MOMENTUM_FILE)
    for name, parameter in state.net.named_parameters():
        if name in buffers:
            # On the parameter's device, and of its layout in memory, which arithmetic on both goes by.
            state.optimiser.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(buffers[name])
    if record["scaler"]:
        state.scaler.load_state_dict(record["scaler"])
    for group in state.optimiser.param_groups:
        group["lr"] = record["learning_rate"]
    state.position = Position(**record["position"])
    state.loss_sum, state.num_steps = record["loss_sum"], record["num_steps"]
    state.plateau = Plateau(**record["plateau"])


def load_weights(files: Mapping[str, bytes], net: nn.Module) -> None:
    """Give `net` the weights of the checkpoint of these files."""
    net.load_state_dict(_tensors(files, WEIGHTS_FILE))


def _tensors(files: Mapping[str, bytes], name: str) -> dict[str, Tensor]:
    try:
        return load(files[name])
    except SafetensorError as error:
        raise DataError(name, f"not a safetensors file ({len(files[name])} bytes): {first_line(error)}") from error


def _momentum(state: TrainingState) -> dict[str, Tensor]:
    found = {name: state.optimiser.state[parameter] for name, parameter in state.net.named_parameters()}
    return {
        name: _copy(values["momentum_buffer"])
        for name, values in found.items()
        if values.get("momentum_buffer") is not None
    }


def _copy(tensor: Tensor) -> Tensor:
    """Return a copy in the memory of this process, in rows."""
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
