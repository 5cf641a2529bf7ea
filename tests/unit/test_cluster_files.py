"""cluster.yaml and infra/cluster-local.yaml: Ray takes them, and what Ray does not look at is right, too.

Each rule is also held against a file that breaks it.
"""

from __future__ import annotations

import copy
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.client
import botocore.session
import click
import pytest
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config

from raytrain import __version__
from raytrain.cluster.session import GROWTH_LABELS
from tests.own_aws import own_aws

ROOT = Path(__file__).resolve().parents[2]
AWS, LOCAL = ROOT / "cluster.yaml", ROOT / "infra" / "cluster-local.yaml"
REGION = "us-west-2"
TOKEN_FILE = "~/.ray/auth_token"
RAY_FOLDER = "/var/lib/raytrain/ray"
Config = dict[str, Any]


def read(path: Path) -> Config:
    config: Config = yaml.safe_load(path.read_text())
    return config


def ray_accepts(config: Config) -> None:
    """What `ray up` does with a file before it asks anybody; raises for one that is wrong."""
    validate_config(prepare_config(config))


def commands(config: Config) -> list[str]:
    return [each for name, value in config.items() if name.endswith("_commands") for each in value]


def head_start(config: Config) -> str:
    return next(each for each in config["head_start_ray_commands"] if "ray start" in each)


def option(command: str, name: str) -> str | None:
    found = re.search(rf"--{name}=(\S+)", command)
    return found and found.group(1)


def faults(config: Config) -> Iterator[str]:
    """What is wrong in a file for any provider."""
    starts = [each for each in commands(config) if re.search(r"\bray (start|stop)", each)]
    yield from (f"a command without token mode: {each}" for each in starts if "RAY_AUTH_MODE=token;" not in each)
    for command in (each for each in starts if "ray start" in each):
        if option(command, "metrics-export-port") != "8080":
            yield "metrics are elsewhere"
        if not option(command, "object-store-memory"):
            yield "the object store may be larger than /dev/shm"
    if option(head_start(config), "dashboard-host") != "127.0.0.1":
        yield "the dashboard is open"
    if "--autoscaling-config=~/ray_bootstrap_config.yaml" not in head_start(config):
        yield "no autoscaler"
    if config["file_mounts"] != {TOKEN_FILE: TOKEN_FILE}:
        yield "the token does not come along"
    if not any(f"test -s {TOKEN_FILE}" in each for each in config["setup_commands"]):
        yield "nobody notices that there is no token"
    host_side = f'chmod 600 "/tmp/ray_tmp_mount/{config["cluster_name"]}/{TOKEN_FILE}"'
    if not any(host_side in each for each in config["initialization_commands"]):
        yield "others on the machine may read the token"
    closed = f"sudo install -d -o 1000 -g 1000 -m 700 {Path(RAY_FOLDER).parent} {RAY_FOLDER}"
    if not any(each.endswith(closed) for each in config["initialization_commands"]):
        yield "others on the machine reach Ray's sockets and logs"
    options = " ".join(config["docker"]["run_options"])
    for wanted in (
        "--shm-size=8gb",
        "--ulimit nofile=65536:65536",
        "--env RAY_AUTH_MODE=token",
        "--env RAY_TRAIN_ENABLE_STATE_TRACKING=1",
        "--volume /mnt/cache:/mnt/cache",
        f"--volume {RAY_FOLDER}:/tmp/ray",
        "no-new-privileges",
    ):
        if wanted not in options:
            yield f"the container lacks {wanted}"
    text = yaml.safe_dump(config)
    if re.search(r"0\.0\.0\.0/0|::/0", text):
        yield "something is open to the world"
    if re.search(r"AKIA|aws_secret|aws_credentials|RAY_AUTH_TOKEN|UserData|PRIVATE KEY", text, re.IGNORECASE):
        yield "a secret, or a place for one"


