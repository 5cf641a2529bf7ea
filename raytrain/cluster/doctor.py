"""Looks at a cluster, or where none answers at this machine, and says what is wrong and what to do.

Must not know how nodes are asked, nor what a finding means.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from functools import partial

import ray
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]  # Ray has no annotation there

from raytrain import storage
from raytrain.cluster import checks, checks_access, checks_store, node_look, session
from raytrain.cluster import token as tokens
from raytrain.cluster.asked_node import THIS_MACHINE, short
from raytrain.cluster.checks import Finding, Node, Seen
from raytrain.cluster.checks_store import NodeAnswers
from raytrain.cluster.examination import DoctorJob, DoctorReport, Examination, OnProgress, judge_nodes, wanted
from raytrain.cluster.in_time import TooLate, in_time
from raytrain.cluster.node_report import NodeReport, Token
from raytrain.cluster.store_look import question, report_of
from raytrain.errors import ConfigError


def doctor(job: DoctorJob, cluster: session.Cluster, on_progress: OnProgress | None = None) -> DoctorReport:
    """Look at the nodes and ask the stores; raise `ConfigError` for an address or a URI that can't be meant."""
    for uri in (*job.uris, *job.read_only):
        if storage.is_http(uri):
            raise ConfigError(f"{storage.shown(uri)}: doctor asks stores (s3://bucket/prefix) and folders")
    starts_ray = cluster.address == session.LOCAL and not ray.is_initialized()
    token = node_look.token() if starts_ray else None
    try:
        # What differs is told of.
        with _token_of_its_own(token), session.joined(cluster, [], any_code=True):
            return Examination(job, cluster, on_progress, token).run()
    except (session.ClusterOutOfReach, session.RayNotStarted) as error:
        return _without_cluster(job, str(error))


@contextlib.contextmanager
def _token_of_its_own(token: Token | None) -> Iterator[None]:
    """Give a Ray that is started here a token for its time, where there is none (`token`, if one is started).

    Ray would write one to ~/.ray/auth_token, for all to read, and the next command would take it for the cluster's.
    """
    if token is None or token.source != "none" or (token.mode or "").lower() == "disabled":
        yield
        return
    loader = AuthenticationTokenLoader.instance()
    os.environ[tokens.TOKEN] = secrets.token_hex(32)
    loader.reset_cache()
    try:
        yield
    finally:
        os.environ.pop(tokens.TOKEN, None)
        loader.reset_cache()


def _without_cluster(job: DoctorJob, problem: str) -> DoctorReport:
    """Return what can be said of this machine where there is no Ray to ask."""
    remedy = (
        "check the address, the security group, and whether the token here is the cluster's; what stands below is "
        "about the machine of this command"
    )
    found = [Finding(check="cluster", verdict="failed", nodes=(), found=problem, remedy=remedy)]
    asked = [(uri, storage.probe_name(), writes) for uri, writes in wanted(job)]
    look = partial(node_look.look, address="", is_head=False, cache=job.cache, session=None, dashboard=None)
    report, *said = in_time([partial(look, counts_gpus=False), *map(question, asked)], job.limit_s)
    if isinstance(report, NodeReport):
        seen = [Seen(Node(name=THIS_MACHINE, address=""), report)]
        found += [*judge_nodes(seen, 0), *checks_access.check_tokens(seen)]
    else:
        found.append(_unlooked(report, job.limit_s))
    for one, answer in zip(asked, said, strict=True):
        found += checks_store.check_store([NodeAnswers(THIS_MACHINE, report_of(one, answer, job.limit_s))])
    return DoctorReport(checks.merged(found), [THIS_MACHINE], reached=False)


def _unlooked(error: Exception, limit_s: float) -> Finding:
    """Return the finding that this machine could not be looked at."""
    late = isinstance(error, TooLate)
    found = f"takes longer than {limit_s:g} s to look at" if late else f"can't be looked at: {short(error)}"
    remedy = "look whether a disk hangs (`df`), that of --cache above all; or give it longer (--limit-s)"
    return Finding(check="nodes", verdict="failed", nodes=(THIS_MACHINE,), found=found, remedy=remedy)
