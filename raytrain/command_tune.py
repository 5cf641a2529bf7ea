"""The command `tune`, and how its news and results are told. Must not know arithmetic."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from pydantic import Field

from raytrain import storage
from raytrain.command_train import TrainingCommand, tell_news
from raytrain.config import parse
from raytrain.console import Narrator, print_table
from raytrain.console_runs import Runs
from raytrain.errors import EXIT_DONE, ConfigError
from raytrain.training.progress import duration


class Tune(TrainingCommand):
    """Search the learning rate, the loss weights and more for a member: best.toml for train --config."""

    shards: str
    """Where the shards are; they need three folds or more."""
    out: str
    """Where the search goes: OUT/EXPERIMENT/."""
    member: str
    """The member whose settings are searched; its own, with --config and --set, are always the first trial."""
    experiment: str = "main"
    """Name of the experiment; a search with changed settings needs another."""
    trials: int | None = None
    """Budget: how many settings to try."""
    gpu_hours: float | None = None
    """Budget: hours times ranks, of everything; on a cluster without GPUs, CPU-hours."""
    wall_hours: float | None = None
    """Budget: hours, of everything. Of a budget in hours 40 % are kept for the finalists."""
    space: tuple[str, ...] = ()
    """path=distribution: uniform(A,B), loguniform(A,B), integer(A,B), choice(X,Y,...); for terms of the loss
    weight(A,B), which is off or as loguniform. Over the default space: learning rate, momentum, schedule, terms of the
    loss."""
    only_space: bool = False
    """Search what --space names, nothing else."""
    fold: int = 0
    """The fold that trials are validated on."""
    keep_back: int | None = None
    """The fold that only judges the winner against the original; by default the highest."""
    workers: int = Field(default=1, ge=1)
    """Data-parallel ranks of a trial, one a GPU where the cluster has any, else one a CPU."""
    method: Literal["tpe", "random"] = "tpe"
    """How points are drawn."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draws, and of the shares of tiles."""
    trial_epochs: int | None = None
    """Epochs of a trial; by default the member's, which finalists are trained for."""
    tiles_fraction: float = 1.0
    """Share of the tiles of each location that trials train on; finalists train on all."""
    validation_fraction: float = 1.0
    """Share of the tiles of each location that trials are validated on."""
    grace_epochs: int | None = None
    """No trial is stopped before so many epochs; by default 40 % of --trial-epochs."""
    reduction: int | None = None
    """At each rung one of so many trials goes on; by default 3."""
    run_to_end: bool = False
    """Stop no trial early."""
    finalists: int = 2
    """How many settings are trained to the end beside the original's, to find the winner; 0: none."""
    final_seeds: int | None = None
    """With how many seeds each, two at least; by default 3."""

    def run(self, narrator: Narrator) -> int:
        """Search."""
        from raytrain.cluster.tune import tune

        with narrator.runs() as runs:
            results = tune(self._job(), self._cluster, partial(_tell, runs), partial(_tell_interim, narrator))
        if not self.json_output:
            print_results(results)
        verdict = results.verdict
        found: dict[str, Any] = {
            "best": None if results.best is None else {"trial": results.best.number, "point": results.best.point},
            "verdict": None if verdict is None else verdict.words,
            "difference": None if verdict is None or verdict.difference is None else vars(verdict.difference),
            "trials": [trial.model_dump(mode="json") for trial in results.trials],
            "seconds": results.seconds,
            "rank_hours": results.rank_hours,
            "paths": {"best": results.best_uri, "trials": results.trials_uri, "report": results.report_uri},
        }
        lines = [f"{results.best.why}"] if results.best else []
        lines += [f"report: {results.report_uri}", f"trials: {results.trials_uri}", f"settings: {results.best_uri}"]
        self._print(found, lines)
        return EXIT_DONE

    def _job(self) -> Any:
        from raytrain.cluster.search_plan import TuneJob

        if self.finalists == 0 and self.final_seeds is not None:
            raise ConfigError("--final-seeds is for finalists, of which --finalists 0 wants none")
        values = {
            "shards": storage.normalise(self.shards),
            "out": storage.normalise(self.out),
            "member": self.member,
            "experiment": self.experiment,
            "fold": self.fold,
            "kept_back": self.keep_back,
            "workers": self.workers,
            "changes": self._changes(),
            "space": self.space,
            "only_space": self.only_space,
            "method": self.method,
            "seed": self.seed,
            "budget": {"trials": self.trials, "rank_hours": self.gpu_hours, "wall_hours": self.wall_hours},
            "finals": {"finalists": self.finalists, **({"seeds": self.final_seeds} if self.final_seeds else {})},
            "stops_early": not self.run_to_end,
            "grace_epochs": self.grace_epochs,
            "reduction": self.reduction,
            "trial_epochs": self.trial_epochs,
            "tiles_fraction": self.tiles_fraction,
            "validation_fraction": self.validation_fraction,
            "checkpointing": {"interval_s": 60 * self.checkpoint_minutes, "keep_last": 1},
            "weights": self._mirror(),
            "loader": self._loader(),
        }
        return parse(TuneJob, values)

    def writes_to(self) -> str:
        """Return the experiment."""
        return storage.join(storage.normalise(self.out), self.experiment)

    def uris(self) -> list[str]:
        """Return the shards, the destination, and what encoders start from where it is a mirror or a file."""
        return [self.shards, self.out, *self._weights_uris()]


