"""How often the intervals of an evaluation hold the truth: made-up locations of the real sizes, drawn a thousand times.

Each draw is evaluated as predictions are, with the method of `raytrain.evaluation.resampling`, and beside it with
simple percentiles and with BCa (Efron 1987) on the same draws. Differences are of two ways of predicting on the same
chips: a twin, whose true scores are the same, and one that errs more often.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from raytrain.evaluation import resampling
from raytrain.evaluation.intervals import LEVEL
from raytrain.evaluation.resampling import Difference, Ratio, Statistic
from raytrain.evaluation.scores import Scored, compare
from raytrain.evaluation.tally import Tally
from tests.bench.populations import (
    FIRST,
    NAMES,
    POPULATIONS,
    TWIN,
    WORSE,
    Drawn,
    Population,
    draw,
    made_up_sizes,
    read_sizes,
    true_scores,
)
from tests.bench.record import Table, keep_tables

METADATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "on_cloud_n_train_metadata.csv"
DRAWS = 1_000
RESAMPLES = 2_000
TRUTH_LOCATIONS = 100_000
SHIPPED, PERCENTILES, BCA = "as shipped", "percentiles", "BCa"
METHODS = (SHIPPED, PERCENTILES, BCA)
SCORE, TO_TWIN, TO_WORSE = "score", "difference to a twin", "difference to a worse one"
Ends = tuple[float, float]


@dataclass(frozen=True)
class Design:
    """How locations are drawn: as many as there are sizes, with these; or `count`, each with one of them at random."""

    count: int
    as_they_are: bool = False

    @property
    def name(self) -> str:
        return f"{self.count}, {'sizes as they are' if self.as_they_are else 'sizes drawn'}"

    def sizes(self, sizes: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
        return sizes if self.as_they_are else random.choice(sizes, self.count)


@dataclass
class Held:
    """What became of the intervals of one statistic by one method, over the draws that gave one."""

    held: int = 0
    widths: list[float] = field(default_factory=list)
    none: int = 0

    def add(self, ends: Ends | None, truth: float) -> None:
        if ends is None:
            self.none += 1
            return
        self.held += ends[0] <= truth <= ends[1]
        self.widths.append(ends[1] - ends[0])

    @property
    def fraction(self) -> float:
        return self.held / len(self.widths) if self.widths else math.nan

    @property
    def cell(self) -> str:
        return f"{self.fraction:.1%} ({np.median(self.widths):.3f})" if self.widths else "-"


@dataclass
class Found:
    """What a population and a design came to: by kind of statistic, score and method; words of comparisons."""

    held: dict[tuple[str, str, str], Held] = field(default_factory=dict)
    words: dict[tuple[str, str, str], int] = field(default_factory=dict)

    def fractions(self, kind: str, method: str) -> list[float]:
        return [self.held[kind, name, method].fraction for name in NAMES]

    def said(self, kind: str, words: str, num_draws: int) -> list[float]:
        return [self.words.get((kind, name, words), 0) / num_draws for name in NAMES]


def percentiles(statistic: Statistic, weights: NDArray[np.float64]) -> Ends:
    """Return the simple percentiles of a statistic over the resamples of `weights` `[B, L]`."""
    return _quantiles(_resampled(statistic, weights), (1 - LEVEL) / 2, (1 + LEVEL) / 2)


def bca(statistic: Statistic, weights: NDArray[np.float64]) -> Ends:
    """Return the bias-corrected and accelerated percentiles (Efron and Tibshirani 1993, section 14.3)."""
    values = _resampled(statistic, weights)
    num_locations = weights.shape[1]
    (value,) = _resampled(statistic, np.ones((1, num_locations)))
    below = np.mean(values < value) + np.mean(values == value) / 2
    bias = ndtri(np.clip(below, 1 / len(values), 1 - 1 / len(values)))
    without = _resampled(statistic, 1 - np.eye(num_locations))
    away = np.nanmean(without) - without
    squares = np.nansum(away**2)
    acceleration = np.nansum(away**3) / (6 * squares**1.5) if squares else 0.0
    shifted = bias + ndtri([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    low, high = ndtr(bias + shifted / (1 - acceleration * shifted))
    return _quantiles(values, low, high)


def _resampled(statistic: Statistic, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    if isinstance(statistic, Difference):
        return _resampled(statistic.ours, weights) - _resampled(statistic.theirs, weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((weights @ statistic.above) / (weights @ statistic.below))


def _quantiles(values: NDArray[np.float64], low: float, high: float) -> Ends:
    ends = np.quantile(values[np.isfinite(values)], [low, high])
    return float(ends[0]), float(ends[1])


OTHERS: dict[str, Callable[[Statistic, NDArray[np.float64]], Ends]] = {PERCENTILES: percentiles, BCA: bca}


def measure(
    population: Population,
    design: Design,
    sizes: NDArray[np.int64],
    truth: Mapping[str, NDArray[np.float64]],
    num_draws: int,
    resamples: int,
) -> Found:
    """Return how often intervals held `truth` (`populations.true_scores`) over draws that depend on these alone."""
    found = Found()
    which = POPULATIONS.index(population), design.count, int(design.as_they_are)
    for i in range(num_draws):
        random = np.random.default_rng([i, *which])
        drawn = draw(population, design.sizes(sizes, random), random)
        scored = scored_of(drawn)
        weights = _weights(len(scored[0].by_location), resamples, random)
        _add_scores(found, scored[0], truth, weights, i)
        for kind, other in ((TO_TWIN, TWIN), (TO_WORSE, WORSE)):
            _add_differences(found, kind, scored[FIRST], scored[other], _differences(truth, other), weights, i)
    return found


def scored_of(drawn: Drawn) -> list[Scored]:
    """Return what was drawn for each way of predicting as a tally with its scores; all pixels are in one zone."""
    num_chips = len(drawn.location_of)
    ids, locations = [f"{i}" for i in range(num_chips)], [f"{place:03d}" for place in drawn.location_of]
    found = []
    for confusions in drawn.confusions:
        zones = np.stack([confusions, np.zeros_like(confusions)], axis=1)
        found.append(Scored(Tally(ids, locations, zones, np.zeros(num_chips, np.int64)), "one"))
    return found


def _weights(num_locations: int, resamples: int, random: np.random.Generator) -> NDArray[np.float64]:
    drawn = random.integers(0, num_locations, (resamples, num_locations))
    return np.stack([np.bincount(each, minlength=num_locations) for each in drawn]).astype(np.float64)


def _differences(truth: Mapping[str, NDArray[np.float64]], other: int) -> dict[str, float]:
    return {name: float(values[FIRST] - values[other]) for name, values in truth.items()}


def _add_scores(
    found: Found, scored: Scored, truth: Mapping[str, NDArray[np.float64]], weights: NDArray[np.float64], seed: int
) -> None:
    ratios: dict[str, Ratio] = scored.ratios
    shipped = resampling.intervals([ratios[name] for name in NAMES], seed, len(weights))
    for name, interval in zip(NAMES, shipped, strict=True):
        ends = None if interval is None else (interval.low, interval.high)
        _add(found, SCORE, name, ends, ratios[name], weights, float(truth[name][FIRST]))


def _add_differences(
    found: Found,
    kind: str,
    ours: Scored,
    theirs: Scored,
    truth: Mapping[str, float],
    weights: NDArray[np.float64],
    seed: int,
) -> None:
    for each in compare(ours, theirs, "", seed, len(weights)).scores:
        ends = None if each.interval is None else (each.interval.low, each.interval.high)
        statistic = Difference(ours.ratios[each.name], theirs.ratios[each.name])
        _add(found, kind, each.name, ends, statistic, weights, truth[each.name])
        key = kind, each.name, each.words
        found.words[key] = found.words.get(key, 0) + 1


def _add(
    found: Found,
    kind: str,
    name: str,
    shipped: Ends | None,
    statistic: Statistic,
    weights: NDArray[np.float64],
    truth: float,
) -> None:
    ends: dict[str, Ends | None] = {SHIPPED: shipped}
    ends |= {method: interval(statistic, weights) for method, interval in OTHERS.items()}
    for method in METHODS:
        found.held.setdefault((kind, name, method), Held()).add(ends[method], truth)


def designs_of(sizes: NDArray[np.int64]) -> list[Design]:
    """Return the designs: all locations with their sizes, as many with sizes drawn, 20 and 9."""
    return [Design(len(sizes), as_they_are=True), Design(len(sizes)), Design(20), Design(9)]


def tables_of(found: Mapping[tuple[str, Design], Found], num_draws: int, resamples: int) -> list[Table]:
    """Return the summaries and, of every population, the scores one by one."""
    error = math.sqrt(LEVEL * (1 - LEVEL) / num_draws)
    populations = list(dict.fromkeys(population for population, _ in found))
    note = (
        f"Share of {num_draws} draws whose interval of {LEVEL:.0%}, of {resamples} resamples, held the truth; lowest, "
        f"mean and highest of the {len(NAMES)} scores. The standard error by the number of draws is {error:.1%} at "
        f"{LEVEL:.0%}, for one score. The truth is that of {TRUTH_LOCATIONS} locations."
    )
    tables = [
        _summary("Scores", SCORE, found, note),
        _summary("Differences to a twin: truly none", TO_TWIN, found, "As above, for differences of paired scores."),
        _summary("Differences to one that is truly worse", TO_WORSE, found, "As above."),
        _words_table(found, num_draws),
    ]
    for name in populations:
        chosen = {design: each for (population, design), each in found.items() if population == name}
        tables.append(_score_table(name, chosen))
    return tables


def _summary(title: str, kind: str, found: Mapping[tuple[str, Design], Found], note: str) -> Table:
    rows = []
    for (population, design), each in found.items():
        cells = [_range(each.fractions(kind, method)) for method in METHODS]
        none = sum(each.held[kind, name, SHIPPED].none for name in NAMES)
        rows.append([population, design.name, *cells, str(none)])
    return Table(title, ["population", "locations", *METHODS, "without an interval, of all scores"], rows, note)


def _words_table(found: Mapping[tuple[str, Design], Found], num_draws: int) -> Table:
    rows = []
    for (population, design), each in found.items():
        wrong = np.add(*(each.said(TO_TWIN, word, num_draws) for word in ("better", "worse"))).tolist()
        right, reverse = (each.said(TO_WORSE, word, num_draws) for word in ("better", "worse"))
        rows.append([population, design.name, _range(wrong), _range(right), _range(reverse)])
    headers = ["population", "locations", "twin: better or worse, in truth neither", "worse one: found", "reversed"]
    note = f"Share of the {num_draws} draws; {1 - LEVEL:.0%} of twins are called so by chance alone."
    return Table("What comparisons said", headers, rows, note)


def _score_table(population: str, found: Mapping[Design, Found]) -> Table:
    rows = [
        [design.name, name, *(each.held[SCORE, name, method].cell for method in METHODS)]
        for design, each in found.items()
        for name in NAMES
    ]
    note = "Share that held the truth, and the median width."
    return Table(f"{population}: score by score", ["locations", "score", *METHODS], rows, note)


def _range(fractions: Sequence[float]) -> str:
    return f"{min(fractions):.1%}, {np.mean(fractions):.1%}, {max(fractions):.1%}"


def _populations_table(truths: Mapping[str, Mapping[str, NDArray[np.float64]]]) -> Table:
    headers = ["population", "missed", "false", "spread: locations", "chips", "cloudiness", "clear chips"]
    headers += [*NAMES, "difference to the worse one, pooled IoU"]
    rows = []
    for each in POPULATIONS:
        truth = truths[each.name]
        worse = _differences(truth, WORSE)["iou_pooled"]
        rows.append(
            [
                each.name,
                f"{each.missed:.0%}",
                f"{each.false:.0%}",
                f"{each.location_spread:g}",
                f"{each.chip_spread:g}",
                f"beta({each.cloudiness[0]:g}, {each.cloudiness[1]:g})",
                f"{each.clear:.0%}",
                *(f"{truth[name][FIRST]:.4f}" for name in NAMES),
                f"{worse:.4f}",
            ]
        )
    note = "Medians over chips, standard deviations of log odds, and the true scores (tests/bench/populations.py)."
    return Table("Populations", headers, rows, note)


def main() -> None:
    """Draw, print and keep the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    parser.add_argument("--made-up-sizes", action="store_true", help="do without the real sizes of locations")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--write", metavar="MACHINE")
    options = parser.parse_args()
    sizes = _sizes(options.made_up_sizes)
    truths = {each.name: true_scores(each, sizes, TRUTH_LOCATIONS, seed=1) for each in POPULATIONS}
    found: dict[tuple[str, Design], Found] = {}
    with ProcessPoolExecutor(options.processes) as pool:
        parts = {
            (population.name, design): pool.submit(
                measure, population, design, sizes, truths[population.name], options.draws, options.resamples
            )
            for population, design in itertools.product(POPULATIONS, designs_of(sizes))
        }
        for key, part in parts.items():
            found[key] = part.result()
            print(f"{key[0]}, {key[1].name}: done", file=sys.stderr, flush=True)
    tables = [_populations_table(truths), *tables_of(found, options.draws, options.resamples)]
    kind = "made-up" if options.made_up_sizes else "real"
    title = f"Coverage of intervals over {len(sizes)} locations of {kind} sizes ({sizes.min()} to {sizes.max()} chips)"
    keep_tables("coverage", "coverage", options.write, title, tables)


def _sizes(made_up: bool) -> NDArray[np.int64]:
    if made_up:
        return made_up_sizes(81)
    if not METADATA.is_file():
        sys.exit(f"no {METADATA}, which has the real sizes of locations; --made-up-sizes does without them")
    return read_sizes(METADATA)


if __name__ == "__main__":
    main()
