"""The effect of cleaning labels, on Ray: nets of both versions with the same seeds, out-of-fold masks, counts, a page.

Every net, mask and folder is a function of the work, so the same command goes on where it stopped, and one with more
seeds trains only what they add.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, Self

import numpy as np
from pydantic import Field, model_validator

from raytrain import storage
from raytrain.cluster import session
from raytrain.cluster.board import News
from raytrain.cluster.plan import plan_runs
from raytrain.cluster.runs import Checkpointing, TrainJob
from raytrain.cluster.score import ScoreJob, score
from raytrain.cluster.tasks import run_tasks
from raytrain.cluster.train import train
from raytrain.config import LoaderSettings, MemberSettings, ScoreSettings, Settings, differences, parse
from raytrain.errors import ConfigError, DataError, WorkNotFinished
from raytrain.evaluation.html import render_page
from raytrain.evaluation.resampling import RESAMPLES
from raytrain.evaluation.results import Problem
from raytrain.recipes import members
from raytrain.review.effect import EFFECT_PAGE, FEWEST_SEEDS, RULE, Compared, Effect, PartEffect, decide, write_effect
from raytrain.review.effect_counts import EDGE_PX, CountedTile, TileToCount, count_tiles
from raytrain.review.effect_page import effect_page
from raytrain.review.effect_parts import VERSION_NAMES, Trained, judge_parts
from raytrain.review.effect_versions import Versions, compare_versions, read_version
from raytrain.scoring.destination import settings_digest
from raytrain.tiles.reader import TileReader, read_manifest, shards_digest

WORK_FILE = "effect-work.json"
TILES_PER_TASK = 64
"""At least; of a large set more, since every task reads the index."""
MOST_TASKS = 256
OnProgress = Callable[..., None]


class Narrator(Protocol):
    """Who tells a person how the work goes."""

    def step(self, title: str) -> AbstractContextManager[OnProgress]:
        """Show the progress of a step while its body runs."""
        ...

    def training(self, name: str) -> AbstractContextManager[Callable[[News], None]]:
        """Show the progress of the runs of an ensemble while the body goes on."""
        ...


class EffectJob(Settings):
    """Which versions of shards to compare by which members, trained with `seeds` seeds from `first_seed` on.

    `changes` (dotted path -> value) apply to every member, on both versions. `test` names shards whose labels are held
    to be right, of places that no net learns from: the nets of all folds score it. `workers`, `loader`, `checkpointing`
    and `weights` are those of `TrainJob`.
    """

    before: str
    after: str
    out: str
    members: tuple[str, ...] = Field(min_length=1)
    seeds: int = Field(default=FEWEST_SEEDS, ge=FEWEST_SEEDS)
    first_seed: int = Field(default=0, ge=0)
    test: str | None = None
    workers: int | tuple[int, int] = 1
    changes: dict[str, Any] = Field(default_factory=dict)
    loader: LoaderSettings = LoaderSettings()
    checkpointing: Checkpointing = Checkpointing()
    weights: str | None = None
    settings: ScoreSettings = ScoreSettings()
    resamples: int = Field(default=RESAMPLES, ge=100)
    resampling_seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _seeds_are_ours(self) -> Self:
        if "seed" in self.changes:
            raise ValueError("seed is no setting to change: first_seed and seeds say which are compared")
        return self

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds, in order."""
        return tuple(range(self.first_seed, self.first_seed + self.seeds))


class _Work(Settings):
    """What all that lies in a folder of an effect was made of, recorded before the first of it.

    More seeds, a test set or other settings of scoring may be asked for later: nothing that is there depends on them.
    """

    before: str
    before_digest: str
    after: str
    after_digest: str
    members: tuple[str, ...]
    changes: dict[str, Any]


@dataclass(frozen=True)
class EffectReport:
    """The effect, where it was written, and what was left out."""

    effect: Effect
    effect_uri: str
    page_uri: str
    problems: list[DataError]


def effect(job: EffectJob, cluster: session.Cluster, narrator: Narrator) -> EffectReport:
    """Train, score and count what is not done, then write `effect.html` and, last, `effect.json`.

    Raises `ConfigError` before anything is trained for versions that can't be compared and for a folder of other work;
    `WorkNotFinished` where a net or a mask is missing at the end, once all others were tried; `DataError` where not one
    tile can be counted.
    """
    versions = compare_versions(read_version(job.before), read_version(job.after))
    plans = [plan_runs(_train_job(job, Trained(version, job.first_seed))) for version in VERSION_NAMES]
    _check_scoring(job, {run.member.name: run.member for runs in plans for run in runs})
    test = None if job.test is None else _test_subject(job, job.test)
    _claim(job, versions)
    trained = [Trained(version, seed) for seed in job.all_seeds for version in VERSION_NAMES]
    uris = [uri for uri in (job.before, job.after, job.out, job.test, job.weights) if uri is not None]
    with session.joined(cluster, uris):
        _train(job, cluster, trained, narrator)
        counted, problems = _counted(job, cluster, trained, narrator, _subject(job, versions))
        tested: list[CountedTile] = []
        if test is not None:
            tested, odd = _counted(job, cluster, trained, narrator, test)
            problems += odd
    parts = judge_parts(
        versions, counted, tested, trained, resamples=job.resamples, resampling_seed=job.resampling_seed
    )
    if not parts:
        why = f"{problems[0]} ({len(problems)} tiles in all)" if problems else "every pixel of every label is ignored"
        raise DataError(job.after, f"not one tile could be counted: {why}")
    found = _effect(job, versions, None if test is None else test.digest, parts, problems)
    page_uri = storage.join(job.out, EFFECT_PAGE)
    storage.write_bytes(page_uri, render_page(effect_page(found)).encode())
    return EffectReport(found, write_effect(job.out, found), page_uri, problems)


