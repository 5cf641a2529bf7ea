"""Decisions to new shards, by Ray tasks: the shards of a review as people decided, at another place.

The parent is read and never written. The manifest is written last: without it nothing looks whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raytrain import storage
from raytrain.cluster import session
from raytrain.cluster.tasks import run_tasks
from raytrain.config import PlainName, Settings, choose
from raytrain.errors import ConfigError, DataError
from raytrain.review.applying import ReviewedShard, apply_to_shard, digest_of
from raytrain.review.decisions import OUTCOMES, Conflicts, Decision, Outcome
from raytrain.review.folder import Review, check_apart, check_shards, read_review
from raytrain.review.log import DecisionLog
from raytrain.review.regions import name_of
from raytrain.review.standing import Standing, standing_of
from raytrain.review.table import Key, decision_table, key_of, parquet_of, standing_keys
from raytrain.tiles import parts
from raytrain.tiles.format import FORMAT_VERSION, VERSION_KEY, band_order
from raytrain.tiles.parts import DECISIONS_TABLE, ShardPart
from raytrain.tiles.reader import MANIFEST, read_hashed_manifest, read_index, read_manifest, shards_digest

OnProgress = Callable[[int, int], None]


class ApplyJob(Settings):
    """Which review's decisions to apply, where the new shards go, and whose decisions count (all, without names)."""

    review: str
    dst: str
    reviewers: tuple[PlainName, ...] = ()
    conflicts: Conflicts = "leave"


@dataclass(frozen=True)
class ApplyReport:
    """What came of it: the manifest of the new shards, and the decisions that were left out, each with the reason.

    Those that agree with one that is applied, those of who is unsure, and those that a later one overrules are no
    problems: the manifest counts them. `problems` also name what in the log is no decision.
    """

    manifest: dict[str, Any]
    problems: list[DataError]
    was_done: bool


@dataclass(frozen=True)
class _Plan:
    """What is to be done: of which shards, with which decisions, and what the new manifest says of both."""

    job: ApplyJob
    shards: str
    manifest: dict[str, Any]
    manifest_sha256: str
    standing: Standing

    @property
    def parent(self) -> dict[str, Any]:
        """The parent, as the new manifest names it."""
        digest = shards_digest(self.manifest)
        return {"uri": self.shards, "shards_digest": digest, "manifest_sha256": self.manifest_sha256}

    @property
    def review(self) -> dict[str, Any]:
        """The decisions, as the new manifest names them, before it is known what comes of them."""
        return {
            "uri": self.job.review,
            "decisions_sha256": digest_of(self.standing),
            "num_decisions": sum(map(len, self.standing.values())),
            "reviewers": sorted({who for found in self.standing.values() for who in found}),
            "conflicts": self.job.conflicts,
        }

    @property
    def bands(self) -> tuple[str, ...]:
        """All bands of the shards, in order."""
        return tuple(band_order(self.manifest["bands"]))


def apply(job: ApplyJob, cluster: session.Cluster, on_progress: OnProgress | None = None) -> ApplyReport:
    """Write the shards of a review as its decisions make them; where they stand already, do nothing.

    Work that was cut off goes on. Raises `ConfigError` where the shards are no more those that were ranked, or their
    index is not the one that their manifest names, where the destination holds others, lies in what is read, or would
    be empty, and where no decision stands.
    """
    review = read_review(job.review)
    check_apart(job.dst, {"shards": review.shards, "review": job.review, "predictions": review.predictions})
    log = DecisionLog(job.review)
    plan = _planned(job, review, log.read_all())
    done = _finished(plan)
    if done is not None:
        parts.remove_parts(job.dst)  # where a run was killed between its last two steps
        return ApplyReport(done, [*log.problems, *_problems_of(done)], was_done=True)
    index = read_index(plan.shards, record=plan.manifest["index"])
    with session.joined(cluster, [plan.shards, job.dst]):
        manifest = _write(plan, index, on_progress)
    return ApplyReport(manifest, [*log.problems, *_problems_of(manifest)], was_done=False)


def _planned(job: ApplyJob, review: Review, decisions: Sequence[Decision]) -> _Plan:
    """Return what is to be done; raise `ConfigError` for other shards than were ranked, or nothing to do."""
    manifest, sha256 = read_hashed_manifest(review.shards)
    check_shards(job.review, review, manifest)
    choose("reviewer", job.reviewers, {each.reviewer for each in decisions})
    chosen = [each for each in decisions if not job.reviewers or each.reviewer in job.reviewers]
    standing = standing_of(chosen)
    if not standing:
        raise ConfigError(f"{job.review}: no decision stands; decide with raytrain review serve")
    return _Plan(job, review.shards, manifest, sha256, standing)


def _finished(plan: _Plan) -> dict[str, Any] | None:
    """Return the manifest that stands at the destination, if it is of this very work; else raise or return None."""
    dst = plan.job.dst
    try:
        manifest = read_manifest(dst)
    except ConfigError:
        if storage.exists(storage.join(dst, MANIFEST)):
            raise
        return None
    if "parent" not in manifest or "review" not in manifest:
        raise ConfigError(f"{dst} holds shards that were made from chips; choose another destination")
    parent, review = manifest["parent"], manifest["review"]
    changed = [f"{k}: {parent.get(k)} -> {v}" for k, v in plan.parent.items() if k != "uri" and parent.get(k) != v]
    changed += [f"{k}: {review.get(k)} -> {v}" for k, v in plan.review.items() if k != "uri" and review.get(k) != v]
    if changed:
        raise ConfigError(f"{dst} holds shards of other decisions ({'; '.join(changed)}); choose another destination")
    return manifest


