"""Pictures of the validation tiles of a run, as its net predicts them: drawn by a task on Ray, kept with the run.

What can't be drawn costs pictures, never a training.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import ray
import ray.exceptions

from raytrain import __version__, storage
from raytrain.config import ScoreSettings, Settings, parse
from raytrain.errors import ConfigError, DataError, RaytrainError, first_line
from raytrain.evaluation.gallery import compare
from raytrain.evaluation.page import Comparison, Picture
from raytrain.evaluation.results import Problem
from raytrain.evaluation.tone import TRUE_COLOUR_BANDS
from raytrain.evaluation.training_page import TilePictures
from raytrain.evaluation.training_results import TrainingResults, TrainingRun
from raytrain.imagery.rasters import LABEL_IGNORE
from raytrain.scoring.manifest import EnsembleManifest, TrainedMember
from raytrain.tiles.reader import TileReader, read_manifest, shards_digest
from raytrain.training import WEIGHTS_FILE
from raytrain.training.metrics import TileScore

PICTURES_FILE = "pictures.json"
RUNS_PICTURED = 3
"""Of so many runs of an experiment, its first ones, there are pictures."""
PICTURES_SHOWN = 9
"""So many are on the page at most, to keep it small."""
LIMIT_S = 600
"""How long a command waits for its pictures."""
NOT_MADE = "they are made at the end of a training, which did not come to that"
_logger = logging.getLogger(__name__)


class PictureWork(Settings):
    """What a task needs: the net with the experiment's folder, the shards, the tiles; whether it has a GPU."""

    folder: str
    net: TrainedMember
    shards: str
    shards_digest: str
    tiles: tuple[TileScore, ...]
    use_gpu: bool


class TilePicture(Settings):
    """A tile with its panels: the name of each, and its file in base64."""

    tile: TileScore
    location: str
    panels: tuple[tuple[str, str], ...]


class RunPictures(Settings):
    """The pictures of a run by the weights that made them, and the tiles that could not be drawn, with why.

    `failed` says why there are none at all; they are drawn when the experiment trains again.
    """

    weights_sha256: str
    pictures: tuple[TilePicture, ...]
    problems: tuple[tuple[str, str], ...]
    failed: str | None = None


def pictured(runs: Sequence[TrainingRun]) -> list[TrainingRun]:
    """Return the runs of which there are to be pictures: the first that are done and know their tiles."""
    return [run for run in runs if run.state == "done" and run.tiles][:RUNS_PICTURED]


def draw_missing(folder: str, results: TrainingResults, *, use_gpu: bool) -> None:
    """Draw the pictures of the runs that are to have some and have none of their net; for a driver on Ray.

    They are kept with the run, or else why they could not be drawn.
    """
    draw_there: Any = ray.remote(max_retries=1)(_draw_on_node)
    resources = {"num_cpus": 0, "num_gpus": 1} if use_gpu else {"num_cpus": 1}
    tasks: dict[Any, TrainingRun] = {}
    for run in pictured(results.runs):
        kept = _read(folder, run.name, run.weights_sha256)
        if kept is None or kept.failed is not None:
            work = picture_work(folder, results, run, use_gpu=use_gpu)
            tasks[draw_there.options(**resources).remote(work.model_dump(mode="json"))] = run
    deadline = time.monotonic() + LIMIT_S
    for task, run in tasks.items():
        try:
            found = parse(RunPictures, ray.get(task, timeout=max(deadline - time.monotonic(), 1)))
        except (ray.exceptions.RayError, OSError, RaytrainError) as error:
            found = RunPictures(weights_sha256=run.weights_sha256 or "", pictures=(), problems=(), failed=_why(error))
            _logger.warning("run %s: no pictures of its tiles: %s", run.name, found.failed)
        storage.write_bytes(storage.join(folder, run.name, PICTURES_FILE), found.model_dump_json().encode())


def picture_work(folder: str, results: TrainingResults, run: TrainingRun, *, use_gpu: bool) -> PictureWork:
    """Return what a task needs to draw the tiles of `run`, which is done."""
    if run.weights_sha256 is None or run.best_epoch is None:
        raise ValueError(f"run {run.name} is {run.state}")
    net = TrainedMember(
        name=run.member.name,
        fold=run.fold,
        weights=f"{run.name}/{WEIGHTS_FILE}",
        sha256=run.weights_sha256,
        settings=run.member,
        score=run.score,
        epoch=run.best_epoch,
    )
    return PictureWork(
        folder=folder,
        net=net,
        shards=results.shards,
        shards_digest=results.shards_digest,
        tiles=run.tiles,
        use_gpu=use_gpu,
    )


def _why(error: Exception) -> str:
    if isinstance(error, ray.exceptions.GetTimeoutError):
        return f"no place on the cluster, or no answer, in {LIMIT_S} s"
    return first_line(error.cause if isinstance(error, ray.exceptions.RayTaskError) else error)


