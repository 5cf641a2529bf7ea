"""What one machine says of itself when `raytrain doctor` asks: versions, disks, memory, network, token, GPUs.

Only what was found; what it means stands in the checks. A report holds names and sizes, never a key or a token, and
crosses the cluster as JSON: another raytrain may answer. Must not know other machines.
"""

from __future__ import annotations

from raytrain.config import Settings


class Disk(Settings):
    """A folder and the disk under it. `exists` is false where only a folder above it is there, which was looked at.

    `problem` says why nothing can be written, "" where it can.
    """

    path: str
    exists: bool
    filesystem: str
    total_bytes: int
    free_bytes: int
    problem: str = ""


class Memory(Settings):
    """Memory in bytes: that of the machine, what its container may use (None: all of it), and /dev/shm."""

    machine_bytes: int
    limit_bytes: int | None
    shm_bytes: int | None
    shm_free_bytes: int | None
    open_files: int


class Network(Settings):
    """The interfaces with an IPv4 address, that of Ray's address among them, and what the two libraries are told."""

    interfaces: dict[str, str]
    of_ray: str | None
    address_of_host_name: str | None
    gloo: str | None
    nccl: str | None


class Dashboard(Settings):
    """What the job API answers to a request without a token: `status` None where nothing answers.

    `listens_on` are the addresses that its port is bound to on this machine.
    """

    address: str
    status: int | None
    listens_on: tuple[str, ...]


class Token(Settings):
    """How Ray's processes here show who they are; `file_mode` is that of the token's file, if it is in one."""

    mode: str | None
    source: str
    path: str | None = None
    file_mode: int | None = None


class Gpus(Settings):
    """What this machine has of GPUs: devices of NVIDIA's driver, and what torch sees of them; `problem` if it fails."""

    devices: int
    torch_cuda: str | None
    seen: int
    visible: str | None
    problem: str = ""


class NodeReport(Settings):
    """All of it; `time_s` is the clock as the report was made, and `versions` are by name of the library."""

    host: str
    versions: dict[str, str]
    code: str
    disks: dict[str, Disk]
    memory: Memory
    network: Network
    token: Token
    dashboard: Dashboard | None
    gpus: Gpus


class GpuReport(Settings):
    """What a task sees that holds one GPU; `problem` says what failed when it computed, "" where it did."""

    name: str
    memory_bytes: int
    runtime: str
    driver: str
    bf16: bool
    nccl: str | None
    problem: str = ""
