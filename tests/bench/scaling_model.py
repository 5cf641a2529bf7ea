"""A model on paper: what 8, 64 and 512 GPUs would do with the eight members, and what binds first.

    python -m tests.bench.scaling_model [--write FILE]

Nothing is run: each operation of a member's step is counted on torch's meta device (floating-point operations and bytes
that it reads and writes), and takes as long as the slower of the two would on the GPU, at assumed shares of its
published rates. The numbers that are measured, published or assumed stand in `NUMBERS`, each with where it comes from.
With `--write` the tables take the place of those between the two marks in FILE, whose text is written by hand.
"""

from __future__ import annotations

import argparse
import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from raytrain.config import MemberSettings
from raytrain.recipes import published_members
from raytrain.training.models import build_model

BEGIN, END = "<!-- tables of tests/bench/scaling_model.py -->\n", "<!-- end of tables -->\n"
SIZE_PX = 512
MS = 1e-3
US = 1e-6
NUMBERS: dict[str, tuple[float, str, str, str]] = {
    "gpu_flops": (989e12, "operations/s", "published", "H100 SXM data sheet, bfloat16, dense"),
    "gpu_flops_share": (0.4, "of it", "assumed", "convolutions of 16 to 256 channels; never the peak"),
    "gpu_bandwidth": (3.35e12, "bytes/s", "published", "H100 SXM data sheet, HBM3"),
    "gpu_bandwidth_share": (0.7, "of it", "assumed", "elementwise and depthwise kernels on large maps"),
    "value_bytes": (2, "bytes", "assumed", "bfloat16 everywhere; what autocast keeps in float32 is more"),
    "launch_s": (8e-6, "s an operation", "assumed", "eager PyTorch from Python; CUDA graphs or compile would lower it"),
    "node_gpus": (8, "GPUs", "published", "EC2 p5.48xlarge: 8 H100, 192 vCPUs, 8 x 3.84 TB NVMe"),
    "gpu_cores": (12, "cores a GPU", "published", "192 vCPUs are 96 cores of 2 threads, 8 GPUs"),
    "inside_bandwidth": (450e9, "bytes/s a GPU, each way", "published", "NVLink 4: 900 GB/s in both directions"),
    "inside_share": (0.4, "of it", "assumed", "all-reduce of 20 to 90 MB in buckets of 25 MB, not of gigabytes"),
    "between_bandwidth": (400e9, "bytes/s a node", "published", "p5: 3,200 Gb/s of EFA"),
    "between_share": (0.3, "of it", "assumed", "as above, over the network"),
    "inside_latency_s": (20e-6, "s", "assumed", "a small all-reduce of NCCL among 8 GPUs of one node"),
    "between_latency_s": (
        75e-6,
        "s",
        "reported",
        "4 KB all-reduce of two H100 nodes, github.com/NVIDIA/nccl/issues/1453 (a slow one; 26 us predicted)",
    ),
    "augment_s": (8.26e-3, "s of a core", "measured", "2026-11-25-2-cores-augment.md: 512 px, 4 bands, whole recipe"),
    "decode_s": (1 / 611, "s of a core", "measured", "2026-11-25-2-cores-tiles.md: 611 chips/s by one process, warm"),
    "fetch_s": (
        2 / 336,
        "s of a core",
        "measured",
        "2026-11-25-2-cores-tiles-s3.md: 336 chips/s on 2 cores, which the server had to share: too high",
    ),
    "prepare_s": (1.42e-3, "s of a core", "measured", "2026-11-25-2-cores-augment.md: the floor, for validation"),
    "tile_bytes": (1.36e6, "bytes", "measured", "2026-11-25-2-cores-tiles-s3.md: label and four bands, one range"),
    "store_gets": (5500, "GET/s a prefix", "published", "S3 user guide, performance guidelines: at least so many"),
    "connection_bandwidth": (85e6, "bytes/s", "published", "S3 performance guidelines: 85-90 MB/s a request"),
    "store_bandwidth": (12.5e9, "bytes/s a node", "assumed", "100 Gb/s of a node's network for the store"),
    "chips": (11748, "chips", "published", "the challenge's training set, four folds"),
    "copy_bandwidth": (5e9, "bytes/s", "assumed", "GPU to pageable memory, many tensors one by one"),
    "start_s": (45, "s", "assumed", "start of a run or an attempt: 40-55 s here on 2 busy cores, nearly all imports"),
}
RECIPE_BATCH = 16


