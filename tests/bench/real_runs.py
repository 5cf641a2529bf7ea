"""One net of the run on real chips: trained, its curve kept, its chips of the test predicted; in a process, no Ray.

A run's folder is named by all that the net depends on: what is finished is never done again, what was killed goes on
from its last checkpoint. The chips of the test have no part in the training: no epoch is chosen, the last one counts.
Must not know what the chips are, or what scores come of it.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

import raytrain
from raytrain import storage
from raytrain.config import LoaderSettings, MemberSettings, ScoreSettings
from raytrain.errors import RaytrainError
from raytrain.scoring.ensemble import Ensemble, use_threads
from raytrain.tiles.reader import TileReader, read_manifest, shards_digest
from raytrain.training import WEIGHTS_FILE
from raytrain.training.checkpoint_store import CheckpointStore, Start
from raytrain.training.checkpoints import TrainingState, restore_state, take_snapshot
from raytrain.training.loop import EpochReport, TrainingData, train_member, validate, validation_loader
from raytrain.training.ranks import Ranks
from tests.bench.real_data import Fold

CHECKPOINT_S = 60
"""What a killed run loses at most."""
NEWS_S = 15
CURVE_FILE, PROBABILITIES_FILE, RESULT_FILE = "curve.csv", "probabilities.npz", "result.json"
SCORING = ScoreSettings(threads=1)
"""Identity and horizontal flip, float32, threshold 0.5: the product's own."""


@dataclass(frozen=True)
class Run:
    """One net to train: a member with its seed, on the chips of a fold. `folder` is its own.

    With `watch_every` n, the chips of the test are scored after every n-th epoch, for the curve alone.
    """

    member: MemberSettings
    fold: Fold
    shards: str
    folder: Path
    watch_every: int = 0

    @property
    def name(self) -> str:
        """What progress lines call it."""
        return f"{self.member.name}, fold {self.fold.name}, seed {self.member.seed}"


@dataclass(frozen=True)
class Epoch:
    """A point of the curve; `watched_iou` is the pooled IoU on the chips of the test, where it was looked at."""

    epoch: int
    loss: float
    learning_rate: float
    images_per_s: float
    wait_s: float
    watched_iou: float | None = None


def plan_run(member: MemberSettings, fold: Fold, shards: str, out: Path, watch_every: int) -> Run:
    """Return the run of `member`, whose folder below `out` is named by settings, files that they name, and chips."""
    depends_on = [member.digest(), _named_files(member), fold.train, fold.test, shards_digest(read_manifest(shards))]
    digest = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()
    folder = out / "runs" / f"{member.name}-{fold.name}-seed{member.seed}-{digest[:12]}"
    return Run(member, fold, shards, folder, watch_every)


def is_finished(run: Run) -> bool:
    """Tell whether `run` has its result; says so where that was made by other code, which may do otherwise."""
    try:
        made_by = json.loads((run.folder / RESULT_FILE).read_text())["code"]
    except FileNotFoundError:
        return False
    if made_by != code_digest():
        print(f"{run.name}: kept, but raytrain's code has changed since; remove {run.folder} to train it again")
    return True


def train_run(run: Run) -> None:
    """Train the net of `run`, from its last checkpoint if it has one, and keep curve, weights and probabilities.

    Raises what the loop raises. The probabilities are `{chip's position: [H, W] float32}` in an npz file.
    """
    use_threads(1)
    started = time.monotonic()
    loader = LoaderSettings(threads=1)
    reader = TileReader(run.shards, run.member.bands, loader)
    nothing = np.zeros(0, np.int64)
    data = TrainingData(reader, np.asarray(run.fold.train, np.int64), nothing, loader)
    run.folder.mkdir(parents=True, exist_ok=True)
    journal = _Journal(run, TrainingData(reader, nothing, np.asarray(run.fold.test, np.int64), loader))
    restore = journal.restore if journal.start.checkpoint is not None else None
    state = train_member(run.member, data, Ranks(), journal.on_epoch, restore, journal.on_step)
    weights = {name: tensor.detach().contiguous() for name, tensor in state.net.state_dict().items()}
    _write_whole(run.folder / WEIGHTS_FILE, lambda path: save_file(weights, path))
    found = predict(run.member, state.net, reader, run.fold.test)
    _write_whole(run.folder / PROBABILITIES_FILE, lambda path: _save_arrays(path, found))
    result = {
        "fold": asdict(run.fold),
        "settings": run.member.model_dump(mode="json"),
        "weights_sha256": hashlib.sha256((run.folder / WEIGHTS_FILE).read_bytes()).hexdigest(),
        "code": code_digest(),
        "seconds_since_last_start": round(time.monotonic() - started, 1),
    }
    _write_whole(run.folder / RESULT_FILE, lambda path: path.write_text(json.dumps(result, indent=1)))
    shutil.rmtree(run.folder / "checkpoints")


def tried(run: Run) -> str | None:
    """Train `run` in this process; return None, or the text of what raytrain raised."""
    try:
        train_run(run)
    except RaytrainError as error:
        return str(error)
    return None


