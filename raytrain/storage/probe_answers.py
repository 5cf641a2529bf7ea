"""What a store or a folder answers to a probe: the kinds of answers, and how they are collected.

Answers are kept as kinds and as the codes that stores give: their texts, which may hold keys and signatures, are not.
Must not know what is asked, nor what anybody makes of the answers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Literal

from raytrain.config import Settings

Kind = Literal[
    "ok",
    "not-asked",  # since another answer says enough
    "nothing-there",  # nothing to read
    "no-credentials",
    "no-profile",
    "refused",  # these keys have no right to it
    "wrong-keys",  # the store does not know them, or their signature is not theirs
    "expired",
    "clock",
    "region",  # the bucket lies in another one, or at another endpoint
    "no-bucket",
    "no-folder",
    "unknown-host",
    "no-connection",
    "timeout",
    "tls",
    "not-s3",
    "unavailable",
    "read-only",
    "full",
    "differs",  # what was read is not what was written
    "other",
]
Name = Literal["list", "write", "read", "delete"]

PROBE_BYTES = 256 * 1024
_TEXT = b"A probe that `raytrain doctor` wrote to see whether it can. It removes it at once; else you may.\n"


class Answer(Settings):
    """What came of one question: its kind, a detail that holds no secret, and how long it took."""

    kind: Kind
    detail: str = ""
    seconds: float = 0.0


class StoreReport(Settings):
    """What a store, or a folder, answered to one machine.

    `credentials` names the source of the keys, never a key. `ahead_s` is the store's clock less this machine's, to a
    second. `bucket_region` is said where the bucket lies elsewhere than it was asked. `left_behind` names a probe that
    could not be removed; `keeps_versions` says that the store keeps deleted objects.
    """

    uri: str
    endpoint: str = ""
    region: str = ""
    credentials: str = ""
    answers: dict[Name, Answer]
    bytes_per_s: float | None = None
    ahead_s: float | None = None
    bucket_region: str = ""
    left_behind: str = ""
    keeps_versions: bool = False


class Questions:
    """Asks one after the other, and notes what came of each; after an error that all will meet nothing is asked."""

    def __init__(self, kind_of: Callable[[BaseException], tuple[Kind, str]]) -> None:
        self._kind_of = kind_of
        self.answers: dict[Name, Answer] = {}
        self._ends = False

    def ask(self, name: Name, question: Callable[[], Any], *, always: bool = False) -> Any:
        """Return what `question` returns, None where it fails or is not asked."""
        if self._ends and not always:
            self.answers[name] = Answer(kind="not-asked")
            return None
        start = time.monotonic()
        try:
            result = question()
        except Exception as error:  # noqa: BLE001  # whatever comes is the answer
            kind, detail = self._kind_of(error)
            self.answers[name] = Answer(kind=kind, detail=detail, seconds=time.monotonic() - start)
            self._ends = kind not in ("ok", "refused", "read-only", "full", "differs", "nothing-there", "other")
            return None
        self.answers[name] = Answer(kind="ok", seconds=time.monotonic() - start)
        return result

    def pass_by(self, name: Name, kind: Kind) -> None:
        """Note that a question is not asked."""
        self.answers[name] = Answer(kind="not-asked" if self._ends else kind)


class Differs(Exception):
    """What was read is not what was written."""


class NothingThere(Exception):
    """Nothing to read."""


def content() -> bytes:
    """Return what a probe holds, `PROBE_BYTES`: words for who finds it, then bytes that no other has."""
    return _TEXT + os.urandom(PROBE_BYTES - len(_TEXT))


def check_same(found: bytes, written: bytes) -> None:
    """Raise `Differs` where what was read is not what was written."""
    if found != written:
        raise Differs(f"{len(found)} bytes that are not the {len(written)} written")


def rate(answers: dict[Name, Answer], writes: bool) -> float | None:
    """Return the bytes a second of a small read: a rough figure, in which the latency counts."""
    read = answers.get("read")
    return PROBE_BYTES / read.seconds if writes and read and read.kind == "ok" and read.seconds > 0 else None
