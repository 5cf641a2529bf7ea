"""The server of the review page: lists, pictures, masks and decisions, as a page asks for them."""

from __future__ import annotations

import base64
import io
import itertools
import json
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

from raytrain import storage
from raytrain.errors import ConfigError, StoreOutOfReach
from raytrain.evaluation.tone import true_colour
from raytrain.review import asked
from raytrain.review.board import Board
from raytrain.review.catalogue import Catalogue
from raytrain.review.desk import Desk
from raytrain.review.images import TILE_BYTES, Images, Seen
from raytrain.review.kept import Kept
from raytrain.review.kinds import ERROR_KINDS
from raytrain.review.log import DecisionLog
from raytrain.review.predicted import open_predictions
from raytrain.review.ranking import read_ranking
from raytrain.review.regions import encode_mask
from raytrain.review.server import guarded, make_app
from raytrain.scoring.destination import claim_destination
from raytrain.tiles.reader import TileReader
from tests.making_review import BAND_NAMES, SCORING, MadeReview, copy_to_store, make_review, relabel, write_layer

TOKEN = "t" * 43
SIZE = 32


class Page:
    """What asks the server: a client with the token, and the ids that it draws."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        app = guarded(make_app(desk, "ann"), desk, TOKEN, "127.0.0.1", 8642)
        self.client = TestClient(
            app, base_url="http://127.0.0.1:8642", headers={"Authorization": f"Bearer {TOKEN}"}, follow_redirects=False
        )
        self._drawn = 0

    def get(self, path: str, **query: Any) -> Any:
        answer = self.client.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def raw(self, path: str, **query: Any) -> NDArray[np.uint8]:
        answer = self.client.get(path, params=query)
        assert answer.status_code == 200, answer.text
        height, width = int(answer.headers["x-height"]), int(answer.headers["x-width"])
        return np.frombuffer(answer.content, np.uint8).reshape(height, width)

    def new_id(self) -> str:
        self._drawn += 1
        return f"{self._drawn:032x}"

    def decide(self, made: MadeReview, tile_id: str, verdict: str = "accept", /, **values: Any) -> Any:
        asked = {
            "decision_id": self.new_id(),
            "reviewer": "ann",
            "tile_id": tile_id,
            "tile_sha256": made.sha256[tile_id],
            "verdict": verdict,
        }
        return self.client.post("/api/decisions", json={**asked, **values})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeReview:
    """A review that no test decides on."""
    return make_review(tmp_path_factory.mktemp("review"), count=24, size_px=SIZE)


@pytest.fixture(scope="module")
def page(made: MadeReview) -> Iterator[Page]:
    page = Page(Desk(made.uri))
    with page.client:
        yield page


@pytest.fixture
def own(tmp_path: Path) -> MadeReview:
    """A review of six tiles to decide on."""
    return make_review(tmp_path, count=6, size_px=SIZE, distinct=6, num_places=2)


@pytest.fixture
def open_page() -> Iterator[Callable[[MadeReview], Page]]:
    opened: list[Page] = []

    def make(made: MadeReview, refresh_s: float = 0.0) -> Page:
        opened.append(Page(Desk(made.uri, refresh_s=refresh_s)))
        opened[-1].client.__enter__()
        return opened[-1]

    yield make
    for each in opened:
        each.client.__exit__(None, None, None)


OpenPage = Callable[..., Page]


def soon(found: Callable[[], Any], wanted: Callable[[Any], bool]) -> Any:
    """Return what is found once it is wanted: a look at the log waits for the one before, and a while."""
    end = time.monotonic() + 30
    while not wanted(value := found()):
        assert time.monotonic() < end, value
        time.sleep(0.05)
    return value


def entries(made: MadeReview) -> list[dict[str, Any]]:
    """What lies in the store, by name."""
    folder = Path(made.uri) / "decisions"
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("*.json"))]


def test_the_page_and_its_files_are_served_and_nothing_else_of_the_disk(page: Page) -> None:
    first = page.client.get("/")
    assert first.headers["content-type"].startswith("text/html")
    assert "<script>" not in first.text
    assert "<style" not in first.text
    assert page.client.get("/static/app.js").headers["content-type"].startswith("text/javascript")
    for path in (
        "/static/..%2fserver.py",
        "/static/%2e%2e%2fserver.py",
        "/static/....//server.py",
        "/static/server.py",
        "/static/%2fetc%2fpasswd",
        "/static//etc/passwd",
        "/static/app.js%00.css",
        "/static/..%5cserver.py",
        "/static/",
        "/static",
        "/docs",
        "/redoc",
        "/openapi.json",
        "/review.json",
        "/manifest.json",
    ):
        assert page.client.get(path).status_code == 404, path


def test_the_review_says_what_a_page_needs(page: Page, made: MadeReview) -> None:
    about = page.get("/api/review")
    assert (about["num_tiles"], about["num_unlabelled"], about["threshold"]) == (24, 5, 0.5)
    assert about["has_false_colour"]
    assert about["reviewer"] == "ann"
    assert "undo" not in about["verdicts"]
    assert "fix" in about["verdicts"]
    assert sum(each["count"] for each in about["kinds"]) == sum(each["count"] for each in about["locations"]) == 24
    assert [each["name"] for each in about["kinds"]] == [kind for kind in ERROR_KINDS if kind in made.kinds.values()]


def test_tiles_come_by_rank_in_pages_that_cover_the_ranking(page: Page, made: MadeReview) -> None:
    found = [page.get("/api/tiles", offset=offset, limit=7) for offset in range(0, 28, 7)]
    assert [tile["tile_id"] for each in found for tile in each["tiles"]] == list(made.tile_ids)
    assert {each["total"] for each in found} == {24}
    tiles = found[0]["tiles"]
    assert [tile["rank"] for tile in tiles] == list(range(1, 8))
    assert all(a["suspicion"] >= b["suspicion"] for a, b in itertools.pairwise(tiles))
    assert all(tile["sha256"] == made.sha256[tile["tile_id"]] for tile in tiles)


def test_filters_narrow_the_list_and_go_together(page: Page, made: MadeReview) -> None:
    everything = page.get("/api/tiles")["tiles"]
    place = everything[0]["location"]
    for query, passes in [
        ({"kind": "shifted"}, lambda tile: tile["kind"] == "shifted"),
        ({"location": place}, lambda tile: tile["location"] == place),
        ({"query": "C0001"}, lambda tile: "c0001" in tile["tile_id"]),
        ({"location": place, "query": "c0"}, lambda tile: tile["location"] == place),
        ({"kind": "empty", "location": place}, lambda tile: tile["kind"] == "empty" and tile["location"] == place),
        ({"location": "nowhere"}, lambda tile: False),
        ({"query": ".*"}, lambda tile: False),
    ]:
        found = page.get("/api/tiles", **query)
        assert found["tiles"] == [tile for tile in everything if passes(tile)], query
        assert found["total"] == len(found["tiles"])
    assert len(page.get("/api/tiles", kind="shifted")["tiles"]) == list(made.kinds.values()).count("shifted") > 0


@pytest.mark.parametrize(
    ("sort", "key", "backwards"),
    [
        ("", lambda tile: tile["rank"], False),
        ("-rank", lambda tile: tile["rank"], True),
        ("tile_id", lambda tile: tile["tile_id"], False),
        ("location", lambda tile: (tile["location"], tile["rank"]), False),
        ("datetime", lambda tile: (tile["datetime"] is None, tile["datetime"] or "", tile["rank"]), False),
    ],
)
def test_tiles_are_sorted_as_asked(page: Page, sort: str, key: Callable[[Any], Any], backwards: bool) -> None:
    found = page.get("/api/tiles", sort=sort, location="")["tiles"]
    assert found == sorted(found, key=key, reverse=backwards)
    some = page.get("/api/tiles", sort=sort, kind="shifted")["tiles"]
    assert some == [tile for tile in found if tile["kind"] == "shifted"]


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ({"kind": "ugly"}, "kind: 'ugly', expected one of missing-cloud"),
        ({"verdict": "maybe"}, "verdict: 'maybe', expected one of none, accept"),
        ({"sort": "random"}, "sort: 'random'"),
        ({"limit": 0}, "limit: "),
        ({"limit": 1001}, "limit: "),
        ({"offset": -1}, "offset: "),
        ({"offset": "x"}, "offset: "),
        ({"query": "x" * 201}, "query: "),
    ],
)
def test_a_query_that_is_not_known_is_named(page: Page, query: dict[str, Any], named: str) -> None:
    answer = page.client.get("/api/tiles", params=query)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith(named)


def test_a_tile_has_its_judgement_its_features_and_its_neighbours(page: Page, made: MadeReview) -> None:
    everything = {tile["tile_id"]: tile for tile in page.get("/api/tiles")["tiles"]}
    with_neighbours = 0
    for tile_id, listed in everything.items():
        tile = page.get(f"/api/tiles/{tile_id}")
        assert not tile["hash_changed"]
        assert tile["sha256_now"] == made.sha256[tile_id]
        assert tile["judgement"][tile["kind"]] == pytest.approx(tile["suspicion"], abs=1e-6)
        assert set(tile["judgement"]) == set(ERROR_KINDS)
        assert tile["features"]["boundary_px"] is None
        assert tile["features"]["iou"] >= 0
        same = [
            each["tile_id"]
            for each in everything.values()
            if each["tile_id"] != tile_id
            and listed["datetime"] is not None
            and (each["location"], each["datetime"]) == (listed["location"], listed["datetime"])
        ]
        assert [each["tile_id"] for each in tile["neighbours"]] == same
        with_neighbours += bool(same)
    assert with_neighbours


def test_neighbours_are_of_the_same_source_and_no_more_than_a_row(made: MadeReview) -> None:
    ranking = read_ranking(made.uri)
    one_scene = ["s3://bucket/scene.tif"] * 24
    ranking = ranking.set_column(ranking.schema.get_field_index("source_uri"), "source_uri", [one_scene])
    catalogue = Catalogue(ranking)
    assert len(catalogue.neighbours(3)) == 23
    assert 3 not in catalogue.neighbours(3)


@pytest.mark.parametrize(
    "tile_id",
    ["nothing", "..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd", "p00c00000%00", "%00", "p00c00000.tif"],
)
def test_a_name_that_the_ranking_does_not_have_leads_nowhere(page: Page, made: MadeReview, tile_id: str) -> None:
    sha256 = made.sha256[made.tile_ids[0]]
    ends = [
        "/image/true-colour",
        "/mask/label",
        "/mask/prediction",
        "/mask/label-now?reviewer=ann",
        "/values/probability",
    ]
    for path in [f"/api/tiles/{tile_id}", *(f"/api/tiles/{tile_id}/{sha256}{end}" for end in ends)]:
        assert page.client.get(path).status_code == 404, path


@pytest.mark.parametrize(
    "end",
    ["image/nothing", "image/..", "mask/mask", "mask/..%2fprobability", "values/members", "values/..%2f..", "x/y"],
)
def test_a_layer_that_is_none_leads_nowhere(page: Page, made: MadeReview, end: str) -> None:
    tile_id = made.tile_ids[0]
    assert page.client.get(f"/api/tiles/{tile_id}/{made.sha256[tile_id]}/{end}").status_code in (404, 422)


def test_pictures_show_the_pixels_of_the_shards(page: Page, made: MadeReview) -> None:
    reader = TileReader(made.shards, BAND_NAMES)
    for tile_id in made.tile_ids[:4]:
        bands, _ = reader.read(reader.tile_ids.index(tile_id))
        path = f"/api/tiles/{tile_id}/{made.sha256[tile_id]}/image"
        # The tone is the same for all three colours.
        for layer, wanted in [
            ("true-colour", true_colour(bands, BAND_NAMES)),
            ("false-colour", true_colour(bands[[3, 2, 1]], ("B04", "B03", "B02"))),
        ]:
            answer = page.client.get(f"{path}/{layer}")
            assert answer.headers["content-type"] == "image/jpeg"
            assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
            found = np.asarray(Image.open(io.BytesIO(answer.content)), np.int16)
            assert np.abs(found - wanted).mean() < 6, layer


def test_each_band_is_the_colour_that_its_layer_says(made: MadeReview) -> None:
    reader = TileReader(made.shards, BAND_NAMES)
    images = Images(open_predictions(made.predictions))
    seen = Seen(reader, 0, reader.tile_ids[0], "x")
    images.pixels(seen).bands[:] = np.array([500, 1500, 4000, 9000], np.uint16)[:, None, None]
    as_grey = true_colour(np.array([[[500, 1500, 4000, 9000]]] * 3, np.uint16), ("B04", "B03", "B02"))[0, :, 0]
    tones = dict(zip(BAND_NAMES, as_grey, strict=True))
    for layer, bands in (("true-colour", ("B04", "B03", "B02")), ("false-colour", ("B08", "B04", "B03"))):
        picture = np.asarray(Image.open(io.BytesIO(images.picture(seen, layer, "natural"))), np.int16)
        assert np.abs(picture - [int(tones[band]) for band in bands]).max() <= 2, layer


def test_the_stretch_by_percentiles_uses_the_whole_range_of_the_recorded_pixels(made: MadeReview) -> None:
    reader = TileReader(made.shards, BAND_NAMES)
    images = Images(open_predictions(made.predictions))
    seen = Seen(reader, 0, reader.tile_ids[0], "x")
    pixels = images.pixels(seen)
    pixels.bands[:, :8] = 0  # no data
    picture = np.asarray(Image.open(io.BytesIO(images.picture(seen, "true-colour", "percentile"))), np.int16)
    assert picture[:7].max() < 40
    recorded = picture[9:].reshape(-1, 3)
    for channel, band in zip(recorded.T, (2, 1, 0), strict=True):
        low, high = np.percentile(pixels.bands[band, 9:], (2, 98))
        wanted = np.clip((pixels.bands[band, 9:].astype(float) - low) / (high - low), 0, 1) * 255
        assert np.abs(channel - wanted.ravel()).mean() < 12


def test_a_picture_is_no_larger_than_asked(page: Page, made: MadeReview) -> None:
    tile_id = made.tile_ids[0]
    path = f"/api/tiles/{tile_id}/{made.sha256[tile_id]}/image/true-colour"
    for max_px, size in [(16, 16), (31, 31), (64, SIZE)]:
        answer = page.client.get(path, params={"max_px": max_px})
        assert Image.open(io.BytesIO(answer.content)).size == (size, size)
    assert page.client.get(path, params={"max_px": 1_000_000}).status_code == 422


def test_masks_and_values_are_those_of_the_shards_and_the_predictions(page: Page, made: MadeReview) -> None:
    import rasterio

    reader = TileReader(made.shards, BAND_NAMES)
    for tile_id in made.tile_ids[:4]:
        _, label = reader.read(reader.tile_ids.index(tile_id))
        path = f"/api/tiles/{tile_id}/{made.sha256[tile_id]}"
        assert (page.raw(f"{path}/mask/label") == label).all()
        for end, name in [
            ("mask/prediction", f"{tile_id}.tif"),
            ("values/probability", f"probability/{tile_id}.tif"),
            ("values/disagreement", f"disagreement/{tile_id}.tif"),
        ]:
            with rasterio.open(Path(made.predictions, name)) as source:
                assert (page.raw(f"{path}/{end}") == source.read(1)).all()


def test_what_is_made_of_predictions_is_kept_by_a_browser_only_under_the_name_of_their_version(
    page: Page, made: MadeReview
) -> None:
    tile_id = made.tile_ids[0]
    path = f"/api/tiles/{tile_id}/{made.sha256[tile_id]}/values/probability"
    version = page.get("/api/review")["version"]
    assert "immutable" in page.client.get(path, params={"v": version}).headers["cache-control"]
    for query in ({}, {"v": "0" * 16}):
        assert page.client.get(path, params=query).headers["cache-control"] == "private, no-cache"


def test_bytes_come_plain_where_gzip_is_not_understood(page: Page, made: MadeReview) -> None:
    tile_id = made.tile_ids[0]
    path = f"/api/tiles/{tile_id}/{made.sha256[tile_id]}/mask/label"
    plain = page.client.get(path, headers={"Accept-Encoding": "identity"})
    packed = page.client.get(path, headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert plain.content == packed.content
    assert len(plain.content) == SIZE * SIZE


def test_float_layers_are_told_in_the_same_steps(own: MadeReview, open_page: OpenPage) -> None:
    tile_id = own.tile_ids[0]
    values = np.linspace(0, 0.5, SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE)
    values[0, :3] = np.nan
    write_layer(Path(own.predictions, "disagreement", f"{tile_id}.tif"), values)
    found = open_page(own).raw(f"/api/tiles/{tile_id}/{own.sha256[tile_id]}/values/disagreement")
    assert (found[0, :3] == 255).all()
    assert np.abs(found[1:] * (0.5 / 254) - values[1:]).max() <= 0.25 / 254 + 1e-6


def test_predictions_that_are_missing_damaged_or_of_another_size_are_told(own: MadeReview, open_page: OpenPage) -> None:
    page = open_page(own)
    gone, damaged, small, strange = own.tile_ids[:4]
    folder = Path(own.predictions)
    (folder / f"{gone}.tif").unlink()
    (folder / f"{damaged}.tif").write_bytes(b"II*\0nothing")
    write_layer(folder / f"{small}.tif", np.zeros((8, 9), np.uint8))
    write_layer(folder / f"{strange}.tif", np.full((SIZE, SIZE), 7, np.uint8))
    for tile_id, status, text in [
        (gone, 404, "no such file"),
        (damaged, 500, "not a readable GeoTIFF"),
        (small, 500, "1 bands of 9 x 8 px, but the tile has 32 x 32 px"),
        (strange, 500, "values other than 0, 1 and 255: [7]"),
    ]:
        answer = page.client.get(f"/api/tiles/{tile_id}/{own.sha256[tile_id]}/mask/prediction")
        assert answer.status_code == status
        assert text in answer.json()["error"]


def test_damaged_shards_are_told_and_the_rest_is_shown(own: MadeReview, open_page: OpenPage) -> None:
    page = open_page(own)
    shard = Path(own.shards, "shard-00000.parquet")
    data = bytearray(shard.read_bytes())
    reader = TileReader(own.shards, BAND_NAMES)
    first = int(reader._numbers["B03_offset"][0])
    data[first + 5] ^= 1
    shard.write_bytes(data)
    bad, good = reader.tile_ids[0], reader.tile_ids[1]
    answer = page.client.get(f"/api/tiles/{bad}/{own.sha256[bad]}/image/true-colour")
    assert answer.status_code == 500
    assert "CRC-32" in answer.json()["error"]
    assert page.client.get(f"/api/tiles/{good}/{own.sha256[good]}/image/true-colour").status_code == 200


def test_unlabelled_items_come_in_pages(page: Page) -> None:
    found = page.get("/api/unlabelled", offset=1, limit=2)
    assert found["total"] == 5
    assert [item["item_id"] for item in found["items"]] == ["scene1", "scene2"]


def test_a_decision_lies_in_the_store_before_it_is_acknowledged(own: MadeReview, open_page: OpenPage) -> None:
    page = open_page(own)
    tile_id = own.tile_ids[0]
    answer = page.decide(own, tile_id, reason="a thin cirrus", kind="missing-cloud")
    assert answer.status_code == 201
    (entry,) = entries(own)
    decision = answer.json()["decision"]
    assert entry["decision_id"] == decision["decision_id"]
    assert entry["number"] == decision["number"] == 1
    assert (entry["reviewer"], entry["reason"], entry["kind"]) == ("ann", "a thin cirrus", "missing-cloud")
    assert entry["time"].endswith("Z")
    assert answer.json()["standing"]["ann"]["verdict"] == "accept"
    second = page.decide(own, own.tile_ids[1], "drop").json()["decision"]
    assert second["number"] == 2


def test_a_reviewer_s_later_decision_has_a_later_time_though_the_clock_was_set_back(
    own: MadeReview, open_page: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, tile_id = open_page(own), own.tile_ids[0]
    monkeypatch.setattr(asked, "now", lambda: "2031-01-01T00:00:59.999Z")
    assert page.decide(own, tile_id, "drop").status_code == 201
    monkeypatch.setattr(asked, "now", lambda: "2026-11-27T10:00:00.000Z")
    another = open_page(own)
    assert another.decide(own, tile_id, reviewer="bea").json()["decision"]["time"] == "2026-11-27T10:00:00.000Z"
    for known, server, letter, verdict, time_given in (
        (2, page, "a", "unsure", "2031-01-01T00:01:00.000Z"),
        (3, another, "b", "accept", "2031-01-01T00:01:00.001Z"),
    ):
        soon(partial(server.get, "/api/decisions"), lambda found, known=known: len(found["decisions"]) == known)
        answer = server.decide(own, tile_id, verdict, decision_id=letter * 32).json()
        assert (answer["decision"]["time"], answer["standing"]["ann"]["verdict"]) == (time_given, verdict)
    last = "9999-12-31T23:59:59.999Z"
    assert asked.time_after(last) == last


def test_the_same_decision_asked_again_is_written_once(own: MadeReview, open_page: OpenPage) -> None:
    page = open_page(own)
    tile_id, same = own.tile_ids[0], "f" * 32
    first = page.decide(own, tile_id, decision_id=same)
    again = page.decide(own, tile_id, decision_id=same)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    other = page.decide(own, tile_id, "drop", decision_id=same)
    assert other.status_code == 422
    assert "another decision has it" in other.json()["error"]
    relabel(own, tile_id)  # what was written before that stays acknowledged
    assert page.decide(own, tile_id, decision_id=same).status_code == 200
    assert len(entries(own)) == 1


def test_the_same_decision_sent_to_two_servers_is_written_once(own: MadeReview, open_page: OpenPage) -> None:
    """The first wrote it and was killed before it could say so; the other looked at the log before that."""
    first, second = open_page(own), open_page(own, refresh_s=1000.0)
    tile_id, same = own.tile_ids[0], "f" * 32
    assert first.decide(own, tile_id, decision_id=same).status_code == 201
    assert second.decide(own, tile_id, decision_id=same).status_code == 200
    refused = second.decide(own, tile_id, "drop", decision_id=same)
    assert refused.status_code == 422
    assert len(entries(own)) == 1


def test_a_decision_about_a_tile_whose_hash_changed_is_refused_and_shown_and_never_written(
    own: MadeReview, open_page: OpenPage
) -> None:
    page = open_page(own)
    tile_id, other = own.tile_ids[:2]
    before = page.raw(f"/api/tiles/{tile_id}/{own.sha256[tile_id]}/mask/label")
    new = relabel(own, tile_id)
    answer = page.decide(own, tile_id)
    assert answer.status_code == 409
    assert answer.json()["tile_id"] == tile_id
    assert answer.json()["found"] == new
    assert "changed in the shards" in answer.json()["error"]
    assert not entries(own)
    tile = page.get(f"/api/tiles/{tile_id}")
    assert tile["hash_changed"]
    assert tile["sha256_now"] == new
    assert tile["sha256"] == own.sha256[tile_id]
    for end in (
        "image/true-colour",
        "mask/label",
        "mask/prediction",
        "values/probability",
        "mask/label-now?reviewer=a",
    ):
        assert page.client.get(f"/api/tiles/{tile_id}/{own.sha256[tile_id]}/{end}").status_code == 409
        assert page.client.get(f"/api/tiles/{tile_id}/{new}/{end}").status_code == 200
    assert (page.raw(f"/api/tiles/{tile_id}/{new}/mask/label") == 1 - before).all()
    assert page.decide(own, other).status_code == 201
    assert page.decide(own, tile_id, tile_sha256=new).status_code == 201


def test_pictures_of_shards_that_were_written_anew_a_moment_ago_are_none_of_the_old_tile(
    own: MadeReview, open_page: OpenPage
) -> None:
    page = open_page(own)
    tile_id = own.tile_ids[0]
    page.get(f"/api/tiles/{tile_id}")  # a look at the shards, which counts for two seconds
    relabel(own, tile_id)
    answers = [
        page.client.get(f"/api/tiles/{each}/{own.sha256[each]}/image/true-colour").status_code for each in own.tile_ids
    ]
    assert answers == [409, 200, 200, 200, 200, 200]


def test_shards_that_went_away_are_told_and_come_back(own: MadeReview, open_page: OpenPage) -> None:
    page = open_page(own)
    manifest = Path(own.shards, "manifest.json")
    data = manifest.read_bytes()
    manifest.unlink()
    answer = page.decide(own, own.tile_ids[0])
    assert answer.status_code == 503
    assert "manifest.json" in answer.json()["error"]
    assert page.get("/api/tiles")["total"] == 6
    manifest.write_bytes(data)
    assert page.decide(own, own.tile_ids[0]).status_code == 201


def png(mask: NDArray[Any], mode: str = "L") -> str:
    buffer = io.BytesIO()
    Image.fromarray(mask).convert(mode).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def bomb(side: int) -> str:
    """A PNG that claims `side` x `side` px of black, in few bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * 2_000_000, 9)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return base64.b64encode(data).decode()


