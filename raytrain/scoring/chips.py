"""Chips to masks: their files read ahead, each asked whether it is still what was listed. Must not know who asks."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from raytrain.errors import DataError
from raytrain.imagery.baseline import Conversion, conversion_of
from raytrain.imagery.rasters import Raster
from raytrain.scoring.images import Image, score_images
from raytrain.scoring.sources import chip_has_changed
from raytrain.scoring.units import Answer, ChipSource, folder_of
from raytrain.scoring.work import Work
from raytrain.tiles.archive import read_chip


def score_chips(chips: Sequence[ChipSource], work: Work) -> Answer:
    """Score `chips` and return their records, whose outputs stand then, and what is wrong with those left out."""
    by_id = {chip.chip_id: chip for chip in chips}

    def have_changed(group: Sequence[Image]) -> list[bool]:
        with ThreadPoolExecutor(len(group)) as pool:
            return list(pool.map(chip_has_changed, [by_id[image.item_id] for image in group]))

    return score_images(_read(chips, work), have_changed, work)


def _read(chips: Sequence[ChipSource], work: Work) -> Generator[Image]:
    conversion = _conversion(work)
    for chip in chips:
        bands = tuple(band for band in work.nets.bands if band in chip.files)
        image = Image(
            item_id=chip.chip_id,
            kind="chip",
            source_uri=folder_of(chip),
            identity=chip.identity,
            bands=bands,
            shift=conversion.shift,
            shift_rule=conversion.rule,
        )
        try:
            work.members_left_out(chip.chip_id, bands)
            raster = read_chip(chip.chip_id, {band: chip.files[band] for band in bands})
            pixels = conversion.apply(raster.pixels, raster.valid)
            yield replace(image, raster=Raster(pixels, raster.valid, raster.georeference))
        except DataError as error:
            yield replace(image, found=error.found)
        except PermissionError as error:
            yield replace(image, found=str(error))


def _conversion(work: Work) -> Conversion:
    """Return what the values of chips are taken for: what is asked for, or else what training takes them for."""
    baseline = work.scoring.settings.baseline
    if baseline is not None:
        return conversion_of(baseline)
    return replace(conversion_of("before-04.00"), rule="chips are taken for before baseline 04.00, as in training")
