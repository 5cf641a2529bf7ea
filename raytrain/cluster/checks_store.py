"""What the answers of a store mean: each refusal in its own words, with what to do. Pure functions of reports.

Must not know how a store is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from raytrain import storage
from raytrain.cluster.checks import Finding, clock_finding
from raytrain.storage import Answer, StoreReport

STEPS = ("list", "write", "read", "delete")
DATE_IS_OF_S = 1.5
"""The Date header has whole seconds, and came some time ago."""
_ACTIONS = {
    "list": "s3:ListBucket on {bucket}",
    "write": "s3:PutObject on {objects}",
    "read": "s3:GetObject on {objects}",
    "delete": "s3:DeleteObject on {objects}",
}
_FOLDER_REMEDIES = {
    "no-folder": "mount it on every node, or make it",
    "refused": "give the user that runs Ray the right to it (in the image: ray, uid 1000)",
    "read-only": "mount it writable, or name it with --read-only",
    "full": "free room there",
}


@dataclass(frozen=True)
class NodeAnswers:
    """What a store said to one node. `sees_ours` tells whether a shared folder is the one that the command sees."""

    node: str
    report: StoreReport
    sees_ours: bool | None = None


def check_store(answers: Sequence[NodeAnswers]) -> list[Finding]:
    """Judge what one store, or one folder, said to the nodes."""
    found: list[Finding] = []
    good: list[NodeAnswers] = []
    for each in answers:
        findings = [*_refusals(each), *_beside(each)]
        found += findings
        if not any(finding.verdict == "failed" for finding in findings):
            good.append(each)
    if good:
        nodes = tuple(each.node for each in good)
        found.insert(0, Finding(check="store", verdict="ok", nodes=nodes, found=_fine(good)))
    return found


def _fine(good: Sequence[NodeAnswers]) -> str:
    first = good[0].report
    done = [step for step in STEPS if step in first.answers and first.answers[step].kind == "ok"]
    waits = [answer.seconds for each in good for answer in each.report.answers.values() if answer.kind == "ok"]
    rates = [each.report.bytes_per_s for each in good if each.report.bytes_per_s]
    keys = sorted({each.report.credentials for each in good if each.report.credentials})
    parts = [", ".join(done) or "nothing asked"]
    parts += [f"keys: {' or '.join(keys)}"] if keys else []
    parts += [f"at {_place(first)}"] if first.endpoint else []
    parts += [f"answers in {min(waits) * 1000:.0f} ms"] if waits else []
    parts += [f"about {min(rates) / 1e6:.1f} MB/s one request at a time"] if rates else []
    parts += ["it keeps versions, also of the removed probe"] if first.keeps_versions else []
    return f"{first.uri}: {'; '.join(parts)}"


def _place(report: StoreReport) -> str:
    return f"{report.endpoint} ({report.region})" if report.region else report.endpoint


def _refusals(each: NodeAnswers) -> Iterator[Finding]:
    """Yield a finding for each kind of answer that is no success, with the steps that met it."""
    steps_by_answer: dict[tuple[str, str], list[str]] = {}
    for step in STEPS:
        answer: Answer | None = each.report.answers.get(step)  # type: ignore[call-overload]
        if answer is not None and answer.kind not in ("ok", "not-asked", "nothing-there"):
            steps_by_answer.setdefault((answer.kind, answer.detail), []).append(step)
    for (kind, detail), steps in steps_by_answer.items():
        can_not = " and ".join([", ".join(steps[:-1]), steps[-1]] if len(steps) > 1 else steps)
        what = _words(kind, each.report)
        text = f"{each.report.uri}: can't {can_not}: {what}{f' ({detail})' if detail else ''}"
        yield _finding(each, "failed", text, _remedy(kind, steps, each.report))


def _beside(each: NodeAnswers) -> Iterator[Finding]:
    """Yield what is wrong beside refusals: the clock, the region, a probe left behind, another machine's folder."""
    report = each.report
    if report.ahead_s is not None:
        clock = clock_finding("store", -report.ahead_s, DATE_IS_OF_S, f"that of the store at {report.endpoint}")
        if clock is not None:
            yield clock.model_copy(update={"nodes": (each.node,)})
    asked_elsewhere = report.bucket_region and report.bucket_region != report.region
    if asked_elsewhere and all(answer.kind != "region" for answer in report.answers.values()):
        text = f"{report.uri}: asked in {report.region}, lies in {report.bucket_region}: each request goes twice"
        yield _finding(each, "warning", text, _region_remedy(report))
    if report.left_behind:
        text = f"the probe can't be removed and stays: {report.left_behind}"
        yield _finding(
            each, "warning", text, "remove it with other keys; train removes old checkpoints, and would fail"
        )
    if "read" in report.answers and report.answers["read"].kind == "nothing-there":
        yield _finding(each, "unchecked", f"{report.uri}: nothing there to read", "")
    if each.sees_ours is False:
        text = f"{report.uri}: a folder of that name, but not the one that this command sees"
        yield _finding(each, "failed", text, "mount the shared disk there, or use s3://...")


