"""The page of an evaluation. Must not know where it is stored, or how a page is drawn."""

from __future__ import annotations

from collections.abc import Mapping

from raytrain.config import EmptyUnionRule
from raytrain.evaluation.page import Bar, Figure, Gallery, Page, Problems, Table, version_facts
from raytrain.evaluation.results import Evaluation

EMPTY_UNION_TEXT: Mapping[EmptyUnionRule, str] = {
    "one": "Where there is no cloud and none was predicted, the IoU is 1: nothing was missed.",
    "zero": "Where there is no cloud and none was predicted, the IoU is 0, as in the original solution.",
}


def evaluation_page(evaluation: Evaluation, title: str, gallery: Gallery | None = None) -> Page:
    """Return the page of an evaluation; `dataclasses.replace` adds tables and facts of a longer story."""
    return Page(
        title=title,
        subtitle=_subtitle(evaluation),
        figures=score_figures(evaluation),
        note=EMPTY_UNION_TEXT[evaluation.empty_union_rule],
        parts=[location_table(evaluation), Problems(evaluation.problems), *([gallery] if gallery else [])],
        facts=[*_input_facts(evaluation), *version_facts()],
    )


def score_figures(evaluation: Evaluation) -> list[Figure]:
    """Return the four IoUs, each with the sentence that says what it weighs."""
    return [
        Figure("Pooled", _iou(evaluation.iou_pooled), "All pixels of all chips together: the challenge's score."),
        Figure(
            "By location",
            _iou(evaluation.iou_location_weighted),
            "The pixels of each location together, then the mean over locations: chooses the best checkpoint.",
        ),
        Figure("By chip", _iou(evaluation.iou_mean), "Each chip on its own, then the mean over chips."),
        Figure(
            "By chip and location",
            _iou(evaluation.iou_mean_location_weighted),
            "The mean over the chips of each location, then the mean over locations.",
        ),
    ]


def location_table(evaluation: Evaluation) -> Table:
    """Return one row a location, from the worst IoU to the best."""
    worst_first = sorted(evaluation.locations.items(), key=lambda item: (item[1].iou, item[0]))
    return Table(
        heading="Locations, from worst to best",
        headers=["Location", "IoU", "Mean IoU of its chips", "Chips"],
        rows=[[name, Bar(result.iou), result.iou_mean, result.num_chips] for name, result in worst_first],
    )


def _subtitle(evaluation: Evaluation) -> str:
    chips, locations = _counted(evaluation.num_chips, "chip"), _counted(len(evaluation.locations), "location")
    problems = len(evaluation.problems)
    left_out = f"; {_counted(problems, 'problem')}, listed below" if problems else ", none left out"
    return f"Intersection over union (IoU) of cloud, over {chips} at {locations}{left_out}."


def _input_facts(evaluation: Evaluation) -> list[tuple[str, str]]:
    inputs = evaluation.inputs
    return [
        ("Predictions", inputs.predictions),
        ("Labels", inputs.labels),
        ("Metadata", inputs.metadata),
        ("Rows", " and ".join(inputs.where) or "all"),
        ("Empty union counts", evaluation.empty_union_rule),
    ]


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _iou(value: float) -> str:
    return f"{value:.4f}"
