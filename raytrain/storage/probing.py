"""What a store answers to one small question of each kind: list, write, read, delete; and how fast.

Nothing is asked twice, so that what a caller sees is what the store said. Answers are kept as kinds and as the codes
that stores give: their texts, which may hold keys and signatures, are not. Must not know what anybody makes of them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import socket
import ssl
import stat
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from raytrain.config import Settings
from raytrain.errors import ConfigError
from raytrain.storage import s3, stores, uris
from raytrain.storage.stores import StoreSettings

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
PREFIX = "raytrain-doctor-probe-"
CONNECT_S, READ_S = 5, 10
_TEXT = b"A probe that `raytrain doctor` wrote to see whether it can. It removes it at once; else you may.\n"
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
_OF_ERRNO: dict[int, Kind] = {
    errno.ENOENT: "no-folder",
    errno.ENOTDIR: "no-folder",
    errno.EACCES: "refused",
    errno.EPERM: "refused",
    errno.EROFS: "read-only",
    errno.ENOSPC: "full",
    errno.EDQUOT: "full",
}


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


def probe_name() -> str:
    """Return a name for a probe that nothing else has."""
    return f"{PREFIX}{secrets.token_hex(16)}.txt"


def probe(uri: str, name: str, *, writes: bool) -> StoreReport:
    """Ask the store or the folder at `uri`; with `writes` an object `name` is written, read and removed there.

    Without, one object that is there is read, up to `PROBE_BYTES`. Whatever the answer is, it is told. Raises
    `ConfigError` for a URL, which is no store.
    """
    if uris.is_http(uri):
        raise ConfigError(f"{uris.shown(uri)}: expected s3://bucket/prefix or a folder; over HTTP there is no store")
    place = uris.normalise(uri)
    return _probe_folder(place, name, writes) if uris.is_local(uri) else _probe_store(place, name, writes)


class _Questions:
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


class _NoListing(Exception):
    """An answer that is well-formed, but no listing of a bucket."""


class _Differs(Exception):
    """What was read is not what was written."""


class _NothingThere(Exception):
    """Nothing to read."""


def _content() -> bytes:
    return _TEXT + os.urandom(PROBE_BYTES - len(_TEXT))


def _check_same(found: bytes, written: bytes) -> None:
    if found != written:
        raise _Differs(f"{len(found)} bytes that are not the {len(written)} written")


# Stores


def _probe_store(uri: str, name: str, writes: bool) -> StoreReport:
    settings = stores.current().settings_of(uri)
    bucket, _, prefix = uris.path_of(uri).partition("/")
    questions = _Questions(_kind_of)
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
        endpoint=shown_endpoint(str(client.meta.endpoint_url)),
        region=str(client.meta.region_name or ""),
        credentials=credentials,
        answers=questions.answers,
        bytes_per_s=_rate(questions.answers, writes),
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


def _write_read_delete(client: Any, place: dict[str, str], questions: _Questions) -> tuple[str, bool]:
    """Write, read and remove the probe; return what was left behind, and whether the store keeps versions."""
    data = _content()
    written = None
    try:
        written = questions.ask("write", lambda: client.put_object(**place, Body=data))
        if written is None:
            questions.pass_by("read", "not-asked")
        else:
            questions.ask("read", lambda: _check_same(_first_bytes_of(client, place), data))
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


def _read_one_of(client: Any, place: dict[str, str], page: Any, questions: _Questions) -> None:
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


def _rate(answers: dict[Name, Answer], writes: bool) -> float | None:
    """Return the bytes a second of a small read: a rough figure, in which the latency counts."""
    read = answers.get("read")
    return PROBE_BYTES / read.seconds if writes and read and read.kind == "ok" and read.seconds > 0 else None


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


def shown_endpoint(url: str) -> str:
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

    if isinstance(error, _Differs):
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


# Folders


def _probe_folder(path: str, name: str, writes: bool) -> StoreReport:
    questions = _Questions(_kind_of_local)
    names = questions.ask("list", lambda: sorted(os.listdir(path)))
    if not writes:
        _read_a_file(Path(path), names, questions)
        return StoreReport(uri=path, answers=questions.answers)
    file, data = _Probe(Path(path, name)), _content()
    try:
        questions.ask("write", lambda: file.write(data))
        if questions.answers["write"].kind == "ok":
            questions.ask("read", lambda: _check_same(_first_bytes(file.path), data))
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
        bytes_per_s=_rate(questions.answers, writes),
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


def _read_a_file(folder: Path, names: list[str] | None, questions: _Questions) -> None:
    """Read the beginning of a file of a folder that could be listed."""
    if names is None:
        questions.pass_by("read", "not-asked")
    else:
        questions.ask("read", lambda: _first_bytes(_a_file(folder, names)))


def _a_file(folder: Path, names: list[str]) -> Path:
    """Return the first file that holds something; raise what kept from looking at one, where there is no other."""
    problem: Exception = _NothingThere()
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


def _kind_of_local(error: BaseException) -> tuple[Kind, str]:
    if isinstance(error, _Differs):
        return "differs", str(error)
    if isinstance(error, _NothingThere):
        return "nothing-there", ""
    if isinstance(error, OSError) and error.errno:
        return _OF_ERRNO.get(error.errno, "other"), os.strerror(error.errno)
    return "other", type(error).__name__
