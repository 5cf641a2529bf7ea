"""What `raytrain review rank` costs: a tile, beside reading alone and beside cleanlab, and the command with its memory.

The tiles are those of `tests.bench.review_page`, made up, of which some differ in pixels; each has its own rasters of
predictions (by links), and the machine has all of them in memory. Every tile is read twice, its label and probability
both times, which no ranking that looks at places first can do without: that is the floor.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from cleanlab.segmentation.rank import get_label_quality_scores

from raytrain.review.calibration import Calibration, label_histogram
from raytrain.review.features import features_of
from raytrain.review.predicted import open_predictions
from raytrain.scoring.records import Record
from raytrain.tiles.reader import TileReader, read_index
from tests.bench import record
from tests.making_review import SCORING, MadeReview, make_review
from tests.predicting import enter

PEERS = {"cleanlab, softmin": "softmin", "cleanlab, pixels with issues": "num_pixel_issues"}


def main() -> None:
    """Measure a tile in this process, then the command over each number of tiles."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-px", type=int, default=512)
    parser.add_argument("--distinct", type=int, default=128, help="how many tiles differ in pixels")
    parser.add_argument("--runs", type=int, default=5, help="over the tiles that differ, by tile")
    parser.add_argument(
        "--commands",
        nargs="+",
        default=["32x512", "11748x512"],
        metavar="TILESxPX",
        help="what the command is run over",
    )
    parser.add_argument("--write", metavar="MACHINE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = _made(Path(folder), options.distinct, options.size_px, options.distinct)
        tables = [_by_tile(made, options.runs)]
    rows = [_command(*map(int, each.split("x")), options.distinct) for each in options.commands]
    headers = ["tiles", "px", "s", "tiles/s", "peak memory of the driver, MiB"]
    note = (
        "With the start of Ray and its end: what few tiles take. Memory is that of the command, without Ray's workers."
    )
    tables.append(record.Table("raytrain review rank", headers, rows, note))
    record.keep_tables("review_rank", "review_rank", options.write, "The ranking of labels: time and memory", tables)


def _made(folder: Path, count: int, size_px: int, distinct: int) -> MadeReview:
    """Make shards and predictions as the command asks for them, with a ledger."""
    made = make_review(folder, count, size_px, distinct)
    ids = read_index(made.shards, ["tile_id"])["tile_id"].to_pylist()
    of_all = Record(
        item_id="any",
        kind="tile",
        source_uri="",
        identity="",
        settings_digest=SCORING.digest(),
        outputs={},
        height=size_px,
        width=size_px,
        valid_px=size_px**2,
        cloud_px=0,
        disagreement_mean=0.0,
    )
    enter(made.predictions, made.shards, [of_all.model_copy(update={"item_id": each}) for each in ids])
    return made


def _by_tile(made: MadeReview, runs: int) -> record.Table:
    """Go over all tiles `runs` times, and time each step of each."""
    reader, predictions = TileReader(made.shards, ()), open_predictions(made.predictions)
    labels = []
    for i in range(len(reader)):
        label = reader.read(i)[1]
        assert label is not None
        labels.append(label)
    shape = labels[0].shape
    probabilities = [predictions.read_values("probability", each, shape) for each in reader.tile_ids]
    disagreements = [predictions.read_values("disagreement", each, shape) for each in reader.tile_ids]
    histograms = [label_histogram(*each) for each in zip(labels, probabilities, strict=True)]
    calibration = Calibration.of(reader.locations, np.stack(histograms))
    thresholds = [calibration.thresholds(*each) for each in zip(reader.locations, histograms, strict=True)]

    def read_inputs(i: int) -> None:
        reader.read(i)
        predictions.read_values("probability", reader.tile_ids[i], shape)

    def peer(method: str) -> Callable[[int], object]:
        def look(i: int) -> object:
            of_class = np.stack([1 - probabilities[i], probabilities[i]])[None].astype(np.float64)
            classes = labels[i][None].astype(np.int64)
            return get_label_quality_scores(classes, of_class, method=method, n_jobs=1, verbose=False)

        return look

    steps: dict[str, Callable[[int], object]] = {
        "label and probability read": read_inputs,
        "disagreement read": lambda i: predictions.read_values("disagreement", reader.tile_ids[i], shape),
        "counted (first pass)": lambda i: label_histogram(labels[i], probabilities[i]),
        "what its place says of it": lambda i: calibration.thresholds(reader.locations[i], histograms[i]),
        "looked at (second pass)": lambda i: features_of(labels[i], probabilities[i], disagreements[i], thresholds[i]),
        **{name: peer(method) for name, method in PEERS.items()},
    }
    ms = {name: [_mean_ms(step, len(reader)) for _ in range(runs)] for name, step in steps.items()}
    read, spread, *own = (statistics.median(ms[name]) for name in steps if name not in PEERS)
    floor = 2 * read + spread
    rows = [[name, f"{statistics.median(each):.2f}", f"{max(each):.2f}"] for name, each in ms.items()]
    rows.append(["all that is read, twice where it has to be: the floor", f"{floor:.2f}", ""])
    rows.append(["the whole tile", f"{floor + sum(own):.2f}", ""])
    rows.append(["the whole tile, of the floor", f"{(floor + sum(own)) / floor:.1f}", ""])
    for name in PEERS:
        rows.append([f"what is computed, of {name}", f"{sum(own) / statistics.median(ms[name]):.2f}", ""])
    note = (
        f"{len(reader)} tiles of {made.size_px} px that differ, one thread, {runs} runs over all of them. cleanlab "
        "gets its arrays in memory; for pixels with issues it finds thresholds among the pixels of the one tile."
    )
    return record.Table("A tile", ["what", "median, ms", "largest, ms"], rows, note)


def _mean_ms(step: Callable[[int], object], count: int) -> float:
    start = time.perf_counter()
    for i in range(count):
        step(i)
    return 1000 * (time.perf_counter() - start) / count


def _command(count: int, size_px: int, distinct: int) -> list[str]:
    """Run the command once, and return its row."""
    with tempfile.TemporaryDirectory() as folder:
        made = _made(Path(folder), count, size_px, min(distinct, count))
        print(f"{count} tiles of {size_px} px are made", file=sys.stderr)
        found = record.raytrain("review", "rank", made.shards, made.predictions, str(Path(folder) / "ranked"), "--json")
    return [f"{count}", f"{size_px}", f"{found.seconds:.1f}", f"{count / found.seconds:.0f}", f"{found.peak_mib:.0f}"]


if __name__ == "__main__":
    main()
