"""What a process says of itself while it works: one JSON object a line for collectors, or lines for a person.

Every record names the run, member, fold, rank, unit and attempt that it is about, as far as they are known where it is
made, and never shows the query of an address or a secret of the environment. What others have written gets to a
terminal without control characters. Must not know Ray, or what is worth saying.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote

from raytrain import storage

Encoding = Literal["text", "json"]
SUBJECT = ("run", "member", "fold", "rank", "unit", "attempt")
"""What a record may be about, in the order in which lines have it."""
LOGGER = "raytrain"
VARIABLE = "RAYTRAIN_LOG"
"""How the encoding gets to processes that work for a command of raytrain; no person sets it."""
SECRET_CHARACTERS = 12
"""Values of secret variables that are shorter are shown: they may be words, or parts of names."""
_SECRET = re.compile(r"(TOKEN|PASSWORD|PASSWD|SECRET|SECRET_ACCESS_KEY|SECRET_KEY|API_KEY)$")
"""What the names of variables end in whose values no record shows."""
_PASSWORD = re.compile(r"([a-z][a-z0-9+.-]{0,30}://)[^\s/]+@", re.IGNORECASE)
_PATH_QUERY = re.compile(r"(?<=[^\s'\"])\?[A-Za-z0-9_.%-]+=[^\s'\"]*")
_SIGNATURE = re.compile(
    r"(?:\b|(?<=%[0-9a-f]{2}))(X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|sig|signature|access_?token|token|password|secret|"
    r"AWSAccessKeyId|Key-Pair-Id)(=|%3D)(?!\.\.\.)[^\s&'\"]+",
    re.IGNORECASE,
)
"""Parameters that sign, wherever they stand: behind a blank or a quote in a query, or in an address in an address."""
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_CONSOLES = ("PlainRayHandler",)
"""Handlers that write to stderr and say so in no other way."""
_EXTRA = "raytrain_fields"
_node = socket.gethostname()
_process: dict[str, Any] = {}
_context: ContextVar[Mapping[str, Any]] = ContextVar("raytrain_subject", default={})  # noqa: B039  # never changed


def begin(encoding: Encoding, *, level: int | None = None) -> None:
    """Have all loggers of this process write to its stderr, and those of raytrain from `level` on.

    For a command of raytrain, whose process is its own. By default the level is INFO in JSON and WARNING in text, where
    a person is told of the rest by other lines. Other packages have WARNING. Handlers that write to stderr or stdout
    give way, of loggers that keep their records to themselves, too, as Ray Train's does, so that nothing is said twice;
    those of Ray Train that write files take the form of JSON.
    """
    root, own = logging.getLogger(), logging.getLogger(LOGGER)
    own.propagate = True
    _take_consoles(encoding)
    root.setLevel(logging.WARNING)
    if level is None:
        level = logging.INFO if encoding == "json" else logging.NOTSET  # that of the root
    own.setLevel(level)
    logging.captureWarnings(encoding == "json")
    os.environ[VARIABLE] = encoding


def begin_again() -> None:
    """Have loggers that came after `begin`, with consoles of their own as Ray's has, write as all do.

    Another program's are left alone.
    """
    if _is_of_command():
        _take_consoles("json" if os.environ[VARIABLE] == "json" else "text")


def begin_worker(**subject: Any) -> None:
    """Have a process that works for another one log from INFO on; all its records are about `subject`.

    A command's worker logs as the command does. Another program's logging is left as that has it: there raytrain's
    loggers write lines to stderr, and to nothing else.
    """
    if _is_of_command():
        begin("json" if os.environ[VARIABLE] == "json" else "text", level=logging.INFO)
    else:
        own = logging.getLogger(LOGGER)
        _without_consoles(own)
        own.addHandler(_to_stderr("text"))
        own.setLevel(logging.INFO)
        own.propagate = False
    be_about(**subject)


def _is_of_command() -> bool:
    return os.environ.get(VARIABLE) in ("text", "json")


def _take_consoles(encoding: Encoding) -> None:
    root = logging.getLogger()
    others = [each for each in list(root.manager.loggerDict.values()) if isinstance(each, logging.Logger)]
    for each in (root, *others):
        had_console = _without_consoles(each)
        if each is root:
            each.addHandler(_to_stderr(encoding))
        elif had_console and not each.propagate:
            apart = _to_stderr(encoding)
            apart.setLevel(logging.WARNING)  # as others have it by the root
            each.addHandler(apart)


def _to_stderr(encoding: Encoding) -> ToStderr:
    handler = ToStderr()
    handler.setFormatter(JsonLines() if encoding == "json" else TextLines())
    return handler


def _without_consoles(logger: logging.Logger) -> bool:
    """Take the handlers that write to stderr or stdout off a logger; return whether there were any."""
    found = False
    for each in list(logger.handlers):
        stream = getattr(each, "stream", None)
        is_console = isinstance(each, ToStderr) or type(each).__name__ in _CONSOLES
        if is_console or stream in (sys.stderr, sys.stdout, sys.__stderr__, sys.__stdout__):
            logger.removeHandler(each)
            found = True
        elif type(each).__name__ == "SessionFileHandler":
            each.setFormatter(JsonLines())
    return found


def for_workers() -> dict[str, str]:
    """Return the environment variable by which workers know that they work for a command, and how they log."""
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

    def handleError(self, record: logging.LogRecord) -> None:
        """Say which record can't be written, by where it was made: what it has may be secret."""
        with contextlib.suppress(OSError, ValueError):
            kind = type(sys.exception()).__name__
            place = f"{record.name} ({os.path.basename(record.pathname)}:{record.lineno})"
            sys.stderr.write(f"{LOGGER}: a record of {place} can't be written: {kind}\n")


