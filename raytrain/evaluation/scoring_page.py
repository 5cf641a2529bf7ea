"""The page of a scoring, and the same figures for machines: what was done, how fast, what went wrong, what to look at.

Must not know where its numbers were read, or Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from raytrain import storage
from raytrain.errors import DataError
from raytrain.evaluation.page import Cell, Figure, Gallery, Page, Part, Problems, Shown, Table, version_facts
from raytrain.evaluation.scoring_figures import cloud_plot, progress_plot
from raytrain.scoring.casualties import IN_DATA, Losses
from raytrain.scoring.course import Course, Worker
from raytrain.scoring.destination import Scoring
from raytrain.scoring.totals import Item, Totals
from raytrain.training.progress import duration

HOSTS_SHOWN = 50
CAUSES_SHOWN = 30
LOOKS_EACH = {"no pixel with data": 3, "scored by fewer members": 3}
_DASH = "-"


@dataclass(frozen=True)
class Scored:
    """All that a page of a scoring shows: what was scored with what, the ledger, the log, the casualties.

    `ended_by` says why the work ended before all was done; empty where it did not.
    """

    source: str
    destination: str
    ensemble: str
    scoring: Scoring
    totals: Totals
    course: Course
    losses: Losses
    ended_by: str = ""


@dataclass
class HostSum:
    """What the workers of one machine did, over all commands; `seconds` are those that they were there."""

    host: str
    devices: set[str] = field(default_factory=set)
    workers: int = 0
    units: int = 0
    pixels: int = 0
    seconds: float = 0.0
    network_s: float = 0.0
    failed: int = 0
    lost: int = 0
    lost_workers: int = 0

    def add(self, worker: Worker, seconds: float) -> None:
        """Add a worker that was there for so long."""
        self.devices.add(worker.device)
        self.workers += 1
        self.units += worker.units
        self.pixels += worker.pixels
        self.seconds += seconds
        self.network_s += worker.network_s
        self.failed += worker.failed
        self.lost += worker.lost
        self.lost_workers += worker.is_lost

    @property
    def megapixels_per_s(self) -> float:
        """Megapixels a second of one worker."""
        return self.pixels / 1e6 / self.seconds if self.seconds else 0.0

    @property
    def network_fraction(self) -> float:
        """Share of the workers' time inside the nets."""
        return self.network_s / self.seconds if self.seconds else 0.0


def host_sums(course: Course) -> list[HostSum]:
    """Return what each machine did, the one of the most pixels first."""
    sums: dict[str, HostSum] = {}
    for worker in course.workers.values():
        sums.setdefault(worker.host, HostSum(worker.host)).add(worker, course.worker_s(worker))
    return sorted(sums.values(), key=lambda each: (-each.pixels, each.host))


def looks(totals: Totals) -> list[tuple[str, Item]]:
    """Return items that are worth a look, with the reason: nothing was seen, fewer members, the most disagreement.

    Where disagreement is not known, the cloudiest of those with something to see stand in its place.
    """
    found = [("no pixel with data", item) for item in totals.without_data[: LOOKS_EACH["no pixel with data"]]]
    fewer = totals.scored_by_fewer[: LOOKS_EACH["scored by fewer members"]]
    found += [(f"scored without {', '.join(item.members_left_out)}", item) for item in fewer]
    if totals.most_disagreeing:
        return found + [("members disagree", item) for item in totals.most_disagreeing]
    return found + [("much cloud", item) for item in totals.cloudiest]


def scoring_page(scored: Scored, gallery: Gallery, undrawn: Sequence[DataError]) -> Page:
    """Return the page of a scoring."""
    totals, course = scored.totals, scored.course
    parts: list[Part | None] = [
        progress_plot(course),
        cloud_plot(totals),
        _hosts(course),
        _attempts(course),
        _causes(scored.losses),
        _casualties(scored.losses),
        _notes(scored),
        _looks(totals),
        gallery,
        Problems(undrawn, "Items that can't be shown"),
    ]
    kinds = " and ".join(f"{count:,} {kind}{'s' * (count != 1)}" for kind, count in sorted(totals.kinds.items()))
    return Page(
        title=f"Cloud masks of {storage.shown(scored.source)}",
        subtitle=f"{kinds or 'Nothing'} scored by {len(scored.scoring.members)} members to {scored.destination}"
        f"{_finished(course)}.",
        figures=_figures(scored),
        note=_note(scored),
        parts=[part for part in parts if part is not None],
        facts=[*_facts(scored), *version_facts()],
    )


