"""The `raytrain` command: parse, call one function, print where the results are.

Exit codes: 0 all done; 1 done, but something in the data was wrong or left out (listed); 2 the caller's mistake; 3 not
finished, the same command goes on; 130 or 143 interrupted. Must not know arithmetic.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, NoReturn

import tyro
from pydantic import Field

from raytrain import __version__, logs, storage
from raytrain.cluster import code
from raytrain.command import ClusterCommand, Command, listed, local_folder, or_dash, selection
from raytrain.command_doctor import Doctor
from raytrain.command_evaluate import Evaluate, print_scores
from raytrain.command_review import REVIEW_COMMANDS, check_review_of_job
from raytrain.command_score import Score
from raytrain.command_submit import REQUESTS, VERBS, Submit, check_paths_of_job
from raytrain.command_train import Train, Weights
from raytrain.command_tune import Tune
from raytrain.config import (
    Baseline,
    CellEncoding,
    ShardSettings,
    parse,
)
from raytrain.console import Narrator, print_table
from raytrain.errors import (
    EXIT_CALLERS_MISTAKE,
    EXIT_DATA_WRONG,
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_NOT_FINISHED,
    EXIT_TERMINATED,
    ConfigError,
    RaytrainError,
)

MAX_CHIP_PX = 8192
# --flag for True; no --no-flag beside it.
_TYRO = (tyro.conf.FlagCreatePairsOff,)


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

        dst = local_folder("DST", self.dst)
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
                "selection": selection(self.where, self.metadata),
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
        result = {**summary, "uri": job.dst if report.manifest else None, "left_out": listed(report.problems)}
        result["warning"] = report.warning
        self._print(result, [f"{text}: {job.dst}{again}"] if report.manifest else [])
        return EXIT_DATA_WRONG if report.problems else EXIT_DONE

    def writes_to(self) -> str:
        """Return the destination."""
        return storage.normalise(self.dst)

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
            "problems": listed(report.problems),
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
            or_dash(each.cloud_fraction_mean, ".1%"),
            or_dash(each.clear_tiles_fraction, ".1%"),
            or_dash(each.overcast_tiles_fraction, ".1%"),
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
    """Hash shards, an ensemble or a scored archive again and name what differs; exit code 1 on any difference."""

    uri: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="URI")]
    """The folder of shards, the folder or the file of an ensemble, or the destination of `score`."""

    def run(self, narrator: Narrator) -> int:
        """Verify what is there."""
        from raytrain.cluster.verify import VerifyJob, verify

        job = VerifyJob(uri=storage.normalise(self.uri))
        with narrator.step(f"verify: {job.uri}") as on_progress:
            report = verify(job, self._cluster, on_progress)
        narrator.problems(report.differences, consequence="not as written")
        result = {"kind": report.kind, "num_objects": report.num_objects, "bytes": report.num_bytes}
        result["differences"] = listed(report.differences)
        size = f"{report.num_objects} objects, {report.num_bytes / 1e6:.1f} MB"
        self._print(result, [] if report.differences else [f"{report.kind} as written: {size}: {job.uri}"])
        return EXIT_DATA_WRONG if report.differences else EXIT_DONE

    def uris(self) -> list[str]:
        """Return what is verified."""
        return [self.uri]


class Demo(ClusterCommand):
    """Run all of it on generated imagery: archive, shards, two members, masks of unseen places, scores, a page."""

    out: str = "raytrain-demo"
    """The folder to write to; the same command goes on where it stopped."""

    def run(self, narrator: Narrator) -> int:
        """Run the demo."""
        from raytrain.cluster.demo import demo

        out = local_folder("--out", self.out)
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


class Review(Command):
    """Find labels that are wrong, look at them, decide, make new shards, see the effect: `raytrain review --help`."""


COMMANDS: dict[str, Callable[..., Command]] = {
    "demo": Demo,
    "synth": Synth,
    "shard": Shard,
    "audit": Audit,
    "weights": Weights,
    "train": Train,
    "tune": Tune,
    "score": Score,
    "evaluate": Evaluate,
    "verify": Verify,
    "review": Review,
    "submit": Submit,
    "doctor": Doctor,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `raytrain ARGUMENTS` and return the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
        print(__version__)
        return EXIT_DONE
    return _guarded(arguments, lambda command, narrator: command)


def job(verb: str) -> int:
    """Run `jobs/VERB.py` with its command line: the same command, on the cluster that runs this process.

    Exit code 2 where there is no cluster, unless `--address` is given, and for a relative local path: a job runs in a
    copy of the submitted folder, which goes away.
    """

    def on_this_cluster(command: Command, narrator: Narrator) -> Command:
        if verb == "review":
            check_review_of_job(sys.argv[1:])
        check_paths_of_job(command)
        given = any(argument.split("=")[0] == "--address" for argument in sys.argv[1:])
        if not given and isinstance(command, ClusterCommand):
            if not os.environ.get("RAY_ADDRESS"):
                raise ConfigError(
                    "no RAY_ADDRESS: not run by `ray job submit`; give --address (local starts a Ray here)"
                )
            command = command.model_copy(update={"address": os.environ["RAY_ADDRESS"]})
        narrator.say(f"raytrain: {code.identity()}; {code.origin(Path.cwd())}")
        return command

    in_cluster = bool(os.environ.get("RAY_ADDRESS")) and not sys.stderr.isatty()
    return _guarded([verb, *sys.argv[1:]], on_this_cluster, "json" if in_cluster else "text")


def _guarded(
    arguments: list[str], prepare: Callable[[Command, Narrator], Command], encoding: logs.Encoding = "text"
) -> int:
    """Parse and run; turn what goes wrong into one line and an exit code. `encoding` is that of logs unless told."""
    warnings.filterwarnings("ignore", message=".*no geotransform.*")
    logs.begin(encoding)
    narrator = Narrator(encoding)
    stop = _Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        command = _parse(arguments)
        if command.log is not None:
            narrator.encoding = command.log
            logs.begin(command.log)
        command = prepare(command, narrator)
        command.use_stores()
        return int(command.run(narrator))
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
        narrator.say(
            f"raytrain: {'terminated' if terminated else 'interrupted'}; the same command goes on", logging.WARNING
        )
        return EXIT_TERMINATED if terminated else EXIT_INTERRUPTED


def _told(error: Exception, narrator: Narrator) -> int:
    """Say in one line what went wrong and return the exit code; a bug of ours shows its traceback before."""
    code, text = _verdict(error)
    if code is None:
        logging.getLogger(logs.LOGGER).error("internal error", exc_info=error)
        code = EXIT_NOT_FINISHED
    narrator.say(f"raytrain: {text}", logging.ERROR, event="ended", exit_code=code, error=type(error).__name__)
    return code


def _verdict(error: Exception) -> tuple[int | None, str]:
    """Return the exit code of an error, None for a bug of ours, and its line."""
    if isinstance(error, RaytrainError):
        return error.exit_code, str(error)
    if isinstance(error, FileNotFoundError):
        return EXIT_CALLERS_MISTAKE, f"no such file, folder or bucket: {error}"
    if isinstance(error, (NotADirectoryError, IsADirectoryError, FileExistsError)):
        return EXIT_CALLERS_MISTAKE, f"a file stands where a folder is expected, or the other way round: {error}"
    if isinstance(error, PermissionError):
        return EXIT_CALLERS_MISTAKE, f"no right to it: {error}"
    if storage.is_out_of_reach(error):
        return EXIT_NOT_FINISHED, f"can't reach or use a disk or a store: {error}; the same command goes on"
    return None, f"internal error: {type(error).__name__}: {error}"


def _parse(arguments: list[str]) -> Command:
    """Return the command of a command line; what follows the verb of `submit` is the verb's own."""
    at = next((i for i, word in enumerate(arguments) if word in (*VERBS, *REQUESTS)), 0)
    if arguments[:1] != ["submit"] or arguments[at] not in VERBS:
        return _parsed(arguments)
    submit, rest = _parsed(arguments[: at + 1]), arguments[at + 1 :]
    assert isinstance(submit, Submit)
    if arguments[at] == "review":
        check_review_of_job(rest)
    return submit.of(tuple(rest), _parsed([arguments[at], *rest]))