SQUARE = np.zeros((SIZE, SIZE), np.uint8)
SQUARE[4:9, 4:12] = 1
BAD_MASKS: dict[str, tuple[str, Any, str]] = {
    "none for a fix": ("fix", None, "mask: needed with fix"),
    "none for an ignore": ("ignore", None, "mask: needed with ignore"),
    "one for an accept": ("accept", encode_mask(SQUARE), "mask: no part of accept"),
    "no base64": ("fix", "!!!", "not base64"),
    "no PNG": ("fix", base64.b64encode(b"GIF89a").decode(), "not a PNG"),
    "another size": ("fix", encode_mask(SQUARE[:-1]), f"{SIZE} x {SIZE - 1} px, where the tile has {SIZE} x {SIZE}"),
    "other values": ("fix", encode_mask(SQUARE * 2), "has the values 2"),
    "255 in a region": ("ignore", encode_mask(SQUARE * 255), "has the values 255"),
    "an empty region": ("ignore", encode_mask(SQUARE * 0), "no pixel to ignore"),
    "colours": ("fix", png(SQUARE, "RGBA"), "expected 8 bits grey"),
    "a bomb": ("fix", bomb(60_000), "60000 x 60000 px"),
    "a bomb of the right size": ("fix", bomb(SIZE)[:-8], "mask: "),
    "no text": ("fix", 7, "mask: "),
}