def _tell(runs: Runs, news: Any) -> None:
    """Tell a person the news of trials; not of each epoch, of which a search has thousands."""
    from raytrain.cluster.board import Ended, Post, Tried

    if isinstance(news, Tried):
        verb = "goes on with" if news.trial.begun > 1 else "tries"
        values = " ".join(f"{path.rpartition('.')[2]}={_short(value)}" for path, value in news.trial.point.items())
        runs.note(f"{news.trial.name}: {verb} {values}")
    elif isinstance(news, Ended):
        trial = news.trial
        score = "no score" if trial.score is None else f"score {trial.score:.4f}"
        cause = f" ({trial.cause})" if trial.cause else ""
        epochs = f"{len(trial.epochs)} of {trial.num_epochs} epochs"
        runs.end(news.run, f"{trial.name}: {trial.state}{cause}, {score}, {epochs} in {duration(trial.seconds)}")
    elif not isinstance(news, Post):
        tell_news(runs, news)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _tell_interim(narrator: Narrator, results: Any, is_done: bool) -> None:
    """Say what a search that ends before it is done leaves."""
    if not is_done and results.best is not None:
        narrator.say(f"raytrain: so far {results.best.why}: {results.best_uri}, {results.report_uri}")


def print_results(results: Any) -> None:
    """Print a table of the best trials, and one of the finalists."""
    tried = [trial for trial in results.trials if trial.kind == "search"]
    ordered = sorted(tried, key=lambda trial: (-(trial.score or 0.0), trial.number))
    rows = [
        [
            "original" if trial.number == 0 else str(trial.number),
            "-" if trial.score is None else f"{trial.score:.4f}",
            f"{len(trial.epochs)} of {trial.num_epochs}",
            duration(trial.seconds),
            trial.state + (f": {trial.cause}" if trial.cause else ""),
        ]
        for trial in ordered[:SHOWN]
    ]
    title = f"Trials, the best of {len(tried)} first"
    print_table(title, ["trial", "IoU by location", "epochs", "time", "state"], rows)
    finals = [
        ["original" if each.number == 0 else str(each.number), f"{each.validation:.4f}", f"{each.kept_back:.4f}"]
        for each in results.final_scores
    ]
    if finals:
        print_table("Finalists, mean over seeds", ["trial", "validation fold", "fold kept back"], finals)


SHOWN = 10
"""Trials in the table; the page has all."""