@dataclass(frozen=True)
class _Subject:
    """Shards, of this hash, whose tiles are scored and counted: by which shards' `labels`, and where their masks go.

    Each tile is scored by the nets that never saw its location, or, `of_other_places`, by all of them. The
    `unlabelled` are scored, too, but nothing depends on them.
    """

    shards: str
    digest: str
    tiles: list[TileToCount]
    labels: tuple[str, str]
    masks: str
    unlabelled: frozenset[str]
    of_other_places: bool = False


def _check_scoring(job: EffectJob, chosen: Mapping[str, MemberSettings]) -> None:
    """Raise `ConfigError` for what scoring would refuse only once all nets are trained."""
    if job.settings.baseline is not None:
        raise ConfigError(
            "--score-set baseline=... says what the values of chips and scenes are; those of shards are reflectance "
            "already: leave it out"
        )
    if job.test is None:
        return
    bands = read_manifest(job.test)["bands"]
    missing = {name: [band for band in member.bands if band not in bands] for name, member in chosen.items()}
    short = [name for name, lacking in missing.items() if lacking]
    if short and (job.settings.missing_bands == "error" or len(short) == len(chosen)):
        first = f"member {short[0]} needs {', '.join(missing[short[0]])}"
        remedy = "" if len(short) == len(chosen) else "; --score-set missing_bands=leave-out does without such members"
        raise ConfigError(f"{job.test}: {first}, but the test set has {', '.join(bands)}{remedy}")


def _masks(job: EffectJob, name: str) -> str:
    """Return the folder for masks made with these settings; others, asked for later, have one of their own."""
    return storage.join(job.out, name, settings_digest(job.settings)[:12])


def _subject(job: EffectJob, versions: Versions) -> _Subject:
    """Return the cleaned shards, with their tiles that have a label in either version."""
    tiles = [
        TileToCount(
            tile_id,
            versions.locations[i],
            (int(versions.positions[i]) if versions.had_label[i] else None, i if versions.has_label[i] else None),
        )
        for i, tile_id in enumerate(versions.tile_ids)
        if versions.had_label[i] or versions.has_label[i]
    ]
    others = frozenset(versions.tile_ids) - {tile.tile_id for tile in tiles}
    labels = (job.before, job.after)
    return _Subject(job.after, versions.after_digest, tiles, labels, _masks(job, "masks"), others)


def _test_subject(job: EffectJob, uri: str) -> _Subject:
    """Return the test set with its labelled tiles; raise `ConfigError` if there are none, or nets learn its places."""
    reader = TileReader(uri, ())
    ids, places = reader.tile_ids, reader.locations
    learnt = sorted({*places} & {*TileReader(job.before, ()).locations})
    if learnt:
        raise ConfigError(
            f"{uri}: {len(learnt)} of its places are in {job.before}, too, among them {learnt[0]}; expected places "
            "that no net learns from"
        )
    tiles = [TileToCount(ids[i], places[i], (int(i), int(i))) for i in np.flatnonzero(reader.labelled())]
    if not tiles:
        raise ConfigError(f"{uri}: no tile has a label, so nothing can be tested on it")
    # Another test set, asked for later, has masks of its own.
    digest = shards_digest(read_manifest(uri))
    masks = _masks(job, f"test-masks-{digest[:12]}")
    others = frozenset(ids) - {tile.tile_id for tile in tiles}
    return _Subject(uri, digest, tiles, (uri, uri), masks, others, of_other_places=True)


def _claim(job: EffectJob, versions: Versions) -> None:
    """Record what the folder is for; raise `ConfigError` where it has other work, or things of others."""
    path = storage.join(job.out, WORK_FILE)
    work = _Work(
        before=job.before,
        before_digest=versions.before_digest,
        after=job.after,
        after_digest=versions.after_digest,
        members=tuple(member.name for member in members(job.members)),
        changes=job.changes,
    )
    try:
        found = parse(_Work, storage.read_json(path), path)
    except FileNotFoundError:
        foreign = storage.foreign_file(job.out, lambda _: False)
        if foreign is not None:
            raise ConfigError(
                f"{job.out} holds what is no effect's (no {WORK_FILE}), among it {foreign}; name an empty folder"
            ) from None
        storage.write_bytes(path, f"{work.model_dump_json(indent=1)}\n".encode())
        return
    changed = differences(found, work)
    if changed:
        raise ConfigError(f"{job.out} was begun for another comparison ({'; '.join(changed)}); name another folder")