@pytest.mark.parametrize("name", BAD_MASKS)
def test_a_mask_that_fits_neither_tile_nor_verdict_is_refused_with_a_sentence(
    page: Page, made: MadeReview, name: str
) -> None:
    verdict, mask, text = BAD_MASKS[name]
    answer = page.decide(made, made.tile_ids[0], verdict, mask=mask)
    assert answer.status_code == 422
    assert text in answer.json()["error"]
    assert not entries(made)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"reviewer": "../evil"}, "reviewer: "),
        ({"reviewer": ""}, "reviewer: "),
        ({"reviewer": ".hidden"}, "reviewer: "),
        ({"reviewer": "a/b"}, "reviewer: "),
        ({"reviewer": "a" * 201}, "reviewer: "),
        ({"decision_id": "../../x"}, "decision_id: "),
        ({"decision_id": "A" * 32}, "decision_id: "),
        ({"tile_sha256": "x"}, "tile_sha256: "),
        ({"verdict": "delete"}, "verdict: "),
        ({"kind": "ugly"}, "kind: "),
        ({"reason": "x" * 1001}, "reason: "),
        ({"number": 7}, "number: "),
        ({"time": "2020-01-01T00:00:00.000Z"}, "time: "),
        ({"undoes": "0" * 32}, "undoes: no part of accept"),
        ({"verdict": "undo"}, "undoes: needed with undo"),
        ({"verdict": "undo", "undoes": "0" * 32}, "undoes: ann has no decision"),
    ],
)
def test_values_that_make_no_decision_are_refused_with_a_sentence(
    page: Page, made: MadeReview, values: dict[str, Any], text: str
) -> None:
    answer = page.decide(made, made.tile_ids[0], **values)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith(text)
    assert not Path(made.uri, "decisions").exists()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b'{"a": NaN}', b"[" * 5000])
