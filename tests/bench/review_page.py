"""How long the page of a review waits for its server: the first page, the next chip, lists, decisions, a start.

The review is made up: the challenge's number of chips, of 512 px, of which few differ in pixels; every chip has its row
in the index and in the ranking, and its own rasters of predictions (by links). Cold is a chip whose pixels the server
has not read yet, and whose bytes the machine has dropped from memory before; warm is the same chip again. Chips that
are gone through differ in pixels, and how many do is told. A chip is what the page shows of it at once: its details,
true colour, label, prediction, probability and disagreement, asked for side by side on as many connections as a browser
opens. Nothing is asked for ahead, as the page does.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np

from tests.bench import record
from tests.making_review import MadeReview, make_review

CONNECTIONS = 6
"""Of a browser to one host."""
PARTS = ("image/true-colour", "mask/label", "mask/prediction", "values/probability", "values/disagreement")
MILLION = 1_000_000
CHIP_S, PAGE_S = 0.3, 2.0
"""What is aimed at: the next chip and the first page."""


def main() -> None:
    """Make the review, serve it, ask."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, default=11_748)
    parser.add_argument("--size-px", type=int, default=512)
    parser.add_argument("--distinct", type=int, default=256, help="how many tiles differ in pixels")
    parser.add_argument("--chips", type=int, default=100, help="how many chips are gone through")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--write", metavar="MACHINE")
    options = parser.parse_args()
    if options.distinct < 2 * options.chips:
        parser.error(f"--distinct: expected {2 * options.chips} or more, twice --chips; found {options.distinct}")
    with tempfile.TemporaryDirectory() as folder:
        made = make_review(Path(folder), options.tiles, options.size_px, options.distinct, apart=True)
        tables = [
            _first_page(made, options.runs),
            _chips(made, options.chips),
            _lists(made),
            _decisions(made, options.chips),
            _million(made),
        ]
    title = f"The server of the review page, {options.tiles} chips of {options.size_px} px"
    record.keep_tables("review_page", "review_page", options.write, title, tables)


@contextlib.contextmanager
def served(made: MadeReview) -> Iterator[tuple[httpx.Client, float]]:
    """Start the command; give a client that has the token, and how long it took until the command listened."""
    start = time.monotonic()
    command = [sys.executable, "-m", "raytrain.cli", "review", "serve", made.uri, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    started_s = time.monotonic() - start
    try:
        limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
        with httpx.Client(base_url=url.partition("/?")[0], limits=limits, timeout=60) as client:
            client.headers["Authorization"] = f"Bearer {url.partition('token=')[2]}"
            yield client, started_s
    finally:
        process.terminate()
        process.wait()


def drop_from_memory(made: MadeReview) -> None:
    """Have the machine forget what it has of the shards and the predictions."""
    for folder in (made.shards, made.predictions):
        files = {path.stat().st_ino: path for path in Path(folder).rglob("*") if path.is_file()}
        for path in files.values():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def _first_page(made: MadeReview, runs: int) -> record.Table:
    """From the first request to a fresh server to all that the first page shows."""
    starts, pages = [], []
    for _ in range(runs):
        drop_from_memory(made)
        with served(made) as (client, started_s), ThreadPoolExecutor(CONNECTIONS) as pool:
            starts.append(started_s)
            start = time.monotonic()
            _get(client, "/")
            list(pool.map(lambda path: _get(client, path), ("/static/app.js", "/static/style.css")))
            list(pool.map(lambda path: _get(client, path), ("/api/review", "/api/tiles", "/api/progress")))
            _chip(client, pool, made, made.tile_ids[0])
            pages.append(time.monotonic() - start)
    rows = [
        ["from the command to its address", *_seconds(starts), ""],
        ["the first page with its first chip, cold", *_seconds(pages), f"{PAGE_S:.0f} s"],
    ]
    note = (
        f"{runs} starts of the command. Interpreter and libraries come from memory, shards and predictions from disk."
    )
    return record.Table("The first page", ["what", "median, s", "largest, s", "aim"], rows, note)


def _chips(made: MadeReview, count: int) -> record.Table:
    """One chip after the other, by rank, and then the same ones again."""
    rows = []
    tile_ids, others = made.tile_ids[:count], made.tile_ids[count : 2 * count]
    num_distinct = len({made.sha256[tile_id] for tile_id in (*tile_ids, *others)})
    with served(made) as (client, _), ThreadPoolExecutor(CONNECTIONS) as pool:
        drop_from_memory(made)
        for name in ("cold", "warm"):
            seconds = [_timed(lambda t=tile_id: _chip(client, pool, made, t)) for tile_id in tile_ids]
            rows.append([f"the next chip, {name}", *_milliseconds(seconds), f"{1000 * CHIP_S:.0f} ms"])
        for what, query in [
            ("true colour alone, of a chip not seen yet", ""),
            ("false colour, of the same chip", ""),
            ("the percentile stretch, of the same chip", "?stretch=percentile"),
        ]:
            layer = "false-colour" if "false" in what else "true-colour"
            paths = [f"/api/tiles/{each}/{made.sha256[each]}/image/{layer}{query}" for each in others]
            rows.append([what, *_milliseconds([_timed(lambda p=path: _get(client, p)) for path in paths]), ""])
    note = (
        f"{count} chips each, one after the other, without anything asked for ahead; of these {2 * count} chips "
        f"{num_distinct} differ in pixels."
    )
    return record.Table("The next chip", ["what", "median, ms", "95 % below, ms", "largest, ms", "aim"], rows, note)


def _lists(made: MadeReview) -> record.Table:
    queries = {
        "first 200 by rank": {},
        "of a kind": {"kind": "shifted"},
        "of a kind and a part of the id, by location": {"kind": "shifted", "query": "c00", "sort": "location"},
        "without a decision of mine": {"verdict": "none", "reviewer": "ann"},
        "the last page": {"offset": len(made.tile_ids) - 200},
    }
    rows = []
    with served(made) as (client, _):
        for name, query in queries.items():
            seconds = [_timed(lambda q=query: client.get("/api/tiles", params=q).raise_for_status()) for _ in range(50)]
            rows.append([name, *_milliseconds(seconds)])
        tile = f"/api/tiles/{made.tile_ids[0]}"
        rows.append(["details of a tile", *_milliseconds([_timed(lambda: _get(client, tile)) for _ in range(50)])])
    return record.Table("Lists", ["what", "median, ms", "95 % below, ms", "largest, ms"], rows, "50 requests each.")


def _decisions(made: MadeReview, count: int) -> record.Table:
    """Decisions of two reviewers, and what a log with one for every tile costs."""
    rows = []
    with served(made) as (client, _):
        for name, verdict in (("accept", "accept"), ("fix, with a mask", "fix")):
            seconds = [_timed(lambda t=t, v=verdict: _decide(client, made, t, v)) for t in made.tile_ids[:count]]
            rows.append([f"one decision: {name}", *_milliseconds(seconds)])
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(lambda tile_id: _decide(client, made, tile_id, "accept"), made.tile_ids))
        for name, path in [
            ("progress, where nothing is new", "/api/progress"),
            ("what is new in the log (nothing)", f"/api/decisions?after={_end_of_log(client)}"),
        ]:
            rows.append([f"{name}, {len(made.tile_ids)} decided", *_milliseconds(_repeated(client, path))])
    with served(made) as (client, started_s):
        assert client.get("/api/progress").json()["decided_by_anyone"] == len(made.tile_ids)
        rows.append(
            [f"from the command to its address, {len(made.tile_ids)} decided", f"{1000 * started_s:.0f}", "", ""]
        )
    note = "Each decision lies on the disk (fsync) before it is acknowledged."
    return record.Table("Decisions", ["what", "median, ms", "95 % below, ms", "largest, ms"], rows, note)


