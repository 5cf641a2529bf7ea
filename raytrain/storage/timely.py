"""Bodies of answers over HTTP that have to come at a least rate. Must not know who asked for what.

The timeout of a socket is one of each byte: a server that sends one now and then would hold a request for ever.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from urllib3.response import BaseHTTPResponse

from raytrain.storage.retries import PassingAnswer

READ_TIMEOUT_S = 20
"""How long a server may take to send the next bytes."""
LEAST_BYTES_PER_S = 10_000
PIECE_BYTES = 1 << 20


class OverLimit(Exception):
    """A body has more bytes than were allowed: so many are known of."""


def pieces(answer: BaseHTTPResponse) -> Iterator[bytes]:
    """Yield the body of an answer as it comes, in pieces of at most `PIECE_BYTES`.

    Raises `PassingAnswer` once it takes longer than `READ_TIMEOUT_S` and what `LEAST_BYTES_PER_S` allows for its bytes.
    """
    received, waited_s = 0, 0.0
    try:
        while True:
            start = time.monotonic()
            piece = answer.read1(PIECE_BYTES, decode_content=False)
            waited_s += time.monotonic() - start
            if not piece:
                return
            received += len(piece)
            if waited_s > READ_TIMEOUT_S + received / LEAST_BYTES_PER_S:
                raise PassingAnswer(f"{received} bytes in {waited_s:.0f} s, too slow to wait for the rest")
            yield piece
    except BaseException:
        answer.close()  # with its connection: a rest of the body is in it
        raise


def read(answer: BaseHTTPResponse, limit_bytes: int | None = None) -> bytes:
    """Return the whole body of an answer; raise `PassingAnswer` as `pieces` does.

    Raises `OverLimit` for one of more than `limit_bytes`, by what it says of itself or by what comes.
    """
    length = answer.headers.get("Content-Length", "")
    if limit_bytes is not None and length.isdecimal() and int(length) > limit_bytes:
        answer.close()
        raise OverLimit(int(length))
    found, received = [], 0
    for piece in pieces(answer):
        received += len(piece)
        if limit_bytes is not None and received > limit_bytes:
            answer.close()
            raise OverLimit(received)
        found.append(piece)
    return b"".join(found)
