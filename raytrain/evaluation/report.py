"""The page of an evaluation. Must not know where it is stored, or how a page is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raytrain.config import EmptyUnionRule
from raytrain.evaluation.card_scores import CardEvaluation, CardLocation, CardScore, MadeBy
from raytrain.evaluation.counting import TP
from raytrain.evaluation.figures import difference_plot, plots_of
from raytrain.evaluation.gallery import Source, Subject
from raytrain.evaluation.intervals import LEVEL, trust_text
from raytrain.evaluation.masks import Pair, Reading
from raytrain.evaluation.page import (
    Bar,
    Cell,
    Figure,
    Gallery,
    Page,
    Part,
    Problems,
    Shown,
    Table,
    counted,
    version_facts,
)
from raytrain.evaluation.results import (
    SCORE_NAMES,
    Comparison,
    Ends,
    Evaluation,
    Members,
    PixelScores,
    SliceResult,
    Words,
)
from raytrain.evaluation.scores import unions
from raytrain.evaluation.tally import Tally
from raytrain.training.metrics import extreme_tiles

EMPTY_UNION_TEXT: Mapping[EmptyUnionRule, str] = {
    "one": "Where there is no cloud and none was predicted, the IoU is 1: nothing was missed.",
    "zero": "Where there is no cloud and none was predicted, the IoU is 0, as in the original solution.",
}
MEANINGS = {
    "iou_pooled": "All pixels of all chips together: the challenge's score.",
    "iou_location_weighted": "The pixels of each location together, then the mean over locations: chooses checkpoints.",
    "iou_mean": "Each chip on its own, then the mean over chips.",
    "iou_mean_location_weighted": "The mean over the chips of each location, then the mean over locations.",
    "precision": "Of the pixels called cloud, those that are.",
    "recall": "Of the cloud, what was found.",
    "f1": "The harmonic mean of precision and recall, of all pixels together.",
    "accuracy": "Of all pixels, those called right.",
}
HEADLINES = ("iou_pooled", "iou_location_weighted", "iou_mean", "iou_mean_location_weighted", "precision", "recall")
PICTURES_EACH = 3
"""Of the worst, the median and the best chips."""


def evaluation_page(evaluation: Evaluation, title: str, gallery: Gallery | None = None) -> Page:
    """Return the page of an evaluation; `dataclasses.replace` adds parts and facts of a longer story."""
    parts: list[Part] = [*(_compared(evaluation.comparison) if evaluation.comparison else [])]
    parts += plots_of(evaluation)
    parts.append(location_table(evaluation))
    parts += [gallery] if gallery else []
    parts += [_scores_table(evaluation), _zones_table(evaluation)]
    parts += [_slices_table(evaluation)] if evaluation.slices else []
    parts += [_members_table(evaluation.members)] if evaluation.members else []
    parts.append(Problems(evaluation.problems, "Left out of the scores"))
    return Page(
        title=title,
        subtitle=_subtitle(evaluation),
        figures=score_figures(evaluation),
        note=_note(evaluation),
        parts=parts,
        facts=[*_input_facts(evaluation), *version_facts()],
    )


def subjects_of(
    tally: Tally, pairs: Mapping[str, Pair], images: Mapping[str, Source] | None, reading: Reading
) -> list[Subject]:
    """Return the worst, median and best chips of a tally to be drawn as they were counted, by `reading`.

    The `images` are those that there are.
    """
    totals = tally.totals
    subjects = []
    for found in extreme_tiles(tally.chip_ids, totals[:, TP].tolist(), unions(totals).tolist(), PICTURES_EACH):
        pair = pairs[found.tile_id]
        prediction = pair.predictions[0]
        name = f"{pair.chip_id}, {pair.location}"
        subjects.append(
            Subject(
                name=name,
                caption=f"{found.group}: {name}, IoU {found.iou:.3f}",
                prediction=prediction.uri,
                label=pair.label,
                image=images.get(pair.chip_id) if images else None,
                disagreement=prediction.disagreement,
                probability=prediction.probability,
                reading=reading,
            )
        )
    return subjects


def card_evaluation(evaluation: Evaluation, made_by: MadeBy) -> CardEvaluation:
    """Return what the model card of an ensemble says of an evaluation of masks that its nets `made_by` made."""
    scores = []
    for name, text in SCORE_NAMES.items():
        value, ends = getattr(evaluation, name), evaluation.intervals[name]
        if value is not None:
            low, high = (None, None) if ends is None else (ends.low, ends.high)
            scores.append(CardScore(name=text, value=value, low=low, high=high))
    locations = [
        CardLocation(name=name, iou=each.iou, num_chips=each.num_chips) for name, each in evaluation.locations.items()
    ]
    return CardEvaluation(
        labels=evaluation.inputs.labels,
        made_by=made_by,
        where=evaluation.inputs.where,
        threshold=evaluation.decided_at,
        allowed=evaluation.inputs.allowed,
        num_left_out=len({each.subject for each in evaluation.problems}),
        empty_union_rule=evaluation.empty_union_rule,
        num_chips=evaluation.num_chips,
        scores=tuple(scores),
        locations=tuple(locations),
    )


def score_figures(evaluation: Evaluation) -> list[Figure]:
    """Return the headline scores, each with its interval and the sentence that says what it weighs."""
    figures = []
    if evaluation.comparison is not None:
        for each in evaluation.comparison.scores:
            if each.name in HEADLINES[:2]:
                text = f"{SCORE_NAMES[each.name]}, less that of the other predictions."
                ends = _ends_text(each.interval, "+.4f")
                figures.append(Figure(words_text(each.words), _signed(each.difference), text, _with_level(ends)))
    for name in HEADLINES:
        ends = _with_level(_ends_text(evaluation.intervals[name]))
        figures.append(Figure(SCORE_NAMES[name], _number(getattr(evaluation, name)), MEANINGS[name], ends))
    return figures


def words_text(words: Words) -> str:
    """Return the verdict of a comparison as it stands in a sentence of its own."""
    return words[0].upper() + words[1:]


def location_table(evaluation: Evaluation) -> Table:
    """Return one row a location, from the worst IoU to the best, with the difference to other predictions if any."""
    worst_first = sorted(evaluation.locations.items(), key=lambda item: (item[1].iou, item[0]))
    rows: list[list[Cell]] = [
        [name, Bar(each.iou), each.iou_mean, each.precision, each.recall, each.num_chips] for name, each in worst_first
    ]
    headers = ["Location", "IoU", "Mean IoU of its chips", "Precision", "Recall", "Chips"]
    caption = ""
    if evaluation.comparison is not None:
        headers.insert(2, "Less the others'")
        for row, (name, _) in zip(rows, worst_first, strict=True):
            difference = evaluation.comparison.locations[name]
            row.insert(2, Shown(difference, _signed(difference)))
        caption = "Sort by the difference to see what was lost and won against the other predictions."
    return Table("Locations, from worst to best", headers, rows, caption)


def _compared(comparison: Comparison) -> list[Part]:
    rows: list[list[Cell]] = [
        [
            SCORE_NAMES[each.name],
            words_text(each.words),
            each.ours,
            each.theirs,
            None if each.difference is None else Shown(each.difference, _signed(each.difference)),
            _ends_cell(each.interval, "+.4f"),
        ]
        for each in comparison.scores
    ]
    headers = ["Score", "Verdict", "These", "The others", "Difference", _interval_name()]
    caption = (
        f"In pairs on {counted(comparison.num_chips, 'chip')} at {counted(comparison.num_locations, 'location')}, "
        f"against {comparison.against}. Better or worse is said only where the whole interval is on one side of 0."
    )
    return [Table("These predictions beside the others", headers, rows, caption), difference_plot(comparison)]


def _scores_table(evaluation: Evaluation) -> Table:
    rows: list[list[Cell]] = [
        [SCORE_NAMES[name], getattr(evaluation, name), _ends_cell(evaluation.intervals[name]), MEANINGS[name]]
        for name in SCORE_NAMES
    ]
    return Table("All scores", ["Score", "Value", _interval_name(), "What it is"], rows)


def _zones_table(evaluation: Evaluation) -> Table:
    px = evaluation.inputs.edge_px
    zones = (
        (f"Within {px} px of an edge", evaluation.near_edges, evaluation.zone_intervals["near_edges"]),
        (f"More than {px} px from any edge", evaluation.away_from_edges, evaluation.zone_intervals["away_from_edges"]),
    )
    rows: list[list[Cell]] = [[name, *_pixel_cells(scores), _ends_cell(ends)] for name, scores, ends in zones]
    headers = ["Pixels", "Count", "IoU", "Precision", "Recall", "F1", "Accuracy", f"{_interval_name()} of the IoU"]
    caption = "Edges are those of labelled cloud; how well they are hit says as much of the labels as of the masks."
    return Table("Near cloud edges and away from them", headers, rows, caption)


def _pixel_cells(scores: PixelScores) -> list[Cell]:
    count = sum(scores.pixels.model_dump().values())
    return [count, scores.iou, scores.precision, scores.recall, scores.f1, scores.accuracy]


def _slices_table(evaluation: Evaluation) -> Table:
    headers = ["By", "Value", "Chips", "Locations", "IoU, pooled", _interval_name(), "IoU by location"]
    rows: list[list[Cell]] = [
        [
            each.column.replace("_", " "),
            each.value,
            each.num_chips,
            each.num_locations,
            each.iou_pooled,
            _ends_cell(each.iou_pooled_interval),
            each.iou_location_weighted,
            _ends_cell(each.iou_location_weighted_interval),
        ]
        for each in evaluation.slices
    ]
    caption = f"The chips that have one value of a column. {_slices_trust(evaluation.slices)}".rstrip()
    return Table("Parts of the chips in numbers", [*headers, _interval_name()], rows, caption)


def _slices_trust(slices: Sequence[SliceResult]) -> str:
    """Return how far the interval over the fewest locations can be trusted, if that has to be said."""
    counts = [
        each.num_locations
        for each in slices
        if each.iou_pooled_interval is not None or each.iou_location_weighted_interval is not None
    ]
    return trust_text(min(counts)) if counts else ""


def _members_table(members: Members) -> Table:
    rows: list[list[Cell]] = [
        [
            each.name,
            each.iou_location_weighted,
            each.iou_pooled,
            each.precision,
            each.recall,
            each.without_iou_location_weighted,
            Shown(each.adds, _signed(each.adds)),
            _ends_cell(each.adds_interval, "+.4f"),
        ]
        for each in members.members
    ]
    headers = [
        "Member",
        "IoU by location",
        "IoU, pooled",
        "Precision",
        "Recall",
        "Without it",
        "Adds",
        _interval_name(),
    ]
    caption = (
        f"All members together: {members.together_iou_location_weighted:.4f} by location, "
        f"{members.together_iou_pooled:.4f} pooled, on {counted(members.num_chips, 'chip')}. What a member adds is "
        "the IoU by location of all, less that of the others without it."
    )
    return Table("Members in numbers", headers, rows, caption)


def _note(evaluation: Evaluation) -> str:
    resampling = evaluation.resampling
    places = counted(resampling.num_locations, "location")
    texts = [
        EMPTY_UNION_TEXT[evaluation.empty_union_rule],
        f"Intervals are of {resampling.level:.0%} over {places}, by {resampling.resamples:,} resamples of locations "
        f"(studentised, seed {resampling.seed}); a dash stands where they can't be had.",
        trust_text(resampling.num_locations),
    ]
    if evaluation.unpredicted_px:
        texts.append(f"{evaluation.unpredicted_px:,} labelled pixels have no prediction and count as clear.")
    return " ".join(filter(None, texts))


def _subtitle(evaluation: Evaluation) -> str:
    chips, locations = counted(evaluation.num_chips, "chip"), counted(len(evaluation.locations), "location")
    problems = len(evaluation.problems)
    left_out = f"; {counted(problems, 'problem')}, listed below" if problems else ", none left out"
    return f"Intersection over union (IoU) of cloud, over {chips} at {locations}{left_out}."


def _input_facts(evaluation: Evaluation) -> list[tuple[str, str]]:
    inputs = evaluation.inputs
    facts = [
        ("Predictions", inputs.predictions),
        ("Labels", inputs.labels),
        ("Metadata", inputs.metadata),
        ("Rows", " and ".join(inputs.where) or "all"),
        ("Further columns from", inputs.where_metadata or "nowhere"),
        ("Against", inputs.against or "nothing"),
        ("Threshold", "as the masks are" if evaluation.decided_at is None else f"{evaluation.decided_at:g}"),
        ("Scale of maps", "as the files say" if inputs.scale is None else f"{inputs.scale:g}"),
        ("Edges", f"{inputs.edge_px} px wide to both sides"),
        ("Allowed", ", ".join(inputs.allowed) or "nothing"),
        ("Empty union counts", evaluation.empty_union_rule),
        ("Parted also by", ", ".join(inputs.by) or "nothing else"),
        ("Images", inputs.images or "none"),
        ("Resamples", f"{evaluation.resampling.resamples:,}, seed {evaluation.resampling.seed}"),
    ]
    return facts


def _interval_name() -> str:
    return f"{LEVEL:.0%} interval"


def _ends_text(ends: Ends | None, how: str = ".4f") -> str:
    return "" if ends is None else f"{ends.low:{how}} to {ends.high:{how}}"


def _ends_cell(ends: Ends | None, how: str = ".4f") -> Cell:
    """Return an interval as it stands in a table, sorted by its lower end."""
    return None if ends is None else Shown(ends.low, _ends_text(ends, how))


def _with_level(ends: str) -> str:
    return f"{ends}, {LEVEL:.0%}" if ends else ""


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.4f}"


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4f}"
