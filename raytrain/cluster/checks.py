"""What a look at the nodes means: findings, and those about who answers, versions and clocks.

A finding says what was found on which nodes, how bad that is and what to do. Pure functions of reports; must not know
how these were got.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from raytrain.cluster.node_report import GpuReport, NodeReport
from raytrain.config import Settings

Verdict = Literal["ok", "unchecked", "warning", "failed"]

LOCKED_RAY = "2.60.0"
"""What uv.lock has, and with it the images."""
SHOWN_VERSIONS = ("Python", "raytrain", "ray", "torch")
CLOCK_WARNING_S, CLOCK_FAILED_S = 5.0, 300.0
"""A store refuses requests whose time is 15 minutes off; long before that a clock is not kept by anything."""
AGAIN = "run doctor again while work runs"
KEEP_TIME = "have chrony or systemd-timesyncd keep its clock (on AWS from 169.254.169.123)"


class Finding(Settings):
    """What one check found on some nodes, and what to do about it (`remedy`, "" where nothing)."""

    check: str
    verdict: Verdict
    nodes: tuple[str, ...]
    found: str
    remedy: str = ""


class Node(Settings):
    """What the cluster knows of a node: its name for people, and what Ray counts there."""

    name: str
    address: str
    is_head: bool = False
    cpus: float = 0
    gpus: float = 0
    memory_bytes: float = 0
    object_store_bytes: float = 0
    metrics_port: int = 0


@dataclass(frozen=True)
class Seen:
    """A node and what it said of itself; its clock less that of the command, known to `uncertain_s` (inf: not at all).

    `gpu` is what a task with one of its GPUs saw, None where none ran: `gpu_unchecked` says why.
    """

    node: Node
    report: NodeReport
    ahead_s: float = 0.0
    uncertain_s: float = 0.0
    gpu: GpuReport | None = None
    gpu_unchecked: str = ""


def names(all_seen: Iterable[Seen]) -> tuple[str, ...]:
    """Return the names of these nodes."""
    return tuple(seen.node.name for seen in all_seen)


def judged(
    check: str, all_seen: Sequence[Seen], judge: Callable[[Seen], list[Finding]], fine: Callable[[Sequence[Seen]], str]
) -> list[Finding]:
    """Return what `judge` finds on each node, and one finding more for those where it finds nothing.

    That one says what `fine` does of them.
    """
    found, good = [], []
    for seen in all_seen:
        findings = judge(seen)
        found += findings
        if not findings:
            good.append(seen)
    if good:
        found.insert(0, Finding(check=check, verdict="ok", nodes=names(good), found=fine(good)))
    return found


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings with those that say the same of several nodes made one, in the order of their checks."""
    by_text: dict[tuple[str, str, str, str], list[str]] = {}
    checks: dict[str, None] = {}
    for each in findings:
        checks.setdefault(each.check)
        nodes = by_text.setdefault((each.check, each.verdict, each.found, each.remedy), [])
        nodes += [name for name in each.nodes if name not in nodes]
    made = [
        Finding(check=check, verdict=verdict, nodes=tuple(nodes), found=found, remedy=remedy)  # type: ignore[arg-type]
        for (check, verdict, found, remedy), nodes in by_text.items()
    ]
    order = list(checks)
    return sorted(made, key=lambda each: order.index(each.check))


