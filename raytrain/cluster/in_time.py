"""Waits for what may never answer, a disk across a network above all, and goes on without it.

Must not know what is asked. A thread that hangs in the kernel can't be ended: it is left, and ends with the process.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any


class TooLate(Exception):
    """The answer had not come when the time was over."""


def in_time(questions: Sequence[Callable[[], Any]], limit_s: float) -> list[Any]:
    """Ask all at once; return what each returned or raised (the error itself), `TooLate` where nothing came."""
    answers: list[Any] = [TooLate() for _ in questions]
    come: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()

    def ask(number: int) -> None:
        try:
            come.put((number, questions[number]()))
        except Exception as error:  # noqa: BLE001  # whatever comes is the answer
            come.put((number, error))

    for number in range(len(questions)):
        threading.Thread(target=ask, args=(number,), daemon=True).start()
    deadline = time.monotonic() + limit_s
    try:
        for _ in questions:
            number, answer = come.get(timeout=max(deadline - time.monotonic(), 0.001))
            answers[number] = answer
    except queue.Empty:
        pass
    return answers
