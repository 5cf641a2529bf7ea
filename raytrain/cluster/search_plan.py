"""What a search command comes to: checked as far as the driver can before any trial starts, and the run of a trial."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from raytrain import storage
from raytrain.cluster.plan import check_member, encoder_files, pinned, plan_runs, tiles_of, with_hashes
from raytrain.cluster.runs import Checkpointing, RunSettings, TrainJob
from raytrain.config import Fraction, LoaderSettings, MemberSettings, PlainName, Settings
from raytrain.errors import ConfigError
from raytrain.search.budget import Budget
from raytrain.search.finals import Finals
from raytrain.search.records import TRIALS_FOLDER, SearchSettings, Stopping
from raytrain.search.space import Space, parse_space, probes, settings_of, text_of
from raytrain.tiles.order import check_batch
from raytrain.tiles.reader import TileReader, read_manifest
from raytrain.training.encoder_files import EncoderFile

REDUCTION = 3
"""At each rung one of so many trials goes on."""
GRACE_SHARE = 0.4
"""The share of a trial's epochs before which none is stopped: while the learning rate warms up, and noise is as large
as what settings differ by, the order of trials says nothing of that at the end (measured, infra/log.md)."""


class TuneJob(Settings):
    """What to search for which member, on which shards, for how long.

    `space` has `path=distribution` texts, over the default space unless `only_space`. None stands for the member's
    epochs (`trial_epochs`), 40 % of them (`grace_epochs`), `REDUCTION` (`reduction`), and the highest fold that is
    not `fold` (`kept_back`). The rest is as in `SearchSettings` and `TrainJob`; `workers`, `budget`, `finals`,
    `checkpointing` and `loader` are no part of what trials depend on.
    """

    shards: str
    out: str
    member: str
    experiment: PlainName = "main"
    fold: int = 0
    kept_back: int | None = None
    workers: int = Field(default=1, ge=1)
    changes: dict[str, Any] = Field(default_factory=dict)
    space: tuple[str, ...] = ()
    only_space: bool = False
    method: Literal["tpe", "random"] = "tpe"
    seed: int = Field(default=0, ge=0)
    budget: Budget
    finals: Finals = Finals()
    stops_early: bool = True
    grace_epochs: int | None = Field(default=None, ge=1)
    reduction: int | None = Field(default=None, ge=2)
    trial_epochs: int | None = Field(default=None, ge=1)
    tiles_fraction: Fraction = Field(default=1.0, gt=0)
    validation_fraction: Fraction = Field(default=1.0, gt=0)
    checkpointing: Checkpointing = Checkpointing(keep_last=1)
    loader: LoaderSettings = LoaderSettings()
    weights: str | None = None


class SearchPlan:
    """A checked search: the experiment's folder, what the trials depend on, all inputs and outputs."""

    def __init__(self, job: TuneJob, folder: str, settings: SearchSettings, uris: list[str]) -> None:
        self.folder = folder
        self.settings = settings
        self.uris = uris
        self._job = job
        self._known: dict[tuple[str, str], tuple[str | None, EncoderFile | None]] = {}

    def run_of(self, member: MemberSettings, *, is_final: bool) -> tuple[RunSettings, EncoderFile | None]:
        """Return the run of a trial whose settings are `member`, and what its encoder starts from.

        Finalists train on all tiles; those kept back stay out.
        """
        settings = self.settings
        run = RunSettings(
            member=member,
            shards=settings.shards,
            shards_digest=settings.shards_digest,
            fold=settings.fold,
            kept_back=settings.kept_back,
            tiles_fraction=1.0 if is_final else settings.tiles_fraction,
            validation_fraction=1.0 if is_final else settings.validation_fraction,
            share_seed=settings.seed,
        )
        start = (member.encoder, member.encoder_weights)
        if start not in self._known:
            files = encoder_files([run], self._job.weights)
            (hashed,) = with_hashes(storage.join(self.folder, TRIALS_FOLDER), [run], files)
            self._known[start] = (hashed.encoder_weights_sha256, pinned(files, hashed))
        sha256, file = self._known[start]
        return run.model_copy(update={"encoder_weights_sha256": sha256}), file

    def run_name(self, trial: str) -> str:
        """Return the name of a trial's run."""
        return f"{trial}-fold{self.settings.fold}"

    def trial_name(self, run: str) -> str:
        """Return the name of the trial of a run."""
        return run.removesuffix(f"-fold{self.settings.fold}")


