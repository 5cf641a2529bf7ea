"""Does the ranking of labels find errors that are known? A tenth of the labels made wrong, drawn anew with each seed.

Nets are trained out-of-fold on the labels with their errors; each tile is judged by those that never saw its place. The
ranking is held against one drawn at random, the plain IoU of label and prediction, the share of pixels in which the two
differ (one false pixel takes a clear label's IoU to 0, so that IoU alone is a weak opponent), and cleanlab on the same
probabilities. `generated` are chips of `raytrain synth`, `real` those of an archive, both as tiles of 128 px.

What is trained is kept below OUT and never done again, so that a run that was ended goes on; with --train alone,
several may share the seeds.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cleanlab.segmentation.rank import get_label_quality_scores
from numpy.typing import NDArray

from raytrain.imagery.rasters import LABEL_CLEAR, LABEL_IGNORE
from raytrain.review.calibration import Calibration, label_histogram
from raytrain.review.features import Features, features_of
from raytrain.review.kinds import ERROR_KINDS, ErrorKind
from raytrain.review.ranking import FEATURE_NAMES
from raytrain.review.suspicion import judge
from tests.bench.ranking_scores import (
    Ranked,
    confusion,
    interval_over_seeds,
    mean_interval_text,
    measures,
    precision_at,
    resampled_places,
)
from tests.bench.record import Table, keep_tables
from tests.bench.review_tiles import CORRUPTED_FRACTION, DataSet, Predicted, make_tiles, predict
from tests.corruption import CORRUPTIONS, KIND_OF

OURS, IOU, DIFFERING, RANDOM = "raytrain", "low IoU", "differing pixels", "random"
CLEANLAB = {"softmin": "cleanlab, softmin", "num_pixel_issues": "cleanlab, pixels with issues"}
METHODS = (OURS, *CLEANLAB.values(), IOU, DIFFERING, RANDOM)
ALL = "all"
TWO_SIDED = ("shift_row_px", "shift_column_px", "outline_px", "label_fraction", "predicted_fraction")
"""Numbers that may be too small as well as too large: it counts how far they are from their median."""


@dataclass(frozen=True)
class Outcome:
    """What one seed came to: the score of each tile by each method, its corruption ('' for none), our kinds, places.

    `numbers` are our features, each by itself, the largest where it speaks the most against a label.
    """

    scores: dict[str, NDArray[np.float64]]
    numbers: dict[str, NDArray[np.float64]]
    corruptions: NDArray[np.str_]
    kinds: tuple[ErrorKind, ...]
    locations: tuple[str, ...]

    def ranked(self, method: str, corruption: str, places: Mapping[str, int]) -> Ranked:
        """Return the ranking by `method` of the tiles of one corruption, or ALL, among those that are as they were."""
        is_wrong = self.corruptions != ""
        chosen = ~is_wrong | (self.corruptions == corruption) | (corruption == ALL)
        numbers = np.array([places[location] for location in self.locations])
        return Ranked((self.scores | self.numbers)[method], is_wrong, numbers).of(chosen)


def tile_features(found: Predicted) -> list[Features]:
    """Return the features of each tile, as `raytrain review rank` finds them."""
    labels = found.labels
    histograms = np.stack(list(map(label_histogram, labels, found.probability)))
    calibration = Calibration.of(found.locations, histograms)
    thresholds = map(calibration.thresholds, found.locations, histograms)
    return list(map(features_of, labels, found.probability, found.disagreement, thresholds))


def outcome(found: Predicted, seed: int) -> Outcome:
    """Return what all methods say of the tiles of a seed."""
    features = tile_features(found)
    judgements = judge(features, found.locations)
    corruptions = [found.corrupted[i].corruption if i in found.corrupted else "" for i in range(len(found.locations))]
    scores = {
        OURS: np.array([each.suspicion for each in judgements]),
        IOU: -_ious(found),
        DIFFERING: _differing(found),
        RANDOM: np.random.default_rng(seed).random(len(judgements)),
        **_of_cleanlab(found),
    }
    numbers = {name: _alone(np.array([getattr(each, name) for each in features]), name) for name in FEATURE_NAMES}
    return Outcome(scores, numbers, np.array(corruptions), tuple(each.kind for each in judgements), found.locations)


def _alone(values: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    """Return the values of a feature, the largest where it speaks the most against a label."""
    values = np.nan_to_num(values)  # no outline: no distance of outlines
    if name in ("iou", "association"):
        return -values
    return np.abs(values - np.median(values)) if name in TWO_SIDED else values


def _ious(found: Predicted) -> NDArray[np.float64]:
    """Return the IoU of each label with the prediction; 1 where both are empty."""
    known, cloud, predicted = _compared(found)
    union = (known & (cloud | predicted)).sum((1, 2))
    return np.where(union > 0, (known & cloud & predicted).sum((1, 2)) / np.maximum(union, 1), 1.0)


def _differing(found: Predicted) -> NDArray[np.float64]:
    """Return the share of the known pixels of each tile in which label and prediction differ; 0 where none is known."""
    known, cloud, predicted = _compared(found)
    return (known & (cloud != predicted)).sum((1, 2)) / np.maximum(known.sum((1, 2)), 1)


def _compared(found: Predicted) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return of every pixel `[N, H, W]` whether label and prediction are known, and whether each says cloud."""
    labels = found.labels
    known = (labels != LABEL_IGNORE) & ~np.isnan(found.probability)
    return known, labels == 1, np.nan_to_num(found.probability) >= 0.5


