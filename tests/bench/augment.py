"""What augmentation costs a core, each change alone and all as the recipe has them; and a sheet of pictures to look at.

CPU milliseconds of one thread for a chip of 512 px with four bands, from uint16 to the float32 that a net takes; the
ways take turns, and a row is the median over the runs. The floor is a chip, normalised, and a copy of its label. Beside
it albumentations' own transforms, composed once, on channels last as they want them, and back to channels first. With
`--sheet` chips of the archive that are partly cloudy have a row each: as they are, then augmented, labels outlined.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from raytrain.config import AugmentationSettings, change
from raytrain.evaluation.pictures import AGREEMENT_LEGEND, LABEL_COLOUR, outline
from raytrain.evaluation.tone import true_colour
from raytrain.imagery.normalisation import normalise, scale_of
from raytrain.imagery.rasters import LABEL_CLOUD, LABEL_IGNORE
from raytrain.imagery.synth import write_chips
from raytrain.recipes import FLIPS_AND_QUARTER_TURNS, FOUR_BANDS, members
from raytrain.tiles.archive import open_archive
from raytrain.tiles.ingest import read_tile
from raytrain.training.augmentation import albumentations, cv2
from raytrain.training.samples import TrainingTransform
from tests.bench import record

CHIP_PX = 512
NUM_CHIPS = 8
LARGEST_KEPT_BYTES = 30 * 2**20
SAMPLES_PER_RUN = 160
SHEET_ROWS = 6
SHEET_COLUMNS = 8
MEMBER = members(("r34-4b-20k",))[0]
NOTHING = change(FLIPS_AND_QUARTER_TURNS, {"horizontal_flip_fraction": 0, "rotation_by_90": False})
ALONE: dict[str, dict[str, Any]] = {
    "horizontal flip": {"horizontal_flip_fraction": 1},
    "rotation by a multiple of 90 degrees": {"rotation_by_90": True},
    "scale and rotation about a pivot": {"affine_fraction": 1, "scale_fraction": 1, "rotation_fraction": 1},
    "shift a band": {"shift_fraction": 1},
    "gain a band": {"gain_fraction": 1},
    "elastic": {"elastic_fraction": 1},
    "rectangle": {"rectangle_fraction": 1},
}

Chip = tuple[np.ndarray, np.ndarray]
Way = Callable[[np.ndarray, np.ndarray, int], Any]
"""Makes the sample of so many bands `[C, H, W]` and a label `[H, W]`, by the number of the sample."""


def main() -> None:
    """Measure, or draw the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archive", help="chips in the challenge's layout; generated ones without it")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--write", metavar="MACHINE")
    parser.add_argument("--sheet", type=Path, metavar="OUT.png", help="draw instead of measuring")
    parser.add_argument("--cell-px", type=int, default=256, help="side of a picture on the sheet")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(options.archive or folder)
        if options.archive is None:
            write_chips(archive, count=NUM_CHIPS, size_px=CHIP_PX, seed=0, num_places=NUM_CHIPS)
        if options.sheet is not None:
            broken = [chip for chip in read_chips(archive) if 0.05 < np.mean(chip[1] == LABEL_CLOUD) < 0.95]
            chosen = [broken[i] for i in np.linspace(0, len(broken) - 1, SHEET_ROWS).astype(int)]
            draw_sheet(chosen, options.cell_px).save(options.sheet, optimize=True)
            return
        headers, rows = measure(read_chips(archive), options.runs)
    title = f"Augmentation of chips of {CHIP_PX} px with 4 bands, median of {options.runs} runs"
    record.keep("augment", options.write, title, headers, rows)


def read_chips(archive: Path) -> list[Chip]:
    """Return the labelled chips of an archive."""
    found = []
    for chip in open_archive(str(archive), FOUR_BANDS).chips:
        tile, _ = read_tile(chip, "before-04.00")
        assert tile.label is not None
        found.append((np.stack([tile.bands[band] for band in FOUR_BANDS]), tile.label))
    return found


# Time


