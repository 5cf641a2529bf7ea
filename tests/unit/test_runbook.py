"""The runbook: every command in it exists, with these options, and may be done by whoever is to do it.

Places in the store are held against the policies in infra/aws, paths on machines against what the cluster's files
mount, names in Kubernetes against the manifests; every link leads somewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import botocore.session
import click
import pytest
import yaml
from botocore import xform_name
from botocore.validate import ParamValidator
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE
from ray.scripts.scripts import cli

from raytrain.cli import COMMANDS, _parse
from raytrain.errors import ConfigError
from tests.policies import ACCOUNT, Request, judge, read
from tests.runbook import RUNBOOK, Command, commands, every_command, links, sections, split

VERBS = ("shard", "train", "tune", "score", "evaluate", "verify")
REQUESTS = ("status", "logs", "stop")
FILLED = {"SHARDS": "s3://my-bucket/shards", "OUT": "s3://my-bucket/runs", "MASKS": "s3://my-bucket/masks/main"}
ROOT = Path(__file__).resolve().parents[2]
CLUSTERS = [ROOT / "cluster.yaml", ROOT / "infra" / "cluster-local.yaml"]


def filled(words: list[str]) -> list[str]:
    """Return the words with what stands for a place of the reader's put in."""
    return [
        next((place + each[len(name) :] for name, place in FILLED.items() if each.startswith(name)), each)
        for each in words
    ]


def check(words: list[str]) -> None:
    """Raise `ConfigError` for arguments of raytrain that are none."""
    verb, *rest = words
    if verb == "submit":
        while rest and rest[0].startswith("-"):
            rest = rest[1:] if rest[0] == "--detach" else rest[2:]
        if rest and rest[0] in REQUESTS:
            assert len(rest) == (2 if rest[0] != "status" else 1), words
            return
        assert rest, words
        assert rest[0] in VERBS, words
        _parse(filled(rest))
    elif verb in COMMANDS:
        _parse(filled(words))
    else:
        assert verb == "doctor", words  # named by the plan, and checked by the parser once it is a command


@pytest.mark.parametrize("words", commands("raytrain"), ids=" ".join)
def test_every_command_of_raytrain_is_one(words: list[str]) -> None:
    check(words)


def test_a_wrong_option_would_be_seen() -> None:
    with pytest.raises(ConfigError, match="workerz"):
        check(["submit", "train", "--shards", "SHARDS", "--out", "OUT", "--workerz", "4"])
    with pytest.raises(AssertionError):
        check(["submit", "restart", "ID"])


@pytest.mark.parametrize("words", commands("ray"), ids=" ".join)
def test_every_command_of_ray_has_these_options(words: list[str]) -> None:
    command: click.Command = cli
    while isinstance(command, click.Group):
        context = click.Context(command)
        found = command.get_command(context, words[0])
        if found is None and "cluster" in command.commands:  # `ray logs FILE`
            found = command.commands["cluster"]
        assert found is not None, words
        command, words = found, words[1:]
    known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
    assert {word for word in words if word.startswith("-")} <= known


def test_every_link_leads_to_a_section() -> None:
    assert links()
    assert set(links()) <= set(sections())


def test_every_section_has_a_command_or_a_remedy() -> None:
    assert len(sections()) == len(set(sections()))
    assert len(commands("raytrain")) > 20


def test_every_program_is_one_that_is_checked_or_needs_no_check() -> None:
    checked = {"raytrain", "ray", "aws", "kubectl", "ssh"}
    assert {each.words[0] for each in every_command()} - checked <= {
        "curl",
        "grep",
        "head",
        "ls",
        "python3",
        "sha256sum",
    }


def test_commands_are_found_behind_others_and_in_comments() -> None:
    assert [*split("a b | c 'd;e' && f   # or: kubectl -n g h; i")] == [
        ["a", "b"],
        ["c", "d;e"],
        ["f"],
        ["kubectl", "-n", "g", "h"],
        ["i"],
    ]


# Places in the store.

READ, WRITE = ("s3:GetObject",), ("s3:GetObject", "s3:PutObject", "s3:DeleteObject")
WRITTEN = {"shard": 1, "score": 1, "doctor": 0}
"""Which of the arguments without an option a verb writes to, by number; the others are read."""


