"""What a run was really trained on: lines for each step and rank, as it happens; read back, and judged.

A rank writes what it is given before a step and that it is done after it. The first line is what a kept step is told
by: a rank can be killed between the end of a step, of which another rank keeps a checkpoint, and its next line.
`install` goes into each worker of a job as Ray's `worker_process_setup_hook`. It changes functions of the training from
outside, once it is imported, so that the product has no code for this and other processes don't import torch.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = "RAYTRAIN_TRACE_FOLDER"
"""The environment variable that names where the trace is kept; nothing is traced without it."""
FILE = "steps.jsonl"
HOOK = f"{__name__}.install"
LOOP = "raytrain.training.loop"
TAIL_BYTES = 1 << 14


@dataclass(frozen=True)
class Step:
    """A step as one rank took it: the samples of the epoch that it was given, which are not all of the global batch.

    `before` and `after` are the samples done of the epoch over all ranks, None where the step was not seen to end;
    `group` is what the ranks of one attempt have in common, `started` when this process began with the run (ns), and
    `time_s` when the step began.
    """

    member: str
    group: str
    pid: int
    started: int
    rank: int
    world_size: int
    epoch: int
    before: int
    samples: tuple[int, ...]
    time_s: float
    after: int | None = None

    @property
    def position(self) -> tuple[int, int]:
        """Where the step began."""
        return self.epoch, self.before


@dataclass(frozen=True)
class Restart:
    """Where an attempt went on, how far those before it had come, and the steps behind that: in images, in seconds.

    `pause_s` is the time between the last step before and the first one after.
    """

    reached: tuple[int, int]
    resumed: tuple[int, int]
    lost_images: int
    lost_s: float
    pause_s: float


@dataclass(frozen=True)
class Verdict:
    """The restarts of a run and what is wrong with the samples that its weights have seen: nothing, if all is well."""

    restarts: tuple[Restart, ...]
    problems: tuple[str, ...]


# Reading


def read(folder: Path) -> list[Step]:
    """Return the steps of a trace in the order in which they began; none where there is no trace yet."""
    path = folder / FILE
    text = path.read_text() if path.exists() else ""
    found: dict[tuple[int, ...], Step] = {}
    for line in text.splitlines():
        values = json.loads(line)
        key = tuple(values[name] for name in ("pid", "started", "epoch", "before"))
        if "samples" in values:
            found[key] = Step(**values | {"samples": tuple(values["samples"])})
        else:
            found[key] = replace(found[key], after=values["after"])
    return list(found.values())


def position(folder: Path) -> tuple[int, int]:
    """Return where the last step that is done ended: its epoch, and the samples done of it. Quick on any trace."""
    path = folder / FILE
    if not path.exists():
        return 0, 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = file.read().split(b"\n")[1:-1]
    ends = (json.loads(line) for line in reversed(lines) if b'"after"' in line)
    last = next(ends, {"epoch": 0, "after": 0})
    return last["epoch"], last["after"]


def attempts(steps: Iterable[Step]) -> list[list[Step]]:
    """Return the steps by attempt, attempts in the order of their first steps.

    The ranks of an attempt share a group, and each is one process: where a group comes again, another process with a
    rank that the attempt has begins the next one.
    """
    processes: dict[tuple[int, int], list[Step]] = {}
    for step in steps:
        processes.setdefault((step.pid, step.started), []).append(step)
    found: list[tuple[str, dict[int, list[Step]]]] = []
    for taken in processes.values():
        first = taken[0]
        mine = next((ranks for group, ranks in reversed(found) if group == first.group), None)
        if mine is None or first.rank in mine:
            mine = {}
            found.append((first.group, mine))
        mine[first.rank] = taken
    in_order = ((step for mine in ranks.values() for step in mine) for _, ranks in found)
    return [sorted(each, key=lambda step: step.time_s) for each in in_order]


def judge(tried: Sequence[Sequence[Step]], num_samples: int, epochs: int) -> Verdict:
    """Say what the attempts at one run lost, and whether what they kept is each sample of each epoch exactly once.

    An attempt goes on at its first step, so all that earlier ones did at or behind that position was thrown away.
    """
    kept: list[Step] = []
    restarts = []
    for steps in tried:
        resumed = min(step.position for step in steps)
        if kept:
            done = _done(kept)
            lost = [step for step in done if step.position >= resumed]
            reached = max(((step.epoch, step.after or 0) for step in done), default=(0, 0))
            times = [step.time_s for step in lost] or [0.0]
            images = sum(len(step.samples) for step in lost)
            pause_s = min(step.time_s for step in steps) - max(step.time_s for step in kept)
            restarts.append(Restart(reached, resumed, images, max(times) - min(times), pause_s))
            kept = [step for step in kept if step.position < resumed]
        kept += steps
    return Verdict(tuple(restarts), (*_uneven(kept), *_not_once(kept, num_samples, epochs)))


def _done(steps: Sequence[Step]) -> list[Step]:
    """Return the steps that some rank saw the end of, as all ranks took them."""
    ended = {(step.group, step.position): step.after for step in steps if step.after is not None}
    found = ((step, ended.get((step.group, step.position))) for step in steps)
    return [replace(step, after=after) for step, after in found if after is not None]


def _not_once(kept: Sequence[Step], num_samples: int, epochs: int) -> list[str]:
    counts = {epoch: Counter[int]() for epoch in range(epochs)}
    for step in kept:
        counts.setdefault(step.epoch, Counter()).update(step.samples)
    problems = []
    for epoch, found in sorted(counts.items()):
        wanted = range(num_samples) if epoch < epochs else range(0)
        missing = [i for i in wanted if not found[i]]
        often = [i for i, count in sorted(found.items()) if count > 1]
        unknown = [i for i in sorted(found) if i not in wanted]
        for what, which in (("never", missing), ("more than once", often), ("though they don't exist", unknown)):
            if which:
                problems.append(f"epoch {epoch}: {len(which)} samples trained on {what}: {which[:5]}")
    return problems


def _uneven(kept: Sequence[Step]) -> list[str]:
    """Return the steps whose ranks did not take just as many samples as the position moved by."""
    taken: dict[tuple[int, int, int], int] = {}
    for step in _done(kept):
        key = (step.epoch, step.before, step.after or 0)
        taken[key] = taken.get(key, 0) + len(step.samples)
    return [
        f"epoch {epoch}: a step from {before} to {after} took {count} samples"
        for (epoch, before, after), count in sorted(taken.items())
        if count != after - before
    ]


# Writing


def install() -> None:
    """Trace every run that this process takes part in, if a folder is named for it."""
    if not os.environ.get(FOLDER):
        return
    if LOOP in sys.modules:
        _watch(sys.modules[LOOP])
    else:
        sys.meta_path.insert(0, WhenImported(_watch))


class WhenImported:
    """Finds a module, the loop's, as it is found otherwise, and hands it to `watch` as soon as it is there."""

    def __init__(self, watch: Callable[[Any], None], module: str = LOOP) -> None:
        self._watch, self._module = watch, module

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != self._module:
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]  # or it would find itself
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            self._watch(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


class _Recorder:
    """Writes the steps of this process in one run."""

    def __init__(self, member: str, ranks: Any) -> None:
        self._own = {
            "member": member,
            "group": ":".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT")),
            "pid": os.getpid(),
            "started": time.time_ns(),
            "rank": ranks.rank,
            "world_size": ranks.world_size,
        }
        self._step: dict[str, int] = {}

    def begin(self, position: Any, parts: Sequence[Any]) -> None:
        """Write what a step is given."""
        keys = [key for part in parts for key in part.image.keys]
        assert {epoch for epoch, _ in keys} <= {position.epoch}, f"samples of another epoch at {position}: {keys}"
        self._step = {"epoch": position.epoch, "before": position.samples_done}
        self._write({**self._step, "samples": [sample for _, sample in keys], "time_s": time.time()})

    def end(self, position: Any) -> None:
        """Write that it is done."""
        self._write({**self._step, "after": position.samples_done})

    def _write(self, values: dict[str, Any]) -> None:
        """Append a line in one write: ranks and attempts share the file."""
        file = os.open(Path(os.environ[FOLDER], FILE), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(file, (json.dumps(self._own | values) + "\n").encode())
        finally:
            os.close(file)


def _watch(loop: Any) -> None:
    """Let the loop tell of each step. A sample is followed by its key from the dataset to the step that is given it.

    Keys are kept on the tensors that are trained on; so the loader's threads may read ahead, but not other processes.
    """
    from raytrain.tiles import dataset, loader

    recorders: list[_Recorder] = []
    get, collate = dataset.TileDataset.__getitem__, loader.default_collate
    train, step = loop.train_member, loop.take_step

    def getitem(self: Any, key: tuple[int, int]) -> Any:
        sample = get(self, key)
        sample.image.keys = (key,)
        return sample

    def default_collate(samples: Sequence[Any]) -> Any:
        batch = collate(samples)
        batch.image.keys = tuple(key for sample in samples for key in sample.image.keys)
        return batch

    def take_step(net: Any, state: Any, settings: Any, samples: Sequence[Any], ranks: Any) -> Any:
        recorders[-1].begin(state.position, samples)
        return step(net, state, settings, samples, ranks)

    def train_member(*arguments: Any, **named: Any) -> Any:
        bound = inspect.signature(train).bind(*arguments, **named)
        bound.apply_defaults()
        settings, ranks, then = (bound.arguments[name] for name in ("settings", "ranks", "on_step"))
        recorders.append(_Recorder(settings.name, ranks))
        bound.arguments["on_step"] = _both(recorders[-1], then)
        return train(*bound.args, **bound.kwargs)

    dataset.TileDataset.__getitem__ = getitem
    loader.default_collate = default_collate
    loop.take_step, loop.train_member = take_step, train_member


def _both(recorder: _Recorder, then: Callable[[Any], object] | None) -> Callable[[Any], object]:
    def on_step(state: Any) -> object:
        recorder.end(state.position)
        return then(state) if then is not None else None

    return on_step