def _finished(course: Course) -> str:
    return f", last on {_moment(course.commands[-1].end)}" if course.commands else ""


def _note(scored: Scored) -> str:
    texts = []
    if scored.ended_by:
        texts.append(f"The work ended before all was done: {storage.without_queries(scored.ended_by)}")
    if not scored.course.commands:
        texts.append("Nothing is known of time and workers: the destination has no log that can be read.")
    elif scored.course.num_damaged:
        texts.append(f"{scored.course.num_damaged:,} lines of the log can't be read and count for nothing.")
    return " ".join(texts)


def _figures(scored: Scored) -> list[Figure]:
    totals, course, losses = scored.totals, scored.course, scored.losses
    found = [
        Figure("Items done", f"{totals.num_items:,}", "Their masks stand, and the ledger names them."),
        Figure("Left out", f"{losses.num:,}", _left_out(losses)),
    ]
    if totals.cloud_fraction is not None:
        text = f"Of all {counted_px(totals.valid_px)} with data, not the mean of items."
        found.append(Figure("Cloud", f"{totals.cloud_fraction:.1%}", text))
    if totals.disagreement_mean is not None:
        text = "Standard deviation of the members' probabilities, 0 to 0.5, over all pixels with data."
        found.append(Figure("Disagreement", f"{totals.disagreement_mean:.4f}", text))
    found.append(Figure("Pixels", counted_px(totals.pixels), "Of all items done, with and without data."))
    if course.seconds:
        rate = f"{counted_px(course.pixels / course.seconds)}/s"
        found.append(Figure("Speed", rate, "Pixels that were computed, over the time of work, all workers together."))
    if course.network_fraction is not None:
        text = "Share of the workers' time, from the first unit of each on; the rest waits, reads and writes."
        found.append(Figure("Inside the nets", f"{course.network_fraction:.1%}", text))
    if course.seconds:
        commands = f"by {len(course.commands)} commands" if len(course.commands) > 1 else "by one command"
        found.append(Figure("Time", duration(course.seconds), f"From first to last unit, {commands}."))
    return found


def _left_out(losses: Losses) -> str:
    if not losses.num:
        return "Nothing failed for good."
    others = losses.num - losses.num_in_data
    return f"{losses.num_in_data:,} for what is in their data, {others:,} for other reasons: run again for these."


def _hosts(course: Course) -> Table:
    sums = sorted(host_sums(course), key=lambda each: (each.megapixels_per_s, each.host))
    rows: list[list[Cell]] = [
        [
            each.host or _DASH,
            ", ".join(sorted(filter(None, each.devices))) or _DASH,
            each.workers,
            each.units,
            Shown(each.pixels, f"{each.pixels / 1e6:,.1f}"),
            Shown(each.seconds, duration(each.seconds)),
            Shown(each.megapixels_per_s, f"{each.megapixels_per_s:.3f}"),
            Shown(each.network_fraction, f"{each.network_fraction:.1%}"),
            each.failed,
            each.lost_workers,
        ]
        for each in sums[:HOSTS_SHOWN]
    ]
    headers = ["Machine", "Device", "Workers", "Units done", "Mpx", "Time of its workers"]
    headers += ["Mpx/s of a worker", "Inside the nets", "Attempts failed", "Workers lost"]
    caption = "The slowest first. Over all commands; a worker that is made anew counts again."
    if len(sums) > HOSTS_SHOWN:
        caption += f" These are {HOSTS_SHOWN} of {len(sums):,} machines."
    return Table("Machines", headers, rows, caption)


def _attempts(course: Course) -> Table:
    found = course.causes.most_frequent()
    rows: list[list[Cell]] = [
        [
            kind if cause.total > 1 else cause.example,
            cause.counts.get("failed", 0),
            cause.counts.get("lost", 0),
            len(cause.places),
            cause.subject,
        ]
        for kind, cause in found[:CAUSES_SHOWN]
    ]
    caption = "Units that were tried again: most were done later. Texts that differ in names and numbers are one line."
    return Table("Attempts that failed", ["Cause", "Failed", "Lost", "Machines", "For example"], rows, caption)


