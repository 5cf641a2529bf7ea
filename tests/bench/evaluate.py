"""What an evaluation costs: chips per second beside a plain loop, memory by number and size, and time of its intervals.

Chips and labels are generated, predictions made of the labels and written as `raytrain score` writes them. A few
files stand under as many ids as are wanted, by hard links, so that all of them lie in the page cache.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray

from raytrain import storage
from raytrain.cluster.evaluate import EvaluateJob, evaluate
from raytrain.cluster.session import Cluster, joined
from raytrain.config import ScoreSettings
from raytrain.evaluation.counting import MapCounts, MemberCounts
from raytrain.evaluation.evaluation import evaluation_of
from raytrain.evaluation.masks import Pair, Prediction, Reading
from raytrain.evaluation.predictions import find_predictions, pair_up
from raytrain.evaluation.results import Inputs
from raytrain.evaluation.slices import columns_of
from raytrain.evaluation.tally import Summed, Tally, count_pairs
from raytrain.imagery.synth import write_chips
from raytrain.scoring.destination import Scoring, claim_destination
from raytrain.scoring.layers import Layers, create_striped, encode, finish_cog
from raytrain.tiles.metadata import read_metadata
from tests.bench import record
from tests.bench.coverage import METADATA, scored_of
from tests.bench.populations import FIRST, POPULATIONS, WORSE, draw, made_up_sizes, read_sizes

CHIP_PX = 512
EDGE_PX = 5
MEMBERS = tuple(f"member-{i}" for i in range(8))
LAYERS = Layers(probability="uint8")
THRESHOLD = 0.5
NUM_PLACES = 81
MASKS, MAPS, ALL = "masks", "masks and probabilities", "masks, probabilities and eight members"
SETS = {MASKS: ScoreSettings(), MAPS: ScoreSettings(probability="uint8")}
SETS[ALL] = ScoreSettings(probability="uint8", members="uint8")
FOLDERS = {MASKS: "masks", MAPS: "maps", ALL: "all"}
SCENE_PX, REPEATS = 2_745, 4
"""The side of the small scene; of the large one, which is the small one so many times in both directions."""
MIB = 2**20


def main() -> None:
    """Make the files, measure, print and keep the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=32, help="chips that are made")
    parser.add_argument("--chips", type=int, default=1_000, help="ids whose rate is measured")
    parser.add_argument("--memory-chips", type=int, nargs="*", default=[1_000, 4_000, 11_748])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--no-scenes", action="store_true")
    parser.add_argument("--made-up-sizes", action="store_true", help="do without the real sizes of locations")
    parser.add_argument("--write", metavar="MACHINE")
    parser.add_argument("--step", nargs=3, metavar=("NAME", "FOLDER", "SET"), help="what its own processes are told")
    options = parser.parse_args()
    if options.step is not None:
        name, folder, which = options.step
        {"chips": evaluate_folder, "scene": count_scene}[name](Path(folder), which)
        return
    sizes = _sizes(options.made_up_sizes)
    with tempfile.TemporaryDirectory(prefix="raytrain-bench-") as temporary:
        folder = Path(temporary)
        make_files(folder / "made", options.files)
        tables = [_rates_table(folder, options), _intervals_table(sizes, options.runs)]
        if options.memory_chips:
            tables.append(_memory_table(folder, options))
        if not options.no_scenes:
            tables.append(_scenes_table(folder))
    record.keep_tables("evaluate", "evaluate", options.write, "What an evaluation costs", tables)


def _sizes(made_up: bool) -> NDArray[np.int64]:
    if made_up:
        return made_up_sizes(NUM_PLACES)
    if not METADATA.is_file():
        sys.exit(f"no {METADATA}, which has the real sizes of locations; --made-up-sizes does without them")
    return read_sizes(METADATA)


# Files


def make_files(folder: Path, count: int) -> None:
    """Write labels of chips, and a prediction of each in all three sets."""
    write_chips(folder, count=count, size_px=CHIP_PX, seed=1, num_places=min(count, NUM_PLACES))
    for i, path in enumerate(sorted((folder / "train_labels").glob("*.tif"))):
        write_predictions(path, folder, i)
    claim(folder)


def claim(folder: Path) -> None:
    """Say in each set what it was scored with."""
    for name, settings in SETS.items():
        scoring = Scoring(ensemble="bench", members=MEMBERS, settings=settings)
        claim_destination(str(folder / FOLDERS[name]), scoring)