def _checked(subject: Mapping[str, Any]) -> dict[str, Any]:
    unknown = subject.keys() - set(SUBJECT)
    assert not unknown, f"a record is about {SUBJECT}, not {unknown}"
    return {name: value for name, value in subject.items() if value is not None}


def _subject(record: logging.LogRecord) -> dict[str, Any]:
    found = {**_process, **_context.get()}
    found |= {name: value for name, value in getattr(record, _EXTRA, {}).items() if name in SUBJECT}
    return {name: found[name] for name in SUBJECT if name in found}


def without_secrets(text: str) -> str:
    """Return `text` without queries, signatures and passwords of addresses, and without secrets of the environment.

    Those are the values of variables whose names say so, also as a query has them, percent-encoded.
    """
    for name, secret in os.environ.items():
        if _SECRET.search(name) and len(secret) >= SECRET_CHARACTERS:
            for form in (secret, quote(secret, safe=""), quote(secret)):
                text = text.replace(form, f"<{name}>")
    text = _PATH_QUERY.sub("", storage.without_queries(text))
    return _SIGNATURE.sub(r"\1\2...", _PASSWORD.sub(r"\1...@", text))


def printable(text: str) -> str:
    """Return `text` as a terminal may have it: control characters are escaped but ends of lines and tabs."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def for_person(text: str) -> str:
    """Return `text` without secrets, as a terminal may have it."""
    return printable(without_secrets(text))


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has none such
    if isinstance(value, Mapping):
        return {without_secrets(str(name)): _cleaned(each) for name, each in value.items()}
    return [_cleaned(each) for each in value] if isinstance(value, (list, tuple)) else value


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001  # whatever its arguments raise: a record that is made wrong is read all the same
        return f"{record.msg} {record.args!r}"


class JsonLines(logging.Formatter):
    """One JSON object a record: `time` (UTC), `level`, `logger`, `message`, `node`, `pid`, subject, further fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": without_secrets(_message(record)),
            "node": _node,
            "pid": record.process,
            **_cleaned(_subject(record)),
        }
        for name, value in getattr(record, _EXTRA, {}).items():
            if name not in line and value is not None:
                line[name] = _cleaned(value)
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = without_secrets(self.formatException(record.exc_info))
        return json.dumps(line, default=lambda value: without_secrets(str(value)), allow_nan=False)


class TextLines(logging.Formatter):
    """Lines for a person: level, logger, what it is about in brackets, the message; a traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines, without their end."""
        subject = " ".join(f"{name}={value}" for name, value in _subject(record).items())
        place = f"{record.name} [{subject}]" if subject else record.name
        text = f"{record.levelname} {place}: {_message(record)}"
        if record.exc_info and record.exc_info[0] is not None:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        return for_person(text)


def readable(line: str) -> str:
    """Return a line of a log as a person reads it: of a record made here time, level, subject, message.

    An exception stands below, in lines of its own; any other line stays as it is, but for control characters. For
    whoever shows the log of a job on a terminal.
    """
    try:
        return printable(_as_text(json.loads(line)))
    except (ValueError, KeyError, TypeError, RecursionError):
        return printable(line.removesuffix("\r"))


def _as_text(found: Mapping[str, Any]) -> str:
    time, level, logger, message = (str(found[name]) for name in ("time", "level", "logger", "message"))
    subject = " ".join(f"{name}={found[name]}" for name in SUBJECT if name in found)
    head = time[11:19] if level == "INFO" and logger == LOGGER else f"{time[11:19]} {level} {logger}"
    text = f"{head} [{subject}] {message}" if subject else f"{head} {message}"
    return f"{text}\n{found['exception']}" if "exception" in found else text
