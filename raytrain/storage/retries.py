"""Asking again: which errors may pass, how long to wait, and what is raised in the end.

What a store or a server answers only in passing (5xx, resets, timeouts) is asked again, with growing waits, here and
nowhere else: the clients do not retry.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from raytrain.errors import NoCredentials, StoreOutOfReach, first_line
from raytrain.storage import counts, stores, uris

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Retries:
    """How often something is asked of a store, and how the waits in between grow: doubled each time, then drawn.

    The draw (between half of the wait and all of it) keeps many readers from coming back at the same moment.
    """

    attempts: int = 10
    first_wait_s: float = 0.2
    longest_wait_s: float = 10.0

    def wait_s(self, attempt: int) -> float:
        """Return how long to wait after the attempt of this number, from 0."""
        return min(self.first_wait_s * 2.0**attempt, self.longest_wait_s) * random.uniform(0.5, 1)


RETRIES = Retries()
QUIET_ATTEMPTS = 3
"""Attempts that fail without a warning."""
_logger = logging.getLogger(__name__)


class PassingAnswer(OSError):
    """A store says that it can't answer now, or what it answered is not the object."""


def persistently(
    uri: str, operation: Callable[[], ResultT], kind: counts.Operation = "read", sent_bytes: int = 0
) -> ResultT:
    """Return what `operation` on the object at `uri` returns; ask again after an error that may pass.

    It is counted among those of its `kind`, but not on a local disk, which is asked once. Raises `StoreOutOfReach` once
    the attempts are used up, `NoCredentials` where there are no keys for the store, `PermissionError` that names `uri`
    where the store refuses, and any other error as it comes: a missing object, a wrong request, a local disk.
    """
    if uris.is_local(uri):
        return operation()
    with counts.asking(kind) as asked:
        result = _persistently(uri, operation, asked)
        asked.num_bytes = sent_bytes + (len(result) if isinstance(result, bytes) else 0)
        return result


def _persistently(uri: str, operation: Callable[[], ResultT], asked: counts.Asked) -> ResultT:
    policy = RETRIES
    start = time.monotonic()
    place = uris.shown(uri)
    for attempt in range(policy.attempts):
        try:
            return operation()
        except Exception as error:
            if isinstance(error, counts.AddressRefused):
                raise
            if isinstance(error, PermissionError):
                raise _refused(uri, error) from error
            if isinstance(error, FileNotFoundError):
                raise FileNotFoundError(f"{place}: {first_line(error)}") from error
            if _lacks_keys(error):
                raise NoCredentials(f"{place}: {_remedy(uri)}") from error
            if not is_passing(error):
                raise
            last = error
        if attempt + 1 < policy.attempts:
            wait_s = policy.wait_s(attempt)
            level = logging.INFO if attempt < QUIET_ATTEMPTS else logging.WARNING
            _logger.log(level, "%s: %s; attempt %d, again in %.1f s", place, _short(last), attempt + 1, wait_s)
            asked.again()
            time.sleep(wait_s)
    spent_s = time.monotonic() - start
    raise StoreOutOfReach(
        f"{place}: out of reach, {policy.attempts} attempts in {spent_s:.0f} s, the last: {_short(last)}"
    ) from last


def _refused(uri: str, error: PermissionError) -> PermissionError:
    return PermissionError(f"{uris.shown(uri)}: access refused ({_short(error)}); check {_what_to_check(uri)}")


def _what_to_check(uri: str) -> str:
    if uris.is_http(uri):
        return "whether the URL is right, and whether its signature has run out"
    table = stores.current()
    prefix = table.prefix_of(uri)
    if prefix is None:
        bucket = uris.path_of(uri).partition("/")[0]
        return (
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL and the rights of this key, or name the store "
            f'in --stores: [stores."s3://{bucket}"] with anonymous, profile, endpoint or requester_pays'
        )
    said = table.stores[prefix].model_dump(mode="json", exclude_defaults=True)
    text = ", ".join(f"{name} = {value}" for name, value in said.items()) or "which says nothing"
    return f'[stores."{prefix}"] ({text}) and the rights that it gives'


def _lacks_keys(error: BaseException) -> bool:
    import botocore.exceptions

    kinds = (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError)
    return isinstance(error, kinds) or isinstance(error.__cause__, kinds)


def _remedy(uri: str) -> str:
    """Return what to do about missing keys."""
    bucket = uris.path_of(uri).partition("/")[0]
    return (
        f"no keys for the bucket {bucket}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name the store in "
        f'--stores: [stores."s3://{bucket}"] with anonymous = true if it is public, or with a profile'
    )


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def is_passing(error: BaseException) -> bool:
    """Tell whether asking a store again may help: 5xx, 429, resets, timeouts, bodies that end too soon."""
    import aiohttp
    import botocore.exceptions
    import botocore.parsers
    import urllib3.exceptions
    from fsspec.exceptions import FSTimeoutError

    cause = error if isinstance(error, botocore.exceptions.ClientError) else error.__cause__
    if isinstance(cause, botocore.exceptions.ClientError):
        status = int(cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return status >= 500 or status in (408, 429) or cause.response.get("Error", {}).get("Code") == "RequestTimeout"
    passing = (
        PassingAnswer,
        urllib3.exceptions.HTTPError,
        botocore.exceptions.HTTPClientError,
        botocore.exceptions.ConnectionError,
        botocore.exceptions.IncompleteReadError,
        botocore.parsers.ResponseParserError,
        botocore.exceptions.FlexibleChecksumError,
        aiohttp.ClientError,
        FSTimeoutError,
        ConnectionError,
        TimeoutError,
    )
    return isinstance(error, passing)


def is_out_of_reach(error: BaseException) -> bool:
    """Tell whether `error` says that a disk, a network or a store failed, rather than a program."""
    import botocore.exceptions

    failures = (StoreOutOfReach, OSError, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)
    return isinstance(error, failures)