def read_pictures(folder: str, runs: Sequence[TrainingRun]) -> TilePictures:
    """Return the pictures that are kept of `runs`, a few of each, and what is missing, with why."""
    chosen = pictured(runs)
    pictures: list[Comparison] = []
    problems: list[Problem] = []
    for run in chosen:
        found = _read(folder, run.name, run.weights_sha256)
        if found is None or found.failed is not None:
            why = NOT_MADE if found is None or found.failed is None else found.failed
            problems.append(Problem(subject=run.name, found=why))
            continue
        problems += [Problem(subject=subject, found=text) for subject, text in found.problems]
        per_group = max(1, PICTURES_SHOWN // (3 * len(chosen)))
        pictures += [_picture(run.name, each) for each in _few(found.pictures, per_group)]
    if pictures:
        return TilePictures(pictures, problems)
    if any(run.fold is not None for run in runs) and not problems:
        return TilePictures(why_none=f"There are no pictures of validation tiles: {NOT_MADE}.")
    why = f"There are no pictures of validation tiles: {problems[0].found}." if problems else ""
    return TilePictures(why_none=why)


def _read(folder: str, run: str, weights_sha256: str | None) -> RunPictures | None:
    """Return the pictures of a run if they are those of these weights."""
    path = storage.join(folder, run, PICTURES_FILE)
    try:
        found = parse(RunPictures, storage.read_json(path), path)
    except FileNotFoundError:
        return None
    except ConfigError as error:
        _logger.warning("%s; the pictures are made anew", first_line(error))
        return None
    return found if found.weights_sha256 == weights_sha256 else None


def _few(pictures: Sequence[TilePicture], per_group: int) -> list[TilePicture]:
    """Return so many of each group: the very worst, the very best, those in the middle of the median."""
    few: list[TilePicture] = []
    groups: tuple[Literal["worst", "median", "best"], ...] = ("worst", "median", "best")
    for group in groups:
        found = [each for each in pictures if each.tile.group == group]
        start = {"worst": 0, "median": max(len(found) - per_group, 0) // 2, "best": max(len(found) - per_group, 0)}[
            group
        ]
        few += found[start : start + per_group]
    return few


def _picture(run: str, found: TilePicture) -> Comparison:
    what = f"{found.tile.tile_id}, {found.location}"
    caption = f"{found.tile.group}: {what}, IoU {found.tile.iou:.3f} ({run})"
    panels = [Picture(base64.b64decode(image), f"{name} of {what}", name) for name, image in found.panels]
    return Comparison(panels, caption)


def _draw_on_node(work: dict[str, Any]) -> dict[str, Any]:
    from raytrain.scoring.ensemble import use_threads

    use_threads(1)
    return draw(parse(PictureWork, work)).model_dump(mode="json")


def draw(work: PictureWork) -> RunPictures:
    """Predict the tiles of a run with its weights and draw them, in true colour where the shards have its bands.

    A tile that can't be read is a problem of the result. Raises `ConfigError` for weights that are gone or changed, or
    shards that are, `StoreOutOfReach` for a store that is away.
    """
    # Here, since torch takes seconds to import and the driver does without.
    import torch

    from raytrain.scoring.ensemble import Ensemble

    manifest = EnsembleManifest(
        raytrain_version=__version__, shards=work.shards, shards_digest=work.shards_digest, members=(work.net,)
    )
    # As in validation: one net, and no flips.
    settings = ScoreSettings(horizontal_flip=False, windows_per_pass=1, threads=1)
    nets = Ensemble.load(work.folder, manifest, settings, torch.device("cuda" if work.use_gpu else "cpu"))
    shards_manifest = read_manifest(work.shards)
    if shards_digest(shards_manifest) != work.shards_digest:
        raise ConfigError(f"{work.shards}: the shards are not those that were trained on, so there are no pictures")
    is_true_colour = set(TRUE_COLOUR_BANDS) <= set(shards_manifest["bands"])
    bands = tuple(dict.fromkeys([*nets.bands, *(TRUE_COLOUR_BANDS if is_true_colour else ())]))
    reader = TileReader(work.shards, bands)
    at = {tile_id: i for i, tile_id in enumerate(reader.tile_ids)}
    locations = reader.locations
    pictures: list[TilePicture] = []
    problems: list[tuple[str, str]] = []
    for tile in work.tiles:
        try:
            i = _position(at, tile.tile_id, work.shards)
            pixels, label = reader.read(i)
        except DataError as error:
            problems.append((error.subject, error.found))
            continue
        own = pixels[: len(nets.bands)]
        valid = (own != 0).any(0)
        cloud = (nets.layers([own], [valid])[0][0] >= settings.threshold) & valid
        known = np.full(valid.shape, LABEL_IGNORE, np.uint8) if label is None else np.where(valid, label, LABEL_IGNORE)
        colour = pixels[[bands.index(band) for band in TRUE_COLOUR_BANDS]] if is_true_colour else None
        panels = compare(tile.tile_id, "", cloud.astype(np.uint8), known, colour).panels
        encoded = tuple((each.caption, base64.b64encode(each.image).decode()) for each in panels)
        pictures.append(TilePicture(tile=tile, location=locations[i], panels=encoded))
    return RunPictures(
        weights_sha256=work.net.sha256,
        pictures=tuple(pictures),
        problems=tuple(problems),
    )


def _position(at: Mapping[str, int], tile_id: str, shards: str) -> int:
    if tile_id not in at:
        raise DataError(f"tile {tile_id}", f"not among the shards at {shards} any more")
    return at[tile_id]
