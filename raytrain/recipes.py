"""The members by name: the eight of the published recipe, small ones that a CPU trains in minutes, and a few more.

A recipe is a function's worth of settings and nothing else; what the settings mean stands in `raytrain.config`.
The encoder always carries timm's full tag: timm's defaults for a bare name have changed over the years.
"""

from __future__ import annotations

from raytrain.config import (
    RANDOM_WEIGHTS,
    AugmentationSettings,
    MemberSettings,
    Normalisation,
    OptimiserSettings,
    choose,
)
from raytrain.errors import ConfigError

THREE_BANDS = ("B02", "B03", "B04")
FOUR_BANDS = ("B02", "B03", "B04", "B08")
FALSE_COLOUR_BANDS = ("B03", "B04", "B08")
MINMAX = Normalisation(kind="minmax")
FLIPS_AND_QUARTER_TURNS = AugmentationSettings(
    affine_fraction=0, shift_fraction=0, gain_fraction=0, elastic_fraction=0, rectangle_fraction=0
)
"""Changes without resampling only: in a few epochs of small crops there is no time to learn from more."""


def _published(
    name: str, encoder: str, bands: tuple[str, ...], normalisation: Normalisation, epochs: int
) -> MemberSettings:
    """Return a member with the decoder of the original (infra/decisions/0003-members.md has what differs)."""
    widths = (64, 32, 24, 16, 8) if encoder.startswith("resnet34") else (256, 128, 96, 48, 32)
    return MemberSettings(
        name=name,
        encoder=encoder,
        bands=bands,
        normalisation=normalisation,
        decoder_norm=False,
        decoder_channels=widths,
        epochs=epochs,
        optimiser=OptimiserSettings(schedule="plateau"),
    )


def _fixed(maximum: float) -> Normalisation:
    return Normalisation(kind="fixed-maximum", maximum=maximum)


def published_members() -> list[MemberSettings]:
    """Return the eight members of the 3rd-place solution of "On Cloud N" (DrivenData, 2022)."""
    by_band = Normalisation()
    return [
        _published("v2s-4b", "tf_efficientnetv2_s.in1k", FOUR_BANDS, by_band, 100),
        _published("v2b0-4b-minmax", "tf_efficientnetv2_b0.in1k", FOUR_BANDS, MINMAX, 90),
        _published("v2b0-3b", "tf_efficientnetv2_b0.in1k", THREE_BANDS, by_band, 80),
        _published("r34-3b", "resnet34.bt_in1k", THREE_BANDS, by_band, 60),
        _published("r34-3b-minmax", "resnet34.bt_in1k", THREE_BANDS, MINMAX, 60),
        _published("r34-4b-20k", "resnet34.bt_in1k", FOUR_BANDS, _fixed(20000), 60),
        _published("b3-4b", "tf_efficientnet_b3.ns_jft_in1k", FOUR_BANDS, by_band, 70),
        _published("b0-4b-30k", "tf_efficientnet_b0.ns_jft_in1k", FOUR_BANDS, _fixed(30000), 60),
    ]


def small_members() -> list[MemberSettings]:
    """Return two members of 0.2 and 0.5 million parameters that differ in encoder and normalisation.

    They start from random weights. Many small crops make a batch of many places: few steps are enough, and batch
    normalisation is steady.
    """
    return [
        _small("small-effnet-4b-20k", "test_efficientnet.r160_in1k", FOUR_BANDS, _fixed(20000)),
        _small("small-byob-4b", "test_byobnet.r160_in1k", FOUR_BANDS, Normalisation()),
    ]


def further_members() -> list[MemberSettings]:
    """Return members that belong to no group: one that a CPU fine-tunes in an hour or two, and two small ones.

    The small one of three bands takes near infrared instead of blue, which tells snow from cloud.
    """
    lite = MemberSettings(
        name="lite0-4b",
        encoder="tf_efficientnet_lite0.in1k",
        bands=FOUR_BANDS,
        decoder_channels=(96, 64, 48, 32, 16),
        epochs=30,
        global_batch=8,
        crop_px=256,
        optimiser=OptimiserSettings(lr=0.01, schedule="cosine", warmup_fraction=0.1),
    )
    return [
        lite,
        _small("small-byob-3b", "test_byobnet.r160_in1k", FALSE_COLOUR_BANDS, Normalisation()),
        _small("small-resnet-4b-minmax", "test_resnet.r160_in1k", FOUR_BANDS, MINMAX),
    ]


def _small(name: str, encoder: str, bands: tuple[str, ...], normalisation: Normalisation) -> MemberSettings:
    return MemberSettings(
        name=name,
        encoder=encoder,
        encoder_weights=RANDOM_WEIGHTS,
        bands=bands,
        normalisation=normalisation,
        decoder_channels=(48, 32, 24, 16, 8),
        epochs=10,
        global_batch=48,
        crop_px=64,
        crops_per_tile=8,
        optimiser=OptimiserSettings(lr=0.07, schedule="cosine", warmup_fraction=0.1),
        augmentation=FLIPS_AND_QUARTER_TURNS,
    )


def members(names: tuple[str, ...]) -> list[MemberSettings]:
    """Return the members by name, each once; `all` stands for the eight of the recipe, `small` for the small two."""
    groups = {"all": published_members(), "small": small_members()}
    known = {member.name: member for group in (*groups.values(), further_members()) for member in group}
    choose("member", names, [*groups, *known])
    chosen = [member for name in names for member in groups.get(name, [known[name]] if name in known else [])]
    if len({member.name for member in chosen}) != len(chosen):
        raise ConfigError(f"a member is named twice in {', '.join(names)}")
    return chosen
