"""The policies in infra/aws: what Ray asks of EC2 for cluster.yaml is allowed to whoever asks it, and no more."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.client
import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler import tags
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.util import prepare_config

from tests.own_aws import own_aws
from tests.policies import ACCOUNT, BUCKET, FOLDER, REGION, Request, items, judge, read

ROOT = Path(__file__).resolve().parents[2]
EC2 = f"arn:aws:ec2:{REGION}:{ACCOUNT}"
IMAGE, GROUP = "ami-0123456789abcdef0", "sg-0123456789abcdef0"
PROFILE = f"arn:aws:iam::{ACCOUNT}:instance-profile"
ROLE = f"arn:aws:iam::{ACCOUNT}:role"
POLICIES = ("data", "head", "image", "restorer", "submitter", "watcher")
S3_ACTIONS = {
    "s3:AbortMultipartUpload",
    "s3:DeleteObject",
    "s3:GetObject",
    "s3:GetObjectVersion",
    "s3:ListBucket",
    "s3:ListBucketVersions",
    "s3:PutObject",
}
NEEDS_NO_RESOURCE = {"ecr:GetAuthorizationToken"}
"""Beside what describes: AWS has no resource for these."""


class Recorder:
    """What `person` and `head` ask of EC2, as IAM sees it."""

    def __init__(self) -> None:
        self.who = "person"
        self.requests: dict[str, list[Request]] = {"person": [], "head": []}
        self._tags: dict[str, dict[str, str]] = {}
        self._known: dict[str, str] = {}

    def names(self, found: str, stands_for: str) -> None:
        """Have the id that the test's EC2 gave stand for that of the policies."""
        self._known[found] = stands_for

    def note(self, operation: str, asked: dict[str, Any], answer: dict[str, Any]) -> None:
        """Note an operation that was done."""
        make: Callable[..., Iterator[Request]] = getattr(self, f"_{operation}", self._describe)
        region = {"aws:RequestedRegion": REGION}
        for each in make(operation, asked):
            self.requests[self.who].append(dataclasses.replace(each, context={**region, **each.context}))
        for instance in answer.get("Instances", []):
            self._tags[instance["InstanceId"]] = _pairs(instance.get("Tags", []))

    def _describe(self, operation: str, asked: dict[str, Any]) -> Iterator[Request]:
        assert operation.startswith("Describe"), f"{operation} is new: say here what IAM sees of it"
        yield Request(f"ec2:{operation}", "*")

    def _CreateKeyPair(self, operation: str, asked: dict[str, Any]) -> Iterator[Request]:
        yield Request("ec2:CreateKeyPair", f"{EC2}:key-pair/{asked['KeyName']}")

    def _RunInstances(self, operation: str, asked: dict[str, Any]) -> Iterator[Request]:
        given = {each["ResourceType"]: _tagging(_pairs(each["Tags"])) for each in asked["TagSpecifications"]}
        instance = {
            "ec2:MetadataHttpTokens": asked.get("MetadataOptions", {}).get("HttpTokens", "optional"),
            "ec2:InstanceProfile": f"{PROFILE}/{asked['IamInstanceProfile']['Name']}",
        }
        yield Request("ec2:RunInstances", f"{EC2}:instance/*", {**given["instance"], **instance})
        yield Request("ec2:RunInstances", f"{EC2}:volume/*", given.get("volume", {}))
        yield Request("ec2:RunInstances", f"arn:aws:ec2:{REGION}::image/{self._known[asked['ImageId']]}")
        yield Request("ec2:RunInstances", f"{EC2}:subnet/{asked['SubnetId']}")
        yield Request("ec2:RunInstances", f"{EC2}:network-interface/*")
        yield Request("ec2:RunInstances", f"{EC2}:key-pair/{asked['KeyName']}")
        for group in asked["SecurityGroupIds"]:
            yield Request("ec2:RunInstances", f"{EC2}:security-group/{self._known[group]}")
        if "InstanceMarketOptions" in asked:
            yield Request("ec2:RunInstances", f"{EC2}:spot-instances-request/*")
        for kind, context in given.items():
            yield Request("ec2:CreateTags", f"{EC2}:{kind}/*", {**context, "ec2:CreateAction": "RunInstances"})
        passed = {"iam:PassedToService": "ec2.amazonaws.com"}
        yield Request("iam:PassRole", f"{ROLE}/{asked['IamInstanceProfile']['Name']}", passed)

    def _CreateTags(self, operation: str, asked: dict[str, Any]) -> Iterator[Request]:
        for resource in asked["Resources"]:
            context = {**_tagging(_pairs(asked["Tags"])), **self._tags_of(resource)}
            yield Request("ec2:CreateTags", f"{EC2}:instance/{resource}", context)

    def _TerminateInstances(self, operation: str, asked: dict[str, Any]) -> Iterator[Request]:
        for resource in asked["InstanceIds"]:
            yield Request("ec2:TerminateInstances", f"{EC2}:instance/{resource}", self._tags_of(resource))

    def _tags_of(self, instance: str) -> dict[str, str]:
        return {f"aws:ResourceTag/{key}": value for key, value in self._tags[instance].items()}