def measure(chips: list[Chip], runs: int) -> tuple[list[str], list[list[str]]]:
    """Return a table of CPU milliseconds a chip."""
    ways: dict[str, Way] = {"floor: crop, normalise, copy": floor, "ours, no change drawn": ours(NOTHING)}
    ways |= {f"ours: {name}, always": ours(change(NOTHING, changes)) for name, changes in ALONE.items()}
    ways["ours: flips and quarter turns, as small members have"] = ours(FLIPS_AND_QUARTER_TURNS)
    ways["ours: all as the recipe has them"] = ours(AugmentationSettings())
    always = dict(p=1.0, scale=(0.8, 1.2), rotate=(-45, 45), border_mode=cv2.BORDER_REFLECT_101)
    ways["albumentations: Affine, always"] = stock(albumentations.Affine(**always))
    ways["albumentations: flip, rotation by 90, Affine, elastic, dropout, as often as the recipe has such"] = stock(
        albumentations.HorizontalFlip(p=0.5),
        albumentations.RandomRotate90(p=1.0),
        albumentations.Affine(**{**always, "p": 0.7}),
        albumentations.ElasticTransform(alpha=1, sigma=1, border_mode=cv2.BORDER_REFLECT_101, p=0.04),
        albumentations.CoarseDropout((1, 1), (0.01, 0.4), (0.01, 0.4), fill=0, fill_mask=0, p=0.15),
    )
    # What a process frees, glibc gives back to the system or keeps, by the largest block freed before. Kept, it is the
    # work that is measured, and not the kernel handing out pages: up to 3 ms a chip, more or less by chance.
    np.empty(LARGEST_KEPT_BYTES, np.uint8)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            times[name].append(mean_ms(way, chips))
    medians = {name: statistics.median(each) for name, each in times.items()}
    lowest = medians["floor: crop, normalise, copy"]
    headers = ["what", "CPU ms a chip", "of the runs", "above the floor", "chips/s a core"]
    rows = [
        [
            name,
            f"{ms:.2f}",
            f"{min(times[name]):.2f} to {max(times[name]):.2f}",
            f"{ms - lowest:.2f}",
            f"{1000 / ms:.0f}",
        ]
        for name, ms in medians.items()
    ]
    return headers, rows


def mean_ms(way: Way, chips: list[Chip]) -> float:
    """Return what a sample takes on average, over the chips in turn."""
    start = time.process_time()
    for sample in range(SAMPLES_PER_RUN):
        way(*chips[sample % len(chips)], sample)
    return (time.process_time() - start) / SAMPLES_PER_RUN * 1000


def floor(bands: np.ndarray, label: np.ndarray, sample: int) -> Any:
    """Normalise the only crop of its size."""
    valid = np.any(bands != 0, axis=0)
    return normalise(bands, valid, scale_of(bands, valid, FOUR_BANDS, MEMBER.normalisation)), label.copy()


def ours(settings: AugmentationSettings, crop_px: int = CHIP_PX) -> Way:
    """Return what a training does with a tile."""
    transform = TrainingTransform(MEMBER.model_copy(update={"augmentation": settings, "crop_px": crop_px}))
    return lambda bands, label, sample: transform(bands, label, 0, sample)


def stock(*steps: albumentations.BasicTransform) -> Way:
    """Return a pipeline of albumentations' own transforms."""
    compose = albumentations.Compose(steps, seed=0)

    def way(bands: np.ndarray, label: np.ndarray, sample: int) -> Any:
        image, label = floor(bands, label, sample)
        changed = compose(image=np.ascontiguousarray(image.transpose(1, 2, 0)), mask=label)
        return np.ascontiguousarray(changed["image"].transpose(2, 0, 1)), changed["mask"]

    return way


# Pictures


def draw_sheet(chips: list[Chip], cell_px: int) -> Image.Image:
    """Return the sheet: a row a chip, the chip itself in front, with the label's outline; ignored pixels are grey."""
    sheet = Image.new("RGB", (SHEET_COLUMNS * cell_px, len(chips) * cell_px))
    for row, (bands, label) in enumerate(chips):
        # As large as the chip: what is larger is reflected up before it is augmented.
        plain, augmented = (ours(settings, min(label.shape)) for settings in (NOTHING, AugmentationSettings()))
        for column in range(SHEET_COLUMNS):
            way = augmented if column else plain
            image, known = way(bands, label, row * SHEET_COLUMNS + column)
            sheet.paste(draw_cell(image.numpy(), known.numpy(), cell_px), (column * cell_px, row * cell_px))
    return sheet.quantize(256, dither=Image.Dither.NONE)


def draw_cell(image: np.ndarray, label: np.ndarray, side_px: int) -> Image.Image:
    """Return a sample `[C, H, W]` in [-1, 1] with its label `[H, W]` as a square with a dark edge."""
    assert MEMBER.normalisation.maximum is not None
    pixels = np.rint((image + 1) / 2 * MEMBER.normalisation.maximum).astype(np.uint16)
    inner = (side_px - 2, side_px - 2)
    cell = np.array(Image.fromarray(true_colour(pixels, FOUR_BANDS)).resize(inner, Image.Resampling.BOX))
    small = np.array(Image.fromarray(label).resize(inner, Image.Resampling.NEAREST))
    cell[small == LABEL_IGNORE] = AGREEMENT_LEGEND[-1][0]
    cell[outline(small)] = LABEL_COLOUR
    return Image.fromarray(np.pad(cell, ((1, 1), (1, 1), (0, 0))))


if __name__ == "__main__":
    main()
