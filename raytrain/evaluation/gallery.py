"""Pictures of what was scored or evaluated, in panels side by side.

Must not know what is worth a picture, or how a page is made of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from raytrain import storage
from raytrain.errors import ConfigError, DataError
from raytrain.evaluation.masks import Prediction, Reading, read_counted
from raytrain.evaluation.page import Comparison, Gallery, Picture, Scale
from raytrain.evaluation.pictures import (
    AGREEMENT_LEGEND,
    DISAGREEMENT_COLOURS,
    DISAGREEMENT_LARGEST,
    MASK_LEGEND,
    agreement_panel,
    disagreement_panel,
    mask_panel,
    picture_shape,
    read_picture_mask,
    read_picture_source,
    read_picture_values,
    true_colour_panel,
)
from raytrain.evaluation.tone import TRUE_COLOUR_BANDS
from raytrain.tiles.archive import holds_chips, open_archive

Source = str | Mapping[str, str]
PICTURE_PX = 384
DISAGREEMENT_SCALE = Scale(
    "members' disagreement", DISAGREEMENT_COLOURS, "0", f"{DISAGREEMENT_LARGEST} (half against half)"
)


@dataclass(frozen=True)
class Subject:
    """What is looked at, by URIs: a prediction, its label, its image and its members' disagreement, if any.

    Its cloud is what `reading` makes of the prediction (a mask, or a map) and of the `probability` beside it.
    """

    name: str
    caption: str
    prediction: str
    label: str | None = None
    image: Source | None = None
    disagreement: str | None = None
    probability: str | None = None
    reading: Reading = field(default_factory=Reading)


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
    """Return what `compare` shows of a subject.

    An image or a disagreement that can't be read costs its panel, not the page, and the caption says why. Raises
    `DataError` for masks that can't be read, or are of two shapes.
    """
    files = Prediction(subject.prediction, subject.probability)
    prediction = read_counted(files, subject.reading, lambda source: picture_shape(source, PICTURE_PX))
    shape = prediction.shape
    label = pixels = disagreement = None
    missing = []
    if subject.label is not None:
        label = read_picture_mask(subject.label, PICTURE_PX)
        _check_shape(subject.label, label.shape, shape)
    if subject.image is not None:
        try:
            pixels = read_picture_source(subject.image, TRUE_COLOUR_BANDS, PICTURE_PX)
            _check_shape(_uri_of(subject.image), pixels.shape[1:], shape)
        except DataError as error:
            pixels = None
            missing.append(f"no true colour: {error.found}")
    if subject.disagreement is not None:
        try:
            disagreement = read_picture_values(subject.disagreement, PICTURE_PX)
            _check_shape(subject.disagreement, disagreement.shape, shape)
        except DataError as error:
            disagreement = None
            missing.append(f"no disagreement of members: {error.found}")
    return compare(subject.name, "; ".join([subject.caption, *missing]), prediction, label, pixels, disagreement)


def compare(
    name: str,
    caption: str,
    prediction: NDArray[np.uint8],
    label: NDArray[np.uint8] | None = None,
    pixels: NDArray[np.uint16] | None = None,
    disagreement: NDArray[np.float32] | None = None,
) -> Comparison:
    """Return true colour, label, prediction, where these differ, and the members' disagreement: those that are there.

    `pixels` is `[C, H, W]` in `TRUE_COLOUR_BANDS`, the others `[H, W]`; the disagreement is in [0, 0.5], NaN where
    there is none.
    """
    panels: list[tuple[str, bytes]] = []
    if pixels is not None:
        panels.append(("True colour", true_colour_panel(pixels, TRUE_COLOUR_BANDS, PICTURE_PX)))
    if label is not None:
        panels.append(("Label", mask_panel(label, PICTURE_PX)))
    panels.append(("Prediction", mask_panel(prediction, PICTURE_PX)))
    if label is not None:
        panels.append(("Where they differ", agreement_panel(prediction, label, PICTURE_PX)))
    if disagreement is not None:
        panels.append(("Members' disagreement", disagreement_panel(disagreement, PICTURE_PX)))
    return Comparison([Picture(image, f"{panel} of {name}", panel) for panel, image in panels], caption)


def _uri_of(source: Source) -> str:
    return source if isinstance(source, str) else source[TRUE_COLOUR_BANDS[0]]


def _check_shape(uri: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise DataError(uri, "of another shape than the prediction")