def faults_on_aws(config: Config) -> Iterator[str]:
    """What else is wrong in the file for AWS."""
    yield from faults(config)
    types = config["available_node_types"]
    head = types[config["head_node_type"]]
    workers = {name: each for name, each in types.items() if each is not head}
    if config["max_workers"] != sum(each["max_workers"] for each in workers.values()):
        yield "the limits of the types do not add up"
    if any(each["min_workers"] for each in types.values()) or head["max_workers"]:
        yield "something runs that nobody asked for"
    if config["provider"]["cache_stopped_nodes"] is not False:
        yield "stopped instances stay"
    if head["resources"] != {"CPU": 0} or option(head_start(config), "num-cpus") != "0":
        yield "work on the head"
    if "security_group" in config["provider"]:
        yield "Ray makes a security group, with SSH for all the world"
    if not any(
        "/opt/raytrain/spot-notice.sh $RAY_HEAD_IP:6379" in each for each in config["worker_start_ray_commands"]
    ):
        yield "nobody tells Ray that a spot machine goes"
    for name, each in types.items():
        yield from faults_of_type(name, each, is_head=each is head)
    for name, each in workers.items():
        device = "gpu" if each["resources"].get("GPU") else "cpu"
        image = each.get("docker", {}).get("worker_image", config["docker"]["worker_image"])
        if not image.endswith(f"/raytrain:{__version__}-{device}"):
            yield f"{name}: another image, {image}"
    if not config["docker"]["head_image"].endswith(f"/raytrain:{__version__}-cpu"):
        yield "head: another image"
    labels = dict(each.split("=") for each in (option(head_start(config), "labels") or "").split(",") if each)
    for resource, label in GROWTH_LABELS.items():
        of_kind = [each for each in workers.values() if resource == "GPU" or not each["resources"].get("GPU")]
        most = sum(each["resources"].get(resource, 0) * each["max_workers"] for each in of_kind)
        if labels.get(label) != str(most):
            yield f"{label} is not {most}"


def faults_of_type(name: str, node_type: Config, *, is_head: bool) -> Iterator[str]:
    node = node_type["node_config"]
    if node.get("IamInstanceProfile") != {"Name": "raytrain-head" if is_head else "raytrain-worker"}:
        yield f"{name}: another profile"
    metadata = node.get("MetadataOptions", {})
    if (metadata.get("HttpTokens"), metadata.get("HttpPutResponseHopLimit")) != ("required", 2):
        yield f"{name}: IMDSv1"
    if not node.get("SecurityGroupIds") or not node.get("ImageId", "latest_dlami").startswith("ami-"):
        yield f"{name}: Ray chooses the security group or the image"
    if (node.get("InstanceMarketOptions", {}).get("MarketType") == "spot") == is_head:
        yield f"{name}: spot on the head, or not on a worker"
    if not all(each["Ebs"].get("Encrypted") and each["Ebs"]["DeleteOnTermination"] for each in disks(node)):
        yield f"{name}: a disk that is plain, or stays"
    tagged = {each["ResourceType"] for each in node.get("TagSpecifications", [])}
    if tagged != {"instance", "volume"}:
        yield f"{name}: something without a tag"
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    asked = {key: value for key, value in node.items() if key != "SubnetIds"} | {"MinCount": 1, "MaxCount": 1}
    report = ParamValidator().validate(asked, shape)
    if report.has_errors():
        yield f"{name}: not what RunInstances takes: {report.generate_report()}"


def disks(node: Config) -> list[Config]:
    found: list[Config] = node["BlockDeviceMappings"]
    assert found
    return found


@pytest.mark.parametrize("path", [AWS, LOCAL], ids=lambda path: path.name)
def test_ray_takes_the_file(path: Path) -> None:
    ray_accepts(read(path))


@pytest.mark.parametrize("path", [AWS, LOCAL], ids=lambda path: path.name)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what Ray's commands import
def test_ray_start_takes_the_options_that_it_is_given(path: Path) -> None:
    from ray.scripts.scripts import start  # Ray Serve comes with it

    given = [each for each in commands(read(path)) if "ray start" in each]
    assert len(given) == 2
    for command in given:
        start.make_context("start", shlex.split(command.partition("ray start")[2]))
    with pytest.raises(click.NoSuchOption, match="--num-cpu"):
        start.make_context("start", ["--head", "--num-cpu=0"])


@pytest.mark.parametrize("path", [AWS, LOCAL], ids=lambda path: path.name)
def test_ray_refuses_a_file_with_a_word_that_it_does_not_know(path: Path) -> None:
    with pytest.raises(Exception, match="idle_timeout"):
        ray_accepts(read(path) | {"idle_timeout": 5})


def test_cluster_on_aws_is_as_a_careful_operator_wants_it() -> None:
    assert list(faults_on_aws(read(AWS))) == []


def test_cluster_on_own_machines_is_as_a_careful_operator_wants_it() -> None:
    config = read(LOCAL)
    assert list(faults(config)) == []
    assert config["docker"]["image"] == f"raytrain:{__version__}-gpu"


