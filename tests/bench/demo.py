"""How long `raytrain demo` takes, how well it scores, and what a threshold on B02 would have done on the same chips."""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
import rasterio

from raytrain.imagery.rasters import LABEL_CLOUD, LABEL_IGNORE
from tests.bench import record

THRESHOLDS = np.arange(0, 16_000, 100)


def main() -> None:
    """Run the demo into fresh folders, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--write", metavar="MACHINE")
    options = parser.parse_args()
    seconds, scores, thresholds = [], [], set()
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "demo"
            seconds.append(record.raytrain("demo", "--out", str(out)).seconds)
            scores.append(json.loads((out / "scores" / "metrics.json").read_text())["iou_pooled"])
            thresholds.add(best_threshold(out / "archive", "train", out / "unseen", "test"))
    ((threshold, iou),) = thresholds
    rows = [
        ["duration of the command, s", _listed(seconds, 0)],
        ["pooled IoU on 60 chips of 30 places that training never saw", _listed(scores, 4)],
        [f"the same of the best threshold on B02, {threshold}, fitted on the training chips", f"{iou:.4f}"],
    ]
    headers = ["what", f"median of {options.runs} runs (each)"]
    record.keep("demo", options.write, "`raytrain demo`", headers, rows)


def best_threshold(fitted: Path, fitted_split: str, tested: Path, tested_split: str) -> tuple[int, float]:
    """Return the threshold on B02 of the best pooled IoU on one archive, and its pooled IoU on another."""
    on_fitted, on_tested = pooled_iou(fitted, fitted_split), pooled_iou(tested, tested_split)
    best = int(np.argmax(on_fitted))
    return int(THRESHOLDS[best]), float(on_tested[best])


def pooled_iou(archive: Path, split: str) -> np.ndarray:
    """Return the pooled IoU of `B02 >= threshold` for each of `THRESHOLDS`, `[T] float64`."""
    edges = [*THRESHOLDS, 1 << 16]
    cloud, clear = np.zeros(len(THRESHOLDS)), np.zeros(len(THRESHOLDS))
    with (archive / f"{split}_metadata.csv").open() as file:
        chip_ids = [row["chip_id"] for row in csv.DictReader(file)]
    for chip_id in chip_ids:
        b02 = _read(archive / f"{split}_features" / chip_id / "B02.tif")
        label = _read(archive / f"{split}_labels" / f"{chip_id}.tif")
        cloud += np.histogram(b02[label == LABEL_CLOUD], edges)[0]
        clear += np.histogram(b02[(label != LABEL_CLOUD) & (label != LABEL_IGNORE)], edges)[0]
    true_positives, false_positives = np.cumsum(cloud[::-1])[::-1], np.cumsum(clear[::-1])[::-1]
    return np.asarray(true_positives / (cloud.sum() + false_positives))


def _read(path: Path) -> np.ndarray:
    with rasterio.open(path) as image:
        return np.asarray(image.read(1))


def _listed(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({', '.join(f'{value:.{digits}f}' for value in values)})"


if __name__ == "__main__":
    main()
