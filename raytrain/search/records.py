"""The search's record in the store: what it depends on, each trial with its results, how long it took. Plain JSON.

Searcher and scheduler are made anew from it, so that going on reads nothing that could run code. Must not know who
trains, or how settings are drawn.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from pydantic import Field

from raytrain import storage
from raytrain.config import Fraction, MemberSettings, Settings, differences, parse
from raytrain.errors import ConfigError

SEARCH_FOLDER, TRIALS_FOLDER = "search", "trials"
SETTINGS_FILE, CLOCK_FILE, OWNER_FILE = "settings.json", "clock.json", "owner.json"
"""Below the experiment's folder: the record's, with its files. `trials/` beside it has the runs of the trials."""
READERS = 16
FIRST_SEED = 1
"""The first seed of the finals, above the one that trials have: they were chosen with that one, by luck as well."""
ORIGINAL = 0
"""The number of the trial with the member's own settings, always the first."""
State = Literal["running", "stopped", "finished", "diverged", "failed"]
ENDED: tuple[State, ...] = ("stopped", "finished", "diverged", "failed")


class Stopping(Settings):
    """When bad trials end early, by asynchronous successive halving (ASHA; Li and others 2020).

    After `grace_epochs`, and after each `reduction` times as many, a trial goes on if it is among the best
    1 / `reduction` of those that came as far before it.
    """

    grace_epochs: int = Field(default=1, ge=1)
    reduction: int = Field(default=3, ge=2)


class SearchSettings(Settings):
    """What the trials of a search depend on; compared when it is gone on with.

    Trials train on all tiles but those of `fold`, on which they are judged, and of `kept_back`, which only decides
    between the winner and the member's own settings. `tiles_fraction` and `validation_fraction` are shares of the tiles
    of each location, drawn with `seed`. `space` has the text of each distribution by its path; without `stopping` every
    trial goes to its end.
    """

    member: MemberSettings
    shards: str
    shards_digest: str
    encoder_weights_sha256: str | None = None
    fold: int
    kept_back: int
    space: dict[str, str]
    method: Literal["tpe", "random"] = "tpe"
    seed: int = Field(default=0, ge=0)
    trial_epochs: int = Field(ge=1)
    tiles_fraction: Fraction = Field(default=1.0, gt=0)
    validation_fraction: Fraction = Field(default=1.0, gt=0)
    stopping: Stopping | None = Stopping()


class Epoch(Settings):
    """What one epoch (from 1) of a trial came to, `at_s` after the search began, in the time that it ran.

    `score` is the IoU weighted by location on the validation fold, `loss` the mean over the batches.
    """

    epoch: int
    score: float
    loss: float
    learning_rate: float
    train_s: float
    validation_s: float
    at_s: float


class LocationCounts(Settings):
    """The pixels of cloud of one location that was kept back: intersection and union with the label, and the IoU."""

    intersection: int
    union: int
    iou: float
    num_chips: int


class Trial(Settings):
    """One setting tried: of the search, or with one of several seeds as a finalist (or as the original beside them).

    `number` counts the settings; a finalist has that of the trial that it comes from. `point` is what was drawn (of the
    original, the member's own values). `seconds` are those of `num_ranks` ranks over all commands, start-up and waiting
    included; `begun` is how often it was handed out, `restarts` why it went on from a checkpoint meanwhile.
    `judged` are the locations kept back, of a finalist that is finished.
    """

    name: str = Field(pattern=r"^(trial-\d{4,}|final-\d{4,}-seed\d+)$")
    kind: Literal["search", "final"]
    number: int
    seed: int
    point: dict[str, Any]
    num_epochs: int
    state: State = "running"
    cause: str | None = None
    epochs: tuple[Epoch, ...] = ()
    seconds: float = 0.0
    num_ranks: int = 1
    begun: int = 0
    restarts: tuple[str, ...] = ()
    judged: dict[str, LocationCounts] | None = None

    @property
    def best(self) -> Epoch | None:
        """The first of the epochs with the highest score."""
        return max(self.epochs, key=lambda each: each.score, default=None)

    @property
    def score(self) -> float | None:
        """The highest score of an epoch: a training keeps the weights of that one."""
        return None if self.best is None else self.best.score

    @property
    def is_usable(self) -> bool:
        """Whether its setting could be trained with: it has a score, and did not diverge or fail afterwards."""
        return self.score is not None and self.state in ("finished", "stopped", "running")

    @property
    def rank_hours(self) -> float:
        """What the trial took: GPU-hours where ranks have GPUs."""
        return self.seconds * self.num_ranks / 3600

    @property
    def training_s(self) -> float:
        """The seconds of it that went into epochs and their validation."""
        return sum(each.train_s + each.validation_s for each in self.epochs)


class Clock(Settings):
    """The time that the commands of a search have taken together."""

    seconds: float = 0.0


class Record:
    """The record of the search in the experiment's folder, whose URI is `folder`. One process writes."""

    def __init__(self, folder: str) -> None:
        self._uri = storage.join(folder, SEARCH_FOLDER)

    def claim(self, settings: SearchSettings) -> None:
        """Record what the search depends on; raise `ConfigError` with what differs if there is one with others."""
        uri = storage.join(self._uri, SETTINGS_FILE)
        try:
            found = parse(SearchSettings, storage.read_json(uri), uri)
        except FileNotFoundError:
            storage.write_bytes(uri, settings.model_dump_json(indent=1).encode())
            return
        changed = differences(found, settings)
        if changed:
            raise ConfigError(
                f"{self._uri}: a search with other settings ({'; '.join(changed)}); name another --experiment"
            )

    def trials(self) -> list[Trial]:
        """Return all trials, those of the search before finalists, by number and seed."""
        uri = storage.join(self._uri, TRIALS_FOLDER)
        names = [name for name in storage.find(uri) if name.endswith(".json")]
        with ThreadPoolExecutor(READERS) as pool:
            found = list(pool.map(lambda name: _read_trial(storage.join(uri, name)), names))
        return sorted(found, key=lambda trial: (trial.kind != "search", trial.number, trial.seed))

    def write(self, trial: Trial) -> None:
        """Write a trial, in place of what was known of it."""
        uri = storage.join(self._uri, TRIALS_FOLDER, f"{trial.name}.json")
        storage.write_bytes(uri, trial.model_dump_json(indent=1).encode(), durably=True)

    def lead(self, owner: str) -> None:
        """Say that the process with this token leads the search from now on."""
        storage.write_bytes(storage.join(self._uri, OWNER_FILE), json.dumps({"owner": owner}).encode())

    def owner(self) -> str | None:
        """Return the token of the process that leads the search; None where none was recorded."""
        try:
            return str(storage.read_json(storage.join(self._uri, OWNER_FILE))["owner"])
        except (FileNotFoundError, KeyError):
            return None

    def seconds(self) -> float:
        """Return how long the search has taken so far."""
        uri = storage.join(self._uri, CLOCK_FILE)
        try:
            return parse(Clock, storage.read_json(uri), uri).seconds
        except FileNotFoundError:
            return 0.0

    def write_seconds(self, seconds: float) -> None:
        """Record how long the search has taken."""
        storage.write_bytes(storage.join(self._uri, CLOCK_FILE), Clock(seconds=seconds).model_dump_json().encode())


def _read_trial(uri: str) -> Trial:
    trial = parse(Trial, storage.read_json(uri), uri)
    if f"{trial.name}.json" != storage.name_of(uri):
        raise ConfigError(f"{uri}: damaged, it is about {trial.name}")
    return trial
