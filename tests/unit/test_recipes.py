"""The members by name: the eight of the published recipe with its figures, and the small ones."""

from __future__ import annotations

import pytest
import torch

from raytrain.config import MemberSettings
from raytrain.errors import ConfigError
from raytrain.imagery.normalisation import BAND_MAXIMUM
from raytrain.recipes import members, published_members
from raytrain.training.models import build_model

FOUR, THREE = ("B02", "B03", "B04", "B08"), ("B02", "B03", "B04")
PUBLISHED = [
    ("v2s-4b", "tf_efficientnetv2_s.in1k", FOUR, ("band-maximum", None), 100),
    ("v2b0-4b-minmax", "tf_efficientnetv2_b0.in1k", FOUR, ("minmax", None), 90),
    ("v2b0-3b", "tf_efficientnetv2_b0.in1k", THREE, ("band-maximum", None), 80),
    ("r34-3b", "resnet34.bt_in1k", THREE, ("band-maximum", None), 60),
    ("r34-3b-minmax", "resnet34.bt_in1k", THREE, ("minmax", None), 60),
    ("r34-4b-20k", "resnet34.bt_in1k", FOUR, ("fixed-maximum", 20000), 60),
    ("b3-4b", "tf_efficientnet_b3.ns_jft_in1k", FOUR, ("band-maximum", None), 70),
    ("b0-4b-30k", "tf_efficientnet_b0.ns_jft_in1k", FOUR, ("fixed-maximum", 30000), 60),
]
"""The table of the published recipe."""


def test_members_by_name_and_by_group() -> None:
    assert len(members(("all",))) == 8
    assert [each.name for each in members(("r34-3b", "small"))] == ["r34-3b", "small-effnet-4b-20k", "small-byob-4b"]
    with pytest.raises(ConfigError, match=r"unknown member 'r35'; known are .*lite0-4b.*small-resnet-4b-minmax"):
        members(("r35",))
    with pytest.raises(ConfigError, match="named twice"):
        members(("all", "r34-3b"))


def test_members_of_no_group_are_chosen_by_name() -> None:
    names = ("lite0-4b", "small-byob-3b", "small-resnet-4b-minmax")
    assert [each.name for each in members(names)] == list(names)
    assert not set(names) & {each.name for each in members(("all", "small"))}


def test_published_members_are_the_eight_of_the_recipe() -> None:
    found = [
        (each.name, each.encoder, each.bands, (each.normalisation.kind, each.normalisation.maximum), each.epochs)
        for each in published_members()
    ]
    assert found == PUBLISHED


def test_published_members_are_trained_by_the_figures_of_the_recipe() -> None:
    for member in published_members():
        sgd, loss, changes = member.optimiser, member.loss, member.augmentation
        assert (sgd.lr, sgd.momentum, sgd.weight_decay, sgd.clip_norm) == (2e-3, 0.9, 0, 2.999)
        assert (sgd.warmup_fraction, member.global_batch, member.batch_norm_group, member.crop_px) == (0, 16, None, 512)
        assert loss.model_dump() == {"jaccard": 1.0, "focal": 0.1, "dice": 0, "bce": 0, "lovasz": 0}
        assert (changes.horizontal_flip_fraction, changes.rotation_by_90, changes.affine_fraction) == (0.5, True, 0.7)
        assert (changes.pivot_fraction, changes.scale_fraction, changes.scale_deviation) == (0.4, 0.8, 0.1)
        assert (changes.rotation_fraction, changes.rotation_limit_deg) == (0.8, 45)
        assert (changes.shift_fraction, changes.shift_limit) == (0.01, 0.05)
        assert (changes.gain_fraction, changes.gain_deviation, changes.elastic_fraction) == (0.01, 0.1, 0.04)
        assert (changes.rectangle_fraction, changes.rectangle_side_fraction) == (0.15, 0.4)
    assert {band: BAND_MAXIMUM[band] for band in FOUR} == {"B02": 22500, "B03": 21000, "B04": 19500, "B08": 17000}


def test_published_members_have_the_decoder_and_the_schedule_of_the_original() -> None:
    for each in members(("all",)):
        widths = (64, 32, 24, 16, 8) if each.encoder.startswith("resnet34.") else (256, 128, 96, 48, 32)
        assert (each.decoder_norm, each.decoder_channels) == (False, widths)
        optimiser = each.optimiser
        assert (optimiser.schedule, optimiser.plateau_epochs, optimiser.plateau_factor) == ("plateau", 200, 0.5)
        assert (each.encoder_weights, each.first_convolution) == ("timm", "adapted")


def test_small_members_differ_in_encoder_and_normalisation() -> None:
    first, second = members(("small",))
    assert first.encoder != second.encoder
    assert first.normalisation != second.normalisation


@pytest.mark.parametrize("settings", published_members(), ids=lambda settings: settings.name)
def test_published_member_goes_from_image_to_logits_of_its_size(settings: MemberSettings) -> None:
    with torch.device("meta"):
        net = build_model(settings, with_encoder_weights=False)
        assert net(torch.zeros(1, len(settings.bands), 64, 96)).shape == (1, 1, 64, 96)


@pytest.mark.parametrize("name", ["small-effnet-4b-20k", "small-byob-3b"])
def test_small_member_goes_from_image_to_logits_of_its_size(name: str) -> None:
    settings = members((name,))[0]
    net = build_model(settings)
    assert net(torch.zeros(2, len(settings.bands), 64, 96)).shape == (2, 1, 64, 96)
    assert 1e5 < sum(each.numel() for each in net.parameters()) < 1e6