def places(words: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the places in stores that a command of raytrain names, each with what the command does there."""
    if words[0] == "submit":
        words = words[1:]
    verb, *rest = filled(words)
    bare = 0
    for option, word in zip([verb, *rest], rest, strict=False):
        if word.startswith("s3://"):
            is_written = option == "--out" if option.startswith("--") else bare == WRITTEN.get(verb)
            yield word, WRITE if is_written else READ
            bare += not option.startswith("--")


def requests(uri: str, actions: tuple[str, ...]) -> Iterator[Request]:
    yield from (Request(action, f"arn:aws:s3:::{uri.removeprefix('s3://')}/object") for action in actions)


def refused(words: list[str]) -> list[str]:
    """Return what a command of raytrain asks of the store that nodes have no right to."""
    found = [request for uri, actions in places(words) for request in requests(uri, actions)]
    return [str(each) for each in found if not judge([read("data")], each)[0]]


@pytest.mark.parametrize("words", commands("raytrain"), ids=" ".join)
def test_nodes_may_read_and_write_where_the_commands_say(words: list[str]) -> None:
    assert refused(words) == []


def test_every_place_in_the_text_may_at_least_be_read() -> None:
    found = re.findall(r"s3://[^\s`'\")]+", RUNBOOK.read_text())
    assert len(found) > 15
    for uri in found:
        assert all(judge([read("data")], each)[0] for each in requests(uri, READ)), uri


@pytest.mark.parametrize(
    "command",
    [
        "submit score s3://my-bucket/scenes MASKS --ensemble OUT/main",
        "submit score s3://my-bucket/archive/scenes s3://my-bucket/masks-earlier --ensemble OUT/main",
        "submit shard s3://my-bucket/archive s3://my-bucket/archive/shards",
        "submit tune --shards SHARDS --out s3://my-bucket/search --member r34-4b-20k --workers 4 --trials 60",
        "submit evaluate MASKS s3://my-bucket/archive/labels --metadata s3://my-bucket/m.csv --out s3://my-bucket/scores",
        "doctor --address auto s3://my-bucket/archive",
    ],
)
def test_a_place_that_nodes_have_no_right_to_would_be_seen(command: str) -> None:
    assert refused(command.split())


# Calls of AWS.

SERVICES = {"s3api": "s3"}
COPIES = {"cp", "rm"}  # of `aws s3`, which is the CLI's own and in no model


def asked_of_aws(words: list[str]) -> Iterator[Request]:
    """Yield what IAM sees of a call of the AWS CLI; raises for one that there is not."""
    service, operation, *rest = words
    if service == "s3":
        yield from of_copies(operation, filled(rest))
        return
    model = botocore.session.get_session().get_service_model(SERVICES.get(service, service))
    names = {xform_name(each, "-"): each for each in model.operation_names}
    assert operation in names, words
    shape = model.operation_model(names[operation]).input_shape
    members = {f"--{xform_name(each, '-')}": each for each in (shape.members if shape else {})}
    assert len(rest) % 2 == 0, words
    given = dict(zip(rest[::2], rest[1::2], strict=True))
    assert given.keys() <= members.keys(), words
    parameters = {members[option]: value for option, value in given.items()}
    if shape:
        assert not ParamValidator().validate(parameters, shape).has_errors(), words
    yield from SEEN_BY_IAM[names[operation]](parameters)


def of_copies(operation: str, rest: list[str]) -> Iterator[Request]:
    assert operation in COPIES, operation
    uris = [each.removeprefix("s3://") for each in rest if each.startswith("s3://")]
    assert {*rest} - {f"s3://{each}" for each in uris} <= {"-", "--recursive"}, rest
    if operation == "cp":
        assert rest[1:] == ["-"], rest
    (place,) = uris
    if "--recursive" in rest:
        place += "/object"
        yield Request("s3:ListBucket", f"arn:aws:s3:::{place.partition('/')[0]}")
    yield Request("s3:GetObject" if operation == "cp" else "s3:DeleteObject", f"arn:aws:s3:::{place}")


def of_copy_object(asked: dict[str, str]) -> Iterator[Request]:
    source, _, query = asked["CopySource"].partition("?")
    assert parse_qs(query).keys() == {"versionId"}, asked
    yield Request("s3:GetObjectVersion", f"arn:aws:s3:::{source}")
    yield Request("s3:PutObject", f"arn:aws:s3:::{asked['Bucket']}/{asked['Key']}")


SEEN_BY_IAM: dict[str, Any] = {
    "GetCallerIdentity": lambda asked: iter(()),  # anybody may ask who it is
    "ListObjectVersions": lambda asked: iter([Request("s3:ListBucketVersions", f"arn:aws:s3:::{asked['Bucket']}")]),
    "CopyObject": of_copy_object,
}


def refused_to(role: str | None, words: list[str]) -> list[str]:
    """Return what a call of the AWS CLI asks that the role, or else whoever runs `ray up`, has no right to."""
    name = role or "raytrain-submitter"
    context = {"aws:PrincipalArn": f"arn:aws:iam::{ACCOUNT}:role/{name}", "aws:SecureTransport": "true"}
    policies = [read("bucket"), read(name.removeprefix("raytrain-"))]
    asked = [Request(each.action, each.resource, context) for each in asked_of_aws(words)]
    return [str(each) for each in asked if not judge(policies, each)[0]]


OF_AWS = [each for each in every_command() if each.words[0] == "aws"]


@pytest.mark.parametrize("command", OF_AWS, ids=str)
def test_every_call_of_aws_exists_and_is_allowed(command: Command) -> None:
    assert refused_to(command.role, [*command.words[1:]]) == []


def test_all_that_a_restorer_may_is_needed() -> None:
    asked = {each.action for command in OF_AWS if command.role for each in asked_of_aws([*command.words[1:]])}
    allowed = {each for statement in read("restorer")["Statement"] for each in statement["Action"]}
    assert asked == allowed - {"s3:GetObject"}  # to look at what is there now


@pytest.mark.parametrize(
    ("role", "call"),
    [
        (None, "s3api list-object-versions --bucket my-bucket --prefix runs"),
        (None, "s3api copy-object --bucket my-bucket --key runs/a --copy-source my-bucket/runs/a?versionId=V"),
        (None, "s3 rm s3://my-bucket/runs/a"),
        ("raytrain-restorer", "s3 rm s3://my-bucket/archive/a"),
        (
            "raytrain-restorer",
            "s3api copy-object --bucket my-bucket --key archive/a --copy-source my-bucket/runs/a?versionId=V",
        ),
    ],
)
def test_a_call_of_aws_that_is_refused_would_be_seen(role: str | None, call: str) -> None:
    assert refused_to(role, call.split())


@pytest.mark.parametrize(
    "call",
    ["s3api list-versions", "s3api list-object-versions --bukket b", "s3api copy-object --bucket b", "s3 mw a b"],
)
def test_a_call_of_aws_that_is_none_would_be_seen(call: str) -> None:
    with pytest.raises(AssertionError):
        list(asked_of_aws(call.split()))


# Kubernetes.

MANIFESTS = [
    each
    for path in sorted((ROOT / "infra" / "kuberay").glob("*.yaml"))
    for each in yaml.safe_load_all(path.read_text())
]
NAMED = {(each["kind"].lower(), each["metadata"]["name"]) for each in MANIFESTS}
OF_KUBERAY = {("service", f"{name}-head-svc") for kind, name in NAMED if kind == "raycluster"}
LABELS = {"ray.io/cluster", "ray.io/node-type", "ray.io/is-ray-node"}  # KubeRay's own on its pods


def check_kubectl(words: list[str]) -> None:
    """Raise `AssertionError` for a command that kubectl does not have, or that names what no manifest makes."""
    options = {words[i]: words[i + 1] for i in range(len(words) - 1) if words[i] in ("-n", "-l", "-f")}
    values = {i + 1 for i, word in enumerate(words) if word in ("-n", "-l", "-f")}
    verb, *rest = [each for i, each in enumerate(words) if not each.startswith("-") and i not in values]
    if verb == "apply":
        assert not rest
        assert (ROOT / options["-f"]).is_file(), words
        return
    assert ("namespace", options["-n"]) in NAMED, words
    assert "-l" not in options or options["-l"].partition("=")[0] in LABELS, words
    if verb == "exec":
        assert (rest[0], words[words.index("--") - 1]) == ("POD", "POD"), words
    elif verb == "port-forward":
        assert (*rest[0].split("/"),) in NAMED | OF_KUBERAY, words
    else:
        assert verb in ("get", "describe", "delete"), words
        kind, *names = rest
        assert kind in ("pod", "pods") or all((kind, name) in NAMED for name in names), words
        assert kind in ("pod", "pods") or kind in {known for known, _ in NAMED}, words
        assert names or verb == "get", words


@pytest.mark.parametrize("words", commands("kubectl"), ids=" ".join)
def test_every_command_of_kubernetes_names_what_is_there(words: list[str]) -> None:
    check_kubectl(words)


@pytest.mark.parametrize(
    "command",
    [
        "-n raytrain rollout status",
        "-n raytrain delete raycluster train",
        "-n ray get pods",
        "-n raytrain port-forward service/raytrain-head 8265",
        "-n raytrain get pods -l ray.io/node=head",
        "apply -f infra/kuberay/cluster.yaml",
    ],
)
def test_a_command_of_kubernetes_that_names_nothing_would_be_seen(command: str) -> None:
    with pytest.raises((AssertionError, KeyError)):
        check_kubectl(command.split())


# Paths on machines, and in the container on them.

ON_EVERY_MACHINE = {"/"}
IN_EVERY_CONTAINER = {"/dev/shm"}
PATH = re.compile(r"(?<![\w:/])/[\w./*-]*")


def mounts(path: Path) -> dict[str, str]:
    """Return what a cluster's file mounts into the container: folders of the machine, each with its place there."""
    options = " ".join(yaml.safe_load(path.read_text())["docker"]["run_options"])
    return dict(found.split(":") for found in re.findall(r"--volume (\S+)", options))


def unknown_paths(command: str, cluster: Path) -> list[str]:
    """Return the paths in a command for a machine that it lacks, or, where `docker` runs it, the container lacks."""
    docker, unknown = yaml.safe_load(cluster.read_text())["docker"], []
    for words in split(command):
        inside = words[:2] == ["docker", "exec"]
        if inside:
            assert docker["container_name"] in words, command
        known = {*mounts(cluster).values(), *IN_EVERY_CONTAINER} if inside else {*mounts(cluster), *ON_EVERY_MACHINE}
        paths = [path for word in words for path in PATH.findall(word)]
        unknown += [path for path in paths if not any(path == each or path.startswith(f"{each}/") for each in known)]
    return unknown


def on_machines() -> list[str]:
    return [each[-1] for each in commands("ssh") if " " in each[-1]]


@pytest.mark.parametrize("cluster", CLUSTERS, ids=lambda path: path.name)
def test_every_path_on_a_machine_is_there(cluster: Path) -> None:
    assert len(on_machines()) > 6
    assert [path for command in on_machines() for path in unknown_paths(command, cluster)] == []


@pytest.mark.parametrize("cluster", CLUSTERS, ids=lambda path: path.name)
def test_what_collectors_follow_is_what_ray_writes(cluster: Path) -> None:
    """Ray's folder in the container is /tmp/ray, and outside of it that of all paths that the text gives."""
    (outside,) = (folder for folder, inside in mounts(cluster).items() if inside == "/tmp/ray")
    text = RUNBOOK.read_text()
    given = set(re.findall(r"(/[\w/.-]+)/(?:session_|prom_metrics_)", text))
    assert given == {outside}
    assert f"{outside}/{PROMETHEUS_SERVICE_DISCOVERY_FILE}" in text
    # A link that names a folder by its path in the container leads nowhere outside.
    assert f"{outside}/session_latest" not in text
    assert f"{outside}/session_*" not in text


@pytest.mark.parametrize("cluster", CLUSTERS, ids=lambda path: path.name)
def test_processes_of_ray_are_looked_at_where_they_are(cluster: Path) -> None:
    """Their numbers are those of the container."""
    name = yaml.safe_load(cluster.read_text())["docker"]["container_name"]
    for command in on_machines():
        for words in split(command):
            if "PID" in words:
                assert words[:2] == ["docker", "exec"]
                assert words[words.index(name) + 1] == "py-spy"  # which the lock has, by ray[default]


@pytest.mark.parametrize(
    "command",
    [
        "tail /tmp/ray/session_latest/logs/dashboard.log",
        "df -h / /mnt/other",
        "docker exec raytrain ls /var/lib/raytrain/ray",
        "true; ls /opt/cache",
    ],
)
def test_a_path_that_is_not_there_would_be_seen(command: str) -> None:
    assert unknown_paths(command, CLUSTERS[0])
