"""An S3 server that does what the policies in infra/aws say: it refuses what they don't allow, and notes what is asked.

Who asks is told by the access key, which is the name of a role; moto does the rest.
"""

from __future__ import annotations

import io
import re
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self
from urllib.parse import parse_qsl, unquote

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from tests.policies import ACCOUNT, Request, judge

ARN = "arn:aws:s3:::"
REFUSAL = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
BROKEN = b"<Error><Code>InvalidRequest</Code><Message>as the test wants it</Message></Error>"
Answer = Callable[..., Any]


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"  # as S3 speaks it: connections are kept

    def log(self, type: str, message: str, *args: Any) -> None:
        pass


class PolicedStore:
    """The server, in a `with`. `roles` are the policies of each name; `bucket` is that of the bucket, for everybody.

    `requests` is what each has asked, allowed or not. Parts of an upload to a key that ends with `broken_part` fail.
    """

    broken_part = ".broken"

    def __init__(self, roles: Mapping[str, list[dict[str, Any]]], bucket: dict[str, Any]) -> None:
        self._roles, self._bucket = roles, bucket
        self.requests: dict[str, list[Request]] = {role: [] for role in roles}
        self.refused: list[str] = []
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server: BaseWSGIServer = make_server("127.0.0.1", 0, self._answer, True, request_handler=_Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()

    def environment(self, role: str) -> dict[str, str]:
        """Return the variables by which a process asks as `role`."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_port}",
            "AWS_ACCESS_KEY_ID": role,
            "AWS_SECRET_ACCESS_KEY": "not-looked-at",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def _answer(self, environment: dict[str, Any], start: Answer) -> Iterable[bytes]:
        role = re.search("Credential=([^/]+)/", environment.get("HTTP_AUTHORIZATION", ""))
        if role is None or role[1] not in self._roles:
            return self._refuse(start, f"unsigned, or of nobody known: {environment['PATH_INFO']}")
        for asked in requests_of(environment):
            self.requests[role[1]].append(asked)
            if not self._allows(role[1], asked):
                return self._refuse(start, f"{role[1]}: {asked}")
        query = dict(parse_qsl(environment["QUERY_STRING"]))
        if "partNumber" in query and environment["PATH_INFO"].endswith(self.broken_part):
            return _end(environment, start, "400 Bad Request", BROKEN)
        hidden = environment["REQUEST_METHOD"] in ("GET", "HEAD") and not self._may_list(role[1], environment)

        def begin(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            # What is not there is not told to whoever may not list.
            return start("403 Forbidden" if hidden and status.startswith("404") else status, headers, *more)

        answer: Iterable[bytes] = self._moto(environment, begin)
        return answer

    def _refuse(self, start: Answer, what: str) -> list[bytes]:
        self.refused.append(what)
        return _end({}, start, "403 Forbidden", REFUSAL)

    def _allows(self, role: str, asked: Request) -> bool:
        # Over HTTP here; that AWS is asked over TLS is botocore's default, and the bucket's policy.
        principal = {"aws:PrincipalArn": f"arn:aws:iam::{ACCOUNT}:role/{role}", "aws:SecureTransport": "true"}
        seen = Request(asked.action, asked.resource, {**asked.context, **principal})
        return judge([*self._roles[role], self._bucket], seen)[0]

    def _may_list(self, role: str, environment: dict[str, Any]) -> bool:
        # Nothing says that S3 takes the key for a prefix here: a right that hangs on prefixes counts as none.
        bucket = environment["PATH_INFO"].lstrip("/").partition("/")[0]
        return self._allows(role, Request("s3:ListBucket", f"{ARN}{bucket}"))


def _end(environment: dict[str, Any], start: Answer, status: str, body: bytes) -> list[bytes]:
    if environment:
        environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
    headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body))), ("Connection", "close")]
    start(status, headers)
    return [body]


def requests_of(environment: dict[str, Any]) -> Iterator[Request]:
    """Yield what a request to S3 (path style) has to be allowed to do; raise `ValueError` for one that is new here."""
    method, query = environment["REQUEST_METHOD"], dict(parse_qsl(environment["QUERY_STRING"], keep_blank_values=True))
    bucket, _, key = unquote(environment["PATH_INFO"]).lstrip("/").partition("/")
    object_ = f"{ARN}{bucket}/{key}"
    subresources = {"acl", "cors", "lifecycle", "location", "policy", "tagging", "uploads", "versioning"} & query.keys()
    if not key:
        yield from _of_bucket(method, bucket, query, subresources, environment)
    elif method in ("GET", "HEAD") and not subresources:
        action = "s3:GetObjectVersion" if "versionId" in query else "s3:GetObject"
        yield Request("s3:ListMultipartUploadParts" if "uploadId" in query else action, object_)
    elif method == "DELETE" and not subresources:
        action = "s3:DeleteObjectVersion" if "versionId" in query else "s3:DeleteObject"
        yield Request("s3:AbortMultipartUpload" if "uploadId" in query else action, object_)
    elif method in ("PUT", "POST") and subresources <= {"uploads"}:
        if source := environment.get("HTTP_X_AMZ_COPY_SOURCE"):
            name, _, version = unquote(source).lstrip("/").partition("?versionId=")
            yield Request("s3:GetObjectVersion" if version else "s3:GetObject", f"{ARN}{name}")
        yield Request("s3:PutObject", object_)
    else:
        raise ValueError(f"{method} {environment['PATH_INFO']}?{environment['QUERY_STRING']}: say what it has to be")


def _of_bucket(
    method: str, bucket: str, query: dict[str, str], subresources: set[str], environment: dict[str, Any]
) -> Iterator[Request]:
    resource = f"{ARN}{bucket}"
    if method == "HEAD" or (method == "GET" and not subresources):
        action = "s3:ListBucketVersions" if "versions" in query else "s3:ListBucket"
        yield Request(action, resource, {"s3:prefix": query["prefix"]} if "prefix" in query else {})
    elif method == "POST" and "delete" in query:
        body = environment["wsgi.input"].read(int(environment["CONTENT_LENGTH"]))
        environment["wsgi.input"] = io.BytesIO(body)
        for each in ET.fromstring(body).iter():
            if each.tag.endswith("Key"):
                yield Request("s3:DeleteObject", f"{resource}/{each.text}")
    elif method == "PUT" and not subresources:
        yield Request("s3:CreateBucket", resource)
    elif method in ("GET", "PUT", "DELETE") and len(subresources) == 1:
        verb = {"GET": "Get", "PUT": "Put", "DELETE": "Delete"}[method]
        yield Request(f"s3:{verb}Bucket{subresources.pop().capitalize()}", resource)
    else:
        raise ValueError(f"{method} {bucket}?{environment['QUERY_STRING']}: say what it has to be allowed")