def plan_search(job: TuneJob) -> SearchPlan:
    """Return the plan of `job`; raise `ConfigError` for what can't be searched."""
    members = (job.member,)
    planned = plan_runs(
        TrainJob(
            shards=job.shards,
            out=job.out,
            experiment=job.experiment,
            members=members,
            fold=job.fold,
            workers=job.workers,
            changes=job.changes,
            weights=job.weights,
        )
    )
    if len(planned) != 1:
        raise ConfigError(f"--member {job.member}: a search is for one member, not for a group")
    run = planned[0]
    space = parse_space(job.space, run.member, with_default=not job.only_space)
    reader = TileReader(job.shards, ())
    kept_back = _kept_back(job, reader)
    folder = storage.join(job.out, job.experiment)
    settings = SearchSettings(
        member=run.member,
        shards=job.shards,
        shards_digest=run.shards_digest,
        fold=job.fold,
        kept_back=kept_back,
        space={path: text_of(distribution) for path, distribution in space.items()},
        method=job.method,
        seed=job.seed,
        trial_epochs=job.trial_epochs or run.member.epochs,
        tiles_fraction=job.tiles_fraction,
        validation_fraction=job.validation_fraction,
        stopping=_stopping(job, job.trial_epochs or run.member.epochs),
    )
    plan = SearchPlan(job, folder, settings, [job.shards, job.out])
    known, file = plan.run_of(run.member, is_final=True)
    plan.settings = settings.model_copy(update={"encoder_weights_sha256": known.encoder_weights_sha256})
    plan.uris += [file.uri] if file is not None and file.uri is not None else []
    for is_final in (False, True):
        each, _ = plan.run_of(run.member, is_final=is_final)
        check_batch(len(tiles_of(reader, each, "train")) * each.member.crops_per_tile, job.workers, each.member)
        tiles_of(reader, each, "validation")
    _check_probes(plan, space, reader, read_manifest(job.shards)["bands"], job)
    return plan


def _check_probes(plan: SearchPlan, space: Space, reader: TileReader, bands: Sequence[str], job: TuneJob) -> None:
    """Raise `ConfigError` for an end or a choice of the space that these shards or ranks can't do."""
    member = plan.settings.member
    for path, distribution in space.items():
        for value in probes(distribution):
            try:
                tried = settings_of(member, {path: value})
            except ConfigError:
                continue  # it needs another value beside it, as `check_space` has seen
            try:
                check_member(tried, bands)
                run, _ = plan.run_of(tried, is_final=False)
                check_batch(len(tiles_of(reader, run, "train")) * tried.crops_per_tile, job.workers, tried)
            except ConfigError as error:
                raise ConfigError(f"space of {path}: {value!r} can't be tried: {error}") from error


def _stopping(job: TuneJob, num_epochs: int) -> Stopping | None:
    """Return when trials of `num_epochs` are stopped early; None for never."""
    if not job.stops_early:
        if job.grace_epochs is not None or job.reduction is not None:
            raise ConfigError("--grace-epochs and --reduction say when trials stop early; --run-to-end stops none")
        return None
    grace_epochs = job.grace_epochs or max(1, round(GRACE_SHARE * num_epochs))
    if grace_epochs > num_epochs:
        raise ConfigError(f"--grace-epochs {grace_epochs}: a trial has {num_epochs} epochs")
    return Stopping(grace_epochs=grace_epochs, reduction=job.reduction or REDUCTION)


def _kept_back(job: TuneJob, reader: TileReader) -> int:
    """Return the fold that is kept back."""
    folds = sorted({int(fold) for fold in reader.folds})
    if len(folds) < 3:
        raise ConfigError(
            f"{job.shards}: a search needs three folds (to train on, to judge trials, to judge the winner), the shards "
            f"have {len(folds)}; make shards with --folds 3 or more"
        )
    kept_back = job.kept_back if job.kept_back is not None else max(fold for fold in folds if fold != job.fold)
    if kept_back == job.fold:
        raise ConfigError(f"fold {kept_back} can't be both validated on and kept back; name another --keep-back")
    return kept_back