def test_a_body_that_is_no_decision_is_refused(page: Page, body: bytes) -> None:
    answer = page.client.post("/api/decisions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)


def test_a_body_larger_than_any_mask_of_these_tiles_is_refused(own: MadeReview, open_page: OpenPage) -> None:
    answer = open_page(own).decide(own, own.tile_ids[0], "fix", mask="A" * (2 * SIZE * SIZE + 2**16))
    assert answer.status_code == 413
    noise = np.random.default_rng(0).choice(np.array([0, 1, 255], np.uint8), (SIZE, SIZE))
    assert open_page(own).decide(own, own.tile_ids[0], "fix", mask=encode_mask(noise)).status_code == 201


def test_an_unknown_tile_is_no_tile_to_decide_on(page: Page, made: MadeReview) -> None:
    answer = page.decide(made, made.tile_ids[0], tile_id="nothing")
    assert answer.status_code == 404
    assert not entries(made)


def test_the_label_as_decided_is_the_repaired_one_or_has_255_and_undo_brings_it_back(
    own: MadeReview, open_page: OpenPage
) -> None:
    page = open_page(own)
    tile_id = own.tile_ids[0]
    path = f"/api/tiles/{tile_id}/{own.sha256[tile_id]}/mask"
    label = page.raw(f"{path}/label")

    def now(reviewer: str = "ann") -> NDArray[np.uint8]:
        return page.raw(f"{path}/label-now", reviewer=reviewer)

    assert (now() == label).all()
    fix = page.decide(own, tile_id, "fix", mask=encode_mask(SQUARE)).json()["decision"]
    assert fix["has_mask"]
    assert "mask" not in fix
    assert (now() == SQUARE).all()
    ignored = page.decide(own, tile_id, "ignore", mask=encode_mask(SQUARE)).json()["decision"]
    assert (now() == np.where(SQUARE == 1, 255, label)).all()
    assert (now("bea") == label).all()
    undone = page.decide(own, tile_id, "undo", undoes=ignored["decision_id"])
    assert undone.json()["standing"]["ann"]["verdict"] == "fix"
    assert (now() == SQUARE).all()
    assert page.decide(own, tile_id, "undo", undoes=fix["decision_id"]).json()["standing"] == {}
    assert (now() == label).all()
    assert (page.raw(f"{path}/label") == label).all()
    history = page.get(f"/api/tiles/{tile_id}")["history"]
    assert [each["verdict"] for each in history] == ["fix", "ignore", "undo", "undo"]


def test_nobody_takes_back_what_another_decided_or_what_was_decided_on_another_tile(
    own: MadeReview, open_page: OpenPage
) -> None:
    page = open_page(own)
    first, second = own.tile_ids[:2]
    decision_id = page.decide(own, first).json()["decision"]["decision_id"]
    for values in ({"reviewer": "bea"}, {"tile_id": second, "tile_sha256": own.sha256[second]}):
        answer = page.decide(own, first, "undo", undoes=decision_id, **values)
        assert answer.status_code == 422
        assert "has no decision" in answer.json()["error"]


def test_tiles_are_filtered_by_what_stands_of_one_reviewer_or_of_anyone(own: MadeReview, open_page: OpenPage) -> None:
    page = open_page(own)
    a, b, c, *rest = own.tile_ids

    def listed(**query: str) -> list[str]:
        return [tile["tile_id"] for tile in page.get("/api/tiles", **query)["tiles"]]

    page.decide(own, a)
    page.decide(own, a, "drop", reviewer="bea")
    page.decide(own, b, "drop")
    undone = page.decide(own, c, "unsure").json()["decision"]["decision_id"]
    assert listed(verdict="unsure") == [c]
    page.decide(own, c, "undo", undoes=undone)
    assert listed(verdict="unsure") == []
    assert listed(verdict="accept") == [a]
    assert sorted(listed(verdict="drop")) == sorted([a, b])
    assert listed(verdict="drop", reviewer="bea") == [a]
    assert listed(verdict="none") == [c, *rest]
    assert listed(verdict="none", reviewer="bea") == [b, c, *rest]
    assert listed(verdict="none", reviewer="nobody") == list(own.tile_ids)
    assert listed(reviewer="bea") == list(own.tile_ids)
    assert page.get("/api/tiles", limit=1)["tiles"][0]["decisions"] == {"ann": "accept", "bea": "drop"}


def test_progress_counts_what_stands_and_how_far_two_agree(own: MadeReview, open_page: OpenPage) -> None:
    page = open_page(own)
    assert page.get("/api/progress") == {"total": 6, "decided_by_anyone": 0, "by_reviewer": [], "pairs": []}
    for tile_id, ann, bea in zip(own.tile_ids, "aaaadd", "aaad--", strict=True):
        for name, letter in (("ann", ann), ("bea", bea)):
            if letter != "-":
                page.decide(own, tile_id, {"a": "accept", "d": "drop"}[letter], reviewer=name)
    found = page.get("/api/progress")
    assert (found["total"], found["decided_by_anyone"]) == (6, 6)
    ann, bea = found["by_reviewer"]
    assert (ann["reviewer"], ann["decided"], bea["decided"]) == ("ann", 6, 4)
    assert ann["by_verdict"] == {"accept": 4, "fix": 0, "ignore": 0, "drop": 2, "unsure": 0}
    assert ann["agreement"] == bea["agreement"] == 0.75
    assert found["pairs"] == [{"a": "ann", "b": "bea", "both": 4, "same": 3, "kappa": 0.0}]


def test_reviewers_on_two_servers_see_each_other(own: MadeReview, open_page: OpenPage) -> None:
    here, there = open_page(own), open_page(own)
    first = here.get("/api/decisions")
    assert first["decisions"] == []
    there.decide(own, own.tile_ids[0], "drop", reviewer="bea")
    seen = soon(lambda: here.get("/api/decisions", after=first["cursor"]), lambda found: bool(found["decisions"]))
    assert [each["reviewer"] for each in seen["decisions"]] == ["bea"]
    assert here.get("/api/decisions", after=seen["cursor"])["decisions"] == []
    assert here.get("/api/tiles", verdict="drop")["total"] == 1
    assert len(here.get("/api/decisions", after=there.get("/api/decisions")["cursor"])["decisions"]) == 1


def test_what_was_decided_at_another_server_a_moment_ago_is_taken_back_here(
    own: MadeReview, open_page: OpenPage
) -> None:
    here, there = open_page(own, refresh_s=3600.0), open_page(own, refresh_s=3600.0)
    tile_id = own.tile_ids[0]
    decision_id = there.decide(own, tile_id).json()["decision"]["decision_id"]
    answer = here.decide(own, tile_id, "undo", undoes=decision_id, decision_id="e" * 32)
    assert answer.status_code == 201, answer.text
    assert answer.json()["standing"] == {}
    assert soon(DecisionLog(own.uri).read_all, lambda found: len(found) == 2)[1].verdict == "undo"


def test_a_decision_does_not_wait_for_a_look_at_the_log(
    own: MadeReview, open_page: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = open_page(own)
    walk, go_on = storage.walk, threading.Event()

    def slowly(uri: str) -> Any:
        go_on.wait(30)
        return walk(uri)

    monkeypatch.setattr(storage, "walk", slowly)
    start = time.monotonic()
    assert page.decide(own, own.tile_ids[0]).status_code == 201
    assert time.monotonic() - start < 0.9
    go_on.set()


def test_a_decision_without_room_in_the_log_is_refused_for_good(
    own: MadeReview, open_page: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = open_page(own)
    monkeypatch.setattr("raytrain.review.log.ENTRY_BYTES", 100)
    answer = page.decide(own, own.tile_ids[0])
    assert answer.status_code == 413
    assert "expected at most 100" in answer.json()["error"]
    assert not entries(own)


def test_an_entry_that_is_damaged_later_is_named_once(
    own: MadeReview, open_page: OpenPage, caplog: pytest.LogCaptureFixture
) -> None:
    page = open_page(own)
    page.decide(own, own.tile_ids[0])
    folder = Path(own.uri, "decisions", "ann")
    for letter in "ab":
        folder.joinpath(f"{letter * 32}.json").write_text("{")
        for _ in range(3):
            page.desk.board.look_now()
    named = [each.getMessage() for each in caplog.records if "left out" in each.getMessage()]
    assert [f"{letter * 32}.json: damaged" in text for letter, text in zip("ab", named, strict=True)] == [True, True]


def test_one_thread_at_a_time_looks_at_the_log(own: MadeReview, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(DecisionLog(own.uri), Catalogue(read_ranking(own.uri)))
    looking, most = [0], [0]

    def slowly(self: DecisionLog) -> list[Any]:
        looking[0] += 1
        most[0] = max(most[0], looking[0])
        time.sleep(0.05)
        looking[0] -= 1
        return []

    monkeypatch.setattr(DecisionLog, "refresh", slowly)
    with ThreadPoolExecutor(4) as pool:
        for each in [pool.submit(board.look_now) for _ in range(4)]:
            each.result()
    board.close()
    assert most == [1]


def test_entries_come_in_pages_by_the_cursor(own: MadeReview, open_page: OpenPage) -> None:
    page = open_page(own)
    for tile_id in own.tile_ids:
        page.decide(own, tile_id)
    seen, cursor, more = [], "", True
    while more:
        found = page.get("/api/decisions", after=cursor, limit=4)
        seen += found["decisions"]
        cursor, more = found["cursor"], found["more"]
    assert [each["tile_id"] for each in seen] == list(own.tile_ids)
    for strange in ("x", "-", f"{cursor}9", cursor.replace("-", "-x")):
        assert page.client.get("/api/decisions", params={"after": strange}).status_code == 200


def test_two_reviewers_who_decide_at_the_same_time_lose_and_double_nothing(
    own: MadeReview, open_page: OpenPage
) -> None:
    page = open_page(own)
    rounds = 8

    def review(name: str, letter: str) -> list[int]:
        codes = []
        for i in range(rounds * len(own.tile_ids)):
            tile_id = own.tile_ids[i % len(own.tile_ids)]
            for _ in range(2):  # each one twice, as a page does that lost the answer
                codes.append(page.decide(own, tile_id, reviewer=name, decision_id=f"{letter}{i:031x}").status_code)
        return codes

    names = [("ann", "a"), ("bea", "b"), ("cyd", "c")]
    with ThreadPoolExecutor(3) as pool:
        for codes in pool.map(lambda each: review(*each), names):
            assert codes == [201, 200] * (rounds * len(own.tile_ids))
    found = entries(own)
    for name, _ in names:
        numbers = [each["number"] for each in found if each["reviewer"] == name]
        assert sorted(numbers) == list(range(1, rounds * len(own.tile_ids) + 1))


def test_the_numbers_of_a_reviewer_with_two_pages_are_each_given_once(own: MadeReview, open_page: OpenPage) -> None:
    page = open_page(own)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: page.decide(own, own.tile_ids[i % 6], decision_id=f"{i:032x}"), range(24)))
    assert {answer.status_code for answer in answers} == {201}
    assert sorted(each["number"] for each in entries(own)) == list(range(1, 25))


def test_a_store_that_fails_is_told_and_the_same_decision_goes_in_afterwards(
    own: MadeReview, open_page: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = open_page(own)
    write = storage.write_bytes

    def fail(uri: str, data: bytes, **options: Any) -> None:
        raise StoreOutOfReach(f"{uri}: out of reach, 10 attempts in 60 s")

    monkeypatch.setattr(storage, "write_bytes", fail)
    answer = page.decide(own, own.tile_ids[0], decision_id="f" * 32)
    assert answer.status_code == 503
    assert "out of reach" in answer.json()["error"]
    assert page.get("/api/tiles", verdict="accept")["total"] == 0
    monkeypatch.setattr(storage, "write_bytes", write)
    assert page.decide(own, own.tile_ids[0], decision_id="f" * 32).status_code == 201
    assert [each["number"] for each in entries(own)] == [1]


def test_a_store_that_is_slow_to_write_keeps_nobody_else_waiting(
    own: MadeReview, open_page: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = open_page(own)
    write, begun, go_on = storage.write_bytes, threading.Event(), threading.Event()

    def slowly(uri: str, data: bytes, **options: Any) -> None:
        if "/ann/" in uri:
            begun.set()
            assert go_on.wait(30)
        write(uri, data, **options)

    monkeypatch.setattr(storage, "write_bytes", slowly)
    tile_id = own.tile_ids[0]
    with ThreadPoolExecutor(40) as pool:
        # More of one reviewer than there are threads that write.
        waiting = [pool.submit(page.decide, own, tile_id, decision_id=f"{i:032x}") for i in range(30)]
        assert begun.wait(30)
        start = time.monotonic()
        assert page.decide(own, tile_id, reviewer="bea", decision_id="b" * 32).status_code == 201
        assert page.get("/api/tiles")["total"] == 6
        assert page.client.get(f"/api/tiles/{tile_id}/{own.sha256[tile_id]}/image/true-colour").status_code == 200
        assert time.monotonic() - start < 10
        assert not any(each.done() for each in waiting)
        go_on.set()
        assert {each.result().status_code for each in waiting} == {201}


def test_a_log_that_can_not_be_listed_keeps_nobody_waiting_and_is_looked_at_again(
    own: MadeReview, open_page: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = open_page(own), open_page(own)
    walk, go_on = storage.walk, threading.Event()

    def slowly(uri: str) -> Any:
        go_on.wait(30)
        return walk(uri)

    there.decide(own, own.tile_ids[0], reviewer="bea")
    monkeypatch.setattr(storage, "walk", slowly)
    start = time.monotonic()
    assert here.get("/api/decisions")["decisions"] == []
    assert here.get("/api/decisions")["decisions"] == []
    assert time.monotonic() - start < 10
    go_on.set()
    soon(lambda: here.get("/api/decisions")["decisions"], lambda found: len(found) == 1)


def test_a_log_that_can_not_be_listed_is_no_error_of_the_page(
    own: MadeReview, open_page: OpenPage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    page = open_page(own)

    def fail(uri: str) -> Any:
        raise StoreOutOfReach("out of reach")

    monkeypatch.setattr(storage, "walk", fail)
    assert page.get("/api/decisions")["decisions"] == []
    assert "can't be looked at: out of reach" in caplog.text


def test_a_review_in_a_store_is_served_and_decided_like_one_on_a_disk(
    own: MadeReview, open_page: OpenPage, s3: str
) -> None:
    there = copy_to_store(own, f"{s3}/served")
    disk, store = open_page(own), open_page(there)
    first, second = own.tile_ids[:2]
    for end in ("image/true-colour", "mask/label", "mask/prediction", "values/probability", "values/disagreement"):
        path = f"/api/tiles/{first}/{own.sha256[first]}/{end}"
        assert store.client.get(path).content == disk.client.get(path).content
    assert store.decide(there, first, decision_id="f" * 32).status_code == 201
    assert store.decide(there, first, decision_id="f" * 32).status_code == 200
    assert list(storage.find(f"{there.uri}/decisions")) == [f"ann/{'f' * 32}.json"]
    new = relabel(there, second)
    answer = store.decide(there, second)
    assert (answer.status_code, answer.json()["found"]) == (409, new)
    third = own.tile_ids[2]
    storage.remove(f"{there.predictions}/{third}.tif")
    assert store.client.get(f"/api/tiles/{third}/{own.sha256[third]}/mask/prediction").status_code == 404


def test_a_review_of_other_shards_than_those_that_are_there_is_not_served(own: MadeReview) -> None:
    relabel(own, own.tile_ids[0])
    with pytest.raises(ConfigError, match=r"other shards than those that .* is a ranking of .*; rank again"):
        Desk(own.uri)


def test_a_review_by_other_predictions_than_those_that_are_there_is_not_served(own: MadeReview) -> None:
    claim_destination(own.predictions, SCORING.model_copy(update={"ensemble": "f" * 64}))
    with pytest.raises(ConfigError, match=r"other predictions than those that .* is a ranking by .*; rank again"):
        Desk(own.uri)


def test_a_folder_without_a_review_is_not_served(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no finished ranking; make it with raytrain review rank"):
        Desk(str(tmp_path))


def test_shards_without_the_bands_of_a_picture_are_not_served(own: MadeReview) -> None:
    path = Path(own.uri, "review.json")
    path.write_text(path.read_text().replace('"B02",', ""))
    with pytest.raises(ConfigError, match="needs bands B04, B03 and B02; there is no B02"):
        Desk(own.uri)


def test_shards_without_near_infrared_have_no_false_colour_and_say_so(own: MadeReview, open_page: OpenPage) -> None:
    path = Path(own.uri, "review.json")
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"bands": ["B02", "B03", "B04"]}))
    page = open_page(own)
    tile_id = own.tile_ids[0]
    assert not page.get("/api/review")["has_false_colour"]
    answer = page.client.get(f"/api/tiles/{tile_id}/{own.sha256[tile_id]}/image/false-colour")
    assert answer.status_code == 404
    assert "there is no B08" in answer.json()["error"]
    assert page.client.get(f"/api/tiles/{tile_id}/{own.sha256[tile_id]}/image/true-colour").status_code == 200


def test_what_is_kept_stays_within_its_bytes_and_the_latest_used_stays() -> None:
    kept: Kept[bytes] = Kept(100, len)
    made: list[int] = []

    def get(key: int) -> bytes:
        return kept.get(key, lambda: made.append(key) or b"x" * 40)

    for key in (1, 2, 1, 3, 1, 2):
        get(key)
    assert made == [1, 2, 3, 2]
    assert kept.num_bytes <= 100
    assert kept.get("large", lambda: b"x" * 1000) == b"x" * 1000
    assert kept.num_bytes <= 100


def test_what_many_ask_for_at_once_is_made_once() -> None:
    kept: Kept[bytes] = Kept(TILE_BYTES, len)
    made: list[int] = []

    def slowly() -> bytes:
        made.append(1)
        time.sleep(0.05)
        return b"x"

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: kept.get("key", slowly), range(8))) == {b"x"}
    assert len(made) == 1


def test_what_fails_to_be_made_is_made_by_one_at_a_time_and_counted_once() -> None:
    """The second waits while the first fails, and the third comes while the second makes it."""
    kept: Kept[bytes] = Kept(1000, len)
    begun, go_on = [threading.Event() for _ in range(3)], [threading.Event() for _ in range(3)]
    calls = itertools.count()
    at_a_time: list[int] = []
    now: list[int] = []

    def make() -> bytes:
        i = next(calls)
        now.append(i)
        at_a_time.append(len(now))
        begun[i].set()
        assert go_on[i].wait(30)
        now.remove(i)
        if i == 0:
            raise OSError("gone")
        return b"x" * 10

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(kept.get, "key", make)
        assert begun[0].wait(30)
        second = pool.submit(kept.get, "key", make)
        time.sleep(0.1)  # it waits for the first
        go_on[0].set()
        assert begun[1].wait(30)
        third = pool.submit(kept.get, "key", make)
        begun[2].wait(0.3)
        go_on[1].set()
        go_on[2].set()
        with pytest.raises(OSError, match="gone"):
            first.result()
        assert second.result() == third.result() == b"x" * 10
    assert max(at_a_time) == 1
    assert kept.num_bytes == 10


def test_a_look_at_a_large_log_takes_a_tenth_of_the_time_at_most(
    own: MadeReview, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Board(DecisionLog(own.uri), Catalogue(read_ranking(own.uri)), refresh_s=0.0)
    looks: list[float] = []

    def slowly(self: DecisionLog) -> list[Any]:
        looks.append(time.monotonic())
        time.sleep(0.05)
        return []

    monkeypatch.setattr(DecisionLog, "refresh", slowly)
    soon(board.refresh, lambda _: len(looks) >= 3)
    board.close()
    assert np.diff(looks).min() >= 0.5
