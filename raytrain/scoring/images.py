"""Small images, chips and tiles, to masks: scored some at a time, each written as soon as it is done.

Must not know how an image is read, or who asks.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raytrain.imagery import rasters
from raytrain.imagery.rasters import Raster
from raytrain.scoring.ahead import ahead
from raytrain.scoring.blending import Region, blended_strips
from raytrain.scoring.layers import Kind, create_striped, encode, finish_cog, mean_of, steps_of
from raytrain.scoring.records import Output, Record
from raytrain.scoring.sources import CHANGED
from raytrain.scoring.units import Answer, Problem
from raytrain.scoring.work import Work
from raytrain.storage.temporary import temporary_folder

IMAGES_AHEAD = 8
"""Read before they are asked for."""


@dataclass(frozen=True)
class Image:
    """An image with its pixels in `bands`, reflectance x 10000, or `found`: what is wrong with it.

    `shift`, `shift_rule`, `fold` and `identity_bands` (the `bands` there) are those of its record. `has_changed` is one
    of which it is known already that it is no more what was listed.
    """

    item_id: str
    kind: Literal["chip", "tile"]
    source_uri: str
    identity: str
    bands: tuple[str, ...]
    shift: int
    shift_rule: str
    fold: int | None = None
    identity_bands: tuple[str, ...] = ()
    raster: Raster | None = None
    found: str = ""
    has_changed: bool = False


@dataclass(frozen=True)
class _Pixels:
    """The pixels of an image, by windows."""

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


def score_images(images: Generator[Image], have_changed: Callable[[Sequence[Image]], list[bool]], work: Work) -> Answer:
    """Score `images`, made in a thread ahead; return the records, whose outputs stand then, and what is wrong.

    `have_changed` tells of each of some images, once they are read, whether it is no more what was listed.
    """
    records: list[Record] = []
    problems: list[Problem] = []
    changed: list[Problem] = []
    with ahead(images, IMAGES_AHEAD) as read:
        for group in _of_one_shape(read, work.scoring.settings.windows_per_pass):
            usable = []
            for image, has_changed in zip(group, have_changed(group), strict=True):
                if has_changed:
                    changed.append(_problem(image, CHANGED))
                elif image.raster is None:
                    problems.append(_problem(image, image.found))
                else:
                    usable.append(image)
            for image, layers in zip(usable, _layers(usable, work), strict=True):
                records.append(_write(image, layers, work))
    pixels = sum(record.height * record.width for record in records)
    return Answer(records=tuple(records), problems=tuple(problems), changed=tuple(changed), pixels=pixels)


def _of_one_shape(images: Iterator[Image], most: int) -> Iterator[list[Image]]:
    """Yield images in their order, together up to `most` that follow each other and have one shape and bands."""
    group: list[Image] = []
    for image in images:
        if group and (len(group) == most or _shape(group[0]) != _shape(image)):
            yield group
            group = []
        group.append(image)
    if group:
        yield group


def _shape(image: Image) -> tuple[tuple[int, ...], tuple[str, ...]] | None:
    return None if image.raster is None else (image.raster.pixels.shape, image.bands)


def _layers(images: Sequence[Image], work: Work) -> list[NDArray[np.float32]]:
    """Return the layers `[L, H, W] float32` of images of one shape; one larger than a window is blended of several."""
    rasters_of = [image.raster for image in images if image.raster is not None]
    if not rasters_of:
        return []
    bands = images[0].bands
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


def _write(image: Image, layers: NDArray[np.float32], work: Work) -> Record:
    """Write the outputs of an image, the mask last, and return its record."""
    raster, settings, item_id, bands = image.raster, work.scoring.settings, image.item_id, image.bands
    assert raster is not None, "only images that were read are scored"
    left_out = work.nets.usable(bands)[1]
    work.remove_maps(item_id, left_out)
    outputs: dict[str, Output] = {}
    for kind, number in work.layer_numbers(bands).items():
        if kind != "mask":
            outputs[kind] = _write_values(kind, layers[number], raster, item_id, work)
    cloud = (layers[0] >= settings.threshold) & raster.valid
    outputs["mask"] = work.put_bytes(f"{item_id}.tif", rasters.mask_tiff(cloud.astype(np.uint8), raster.georeference))
    valid_px = int(raster.valid.sum())
    return Record(
        item_id=item_id,
        kind=image.kind,
        source_uri=image.source_uri,
        identity=image.identity,
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
        shift=image.shift,
        shift_rule=image.shift_rule,
        fold=image.fold,
        bands=image.identity_bands,
    )


def _disagreement_mean(
    layers: NDArray[np.float32], raster: Raster, valid_px: int, bands: Sequence[str], work: Work
) -> float | None:
    number = work.layer_numbers(bands).get("disagreement")
    if number is None:
        return None
    layer, values = work.layers.layer("disagreement"), layers[number]
    return mean_of(layer, steps_of(layer, encode(layer, values, raster.valid, 0.0)), valid_px)


def _write_values(kind: Kind, values: NDArray[np.float32], raster: Raster, item_id: str, work: Work) -> Output:
    with temporary_folder() as temporary:
        striped, cog = Path(temporary) / "values.tif", Path(temporary) / "cog.tif"
        layer = work.layers.layer(kind)
        height, width = values.shape
        with create_striped(striped, layer, height, width, *raster.georeference.of_rasterio()) as target:
            target.write(encode(layer, values, raster.valid, work.scoring.settings.threshold), 1)
        finish_cog(striped, cog, layer)
        return work.put_file(item_id, kind, cog)


def _problem(image: Image, found: str) -> Problem:
    return Problem(item_id=image.item_id, source_uri=image.source_uri, found=found)
