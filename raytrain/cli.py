"""The `raytrain` command: parse, call one function, print where the results are.

Exit codes: 0 all done; 1 done, but something in the data was wrong or left out (listed); 2 the caller's mistake; 3 not
finished, the same command goes on; 130 or 143 interrupted. Must not know arithmetic.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, NoReturn

import tyro
from pydantic import BaseModel, ConfigDict, Field

from raytrain import __version__, storage
from raytrain.config import (
    RANDOM_WEIGHTS,
    TIMM_WEIGHTS,
    Baseline,
    CellEncoding,
    EmptyUnionRule,
    LoaderSettings,
    ScoreSettings,
    ShardSettings,
    change,
    load_changes,
    parse,
    parse_changes,
)
from raytrain.console import Narrator, print_table
from raytrain.console_runs import Runs, duration
from raytrain.errors import (
    EXIT_CALLERS_MISTAKE,
    EXIT_DATA_WRONG,
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_NOT_FINISHED,
    EXIT_TERMINATED,
    ConfigError,
    DataError,
    RaytrainError,
)
from raytrain.recipes import members

MAX_CHIP_PX = 8192
# --flag for True; no --no-flag beside it.
_TYRO = (tyro.conf.FlagCreatePairsOff,)


class Command(BaseModel):
    """Base of the commands: frozen options and `run`, which returns the exit code."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print the results as JSON on stdout."""

    def run(self, narrator: Narrator) -> int:
        """Do the work and return the exit code."""
        raise NotImplementedError

    def uris(self) -> list[str]:
        """Return the URIs among the options, as they were given."""
        return []

    def _print(self, result: dict[str, Any], lines: Sequence[str]) -> None:
        """Print the results: as JSON, or as lines for a person."""
        if self.json_output:
            print(json.dumps(result, indent=1))
        else:
            for line in lines:
                print(line)


class ClusterCommand(Command):
    """A command that runs on Ray."""

    address: str = "local"
    """Where to run: `local` starts a Ray on this machine, `auto` or HOST:PORT (GCS) joins a cluster."""
    shared_path: bool = False
    """All nodes of the cluster see the local paths that are given."""

    @property
    def _cluster(self) -> Any:
        from raytrain.cluster.session import Cluster

        return Cluster(address=self.address, shared_path=self.shared_path)


class Synth(Command):
    """Write generated imagery with clouds, labels and georeference."""

    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """The folder to write to."""
    kind: Literal["chips", "scenes"] = "chips"
    """Chips in the challenge's layout, or scenes with their true masks beside them."""
    count: int = Field(default=32, ge=1)
    """How many chips or scenes."""
    size_px: int = Field(default=512, ge=32, le=200_000)
    """Their side; a chip's is at most 8192, since it is made in memory."""
    seed: int = Field(default=0, ge=0)
    """The same seed gives the same bytes."""
    places: int = Field(default=8, ge=1)
    """How many places the chips are spread over; each scene is a place of its own."""
    first_place: int = Field(default=0, ge=0)
    """Number of the first place; archives whose numbers differ have no place in common."""

    def run(self, narrator: Narrator) -> int:
        """Write the imagery."""
        from raytrain.imagery import synth

        dst = _local_folder("DST", self.dst)
        if self.kind == "chips" and self.size_px > MAX_CHIP_PX:
            raise ConfigError(f"--size-px {self.size_px}: a chip has at most {MAX_CHIP_PX} px; make scenes instead")
        with narrator.step(f"{self.kind} to {dst}") as on_progress:
            common: dict[str, Any] = {
                "count": self.count,
                "size_px": self.size_px,
                "seed": self.seed,
                "first_place": self.first_place,
                "on_progress": on_progress,
            }
            if self.kind == "chips":
                listing = synth.write_chips(Path(dst), num_places=min(self.places, self.count), **common)
            else:
                listing = synth.write_scenes(Path(dst), **common)
        self._print({"listing": str(listing), "count": self.count}, [f"{self.count} {self.kind}: {listing}"])
        return EXIT_DONE

    def uris(self) -> list[str]:
        """Return the destination."""
        return [self.dst]