def test_what_the_readme_puts_in_place_of_ours_leaves_nothing_of_ours(tmp_path: Path) -> None:
    found = re.search(r"^sed .*?> ~/raytrain\.yaml$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert found
    own = {"ACCOUNT": "999988887777", "AWS_REGION": "eu-central-1", "GROUP": "sg-00000000000000001", "IMAGE": "ami-1"}
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **own}
    subprocess.run(["bash", "-c", found.group()], env=environment, cwd=ROOT, check=True)
    config = read(tmp_path / "raytrain.yaml")
    ray_accepts(config)
    assert list(faults_on_aws(config)) == []
    assert not re.search(r"111122223333|us-west-2|0123456789abcdef0", yaml.safe_dump(config))


def put(*path: Any, value: Any) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        place: Any = config
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


def cut(*path: Any) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        place: Any = config
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]

    return change


def swap(name: str, old: str, new: str) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        assert any(old in each for each in config[name])
        config[name] = [each.replace(old, new) for each in config[name]]

    return change


def of(node_type: str, *path: Any) -> tuple[Any, ...]:
    return ("available_node_types", node_type, *path)


BROKEN = {
    "a command without token mode": swap("worker_start_ray_commands", "export RAY_AUTH_MODE=token; ", ""),
    "metrics are elsewhere": swap("worker_start_ray_commands", "--metrics-export-port=8080", ""),
    "the object store may be larger": swap("worker_start_ray_commands", "--object-store-memory=4000000000", ""),
    "the dashboard is open": swap("head_start_ray_commands", "127.0.0.1", "0.0.0.0"),
    "no autoscaler": swap("head_start_ray_commands", "--autoscaling-config=~/ray_bootstrap_config.yaml", ""),
    "the token does not come along": put("file_mounts", value={}),
    "nobody notices that there is no token": put("setup_commands", value=[]),
    "others on the machine may read the token": swap("initialization_commands", "chmod 600", "chmod 644"),
    "the container lacks --shm-size": cut("docker", "run_options", 0),
    "the container lacks --volume /var/lib/raytrain/ray:/tmp/ray": cut("docker", "run_options", 5),
    "others on the machine reach Ray's sockets": swap("initialization_commands", "700 /var/lib/raytrain ", "755 "),
    "something is open to the world": put("provider", "sources", value=["0.0.0.0/0"]),
    "a secret": put("provider", "aws_credentials", value={"aws_access_key_id": "AKIAXXXX"}),
    "the limits of the types do not add up": put("max_workers", value=10),
    "something runs that nobody asked for": put(*of("gpu", "min_workers"), value=1),
    "stopped instances stay": put("provider", "cache_stopped_nodes", value=True),
    "nobody tells Ray": swap("worker_start_ray_commands", "spot-notice", "spot"),
    "work on the head": swap("head_start_ray_commands", "--num-cpus=0", ""),
    "Ray makes a security group": put("provider", "security_group", value={"GroupName": "raytrain"}),
    "cpu: another profile": cut(*of("cpu", "node_config", "IamInstanceProfile")),
    "gpu: IMDSv1": put(*of("gpu", "node_config", "MetadataOptions", "HttpTokens"), value="optional"),
    "head: Ray chooses the security group": cut(*of("head", "node_config", "SecurityGroupIds")),
    "cpu: Ray chooses the security group": cut(*of("cpu", "node_config", "ImageId")),
    "head: spot on the head": put(*of("head", "node_config", "InstanceMarketOptions"), value={"MarketType": "spot"}),
    "gpu: a disk that is plain": put(
        *of("gpu", "node_config", "BlockDeviceMappings", 0, "Ebs", "Encrypted"), value=False
    ),
    "gpu: something without a tag": cut(*of("gpu", "node_config", "TagSpecifications", 1)),
    "cpu: not what RunInstances takes": put(*of("cpu", "node_config", "InstanceTypo"), value="m6id.4xlarge"),
    "gpu: another image": put("docker", "worker_image", value="registry/raytrain:0.0.9-gpu"),
    "cpu: another image": cut(*of("cpu", "docker")),
    "head: another image": put("docker", "head_image", value="rayproject/ray:latest"),
    "raytrain.most-gpus is not 12": put(*of("gpu", "max_workers"), value=3),
    "raytrain.most-cpus is not 80": put(*of("cpu", "max_workers"), value=5),
}


@pytest.mark.parametrize(("fault", "break_it"), BROKEN.items(), ids=BROKEN)
def test_file_that_breaks_a_rule_is_found(fault: str, break_it: Callable[[Config], None]) -> None:
    config = copy.deepcopy(read(AWS))  # the same object stands in several places of what YAML's anchors give
    break_it(config)
    assert [found for found in faults_on_aws(config) if found.startswith(fault)]


# What Ray asks of AWS, held against moto's.


