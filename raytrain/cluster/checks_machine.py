"""What a look at machines means: GPUs, disks, memory, network. Pure functions of reports; must not know Ray's calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from raytrain.cluster.checks import AGAIN, Finding, Seen, Verdict, judged, names, size_text
from raytrain.cluster.node_report import Disk
from raytrain.config import LoaderSettings

RAY_STOPS_AT_FRACTION = 0.95
"""How full a disk may be before Ray makes no objects on it (`RAY_local_fs_capacity_threshold`)."""
NEARLY_FULL_FRACTION = 0.90
LEAST_OPEN_FILES = 4096
"""Below that Ray calls the limit too low for production."""
_IN_MEMORY = ("tmpfs", "ramfs")
_OVER_A_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "lustre", "ceph", "9p", "virtiofs")
_OTHER_USES = {"temporary": "the folder for temporary files", "session": "Ray's folder"}


def _of(check: str, verdict: Verdict, seen: Seen, found: str, remedy: str) -> Finding:
    return Finding(check=check, verdict=verdict, nodes=(seen.node.name,), found=found, remedy=remedy)


# GPUs


def check_gpus(all_seen: Sequence[Seen], most_gpus: int = 0) -> list[Finding]:
    """Hold the GPUs that Ray counts against those that torch sees, and say what tasks on them saw.

    `most_gpus` is how many the cluster can grow to, 0 where it can't.
    """
    with_gpus = [seen for seen in all_seen if seen.node.gpus or seen.report.gpus.devices]
    if not with_gpus and most_gpus:
        found = f"none is up; the cluster can grow to {most_gpus}"
        return [Finding(check="GPUs", verdict="unchecked", nodes=(), found=found, remedy=AGAIN)]
    if not with_gpus:
        found = "none: models are trained and applied on CPUs"
        return [Finding(check="GPUs", verdict="ok", nodes=names(all_seen), found=found)]
    found_all = judged("GPUs", with_gpus, _gpus_of, _gpus_fine)
    kinds = sorted({seen.gpu.name for seen in with_gpus if seen.gpu and not seen.gpu.problem})
    if len(kinds) > 1:
        found = f"of several kinds: {', '.join(kinds)}"
        remedy = "fine for training; masks are the same bytes only from one kind of GPU, so score on nodes of one"
        found_all.append(Finding(check="GPUs", verdict="warning", nodes=names(with_gpus), found=found, remedy=remedy))
    return found_all


def _gpus_of(seen: Seen) -> list[Finding]:
    counted, gpus = seen.node.gpus, seen.report.gpus
    if gpus.problem:
        return [_of("GPUs", "failed", seen, f"torch can't be used: {gpus.problem}", "use the image raytrain:*-gpu")]
    if gpus.torch_cuda is None:
        found = f"{max(counted, gpus.devices):g} GPUs, but a torch without CUDA"
        return [_of("GPUs", "failed", seen, found, "use the image raytrain:*-gpu on nodes with GPUs")]
    if counted > gpus.seen:
        remedy = (
            "check nvidia-smi there, and that the container gets the GPUs (docker --gpus all, nvidia.com/gpu in "
            "Kubernetes); then start its Ray without --num-gpus"
        )
        visible = "" if gpus.visible is None else f" (CUDA_VISIBLE_DEVICES={gpus.visible})"
        return [_of("GPUs", "failed", seen, f"Ray counts {counted:g} GPUs, torch sees {gpus.seen}{visible}", remedy)]
    if counted < gpus.seen:
        found = f"Ray counts {counted:g} GPUs, where torch sees {gpus.seen}"
        remedy = "restart its Ray, without --num-gpus and with the GPUs there; else they stay idle"
        return [_of("GPUs", "warning", seen, found, remedy)]
    if counted == 0:
        found = f"{gpus.devices} devices of NVIDIA, of which neither Ray nor torch sees any"
        return [_of("GPUs", "warning", seen, found, "check nvidia-smi there, and whether the container gets the GPUs")]
    return _gpu_task_of(seen)


def _gpu_task_of(seen: Seen) -> list[Finding]:
    """Return what the task on one of the node's GPUs found wrong, or that there was none."""
    gpu, check = seen.gpu, "GPUs"
    if gpu is None:
        found = f"Ray counts and torch sees {seen.node.gpus:g}; computing on one is not checked: {seen.gpu_unchecked}"
        return [_of(check, "unchecked", seen, found, "run doctor again when one is free")]
    if gpu.problem:
        remedy = f"check nvidia-smi, and that the driver ({gpu.driver}) is one for CUDA {gpu.runtime}"
        return [_of(check, "failed", seen, f"{gpu.name}: {gpu.problem}", remedy)]
    if gpu.nccl is None:
        return [_of(check, "failed", seen, f"{gpu.name}, but a torch without NCCL", "use the image raytrain:*-gpu")]
    return []


