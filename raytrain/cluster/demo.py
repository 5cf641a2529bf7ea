"""The whole chain on generated imagery, on one Ray and in one folder: what a newcomer runs first.

Places of the unseen archive are places that training never saw. Each step is the one of the command of its name, so the
demo goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from raytrain import storage
from raytrain.cluster import session
from raytrain.cluster.board import News, Post
from raytrain.cluster.evaluate import EvaluateJob, evaluate
from raytrain.cluster.runs import TrainJob
from raytrain.cluster.score import ScoreJob, score
from raytrain.cluster.shard import ShardJob, shard
from raytrain.cluster.train import train
from raytrain.config import ScoreSettings
from raytrain.errors import DataError, WorkNotFinished
from raytrain.evaluation.html import render_page
from raytrain.evaluation.page import Gallery, Page, Picture, Table
from raytrain.evaluation.pictures import (
    OUTLINE_LEGEND,
    picture_of_chip,
    read_picture_mask,
    read_picture_source,
)
from raytrain.evaluation.report import evaluation_page
from raytrain.evaluation.results import Evaluation
from raytrain.evaluation.tone import TRUE_COLOUR_BANDS
from raytrain.imagery import synth
from raytrain.scoring.manifest import TrainedMember
from raytrain.scoring.pace import Progress

OnProgress = Callable[[int, int], None]

SEED = 0
CHIP_PX, SCENE_PX = 256, 1280
TRAIN_CHIPS, TRAIN_PLACES = 180, 60
UNSEEN_CHIPS, UNSEEN_PLACES = 60, 30
SCENE_PLACE = 95  # woodland, fields and a shore under broken clouds, behind the places of both archives
WORKERS = 2


class Narrator(Protocol):
    """Who tells a person how the work goes."""

    def say(self, text: str) -> None:
        """Print a line."""
        ...

    def step(self, title: str) -> AbstractContextManager[OnProgress]:
        """Show the progress of a step while its body runs."""
        ...

    def epoch(self, run: str, num_epochs: int, metrics: dict[str, Any]) -> None:
        """Print the line of an epoch."""
        ...


@dataclass(frozen=True)
class DemoReport:
    """The scores on unseen places, what was left out on the way, the paths worth opening by name, how long it took."""

    evaluation: Evaluation
    problems: list[DataError]
    paths: dict[str, Path]
    seconds: float


class _Folders(NamedTuple):
    """The folders of the demo, below one, of the same names."""

    archive: Path
    unseen: Path
    scenes: Path
    shards: Path
    runs: Path
    masks: Path
    scene_masks: Path
    scores: Path

    @classmethod
    def below(cls, out: Path) -> _Folders:
        return cls(*(out / name.replace("_", "-") for name in cls._fields))


def demo(out: Path, cluster: session.Cluster, narrator: Narrator) -> DemoReport:
    """Generate an archive, shard it, train two members, score and evaluate places never seen, write the page.

    Raises `WorkNotFinished` if a member fails.
    """
    session.check_address(cluster.address)
    start = time.monotonic()
    folders = _Folders.below(out)
    _generate(folders, narrator)
    with session.joined(cluster, [str(out)]):
        problems = _shard(folders, cluster, narrator)
        members = _train(folders, cluster, narrator)
        problems += _score(folders, cluster, narrator)
        job = EvaluateJob(
            predictions=str(folders.masks),
            labels=str(folders.unseen / "test_labels"),
            metadata=str(folders.unseen / "test_metadata.csv"),
            out=str(folders.scores),
            images=str(folders.unseen),
            ensemble=str(folders.runs / "main"),
            allowed=("missing-prediction",),  # of a chip that is bad, which the demo says itself
        )
        with narrator.step("evaluate: masks against labels") as on_progress:
            report = evaluate(job, cluster, on_progress)
    if report.evaluation is None:
        raise report.problems[0]
    seconds = time.monotonic() - start
    picture = _scene_picture(folders)
    page = _page(folders, report.evaluation, report.gallery, members, picture, seconds)
    paths = {
        "report": out / "report.html",
        "picture": out / "scene.png",
        "masks": folders.masks,
        "scene mask": folders.scene_masks,
        "metrics": folders.scores / "metrics.json",
        "report of the training": folders.runs / "main" / "report.html",
        "report of the scoring": folders.masks / "report.html",
        "model card": folders.runs / "main" / "model-card.md",
        "ensemble": folders.runs / "main" / "ensemble.json",
    }
    storage.write_bytes(str(paths["picture"]), picture.image)
    storage.write_bytes(str(paths["report"]), render_page(page).encode())
    problems += report.problems
    return DemoReport(report.evaluation, problems, paths, seconds)


def _generate(folders: _Folders, narrator: Narrator) -> None:
    """Write the three archives; one whose listing stands is whole."""
    common: dict[str, Any] = {"size_px": CHIP_PX, "seed": SEED}
    if not (folders.archive / "train_metadata.csv").exists():
        with narrator.step(f"synth: {TRAIN_CHIPS} chips of {TRAIN_PLACES} places") as on_progress:
            synth.write_chips(
                folders.archive, count=TRAIN_CHIPS, num_places=TRAIN_PLACES, on_progress=on_progress, **common
            )
    if not (folders.unseen / "test_metadata.csv").exists():
        with narrator.step(f"synth: {UNSEEN_CHIPS} chips of {UNSEEN_PLACES} other places") as on_progress:
            synth.write_chips(
                folders.unseen,
                count=UNSEEN_CHIPS,
                num_places=UNSEEN_PLACES,
                first_place=TRAIN_PLACES,
                split="test",
                on_progress=on_progress,
                **common,
            )
    if not (folders.scenes / "scenes.json").exists():
        with narrator.step(f"synth: a scene of {SCENE_PX} px") as on_progress:
            synth.write_scenes(
                folders.scenes,
                count=1,
                size_px=SCENE_PX,
                seed=SEED,
                first_place=SCENE_PLACE,
                on_progress=on_progress,
            )


def _shard(folders: _Folders, cluster: session.Cluster, narrator: Narrator) -> list[DataError]:
    with narrator.step("shard: chips to tile shards") as on_progress:
        return shard(ShardJob(src=str(folders.archive), dst=str(folders.shards)), cluster, on_progress).problems


def _train(folders: _Folders, cluster: session.Cluster, narrator: Narrator) -> list[TrainedMember]:
    job = TrainJob(shards=str(folders.shards), out=str(folders.runs), members=("small",), workers=WORKERS)
    with narrator.step(f"train: two members, {WORKERS} workers each"):
        report = train(job, cluster, partial(_tell, narrator))
    if report.failed:
        name, reason = next(iter(report.failed.items()))
        raise WorkNotFinished(f"{name} is not finished: {reason}; the same command goes on")
    return report.trained


def _tell(narrator: Narrator, news: News) -> None:
    if isinstance(news, Post):
        narrator.epoch(news.run, news.num_epochs, news.metrics)


def _score(folders: _Folders, cluster: session.Cluster, narrator: Narrator) -> list[DataError]:
    problems: list[DataError] = []
    ensemble = str(folders.runs / "main")
    # The maps of chips are looked into by the evaluation.
    looked_into = ScoreSettings(probability="uint8", disagreement="uint8", members="uint8")
    for src, dst, what, settings in (
        (folders.unseen, folders.masks, "chips of unseen places", looked_into),
        (folders.scenes, folders.scene_masks, "a scene", ScoreSettings()),
    ):
        job = ScoreJob(src=str(src), dst=str(dst), ensemble=ensemble, settings=settings)
        with narrator.step(f"score: {what}") as on_progress:
            report = score(job, cluster, partial(_show, on_progress))
        problems += report.problems
        if report.unfinished:
            unit, reason = next(iter(report.unfinished.items()))
            raise WorkNotFinished(f"{what}: {unit} is not finished: {reason}; the same command goes on")
    return problems


def _show(on_progress: OnProgress, found: Progress) -> None:
    on_progress(int(found.units), found.total)


def _scene_picture(folders: _Folders) -> Picture:
    mask = next(folders.scene_masks.glob("*.tif"))
    pixels = read_picture_source(str(folders.scenes / "scenes" / mask.name), TRUE_COLOUR_BANDS)
    prediction = read_picture_mask(str(mask))
    label = read_picture_mask(str(folders.scenes / "scene_labels" / mask.name))
    png = picture_of_chip(pixels, TRUE_COLOUR_BANDS, prediction, label)
    return Picture(png, "A scene with its cloud mask", f"The scene {mask.stem}, {SCENE_PX} px, by overlapping windows")


def _page(
    folders: _Folders,
    evaluation: Evaluation,
    gallery: Gallery | None,
    members: list[TrainedMember],
    picture: Picture,
    seconds: float,
) -> Page:
    scene = Gallery([picture], OUTLINE_LEGEND, "A whole scene")
    page = evaluation_page(evaluation, "raytrain demo: clouds in places that training never saw", gallery)
    rows = [
        [
            member.name,
            member.settings.encoder,
            " ".join(member.settings.bands),
            member.settings.normalisation.kind,
            member.epoch,
            member.score,
        ]
        for member in members
    ]
    headers = ["Member", "Encoder", "Bands", "Normalisation", "Best epoch", "Validation IoU by location"]
    table = Table("Members of the ensemble", headers, rows)
    facts = [("Duration", f"{seconds:.0f} s"), ("Imagery", "generated, with its true masks"), *page.facts]
    return replace(page, parts=[scene, table, *page.parts], facts=facts)
