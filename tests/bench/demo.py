"""How long `raytrain demo` takes, how well it scores, and what a threshold on B02 would have done on the same chips."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from tests.bench import blue, record


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
            threshold = blue.fit(blue.read_archive(out / "archive", "train"))
            thresholds.add((threshold, blue.pooled_iou(blue.read_archive(out / "unseen", "test"), threshold)))
    ((threshold, iou),) = thresholds
    rows = [
        ["duration of the command, s", _listed(seconds, 0)],
        ["pooled IoU on 60 chips of 30 places that training never saw", _listed(scores, 4)],
        [f"the same of the best threshold on B02, {threshold}, fitted on the training chips", f"{iou:.4f}"],
    ]
    headers = ["what", f"median of {options.runs} runs (each)"]
    record.keep("demo", options.write, "`raytrain demo`", headers, rows)


def _listed(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({', '.join(f'{value:.{digits}f}' for value in values)})"


if __name__ == "__main__":
    main()