@pytest.fixture(scope="module")
def asked_of_aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[Config]]]:
    """What was asked, by the name of the call, as the file was brought up with a node of each type and down again."""
    asked: dict[str, list[Config]] = {}
    call = botocore.client.BaseClient._make_api_call

    def record(self: Any, name: str, parameters: Config) -> Any:
        asked.setdefault(name, []).append(copy.deepcopy(parameters))
        return call(self, name, parameters)

    with pytest.MonkeyPatch.context() as patch, own_aws():
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        config = edited(boto3.client("ec2", REGION), boto3.client("iam", REGION))
        patch.setattr(botocore.client.BaseClient, "_make_api_call", record)
        up_and_down(config)
        yield asked


def edited(ec2: Any, iam: Any) -> Config:
    """The file as a user has it, who has made a group and the profiles by the README and infra/aws/."""
    for profile in ("raytrain-head", "raytrain-worker"):
        iam.create_instance_profile(InstanceProfileName=profile)
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    group = ec2.create_security_group(GroupName="raytrain", Description="raytrain", VpcId=vpc)["GroupId"]
    image = ec2.describe_images()["Images"][0]["ImageId"]
    config: Config = yaml.safe_load(
        AWS.read_text().replace("sg-0123456789abcdef0", group).replace("ami-0123456789abcdef0", image)
    )
    return config


def up_and_down(config: Config) -> None:
    config = AWSNodeProvider.fillout_available_node_types_resources(prepare_config(config))
    validate_config(config)
    config = AWSNodeProvider.bootstrap_config(config)
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name, node_type in config["available_node_types"].items():
        kind = "head" if name == config["head_node_type"] else "worker"
        tags = {"ray-node-type": kind, "ray-user-node-type": name, "ray-launch-config": "hash"}
        provider.create_node(node_type["node_config"], tags, 1)
    nodes = provider.non_terminated_nodes({})
    assert len(nodes) == len(config["available_node_types"])
    provider.terminate_nodes(nodes)
    assert provider.non_terminated_nodes({}) == []


def test_instances_are_asked_for_as_the_file_says(asked_of_aws: dict[str, list[Config]]) -> None:
    by_type = {tags_of(each)["ray-user-node-type"]: each for each in asked_of_aws["RunInstances"]}
    assert set(by_type) == {"head", "gpu", "cpu"}
    for name, asked in by_type.items():
        assert asked["IamInstanceProfile"] == {"Name": "raytrain-head" if name == "head" else "raytrain-worker"}
        assert asked["MetadataOptions"]["HttpTokens"] == "required"
        assert asked["BlockDeviceMappings"][0]["Ebs"]["Encrypted"]
        assert asked["KeyName"] == "raytrain"
        assert "UserData" not in asked
        tags = tags_of(asked)
        assert (tags["ray-cluster-name"], tags["project"]) == ("raytrain", "raytrain")
    assert {name for name, asked in by_type.items() if "InstanceMarketOptions" in asked} == {"gpu", "cpu"}


def tags_of(asked: Config) -> dict[str, str]:
    (tags,) = (each["Tags"] for each in asked["TagSpecifications"] if each["ResourceType"] == "instance")
    return {each["Key"]: each["Value"] for each in tags}


def test_ray_makes_no_role_and_no_security_group_of_its_own(asked_of_aws: dict[str, list[Config]]) -> None:
    """What infra/aws/ allows is for these calls, beside reading a tag that changes."""
    assert set(asked_of_aws) == {
        "DescribeInstanceTypes",
        "DescribeKeyPairs",
        "CreateKeyPair",
        "DescribeSecurityGroups",
        "DescribeSubnets",
        "RunInstances",
        "DescribeInstances",
        "TerminateInstances",
    }


# The cache on the instance's own disks.

FAKES = {
    "sudo": 'exec "$@"',
    "systemctl": "exit 5",
    "mountpoint": 'grep -qx "$2" "$STATE/mounted"',
    "mkdir": "",
    "chown": "",
    "chmod": "",
    "mount": 'echo "${@: -1}" >> "$STATE/mounted"',
    "mkfs.ext4": 'echo "${@: -1}" >> "$STATE/formatted"',
    "blkid": 'grep -qx "$2" "$STATE/formatted"',
    "lsblk": 'if [ "$1" = -dpno ]; then cat "$STATE/disks"; else grep "^$3" "$STATE/parts"; fi',
}
STORE = "Amazon EC2 NVMe Instance Storage"


