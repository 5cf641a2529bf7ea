"""Chips to masks: read ahead, scored some at a time, each written as soon as it is done. Must not know who asks."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raytrain.errors import DataError
from raytrain.imagery import rasters
from raytrain.imagery.baseline import Conversion, conversion_of
from raytrain.imagery.rasters import Raster
from raytrain.scoring.ahead import ahead
from raytrain.scoring.blending import Region, blended_strips
from raytrain.scoring.layers import Kind, create_striped, encode, finish_cog, mean_of, steps_of
from raytrain.scoring.records import Output, Record
from raytrain.scoring.sources import CHANGED, chip_has_changed
from raytrain.scoring.units import Answer, ChipSource, Problem, folder_of
from raytrain.scoring.work import Work
from raytrain.storage.temporary import temporary_folder
from raytrain.tiles.archive import read_chip

CHIPS_AHEAD = 8


@dataclass(frozen=True)
class _ReadChip:
    """A chip with its pixels, or with what is wrong with it."""

    source: ChipSource
    raster: Raster | None
    found: str = ""


@dataclass(frozen=True)
class _Pixels:
    """A chip's pixels, by windows."""

    raster: Raster

    @property
    def height(self) -> int:
        return len(self.raster.valid)

    @property
    def width(self) -> int:
        return len(self.raster.valid[0])

    def read(self, row: int, column: int, height: int, width: int) -> Raster:
        box = slice(row, row + height), slice(column, column + width)
        return Raster(self.raster.pixels[:, *box], self.raster.valid[box], self.raster.georeference)


def score_chips(chips: Sequence[ChipSource], work: Work) -> Answer:
    """Score `chips` and return their records, whose outputs stand then, and what is wrong with those left out."""
    records: list[Record] = []
    problems: list[Problem] = []
    changed: list[Problem] = []
    with ahead(_read(chips, work), CHIPS_AHEAD) as read:
        for group in _of_one_shape(read, work.scoring.settings.windows_per_pass):
            usable = []
            for chip, has_changed in zip(group, _have_changed(group), strict=True):
                if has_changed:
                    changed.append(_problem(replace(chip, found=CHANGED)))
                elif chip.raster is None:
                    problems.append(_problem(chip))
                else:
                    usable.append(chip)
            for chip, layers in zip(usable, _layers(usable, work), strict=True):
                records.append(_write(chip, layers, work))
    pixels = sum(record.height * record.width for record in records)
    return Answer(records=tuple(records), problems=tuple(problems), changed=tuple(changed), pixels=pixels)


def _have_changed(group: Sequence[_ReadChip]) -> list[bool]:
    """Tell of each of some chips, now that they are read, whether it is no more what was listed."""
    with ThreadPoolExecutor(len(group)) as pool:
        return list(pool.map(chip_has_changed, [chip.source for chip in group]))


def _read(chips: Sequence[ChipSource], work: Work) -> Generator[_ReadChip]:
    conversion = _conversion(work)
    for chip in chips:
        bands = [band for band in work.nets.bands if band in chip.files]
        try:
            work.members_left_out(chip.chip_id, bands)
            raster = read_chip(chip.chip_id, {band: chip.files[band] for band in bands})
            pixels = conversion.apply(raster.pixels, raster.valid)
            yield _ReadChip(chip, Raster(pixels, raster.valid, raster.georeference))
        except DataError as error:
            yield _ReadChip(chip, None, error.found)
        except PermissionError as error:
            yield _ReadChip(chip, None, str(error))


def _conversion(work: Work) -> Conversion:
    """Return what the values of chips are taken for: what is asked for, or else what training takes them for."""
    baseline = work.scoring.settings.baseline
    if baseline is not None:
        return conversion_of(baseline)
    return replace(conversion_of("before-04.00"), rule="chips are taken for before baseline 04.00, as in training")


def _of_one_shape(chips: Iterator[_ReadChip], most: int) -> Iterator[list[_ReadChip]]:
    """Yield chips in their order, together up to `most` that follow each other and have one shape and bands."""
    group: list[_ReadChip] = []
    for chip in chips:
        if group and (len(group) == most or _shape(group[0]) != _shape(chip)):
            yield group
            group = []
        group.append(chip)
    if group:
        yield group


