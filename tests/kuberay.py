"""A strict schema of the Kubernetes objects in infra/kuberay: exactly the fields that stand there, with what they take.

Made from the types of KubeRay 1.7 and of Kubernetes. A field that is missing here may well be known to an API server:
it is added by whoever has read what it does.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]{0,45}[a-z0-9])?$")]
"""A DNS label; KubeRay's own limit for the names of RayJobs and RayClusters is 47 characters or a few more."""
Quantity = Annotated[str, Field(pattern=r"^[1-9][0-9]*(m|Ki|Mi|Gi)?$")]
Labels = dict[str, str]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[int, Field(ge=1)]
Resources = dict[Literal["cpu", "memory", "ephemeral-storage", "nvidia.com/gpu"], Quantity]


class Strict(BaseModel):
    """A part of an object: no other fields than those named, and no value taken for one of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Metadata(Strict):
    name: Name
    namespace: Literal["raytrain"]
    annotations: dict[Literal["eks.amazonaws.com/role-arn"], str] = Field(default_factory=dict)


class Capabilities(Strict):
    drop: list[Literal["ALL"]] = Field(min_length=1, max_length=1)


class SeccompProfile(Strict):
    type: Literal["RuntimeDefault"]


class ContainerSecurity(Strict):
    allowPrivilegeEscalation: Literal[False]
    capabilities: Capabilities
    runAsNonRoot: Literal[True]
    seccompProfile: SeccompProfile


class PodSecurity(Strict):
    runAsNonRoot: Literal[True]
    runAsUser: Literal[1000]
    runAsGroup: Literal[1000]
    fsGroup: Literal[1000]
    seccompProfile: SeccompProfile


class ResourceRequirements(Strict):
    requests: Resources
    limits: Resources


class KeyOfSecret(Strict):
    name: Name
    key: str


class FromSecret(Strict):
    secretKeyRef: KeyOfSecret


class Variable(Strict):
    """An environment variable by its value; those from secrets KubeRay adds by itself."""

    name: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]
    value: str


class ContainerPort(Strict):
    name: Name
    containerPort: Port


class HttpGet(Strict):
    path: Literal["/api/gcs_healthz", "/api/local_raylet_healthz"]
    port: Port


class Probe(Strict):
    httpGet: HttpGet
    periodSeconds: Seconds
    timeoutSeconds: Seconds
    failureThreshold: Seconds
    initialDelaySeconds: Seconds = 1


class Exec(Strict):
    command: list[str] = Field(min_length=1)


class Handler(Strict):
    exec: Exec


class Lifecycle(Strict):
    preStop: Handler


class Mount(Strict):
    name: Name
    mountPath: Annotated[str, Field(pattern="^/")]
    readOnly: bool = False


class EmptyDir(Strict):
    sizeLimit: Quantity
    medium: Literal["Memory"] | None = None


class ServiceAccountToken(Strict):
    path: Literal["token"]
    expirationSeconds: Annotated[int, Field(ge=600)]


class KeyToPath(Strict):
    key: Literal["ca.crt"]
    path: Literal["ca.crt"]


class ConfigMapItems(Strict):
    name: Literal["kube-root-ca.crt"]
    items: list[KeyToPath]


class FieldRef(Strict):
    fieldPath: Literal["metadata.namespace"]


class FieldToPath(Strict):
    path: Literal["namespace"]
    fieldRef: FieldRef


class DownwardItems(Strict):
    items: list[FieldToPath]


class Projection(Strict):
    serviceAccountToken: ServiceAccountToken | None = None
    configMap: ConfigMapItems | None = None
    downwardAPI: DownwardItems | None = None


class Projected(Strict):
    sources: list[Projection]


class Volume(Strict):
    name: Name
    emptyDir: EmptyDir | None = None
    projected: Projected | None = None


class Toleration(Strict):
    key: Literal["nvidia.com/gpu"]
    operator: Literal["Exists"]
    effect: Literal["NoSchedule"]


class Container(Strict):
    """What every container has; `RayContainer` is one of Ray's nodes."""

    name: Name
    image: str
    imagePullPolicy: Literal["IfNotPresent"]
    resources: ResourceRequirements
    securityContext: ContainerSecurity


class RayContainer(Container):
    ports: list[ContainerPort] = Field(min_length=1)
    env: list[Variable]
    readinessProbe: Probe
    livenessProbe: Probe
    volumeMounts: list[Mount]
    lifecycle: Lifecycle | None = None


class Pod(Strict):
    serviceAccountName: Name
    automountServiceAccountToken: Literal[False]
    restartPolicy: Literal["Never"]
    securityContext: PodSecurity


class RayPod(Pod):
    terminationGracePeriodSeconds: Seconds
    nodeSelector: dict[Literal["karpenter.sh/capacity-type", "karpenter.k8s.aws/instance-family"], str]
    tolerations: list[Toleration] = Field(default_factory=list)
    containers: list[RayContainer] = Field(min_length=1, max_length=1)
    volumes: list[Volume]


class SubmitterPod(Pod):
    containers: list[Container] = Field(min_length=1, max_length=1)