def size_text(num_bytes: float) -> str:
    """Return a number of bytes for people, in GB of 10^9."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes < 1e11 else f"{num_bytes / 1e9:.0f} GB"


def check_versions(all_seen: Sequence[Seen], ours: dict[str, str], our_code: str) -> list[Finding]:
    """Hold the versions of the nodes against those of the command, and its Ray against the locked one."""

    def judge(seen: Seen) -> list[Finding]:
        theirs = seen.report.versions
        differing = [
            f"{name} {theirs.get(name, 'none')} (the command has {ours.get(name, 'none')})"
            for name in {**ours, **theirs}
            if theirs.get(name) != ours.get(name)
        ]
        if differing:
            remedy = "start every node from the same image of raytrain; in a job, check its runtime environment"
            return [_of("versions", "failed", seen, ", ".join(differing), remedy)]
        if seen.report.code != our_code:
            found = f"raytrain's source is not that of the command: {seen.report.code[:12]}, not {our_code[:12]}"
            remedy = "submit the work as a job, which takes its source along, or use one image for all"
            return [_of("versions", "failed", seen, found, remedy)]
        return []

    def fine(good: Sequence[Seen]) -> str:
        shown = ", ".join(f"{name} {ours[name]}" for name in SHOWN_VERSIONS if name in ours)
        alike = f"; {len(ours) - len(SHOWN_VERSIONS)} other libraries and the source alike" if len(good) > 1 else ""
        return f"{shown}{alike}"

    return [*judged("versions", all_seen, judge, fine), *_missing(ours), *_unlocked_ray(ours)]


def _missing(ours: dict[str, str]) -> list[Finding]:
    absent = [name for name, version in ours.items() if version.startswith("none")]
    if not absent:
        return []
    found = f"not installed where the command runs: {', '.join(absent)}"
    return [Finding(check="versions", verdict="failed", nodes=(), found=found, remedy="uv sync --locked")]


def _unlocked_ray(ours: dict[str, str]) -> list[Finding]:
    version = ours.get("ray", "none")
    if version in (LOCKED_RAY, "none"):
        return []
    same_minor = version.split(".")[:2] == LOCKED_RAY.split(".")[:2]
    found = f"ray {version}, where raytrain is locked to {LOCKED_RAY}, on which it was tested"
    remedy = f"install ray {LOCKED_RAY} everywhere (uv sync --locked)"
    verdict: Verdict = "warning" if same_minor else "failed"
    return [Finding(check="versions", verdict=verdict, nodes=(), found=found, remedy=remedy)]


def check_clocks(all_seen: Sequence[Seen]) -> list[Finding]:
    """Judge the clocks of the nodes by that of the command."""

    def judge(seen: Seen) -> list[Finding]:
        found = clock_finding("clock", seen.ahead_s, seen.uncertain_s, "that of this command")
        return [] if found is None else [found.model_copy(update={"nodes": (seen.node.name,)})]

    def fine(good: Sequence[Seen]) -> str:
        return f"within {max(abs(seen.ahead_s) + seen.uncertain_s for seen in good):.1f} s of this command's"

    known = [seen for seen in all_seen if math.isfinite(seen.uncertain_s)]
    return judged("clock", known, judge, fine) if len(known) > 1 else []


def clock_finding(check: str, ahead_s: float, uncertain_s: float, other: str) -> Finding | None:
    """Return what is wrong with a clock that is so far ahead of another one (behind it, if negative), if anything."""
    off_s = abs(ahead_s) - uncertain_s
    if off_s < CLOCK_WARNING_S:
        return None
    verdict: Verdict = "failed" if off_s >= CLOCK_FAILED_S else "warning"
    found = f"its clock is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} {other}"
    if verdict == "failed":
        found += "; S3 refuses requests at 15 minutes"
    return Finding(check=check, verdict=verdict, nodes=(), found=found, remedy=KEEP_TIME)


def check_head(all_seen: Sequence[Seen]) -> list[Finding]:
    """Return the hint that the head of a cluster of several nodes should run no work."""
    found = (
        f"{len(all_seen)} {'nodes' if len(all_seen) > 1 else 'node'}, {sum(seen.node.cpus for seen in all_seen):g} CPUs"
    )
    findings = [Finding(check="nodes", verdict="ok", nodes=names(all_seen), found=found)]
    for seen in all_seen:
        if len(all_seen) > 1 and seen.node.is_head and seen.node.cpus:
            found = f"the head gives {seen.node.cpus:g} CPUs to work, which may take its memory and the cluster with it"
            findings.append(_of("nodes", "warning", seen, found, "start the head with --num-cpus=0"))
    return findings


def check_rest(num_workers: int, can_grow: bool) -> list[Finding]:
    """Return the hint that a cluster without workers, which come with work, is not checked but for its head."""
    if num_workers or not can_grow:
        return []
    found = "no worker is up: they come with work, and what stands here is of the head alone"
    return [Finding(check="nodes", verdict="unchecked", nodes=(), found=found, remedy=AGAIN)]


def _of(check: str, verdict: Verdict, seen: Seen, found: str, remedy: str) -> Finding:
    return Finding(check=check, verdict=verdict, nodes=(seen.node.name,), found=found, remedy=remedy)