def number(name: str) -> float:
    """Return one of the numbers."""
    return NUMBERS[name][0]


@dataclass(frozen=True)
class Work:
    """What the GPU does in a step of one rank, apart from communication: operations, their time, how many."""

    flops: float
    num_bytes: float
    gpu_s: float
    num_operations: int

    @property
    def seconds(self) -> float:
        """The GPU's time, or the CPU's that tells it what to do, whichever is longer."""
        return max(self.gpu_s, self.num_operations * number("launch_s"))


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[float, float]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not func.is_view and func is not torch.ops.aten.detach.default:
            count = flop_registry.get(func._overloadpacket)
            flops = count(*args, **(kwargs or {}), out_val=output) if count else 0
            tensors = [each for each in tree_leaves((args, kwargs, output)) if isinstance(each, torch.Tensor)]
            self.found.append((float(flops), sum(each.numel() for each in tensors) * number("value_bytes")))
        return output


def _work(found: list[tuple[float, float]], flops: float | None = None, bandwidth: float | None = None) -> Work:
    """Return the work of these operations on the GPU of the model, or on one of other published rates."""
    rate = (flops or number("gpu_flops")) * number("gpu_flops_share")
    bandwidth = (bandwidth or number("gpu_bandwidth")) * number("gpu_bandwidth_share")
    gpu_s = sum(max(each / rate, num_bytes / bandwidth) for each, num_bytes in found)
    return Work(sum(each for each, _ in found), sum(num_bytes for _, num_bytes in found), gpu_s, len(found))


@dataclass(frozen=True)
class Net:
    """A member's net on the meta device."""

    member: MemberSettings
    net: nn.Module

    @property
    def parameters(self) -> int:
        """How many there are."""
        return sum(each.numel() for each in self.net.parameters())

    @property
    def norms(self) -> int:
        """How many batch normalisations there are: each meets the other ranks twice a step."""
        return sum(isinstance(module, nn.BatchNorm2d) for module in self.net.modules())

    @functools.cache  # noqa: B019  # a handful of nets, for the life of the program
    def step(self, images: int) -> Work:
        """Return the work of forward, backward and SGD for so many images on one GPU."""
        self.net.train()
        with _Counting() as counting:
            self.net(self._images(images)).sum().backward()
        self.net.zero_grad()
        # SGD with momentum and the norm of the gradient, in float32: about five times over the parameters.
        return _work([*counting.found, (0.0, 5 * 4.0 * self.parameters)])

    @functools.cache  # noqa: B019  # as above
    def validation(self, images: int) -> Work:
        """Return the work of a forward pass."""
        self.net.eval()
        with torch.no_grad(), _Counting() as counting:
            self.net(self._images(images))
        return _work(counting.found)

    def _images(self, count: int) -> torch.Tensor:
        return torch.zeros(count, len(self.member.bands), SIZE_PX, SIZE_PX, device="meta")


def nets() -> list[Net]:
    """Return the eight."""
    with torch.device("meta"):
        return [Net(member, build_model(member, with_encoder_weights=False)) for member in published_members()]


@dataclass(frozen=True)
class Step:
    """The parts of a step of one run on so many ranks, in seconds; what of them binds."""

    work: Work
    norms_s: float
    gradients_s: float
    feeding_s: float

    @property
    def seconds(self) -> float:
        """Gradients are exchanged beside the backward pass, taken as two thirds of the step; samples beside all."""
        exposed = max(0.0, self.gradients_s - self.work.seconds * 2 / 3)
        return max(self.work.seconds + self.norms_s + exposed, self.feeding_s)

    @property
    def binds(self) -> str:
        """The longest part."""
        launched = self.work.num_operations * number("launch_s") > self.work.gpu_s
        parts = {
            "launching kernels" if launched else "GPU": self.work.seconds,
            "batch normalisation meeting": self.norms_s,
            "gradients": self.gradients_s - self.work.seconds * 2 / 3,
            "CPU for samples": self.feeding_s,
        }
        return max(parts, key=lambda name: parts[name])


