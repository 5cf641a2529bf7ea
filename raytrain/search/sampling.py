"""The next point of a search, from what the trials before it came to: TPE or random, both Optuna's.

A point is a function of (space, trials, number, seed): nothing else has to be kept. Must not know how trials run.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from raytrain.errors import ConfigError
from raytrain.search.records import Trial
from raytrain.search.space import (
    DRAWS,
    Choice,
    Distribution,
    Integer,
    LogUniform,
    Point,
    Space,
    Uniform,
    Weight,
    contains,
)
from raytrain.search.space import significant as _round

STARTUP_TRIALS = 10
"""How many points are drawn at random before TPE has something to go by."""
_ON = " on"
optuna.logging.set_verbosity(optuna.logging.WARNING)
logging.getLogger("optuna").propagate = False


def draw(
    space: Space, trials: Iterable[Trial], number: int, seed: int, method: str, is_setting: Callable[[Point], bool]
) -> Point:
    """Return the point of trial `number`: one of `space` of which settings can be made.

    Raises `ConfigError` if none is found.
    """
    sampler: Any
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        draws_seed = (seed * 1_000_003 + number) % 2**32
        if method == "tpe":
            # Grouped: terms of the loss that are off have no weight. Running trials count as bad ones (constant liar),
            # so that those side by side don't try the same.
            sampler = optuna.samplers.TPESampler(
                multivariate=True, group=True, constant_liar=True, n_startup_trials=STARTUP_TRIALS, seed=draws_seed
            )
        else:
            sampler = optuna.samplers.RandomSampler(seed=draws_seed)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for trial in trials:
            if contains(space, trial.point) and (known := _known(space, trial)) is not None:
                study.add_trial(known)
        for _ in range(DRAWS):
            asked = study.ask()
            point = {path: _suggest(asked, path, distribution) for path, distribution in space.items()}
            if is_setting(point):
                return point
            study.tell(asked, state=TrialState.FAIL)
    raise ConfigError(f"no setting was found in {DRAWS} draws from the space; the last draw: {point}")


def _suggest(asked: optuna.Trial, path: str, distribution: Distribution) -> Any:
    match distribution:
        case Choice(values):
            return values[asked.suggest_categorical(path, tuple(range(len(values))))]
        case Integer(low, high):
            return asked.suggest_int(path, low, high)
        case Uniform(low, high):
            return _within(asked.suggest_float(path, low, high), low, high)
        case LogUniform(low, high):
            return _within(asked.suggest_float(path, low, high, log=True), low, high)
        case Weight(low, high):
            is_on = asked.suggest_categorical(path + _ON, (False, True))
            return _within(asked.suggest_float(path, low, high, log=True), low, high) if is_on else 0.0


def _within(value: float, low: float, high: float) -> float:
    return min(max(_round(value), low), high)


def _known(space: Space, trial: Trial) -> optuna.trial.FrozenTrial | None:
    """Return a trial as Optuna knows it; None for one that says nothing about its settings.

    A stopped trial is "pruned": TPE puts it behind those that went to their end. A diverged one is the worst of these.
    """
    params: dict[str, Any] = {}
    distributions: dict[str, BaseDistribution] = {}
    for path, distribution in space.items():
        for name, value, each in _parts(path, distribution, trial.point[path]):
            params[name], distributions[name] = value, each
    common: dict[str, Any] = {"params": params, "distributions": distributions}
    if trial.state == "finished" and trial.score is not None:
        return optuna.trial.create_trial(state=TrialState.COMPLETE, value=trial.score, **common)
    if trial.state == "stopped" and trial.score is not None:
        reached = {trial.epochs[-1].epoch: trial.score}
        return optuna.trial.create_trial(state=TrialState.PRUNED, intermediate_values=reached, **common)
    if trial.state == "diverged":
        return optuna.trial.create_trial(state=TrialState.PRUNED, intermediate_values={0: 0.0}, **common)
    return optuna.trial.create_trial(state=TrialState.RUNNING, **common) if trial.state == "running" else None


def _parts(path: str, distribution: Distribution, value: Any) -> list[tuple[str, Any, BaseDistribution]]:
    """Return the parameters that a setting is to Optuna: name, value, distribution."""
    match distribution:
        case Choice(values):
            return [(path, values.index(value), CategoricalDistribution(tuple(range(len(values)))))]
        case Integer(low, high):
            return [(path, value, IntDistribution(low, high))]
        case Uniform(low, high):
            return [(path, value, FloatDistribution(low, high))]
        case LogUniform(low, high):
            return [(path, value, FloatDistribution(low, high, log=True))]
        case Weight(low, high):
            switch = (path + _ON, value > 0, CategoricalDistribution((False, True)))
            return [switch, (path, value, FloatDistribution(low, high, log=True))] if value > 0 else [switch]


def importances(space: Space, trials: Iterable[Trial]) -> dict[str, float]:
    """Return how much of what tells good trials from the others each setting explains, summing to 1, highest first.

    By PED-ANOVA (Watanabe and others 2023), of the trials with a score; of a term of the loss, by whether it is on.
    Empty where there are too few trials to tell.
    """
    known = []
    for trial in trials:
        if trial.score is None or not contains(space, trial.point):
            continue
        params, distributions = {}, {}
        for path, distribution in space.items():
            name, value, each = _parts(path, distribution, trial.point[path])[0]
            params[name], distributions[name] = value, each
        known.append(optuna.trial.create_trial(value=trial.score, params=params, distributions=distributions))
    if len(known) < STARTUP_TRIALS or len({trial.value for trial in known}) < 2:
        return {}
    study = optuna.create_study(direction="maximize")
    study.add_trials(known)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        try:
            found = optuna.importance.get_param_importances(study, evaluator=evaluator)
        except (RuntimeError, ValueError):  # too few trials above its quantile
            return {}
    return {name.removesuffix(_ON): float(value) for name, value in found.items()}