class Shard(ClusterCommand):
    """Turn chips into tile shards."""

    src: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """Chips in the challenge's layout: <split>_features/<chip>/<band>.tif, <split>_labels, <split>_metadata.csv."""
    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Where the shards go."""
    folds: str = "4"
    """Number of folds to deal the locations into, or a CSV with chip_id and a column fold or split (train, val)."""
    seed: int = 0
    """Seed of the folds."""
    bands: tuple[str, ...] = ("B02", "B03", "B04", "B08")
    """The bands to take."""
    baseline: Baseline = "before-04.00"
    """What the values are: reflectance x 10000, or that + 1000 (Sentinel-2 baseline 04.00 and later)."""
    cell_encoding: CellEncoding = "blosc2-bitshuffle-zstd"
    """How pixels are stored; raw cells are read by any tool."""
    tiles_per_shard: int = 64
    """How many tiles make a shard."""
    where: tuple[str, ...] = ()
    """COLUMN=VALUE filters on --metadata: only these chips."""
    metadata: str | None = None
    """CSV with chip_id and the columns of --where."""
    strict: bool = False
    """Write nothing if any chip is bad."""

    def run(self, narrator: Narrator) -> int:
        """Write the shards."""
        from raytrain.cluster.shard import ShardJob, shard

        job = parse(
            ShardJob,
            {
                "src": storage.normalise(self.src),
                "dst": storage.normalise(self.dst),
                "settings": parse(
                    ShardSettings,
                    {
                        "bands": self.bands,
                        "baseline": self.baseline,
                        "tiles_per_shard": self.tiles_per_shard,
                        "cell_encoding": self.cell_encoding,
                        "folds": self.folds if self.folds.isdecimal() else storage.normalise(self.folds),
                        "seed": self.seed,
                    },
                ),
                "selection": _selection(self.where, self.metadata),
                "strict": self.strict,
            },
        )
        with narrator.step(f"shards to {job.dst}") as on_progress:
            report = shard(job, self._cluster, on_progress)
        narrator.problems(report.problems, consequence="left out" if report.manifest else "nothing was written")
        found = report.manifest or {"num_tiles": 0, "num_labelled": 0, "num_locations": 0, "bytes": 0}
        summary = {name: found[name] for name in ("num_tiles", "num_labelled", "num_locations", "bytes")}
        text = f"{found['num_tiles']} tiles of {found['num_locations']} locations, {found['bytes'] / 1e6:.1f} MB"
        again = " (already there)" if report.was_done else ""
        if report.warning:
            narrator.say(f"raytrain: warning: {report.warning}")
        result = {**summary, "uri": job.dst if report.manifest else None, "left_out": _listed(report.problems)}
        result["warning"] = report.warning
        self._print(result, [f"{text}: {job.dst}{again}"] if report.manifest else [])
        return EXIT_DATA_WRONG if report.problems else EXIT_DONE

    def uris(self) -> list[str]:
        """Return source, destination and the CSV files."""
        return [uri for uri in (self.src, self.dst, self.metadata) if uri] + (
            [] if self.folds.isdecimal() else [self.folds]
        )


class Audit(ClusterCommand):
    """Report the folds of shards, or of a metadata CSV, and what leaks between them; exit code 1 on leakage."""

    src: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SHARDS")]
    """The folder of the shards; or a metadata CSV (chip_id, location, datetime), which has no pixels and footprints."""
    folds: str | None = None
    """Folds to audit instead: a number, or a CSV with chip_id and a column fold or split. For a CSV 4 by default."""
    seed: int = 0
    """Seed of the folds, where --folds is a number."""

    def run(self, narrator: Narrator) -> int:
        """Audit the folds."""
        from raytrain.cluster.audit import AuditJob, audit

        named = self.folds is not None and not self.folds.isdecimal()
        folds = storage.normalise(self.folds) if named and self.folds else self.folds
        job = AuditJob(src=storage.normalise(self.src), folds=folds, seed=self.seed)
        with narrator.step("looking for leakage") as on_progress:
            report = audit(job, self._cluster, on_progress)
        narrator.problems(report.problems, consequence="not looked at")
        if not self.json_output:
            print_audit(report)
        result = {
            "folds": [vars(each) for each in report.summaries],
            "size_spread_fraction": report.size_spread_fraction,
            "leaks": {
                leak.kind: {"tiles_by_fold": by_fold, "examples": leak.examples} for leak, by_fold in report.leaks
            },
            "unchecked": report.unchecked,
            "problems": _listed(report.problems),
        }
        self._print(result, [f"not looked at: {each}" for each in report.unchecked])
        if report.has_leakage:
            kinds = ", ".join(leak.kind for leak, _ in report.leaks if leak.tiles)
            narrator.say(f"raytrain: leakage between the folds: {kinds}")
        return EXIT_DATA_WRONG if report.has_leakage or report.problems else EXIT_DONE

    def uris(self) -> list[str]:
        """Return the source, and the folds where they are a file."""
        return [self.src] + ([] if self.folds is None or self.folds.isdecimal() else [self.folds])


def print_audit(report: Any) -> None:
    """Print a table of the folds, and one of the leaks."""

    rows = [
        [
            str(each.fold),
            str(each.num_tiles),
            str(each.num_locations),
            _or_dash(each.cloud_fraction_mean, ".1%"),
            _or_dash(each.clear_tiles_fraction, ".1%"),
            _or_dash(each.overcast_tiles_fraction, ".1%"),
        ]
        for each in report.summaries
    ]
    title = f"Folds (the largest is {report.size_spread_fraction:.1%} larger than the smallest)"
    print_table(title, ["fold", "chips", "places", "cloud", "clear chips", "overcast chips"], rows)
    rows = [
        [
            leak.kind,
            str(len(leak.tiles)),
            ", ".join(f"fold {fold}: {count}" for fold, count in by_fold.items()) or "-",
            "; ".join(leak.examples[:1]) or "-",
        ]
        for leak, by_fold in report.leaks
    ]
    print_table("Leakage between folds", ["", "chips", "of them in", "for example"], rows)


class Verify(ClusterCommand):
    """Hash shards or an ensemble again and name what differs from what was written; exit code 1 on any difference."""

    uri: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="URI")]
    """The folder of shards, or the folder or the file of an ensemble."""

    def run(self, narrator: Narrator) -> int:
        """Verify what is there."""
        from raytrain.cluster.verify import VerifyJob, verify

        job = VerifyJob(uri=storage.normalise(self.uri))
        with narrator.step(f"verify: {job.uri}") as on_progress:
            report = verify(job, self._cluster, on_progress)
        narrator.problems(report.differences, consequence="not as written")
        result = {"kind": report.kind, "num_objects": report.num_objects, "bytes": report.num_bytes}
        result["differences"] = _listed(report.differences)
        size = f"{report.num_objects} objects, {report.num_bytes / 1e6:.1f} MB"
        self._print(result, [] if report.differences else [f"{report.kind} as written: {size}: {job.uri}"])
        return EXIT_DATA_WRONG if report.differences else EXIT_DONE

    def uris(self) -> list[str]:
        """Return what is verified."""
        return [self.uri]


class Train(ClusterCommand):
    """Train members of the ensemble on tile shards."""

    shards: str
    """Where the shards are."""
    out: str
    """Where runs and the ensemble go: OUT/EXPERIMENT/."""
    experiment: str = "main"
    """Name of the experiment; changed settings need another."""
    members: tuple[str, ...] = Field(default=("all",), min_length=1)
    """Names of members, `all` for the eight of the recipe, `small` for two that a CPU trains in minutes."""
    fold: str = "0"
    """The fold to validate on; `all` trains each member once a fold, `none` on all tiles without validation."""
    workers: tuple[int, ...] = Field(default=(1,), min_length=1, max_length=2)
    """Data-parallel ranks of a run, one a GPU where the cluster has any, else one a CPU. Two numbers are the fewest and
    the most of an elastic run, which goes on with what the cluster has."""
    checkpoint_minutes: float = Field(default=10.0, gt=0)
    """A run's state is saved so often within an epoch, and at the end of each."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """How many of a run's last checkpoints stay, beside that of its best epoch."""
    config: str | None = None
    """TOML file of settings, applied to every member."""
    set: tuple[str, ...] = ()
    """path=value settings, applied to every member after --config, e.g. epochs=5 optimiser.lr=0.01."""
    cache: str | None = None
    """Folder on a local disk of every node, in which tiles from a store are kept."""
    cache_limit_gb: float = 100.0
    """What that folder may take, 10^9 bytes, over all processes of a node."""
    loader_processes: int = 0
    """Processes that read tiles for each rank, as many again for validation; 0: threads of the rank do."""
    loader_threads: int = 8
    """Reads in flight: of the rank, or in each such process, there within a batch."""
    weights: str | None = None
    """Mirror that `raytrain weights` made: encoders with timm's weights start from it, and no rank asks a hub."""
    mlflow: str | None = None
    """An MLflow that is told of the runs: a server's address, or a local folder. Needs the extra raytrain[mlflow]."""

    def run(self, narrator: Narrator) -> int:
        """Train the members."""
        from raytrain.cluster.train import train

        with narrator.runs() as runs:
            report = train(self._job(), self._cluster, partial(tell_news, runs))
        if not self.json_output:
            print_runs(report)
        result = {
            "ensemble": report.ensemble_uri,
            "trained": [member.model_dump(mode="json") for member in report.trained],
            "failed": report.failed,
            "runs": {
                run.name: {"seconds": run.seconds, "restarts": [each.model_dump(mode="json") for each in run.restarts]}
                for run in report.runs
            },
        }
        nets = "1 net" if report.num_members == 1 else f"{report.num_members} nets"
        line = f"ensemble: {report.ensemble_uri} ({nets})"
        self._print(result, [line] if report.ensemble_uri else [])
        for name, reason in report.failed.items():
            narrator.say(f"raytrain: {name} is not finished: {reason}; the same command goes on")
        return EXIT_NOT_FINISHED if report.failed else EXIT_DONE

    def _job(self) -> Any:
        from raytrain.cluster.runs import Checkpointing, TrainJob

        if not (self.fold.isdecimal() or self.fold in ("all", "none")):
            raise ConfigError(f"--fold: expected a number, all or none, found {self.fold!r}")
        return TrainJob(
            shards=storage.normalise(self.shards),
            out=storage.normalise(self.out),
            experiment=self.experiment,
            members=self.members,
            fold=int(self.fold) if self.fold.isdecimal() else "all" if self.fold == "all" else "none",
            workers=self.workers[0] if len(self.workers) == 1 else (self.workers[0], self.workers[1]),
            changes=self._changes(),
            weights=None if self.weights is None else storage.normalise(self.weights),
            mlflow=self.mlflow,
            checkpointing=parse(
                Checkpointing, {"interval_s": 60 * self.checkpoint_minutes, "keep_last": self.keep_checkpoints}
            ),
            loader=parse(
                LoaderSettings,
                {
                    "processes": self.loader_processes,
                    "threads": self.loader_threads,
                    "cache_folder": self.cache and _local_folder("--cache", self.cache),
                    "cache_limit_gb": self.cache_limit_gb,
                },
            ),
        )

    def uris(self) -> list[str]:
        """Return the shards, the destination, and what encoders start from where it is a mirror or a file."""
        file = str(self._changes().get("encoder_weights", TIMM_WEIGHTS))
        named = [] if file in (TIMM_WEIGHTS, RANDOM_WEIGHTS) else [file]
        return [self.shards, self.out, *(uri for uri in (self.weights, self.mlflow) if uri), *named]

    def _changes(self) -> dict[str, Any]:
        return (load_changes(Path(self.config)) if self.config else {}) | parse_changes(self.set)


