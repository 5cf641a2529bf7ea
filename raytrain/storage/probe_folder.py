"""Asks a folder of this machine what is asked of a store. Must not know what anybody makes of the answers."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from raytrain.storage.probe_answers import (
    PROBE_BYTES,
    Differs,
    Kind,
    NothingThere,
    Questions,
    StoreReport,
    check_same,
    content,
    rate,
)

_OF_ERRNO: dict[int, Kind] = {
    errno.ENOENT: "no-folder",
    errno.ENOTDIR: "no-folder",
    errno.EACCES: "refused",
    errno.EPERM: "refused",
    errno.EROFS: "read-only",
    errno.ENOSPC: "full",
    errno.EDQUOT: "full",
}


def probe_folder(path: str, name: str, writes: bool) -> StoreReport:
    """Ask the folder at `path`, as `probe` says."""
    questions = Questions(_kind_of)
    names = questions.ask("list", lambda: sorted(os.listdir(path)))
    if not writes:
        _read_a_file(Path(path), names, questions)
        return StoreReport(uri=path, answers=questions.answers)
    file, data = _Probe(Path(path, name)), content()
    try:
        questions.ask("write", lambda: file.write(data))
        if questions.answers["write"].kind == "ok":
            questions.ask("read", lambda: check_same(_first_bytes(file.path), data))
        else:
            questions.pass_by("read", "not-asked")
    finally:
        if file.may_be_there:
            questions.ask("delete", lambda: file.path.unlink(missing_ok=True), always=True)
        else:
            questions.pass_by("delete", "not-asked")
    gone = questions.answers["delete"].kind in ("ok", "not-asked")
    return StoreReport(
        uri=path,
        answers=questions.answers,
        bytes_per_s=rate(questions.answers, writes),
        left_behind="" if gone else str(file.path),
    )


class _Probe:
    """A file to write, and whether it may be there: a folder that can't be looked into does not say."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._was_opened = False

    def write(self, data: bytes) -> None:
        """Write the file, which is new."""
        with self.path.open("xb") as opened:
            self._was_opened = True
            opened.write(data)

    @property
    def may_be_there(self) -> bool:
        """Tell whether there is something to remove; never raises."""
        return self._was_opened or os.path.lexists(self.path)


def _read_a_file(folder: Path, names: list[str] | None, questions: Questions) -> None:
    """Read the beginning of a file of a folder that could be listed."""
    if names is None:
        questions.pass_by("read", "not-asked")
    else:
        questions.ask("read", lambda: _first_bytes(_a_file(folder, names)))


def _a_file(folder: Path, names: list[str]) -> Path:
    """Return the first file that holds something; raise what kept from looking at one, where there is no other."""
    problem: Exception = NothingThere()
    for name in names:
        try:
            found = (folder / name).stat()
        except FileNotFoundError:
            continue  # a link to nowhere, or gone meanwhile
        except OSError as error:
            problem = error
            continue
        if stat.S_ISREG(found.st_mode) and found.st_size and not name.startswith("."):
            return folder / name
    raise problem


def _first_bytes(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(PROBE_BYTES + 1)


def _kind_of(error: BaseException) -> tuple[Kind, str]:
    if isinstance(error, Differs):
        return "differs", str(error)
    if isinstance(error, NothingThere):
        return "nothing-there", ""
    if isinstance(error, OSError) and error.errno:
        return _OF_ERRNO.get(error.errno, "other"), os.strerror(error.errno)
    return "other", type(error).__name__