def predict(
    member: MemberSettings, net: torch.nn.Module, reader: TileReader, chips: Sequence[int]
) -> dict[str, NDArray[np.float32]]:
    """Return the probability of cloud of each of `chips`, `[H, W] float32` by position, as the product computes it."""
    ensemble = Ensemble([(member, net)], SCORING, torch.device("cpu"))
    found = {}
    for i in chips:
        bands, _ = reader.read(i)
        ((found[str(i)],),) = ensemble.layers([bands], [np.asarray(bands.any(axis=0))])
    return found


def probabilities(run: Run) -> dict[int, NDArray[np.float32]]:
    """Return what a finished run predicted, by position."""
    with np.load(run.folder / PROBABILITIES_FILE) as arrays:
        return {int(name): arrays[name] for name in arrays.files}


def curve(run: Run) -> list[Epoch]:
    """Return the curve of a run as far as it is; empty before the first epoch."""
    try:
        with (run.folder / CURVE_FILE).open(newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        return []
    return [
        Epoch(
            int(row["epoch"]),
            float(row["loss"]),
            float(row["learning_rate"]),
            float(row["images_per_s"]),
            float(row["wait_s"]),
            float(row["watched_iou"]) if row["watched_iou"] else None,
        )
        for row in rows
    ]


@functools.cache
def code_digest() -> str:
    """Return a hash of raytrain's source files: what a result was made by."""
    root = Path(raytrain.__file__).parent
    texts = [f"{path.relative_to(root)}\n{path.read_text()}" for path in sorted(root.rglob("*.py"))]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


@dataclass
class _Journal:
    """What is kept of a run while it trains: checkpoints, the curve, a line of news now and then."""

    run: Run
    watched: TrainingData
    epochs: list[Epoch] = field(default_factory=list)
    kept_at: float = field(default_factory=time.monotonic)
    told_at: float = -NEWS_S

    store: CheckpointStore = field(init=False)
    start: Start = field(init=False)

    def __post_init__(self) -> None:
        self.store = CheckpointStore(str(self.run.folder), keep_last=1)
        self.start = self.store.begin()

    def restore(self, state: TrainingState) -> None:
        restore_state(self.start.files, state, self.run.member)
        self.epochs = [epoch for epoch in curve(self.run) if epoch.epoch < state.position.epoch]
        position = state.position
        print(f"{self.run.name}: goes on in epoch {position.epoch + 1}, sample {position.samples_done}", flush=True)

    def on_step(self, state: TrainingState) -> None:
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            sys.exit(f"{self.run.name}: ended, since the command that started it was")  # the next one goes on from here
        if time.monotonic() - self.kept_at >= CHECKPOINT_S:
            self._keep(state)

    def on_epoch(self, report: EpochReport, state: TrainingState) -> None:
        is_last = state.position.epoch == self.run.member.epochs
        watched = self._watch(state) if self._is_watched(state.position.epoch) else None
        self.epochs.append(
            Epoch(report.epoch, report.loss, report.learning_rate, report.images_per_s, report.wait_s, watched)
        )
        # Before the checkpoint, which goes on from a curve of at least its length.
        _write_whole(self.run.folder / CURVE_FILE, self._write_curve)
        if is_last or time.monotonic() - self.kept_at >= CHECKPOINT_S:
            self._keep(state)
        if is_last or watched is not None or time.monotonic() - self.told_at >= NEWS_S:
            self._tell(report, watched)

    def _keep(self, state: TrainingState) -> None:
        self.store.save(take_snapshot(state, self.run.member))
        self.kept_at = time.monotonic()

    def _is_watched(self, epochs_done: int) -> bool:
        return self.run.watch_every > 0 and epochs_done % self.run.watch_every == 0

    def _watch(self, state: TrainingState) -> float:
        with validation_loader(self.run.member, self.watched) as samples:
            return validate(state.net, self.run.member, self.watched, Ranks(), samples).iou_pooled

    def _tell(self, report: EpochReport, watched: float | None) -> None:
        self.told_at = time.monotonic()
        line = f"{self.run.name}: epoch {report.epoch + 1}/{self.run.member.epochs}, loss {report.loss:.4f}"
        score = "" if watched is None else f", IoU {watched:.3f}"
        print(f"{line}{score}, {report.images_per_s:.1f} images/s", flush=True)

    def _write_curve(self, path: Path) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(Epoch.__dataclass_fields__))
            writer.writeheader()
            writer.writerows(asdict(epoch) for epoch in self.epochs)


def _named_files(member: MemberSettings) -> dict[str, str]:
    """Return the hash of every file that a setting names, wherever it lies: its content is part of the settings."""
    texts = [value for value in member.model_dump(mode="json").values() if isinstance(value, str)]
    return {text: storage.sha256_of(storage.read_bytes(text)) for text in texts if _is_file(text)}


def _is_file(text: str) -> bool:
    return Path(text).is_file() or ("://" in text and storage.exists(text))


def _save_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    with path.open("wb") as file:  # given a name, numpy would add .npz to it
        np.savez_compressed(file, **arrays)


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, and put it in its place once it is whole."""
    partial = path.with_name(f".{path.name}.partial")
    write(partial)
    os.replace(partial, path)
