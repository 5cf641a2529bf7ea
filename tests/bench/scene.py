"""Memory and local disk that scoring takes, held against what is stated beforehand, for scenes of several sizes.

The net that scores is one multiplication a pixel, so that time and memory are those of all around the nets. A worker
has two units at once, as in a scoring: two scenes, or two blocks of a scene that is cut. With `--floor`, GDAL rewrites
each scene, too: the same bytes, compressed the same way, with no pixel computed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import record

if TYPE_CHECKING:
    from raytrain.config import ScoreSettings
    from raytrain.scoring.ensemble import Ensemble
    from raytrain.scoring.estimate import Calibration
    from raytrain.scoring.work import Work

# Steps import what they need: the peak of a process counts from that of the process that started it.

SIZES = (10_000, 20_000)
NUM_BANDS = 4
MIB = 2**20


def main() -> None:
    """Make the scenes and score each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes-px", type=int, nargs="+", default=SIZES)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=NUMBER", help="settings of the scoring")
    parser.add_argument("--in-flight", type=int, default=2, help="units at once")
    parser.add_argument("--floor", action="store_true", help="let GDAL rewrite each scene, too")
    parser.add_argument("--scenes", metavar="FOLDER", help="where scenes are kept and found again")
    parser.add_argument("--write", metavar="MACHINE")
    parser.add_argument("--step", nargs=3, metavar=("NAME", "SOURCE", "TARGET"), help="what its own processes are told")
    options = parser.parse_args()
    settings = {name: int(value) for name, _, value in (each.partition("=") for each in options.set)}
    if options.step is not None:
        name, source, target = options.step
        if name == "rewrite":
            rewrite(source, target)
        else:
            score(source, target, settings, options.in_flight)
        return
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(options.scenes or folder)
        rows = [_measure(kept, Path(folder), size, options) for size in options.sizes_px]
    peaks = [float(row[PEAK]) for row in rows]
    for row, peak in zip(rows, peaks, strict=True):
        row[PEAK + 1] = f"{peak / peaks[0]:.3f}"
    title = f"Scenes scored by a worker with {options.in_flight} units at once"
    record.keep("scene", options.write, title, HEADERS, rows)


HEADERS = [
    "scene, px",
    "scenes",
    "blocks each",
    "s",
    "CPU s",
    "GDAL rewrites one, s",
    "before, MiB",
    "stated, MiB",
    "peak, MiB",
    "peak / first peak",
    "disk stated, MiB",
    "disk peak, MiB",
]
PEAK = HEADERS.index("peak, MiB")


def _measure(kept: Path, folder: Path, size: int, options: argparse.Namespace) -> list[str]:
    """Return a row of the table; the ratio of peaks is left open."""
    scene = make(kept / str(size), size)
    this = [sys.executable, "-m", "tests.bench.scene", "--in-flight", str(options.in_flight)]
    this += ["--set", *options.set, "--step"]
    floor = "-"
    if options.floor:
        floor = f"{record.run(*this, 'rewrite', str(scene), f'{folder}/rewritten.tif').seconds:.0f}"
        Path(folder, "rewritten.tif").unlink()
    peak_mib = record.run(*this, "score", str(scene), f"{folder}/{size}").peak_mib
    found = json.loads(Path(folder, str(size), "found.json").read_text())
    times = [f"{found['seconds']:.0f}", f"{found['cpu_s']:.0f}", floor]
    memory = [f"{found['resident'] / MIB:.0f}", f"{found['stated'] / MIB:.0f}", f"{peak_mib:.0f}", ""]
    disk = [f"{found['disk_stated'] / MIB:.0f}", f"{found['disk_peak'] / MIB:.0f}"]
    return [str(size), str(found["scenes"]), str(found["blocks"]), *times, *memory, *disk]


def make(folder: Path, size: int) -> Path:
    """Return a generated scene, made where it does not lie there already."""
    if not list(folder.glob("scenes/*.tif")):
        record.raytrain("synth", str(folder), "--kind", "scenes", "--count", "1", "--size-px", str(size))
    (scene,) = folder.glob("scenes/*.tif")
    return scene


def rewrite(source: str, target: str) -> None:
    """Copy a COG to a COG of the same kind."""
    import rasterio
    import rasterio.shutil

    options = {
        "compress": "deflate",
        "predictor": "yes",
        "level": 4,
        "blocksize": 512,
        "overview_resampling": "average",
    }
    with rasterio.Env(GDAL_CACHEMAX=128 * 2**20):
        rasterio.shutil.copy(source, target, driver="COG", **options)


