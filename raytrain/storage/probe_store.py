"""Asks an S3 store one small question of each kind, each once, so that what a caller sees is what the store said.

Must not know what anybody makes of the answers.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any, cast
from urllib.parse import urlsplit

from raytrain.errors import ConfigError
from raytrain.storage import s3, stores, uris
from raytrain.storage.probe_answers import (
    PROBE_BYTES,
    Answer,
    Differs,
    Kind,
    Questions,
    StoreReport,
    check_same,
    content,
    rate,
)
from raytrain.storage.stores import StoreSettings

CONNECT_S, READ_S = 5, 10
_OF_CODES: dict[str, Kind] = {
    "AccessDenied": "refused",
    "AllAccessDisabled": "refused",
    "InvalidAccessKeyId": "wrong-keys",
    "SignatureDoesNotMatch": "wrong-keys",
    "InvalidToken": "wrong-keys",
    "ExpiredToken": "expired",
    "TokenRefreshRequired": "expired",
    "RequestTimeTooSkewed": "clock",
    "PermanentRedirect": "region",
    "TemporaryRedirect": "region",
    "AuthorizationHeaderMalformed": "region",
    "IllegalLocationConstraintException": "region",
    "NoSuchBucket": "no-bucket",
    "InvalidBucketName": "no-bucket",
    "RequestTimeout": "timeout",
}


class _NoListing(Exception):
    """An answer that is well-formed, but no listing of a bucket."""


def probe_store(uri: str, name: str, writes: bool) -> StoreReport:
    """Ask the store at `uri`, as `probe` says."""
    settings = stores.current().settings_of(uri)
    bucket, _, prefix = uris.path_of(uri).partition("/")
    questions = Questions(_kind_of)
    try:
        session, client = s3.plain_client(settings, CONNECT_S, READ_S)
        credentials = _source_of_keys(settings, session)
    except Exception as error:  # noqa: BLE001  # a profile that is not there, an endpoint that is none
        kind, detail = _kind_of(error)
        return StoreReport(uri=uri, answers={"list": Answer(kind=kind, detail=detail)})
    wire = _Wire()
    client.meta.events.register("response-received.s3", wire.note)
    payer = {"RequestPayer": "requester"} if settings.requester_pays else {}
    place = {"Bucket": bucket, **payer}
    listing = {**place, "Prefix": f"{prefix}/" if prefix else "", "MaxKeys": 20}
    page = questions.ask("list", lambda: _listed(client, listing))
    left_behind, keeps_versions = "", False
    if writes:
        key = f"{prefix}/{name}" if prefix else name
        left_behind, keeps_versions = _write_read_delete(client, {**place, "Key": key}, questions)
    else:
        _read_one_of(client, place, page, questions)
    return StoreReport(
        uri=uri,
        endpoint=_shown_endpoint(str(client.meta.endpoint_url)),
        region=str(client.meta.region_name or ""),
        credentials=credentials,
        answers=questions.answers,
        bytes_per_s=rate(questions.answers, writes),
        ahead_s=wire.ahead_s,
        bucket_region=wire.bucket_region if wire.was_redirected else "",
        left_behind=left_behind,
        keeps_versions=keeps_versions,
    )


def _listed(client: Any, listing: dict[str, Any]) -> Any:
    page = client.list_objects_v2(**listing)
    if "Name" not in page:  # a web page, say
        raise _NoListing
    return page


def _write_read_delete(client: Any, place: dict[str, str], questions: Questions) -> tuple[str, bool]:
    """Write, read and remove the probe; return what was left behind, and whether the store keeps versions."""
    data = content()
    written = None
    try:
        written = questions.ask("write", lambda: client.put_object(**place, Body=data))
        if written is None:
            questions.pass_by("read", "not-asked")
        else:
            questions.ask("read", lambda: check_same(_first_bytes_of(client, place), data))
    finally:
        # Also where the answer to the write was lost: the object may be there for all that.
        if written is not None or questions.answers.get("write", _UNKNOWN).kind not in _NEVER_WRITTEN:
            questions.ask("delete", lambda: client.delete_object(**place), always=True)
        else:
            questions.pass_by("delete", "not-asked")
    gone = questions.answers["delete"].kind in ("ok", "not-asked")
    return "" if gone else f"s3://{place['Bucket']}/{place['Key']}", bool((written or {}).get("VersionId"))


_UNKNOWN = Answer(kind="other")
_NEVER_WRITTEN = ("not-asked", "refused", "wrong-keys", "expired", "clock", "region", "no-bucket", "no-credentials")


def _read_one_of(client: Any, place: dict[str, str], page: Any, questions: Questions) -> None:
    """Read up to `PROBE_BYTES` of the smallest object of a listing: a store may not know ranges."""
    listed = [each for each in (page or {}).get("Contents", []) if each["Size"]]
    if not listed:
        questions.pass_by("read", "nothing-there" if page is not None else "not-asked")
        return
    key = min(listed, key=lambda each: int(each["Size"]))["Key"]
    wanted = {**place, "Key": key, "Range": f"bytes=0-{PROBE_BYTES - 1}"}
    questions.ask("read", lambda: _first_bytes_of(client, wanted))


def _first_bytes_of(client: Any, wanted: dict[str, str]) -> bytes:
    """Return what an object begins with, one byte more than a probe has at most: a store may send any amount."""
    with contextlib.closing(client.get_object(**wanted)["Body"]) as body:
        return cast(bytes, body.read(PROBE_BYTES + 1))


_REGION = r"[a-z0-9-]{1,40}"


class _Wire:
    """What the answers of a store say beside their content."""

    def __init__(self) -> None:
        self.ahead_s: float | None = None
        self.bucket_region = ""
        self.was_redirected = False

    def note(
        self,
        context: dict[str, Any],
        response_dict: dict[str, Any] | None = None,
        parsed_response: Any = None,
        **_: Any,
    ) -> None:
        """Look at one answer, also at those that botocore follows to another region."""
        if response_dict is None:
            return
        headers = {str(name).lower(): str(value) for name, value in response_dict["headers"].items()}
        with contextlib.suppress(KeyError, ValueError, TypeError):
            # Half a second: the header has whole ones, rounded down.
            self.ahead_s = parsedate_to_datetime(headers["date"]).timestamp() + 0.5 - time.time()
        region = headers.get("x-amz-bucket-region", "")
        self.bucket_region = region if re.fullmatch(_REGION, region) else self.bucket_region
        if response_dict["status_code"] in (301, 302, 307, 400):
            self.was_redirected = True
            named = (parsed_response or {}).get("Error", {}).get("Region")
            self.bucket_region = self.bucket_region or (named if re.fullmatch(_REGION, str(named)) else "")
            if not region and not named:
                # botocore would ask by HEAD where the bucket lies, and of that answer the same, for ever.
                context.setdefault("s3_redirect", {})["redirected"] = True


_SOURCES = {
    "env": "environment",
    "explicit": "environment",
    "shared-credentials-file": "credentials file",
    "config-file": "config file",
    "iam-role": "instance profile",
    "container-role": "role of the container",
    "assume-role": "assumed role",
    "assume-role-with-web-identity": "role by web identity",
    "sso": "single sign-on",
    "custom-process": "credential process",
}


def _source_of_keys(settings: StoreSettings, session: Any) -> str:
    """Return where the keys come from, in words; "" where there are none."""
    if settings.anonymous:
        return "anonymous"
    found = session.get_credentials()
    if found is None:
        return ""
    source = _SOURCES.get(str(found.method), str(found.method))
    return f"profile {settings.profile} ({source})" if settings.profile else source


def _shown_endpoint(url: str) -> str:
    """Return scheme, host and port of an endpoint: what else stands in it may be a secret."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "an endpoint that is no URL"
    return f"{parts.scheme}://{parts.hostname or ''}{port}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what led to it; botocore keeps that in its `kwargs`, urllib3 in its arguments."""
    seen: list[BaseException] = []
    wanted = [error]
    while wanted:
        each = wanted.pop(0)
        if any(each is other for other in seen):
            continue
        seen.append(each)
        yield each
        inside = [getattr(each, "kwargs", {}).get("error"), getattr(each, "reason", None), *each.args]
        wanted += [one for one in (*inside, each.__cause__, each.__context__) if isinstance(one, BaseException)]


