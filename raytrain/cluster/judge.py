"""What Ray Tune asks of a search, in the driver: the next trial, whether one goes on, whether all end.

The search answers from its record; ASHA is Ray's, replayed from the record. Must not know how trials are trained.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ray.tune import Callback, Stopper
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search import Searcher

from raytrain.cluster.desk import TrialWork
from raytrain.cluster.runs import SCORE
from raytrain.search.records import ORIGINAL, Trial
from raytrain.search.search import Search


class _OfThisProcess:
    """What Tune is given to call in this process: it pickles and copies all that it is given, and needs neither."""

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        return object, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self


class Trials(_OfThisProcess, Searcher):
    """Hands the trials of a search to Tune."""

    def __init__(self, next_work: Callable[[], TrialWork | str | None], fail: Callable[[BaseException], None]) -> None:
        super().__init__()
        self._next_work = next_work
        self._fail = fail

    def suggest(self, trial_id: str) -> Any:
        """Return what Tune is to run next."""
        try:
            found = self._next_work()
        except Exception as error:  # noqa: BLE001  # Tune would wrap it; the command tells it as it is
            self._fail(error)
            return Searcher.FINISHED
        return {"work": found.model_dump(mode="json")} if isinstance(found, TrialWork) else found

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing: the search hears of results from the judge."""

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: the search has its record."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing."""


class StopAll(_OfThisProcess, Stopper):
    """Ends all trials once it is asked to."""

    def __init__(self, asked: threading.Event) -> None:
        self._asked = asked

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: single trials are the judge's."""
        return False

    def stop_all(self) -> bool:
        """Tell whether all trials end."""
        return self._asked.is_set()


def named(name: str) -> Any:
    """Return what a scheduler takes for a trial, by the name that it has in every command; Tune draws its ids anew."""
    return SimpleNamespace(trial_id=name)


class AtEachStep(_OfThisProcess, Callback):
    """Calls something in each step of Tune's loop."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Call it."""
        self._call()


class Judge(_OfThisProcess, AsyncHyperBandScheduler):
    """Records what trials report, and stops those of the search that are behind (ASHA), or out of budget.

    `end` records the end of a trial, `lose` that it has to be handed out again, `take` hears of Tune's own trials,
    `fail` of an error that ends the search.
    """

    def __init__(
        self,
        search: Search,
        end: Callable[..., None],
        lose: Callable[[str, str], None],
        take: Callable[[str, Any], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        stopping = search.settings.stopping
        self._asha = stopping is not None
        super().__init__(
            time_attr="epoch",
            metric=SCORE,
            mode="max",
            max_t=search.settings.trial_epochs + 1,  # the last epoch is no reason to stop
            grace_period=min(stopping.grace_epochs if stopping else 1, search.settings.trial_epochs),
            reduction_factor=stopping.reduction if stopping else 2,
        )
        self._search = search
        self._end, self._lose, self._take, self._fail = end, lose, take, fail
        behind = replay(self, search.trials)
        for trial in search.trials:  # decided, and not recorded, when the command before was killed
            if not self._asha or trial.state != "running" or trial.name not in behind or trial.number == ORIGINAL:
                continue
            if trial.epochs[-1].epoch < trial.num_epochs:
                self._end(trial.name, "stopped", _behind(trial.epochs[-1].epoch))

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Take in a trial."""
        self._take(_name_of(trial), trial)
        super().on_trial_add(tune_controller, named(_name_of(trial)))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Record what a trial reports; return whether it goes on."""
        name = _name_of(trial)
        if result.get("done") or name not in self._search.running:
            return str(TrialScheduler.CONTINUE)
        try:
            goes_on = self._take_in(tune_controller, name, result)
        except Exception as error:  # noqa: BLE001  # Tune would wrap it; the command tells it as it is
            self._fail(error)
            return str(TrialScheduler.CONTINUE)
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)

    def _take_in(self, tune_controller: Any, name: str, result: dict[str, Any]) -> bool:
        if result["what"] == "end":
            judged = result.get("judged")
            if result["state"] == "lost":
                self._lose(name, str(result.get("cause")))
            else:
                self._end(name, result["state"], result.get("cause"), None if judged is None else json.loads(judged))
            return True  # its function returns
        values = {
            "score": result[SCORE],
            "loss": result["loss"],
            "learning_rate": result["learning_rate"],
            "train_s": result["epoch_s"],
            "validation_s": result["validation_s"],
        }
        trial = self._search.add_epoch(name, result["epoch"], values)
        if trial.epochs[-1].epoch >= trial.num_epochs:
            return True
        spent = self._search.spent(trial)
        if spent is not None and trial.kind == "final":
            self._search.put_back(name)  # a larger budget goes on with it
            return False
        cause = spent
        if cause is None and self._asha and trial.kind == "search":
            decision = super().on_trial_result(tune_controller, named(name), result)
            is_behind = decision == TrialScheduler.STOP and trial.number != ORIGINAL  # what others are held against
            cause = _behind(result["epoch"]) if is_behind else None
        if cause is not None:
            self._end(name, "stopped", cause)
        return cause is None

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Do nothing: rungs know what they have to."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Do nothing, as above."""

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Do nothing: trials that Tune has ended are looked for at each of its steps."""


def _behind(epochs: int) -> str:
    return f"behind after {'1 epoch' if epochs == 1 else f'{epochs} epochs'}"


def replay(scheduler: AsyncHyperBandScheduler, trials: list[Trial]) -> set[str]:
    """Bring a scheduler to where the epochs of the search's trials leave it.

    Returns the names of the trials that it stops at the last of their epochs.
    """
    told = [(each.at_s, trial.name, each) for trial in trials if trial.kind == "search" for each in trial.epochs]
    none: Any = None  # the controller, which it does not ask
    for name in dict.fromkeys(trial.name for trial in trials):
        AsyncHyperBandScheduler.on_trial_add(scheduler, none, named(name))
    decided: dict[str, str] = {}
    for _, name, each in sorted(told, key=lambda item: item[:2]):
        result = {"epoch": each.epoch, SCORE: each.score}
        decided[name] = AsyncHyperBandScheduler.on_trial_result(scheduler, none, named(name), result)
    return {name for name, decision in decided.items() if decision == TrialScheduler.STOP}


def _name_of(trial: Any) -> str:
    return str(trial.config["work"]["name"])
