"""What a search draws settings from: a distribution for each dotted path, and the settings of a drawn point.

Must not know who draws.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from raytrain.config import LossWeights, MemberSettings, OptimiserSettings, change, resolve
from raytrain.errors import ConfigError

Point = dict[str, Any]
"""A value for each dotted path of a space; a weight that is off is 0."""
LOSS = "loss."
WEIGHTS = tuple(f"{LOSS}{name}" for name in LossWeights.model_fields)
REFUSED = {
    "name": "it says which member, and where its runs lie",
    "seed": "the best of several seeds is luck; finalists are trained with several",
    "epochs": "it is the fidelity of the search: give --trial-epochs, and --set epochs=N for the finalists",
    "empty_union_rule": "it changes what a score means, not the net",
}
LR_FACTOR = 20
"""The default space goes from the member's learning rate over this to as many times of it."""
DRAWS = 200
"""How often a point is drawn anew that no settings can be made of."""
SIGNIFICANT_DIGITS = 4


@dataclass(frozen=True)
class Uniform:
    """Any number from `low` to `high`."""

    low: float
    high: float


@dataclass(frozen=True)
class LogUniform:
    """Any number from `low` (above 0) to `high`, its logarithm uniform."""

    low: float
    high: float


@dataclass(frozen=True)
class Integer:
    """A whole number from `low` to `high`, both included."""

    low: int
    high: int


@dataclass(frozen=True)
class Choice:
    """One of `values`, without an order."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Weight:
    """Off (0), or as `LogUniform`."""

    low: float
    high: float


Distribution = Uniform | LogUniform | Integer | Choice | Weight
Space = dict[str, Distribution]
_KINDS: dict[str, type[Distribution]] = {
    "uniform": Uniform,
    "loguniform": LogUniform,
    "integer": Integer,
    "choice": Choice,
    "weight": Weight,
}
FORMS = "uniform(A,B), loguniform(A,B), integer(A,B), choice(X,Y,...), weight(A,B) (off, or as loguniform)"


def text_of(distribution: Distribution) -> str:
    """Return the text that `parse_distribution` reads as `distribution`."""
    name = next(name for name, kind in _KINDS.items() if kind is type(distribution))
    if isinstance(distribution, Choice):
        return f"{name}({', '.join(map(json.dumps, distribution.values))})"
    return f"{name}({', '.join(repr(getattr(distribution, field.name)) for field in fields(distribution))})"


def parse_distribution(path: str, text: str) -> Distribution:
    """Return the distribution of `text`; raise `ConfigError` that names `path` for anything else."""
    found = re.fullmatch(r"\s*(\w+)\s*\((.*)\)\s*", text, re.DOTALL)
    if found is None or found[1] not in _KINDS:
        raise ConfigError(f"space of {path}: expected {FORMS}; found {text!r}")
    kind, values = _KINDS[found[1]], _values(found[2])
    if kind is Choice:
        if len({json.dumps(value) for value in values}) != len(values) or len(values) < 2:
            raise ConfigError(f"space of {path}: expected two or more different values, found {text!r}")
        return Choice(tuple(values))
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(values) != 2 or len(numbers) != 2 or not all(map(math.isfinite, numbers)) or numbers[0] >= numbers[1]:
        raise ConfigError(f"space of {path}: expected two numbers, the smaller one first, found {text!r}")
    low, high = map(float, numbers)
    if kind is Uniform:
        return Uniform(low, high)
    if kind is Integer:
        if not (low.is_integer() and high.is_integer()):
            raise ConfigError(f"space of {path}: expected two whole numbers, found {text!r}")
        return Integer(int(low), int(high))
    if low <= 0:
        raise ConfigError(f"space of {path}: expected numbers above 0, found {text!r}")
    return Weight(low, high) if kind is Weight else LogUniform(low, high)


def _values(text: str) -> list[Any]:
    try:
        return list(json.loads(f"[{text}]"))
    except json.JSONDecodeError:
        return [_value(part.strip()) for part in text.split(",")]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def default_space(member: MemberSettings) -> Space:
    """Return the space about a member's own settings: learning rate, momentum, schedule, and the terms of the loss."""
    sgd = member.optimiser
    same = {"constant", "plateau"} if sgd.schedule in ("constant", "plateau") else set[str]()
    schedules = [sgd.schedule, *(each for each in ("cosine", "one-cycle", "constant") if each not in same)]
    space: Space = {
        "optimiser.lr": LogUniform(significant(sgd.lr / LR_FACTOR), significant(sgd.lr * LR_FACTOR)),
        "optimiser.momentum": Uniform(0.8, 0.98),
        "optimiser.schedule": Choice(tuple(dict.fromkeys(schedules))),
        "optimiser.warmup_fraction": Uniform(0.0, 0.3),
        **{path: Weight(0.02, 1.0) for path in WEIGHTS},
    }
    defaults = OptimiserSettings.model_fields
    if any(getattr(sgd, name) != defaults[name].default for name in ("plateau_epochs", "plateau_factor")):
        del space["optimiser.schedule"]  # they belong to the schedule that the member has
    return space


