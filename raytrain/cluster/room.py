"""How many actors of a size a cluster has room for. A CPU stays free: without one, whatever else asks for one hangs."""

from __future__ import annotations

from raytrain.cluster import session


def actors_at_once(threads: int) -> int:
    """Return how many actors of `threads` CPUs, or of a GPU, the cluster has room for; a CPU is kept free."""
    gpus = session.num_gpus()
    if gpus:
        return gpus
    cpus, each = session.cpus_of_nodes(), cpus_each(threads)
    places = sum(count // each for count in cpus)
    return max(1, places if places * each < sum(cpus) else places - 1)


def cpus_each(threads: int) -> int:
    """Return the CPUs of one actor: its threads, or what the largest node has, less the one that is kept free."""
    cpus = session.cpus_of_nodes()
    return max(1, min(threads, max(cpus, default=1), sum(cpus) - 1))