def _problems_of(manifest: dict[str, Any]) -> list[DataError]:
    return [DataError(each["subject"], each["found"]) for each in manifest["review"]["problems"]]


def _write(plan: _Plan, index: pa.Table, on_progress: OnProgress | None) -> dict[str, Any]:
    """Write all shards, then the index, the decisions and the manifest."""
    dst = plan.job.dst
    standing = parts.standing_at(dst)
    known = set(index["tile_id"].to_pylist())
    strangers = [
        DataError(name_of(each), f"{plan.shards} has no such tile")
        for tile_id, found in plan.standing.items()
        if tile_id not in known
        for each in found.values()
    ]
    work = (standing.work(each) for each in _shards(plan, index))
    written: list[ShardPart] = list(run_tasks(apply_to_shard, work, len(plan.manifest["shards"]), on_progress))
    for name in standing.leftovers(part.name for part in written):
        storage.remove(storage.join(dst, name))
    if not any(part.record for part in written):
        parts.discard(dst)
        raise ConfigError(f"{plan.job.review}: every tile of {plan.shards} is dropped, so that no shard would be left")
    totals = parts.write_index(dst, plan.bands, written)
    problems = [*strangers, *(DataError(*each) for part in written for each in part.problems)]
    outcomes = _outcomes(plan, written)
    manifest = _manifest(plan, written, problems, totals, outcomes, _write_decisions(plan, outcomes))
    parts.write_last(dst, manifest)
    return manifest


def _shards(plan: _Plan, index: pa.Table) -> Iterator[ReviewedShard]:
    """Yield the work of each shard; raise `ConfigError` where index and manifest contradict each other."""
    records = plan.manifest["shards"]
    numbers = pc.index_in(index["shard"].cast(pa.string()), pa.array([record["name"] for record in records]))
    numbers = numbers.fill_null(len(records)).to_numpy()
    order = np.lexsort((index["row_group"].to_numpy(), numbers))
    ends = np.searchsorted(numbers[order], np.arange(len(records)), side="right")
    if len(index) != (ends[-1] if len(ends) else 0):
        raise ConfigError(f"{plan.shards}: damaged: the index names shards that the manifest does not")
    for record, start, end in zip(records, [0, *ends[:-1]], ends, strict=True):
        if end - start != record["num_tiles"]:
            raise ConfigError(f"{plan.shards}: damaged: {record['name']} has {end - start} tiles in the index")
        rows = index.take(pa.array(order[start:end])).to_pylist()
        yield ReviewedShard(
            name=record["name"],
            dst=plan.job.dst,
            parent=plan.shards,
            parent_sha256=plan.manifest_sha256,
            record=record,
            rows=rows,
            bands=plan.bands,
            cell_encoding=plan.manifest["cell_encoding"],
            decisions={
                row["tile_id"]: plan.standing[row["tile_id"]] for row in rows if row["tile_id"] in plan.standing
            },
            conflicts=plan.job.conflicts,
        )


def _write_decisions(plan: _Plan, outcomes: dict[Key, Outcome]) -> dict[str, Any]:
    """Write the decisions beside the index, and return what the manifest says of the file."""
    decisions = [each for tile_id in sorted(plan.standing) for _, each in sorted(plan.standing[tile_id].items())]
    # Masks that are none are problems of their shards.
    table, _ = decision_table(decisions, standing_keys(plan.standing), outcomes)
    data = parquet_of(table, [(VERSION_KEY, str(FORMAT_VERSION))])
    storage.write_bytes(storage.join(plan.job.dst, DECISIONS_TABLE), data)
    return {"name": DECISIONS_TABLE, "bytes": len(data), "sha256": storage.sha256_of(data)}


def _outcomes(plan: _Plan, written: Sequence[ShardPart]) -> dict[Key, Outcome]:
    """Return what came of each decision that stands; one about a tile that no shard has was left."""
    outcomes: dict[Key, Outcome] = dict.fromkeys(standing_keys(plan.standing), "left")
    for part in written:
        outcomes |= {(reviewer, decision_id): each for reviewer, decision_id, each in part.facts["outcomes"]}
    return outcomes


def _manifest(
    plan: _Plan,
    written: Sequence[ShardPart],
    problems: Sequence[DataError],
    totals: dict[str, Any],
    outcomes: dict[Key, Outcome],
    table: dict[str, Any],
) -> dict[str, Any]:
    """Return the manifest of the new shards: that of the parent, but for what is said anew."""
    records = [part.record for part in written if part.record is not None]
    verdicts = Counter(
        each.verdict
        for found in plan.standing.values()
        for each in found.values()
        if outcomes[key_of(each)] == "applied"
    )
    counts = Counter(outcomes.values())
    contested = sorted(tile_id for part in written for tile_id in part.facts["contested"])
    review = {
        **plan.review,
        "outcomes": {outcome: counts[outcome] for outcome in OUTCOMES},
        "applied": dict(sorted(verdicts.items())),
        "contested": contested,
        "problems": [{"subject": problem.subject, "found": problem.found} for problem in problems],
    }
    return {
        **plan.manifest,
        **totals,
        "bytes": sum(record["bytes"] for record in records),
        "shards": records,
        "beside": [table],
        "parent": plan.parent,
        "review": review,
        "versions": parts.versions(),
    }