def _of_cleanlab(found: Predicted) -> dict[str, NDArray[np.float64]]:
    """Return how bad cleanlab finds each label; what counts nowhere is clear for it, and predicted so."""
    labels = found.labels
    unknown = (labels == LABEL_IGNORE) | np.isnan(found.probability)
    probability = np.where(unknown, 0, found.probability).astype(np.float64)
    classes = np.where(unknown, LABEL_CLEAR, labels).astype(np.int64)
    of_class = np.stack([1 - probability, probability], axis=1)
    return {
        name: -get_label_quality_scores(classes, of_class, method=method, n_jobs=1, verbose=False)[0]
        for method, name in CLEANLAB.items()
    }


def tables(data_set: DataSet, outcomes: Sequence[Outcome]) -> list[Table]:
    """Return what the seeds of a data set came to, as tables: both measures, differences, kinds, the top tenth."""
    places = {name: i for i, name in enumerate(sorted(set(outcomes[0].locations)))}
    weights = resampled_places(len(places), seed=0)
    columns = (ALL, *CORRUPTIONS)
    found: dict[tuple[str, str], tuple[NDArray[np.float64], ...]] = {}
    for method, corruption in itertools.product(METHODS, columns):
        each = [measures(outcome.ranked(method, corruption, places), weights) for outcome in outcomes]
        found[method, corruption] = tuple(np.stack(values) for values in zip(*each, strict=True))
    tiles, wrong = len(outcomes[0].locations), int((outcomes[0].corruptions != "").sum())
    what = f"{data_set}, {tiles} tiles of {len(places)} places, {wrong} made wrong, seeds: {len(outcomes)}"
    note = "Mean over seeds; in brackets the interval of 95 % over places and seeds, both drawn with replacement."
    made = []
    for i, measure in enumerate(("average precision", "AUC")):
        rows = [
            [method, *(mean_interval_text(interval_over_seeds(found[method, each][i], 0)) for each in columns)]
            for method in METHODS
        ]
        made.append(Table(f"{what}: {measure}", ["ranking", *columns], rows, note))
        rows = [
            [
                other,
                *(
                    mean_interval_text(interval_over_seeds(found[OURS, each][i] - found[other, each][i], 0))
                    for each in columns
                ),
            ]
            for other in METHODS[1:]
        ]
        made.append(Table(f"{what}: {measure}, {OURS} less the other", ["other", *columns], rows, f"{note} In pairs."))
    return [*made, _top(what, outcomes), _kinds(what, outcomes), _features(what, outcomes)]


def _features(what: str, outcomes: Sequence[Outcome]) -> Table:
    one = np.ones((1, 1))
    rows = []
    for name in FEATURE_NAMES:
        ranked = [each.ranked(name, ALL, dict.fromkeys(each.locations, 0)) for each in outcomes]
        found = np.array([[float(value[0]) for value in measures(each, one)] for each in ranked]).mean(0)
        rows.append([name, *(f"{value:.3f}" for value in found)])
    note = "Mean over seeds. `contradiction` is the suspicion without what is normal at the location."
    return Table(f"{what}: what each number says by itself", ["number", "average precision", "AUC"], rows, note)


def _top(what: str, outcomes: Sequence[Outcome]) -> Table:
    rows = []
    for method in METHODS:
        everything = [each.ranked(method, ALL, dict.fromkeys(each.locations, 0)) for each in outcomes]
        values = [precision_at(each, CORRUPTED_FRACTION) for each in everything]
        rows.append([method, f"{np.mean(values):.3f}", f"{min(values):.3f} to {max(values):.3f}"])
    return Table(f"{what}: how much of the top tenth was made wrong", ["ranking", "mean", "over seeds"], rows)


def _kinds(what: str, outcomes: Sequence[Outcome]) -> Table:
    pairs = [(c, k) for each in outcomes for c, k in zip(each.corruptions.tolist(), each.kinds, strict=True) if c]
    counts = confusion(pairs, CORRUPTIONS, ERROR_KINDS)
    rows = [
        [corruption, *map(str, counts[i]), f"{counts[i, ERROR_KINDS.index(KIND_OF[corruption])] / counts[i].sum():.0%}"]
        for i, corruption in enumerate(CORRUPTIONS)
    ]
    return Table(f"{what}: the kind that is named", ["made", *ERROR_KINDS, "right"], rows)


def main() -> None:
    """Train what is missing, print the tables and write them as --write says."""
    options = _parser().parse_args()
    out: Path = options.out
    made: list[Table] = []
    for data_set in options.data:
        shards = make_tiles(data_set, options.archive, out)
        seen: Callable[[int], Predicted] = functools.partial(predict, data_set, shards, out=out)
        outcomes = []
        for seed in options.seeds:
            found = seen(seed)
            print(f"{data_set}, seed {seed}: predicted", flush=True)
            if not options.train:
                outcomes.append(outcome(found, seed))
        if outcomes:
            made += tables(data_set, outcomes)
    if made:
        title = "Ranking of labels of which a tenth was made wrong"
        name = "-".join(["review-ranking", *options.data])
        keep_tables(name, "review_ranking", options.write, title, made)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=("generated", "real"), nargs="+")
    parser.add_argument("--archive", type=Path, required=True, help="the real chips")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=_seeds, default=range(20), metavar="FIRST-LAST")
    parser.add_argument("--train", action="store_true", help="train what is missing, and no more")
    parser.add_argument("--write", metavar="MACHINE")
    return parser


def _seeds(text: str) -> Sequence[int]:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


if __name__ == "__main__":
    main()
