"""The page of a review in a browser, as people use it: look, decide, repair, together, through a server's death."""

from __future__ import annotations

import base64
import io
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Route, expect
from scipy import ndimage

from raytrain.imagery.rasters import open_geotiff
from raytrain.review.decisions import Decision
from raytrain.review.kinds import KIND_WORDS
from raytrain.review.ranking import RANKING, read_ranking, write_table
from raytrain.tiles.reader import TileReader, read_index
from tests.browser.served_review import Come, Reviewer, Served, come, painted
from tests.making_review import make_review, relabel

SIZE_PX = 64
DOWN = re.compile("net::ERR_|status of 503|status of 401")
"""What a browser writes to its console when nobody answers, whatever a page does about it."""
REFUSED = re.compile(r"status of 4(09|04|22)")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A review of 400 tiles that all tests but those of a dying server share, each with reviewers of its own."""
    folder = tmp_path_factory.mktemp("review")
    with Served(make_review(folder, 400, SIZE_PX), folder / "token") as served:
        yield served


@pytest.fixture
def own_served(tmp_path: Path) -> Iterator[Served]:
    """A review of 8 tiles, all different, that a test may spoil, and whose server it may kill."""
    with Served(make_review(tmp_path, 8, SIZE_PX), tmp_path / "token") as served:
        yield served


@pytest.fixture
def anybody(browser: Browser) -> Iterator[Come]:
    """Open the page for a person; in the end, no browser may have complained but of what the test expects."""
    people: list[tuple[Reviewer, re.Pattern[str] | None]] = []

    def opened(served: Served, name: str, expected: re.Pattern[str] | None = None, **options: Any) -> Reviewer:
        reviewer = come(browser, served, name, **options)
        people.append((reviewer, expected))
        return reviewer

    yield opened
    complaints = [text for person, expected in people for text in person.complaints if not _is(text, expected)]
    for person, _ in people:
        person.context.close()
    assert complaints == []


def _is(text: str, expected: re.Pattern[str] | None) -> bool:
    return expected is not None and expected.search(text) is not None


def label_of(served: Served, tile_id: str) -> NDArray[np.uint8]:
    index = read_index(served.made.shards)
    position = index["tile_id"].to_pylist().index(tile_id)
    _, label = TileReader(served.made.shards, ("B02",)).read(position)
    assert label is not None
    return label


def prediction_of(served: Served, tile_id: str) -> NDArray[np.uint8]:
    with open_geotiff(f"{served.made.predictions}/{tile_id}.tif", "mask") as source:
        return np.asarray(source.read(1))


def mask_in(decision: Decision) -> NDArray[np.uint8]:
    assert decision.mask is not None
    with Image.open(io.BytesIO(base64.b64decode(decision.mask))) as image:
        assert image.mode == "L"
        return np.asarray(image)


def stored(served: Served, reviewer: Reviewer, count: int) -> list[Decision]:
    """The decisions of a reviewer once there are so many and none waits any more."""
    deadline = time.monotonic() + 15
    while len(served.decisions(reviewer.name)) < count and time.monotonic() < deadline:
        reviewer.page.wait_for_timeout(50)
    expect(reviewer.queue()).to_have_text("")
    found = served.decisions(reviewer.name)
    assert len(found) == count
    return found


# The ranking


def test_the_ranking_is_listed_in_its_order_and_only_what_is_in_sight(served: Served, anybody: Come) -> None:
    page = anybody(served, "lister").page
    rows = page.locator("#list .row")
    assert rows.first.locator(".rank").inner_text() == "1"
    assert 8 < rows.count() < 60
    kinds = page.locator("#list .row .name").all_inner_texts()
    assert kinds == [served.made.kinds[tile_id] for tile_id in served.made.tile_ids[: len(kinds)]]
    page.locator("#list").evaluate("(list) => { list.scrollTop = list.scrollHeight }")
    expect(rows.locator(".rank", has_text=re.compile("^400$"))).to_be_visible()
    assert rows.count() < 60
    assert page.locator("#list").evaluate("(list) => list.scrollHeight") == 400 * 46
    expect(page.locator("#list-count")).to_have_text("400 tiles")


def test_filters_choose_what_is_listed(served: Served, anybody: Come) -> None:
    person = anybody(served, "filterer")
    page = person.page
    table = read_ranking(served.made.uri).select(["rank", "tile_id", "kind", "location"]).to_pylist()
    page.select_option("#filter-kind", "shifted")
    of_kind = [row for row in table if row["kind"] == "shifted"]
    person.expect_tile(of_kind[0]["tile_id"])
    expect(page.locator("#list-count")).to_have_text(f"{len(of_kind)} of 400 tiles")
    first = page.locator("#list .row").all()[:6]
    ranks = [row.locator(".rank").inner_text() for row in first]
    assert ranks == [str(row["rank"]) for row in of_kind[:6]]
    place = of_kind[0]["location"]
    page.select_option("#filter-location", place)
    both = [row for row in of_kind if row["location"] == place]
    expect(page.locator("#list-count")).to_have_text(f"{len(both)} of 400 tiles")
    page.select_option("#filter-kind", "")
    page.select_option("#filter-location", "")
    page.fill("#filter-query", table[77]["tile_id"].upper())
    person.expect_tile(table[77]["tile_id"])
    expect(page.locator("#list-count")).to_have_text("1 of 400 tiles")
    page.fill("#filter-query", "nothing is called that")
    person.said("No tile is like that")


def test_decisions_filter_and_nothing_moves_while_they_are_made(served: Served, anybody: Come) -> None:
    person = anybody(served, "decider")
    page = person.page
    page.select_option("#filter-decision", "undecided-mine")
    expect(page.locator("#list-count")).to_have_text("400 tiles")
    for i, key in enumerate("aud"):
        person.expect_tile(served.made.tile_ids[i])
        person.press(key)
    person.expect_tile(served.made.tile_ids[3])
    stored(served, person, 3)
    badges = page.locator("#list .row .badge.mine")
    assert badges.all_inner_texts() == ["A", "U", "D"]
    assert badges.first.get_attribute("aria-label") == "accepted, by decider"
    page.select_option("#filter-decision", "mine")
    expect(page.locator("#list-count")).to_have_text("3 of 400 tiles")
    page.select_option("#filter-decision", "undecided-mine")
    expect(page.locator("#list-count")).to_have_text("397 of 400 tiles")
    page.reload()
    person.expect_tile(served.made.tile_ids[3])  # the first undecided


def test_what_has_no_label_is_listed_in_a_tab(served: Served, anybody: Come) -> None:
    page = anybody(served, "labeller").page
    page.get_by_role("tab", name="Worth labelling").click()
    rows = page.locator("#unlabelled .row")
    expect(rows).to_have_count(5)
    expect(rows.first.locator(".name")).to_have_text("scene0")
    rows.nth(1).click()
    expect(page.locator("#details")).to_contain_text("s3://bucket/scenes/scene1.tif")
    expect(page.locator("#view-0")).to_be_hidden()
    page.keyboard.press("a")  # nothing is there to decide on
    page.get_by_role("tab", name="Suspicious").click()
    expect(page.locator("#list")).to_be_visible()
    kind = served.made.kinds[served.made.tile_ids[0]]
    expect(page.locator("#details .why")).to_have_text(KIND_WORDS[kind])
    assert served.decisions("labeller") == []


# Keys


def test_keys_go_on_and_back_and_say_where_it_ends(served: Served, anybody: Come) -> None:
    person = anybody(served, "goer")
    ids = served.made.tile_ids
    for key, index in (("n", 1), ("j", 2), ("ArrowRight", 3), ("p", 2), ("k", 1), ("ArrowLeft", 0)):
        person.press(key)
        person.expect_tile(ids[index])
    person.press("p")
    person.said("first tile")
    assert served.decisions("goer") == []


def test_letters_that_are_typed_decide_nothing(served: Served, anybody: Come) -> None:
    person = anybody(served, "typist")
    person.press("/")
    person.page.keyboard.type("audfi")
    person.said("No tile is like that")
    person.page.fill("#filter-query", "")
    person.expect_tile(served.made.tile_ids[0])
    person.page.keyboard.press("Escape")
    person.press("r")
    person.page.keyboard.type("a <b>reason</b>")
    person.page.select_option("#filter-kind", served.made.kinds[person.tile])  # the same tile is shown anew
    expect(person.page.locator("#list-count")).to_contain_text("of 400")
    person.press("Escape")
    person.press("u")
    (decision,) = stored(served, person, 1)
    assert (decision.verdict, decision.reason, decision.tile_id) == (
        "unsure",
        "a <b>reason</b>",
        served.made.tile_ids[0],
    )
    assert decision.kind == served.made.kinds[decision.tile_id]
    person.press("p")
    expect(person.page.locator("#details .said-reason")).to_have_text("a <b>reason</b>")
    expect(person.page.locator("#details .decisions")).to_contain_text("typist unsure")
    expect(person.page.locator("#details .facts")).to_be_visible()


def test_keys_choose_layers_and_overlays_and_are_explained(served: Served, anybody: Come) -> None:
    person = anybody(served, "looker")
    page = person.page
    plain = person.picture(0)
    person.press("3")
    expect(page.locator("#layer-0")).to_have_value("probability")
    expect(page.locator(".ramp")).to_be_visible()
    person.shows_other(0, plain)
    person.press("Shift+4", "1")
    expect(page.locator("#layer-1")).to_have_value("disagreement")
    person.shows(0, plain)
    for key, name in (("l", "label"), ("o", "prediction"), ("m", "edit")):
        button = page.locator(f"#show-{name}")
        person.press(key)
        expect(button).to_have_attribute("aria-pressed", "false")
    without = person.picture(0)
    assert without != plain
    person.press("l", "o", "m")
    person.shows(0, plain)
    page.keyboard.down(" ")
    person.shows(0, without)
    page.keyboard.up(" ")
    person.shows(0, plain)
    person.press("s")
    expect(page.locator("#stretch")).to_have_value("percentile")
    person.page.wait_for_load_state("networkidle")
    person.shows_other(0, plain)
    person.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    expect(page.locator("#help-keys dt")).to_have_count(33)
    page.keyboard.press("a")
    page.keyboard.press("Escape")
    assert served.decisions("looker") == []


def test_both_views_zoom_and_move_together(served: Served, anybody: Come) -> None:
    person = anybody(served, "mover")
    page = person.page
    person.press("Shift+1")  # the same layer in both
    page.mouse.move(5, 5)
    page.wait_for_load_state("networkidle")
    fitted = person.picture(0)
    person.shows(1, fitted)
    page.mouse.move(*person.point(10, 50, SIZE_PX, view=1))
    page.mouse.wheel(0, -300)
    page.mouse.move(5, 5)
    zoomed = person.picture(0)
    assert zoomed != fitted
    person.shows(1, zoomed)
    x, y = person.point(32, 32, SIZE_PX, view=0)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 40, y + 25)
    page.mouse.up()
    page.mouse.move(5, 5)
    moved = person.picture(0)
    assert moved not in (zoomed, fitted)
    person.shows(1, moved)
    person.press("+", "-", "0")
    person.shows(0, fitted)
    person.shows(1, fitted)


def test_what_is_below_the_pointer_is_told(served: Served, anybody: Come) -> None:
    person = anybody(served, "pointer")
    tile = served.made.tile_ids[0]
    label, prediction = label_of(served, tile), prediction_of(served, tile)
    for row, column in ((0, 0), (63, 63), (20, 41)):
        person.page.mouse.move(*person.point(row, column, SIZE_PX, view=1))
        words = ["clear", "cloud"]
        expect(person.page.locator("#readout")).to_have_text(
            f"row {row}, column {column} · label {words[label[row, column]]}"
            f" · prediction {words[prediction[row, column]]}"
        )


# Repair


def test_brush_and_eraser_change_exactly_what_they_touch(served: Served, anybody: Come) -> None:
    person = anybody(served, "painter")
    tile = person.tile
    label = label_of(served, tile)
    person.press("b", "[", "[")  # 5 px
    person.paint(SIZE_PX, (10, 10), (10, 30), (25, 40))
    expected = painted(label, 1, 5, (10, 10), (10, 30), (25, 40))
    person.press("e", "[", "[")  # 2 px
    person.paint(SIZE_PX, (12, 20), (40, 20), view=1)
    expected = painted(expected, 0, 2, (12, 20), (40, 20))
    person.press("x", "[")  # 1 px
    person.paint(SIZE_PX, (50, 50), (50, 55))
    expected = painted(expected, 255, 1, (50, 50), (50, 55))
    expect(person.page.locator("#edit-words")).to_have_text(f"{(expected != label).sum()} px edited, not saved")
    person.press("f")
    (decision,) = stored(served, person, 1)
    assert (decision.verdict, decision.tile_id, decision.tile_sha256) == ("fix", tile, served.made.sha256[tile])
    np.testing.assert_array_equal(mask_in(decision), expected)
    assert (expected == 255).sum() == 6
    np.testing.assert_array_equal(label_of(served, tile), label)  # shards stay as they are


def test_strokes_are_undone_and_redone_one_by_one(served: Served, anybody: Come) -> None:
    person = anybody(served, "undoer")
    label = label_of(served, person.tile)
    person.press("b")
    person.paint(SIZE_PX, (8, 8), (8, 20))
    person.press("x")
    person.paint(SIZE_PX, (40, 40), (50, 40))
    first = painted(label, 1, 12, (8, 8), (8, 20))
    words = person.page.locator("#edit-words")
    both = painted(first, 255, 12, (40, 40), (50, 40))
    for key, mask in (
        ("Control+z", first),
        ("Control+z", label),
        ("Control+Shift+Z", first),
        ("Control+Shift+Z", both),
        ("c", label),
        ("Control+z", both),
        ("Control+z", first),
    ):
        person.press(key)
        count = int((mask != label).sum())
        expect(words).to_have_text(f"{count} px edited, not saved" if count else "")
    person.press("f")
    np.testing.assert_array_equal(mask_in(stored(served, person, 1)[0]), first)


def test_the_prediction_is_taken_below_the_pointer(served: Served, anybody: Come) -> None:
    """The predicted cloud there, or the labelled cloud that is predicted clear goes; and nothing else."""
    person = anybody(served, "taker")
    while served.made.kinds[person.tile] not in ("missing-cloud", "empty"):
        person.press("n")
    label, prediction = label_of(served, person.tile), prediction_of(served, person.tile)
    regions, _ = ndimage.label(prediction == 1)
    missed = np.argwhere((prediction == 1) & (label == 0))
    row, column = missed[len(missed) // 2]
    person.page.mouse.move(*person.point(row, column, SIZE_PX))
    person.press("t")
    expected = label.copy()
    expected[regions == regions[row, column]] = 1
    assert (expected != label).any()
    wrong, _ = ndimage.label((prediction == 0) & (expected == 1))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        person.page.mouse.move(*person.point(row, column, SIZE_PX, view=1))
        person.press("t")
        expected[wrong == wrong[row, column]] = 0
    person.press("f")
    np.testing.assert_array_equal(mask_in(stored(served, person, 1)[0]), expected)


def test_labelled_cloud_that_is_predicted_clear_goes(served: Served, anybody: Come) -> None:
    person = anybody(served, "remover")
    while served.made.kinds[person.tile] not in ("false-cloud", "full"):
        person.press("n")
    label, prediction = label_of(served, person.tile), prediction_of(served, person.tile)
    wrong, _ = ndimage.label((prediction == 0) & (label == 1))
    row, column = np.argwhere(wrong)[0]
    person.page.mouse.move(*person.point(row, column, SIZE_PX))
    person.press("t", "f")
    expected = np.where(wrong == wrong[row, column], 0, label)
    np.testing.assert_array_equal(mask_in(stored(served, person, 1)[0]), expected)


def test_the_whole_prediction_is_taken(served: Served, anybody: Come) -> None:
    person = anybody(served, "whole-taker")
    prediction = prediction_of(served, person.tile)
    person.press("Shift+T", "f")
    np.testing.assert_array_equal(mask_in(stored(served, person, 1)[0]), prediction)


def test_a_region_to_ignore_is_what_was_painted(served: Served, anybody: Come) -> None:
    person = anybody(served, "ignorer")
    person.press("i")
    person.said("No region is painted")
    person.press("f")
    person.said("Nothing to fix is painted")
    person.press("x")
    person.paint(SIZE_PX, (20, 20), (30, 30))
    person.press("i")
    (decision,) = stored(served, person, 1)
    assert decision.verdict == "ignore"
    np.testing.assert_array_equal(
        mask_in(decision), painted(np.zeros((SIZE_PX, SIZE_PX), np.uint8), 1, 12, (20, 20), (30, 30))
    )
    person.press("b")
    person.paint(SIZE_PX, (5, 5), (5, 40), (40, 40), (5, 5))
    person.press("e")
    person.paint(SIZE_PX, (60, 5), (60, 60))
    person.press("x")
    person.paint(SIZE_PX, (50, 20))
    person.press("i")
    person.said("f saves all of it")
    assert len(served.decisions("ignorer")) == 1


def test_masks_become_png_files_exactly(served: Served, anybody: Come) -> None:
    page = anybody(served, "encoder").page
    for shape in ((1, 1), (3, 700), (257, 64)):
        mask = np.random.default_rng(shape[1]).choice(np.array([0, 1, 255], np.uint8), shape)
        encoded = page.evaluate(
            """async ([mask, height, width]) => {
                 const png = await import("/static/png.js");
                 return png.toBase64(await png.encodeGreyPng(Uint8Array.from(mask), height, width)) }""",
            [mask.ravel().tolist(), *shape],
        )
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
            image.verify()
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
            assert (image.mode, image.size) == ("L", shape[::-1])
            np.testing.assert_array_equal(np.asarray(image), mask)


# Decisions


def test_undo_takes_the_last_decision_back_and_returns_to_it(served: Served, anybody: Come) -> None:
    person = anybody(served, "changer")
    ids = served.made.tile_ids
    label = label_of(served, ids[1])
    person.press("d", "b")
    person.paint(SIZE_PX, (30, 5), (30, 60), (40, 60))
    person.press("f", "u")
    person.expect_tile(ids[3])
    person.press("z")
    person.expect_tile(ids[2])
    person.press("z")
    person.expect_tile(ids[1])
    expect(person.page.locator("#edit-words")).to_contain_text("not saved")  # to go on with
    expect(person.page.locator("#verdict-fix")).to_have_attribute("aria-pressed", "false")
    person.press("f")
    entries = stored(served, person, 6)
    assert [each.verdict for each in entries] == ["drop", "fix", "unsure", "undo", "undo", "fix"]
    assert [each.undoes for each in entries] == [None, None, None, entries[2].decision_id, entries[1].decision_id, None]
    np.testing.assert_array_equal(mask_in(entries[5]), painted(label, 1, 12, (30, 5), (30, 60), (40, 60)))
    person.page.reload()
    person.wait()
    person.press("z")
    person.expect_tile(ids[1])
    assert stored(served, person, 7)[6].undoes == entries[5].decision_id


def test_a_fix_that_stands_is_gone_on_with(served: Served, anybody: Come) -> None:
    person = anybody(served, "returner")
    label = label_of(served, person.tile)
    person.press("b")
    person.paint(SIZE_PX, (10, 10), (10, 50))
    person.press("f")
    stored(served, person, 1)
    person.page.reload()
    person.wait()
    person.press("p")
    expect(person.page.locator("#edit-words")).to_contain_text(", saved")
    person.press("e")
    person.paint(SIZE_PX, (50, 10), (50, 50))
    person.press("f")
    expected = painted(painted(label, 1, 12, (10, 10), (10, 50)), 0, 12, (50, 10), (50, 50))
    np.testing.assert_array_equal(mask_in(stored(served, person, 2)[1]), expected)


def test_a_decision_is_made_once_however_often_its_key_is_pressed(served: Served, anybody: Come) -> None:
    """And never about a tile that is not shown yet."""
    person = anybody(served, "hasty")
    held: list[Route] = []
    released = False
    person.page.route("**/image/**", lambda route: route.continue_() if released else held.append(route))
    person.page.locator("#list").evaluate("(list) => { list.scrollTop = 200 * 46 }")
    person.page.locator("#list .row", has=person.page.locator(".rank", has_text=re.compile("^205$"))).click()
    expect(person.page.locator("#tile-name")).to_have_text(served.made.tile_ids[204])
    person.page.keyboard.press("a")
    person.page.keyboard.press("a")
    person.said("not shown yet")
    released = True
    for route in held:
        route.continue_()
    person.press("a")
    (decision,) = stored(served, person, 1)
    assert decision.tile_id == served.made.tile_ids[204]


# Nothing is lost


def test_an_edit_survives_leaving_its_tile_and_a_reload(served: Served, anybody: Come) -> None:
    person = anybody(served, "drafter")
    tile = person.tile
    label = label_of(served, tile)
    person.press("b")
    person.paint(SIZE_PX, (20, 3), (20, 60))
    words = person.page.locator("#edit-words").inner_text()
    assert "not saved" in words
    person.press("n", "p")
    person.expect_tile(tile)
    expect(person.page.locator("#edit-words")).to_have_text(words)
    person.page.reload()
    person.expect_tile(tile)
    expect(person.page.locator("#edit-words")).to_have_text(words)
    person.said("your edit from before")
    person.press("f")
    np.testing.assert_array_equal(mask_in(stored(served, person, 1)[0]), painted(label, 1, 12, (20, 3), (20, 60)))
    person.page.reload()
    person.wait()
    person.press("p")
    expect(person.page.locator("#edit-words")).to_contain_text(", saved")  # no draft is left


def test_an_edit_belongs_to_its_tile_even_where_another_has_the_same_pixels(served: Served, anybody: Come) -> None:
    person = anybody(served, "twin")
    hashes = [served.made.sha256[tile_id] for tile_id in served.made.tile_ids]
    first = next(i for i in range(len(hashes) - 1) if hashes[i] == hashes[i + 1])
    person.go_to(served, first)
    person.press("b")
    person.paint(SIZE_PX, (20, 3), (20, 60))
    expect(person.page.locator("#edit-words")).to_contain_text("not saved")
    person.press("n")
    expect(person.page.locator("#edit-words")).to_have_text("")


@pytest.mark.parametrize(
    ("name", "words"), [("patient", "the server does not answer"), ("calm", "the store is out of reach")]
)
def test_decisions_that_could_not_be_sent_survive_a_reload(
    served: Served, anybody: Come, name: str, words: str
) -> None:
    person = anybody(served, name, expected=DOWN)

    def fail(route: Route) -> None:
        if name == "patient":
            route.abort()
        else:
            route.fulfill(status=503, json={"error": words})

    person.page.route("**/api/decisions", fail)
    person.press("a", "u")
    expect(person.queue()).to_have_text(f"2 decisions wait for the server: {words}")
    person.page.reload()
    person.wait()
    expect(person.queue()).to_contain_text("2 decisions wait for the server")
    assert person.page.locator("#list .row .badge.mine").all_inner_texts() == ["A", "U"]
    assert served.decisions(name) == []
    person.page.unroute("**/api/decisions")
    assert [each.verdict for each in stored(served, person, 2)] == ["accept", "unsure"]


def test_a_decision_that_the_server_fails_at_lets_others_pass_but_none_about_its_tile(
    served: Served, anybody: Come
) -> None:
    person = anybody(served, "stuck", expected=re.compile("status of 500"))
    first, second = served.made.tile_ids[:2]

    def fail(route: Route) -> None:
        if route.request.method == "POST" and route.request.post_data_json["tile_id"] == first:
            route.fulfill(status=500, json={"error": "its entry is damaged"})
        else:
            route.continue_()

    person.page.route("**/api/decisions", fail)
    person.press("a", "p", "u", "d")
    expect(person.queue()).to_contain_text("2 decisions wait for the server")
    expect(person.queue()).to_contain_text(f"the server fails at {first}, and is asked again: its entry is damaged")
    deadline = time.monotonic() + 15
    while not served.decisions("stuck") and time.monotonic() < deadline:
        person.page.wait_for_timeout(50)
    assert [each.tile_id for each in served.decisions("stuck")] == [second]
    person.page.unroute("**/api/decisions")
    entries = stored(served, person, 3)
    assert {each.tile_id: each.verdict for each in entries} == {first: "unsure", second: "drop"}
    assert [each.verdict for each in entries if each.tile_id == first] == ["accept", "unsure"]


def test_an_answer_that_is_lost_writes_nothing_twice(served: Served, anybody: Come) -> None:
    person = anybody(served, "unlucky", expected=DOWN)
    sent = []

    def lose(route: Route) -> None:
        if route.request.method != "POST":
            route.continue_()
            return
        response = route.fetch()
        sent.append(response.status)
        if len(sent) == 1:
            route.abort()
        else:
            route.fulfill(response=response)

    person.page.route("**/api/decisions*", lose)
    person.press("d")
    assert [each.verdict for each in stored(served, person, 1)] == ["drop"]
    assert sent == [201, 200]


def test_who_is_not_let_in_any_more_loses_no_decision(served: Served, anybody: Come) -> None:
    """A server with another token knows no cookie of before."""
    person = anybody(served, "stranger", expected=DOWN)
    person.context.clear_cookies()
    person.press("a")
    expect(person.queue()).to_contain_text("1 decision waits for the server: the server does not know this browser")
    person.page.goto(served.url)
    assert [each.verdict for each in stored(served, person, 1)] == ["accept"]


def test_a_browser_without_room_says_so_and_sends_what_it_holds(served: Served, anybody: Come) -> None:
    person = anybody(served, "full", expected=DOWN)
    person.page.route("**/api/decisions", lambda route: route.abort())
    person.page.evaluate("""() => { for (let size = 1 << 22; size; size >>= 1)
        try { for (let i = 0; ; i++) localStorage.setItem(`x${size}-${i}`, "x".repeat(size)) } catch {} }""")
    person.press("a")
    expect(person.queue()).to_contain_text("1 not kept in this browser, which has no room: leave this page open")
    person.page.unroute("**/api/decisions")
    assert [each.verdict for each in stored(served, person, 1)] == ["accept"]


def test_a_killed_server_loses_no_decision(own_served: Served, anybody: Come) -> None:
    person = anybody(own_served, "survivor", expected=DOWN)
    ids = own_served.made.tile_ids
    label = label_of(own_served, ids[1])
    person.press("a")
    stored(own_served, person, 1)
    person.page.wait_for_load_state("networkidle")
    own_served.kill()
    person.press("b")
    person.paint(SIZE_PX, (5, 5), (60, 60))
    person.press("f", "d")  # the next tiles are there already
    expect(person.queue()).to_contain_text("2 decisions wait for the server: the server does not answer")
    own_served.start()
    entries = stored(own_served, person, 3)
    assert [(each.verdict, each.tile_id) for each in entries] == [("accept", ids[0]), ("fix", ids[1]), ("drop", ids[2])]
    np.testing.assert_array_equal(mask_in(entries[1]), painted(label, 1, 12, (5, 5), (60, 60)))


def test_what_a_dead_server_could_not_show_comes_when_it_is_back(own_served: Served, anybody: Come) -> None:
    person = anybody(own_served, "waiter", expected=DOWN)
    ids = own_served.made.tile_ids
    person.page.wait_for_load_state("networkidle")
    own_served.kill()
    person.page.locator("#list .row").nth(7).click()  # not fetched ahead
    person.said("the server does not answer")
    expect(person.page.locator("#views")).to_have_attribute("aria-busy", "true")
    person.page.keyboard.press("a")
    person.said("not shown yet")
    own_served.start()
    person.expect_tile(ids[7])
    expect(person.queue()).to_have_text("")
    assert own_served.decisions("waiter") == []


# Together


def test_two_reviewers_see_each_other(own_served: Served, anybody: Come) -> None:
    anna, ben = anybody(own_served, "anna"), anybody(own_served, "ben")
    ids = own_served.made.tile_ids
    anna.press("a", "d")
    theirs = ben.page.locator("#list .row .badge:not(.mine)")
    expect(theirs).to_have_text(["A", "D"])
    assert theirs.first.get_attribute("aria-label") == "accepted, by anna"
    ben.expect_tile(ids[0])
    expect(ben.page.locator("#details .decisions")).to_contain_text("anna accepted")
    ben.press("a", "u")
    for person, other in ((anna, "ben"), (ben, "anna")):
        expect(person.page.locator("#progress-words")).to_have_text(
            re.compile(rf"^2 of 8 decided by you · 50 % agreement with {other} on 2$")
        )
    ben.page.select_option("#filter-decision", "disputed")
    ben.expect_tile(ids[1])
    expect(ben.page.locator("#list-count")).to_have_text("1 of 8 tiles")
    anna.page.select_option("#filter-decision", "others")
    expect(anna.page.locator("#list-count")).to_have_text("2 of 8 tiles")
    assert len(own_served.decisions("anna")) == len(own_served.decisions("ben")) == 2


def test_nothing_moves_on_the_screen_while_things_are_told(served: Served, anybody: Come) -> None:
    """So that the pointer stays where it was meant to be."""
    person = anybody(served, "steady", expected=DOWN)
    view = person.page.locator("#view-0")
    box = view.bounding_box()
    person.page.route("**/api/decisions", lambda route: route.abort())
    person.press("a", "d", "b")
    person.paint(SIZE_PX, (30, 5), (30, 60))
    expect(person.queue()).to_contain_text("2 decisions wait")
    assert view.bounding_box() == box
    person.page.unroute("**/api/decisions")
    stored(served, person, 2)
    person.page.evaluate("document.getElementById('progress-words').textContent += ' and more'.repeat(50)")
    assert view.bounding_box() == box


def test_another_name_is_another_reviewer(served: Served, anybody: Come) -> None:
    person = anybody(served, "first-name")
    person.press("a")
    stored(served, person, 1)
    person.page.click("#reviewer")
    person.page.fill("#reviewer-name", "not a name")
    person.page.keyboard.press("Enter")
    expect(person.page.locator("#ask-reviewer")).to_be_visible()
    person.page.fill("#reviewer-name", "second-name")
    person.page.keyboard.press("Enter")
    expect(person.page.locator("#progress-words")).to_contain_text("0 of 400 decided by you")
    person.wait()
    person.press("d")
    person.name = "second-name"
    assert stored(served, person, 1)[0].verdict == "drop"
    person.page.reload()
    expect(person.page.locator("#reviewer")).to_have_text("second-name")


# What is wrong is told


def test_a_tile_that_changed_is_refused_and_told(own_served: Served, anybody: Come) -> None:
    person = anybody(own_served, "late", expected=REFUSED)
    tile = person.tile
    relabel(own_served.made, tile)
    person.press("a")
    notice = person.page.locator("#notices")
    expect(notice).to_contain_text(f"Not kept: “accept” for {tile}")
    expect(notice).to_contain_text("changed")
    expect(person.queue()).to_have_text("")
    assert person.page.locator("#list .row .badge.mine").count() == 0
    person.press("p")
    person.expect_tile(tile)
    expect(person.page.locator("#tile-warning")).to_contain_text("changed since it was ranked")
    notice.get_by_role("button", name="Dismiss").click()
    expect(notice).to_be_empty()
    person.page.reload()
    person.expect_tile(tile)
    expect(person.page.locator("#tile-warning")).to_be_visible()
    person.press("d")
    person.said("Not decided: this tile changed")
    assert own_served.decisions("late") == []


def test_names_that_look_like_html_are_text(tmp_path: Path, anybody: Come) -> None:
    made = make_review(tmp_path, 6, SIZE_PX)
    hostile = "<img src=x onerror=document.title='ran'>"
    table = read_ranking(made.uri)
    for name in ("location", "tile_id"):
        values = [f"{hostile}{i}" if name == "tile_id" or i else hostile for i in range(6)]
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), [values])
    write_table(made.uri, RANKING, table)
    with Served(made, tmp_path / "token") as served:
        person = anybody(served, "victim", expected=REFUSED)
        expect(person.page.locator("#tile-name")).to_have_text(f"{hostile}0")
        expect(person.page.locator("#tile-where")).to_contain_text(hostile)
        expect(person.page.locator("#filter-location option")).to_have_count(7)
        expect(person.page.locator("#tile-warning")).to_be_visible()
        person.press("a")
        person.said("Not decided")
        person.press("n")
        assert person.page.title() == "Review of labels"
        assert person.page.locator("img[src=x]").count() == 0


# How it looks

CONTRASTS = """() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((c) => c / 255).map(
    (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4
  ).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (each) => {
    for (let at = each; at; at = at.parentElement) {
      const style = getComputedStyle(at).backgroundColor;
      if (!style.startsWith("rgb")) continue;
      const colour = channels(style);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
  };
  return [...document.querySelectorAll("body *")].filter((each) => each.checkVisibility() &&
    !each.closest(":disabled") && [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim())
  ).map((each) => {
    const colours = [channels(getComputedStyle(each).color), behind(each)].map(luminance);
    return [(Math.max(...colours) + 0.05) / (Math.min(...colours) + 0.05), each.textContent.trim().slice(0, 60)];
  });
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (1920, 1080), (390, 844)])
def test_text_stands_out_and_nothing_reaches_over_the_edge(
    served: Served, anybody: Come, theme: str, width: int, height: int
) -> None:
    viewport = {"width": width, "height": height}
    person = anybody(served, f"eye-{theme}-{width}", viewport=viewport, color_scheme=theme)
    person.press("a")
    ground = person.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 22, 27)"}[theme]
    found = person.page.evaluate(CONTRASTS)
    assert len(found) > 60
    assert [each for each in found if each[0] < 4.5] == []
    assert person.page.evaluate("document.documentElement.scrollWidth") == width
    box = person.page.locator("#view-0").bounding_box()
    assert box is not None
    assert min(box["width"], box["height"]) > 330
    verdict = person.page.locator("#verdict-undo").bounding_box()
    assert verdict is not None
    assert width < 500 or verdict["y"] + verdict["height"] < height


def test_controls_have_names_and_focus_is_seen(served: Served, anybody: Come) -> None:
    person = anybody(served, "keyboarder")
    nameless = person.page.evaluate("""() =>
        [...document.querySelectorAll("button, select, input, textarea, canvas[tabindex]")]
        .filter((each) => !(each.getAttribute("aria-label") || each.textContent.trim() || each.labels?.length))
        .map((each) => each.outerHTML)""")
    assert nameless == []
    for _ in range(8):
        person.page.keyboard.press("Tab")
        style = person.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert style == "solid"
