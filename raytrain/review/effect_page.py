"""The page of the effect of cleaning labels: did it help, and where. Must not know where it is stored."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from raytrain.evaluation.intervals import FEW_LOCATIONS, LEVEL, trust_text
from raytrain.evaluation.page import Cell, Figure, Page, Part, Plot, Problems, Shown, Table, counted, version_facts
from raytrain.evaluation.plots import ACCENT, QUIET, TEXT, WIDE, drawing, svg_of
from raytrain.evaluation.results import Ends
from raytrain.review.effect import DECIDING, EFFECT_SCORES, PART_WORDS, Effect, PartEffect, PartName, PlaceEffect, Words

PLACES_DRAWN = 40
"""Of more locations the drawing has those that lost and gained most; the table has all."""
PLACES_NAMED = 3
_ROW_INCHES = 0.28
_HEADLINES: dict[Words, str] = {
    "helped": "Cleaning helped",
    "harmed": "Cleaning harmed",
    "no difference shown": "No difference could be shown",
    "can't tell": "Whether cleaning helped can't be told",
}
_WHERE: dict[PartName, str] = {
    "test": "on the test set",
    "untouched": "at places where no label was touched",
    "unchanged": "on tiles whose label stayed, at touched places",
}


def effect_page(effect: Effect) -> Page:
    """Return the page of an effect."""
    compared = effect.compared
    places = places_of(effect)
    return Page(
        title=headline(effect),
        subtitle=(
            f"Nets trained on {compared.before} and on {compared.after}, each with the {len(compared.seeds)} seeds "
            f"{', '.join(map(str, compared.seeds))}, on places that they never saw."
        ),
        figures=[_figure(part) for part in effect.parts],
        note=" ".join([_touched(effect), *_decision(effect), _by_place(effect), *_cautions(effect)]),
        parts=[*_plots(effect, places), *_tables(effect, places), Problems(effect.problems, "Left out")],
        facts=[*_facts(effect), *version_facts()],
    )


def headline(effect: Effect) -> str:
    """Return in a few words whether cleaning helped, and by which tiles."""
    if effect.decided_by is None:
        return f"{_HEADLINES[effect.words]}: no label is the same in both versions"
    return f"{_HEADLINES[effect.words]} {_WHERE[effect.decided_by]}"


def sentences(effect: Effect) -> list[str]:
    """Return what was found: what was touched, a sentence for each part, and where it helped and harmed."""
    parts = [_sentence(part) for part in effect.parts]
    return [_touched(effect), *parts, *_decision(effect), _by_place(effect), *_cautions(effect)]


def _touched(effect: Effect) -> str:
    untouched = effect.num_untouched_places
    labels = "label" if effect.num_changed == 1 else "labels"
    return (
        f"Of {counted(effect.num_tiles + effect.num_dropped, 'tile')} the {labels} of {effect.num_changed:,} "
        f"{'differs' if effect.num_changed == 1 else 'differ'} and {effect.num_dropped:,} {_was(effect.num_dropped)} "
        f"dropped, at {counted(effect.num_touched_places, 'place')}; {counted(untouched, 'place')} {_was(untouched)} "
        "not touched."
    )


def _decision(effect: Effect) -> list[str]:
    """Return which part decides and why that one; nothing without any."""
    if effect.decided_by is None:
        return []
    decides = f"What decides is {PART_WORDS[effect.decided_by]}"
    passed = []
    for name in DECIDING[: DECIDING.index(effect.decided_by)]:
        part = effect.part(name)
        if part is not None:
            passed.append(f"{PART_WORDS[name]} ({counted(len(part.locations), 'place')})")
    if passed:
        return [f"{decides}, since there is no interval over {' and '.join(passed)}."]
    part = effect.part(effect.decided_by)
    if part is not None and part.deciding.interval is None:
        return [
            f"{decides}, though without an interval: no comparison on labels that are the same in both versions has "
            "one (too few places, or no difference at any)."
        ]
    return [f"{decides}, where both versions have the same labels."]


def _was(count: int) -> str:
    return "was" if count == 1 else "were"


def _by_place(effect: Effect) -> str:
    """Return the places that gained and lost most, and how many would be named without any effect."""
    worst_first = places_of(effect)
    named = f"By place: {_named(worst_first[::-1], 'gained')}; {_named(worst_first, 'lost')}."
    return f"{named} {_by_chance(len(worst_first))}" if worst_first else named


def _by_chance(num_places: int) -> str:
    """Return how many places would be named as gained or lost though cleaning changed nothing."""
    chance = (1 - LEVEL) / 2
    return (
        f"By chance alone {chance:.1%} of places would be called gained and as many lost: of these {num_places} about "
        f"{chance * num_places:.1f} each."
    )


def places_of(effect: Effect) -> list[tuple[str, PlaceEffect]]:
    """Return every location by name, from the one that lost most: by labels that stayed, at touched places the new."""
    parts = [part for name in ("untouched", "new-labels") if (part := effect.part(name)) is not None]
    places = [item for part in parts for item in part.locations.items()]
    return sorted(places, key=lambda item: (item[1].difference, item[0]))


def _sentence(part: PartEffect) -> str:
    found = part.deciding
    ends = f", {LEVEL:.0%} {_ends(found.interval)}" if found.interval else ""
    size = f"{counted(part.num_tiles, 'tile')} at {counted(len(part.locations), 'place')}"
    ignored = f"; without {counted(part.num_ignored, 'tile')} of which no pixel counts" if part.num_ignored else ""
    words = "cannot be told" if found.words == "can't tell" else found.words
    return (
        f"{_sentence_case(PART_WORDS[part.name])}: {words} ({EFFECT_SCORES[found.name]} {found.before:.4f} to "
        f"{found.after:.4f}, {found.difference:+.4f}{ends}; {size}{ignored})."
    )


def _named(places: Sequence[tuple[str, PlaceEffect]], words: str) -> str:
    chosen = [each for each in places if each[1].words == words]
    if not chosen:
        return f"none {words} by more than seeds part"
    some = ", ".join(
        f"{name} ({each.difference:+.4f}, {each.num_changed} changed, {each.num_dropped} dropped)"
        for name, each in chosen[:PLACES_NAMED]
    )
    return f"{len(chosen)} {words}, most of all {some}"


def _cautions(effect: Effect) -> list[str]:
    """Return what keeps numbers from being taken for more than they are."""
    found = []
    if not effect.compared.is_child:
        found.append(
            f"{effect.compared.after} does not name {effect.compared.before} as its parent, so the order in which they "
            "were given alone says which of them is the cleaned one."
        )
    new, old = effect.part("new-labels"), effect.part("old-labels")
    if new is not None and old is not None and new.deciding.words == "helped" and old.deciding.words != "helped":
        found.append(
            "That nets agree better with the new labels and not with the old is what good cleaning comes to, but also "
            "what labels come to that were only made like predictions: parts whose labels are the same decide."
        )
    if effect.decided_by is not None:
        part = effect.part(effect.decided_by)
        if part is not None and len(part.locations) < FEW_LOCATIONS:
            found.append(trust_text(len(part.locations)))
    if effect.lost_places:
        found.append(f"No tile is left of {', '.join(effect.lost_places)}.")
    return found


def _figure(part: PartEffect) -> Figure:
    found = part.deciding
    text = (
        f"{_sentence_case(found.words)}. {EFFECT_SCORES[found.name]} {found.before:.4f} before, {found.after:.4f} "
        f"after; {counted(part.num_tiles, 'tile')} at {counted(len(part.locations), 'place')}."
    )
    ends = f"{_ends(found.interval)}, {LEVEL:.0%}" if found.interval else ""
    return Figure(_sentence_case(PART_WORDS[part.name]), _signed(found.difference), text, ends)


def _plots(effect: Effect, places: Sequence[tuple[str, PlaceEffect]]) -> list[Part]:
    if not effect.parts:
        return []
    with drawing():
        found: list[Part] = [_parts_plot(effect)]
        if places:
            found.append(_places_plot(places))
    return found


def _parts_plot(effect: Effect) -> Plot:
    figure = Drawing((WIDE[0], _ROW_INCHES * len(effect.parts) + 1.1))
    axes = figure.subplots()
    names = [f"{PART_WORDS[part.name]} ({len(part.locations)})" for part in effect.parts]
    for row, part in enumerate(effect.parts):
        found = part.deciding
        for ends, width, colour in ((found.interval, 1.2, QUIET), (found.over_places, 4.0, QUIET)):
            if ends is not None:
                axes.plot([ends.low, ends.high], [row, row], color=colour, lw=width, solid_capstyle="butt")
        for value in found.by_seed.values():
            if value is not None:
                axes.plot(value, row, "|", color=TEXT, ms=9)
        axes.plot(found.difference or 0.0, row, "o", color=ACCENT, ms=5)
    _finish(axes, names, "IoU by location, after less before")
    caption = (
        f"Dots are means over seeds, strokes single seeds. The broad bar is the {LEVEL:.0%} interval over places "
        "with these nets, the thin one that over places and seeds, which decides. Places in brackets."
    )
    words = ", ".join(f"{PART_WORDS[part.name]} {part.deciding.words}" for part in effect.parts)
    return Plot("Did it help", svg_of(figure), f"Differences: {words}", caption)


def _places_plot(places: Sequence[tuple[str, PlaceEffect]]) -> Plot:
    shown = list(places)
    more = ""
    if len(shown) > PLACES_DRAWN:
        half = PLACES_DRAWN // 2
        more = f" Of {len(shown)} places, the {half} that lost most and the {half} that gained most."
        shown = [*shown[:half], *shown[-half:]]
    figure = Drawing((WIDE[0], _ROW_INCHES * len(shown) + 1.1))
    axes = figure.subplots()
    for row, (_, each) in enumerate(shown):
        axes.plot([each.interval.low, each.interval.high], [row, row], color=QUIET, lw=2, solid_capstyle="butt")
        is_touched = each.num_changed + each.num_dropped > 0
        axes.plot(each.difference, row, "o", color=ACCENT, ms=5, mfc=ACCENT if is_touched else "none")
    names = [
        f"{name} ({each.num_changed + each.num_dropped} of {each.num_tiles + each.num_dropped})" for name, each in shown
    ]
    _finish(axes, names, "IoU, after less before")
    # An interval of three seeds may be wider than all differences: the scale is that of the differences.
    widest = max(0.01, *(abs(each.difference) for _, each in shown))
    axes.set_xlim(-2.5 * widest, 2.5 * widest)
    caption = (
        f"With {LEVEL:.0%} intervals over seeds, cut at the frame. Full dots are touched places, by the new labels; in "
        f"brackets how many tiles were changed or dropped, of how many.{more}"
    )
    return Plot("Where", svg_of(figure), f"Difference at {len(shown)} places", caption)


def _finish(axes: Axes, names: Sequence[str], label: str) -> None:
    axes.axvline(0, color=TEXT, lw=1)
    axes.set_yticks(range(len(names)), list(names))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(label)


def _tables(effect: Effect, places: Sequence[tuple[str, PlaceEffect]]) -> list[Part]:
    return [_scores_table(effect), _seeds_table(effect), _places_table(places), _touched_table(effect)]


def _scores_table(effect: Effect) -> Table:
    rows: list[list[Cell]] = [
        [
            PART_WORDS[part.name],
            EFFECT_SCORES[each.name],
            _sentence_case(each.words),
            each.before,
            each.after,
            _shown(each.difference),
            _ends_cell(each.over_places),
            _ends_cell(each.interval),
        ]
        for part in effect.parts
        for each in part.scores
    ]
    level = f"{LEVEL:.0%}"
    headers = ["Tiles", "Score", "Verdict", "Before", "After", "Difference", f"{level} over places"]
    caption = (
        "IoU by location is the mean over places of each one's mean over seeds; the others are of the counts of all "
        "seeds together. Helped or harmed is said only where the whole interval over places and "
        "seeds is on one side of 0: it asks whether other places and other seeds would say the same. Each net keeps "
        "the epoch that did best by the labels of its own version at the places that it did not learn from, which "
        "favours the new labels a little where they judge."
    )
    return Table("Scores before and after", [*headers, f"{level} over places and seeds"], rows, caption)


def _seeds_table(effect: Effect) -> Table:
    seeds = effect.compared.seeds
    rows: list[list[Cell]] = []
    for part in effect.parts:
        found = part.deciding
        known = [value for value in found.by_seed.values() if value is not None]
        spread = max(known) - min(known) if known else None
        rows.append([PART_WORDS[part.name], *(_shown(found.by_seed[seed]) for seed in seeds), spread])
    headers = ["Tiles", *(f"Seed {seed}" for seed in seeds), "Largest less smallest"]
    caption = "The difference of IoU by location, of the nets of one seed each: what seeds alone make of it."
    return Table("Seeds", headers, rows, caption)


def _places_table(places: Sequence[tuple[str, PlaceEffect]]) -> Table:
    rows: list[list[Cell]] = [
        [
            name,
            _sentence_case(each.words),
            each.num_changed + each.num_dropped,
            each.num_tiles,
            each.before,
            each.after,
            _shown(each.difference),
            _ends_cell(each.interval),
        ]
        for name, each in places
    ]
    headers = ["Location", "Verdict", "Touched", "Tiles", "Before", "After", "Difference", f"{LEVEL:.0%} over seeds"]
    caption = (
        "From the place that lost most; IoU is the mean over seeds, and its interval over seeds alone. "
        f"{_by_chance(len(places))}"
    )
    return Table("Places", headers, rows, caption)


def _touched_table(effect: Effect) -> Table:
    new, old, unchanged = (effect.part(name) for name in ("new-labels", "old-labels", "unchanged"))
    rows: list[list[Cell]] = []
    if new is not None:
        for name, each in sorted(new.locations.items(), key=lambda item: (item[1].difference, item[0])):
            others = [part.locations.get(name) if part else None for part in (old, unchanged)]
            differences = [None if other is None else _shown(other.difference) for other in others]
            rows.append([name, each.num_changed, each.num_dropped, _shown(each.difference), *differences])
    headers = ["Location", "Labels changed", "Dropped", "By the new labels", "By the old labels"]
    caption = (
        "The difference of the IoU, after less before: by the labels of either version, and on the tiles that have one "
        "and the same label in both."
    )
    return Table("Touched places", [*headers, "Tiles whose label stayed"], rows, caption)


def _facts(effect: Effect) -> list[tuple[str, str]]:
    compared = effect.compared
    return [
        ("Before", f"{compared.before} ({compared.before_digest[:12]})"),
        ("After", f"{compared.after} ({compared.after_digest[:12]})"),
        ("After names before as its parent", "yes" if compared.is_child else "no"),
        (
            "Test set",
            f"{compared.test} ({compared.test_digest[:12]})" if compared.test and compared.test_digest else "none",
        ),
        ("Members", ", ".join(compared.members)),
        (
            "Settings changed for both",
            ", ".join(f"{name}={value}" for name, value in compared.changes.items()) or "none",
        ),
        ("Seeds", ", ".join(map(str, compared.seeds))),
        ("Folds", ", ".join(map(str, compared.folds))),
        ("Threshold", f"{compared.threshold:g}"),
        ("Empty union counts", compared.empty_union_rule),
        ("Edges", f"{compared.edge_px} px wide to both sides"),
        ("Resamples", f"{compared.resamples:,}, seed {compared.resampling_seed}"),
    ]


def _ends(ends: Ends | None) -> str:
    return "" if ends is None else f"{ends.low:+.4f} to {ends.high:+.4f}"


def _ends_cell(ends: Ends | None) -> Cell:
    return None if ends is None else Shown(ends.low, _ends(ends))


def _shown(value: float | None) -> Cell:
    return None if value is None else Shown(value, f"{value:+.4f}")


def _signed(value: float | None) -> str:
    return "not defined" if value is None else f"{value:+.4f}"


def _sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]