def tell_news(runs: Runs, news: Any) -> None:
    """Tell a person the news of runs."""
    from raytrain.cluster.board import Begun, Failed, Noted, Planned, Post, Stepped

    if isinstance(news, Planned):
        runs.expect(news.runs)
    elif isinstance(news, Stepped):
        runs.progress(news.progress)
    elif isinstance(news, Post):
        runs.epoch(news.run, news.num_epochs, news.metrics)
    elif isinstance(news, Failed):
        then = "another attempt follows" if news.is_retried else "the run ends"
        runs.note(f"{news.run}: {news.kind}: {news.cause}; {then}")
    elif isinstance(news, Begun) and news.attempt > 1:
        for torn in news.torn:
            runs.note(f"{news.run}: {torn}; the checkpoint before it is taken")
        place = f"epoch {news.position.epoch + 1}, {news.position.samples_done} images into it"
        runs.note(f"{news.run}: goes on in {place}, on {news.num_ranks} ranks")
    elif isinstance(news, Noted):
        runs.note(f"{news.run}: {news.text}")


def print_runs(report: Any) -> None:
    """Print a table of what became of the runs of a training, and one of what they were restarted for."""
    rules = " or ".join(sorted({member.settings.empty_union_rule for member in report.trained})) or "-"
    rows = [
        [
            run.name,
            "failed" if run.net is None else str(run.net.epoch),
            "-" if run.net is None else _or_dash(run.net.score, ".4f"),
            duration(run.seconds),
            str(len(run.restarts)),
        ]
        for run in report.runs
    ]
    title = f"Runs (an empty union counts {rules})"
    print_table(title, ["run", "epoch kept", "IoU by location", "time", "restarts"], rows)
    rows = [
        [
            run.name,
            f"{restart.kind}: {restart.cause}",
            f"{restart.resumed.epoch + 1}, image {restart.resumed.samples_done}",
            "unknown" if restart.lost_images is None else str(restart.lost_images),
        ]
        for run in report.runs
        for restart in run.restarts
    ]
    if rows:
        print_table("Restarts", ["run", "cause", "went on in epoch", "images done again"], rows)