def score(source: str, target: str, changes: dict[str, int], in_flight: int) -> None:
    """Score a scene, or as many like it as are done at once, into `target`; write what was found beside the masks."""
    from raytrain.config import ScoreSettings, change
    from raytrain.scoring.destination import Scoring
    from raytrain.scoring.estimate import Sample, disk_bytes, unit_bytes, worker_bytes
    from raytrain.scoring.units import blocks_of
    from raytrain.scoring.work import Work

    settings = change(ScoreSettings(), changes)
    work = Work(target, Scoring(ensemble="bench", members=("mean",), settings=settings), _nets(settings))
    calibration = _calibrated(work)
    sample = _sample(source)
    blocks = blocks_of(*sample, settings.block_px)
    scenes = 1 if len(blocks) > 1 else in_flight
    start, cpu_s = time.monotonic(), time.process_time()
    with _disk_watched() as disk:
        _score_all(source, scenes, work, in_flight)
    seen = Sample(*sample, os.stat(source).st_size)
    found = {
        "scenes": scenes,
        "blocks": len(blocks),
        "seconds": time.monotonic() - start,
        "cpu_s": time.process_time() - cpu_s,
        "resident": calibration.resident_bytes,
        "stated": worker_bytes(calibration, unit_bytes(seen, NUM_BANDS, work.layers, settings), in_flight),
        "disk_stated": in_flight * disk_bytes(seen, work.layers),
        "disk_peak": max(disk),
    }
    Path(target, "found.json").write_text(json.dumps(found))


def _nets(settings: ScoreSettings) -> Ensemble:
    """Return nets whose logit is the mean of the bands."""
    import torch
    from torch import nn

    from raytrain.recipes import members
    from raytrain.scoring.ensemble import Ensemble

    net = nn.Conv2d(NUM_BANDS, 1, 1, bias=False)
    nn.init.constant_(net.weight, 0.25)
    member = members(("small-effnet-4b-20k",))[0]
    return Ensemble([(member, net)], settings, torch.device("cpu"))


def _calibrated(work: Work) -> Calibration:
    """Return what `Scorer.calibrate` does: this process stands for a worker."""
    from raytrain.cluster.scorer import calibrate
    from raytrain.scoring.estimate import Calibration

    return Calibration(*calibrate(work))


def _sample(source: str) -> tuple[int, int]:
    import rasterio

    with rasterio.open(source) as dataset:
        return dataset.height, dataset.width


def _score_all(source: str, count: int, work: Work, in_flight: int) -> None:
    """Do the units of `count` scenes that are all the file `source`, some at once."""
    from raytrain.scoring.listing import list_scenes
    from raytrain.scoring.perform import perform
    from raytrain.scoring.schedule import Schedule, Task
    from raytrain.scoring.units import Answer, Unit

    (scene,) = list_scenes(source, work.nets.bands)
    assert not isinstance(scene, Exception)
    scenes = [scene.model_copy(update={"scene_id": f"{scene.scene_id}-{i}"}) for i in range(count)]
    schedule = Schedule(iter([[Unit(kind="scene", scene=each) for each in scenes]]), count)
    lock = threading.Lock()

    def work_off() -> None:
        while True:
            with lock:
                if schedule.is_over:
                    return
                task: Task | None = schedule.take(alone=True)
            if task is None:
                time.sleep(0.1)
                continue
            answer: Answer = perform(task.unit, work)
            assert not answer.problems, answer.problems
            with lock:
                schedule.finished(task, answer)

    with ThreadPoolExecutor(in_flight) as pool:
        for each in [pool.submit(work_off) for _ in range(in_flight)]:
            each.result()


@contextmanager
def _disk_watched() -> Iterator[list[int]]:
    """Give a list of how many bytes the temporary files of this process take, looked at five times a second."""
    sizes, over = [0], threading.Event()

    def watch(folder: Path) -> None:
        while not over.wait(0.2):
            sizes.append(sum(_blocks(path) for path in folder.rglob("*")))

    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        watcher = threading.Thread(target=watch, args=(Path(folder),))
        watcher.start()
        try:
            yield sizes
        finally:
            over.set()
            watcher.join()
            tempfile.tempdir = None


def _blocks(path: Path) -> int:
    """Return the bytes that a file takes on its disk, none if it has gone."""
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


if __name__ == "__main__":
    main()
