"""The report of a scoring: figures of ledger, log and casualties, pictures where sources can be read, no secrets."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image

from raytrain.config import change
from raytrain.errors import DataError, StoreOutOfReach
from raytrain.evaluation.page import Gallery, Page, Plot, Problems, Table
from raytrain.evaluation.pictures import NO_DATA_COLOUR, read_picture_mask
from raytrain.evaluation.scoring_gallery import choose_items, make_gallery
from raytrain.evaluation.scoring_page import Scored, scoring_page
from raytrain.evaluation.scoring_report import is_reported, read_scored, write_report
from raytrain.imagery.scene_files import BandFile, SceneSource
from raytrain.imagery.scene_reader import SceneReader, open_scene
from raytrain.scoring import ledger
from raytrain.scoring.casualties import write_casualties
from raytrain.scoring.source_again import source_again
from raytrain.scoring.totals import Item
from raytrain.scoring.units import units_of_chips
from raytrain.scoring.work import Work
from tests.unit.test_course import done, failed, write
from tests.unit.test_perform import (
    BANDS,
    SETTINGS,
    chips_of,
    do_all,
    files_of,
    noise,
    scenes_of,
    score,
    work_at,
    write_scene,
)

LAYERS = change(SETTINGS, {"disagreement": "uint8"})


def scored_at(work: Work, source: Path, ended_by: str = "") -> Scored:
    return read_scored(work.destination, work.scoring, source=str(source), ensemble="/runs/main", ended_by=ended_by)


def report_of(work: Work, source: Path, ended_by: str = "") -> tuple[dict[str, Any], str]:
    page = write_report(work.destination, scored_at(work, source, ended_by))
    return json.loads(Path(work.destination, "report.json").read_text()), Path(page).read_text()


def page_of(scored: Scored) -> Page:
    gallery, undrawn = make_gallery(scored.destination, scored.scoring, choose_items(scored.totals), scored.source)
    return scoring_page(scored, gallery, undrawn)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four noisy scenes of different sizes, scored with disagreement: `in` and `out`."""
    folder = tmp_path_factory.mktemp("scenes")
    for number in range(4):
        write_scene(folder / "in" / f"s{number}.tif", noise(60 + 10 * number, 50, seed=number))
    score(folder / "in", work_at(folder / "out", LAYERS))
    return folder


def test_figures_are_those_of_ledger_log_and_casualties(scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes / "out", tmp_path / "out")
    work = work_at(tmp_path / "out", LAYERS)
    write(tmp_path / "out", "20261118T070640Z-aa", [done(10, 10, 5000), failed(12, "no answer in 4 attempts")])
    write(tmp_path / "out", "20261119T070640Z-bb", [done(90_000, 5, 7000, host="two")])
    write_casualties(work.destination, [["b", "/in/b.tif", "true", "not readable"], ["c", "/in/c", "false", "killed"]])
    found, html = report_of(work, scenes / "in")
    records = list(ledger.read_records(work.destination))
    valid, cloud = 0, 0
    for each in records:
        with rasterio.open(tmp_path / "out" / f"{each.item_id}.tif") as mask:
            valid += int((mask.read(1) != 255).sum())
            cloud += int((mask.read(1) == 1).sum())
    assert found["items"] == {"done": 4, "left_out": 2, "kinds": {"scene": 4}}
    assert found["pixels"] == {"all": sum(50 * (60 + 10 * i) for i in range(4)), "with_data": valid, "cloud": cloud}
    assert found["cloud_fraction"] == cloud / valid
    assert (found["work"]["seconds"], found["work"]["pixels"]) == (17, 12000)
    assert [each["begin"] for each in found["work"]["commands"]] == ["2026-11-18T11:06:40Z", "2026-11-19T12:06:35Z"]
    assert [(each["host"], each["pixels"], each["attempts_failed"]) for each in found["machines"]] == [
        ("two", 7000, 0),
        ("one", 5000, 1),
    ]
    assert sum(map(sum, found["progress"]["pixels"].values())) == pytest.approx(12000, abs=20)
    assert [(each["cause"], each["failed"]) for each in found["attempts_that_failed"]] == [
        ("no answer in N attempts", 1)
    ]
    assert (found["left_out"]["total"], found["left_out"]["in_data"]) == (2, 1)
    assert [each["item_id"] for each in found["left_out"]["first"]] == ["b", "c"]
    assert found["items_to_look_at"][0]["disagreement_mean"] == max(each.disagreement_mean or 0 for each in records)
    assert f"{cloud / valid:.1%}" in html


