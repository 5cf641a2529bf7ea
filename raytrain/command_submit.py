"""The command `raytrain submit`: work sent to a cluster, watched, asked for and stopped there."""

from __future__ import annotations

import os
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import tyro
from pydantic import Field

from raytrain import logs, storage
from raytrain.command import Command
from raytrain.config import parse
from raytrain.console import Narrator, print_table
from raytrain.errors import EXIT_DONE, EXIT_NOT_FINISHED, ConfigError

ADDRESS = "RAY_API_SERVER_ADDRESS"
"""Ray's own name for where a job API is; `ray job submit` reads it, too."""
Verb = Literal["shard", "train", "tune", "score", "evaluate", "verify", "review", "doctor"]
Request = Literal["status", "logs", "stop"]
VERBS: tuple[str, ...] = get_args(Verb)
REQUESTS: tuple[str, ...] = get_args(Request)
_USER = re.compile(r"://[^/\s]*@")


class Submit(Command):
    """Send a command to a cluster's job API (`submit [OPTIONS] VERB ...`), or ask for what was sent.

    The same work again attaches to its attempt while that runs, and begins the next one after it, which goes on from
    the store. Ctrl-C ends the watching, not the job. Options of the VERB stand behind it; its inputs and outputs are
    s3://... or paths on the cluster; relative files of --config and --stores are sent along.
    """

    what: Annotated[Verb | Request, tyro.conf.Positional, tyro.conf.arg(metavar="VERB|status|logs|stop")]
    """What to do on the cluster; or `status [ID]`, `logs ID`, `stop ID`."""
    id: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="ID")] = None
    """The submission to ask for; without one, `status` lists all."""
    address: str | None = None
    """Where the job API is, such as http://127.0.0.1:8265; by default RAY_API_SERVER_ADDRESS."""
    detach: bool = False
    """Do not watch the job; print its id."""
    code: Literal["tree", "image"] = "tree"
    """Whose raytrain runs: that of this clone, which is sent along, or the one in the cluster's image."""
    plain_http: bool = False
    """Send the token in the clear to another host than this one."""
    stores: Annotated[str | None, tyro.conf.Suppress] = None
    """For the VERB to say."""
    arguments: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """The VERB's own."""
    meaning: Annotated[dict[str, Any], tyro.conf.Suppress] = Field(default_factory=dict)
    """What these say, options that are not given among it."""
    writes: Annotated[str | None, tyro.conf.Suppress] = None
    """What two jobs at a time would spoil for each other."""
    files: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """Those that are sent along."""

    def of(self, arguments: tuple[str, ...], work: Command) -> Self:
        """Return this command for a `work` that has these arguments; raise `ConfigError` for what no job can do."""
        if any(each.partition("=")[0] == "--address" for each in arguments):
            raise ConfigError("--address: a job runs on the cluster it is sent to; say where that is before the verb")
        if any(storage.without_queries(each) != each for each in arguments):
            raise ConfigError(
                "an address with a query may be signed, and a cluster shows the command of a job to all who see its "
                "dashboard; put such addresses into a list in a store and name that"
            )
        if any(_USER.search(each) for each in arguments):
            raise ConfigError("an address with a user or a password in it: a cluster shows the command of a job")
        files = tuple(each for each in work.read_by_driver() if _is_relative(each))
        if not any("://" in each for each in work.read_by_driver()):  # no store is asked from here
            check_paths_of_job(work)
        for each in files:
            if ".." in Path(each).parts or not Path(each).is_file():
                raise ConfigError(f"{each}: expected a file below this folder, to be sent along, or s3://...")
        of_verb = {"command": arguments[0]} if self.what == "review" else {}  # the commands of a verb have like options
        more = {"meaning": {**_meaning(work), **of_verb}, "writes": work.writes_to(), "files": files}
        return self.model_copy(update={"arguments": arguments, **more})

    def run(self, narrator: Narrator) -> int:
        """Send the work, or ask for it."""
        from raytrain.cluster.submit import JobServer, Server

        if self.id is None and self.what in ("logs", "stop"):
            raise ConfigError(f"submit {self.what}: expected the id of a submission; `submit status` lists them")
        address = self.address or os.environ.get(ADDRESS)
        if not address:
            raise ConfigError(f"where is the cluster? Give --address (before the verb), or set {ADDRESS}")
        server = JobServer(parse(Server, {"address": address, "plain_http": self.plain_http}), narrator.say)
        if self.what == "status":
            return self._status(server)
        if self.what == "stop":
            return self._stop(server, narrator)
        if self.what == "logs":
            return self._watch(server, str(self.id), narrator)
        return self._submit(server, narrator)

    def _submit(self, server: Any, narrator: Narrator) -> int:
        from raytrain.cluster.submit import Work

        fields = {"verb": self.what, "arguments": self.arguments, "meaning": self.meaning, "files": self.files}
        found = server.submit(parse(Work, {**fields, "writes": self.writes, "ships": self.code}))
        how = "runs already, begun by another submission; attached" if found.is_joined else "submitted"
        narrator.say(f"raytrain: {found.id}: {how}; attempt {found.attempt}, raytrain {found.raytrain}")
        if self.detach:
            self._print(found.model_dump(mode="json"), [found.id])
            return EXIT_DONE
        return self._watch(server, found.id, narrator)

    def _watch(self, server: Any, name: str, narrator: Narrator) -> int:
        from raytrain.cluster.submit import exit_code_of

        shown = _Log()
        try:
            ended = server.follow(name, shown.write)
        except KeyboardInterrupt:
            narrator.say(
                f"raytrain: the job goes on; `raytrain submit logs {name}` watches, `submit stop {name}` ends it"
            )
            raise
        finally:
            shown.end()
        code = exit_code_of(ended)
        why = f": {ended.message}" if code == EXIT_NOT_FINISHED and ended.exit_code != code else ""
        narrator.say(f"raytrain: {name}: {ended.status.lower()}, exit code {code}{why}")
        return code

    def _stop(self, server: Any, narrator: Narrator) -> int:
        found = server.stop(self.id)
        if not found.has_ended:
            narrator.say(f"raytrain: {found.id} was asked to stop and still runs; ask again, or look at its log")
        self._print(found.model_dump(mode="json"), [f"{found.id}: {found.status.lower()}"])
        return EXIT_DONE if found.has_ended else EXIT_NOT_FINISHED

    def _status(self, server: Any) -> int:
        if self.id is not None:
            found = server.submission(self.id)
            facts = found.model_dump(mode="json", exclude={"is_joined"})
            self._print(facts, [f"{name}: {value}" for name, value in facts.items() if value not in (None, "")])
            return EXIT_DONE
        listed = server.submissions()
        if self.json_output:
            self._print({"submissions": [each.model_dump(mode="json", exclude={"is_joined"}) for each in listed]}, [])
        else:
            rows = [
                [each.id, each.status.lower(), _clock(each.begun), _clock(each.ended), _exit_text(each)]
                for each in listed
            ]
            print_table("Submissions", ["id", "status", "begun", "ended", "exit code"], rows)
        return EXIT_DONE


