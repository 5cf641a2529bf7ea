"""Asks every node of a cluster how it is, by tasks pinned to it, and collects what came into findings.

The tasks take no CPU, so that full nodes and a head without CPUs answer as well; one that does not answer in time is a
finding, and keeps nothing else from being told. Must not know what a finding means: that stands in the checks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from pydantic import Field
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raytrain import storage
from raytrain.cluster import (
    autoscaling,
    checks,
    checks_access,
    checks_machine,
    checks_store,
    node_look,
    node_tasks,
    session,
)
from raytrain.cluster.asked_node import AskedNode, Kind, nodes_of_the_cluster, short
from raytrain.cluster.checks import Finding, Seen
from raytrain.cluster.checks_store import NodeAnswers
from raytrain.cluster.code import digest
from raytrain.cluster.in_time import TooLate, in_time
from raytrain.cluster.node_report import GpuReport, NodeReport, Token
from raytrain.config import Settings
from raytrain.errors import ConfigError

OnProgress = Callable[[int, int, str], None]

CLOCK_TRIES = 3
"""A clock is read so often, unless the first answer came quickly enough to tell."""
QUICK_S = 0.2
CANCEL_S = 5.0
"""How long tasks that took too long get to remove their probes."""
MARK_S = 10.0
"""How long a shared folder may take to take a file from this command, before the nodes are asked without it."""
FRACTION_FOR_STORES = 0.7
"""What a node gives its stores of the time that is left, so that those that did answer are told of."""


class DoctorJob(Settings):
    """What to look at beside the nodes themselves: stores and folders that are written to, those that are only read.

    `cache` is the folder that trainings get as `--cache`; `limit_s` is the time in which all nodes have to answer.
    """

    uris: tuple[str, ...] = ()
    read_only: tuple[str, ...] = ()
    cache: str | None = None
    limit_s: float = Field(default=120, gt=0)


@dataclass(frozen=True)
class DoctorReport:
    """What was found, by check; `reached` is False where no Ray could be joined, and only this machine is told of."""

    findings: list[Finding]
    nodes: list[str]
    reached: bool

    @property
    def failed(self) -> bool:
        """Tell whether a check failed."""
        return any(each.verdict == "failed" for each in self.findings)


def wanted(job: DoctorJob) -> list[tuple[str, bool]]:
    """Return each URI with whether it is written to."""
    return [(uri, True) for uri in job.uris] + [(uri, False) for uri in job.read_only]


def judge_nodes(all_seen: Sequence[Seen], most_gpus: int) -> list[Finding]:
    """Return what is to be said of the machines themselves."""
    return [
        *checks.check_versions(all_seen, node_look.versions(), digest()),
        *checks_machine.check_gpus(all_seen, most_gpus),
        *checks.check_clocks(all_seen),
        *checks_machine.check_disks(all_seen),
        *checks_machine.check_memory(all_seen),
        *checks_machine.check_network(all_seen),
    ]


class Examination:
    """The questions that are out, and what was answered."""

    def __init__(
        self, job: DoctorJob, cluster: session.Cluster, on_progress: OnProgress | None, token: Token | None = None
    ) -> None:
        self._job = job
        self._deadline = time.monotonic() + job.limit_s
        self._token = token
        self._on_progress = on_progress
        self._is_local = cluster.address == session.LOCAL
        self._dashboard = None if self._is_local else _dashboard_address()
        self._answers = nodes_of_the_cluster(self._is_local)
        self._growth = _growth()
        self._shared = cluster.shared_path
        self._probes = {(each.node_id, uri): storage.probe_name() for each in self._answers for uri, _ in wanted(job)}
        self._pending: dict[Any, tuple[AskedNode, Kind, float]] = {}
        self._num_done = 0
        self._marked: dict[str, Path] = {}
        self._of_folders: list[Finding] = []

    def run(self) -> DoctorReport:
        """Ask all, wait for the answers or the limit, and judge what came."""
        markers = self._markers()
        try:
            for each in self._answers:
                self._ask(each, "look")
            self._mark_folders(markers)
            while self._pending and (left_s := self._left_s()) > 0:
                self._tell()
                done, _ = ray.wait(list(self._pending), num_returns=1, timeout=min(left_s, 1.0))
                for reference in done:
                    self._take(reference)
            self._give_up()
        finally:
            self._remove(list(markers.values()))
        return self._report()

    def _left_s(self) -> float:
        return self._deadline - time.monotonic()

    def _tell(self) -> None:
        if self._on_progress is not None:
            waiting = sorted({each.node.name for each, _, _ in self._pending.values()})
            more = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
            self._on_progress(self._num_done, self._num_done + len(self._pending), f"waiting for {waiting[0]}{more}")

    # Questions

    def _ask(self, each: AskedNode, kind: Kind) -> None:
        functions = {
            "look": node_tasks.look,
            "clock": node_tasks.clock,
            "stores": node_tasks.stores,
            "GPU": node_tasks.gpu,
        }
        strategy = NodeAffinitySchedulingStrategy(each.node_id, soft=False)
        remote: Any = ray.remote  # its annotation does not know this strategy
        num_gpus = 1 if kind == "GPU" else 0
        task = remote(num_cpus=0, num_gpus=num_gpus, max_retries=0, scheduling_strategy=strategy)(functions[kind])
        self._pending[task.remote(self._request(each, kind))] = (each, kind, time.time())

    def _request(self, each: AskedNode, kind: Kind) -> dict[str, Any]:
        if kind == "look":
            return {
                "address": each.node.address,
                "is_head": each.node.is_head,
                "cache": self._job.cache,
                "dashboard": self._dashboard,
                "counts_gpus": each.node.gpus > 0,
            }
        if kind == "stores":
            return {
                "asked": [[uri, self._probes[each.node_id, uri], writes] for uri, writes in self._asked()],
                "markers": {uri: str(path) for uri, path in self._marked.items()},
                "limit_s": max(self._left_s(), 0) * FRACTION_FOR_STORES,
            }
        return {}

    def _asked(self) -> list[tuple[str, bool]]:
        """Return what nodes are asked about: not local paths where each node has its own, or will have."""
        alone = (len(self._answers) == 1 and not self._growth.can_grow) or self._shared
        return [(uri, writes) for uri, writes in wanted(self._job) if alone or not storage.is_local(uri)]

    def _markers(self) -> dict[str, Path]:
        """Return which file this command writes to each local folder that all nodes are said to see."""
        if not self._shared or len(self._answers) < 2:
            return {}
        folders = filter(storage.is_local, self._job.uris)
        return {uri: Path(storage.path_of(uri), storage.probe_name()) for uri in folders}

    def _mark_folders(self, markers: dict[str, Path]) -> None:
        """Write those files; a folder that this command can't write to, or that hangs, is a finding."""
        limit_s = min(MARK_S, self._job.limit_s / 4)
        text = b"A probe that `raytrain doctor` wrote to see which machines see it.\n"
        written = in_time([partial(path.write_bytes, text) for path in markers.values()], limit_s)
        for (uri, path), answer in zip(markers.items(), written, strict=True):
            if isinstance(answer, TooLate):
                found = f"{uri}: does not answer this command within {limit_s:g} s; there may be a probe: {path}"
                self._note_folder("failed", found, "look whether it is still mounted there (`df` hangs?)")
            elif isinstance(answer, Exception):
                found = f"{uri}: this command can't write there ({short(answer)}), nor tell whether nodes see the same"
                self._note_folder("unchecked", found, "run doctor as a job, or as a user that may write there")
            else:
                self._marked[uri] = path

    def _remove(self, paths: Sequence[Path]) -> None:
        """Remove the files again, also those that came late."""
        removed = in_time([partial(path.unlink, missing_ok=True) for path in paths], CANCEL_S)
        for path, answer in zip(paths, removed, strict=True):
            if path in self._marked.values() and isinstance(answer, Exception):
                found = f"the probe can't be removed and stays: {path}"
                self._note_folder("warning", found, "remove it, once the folder answers")

    def _note_folder(self, verdict: checks.Verdict, found: str, remedy: str) -> None:
        self._of_folders.append(Finding(check="store", verdict=verdict, nodes=(), found=found, remedy=remedy))

    # Answers

    def _take(self, reference: Any) -> None:
        each, kind, asked_at = self._pending.pop(reference)
        self._num_done += 1
        try:
            answer = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            self._take_error(each, kind, error)
        except ray.exceptions.RayError as error:
            remedy = "look at the node, and at raylet.out and gcs_server.out in the session's logs"
            each.fail(f"was lost while it was asked ({kind}): {short(error)}", remedy)
        else:
            self._take_answer(each, kind, answer, asked_at)

    def _take_error(self, each: AskedNode, kind: Kind, error: ray.exceptions.RayTaskError) -> None:
        if kind == "GPU":
            each.gpu_unchecked = f"the task failed: {short(error.cause)}"
            return
        remedy = "start every node from the same image of raytrain; in a job, check its runtime environment"
        each.fail(f"its raytrain can't answer ({kind}): {short(error.cause)}", remedy)

    def _take_answer(self, each: AskedNode, kind: Kind, answer: Any, asked_at: float) -> None:
        """Keep an answer; that of another raytrain may have any form."""
        try:
            if kind == "look":
                self._take_look(each, NodeReport.model_validate(answer))
            elif kind == "clock":
                self._take_clock(each, float(answer), asked_at)
            elif kind == "GPU":
                each.gpu = GpuReport.model_validate(answer)
            else:
                self._take_stores(each, answer)
        except (TypeError, ValueError):  # pydantic's is one of the latter
            versions = answer.get("versions") if isinstance(answer, dict) else None
            if each.report is not None:
                versions = each.report.versions
            each.fail_to_understand(kind, versions)

    def _take_stores(self, each: AskedNode, answer: Any) -> None:
        """Keep what each store said: one that can't be understood loses no other."""
        problem: Exception | None = None
        for one in answer:
            try:
                report, sees = one
                said = storage.StoreReport.model_validate(report)
            except (TypeError, ValueError) as error:
                problem = error
            else:
                each.stores.append(NodeAnswers(each.node.name, said, sees if isinstance(sees, bool) else None))
        if problem is not None:
            raise problem

    def _take_look(self, each: AskedNode, report: NodeReport) -> None:
        each.report = report if self._token is None else report.model_copy(update={"token": self._token})
        self._ask(each, "clock")
        if self._asked():
            self._ask(each, "stores")
        if each.node.gpus and report.gpus.seen:
            if _free_gpus(each.node_id) >= 1:
                self._ask(each, "GPU")
            else:
                each.gpu_unchecked = "all are taken"

    def _take_clock(self, each: AskedNode, time_s: float, asked_at: float) -> None:
        """Keep the reading that came back soonest: the node read its clock at some time in between."""
        if not math.isfinite(time_s):
            raise ValueError("no time")
        now = time.time()
        uncertain_s = (now - asked_at) / 2
        if uncertain_s < each.uncertain_s:
            each.ahead_s, each.uncertain_s = time_s - (now + asked_at) / 2, uncertain_s
        each.clock_tries += 1
        if each.uncertain_s > QUICK_S and each.clock_tries < CLOCK_TRIES:
            self._ask(each, "clock")

    def _give_up(self) -> None:
        """Note what is not answered, and have those tasks end, which remove their probes as they do."""
        late = list(self._pending.items())
        for reference, (each, kind, _) in late:
            ray.cancel(reference, force=False)
            limit = f"{self._job.limit_s:g} s"
            if kind == "GPU":
                each.gpu_unchecked = "no task got one in time"
            elif kind == "stores":
                probes = [storage.join(uri, self._probes[each.node_id, uri]) for uri, writes in self._asked() if writes]
                left = f"; there may be probes: {', '.join(probes)}" if probes else ""
                each.fail(f"its stores took longer than {limit}{left}", "ask one by one, or with a longer --limit-s")
            else:
                remedy = "look whether its raylet runs and its network is whole; or give it longer (--limit-s)"
                each.fail(f"does not answer within {limit} ({kind})", remedy)
        if late:
            ray.wait([reference for reference, _ in late], num_returns=len(late), timeout=CANCEL_S)
        self._pending.clear()

    # Judging

    def _report(self) -> DoctorReport:
        seen = [
            Seen(each.node, each.report, each.ahead_s, each.uncertain_s, each.gpu, each.gpu_unchecked)
            for each in self._answers
            if each.report is not None
        ]
        found = [*(problem for each in self._answers for problem in each.problems)]
        if seen:
            found = [*checks.check_head(seen), *found]
        workers = sum(not each.node.is_head for each in self._answers)
        found += [*self._growth.problems, *checks.check_rest(workers, self._growth.can_grow)]
        if seen:
            found += judge_nodes(seen, self._growth.most["GPU"])
        found += [*self._of_the_stores(), *self._of_folders]
        if seen:
            found += [*checks_access.check_tokens(seen), *checks_access.check_dashboard(seen)]
        if not self._is_local:
            found += [*checks_access.check_metrics(seen), *autoscaling.check_autoscaler()]
        return DoctorReport(checks.merged(found), [each.node.name for each in self._answers], reached=True)

    def _of_the_stores(self) -> list[Finding]:
        found = []
        asked = [uri for uri, _ in self._asked()]
        for uri, _ in wanted(self._job):
            if uri in asked:
                place = storage.normalise(uri)
                answers = [one for each in self._answers for one in each.stores if one.report.uri == place]
                found += checks_store.check_store(answers)
            else:
                nodes = len(self._answers)
                has = f"has {nodes} nodes" if nodes > 1 else "can grow to several nodes"
                text = f"{uri} is a path of one machine, but the cluster {has}"
                remedy = "use s3://..., or say --shared-path if all nodes see it"
                found.append(Finding(check="store", verdict="failed", nodes=(), found=text, remedy=remedy))
        return found