def test_page_has_its_parts_in_the_order_of_what_an_operator_asks(scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes / "out", tmp_path / "out")
    work = work_at(tmp_path / "out", LAYERS)
    write(tmp_path / "out", "a-b", [done(10, 10, 5000), failed(12, "no answer")])
    write_casualties(work.destination, [["b", "/in/b.tif", "true", "not readable"]])
    page = page_of(scored_at(work, scenes / "in", "too many failures"))
    shown = [part for part in page.parts if not (isinstance(part, Problems) and not part.problems)]
    assert [part.heading for part in shown] == [
        "Progress over time",
        "Cloud fraction of items",
        "Machines",
        "Attempts that failed",
        "Why items were left out",
        "Items that were left out",
        "Notes",
        "Items to look at",
        "Some items",
    ]
    assert all(part.rows for part in shown if isinstance(part, Table))
    assert "too many failures" in page.note
    facts = dict(page.facts)
    assert (facts["Ensemble"], facts["threshold"], facts["precision"]) == ("/runs/main", "0.5", "float32")
    assert (facts["disagreement"], facts["Members"]) == ("uint8", "small-effnet-4b-20k, other")


def test_destination_without_a_log_is_reported_without_time(scenes: Path) -> None:
    page = page_of(scored_at(work_at(scenes / "out", LAYERS), scenes / "in"))
    assert not any(isinstance(part, Plot) and part.heading == "Progress over time" for part in page.parts)
    assert "no log that can be read" in page.note
    assert "Speed" not in [figure.label for figure in page.figures]


def test_number_that_an_item_has_none_of_is_no_number_in_its_row(scenes: Path) -> None:
    scored = scored_at(work_at(scenes / "out", LAYERS), scenes / "in")
    empty = replace(scored.totals.largest[0], item_id="empty", valid_px=0, cloud_px=0, disagreement_mean=None)
    page = page_of(replace(scored, totals=replace(scored.totals, without_data=[empty])))
    (table,) = (part for part in page.parts if isinstance(part, Table) and part.heading == "Items to look at")
    row = dict(zip(table.headers, table.rows[0], strict=True))
    assert (row["Item"], row["Cloud"], row["Disagreement"]) == ("empty", None, None)


def test_report_is_whole_only_with_both_files_and_none_of_it_counts_for_the_ledger(
    scenes: Path, tmp_path: Path
) -> None:
    shutil.copytree(scenes / "out", tmp_path / "out")
    work = work_at(tmp_path / "out", LAYERS)
    before = files_of(tmp_path / "out")
    assert not is_reported(work.destination)
    report_of(work, scenes / "in")
    assert is_reported(work.destination)
    assert files_of(tmp_path / "out").keys() - before.keys() == {"report.html", "report.json"}
    (tmp_path / "out" / "report.json").unlink()
    assert not is_reported(work.destination)


def gallery_of(work: Work, source: Path) -> tuple[Gallery, list[DataError]]:
    scored = scored_at(work, source)
    return make_gallery(work.destination, work.scoring, choose_items(scored.totals), scored.source)


def size_of(png: bytes, tmp_path: Path) -> tuple[int, int]:
    (tmp_path / "picture.png").write_bytes(png)
    with Image.open(tmp_path / "picture.png") as image:
        return image.size


def test_pictures_have_true_colour_the_mask_and_disagreement(scenes: Path, tmp_path: Path) -> None:
    gallery, undrawn = gallery_of(work_at(scenes / "out", LAYERS), scenes / "in")
    assert undrawn == []
    assert len(gallery.pictures) == 4
    assert not any("no true colour" in picture.caption for picture in gallery.pictures)
    assert gallery.pictures[0].caption.startswith("most disagreement: s")
    side = {60: 360, 70: 350, 80: 320, 90: 360}
    for picture in gallery.pictures:
        assert [panel.caption for panel in picture.panels] == ["True colour", "Prediction", "Members' disagreement"]
        (size,) = {size_of(panel.image, tmp_path) for panel in picture.panels}
        assert size[1] in side.values()


