"""A Ray that trains nothing, with as many processes as one that trains has beside its ranks; for a peer to run beside.

`python -m tests.bench.idle_ray` says that it is there in a line, and ends with its standard input.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from tests.bench.trainings import ROOT, environment

ACTORS = 6
"""The board, and what Ray Train 2.60 has for a run: its controller, and four helpers."""
THERE = b"there\n"


@contextlib.contextmanager
def idle_ray() -> Iterator[None]:
    """Have such a Ray on this machine while the body runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.idle_ray"],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if process.stdout.readline() != THERE:
            sys.exit("no Ray was started; what it said stands above")
        yield
        if process.poll() is not None:
            sys.exit("the idle Ray has ended before its peer did; what it said stands above")
    finally:
        process.stdin.close()
        process.wait()


def main() -> None:
    """Start it, and end it when nobody needs it any more."""
    import ray

    from raytrain.cluster.session import Cluster, joined

    class Idle:
        def is_there(self) -> bool:
            return True

    with joined(Cluster(), []):
        idle: Any = ray.remote(num_cpus=0)(Idle)
        actors = [idle.remote() for _ in range(ACTORS)]
        assert all(ray.get([actor.is_there.remote() for actor in actors]))
        sys.stdout.buffer.write(THERE)
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
