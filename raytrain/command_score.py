"""`raytrain score`: its options, what it prints, what it plans. Must not know arithmetic."""

from __future__ import annotations

from typing import Annotated, Any

import tyro

from raytrain import storage
from raytrain.command import ClusterCommand, listed, selection
from raytrain.config import ScoreSettings, change, parse_changes
from raytrain.console import Narrator, print_table
from raytrain.errors import EXIT_DATA_WRONG, EXIT_DONE, EXIT_NOT_FINISHED, ConfigError

OUT_OF_FOLD_LAYERS = {"probability": "uint8", "disagreement": "uint8"}
"""What people who review labels look at, beside the mask."""


class Score(ClusterCommand):
    """Score chips, scenes or shards: masks of clouds by an ensemble, a catalogue, a ledger that makes it go on."""

    src: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """Chips in the challenge's layout; scenes: SRC/scenes/<id>.tif, SRC/<id>.tif or SRC/<id>/<band>.tif; a STAC item,
    item collection, collection or search; a list of URIs (.txt, .csv, .parquet); a folder of finished tile shards."""
    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Where the masks go: DST/<id>.tif."""
    ensemble: str
    """The folder of ensemble.json, or the file."""
    fold: str | None = None
    """Score with the nets of this fold, or with `all`; by default with the lowest."""
    out_of_fold: bool = False
    """Of shards: score each tile with the nets that never saw its location (those of its fold; train --fold all). Then
    probability and disagreement are written, too, as uint8, unless --set says otherwise."""
    where: tuple[str, ...] = ()
    """COLUMN=VALUE filters on --metadata: only these chips."""
    metadata: str | None = None
    """CSV with chip_id and the columns of --where."""
    max_failures: int | None = None
    """Stop when more than this many chips, tiles or scenes can't be scored."""
    datetime: str | None = None
    """The date (ISO 8601, UTC) of scenes that have none."""
    plan: bool = False
    """Say what there is to do, what it takes and how long, from a short calibration on this cluster; score nothing."""
    set: tuple[str, ...] = ()
    """path=value settings, e.g. threshold=0.4 window_px=1024 probability=uint8 baseline=from-04.00."""

    def run(self, narrator: Narrator) -> int:
        """Score the source, or plan to."""
        from raytrain.cluster.score import ScoreJob, score

        if self.fold is not None and not (self.fold.isdecimal() or self.fold == "all"):
            raise ConfigError(f"--fold: expected a number or all, found {self.fold!r}")
        layers = OUT_OF_FOLD_LAYERS if self.out_of_fold else {}
        dated = {"datetime": self.datetime} if self.datetime is not None else {}
        job = ScoreJob(
            src=storage.normalise(self.src),
            dst=storage.normalise(self.dst),
            ensemble=storage.normalise(self.ensemble),
            fold=int(self.fold) if self.fold and self.fold.isdecimal() else self.fold,
            out_of_fold=self.out_of_fold,
            settings=change(ScoreSettings(), {**layers, **parse_changes(self.set), **dated}),
            selection=selection(self.where, self.metadata),
            max_failures=self.max_failures,
        )
        if self.plan:
            return self._plan(job, narrator)
        with narrator.step(f"masks to {job.dst}") as on_progress:
            report = score(job, self._cluster, lambda found: on_progress(int(found.units), found.total, str(found)))
        narrator.problems(report.problems, consequence="not scored")
        for note, count in sorted(report.notes.items()):
            narrator.say(f"{count} of them: {note}")
        again = f" ({report.num_skipped} were there)" if report.num_skipped else ""
        result = {"uri": job.dst, "num_masks": report.num_masks, "num_skipped": report.num_skipped}
        result["problems"] = listed(report.problems)
        result["unfinished"] = report.unfinished
        result["notes"] = report.notes
        result["seconds"] = round(report.rate.wall_s, 3)
        result["network_fraction"] = report.rate.network_fraction
        result["report"] = report.report
        lines = [f"{report.num_masks} masks: {job.dst}{again}"]
        self._print(result, lines + ([f"report: {report.report}"] if report.report else []))
        if report.unfinished:
            item, reason = next(iter(report.unfinished.items()))
            narrator.say(
                f"raytrain: {len(report.unfinished)} items are not finished (the first, {item}: {reason}); "
                "the same command goes on"
            )
            return EXIT_NOT_FINISHED
        return EXIT_DATA_WRONG if report.problems else EXIT_DONE

    def _plan(self, job: Any, narrator: Narrator) -> int:
        """Print what there is to do and what it takes."""
        from raytrain.cluster.score_plan import plan_score

        with narrator.step(f"plan: {storage.shown(job.src)}"):
            plan = plan_score(job, self._cluster)
        narrator.problems(plan.problems, consequence="can't be scored")
        rows = [[name, value] for name, value in plan.lines()]
        if self.json_output:
            self._print(plan.as_json(), [])
        else:
            print_table(f"To score {storage.shown(job.src)}", ["", ""], rows)
        return EXIT_DATA_WRONG if plan.problems else EXIT_DONE

    def writes_to(self) -> str:
        """Return the destination."""
        return storage.normalise(self.dst)

    def uris(self) -> list[str]:
        """Return source, destination, ensemble and metadata."""
        return [uri for uri in (self.src, self.dst, self.ensemble, self.metadata) if uri]