def image_cpu_s(*, is_cached: bool) -> float:
    """Return the seconds of a core that a training sample takes."""
    return number("augment_s") + number("decode_s") + (0 if is_cached else number("fetch_s"))


def step(net: Net, ranks: int, global_batch: int = RECIPE_BATCH, *, is_cached: bool = True) -> Step:
    """Return a step of `net` on so many ranks; the one with the largest share is waited for."""
    images = math.ceil(global_batch / ranks)
    inside = ranks <= number("node_gpus")
    latency = number("inside_latency_s" if inside else "between_latency_s")
    bandwidth = (
        number("inside_bandwidth") * number("inside_share")
        if inside
        else number("between_bandwidth") * number("between_share")
    )
    gradients = 0.0 if ranks == 1 else 4 * net.parameters * 2 * (ranks - 1) / ranks / bandwidth
    # Two for each normalisation, and three sums of the step itself (infra/decisions/0004-training-step.md).
    norms = 0.0 if ranks == 1 else (2 * net.norms + 3) * latency
    feeding = images * image_cpu_s(is_cached=is_cached) / number("gpu_cores")
    return Step(net.step(images), norms, gradients, feeding)


@dataclass(frozen=True)
class Run:
    """The whole training of one member on so many ranks; seconds of its parts."""

    net: Net
    ranks: int
    global_batch: int
    train_s: float
    validation_s: float
    pauses_s: float

    @property
    def seconds(self) -> float:
        """From the command to the end."""
        return number("start_s") + self.train_s + self.validation_s + self.pauses_s

    @property
    def images_per_s(self) -> float:
        """Images a second while steps are taken."""
        return self.net.member.epochs * _images(3) / self.train_s


def _images(folds: int) -> int:
    return int(number("chips") * folds / 4)


def run(net: Net, ranks: int, global_batch: int = RECIPE_BATCH) -> Run:
    """Return the training of `net` on three of four folds, validated on the fourth."""
    epochs = net.member.epochs
    one = step(net, ranks, global_batch)
    train_s = epochs * math.ceil(_images(3) / global_batch) * one.seconds
    tiles = math.ceil(_images(1) / ranks)
    cpu_s = (number("prepare_s") + number("decode_s")) / number("gpu_cores")
    validation_s = epochs * max(math.ceil(tiles / 4) * net.validation(4).seconds, tiles * cpu_s)
    pauses_s = epochs * 8 * net.parameters / number("copy_bandwidth")
    return Run(net, ranks, global_batch, train_s, validation_s, pauses_s)


# Tables


def numbers_table() -> str:
    """Return all numbers with their sources."""
    rows = [[f"`{name}`", f"{value:.4g}", unit, kind, where] for name, (value, unit, kind, where) in NUMBERS.items()]
    return _table(["number", "value", "unit", "kind", "where from"], rows)


PUBLISHED_RESNETS = (
    (
        "A100 40 GB (312e12, 1.555e12)",
        (312e12, 1.555e12),
        9488.39 / 8,
        "PyTorch 20.06, an eighth of 8 GPUs, not channels_last: NVIDIA/DeepLearningExamples, Classification/ConvNets",
    ),
    (
        "A100 80 GB (312e12, 2.039e12)",
        (312e12, 2.039e12),
        90 * 1281167 / (8.75 * 3600),
        "MXNet 22.10 with fused kernels, 90 epochs in 8.75 h: NVIDIA's page of the same",
    ),
)
"""GPU (dense operations/s, bytes/s), its published images a second, by what and from where."""


def calibration_table() -> str:
    """Return what the model says of a training that others have published."""
    with torch.device("meta"):
        net = timm.create_model("resnet50").train()
        images = torch.zeros(256, 3, 224, 224)
    with _Counting() as counting:
        net(images).sum().backward()
    rows = []
    for name, rates, published, where in PUBLISHED_RESNETS:
        modelled = 256 / _work(counting.found, *rates).gpu_s
        rows.append([name, f"{modelled:.0f}", f"{published:.0f}", f"{modelled / published:.2f}", where])
    return _table(["GPU", "model, images/s", "published, images/s", "model / published", "by what, where"], rows)


