"""Looks at the machine that it runs on, and says what is there. Must not know what is good or bad."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import importlib.metadata
import os
import platform
import re
import resource
import socket
import stat
import struct
import tempfile
import uuid
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from raytrain import __version__
from raytrain.cluster.code import digest
from raytrain.cluster.in_time import TooLate, in_time
from raytrain.cluster.node_report import Dashboard, Disk, GpuReport, Gpus, Memory, Network, NodeReport, Token
from raytrain.cluster.token import default_path

LIBRARIES = (
    "ray",
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "opencv-python-headless",
    "blosc2",
    "rasterio",
    "pyarrow",
    "s3fs",
    "safetensors",
    "segmentation-models-pytorch",
    "timm",
    "albumentations",
    "pydantic",
)
"""Those that decide results, formats, or whether processes understand each other."""
DASHBOARD_S = 5
DISK_S = 10.0
"""How long a disk may take to answer: one across a network may do so never."""
_SIOCGIFADDR = 0x8915


def look(
    *, address: str, is_head: bool, cache: str | None, session: str | None, dashboard: str | None, counts_gpus: bool
) -> NodeReport:
    """Return what this machine is like.

    `address` is its own in the cluster; `cache` and `session` are folders to look at; `dashboard` is HOST:PORT of the
    job API, asked if this is the head. torch is imported only where there may be GPUs, since that takes seconds.
    """
    folders = {"cache": cache, "temporary": _temporary_folder(), "session": session}
    return NodeReport(
        host=socket.gethostname(),
        versions=versions(),
        code=digest(),
        disks=disks({name: path for name, path in folders.items() if path}),
        memory=memory(),
        network=network(address),
        token=token(),
        dashboard=ask_dashboard(dashboard) if is_head and dashboard else None,
        gpus=gpus(counts_gpus),
    )


def versions() -> dict[str, str]:
    """Return the versions of Python, raytrain, GDAL and `LIBRARIES`, "none" for what is not installed."""
    found = {"Python": platform.python_version(), "raytrain": __version__}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name).partition("+")[0]  # "+cu130": where torch was built for
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    try:
        import rasterio

        found["GDAL"] = str(rasterio.__gdal_version__)
    except ImportError as error:
        found["GDAL"] = f"none ({type(error).__name__})"
    return found


# Disks


def disks(folders: dict[str, str]) -> dict[str, Disk]:
    """Return the disks of folders by their names; one that hangs or fails is told of, and loses no other."""
    answers = in_time([partial(disk, path) for path in folders.values()], DISK_S)
    found = {}
    for (name, path), answer in zip(folders.items(), answers, strict=True):
        if isinstance(answer, Exception):
            late = isinstance(answer, TooLate)
            problem = f"no answer within {DISK_S:g} s" if late else type(answer).__name__
            answer = Disk(path=path, exists=False, filesystem="unknown", total_bytes=0, free_bytes=0, problem=problem)
        found[name] = answer
    return found


def disk(path: str) -> Disk:
    """Return the disk of a folder, or where it isn't there yet of the nearest folder above it.

    A folder that can't be looked into is told of by its `problem`, and the sizes are those of the nearest that can; 0
    where there is none.
    """
    wanted = Path(path).absolute()
    there, problem = _nearest_folder(wanted)
    problem = problem or _why_not_writable(there)
    blocks = total = free = 0
    try:
        room = os.statvfs(there)
        blocks, total, free = room.f_frsize, room.f_blocks, room.f_bavail
    except OSError as error:
        problem = problem or _reason(error)
    return Disk(
        path=path,
        exists=there == wanted,
        filesystem=filesystem_of(Path(os.path.realpath(there))),
        total_bytes=total * blocks,
        free_bytes=free * blocks,
        problem=problem,
    )


def _nearest_folder(wanted: Path) -> tuple[Path, str]:
    """Return a folder or the nearest above it, and what stands in the way of making it there, "" where nothing does."""
    problem = ""
    for each in (wanted, *wanted.parents):
        try:
            found = each.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue  # not there yet, or below a file, which comes next
        except OSError as error:
            problem = problem or _reason(error)
            continue
        if stat.S_ISDIR(found.st_mode):
            return each, problem
        problem = problem or f"{each} is a file"
    return Path(wanted.anchor), problem


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else type(error).__name__


def _why_not_writable(folder: Path) -> str:
    """Return why no file can be written to a folder, "" where one can: it was, and is gone."""
    file = folder / f".raytrain-doctor-{uuid.uuid4().hex}"
    try:
        try:
            file.write_bytes(b"probe")
        finally:
            file.unlink(missing_ok=True)
    except OSError as error:
        return _reason(error)
    return ""


def _temporary_folder() -> str:
    """Return where temporary files go; the first of what is tried, where none can be written."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        return os.environ.get("TMPDIR") or "/tmp"


def filesystem_of(path: Path, mounts: str | None = None) -> str:
    """Return the type of the filesystem that a path lies in; `mounts` is what /proc/self/mountinfo has."""
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(errors="replace")
        except OSError:
            return "unknown"
    found, longest = "unknown", -1
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), before.split(" ")[4])
        # The last of equals counts: it was mounted over the others.
        if path.is_relative_to(point) and len(point) >= longest:
            found, longest = after.split(" ")[0], len(point)
    return found


# Memory


def memory() -> Memory:
    """Return the memory of this machine and of its container."""
    try:
        shm = os.statvfs("/dev/shm")
    except OSError:
        shm = None
    return Memory(
        machine_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        limit_bytes=cgroup_limit(),
        shm_bytes=shm.f_blocks * shm.f_frsize if shm else None,
        shm_free_bytes=shm.f_bavail * shm.f_frsize if shm else None,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
    )


