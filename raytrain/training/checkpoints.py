"""The full state of a run in a folder: weights and momentum as safetensors, the rest as JSON; nothing is pickled.

There is no random generator to keep: every draw of a sample is made from (seed, epoch, sample), and torch's generators
are seeded before each step from (seed, epoch, samples done, rank). A folder appears whole or not at all, and
`state.json` has the hashes of the other files, so that a torn copy is found out. Must not know where a folder goes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save_file
from torch import Tensor, nn

from raytrain.config import MemberSettings, differences, parse
from raytrain.errors import ConfigError, DataError
from raytrain.tiles.order import Position
from raytrain.training import WEIGHTS_FILE
from raytrain.training.schedules import Plateau

MOMENTUM_FILE, STATE_FILE = "momentum.safetensors", "state.json"
FORMAT_VERSION = 3
_CHECKPOINT = re.compile(r"epoch-\d{4,}-\d{8,}|\.epoch-\d{4,}-\d{8,}\.partial")


@dataclass
class TrainingState:
    """What changes while a member trains.

    `num_samples` are those of a whole epoch; `loss_sum` and `num_steps` are those of the epoch that is going on;
    `plateau` knows the best epoch.
    """

    net: nn.Module
    optimiser: torch.optim.SGD
    scaler: torch.amp.GradScaler
    num_samples: int
    position: Position = field(default_factory=Position)
    loss_sum: float = 0.0
    num_steps: int = 0
    plateau: Plateau = field(default_factory=Plateau)


def save_state(folder: Path, state: TrainingState, settings: MemberSettings) -> None:
    """Write `state` as the new folder `folder`, whole or not at all. Rank 0 only.

    Raises `FileExistsError` if there is one.
    """
    if folder.exists():
        raise FileExistsError(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.net.state_dict().items()}
    save_file(weights, partial / WEIGHTS_FILE)
    save_file(_momentum(state), partial / MOMENTUM_FILE)
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
        "sha256": {name: _sha256(partial / name) for name in (WEIGHTS_FILE, MOMENTUM_FILE)},
    }
    (partial / STATE_FILE).write_text(json.dumps(record | {"record_sha256": _digest(record)}, indent=1, sort_keys=True))
    for path in partial.iterdir():
        _to_disk(path)
    partial.rename(folder)
    _to_disk(folder.parent)


def restore_state(folder: Path, state: TrainingState, settings: MemberSettings) -> None:
    """Bring `state` to where the checkpoint in `folder` stands.

    Raises `ConfigError` with the differences if the checkpoint was made with other settings or on another number of
    samples, `DataError` if it is torn.
    """
    record = _read_record(folder)
    changed = differences(parse(MemberSettings, record["settings"], str(folder / STATE_FILE)), settings)
    if changed:
        raise ConfigError(f"the checkpoint of {settings.name} was made with other settings ({'; '.join(changed)})")
    if record["num_samples"] != state.num_samples:
        raise ConfigError(
            f"the checkpoint of {settings.name} was made with {record['num_samples']} samples an epoch, here are "
            f"{state.num_samples}: the tiles are others"
        )
    files = {name: (folder / name).read_bytes() if (folder / name).exists() else b"" for name in record["sha256"]}
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != record["sha256"][name]:
            raise DataError(f"checkpoint {folder.name}", f"{name} is not as it was written ({len(content)} bytes)")
    state.net.load_state_dict(load(files[WEIGHTS_FILE]))
    buffers = load(files[MOMENTUM_FILE])
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


class CheckpointFolder:
    """The last and the best checkpoint of a run in a folder on a local disk, whatever interrupts. Rank 0 only.

    `checkpoints.json` names the two; other checkpoints are left over, and go when the next one is kept. What is no
    checkpoint by its name is not touched.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names_file = root / "checkpoints.json"

    @property
    def last(self) -> Path | None:
        """The last checkpoint; None before there is one."""
        return self._named("last")

    @property
    def best(self) -> Path | None:
        """The checkpoint of the best epoch; None before there is one."""
        return self._named("best")

    def keep(self, state: TrainingState, settings: MemberSettings, *, is_best: bool) -> None:
        """Save `state` as the last checkpoint, and as the best if it is; then remove those that are neither."""
        name = f"epoch-{state.position.epoch:04d}-{state.position.samples_done:08d}"
        if name not in self._names().values():
            shutil.rmtree(self._root / name, ignore_errors=True)
            save_state(self._root / name, state, settings)
        names = self._names() | {"last": name} | ({"best": name} if is_best else {})
        partial = self._names_file.with_suffix(".partial")
        partial.write_text(json.dumps(names, indent=1, sort_keys=True))
        _to_disk(partial)
        partial.rename(self._names_file)
        _to_disk(self._root)
        for path in self._root.iterdir():
            if _CHECKPOINT.fullmatch(path.name) and path.name not in names.values():
                shutil.rmtree(path)

    def _names(self) -> dict[str, str]:
        try:
            names: dict[str, str] = json.loads(self._names_file.read_text())
        except FileNotFoundError:
            return {}
        return names

    def _named(self, which: str) -> Path | None:
        name = self._names().get(which)
        return None if name is None else self._root / name


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((folder / STATE_FILE).read_text())
    except (FileNotFoundError, ValueError) as error:
        raise DataError(f"checkpoint {folder.name}", f"{STATE_FILE} is absent or cut off") from error
    version = record.get("format_version")
    if version != FORMAT_VERSION:
        raise ConfigError(f"checkpoint of format version {version}; this raytrain reads {FORMAT_VERSION}")
    if record.pop("record_sha256", None) != _digest(record):
        raise DataError(f"checkpoint {folder.name}", f"{STATE_FILE} is not as it was written")
    return record


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _momentum(state: TrainingState) -> dict[str, Tensor]:
    found = {name: state.optimiser.state[parameter] for name, parameter in state.net.named_parameters()}
    return {
        name: values["momentum_buffer"].detach().cpu().contiguous()
        for name, values in found.items()
        if values.get("momentum_buffer") is not None
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    """Wait until what was written to a file or a folder lies on its disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