def members_table(found: list[Net]) -> str:
    """Return what a step of each member is."""
    rows = []
    for net in found:
        one, all_images = net.step(1), net.step(RECIPE_BATCH)
        launched = one.num_operations * number("launch_s")
        rows.append(
            [
                net.member.name,
                f"{net.parameters / 1e6:.2f}",
                f"{4 * net.parameters / 1e6:.1f}",
                f"{8 * net.parameters / 1e6:.0f}",
                f"{net.norms}",
                f"{one.flops / 1e9:.0f}",
                f"{one.num_bytes / 1e9:.2f}",
                f"{one.num_operations}",
                f"{launched / MS:.1f}",
                *(f"{net.step(images).gpu_s / MS:.1f}" for images in (1, 2, RECIPE_BATCH)),
                f"{RECIPE_BATCH / all_images.seconds:.0f}",
            ]
        )
    headers = [
        "member",
        "parameters, M",
        "MB of gradients",
        "MB of a checkpoint",
        "batch normalisations",
        "GFLOP an image, forward and backward",
        "GB moved an image",
        "operations a step",
        "ms to launch them",
        "ms of GPU, 1 image",
        "2 images",
        "16 images",
        "images/s of one GPU, 16 images",
    ]
    return _table(headers, rows)


def ranks_table(found: list[Net]) -> str:
    """Return how one run gains by ranks, for the widest net, the smallest and all."""
    rows = []
    for net in found:
        alone = RECIPE_BATCH / step(net, 1).seconds
        for ranks in (1, 2, 4, 8, 16):
            one = step(net, ranks)
            rate = RECIPE_BATCH / one.seconds
            parts = (one.work.gpu_s, one.work.num_operations * number("launch_s"), one.norms_s, one.gradients_s)
            rows.append(
                [
                    net.member.name,
                    f"{ranks}",
                    f"{math.ceil(RECIPE_BATCH / ranks)}",
                    *(f"{part / MS:.1f}" for part in (*parts, one.feeding_s, one.seconds)),
                    f"{rate:.0f}",
                    f"{rate / ranks / alone:.0%}",
                    one.binds,
                ]
            )
    headers = [
        "member",
        "ranks",
        "images a rank",
        "GPU, ms",
        "launching, ms",
        "batch normalisation meeting, ms",
        "gradients, ms (beside the backward pass)",
        "samples, ms (beside all)",
        "step, ms",
        "images/s",
        "efficiency",
        "binds",
    ]
    return _table(headers, rows)


