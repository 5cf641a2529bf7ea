"""Whether masks are those of the straightforward way: pixels that differ, and IoU between the masks."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raytrain import storage
from raytrain.config import MemberSettings, ScoreSettings
from raytrain.imagery.synth import write_chips
from raytrain.scoring.ensemble import Ensemble, use_threads
from raytrain.scoring.manifest import EnsembleManifest, ensemble_folder, read_manifest
from raytrain.tiles.archive import Chip, open_archive, read_chip
from raytrain.training.metrics import count_pixels
from raytrain.training.models import load_weights
from tests.bench.record import Table, keep_tables
from tests.bench.straight import straightforward

THRESHOLD = 0.5
Maps = dict[str, list[NDArray[np.float32]]]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ensemble", required=True, help="trained members")
    parser.add_argument("--archive", action="append", default=[], help="chips as delivered, e.g. real ones")
    parser.add_argument("--generated", type=int, default=8, help="so many generated chips of 512 px, besides")


def main(options: argparse.Namespace) -> None:
    """Measure, print and keep the tables."""
    use_threads(options.threads)
    nets = load_members(options.ensemble)
    with tempfile.TemporaryDirectory() as folder:
        archives = {storage.name_of(uri.rstrip("/")): uri for uri in options.archive}
        if options.generated:
            write_chips(Path(folder), count=options.generated, size_px=512, seed=11, num_places=options.generated)
            archives["generated"] = folder
        tables = [_table(name, uri, nets, options.threads) for name, uri in archives.items()]
    keep_tables("score-agreement", "score", options.machine, "Masks beside those of the straightforward way", tables)


def load_members(uri: str) -> list[tuple[MemberSettings, nn.Module]]:
    """Return the members of the lowest fold of the ensemble at `uri` with their weights."""
    manifest: EnsembleManifest = read_manifest(uri).of_fold(None)
    nets = []
    for member in manifest.members:
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "weights.safetensors"
            path.write_bytes(storage.read_bytes(storage.join(ensemble_folder(uri), member.weights)))
            nets.append((member.settings, load_weights(member.settings, path, member.sha256)))
    return nets


def _table(name: str, uri: str, nets: Sequence[tuple[MemberSettings, nn.Module]], threads: int) -> Table:
    bands = tuple(dict.fromkeys(band for member, _ in nets for band in member.bands))
    chips = list(open_archive(uri, bands, for_training=False).chips)
    base = [straightforward(chip, nets) for chip in chips]
    rows = []
    for precision in ("float32", "bfloat16"):
        settings = ScoreSettings(threads=threads, precision=precision)
        found = _maps(Ensemble(nets, settings, torch.device("cpu")), chips)
        differences = [np.abs(a - b) for a, b in zip(found, base, strict=True)]
        counts = [count_pixels(_mask(a), _mask(b)) for a, b in zip(found, base, strict=True)]
        intersection, union = (sum(each[i] for each in counts) for i in (0, 1))
        each_iou = [a / b for a, b in counts if b]
        changed = sum(int((_mask(a) != _mask(b)).sum()) for a, b in zip(found, base, strict=True))
        rows.append(
            [
                f"fused, {precision}",
                f"{intersection / union:.6f}",
                f"{min(each_iou):.6f}",
                f"{changed} of {sum(each.size for each in base)}",
                f"{max(float(each.max()) for each in differences):.1e}",
                f"{np.mean([float(each.mean()) for each in differences]):.1e}",
            ]
        )
    headers = ["way", "IoU of all pixels", "lowest IoU of a chip", "pixels changed", "largest difference", "mean"]
    cloudy = sum(int(_mask(each).sum()) for each in base) / sum(each.size for each in base)
    names = ", ".join(member.name for member, _ in nets)
    note = f"{len(chips)} chips, {100 * cloudy:.0f} % cloud; members {names}. Differences are of probabilities."
    return Table(name, headers, rows, note)


def _maps(ensemble: Ensemble, chips: Sequence[Chip]) -> list[NDArray[np.float32]]:
    found = []
    for chip in chips:  # chips of an archive may differ in size
        raster = read_chip(chip.chip_id, {band: chip.bands[band] for band in ensemble.bands})
        found += [layers[0] for layers in ensemble.layers([raster.pixels], [raster.valid])]
    return found


def _mask(probability: NDArray[np.float32]) -> NDArray[np.uint8]:
    return (probability >= THRESHOLD).astype(np.uint8)
