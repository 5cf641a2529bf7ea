"""Parameters, work and output shape of each member's net, beside those of the original's, as a Markdown table.

Nothing is computed: shapes go through nets on torch's meta device. GFLOP are 10^9 floating-point operations of the
convolutions and matrix products of one forward pass, each multiply-accumulate counted as 2. The original's nets are
counted from their description (widths, convolutions, skips), on timm's whole encoders without their classifiers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from raytrain.config import MemberSettings
from raytrain.recipes import further_members, published_members, small_members
from raytrain.training.models import build_model

GOLDEN = Path(__file__).parents[1] / "golden" / "members.json"
SIZE_PX = 512
ORIGINAL_SKIPS = {
    "tf_efficientnetv2_s.in1k": (24, 48, 64, 160, 1280),
    "tf_efficientnetv2_b0.in1k": (32, 32, 48, 112, 1280),
    "tf_efficientnet_b3.ns_jft_in1k": (40, 32, 48, 136, 1536),
    "tf_efficientnet_b0.ns_jft_in1k": (32, 24, 40, 112, 1280),
    "resnet34.bt_in1k": (64, 64, 128, 256, 512),
}
"""Channels of what the original's decoder takes from each encoder, at 1/2 to 1/32 of the size."""


def measure(member: MemberSettings) -> dict[str, Any]:
    """Return the figures of our net: parameters (all, encoder, decoder with head), GFLOP and output shape."""
    with torch.device("meta"):
        net: Any = build_model(member, with_encoder_weights=False).eval()
        image = torch.zeros(1, len(member.bands), SIZE_PX, SIZE_PX)
        total, output = _count(net, image)
        encoder, _ = _count(net.encoder, image)
    return {
        "encoder": member.encoder,
        "parameters": _parameters(net),
        "encoder_parameters": _parameters(net.encoder),
        "decoder_parameters": _parameters(net) - _parameters(net.encoder),
        "gflop": round(total, 3),
        "encoder_gflop": round(encoder, 3),
        "decoder_gflop": round(total - encoder, 3),
        "output_shape": list(output.shape),
    }


def original(member: MemberSettings) -> dict[str, Any] | None:
    """Return the original's parameters and GFLOP for the same member; None for a member that is not the original's."""
    skips = ORIGINAL_SKIPS.get(member.encoder)
    if skips is None:
        return None
    with torch.device("meta"):
        encoder = timm.create_model(member.encoder, in_chans=len(member.bands), num_classes=0).eval()
        image = torch.zeros(1, len(member.bands), SIZE_PX, SIZE_PX)
        encoder_gflop, _ = _count(_Features(encoder), image)
    convolutions = _original_convolutions(skips, member.decoder_channels)
    parameters = _parameters(encoder) + sum(
        inputs * outputs * side**2 + outputs for inputs, outputs, side, _ in convolutions
    )
    work = sum(2 * inputs * outputs * side**2 * px**2 for inputs, outputs, side, px in convolutions)
    return {"parameters": parameters, "gflop": round(encoder_gflop + work / 1e9, 3)}


def _original_convolutions(skips: tuple[int, ...], widths: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    """Return (input channels, output channels, kernel side, size of the map in px) of each convolution behind it.

    Each stage doubles the size and has one convolution before the skip joins and one after; the last has no skip.
    """
    convolutions, inputs = [], skips[-1]
    for i, width in enumerate(widths):
        px = SIZE_PX // 2 ** (len(widths) - 1 - i)
        convolutions.append((inputs, width, 3, px))
        if i < len(skips) - 1:
            convolutions.append((width + skips[-2 - i], width, 3, px))
        inputs = width
    return [*convolutions, (inputs, 1, 1, SIZE_PX)]


class _Features(nn.Module):
    """timm's whole network up to its last map."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: torch.Tensor) -> Any:
        return self.encoder.forward_features(image)  # type: ignore[operator]


def _count(net: nn.Module, image: torch.Tensor) -> tuple[float, Any]:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        output = net(image)
    return counter.get_total_flops() / 1e9, output


def _parameters(net: nn.Module) -> int:
    return sum(each.numel() for each in net.parameters())


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the figures as a Markdown table, with the sums over the eight."""
    lines = [
        "| member | encoder | parameters, M (encoder + decoder) | original's | GFLOP (encoder + decoder) | original's "
        "| output |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, each in found.items():
        theirs = each["original"]
        lines.append(
            f"| {name} | {each['encoder']} | {each['parameters'] / 1e6:.2f} "
            f"({each['encoder_parameters'] / 1e6:.2f} + {each['decoder_parameters'] / 1e6:.2f}) | "
            f"{'-' if theirs is None else format(theirs['parameters'] / 1e6, '.2f')} | "
            f"{each['gflop']:.1f} ({each['encoder_gflop']:.1f} + {each['decoder_gflop']:.1f}) | "
            f"{'-' if theirs is None else format(theirs['gflop'], '.1f')} | {tuple(each['output_shape'])} |"
        )
    eight = [each for each in found.values() if each["original"] is not None]
    ours, theirs = (sum(each["gflop"] for each in which) for which in (eight, [each["original"] for each in eight]))
    passes = f"16 passes over a chip of {SIZE_PX} px (the eight, each twice)"
    return "\n".join([*lines, "", f"{passes}: {2 * ours:.0f} GFLOP; the original's {2 * theirs:.0f}"])


def main() -> None:
    """Print the table; with --write, keep the figures for the golden test."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {GOLDEN.name} for tests/golden")
    options = parser.parse_args()
    found = {
        member.name: measure(member) | {"original": original(member)}
        for member in (*published_members(), *further_members(), *small_members())
    }
    print(table(found))
    if options.write:
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
