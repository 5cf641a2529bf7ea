"""What a trace of steps tells: on hand-made traces, and on those of the real loop."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from raytrain.config import ShardSettings
from tests.chaos.trace import FILE, FOLDER, Step, attempts, judge, position, read
from tests.making import shard_chips, tiny_member

NUM_SAMPLES, EPOCHS, BATCH = 8, 2, 4


def steps(group: str, start: tuple[int, int], end: tuple[int, int], world_size: int = 2) -> Iterator[Step]:
    """Yield what an attempt does between two positions, in batches of four samples in order."""
    for i in range(start[0] * NUM_SAMPLES + start[1], end[0] * NUM_SAMPLES + end[1], BATCH):
        epoch, before = divmod(i, NUM_SAMPLES)
        share = BATCH // world_size
        for rank in range(world_size):
            samples = tuple(range(before + rank * share, before + (rank + 1) * share))
            number = int(group) * 10 + rank
            yield Step("m", group, number, number, rank, world_size, epoch, before, samples, float(i), before + BATCH)


def test_undisturbed_run_has_no_restart_and_no_problem() -> None:
    verdict = judge(attempts(steps("1", (0, 0), (2, 0))), NUM_SAMPLES, EPOCHS)
    assert (verdict.restarts, verdict.problems) == ((), ())


def test_steps_at_and_behind_the_position_of_a_restart_are_lost_and_do_not_count() -> None:
    done = [*steps("1", (0, 0), (1, 4)), *steps("2", (0, 4), (2, 0))]
    verdict = judge(attempts(done), NUM_SAMPLES, EPOCHS)
    assert verdict.problems == ()
    (restart,) = verdict.restarts
    assert (restart.reached, restart.resumed, restart.lost_images, restart.lost_s) == ((1, 4), (0, 4), 8, 4.0)


def test_restart_that_goes_back_behind_an_earlier_one_loses_what_both_did() -> None:
    done = [*steps("1", (0, 0), (1, 4)), *steps("2", (1, 0), (1, 4)), *steps("3", (0, 0), (2, 0))]
    verdict = judge(attempts(done), NUM_SAMPLES, EPOCHS)
    assert verdict.problems == ()
    assert [restart.lost_images for restart in verdict.restarts] == [4, 12]


def test_other_number_of_ranks_after_a_restart_is_as_good() -> None:
    done = [*steps("1", (0, 0), (0, 4)), *steps("2", (0, 4), (2, 0), world_size=1)]
    verdict = judge(attempts(done), NUM_SAMPLES, EPOCHS)
    assert verdict.problems == ()
    assert [restart.lost_images for restart in verdict.restarts] == [0]


@pytest.mark.parametrize(
    ("resumed", "problem"),
    [((1, 0), "epoch 0: 4 samples trained on never: [4, 5, 6, 7]"), ((0, 0), None)],
    ids=["a gap", "from the beginning"],
)
def test_gap_between_attempts_is_found(resumed: tuple[int, int], problem: str | None) -> None:
    done = [*steps("1", (0, 0), (0, 4)), *steps("2", resumed, (2, 0))]
    assert judge(attempts(done), NUM_SAMPLES, EPOCHS).problems == ((problem,) if problem else ())


def test_sample_that_came_twice_and_one_that_never_came_are_found() -> None:
    whole = list(steps("1", (0, 0), (2, 0)))
    whole[0] = replace(whole[0], samples=(0, 0))
    assert judge(attempts(whole), NUM_SAMPLES, EPOCHS).problems == (
        "epoch 0: 1 samples trained on never: [1]",
        "epoch 0: 1 samples trained on more than once: [0]",
    )


def test_step_that_a_rank_was_not_part_of_is_found() -> None:
    whole = list(steps("1", (0, 0), (2, 0)))
    del whole[-1]
    assert judge(attempts(whole), NUM_SAMPLES, EPOCHS).problems == (
        "epoch 1: a step from 4 to 8 took 2 samples",
        "epoch 1: 2 samples trained on never: [6, 7]",
    )


def test_step_whose_end_one_rank_did_not_live_to_tell_is_kept() -> None:
    first = list(steps("1", (0, 0), (0, 4)))
    first[-1] = replace(first[-1], after=None)
    verdict = judge(attempts([*first, *steps("2", (0, 4), (2, 0))]), NUM_SAMPLES, EPOCHS)
    assert (verdict.problems, [restart.lost_images for restart in verdict.restarts]) == ((), [0])


def test_step_that_did_not_end_is_not_counted_as_lost() -> None:
    in_flight = [replace(step, after=None) for step in steps("1", (0, 4), (1, 0))]
    done = [*steps("1", (0, 0), (0, 4)), *in_flight, *steps("2", (0, 4), (2, 0))]
    verdict = judge(attempts(done), NUM_SAMPLES, EPOCHS)
    assert (verdict.problems, [restart.lost_images for restart in verdict.restarts]) == ((), [0])


def test_attempts_that_share_a_group_are_told_apart_by_their_processes() -> None:
    first, second = list(steps("1", (0, 0), (0, 4))), list(steps("2", (0, 4), (2, 0)))
    second = [replace(step, group="1") for step in second]
    assert [len(each) for each in attempts([*first, *second])] == [2, 6]


LOOP = """
import json, sys
from tests.chaos import trace
trace.install()
assert "torch" not in sys.modules
from raytrain.config import MemberSettings, parse
from raytrain.tiles.reader import TileReader, select_tiles
from raytrain.training import loop
from raytrain.training.ranks import Ranks
if len(sys.argv) > 3:
    right = loop.epoch_batches
    loop.epoch_batches = lambda *where: [batch - (batch == 3) for batch in right(*where)]
settings = parse(MemberSettings, json.loads(sys.argv[2]))
reader = TileReader(sys.argv[1], settings.bands)
data = loop.TrainingData(reader, select_tiles(reader, 0, "train"), select_tiles(reader, 0, "validation"))
loop.train_member(settings, data, Ranks(), lambda *_: None)
"""


def trace_of_loop(chips: Path, folder: Path, *broken: str) -> list[Step]:
    """Return the only attempt at two epochs of 16 samples, in a process of its own."""
    shard_chips(chips, folder / "shards", ShardSettings(folds="3"))
    settings = tiny_member(epochs=2, crops_per_tile=2)
    command = [sys.executable, "-c", LOOP, str(folder / "shards"), settings.model_dump_json(), *broken]
    root = Path(__file__).resolve().parents[2]
    subprocess.run(command, check=True, env=os.environ | {FOLDER: str(folder)}, cwd=root)
    (only,) = attempts(read(folder))
    return only


def test_real_loop_is_traced_sample_by_sample(chips: Path, tmp_path: Path) -> None:
    steps = trace_of_loop(chips, tmp_path)
    assert judge([steps], 16, 2).problems == ()
    assert position(tmp_path) == (1, 16)
    order = [sample for step in steps if step.epoch == 0 for sample in step.samples]
    assert order != sorted(order), "the order is the plan's, not the trace's"
    assert len((tmp_path / FILE).read_text().splitlines()) == 2 * len(steps)


def test_real_loop_with_a_wrong_order_is_found_out(chips: Path, tmp_path: Path) -> None:
    steps = trace_of_loop(chips, tmp_path, "broken")
    assert judge([steps], 16, 1).problems[:2] == (
        "epoch 0: 1 samples trained on never: [3]",
        "epoch 0: 1 samples trained on more than once: [2]",
    )
