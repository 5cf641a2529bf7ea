"""How many actors of a size a cluster has room for. A CPU stays free: without one, whatever else asks for one hangs.

Whether actors are of GPUs is decided once for all of a run: its outputs come from one kind of device.
"""

from __future__ import annotations

from raytrain.cluster import session


def has_gpus() -> bool:
    """Return whether actors are to be of GPUs, by what the cluster has or can grow to."""
    return session.has_gpus()


def actors_at_once(threads: int, *, use_gpu: bool) -> int:
    """Return how many actors of a GPU, or of `threads` CPUs, the cluster has room for; a CPU is kept free.

    None where GPUs are used and the last is gone.
    """
    if use_gpu:
        return session.num_gpus()
    cpus, each = session.cpus_of_nodes(), cpus_each(threads)
    places = sum(count // each for count in cpus)
    return max(1, places if places * each < sum(cpus) else places - 1)


def cpus_each(threads: int) -> int:
    """Return the CPUs of one actor: its threads, or what the largest node has, less the one that is kept free."""
    cpus = session.cpus_of_nodes()
    return max(1, min(threads, max(cpus, default=1), sum(cpus) - 1))


def resources_of(actors: int, *, threads: int, use_gpu: bool) -> int:
    """Return the GPUs, or CPUs, that a cluster that can grow is asked for, so that it has room for `actors`."""
    return actors if use_gpu else actors * threads + 1
