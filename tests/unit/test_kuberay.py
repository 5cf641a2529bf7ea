"""What has to hold of the manifests in infra/kuberay; each fault is found in a variant that has it."""

from __future__ import annotations

import copy
import ipaddress
import re
import shlex
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from raytrain import __version__, cli
from raytrain.cluster.session import GROWTH_LABELS
from tests.kuberay import (
    KINDS,
    ClusterSpec,
    Container,
    NetworkPolicy,
    Peer,
    RayCluster,
    RayContainer,
    RayJob,
    RayPod,
    Strict,
    WorkerGroup,
)

FOLDER = Path(__file__).resolve().parents[2] / "infra" / "kuberay"
RAY_NODE = {"ray.io/is-ray-node": "yes"}
METADATA_SERVICE = ipaddress.ip_address("169.254.169.254")
UNITS = {"": 1.0, "m": 1e-3, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}
OPEN_PORTS = {8080: "prometheus", 8265: "raytrain-submitter kuberay-operator"}
"""What of Ray's ports is open to pods that are no Ray nodes, and to which."""
SPOT_NOTICE_S = 120
REGISTRY = "111122223333.dkr.ecr.us-west-2.amazonaws.com"

Documents = dict[str, Any]


def read() -> Documents:
    """Return the objects of the manifests by `Kind/name`."""
    found = [each for path in sorted(FOLDER.glob("*.yaml")) for each in yaml.safe_load_all(path.read_text())]
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in found}


