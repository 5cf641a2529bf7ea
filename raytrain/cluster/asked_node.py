"""A node that `doctor` asks, and what came of it so far. Must not know what is asked, nor what the answers mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import ray

from raytrain import storage
from raytrain.cluster.checks import Finding, Node
from raytrain.cluster.checks_store import NodeAnswers
from raytrain.cluster.node_report import GpuReport, NodeReport
from raytrain.errors import first_line

Kind = Literal["look", "clock", "stores", "GPU"]
THIS_MACHINE = "this machine"


@dataclass
class AskedNode:
    """What came of one node so far, and what is wrong with how it answers."""

    node: Node
    node_id: str
    report: NodeReport | None = None
    ahead_s: float = 0.0
    uncertain_s: float = float("inf")
    clock_tries: int = 0
    stores: list[NodeAnswers] = field(default_factory=list)
    gpu: GpuReport | None = None
    gpu_unchecked: str = ""
    problems: list[Finding] = field(default_factory=list)

    def fail(self, found: str, remedy: str) -> None:
        """Note a problem of the node itself."""
        self.problems.append(
            Finding(check="nodes", verdict="failed", nodes=(self.node.name,), found=found, remedy=remedy)
        )

    def fail_to_understand(self, kind: Kind, versions: Any) -> None:
        """Note an answer that is no answer: it comes from another raytrain."""
        version = versions.get("raytrain", "unknown") if isinstance(versions, dict) else "unknown"
        found = f"its raytrain (version {version}) is another one than the command's, and can't be understood ({kind})"
        self.fail(found, "start every node from the same image of raytrain, or submit the work as a job")
        if kind == "GPU":
            self.gpu_unchecked = "its answer can't be understood"


def nodes_of_the_cluster(is_local: bool) -> list[AskedNode]:
    """Return the nodes that live, the head first; by address, and by port where several share one."""
    known: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = [node for node in known if node["Alive"]]
    alive.sort(key=lambda node: ("node:__internal_head__" not in node["Resources"], node["NodeManagerAddress"]))
    addresses = [node["NodeManagerAddress"] for node in alive]
    found = []
    for node in alive:
        address, resources = node["NodeManagerAddress"], node["Resources"]
        is_head = "node:__internal_head__" in resources
        name = address if addresses.count(address) == 1 else f"{address}:{node['NodeManagerPort']}"
        made = Node(
            name=THIS_MACHINE if is_local else f"{name} (head)" if is_head else name,
            address=address,
            is_head=is_head,
            cpus=resources.get("CPU", 0),
            gpus=resources.get("GPU", 0),
            memory_bytes=resources.get("memory", 0),
            object_store_bytes=resources.get("object_store_memory", 0),
            metrics_port=node.get("MetricsExportPort") or 0,
        )
        found.append(AskedNode(made, node["NodeID"]))
    return found


def short(error: BaseException) -> str:
    """Return the kind of an error and its last line: those of Ray begin with a traceback's."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else first_line(error)
    return f"{type(error).__name__}: {storage.without_queries(text)}"[:300]
