"""Pictures of what was scored or evaluated, in panels side by side; of what was evaluated worst, median and best.

Must not know how a page is made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from raytrain import storage
from raytrain.errors import ConfigError, DataError
from raytrain.evaluation.page import Comparison, Gallery, Picture, Scale
from raytrain.evaluation.pictures import (
    AGREEMENT_LEGEND,
    DISAGREEMENT_COLOURS,
    DISAGREEMENT_LARGEST,
    MASK_LEGEND,
    TRUE_COLOUR_BANDS,
    agreement_panel,
    disagreement_panel,
    mask_panel,
    read_picture_mask,
    read_picture_source,
    read_picture_values,
    true_colour_panel,
)
from raytrain.tiles.archive import holds_chips, open_archive

Source = str | Mapping[str, str]
PICTURE_PX = 384
DISAGREEMENT_SCALE = Scale(
    "members' disagreement", DISAGREEMENT_COLOURS, "0", f"{DISAGREEMENT_LARGEST} (half against half)"
)


@dataclass(frozen=True)
class Subject:
    """What is looked at: a mask by its URI, and those of its label, its image and its members' disagreement, if any."""

    name: str
    caption: str
    prediction: str
    label: str | None = None
    image: Source | None = None
    disagreement: str | None = None


def choose(ious: Sequence[float | None], each: int) -> list[tuple[str, int]]:
    """Return the places of up to `each` of the worst, median and best IoUs with that word, worst first, none twice.

    Without an IoU (no cloud, none predicted) there is nothing to show.
    """
    known = [(iou, place) for place, iou in enumerate(ious) if iou is not None]
    ordered = [place for _, place in sorted(known)]
    if len(ordered) <= 3 * each:
        return [("", place) for place in ordered]
    middle = (len(ordered) - each) // 2
    groups = (("worst", ordered[:each]), ("median", ordered[middle : middle + each]), ("best", ordered[-each:]))
    return [(word, place) for word, places in groups for place in places]


def find_images(uri: str) -> dict[str, Source]:
    """Return `{id: source}` of the chips or scenes at `uri`, for pictures; raise `ConfigError` where there are none."""
    if holds_chips(uri):
        archive = open_archive(uri, TRUE_COLOUR_BANDS, for_training=False)
        return {chip.chip_id: chip.bands for chip in archive.chips}
    names = [name for name in storage.find(uri) if name.endswith(".tif") and not name.startswith("scene_labels/")]
    if not names:
        raise ConfigError(f"{uri}: no chips and no scenes for the pictures")
    return {storage.name_of(name).removesuffix(".tif"): storage.join(uri, name) for name in names}


def draw_gallery(subjects: Sequence[Subject], heading: str = "Pictures", caption: str = "") -> Gallery:
    """Return each subject as panels side by side, with a legend for those that are there."""
    labelled = any(subject.label for subject in subjects)
    disagreeing = any(subject.disagreement for subject in subjects)
    return Gallery(
        pictures=[draw(subject) for subject in subjects],
        legend=AGREEMENT_LEGEND if labelled else MASK_LEGEND,
        heading=heading,
        caption=caption,
        scales=(DISAGREEMENT_SCALE,) if disagreeing else (),
    )


def draw(subject: Subject) -> Comparison:
    """Return true colour, label, prediction, where these differ, and the members' disagreement: those that are there.

    An image or a disagreement that can't be drawn costs its panel, not the page, and the caption says why. Raises
    `DataError` for masks that can't be read, or are of two shapes.
    """
    prediction = read_picture_mask(subject.prediction, PICTURE_PX)
    panels: list[tuple[str, bytes]] = []
    missing: list[str] = []

    def add(name: str, panel: Callable[[], bytes]) -> None:
        try:
            panels.append((name, panel()))
        except DataError as error:
            missing.append(f"no {name.lower()}: {error.found}")

    if subject.image is not None:
        source = subject.image
        add("True colour", lambda: _true_colour(source, prediction.shape))
    if subject.label is not None:
        label = read_picture_mask(subject.label, PICTURE_PX)
        _check_shape(subject.label, label.shape, prediction.shape)
        panels.append(("Label", mask_panel(label, PICTURE_PX)))
    panels.append(("Prediction", mask_panel(prediction, PICTURE_PX)))
    if subject.label is not None:
        panels.append(("Where they differ", agreement_panel(prediction, label, PICTURE_PX)))
    if subject.disagreement is not None:
        uri = subject.disagreement
        add("Members' disagreement", lambda: _disagreement(uri, prediction.shape))
    pictures = [Picture(image, f"{name} of {subject.name}", name) for name, image in panels]
    return Comparison(pictures, "; ".join([subject.caption, *missing]))


def _true_colour(source: Source, shape: tuple[int, ...]) -> bytes:
    pixels = read_picture_source(source, TRUE_COLOUR_BANDS, PICTURE_PX)
    _check_shape(source if isinstance(source, str) else source[TRUE_COLOUR_BANDS[0]], pixels.shape[1:], shape)
    return true_colour_panel(pixels, TRUE_COLOUR_BANDS, PICTURE_PX)


def _disagreement(uri: str, shape: tuple[int, ...]) -> bytes:
    values = read_picture_values(uri, PICTURE_PX)
    _check_shape(uri, values.shape, shape)
    return disagreement_panel(values, PICTURE_PX)


def _check_shape(uri: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise DataError(uri, "of another shape than the prediction")
