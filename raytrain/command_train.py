"""The commands `train` and `weights`, and how the news of runs are told. Must not know arithmetic."""

from __future__ import annotations

import logging
from functools import partial
from typing import Annotated, Any

import tyro
from pydantic import Field

from raytrain import storage
from raytrain.command import ClusterCommand, Command, load_changes, local_folder, or_dash
from raytrain.config import RANDOM_WEIGHTS, TIMM_WEIGHTS, LoaderSettings, parse, parse_changes
from raytrain.console import Narrator, print_table
from raytrain.console_runs import Runs
from raytrain.errors import EXIT_DONE, EXIT_NOT_FINISHED, ConfigError
from raytrain.recipes import members
from raytrain.training.progress import duration


class TrainingCommand(ClusterCommand):
    """What commands that train have in common: settings, where tiles and weights come from, how often is saved."""

    config: str | None = None
    """TOML file of settings (a path or a URI), applied to every member."""
    set: tuple[str, ...] = ()
    """path=value settings, applied to every member after --config, e.g. epochs=5 optimiser.lr=0.01."""
    checkpoint_minutes: float = Field(default=10.0, gt=0)
    """A run's state is saved so often within an epoch, and at the end of each."""
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

    def _loader(self) -> LoaderSettings:
        return parse(
            LoaderSettings,
            {
                "processes": self.loader_processes,
                "threads": self.loader_threads,
                "cache_folder": self.cache and local_folder("--cache", self.cache),
                "cache_limit_gb": self.cache_limit_gb,
            },
        )

    def _mirror(self) -> str | None:
        return None if self.weights is None else storage.normalise(self.weights)

    def _changes(self) -> dict[str, Any]:
        return (load_changes(self.config) if self.config else {}) | parse_changes(self.set)

    def read_by_driver(self) -> list[str]:
        """Return the files of settings."""
        return [*super().read_by_driver(), *([self.config] if self.config else [])]

    def _weights_uris(self) -> list[str]:
        """Return what encoders start from, where it is a mirror or a file."""
        file = str(self._changes().get("encoder_weights", TIMM_WEIGHTS))
        named = [] if file in (TIMM_WEIGHTS, RANDOM_WEIGHTS) else [file]
        return [*([self.weights] if self.weights else []), *named]


class Train(TrainingCommand):
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
    keep_checkpoints: int = Field(default=2, ge=1)
    """How many of a run's last checkpoints stay, beside that of its best epoch."""
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
            "report": report.report_uri,
            "model_card": report.card_uri,
            "runs": {
                run.name: {"seconds": run.seconds, "restarts": [each.model_dump(mode="json") for each in run.restarts]}
                for run in report.runs
            },
        }
        nets = "1 net" if report.num_members == 1 else f"{report.num_members} nets"
        lines = [f"ensemble: {report.ensemble_uri} ({nets})"] if report.ensemble_uri else []
        lines += [f"report: {report.report_uri}"] if report.report_uri else []
        lines += [f"model card: {report.card_uri}"] if report.card_uri else []
        self._print(result, lines)
        for name, reason in report.failed.items():
            told = f"raytrain: {name} is not finished: {reason}; the same command goes on"
            narrator.say(told, logging.ERROR, event="ended", run=name, exit_code=EXIT_NOT_FINISHED)
        return EXIT_NOT_FINISHED if report.failed else EXIT_DONE

    def _job(self) -> Any:
        from raytrain.cluster.runs import Checkpointing, TrainJob

        if not (self.fold.isdecimal() or self.fold in ("all", "none")):
            raise ConfigError(f"--fold: expected a number, all or none, found {self.fold!r}")
        return parse(
            TrainJob,
            {
                "shards": storage.normalise(self.shards),
                "out": storage.normalise(self.out),
                "experiment": self.experiment,
                "members": self.members,
                "fold": int(self.fold) if self.fold.isdecimal() else "all" if self.fold == "all" else "none",
                "workers": self.workers[0] if len(self.workers) == 1 else (self.workers[0], self.workers[1]),
                "changes": self._changes(),
                "weights": self._mirror(),
                "mlflow": self.mlflow,
                "checkpointing": parse(
                    Checkpointing, {"interval_s": 60 * self.checkpoint_minutes, "keep_last": self.keep_checkpoints}
                ),
                "loader": self._loader(),
            },
        )

    def writes_to(self) -> str:
        """Return the experiment and its members: others of it may be trained meanwhile."""
        return f"{storage.join(storage.normalise(self.out), self.experiment)} ({', '.join(sorted(self.members))})"

    def uris(self) -> list[str]:
        """Return the shards, the destination, and what encoders start from where it is a mirror or a file."""
        return [self.shards, self.out, *([self.mlflow] if self.mlflow else []), *self._weights_uris()]


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
            "-" if run.net is None else or_dash(run.net.score, ".4f"),
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