def _million(made: MadeReview) -> record.Table:
    """The catalogue alone, of a million tiles: what a list costs without HTTP."""
    import pyarrow as pa

    from raytrain.review.catalogue import Catalogue, Filter
    from raytrain.review.ranking import read_ranking

    ranking = read_ranking(made.uri)
    copies = -(-MILLION // ranking.num_rows)
    table = pa.concat_tables([ranking] * copies).slice(0, MILLION)
    ids = pa.array([f"tile{i:07d}" for i in range(MILLION)])
    table = table.set_column(table.schema.get_field_index("tile_id"), "tile_id", ids)
    start = time.monotonic()
    catalogue = Catalogue(table)
    rows = [["opened", f"{1000 * (time.monotonic() - start):.0f}", "", ""]]
    for name, wanted in [
        ("first 200 by rank", Filter()),
        ("of a kind", Filter(kind="shifted")),
        ("of a kind and a part of the id", Filter(kind="shifted", text="E0012")),
        ("a part of the id", Filter(text="E0012")),
    ]:
        seconds = [_timed(lambda w=wanted: catalogue.tiles(catalogue.find(w)[:200])) for _ in range(20)]
        rows.append([name, *_milliseconds(seconds)])
    seconds = [_timed(lambda r=row: catalogue.neighbours(r)) for row in range(0, MILLION, MILLION // 20)]
    rows.append(["neighbours of a tile", *_milliseconds(seconds)])
    headers = ["what", "median, ms", "95 % below, ms", "largest, ms"]
    return record.Table("A ranking of a million tiles, without HTTP", headers, rows)


def _chip(client: httpx.Client, pool: ThreadPoolExecutor, made: MadeReview, tile_id: str) -> None:
    tile = f"/api/tiles/{tile_id}"
    paths = [tile, *(f"{tile}/{made.sha256[tile_id]}/{part}" for part in PARTS)]
    list(pool.map(lambda path: _get(client, path), paths))


def _decide(client: httpx.Client, made: MadeReview, tile_id: str, verdict: str) -> None:
    from raytrain.review.regions import encode_mask

    mask = np.zeros((made.size_px, made.size_px), np.uint8)
    mask[made.size_px // 4 : made.size_px // 2] = 1
    asked = {"decision_id": uuid.uuid4().hex, "reviewer": "ann", "tile_id": tile_id, "verdict": verdict}
    with_mask = {"mask": encode_mask(mask)} if verdict == "fix" else {}
    body = {**asked, **with_mask, "tile_sha256": made.sha256[tile_id]}
    answer = client.post("/api/decisions", json=body)
    assert answer.status_code == 201, answer.text


def _end_of_log(client: httpx.Client) -> str:
    found = {"cursor": "", "more": True}
    while found["more"]:
        found = client.get("/api/decisions", params={"after": found["cursor"]}).json()
    return str(found["cursor"])


def _repeated(client: httpx.Client, path: str) -> list[float]:
    seconds = []
    for _ in range(20):
        seconds.append(_timed(lambda: _get(client, path)))
        time.sleep(0.2)
    return seconds


def _get(client: httpx.Client, path: str) -> None:
    client.get(path).raise_for_status()


def _timed(work: Callable[[], object]) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start


def _seconds(values: list[float]) -> list[str]:
    return [f"{np.median(values):.2f}", f"{max(values):.2f}"]


def _milliseconds(values: list[float]) -> list[str]:
    return [f"{1000 * each:.1f}" for each in (np.median(values), np.quantile(values, 0.95), max(values))]


if __name__ == "__main__":
    main()
