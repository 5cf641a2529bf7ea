"""Masks against labels of any size, what is wrong with them, metrics.json, the report and its pictures."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import io
import math
import re
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from PIL import Image

from raytrain.cluster.evaluate import EvaluateJob
from raytrain.command_evaluate import print_scores
from raytrain.errors import ConfigError, DataError
from raytrain.evaluation import gallery, html, pictures, plots, report, results
from raytrain.evaluation import page as pages
from raytrain.evaluation.evaluation import evaluation_of
from raytrain.evaluation.intervals import FEW_LOCATIONS
from raytrain.evaluation.masks import Pair, Prediction, Reading, count_pair
from raytrain.evaluation.oddities import Oddity
from raytrain.evaluation.slices import Column, columns_of
from raytrain.evaluation.tally import Tally
from raytrain.tiles.metadata import read_metadata

TRANSFORM = rasterio.Affine(10, 0, 500_000, 0, -10, 4_000_000)
RED_GREEN_BLUE = pictures.TRUE_COLOUR_BANDS


def write_tiff(path: Path, pixels: NDArray[Any], **profile: Any) -> str:
    stack = pixels[None] if pixels.ndim == 2 else pixels
    path.parent.mkdir(parents=True, exist_ok=True)
    profile |= {"count": stack.shape[0], "height": stack.shape[1], "width": stack.shape[2], "dtype": stack.dtype}
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:32636", transform=TRANSFORM, **profile) as target:
        target.write(stack)
        if stack.shape[0] == 3:
            target.descriptions = RED_GREEN_BLUE
    return str(path)


def random_mask(seed: int, shape: tuple[int, int]) -> NDArray[np.uint8]:
    draw = np.random.default_rng(seed)
    return draw.choice(np.array([0, 1, 255], np.uint8), shape, p=[0.5, 0.4, 0.1])


# Rows


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = tmp_path / "metadata.csv"
    path.write_text("chip_id,location,split,tile\na,Lodwar,test,x=1\nb,Lodwar,train\nc,Jinja, test ,\n")
    return str(path)


def test_rows_are_kept_where_every_filter_holds(table: str) -> None:
    def kept(*where: str) -> list[str]:
        return [each.chip_id for each in read_metadata(table, where).rows]

    assert kept() == ["a", "b", "c"]
    assert kept("split=test") == ["a", "c"]
    assert kept("split=test", "location=Jinja") == ["c"]
    assert kept("tile=x=1") == ["a"]
    assert kept("tile=") == ["b", "c"]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (["spilt=test"], "unknown column 'spilt'; known are chip_id, location, split"),
        (["split"], "expected COLUMN=VALUE, found 'split'"),
        (["=test"], "expected COLUMN=VALUE"),
        (["split=tset"], "no row .* split=tset; values of split until then: 'test', 'train'"),
        (["split=train", "location=Jinja"], "no row .* split=train and location=Jinja"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_refused(table: str, where: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_metadata(table, where)


# The report


INPUTS = results.Inputs(
    predictions="s3://a/masks", labels="s3://a/labels", metadata="s3://a/m.csv", where=("split=test",)
)


def an_evaluation(location: str = "Jinja", problems: tuple[Oddity, ...] = ()) -> results.Evaluation:
    confusions = np.zeros((3, 2, 4), np.int64)
    confusions[:, 1] = [[900, 50, 50, 0], [0, 10, 0, 90], [5, 0, 5, 990]]
    tally = Tally(["a", "b", "c"], [location, location, "Lodwar"], confusions, np.zeros(3, np.int64))
    return evaluation_of([tally], columns_of(tally, {}, {}), INPUTS, problems, rule="one", seed=0, resamples=100)


def a_picture() -> pages.Picture:
    pixels = np.full((3, 16, 16), 2000, np.uint16)
    mask = np.zeros((16, 16), np.uint8)
    return pages.Picture(pictures.picture_of_chip(pixels, RED_GREEN_BLUE, mask), 'a "chip"', "<i>adwp</i>")


@functools.cache
def a_report(location: str = "Jinja") -> str:
    evaluation = an_evaluation(location, (Oddity("missing-label", "<b>adwp</b>", "no label in s3://a/labels"),))
    gallery = pages.Gallery([a_picture()], pictures.OUTLINE_LEGEND)
    return html.render_page(report.evaluation_page(evaluation, "Evaluation <1>", gallery))


def test_the_report_needs_nothing_but_itself() -> None:
    page = a_report()
    targets = re.findall(r"""\s(?:src|href|action|srcset|poster|data)\s*=\s*["']([^"']*)""", page)
    assert targets
    assert all(target.startswith(("data:", "#")) for target in targets)
    without_namespaces = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", page)
    assert not re.search(r"@import|url\((?!#)|https?://", without_namespaces)
    assert "default-src 'none'; img-src data:;" in page


def test_the_only_script_is_the_one_that_the_policy_names() -> None:
    page = a_report()
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == page.count("<script") == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in page
    assert not re.search(r"\son\w+=", page), "no handlers in attributes"


def test_every_text_of_the_report_is_escaped() -> None:
    page = a_report("<b>x</b>")
    assert "&lt;b&gt;x&lt;/b&gt;" in page
    for raw in ("<b>", "<i>", "Evaluation <1>", 'alt="a "chip""'):
        assert raw not in page


def test_the_report_says_the_scores_the_rule_and_the_problems() -> None:
    page = a_report()
    for text in (
        "0.8873",
        "0.4667",
        "0.6955",
        "0.4750",
        "the IoU is 1",
        "Left out of the scores (1)",
        "split=test",
        "s3://a/labels",
    ):
        assert text in page
    assert page.index(">Lodwar<") < page.index(">Jinja<"), "the worst location stands first"


JOB = EvaluateJob(
    predictions="p-masks",
    labels="p-labels",
    metadata="p-metadata.csv",
    out="p-out",
    against="p-others",
    where=("split=test",),
    where_metadata="p-more.csv",
    by=("sensor", "season"),
    images="p-images",
    empty_union_rule="zero",
    threshold=0.37,
    scale=0.004,
    edge_px=61,
    allowed=("probabilities", "size"),
    resamples=987,
    seed=4321,
)


def test_the_page_tells_of_every_setting_that_scores_depend_on() -> None:
    inputs = JOB.inputs()
    for name in results.Inputs.model_fields:
        assert getattr(inputs, name) == getattr(JOB, name), name
    made = an_evaluation()
    resampling = made.resampling.model_copy(update={"resamples": JOB.resamples, "seed": JOB.seed})
    update = {"inputs": inputs, "resampling": resampling, "decided_at": JOB.threshold, "empty_union_rule": "zero"}
    told = made.model_copy(update=update)
    facts = "\n".join(text for _, text in report.evaluation_page(told, "Scores").facts)
    for name, value in JOB.model_dump(exclude={"out", "ensemble"}).items():
        for each in value if isinstance(value, tuple) else [value]:
            assert str(each) in facts, name


def an_evaluation_by_size(num_small: int, num_large: int) -> results.Evaluation:
    """Return the scores of chips at a location each, parted by a column into the first `num_small` and the others."""
    count = num_small + num_large
    confusions = np.random.default_rng(0).integers(1, 500, (count, 2, 4))
    names = [f"{i:02}" for i in range(count)]
    tally = Tally(names, names, confusions, np.zeros(count, np.int64))
    sizes = Column("size", ["small"] * num_small + ["large"] * num_large, ["small", "large"])
    return evaluation_of([tally], [sizes], INPUTS, [], rule="one", seed=0, resamples=100)


@pytest.mark.parametrize(("num_small", "is_rough"), [(5, True), (FEW_LOCATIONS, False), (1, False)])
def test_parts_with_intervals_over_few_locations_are_said_to_be_rough(num_small: int, is_rough: bool) -> None:
    made = an_evaluation_by_size(num_small, FEW_LOCATIONS)
    if num_small == 1:
        (one,) = [each for each in made.slices if each.num_locations == 1]
        assert one.iou_pooled_interval is None, "what has no interval needs no note"
    page = report.evaluation_page(made, "Scores")
    (parts,) = [each for each in page.parts if isinstance(each, pages.Table) and "Parts" in each.heading]
    assert ("fewer than 20 locations intervals are rough" in parts.caption) == is_rough
    assert "are rough" not in page.note


def test_the_terminal_says_that_intervals_over_few_locations_are_rough(capsys: pytest.CaptureFixture[str]) -> None:
    print_scores(an_evaluation_by_size(5, 5))
    assert "fewer than 20 locations intervals are rough" in capsys.readouterr().out
    print_scores(an_evaluation_by_size(5, FEW_LOCATIONS))
    assert "rough" not in capsys.readouterr().out


def test_pictures_in_the_report_are_the_pngs_given() -> None:
    found = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", a_report())
    assert [base64.b64decode(text) for text in found] == [a_picture().image]


def test_a_page_takes_further_tables_and_facts_and_leaves_out_what_is_empty() -> None:
    members = pages.Table("Members", ["Member", "Epochs", "Score", "Gain"], [["r34-3b", 1200, 0.5, None]])
    base = report.evaluation_page(an_evaluation(), "raytrain demo")
    page = dataclasses.replace(base, parts=[members, *base.parts], facts=[("Training", "2 min"), *base.facts])
    text = html.render_page(page)
    assert '<td class="number" data-sort="1200">1,200</td><td class="number" data-sort="0.5">0.5000</td>' in text
    assert f'<td class="number missing">{html.MISSING}</td>' in text
    assert "2 min" in text
    assert "Pictures" not in text
    assert "<section" not in html.render_page(pages.Page("Empty", "Nothing here."))


def keys_of(*cells: pages.Cell) -> list[str]:
    text = html.render_page(pages.Page("t", "s", parts=[pages.Table("T", ["N"], [[cell] for cell in cells])]))
    return re.findall(r"<t[dh][^>]*>(?=[^<]*|<span class=.both)", text.partition("<tbody>")[2].partition("</tbody>")[0])


def test_a_column_stands_on_one_side_with_its_header() -> None:
    rows: list[list[pages.Cell]] = [["none", "a", None, 3], ["b", "c", None, "cut off"]]
    text = html.render_page(pages.Page("t", "s", parts=[pages.Table("T", ["N_1", "A", "B", "C"], rows)]))
    sides = [['class="number' in cell for cell in re.findall("<t[dh] ?[^>]*>", row)] for row in text.split("<tr>")[1:]]
    assert sides == [[False, False, True, True]] * 3
    assert re.findall('data-kind="([a-z]+)"', text.partition("<tbody>")[0]) == ["text", "text", "text", "number"]


@pytest.mark.parametrize(
    ("seconds", "unit"), [(0, "seconds"), (120, "seconds"), (121, "minutes"), (7200, "minutes"), (7201, "hours")]
)
def test_times_are_shown_in_a_unit_that_reads_well(seconds: float, unit: str) -> None:
    unit_s, name = plots.time_unit(seconds)
    assert name == unit
    assert unit_s == {"seconds": 1, "minutes": 60, "hours": 3600}[unit]


@pytest.mark.parametrize(
    ("cell", "key"),
    [
        (pages.Bar(1.5), 'data-sort="1.5"'),
        (pages.Shown(-3, "3 days ago"), 'data-sort="-3"'),
        (np.float64(0.1), 'data-sort="0.1"'),
        (2**60, f'data-sort="{2**60}"'),
        (-math.inf, 'data-sort="-Infinity"'),
        (1e-300, 'data-sort="1e-300"'),
    ],
)
def test_numbers_have_a_key_that_javascript_reads(cell: pages.Cell, key: str) -> None:
    (tag,) = keys_of(cell)
    assert key in tag


def test_what_is_no_number_has_no_key() -> None:
    found = keys_of(math.nan, None, pages.Bar(math.nan), pages.Shown(math.nan, "none yet"), "0.5")
    assert len(found) == 5
    assert not any("data-sort" in tag for tag in found)


def test_a_page_of_many_parts_has_a_table_of_contents_with_an_anchor_each() -> None:
    tables = [pages.Table("Same & same", ["N"], [[i]]) for i in range(html.CONTENTS_FROM)]
    few, many = (html.render_page(pages.Page("t", "s", parts=tables[:count])) for count in (len(tables) - 1, None))
    assert "<nav" not in few
    links = re.findall(r'<a href="#([^"]+)">Same &amp; same</a>', many)
    assert links == ["same-same", "same-same-2", "same-same-3", "same-same-4"]
    assert re.findall(r'<section id="([^"]+)">', many) == links


def test_ids_of_one_drawing_are_in_no_other() -> None:
    def drawn(top: float) -> str:
        figure = matplotlib.figure.Figure(plots.HALF)
        axes = figure.subplots()
        axes.plot([0, 1], [0, top], marker="o", color=plots.shade(0.3))
        return plots.svg_of(figure)

    with plots.drawing():
        parts = [
            pages.Plot("A", drawn(1), "a", half=True),
            pages.Plot("B", drawn(1), "b"),
            pages.Plot("C", drawn(2), "c"),
        ]
    text = html.render_page(pages.Page("t", "s", parts=parts))
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    used = re.findall(r'xlink:href="#([^"]+)"|url\(#([^)]+)\)', text)
    assert len(used) > 6
    assert {first or second for first, second in used} <= set(ids)
    for marker in ("var(--scale-2)", "var(--quiet)"):
        assert marker in text
    assert not re.search('#0[1-9a-f]0[0-9a-f]{3}[;"]', text), "a marker colour that is no variable"


def test_a_picture_that_no_browser_shows_is_refused() -> None:
    picture = pages.Picture(b"II*\0", "a", "b")
    with pytest.raises(ValueError, match="PNG, JPEG or WebP"):
        html.render_page(pages.Page("t", "s", parts=[pages.Gallery([picture])]))


def test_a_long_list_of_problems_is_cut_and_counted() -> None:
    problems = [DataError(f"chip{i}", "no label") for i in range(html.PROBLEMS_SHOWN + 7)]
    text = html.render_page(pages.Page("t", "s", parts=[pages.Problems(problems)]))
    assert text.count("<li>") == html.PROBLEMS_SHOWN
    assert "And 7 more" in text


# Pictures


def decoded(png: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_image_that_cannot_be_drawn_costs_its_picture_and_not_the_page(tmp_path: Path) -> None:
    subjects, images = [], {}
    for i, name in enumerate(("good", "empty", "other-size", "mixed")):
        mask = write_tiff(tmp_path / f"{name}.tif", random_mask(i, (64, 64)))
        subjects.append(gallery.Subject(name, f"{name}, Here", mask, mask))
        side = 32 if name == "other-size" else 64
        images[name] = write_tiff(tmp_path / "images" / f"{name}.tif", np.full((3, side, side), 900, np.uint16))
    Path(images["empty"]).write_bytes(b"")
    images["mixed"] = {
        band: write_tiff(tmp_path / f"{band}.tif", np.full((64, 60 + i), 900, np.uint16))
        for i, band in enumerate(RED_GREEN_BLUE)
    }
    found = gallery.draw_gallery([dataclasses.replace(each, image=images[each.name]) for each in subjects])
    assert len(found.pictures) == 4
    panels = {each.caption.partition(",")[0]: [panel.caption for panel in each.panels] for each in found.pictures}
    masks_only = ["Label", "Prediction", "Where they differ"]
    assert panels["good"] == ["True colour", *masks_only]
    for name in ("empty", "other-size", "mixed"):
        assert panels[name] == masks_only
    told = {each.caption.partition(",")[0]: each.caption for each in found.pictures}
    assert "no true colour" not in told["good"]
    assert "no true colour: the bands differ in size" in told["mixed"]
    assert "no true colour: of another shape than the prediction" in told["other-size"]
    assert "no true colour: " in told["empty"]
    assert tuple(found.legend) == pictures.AGREEMENT_LEGEND


def test_a_mask_without_a_label_is_shown_with_its_image_and_the_members_disagreement(tmp_path: Path) -> None:
    mask = write_tiff(tmp_path / "mask.tif", random_mask(0, (60, 40)))
    image = write_tiff(tmp_path / "image.tif", np.full((3, 60, 40), 900, np.uint16))
    values = np.full((60, 40), 100, np.uint8)
    disagreement = write_tiff(tmp_path / "disagreement.tif", values, nodata=255)
    subject = gallery.Subject("adwp", "adwp, 3 % cloud", mask, image=image, disagreement=disagreement)
    found = gallery.draw_gallery([subject], "Scored", "Some of them")
    assert (found.heading, found.caption) == ("Scored", "Some of them")
    (drawn,) = found.pictures
    assert [panel.caption for panel in drawn.panels] == ["True colour", "Prediction", "Members' disagreement"]
    assert [panel.alt for panel in drawn.panels][1] == "Prediction of adwp"
    assert drawn.caption == "adwp, 3 % cloud"
    assert len({decoded(panel.image).shape for panel in drawn.panels}) == 1
    assert found.scales == (gallery.DISAGREEMENT_SCALE,)
    assert tuple(found.legend) == pictures.MASK_LEGEND
    Path(disagreement).unlink()
    without = gallery.draw(subject)
    assert [panel.caption for panel in without.panels] == ["True colour", "Prediction"]
    assert "no disagreement of members: " in without.caption


def test_masks_of_two_shapes_are_an_error(tmp_path: Path) -> None:
    prediction = write_tiff(tmp_path / "prediction.tif", np.zeros((60, 40), np.uint8))
    label = write_tiff(tmp_path / "label.tif", np.zeros((40, 60), np.uint8))
    with pytest.raises(DataError, match=r"label.tif: of another shape"):
        gallery.draw(gallery.Subject("adwp", "", prediction, label))


CLOUD, CLEAR, NO_DATA = (colour for colour, _ in pictures.MASK_LEGEND)
MAPPED = np.array([[0.1, 0.6], [0.8, np.nan]], np.float32)
"""Of which 0.8 alone is cloud from 0.7 on."""


def _prediction_of(kind: str, folder: Path) -> tuple[Prediction, Reading]:
    """Write `MAPPED`, each value over 8 x 8 px, in one of the ways that predictions come."""
    values = MAPPED.repeat(8, 0).repeat(8, 1)
    stored = np.nan_to_num(values * 100, nan=255).round().astype(np.uint8)
    mask = write_tiff(folder / "mask.tif", np.full((16, 16), 1, np.uint8))
    if kind == "floats":
        return Prediction(write_tiff(folder / "map.tif", values)), Reading(0.7, maps_allowed=True)
    if kind == "whole numbers":
        uri = write_tiff(folder / "map.tif", stored, nodata=255)
        return Prediction(uri), Reading(0.7, scale=0.01, maps_allowed=True)
    uri = write_tiff(folder / "map.tif", stored, nodata=255)
    with rasterio.open(uri, "r+") as target:
        target.scales = (0.01,)
    return Prediction(mask, probability=uri), Reading(0.7, by_map=True)


@pytest.mark.parametrize("kind", ["floats", "whole numbers", "beside a mask"])
def test_a_picture_shows_the_cloud_that_was_counted(tmp_path: Path, kind: str) -> None:
    prediction, reading = _prediction_of(kind, tmp_path)
    label = write_tiff(tmp_path / "label.tif", np.zeros((16, 16), np.uint8))
    pair = Pair("a", "Jinja", label, (prediction,))
    (counts,) = count_pair(pair, [reading], edge_px=1)
    assert counts.confusion.sum(0).tolist() == [0, 64, 0, 192], "the lower left block is cloud"
    tally = Tally(["a"], ["Jinja"], counts.confusion[None], np.zeros(1, np.int64))
    (subject,) = report.subjects_of(tally, {"a": pair}, None, reading)
    panels = {panel.caption: decoded(panel.image) for panel in gallery.draw(subject).panels}
    side = len(panels["Prediction"])
    centres = [side // 4, 3 * side // 4]
    assert [[tuple(panels["Prediction"][y, x].tolist()) for x in centres] for y in centres] == [
        [CLEAR, CLEAR],
        [CLOUD, NO_DATA],
    ]
    assert tuple(panels["Where they differ"][centres[1], centres[0]].tolist()) == pictures.PREDICTION_COLOUR


def test_a_map_is_averaged_before_its_threshold_decides_a_pixel_of_a_picture(tmp_path: Path) -> None:
    side = 2 * gallery.PICTURE_PX
    values = np.full((side, side), 0.4, np.float32)
    values[::2, ::2] = 0.7  # each pixel of the picture is the mean of one of these and three of 0.4: 0.475
    uri = write_tiff(tmp_path / "map.tif", values)

    def cloud(threshold: float) -> bool:
        subject = gallery.Subject("a", "", uri, reading=Reading(threshold, maps_allowed=True))
        (colour,) = np.unique(decoded(gallery.draw(subject).panels[0].image).reshape(-1, 3), axis=0)
        return tuple(colour.tolist()) == CLOUD

    assert cloud(0.47)
    assert not cloud(0.48)
    with pytest.raises(DataError, match="are these probabilities"):
        gallery.draw(gallery.Subject("a", "", uri))


def test_true_colour_shows_land_and_keeps_cloud_below_white() -> None:
    sea, land, thin, thick = 400, 1500, 4000, 9000
    pixels = np.array([sea, land, thin, thick, 0, 65535], np.uint16)
    picture = pictures.true_colour(np.broadcast_to(pixels, (3, 1, 6)), RED_GREEN_BLUE)
    assert picture.shape == (1, 6, 3)
    values = picture[0, :, 0].tolist()
    assert 20 < values[0] < 70 < values[1] < 120 < values[2] < 180 < values[3] < 245
    assert values[4:] == [0, 255]


def test_true_colour_finds_its_bands_by_name() -> None:
    pixels = np.stack([np.full((2, 2), value, np.uint16) for value in (1000, 2000, 3000, 9000)])
    bands = ("B02", "B03", "B04", "B08")
    assert np.array_equal(
        pictures.true_colour(pixels, bands), pictures.true_colour(pixels[[2, 1, 0]], ("B04", "B03", "B02"))
    )
    with pytest.raises(ConfigError, match="there is no B04"):
        pictures.true_colour(pixels[:2], bands[:2])


def test_outline_is_the_rim_of_the_cloud_only() -> None:
    mask = np.zeros((7, 9), np.uint8)
    mask[2:5, 3:8] = 1
    mask[0, 0] = 255
    rim = mask == 1
    rim[3, 4:7] = False
    assert np.array_equal(pictures.outline(mask), rim)
    assert not pictures.outline(np.ones((5, 5), np.uint8)).any()


def test_the_picture_is_a_png_with_lines_where_the_masks_have_edges() -> None:
    pixels = np.full((3, 64, 64), 1500, np.uint16)
    prediction, label = np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8)
    prediction[16:40, 16:40] = label[8:48, 8:48] = 1
    line = pictures.LINE_PX
    png = pictures.picture_of_chip(pixels, RED_GREEN_BLUE, prediction, label, max_px=64)
    picture = decoded(png)
    panel = 64 + 2 * line
    assert png.startswith(b"\x89PNG")
    assert picture.shape == (panel, 2 * panel + pictures.GAP_PX, 3)
    left, right = picture[:, :panel], picture[line : panel - line, -panel + line : -line]
    assert len(np.unique(left.reshape(-1, 3), axis=0)) == 1, "the left panel has no lines"
    predicted = (right == pictures.PREDICTION_COLOUR).all(-1)
    labelled = (right == pictures.LABEL_COLOUR).all(-1)
    assert predicted[16, 16:40].all()
    assert predicted[16:40, 39].all()
    assert not predicted[20:36, 20:36].any()
    assert labelled[7, 8:48].all()
    assert not labelled[8:48, 8:48].any(), "the label's line runs around its cloud"


def test_a_chip_all_in_cloud_differs_from_one_all_clear() -> None:
    pixels = np.full((3, 32, 32), 8000, np.uint16)
    cloud, clear = np.ones((32, 32), np.uint8), np.zeros((32, 32), np.uint8)
    both = decoded(pictures.picture_of_chip(pixels, RED_GREEN_BLUE, cloud, cloud))
    neither = decoded(pictures.picture_of_chip(pixels, RED_GREEN_BLUE, clear, clear))
    for colour in (pictures.PREDICTION_COLOUR, pictures.LABEL_COLOUR):
        assert (both == colour).all(-1).any()
        assert not (neither == colour).all(-1).any()


@pytest.mark.parametrize(("size_px", "panel_px"), [(100, 500), (256, 512), (384, 384), (512, 512), (2000, 512)])
def test_panels_fit_the_limit_and_small_chips_are_enlarged(size_px: int, panel_px: int) -> None:
    mask = np.ones((size_px, size_px), np.uint8)
    for panel in (pictures.agreement_panel(mask, mask), pictures.mask_panel(mask)):
        assert decoded(panel).shape == (panel_px, panel_px, 3)
    picture = decoded(pictures.picture_of_chip(np.zeros((3, *mask.shape), np.uint16), RED_GREEN_BLUE, mask))
    assert picture.shape[0] == panel_px + 2 * pictures.LINE_PX


def colours_of(png: bytes) -> list[tuple[int, ...]]:
    return [tuple(colour) for colour in decoded(png)[0].tolist()]


def test_masks_are_shown_in_the_colours_of_their_legends() -> None:
    prediction, label = np.array([[1, 0, 1, 0, 1]], np.uint8), np.array([[1, 1, 0, 0, 255]], np.uint8)
    png = pictures.agreement_panel(prediction, label, max_px=5)
    assert colours_of(png) == [colour for colour, _ in pictures.AGREEMENT_LEGEND]
    png = pictures.mask_panel(np.array([[1, 0, 255]], np.uint8), max_px=3)
    assert colours_of(png) == [colour for colour, _ in pictures.MASK_LEGEND]
    assert Image.open(io.BytesIO(png)).mode == "P"
    with pytest.raises(ValueError, match="one shape"):
        pictures.agreement_panel(prediction, label[:, :4])


def test_disagreement_is_shown_from_none_to_the_largest_and_where_there_is_none() -> None:
    values = np.array([[0.0, 0.25, 0.5, 0.51, np.nan]], np.float32)
    colours = pictures.DISAGREEMENT_COLOURS
    middle = colours[len(colours) // 2]
    expected = [colours[0], middle, colours[-1], colours[-1], pictures.NO_DATA_COLOUR]
    assert colours_of(pictures.disagreement_panel(values, max_px=5)) == expected
    lightness = [0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue in colours]
    assert lightness == sorted(lightness), "more is lighter"


def test_true_colour_is_a_small_jpeg_of_what_was_read() -> None:
    pixels = np.broadcast_to(np.linspace(200, 9000, 300).astype(np.uint16), (3, 300, 300))
    panel = pictures.true_colour_panel(pixels, RED_GREEN_BLUE, max_px=150)
    assert panel.startswith(b"\xff\xd8")
    assert len(panel) < 5_000
    shown = decoded(panel).astype(int)
    assert shown.shape == (150, 150, 3)
    expected = pictures.true_colour(pixels, RED_GREEN_BLUE)[::2, ::2].astype(int)
    assert np.abs(shown - expected).max() < 12


def test_a_layer_of_scoring_is_read_in_its_scale_and_without_what_is_no_data(tmp_path: Path) -> None:
    stored = np.full((40, 60), 127, np.uint8)
    stored[:, :30] = 255
    uri = write_tiff(tmp_path / "layer.tif", stored, nodata=255)
    with rasterio.open(uri, "r+") as target:
        target.scales = (0.5 / 254,)
    values = pictures.read_picture_values(uri, max_px=30)
    assert values.shape == (20, 30)
    assert np.isnan(values[:, :15]).all()
    assert values[:, 15:] == pytest.approx(0.25)


def test_scenes_and_chips_are_read_small_and_in_the_order_of_the_bands_asked_for(tmp_path: Path) -> None:
    pixels = np.stack([np.full((300, 200), value, np.uint16) for value in (4000, 3000, 2000)])
    scene = write_tiff(tmp_path / "scene.tif", pixels)
    chip = {band: write_tiff(tmp_path / f"{band}.tif", pixels[i]) for i, band in enumerate(RED_GREEN_BLUE)}
    mask = write_tiff(tmp_path / "mask.tif", random_mask(0, (300, 200)))
    for source in (scene, chip):
        small = pictures.read_picture_source(source, ("B02", "B04"), max_px=150)
        assert small.shape == (2, 150, 100)
        assert small.dtype == np.uint16
        assert small[:, 7, 7].tolist() == [2000, 4000]
        with pytest.raises(DataError, match="no band B08"):
            pictures.read_picture_source(source, ("B08",))
    small_mask = pictures.read_picture_mask(mask, max_px=150)
    assert small_mask.shape == (150, 100)
    assert set(np.unique(small_mask)) == {0, 1, 255}, "masks are picked, not averaged"
    with pytest.raises(DataError, match="not a readable GeoTIFF"):
        pictures.read_picture_mask(str(tmp_path / "none.tif"))