def _finding(each: NodeAnswers, verdict: str, found: str, remedy: str) -> Finding:
    return Finding.model_validate(
        {"check": "store", "verdict": verdict, "nodes": (each.node,), "found": found, "remedy": remedy}
    )


def _words(kind: str, report: StoreReport) -> str:
    """Return what an answer means, in words."""
    is_folder = storage.is_local(report.uri)
    at = report.endpoint or ("the folder" if is_folder else "the store")
    region = report.region or "this one"
    bucket = storage.path_of(report.uri).partition("/")[0]
    return {
        "no-credentials": "no keys on this node",
        "no-profile": "the profile named for it is in no shared file of this node",
        "refused": "no right to it" if is_folder else "it knows the keys, and refuses",
        "wrong-keys": f"{at} does not accept the keys",
        "expired": "the keys have run out",
        "clock": "the clocks differ too much",
        "region": f"the bucket lies in {report.bucket_region or 'another region'}, not in {region}",
        "no-bucket": f"{at} has no bucket {bucket}",
        "no-folder": "no such folder",
        "unknown-host": f"no name server knows the host of {at}",
        "no-connection": f"no connection to {at}",
        "timeout": f"{at} does not answer in time",
        "tls": f"no trust in {at}",
        "not-s3": f"what answers at {at} is no S3 store",
        "unavailable": f"{at} is not well",
        "read-only": "a read-only disk",
        "full": "no room",
        "differs": "what was read is not what was written",
    }.get(kind, "an unexpected answer" if is_folder or report.endpoint else "can't be asked")


def _remedy(kind: str, steps: Sequence[str], report: StoreReport) -> str:
    if storage.is_local(report.uri):
        return _FOLDER_REMEDIES.get(kind, "look at the disk there, and whether it is still mounted")
    bucket, _, prefix = storage.path_of(report.uri).partition("/")
    whose = report.credentials or "the keys"
    if kind == "refused":
        objects = f"arn:aws:s3:::{'/'.join(part for part in (bucket, prefix) if part)}/*"
        actions = [_ACTIONS[step].format(bucket=f"arn:aws:s3:::{bucket}", objects=objects) for step in steps]
        return f"allow {', '.join(actions)} to {whose}, or name it with --read-only if nothing is written there"
    if kind == "region":
        return _region_remedy(report)
    return {
        "no-credentials": "give the node a role for it (instance profile), or set AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY before its Ray starts; for a public bucket name it in --stores: "
        f'[stores."s3://{bucket}"] anonymous = true',
        "no-profile": "bring ~/.aws to every node, or use the nodes' instance profile",
        "wrong-keys": f"check the keys ({whose}) and whether AWS_ENDPOINT_URL is the store that they are for",
        "expired": f"renew the keys ({whose}); an instance profile renews them by itself",
        "clock": "have chrony or systemd-timesyncd keep this node's clock",
        "no-bucket": "check the name and AWS_ENDPOINT_URL, or make the bucket",
        "unknown-host": "check AWS_ENDPOINT_URL (or endpoint in --stores), the region, and the node's name server",
        "no-connection": "check AWS_ENDPOINT_URL and its port; then the security group, the route and proxies",
        "timeout": "check the security group and the route from this node (on AWS an S3 gateway endpoint)",
        "tls": "set AWS_CA_BUNDLE to the store's authority, or use the name that its certificate has",
        "not-s3": "check AWS_ENDPOINT_URL (or endpoint in --stores): scheme, host and port",
        "unavailable": "try again later; commands themselves ask again with growing waits",
        "differs": "what lies between changes data (a proxy?): don't trust this store before it is found",
    }.get(kind, "try `aws s3 ls` there with the same environment")


def _region_remedy(report: StoreReport) -> str:
    bucket = storage.path_of(report.uri).partition("/")[0]
    region = report.bucket_region or "the bucket's"
    return f'set AWS_DEFAULT_REGION={region}, or in --stores [stores."s3://{bucket}"] region (and its endpoint)'