@dataclass(frozen=True)
class _Growth:
    """What the cluster can grow to by its head's labels, and what is wrong with these."""

    most: dict[session.Resource, int]
    problems: list[Finding]

    @property
    def can_grow(self) -> bool:
        """Tell whether nodes may come; a label that can't be read says that some do."""
        return any(self.most.values()) or bool(self.problems)


def _growth() -> _Growth:
    most: dict[session.Resource, int] = {}
    problems = []
    for resource, label in session.GROWTH_LABELS.items():
        try:
            most[resource] = session.can_grow_to(resource)
        except ConfigError as error:
            most[resource] = 0
            remedy = f"start the head with --labels={label}=NUMBER; train and shard refuse this one"
            problems.append(Finding(check="nodes", verdict="failed", nodes=(), found=str(error), remedy=remedy))
    return _Growth(most, problems)


def _dashboard_address() -> str | None:
    """Return HOST:PORT of the cluster's job API, None where it has none."""
    node = ray._private.worker.global_worker.node
    return str(node.webui_url).removeprefix("http://") if node is not None and node.webui_url else None


def _free_gpus(node_id: str) -> float:
    free = ray._private.state.available_resources_per_node()  # type: ignore[no-untyped-call]
    return float(free.get(node_id, {}).get("GPU", 0))
