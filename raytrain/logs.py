"""What a process says of itself while it works: one JSON object a line for collectors, or lines for a person.

Every record names the run, member, fold, rank, unit and attempt that it is about, as far as they are known where it is
made, and never shows the query of an address or a secret of the environment. Must not know Ray, or what is worth
saying.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

from raytrain import storage

Encoding = Literal["text", "json"]
SUBJECT = ("run", "member", "fold", "rank", "unit", "attempt")
"""What a record may be about, in the order in which lines have it."""
LOGGER = "raytrain"
VARIABLE = "RAYTRAIN_LOG"
"""How the encoding gets to processes that this one starts; no person sets it."""
SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN")
"""Variables whose values no record shows, if they are long enough to be secrets and not words."""
_SECRET_CHARACTERS = 16
_PASSWORD = re.compile(r"([a-z][a-z0-9+.-]{0,30}://)[^\s/@'\"]+@", re.IGNORECASE)
_EXTRA = "raytrain_fields"
_node = socket.gethostname()
_process: dict[str, Any] = {}
_context: ContextVar[Mapping[str, Any]] = ContextVar("raytrain_subject", default={})  # noqa: B039  # never changed


def begin(encoding: Encoding, *, level: int | None = None) -> None:
    """Have all loggers of this process write to its stderr, and those of raytrain from `level` on.

    By default that is INFO in JSON and WARNING in text, where a person is told of the rest by other lines. Other
    packages have WARNING. Handlers that write to stderr or stdout give way, so that nothing is said twice; those of
    Ray Train that write files take the same form.
    """
    formatter = JsonLines() if encoding == "json" else TextLines()
    root = logging.getLogger()
    for each in list(root.handlers):
        stream = getattr(each, "stream", None)
        if isinstance(each, ToStderr) or stream in (sys.stderr, sys.stdout, sys.__stderr__, sys.__stdout__):
            root.removeHandler(each)
        elif type(each).__name__ == "SessionFileHandler":
            each.setFormatter(JsonLines())
    handler = ToStderr()
    handler.setFormatter(formatter)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    if level is None:
        level = logging.INFO if encoding == "json" else logging.NOTSET  # that of the root
    logging.getLogger(LOGGER).setLevel(level)
    logging.captureWarnings(encoding == "json")
    os.environ.pop(VARIABLE, None)
    if encoding == "json":
        os.environ[VARIABLE] = encoding


def begin_worker(**subject: Any) -> None:
    """Do so in a process of the cluster, from INFO on, as its driver does it; all its records are about `subject`."""
    begin("json" if os.environ.get(VARIABLE) == "json" else "text", level=logging.INFO)
    be_about(**subject)


def for_workers() -> dict[str, str]:
    """Return the environment variable by which workers write JSON; none where they write text, as they do unasked."""
    return {name: os.environ[name] for name in (VARIABLE,) if name in os.environ}


def be_about(**subject: Any) -> None:
    """Say what all records of this process are about from now on, in place of what was said before."""
    global _process
    _process = _checked(subject)


def subject() -> dict[str, Any]:
    """Return what all records of this process are about, for a process that works for it."""
    return dict(_process)


@contextlib.contextmanager
def about(**subject: Any) -> Iterator[None]:
    """Say what the records of this thread are about while the body runs, beside what was said before."""
    token = _context.set({**_context.get(), **_checked(subject)})
    try:
        yield
    finally:
        _context.reset(token)


def fields(**values: Any) -> dict[str, Any]:
    """Return what `extra` of a logger's call takes so that JSON has these names beside the message, in place of others.

    Numbers carry their unit in the name, as everywhere.
    """
    return {_EXTRA: values}


class ToStderr(logging.Handler):
    """Writes to what stderr is as it writes: above the bars where there are any, to who redirects it in tests."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, by one call."""
        try:
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()
        except Exception:  # noqa: BLE001  # what can't be logged ends nothing, as with every handler of Python
            self.handleError(record)


def _checked(subject: Mapping[str, Any]) -> dict[str, Any]:
    unknown = subject.keys() - set(SUBJECT)
    assert not unknown, f"a record is about {SUBJECT}, not {unknown}"
    return {name: value for name, value in subject.items() if value is not None}


def _subject(record: logging.LogRecord) -> dict[str, Any]:
    found = {**_process, **_context.get()}
    found |= {name: value for name, value in getattr(record, _EXTRA, {}).items() if name in SUBJECT}
    return {name: found[name] for name in SUBJECT if name in found}


def without_secrets(text: str) -> str:
    """Return `text` without queries and passwords of addresses, and without the secrets that the environment has."""
    cleaned = _PASSWORD.sub(r"\1...@", storage.without_queries(text))
    for name in SECRETS:
        secret = os.environ.get(name, "")
        if len(secret) >= _SECRET_CHARACTERS:
            cleaned = cleaned.replace(secret, f"<{name}>")
    return cleaned


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, Mapping):
        return {str(name): _cleaned(each) for name, each in value.items()}
    return [_cleaned(each) for each in value] if isinstance(value, (list, tuple)) else value


class JsonLines(logging.Formatter):
    """One JSON object a record: `time` (UTC), `level`, `logger`, `message`, `node`, `pid`, subject, further fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": without_secrets(record.getMessage()),
            "node": _node,
            "pid": record.process,
            **_subject(record),
        }
        for name, value in getattr(record, _EXTRA, {}).items():
            if name not in line and value is not None:
                line[name] = _cleaned(value)
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = without_secrets(self.formatException(record.exc_info))
        return json.dumps(line, default=lambda value: without_secrets(str(value)))


class TextLines(logging.Formatter):
    """Lines for a person: level, logger, what it is about in brackets, the message; a traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines, without their end."""
        subject = " ".join(f"{name}={value}" for name, value in _subject(record).items())
        place = f"{record.name} [{subject}]" if subject else record.name
        text = f"{record.levelname} {place}: {record.getMessage()}"
        if record.exc_info and record.exc_info[0] is not None:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        return without_secrets(text)


def readable(line: str) -> str:
    """Return a line of a log as a person reads it: of a record made here time, level, subject, message.

    An exception stands below, in lines of its own; any other line stays as it is. For whoever shows the log of a job on
    a terminal.
    """
    try:
        found = json.loads(line)
        time, level, logger, message = (str(found[name]) for name in ("time", "level", "logger", "message"))
    except (ValueError, KeyError, TypeError):
        return line
    subject = " ".join(f"{name}={found[name]}" for name in SUBJECT if name in found)
    head = time[11:19] if level == "INFO" and logger == LOGGER else f"{time[11:19]} {level} {logger}"
    text = f"{head} [{subject}] {message}" if subject else f"{head} {message}"
    return f"{text}\n{found['exception']}" if "exception" in found else text
