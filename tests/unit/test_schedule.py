"""Every unit is done once, tried again where machines failed, given up in the end; no bad item takes another along."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from raytrain.imagery.scene_files import BandFile, SceneSource
from raytrain.scoring.pace import Progress, Rate
from raytrain.scoring.plan import UNITS_PER_PART, read_parts, write_plan
from raytrain.scoring.records import Record
from raytrain.scoring.schedule import ATTEMPTS, LOSSES, LOSSES_OF_A_SUSPECT, Schedule, Task, TooManyFailures
from raytrain.scoring.units import Answer, ChipSource, Problem, Unit, blocks_of, units_of_chips


def chips(count: int, first: int = 0) -> list[ChipSource]:
    names = [f"c{i:03d}" for i in range(first, first + count)]
    return [ChipSource(chip_id=name, files={"B02": f"s3://b/{name}/B02.tif"}, identity="1") for name in names]


def scene(name: str = "s") -> Unit:
    files = {"*": BandFile(uri=f"s3://b/{name}.tif")}
    return Unit(kind="scene", scene=SceneSource(scene_id=name, files=files, identity="1"))


def record(item_id: str) -> Record:
    return Record(
        item_id=item_id,
        kind="chip",
        source_uri="",
        identity="1",
        settings_digest="",
        outputs={},
        height=1,
        width=1,
        valid_px=1,
        cloud_px=0,
    )


def answer(unit: Unit) -> Answer:
    return Answer(records=tuple(record(item_id) for item_id in unit.item_ids))


def problem(item_id: str) -> Problem:
    return Problem(item_id=item_id, source_uri="u", found="bad")


def schedule(*parts: list[Unit], max_failures: int | None = None) -> Schedule:
    return Schedule(iter(parts), sum(map(len, parts)), max_failures)


def taken(plan: Schedule, *, alone: bool = True) -> Task:
    task = plan.take(alone=alone)
    assert task is not None
    return task


def drained(plan: Schedule) -> Iterator[Task]:
    while not plan.is_over:
        yield taken(plan)


def test_every_unit_of_every_part_is_taken_once_and_parts_are_read_when_they_are_due() -> None:
    units = list(units_of_chips(chips(70)))
    assert [len(unit.chips) for unit in units] == [16, 16, 16, 16, 6]
    read: list[int] = []

    def parts() -> Iterator[list[Unit]]:
        for i in range(0, 5, 2):
            read.append(i)
            yield units[i : i + 2]

    plan = Schedule(parts(), 5)
    found = []
    for task in drained(plan):
        assert len(read) <= len(found) // 2 + 1
        found.append(task.unit)
        plan.finished(task, answer(task.unit))
    assert found == units
    assert (plan.num_finished, plan.num_done, plan.casualties) == (70, 5, [])


def test_work_is_not_over_while_a_unit_is_under_way() -> None:
    plan = schedule([scene("a")])
    task = taken(plan)
    assert plan.take(alone=True) is None
    assert not plan.is_over
    plan.failed(task, "no store")
    assert taken(plan) is task


def test_unit_that_fails_is_tried_again_behind_the_others_and_then_is_a_casualty() -> None:
    plan = schedule([scene("a"), scene("b")])
    order = []
    for task in drained(plan):
        order.append(task.unit.item_ids[0])
        if order[-1] == "a":
            plan.failed(task, "StoreOutOfReach: gone")
        else:
            plan.finished(task, answer(task.unit))
    assert order == ["a", "b", "a", "a"]
    (lost,) = plan.casualties
    assert (lost.problem.item_id, lost.problem.source_uri, lost.in_data) == ("a", "s3://b/a.tif", False)
    assert lost.problem.found == f"StoreOutOfReach: gone ({ATTEMPTS} attempts)"
    assert plan.num_done == 2


def test_unit_that_brings_its_worker_down_is_tried_alone_and_costs_no_other_chip() -> None:
    plan = schedule(list(units_of_chips(chips(20))))
    scored, deaths = [], 0
    for task in drained(plan):
        ids = task.unit.item_ids
        if "c003" in ids:
            plan.lost(task, "out of memory", blame="task")
            deaths += 1
        else:
            plan.finished(task, answer(task.unit))
            scored += ids
    assert sorted(scored) == [chip.chip_id for chip in chips(20) if chip.chip_id != "c003"]
    assert [each.problem.item_id for each in plan.casualties] == ["c003"]
    assert deaths == ATTEMPTS + 1
    assert plan.num_done == plan.num_units


def test_suspect_goes_only_to_a_worker_that_has_nothing_else() -> None:
    plan = schedule([scene("a"), scene("b")])
    suspect = taken(plan)
    plan.lost(suspect, "killed", blame="task")
    assert taken(plan, alone=False).unit.item_ids == ("b",)
    assert plan.take(alone=False) is None
    assert taken(plan, alone=True) is suspect


def test_what_failed_on_a_worker_goes_to_another_one_of_another_machine_where_there_is_one() -> None:
    here, beside, there = (frozenset(names) for names in (("w1", "h1"), ("w2", "h1"), ("w3", "h2")))
    plan = schedule([scene("a")])
    task = plan.take(alone=True, worker=here, others=[here, beside, there])
    assert task is not None
    plan.failed(task, "no space left", here)
    for worker in (here, beside):
        assert plan.take(alone=True, worker=worker, others=[here, beside, there]) is None
    assert plan.take(alone=True, worker=there, others=[here, beside, there], fresh_only=True) is None
    assert plan.take(alone=True, worker=beside, others=[here, beside]) is task
    plan.failed(task, "no space left", beside)
    assert plan.take(alone=True, worker=here, others=[here]) is task, "with only one worker it goes there all the same"


def test_node_that_is_taken_away_is_nobodys_fault_however_often() -> None:
    plan = schedule([scene("a"), scene("next")])
    for _ in range(10 * LOSSES):
        task = taken(plan, alone=False)
        assert task.unit.item_ids == ("a",)
        plan.lost(task, "taken away, with notice", blame="nobody")
    assert (plan.casualties, task.is_suspect) == ([], False)


def test_task_that_nodes_are_lost_over_comes_next_then_last_and_alone_then_no_more() -> None:
    plan, order = schedule([scene("a"), scene("b")]), []
    while not plan.is_over:
        task = plan.take(alone=False) or taken(plan)
        order.append((task.unit.item_ids[0], task.is_suspect))
        if order[-1][0] == "a":
            plan.lost(task, "the node of a worker is gone", blame="perhaps")
        else:
            plan.finished(task, answer(task.unit))
    innocent, suspect = [("a", False)] * LOSSES_OF_A_SUSPECT, [("a", True)] * (LOSSES - LOSSES_OF_A_SUSPECT)
    assert order == [*innocent, ("b", False), *suspect]
    (lost,) = plan.casualties
    assert (lost.problem.item_id, lost.in_data) == ("a", False)
    assert lost.problem.found == f"the node of a worker is gone; {LOSSES} were lost with this under way"
    assert plan.num_done == 2


def test_tasks_lost_together_with_their_node_do_not_go_to_one_machine_again() -> None:
    names = ("bomb", "b", "c", "d")
    machine = [frozenset({f"worker {i}", "host one"}) for i in range(4)]
    plan, nodes_lost = schedule([scene(name) for name in names]), 0
    while not plan.is_over:
        found = [plan.take(alone=True, worker=worker, others=machine) for worker in machine]
        tasks = [task for task in found if task is not None]
        is_lost = any(task.unit.item_ids == ("bomb",) for task in tasks)
        nodes_lost += is_lost
        for task in tasks:
            if is_lost:
                plan.lost(task, "the node is gone", blame="perhaps")
            else:
                plan.finished(task, answer(task.unit))
    assert [each.problem.item_id for each in plan.casualties] == ["bomb"]
    assert (plan.num_finished, nodes_lost) == (3, LOSSES)


def test_chip_that_takes_nodes_down_costs_no_other_chip_of_its_unit() -> None:
    plan, nodes_lost = schedule(list(units_of_chips(chips(16)))), 0
    for task in drained(plan):
        if "c003" in task.unit.item_ids:
            nodes_lost += 1
            plan.lost(task, "the node is gone", blame="perhaps")
        else:
            plan.finished(task, answer(task.unit))
    assert [each.problem.item_id for each in plan.casualties] == ["c003"]
    assert (plan.num_finished, nodes_lost) == (15, LOSSES + 1)


def test_block_of_a_lost_node_comes_before_further_scenes() -> None:
    plan = schedule([scene("large"), scene("next")])
    blocks = blocks_of(1000, 1000, 512)
    plan.finished(taken(plan), Answer(blocks=blocks, missing=blocks))
    lost = [taken(plan) for _ in blocks][1]
    assert taken(plan).unit.item_ids == ("next",)
    plan.lost(lost, "the node is gone", blame="perhaps")
    plan.parts = iter([[scene("further")]])
    assert taken(plan) is lost


def test_assembly_that_finds_blocks_gone_comes_again_after_them() -> None:
    plan = schedule([scene("large")])
    blocks = blocks_of(1000, 1000, 512)
    plan.finished(taken(plan), Answer(blocks=blocks))
    plan.finished(taken(plan), Answer(blocks=blocks, missing=blocks[:1]))
    block = taken(plan)
    assert (block.unit.kind, block.unit.regions) == ("block", blocks[:1])
    assert plan.take(alone=True) is None
    plan.finished(block, Answer())
    assembly = taken(plan)
    assert (assembly.unit.kind, assembly.unit.regions) == ("assembly", blocks)
    plan.finished(assembly, answer(assembly.unit))
    assert plan.is_over
    assert (plan.num_done, plan.num_finished) == (1, 1)


def test_scene_in_blocks_is_put_together_after_the_last_and_before_the_next_scene() -> None:
    plan = schedule([scene("large"), scene("next")])
    blocks = blocks_of(2000, 1000, 512)
    whole = taken(plan)
    plan.finished(whole, Answer(blocks=blocks, missing=blocks[1:]))
    first = [taken(plan) for _ in blocks[1:]]
    assert [task.unit.regions for task in first] == [(block,) for block in blocks[1:]]
    assert taken(plan).unit.item_ids == ("next",)
    for task in first[:-1]:
        plan.finished(task, Answer())
    assert plan.take(alone=True) is None
    plan.finished(first[-1], Answer())
    last = taken(plan)
    assert (last.unit.kind, last.unit.regions) == ("assembly", blocks)
    plan.finished(last, answer(last.unit))
    assert (plan.num_done, plan.num_finished) == (1, 1)


@pytest.mark.parametrize("num_standing", [0, 4])
def test_progress_counts_the_blocks_of_a_scene_that_is_under_way(num_standing: int) -> None:
    plan, rate = schedule([scene("large")]), Rate(start=time.monotonic() - 300)
    blocks = blocks_of(2048, 1024, 512)
    missing = blocks[num_standing:]
    plan.finished(taken(plan), Answer(blocks=blocks, missing=missing))
    assert str(plan.progress(rate)) == ""
    shown = []
    for i in range(len(missing)):
        done = Answer(pixels=3_000_000)
        rate.add(done, "w")
        plan.finished(taken(plan), done)
        shown.append(plan.progress(rate).units)
        if i + 1 == 3 * len(missing) // 4:
            assert str(plan.progress(rate)) == f"0 items/h, {(i + 1) / 100:.2f} Mpx/s, 2 min left"
    assert shown == pytest.approx([(i + 1) / len(missing) for i in range(len(missing))])
    plan.finished(taken(plan), answer(scene("large")))
    assert plan.progress(rate).units == 1


def test_scene_whose_blocks_all_stand_is_put_together_at_once() -> None:
    plan = schedule([scene()])
    plan.finished(taken(plan), Answer(blocks=blocks_of(2000, 1000, 512)))
    assert taken(plan).unit.kind == "assembly"


def test_scene_with_a_bad_block_is_one_casualty_and_its_other_blocks_are_left_alone() -> None:
    plan = schedule([scene("large"), scene("next")])
    blocks = blocks_of(2000, 2000, 512)
    plan.finished(taken(plan), Answer(blocks=blocks, missing=blocks))
    one, two = taken(plan), taken(plan)
    plan.finished(one, Answer(problems=(problem("large"),)))
    plan.finished(two, Answer(problems=(problem("large"),)))
    assert taken(plan).unit.item_ids == ("next",)
    assert [each.problem.item_id for each in plan.casualties] == ["large"]
    assert plan.num_done == 1


def test_work_stops_at_the_casualty_above_the_limit() -> None:
    plan = schedule([scene(name) for name in "abc"], max_failures=1)
    plan.finished(taken(plan), Answer(problems=(problem("a"),)))
    with pytest.raises(TooManyFailures, match=r"2 items can't be scored, more than --max-failures 1 .*b: bad"):
        plan.finished(taken(plan), Answer(problems=(problem("b"),)))


def test_plan_is_written_and_worked_off_with_one_part_in_memory(tmp_path: Path) -> None:
    total, alive = 3 * UNITS_PER_PART + 7, weakref.WeakValueDictionary[int, Unit]()
    most = 0

    def listed() -> Iterator[Unit]:
        nonlocal most
        for i in range(total):
            unit = alive[i] = scene(f"s{i}")
            most = max(most, len(alive))
            yield unit
            del unit

    written = write_plan(str(tmp_path), "run", listed())
    assert written.num_units == total
    assert UNITS_PER_PART <= most <= UNITS_PER_PART + 1
    assert not alive
    read = []

    def counted(part: list[Unit]) -> list[Unit]:
        read.append(len(part))
        return part

    plan = Schedule(map(counted, read_parts(str(tmp_path), written)), total)
    most = done = 0
    while not plan.is_over:
        task = taken(plan)
        alive[done] = task.unit
        assert sum(read) - done <= UNITS_PER_PART
        plan.finished(task, answer(task.unit))
        del task
        done += 1
        most = max(most, len(alive))
    assert (read, done) == ([UNITS_PER_PART] * 3 + [7], total)
    assert most <= 1


@pytest.mark.parametrize(
    ("height", "width", "block"), [(1, 1, 512), (512, 513, 512), (20000, 10980, 12288), (5000, 7000, 1024)]
)
def test_blocks_cover_a_scene_once_begin_at_tiles_and_are_of_one_size(height: int, width: int, block: int) -> None:
    blocks = blocks_of(height, width, block)
    assert sum(each.height * each.width for each in blocks) == height * width
    assert all(each.row % 512 == each.column % 512 == 0 for each in blocks)
    assert all(each.row + each.height <= height and each.column + each.width <= width for each in blocks)
    assert max(max(each.height, each.width) for each in blocks) <= block
    assert len({(each.row, each.column) for each in blocks}) == len(blocks)


def test_time_inside_the_nets_is_that_of_each_worker_once() -> None:
    rate = Rate()
    assert rate.network_fraction is None
    for worker, so_far in (("a", 1.0), ("a", 3.0), ("b", 2.0), ("a", 2.5)):
        rate.add(Answer(pixels=10, seconds=5.0, network_s=so_far), worker)
    assert rate.pixels == 40
    assert rate.network_s == 5.0
    assert rate.wall_s == pytest.approx(5.0, abs=0.5)
    assert rate.network_fraction == pytest.approx(0.5, abs=0.05)


def test_worker_counts_as_long_as_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    rate = Rate()
    events = ((50, "a", 40), (100, "b", 80), (100, "a", None), (150, "c", 40), (200, "c", 80), (200, "b", 160))
    for at, worker, network_s in events:
        now = float(at)
        if network_s is None:
            rate.ended(worker)
        else:
            rate.add(Answer(seconds=50.0 if worker != "b" else 100.0, network_s=float(network_s)), worker)
    rate.ended("that did nothing")
    assert (rate.network_s, rate.wall_s) == (40 + 80 + 160, 200)
    assert rate.network_fraction == pytest.approx(280 / (100 + 100 + 200))


def test_progress_tells_rates_and_time_left() -> None:
    progress = Progress(units=10, total=40, items=100, casualties=2, megapixels=50, seconds=100)
    assert str(progress) == "2 not scored, 3600 items/h, 0.50 Mpx/s, 5 min left"
    assert str(Progress(units=0, total=40, items=0, casualties=0, megapixels=0, seconds=3)) == ""
    early = Progress(units=0, total=40, items=0, casualties=0, megapixels=6, seconds=3)
    assert str(early) == "0 items/h, 2.00 Mpx/s"
    assert str(Progress(units=1, total=101, items=1, casualties=0, megapixels=5, seconds=360)).endswith("10.0 h left")