class RayTemplate(Strict):
    spec: RayPod


class PodLabels(Strict):
    labels: Labels


class SubmitterTemplate(Strict):
    metadata: PodLabels
    spec: SubmitterPod


class AuthOptions(Strict):
    mode: Literal["token"]
    secretName: Name


class ClusterNetworkPolicy(Strict):
    mode: Literal["DenyAll", "DenyAllIngress", "DenyAllEgress"]


class AutoscalerOptions(Strict):
    version: Literal["v2"]
    idleTimeoutSeconds: Seconds
    upscalingMode: Literal["Default", "Aggressive", "Conservative"]
    resources: ResourceRequirements
    securityContext: ContainerSecurity
    volumeMounts: list[Mount]


class RedisPassword(Strict):
    valueFrom: FromSecret  # KubeRay would take a `value`, too


class GcsFaultTolerance(Strict):
    redisAddress: Annotated[str, Field(pattern=r"^rediss://[^@/]+:\d+$")]
    redisPassword: RedisPassword


HeadParams = dict[Literal["num-cpus", "dashboard-host", "object-store-memory"], str]
WorkerParams = dict[Literal["num-gpus", "object-store-memory"], str]


class HeadGroup(Strict):
    serviceType: Literal["ClusterIP"]
    labels: dict[Literal["raytrain.most-gpus", "raytrain.most-cpus"], str]
    rayStartParams: HeadParams
    template: RayTemplate


class WorkerGroup(Strict):
    groupName: Name
    replicas: Annotated[int, Field(ge=0)]
    minReplicas: Annotated[int, Field(ge=0)]
    maxReplicas: Annotated[int, Field(ge=1)]
    rayStartParams: WorkerParams
    template: RayTemplate


class UpgradeStrategy(Strict):
    type: Literal["Recreate"]  # with `None`, KubeRay's default, running pods keep the image that they began with


class ClusterSpec(Strict):
    rayVersion: str
    authOptions: AuthOptions
    networkPolicy: ClusterNetworkPolicy
    upgradeStrategy: UpgradeStrategy | None = None  # KubeRay refuses it in the cluster of a RayJob
    enableInTreeAutoscaling: Literal[True]
    autoscalerOptions: AutoscalerOptions
    gcsFaultToleranceOptions: GcsFaultTolerance | None = None
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup] = Field(min_length=1)


class RayCluster(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: ClusterSpec


class SubmitterConfig(Strict):
    backoffLimit: Annotated[int, Field(ge=0)]


class RayJobSpec(Strict):
    entrypoint: str
    submissionMode: Literal["K8sJobMode"]  # the only one that has a submitter's pod and its configuration
    submitterConfig: SubmitterConfig
    backoffLimit: Annotated[int, Field(ge=0)]
    shutdownAfterJobFinishes: Literal[True]
    ttlSecondsAfterFinished: Annotated[int, Field(ge=0)]
    submitterPodTemplate: SubmitterTemplate
    rayClusterSpec: ClusterSpec


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: RayJobSpec


class NamespaceMetadata(Strict):
    name: Literal["raytrain"]
    labels: Labels


class Namespace(Strict):
    apiVersion: Literal["v1"]
    kind: Literal["Namespace"]
    metadata: NamespaceMetadata


class ServiceAccount(Strict):
    apiVersion: Literal["v1"]
    kind: Literal["ServiceAccount"]
    metadata: Metadata
    automountServiceAccountToken: Literal[False]


class Selector(Strict):
    matchLabels: Labels = Field(default_factory=dict)


class AddressBlock(Strict):
    cidr: str
    excepted: list[str] = Field(default_factory=list, alias="except")


class Peer(Strict):
    podSelector: Selector | None = None
    namespaceSelector: Selector | None = None
    ipBlock: AddressBlock | None = None


class PolicyPort(Strict):
    protocol: Literal["TCP", "UDP"]
    port: Port


class Ingress(Strict):
    peers: list[Peer] = Field(min_length=1, alias="from")  # none would mean everybody
    ports: list[PolicyPort] | None = Field(default=None, min_length=1)


class Egress(Strict):
    peers: list[Peer] = Field(min_length=1, alias="to")
    ports: list[PolicyPort] | None = Field(default=None, min_length=1)


class PolicySpec(Strict):
    podSelector: Selector
    policyTypes: list[Literal["Ingress", "Egress"]] = Field(min_length=2, max_length=2)
    ingress: list[Ingress] = Field(default_factory=list)
    egress: list[Egress] = Field(default_factory=list)


class NetworkPolicy(Strict):
    apiVersion: Literal["networking.k8s.io/v1"]
    kind: Literal["NetworkPolicy"]
    metadata: Metadata
    spec: PolicySpec


KINDS: dict[str, type[Namespace | ServiceAccount | NetworkPolicy | RayCluster | RayJob]] = {
    "Namespace": Namespace,
    "ServiceAccount": ServiceAccount,
    "NetworkPolicy": NetworkPolicy,
    "RayCluster": RayCluster,
    "RayJob": RayJob,
}
