"""What raytrain's own clients ask of a store is what infra/aws/data.json allows: all of it, and nothing more.

The server refuses what the policies don't allow, and the work is done in this process: shards, checkpoints, an
ensemble, masks and their ledger, and what Ray Train itself writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import torch
from botocore.exceptions import ClientError
from ray.train.v2._internal.execution.storage import StorageContext, delete_fs_path

from raytrain import storage
from raytrain.cluster.session import Cluster  # noqa: F401  # raytrain's settings of Ray come before Ray's own
from raytrain.config import ScoreSettings, ShardSettings
from raytrain.imagery.scene_files import SceneSource
from raytrain.scoring import ledger
from raytrain.scoring.catalogue import write_catalogue
from raytrain.scoring.destination import Scoring
from raytrain.scoring.ensemble import Ensemble
from raytrain.scoring.listing import list_scenes
from raytrain.scoring.manifest import read_manifest
from raytrain.scoring.perform import perform
from raytrain.scoring.units import Unit
from raytrain.scoring.verify import unknown_outputs, verify_outputs
from raytrain.scoring.work import Work
from raytrain.tiles.order import Position
from raytrain.tiles.parts import remove_parts
from raytrain.tiles.reader import TileReader
from raytrain.tiles.reader import read_manifest as read_shards
from raytrain.tiles.verify import unknown_files, verify_index, verify_shard
from raytrain.training.checkpoint_store import CheckpointStore
from raytrain.training.checkpoints import Snapshot
from tests.making import make_ensemble, shard_chips
from tests.policies import BUCKET, Request, items, judge, read
from tests.store.policed import PolicedStore

ARCHIVE, SHARDS, RUNS, MASKS = (f"s3://{BUCKET}/{name}" for name in ("archive", "shards", "runs", "masks"))
ALL = {"Statement": [{"Sid": "All", "Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
MULTIPART_BYTES = 101 * 2**20
"""s3fs cuts what is larger than twice 50 MiB into parts."""
WORKER, PERSON, ARCHIVIST = "raytrain-worker", "raytrain-submitter", "archivist"
RESTORER = "raytrain-restorer"
ROLES = {WORKER: [read("data")], PERSON: [read("submitter")], RESTORER: [read("restorer")], ARCHIVIST: [ALL]}


@pytest.fixture(scope="module")
def store(chips: Path, scenes: Path) -> Iterator[PolicedStore]:
    """The server, with an archive that the archivist has filled."""
    with PolicedStore(ROLES, read("bucket")) as server, pytest.MonkeyPatch.context() as patch:
        become(ARCHIVIST, server, patch)
        for name in (BUCKET, "other-bucket"):
            _client().create_bucket(Bucket=name)
        for folder in (chips, scenes):
            for path in filter(Path.is_file, folder.rglob("*")):
                storage.write_bytes(f"{ARCHIVE}/{folder.name}/{path.relative_to(folder)}", path.read_bytes())
        storage.write_bytes("s3://other-bucket/shards/object", b"of another team")
        yield server


def become(role: str, server: PolicedStore, patch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment(role).items():
        patch.setenv(name, value)


def _client() -> Any:
    return botocore.session.Session().create_client("s3")


@pytest.fixture(scope="module")
def worked(store: PolicedStore, chips: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> PolicedStore:
    """The server after all of the work, done as drivers and ranks do it."""
    store.refused.clear()
    with pytest.MonkeyPatch.context() as patch:
        become(WORKER, store, patch)
        _shard(f"{ARCHIVE}/{chips.name}")
        _train(tmp_path_factory.mktemp("ensemble"))
        _score(f"{ARCHIVE}/{scenes.name}")
        _upload_in_parts(tmp_path_factory.mktemp("large"))
    return store


def _shard(source: str) -> None:
    settings = ShardSettings(folds="3", tiles_per_shard=5)
    shard_chips(source, SHARDS, settings)
    remove_parts(SHARDS)
    manifest = read_shards(SHARDS)
    assert not unknown_files(SHARDS, [each["name"] for each in manifest["shards"]])
    assert not verify_index(SHARDS, manifest["index"])
    assert not any(verify_shard(SHARDS, each) for each in manifest["shards"])
    bands, _ = TileReader(SHARDS, ("B02", "B08")).read(3)
    assert bands.shape == (2, 64, 64)


def _train(folder: Path) -> None:
    run = f"{RUNS}/main/member-fold0"
    for _ in range(2):  # the second goes on from the first
        checkpoints = CheckpointStore(run, keep_last=1)
        begin = checkpoints.begin().checkpoint
        first = 1 if begin is None else begin.position.epoch + 1
        for epoch in (first, first + 1):
            record = {"format_version": 3, "position": {"epoch": epoch, "samples_done": 0}}
            weights = {"weight": torch.ones(3)}
            checkpoints.save(Snapshot(Position(epoch, 0), weights, weights, record), metrics={"epoch": epoch})
    _as_ray_train(f"{RUNS}/main")
    make_ensemble(folder)
    for path in filter(Path.is_file, folder.rglob("*")):
        storage.write_bytes(f"{RUNS}/main/{path.relative_to(folder)}", path.read_bytes())
    storage.write_bytes(f"{RUNS}/main/report.html", b"<html>")


def _as_ray_train(folder: str) -> None:
    """Use the storage of a run as Ray Train's controller does: marker, snapshot, listing, removal."""
    context = StorageContext(storage.path_of(folder), "run", storage.arrow_filesystem(folder))
    files, snapshot = context.storage_filesystem, context.checkpoint_manager_snapshot_path
    with files.open_output_stream(snapshot) as stream:
        stream.write(b"{}")
    with files.open_input_stream(snapshot) as stream:
        assert stream.read() == b"{}"
    StorageContext(storage.path_of(folder), "run", storage.arrow_filesystem(folder))
    delete_fs_path(files, f"{context.experiment_fs_path}")