def write_predictions(label: Path, folder: Path, seed: int) -> None:
    """Write what eight members and their mean might have found of a label, into all three sets below `folder`."""
    random = np.random.default_rng(seed)
    with rasterio.open(label) as source:
        pixels, crs, transform = source.read(1), source.crs, source.transform
    maps = [_blurred(pixels, random) for _ in MEMBERS]
    mean = np.mean(maps, axis=0, dtype=np.float32)
    written = {"": mean, "probability": mean} | {f"members/{name}": maps[i] for i, name in enumerate(MEMBERS)}
    for subfolder, values in written.items():
        layer = LAYERS.layer("probability" if subfolder else "mask")
        target = folder / FOLDERS[ALL] / subfolder / label.name
        target.parent.mkdir(parents=True, exist_ok=True)
        striped = target.with_suffix(".striped")
        with create_striped(striped, layer, *pixels.shape, crs, transform) as file:
            file.write(encode(layer, values, pixels != 255, THRESHOLD), 1)
        finish_cog(striped, target, layer)
        striped.unlink()
    for name, subfolders in ((MASKS, [""]), (MAPS, ["", "probability"])):
        for subfolder in subfolders:
            link(folder / FOLDERS[ALL] / subfolder / label.name, folder / FOLDERS[name] / subfolder / label.name)