def parse_space(entries: Sequence[str], member: MemberSettings, *, with_default: bool = True) -> Space:
    """Return the space of `path=distribution` texts, over the default one of `member` unless that is left out.

    Raises `ConfigError` for unknown settings, distributions that are none, and a space whose points are no settings.
    """
    space = default_space(member) if with_default else {}
    for entry in entries:
        name, equals, text = entry.partition("=")
        if not equals:
            raise ConfigError(f"--space: expected path=distribution, found {entry!r}")
        path = resolve(MemberSettings, name.strip())
        if path in REFUSED:
            raise ConfigError(f"{path} is not searched: {REFUSED[path]}")
        if isinstance(distribution := parse_distribution(path, text), Weight) and path not in WEIGHTS:
            raise ConfigError(f"space of {path}: weight(...) is for the terms of the loss, {', '.join(WEIGHTS)}")
        space[path] = distribution
    if not space:
        raise ConfigError("an empty space: name at least one --space path=distribution")
    check_space(space, member)
    return space


def check_space(space: Space, member: MemberSettings) -> None:
    """Raise `ConfigError` if some end or choice of `space` is no setting, whatever is drawn beside it."""
    generator = random.Random(0)
    for path, distribution in space.items():
        for value in probes(distribution):
            reason: ConfigError | None = None
            for _ in range(DRAWS):
                try:
                    settings_of(
                        member, {other: _draw(each, generator) for other, each in space.items()} | {path: value}
                    )
                    break
                except ConfigError as error:
                    reason = error
            else:
                raise ConfigError(f"space of {path}: {value!r} is no setting: {reason}") from reason


def probes(distribution: Distribution) -> list[Any]:
    """Return values that tell whether a setting can be drawn so: ends, choices, and one between, no whole number."""
    if isinstance(distribution, Choice):
        return list(distribution.values)
    ends = [distribution.low, distribution.high]
    if isinstance(distribution, Integer):
        return ends
    between = distribution.low + (distribution.high - distribution.low) / math.pi
    return [0.0, *ends] if isinstance(distribution, Weight) else [*ends, between]


def _draw(distribution: Distribution, generator: random.Random) -> Any:
    match distribution:
        case Choice(values):
            return generator.choice(values)
        case Integer(low, high):
            return generator.randint(low, high)
        case Uniform(low, high):
            return generator.uniform(low, high)
        case LogUniform(low, high):
            return math.exp(generator.uniform(math.log(low), math.log(high)))
        case Weight(low, high):
            is_on = generator.random() < 0.5
            return math.exp(generator.uniform(math.log(low), math.log(high))) if is_on else 0.0


def significant(value: float) -> float:
    """Return `value` with `SIGNIFICANT_DIGITS` digits: what is tried is what a person reads and copies."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def contains(space: Space, point: Mapping[str, Any]) -> bool:
    """Tell whether `point` could be drawn from `space`."""
    return all(path in point and _is_in(distribution, point[path]) for path, distribution in space.items())


def _is_in(distribution: Distribution, value: Any) -> bool:
    if isinstance(distribution, Choice):
        return value in distribution.values
    if value is None:  # not given
        return False
    if isinstance(distribution, Weight) and value == 0:
        return True
    return bool(distribution.low <= value <= distribution.high)


def original_point(space: Space, member: MemberSettings) -> Point:
    """Return the member's own values of what `space` is over."""
    values = member.model_dump(mode="json")
    point: Point = {}
    for path in space:
        found: Any = values
        for step in path.split("."):
            found = found[step]
        point[path] = found
    return point


def settings_of(member: MemberSettings, point: Mapping[str, Any]) -> MemberSettings:
    """Return the member with the settings of `point`; raise `ConfigError` where there can be none.

    The weights of the loss are scaled so that their sum is the member's own (1.1 in the published recipe): a factor
    that all of them have is the learning rate's.
    """
    changes = dict(point)
    if all(value == _own(member, path) for path, value in point.items()):
        return member
    drawn = {path.removeprefix(LOSS): value for path, value in point.items() if path.startswith(LOSS)}
    if drawn:
        weights = member.loss.model_dump() | drawn
        if not sum(weights.values()) > 0:
            raise ConfigError("at least one term of the loss must be on")
        factor = sum(member.loss.model_dump().values()) / sum(weights.values())
        changes |= {f"{LOSS}{name}": significant(weight * factor) for name, weight in weights.items()}
    return change(member, changes)


def _own(member: MemberSettings, path: str) -> Any:
    return original_point({path: Choice(())}, member)[path]


def is_setting(member: MemberSettings) -> Callable[[Point], bool]:
    """Return what tells whether settings of `member` can be made of a point."""

    def found(point: Point) -> bool:
        try:
            settings_of(member, point)
        except ConfigError:
            return False
        return True

    return found
