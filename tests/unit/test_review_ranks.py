"""What a page lists: the ranks that a filter finds, whoever decided what, and the tiles of some ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from raytrain.review.desk import Desk
from raytrain.review.ranking import read_ranking
from tests.making_review import MadeReview, make_review
from tests.unit.test_review_server import Page

DECIDED = {"ann": ("accept", "drop", "accept"), "bob": ("accept", "accept"), "eve": ("unsure",)}
"""Of the first tiles, by rank, of each reviewer."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeReview:
    return make_review(tmp_path_factory.mktemp("review"), count=12, size_px=32, distinct=4)


@pytest.fixture(scope="module")
def page(made: MadeReview) -> Iterator[Page]:
    page = Page(Desk(made.uri))
    with page.client:
        for reviewer, verdicts in DECIDED.items():
            for tile_id, verdict in zip(made.tile_ids, verdicts, strict=False):
                assert page.decide(made, tile_id, verdict, reviewer=reviewer).status_code == 201
        yield page


@pytest.mark.parametrize(
    ("asked", "ranks"),
    [
        ({}, list(range(1, 13))),
        ({"sort": "-rank"}, list(range(12, 0, -1))),
        ({"verdict": "any"}, [1, 2, 3]),
        ({"verdict": "none"}, list(range(4, 13))),
        ({"verdict": "any", "reviewer": "bob"}, [1, 2]),
        ({"verdict": "none", "reviewer": "eve"}, list(range(2, 13))),
        ({"verdict": "none", "reviewer": "new"}, list(range(1, 13))),
        ({"verdict": "any", "reviewer": "new"}, []),
        ({"verdict": "accept"}, [1, 2, 3]),
        ({"verdict": "drop", "reviewer": "ann"}, [2]),
        ({"verdict": "disputed"}, [1, 2]),
        ({"verdict": "disputed", "reviewer": "ann"}, [1, 2]),
        ({"others": "ann"}, [1, 2]),
        ({"others": "eve"}, [1, 2, 3]),
        ({"others": "ann", "verdict": "none", "reviewer": "eve"}, [2]),
    ],
)
def test_a_filter_finds_ranks(page: Page, asked: dict[str, str], ranks: list[int]) -> None:
    assert page.get("/api/ranks", **asked) == {"ranks": ranks}
    assert [tile["rank"] for tile in page.get("/api/tiles", **asked)["tiles"]] == ranks


def test_text_finds_ids_and_locations(page: Page) -> None:
    tiles = page.get("/api/tiles")["tiles"]
    tile = tiles[6]
    for text in (tile["tile_id"].upper(), tile["location"].lower()):
        expected = [
            each["rank"]
            for each in tiles
            if text.lower() in each["tile_id"].lower() or text.lower() in each["location"].lower()
        ]
        assert tile["rank"] in expected
        assert len(expected) < 12
        assert page.get("/api/ranks", query=text) == {"ranks": expected}
    assert page.get("/api/ranks", query="no.such") == {"ranks": []}


def test_tiles_of_ranks_come_in_the_order_asked_for(page: Page, made: MadeReview) -> None:
    found = page.get("/api/tiles", ranks="7,1,12")["tiles"]
    assert [tile["tile_id"] for tile in found] == [made.tile_ids[6], made.tile_ids[0], made.tile_ids[11]]
    assert found[1]["decisions"] == {"ann": "accept", "bob": "accept", "eve": "unsure"}


@pytest.mark.parametrize(
    "query", ["ranks=0", "ranks=13", "ranks=1,,2", "ranks=-1", "ranks=a", "verdict=maybe", "sort=size", "colour=red"]
)
def test_what_is_not_known_is_refused(page: Page, query: str) -> None:
    answer = page.client.get(f"/api/tiles?{query}")
    assert answer.status_code == 422
    assert query.partition("=")[0] in answer.json()["error"]


def test_the_cursor_of_the_review_leaves_out_what_was_decided_before(page: Page, made: MadeReview) -> None:
    about = page.get("/api/review")
    assert page.get("/api/decisions", after=about["cursor"])["decisions"] == []
    page.decide(made, made.tile_ids[8], "unsure", reviewer="zoe")
    (entry,) = page.get("/api/decisions", after=about["cursor"])["decisions"]
    assert (entry["tile_id"], entry["reviewer"]) == (made.tile_ids[8], "zoe")


def test_another_review_has_another_id(page: Page, made: MadeReview, tmp_path: Path) -> None:
    other = make_review(tmp_path, count=12, size_px=32, distinct=4)
    assert Desk(made.uri).review_id == page.get("/api/review")["review_id"] != Desk(other.uri).review_id


def test_tiles_of_the_same_pixels_lie_apart_in_the_ranking_of_a_review_made_so(tmp_path: Path) -> None:
    apart = make_review(tmp_path, count=12, size_px=32, distinct=4, apart=True)
    hashes = [apart.sha256[tile_id] for tile_id in apart.tile_ids]
    assert all(len({*hashes[start : start + 4]}) == 4 for start in (0, 4, 8))
    suspicion = read_ranking(apart.uri)["suspicion"].to_pylist()
    assert suspicion == sorted(suspicion, reverse=True)
