"""The full state of a run in a folder: weights and momentum as safetensors, the rest as JSON; nothing is pickled.

There is no random generator to keep: every draw of the loop is made from (seed, epoch, sample). Must not know where the
folder goes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raytrain.config import MemberSettings, differences, parse
from raytrain.errors import ConfigError
from raytrain.tiles.order import Position
from raytrain.training import WEIGHTS_FILE

MOMENTUM_FILE, STATE_FILE = "momentum.safetensors", "state.json"
FORMAT_VERSION = 2


@dataclass
class TrainingState:
    """What changes while a member trains."""

    net: nn.Module
    optimiser: torch.optim.SGD
    position: Position = field(default_factory=Position)


def save_state(folder: Path, state: TrainingState, settings: MemberSettings) -> None:
    """Write `state` into `folder`. Rank 0 only."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.net.state_dict().items()}
    save_file(weights, folder / WEIGHTS_FILE)
    save_file(_momentum(state), folder / MOMENTUM_FILE)
    record = {
        "format_version": FORMAT_VERSION,
        "position": asdict(state.position),
        "settings": settings.model_dump(mode="json"),
    }
    (folder / STATE_FILE).write_text(json.dumps(record, indent=1, sort_keys=True))


def restore_state(folder: Path, state: TrainingState, settings: MemberSettings) -> None:
    """Bring `state` to where the checkpoint in `folder` stands.

    Raises `ConfigError` with the differences if the checkpoint was made with other settings.
    """
    record = json.loads((folder / STATE_FILE).read_text())
    if record["format_version"] != FORMAT_VERSION:
        raise ConfigError(
            f"checkpoint of format version {record['format_version']}; this raytrain reads {FORMAT_VERSION}"
        )
    changed = differences(parse(MemberSettings, record["settings"]), settings)
    if changed:
        raise ConfigError(f"the checkpoint of {settings.name} was made with other settings ({'; '.join(changed)})")
    state.net.load_state_dict(load_file(folder / WEIGHTS_FILE))
    buffers = load_file(folder / MOMENTUM_FILE)
    for name, parameter in state.net.named_parameters():
        if name in buffers:
            state.optimiser.state[parameter]["momentum_buffer"] = buffers[name].to(parameter)
    state.position = Position(**record["position"])


def _momentum(state: TrainingState) -> dict[str, Tensor]:
    found = {name: state.optimiser.state[parameter] for name, parameter in state.net.named_parameters()}
    return {
        name: values["momentum_buffer"].detach().cpu().contiguous()
        for name, values in found.items()
        if values.get("momentum_buffer") is not None
    }
