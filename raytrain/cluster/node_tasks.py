"""What nodes do for `doctor`, as tasks: reports cross the cluster as plain values, since another raytrain may answer.

Must not know what is asked of whom, nor what the answers mean.
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any

import ray

from raytrain.cluster import node_look
from raytrain.cluster.in_time import in_time
from raytrain.cluster.store_look import ask_stores


def look(request: dict[str, Any]) -> dict[str, Any]:
    """Return a `NodeReport` of this node; the request is what `node_look.look` takes."""
    node = ray._private.worker.global_worker.node
    session_folder = None if node is None else node.get_temp_dir_path()
    return node_look.look(**request, session=session_folder).model_dump(mode="json")


def clock(request: dict[str, Any]) -> float:
    """Return the seconds since the epoch by the clock of this node."""
    return time.time()


def gpu(request: dict[str, Any]) -> dict[str, Any]:
    """Return a `GpuReport` of the GPU that this task holds."""
    return node_look.look_at_gpu().model_dump(mode="json")


def stores(request: dict[str, Any]) -> list[tuple[dict[str, Any], bool | None]]:
    """Return what each store says, asked side by side, and whether a shared folder is that of the command."""
    asked: list[tuple[str, str, bool]] = request["asked"]
    markers: dict[str, str] = request["markers"]
    limit_s: float = request["limit_s"]
    reports = ask_stores(asked, limit_s)
    paths = [markers.get(uri) for uri, _, _ in asked]
    seen = in_time([partial(_is_there, path) for path in paths], max(limit_s / 10, 1.0))
    return [
        (report.model_dump(mode="json"), sees if isinstance(sees, bool) else None)
        for report, sees in zip(reports, seen, strict=True)
    ]


def _is_there(path: str | None) -> bool | None:
    return None if path is None else os.path.exists(path)
