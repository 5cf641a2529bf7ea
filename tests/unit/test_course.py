"""The course of a scoring is what its log says line by line, over several commands, through failures and damage."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raytrain.scoring.causes import CAUSES, OTHERS, Causes, kind_of
from raytrain.scoring.course import MOST_BINS, Course, read_course
from raytrain.storage import without_queries

START_S = 1_795_000_000
"""2026-11-18T11:06:40Z"""


def moment(seconds: float) -> str:
    return f"{np.datetime64(int(START_S + seconds), 's')}Z"


def done(at_s: float, seconds: float, pixels: int = 100, **more: Any) -> dict[str, Any]:
    line = {"time": moment(at_s), "unit": f"scene-{at_s}", "outcome": "done", "failures": 0, "deaths": 0}
    numbers = {"seconds": seconds, "network_s_so_far": at_s / 2, "pixels": pixels}
    return {**line, **numbers, "host": "one", "pid": 1, "device": "CPU", **more}


def failed(at_s: float, cause: str, outcome: str = "failed", **more: Any) -> dict[str, Any]:
    line = {"time": moment(at_s), "unit": f"scene-{at_s}", "outcome": outcome, "failures": 0, "deaths": 0}
    return {**line, "cause": cause, "host": "one", "pid": 1, "device": "CPU", **more}


def write(folder: Path, command: str, *files: list[dict[str, Any]]) -> None:
    (folder / "log").mkdir(parents=True, exist_ok=True)
    for number, lines in enumerate(files):
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (folder / "log" / f"{command}-{number:05d}.jsonl").write_text(text)


def test_working_time_is_that_of_the_commands_without_what_lay_between_them(tmp_path: Path) -> None:
    write(tmp_path, "20261118T070000Z-aa", [done(10, 10), done(20, 5)], [done(30, 5)])
    write(tmp_path, "20261120T070000Z-bb", [done(200_000, 20, pixels=300)])
    course = read_course(str(tmp_path))
    assert [command.seconds for command in course.commands] == [30, 20]
    assert (course.seconds, course.starts(), course.pixels) == (50, [0, 30], 600)
    assert course.timeline.num_bins <= 51
    assert course.timeline.pixels.sum() == pytest.approx(600)
    assert course.timeline.pixels[0, 30:51].tolist() == pytest.approx([15.0] * 20 + [0.0])


def test_pixels_of_a_unit_are_spread_over_the_time_that_it_took(tmp_path: Path) -> None:
    write(tmp_path, "a-b", [done(4, 4, 400), done(6, 3, 300, host="two")])
    timeline = read_course(str(tmp_path)).timeline
    assert timeline.hosts == ["one", "two"]
    assert timeline.pixels[:, :7].tolist() == pytest.approx(
        np.array([[100, 100, 100, 100, 0, 0, 0], [0, 0, 0, 100, 100, 100, 0]])
    )


def test_intervals_grow_with_the_work_and_lose_nothing(tmp_path: Path) -> None:
    chance = random.Random(0)
    files = [
        [done(file * 5000 + i * 50 + 60, chance.uniform(1, 60), i, host=f"h{i % 3}") for i in range(100)]
        for file in range(20)
    ]
    files[4].append(failed(25_000, "x"))
    files[7].append(failed(40_000, "y", "lost"))
    write(tmp_path, "a-b", *files)
    course = read_course(str(tmp_path))
    timeline = course.timeline
    assert timeline.bin_s > 100_000 / MOST_BINS
    assert timeline.num_bins <= MOST_BINS
    assert timeline.pixels.sum() == pytest.approx(20 * sum(range(100)))
    for host in range(3):
        own = timeline.pixels[timeline.hosts.index(f"h{host}")]
        assert own.sum() == pytest.approx(20 * sum(range(host, 100, 3)))
    begin = course.commands[0].begin - START_S
    assert np.flatnonzero(timeline.failed).tolist() == [int((25_000 - begin) // timeline.bin_s)]
    assert np.flatnonzero(timeline.lost).tolist() == [int((40_000 - begin) // timeline.bin_s)]


def test_workers_time_ends_with_their_command_or_when_they_were_lost(tmp_path: Path) -> None:
    lines = [
        done(10, 10, network_s_so_far=8),
        done(10, 4, network_s_so_far=2, pid=2),
        failed(20, "the worker died", "lost", pid=2),
        failed(20, "the worker died", "lost", pid=2),
        failed(25, "no answer"),
        done(40, 10, network_s_so_far=30),
    ]
    write(tmp_path, "a-b", lines)
    write(tmp_path, "c-d", [done(1000, 10, network_s_so_far=9)])  # the same pid, another process
    course = read_course(str(tmp_path))
    one, two, again = course.workers.values()
    assert [(each.units, each.failed, each.lost) for each in (one, two, again)] == [(2, 1, 0), (1, 0, 2), (1, 0, 0)]
    assert [course.worker_s(each) for each in (one, two, again)] == [40, 14, 10]
    assert [each.is_lost for each in (one, two, again)] == [False, True, False]
    assert course.network_fraction == pytest.approx((30 + 2 + 9) / (40 + 14 + 10))


def test_damaged_lines_cost_themselves_alone(tmp_path: Path) -> None:
    write(tmp_path, "a-b", [done(10, 1), done(20, 1)], [done(30, 1)], [done(40, 1)])
    folder = tmp_path / "log"
    torn = (folder / "a-b-00000.jsonl").read_text() + '{"time": "2026-'
    (folder / "a-b-00000.jsonl").write_text(torn + "\n[1]\n" + json.dumps({**done(50, 1), "seconds": "x"}))
    (folder / "a-b-00001.jsonl").write_bytes(b"")
    (folder / "a-b-00002.jsonl").write_text(json.dumps({"unit": "no time"}) + "\n" + json.dumps(done(60, 1)))
    (folder / "notes.txt").write_text("not ours")
    course = read_course(str(tmp_path))
    (worker,) = course.workers.values()
    assert (worker.units, course.num_damaged) == (3, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"seconds": 1e12},
        {"seconds": -5},
        {"network_s_so_far": 1e30},
        {"pixels": 2**62},
        {"time": "9999-12-31T00:00:00Z"},
        {"time": "1890-01-01T00:00:00Z"},
    ],
)
def test_line_of_numbers_that_cannot_be_is_a_damaged_one(tmp_path: Path, wrong: dict[str, Any]) -> None:
    write(tmp_path, "a-b", [done(10, 1), {**done(20, 1), **wrong}, failed(30, "no answer")])
    course = read_course(str(tmp_path))
    assert (course.num_damaged, course.pixels, course.seconds) == (1, 100, 21)
    assert course.network_fraction == pytest.approx(5 / 21)


def test_destination_without_a_log_has_no_course(tmp_path: Path) -> None:
    course = read_course(str(tmp_path))
    assert (course.commands, course.seconds, course.network_fraction, course.starts()) == ([], 0, None, [0])
    assert isinstance(course, Course)


def test_causes_of_one_kind_are_counted_together_with_the_first_as_an_example(tmp_path: Path) -> None:
    lines = [failed(i, f"s3://b/S2_{i}/B02.tif: no answer in {i} attempts", host=f"h{i % 2}") for i in range(5)]
    write(tmp_path, "a-b", [*lines, failed(9, "killed: out of memory", "lost")])
    (kind, cause), (other, lost) = read_course(str(tmp_path)).causes.most_frequent()
    assert kind == "… no answer in N attempts"
    assert (cause.counts, cause.places, cause.subject) == ({"failed": 5}, {"h0", "h1"}, "scene-0")
    assert cause.example == "s3://b/S2_0/B02.tif: no answer in 0 attempts"
    assert (other, lost.counts) == ("killed: out of memory", {"lost": 1})


def test_kinds_of_causes_are_bounded(tmp_path: Path) -> None:
    causes = Causes()
    for number in range(CAUSES + 50):
        causes.add("x" * (number + 1), "s", "failed")
    found = causes.most_frequent()
    assert (len(found), found[0][0], found[0][1].total) == (CAUSES + 1, OTHERS, 50)


def test_names_places_and_numbers_do_not_tell_causes_apart() -> None:
    assert kind_of("p1: B04 of /a/b.tif has 3 x 4.5 px", ("p1",)) == "…: BN of … has N x N px"
    assert kind_of("no answer") == "no answer"


def test_no_query_of_an_address_is_left_in_a_text() -> None:
    text = "https://h/a.tif?sig=secret: gone, and 'HTTP://h/b?x=secret#y', s3://b?sig=secret, az://c/k#1.tif?sig=secret"
    assert without_queries(text) == "https://h/a.tif gone, and 'HTTP://h/b', s3://b az://c/k#1.tif"
    assert without_queries("/vsicurl/https://h/a.tif?sp=r,w&sig=secret failed") == "/vsicurl/https://h/a.tif failed"
    assert without_queries("why? s3://b/all.json#scene-3: no item") == "why? s3://b/all.json#scene-3: no item"


def test_no_query_of_an_address_is_left_in_a_kind_of_cause() -> None:
    for query in ("X-Amz-SignedHeaders=host;x-amz-date&X-Amz-Signature=secret", "sp=r,w&sig=secret"):
        for scheme in ("https", "s3", "az"):
            uri = f"{scheme}://acc.example/c/B04.tif"
            assert kind_of(f"could not read {uri}?{query}: 403") == "could not read … N"
            assert kind_of(f"could not read {uri}?{query}: 403", (f"{uri}?{query}",)) == "could not read … N"


def test_long_text_without_an_address_is_searched_for_queries_in_no_time() -> None:
    start = time.process_time()
    assert without_queries("x" * 200_000) == "x" * 200_000
    assert time.process_time() - start < 2.0
