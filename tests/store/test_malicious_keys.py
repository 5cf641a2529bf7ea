"""Objects of an S3 archive by names that no file may have: each costs itself alone, and leads nowhere else."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import botocore.session
import pytest

from raytrain.scoring import ledger
from raytrain.scoring.casualties import read_casualties
from tests.unit.test_closing_books import run
from tests.unit.test_perform import BANDS, noise, work_at, write_scene

NAMES = {
    "moto": ["a\0b", "a\x1b[2Jb", "..\\x", "n" * 800, "а\u202eb", "%2e%2e"],  # noqa: RUF001  # the first is Cyrillic
    "swift": ["a\nb", "a\x1b[2Jb", "..\\x", "n" * 800, "а\u202eb", "%2e%2e"],  # noqa: RUF001
}
"""What a key may be named by; moto takes no newline, and Swift no zero."""


class Bucket:
    """A bucket that is written to past our own storage, which would not have such names."""

    def __init__(self, kind: str, uri: str) -> None:
        self.kind, self.uri = kind, uri
        self._name, _, self._prefix = uri.removeprefix("s3://").partition("/")
        self._client: Any = botocore.session.get_session().create_client(
            "s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"]
        )

    def put(self, data: bytes, keys: Iterable[str]) -> None:
        """Write an object of each key."""
        for key in keys:
            self._client.put_object(Bucket=self._name, Key=f"{self._prefix}/{key}", Body=data)

    def outside(self, folder: str) -> dict[str, str]:
        """Return the ETags of all objects of the whole bucket that do not lie below `folder`."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._name)
        found = {each["Key"]: each["ETag"] for page in pages for each in page.get("Contents", [])}
        return {key: etag for key, etag in found.items() if not key.startswith(f"{self._prefix}/{folder}/")}


@pytest.fixture(params=["moto", "swift"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Bucket:
    if request.param == "swift":
        return Bucket("swift", str(request.getfixturevalue("swift")))
    return Bucket("moto", f"{request.getfixturevalue('s3')}/keys/{tmp_path.name}")


def test_a_scene_of_a_bad_key_costs_no_other_and_leads_nowhere(bucket: Bucket, tmp_path: Path) -> None:
    data = write_scene(tmp_path / "s.tif", noise(70, 60)).read_bytes()
    bad = [name for name in NAMES[bucket.kind] if not name.startswith(".")]  # what is hidden is no scene
    steps = ["in/../elsewhere.tif", "in/a/../../../up/B02.tif", "in/./here.tif"]
    folders = ["in/", "in/folder/", "in/good.tif/", "in/../"]
    bucket.put(data, ["in/good.tif", *(f"in/{name}.tif" for name in bad), *steps])
    bucket.put(data, (f"in/{name}/B02.tif" for name in bad))
    bucket.put(b"", folders)
    before = bucket.outside("out")
    work = work_at(f"{bucket.uri}/out")
    run(f"{bucket.uri}/in", work)
    assert [each.item_id for each in ledger.read_records(work.destination)] == ["good"]
    rows = read_casualties(work.destination)
    named = [row for row in rows if "an id that is no plain name" in row[3]]
    assert len(named) == 2 * len(bad)
    assert {row[0] for row in named} >= {*bad}
    assert {row[1] for row in rows if "a key with '.' or '..'" in row[3]} == {f"{bucket.uri}/{key}" for key in steps}
    assert len(rows) == len(named) + len(steps)
    assert bucket.outside("out") == before


def test_a_chip_of_a_bad_key_costs_no_other_and_leads_nowhere(bucket: Bucket, tmp_path: Path) -> None:
    data = write_scene(tmp_path / "c.tif", noise(70, 60)[:1]).read_bytes()
    bad = [*NAMES[bucket.kind], "..", "."]
    bucket.put(data, (f"in/t_features/{name}/{band}.tif" for name in ("good", *bad) for band in BANDS))
    bucket.put(data, ["in/t_features/../../up/B02.tif", "in/t_features/good/../B02.tif"])
    bucket.put(b"", ["in/t_features/", "in/t_features/good/", "in/t_features/other/", "in/../"])
    quoted = [f'"{name}",' for name in bad if "\0" not in name]
    bucket.put("\n".join(["chip_id,datetime", "good,", "../../up,", *quoted, ""]).encode(), ["in/t_metadata.csv"])
    before = bucket.outside("out")
    work = work_at(f"{bucket.uri}/out")
    run(f"{bucket.uri}/in", work)
    assert [each.item_id for each in ledger.read_records(work.destination)] == ["good"]
    rows = read_casualties(work.destination)
    listed = {row[0]: row[3] for row in rows}
    with_row = [name for name in ("../../up", *bad) if "\0" not in name]
    assert {name for name, why in listed.items() if "not a plain file name" in why} == {*map(repr, with_row)}
    assert {name for name, why in listed.items() if "files without a row" in why} == {*bad} - {*with_row}
    assert len(rows) == len(with_row) + len({*bad} - {*with_row})
    assert bucket.outside("out") == before