class Weights(Command):
    """Mirror the pretrained weights of encoders in a store of your own, for `train --weights`."""

    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Where the mirror goes: <encoder>.safetensors and weights.json. What it has already stays."""
    members: tuple[str, ...] = ()
    """Members whose encoders are mirrored; all, unless --file names encoders."""
    file: tuple[str, ...] = ()
    """ENCODER=FILE: take the weights of this encoder from a safetensors file instead of timm's hub."""

    def run(self, narrator: Narrator) -> int:
        """Fill the mirror."""
        from raytrain.training.mirror import write_mirror

        dst = storage.normalise(self.dst)
        files = {encoder: storage.normalise(uri) for encoder, uri in self._files().items()}
        named = members(self.members or (() if files else ("all",)))
        encoders = list(dict.fromkeys([*(member.encoder for member in named), *files]))
        with narrator.step(f"weights to {dst}") as on_progress:
            report = write_mirror(dst, encoders, files, on_progress)
        entries = {encoder: report.mirror.encoders[encoder] for encoder in encoders}
        count = "1 encoder" if len(encoders) == 1 else f"{len(encoders)} encoders"
        size = f"{count}, {sum(entry.bytes for entry in entries.values()) / 1e6:.1f} MB"
        again = f" (there before: {len(report.skipped)})" if report.skipped else ""
        result = {"uri": dst, "encoders": {name: entry.model_dump(mode="json") for name, entry in entries.items()}}
        self._print({**result, "skipped": report.skipped}, [f"{size}: {dst}{again}"])
        return EXIT_DONE

    def uris(self) -> list[str]:
        """Return the destination and the files."""
        return [self.dst, *self._files().values()]

    def _files(self) -> dict[str, str]:
        """Return the files by encoder."""
        files: dict[str, str] = {}
        for assignment in self.file:
            encoder, equals, uri = assignment.partition("=")
            if not (equals and uri and storage.is_plain_name(encoder)):
                raise ConfigError(f"--file: expected ENCODER=FILE, found {assignment!r}")
            if encoder in files:
                raise ConfigError(f"--file: encoder {encoder!r} is named twice")
            files[encoder] = uri
        return files