def _pairs(found: list[dict[str, str]]) -> dict[str, str]:
    return {each["Key"]: each["Value"] for each in found}


def _tagging(given: dict[str, str]) -> dict[str, Any]:
    return {"aws:TagKeys": [*given], **{f"aws:RequestTag/{key}": value for key, value in given.items()}}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[Request]]]:
    """What Ray's own code for `ray up`, the autoscaler and `ray down` asks, of an EC2 in this process."""
    recorder = Recorder()
    really: Any = botocore.client.BaseClient._make_api_call  # type: ignore[attr-defined]

    def noted(client: Any, operation: str, asked: dict[str, Any]) -> Any:
        answer = really(client, operation, asked)
        assert client.meta.service_model.service_name == "ec2", operation
        recorder.note(operation, copy.deepcopy(asked), answer)
        return answer

    with pytest.MonkeyPatch.context() as patch, own_aws():
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # where Ray keeps the key
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        config = _own(recorder, yaml.safe_load((ROOT / "cluster.yaml").read_text()))
        patch.setattr(botocore.client.BaseClient, "_make_api_call", noted)
        _live(recorder, config)
        yield recorder.requests


def _own(recorder: Recorder, config: dict[str, Any]) -> dict[str, Any]:
    """Return `config` with a machine image, a security group and profiles that there are, for those it names."""
    assert config["provider"]["region"] == REGION
    ec2, iam = boto3.client("ec2", REGION), boto3.client("iam", REGION)
    image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    group = ec2.create_security_group(GroupName="own", Description="own", VpcId=vpc)["GroupId"]
    recorder.names(image, IMAGE)
    recorder.names(group, GROUP)
    for name in ("raytrain-head", "raytrain-worker"):
        iam.create_instance_profile(InstanceProfileName=name)
    for each in config["available_node_types"].values():
        named = each["node_config"]
        assert (named["ImageId"], named["SecurityGroupIds"]) == (IMAGE, [GROUP])  # as in the policies
        each["node_config"] |= {"ImageId": image, "SecurityGroupIds": [group]}
    return config


def _live(recorder: Recorder, config: dict[str, Any]) -> None:
    """Start the head, have it start and end workers of each type, and end the cluster."""
    config = _bootstrap_config(prepare_config(config), no_config_cache=True)
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])

    def start(kind: str, name: str) -> list[str]:
        node = copy.deepcopy(config["available_node_types"][name]["node_config"])
        given = {
            tags.TAG_RAY_NODE_KIND: kind,
            tags.TAG_RAY_USER_NODE_TYPE: name,
            tags.TAG_RAY_LAUNCH_CONFIG: "digest",
            tags.TAG_RAY_NODE_STATUS: tags.STATUS_UNINITIALIZED,
            tags.TAG_RAY_NODE_NAME: f"ray-raytrain-{kind}",
        }
        started = [*provider.create_node(node, given, 1)]
        provider.non_terminated_nodes({tags.TAG_RAY_NODE_KIND: kind})
        provider.set_node_tags(started[0], {tags.TAG_RAY_NODE_STATUS: tags.STATUS_UP_TO_DATE})
        return started

    provider.non_terminated_nodes({})
    start(tags.NODE_KIND_HEAD, config["head_node_type"])
    recorder.who = "head"
    types = [name for name in config["available_node_types"] if name != config["head_node_type"]]
    workers = [start(tags.NODE_KIND_WORKER, name) for name in types]
    provider.terminate_nodes(workers[0])
    recorder.who = "person"
    provider.terminate_nodes(provider.non_terminated_nodes({}))


