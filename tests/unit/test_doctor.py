"""What `raytrain doctor` makes of what nodes and stores say: each fault is named with its node and its remedy."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from raytrain import storage
from raytrain.cli import main
from raytrain.cluster import (
    autoscaling,
    checks,
    checks_access,
    checks_machine,
    checks_store,
    node_look,
    session,
)
from raytrain.cluster import doctor as doctor_module
from raytrain.cluster.checks import LOCKED_RAY, Finding, Node, Seen
from raytrain.cluster.checks_store import NodeAnswers
from raytrain.cluster.code import digest
from raytrain.cluster.examination import DoctorJob, DoctorReport, Examination
from raytrain.cluster.node_report import Dashboard, Disk, GpuReport, NodeReport
from raytrain.cluster.session import Cluster
from raytrain.storage import Answer, StoreReport
from tests.store.broken_folder import broken_folder

ROOT = Path(__file__).resolve().parents[2]
GB = 10**9
OURS = {"Python": "3.11.7", "raytrain": "0.1.0", "ray": LOCKED_RAY, "torch": "2.14.1", "numpy": "2.4.6"}
CODE = "c" * 64
GPU = GpuReport(name="NVIDIA H100", memory_bytes=80 * GB, runtime="13.0", driver="580.1", bf16=True, nccl="2.27.1")


def report(**changes: Any) -> NodeReport:
    """A node on which all is well, but for what is changed: `disk__cache={...}` changes a part of a part."""
    disk = {"exists": True, "filesystem": "ext4", "total_bytes": 1000 * GB, "free_bytes": 500 * GB}
    values: dict[str, Any] = {
        "host": "h",
        "versions": OURS,
        "code": CODE,
        "disks": {
            "cache": {"path": "/mnt/cache", **disk},
            "temporary": {"path": "/tmp", **disk},
            "session": {"path": "/tmp/ray", **disk},
        },
        "memory": {
            "machine_bytes": 64 * GB,
            "limit_bytes": None,
            "shm_bytes": 32 * GB,
            "shm_free_bytes": 32 * GB,
            "open_files": 65536,
        },
        "network": {
            "interfaces": {"lo": "127.0.0.1", "eth0": "10.0.0.1"},
            "of_ray": "eth0",
            "address_of_host_name": "10.0.0.1",
            "gloo": None,
            "nccl": None,
        },
        "token": {"mode": "token", "source": "file", "path": "/home/ray/.ray/auth_token", "file_mode": 0o600},
        "dashboard": None,
        "gpus": {"devices": 0, "torch_cuda": None, "seen": 0, "visible": None},
    }
    for path, value in changes.items():
        *parts, name = path.split("__")
        place = values
        for part in parts:
            place = place[part]
        place[name] = value
    return NodeReport.model_validate(values)


def seen(name: str, made: NodeReport | None = None, **node: Any) -> Seen:
    kept = {each: node.pop(each) for each in ("ahead_s", "uncertain_s", "gpu", "gpu_unchecked") if each in node}
    counted = {"cpus": 8, "memory_bytes": 40 * GB, "object_store_bytes": 20 * GB, "metrics_port": 8080, **node}
    return Seen(Node(name=name, address="10.0.0.1", **counted), made or report(), **kept)


def all_checks(nodes: list[Seen]) -> list[Finding]:
    return checks.merged(
        [
            *checks.check_head(nodes),
            *checks.check_versions(nodes, OURS, CODE),
            *checks.check_clocks(nodes),
            *checks_machine.check_gpus(nodes),
            *checks_machine.check_disks(nodes),
            *checks_machine.check_memory(nodes),
            *checks_machine.check_network(nodes),
            *checks_access.check_tokens(nodes),
            *checks_access.check_dashboard(nodes),
            *checks_access.check_metrics(nodes),
        ]
    )


def test_a_cluster_on_which_all_is_well_has_only_fine_findings_that_name_every_node() -> None:
    nodes = [seen("head", is_head=True, cpus=0), seen("a"), seen("b")]
    found = all_checks(nodes)
    assert {each.verdict for each in found} == {"ok"}
    assert all(each.nodes == ("head", "a", "b") and not each.remedy for each in found)
    assert {each.check for each in found} >= {"nodes", "versions", "clock", "cache", "disk", "shm", "memory", "token"}


GPUS = {"gpus__devices": 2, "gpus__torch_cuda": "13.0", "gpus__seen": 2}
BAD: dict[str, tuple[Seen, str, str, str, str]] = {
    "another numpy": (
        seen("b", report(versions=OURS | {"numpy": "2.3.0"})),
        "versions",
        "failed",
        "numpy 2.3.0 (the command has 2.4.6)",
        "same image",
    ),
    "a library that is not there": (
        seen("b", report(versions={name: OURS[name] for name in OURS if name != "torch"})),
        "versions",
        "failed",
        "torch none",
        "same image",
    ),
    "another source": (seen("b", report(code="d" * 64)), "versions", "failed", "dddddddddddd, not cccc", "as a job"),
    "a clock ahead": (seen("b", ahead_s=20.0, uncertain_s=0.1), "clock", "warning", "20 s ahead", "chrony"),
    "a clock far behind": (seen("b", ahead_s=-901.0, uncertain_s=0.1), "clock", "failed", "901 s behind", "chrony"),
    "a head with CPUs": (seen("b", is_head=True, cpus=4), "nodes", "warning", "gives 4 CPUs", "--num-cpus=0"),
    "a full disk": (
        seen("b", report(disks__temporary__free_bytes=40 * GB)),
        "disk",
        "failed",
        "/tmp, the folder for temporary files, is 96% full",
        "free room",
    ),
    "a disk that fills": (
        seen("b", report(disks__session__free_bytes=80 * GB)),
        "disk",
        "warning",
        "/tmp/ray, Ray's folder, is 92% full",
        "free room",
    ),
    "a read-only disk": (
        seen("b", report(disks__temporary__problem="Read-only file system")),
        "disk",
        "failed",
        "can't be written: Read-only file system",
        "TMPDIR",
    ),
    "a cache in memory": (
        seen("b", report(disks__cache__filesystem="tmpfs")),
        "cache",
        "warning",
        "is memory, not a disk",
        "local disk",
    ),
    "a cache across a network": (
        seen("b", report(disks__cache__filesystem="nfs4")),
        "cache",
        "warning",
        "across a network",
        "local disk",
    ),
    "no cache": (seen("b", report(disks__cache__exists=False)), "cache", "warning", "is not there", "mount the local"),
    "a small cache": (
        seen("b", report(disks__cache__free_bytes=50 * GB)),
        "cache",
        "warning",
        "less than the 100 GB",
        "--cache-limit-gb 45",
    ),
    "a cache that can't be written": (
        seen("b", report(disks__cache__problem="Permission denied")),
        "cache",
        "failed",
        "Permission denied",
        "mount a writable",
    ),
    "a small shm": (
        seen("b", report(memory__shm_bytes=64 * 2**20)),
        "shm",
        "warning",
        "holds 0.1 GB, Ray's object store is 20.0 GB",
        "--shm-size=21g",
    ),
    "no shm": (seen("b", report(memory__shm_bytes=None)), "shm", "warning", "is not there", "--shm-size=21g"),
    "a container of less memory than Ray counts": (
        seen("b", report(memory__limit_bytes=32 * GB)),
        "memory",
        "failed",
        "Ray counts 60.0 GB (objects included), this container may use 32.0 GB",
        "--memory=2400000000,",
    ),
    "few open files": (seen("b", report(memory__open_files=1024)), "open files", "warning", "1024", "nofile=65536"),
    "an interface that is not there": (
        seen("b", report(network__gloo="ens5")),
        "network",
        "failed",
        "GLOO_SOCKET_IFNAME=ens5 names no interface there: it has eth0, lo",
        "GLOO_SOCKET_IFNAME=eth0",
    ),
    "NCCL's interface that is not there": (
        seen("b", report(network__nccl="=eth")),
        "network",
        "failed",
        "NCCL_SOCKET_IFNAME==eth names no interface",
        "NCCL_SOCKET_IFNAME=eth0",
    ),
    "a host name of loopback": (
        seen("b", report(network__address_of_host_name="127.0.1.1")),
        "network",
        "warning",
        "stands for 127.0.1.1",
        "GLOO_SOCKET_IFNAME=eth0",
    ),
    "a token for others": (
        seen("b", report(token__file_mode=0o644)),
        "token",
        "warning",
        "has mode 0644",
        "chmod 600 /home/ray/.ray/auth_token",
    ),
    "no token mode": (
        seen("b", report(token__mode=None)),
        "token",
        "failed",
        "RAY_AUTH_MODE is not set",
        "RAY_AUTH_MODE=token",
    ),
    "token mode without a token": (
        seen("b", report(token__source="none", token__file_mode=None)),
        "token",
        "failed",
        "there is none",
        "mode 0600",
    ),
    "a job API without a token": (
        seen("b", report(dashboard=Dashboard(address="10.0.0.1:8265", status=200, listens_on=("0.0.0.0",)))),
        "job API",
        "failed",
        "on 0.0.0.0 without a token",
        "--dashboard-host=127.0.0.1",
    ),
    "a job API on loopback without a token": (
        seen("b", report(dashboard=Dashboard(address="127.0.0.1:8265", status=200, listens_on=("127.0.0.1",)))),
        "job API",
        "warning",
        "all users of this machine",
        "RAY_AUTH_MODE=token",
    ),
    "a job API that is gone": (
        seen("b", report(dashboard=Dashboard(address="127.0.0.1:8265", status=None, listens_on=()))),
        "job API",
        "warning",
        "does not answer",
        "dashboard.log",
    ),
    "metrics at another port": (
        seen("b", metrics_port=41000),
        "metrics",
        "warning",
        "a port of its own",
        "--metrics-export-port=8080",
    ),
    "a GPU that is counted but not seen": (
        seen("b", report(**GPUS | {"gpus__seen": 0, "gpus__visible": ""}), gpus=2),
        "GPUs",
        "failed",
        "Ray counts 2 GPUs, torch sees 0 (CUDA_VISIBLE_DEVICES=)",
        "--gpus all",
    ),
    "a GPU that is not counted": (
        seen("b", report(**GPUS), gpus=1),
        "GPUs",
        "warning",
        "Ray counts 1 GPUs, where torch sees 2",
        "restart its Ray",
    ),
    "a torch without CUDA": (
        seen("b", report(**GPUS | {"gpus__torch_cuda": None, "gpus__seen": 0})),
        "GPUs",
        "failed",
        "2 GPUs, but a torch without CUDA",
        "raytrain:*-gpu",
    ),
    "a torch that can't be imported": (
        seen("b", report(**GPUS | {"gpus__problem": "OSError: libcuda.so"}), gpus=2),
        "GPUs",
        "failed",
        "OSError: libcuda.so",
        "raytrain:*-gpu",
    ),
    "taken GPUs": (
        seen("b", report(**GPUS), gpus=2, gpu_unchecked="all are taken"),
        "GPUs",
        "unchecked",
        "not checked: all are taken",
        "again",
    ),
    "a GPU that does not compute": (
        seen("b", report(**GPUS), gpus=2, gpu=GPU.model_copy(update={"problem": "CUDA error: no kernel image"})),
        "GPUs",
        "failed",
        "no kernel image",
        "the driver (580.1) is one for CUDA 13.0",
    ),
    "no NCCL": (
        seen("b", report(**GPUS), gpus=2, gpu=GPU.model_copy(update={"nccl": None})),
        "GPUs",
        "failed",
        "without NCCL",
        "raytrain:*-gpu",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_one_node_is_named_with_that_node_and_a_remedy(name: str) -> None:
    bad, check, verdict, found, remedy = BAD[name]
    wrong = [each for each in all_checks([seen("a"), bad, seen("c")]) if each.verdict != "ok"]
    assert [(each.check, each.verdict) for each in wrong] == [(check, verdict)]
    assert "b" in wrong[0].nodes
    assert wrong[0].nodes == ("b",) or check == "metrics"
    assert found in wrong[0].found
    assert remedy in wrong[0].remedy


def test_gpus_that_are_well_are_told_with_what_they_can() -> None:
    (found,) = checks_machine.check_gpus([seen("a"), seen("b", report(**GPUS), gpus=2, gpu=GPU)])
    assert (found.verdict, found.nodes) == ("ok", ("b",))
    assert "2 x NVIDIA H100, 80.0 GB, bf16; CUDA 13.0 on driver 580.1, NCCL 2.27.1" in found.found


def test_gpus_of_several_kinds_are_told() -> None:
    other = GPU.model_copy(update={"name": "NVIDIA T4", "bf16": False})
    nodes = [seen("a", report(**GPUS), gpus=2, gpu=GPU), seen("b", report(**GPUS), gpus=2, gpu=other)]
    assert [each.found for each in checks_machine.check_gpus(nodes) if each.verdict == "warning"] == [
        "of several kinds: NVIDIA H100, NVIDIA T4"
    ]


def test_the_same_fault_of_several_nodes_is_one_finding() -> None:
    nodes = [seen(name, report(memory__open_files=1024)) for name in ("a", "b")]
    (found,) = [each for each in all_checks(nodes) if each.verdict != "ok"]
    assert found.nodes == ("a", "b")


def test_a_clock_that_is_read_slowly_is_not_called_wrong() -> None:
    nodes = [seen("a"), seen("b", ahead_s=20.0, uncertain_s=19.0)]
    assert [each.verdict for each in checks.check_clocks(nodes)] == ["ok"]


def test_a_single_machine_without_a_job_api_is_only_warned_about_tokens() -> None:
    (found,) = checks_access.check_tokens([seen("a", report(token__mode="disabled"))])
    assert (found.verdict, found.check) == ("warning", "token")


@pytest.mark.parametrize(("version", "verdict"), [("2.60.1", "warning"), ("2.61.0", "failed")])
def test_another_ray_than_the_locked_one_is_told(version: str, verdict: str) -> None:
    ours = OURS | {"ray": version}
    wrong = [
        each for each in checks.check_versions([seen("a", report(versions=ours))], ours, CODE) if each.verdict != "ok"
    ]
    assert [(each.verdict, LOCKED_RAY in each.remedy) for each in wrong] == [(verdict, True)]


def test_the_locked_ray_is_that_of_the_lock_file() -> None:
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    assert next(each["version"] for each in packages if each["name"] == "ray") == LOCKED_RAY


def test_the_autoscaler_is_told_of_only_where_it_says_something() -> None:
    assert autoscaling.judge_report({}, has_error=False) == []
    (waiting,) = autoscaling.judge_report({"pending_launches": {"gpu": 2}, "pending_nodes": []}, has_error=False)
    assert (waiting.verdict, waiting.found[:10]) == ("ok", "2 machines")
    (failed,) = autoscaling.judge_report({"failed_nodes": [["10.0.0.9", "gpu"]]}, has_error=False)
    assert (failed.verdict, "gpu" in failed.found) == ("warning", True)
    (ended,) = autoscaling.judge_report({}, has_error=True)
    assert ended.verdict == "warning"


# Stores


def answers(**kinds: Any) -> StoreReport:
    made = {name: value if isinstance(value, Answer) else Answer(kind=value) for name, value in kinds.items()}
    return StoreReport(
        uri="s3://my-bucket/runs",
        endpoint="https://s3.eu-west-1.amazonaws.com",
        region="eu-west-1",
        credentials="instance profile",
        answers=made,
    )


def test_a_store_that_refuses_writes_is_told_with_the_right_that_lacks() -> None:
    refused = answers(list="ok", write=Answer(kind="refused", detail="403 AccessDenied"), read="not-asked")
    good = answers(list="ok", write="ok", read="ok", delete="ok")
    fine, bad = checks_store.check_store([NodeAnswers("a", good), NodeAnswers("b", refused)])
    assert (fine.verdict, fine.nodes) == ("ok", ("a",))
    assert (bad.verdict, bad.nodes) == ("failed", ("b",))
    assert "can't write: it knows the keys, and refuses (403 AccessDenied)" in bad.found
    assert "s3:PutObject on arn:aws:s3:::my-bucket/runs/*" in bad.remedy
    assert "instance profile" in bad.remedy


@pytest.mark.parametrize(
    ("kind", "found", "remedy"),
    [
        ("no-credentials", "no keys on this node", "instance profile"),
        ("wrong-keys", "does not accept the keys", "AWS_ENDPOINT_URL"),
        ("expired", "have run out", "renew"),
        ("clock", "clocks differ", "chrony"),
        ("no-bucket", "no bucket my-bucket", "make the bucket"),
        ("unknown-host", "no name server knows", "AWS_ENDPOINT_URL"),
        ("no-connection", "no connection to https://s3", "security group"),
        ("timeout", "in time", "route"),
        ("tls", "no trust in", "AWS_CA_BUNDLE"),
        ("not-s3", "no S3 store", "port"),
        ("unavailable", "not well", "again"),
        ("no-profile", "in no shared file", "~/.aws"),
        ("region", "lies in another region, not in eu-west-1", "AWS_DEFAULT_REGION"),
    ],
)
def test_each_refusal_has_its_own_words_and_remedy(kind: Any, found: str, remedy: str) -> None:
    (bad,) = checks_store.check_store([NodeAnswers("a", answers(list=kind))])
    assert bad.verdict == "failed"
    assert found in bad.found
    assert remedy in bad.remedy


def test_a_probe_that_stays_and_a_store_of_another_time_and_region_are_told() -> None:
    good = answers(list="ok", write="ok", read="ok", delete=Answer(kind="refused", detail="403 AccessDenied"))
    changed = {"left_behind": "s3://my-bucket/runs/p", "ahead_s": 400.0, "bucket_region": "us-east-1"}
    found = checks_store.check_store([NodeAnswers("a", good.model_copy(update=changed))])
    texts = [(each.verdict, each.found) for each in found]
    assert ("warning", "the probe can't be removed and stays: s3://my-bucket/runs/p") in texts
    assert any(verdict == "failed" and "400 s behind that of the store" in text for verdict, text in texts)
    assert any(verdict == "warning" and "lies in us-east-1" in text for verdict, text in texts)


def test_a_folder_that_refuses_is_not_told_of_keys() -> None:
    folder = StoreReport(uri="/data", answers={"list": Answer(kind="refused", detail="Permission denied")})
    (bad,) = checks_store.check_store([NodeAnswers("b", folder)])
    assert bad.found == "/data: can't list: no right to it (Permission denied)"
    assert "uid 1000" in bad.remedy


def test_a_shared_folder_that_is_another_one_is_told() -> None:
    folder = StoreReport(uri="/shared", answers={"list": Answer(kind="ok")})
    (bad,) = checks_store.check_store([NodeAnswers("b", folder, sees_ours=False)])
    assert (bad.verdict, "not the one" in bad.found) == ("failed", True)


# How a machine is looked at


def test_the_filesystem_of_a_folder_is_that_of_the_deepest_mount_the_last_one_first() -> None:
    mounts = (
        "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        "30 22 0:26 / /mnt rw - ext4 /dev/vdb rw\n"
        "31 30 0:27 / /mnt/a\\040b rw - xfs /dev/nvme1n1 rw\n"
        "32 22 0:28 / /mnt rw - tmpfs none rw\n"
    )
    assert node_look.filesystem_of(Path("/home/x"), mounts) == "ext4"
    assert node_look.filesystem_of(Path("/mnt/x"), mounts) == "tmpfs"
    assert node_look.filesystem_of(Path("/mnt/a b/x"), mounts) == "xfs"
    assert node_look.filesystem_of(Path("/mntx"), mounts) == "ext4"


@pytest.mark.parametrize(
    ("name", "text", "limit"),
    [
        ("memory.max", "max\n", None),
        ("memory.max", "1073741824\n", 2**30),
        ("memory/memory.limit_in_bytes", "2147483648\n", 2**31),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", None),
    ],
)
def test_the_limit_of_a_container_is_read_in_both_versions(
    tmp_path: Path, name: str, text: str, limit: int | None
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    assert node_look.cgroup_limit(tmp_path) == limit


def test_a_port_is_found_at_the_addresses_where_it_listens(tmp_path: Path) -> None:
    head = "  sl  local_address rem_address   st\n"
    (tmp_path / "tcp").write_text(
        f"{head}   0: 0100007F:2049 00000000:0000 0A\n   1: 0A004D0A:2049 00000000:0000 0A\n"
        "   2: 0100007F:2049 0100007F:9999 01\n   3: 00000000:0016 00000000:0000 0A\n"
    )
    (tmp_path / "tcp6").write_text(f"{head}   0: {'0' * 32}:2049 {'0' * 32}:0000 0A\n")
    assert node_look.listens_on(0x2049, tmp_path) == ("10.77.0.10", "127.0.0.1", "::")


def test_a_folder_is_looked_at_without_leaving_anything(tmp_path: Path) -> None:
    there, not_yet = node_look.disk(str(tmp_path)), node_look.disk(str(tmp_path / "a" / "b"))
    assert (there.exists, there.problem, not_yet.exists, not_yet.problem) == (True, "", False, "")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert node_look.disk(str(tmp_path / "file" / "cache")).problem == f"{tmp_path / 'file'} is a file"


def test_the_token_that_counts_is_found_as_ray_finds_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    assert node_look.token().source == "none"
    path = tmp_path / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text("secret")
    path.chmod(0o644)
    assert (node_look.token().source, node_look.token().file_mode) == ("file", 0o644)
    other = tmp_path / "other"
    other.write_text("secret")
    other.chmod(0o600)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(other))
    assert (node_look.token().path, node_look.token().file_mode) == (str(other), 0o600)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert node_look.token().source == "RAY_AUTH_TOKEN"


def test_the_digest_of_the_code_changes_with_any_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import raytrain

    def digest_of(change: Callable[[Path], object]) -> str:
        folder = tmp_path / os.urandom(4).hex()
        (folder / "sub").mkdir(parents=True)
        (folder / "__init__.py").write_text("a = 1\n")
        (folder / "sub" / "b.py").write_text("b = 1\n")
        change(folder)
        monkeypatch.setattr(raytrain, "__file__", str(folder / "__init__.py"))
        digest.cache_clear()
        return digest()

    try:
        same = digest_of(lambda folder: None)
        assert same == digest_of(lambda folder: (folder / "notes.txt").write_text("x"))
        assert same != digest_of(lambda folder: (folder / "sub" / "b.py").write_text("b = 2\n"))
        assert same != digest_of(lambda folder: (folder / "sub" / "b.py").rename(folder / "sub" / "c.py"))
    finally:
        digest.cache_clear()


# The command, where no Ray can be joined: it tells of this machine, and of stores as it sees them

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIARECOGNISABLEKEY1",
    "AWS_SECRET_ACCESS_KEY": "recognisable-secret-2",
    "AWS_SESSION_TOKEN": "recognisable-session-3",
    "RAY_AUTH_TOKEN": "recognisable-ray-token-4" * 2,
    "AWS_ENDPOINT_URL": "http://user:recognisable-password-5@127.0.0.1:1",
}


def test_a_cluster_out_of_reach_ends_with_3_and_shows_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "stores.toml").write_text('[stores."s3://other"]\nprofile = "absent"\n')
    arguments = ["--address", "127.0.0.1:1", "--cache", str(tmp_path), "--stores", str(tmp_path / "stores.toml")]
    for form in ([], ["--json"]):
        assert main(["doctor", "s3://my-bucket/runs", "s3://other/x", str(tmp_path), *arguments, *form]) == 3
        captured = capsys.readouterr()
        for value in ("recognisable", "AKIARECOGN"):
            assert value not in captured.out + captured.err
    result = json.loads(captured.out)
    found = {each["check"]: each for each in result["findings"] if each["verdict"] != "ok"}
    assert not result["reached"]
    assert "can't join Ray at 127.0.0.1:1" in found["cluster"]["found"]
    stores = [each["found"] for each in result["findings"] if each["check"] == "store"]
    assert any("no connection to http://127.0.0.1:1 (Connection refused)" in text for text in stores)
    assert any("s3://other/x: can't list: the profile named for it" in text for text in stores)
    assert any(text.startswith(f"{tmp_path}: list, write, read, delete") for text in stores)
    assert [path.name for path in tmp_path.iterdir()] == ["stores.toml"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["https://host/x"],
        ["gs://bucket/x"],
        ["--cache", "s3://bucket/x"],
        ["--limit-s", "0"],
        ["--address", "head"],
        ["--address", "ray://head:10001"],
    ],
)
def test_mistakes_of_the_caller_end_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *arguments]) == 2
    assert capsys.readouterr().err.startswith("raytrain: ")


def test_the_table_is_readable_in_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from raytrain.console import print_findings

    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    print_findings([("failed", "store", "all 3 nodes", f"s3://bucket/{'x' * 90} [bold]", "do this " * 20)])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(len(line) for line in lines) <= 80
    assert "[bold]" in " ".join(lines)
    assert any(line.lstrip().startswith("-> do this") for line in lines)


def test_a_report_comes_back_from_json_as_it_was() -> None:
    made = report()
    assert NodeReport.model_validate(json.loads(made.model_dump_json())) == made


# What fails or hangs while it is looked at


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.ENOTCONN, errno.EIO])
def test_a_disk_that_can_not_be_looked_into_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    broken_folder(monkeypatch, tmp_path / "broken", number)
    for path in (tmp_path / "broken", tmp_path / "broken" / "sub"):
        disk = node_look.disk(str(path))
        assert (disk.exists, disk.problem) == (False, os.strerror(number))
        (found,) = checks_machine._cache_of(seen("b", report(disks__cache=disk.model_dump())))
        assert (found.verdict, os.strerror(number) in found.found) == ("failed", True)


def test_a_disk_that_hangs_is_a_finding_and_loses_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends, real = threading.Event(), node_look.disk

    def disk(path: str) -> Disk:
        if path == "/hanging":
            ends.wait(60)
        return real(path)

    monkeypatch.setattr(node_look, "disk", disk)
    monkeypatch.setattr(node_look, "DISK_S", 1.0)
    found = node_look.disks({"cache": "/hanging", "temporary": str(tmp_path)})
    ends.set()
    assert (found["cache"].problem, found["temporary"].problem) == ("no answer within 1 s", "")


def test_a_broken_folder_loses_nothing_else_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, good = tmp_path / "broken", tmp_path / "good"
    good.mkdir()
    broken_folder(monkeypatch, broken, errno.ESTALE)
    real = storage.probe

    def probe(uri: str, name: str, *, writes: bool) -> StoreReport:
        if uri == "s3://odd":
            raise RuntimeError("recognisable")
        return real(uri, name, writes=writes)

    monkeypatch.setattr(storage, "probe", probe)
    arguments = [str(broken), "s3://odd", str(good), "--cache", str(broken / "sub"), "--address", "127.0.0.1:1"]
    assert main(["doctor", *arguments, "--json"]) == 3
    output = capsys.readouterr().out
    assert "recognisable" not in output
    findings = [(each["check"], each["verdict"], each["found"]) for each in json.loads(output)["findings"]]
    for check, verdict, text in (
        ("cache", "failed", "Stale file handle"),
        ("store", "failed", f"{broken}: can't list and write: an unexpected answer (Stale file handle)"),
        ("store", "failed", "s3://odd: can't list: can't be asked (RuntimeError)"),
        ("store", "ok", f"{good}: list, write, read, delete"),
    ):
        assert any(each[:2] == (check, verdict) and text in each[2] for each in findings), (check, text)


def test_what_hangs_on_this_machine_is_a_finding_within_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, real = threading.Event(), storage.probe

    def hang(uri: str, name: str, *, writes: bool) -> StoreReport:
        if uri == "/hanging":
            ends.wait(60)
        return real(uri, name, writes=writes)

    monkeypatch.setattr(storage, "probe", hang)
    monkeypatch.setattr(node_look, "look", lambda **_: ends.wait(60))
    start = time.monotonic()
    made = doctor_module._without_cluster(DoctorJob(uris=("/hanging", str(tmp_path)), limit_s=1), "away")
    assert time.monotonic() - start < 10
    ends.set()
    found = {each.found.partition(" (1 s")[0]: each.verdict for each in made.findings}
    assert found.pop("takes longer than 1 s to look at") == "failed"
    assert found.pop("/hanging: can't list: the folder does not answer in time") == "failed"
    assert sorted(found.values()) == ["failed", "ok"]  # the cluster, and the other folder


# The examination of a cluster, from what Ray says of its nodes


def cluster_node(number: int, labels: dict[str, str] | None = None, **resources: float) -> dict[str, Any]:
    return {
        "NodeID": f"n{number}",
        "Alive": True,
        "NodeManagerAddress": f"10.0.0.{number}",
        "NodeManagerPort": 1,
        "Resources": ({} if number else {"node:__internal_head__": 1.0}) | resources,
        "Labels": labels or {},
    }


def examination(
    monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, Any]], job: DoctorJob | None = None, **cluster: Any
) -> Examination:
    """An examination of a cluster of these nodes, each of which is well."""
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    made = Examination(job or DoctorJob(), Cluster(**cluster), None)
    for each in made._answers:
        each.report = report(versions=node_look.versions(), code=digest())
    return made


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("look", {"versions": 3}),
        ("look", None),
        ("clock", {"t": 1}),
        ("clock", "noon"),
        ("clock", float("nan")),
        ("GPU", {"name": "H100"}),
        ("stores", None),
        ("stores", 7),
        ("stores", [{"uri": "x"}]),
        ("stores", [({"uri": "/x", "answers": {}, "new_field": 1}, None)]),
        ("stores", [({"uri": "/x", "answers": {"list": {"kind": "brand-new"}}}, None)]),
    ],
)
def test_an_answer_of_any_form_is_a_finding(monkeypatch: pytest.MonkeyPatch, kind: Any, answer: Any) -> None:
    made = examination(monkeypatch, [cluster_node(0), cluster_node(1)])
    made._take_answer(made._answers[1], kind, answer, time.time())
    wrong = [each for each in made._report().findings if each.verdict == "failed"]
    assert [each.nodes for each in wrong] == [(made._answers[1].node.name,)]
    assert f"version {node_look.versions()['raytrain']}) is another one" in wrong[0].found
    assert f"can't be understood ({kind})" in wrong[0].found


def test_a_store_s_answer_that_is_not_understood_loses_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    made = examination(monkeypatch, [cluster_node(0)], DoctorJob(uris=("s3://my-bucket/runs",)))
    good = answers(list="ok", write="ok", read="ok", delete="ok").model_dump(mode="json")
    made._take_answer(made._answers[0], "stores", [({"uri": 1}, None), (good, None)], 0.0)
    found = [(each.check, each.verdict) for each in made._report().findings if each.check in ("nodes", "store")]
    assert sorted(found) == [("nodes", "failed"), ("nodes", "ok"), ("store", "ok")]


GROWS = {"raytrain.most-gpus": "8", "raytrain.most-cpus": "64"}


@pytest.mark.parametrize("labels", [GROWS, {"raytrain.most-cpus": "many"}, {}])
def test_a_local_path_is_refused_on_a_lone_head_as_training_refuses_it(
    monkeypatch: pytest.MonkeyPatch, labels: dict[str, str]
) -> None:
    made = examination(monkeypatch, [cluster_node(0, labels)], DoctorJob(uris=("/data",)))
    stores = [each for each in made._report().findings if each.check == "store"]
    if labels:
        assert [(each.verdict, "can grow to several nodes" in each.found) for each in stores] == [("failed", True)]
    assert made._asked() == ([] if labels else [("/data", True)])
    shared = examination(monkeypatch, [cluster_node(0, labels)], DoctorJob(uris=("/data",)), shared_path=True)
    assert shared._asked() == [("/data", True)]


def test_a_cluster_at_rest_is_not_called_well(monkeypatch: pytest.MonkeyPatch) -> None:
    def unchecked(nodes: list[dict[str, Any]]) -> list[str]:
        found = examination(monkeypatch, nodes)._report().findings
        assert all(each.remedy == "run doctor again while work runs" for each in found if each.verdict == "unchecked")
        return [each.check for each in found if each.verdict == "unchecked"]

    assert unchecked([cluster_node(0, GROWS)]) == ["nodes", "GPUs"]
    assert unchecked([cluster_node(0, GROWS), cluster_node(1, CPU=8)]) == ["GPUs"]
    assert unchecked([cluster_node(0, {"raytrain.most-cpus": "8"}), cluster_node(1, CPU=8)]) == []
    assert unchecked([cluster_node(0)]) == []


def test_a_growth_label_that_is_no_number_is_a_finding_and_refuses_no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [cluster_node(0, {"raytrain.most-gpus": "many"}), cluster_node(1, CPU=8)]
    wrong = [each for each in examination(monkeypatch, nodes)._report().findings if each.verdict == "failed"]
    assert [each.check for each in wrong] == ["nodes"]
    assert "raytrain.most-gpus is 'many'" in wrong[0].found
    assert "--labels=raytrain.most-gpus=NUMBER" in wrong[0].remedy
    session._refuse_local_paths(Cluster(), ["s3://my-bucket/runs"])
    session._refuse_local_paths(Cluster(), [])


def test_a_shared_folder_that_hangs_or_refuses_this_command_is_told_and_keeps_nothing_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, real = threading.Event(), Path.write_bytes
    for name in ("good", "refusing", "hanging"):
        (tmp_path / name).mkdir()

    def write(path: Path, data: bytes) -> int:
        if path.parent.name == "hanging":
            ends.wait(60)
        if path.parent.name == "refusing":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    uris = tuple(str(tmp_path / name) for name in ("good", "refusing", "hanging"))
    nodes = [cluster_node(0), cluster_node(1)]
    made = examination(monkeypatch, nodes, DoctorJob(uris=uris, limit_s=2), shared_path=True)
    markers, start = made._markers(), time.monotonic()
    made._mark_folders(markers)
    assert time.monotonic() - start < 10
    assert list(made._marked) == [uris[0]]
    assert [each.parent.name for each in tmp_path.glob("*/*")] == ["good"]
    ends.set()
    made._remove(list(markers.values()))
    found = [(each.verdict, each.found.partition(":")[0]) for each in made._report().findings if each.check == "store"]
    assert found == [("unchecked", uris[1]), ("failed", uris[2])]
    assert not list((tmp_path / "good").iterdir())


# The token, before Ray starts


@pytest.mark.parametrize("mode", ["token", "Token", "TOKEN"])
def test_token_mode_is_one_in_any_case(mode: str) -> None:
    assert [each.verdict for each in checks_access.check_tokens([seen("a", report(token__mode=mode))])] == ["ok"]


def test_a_ray_of_this_machine_writes_no_token_and_that_there_is_none_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)

    # Not Ray's own, which a Ray of other tests in this process may use.
    resets: list[str] = []
    loader = SimpleNamespace(reset_cache=lambda: resets.append("reset"))
    monkeypatch.setattr(doctor_module, "AuthenticationTokenLoader", SimpleNamespace(instance=lambda: loader))

    @contextlib.contextmanager
    def joined(*arguments: Any, **options: Any) -> Iterator[None]:
        assert resets == ["reset"]  # else Ray would go on with what it found before
        if node_look.token().source == "none":  # as ray.init of a new Ray does
            (tmp_path / ".ray").mkdir()
            (tmp_path / ".ray" / "auth_token").write_text("made up")
        yield

    def run(made: Examination) -> DoctorReport:
        (each,) = made._answers
        monkeypatch.setattr(made, "_ask", lambda *_: None)
        made._take_look(each, report(token=node_look.token().model_dump()))
        return made._report()

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "nodes", lambda: [cluster_node(0)])
    monkeypatch.setattr(session, "joined", joined)
    monkeypatch.setattr(Examination, "run", run)
    found = doctor_module.doctor(DoctorJob(), Cluster())
    (token,) = [each for each in found.findings if each.check == "token"]
    assert (token.verdict, "there is none in RAY_AUTH_TOKEN" in token.found) == ("failed", True)
    assert list(tmp_path.iterdir()) == []
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert len(resets) == 2
