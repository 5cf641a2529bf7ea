"""What Ray's autoscaler says of itself, where a cluster has one: machines on their way, machines that it can't get.

Must not know what anybody needs them for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import ray
import ray.exceptions
from ray._private.ray_constants import DEBUG_AUTOSCALING_ERROR, DEBUG_AUTOSCALING_STATUS
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get

from raytrain.cluster.checks import Finding

TIMEOUT_S = 10
LOOK = "look at `ray status` on the head and at monitor.log: capacity, quota, the head's rights to start machines"


def check_autoscaler() -> list[Finding]:
    """Return what the autoscaler of this cluster says; nothing where it has none, or none that says anything."""
    try:
        return _asked()
    except (ray.exceptions.RayError, OSError, ValueError) as error:
        return [_finding("unchecked", f"it can't be asked: {type(error).__name__}", "ray status")]


def _asked() -> list[Finding]:
    if is_autoscaler_v2(fetch_from_server=True):
        status = get_cluster_status(ray.get_runtime_context().gcs_address, timeout=TIMEOUT_S)
        failed = [f"{each.count} x {each.ray_node_type_name}" for each in status.failed_launches]
        failed += [each.ray_node_type_name for each in status.failed_nodes]
        waiting = sum(each.count for each in status.pending_launches) + len(status.pending_nodes)
        return judge(waiting, failed, has_error=False)
    text = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    summary = (json.loads(text).get("autoscaler_report") or {}) if text else {}
    return judge_report(summary, has_error=bool(_internal_kv_get(DEBUG_AUTOSCALING_ERROR)))


def judge_report(report: Mapping[str, Any], *, has_error: bool) -> list[Finding]:
    """Judge what the first autoscaler writes down of itself."""
    waiting = len(report.get("pending_nodes") or []) + sum((report.get("pending_launches") or {}).values())
    return judge(waiting, [str(kind) for _, kind in report.get("failed_nodes") or []], has_error=has_error)


def judge(num_waiting: int, failed: list[str], *, has_error: bool) -> list[Finding]:
    """Return a finding about machines that wait, that failed, or an autoscaler that ended with an error."""
    if has_error:
        return [_finding("warning", "it ended with an error: no machine will be started or given back", LOOK)]
    found = []
    if failed:
        found.append(_finding("warning", f"machines that could not be started or failed: {', '.join(failed)}", LOOK))
    if num_waiting:
        found.append(_finding("ok", f"{num_waiting} machines are on their way; they are not looked at here"))
    return found


def _finding(verdict: str, found: str, remedy: str = "") -> Finding:
    values = {"check": "autoscaler", "verdict": verdict, "nodes": (), "found": found, "remedy": remedy}
    return Finding.model_validate(values)
