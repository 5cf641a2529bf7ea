"""What all outputs of a destination share: the ensemble and the settings that they were made with.

Must not know units or who scores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from raytrain import __version__, storage
from raytrain.config import ScoreSettings, Settings, differences, parse
from raytrain.errors import ConfigError

SCORING_FILE = "scoring.json"
SPEED_SETTINGS = ("block_px",)
"""May change when the work goes on: no output depends on them."""


class Scoring(Settings):
    """What outputs were made with: a hash of the nets, their names, the settings, the version of raytrain."""

    ensemble: str
    members: tuple[str, ...]
    settings: ScoreSettings
    raytrain_version: str = __version__

    def digest(self) -> str:
        """Return the hash of what outputs depend on, but their source."""
        settings = self.settings.model_dump(mode="json", exclude=set(SPEED_SETTINGS))
        text = repr((self.ensemble, sorted(settings.items()), self.raytrain_version))
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def check_destination(uri: str, scoring: Scoring, names: Iterable[str]) -> None:
    """Raise `ConfigError` if `uri`, which holds the objects `names`, has outputs made with anything but `scoring`.

    Rasters that came from elsewhere are no outputs, and are not overwritten either.
    """
    found = read_scoring(uri)
    if found is not None:
        changed = _changes(found, scoring)
        if changed and (masks := _masks(names)):
            raise ConfigError(
                f"{uri} holds {masks[1]} masks of other work ({'; '.join(changed)}); choose another destination"
            )
    elif masks := _masks(names):
        raise ConfigError(
            f"{uri} holds {masks[1]} .tif files that are no masks of ours (no {SCORING_FILE}), among them {masks[0]}; "
            "choose another destination"
        )


def claim_destination(uri: str, scoring: Scoring) -> None:
    """Record what the outputs at `uri` are made with, before the first of them."""
    data = f"{scoring.model_dump_json(indent=1)}\n".encode()
    storage.write_bytes(storage.join(uri, SCORING_FILE), data)


def read_scoring(uri: str) -> Scoring | None:
    """Return what the outputs at `uri` are made with; None where nothing is recorded."""
    path = storage.join(uri, SCORING_FILE)
    try:
        return parse(Scoring, storage.read_json(path), path)
    except FileNotFoundError:
        return None


def _changes(found: Scoring, scoring: Scoring) -> list[str]:
    ignored = tuple(f"settings.{name}:" for name in SPEED_SETTINGS)
    return [text for text in differences(found, scoring) if not text.startswith(ignored)]


def _masks(names: Iterable[str]) -> tuple[str, int] | None:
    """Return the first mask among the objects of a destination, and how many there are; None for none."""
    masks = [name for name in names if name.endswith(".tif") and "/" not in name]
    return (masks[0], len(masks)) if masks else None
