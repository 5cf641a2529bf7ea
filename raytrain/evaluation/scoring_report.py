"""The report of a scoring, made of what lies at its destination: the page, and its figures for machines beside it.

Reads the ledger, the log and the table of casualties a piece at a time, and a few pictures. Must not know Ray.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import numpy as np

from raytrain import storage
from raytrain.evaluation.html import render_page
from raytrain.evaluation.page import version_facts
from raytrain.evaluation.scoring_figures import hosts_by_pixels
from raytrain.evaluation.scoring_gallery import choose_items, make_gallery
from raytrain.evaluation.scoring_page import Scored, host_sums, looks, scoring_page
from raytrain.scoring import ledger
from raytrain.scoring.casualties import losses_of, read_casualties
from raytrain.scoring.causes import Causes
from raytrain.scoring.course import Course, read_course
from raytrain.scoring.destination import REPORT_FIGURES, REPORT_PAGE, Scoring
from raytrain.scoring.totals import BINS, COLUMNS, Item, add_up

TIMELINE_HOSTS, HOSTS = 20, 1000
"""Machines in the timeline and in the list, those of the most pixels."""


def read_scored(uri: str, scoring: Scoring, *, source: str, ensemble: str, ended_by: str = "") -> Scored:
    """Return what the destination `uri` tells of its scoring; raise `DamagedTable`."""
    return Scored(
        source=source,
        destination=uri,
        ensemble=ensemble,
        scoring=scoring,
        totals=add_up(ledger.read_all(uri, COLUMNS)),
        course=read_course(uri),
        losses=losses_of(read_casualties(uri)),
        ended_by=ended_by,
    )


def write_report(uri: str, scored: Scored) -> str:
    """Write the report of a scoring to its destination `uri`, the page last, and return the page's URI."""
    gallery, undrawn = make_gallery(uri, scored.scoring, choose_items(scored.totals), scored.source)
    page = render_page(scoring_page(scored, gallery, undrawn))
    figures = json.dumps(figures_of(scored), indent=1, allow_nan=False)
    storage.write_bytes(storage.join(uri, REPORT_FIGURES), f"{figures}\n".encode())
    target = storage.join(uri, REPORT_PAGE)
    storage.write_bytes(target, page.encode())
    return target


def is_reported(uri: str) -> bool:
    """Tell whether the destination `uri` has a report, of whichever run."""
    return all(storage.exists(storage.join(uri, name)) for name in (REPORT_FIGURES, REPORT_PAGE))


def figures_of(scored: Scored) -> dict[str, Any]:
    """Return the figures of the page as plain values. Fractions are in [0, 1], times in seconds or RFC 3339."""
    totals, course, losses = scored.totals, scored.course, scored.losses
    return {
        "source": storage.shown(scored.source),
        "destination": scored.destination,
        "ensemble": storage.shown(scored.ensemble),
        "scoring": scored.scoring.model_dump(mode="json"),
        "ended_by": storage.without_queries(scored.ended_by) or None,
        "items": {"done": totals.num_items, "left_out": losses.num, "kinds": dict(totals.kinds)},
        "pixels": {"all": totals.pixels, "with_data": totals.valid_px, "cloud": totals.cloud_px},
        "cloud_fraction": totals.cloud_fraction,
        "disagreement_mean": totals.disagreement_mean,
        "cloud_fraction_of_items": {
            "edges": np.linspace(0, 1, BINS + 1).round(6).tolist(),
            "items": totals.cloud_counts.tolist(),
            "without_data": totals.num_without_data,
        },
        "taken": {"first": totals.first, "last": totals.last},
        "work": _work(course),
        "progress": _progress(course),
        "machines": _machines(course),
        "attempts_that_failed": _causes(course.causes),
        "left_out": {
            "total": losses.num,
            "in_data": losses.num_in_data,
            "causes": _causes(losses.causes),
            "first": [dict(zip(("item_id", "source", "in_data", "cause"), row, strict=True)) for row in losses.first],
        },
        "notes": {storage.without_queries(text): count for text, count in totals.notes.most_common()},
        "members_left_out": dict(totals.members_left_out.most_common()),
        "values": dict(totals.shift_rules.most_common()),
        "items_to_look_at": [{"why": why, **_item(item)} for why, item in looks(totals)],
        "versions": dict(version_facts()),
    }


def _work(course: Course) -> dict[str, Any]:
    return {
        "seconds": round(course.seconds, 3),
        "pixels": course.pixels,
        "megapixels_per_s": course.pixels / 1e6 / course.seconds if course.seconds else None,
        "network_fraction": course.network_fraction,
        "commands": [{"begin": _rfc3339(each.begin), "end": _rfc3339(each.end)} for each in course.commands],
        "lines_damaged": course.num_damaged,
    }


def _progress(course: Course) -> dict[str, Any]:
    """Return pixels by machine, and failures, over working time: that of the commands one after the other."""
    timeline = course.timeline
    bin_s, pixels = hosts_by_pixels(timeline, TIMELINE_HOSTS)
    return {
        "interval_s": bin_s,
        "commands_begin_s": [round(start, 3) for start in course.starts()] if course.commands else [],
        "pixels": {host: [round(value) for value in each.tolist()] for host, each in pixels.items()},
        "failed": timeline.failed[: timeline.num_bins].tolist(),
        "lost": timeline.lost[: timeline.num_bins].tolist(),
    }


def _machines(course: Course) -> list[dict[str, Any]]:
    return [
        {
            "host": each.host,
            "devices": sorted(each.devices),
            "workers": each.workers,
            "units": each.units,
            "pixels": each.pixels,
            "workers_s": round(each.seconds, 3),
            "megapixels_per_s_of_a_worker": each.megapixels_per_s,
            "network_fraction": each.network_fraction,
            "attempts_failed": each.failed,
            "attempts_lost": each.lost,
            "workers_lost": each.lost_workers,
        }
        for each in host_sums(course)[:HOSTS]
    ]


def _causes(causes: Causes) -> list[dict[str, Any]]:
    return [
        {"cause": kind, **cause.counts, "machines": len(cause.places), "example": cause.example, "of": cause.subject}
        for kind, cause in causes.most_frequent()
    ]


def _item(item: Item) -> dict[str, Any]:
    return {
        "item_id": item.item_id,
        "source": storage.shown(item.source_uri),
        "height": item.height,
        "width": item.width,
        "cloud_fraction": item.cloud_fraction,
        "valid_fraction": item.valid_fraction,
        "disagreement_mean": item.disagreement_mean,
        "members_left_out": list(item.members_left_out),
    }


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
