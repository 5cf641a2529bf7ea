"""An AWS in this process, in which Ray's own provider makes and ends instances."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from moto import mock_aws
from moto.backends import get_backend
from ray.autoscaler._private.aws.utils import client_cache, resource_cache


@contextlib.contextmanager
def own_aws() -> Iterator[None]:
    """An empty EC2 and IAM in this process. What else moto has stays: other tests' S3 server keeps its objects."""

    def forget() -> None:
        for cached in (resource_cache, client_cache):  # Ray's clients of another AWS
            cached.cache_clear()
        for service in ("ec2", "iam"):
            for account in get_backend(service).values():
                account.reset()

    aws = mock_aws()
    forget()
    aws.start(reset=False)
    try:
        yield
    finally:
        aws.stop(remove_data=False)
        forget()