def _parsed(arguments: list[str]) -> Command:
    """Return the command of a command line; a wrong one is a `ConfigError` in one line; `--help` exits."""
    message = io.StringIO()
    commands, program, description = COMMANDS, "raytrain", __doc__.splitlines()[0]
    if arguments[:1] == ["review"]:
        commands, program, description = REVIEW_COMMANDS, "raytrain review", str(Review.__doc__)
        arguments = arguments[1:]
    try:
        with contextlib.redirect_stderr(message):
            command = tyro.extras.subcommand_cli_from_dict(
                commands, prog=program, description=description, args=arguments, config=_TYRO
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(_in_one_line(message.getvalue(), program)) from stop
    assert isinstance(command, Command)
    return command


def _in_one_line(box: str, program: str) -> str:
    """Return the text of tyro's box of errors as one line, without its frame, and with the hint to `program`."""
    # Behind the title; the frame is of lines, or of blanks where the output is not a terminal's.
    lines = [line.strip(" │╰╯\n") for line in box.splitlines()[1:]]
    groups = " ".join(line if line.strip("─-") else "\n" for line in lines).split("\n")
    text = next((group.strip() for group in groups if group.strip()), "wrong command line")
    text = re.sub(r"^Error parsing \w+: \d+ validation errors? for \w+ ", "", text)
    text = re.sub(r" \[type=\w+, input_value=(.*?), input_type=\w+\]", r" (found \1)", text)
    text = re.sub(r" For further information visit \S+", "", text)
    return f"{text}; see {program} --help"


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