def of(who: str) -> list[dict[str, Any]]:
    alone = {"person": "submitter", "restorer": "restorer", "watcher": "watcher"}
    return [read(alone[who])] if who in alone else [read("head"), read("data"), read("image")]


@pytest.mark.parametrize("who", ["person", "head"])
def test_every_call_of_ray_is_allowed(recorded: dict[str, list[Request]], who: str) -> None:
    assert {each.action for each in recorded[who]} >= {"ec2:RunInstances", "ec2:CreateTags", "iam:PassRole"}
    assert [str(each) for each in recorded[who] if not judge(of(who), each)[0]] == []


@pytest.mark.parametrize(("who", "name"), [("person", "submitter"), ("head", "head")])
def test_without_any_action_of_any_statement_some_call_of_ray_is_refused(
    recorded: dict[str, list[Request]], who: str, name: str
) -> None:
    unused = []
    for i, statement in enumerate(read(name)["Statement"]):
        for action in items(statement["Action"]):
            less = read(name)
            less["Statement"][i]["Action"] = [each for each in items(statement["Action"]) if each != action]
            if all(judge([less], each)[0] for each in recorded[who]):
                unused.append(f"{statement['Sid']}: {action}")
        for resource in items(statement["Resource"]):
            less = read(name)
            less["Statement"][i]["Resource"] = [each for each in items(statement["Resource"]) if each != resource]
            if all(judge([less], each)[0] for each in recorded[who]):
                unused.append(f"{statement['Sid']}: {resource}")
    # Reads of results are no calls of Ray: tests/store has them.
    assert {each for each in unused if "s3:" not in each} == set()