def _train(job: EffectJob, cluster: session.Cluster, trained: list[Trained], narrator: Narrator) -> None:
    """Train every ensemble; its runs side by side, one ensemble after the other. One that fails stops no other."""
    failed: dict[str, str] = {}
    for each in trained:
        with narrator.training(each.name) as on_news:
            report = train(_train_job(job, each), cluster, on_news)
        failed |= {f"{each.name}, {name}": reason for name, reason in report.failed.items()}
    if failed:
        first, reason = next(iter(failed.items()))
        raise WorkNotFinished(
            f"{len(failed)} runs are not finished (the first, {first}: {reason}); the same command goes on"
        )


def _train_job(job: EffectJob, each: Trained) -> TrainJob:
    return TrainJob(
        shards=job.before if each.version == "before" else job.after,
        out=job.out,
        experiment=each.name,
        members=job.members,
        fold="all",
        workers=job.workers,
        changes={**job.changes, "seed": each.seed},
        loader=job.loader,
        checkpointing=job.checkpointing,
        weights=job.weights,
    )


def _score(
    job: EffectJob, cluster: session.Cluster, each: Trained, narrator: Narrator, subject: _Subject
) -> list[DataError]:
    """Score shards with an ensemble; return what can't be scored, of tiles that something depends on."""
    todo = ScoreJob(
        src=subject.shards,
        dst=storage.join(subject.masks, each.name),
        ensemble=storage.join(job.out, each.name),
        fold="all" if subject.of_other_places else None,
        out_of_fold=not subject.of_other_places,
        settings=job.settings,
    )
    with narrator.step(f"masks by {each.name}") as on_progress:
        report = score(todo, cluster, partial(_tell, on_progress))
    unfinished = {item: reason for item, reason in report.unfinished.items() if item not in subject.unlabelled}
    if unfinished:
        item, reason = next(iter(unfinished.items()))
        count = len(unfinished)
        raise WorkNotFinished(
            f"{each.name}: {count} tiles are not scored (the first, {item}: {reason}); the same command goes on"
        )
    return [problem for problem in report.problems if problem.subject not in subject.unlabelled]


def _tell(on_progress: OnProgress, found: Any) -> None:
    on_progress(int(found.units), found.total, str(found))


@dataclass(frozen=True)
class _Batch:
    """What a task counts."""

    tiles: list[TileToCount]
    labels: tuple[str, str]
    predictions: list[str]


def _count_batch(batch: _Batch) -> tuple[list[CountedTile], list[DataError]]:
    return count_tiles(batch.tiles, batch.labels, batch.predictions)


def _counted(
    job: EffectJob, cluster: session.Cluster, trained: list[Trained], narrator: Narrator, subject: _Subject
) -> tuple[list[CountedTile], list[DataError]]:
    """Return the counts of the tiles of `subject` by every ensemble, and what is wrong with those that have none."""
    problems: dict[str, DataError] = {}
    for each in trained:
        problems |= {problem.subject: problem for problem in _score(job, cluster, each, narrator, subject)}
    left = [tile for tile in subject.tiles if tile.tile_id not in problems]
    folders = [storage.join(subject.masks, each.name) for each in trained]
    size = max(TILES_PER_TASK, -(-len(left) // MOST_TASKS))
    batches = [_Batch(left[start : start + size], subject.labels, folders) for start in range(0, len(left), size)]
    counted: list[CountedTile] = []
    odd = list(problems.values())
    with narrator.step(f"counting pixels of {subject.shards}") as on_progress:
        for found, wrong in run_tasks(_count_batch, batches, len(batches), on_progress):
            counted += found
            odd += wrong
    return counted, odd


def _effect(
    job: EffectJob,
    versions: Versions,
    test_digest: str | None,
    parts: tuple[PartEffect, ...],
    problems: list[DataError],
) -> Effect:
    words, decided_by = decide(parts)
    places = set(versions.locations)
    touched = set(versions.changed_by_place)
    return Effect(
        words=words,
        decided_by=decided_by,
        parts=parts,
        num_tiles=len(versions.tile_ids),
        num_changed=int(versions.is_changed.sum()),
        num_dropped=len(versions.dropped),
        num_touched_places=len(touched),
        num_untouched_places=len(places - touched),
        lost_places=tuple(versions.lost_places),
        problems=tuple(Problem(subject=each.subject, found=each.found) for each in problems),
        compared=Compared(
            before=versions.before,
            after=versions.after,
            before_digest=versions.before_digest,
            after_digest=versions.after_digest,
            is_child=versions.is_child,
            test=job.test,
            test_digest=test_digest,
            members=tuple(member.name for member in members(job.members)),
            changes=job.changes,
            seeds=job.all_seeds,
            folds=tuple(versions.folds),
            threshold=job.settings.threshold,
            empty_union_rule=RULE,
            edge_px=EDGE_PX,
            resamples=job.resamples,
            resampling_seed=job.resampling_seed,
        ),
    )