def _meaning(work: Command) -> dict[str, Any]:
    """Return what the options of a command say, whatever their order and form: the same work has the same."""
    found = work.model_dump(mode="json", exclude={"json_output", "log", "address", "shared_path"})
    if "set" in found:  # the last of a path counts
        found["set"] = dict(each.partition("=")[::2] for each in found["set"])
    return {name: _plain(value) for name, value in found.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return storage.normalise(value) if isinstance(value, str) and value.startswith(("s3://", "/", "~")) else value


def check_paths_of_job(work: Command) -> None:
    """Raise `ConfigError` for a relative local path as input or output: a job runs in a folder that goes away."""
    relative = [uri for uri in work.uris() if _is_relative(uri)]
    if relative:
        raise ConfigError(f"{relative[0]}: a job needs s3://... or an absolute path, its working folder goes away")


def _is_relative(uri: str) -> bool:
    return "://" not in uri and not Path(uri).expanduser().is_absolute()


class _Log:
    """Shows the log of a job on stdout: as it is, but as a person reads it on a terminal, which obeys none of it."""

    def __init__(self) -> None:
        self._rest = ""

    def write(self, text: str) -> None:
        """Show the next piece."""
        if sys.stdout.isatty():
            *lines, self._rest = f"{self._rest}{text}".split("\n")
            text = "".join(f"{logs.readable(line)}\n" for line in lines)
        sys.stdout.write(text)
        sys.stdout.flush()

    def end(self) -> None:
        """Show what has no end of a line."""
        sys.stdout.write(logs.readable(self._rest))  # something only on a terminal
        sys.stdout.flush()


def _clock(time: datetime | None) -> str:
    return "-" if time is None else time.astimezone().strftime("%m-%d %H:%M:%S")


def _exit_text(found: Any) -> str:
    from raytrain.cluster.submit import exit_code_of

    return str(exit_code_of(found)) if found.has_ended else "-"
