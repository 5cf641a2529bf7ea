"""What tests share: small generated archives, the folder of real imagery, and one Ray for all cluster tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from xdist.scheduler import LoadScopeScheduling

import raytrain.cluster  # noqa: F401  # sets what Ray reads when it is imported
from raytrain import storage
from raytrain.imagery.synth import write_chips, write_scenes

REAL_IMAGERY = Path(__file__).resolve().parents[2] / "shared" / "data"
OTHER_PROCESSES = [f"tests/cluster/test_{name}.py" for name in ("jobs", "elastic", "growing", "memory")]
"""Tests whose Ray is that of other processes, a head's or a program's."""
FIRST = ["nodes", "ray", *OTHER_PROCESSES]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI, which has all that the tests need, a skipped test is a failure."""
    report = yield
    if report.skipped and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, but CI has all that it needs: {report.longrepr}"
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring what takes longest first, and of a Ray's tests those with one of their own: that of all others stays."""
    order = {name: i for i, name in enumerate(FIRST)}
    items.sort(key=lambda item: (order.get(lane(item.nodeid), len(order)), not item.get_closest_marker("own_ray")))


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    """Give each process whole lanes."""
    return Lanes(config, log)


class Lanes(LoadScopeScheduling):
    """Tests that share something dear run in one process: a cluster of three nodes, a Ray of this machine, or a file.

    `--dist loadgroup`, which would do, groups nothing with pytest 9.2: https://github.com/pytest-dev/pytest-xdist/issues/1386.
    """

    def _split_scope(self, nodeid: str) -> str:
        return lane(nodeid)


def lane(nodeid: str) -> str:
    """Return what a test shares with others: `nodes`, `ray`, or its file."""
    path = nodeid.partition("::")[0]
    if path.startswith("tests/multinode/"):
        return "nodes"
    if path in OTHER_PROCESSES:
        return path
    return "ray" if path.startswith(("tests/cluster/", "tests/store/test_scoring_between_stores.py")) else path


@pytest.fixture(scope="session")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of 12 chips of 64 px in 6 places; not to be changed."""
    folder = tmp_path_factory.mktemp("chips")
    write_chips(folder, count=12, size_px=64, seed=1, num_places=6)
    return folder


@pytest.fixture
def own_chips(chips: Path, tmp_path: Path) -> Path:
    """A copy of the archive that a test may spoil."""
    return Path(shutil.copytree(chips, tmp_path / "own-chips"))


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes of 200 px, which is no multiple of 32."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, count=2, size_px=200, seed=1)
    return folder


@pytest.fixture(scope="session")
def real_imagery() -> Path:
    """The folder of real chips, which lies beside the project and is never part of it."""
    if not REAL_IMAGERY.is_dir():
        pytest.skip("no real imagery: the folder ../shared/data is absent")
    return REAL_IMAGERY


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The URI of a folder on an S3 server of this process; its address and keys stand in the environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        storage.filesystem("s3://bucket").mkdir("bucket")
        yield "s3://bucket/folder"
    server.stop()


@pytest.fixture(scope="session")
def local_ray(s3: str) -> Iterator[None]:
    """One Ray on this machine, whose workers reach the S3 server; functions under test use the session they find."""
    import ray

    from raytrain.cluster.session import Cluster, joined

    assert not ray.is_initialized()
    with joined(Cluster(), []):
        yield
