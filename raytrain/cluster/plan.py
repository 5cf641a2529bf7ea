"""What a training command comes to: its runs, checked as far as the driver can before any of them starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raytrain import storage
from raytrain.cluster.runs import RESULT_FILE, RUN_FILE, RunSettings, TrainJob
from raytrain.config import MemberSettings, change, differences, parse
from raytrain.errors import ConfigError
from raytrain.imagery.normalisation import check_bands
from raytrain.recipes import members
from raytrain.tiles.order import check_batch
from raytrain.tiles.reader import TileReader, read_manifest, select_tiles, shards_digest
from raytrain.tiles.shares import share_of_locations
from raytrain.training.checkpoint_files import read_index
from raytrain.training.encoder_files import EncoderFile, fetch, file_of
from raytrain.training.mirror import find_files


def plan_runs(job: TrainJob) -> list[RunSettings]:
    """Return the runs of `job`, members within folds, before the hashes of their encoders' weights are known.

    Raises `ConfigError` for what can't be trained.
    """
    if not 1 <= job.fewest_workers <= job.most_workers:
        raise ConfigError(f"workers: expected a number, or the fewest and the most, from 1 on; found {job.workers}")
    if not job.members:
        raise ConfigError("no members are named; all stands for the eight of the recipe, small for two small ones")
    if "name" in job.changes:
        raise ConfigError("name is no setting to change: it says which member, and where its run lies")
    chosen = [_with_absolute_path(change(member, job.changes)) for member in members(job.members)]
    manifest = read_manifest(job.shards)
    reader = TileReader(job.shards, ())
    folds = _folds(job, reader)
    for member in chosen:
        check_member(member, manifest["bands"])
        for fold in folds:
            num_samples = len(select_tiles(reader, fold, "train")) * member.crops_per_tile
            check_batch(num_samples, job.most_workers, member)
            select_tiles(reader, fold, "validation")
    return [
        RunSettings(member=member, shards=job.shards, shards_digest=shards_digest(manifest), fold=fold)
        for fold in folds
        for member in chosen
    ]


def check_member(member: MemberSettings, bands: Sequence[str]) -> None:
    """Raise `ConfigError` if a member can't be trained on shards of these bands."""
    missing = [band for band in member.bands if band not in bands]
    if missing:
        raise ConfigError(f"member {member.name} needs {', '.join(missing)}; the shards have {', '.join(bands)}")
    check_bands(member.normalisation, member.bands)


def tiles_of(reader: TileReader, run: RunSettings, part: Literal["train", "validation"]) -> NDArray[np.int64]:
    """Return the positions of the tiles that a run trains or validates on; raise `ConfigError` if there are none."""
    chosen = select_tiles(reader, run.fold, part, run.kept_back)
    fraction = run.tiles_fraction if part == "train" else run.validation_fraction
    return share_of_locations(chosen, reader.tile_ids, reader.locations, fraction, run.share_seed)


def _with_absolute_path(member: MemberSettings) -> MemberSettings:
    """Return the member with the URI of its encoder's weights in its one form: ranks run in folders of their own."""
    file = file_of(member)
    return change(member, {"encoder_weights": file.uri}) if file is not None and file.uri is not None else member


def encoder_files(runs: list[RunSettings], mirror: str | None) -> dict[str, EncoderFile | None]:
    """Return the file that the encoder of each member starts from, by the member's name."""
    chosen = {run.member.name: run.member for run in runs}
    return dict(zip(chosen, find_files(list(chosen.values()), mirror), strict=True))


def with_hashes(folder: str, runs: list[RunSettings], files: dict[str, EncoderFile | None]) -> list[RunSettings]:
    """Return the runs with the hashes of their encoders' weights.

    A run that began with the hub's keeps the hash that it recorded then, so that it goes on while the hub is out of
    reach; a fresh one has its file fetched here.
    """
    found: dict[EncoderFile, str] = {}
    complete = []
    for run in runs:
        file = files[run.member.name]
        sha256 = None if file is None else file.sha256 or (_recorded_hash(folder, run) if file.uri is None else None)
        if file is not None and sha256 is None:
            found[file] = found.get(file) or storage.sha256_of(fetch(file))
            sha256 = found[file]
        complete.append(run.model_copy(update={"encoder_weights_sha256": sha256}))
    return complete


def _recorded_hash(folder: str, run: RunSettings) -> str | None:
    """Return the hash that the run's folder has, if its encoder is this one with timm's weights."""
    path = storage.join(folder, run.name, RUN_FILE)
    try:
        found = parse(RunSettings, storage.read_json(path), path)
    except FileNotFoundError:
        return None
    same = (found.member.encoder, found.member.encoder_weights) == (run.member.encoder, run.member.encoder_weights)
    return found.encoder_weights_sha256 if same else None


def pinned(files: dict[str, EncoderFile | None], run: RunSettings) -> EncoderFile | None:
    """Return the file of the run's encoder with the hash that the run depends on."""
    file = files[run.member.name]
    return None if file is None else file.model_copy(update={"sha256": run.encoder_weights_sha256})


def _folds(job: TrainJob, reader: TileReader) -> list[int | None]:
    if job.fold == "none":
        return [None]
    if job.fold == "all":
        return list(sorted({int(fold) for fold in reader.folds}))
    return [job.fold]


def check_claim(folder: str, run: RunSettings) -> None:
    """Raise `ConfigError` if something was learnt in the run's `folder` with other settings than those of `run`."""
    path = storage.join(folder, RUN_FILE)
    try:
        found = parse(RunSettings, storage.read_json(path), path)
    except FileNotFoundError:
        return
    changed = differences(found, run)
    if changed and (read_index(folder).kept or storage.exists(storage.join(folder, RESULT_FILE))):
        raise ConfigError(f"{folder} was begun with other settings ({'; '.join(changed)}); name another --experiment")