def _causes(losses: Losses) -> Table:
    rows: list[list[Cell]] = [
        [kind if cause.total > 1 else cause.example, _at_fault(cause.counts), cause.total, cause.subject]
        for kind, cause in losses.causes.most_frequent()[:CAUSES_SHOWN]
    ]
    caption = "What is the data's comes again until it is repaired; for the rest the same command tries again."
    return Table("Why items were left out", ["Cause", "At fault", "Items", "For example"], rows, caption)


def _at_fault(counts: dict[str, int]) -> str:
    if counts.keys() == {IN_DATA}:
        return "the data"
    return "not the data" if IN_DATA not in counts else "both"


def _casualties(losses: Losses) -> Table:
    rows: list[list[Cell]] = [
        [item_id, "the data" if in_data == "true" else "not the data", cause, source]
        for item_id, source, in_data, cause in losses.first
    ]
    more = f"The first {len(rows)} of {losses.num:,}; casualties.csv has all." if losses.num > len(rows) else ""
    return Table("Items that were left out", ["Item", "At fault", "Cause", "Source"], rows, more)


def _notes(scored: Scored) -> Table:
    totals = scored.totals
    counted = [("note", text, count) for text, count in totals.notes.most_common()]
    counted += [("scored without", name, count) for name, count in totals.members_left_out.most_common()]
    counted += [("values", text, count) for text, count in totals.shift_rules.most_common()]
    rows: list[list[Cell]] = [
        [storage.without_queries(text), what, count, Shown(count / totals.num_items, f"{count / totals.num_items:.1%}")]
        for what, text, count in counted[:CAUSES_SHOWN]
    ]
    caption = "What was noted of finished items: what could not be made, which members had no bands, what values mean."
    return Table("Notes", ["Note", "Of", "Items", "Share"], rows, caption)


def _looks(totals: Totals) -> Table:
    with_disagreement = bool(totals.most_disagreeing)
    rows: list[list[Cell]] = []
    for why, item in looks(totals):
        row: list[Cell] = [
            item.item_id,
            why,
            _share(item.cloud_fraction),
            _share(item.valid_fraction),
            Shown(item.height * item.width, f"{item.height * item.width / 1e6:,.2f}"),
        ]
        if with_disagreement:
            mean = item.disagreement_mean
            row.append(mean)
        rows.append([*row, storage.shown(item.source_uri)])
    headers = ["Item", "Why", "Cloud", "With data", "Mpx", *(["Disagreement"] * with_disagreement), "Source"]
    return Table("Items to look at", headers, rows)


def _share(fraction: float | None) -> Cell:
    return None if fraction is None else Shown(fraction, f"{fraction:.1%}")


def _facts(scored: Scored) -> list[tuple[str, str]]:
    scoring, totals = scored.scoring, scored.totals
    settings = scoring.settings
    devices = sorted({worker.device for worker in scored.course.workers.values() if worker.device})
    facts = [
        ("Source", storage.shown(scored.source)),
        ("Destination", scored.destination),
        ("Ensemble", storage.shown(scored.ensemble)),
        ("Digest of its nets", scoring.ensemble),
        ("Members", ", ".join(scoring.members)),
        ("Nets of a tile", "those that never saw its location" if scoring.out_of_fold else "the same for all"),
        ("Computed on", ", ".join(devices) or _DASH),
        ("Taken", f"{totals.first} to {totals.last}" if totals.first else _DASH),
    ]
    values = settings.model_dump(mode="json")
    facts += [(name, _DASH if value is None else str(value)) for name, value in values.items()]
    return [*facts, ("raytrain that scored", scoring.raytrain_version)]


def counted_px(pixels: float) -> str:
    """Return a number of pixels as people say it."""
    for size, unit in ((1e12, "Tpx"), (1e9, "Gpx"), (1e6, "Mpx")):
        if pixels >= size:
            return f"{pixels / size:.3g} {unit}" if pixels < 999.5 * size else f"{pixels / size:,.0f} {unit}"
    return f"{pixels / 1e6:.2g} Mpx"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