@dataclass(frozen=True)
class Placement:
    """How GPUs are used: `folds` of the eight members side by side, each run on so many ranks."""

    gpus: int
    folds: int
    ranks: int
    global_batch: int = RECIPE_BATCH

    @property
    def side_by_side(self) -> int:
        """How many runs fit at once."""
        return min(8 * self.folds, self.gpus // self.ranks)


PLACEMENTS = (
    Placement(8, 1, 1),
    Placement(8, 1, 8),
    Placement(8, 4, 1),
    Placement(64, 1, 8),
    Placement(64, 4, 2),
    Placement(64, 4, 8),
    Placement(512, 1, 16),
    Placement(512, 4, 8),
    Placement(512, 4, 16),
    Placement(512, 4, 16, global_batch=128),
)


def placements_table(found: list[Net]) -> str:
    """Return what each use of the GPUs comes to."""
    rows = []
    for each in PLACEMENTS:
        runs = [run(net, each.ranks, each.global_batch) for net in found] * each.folds
        wall_s, lanes = _makespan([one.seconds for one in runs], each.side_by_side)
        # The rate while all lanes are busy with their first runs: the demand on store and CPUs is highest then.
        first = sorted(runs, key=lambda one: -one.seconds)[: each.side_by_side]
        rate = sum(one.images_per_s for one in first)
        size = {len(net.member.bands): number("tile_bytes") * len(net.member.bands) / 4 for net in found}
        demand = sum(one.images_per_s * size[len(one.net.member.bands)] for one in first)
        nodes = each.gpus / number("node_gpus")
        cores = rate * image_cpu_s(is_cached=True) / each.gpus
        cores_store = rate * image_cpu_s(is_cached=False) / each.gpus
        busy = sum(one.seconds for one in runs) * each.ranks / (wall_s * each.gpus)
        steps = sum(one.train_s for one in runs) / sum(one.seconds for one in runs)
        rows.append(
            [
                f"{each.gpus}",
                f"{each.folds} x 8",
                f"{each.ranks}",
                f"{each.global_batch}",
                f"{each.side_by_side}",
                f"{rate:.0f}",
                f"{wall_s / 3600:.2f}",
                f"{busy:.0%}",
                f"{steps:.0%}",
                f"{demand / 1e9:.2f}",
                f"{demand / nodes / number('store_bandwidth'):.1%}",
                f"{rate:.0f} ({rate / number('store_gets'):.1f})",
                f"{cores:.1f} ({cores_store:.1f})",
                _binds(first, each, rate, lanes),
            ]
        )
    headers = [
        "GPUs",
        "folds x members",
        "ranks a run",
        "global batch",
        "runs at once",
        "images/s",
        "hours for all runs",
        "GPUs that have a run, over that time",
        "of a run's time in steps",
        "GB/s from the store, nothing cached",
        "of a node's network",
        "GET/s, nothing cached (of one prefix's rate)",
        "cores a GPU for samples, cached (not), of 12",
        "binds first",
    ]
    return _table(headers, rows)


def _makespan(seconds: list[float], lanes: int) -> tuple[float, list[float]]:
    """Return when the last run ends if each, in the order given, takes the lane that is free first."""
    ends = [0.0] * lanes
    for each in seconds:
        i = ends.index(min(ends))
        ends[i] += each
    return max(ends), ends


def _binds(first: list[Run], each: Placement, rate: float, lanes: list[float]) -> str:
    """Return what the time of the steps goes by, and what of the GPUs has nothing to do."""
    shares: dict[str, float] = {}
    for one in first:
        binds = step(one.net, one.ranks, one.global_batch).binds
        shares[binds] = shares.get(binds, 0.0) + 1 / len(first)
    texts = [f"{name} ({share:.0%} of runs)" for name, share in sorted(shares.items(), key=lambda item: -item[1])]
    idle = each.gpus - len(lanes) * each.ranks
    return "; ".join(texts + ([f"{idle} GPUs have no run"] if idle else []))


def checkpoints_table(found: list[Net]) -> str:
    """Return what the checkpoints of a run are beside its epochs."""
    rows = []
    for net, ranks in ((found[0], 1), (found[0], 8), (found[0], 16), (found[-1], 16)):
        one, size = run(net, ranks), 8 * net.parameters
        epoch_s = (one.train_s + one.validation_s) / net.member.epochs
        pause_s = size / number("copy_bandwidth")
        rows.append(
            [
                net.member.name,
                f"{ranks}",
                f"{epoch_s:.1f}",
                f"{one.validation_s / net.member.epochs:.2f}",
                f"{size / 1e6:.0f}",
                f"{pause_s / MS:.0f}",
                f"{pause_s / min(epoch_s, 600):.2%}",
                f"{size / number('connection_bandwidth'):.1f}",
                f"{32 * size / min(epoch_s, 600) / 1e9:.2f}",
            ]
        )
    headers = [
        "member",
        "ranks",
        "s an epoch",
        "s of it validation",
        "MB a checkpoint",
        "ms pause",
        "of the time between two (epoch, or 10 min)",
        "s to write by one connection",
        "GB/s of 32 such runs",
    ]
    return _table(headers, rows)


def _table(headers: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (headers, ["---"] * len(headers), *rows)) + "\n"


def tables() -> str:
    """Return all tables."""
    found = nets()
    parts = {
        "Numbers": numbers_table(),
        "ResNet-50 (224 px, batch 256) by the same counting, beside what is published": calibration_table(),
        "A step of each member": members_table(found),
        "One run on more ranks, global batch 16": ranks_table([found[0], found[3], found[-1]]),
        "8, 64 and 512 GPUs": placements_table(found),
        "Checkpoints and epochs": checkpoints_table(found),
    }
    return "\n".join(f"## {title}\n\n{table}" for title, table in parts.items())


def main() -> None:
    """Print the tables, or put them into the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE")
    options = parser.parse_args()
    text = tables()
    print(text)
    if options.write is not None:
        before, _, rest = options.write.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        options.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
