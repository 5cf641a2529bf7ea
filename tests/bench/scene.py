"""Time and peak memory of writing and of scoring one generated scene, beside GDAL rewriting the same file.

The rewriting is the floor of writing: the same bytes, compressed the same way, with no pixel computed. The net that
scores is one multiplication a pixel, so that the time is that of all around the nets.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.bench import record

# Steps import what they need: the peak of a process counts from that of the process that started it.


def main() -> None:
    """Measure each step in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-px", type=int, default=20_000)
    parser.add_argument("--write", metavar="MACHINE")
    parser.add_argument("--step", nargs=3, metavar=("NAME", "SOURCE", "TARGET"), help="what its own processes are told")
    options = parser.parse_args()
    if options.step is not None:
        STEPS[options.step[0]](*options.step[1:])
        return
    with tempfile.TemporaryDirectory() as folder:
        made = record.raytrain("synth", folder, "--kind", "scenes", "--count", "1", "--size-px", str(options.size_px))
        (scene,) = (Path(folder) / "scenes").glob("*.tif")
        size_mib = scene.stat().st_size / 2**20
        this = [sys.executable, "-m", "tests.bench.scene", "--step"]
        rewritten = record.run(*this, "rewrite", str(scene), f"{folder}/rewritten.tif")
        scored = record.run(*this, "score", str(scene), f"{folder}/masks")
    raw_mib = options.size_px**2 * 4 * 2 / 2**20
    rows = [
        [what, f"{each.seconds:.0f}", f"{each.seconds / rewritten.seconds:.1f}", f"{each.peak_mib:.0f}"]
        for what, each in (
            ("`raytrain synth`: scene, mask, STAC", made),
            ("GDAL rewrites the scene (floor)", rewritten),
            ("scored, block by block, with a net of one multiplication a pixel", scored),
        )
    ]
    title = f"A scene of {options.size_px} px: {raw_mib:.0f} MiB of pixels, {size_mib:.0f} MiB as a COG"
    record.keep("scene", options.write, title, ["what", "s", "ratio", "peak memory, MiB"], rows)


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


def score(source: str, target: str) -> None:
    """Score a scene into the folder `target` with a net whose logit is the mean of the bands."""
    import torch
    from torch import nn

    from raytrain.config import ScoreSettings
    from raytrain.recipes import members
    from raytrain.scoring.destination import Scoring
    from raytrain.scoring.ensemble import Ensemble
    from raytrain.scoring.listing import list_scenes
    from raytrain.scoring.perform import perform
    from raytrain.scoring.schedule import Schedule
    from raytrain.scoring.units import Unit
    from raytrain.scoring.work import Work

    net = nn.Conv2d(4, 1, 1, bias=False)
    nn.init.constant_(net.weight, 0.25)
    settings = ScoreSettings()
    ensemble = Ensemble([(members(("small-effnet-4b-20k",))[0], net)], settings, torch.device("cpu"))
    scoring = Scoring(ensemble="bench", members=("mean",), settings=settings)
    units = [Unit(kind="scene", scene=scene) for scene in list_scenes(source, ensemble.bands)]
    work, schedule = Work(target, scoring, ensemble), Schedule(iter([units]), len(units))
    while not schedule.is_over:
        task = schedule.take(alone=True)
        assert task is not None
        schedule.finished(task, perform(task.unit, work))


STEPS = {"rewrite": rewrite, "score": score}

if __name__ == "__main__":
    main()