def cgroup_limit(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the memory in bytes that this container may use, None where there is no limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            limit = int((root / name).read_text())  # "max" is no number
            return limit if limit < 1 << 60 else None  # version 1 says so where there is none
    return None


# Network


def network(address: str) -> Network:
    """Return the interfaces of this machine; `address` is the one that Ray uses."""
    found = {name: ip for _, name in socket.if_nameindex() if (ip := _ipv4_of(name)) is not None}
    try:
        named = socket.gethostbyname(socket.gethostname())
    except OSError:
        named = None
    return Network(
        interfaces=found,
        of_ray=next((name for name, ip in found.items() if ip == address), None),
        address_of_host_name=named,
        gloo=os.environ.get("GLOO_SOCKET_IFNAME"),
        nccl=os.environ.get("NCCL_SOCKET_IFNAME"),
    )


def _ipv4_of(interface: str) -> str | None:
    request = struct.pack("256s", interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked, contextlib.suppress(OSError):
        return socket.inet_ntoa(fcntl.ioctl(asked, _SIOCGIFADDR, request)[20:24])
    return None


# Tokens


def token() -> Token:
    """Return which token Ray would show from here: where it lies, and who may read it; the token itself is not read.

    The order is Ray's: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.
    """
    mode = os.environ.get("RAY_AUTH_MODE")
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Token(mode=mode, source="RAY_AUTH_TOKEN")
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else default_path()
    try:
        found = path.stat()
    except OSError:
        return Token(mode=mode, source="none", path=str(path))
    if not found.st_size:
        return Token(mode=mode, source="none", path=str(path))
    return Token(mode=mode, source="file", path=str(path), file_mode=found.st_mode & 0o777)


def ask_dashboard(address: str) -> Dashboard:
    """Ask the job API at HOST:PORT for its list of jobs, without a token; nothing is submitted."""
    parts = urlsplit(f"//{address}")
    host, port = parts.hostname or "", parts.port or 80
    status = None
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection(host, port, timeout=DASHBOARD_S)
        try:
            connection.request("GET", "/api/jobs/")
            status = connection.getresponse().status
        finally:
            connection.close()
    return Dashboard(address=address, status=status, listens_on=listens_on(port))


def listens_on(port: int, root: Path = Path("/proc/net")) -> tuple[str, ...]:
    """Return the addresses of this machine at which a TCP port takes connections."""
    found: set[str] = set()
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        with contextlib.suppress(OSError):
            for line in (root / name).read_text().splitlines()[1:]:
                fields = line.split()
                place, _, digits = fields[1].partition(":")
                if fields[3] == "0A" and int(digits, 16) == port:  # 0A: it listens
                    found.add(socket.inet_ntop(family, _in_order(bytes.fromhex(place))))
    return tuple(sorted(found))


def _in_order(address: bytes) -> bytes:
    """Return the bytes of an address of /proc/net, which has them as words of this machine."""
    words = (address[i : i + 4] for i in range(0, len(address), 4))
    return b"".join(struct.pack("!I", *struct.unpack("=I", word)) for word in words)


# GPUs


def gpus(counts_gpus: bool) -> Gpus:
    """Return what this machine has of GPUs; torch is asked only if Ray counts some, or the driver has devices."""
    devices = len([each for each in Path("/dev").glob("nvidia[0-9]*") if each.name[6:].isdecimal()])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not devices and not counts_gpus:
        return Gpus(devices=0, torch_cuda=None, seen=0, visible=visible)
    try:
        import torch

        cuda, seen = torch.version.cuda, torch.cuda.device_count()
    except (ImportError, OSError, RuntimeError) as error:
        return Gpus(devices=devices, torch_cuda=None, seen=0, visible=visible, problem=_told(error))
    return Gpus(devices=devices, torch_cuda=cuda, seen=seen, visible=visible)


def look_at_gpu() -> GpuReport:
    """Return what this process, which holds one GPU, sees of it, after it computed something there."""
    import torch

    if not torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        problem = f"torch sees no GPU in a task that holds one (CUDA_VISIBLE_DEVICES={visible!r})"
        return _gpu_report("none", 0, False, problem)
    name, size = torch.cuda.get_device_name(0), torch.cuda.get_device_properties(0).total_memory
    problem = ""
    try:
        ones = torch.ones((64, 64), device="cuda")
        if float((ones @ ones).sum()) != 64.0**3:
            problem = "a product of matrices came out wrong"
    except RuntimeError as error:
        problem = _told(error)
    return _gpu_report(name, size, torch.cuda.is_bf16_supported(including_emulation=False), problem)


def _gpu_report(name: str, memory_bytes: int, bf16: bool, problem: str) -> GpuReport:
    import torch

    nccl = None
    if torch.distributed.is_available() and torch.distributed.is_nccl_available():
        nccl = ".".join(str(part) for part in torch.cuda.nccl.version())  # type: ignore[no-untyped-call]
    return GpuReport(
        name=name,
        memory_bytes=memory_bytes,
        runtime=torch.version.cuda or "none",
        driver=driver_version(),
        bf16=bf16,
        nccl=nccl,
        problem=problem,
    )


def driver_version(path: Path = Path("/proc/driver/nvidia/version")) -> str:
    """Return the version of NVIDIA's driver, "unknown" where it does not say."""
    try:
        match = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", path.read_text())
    except OSError:
        return "unknown"
    return match[1] if match else "unknown"


def _told(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"[:200]