def mount_cache(folder: Path, **state: list[str]) -> list[str]:
    """Run the script of cluster.yaml where the machine is as `state` says; return what it changed."""
    script = next(each for each in read(AWS)["initialization_commands"] if "mkfs" in each)
    for name in ("mounted", "formatted", "disks", "parts"):
        if name in state or not (folder / name).exists():
            (folder / name).write_text("".join(f"{line}\n" for line in state.get(name, [])))
    fakes = folder / "bin"
    fakes.mkdir(exist_ok=True)
    for name, body in FAKES.items():
        (fakes / name).write_text(f'#!/bin/bash\necho "{name} $*" >> "$STATE/log"\n{body}\n')
        (fakes / name).chmod(0o755)
    (folder / "log").write_text("")
    path = f"{fakes}:{os.environ['PATH']}"
    # As Ray does: in parentheses, behind something else.
    subprocess.run(["bash", "-c", f"true && ({script})"], env={"PATH": path, "STATE": str(folder)}, check=True)
    return [line for line in (folder / "log").read_text().splitlines() if line.startswith(("mkfs", "mount "))]


def test_disks_that_the_machine_image_has_mounted_are_used_as_they_are(tmp_path: Path) -> None:
    done = mount_cache(tmp_path, mounted=["/opt/dlami/nvme"], disks=[f"/dev/nvme1n1 {STORE}"])
    assert done == ["mount --bind /opt/dlami/nvme/cache /mnt/cache"]
    assert mount_cache(tmp_path) == []  # `ray up` once more


def test_first_blank_disk_of_the_instance_is_formatted_and_no_other(tmp_path: Path) -> None:
    done = mount_cache(
        tmp_path,
        disks=[
            "/dev/nvme0n1 Amazon Elastic Block Store",
            f"/dev/nvme1n1 {STORE}",
            f"/dev/nvme2n1 {STORE}",
            f"/dev/nvme3n1 {STORE}",
            f"/dev/nvme4n1 {STORE}",
        ],
        parts=["/dev/nvme0n1", "/dev/nvme1n1", "/dev/nvme1n1p1", "/dev/nvme2n1", "/dev/nvme3n1", "/dev/nvme4n1"],
        formatted=["/dev/nvme2n1"],
    )
    assert done == ["mkfs.ext4 -q /dev/nvme3n1", "mount -o noatime /dev/nvme3n1 /mnt/cache"]
    assert mount_cache(tmp_path) == []


def test_machine_without_disks_of_its_own_has_a_folder(tmp_path: Path) -> None:
    assert mount_cache(tmp_path, disks=["/dev/nvme0n1 Amazon Elastic Block Store"], parts=["/dev/nvme0n1"]) == []
    assert "mkdir -p /mnt/cache" in (tmp_path / "log").read_text()


# The notice of a spot machine's end.

SPOT_FAKES = {
    "flock": "exit ${LOCKED:-0}",
    # The loop's clock: its end is that of the test.
    "sleep": 'echo x >> "$STATE/sleeps"; [ "$(wc -l < "$STATE/sleeps")" -le 4 ]',
    "curl": """
case "$*" in
  *--request\\ PUT*api/token) echo session ;;
  *"token: session "*spot/instance-action) [ "$(wc -l < "$STATE/sleeps")" -ge "${NOTICE_AT:-99}" ] || exit 22 ;;
  *) exit 22 ;;
esac""",
    "ray": 'echo "$RAY_ADDRESS $*" >> "$STATE/drained"; [ "$(wc -l < "$STATE/drained")" -ge "${ACCEPTED_AT:-1}" ]',
}


def watch(folder: Path, **state: str) -> list[str]:
    """Run the script that watches for the notice, for 4 looks; return what it told Ray."""
    (folder / "sleeps").write_text("")
    (folder / "drained").write_text("")
    for name, body in SPOT_FAKES.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "STATE": str(folder), **state}
    script = ROOT / "infra" / "spot-notice.sh"
    subprocess.run([script, "10.0.0.1:6379"], env=environment, timeout=30, check=False, capture_output=True)
    return (folder / "drained").read_text().splitlines()


def test_ray_hears_once_that_a_spot_machine_goes(tmp_path: Path) -> None:
    assert watch(tmp_path) == []
    (told,) = watch(tmp_path, NOTICE_AT="2")
    assert told.startswith("10.0.0.1:6379 drain-node --address 10.0.0.1:6379 --reason DRAIN_NODE_REASON_PREEMPTION ")
    assert len(watch(tmp_path, NOTICE_AT="2", ACCEPTED_AT="3")) == 3  # a head that does not answer is told again
    assert watch(tmp_path, NOTICE_AT="2", LOCKED="1") == []  # another one watches already
