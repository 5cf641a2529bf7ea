"""Asks stores and folders as one machine sees them, side by side: one that fails or hangs loses no other's answer.

Must not know what the answers mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from raytrain import storage
from raytrain.cluster.in_time import TooLate, in_time
from raytrain.storage import Answer, StoreReport

Asked = tuple[str, str, bool]
"""URI, name of the probe, and whether to write it."""


def ask_stores(asked: Sequence[Asked], limit_s: float) -> list[StoreReport]:
    """Return what each store says, in order."""
    answers = in_time([question(one) for one in asked], limit_s)
    return [report_of(one, answer, limit_s) for one, answer in zip(asked, answers, strict=True)]


def question(one: Asked) -> Callable[[], StoreReport]:
    """Return what asks a store."""
    uri, name, writes = one
    return partial(storage.probe, uri, name, writes=writes)


def report_of(one: Asked, answer: StoreReport | Exception, limit_s: float) -> StoreReport:
    """Return a report in any case: also of what kept a store from answering, or that nothing came in `limit_s`."""
    uri, name, writes = one
    if isinstance(answer, StoreReport):
        return answer
    if isinstance(answer, TooLate):
        left = f"; there may be a probe: {storage.join(uri, name)}" if writes else ""
        told = Answer(kind="timeout", detail=f"{limit_s:.3g} s{left}", seconds=limit_s)
    else:
        told = Answer(kind="other", detail=type(answer).__name__)  # its text may hold keys
    return StoreReport(uri=storage.normalise(uri), answers={"list": told})