def _gpus_fine(good: Sequence[Seen]) -> str:
    texts = []
    for seen in good:
        gpu = seen.gpu
        assert gpu is not None
        bf16 = "bf16" if gpu.bf16 else "no bf16, so float16"
        cuda = f"CUDA {gpu.runtime} on driver {gpu.driver}, NCCL {gpu.nccl}"
        texts.append(f"{seen.node.gpus:g} x {gpu.name}, {size_text(gpu.memory_bytes)}, {bf16}; {cuda}")
    return "; ".join(dict.fromkeys(texts))


# Disks


def check_disks(all_seen: Sequence[Seen]) -> list[Finding]:
    """Judge the disks of the cache, of temporary files and of Ray's session."""
    found = judged("cache", [seen for seen in all_seen if "cache" in seen.report.disks], _cache_of, _room("cache"))
    for name in _OTHER_USES:
        having = [seen for seen in all_seen if name in seen.report.disks]
        found += judged("disk", having, partial(_disk_of, name), _room(name))
    return found


def _room(name: str) -> Callable[[Sequence[Seen]], str]:
    def fine(good: Sequence[Seen]) -> str:
        least = min((seen.report.disks[name] for seen in good), key=lambda disk: disk.free_bytes)
        kinds = ", ".join(sorted({seen.report.disks[name].filesystem for seen in good}))
        more = "at least " if len(good) > 1 else ""
        use = f"{_OTHER_USES[name]}, " if name in _OTHER_USES else ""
        return (
            f"{use}{least.path} ({kinds}): {more}{size_text(least.free_bytes)} free of {size_text(least.total_bytes)}"
        )

    return fine


def _full_fraction(disk: Disk) -> float:
    return 1 - disk.free_bytes / disk.total_bytes if disk.total_bytes else 1.0


def _disk_of(name: str, seen: Seen) -> list[Finding]:
    disk, use = seen.report.disks[name], _OTHER_USES[name]
    if not disk.exists or disk.problem:
        found = f"{disk.path}, {use}, can't be written: {disk.problem or 'not there'}"
        remedy = "give the container a writable disk there, or set TMPDIR (ray start --temp-dir for Ray's session)"
        return [_of("disk", "failed", seen, found, remedy)]
    full = _full_fraction(disk)
    if full < NEARLY_FULL_FRACTION:
        return []
    found = f"{disk.path}, {use}, is {full:.0%} full ({disk.filesystem}, {size_text(disk.free_bytes)} free)"
    remedy = "free room there (old sessions below /tmp/ray), or take a larger disk"
    if full < RAY_STOPS_AT_FRACTION:
        return [_of("disk", "warning", seen, found, remedy)]
    return [_of("disk", "failed", seen, f"{found}; from {RAY_STOPS_AT_FRACTION:.0%} on Ray writes no objects", remedy)]


def _cache_of(seen: Seen) -> list[Finding]:
    disk = seen.report.disks["cache"]
    found = f"{disk.path} ({disk.filesystem}, {size_text(disk.free_bytes)} free)"
    if disk.problem:
        return [
            _of("cache", "failed", seen, f"{found} can't be written: {disk.problem}", "mount a writable disk there")
        ]
    if not disk.exists:
        text = f"{disk.path} is not there; train would make it on the disk above it ({found.partition('(')[2]}"
        return [_of("cache", "warning", seen, text, "mount the local disk (NVMe) there, or name another --cache")]
    if disk.filesystem in _IN_MEMORY:
        text = f"{found} is memory, not a disk: what is cached there is missing for work"
        return [_of("cache", "warning", seen, text, "name a folder on a local disk")]
    if disk.filesystem in _OVER_A_NETWORK or disk.filesystem.startswith("fuse."):
        text = f"{found} lies across a network, where the cache saves nothing"
        return [_of("cache", "warning", seen, text, "name a folder on a local disk")]
    limit_gb = LoaderSettings().cache_limit_gb
    if disk.free_bytes < limit_gb * 1e9:
        text = f"{found}: less than the {limit_gb:g} GB that train keeps there by default"
        room_gb = max(int(disk.free_bytes * 0.9 / 1e9), 1)
        return [_of("cache", "warning", seen, text, f"train --cache-limit-gb {room_gb}, or a larger disk")]
    return []


# Memory


def check_memory(all_seen: Sequence[Seen]) -> list[Finding]:
    """Judge /dev/shm, what Ray counts as memory, and the limit of open files."""
    return [
        *judged("shm", all_seen, _shm_of, _shm_fine),
        *judged("memory", all_seen, _memory_of, _memory_fine),
        *judged("open files", all_seen, _files_of, lambda good: f"{_least_files(good)} allowed"),
    ]