def _blurred(label: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.float32]:
    """Return probabilities `[H, W]` that are unsure near edges of clouds, and wrong in places."""
    import cv2

    cloud = (label == 1).astype(np.float32)
    coarse = random.random((max(2, label.shape[0] // 64), max(2, label.shape[1] // 64)), dtype=np.float32)
    wrong = cv2.resize(coarse, label.shape[::-1], interpolation=cv2.INTER_CUBIC)
    return np.asarray(np.clip(cv2.GaussianBlur(cloud, (0, 0), 3) + 0.6 * (wrong - 0.5), 0, 1), np.float32)


def link(source: Path, target: Path) -> None:
    """Let `target` be the file `source` under another name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(source, target)


def multiply(made: Path, folder: Path, name: str, count: int) -> Path:
    """Return a folder with `labels`, `predictions` of the set `name` and `metadata.csv` of `count` chips."""
    target = folder / f"{FOLDERS[name]}-{count}"
    originals = [path.stem for path in sorted((made / "train_labels").glob("*.tif"))]
    subfolders = [path.parent.relative_to(made / FOLDERS[name]) for path in (made / FOLDERS[name]).rglob("*.tif")]
    rows = []
    for i in range(count):
        original, chip_id = originals[i % len(originals)], f"chip{i:06d}"
        link(made / "train_labels" / f"{original}.tif", target / "labels" / f"{chip_id}.tif")
        for subfolder in sorted(set(subfolders)):
            source = made / FOLDERS[name] / subfolder / f"{original}.tif"
            link(source, target / "predictions" / subfolder / f"{chip_id}.tif")
        rows.append((chip_id, f"place {i % NUM_PLACES:02d}", "", ""))
    link(made / FOLDERS[name] / "scoring.json", target / "predictions" / "scoring.json")
    with (target / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("chip_id", "location", "datetime", "cloudpath"), *rows])
    return target


# Rates


def _rates_table(folder: Path, options: argparse.Namespace) -> record.Table:
    """Measure all ways in turns, with a Ray that runs from beginning to end."""
    rows = []
    with joined(Cluster(), []):
        for name in SETS:
            rows += _rates(multiply(folder / "made", folder, name, options.chips), name, options)
    headers = ["files", "way", "chips/s", "slowest and fastest run", "beside the plain loop"]
    note = (
        f"{options.chips} chips of {CHIP_PX} px, {options.files} different ones; medians of {options.runs} runs, in "
        "turns. The plain loop opens and reads masks and labels by rasterio, and adds intersection and union by "
        "numpy; it does no more with the other sets. Reading alone opens and reads all files of a set and does "
        "nothing with them. Counting makes zones near edges, checks values, sizes and places. The whole evaluation "
        "has two Ray workers, which run already, intervals, tables and the page."
    )
    return record.Table("Chips per second", headers, rows, note)


def _rates(folder: Path, name: str, options: argparse.Namespace) -> list[list[str]]:
    pairs = pairs_of(folder)
    ways: dict[str, Callable[[], object]] = {
        "plain loop": lambda: plain_loop(pairs),
        "reading alone": lambda: read_alone(pairs),
        "counted in one process": lambda: count_pairs(pairs, [Reading()], EDGE_PX),
        "evaluated, two workers": lambda: evaluate(job_of(folder), Cluster()),
    }
    _check_agreement(pairs)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for i in range(options.runs + 1):
        for way, work in ways.items():
            start = time.perf_counter()
            work()
            if i:  # the first brings files into the cache and code into workers
                seconds[way].append(time.perf_counter() - start)
    plain = statistics.median(seconds["plain loop"])
    rows = []
    for way, found in seconds.items():
        middle, count = statistics.median(found), len(pairs)
        extremes = f"{count / max(found):.0f} to {count / min(found):.0f}"
        rows.append([name, way, f"{count / middle:.0f}", extremes, f"{plain / middle:.2f}"])
    return rows


def pairs_of(folder: Path) -> list[Pair]:
    """Return all pairs of a folder of `multiply`."""
    rows = read_metadata(str(folder / "metadata.csv")).rows
    pairs, oddities = pair_up([find_predictions(str(folder / "predictions"))], str(folder / "labels"), rows)
    assert not oddities, oddities[0]
    return pairs


def job_of(folder: Path) -> EvaluateJob:
    """Return the evaluation of a folder of `multiply`."""
    names = {"predictions": "predictions", "labels": "labels", "metadata": "metadata.csv", "out": "out"}
    return EvaluateJob(**{key: str(folder / name) for key, name in names.items()}, edge_px=EDGE_PX)


def plain_loop(pairs: Sequence[Pair]) -> tuple[int, int]:
    """Return intersection and union of all masks and labels, as one would write it."""
    intersection = union = 0
    for pair in pairs:
        with rasterio.open(pair.label) as source:
            label = source.read(1)
        with rasterio.open(pair.predictions[0].uri) as source:
            prediction = source.read(1)
        valid = label != 255
        cloud, predicted = (label == 1) & valid, (prediction == 1) & valid
        intersection += int((cloud & predicted).sum())
        union += int((cloud | predicted).sum())
    return intersection, union


def read_alone(pairs: Sequence[Pair]) -> None:
    """Open and read all files of the pairs."""
    for pair in pairs:
        (prediction,) = pair.predictions
        maps = [prediction.probability] if prediction.probability else []
        for uri in (pair.label, prediction.uri, *maps, *prediction.members):
            with rasterio.open(uri) as source:
                source.read(1)


def _check_agreement(pairs: Sequence[Pair]) -> None:
    (tally,), oddities = count_pairs(pairs, [Reading()], EDGE_PX)
    tp, fp, fn, _ = tally.totals.sum(0).tolist()
    assert not oddities, oddities[0]
    assert (tp, tp + fp + fn) == plain_loop(pairs), "the ways count differently"


# Intervals


def _intervals_table(sizes: NDArray[np.int64], runs: int) -> record.Table:
    ours, theirs = (tally_of(sizes, way) for way in (FIRST, WORSE))
    months = {chip_id: f"{1 + i % 12:02d}" for i, chip_id in enumerate(ours.chip_ids)}
    columns = columns_of(ours, months, {})
    against = Inputs(predictions="ours", labels="labels", metadata="metadata", against="theirs")
    rows = []
    for what, tallies in (("one set of predictions", [ours]), ("compared with another", [ours, theirs])):
        seconds = []
        for _ in range(runs):
            start = time.perf_counter()
            evaluation_of(tallies, columns, against, [], rule="one", members=MEMBERS, seed=0, resamples=10_000)
            seconds.append(time.perf_counter() - start)
        rows.append([what, f"{statistics.median(seconds):.2f}", f"{min(seconds):.2f} to {max(seconds):.2f}"])
    slices = sum(len(each.order) for each in columns)
    note = (
        f"`evaluation_of`, all scores and intervals: {len(ours)} chips, {len(sizes)} locations, 10,000 resamples, "
        f"{slices} slices, {len(MEMBERS)} members; medians of {runs} runs."
    )
    return record.Table("Intervals", ["what", "s", "fastest and slowest run"], rows, note)


def tally_of(sizes: NDArray[np.int64], way: int) -> Tally:
    """Return a made-up tally of locations of these sizes, with counts of maps and members."""
    random = np.random.default_rng(0)
    tally = scored_of(draw(POPULATIONS[0], sizes, random))[way].tally
    for name in tally.location_names:
        maps, members = MapCounts(), MemberCounts.of(len(MEMBERS))
        for counts in (maps.pixels, *vars(members).values()):
            counts += random.integers(0, 10**6, counts.shape)
        tally.by_location[name] = Summed(maps, 1, members, 1)
    return tally


# Memory


def _memory_table(folder: Path, options: argparse.Namespace) -> record.Table:
    rows = []
    # With the maps of members a chip takes ten times as long.
    for name, counts in ((MASKS, options.memory_chips), (ALL, [count // 10 for count in options.memory_chips])):
        first = 0.0
        for count in counts:
            chips = multiply(folder / "made", folder / "memory", name, count)
            found = _step("chips", chips, name)
            first = first or found["peak_mib"]
            rates = [f"{found['seconds']:.0f}", f"{count / found['seconds']:.0f}"]
            rows.append([name, str(count), *rates, f"{found['peak_mib']:.0f}", f"{found['peak_mib'] / first:.3f}"])
    headers = ["files", "chips", "s", "chips/s", "peak of the driver, MiB", "peak / first peak"]
    note = "Whole evaluations, each in a process of its own that starts a Ray of two workers; its start is in the time."
    return record.Table("Memory by number of chips", headers, rows, note)


def _scenes_table(folder: Path) -> record.Table:
    for repeats in (1, REPEATS):
        make_scene(folder / f"scene-{repeats}", repeats)
    rows = []
    for name in SETS:
        first = 0.0
        for repeats in (1, REPEATS):
            found = _step("scene", folder / f"scene-{repeats}", name)
            first = first or found["peak_mib"]
            peak = [f"{found['before_mib']:.0f}", f"{found['peak_mib']:.0f}", f"{found['peak_mib'] / first:.3f}"]
            rows.append([name, str(repeats * SCENE_PX), f"{found['seconds']:.1f}", *peak])
    headers = ["files", "scene, px", "s", "before, MiB", "peak, MiB", "peak / first peak"]
    note = "A scene counted in one process; the large one is the small one, repeated."
    return record.Table("Memory by size of a scene", headers, rows, note)


def make_scene(folder: Path, repeats: int) -> None:
    """Write a label and its predictions: a generated label, repeated in both directions."""
    write_chips(folder / "small", count=1, size_px=SCENE_PX, seed=2, num_places=1)
    (small,) = (folder / "small" / "train_labels").glob("*.tif")
    (folder / "train_labels").mkdir()
    label, target = LAYERS.layer("mask"), folder / "train_labels" / "scene.tif"
    with rasterio.open(small) as source:
        pixels, crs, transform = np.tile(source.read(1), (repeats, repeats)), source.crs, source.transform
    striped = target.with_suffix(".striped")
    with create_striped(striped, label, *pixels.shape, crs, transform) as file:
        file.write(pixels, 1)
    finish_cog(striped, target, label)
    striped.unlink()
    write_predictions(target, folder, seed=0)


def _step(name: str, folder: Path, which: str) -> dict[str, float]:
    record.run(sys.executable, "-m", "tests.bench.evaluate", "--step", name, str(folder), which)
    found: dict[str, float] = json.loads((folder / "found.json").read_text())
    return found


def evaluate_folder(folder: Path, which: str) -> None:
    """Evaluate a folder of `multiply` on a Ray of its own, and write what that took beside it."""
    start = time.perf_counter()
    report = evaluate(job_of(folder), Cluster())
    seconds = time.perf_counter() - start
    assert report.evaluation is not None
    assert (report.evaluation.members is not None) == (which == ALL)
    (folder / "found.json").write_text(json.dumps({"seconds": seconds, "peak_mib": _peak_mib()}))


def count_scene(folder: Path, which: str) -> None:
    """Count a scene of `make_scene` with the files of one set, and write what that took beside it."""
    predictions = folder / FOLDERS[ALL]
    maps = str(predictions / "probability" / "scene.tif")
    members = tuple(str(predictions / "members" / name / "scene.tif") for name in MEMBERS)
    mask = str(predictions / "scene.tif")
    prediction = {MASKS: Prediction(mask), MAPS: Prediction(mask, maps), ALL: Prediction(mask, maps, members)}[which]
    storage.limit_gdal_cache()
    before, start = _peak_mib(), time.perf_counter()
    tallies, oddities = count_pairs(
        [Pair("scene", "place", str(folder / "train_labels" / "scene.tif"), (prediction,))], [Reading()], EDGE_PX
    )
    seconds = time.perf_counter() - start
    assert not oddities, oddities[0]
    assert len(tallies[0]) == 1
    found = {"seconds": seconds, "before_mib": before, "peak_mib": _peak_mib()}
    (folder / "found.json").write_text(json.dumps(found))


def _peak_mib() -> float:
    """Return the peak of this process's resident memory since it began; that of its parent is not in it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak_kib,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(peak_kib) * 1024 / MIB


if __name__ == "__main__":
    main()
