"""What all outputs of a destination share: the ensemble and the settings that they were made with.

Must not know units or who scores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from raytrain import __version__, storage
from raytrain.config import MemberName, ScoreSettings, Settings, differences, parse
from raytrain.errors import ConfigError

SCORING_FILE = "scoring.json"
LOG = "log"
REPORT_PAGE, REPORT_FIGURES = "report.html", "report.json"
OWN_NAMES = (
    "blocks",
    "casualties.csv",
    "collection.json",
    "disagreement",
    "items.parquet",
    "ledger",
    LOG,
    "members",
    "plan",
    "probability",
    REPORT_PAGE,
    REPORT_FIGURES,
    SCORING_FILE,
    "stac",
)
"""What scoring writes at a destination, beside masks: objects, and folders of objects."""
SPEED_SETTINGS = ("block_px",)
"""May change when the work goes on: no output depends on them."""
LATER_SETTINGS = ("members",)
"""Came after destinations had been scored, and by default make nothing: what was scored without them is the same."""


class Scoring(Settings):
    """What outputs were made with: a hash of the nets, their names, the settings, the version of raytrain.

    `members` are names of `manifest.member_names`. Where `settings.members` asks for it, each has a folder of maps; no
    output depends on the names but these. Where `out_of_fold`, the nets are those of all folds, and each tile was
    scored by those of one, a net a member.
    """

    ensemble: str
    members: tuple[MemberName, ...]
    settings: ScoreSettings
    out_of_fold: bool = False
    raytrain_version: str = __version__

    def digest(self) -> str:
        """Return the hash of what outputs depend on, but their source; records of the ledger are known by it."""
        # Came later: what was scored before is the same without it.
        later = ("out_of_fold",) if self.out_of_fold else ()
        text = repr((self.ensemble, _that_count(self.settings), self.raytrain_version, *later))
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def settings_digest(settings: ScoreSettings) -> str:
    """Return the hash of the settings that outputs depend on, and of the version of raytrain."""
    return hashlib.sha256(repr((_that_count(settings), __version__)).encode()).hexdigest()[:32]


def _that_count(settings: ScoreSettings) -> list[tuple[str, Any]]:
    """Return the settings that outputs depend on, in the order of their names."""
    fields = ScoreSettings.model_fields
    left_out = {name for name in LATER_SETTINGS if getattr(settings, name) == fields[name].default}
    return sorted(settings.model_dump(mode="json", exclude={*SPEED_SETTINGS, *left_out}).items())


def tells_of_the_run(name: str) -> bool:
    """Tell of the name of an object of a destination whether it says who did what when, as the log and the report do.

    All others are, byte for byte, a function of what was scored and with what.
    """
    return name in (REPORT_PAGE, REPORT_FIGURES) or name.startswith(f"{LOG}/")


def check_destination(uri: str, scoring: Scoring, names: Iterable[str]) -> None:
    """Raise `ConfigError` if `uri`, which holds the objects `names`, has outputs made with anything but `scoring`.

    Nor may it hold what came from elsewhere and bears a name of ours: it would be overwritten, or removed.
    """
    found = read_scoring(uri)
    if found is None:
        foreign = [name for name in names if _is_mask(name) or name.partition("/")[0] in OWN_NAMES]
        if foreign:
            raise ConfigError(
                f"{uri} holds {len(foreign)} files that are not ours (no {SCORING_FILE}) and would be overwritten, "
                f"among them {foreign[0]}; choose another destination"
            )
    elif changed := _changes(found, scoring):
        outputs = [name for name in names if _is_mask(name) or name.startswith("ledger/")]
        if outputs:
            raise ConfigError(
                f"{uri} holds masks of other work ({'; '.join(changed)}), among them {outputs[0]}; "
                "choose another destination"
            )


def check_source(source: str, uri: str) -> None:
    """Raise `ConfigError` if the outputs at the destination `uri` would take the place of the source."""
    below = source.removeprefix(f"{uri.rstrip('/')}/")
    if source == uri or (below != source and (_is_mask(below) or below.partition("/")[0] in OWN_NAMES)):
        raise ConfigError(f"{uri}: outputs would take the place of the source {source}; choose another destination")


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
    """Return one text for each thing that outputs depend on and that differs."""
    ignored = tuple(f"settings.{name}:" for name in SPEED_SETTINGS)
    if scoring.settings.members == "none":  # the nets themselves are compared by `ensemble`
        ignored = (*ignored, "members:")
    return [text for text in differences(found, scoring) if not text.startswith(ignored)]


def _is_mask(name: str) -> bool:
    return name.endswith(".tif") and "/" not in name