def _kind_of(error: BaseException) -> tuple[Kind, str]:
    """Return what an error of a question to a store means, and a detail without secrets."""
    import botocore.exceptions as boto
    import botocore.parsers
    import urllib3.exceptions

    if isinstance(error, Differs):
        return "differs", str(error)
    if isinstance(error, boto.ClientError):
        return _kind_of_answer(error.response)
    if isinstance(error, (boto.NoCredentialsError, boto.PartialCredentialsError)):
        partial = isinstance(error, boto.PartialCredentialsError)
        return "no-credentials", "only one of the two variables of a key" if partial else ""
    if isinstance(error, (ConfigError, boto.ProfileNotFound)):
        return "no-profile", ""
    if isinstance(error, (boto.CredentialRetrievalError, boto.TokenRetrievalError, boto.UnauthorizedSSOTokenError)):
        return "no-credentials", f"their source fails ({type(error).__name__})"
    if isinstance(error, (botocore.parsers.ResponseParserError, _NoListing)):
        return "not-s3", ""
    if isinstance(error, (boto.ConnectTimeoutError, boto.ReadTimeoutError)):
        return "timeout", "no connection" if isinstance(error, boto.ConnectTimeoutError) else "connected, but no answer"
    causes = list(_causes(error))
    certificate = next((each for each in causes if isinstance(each, ssl.SSLCertVerificationError)), None)
    if certificate is not None:
        return "tls", certificate.verify_message
    if any(isinstance(each, (ssl.SSLError, boto.SSLError, urllib3.exceptions.SSLError)) for each in causes):
        return "tls", "no TLS there"
    if any(isinstance(each, (socket.gaierror, urllib3.exceptions.NameResolutionError)) for each in causes):
        return "unknown-host", ""
    if isinstance(error, (boto.HTTPClientError, boto.ConnectionError, boto.IncompleteReadError, OSError)):
        number = next((each.errno for each in causes if isinstance(each, OSError) and each.errno), None)
        return "no-connection", os.strerror(number) if number else type(error).__name__
    return "other", type(error).__name__


def _kind_of_answer(response: dict[str, Any]) -> tuple[Kind, str]:
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    code = str(response.get("Error", {}).get("Code", ""))
    code = code if re.fullmatch(r"[A-Za-z]{1,60}", code) else ""
    detail = f"{status} {code}".strip()
    if code in _OF_CODES:
        return _OF_CODES[code], detail
    if status in (301, 302, 307):
        return "region", detail
    if status >= 500 or status == 429:
        return "unavailable", detail
    if status in (401, 403):
        return "refused", detail
    if status == 404 and not code:
        return "not-s3", detail
    return "other", detail
