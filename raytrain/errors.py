"""The errors of raytrain, and the exit code that each one means.

    RaytrainError
    ├── ConfigError       the caller's mistake: settings, names, missing inputs          exit 2
    ├── DataError         one object of the data is wrong; collected, the rest goes on   exit 1
    └── WorkNotFinished   nodes, memory or the store failed; the same command goes on    exit 3
        ├── StoreOutOfReach    a store did not answer, however often it was asked        exit 3
        │   └── NoCredentials  there are no keys to ask it with, on this machine         exit 2
        └── TrainingDiverged   loss, gradient or net not finite; never retried blindly   exit 3

Messages say what was found, where, and what to do. This module must not know any other.
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_DATA_WRONG = 1
EXIT_CALLERS_MISTAKE = 2
EXIT_NOT_FINISHED = 3
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
LONGEST_TEXT = 10_000
"""Letters of what an error of the data says, which may be a stranger's: it goes to logs, tables and pages."""


class RaytrainError(Exception):
    """Base of every error that raytrain raises on purpose; `exit_code` is what a command ends with."""

    exit_code = EXIT_NOT_FINISHED


class ConfigError(RaytrainError):
    """The caller's mistake, found before any worker starts."""

    exit_code = EXIT_CALLERS_MISTAKE


class DataError(RaytrainError):
    """One object of the data is wrong. `subject` names it (a chip id, a URI), `found` says what is wrong with it.

    Of either no more than `LONGEST_TEXT` letters are kept.
    """

    exit_code = EXIT_DATA_WRONG

    def __init__(self, subject: str, found: str) -> None:
        self.subject = subject[:LONGEST_TEXT]
        self.found = found[:LONGEST_TEXT]
        super().__init__(self.subject, self.found)

    def __str__(self) -> str:
        return f"{self.subject}: {self.found}"


class WorkNotFinished(RaytrainError):
    """The work could not be finished here and now; the same command goes on where it stopped."""

    exit_code = EXIT_NOT_FINISHED


class StoreOutOfReach(WorkNotFinished):
    """A store gave no usable answer in as many attempts as it gets; another time or another machine may do better."""


class NoCredentials(StoreOutOfReach):
    """There are no keys here to sign requests to a store with: nothing was asked of it, and the caller has to act."""

    exit_code = EXIT_CALLERS_MISTAKE


class TrainingDiverged(WorkNotFinished):
    """The loss, its gradient or the net's output is not finite on some rank; every rank raises this together."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def encodable(text: str) -> str:
    """Return `text` as any file can hold it: what is no Unicode, from names of files in other encodings, escaped."""
    return text.encode("utf-8", "backslashreplace").decode()