def _shm_of(seen: Seen) -> list[Finding]:
    wanted, memory = seen.node.object_store_bytes, seen.report.memory
    if memory.shm_bytes is not None and memory.shm_bytes >= wanted:
        return []
    has = "is not there" if memory.shm_bytes is None else f"holds {size_text(memory.shm_bytes)}"
    found = f"/dev/shm {has}, Ray's object store is {size_text(wanted)}: objects go to a disk, which is slow"
    gib = max(-(-int(wanted * 1.1) // 2**30), 1)
    remedy = f"docker --shm-size={gib}g, or in Kubernetes an emptyDir with medium: Memory at /dev/shm"
    return [_of("shm", "warning", seen, found, remedy)]


def _shm_fine(good: Sequence[Seen]) -> str:
    least = min(good, key=lambda seen: (seen.report.memory.shm_bytes or 0) - seen.node.object_store_bytes)
    wanted = least.node.object_store_bytes
    holds = f" holds Ray's object store of {size_text(wanted)}" if wanted else ""
    return f"/dev/shm of {size_text(least.report.memory.shm_bytes or 0)}{holds}"


def _usable_bytes(seen: Seen) -> int:
    memory = seen.report.memory
    return memory.machine_bytes if memory.limit_bytes is None else min(memory.limit_bytes, memory.machine_bytes)


def _memory_of(seen: Seen) -> list[Finding]:
    counted, usable = seen.node.memory_bytes + seen.node.object_store_bytes, _usable_bytes(seen)
    if counted <= usable * 1.01:
        return []
    found = (
        f"Ray counts {size_text(counted)} (objects included), this "
        f"{'machine has' if usable == seen.report.memory.machine_bytes else 'container may use'} {size_text(usable)}: "
        "the kernel would kill processes before Ray does"
    )
    wanted = max(int(usable * 0.7 - seen.node.object_store_bytes), 1)
    return [_of("memory", "failed", seen, found, f"start its Ray with --memory={wanted}, or without --memory")]


def _memory_fine(good: Sequence[Seen]) -> str:
    least = min(good, key=_usable_bytes)
    more = "at least " if len(good) > 1 else ""
    kind = "of the machine" if least.report.memory.limit_bytes is None else "for the container"
    return f"{more}{size_text(_usable_bytes(least))} {kind}"


def _files_of(seen: Seen) -> list[Finding]:
    if seen.report.memory.open_files >= LEAST_OPEN_FILES:
        return []
    found = f"at most {seen.report.memory.open_files} a process, which Ray calls too low"
    return [
        _of("open files", "warning", seen, found, "docker --ulimit nofile=65536:65536, or ulimit -n before ray start")
    ]


def _least_files(good: Sequence[Seen]) -> int:
    return min(seen.report.memory.open_files for seen in good)


# Network


def check_network(all_seen: Sequence[Seen]) -> list[Finding]:
    """Judge which interfaces torch's ranks will talk over, on a cluster of several nodes."""
    if len(all_seen) < 2:
        return []
    return judged("network", all_seen, _network_of, _network_fine)


def _network_of(seen: Seen) -> list[Finding]:
    network = seen.report.network
    right = network.of_ray or "the interface of its address"
    found = []
    for variable, value, matches in (
        ("GLOO_SOCKET_IFNAME", network.gloo, _names_interface),
        ("NCCL_SOCKET_IFNAME", network.nccl, _begins_interface),
    ):
        if value and not matches(value, network.interfaces):
            has = ", ".join(sorted(network.interfaces))
            text = f"{variable}={value} names no interface there: it has {has}"
            found.append(_of("network", "failed", seen, text, f"set {variable}={right} before its Ray starts"))
    if not network.gloo and (network.address_of_host_name or "127.").startswith("127."):
        address = network.address_of_host_name or "no address"
        text = f"its host name stands for {address}, so that ranks on CPUs would not find those of other nodes"
        found.append(_of("network", "warning", seen, text, f"set GLOO_SOCKET_IFNAME={right} before its Ray starts"))
    return found


def _names_interface(value: str, interfaces: dict[str, str]) -> bool:
    return all(each in interfaces for each in value.split(","))


def _begins_interface(value: str, interfaces: dict[str, str]) -> bool:
    """Tell whether NCCL finds an interface: names of which one fits, by their beginnings or (=) whole; or (^) none."""
    if value.startswith("^"):
        return True
    exact, wanted = value.startswith("="), value.removeprefix("=").split(",")
    return any(name == each or (not exact and name.startswith(each)) for name in interfaces for each in wanted)


def _network_fine(good: Sequence[Seen]) -> str:
    used = sorted({seen.report.network.gloo or seen.report.network.of_ray or "by address" for seen in good})
    return f"ranks on CPUs talk over {', '.join(used)}"
