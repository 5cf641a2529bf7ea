"""Work sent to the job API of a cluster, and watched there over connections that drop.

A submission is named by a digest of its work and the number of the attempt: while one runs, the same work attaches to
it; once it has ended, the next one goes on from what is in the store. Ray takes no name twice. Must not know command
lines beyond a verb and its arguments.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import re
import secrets
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import aiohttp
import requests
from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.job_submission import JobStatus, JobSubmissionClient

import raytrain
from raytrain.cluster import code, token
from raytrain.config import Settings
from raytrain.errors import (
    EXIT_CALLERS_MISTAKE,
    EXIT_DATA_WRONG,
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_NOT_FINISHED,
    EXIT_TERMINATED,
    ConfigError,
    WorkNotFinished,
    first_line,
)

ResultT = TypeVar("ResultT")
Say = Callable[[str], None]

FIRST_ANSWER_S = 20.0
"""How long a server is asked again that has not answered yet: its address may be wrong."""
PATIENCE_S = 600.0
"""How long one is that has: its network, its tunnel or its head may be away."""
MOST_WAIT_S = 15.0
CONNECT_S, READ_S = 10.0, 120.0
"""How long one request may take; a package of a few MB goes with one."""
LAST_LINES_S = 60.0
"""How long the log of a job that has ended is asked for; its node may be gone with it."""
SILENCE_S = 60.0
"""After so long without a line the job is asked for, and the connection made anew: it may be dead without a word."""
STOP_S = 120
"""How long a job that is to stop may take to end as an interrupted command does; Ray's own limit is 3 s."""
NAME = re.compile(r"raytrain-([a-z]+)-([0-9a-f]{12})-(\d+)")
for _name in ("dashboard.modules.job.sdk", "dashboard.modules.dashboard_sdk", "_private.runtime_env.packaging"):
    logging.getLogger(f"ray.{_name}").setLevel(logging.WARNING)  # they tell of each connection and package
OWN_CODES = (EXIT_DATA_WRONG, EXIT_CALLERS_MISTAKE, EXIT_NOT_FINISHED, EXIT_INTERRUPTED, EXIT_TERMINATED)
ENDED = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)


class Server(Settings):
    """Where the job API of a cluster is, and whether a token may go there in the clear."""

    address: str
    plain_http: bool = False


