"""Whether masks are those of the straightforward way: pixels that differ, and IoU between the masks.

Chips go through the fused ensemble; a scene goes all the way, in blocks, to the layers at a destination. The trained
members are those of an ensemble, or the nets that `tests.bench.real_chips` left.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray

from raytrain import storage
from raytrain.cluster.score import ScoreJob
from raytrain.config import MemberSettings, ScoreSettings
from raytrain.imagery.synth import write_chips, write_scenes
from raytrain.scoring.ensemble import Ensemble, use_threads
from raytrain.scoring.layers import NO_DATA
from raytrain.scoring.manifest import EnsembleManifest, TrainedMember, ensemble_folder, read_manifest, write_manifest
from raytrain.tiles.archive import Chip, open_archive, read_chip
from raytrain.training.metrics import count_pixels
from raytrain.training.models import load_weights
from tests.bench.real_runs import WEIGHTS_FILE
from tests.bench.record import Table, keep_tables
from tests.bench.score_pipeline import one_process
from tests.bench.straight import Members, straightforward, straightforward_scene

THRESHOLD = 0.5
PRECISIONS: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
Map = NDArray[np.float32]
"""Probabilities `[H, W]`."""


def add_options(parser: argparse.ArgumentParser) -> None:
    trained = parser.add_mutually_exclusive_group(required=True)
    trained.add_argument("--ensemble", help="trained members")
    trained.add_argument("--runs", type=Path, help="the folder `runs` of one part of tests.bench.real_chips, one seed")
    parser.add_argument("--archive", action="append", default=[], help="chips as delivered, e.g. real ones")
    parser.add_argument("--generated", type=int, default=8, help="so many generated chips of 512 px, besides")
    parser.add_argument("--scene-px", type=int, default=2500, help="side of a generated scene, besides; 0 for none")


def main(options: argparse.Namespace) -> None:
    """Measure, print and keep the tables."""
    use_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="raytrain-bench-") as temporary:
        folder = Path(temporary)
        uri = options.ensemble or ensemble_of_runs(options.runs, folder / "ensemble")
        nets = load_members(uri)
        archives = {storage.name_of(uri.rstrip("/")): uri for uri in options.archive}
        if options.generated:
            write_chips(folder / "chips", count=options.generated, size_px=512, seed=11, num_places=options.generated)
            archives["generated"] = str(folder / "chips")
        tables = [_chips_table(name, uri, nets, options.threads) for name, uri in archives.items()]
        if options.scene_px:
            tables.append(_scene_table(options.scene_px, uri, nets, options.threads, folder))
    keep_tables("score-agreement", "score", options.machine, "Masks beside those of the straightforward way", tables)


def load_members(uri: str) -> Members:
    """Return the members of the lowest fold of the ensemble at `uri` with their weights."""
    manifest: EnsembleManifest = read_manifest(uri).of_fold(None)
    nets = []
    for member in manifest.members:
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "weights.safetensors"
            path.write_bytes(storage.read_bytes(storage.join(ensemble_folder(uri), member.weights)))
            nets.append((member.settings, load_weights(member.settings, path, member.sha256)))
    return nets


def ensemble_of_runs(runs: Path, folder: Path) -> str:
    """Make an ensemble of the nets that `tests.bench.real_chips` trained and left in `runs`; return its URI."""
    trained = []
    for result in sorted(runs.glob("*/result.json")):
        facts = json.loads(result.read_text())
        settings = MemberSettings.model_validate(facts["settings"])
        key = f"{settings.name}/{WEIGHTS_FILE}"
        (folder / settings.name).mkdir(parents=True)
        shutil.copy(result.with_name(WEIGHTS_FILE), folder / key)
        sha256 = facts["weights_sha256"]
        trained.append(
            TrainedMember(
                name=settings.name, fold=0, weights=key, sha256=sha256, settings=settings, score=None, epoch=1
            )
        )
    manifest = EnsembleManifest(raytrain_version="0", shards=str(runs), shards_digest="", members=tuple(trained))
    write_manifest(str(folder), manifest)
    return str(folder)


def _chips_table(name: str, uri: str, nets: Members, threads: int) -> Table:
    bands = tuple(dict.fromkeys(band for member, _ in nets for band in member.bands))
    chips = list(open_archive(uri, bands, for_training=False).chips)
    base = [straightforward(chip, nets) for chip in chips]
    rows = []
    for precision in PRECISIONS:
        settings = ScoreSettings(threads=threads, precision=precision)
        found = _maps(Ensemble(nets, settings, torch.device("cpu")), chips)
        rows.append([f"fused, {precision}", *_differences(base, found)])
    return _table(name, f"{len(chips)} chips", "lowest IoU of a chip", base, rows, nets)


def _scene_table(size_px: int, ensemble: str, nets: Members, threads: int, folder: Path) -> Table:
    write_scenes(folder / "archive", count=1, size_px=size_px, seed=12)
    (path,) = (folder / "archive" / "scenes").glob("*.tif")
    settings = ScoreSettings(
        threads=threads, baseline="before-04.00", block_px=1024, probability="float32", precision="float32"
    )
    bands = tuple(dict.fromkeys(band for member, _ in nets for band in member.bands))
    with rasterio.open(path) as source:
        pixels = source.read([source.descriptions.index(band) + 1 for band in bands])
    valid = (pixels != 0).all(0)
    base = straightforward_scene(pixels, valid, bands, nets, settings).astype(np.float32)
    rows = []
    for precision in PRECISIONS:
        job = ScoreJob(
            src=str(folder / "archive"),
            dst=str(folder / f"scene-{precision}"),
            ensemble=ensemble,
            settings=settings.model_copy(update={"precision": precision}),
        )
        one_process(job)
        with rasterio.open(Path(job.dst) / "probability" / path.name) as source:
            found = np.nan_to_num(source.read(1))
        with rasterio.open(Path(job.dst) / path.name) as source:
            mask = source.read(1)
        assert ((mask == NO_DATA) == ~valid).all()
        assert (mask[valid] == _mask(found)[valid]).all(), "the mask is not that of the probability"
        rows.append([f"in blocks of {settings.block_px} px, {precision}", *_differences([base], [found])])
    return _table("generated scene", f"a scene of {size_px} px", "IoU of the scene", [base], rows, nets)


def _differences(base: Sequence[Map], found: Sequence[Map]) -> list[str]:
    differences = [np.abs(a - b) for a, b in zip(found, base, strict=True)]
    counts = [count_pixels(_mask(a), _mask(b)) for a, b in zip(found, base, strict=True)]
    intersection, union = (sum(each[i] for each in counts) for i in (0, 1))
    changed = sum(int((_mask(a) != _mask(b)).sum()) for a, b in zip(found, base, strict=True))
    return [
        f"{intersection / union:.6f}",
        f"{min(a / b for a, b in counts if b):.6f}",
        f"{changed} of {sum(each.size for each in base)}",
        f"{max(float(each.max()) for each in differences):.1e}",
        f"{np.mean([float(each.mean()) for each in differences]):.1e}",
    ]


def _table(name: str, what: str, lowest: str, base: Sequence[Map], rows: list[list[str]], nets: Members) -> Table:
    headers = ["way", "IoU of all pixels", lowest, "pixels changed", "largest difference", "mean"]
    cloudy = sum(int(_mask(each).sum()) for each in base) / sum(each.size for each in base)
    names = ", ".join(member.name for member, _ in nets)
    note = f"{what}, {100 * cloudy:.0f} % cloud; members {names}. Differences are of probabilities."
    return Table(name, headers, rows, note)


def _maps(ensemble: Ensemble, chips: Sequence[Chip]) -> list[Map]:
    found = []
    for chip in chips:  # chips of an archive may differ in size
        raster = read_chip(chip.chip_id, {band: chip.bands[band] for band in ensemble.bands})
        found += [layers[0] for layers in ensemble.layers([raster.pixels], [raster.valid])]
    return found


def _mask(probability: Map) -> NDArray[np.uint8]:
    return (probability >= THRESHOLD).astype(np.uint8)