def _score(source: str) -> None:
    settings = ScoreSettings(window_px=64, overlap_px=16, threads=1, block_px=512)
    manifest = read_manifest(f"{RUNS}/main")
    nets = Ensemble.load(f"{RUNS}/main", manifest, settings, torch.device("cpu"))
    names = tuple(member.name for member in manifest.members)
    work = Work(MASKS, Scoring(ensemble="e" * 64, members=names, settings=settings), nets)
    found = [each for each in list_scenes(source, nets.bands) if isinstance(each, SceneSource)]
    answers = [perform(Unit(kind="scene", scene=scene), work) for scene in found]
    assert [len(answer.records) for answer in answers] == [1] * len(found) != []
    ledger.compact(MASKS)
    write_catalogue(MASKS, work.scoring)
    records = list(ledger.read_records(MASKS))
    outputs = [output for record in records for output in record.outputs.values()]
    assert not verify_outputs(MASKS, outputs)
    assert not list(unknown_outputs(MASKS, ledger.Standing(output.key for output in outputs)))


def _upload_in_parts(folder: Path) -> None:
    """Upload what goes in parts, of which some fail: those that are there are removed."""
    name = f"shard-00009.parquet{PolicedStore.broken_part}"
    with (folder / name).open("wb") as file:
        file.truncate(MULTIPART_BYTES)
    with pytest.raises(OSError, match="as the test wants it"):
        storage.write_file(f"{SHARDS}/{name}", folder / name)


def test_all_that_raytrain_asks_is_allowed(worked: PolicedStore) -> None:
    assert worked.refused == []
    asked = {each.action for each in worked.requests[WORKER]}
    assert asked == {each for statement in read("data")["Statement"] for each in items(statement["Action"])}


def test_without_any_action_of_any_statement_some_request_is_refused(worked: PolicedStore) -> None:
    requests = set(map(_plain, worked.requests[WORKER]))
    unused = []
    for i, statement in enumerate(read("data")["Statement"]):
        for field in ("Action", "Resource"):
            for each in items(statement[field]):
                less = read("data")
                less["Statement"][i][field] = [other for other in items(statement[field]) if other != each]
                if all(judge([less], Request(*request))[0] for request in requests):
                    unused.append(each)
    # Scores are written by `evaluate`, by the means of any other output.
    assert unused == ["arn:aws:s3:::my-bucket/scores/*"]


def _plain(request: Request) -> tuple[str, str]:
    return request.action, request.resource


def test_the_archive_is_only_read_and_outputs_are_written_below_their_prefixes(worked: PolicedStore) -> None:
    changes = {
        each.resource for each in worked.requests[WORKER] if each.action not in ("s3:GetObject", "s3:ListBucket")
    }
    assert {resource.removeprefix(f"arn:aws:s3:::{BUCKET}/").partition("/")[0] for resource in changes} == {
        "shards",
        "runs",
        "masks",
    }


@pytest.mark.parametrize(
    ("role", "what"),
    [
        (WORKER, lambda: storage.write_bytes(f"{ARCHIVE}/new.tif", b"")),
        (WORKER, lambda: storage.remove(f"{ARCHIVE}/chips/train_metadata.csv")),
        (WORKER, lambda: storage.write_bytes(f"s3://{BUCKET}/elsewhere", b"")),
        (WORKER, lambda: storage.write_bytes(f"s3://{BUCKET}/shards-of-another/object", b"")),
        (WORKER, lambda: storage.read_bytes("s3://other-bucket/shards/object")),
        (WORKER, lambda: storage.find("s3://other-bucket/shards")),
        (WORKER, lambda: _client().create_bucket(Bucket="third")),
        (WORKER, lambda: _client().get_bucket_policy(Bucket=BUCKET)),
        (WORKER, lambda: _client().put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(ALL))),
        (WORKER, lambda: _client().delete_bucket_policy(Bucket=BUCKET)),
        (WORKER, lambda: _client().delete_bucket_lifecycle(Bucket=BUCKET)),
        (PERSON, lambda: storage.write_bytes(f"{RUNS}/main/report.html", b"")),
        (PERSON, lambda: storage.remove(f"{RUNS}/main/report.html")),
        (PERSON, lambda: storage.read_bytes(f"{ARCHIVE}/chips/train_metadata.csv")),
        ("somebody", lambda: storage.read_bytes(f"{RUNS}/main/report.html")),
    ],
)
def test_what_nobody_needs_is_refused(
    worked: PolicedStore, monkeypatch: pytest.MonkeyPatch, role: str, what: Any
) -> None:
    become(role, worked, monkeypatch)
    with pytest.raises((PermissionError, ClientError), match=r"(?i)access.?denied|403"):
        what()