class Work(Settings):
    """What a job does: a verb of `jobs/`, its arguments, and what they mean, for the digest.

    `writes` is what no other job may make at the same time. `files` are local files that it reads, at the same relative
    paths in its folder. `ships` is whose raytrain runs.
    """

    verb: str
    arguments: tuple[str, ...]
    meaning: dict[str, Any]
    writes: str | None = None
    files: tuple[str, ...] = ()
    ships: Literal["tree", "image"] = "tree"

    def digest(self) -> str:
        """Return 12 hex digits of a hash of what is to be done; which raytrain does it is no part of that."""
        files = {name: hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in self.files}
        text = json.dumps([self.verb, self.meaning, files], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


class Submission(Settings):
    """One attempt at some work, as the cluster knows it; times are None where it has not begun or ended."""

    id: str
    status: str
    verb: str
    attempt: int
    raytrain: str
    writes: str = ""
    begun: datetime | None = None
    ended: datetime | None = None
    exit_code: int | None = None
    message: str = ""
    is_joined: bool = False

    @property
    def has_ended(self) -> bool:
        """Whether it runs no more."""
        return self.status in ENDED


class _Refused(Exception):
    """An answer of the job API that is none of success."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"status {status}: {text.strip()[-500:]}")
        self.status, self.text = status, text


class _NotAllowed(Exception):
    """The job API wants a token (401) or refuses the one it got (403)."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class _Client(JobSubmissionClient):
    """Ray's client, with a limit to each request; without one a dead connection would be waited for without end.

    `_do_request` and `_raise_error` are private to Ray; its version is bound in pyproject.toml.
    """

    def __init__(self, address: str, headers: dict[str, str], *, uses_environment: bool) -> None:
        self._session = requests.Session()
        # A proxy of the environment would see a token that is meant for this machine; .netrc would replace it.
        self._session.trust_env = uses_environment
        self._own_headers = headers
        super().__init__(address, headers=headers)
        self._headers = headers  # Ray adds a token that it finds by itself

    def _do_request(
        self, method: str, endpoint: str, *, data: bytes | None = None, json_data: Any = None, **options: Any
    ) -> requests.Response:
        answer = self._session.request(
            method,
            self._address + endpoint,
            data=data,
            json=json_data,
            headers=self._own_headers,
            timeout=(CONNECT_S, READ_S),
            allow_redirects=False,
            **options,
        )
        if answer.status_code in (401, 403):
            raise _NotAllowed(answer.status_code)
        if 300 <= answer.status_code < 400:
            raise _Refused(answer.status_code, "a redirect; the token is not sent elsewhere")
        return answer

    def _raise_error(self, answer: requests.Response) -> None:
        raise _Refused(answer.status_code, answer.text)


class JobServer:
    """The job API of a cluster; asks again for a while where it does not answer, and says so through `say`."""

    def __init__(self, server: Server, say: Say) -> None:
        self._address, self._say = server.address.rstrip("/"), say
        self._token = token.find_token()
        parts = token.check_server(
            server.address, sends_token=self._token is not None, allow_plain_http=server.plain_http
        )
        self._is_local = token.is_this_machine(parts.hostname or "")
        self._client: _Client | None = None

    def submit(self, work: Work) -> Submission:
        """Send `work` and return its submission, or that of an attempt that runs already (`is_joined`).

        Raises `ConfigError` where other work of its verb runs that makes the same.
        """
        stem = f"raytrain-{work.verb}-{work.digest()}"
        # The answer to a submission may be lost on its way, and others may submit the same: this tells whose one is.
        mark = secrets.token_hex(8)
        while True:
            known = self.submissions()
            before = [each for each in known if each.id.rpartition("-")[0] == stem]
            running = [each for each in before if not each.has_ended]
            if running:
                return running[-1].model_copy(update={"is_joined": True})
            _refuse_beside_others(work, known)
            attempt = max((each.attempt for each in before), default=0) + 1
            name = f"{stem}-{attempt}"
            taken = self._send(work, name, attempt, mark)
            if taken is not None:
                return taken

    def _send(self, work: Work, name: str, attempt: int, mark: str) -> Submission | None:
        """Send `work` under this name; return None where another has taken it meanwhile and ended already."""
        metadata = {
            "raytrain": _told_version(work),
            "raytrain_sha256": code.digest() if work.ships == "tree" else "of the image",
            "raytrain_attempt": str(attempt),
            "raytrain_mark": mark,
            "raytrain_writes": work.writes or "",
        }
        with tempfile.TemporaryDirectory(prefix="raytrain-") as folder:
            pack(work, Path(folder))
            environment = {"working_dir": folder, "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)}}
            entrypoint = shlex.join(["python", f"jobs/{work.verb}.py", *work.arguments])
            try:
                self._ask(
                    lambda client: client.submit_job(
                        entrypoint=entrypoint, runtime_env=environment, metadata=metadata, submission_id=name
                    )
                )
            except _Refused as error:
                if "already exists" not in error.text:
                    raise WorkNotFinished(f"the cluster did not take the job: {error}") from error
        details = self._details(name)
        found = _submission(details)
        if (details.metadata or {}).get("raytrain_mark") == mark:
            return found
        return None if found.has_ended else found.model_copy(update={"is_joined": True})

    def submissions(self) -> list[Submission]:
        """Return what was submitted by us and the cluster still knows, by their beginnings."""
        found = self._answer(lambda client: client.list_jobs())
        ours = [each for each in found if NAME.fullmatch(each.submission_id or "")]
        return [_submission(each) for each in sorted(ours, key=lambda each: each.start_time or 0)]

    def submission(self, name: str) -> Submission:
        """Return the submission of this id; raise `ConfigError` where there is none."""
        return _submission(self._details(name))

    def _details(self, name: str) -> JobDetails:
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"{name}: no id of a submission; expected raytrain-VERB-DIGEST-ATTEMPT, see `submit status`"
            )
        try:
            return self._ask(lambda client: client.get_job_info(name))
        except _Refused as error:
            if error.status != 404:
                raise WorkNotFinished(f"{name}: {error}") from error
            raise ConfigError(
                f"the cluster at {self._address} knows no job {name}: another cluster, or its head was lost; "
                "the same `raytrain submit` begins an attempt that goes on from the store"
            ) from error

    def stop(self, name: str) -> Submission:
        """Ask a job to end, wait until it has, and return what became of it."""
        found = self.submission(name)
        if not found.has_ended:
            self._answer(lambda client: client.stop_job(name))
        deadline = time.monotonic() + STOP_S + 30
        while not found.has_ended and time.monotonic() < deadline:
            time.sleep(1)
            found = self.submission(name)
        return found

    def follow(self, name: str, write: Callable[[str], None]) -> Submission:
        """Pass on what a job writes, from its beginning to its end, and return what became of it.

        Raises `ConfigError` for a job that the cluster does not know, `WorkNotFinished` where it has forgotten it.
        """
        found = self.submission(name)
        lines, fruitless = _Lines(write), 0
        while not found.has_ended:
            seen = lines.count
            trouble = self._listen(name, lines)
            try:
                found = self.submission(name)  # waits until the server answers again
            except ConfigError as error:
                raise WorkNotFinished(str(error)) from error
            fruitless = fruitless + 1 if trouble and lines.count == seen else 0
            if fruitless == 1:
                self._say(f"raytrain: the log of {name} broke off ({trouble}); joining it again")
            if fruitless > 1 and not found.has_ended:  # perhaps nothing lets WebSockets through
                self._pass_on_the_rest(name, lines)
            if not found.has_ended:
                time.sleep(min(MOST_WAIT_S, 0.5 * 2 ** min(fruitless, 8)))
        self._pass_on_the_rest(name, lines)
        return found

    def _listen(self, name: str, lines: _Lines) -> str:
        """Pass on the log over one connection until it ends, is silent for a while, or breaks; return what broke it.

        One that a proxy ends looks like one that the server ends, behind the last line.
        """
        client = self._connected()
        lines.start_again()

        async def listen() -> None:
            pieces = client.tail_job_logs(name)
            with contextlib.suppress(StopAsyncIteration, TimeoutError):
                while True:
                    lines.take(await asyncio.wait_for(anext(pieces), SILENCE_S))

        try:
            asyncio.run(listen())
        except (aiohttp.ClientError, OSError, RuntimeError) as error:  # the last is Ray's, for a socket that broke
            return first_line(error)
        return ""

    def _pass_on_the_rest(self, name: str, lines: _Lines) -> None:
        """Pass on what no connection brought of the log so far, all of it if the job has ended: whole, or nothing."""
        try:
            whole = self._ask(lambda client: client.get_job_logs(name), patience_s=LAST_LINES_S)
        except (WorkNotFinished, _Refused) as error:
            self._say(f"raytrain: the end of the log of {name} can't be had: {error}")
            return
        lines.start_again()
        lines.take(whole)

    def _connected(self) -> _Client:
        if self._client is None:
            headers = {} if self._token is None else {"Authorization": f"Bearer {self._token}"}
            self._client = _Client(self._address, headers, uses_environment=not self._is_local)
        return self._client

    def _answer(self, request: Callable[[_Client], ResultT]) -> ResultT:
        """Return what `_ask` does; an answer of none of success is unfinished work."""
        try:
            return self._ask(request)
        except _Refused as error:
            raise WorkNotFinished(f"{self._address}: {error}") from error

    def _ask(self, request: Callable[[_Client], ResultT], patience_s: float | None = None) -> ResultT:
        """Return the answer of the job API; ask again, with growing waits, while there is none.

        Raises `ConfigError` where none ever came or the token is refused, `WorkNotFinished` where it stayed away, and
        `_Refused` for an answer that asking again does not change.
        """
        begun, wait_s, told = time.monotonic(), 0.5, False
        while True:
            try:
                return request(self._connected())
            except _NotAllowed as error:
                raise ConfigError(self._refusal(error.status)) from None
            except RuntimeError as error:  # Ray's, of a server that is another one, or of a Ray too old
                if self._client is not None:
                    raise
                raise ConfigError(f"no job API of Ray at {self._address}: {first_line(error)}") from error
            except (requests.RequestException, OSError, _Refused) as error:
                passing = (
                    not isinstance(error, _Refused)
                    or error.status == 429
                    or (error.status >= 500 and "already exists" not in error.text)
                )
                if not passing and self._client is None:
                    raise ConfigError(f"no job API of Ray at {self._address}: {error}") from error
                if not passing:
                    raise
                cause = _innermost(error)
            waited_s = time.monotonic() - begun
            if self._client is None and waited_s > FIRST_ANSWER_S:
                tunnel = "is the tunnel there (`ray dashboard cluster.yaml`)?"
                raise ConfigError(f"no job API answers at {self._address} ({cause}); {tunnel}")
            if waited_s > (PATIENCE_S if patience_s is None else patience_s):
                raise WorkNotFinished(
                    f"the job API at {self._address} does not answer any more ({cause}); if the cluster is there, its "
                    "jobs go on and the same command attaches; if its head was lost, the next attempt begins with it"
                )
            if not told:
                self._say(f"raytrain: no answer from {self._address} ({cause}); asking again")
                told = True
            time.sleep(wait_s)
            wait_s = min(MOST_WAIT_S, wait_s * 2)

    def _refusal(self, status: int) -> str:
        if status == 401:
            return (
                f"{self._address} wants a token (401); put the cluster's into {token.TOKEN} or {token.default_path()} "
                "(`ray get-auth-token` on the head shows it)"
            )
        return f"{self._address} refuses this token (403): it is another cluster's; `ray get-auth-token` on its head"


class _Lines:
    """What was passed on of a log that each connection sends from its beginning."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self.count = 0
        self._skip = 0

    def start_again(self) -> None:
        """Know that the next piece is of the beginning."""
        self._skip = self.count

    def take(self, piece: str) -> None:
        """Pass on what is new of the next piece."""
        new = piece[self._skip :]
        self._skip = max(0, self._skip - len(piece))
        self.count += len(new)
        if new:
            self._write(new)


def pack(work: Work, folder: Path) -> None:
    """Fill an empty folder with what the job needs: its script, the files it reads, and raytrain where it ships.

    Raises `ConfigError` where raytrain was not installed from a clone, which has the scripts.
    """
    package = Path(raytrain.__file__).parent
    script = package.parent / "jobs" / f"{work.verb}.py"
    if not script.is_file():
        raise ConfigError(f"no {script}: raytrain is installed without its jobs; run `raytrain submit` in a clone")
    (folder / "jobs").mkdir()
    shutil.copy(script, folder / "jobs")
    if work.ships == "tree":
        for path in sorted(package.rglob("*.py")):
            target = folder / "raytrain" / path.relative_to(package)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    for name in work.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, folder / name)


def _refuse_beside_others(work: Work, known: Sequence[Submission]) -> None:
    for each in known:
        if work.writes and (each.verb, each.writes) == (work.verb, work.writes) and not each.has_ended:
            raise ConfigError(
                f"{each.id} makes {work.writes} now, with other options; wait for it "
                f"(`raytrain submit logs {each.id}`), or end it (`raytrain submit stop {each.id}`)"
            )


def exit_code_of(ended: Submission) -> int:
    """Return what a command ends with that watched a job to its end: what the job's own did.

    One that a signal killed is not finished, and so is one that could not be started or was lost with its node.
    """
    if ended.status == JobStatus.SUCCEEDED:
        return EXIT_DONE
    if ended.status == JobStatus.STOPPED:
        return EXIT_TERMINATED
    # A shell that starts the job's process says 128 and the number of the signal.
    return ended.exit_code if ended.exit_code in OWN_CODES else EXIT_NOT_FINISHED


def _innermost(error: BaseException) -> str:
    """Return the first line of what an error of requests came from: theirs quote all that is around it."""
    while error.args and isinstance(cause := getattr(error.args[0], "reason", error.args[0]), BaseException):
        error = cause
    return first_line(error)


def _told_version(work: Work) -> str:
    if work.ships == "image":
        return "the image's"
    return f"{raytrain.__version__} of the submitted tree, {code.digest()[:12]}"


def _submission(details: JobDetails) -> Submission:
    match = NAME.fullmatch(details.submission_id or "")
    assert match is not None
    return Submission(
        id=match[0],
        status=str(details.status.value),
        verb=match[1],
        attempt=int(match[3]),
        raytrain=(details.metadata or {}).get("raytrain", "unknown"),
        writes=(details.metadata or {}).get("raytrain_writes", ""),
        begun=_time(details.start_time),
        ended=_time(details.end_time),
        exit_code=details.driver_exit_code,
        message=(details.message or "").strip().partition("\n")[0],
    )


def _time(milliseconds: int | None) -> datetime | None:
    return None if not milliseconds else datetime.fromtimestamp(milliseconds / 1000, UTC)
