"""`raytrain doctor`: its options and what it prints. Must not know what is good or bad."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from pydantic import Field

from raytrain import storage
from raytrain.command import ClusterCommand, local_folder
from raytrain.console import Narrator, print_findings
from raytrain.errors import EXIT_DATA_WRONG, EXIT_DONE, EXIT_NOT_FINISHED

SHOWN_NODES = 3


class Doctor(ClusterCommand):
    """Check this machine or a cluster, and the stores as its nodes see them; say what to do about each finding.

    Exit code 0 all well, or warnings; 1 a check failed; 2 a mistake in the command; 3 the cluster can't be reached.
    """

    uri: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[URI ...]")] = ()
    """Where work reads and writes (s3://bucket/prefix or a folder): each node lists, writes a small object, reads it
    back and removes it."""
    read_only: tuple[str, ...] = ()
    """Where work only reads: each node lists, and reads a part of one object."""
    cache: str | None = None
    """The folder of `train --cache`: is it there, on a disk of its own, with room?"""
    limit_s: float = Field(default=120, gt=0)
    """How long nodes may take to answer; one that does not is a finding."""

    def run(self, narrator: Narrator) -> int:
        """Look, and print what was found."""
        from raytrain.cluster.doctor import doctor
        from raytrain.cluster.examination import DoctorJob

        job = DoctorJob(
            uris=tuple(storage.normalise(uri) for uri in self.uri),
            read_only=tuple(storage.normalise(uri) for uri in self.read_only),
            cache=None if self.cache is None else local_folder("--cache", self.cache),
            limit_s=self.limit_s,
        )
        where = "this machine" if self.address == "local" else f"the cluster at {self.address}"
        with narrator.step(f"looking at {where}") as on_progress:
            report = doctor(job, self._cluster, on_progress)
        counts = {verdict: sum(each.verdict == verdict for each in report.findings) for verdict in VERDICTS}
        if not self.json_output:
            print_findings([self._row(each, report.nodes) for each in report.findings])
        result = {
            "reached": report.reached,
            "nodes": report.nodes,
            "counts": counts,
            "findings": [each.model_dump(mode="json") for each in report.findings],
        }
        self._print(result, [_summary(counts)])
        if not report.reached:
            return EXIT_NOT_FINISHED
        return EXIT_DATA_WRONG if report.failed else EXIT_DONE

    def _row(self, finding: Any, all_nodes: Sequence[str]) -> tuple[str, str, str, str, str]:
        where = _nodes_text(finding.nodes, all_nodes)
        return finding.verdict, finding.check, where, finding.found, finding.remedy

    def uris(self) -> list[str]:
        """Return the places to ask."""
        return [*self.uri, *self.read_only]


VERDICTS = ("failed", "warning", "unchecked", "ok")


def _nodes_text(nodes: Sequence[str], all_nodes: Sequence[str]) -> str:
    """Return for which nodes a finding holds, "" where that needs no word."""
    if not nodes or len(all_nodes) == 1:
        return ""
    if len(nodes) == len(all_nodes):
        return f"all {len(nodes)} nodes"
    more = f" and {len(nodes) - SHOWN_NODES} more (--json names them)" if len(nodes) > SHOWN_NODES else ""
    return ", ".join(nodes[:SHOWN_NODES]) + more


def _summary(counts: dict[str, int]) -> str:
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