class Score(ClusterCommand):
    """Score chips or scenes with an ensemble: masks of clouds."""

    src: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """Chips in the challenge's layout, or scenes: SRC/scenes/<id>.tif or SRC/<id>.tif."""
    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Where the masks go: DST/<id>.tif."""
    ensemble: str
    """The folder of ensemble.json, or the file."""
    fold: str | None = None
    """Score with the nets of this fold, or with `all`; by default with the lowest."""
    where: tuple[str, ...] = ()
    """COLUMN=VALUE filters on --metadata: only these chips."""
    metadata: str | None = None
    """CSV with chip_id and the columns of --where."""
    set: tuple[str, ...] = ()
    """path=value settings, e.g. threshold=0.4 window_px=1024."""

    def run(self, narrator: Narrator) -> int:
        """Score the source."""
        from raytrain.cluster.score import ScoreJob, score

        if self.fold is not None and not (self.fold.isdecimal() or self.fold == "all"):
            raise ConfigError(f"--fold: expected a number or all, found {self.fold!r}")
        job = ScoreJob(
            src=storage.normalise(self.src),
            dst=storage.normalise(self.dst),
            ensemble=storage.normalise(self.ensemble),
            fold=int(self.fold) if self.fold and self.fold.isdecimal() else self.fold,
            settings=change(ScoreSettings(), parse_changes(self.set)),
            selection=_selection(self.where, self.metadata),
        )
        with narrator.step(f"masks to {job.dst}") as on_progress:
            report = score(job, self._cluster, on_progress)
        narrator.problems(report.problems, consequence="not scored")
        again = f" ({report.num_skipped} were there)" if report.num_skipped else ""
        result = {"uri": job.dst, "num_masks": report.num_masks, "num_skipped": report.num_skipped}
        result["problems"] = _listed(report.problems)
        result["unfinished"] = report.unfinished
        self._print(result, [f"{report.num_masks} masks: {job.dst}{again}"])
        if report.unfinished:
            unit, reason = next(iter(report.unfinished.items()))
            narrator.say(
                f"raytrain: {len(report.unfinished)} units are not finished (the first, {unit}: {reason}); "
                "the same command goes on"
            )
            return EXIT_NOT_FINISHED
        return EXIT_DATA_WRONG if report.problems else EXIT_DONE

    def uris(self) -> list[str]:
        """Return source, destination, ensemble and metadata."""
        return [uri for uri in (self.src, self.dst, self.ensemble, self.metadata) if uri]


class Evaluate(ClusterCommand):
    """Hold masks against labels: the four IoUs, by location."""

    predictions: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PREDICTIONS")]
    """Folder of masks <id>.tif."""
    labels: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="LABELS")]
    """Folder of labels <id>.tif."""
    metadata: str
    """CSV with chip_id and location; its rows say what is evaluated."""
    out: str
    """Where metrics.json and report.html go."""
    where: tuple[str, ...] = ()
    """COLUMN=VALUE filters on the metadata."""
    where_metadata: str | None = None
    """CSV with chip_id and the columns of --where, if the metadata has them not."""
    images: str | None = None
    """The scored chips or scenes, for the pictures of the report."""
    empty_union_rule: EmptyUnionRule = "one"
    """IoU where there is no cloud and none was predicted."""

    def run(self, narrator: Narrator) -> int:
        """Evaluate the masks."""
        from raytrain.cluster.evaluate import EvaluateJob, evaluate

        job = EvaluateJob(
            predictions=storage.normalise(self.predictions),
            labels=storage.normalise(self.labels),
            metadata=storage.normalise(self.metadata),
            out=storage.normalise(self.out),
            where=self.where,
            where_metadata=None if self.where_metadata is None else storage.normalise(self.where_metadata),
            images=None if self.images is None else storage.normalise(self.images),
            empty_union_rule=self.empty_union_rule,
        )
        with narrator.step("counting pixels") as on_progress:
            report = evaluate(job, self._cluster, on_progress)
        found = report.evaluation
        narrator.problems(report.problems, consequence="not counted" if found else "nothing was written")
        if found is None:
            self._print({"problems": _listed(report.problems)}, [])
            return EXIT_DATA_WRONG
        if not self.json_output:
            print_scores(found)
        self._print(found.model_dump(mode="json"), [f"metrics: {report.metrics_uri}", f"report: {report.page_uri}"])
        return EXIT_DATA_WRONG if report.problems else EXIT_DONE

    def uris(self) -> list[str]:
        """Return the inputs and the destination."""
        return [
            uri
            for uri in (self.predictions, self.labels, self.metadata, self.where_metadata, self.out, self.images)
            if uri
        ]


def print_scores(found: Any) -> None:
    """Print the four IoUs and the locations, worst first."""
    rule = f"an empty union counts {found.empty_union_rule}"
    rows = [
        ["pooled over all pixels", f"{found.iou_pooled:.4f}"],
        ["mean over chips", f"{found.iou_mean:.4f}"],
        ["mean over locations", f"{found.iou_location_weighted:.4f}"],
        ["mean over locations of the mean over chips", f"{found.iou_mean_location_weighted:.4f}"],
    ]
    print_table(f"IoU of cloud, chips: {found.num_chips} ({rule})", ["", "IoU"], rows)
    ordered = sorted(found.locations.items(), key=lambda item: item[1].iou)
    places = [[name, f"{each.iou:.4f}", str(each.num_chips)] for name, each in ordered]
    print_table("Locations, worst first", ["location", "IoU", "chips"], places)


class Demo(ClusterCommand):
    """Run all of it on generated imagery: archive, shards, two members, masks of unseen places, scores, a page."""

    out: str = "raytrain-demo"
    """The folder to write to; the same command goes on where it stopped."""

    def run(self, narrator: Narrator) -> int:
        """Run the demo."""
        from raytrain.cluster.demo import demo

        out = _local_folder("--out", self.out)
        report = demo(Path(out), self._cluster, narrator)
        if not self.json_output:
            print_scores(report.evaluation)
        paths = {name: str(path) for name, path in report.paths.items()}
        result = {"paths": paths, "metrics": report.evaluation.model_dump(mode="json"), "seconds": report.seconds}
        lines = [f"{name}: {path}" for name, path in paths.items()]
        self._print(result, [*lines, f"in {report.seconds:.0f} s"])
        narrator.problems(report.problems, consequence="left out")
        return EXIT_DATA_WRONG if report.problems else EXIT_DONE

    def uris(self) -> list[str]:
        """Return the folder."""
        return [self.out]


COMMANDS: dict[str, Callable[..., Command]] = {
    "demo": Demo,
    "synth": Synth,
    "shard": Shard,
    "audit": Audit,
    "weights": Weights,
    "train": Train,
    "score": Score,
    "evaluate": Evaluate,
    "verify": Verify,
}


def _listed(problems: Sequence[DataError]) -> list[dict[str, str]]:
    """Return the problems as `metrics.json` and `manifest.json` have them."""
    return [{"subject": problem.subject, "found": problem.found} for problem in problems]


def _or_dash(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)


def _local_folder(option: str, uri: str) -> str:
    """Return the absolute path of a folder that has to be on a disk of this machine."""
    if not storage.is_local(uri):
        raise ConfigError(f"{option} {uri}: expected a folder on a local disk")
    return storage.normalise(uri)


def _selection(where: tuple[str, ...], metadata: str | None) -> Any:
    from raytrain.tiles.selection import Selection

    return parse(Selection, {"where": where, "metadata": None if metadata is None else storage.normalise(metadata)})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `raytrain ARGUMENTS` and return the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
        print(__version__)
        return EXIT_DONE
    return _guarded(arguments, lambda command: command)


def job(verb: str) -> int:
    """Run `jobs/VERB.py` with its command line: the same command, on the cluster that runs this process.

    Exit code 2 where there is no cluster, unless `--address` is given, and for a relative local path: a job runs in a
    copy of the submitted folder, which goes away.
    """

    def on_this_cluster(command: Command) -> Command:
        relative = [uri for uri in command.uris() if "://" not in uri and not Path(uri).expanduser().is_absolute()]
        if relative:
            raise ConfigError(f"{relative[0]}: a job needs s3://... or an absolute path, its working folder goes away")
        given = any(argument.split("=")[0] == "--address" for argument in sys.argv[1:])
        if given or not isinstance(command, ClusterCommand):
            return command
        if not os.environ.get("RAY_ADDRESS"):
            raise ConfigError("no RAY_ADDRESS: not run by `ray job submit`; give --address (local starts a Ray here)")
        return command.model_copy(update={"address": os.environ["RAY_ADDRESS"]})

    return _guarded([verb, *sys.argv[1:]], on_this_cluster)


def _guarded(arguments: list[str], prepare: Callable[[Command], Command]) -> int:
    """Parse and run; turn what goes wrong into one line and an exit code."""
    warnings.filterwarnings("ignore", message=".*no geotransform.*")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    narrator = Narrator()
    stop = _Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return int(prepare(_parse(arguments)).run(narrator))
    except KeyboardInterrupt:
        return stop.told(narrator)
    except Exception as error:  # noqa: BLE001  # the top: whatever comes has its line and its code
        # An exception that a signal raises inside a library may come out of it as any other.
        return _told(error, narrator) if stop.number is None else stop.told(narrator)
    finally:
        for number, answer in before.items():
            signal.signal(number, answer)


class _Stop:
    """The answer to SIGINT and SIGTERM: remembers which it was, and interrupts the work."""

    number: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        raise KeyboardInterrupt

    def told(self, narrator: Narrator) -> int:
        """Say that the work was stopped and return the exit code."""
        terminated = self.number == signal.SIGTERM
        narrator.say(f"raytrain: {'terminated' if terminated else 'interrupted'}; the same command goes on")
        return EXIT_TERMINATED if terminated else EXIT_INTERRUPTED


def _told(error: Exception, narrator: Narrator) -> int:
    """Say in one line what went wrong and return the exit code; a bug of ours shows its traceback before."""
    if isinstance(error, RaytrainError):
        narrator.say(f"raytrain: {error}")
        return error.exit_code
    if isinstance(error, FileNotFoundError):
        narrator.say(f"raytrain: no such file, folder or bucket: {error}")
        return EXIT_CALLERS_MISTAKE
    if isinstance(error, (NotADirectoryError, IsADirectoryError, FileExistsError)):
        narrator.say(f"raytrain: a file stands where a folder is expected, or the other way round: {error}")
        return EXIT_CALLERS_MISTAKE
    if isinstance(error, PermissionError):
        narrator.say(f"raytrain: no right to it: {error}")
        return EXIT_CALLERS_MISTAKE
    if storage.is_out_of_reach(error):
        narrator.say(f"raytrain: can't reach or use a disk or a store: {error}; the same command goes on")
        return EXIT_NOT_FINISHED
    traceback.print_exception(error)
    narrator.say(f"raytrain: internal error: {type(error).__name__}: {error}")
    return EXIT_NOT_FINISHED


def _parse(arguments: list[str]) -> Command:
    """Return the command of a command line; a wrong one is a `ConfigError` in one line; `--help` exits."""
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            command = tyro.extras.subcommand_cli_from_dict(
                COMMANDS, prog="raytrain", description=__doc__.splitlines()[0], args=arguments, config=_TYRO
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(_in_one_line(message.getvalue())) from stop
    assert isinstance(command, Command)
    return command


def _in_one_line(box: str) -> str:
    """Return the text of tyro's box of errors as one line, without its frame and its closing hint."""
    # Behind the title; the frame is of lines, or of blanks where the output is not a terminal's.
    lines = [line.strip(" │╰╯\n") for line in box.splitlines()[1:]]
    groups = " ".join(line if line.strip("─-") else "\n" for line in lines).split("\n")
    text = next((group.strip() for group in groups if group.strip()), "wrong command line")
    text = re.sub(r"^Error parsing \w+: \d+ validation errors? for \w+ ", "", text)
    text = re.sub(r" \[type=\w+, input_value=(.*?), input_type=\w+\]", r" (found \1)", text)
    text = re.sub(r" For further information visit \S+", "", text)
    return f"{text}; see raytrain --help"


def leave(code: int) -> NoReturn:
    """End the process with `code`; at once after an interrupt.

    Ray's threads may fault while an interpreter is torn down in the middle of work: 139 instead of 130.
    """
    if code not in (EXIT_INTERRUPTED, EXIT_TERMINATED):
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run() -> None:
    """Be the console script."""
    leave(main())


if __name__ == "__main__":
    run()