def amount(quantity: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(m|Ki|Mi|Gi)?", quantity).groups()  # type: ignore[union-attr]
    return int(number) * UNITS[unit or ""]


def faults(documents: Documents) -> Iterator[str]:
    """Yield what is wrong with these objects, each by itself and together."""
    try:
        objects = {key: KINDS[each["kind"]].model_validate(each) for key, each in documents.items()}
    except (ValidationError, KeyError) as error:
        yield f"schema: {error}"
        return
    cluster, job = objects.get("RayCluster/raytrain"), objects.get("RayJob/raytrain-train")
    if not isinstance(cluster, RayCluster) or not isinstance(job, RayJob):
        yield "there is no RayCluster raytrain, or no RayJob raytrain-train"
        return
    for name, spec in (("cluster", cluster.spec), ("job", job.spec.rayClusterSpec)):
        yield from (f"{name}: {fault}" for fault in (*of_cluster(spec), *of_accounts(spec, objects)))
    yield from of_container(job.spec.submitterPodTemplate.spec.containers[0], has_gpu=False)
    yield from of_job(job, cluster)
    policies = [each for each in objects.values() if isinstance(each, NetworkPolicy)]
    yield from of_network(policies, job.spec.submitterPodTemplate.metadata.labels)
    yield from of_namespace(documents)


def of_cluster(spec: ClusterSpec) -> Iterator[str]:
    if spec.rayVersion != version("ray"):
        yield f"rayVersion {spec.rayVersion}, locked is {version('ray')}"
    options = spec.autoscalerOptions
    if options.resources.requests != options.resources.limits:
        yield "autoscaler: requests are not limits"
    head = spec.headGroupSpec
    if head.rayStartParams.get("num-cpus") != "0":
        yield "head: takes work"
    if head.labels != most(spec.workerGroupSpecs):
        yield f"head: says {head.labels}, the groups grow to {most(spec.workerGroupSpecs)}"
    if head.template.spec.nodeSelector.get("karpenter.sh/capacity-type") != "on-demand":
        yield "head: on a machine that may be taken away"
    yield from of_ports(head.template.spec.containers[0], {"gcs-server": 6379, "dashboard": 8265, "metrics": 8080})
    yield from of_pod(head.template.spec, head.rayStartParams, mounted_by_autoscaler(spec))
    yield from of_probes(head.template.spec.containers[0], "/api/gcs_healthz", 8265)
    for group in spec.workerGroupSpecs:
        yield from (f"{group.groupName}: {fault}" for fault in of_workers(group))


def most(groups: list[WorkerGroup]) -> dict[str, str]:
    """Return what the cluster can grow to, as raytrain reads it from the labels of its head.

    CPUs of nodes with GPUs don't count: tasks that take a CPU each would start them.
    """
    limits = [(group.maxReplicas, group.template.spec.containers[0].resources.limits) for group in groups]
    gpus = sum(count * int(each.get("nvidia.com/gpu", "0")) for count, each in limits)
    cpus = sum(count * int(each["cpu"]) for count, each in limits if "nvidia.com/gpu" not in each)
    return {GROWTH_LABELS["GPU"]: str(gpus), GROWTH_LABELS["CPU"]: str(cpus)}


def mounted_by_autoscaler(spec: ClusterSpec) -> set[str]:
    return {mount.name for mount in spec.autoscalerOptions.volumeMounts}


def of_workers(group: WorkerGroup) -> Iterator[str]:
    if not group.minReplicas <= group.replicas <= group.maxReplicas:
        yield f"replicas {group.minReplicas}, {group.replicas}, {group.maxReplicas} are not in order"
    pod, container = group.template.spec, group.template.spec.containers[0]
    if group.rayStartParams.get("num-gpus") != container.resources.limits.get("nvidia.com/gpu", "0"):
        yield "Ray counts other GPUs than Kubernetes"
    if bool(pod.tolerations) != ("nvidia.com/gpu" in container.resources.limits):
        yield "only GPU machines are tainted, and those are"
    yield from of_ports(container, {"metrics": 8080})
    yield from of_pod(pod, group.rayStartParams, set())
    yield from of_probes(container, "/api/local_raylet_healthz", DEFAULT_DASHBOARD_AGENT_LISTEN_PORT)
    yield from of_notice(pod)


def of_notice(pod: RayPod) -> Iterator[str]:
    """A pod that ends has Ray told, and the time that Ray is told of."""
    hook = pod.containers[0].lifecycle
    command = "" if hook is None else hook.preStop.exec.command[-1]
    times = re.search(r"DRAIN_NODE_REASON_PREEMPTION.*--deadline-remaining-seconds (\d+) && sleep (\d+)$", command)
    if times is None:
        yield "Ray is not told that the pod ends"
    elif not int(times[1]) <= int(times[2]) < pod.terminationGracePeriodSeconds < SPOT_NOTICE_S:
        yield f"the pod has {pod.terminationGracePeriodSeconds} s, Ray is told of {times[1]} and waited for {times[2]}"


def of_pod(pod: RayPod, start_params: dict[Any, str], mounted_elsewhere: set[str]) -> Iterator[str]:
    container = pod.containers[0]
    limits, volumes = container.resources.limits, {volume.name: volume for volume in pod.volumes}
    yield from of_container(container, has_gpu="nvidia.com/gpu" in limits)
    if missing := {"cpu", "memory", "ephemeral-storage"} - limits.keys():
        yield f"no limit of {sorted(missing)}"
        return
    mounted = {mount.name: mount.mountPath for mount in container.volumeMounts}
    if mounted.keys() & mounted_elsewhere:
        yield "the token of Kubernetes is where jobs run"
    if mounted.keys() | mounted_elsewhere != volumes.keys():
        yield f"volumes are {sorted(volumes)}, mounted are {sorted(mounted.keys() | mounted_elsewhere)}"
        return
    sizes = {mounted[name]: each.emptyDir for name, each in volumes.items() if each.emptyDir and name in mounted}
    shm, cache = sizes.get("/dev/shm"), sizes.get("/mnt/cache")
    if shm is None or shm.medium != "Memory":
        yield "/dev/shm is not in memory"
    elif not int(start_params.get("object-store-memory", 0)) < amount(shm.sizeLimit) < amount(limits["memory"]):
        yield "object store, /dev/shm and memory are not each within the next"
    if cache is not None and not amount(cache.sizeLimit) < amount(limits["ephemeral-storage"]):
        yield "the cache is larger than the disk that the pod may fill"


def of_container(container: Container, *, has_gpu: bool) -> Iterator[str]:
    if container.image != f"{REGISTRY}/raytrain:{__version__}-{'gpu' if has_gpu else 'cpu'}":
        yield f"{container.name}: image {container.image} is not this version's"
    if container.resources.requests != container.resources.limits:
        yield f"{container.name}: requests are not limits"
    if not isinstance(container, RayContainer):
        return
    variables = {each.name: each.value for each in container.env}
    wanted = {"RAY_AUTH_MODE": "token", "RAY_TRAIN_ENABLE_STATE_TRACKING": "1", "AWS_EC2_METADATA_DISABLED": "true"}
    if wrong := [name for name, value in wanted.items() if variables.get(name) != value]:
        yield f"{container.name}: {wrong} not as it should be"
    if secret := [name for name in variables if re.search("TOKEN|SECRET|PASSWORD|KEY", name)]:
        yield f"{container.name}: {secret} stand in the manifest"


def of_probes(container: RayContainer, path: str, port: int) -> Iterator[str]:
    for probe in (container.readinessProbe, container.livenessProbe):
        if (probe.httpGet.path, probe.httpGet.port) != (path, port):
            yield f"probe asks {probe.httpGet.port}{probe.httpGet.path}, Ray answers at {port}{path}"
    if container.livenessProbe.periodSeconds * container.livenessProbe.failureThreshold < 300:
        yield "a busy node is taken for a dead one"


def of_ports(container: RayContainer, ports: dict[str, int]) -> Iterator[str]:
    found = {each.name: each.containerPort for each in container.ports}
    if found != ports:
        yield f"{container.name}: ports {found}, expected {ports}"


def of_accounts(spec: ClusterSpec, objects: dict[str, Strict]) -> Iterator[str]:
    for group in (spec.headGroupSpec, *spec.workerGroupSpecs):
        if f"ServiceAccount/{group.template.spec.serviceAccountName}" not in objects:
            yield f"no account {group.template.spec.serviceAccountName}"


def of_job(job: RayJob, cluster: RayCluster) -> Iterator[str]:
    """The job's cluster is the other one, but for its retry and for what its command needs from the start."""
    python, script, *options = shlex.split(job.spec.entrypoint)
    verb = re.fullmatch(r"/opt/raytrain/jobs/(\w+)\.py", script)
    if python != "python" or verb is None or not (FOLDER.parents[1] / "jobs" / f"{verb[1]}.py").is_file():
        yield f"entrypoint {python} {script}: not a script of the image"
        return
    command: Any = cli._parse([verb[1], *options])  # raises for a wrong option
    ours = job.spec.rayClusterSpec.model_dump()
    gpu = next(group for group in ours["workerGroupSpecs"] if group["groupName"] == "gpu")
    if {gpu["minReplicas"], gpu["replicas"]} != {min(command.workers)} or gpu["maxReplicas"] < max(command.workers):
        yield f"{gpu['minReplicas']} to {gpu['maxReplicas']} GPUs for {command.workers} workers"
    gpu.update(minReplicas=0, replicas=0)
    theirs = cluster.spec.model_dump()
    if ours["gcsFaultToleranceOptions"] is not None or theirs["gcsFaultToleranceOptions"] is None:
        yield "a cluster that stays keeps its GCS, that of a job does not"
    if ours["upgradeStrategy"] is not None or theirs["upgradeStrategy"] is None:
        yield "a new image reaches the pods of a cluster that stays, and KubeRay refuses an upgradeStrategy in a RayJob"
    if ours != theirs | {"gcsFaultToleranceOptions": None, "upgradeStrategy": None}:
        yield "the cluster of the job is not that of raycluster.yaml"
    caches = {each["mountPath"] for each in gpu["template"]["spec"]["containers"][0]["volumeMounts"]}
    sizes = [each["emptyDir"]["sizeLimit"] for each in gpu["template"]["spec"]["volumes"] if each["name"] == "cache"]
    if command.cache not in caches or command.cache_limit_gb * 1e9 > min(map(amount, sizes)):
        yield f"a cache of {command.cache_limit_gb} GB at {command.cache} is not what the pod has"


def of_network(policies: list[NetworkPolicy], submitter: dict[str, str]) -> Iterator[str]:
    if not any(not (each.spec.podSelector.matchLabels or each.spec.ingress or each.spec.egress) for each in policies):
        yield "what is not allowed is not denied"
    for policy in policies:
        yield from (f"{policy.metadata.name}: {fault}" for fault in of_policy(policy))
    entries = [rule for each in policies for rule in each.spec.ingress if rule.ports is not None]
    opened = {port.port for rule in entries for port in rule.ports or ()}
    if opened != OPEN_PORTS.keys():
        yield f"open are {sorted(opened)}, expected {sorted(OPEN_PORTS)}"
    reach = [each for each in policies if any(6379 in {p.port for p in rule.ports or ()} for rule in each.spec.egress)]
    kinds = sorted(each.spec.podSelector.matchLabels.get("ray.io/node-type", "any") for each in reach)
    if kinds != ["head", "redis-cleanup"]:
        yield f"Redis is reached by {kinds}"
    if not any(peer.podSelector and peer.podSelector.matchLabels == submitter for r in entries for peer in r.peers):
        yield "the submitter of the job may not ask the head"


def of_policy(policy: NetworkPolicy) -> Iterator[str]:
    if set(policy.spec.policyTypes) != {"Ingress", "Egress"}:
        yield "one direction is left open"
    if policy.spec.policyTypes and not policy.spec.podSelector.matchLabels and policy.spec.ingress:
        yield "opens every pod"
    for rule in policy.spec.ingress:
        for peer in rule.peers:
            labels = peer.podSelector.matchLabels if peer.podSelector else {}
            if rule.ports is None:
                if labels != RAY_NODE or peer.namespaceSelector is not None:
                    yield f"every port is open to {labels}"
            elif not labels or any(set(labels.values()) - set(OPEN_PORTS.get(p.port, "").split()) for p in rule.ports):
                yield f"{[each.port for each in rule.ports]} open to {labels}"
            elif (
                8265 in {each.port for each in rule.ports}
                and "head" not in policy.spec.podSelector.matchLabels.values()
            ):
                yield "the job API is the head's"
    for rule in policy.spec.egress:
        for peer in rule.peers:
            yield from of_way_out(peer, [] if rule.ports is None else [each.port for each in rule.ports])


def of_way_out(peer: Peer, ports: list[int]) -> Iterator[str]:
    if peer.ipBlock is None:
        if not (peer.podSelector and peer.podSelector.matchLabels):
            yield "a way out to pods of any kind"
        return
    block, excepted = ipaddress.ip_network(peer.ipBlock.cidr), list(map(ipaddress.ip_network, peer.ipBlock.excepted))
    if METADATA_SERVICE in block and not any(METADATA_SERVICE in each for each in excepted):
        yield "a way out to the metadata service"
    if block.prefixlen == 0 and (ports != [443] or not all(any(p.subnet_of(e) for e in excepted) for p in PRIVATE)):
        yield f"a way out to anywhere by {ports or 'any port'}, private addresses included or not TLS"
    if not ports:
        yield f"a way out to {block} by any port"


PRIVATE = [ipaddress.IPv4Network(each) for each in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]


def of_namespace(documents: Documents) -> Iterator[str]:
    if documents["Namespace/raytrain"]["metadata"]["labels"].get("pod-security.kubernetes.io/enforce") != "restricted":
        yield "the namespace takes pods with privileges"
    if re.search(r"AKIA[A-Z0-9]{16}|BEGIN [A-Z ]*PRIVATE KEY", str(documents)):
        yield "a key stands in a manifest"


def test_the_manifests_hold_what_they_have_to() -> None:
    assert list(faults(read())) == []


HEAD = "RayCluster/raytrain.spec.headGroupSpec"
GPU = "RayCluster/raytrain.spec.workerGroupSpecs.0"
RAY_HEAD, RAY_WORKER = f"{HEAD}.template.spec.containers.0", f"{GPU}.template.spec.containers.0"
JOB = "RayJob/raytrain-train.spec"
GONE = object()
BROKEN: list[tuple[str, Any, str]] = [
    # the schema
    ("RayCluster/raytrain.apiVersion", "ray.io/v1alpha1", "schema"),
    ("RayCluster/raytrain.spec.authOption", {"mode": "token"}, "schema.*authOption"),
    ("RayCluster/raytrain.spec.authOptions.mode", "disabled", "schema"),
    ("RayCluster/raytrain.spec.authOptions.secretName", "Raytrain_Token", "schema"),
    ("RayCluster/raytrain.spec.networkPolicy", GONE, "schema"),
    ("RayCluster/raytrain.spec.autoscalerOptions.version", "v1", "schema"),
    ("RayCluster/raytrain.spec.upgradeStrategy.type", "None", "schema"),
    ("RayCluster/raytrain.spec.enableInTreeAutoscaling", "true", "schema"),
    ("RayCluster/raytrain.spec.gcsFaultToleranceOptions.redisPassword", {"value": "secret"}, "schema"),
    ("RayCluster/raytrain.spec.gcsFaultToleranceOptions.redisAddress", "redis://redis.example.com:6379", "schema"),
    (f"{HEAD}.serviceType", "LoadBalancer", "schema"),
    (f"{HEAD}.template.spec.restartPolicy", "Always", "schema"),
    (f"{HEAD}.template.spec.automountServiceAccountToken", True, "schema"),
    (f"{HEAD}.template.spec.hostNetwork", True, "schema"),
    (f"{HEAD}.rayStartParams.num-cpus", 0, "schema"),
    (f"{RAY_HEAD}.securityContext.capabilities.add", ["SYS_ADMIN"], "schema"),
    (f"{RAY_HEAD}.securityContext.allowPrivilegeEscalation", True, "schema"),
    (f"{RAY_WORKER}.securityContext.seccompProfile.type", "Unconfined", "schema"),
    (f"{GPU}.template.spec.securityContext.runAsUser", 0, "schema"),
    (f"{GPU}.template.spec.volumes.1", {"name": "cache", "hostPath": {"path": "/mnt"}}, "schema"),
    (f"{GPU}.minReplicas", -1, "schema"),
    (f"{RAY_WORKER}.livenessProbe.exec", {"command": ["true"]}, "schema"),
    (f"{JOB}.submissionMode", "SidecarMode", "schema"),
    (f"{JOB}.shutdownAfterJobFinishes", False, "schema"),
    ("NetworkPolicy/ray-nodes.spec.ingress.0.from", [], "schema"),
    ("ServiceAccount/raytrain-worker.automountServiceAccountToken", True, "schema"),
    ("Secret/raytrain-token", {"kind": "Secret", "metadata": {}}, "schema"),
    # what no schema says
    ("RayCluster/raytrain.spec.upgradeStrategy", GONE, "a new image"),
    (f"{JOB}.rayClusterSpec.upgradeStrategy", {"type": "Recreate"}, "KubeRay refuses"),
    ("RayCluster/raytrain.spec.rayVersion", "2.59.0", "rayVersion 2.59.0"),
    ("RayCluster/raytrain.spec.autoscalerOptions.resources.limits.memory", "2Gi", "autoscaler: requests"),
    (f"{HEAD}.rayStartParams.num-cpus", "4", "takes work"),
    (f"{HEAD}.labels", {"raytrain.most-gpus": "8", "raytrain.most-cpus": "1"}, "grow to"),
    (f"{HEAD}.template.spec.nodeSelector", {"karpenter.sh/capacity-type": "spot"}, "taken away"),
    (f"{HEAD}.template.spec.serviceAccountName", "default", "no account default"),
    (f"{RAY_HEAD}.image", f"{REGISTRY}/raytrain:latest", "not this version's"),
    (f"{RAY_HEAD}.ports.2.containerPort", 9090, "ray-head: ports"),
    (f"{RAY_HEAD}.env.0.value", "disabled", "RAY_AUTH_MODE"),
    (f"{RAY_HEAD}.env.1", {"name": "RAY_AUTH_TOKEN", "value": "x"}, r"RAY_AUTH_TOKEN.*stand in the manifest"),
    (f"{RAY_HEAD}.readinessProbe.httpGet.port", 8266, "probe asks 8266"),
    (f"{RAY_HEAD}.volumeMounts.1", {"name": "kubernetes-token", "mountPath": "/t"}, "where jobs run"),
    (f"{RAY_HEAD}.volumeMounts.0.name", "other", "mounted are"),
    (f"{RAY_WORKER}.image", f"{REGISTRY}/raytrain:{__version__}-cpu", "not this version's"),
    (f"{RAY_WORKER}.resources.limits.memory", "30Gi", "requests are not limits"),
    (f"{RAY_WORKER}.resources", {"requests": {"cpu": "1"}, "limits": {"cpu": "1"}}, "no limit of"),
    (f"{RAY_WORKER}.livenessProbe.failureThreshold", 3, "taken for a dead one"),
    (f"{RAY_WORKER}.readinessProbe.httpGet.path", "/api/gcs_healthz", "probe asks"),
    (f"{RAY_WORKER}.lifecycle", GONE, "not told"),
    (f"{GPU}.template.spec.terminationGracePeriodSeconds", 30, "the pod has 30 s"),
    (f"{GPU}.template.spec.volumes.0.emptyDir", {"sizeLimit": "8Gi"}, "not in memory"),
    (f"{GPU}.template.spec.volumes.0.emptyDir.sizeLimit", "64Gi", "within the next"),
    (f"{GPU}.template.spec.volumes.1.emptyDir.sizeLimit", "400Gi", "larger than the disk"),
    (f"{GPU}.rayStartParams.object-store-memory", "9000000000", "within the next"),
    (f"{GPU}.rayStartParams.num-gpus", "4", "other GPUs"),
    (f"{GPU}.template.spec.tolerations", GONE, "tainted"),
    (f"{GPU}.maxReplicas", 9, "grow to"),
    (f"{GPU}.replicas", 9, "not in order"),
    (f"{JOB}.submitterPodTemplate.spec.containers.0.resources.requests.cpu", "1", "ray-job-submitter: requests"),
    (f"{JOB}.submitterPodTemplate.metadata.labels", {"app": "other"}, "may not ask the head"),
    (f"{JOB}.entrypoint", "python train.py", "not a script of the image"),
    (f"{JOB}.rayClusterSpec.workerGroupSpecs.0.minReplicas", 1, "GPUs for"),
    (f"{JOB}.rayClusterSpec.workerGroupSpecs.1.maxReplicas", 1, "not that of raycluster.yaml"),
    (f"{JOB}.rayClusterSpec.workerGroupSpecs.0.template.spec.volumes.1.emptyDir.sizeLimit", "100Gi", "a cache of 180"),
    ("NetworkPolicy/nothing-unless-allowed", GONE, "is not denied"),
    ("NetworkPolicy/ray-nodes.spec.ingress.0.from.0.podSelector.matchLabels", {"a": "b"}, "every port is open"),
    ("NetworkPolicy/ray-nodes.spec.ingress.0.from.0.namespaceSelector", {}, "every port is open"),
    ("NetworkPolicy/ray-nodes.spec.ingress.1.ports.0.port", 8265, "8265.*open to"),
    ("NetworkPolicy/ray-nodes.spec.ingress.1.from.0.podSelector", GONE, "open to {}"),
    ("NetworkPolicy/ray-nodes.spec.egress.2.to.0.ipBlock.except.0", "169.253.0.0/16", "metadata service"),
    ("NetworkPolicy/ray-nodes.spec.egress.2.to.0.ipBlock.except.1", "10.0.0.0/16", "private addresses"),
    ("NetworkPolicy/ray-nodes.spec.egress.2.ports.0.port", 80, "not TLS"),
    ("NetworkPolicy/ray-nodes.spec.egress.2.ports", GONE, "by any port"),
    ("NetworkPolicy/ray-nodes.spec.egress.0.to.0.podSelector", {}, "pods of any kind"),
    ("NetworkPolicy/ray-nodes.spec.policyTypes", ["Ingress", "Ingress"], "one direction"),
    ("NetworkPolicy/ray-head.spec.podSelector.matchLabels", RAY_NODE, "the head's"),
    ("NetworkPolicy/ray-head.spec.ingress.0.ports.0.port", 6379, "open are"),
    ("NetworkPolicy/ray-head.spec.egress.0.ports", GONE, "10.0.0.0/24 by any port"),
    ("NetworkPolicy/ray-nodes.spec.podSelector", {}, "opens every pod"),
    ("NetworkPolicy/ray-redis-cleanup", GONE, "Redis is reached by"),
    ("Namespace/raytrain.metadata.labels", {"pod-security.kubernetes.io/enforce": "baseline"}, "with privileges"),
    ("ServiceAccount/raytrain-head.metadata.annotations", {"eks.amazonaws.com/role-arn": "AKIA" + "A" * 16}, "a key"),
]


def changed(documents: Documents, path: str, value: Any) -> Documents:
    """Return a copy in which `value` stands at `path`, whose first step is the key of an object."""
    found = copy.deepcopy(documents)
    key = next((each for each in found if path == each or path.startswith(f"{each}.")), path)
    *steps, last = [key, *filter(None, path.removeprefix(key).split("."))]
    target: Any = found
    for step in steps:
        target = target[int(step) if isinstance(target, list) else step]
    if isinstance(target, list):
        target[int(last) : int(last) + 1] = [value]
    elif value is GONE:
        del target[last]
    else:
        target[last] = value
    return found


@pytest.mark.parametrize(("path", "value", "found"), BROKEN, ids=[f"{p}-{f}" for p, _, f in BROKEN])
def test_a_broken_variant_is_found(path: str, value: Any, found: str) -> None:
    assert any(re.search(found, fault, re.DOTALL) for fault in faults(changed(read(), path, value)))


def test_the_autoscaler_of_ray_reads_the_groups_as_they_are_meant() -> None:
    documents = read()
    config = _derive_autoscaling_config_from_ray_cr(documents["RayCluster/raytrain"])
    types = config["available_node_types"]
    assert {name: (each["min_workers"], each["max_workers"]) for name, each in types.items()} == {
        "headgroup": (0, 0),
        "gpu": (0, 8),
        "cpu": (0, 16),
    }
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert (types["gpu"]["resources"]["CPU"], types["gpu"]["resources"]["GPU"]) == (7, 1)
    assert (types["cpu"]["resources"]["CPU"], types["cpu"]["resources"]["GPU"]) == (15, 0)
    assert config["idle_timeout_minutes"] == 5
