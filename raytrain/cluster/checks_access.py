"""Who may use the cluster: tokens, the job API, metrics ports. Pure functions of reports.

A cluster's job API is code execution by design, and so are Ray's own ports: without a token whoever reaches them is in.
Must not know any token.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from raytrain.cluster.checks import Finding, Seen, Verdict, judged

TOKEN_EVERYWHERE = (
    "ray get-auth-token --generate, the same token on all nodes, and RAY_AUTH_MODE=token before each Ray starts"
)


def _of(check: str, verdict: Verdict, seen: Seen, found: str, remedy: str = "") -> Finding:
    return Finding(check=check, verdict=verdict, nodes=(seen.node.name,), found=found, remedy=remedy)


def check_tokens(all_seen: Sequence[Seen]) -> list[Finding]:
    """Judge whether Ray asks for a token on each node, and who may read the token there."""
    alone = len(all_seen) == 1 and not any(seen.report.dashboard for seen in all_seen)
    return judged("token", all_seen, lambda seen: _token_of(seen, alone), _token_fine)


def _token_of(seen: Seen, alone: bool) -> list[Finding]:
    """Judge one node; `alone` is a Ray of one machine that has no job API."""
    token = seen.report.token
    if (token.mode or "").lower() != "token":  # Ray takes it in any case
        mode = "is not set" if token.mode is None else f"is {token.mode}"
        found = f"RAY_AUTH_MODE {mode}: Ray asks for no token, and who reaches its ports runs code here"
        if alone and token.mode is None:
            found = (
                f"RAY_AUTH_MODE {mode}: without a token `ray start` asks for none, and who reaches it runs code here"
            )
        return [_of("token", "warning" if alone else "failed", seen, found, TOKEN_EVERYWHERE)]
    if token.source == "none":
        found = f"RAY_AUTH_MODE is token, but there is none in RAY_AUTH_TOKEN nor at {token.path}"
        return [_of("token", "failed", seen, found, "put the cluster's token there, with mode 0600")]
    if token.file_mode is not None and token.file_mode & 0o077:
        found = f"others may read the token: {token.path} has mode {token.file_mode:04o}"
        return [_of("token", "warning", seen, found, f"chmod 600 {token.path}")]
    return []


def _token_fine(good: Sequence[Seen]) -> str:
    sources = {_source_text(seen) for seen in good}
    return f"RAY_AUTH_MODE=token, the token in {' or '.join(sorted(sources))}"


def _source_text(seen: Seen) -> str:
    token = seen.report.token
    return token.source if token.file_mode is None else f"{token.path} ({token.file_mode:04o})"


def check_dashboard(all_seen: Sequence[Seen]) -> list[Finding]:
    """Judge what the job API says to a request without a token, and from where it can be reached."""
    return [_dashboard_of(seen) for seen in all_seen if seen.report.dashboard is not None]


def _dashboard_of(seen: Seen) -> Finding:
    dashboard = seen.report.dashboard
    assert dashboard is not None
    opened = [each for each in dashboard.listens_on if not ipaddress.ip_address(each).is_loopback]
    place = f"on {', '.join(opened)}" if opened else "on loopback"
    if dashboard.status is None:
        found = f"the job API at {dashboard.address} does not answer on the head"
        return _of("job API", "warning", seen, found, "look at dashboard.log in the session's logs; jobs can't be sent")
    if dashboard.status in (401, 403):
        note = "; let only those reach it who send jobs, since tokens travel in the clear" if opened else ""
        return _of("job API", "ok", seen, f"{place}, refuses who has no token ({dashboard.status}){note}")
    if dashboard.status >= 400:
        found = f"{place}, answers {dashboard.status} to a request without a token, where 401 is expected"
        return _of("job API", "warning", seen, found, TOKEN_EVERYWHERE)
    if opened:
        found = f"{place} without a token: who reaches it runs code here"
        return _of("job API", "failed", seen, found, f"{TOKEN_EVERYWHERE}; and --dashboard-host=127.0.0.1")
    found = "on loopback without a token: all users of this machine run code in the cluster"
    return _of("job API", "warning", seen, found, TOKEN_EVERYWHERE)


def check_metrics(all_seen: Sequence[Seen]) -> list[Finding]:
    """Say which ports metrics are at: they answer without a token, and Prometheus has to know them."""
    having = [seen for seen in all_seen if seen.node.metrics_port]
    ports = sorted({seen.node.metrics_port for seen in having})
    if not ports:
        return []
    nodes = tuple(seen.node.name for seen in having)
    if len(ports) > 1:
        found = f"at a port of its own on each node ({', '.join(str(port) for port in ports[:3])} ...)"
        remedy = "start each Ray with --metrics-export-port=8080, so that Prometheus finds them"
        return [Finding(check="metrics", verdict="warning", nodes=nodes, found=found, remedy=remedy)]
    found = f"at port {ports[0]}, without a token: let only Prometheus reach it"
    return [Finding(check="metrics", verdict="ok", nodes=nodes, found=found)]