OWN = {"aws:RequestedRegion": REGION}
STARTED = {
    **OWN,
    "aws:RequestTag/ray-cluster-name": "raytrain",
    "aws:RequestTag/ray-node-type": "worker",
    "aws:TagKeys": ["ray-cluster-name", "ray-node-type"],
    "ec2:MetadataHttpTokens": "required",
    "ec2:InstanceProfile": f"{PROFILE}/raytrain-worker",
}
WORKER = {"aws:ResourceTag/ray-cluster-name": "raytrain", "aws:ResourceTag/ray-node-type": "worker"}
TO_EC2 = {"iam:PassedToService": "ec2.amazonaws.com"}
IN = f"arn:aws:s3:::{BUCKET}"
START, TAG, END = "ec2:RunInstances", "ec2:CreateTags", "ec2:TerminateInstances"
ANY = f"{EC2}:instance/*"
REFUSED: list[tuple[str, str, Request]] = [
    ("head", "a worker with IMDSv1", Request(START, ANY, STARTED | {"ec2:MetadataHttpTokens": "optional"})),
    ("head", "a role of more rights", Request(START, ANY, STARTED | {"ec2:InstanceProfile": f"{PROFILE}/admin"})),
    ("head", "another head", Request(START, ANY, STARTED | {"aws:RequestTag/ray-node-type": "head"})),
    ("head", "another cluster's", Request(START, ANY, STARTED | {"aws:RequestTag/ray-cluster-name": "other"})),
    ("head", "no tags", Request(START, ANY, {k: v for k, v in STARTED.items() if "RequestTag" not in k})),
    ("head", "another image", Request(START, f"arn:aws:ec2:{REGION}::image/ami-1")),
    ("head", "an open group", Request(START, f"{EC2}:security-group/sg-1")),
    ("head", "another region", Request(START, ANY.replace(REGION, "us-east-1"), STARTED)),
    ("head", "to look elsewhere", Request("ec2:DescribeInstances", "*", {"aws:RequestedRegion": "us-east-1"})),
    ("head", "to end what is not Ray's", Request(END, f"{EC2}:instance/i-1", OWN)),
    (
        "head",
        "to end another's",
        Request(END, f"{EC2}:instance/i-1", WORKER | {"aws:ResourceTag/ray-cluster-name": "b"}),
    ),
    ("head", "to end a head", Request(END, f"{EC2}:instance/i-1", WORKER | {"aws:ResourceTag/ray-node-type": "head"})),
    ("head", "to take over an instance", Request(TAG, f"{EC2}:instance/i-1", {"aws:TagKeys": ["ray-cluster-name"]})),
    ("head", "to rename its own", Request(TAG, f"{EC2}:instance/i-1", WORKER | {"aws:TagKeys": ["ray-cluster-name"]})),
    ("head", "to tag a group", Request(TAG, f"{EC2}:security-group/{GROUP}", {"aws:TagKeys": ["Name"]})),
    ("head", "its own role for workers", Request("iam:PassRole", f"{ROLE}/raytrain-head", TO_EC2)),
    ("head", "any role", Request("iam:PassRole", f"{ROLE}/admin", TO_EC2)),
    ("head", "roles for others", Request("iam:PassRole", f"{ROLE}/raytrain-worker", {"iam:PassedToService": "ecs"})),
    ("head", "key pairs", Request("ec2:CreateKeyPair", f"{EC2}:key-pair/raytrain", OWN)),
    ("head", "other images", Request("ecr:BatchGetImage", f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/other")),
    ("head", "to push", Request("ecr:PutImage", f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/raytrain")),
    ("person", "a head with a worker's role", Request(START, ANY, STARTED)),
    ("person", "a worker's role", Request("iam:PassRole", f"{ROLE}/raytrain-worker", TO_EC2)),
    ("person", "other key pairs", Request("ec2:CreateKeyPair", f"{EC2}:key-pair/other", OWN)),
    ("person", "to end what is not Ray's", Request(END, f"{EC2}:instance/i-1", OWN)),
    *((who, "earlier versions", Request("s3:GetObjectVersion", f"{IN}/runs/a")) for who in ("person", "head")),
    *((who, "to list versions", Request("s3:ListBucketVersions", IN)) for who in ("person", "head")),
    *((who, "to end versions", Request("s3:DeleteObjectVersion", f"{IN}/runs/a")) for who in ("restorer", "head")),
    ("restorer", "the archive", Request("s3:PutObject", f"{IN}/archive/a")),
    ("restorer", "to remove the archive", Request("s3:DeleteObject", f"{IN}/archive/a")),
    ("watcher", "names", Request("s3:ListBucket", IN)),
    ("watcher", "to look elsewhere", Request("ec2:DescribeInstances", "*", {"aws:RequestedRegion": "us-east-1"})),
    *(
        (who, action, Request(action, "*", OWN))
        for who in ("person", "head", "restorer", "watcher")
        for action in (
            "iam:CreateRole",
            "iam:AttachRolePolicy",
            "iam:PutRolePolicy",
            "iam:CreateServiceLinkedRole",
            "ec2:AuthorizeSecurityGroupIngress",
            "ec2:CreateSecurityGroup",
            "ec2:StopInstances",
            "ec2:ModifyInstanceAttribute",
            "ec2:ModifyInstanceMetadataOptions",
            "sts:AssumeRole",
        )
    ),
]


@pytest.mark.parametrize(("who", "what", "request_"), REFUSED, ids=[f"{who}: {what}" for who, what, _ in REFUSED])
def test_what_nobody_needs_is_refused(who: str, what: str, request_: Request) -> None:
    assert judge(of(who), request_) == (False, "implicit")


def test_a_watcher_sees_instances() -> None:
    assert judge(of("watcher"), Request("ec2:DescribeInstances", "*", OWN)) == (True, "SeeInstances")


def test_the_bucket_refuses_no_role_that_has_rights_in_it_and_all_others() -> None:
    (others,) = (each for each in read("bucket")["Statement"] if each["Sid"] == "NoDataForOthers")
    spared = set(others["Condition"]["ArnNotEquals"]["aws:PrincipalArn"])
    table = re.findall(r"^\| `([\w-]+)`.*?\| `trust-\w+` \| (.*?) \|", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert len(table) == 6
    having = {
        f"{ROLE}/{role}"
        for role, policies in table
        if any("s3:" in str(read(name)) for name in re.findall(r"`(\w+)`", policies))
    }
    assert spared == having | {f"{ROLE}/archivist"}


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.json") if path.stem != "lifecycle"))
def test_policies_are_written_as_aws_reads_them(name: str) -> None:
    policy = read(name)
    assert policy.keys() == {"Version", "Statement"}
    assert policy["Version"] == "2012-10-17"  # without it, or with the other one, some of it is not understood
    sids = [each["Sid"] for each in policy["Statement"]]
    assert len(set(sids)) == len(sids)
    assert all(re.fullmatch("[A-Za-z0-9]+", sid) for sid in sids)
    size = len(re.sub(r"\s", "", (FOLDER / f"{name}.json").read_text()))
    assert size <= 6144  # of a managed policy; white space does not count
    for statement in policy["Statement"]:
        assert statement["Effect"] in ("Allow", "Deny")
        assert ("Principal" in statement) == (name == "bucket" or name.startswith("trust"))
        for arn in items(statement.get("Resource", [])):
            known = rf"arn:aws:(s3:::{BUCKET}|(ec2|ecr):{REGION}:({ACCOUNT})?:|iam::{ACCOUNT}:role/).*"
            assert re.fullmatch(known, arn) or arn == "*"


def _operations(service: str) -> set[str]:
    return set(botocore.session.get_session().get_service_model(service).operation_names)


@pytest.mark.parametrize("name", POLICIES)
def test_actions_exist_and_none_is_a_pattern(name: str) -> None:
    known = S3_ACTIONS | {"iam:PassRole"}  # the one of IAM that is no operation of its own
    known |= {f"{service}:{each}" for service in ("ec2", "ecr") for each in _operations(service)}
    for statement in read(name)["Statement"]:
        assert statement["Effect"] == "Allow"
        actions = set(items(statement["Action"]))
        assert actions <= known
        if statement["Resource"] == "*":
            assert all(each in NEEDS_NO_RESOURCE or each.startswith("ec2:Describe") for each in actions)


def test_a_lifecycle_ends_uploads_and_old_versions_and_nothing_that_counts() -> None:
    lifecycle = read("lifecycle")
    model = botocore.session.get_session().get_service_model("s3")
    shape = model.shape_for("BucketLifecycleConfiguration")
    assert not ParamValidator().validate(lifecycle, shape).has_errors()
    ended = {key for rule in lifecycle["Rules"] for key in rule.keys() - {"ID", "Status", "Filter"}}
    assert ended == {"AbortIncompleteMultipartUpload", "NoncurrentVersionExpiration", "Expiration"}
    # With a number of days an Expiration would take the objects themselves.
    assert [rule["Expiration"] for rule in lifecycle["Rules"] if "Expiration" in rule] == [
        {"ExpiredObjectDeleteMarker": True}
    ]
    for rule in lifecycle["Rules"]:
        assert (rule["Status"], rule["Filter"]) == ("Enabled", {"Prefix": ""})


def test_roles_are_taken_by_machines_by_two_accounts_of_pods_and_by_people_with_a_second_factor() -> None:
    (machines,), (pods,), (people,) = (read(f"trust-{name}")["Statement"] for name in ("ec2", "pods", "people"))
    assert machines["Principal"] == {"Service": "ec2.amazonaws.com"}
    (provider,) = pods["Principal"].values()
    conditions = pods["Condition"]["StringEquals"]
    assert {key.partition(":")[0] for key in conditions} == {provider.partition("oidc-provider/")[2]}
    accounts = [
        each["metadata"]["name"]
        for each in yaml.safe_load_all((ROOT / "infra" / "kuberay" / "namespace.yaml").read_text())
        if "annotations" in each["metadata"]
    ]
    (subjects,) = (value for key, value in conditions.items() if key.endswith(":sub"))
    assert subjects == [f"system:serviceaccount:raytrain:{name}" for name in accounts]
    assert people["Condition"] == {"Bool": {"aws:MultiFactorAuthPresent": "true"}}


@pytest.mark.parametrize(
    ("operator", "found"), [("StringMatches", "a"), ("ForAnyValue:StringEquals", "a"), ("StringEquals", ["a", "b"])]
)
def test_a_condition_that_is_not_understood_is_an_error(operator: str, found: str | list[str]) -> None:
    policy = {"Statement": [{"Sid": "A", "Effect": "Allow", "Action": "a", "Resource": "*"}]}
    policy["Statement"][0]["Condition"] = {operator: {"key": "a"}}  # type: ignore[assignment]
    with pytest.raises(ValueError, match=operator.partition(":")[0]):
        judge([policy], Request("a", "b", {"key": found}))