def test_the_submitter_reads_results(worked: PolicedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    become(PERSON, worked, monkeypatch)
    assert storage.read_bytes(f"{RUNS}/main/report.html") == b"<html>"
    assert "ledger" in {name.partition("/")[0] for name in storage.find(MASKS)}
    assert not storage.exists(f"{RUNS}/main/absent.json")


def test_who_restores_takes_back_what_was_written_over_or_removed_and_nobody_else(
    store: PolicedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the runbook has it; nodes may write and remove, and do not see what was there."""
    place = {"Bucket": BUCKET, "Key": "runs/damaged/ensemble.json"}

    def versions() -> Any:
        """The newest first, as S3 lists them."""
        return _client().list_object_versions(Bucket=BUCKET, Prefix=place["Key"])["Versions"]

    become(ARCHIVIST, store, monkeypatch)
    _client().put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    become(WORKER, store, monkeypatch)
    for body in (b"whole", b"damaged"):
        storage.write_bytes(f"s3://{BUCKET}/{place['Key']}", body)
    storage.remove(f"s3://{BUCKET}/{place['Key']}")
    become(RESTORER, store, monkeypatch)
    source = place | {"VersionId": versions()[-1]["VersionId"]}
    for role in (WORKER, PERSON, "somebody"):
        become(role, store, monkeypatch)
        for ask in (versions, lambda: _client().copy_object(**place, CopySource=source)):
            with pytest.raises(ClientError, match="AccessDenied"):
                ask()
    become(RESTORER, store, monkeypatch)
    with pytest.raises(ClientError, match="AccessDenied"):
        _client().delete_object(**source)
    _client().copy_object(**place, CopySource=source)
    become(WORKER, store, monkeypatch)
    assert storage.read_bytes(f"s3://{BUCKET}/{place['Key']}") == b"whole"


def test_with_a_right_to_list_that_hangs_on_a_prefix_no_training_begins(
    store: PolicedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is why `ListNames` speaks of the whole bucket: else what is absent may be told as forbidden."""
    narrow, folder = read("data"), f"{RUNS}/narrow/member-fold0"
    narrow["Statement"][0]["Condition"] = {"StringEquals": {"s3:prefix": "runs/narrow/member-fold0/"}}
    with PolicedStore({WORKER: [narrow]}, read("bucket")) as server:  # of the same objects
        become(WORKER, server, monkeypatch)
        assert storage.find(folder) == {}
        with pytest.raises(PermissionError):
            CheckpointStore(folder, keep_last=1).begin()


OUTSIDER = {"aws:PrincipalArn": "arn:aws:iam::111122223333:role/intern", "aws:SecureTransport": "true"}
OURS = OUTSIDER | {"aws:PrincipalArn": f"arn:aws:iam::111122223333:role/{WORKER}"}


@pytest.mark.parametrize(
    ("action", "key", "context", "expected"),
    [
        ("s3:GetObject", "/runs/main/report.html", OURS, (True, "All")),
        ("s3:GetObject", "/runs/main/report.html", OUTSIDER, (False, "NoDataForOthers")),
        ("s3:GetObjectVersion", "/runs/main/report.html", OUTSIDER, (False, "NoDataForOthers")),
        ("s3:PutObject", "/runs/x", OUTSIDER, (False, "NoDataForOthers")),
        ("s3:DeleteObjectVersion", "/runs/x", OUTSIDER, (False, "NoDataForOthers")),
        ("s3:ListBucketVersions", "", OUTSIDER, (False, "NoDataForOthers")),
        ("s3:PutObject", "/archive/x", OURS, (False, "TheArchiveIsTheArchivists")),
        ("s3:DeleteObjectVersion", "/archive/x", OURS, (False, "TheArchiveIsTheArchivists")),
        ("s3:GetObject", "/archive/x", OURS, (True, "All")),
        ("s3:GetObject", "/archive/x", OURS | {"aws:SecureTransport": "false"}, (False, "NothingWithoutTls")),
        ("s3:PutBucketPolicy", "", OUTSIDER, (True, "All")),  # an administrator is not locked out of the policy
    ],
)
def test_the_policy_of_the_bucket_holds_whatever_a_role_may_do(
    action: str, key: str, context: dict[str, str], expected: tuple[bool, str]
) -> None:
    assert judge([ALL, read("bucket")], Request(action, f"arn:aws:s3:::{BUCKET}{key}", context)) == expected