def _shape(chip: _ReadChip) -> tuple[tuple[int, ...], tuple[str, ...]] | None:
    return None if chip.raster is None else (chip.raster.pixels.shape, tuple(sorted(chip.source.files)))


def _layers(chips: Sequence[_ReadChip], work: Work) -> list[NDArray[np.float32]]:
    """Return the layers `[L, H, W] float32` of chips of one shape; one larger than a window is blended of several."""
    rasters_of = [chip.raster for chip in chips if chip.raster is not None]
    if not rasters_of:
        return []
    bands = [band for band in work.nets.bands if band in chips[0].source.files]
    height, width = rasters_of[0].valid.shape
    if max(height, width) <= work.scoring.settings.window_px:
        return work.nets.layers([each.pixels for each in rasters_of], [each.valid for each in rasters_of], bands)
    region = Region(row=0, column=0, height=height, width=width)
    return [
        np.concatenate(
            [s.layers for s in blended_strips(_Pixels(each), bands, region, work.nets, work.scoring.settings)], axis=1
        )
        for each in rasters_of
    ]


def _write(chip: _ReadChip, layers: NDArray[np.float32], work: Work) -> Record:
    """Write the outputs of a chip, the mask last, and return its record."""
    raster, settings, chip_id = chip.raster, work.scoring.settings, chip.source.chip_id
    assert raster is not None, "only chips that were read are scored"
    bands = [band for band in work.nets.bands if band in chip.source.files]
    left_out = work.nets.usable(bands)[1]
    work.remove_maps(chip_id, left_out)
    outputs: dict[str, Output] = {}
    for kind, number in work.layer_numbers(bands).items():
        if kind != "mask":
            outputs[kind] = _write_values(kind, layers[number], raster, chip_id, work)
    cloud = (layers[0] >= settings.threshold) & raster.valid
    outputs["mask"] = work.put_bytes(f"{chip_id}.tif", rasters.mask_tiff(cloud.astype(np.uint8), raster.georeference))
    conversion = _conversion(work)
    valid_px = int(raster.valid.sum())
    return Record(
        item_id=chip_id,
        kind="chip",
        source_uri=folder_of(chip.source),
        identity=chip.source.identity,
        settings_digest=work.digest,
        outputs=outputs,
        height=raster.valid.shape[0],
        width=raster.valid.shape[1],
        crs=raster.georeference.crs,
        transform=raster.georeference.transform,
        valid_px=valid_px,
        cloud_px=int(cloud.sum()),
        disagreement_mean=_disagreement_mean(layers, raster, valid_px, bands, work),
        members_left_out=left_out,
        shift=conversion.shift,
        shift_rule=conversion.rule,
    )


def _disagreement_mean(
    layers: NDArray[np.float32], raster: Raster, valid_px: int, bands: Sequence[str], work: Work
) -> float | None:
    number = work.layer_numbers(bands).get("disagreement")
    if number is None:
        return None
    layer, values = work.layers.layer("disagreement"), layers[number]
    return mean_of(layer, steps_of(layer, encode(layer, values, raster.valid, 0.0)), valid_px)


def _write_values(kind: Kind, values: NDArray[np.float32], raster: Raster, chip_id: str, work: Work) -> Output:
    with temporary_folder() as temporary:
        striped, cog = Path(temporary) / "values.tif", Path(temporary) / "cog.tif"
        layer = work.layers.layer(kind)
        height, width = values.shape
        with create_striped(striped, layer, height, width, *raster.georeference.of_rasterio()) as target:
            target.write(encode(layer, values, raster.valid, work.scoring.settings.threshold), 1)
        finish_cog(striped, cog, layer)
        return work.put_file(chip_id, kind, cog)


def _problem(chip: _ReadChip) -> Problem:
    return Problem(item_id=chip.source.chip_id, source_uri=folder_of(chip.source), found=chip.found)