def test_no_data_is_no_disagreement_also_where_the_mask_has_no_value_for_it(scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes / "out", tmp_path / "out")
    for path in (tmp_path / "out").glob("*.tif"):
        with rasterio.open(path) as source:
            mask, profile = source.read(), source.profile
        with rasterio.open(path, "w", **{**profile, "driver": "GTiff"}) as target:
            target.write(mask % 255)
    gallery, _ = gallery_of(work_at(tmp_path / "out", LAYERS), scenes / "in")
    (tmp_path / "picture.png").write_bytes(gallery.pictures[0].panels[-1].image)
    with Image.open(tmp_path / "picture.png") as image:
        corner = image.convert("RGB").getpixel((20, 20))
    assert corner == NO_DATA_COLOUR


def test_item_whose_source_is_gone_is_shown_by_its_mask_and_says_why(scenes: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(scenes / "in", own / "in")
    work = work_at(own / "out", LAYERS)
    score(own / "in", work)
    (own / "in" / "s0.tif").unlink()
    write_scene(own / "in" / "s1.tif", noise(30, 30))
    (own / "out" / "s2.tif").unlink()
    gallery, undrawn = gallery_of(work, own / "in")
    captions = {
        name: picture.caption for picture in gallery.pictures for name in ("s0", "s1", "s3") if name in picture.caption
    }
    assert captions["s0"].endswith("(no true colour: no such file)")
    assert captions["s1"].endswith("(no true colour: the source is 30 x 30 px now, not what was scored)")
    assert "no true colour" not in captions["s3"]
    assert [each.subject for each in undrawn] == ["s2"]


def test_mask_of_other_sides_than_its_source_is_shown_by_itself_and_says_so(scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes / "out", tmp_path / "out")
    with rasterio.open(
        tmp_path / "out" / "s1.tif", "w", driver="GTiff", width=7, height=7, count=1, dtype="uint8"
    ) as f:
        f.write(np.ones((1, 7, 7), np.uint8))
    gallery, undrawn = gallery_of(work_at(tmp_path / "out", LAYERS), scenes / "in")
    (caption,) = (picture.caption for picture in gallery.pictures if "s1" in picture.caption)
    assert "(no true colour: the mask has other sides than its source)" in caption
    assert (len(gallery.pictures), undrawn) == (4, [])


def test_name_of_a_machine_that_reads_as_a_formula_is_drawn_as_it_is(scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes / "out", tmp_path / "out")
    hosts = ("$\\foo$", "a $ b")
    write(tmp_path / "out", "a-b", [done(10 * i, 10, 5000, host=host) for i, host in enumerate(hosts, start=1)])
    _, html = report_of(work_at(tmp_path / "out", LAYERS), scenes / "in")
    plot = html[html.index("<svg") : html.index("</svg>")]
    assert all(f">{host}</text>" in plot for host in hosts)


def test_store_that_does_not_answer_is_asked_once_and_time_is_limited(
    scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = work_at(scenes / "out", LAYERS)
    asked: list[str] = []

    def away(item: Item, bands: object, archive: str) -> SceneSource:
        asked.append(item.item_id)
        raise StoreOutOfReach("s3://archive: no answer")

    chosen = choose_items(scored_at(work, scenes / "in").totals)
    late, undrawn = make_gallery(work.destination, work.scoring, chosen, str(scenes), limit_s=-1.0)
    assert (late.pictures, {each.found for each in undrawn}) == ([], {"the pictures before it took too long"})
    monkeypatch.setattr("raytrain.evaluation.scoring_gallery.source_again", away)
    gallery, undrawn = make_gallery(work.destination, work.scoring, chosen, str(scenes))
    assert (len(asked), len(gallery.pictures), undrawn) == (1, 4, [])
    assert all("a store does not answer" in picture.caption for picture in gallery.pictures)


@pytest.mark.parametrize("slow", ["source", "mask"])
def test_time_of_pictures_ends_with_the_read_that_is_under_way(
    scenes: Path, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    clock = [0.0]

    def slowed(read: Callable[..., Any]) -> Callable[..., Any]:
        def slowly(*arguments: Any) -> Any:
            clock[0] += 8
            return read(*arguments)

        return slowly

    monkeypatch.setattr("raytrain.evaluation.scoring_gallery.time", SimpleNamespace(monotonic=lambda: clock[0]))
    if slow == "source":
        monkeypatch.setattr(SceneReader, "read_small", slowed(SceneReader.read_small))
    else:
        monkeypatch.setattr("raytrain.evaluation.scoring_gallery.read_picture_mask", slowed(read_picture_mask))
    work = work_at(scenes / "out", LAYERS)
    chosen = choose_items(scored_at(work, scenes / "in").totals)
    gallery, undrawn = make_gallery(work.destination, work.scoring, chosen, str(scenes), limit_s=5.0)
    in_colour = [picture.panels[0].caption == "True colour" for picture in gallery.pictures]
    if slow == "source":
        assert (in_colour, clock[0], len(undrawn)) == ([True, False, False, False], 8.0, 0)
    else:
        assert (in_colour, clock[0], len(undrawn)) == ([False, False], 16.0, 2)


def test_large_source_without_overviews_is_not_read_for_a_picture_and_one_with_them_is(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(scenes / "in", tmp_path / "in")
    with rasterio.open(tmp_path / "in" / "s3.tif", "r+") as source:
        source.build_overviews([2])
    work = work_at(tmp_path / "out", LAYERS)
    score(tmp_path / "in", work)
    monkeypatch.setattr("raytrain.evaluation.scoring_gallery.PICTURE_PX", 40)
    monkeypatch.setattr("raytrain.evaluation.scoring_gallery.LARGEST_READ_PX", 3 * 50 * 60)
    gallery, undrawn = gallery_of(work, tmp_path / "in")
    why = {picture.caption.split()[2].strip(",:"): picture.caption.partition("(")[2] for picture in gallery.pictures}
    refused = "no true colour: 0 Mpx would have to be read, since the source has no fitting overviews)"
    assert (why, undrawn) == ({"s0": "", "s1": refused, "s2": refused, "s3": ""}, [])


def test_small_read_decodes_the_overview_that_is_large_enough(tmp_path: Path) -> None:
    write_scene(tmp_path / "in" / "s.tif", noise(80, 40))
    (scene,) = scenes_of(tmp_path / "in")
    with open_scene(scene, ("B04", "B02"), "before-04.00") as reader:
        assert reader.small_read_px(20) == 2 * 80 * 40
    with rasterio.open(tmp_path / "in" / "s.tif", "r+") as source:
        source.build_overviews([2, 4, 8])
    with open_scene(scene, ("B04", "B02"), "before-04.00") as reader:
        assert [reader.small_read_px(side) for side in (80, 40, 30, 20)] == [2 * 3200, 2 * 800, 2 * 800, 2 * 200]


def test_chips_and_scenes_of_a_file_a_band_are_shown_in_true_colour(chips: Path, tmp_path: Path) -> None:
    work = work_at(tmp_path / "chips")
    do_all(list(units_of_chips(chips_of(chips))), work)
    gallery, undrawn = gallery_of(work, chips)
    assert undrawn == []
    assert 0 < len(gallery.pictures) <= 9
    assert not any("no true colour" in picture.caption for picture in gallery.pictures)
    for band, plane in zip(BANDS, noise(70, 60), strict=True):
        write_scene(tmp_path / "in" / "product" / f"T36_{band}_10m.tif", plane[None])
    scene_work = work_at(tmp_path / "scene")
    score(tmp_path / "in", scene_work)
    gallery, undrawn = gallery_of(scene_work, tmp_path / "in")
    assert [picture.caption.partition("(")[2] for picture in gallery.pictures] == [""]


def test_signed_sources_are_shown_without_their_signatures(tmp_path: Path) -> None:
    write_scene(tmp_path / "in" / "s.tif", noise(70, 60))
    work = work_at(tmp_path / "out")
    score(tmp_path / "in", work)
    secret = "https://host/s.tif?se=r;w,d&sig=verysecret"
    rows = [[name, secret, "false", f"{secret}: no answer, nor from az://c/s.tif?sig=verysecret"] for name in "bc"]
    write_casualties(work.destination, rows)
    write(tmp_path / "out", "a-b", [failed(i, f"StoreOutOfReach: {secret} is away") for i in (3, 4)])
    scored = read_scored(
        work.destination, work.scoring, source=secret, ensemble=secret, ended_by=f"{secret}: no answer"
    )
    write_report(work.destination, scored)
    for name in ("report.html", "report.json"):
        text = (tmp_path / "out" / name).read_text()
        assert "https://host/s.tif" in text
        assert "verysecret" not in text


def item(**values: object) -> Item:
    common: dict[str, Any] = {"item_id": "i", "kind": "scene", "source_item_uri": None, "height": 1, "width": 1}
    common |= {"valid_px": 1, "cloud_px": 0, "disagreement_mean": None, "members_left_out": ()}
    return Item(**{**common, "source_uri": "", **values})


def test_files_of_a_source_are_found_beside_the_one_that_is_recorded() -> None:
    for uri, expected in (
        ("s3://b/p/T36_B02_10m.jp2", "s3://b/p/T36_B04_10m.jp2"),
        ("/a/B02/B03.tif", "/a/B02/B04.tif"),
        ("https://h/x_b08.TIF", "https://h/x_B04.TIF"),
    ):
        assert source_again(item(source_uri=uri), ("B04",), "/a").files == {"B04": BandFile(uri=expected)}
    assert source_again(item(source_uri="/a/XB02.tif"), ("B04",), "/a").files == {"*": BandFile(uri="/a/XB02.tif")}
    chip = item(kind="chip", source_uri="s3://b/test_features/c")
    assert source_again(chip, ("B04",), "s3://b").files == {"B04": BandFile(uri="s3://b/test_features/c/B04.tif")}


def test_source_of_a_stac_item_is_found_in_its_document(tmp_path: Path) -> None:
    assets = {"B04": {"href": "./a/B04.tif", "roles": ["data"], "type": "image/tiff"}}
    one = {"type": "Feature", "id": "i", "properties": {}, "assets": assets, "links": []}
    (tmp_path / "i.json").write_text(json.dumps(one))
    (tmp_path / "all.json").write_text(json.dumps({"type": "FeatureCollection", "features": [{"id": "j"}, one]}))
    for uri in (f"{tmp_path}/i.json", f"{tmp_path}/all.json#i"):
        found = source_again(item(source_item_uri=uri), ("B04", "B03"), str(tmp_path))
        assert {band: file.uri for band, file in found.files.items()} == {"B04": f"{tmp_path}/a/B04.tif"}
    with pytest.raises(DataError, match="no item k in this page"):
        source_again(item(item_id="k", source_item_uri=f"{tmp_path}/all.json#k"), ("B04",), str(tmp_path))


def test_a_record_of_an_archive_elsewhere_leads_to_no_file_of_this_machine(tmp_path: Path) -> None:
    canary = tmp_path / "canary.tif"
    canary.write_bytes(b"")
    document = tmp_path / "item.json"
    document.write_text(json.dumps({"type": "Feature", "id": "i", "properties": {}, "assets": {}, "links": []}))
    named = [
        item(source_uri=str(canary)),
        item(source_uri=f"file://{canary}"),
        item(kind="chip", source_uri=str(tmp_path)),
        item(source_uri="s3://b/i.tif", source_item_uri=str(document)),
        item(source_uri="s3://b/i.tif", source_item_uri=f"{document}#i"),
    ]
    for archive in ("s3://b/scenes", "https://h/all.json?sig=secret"):
        for each in named:
            with pytest.raises(DataError, match=r"a file of this machine, not of [^?]*$"):
                source_again(each, ("B04",), archive)
    for each in named:
        source_again(each, ("B04",), str(tmp_path))


def test_small_read_of_a_scene_is_its_average_in_the_values_of_training(tmp_path: Path) -> None:
    pixels = noise(80, 40) + 1000
    pixels[:, :20] = 0
    write_scene(tmp_path / "in" / "s.tif", pixels)
    (scene,) = scenes_of(tmp_path / "in")
    with open_scene(scene, ("B04", "B02"), "from-04.00") as reader:
        small = reader.read_small(20)
    assert small.pixels.shape == (2, 20, 10)
    assert not small.pixels[:, :5].any()
    blocks = pixels[[2, 0], 20:].reshape(2, 15, 4, 10, 4).mean(axis=(2, 4)) - 1000
    assert np.abs(small.pixels[:, 5:] - blocks).max() <= 1


def test_huge_log_and_ledger_take_their_time_by_pieces(tmp_path: Path) -> None:
    from tests.bench.ledger import make

    make(str(tmp_path), 20_000)
    ledger.compact(str(tmp_path))
    write(tmp_path, "a-b", *([done(i * 2000 + j, 4, 10**6, host=f"h{j % 50}") for j in range(2000)] for i in range(5)))
    start = time.process_time()
    scored = scored_at(work_at(tmp_path), tmp_path)
    assert time.process_time() - start < 5.0
    assert (scored.totals.num_items, scored.course.pixels) == (20_000, 10_000 * 10**6)
