from __future__ import annotations

from pathlib import Path

import pytest

from raytrain.command import load_changes
from raytrain.config import (
    MemberSettings,
    Normalisation,
    ScoreSettings,
    change,
    differences,
    known_paths,
    parse,
    parse_changes,
)
from raytrain.errors import ConfigError
from raytrain.recipes import members


def member() -> MemberSettings:
    return members(("small-effnet-4b-20k",))[0]


def test_settings_survive_json() -> None:
    assert MemberSettings.model_validate_json(member().model_dump_json()) == member()


def test_change_reaches_nested_settings_and_leaves_the_others() -> None:
    before = change(member(), {"optimiser.lr": 0.07, "epochs": 6})
    changed = change(before, {"optimiser.lr": 0.5, "epochs": 3})
    assert (changed.optimiser.lr, changed.epochs) == (0.5, 3)
    assert differences(before, changed) == ["epochs: 6 -> 3", "optimiser.lr: 0.07 -> 0.5"]


def test_every_known_path_can_be_set_to_its_own_value() -> None:
    values = member().model_dump(mode="json")
    for path in known_paths(MemberSettings):
        value = values
        for step in path.split("."):
            value = value[step]
        assert change(member(), {path: value}) == member()


def test_unknown_setting_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'optimiser\.rate'.*optimiser\.lr"):
        change(member(), {"optimiser.rate": 1})


def test_wrong_value_names_setting_and_value() -> None:
    with pytest.raises(ConfigError, match=r"optimiser\.lr: .*greater than 0 \(found -1\)"):
        change(member(), {"optimiser.lr": -1})
    for changes in ({"optimiser.clip_norm": float("inf")}, {"decoder_channels": [8, 8, 0, 8, 8]}):
        with pytest.raises(ConfigError, match=next(iter(changes))):
            change(member(), changes)
    with pytest.raises(ConfigError, match="crop_px"):
        change(member(), {"crop_px": 100})
    with pytest.raises(ConfigError, match="overlap_px 400 must be at most half"):
        change(ScoreSettings(), {"overlap_px": 400})


def test_one_line_only() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(MemberSettings, {"name": "Bad Name", "epochs": 0})
    assert "\n" not in str(caught.value)
    assert "epochs" in str(caught.value)


def test_assignments_read_as_json_or_text() -> None:
    assert parse_changes(["a=1", "b=[1, 2]", "c=text", "d=true", "e=x=y"]) == {
        "a": 1,
        "b": [1, 2],
        "c": "text",
        "d": True,
        "e": "x=y",
    }
    with pytest.raises(ConfigError, match="expected path=value"):
        parse_changes(["nothing"])


def test_toml_gives_dotted_paths(tmp_path: Path) -> None:
    path = tmp_path / "best.toml"
    path.write_text('epochs = 3\n[optimiser]\nlr = 0.5\n[normalisation]\nkind = "minmax"\nmaximum = 1\n')
    changes = load_changes(path)
    assert changes == {"epochs": 3, "optimiser.lr": 0.5, "normalisation.kind": "minmax", "normalisation.maximum": 1}
    with pytest.raises(ConfigError, match="no such settings file"):
        load_changes(tmp_path / "absent.toml")
    path.write_text("not toml")
    with pytest.raises(ConfigError, match="not a TOML file"):
        load_changes(path)


def test_fixed_maximum_needs_its_number() -> None:
    assert Normalisation(kind="fixed-maximum", maximum=20000).maximum == 20000
    with pytest.raises(ConfigError, match="maximum is given with kind fixed-maximum"):
        parse(Normalisation, {"kind": "fixed-maximum"})
    with pytest.raises(ConfigError, match="maximum is given with kind fixed-maximum"):
        parse(Normalisation, {"kind": "minmax", "maximum": 3})


def test_settings_that_nothing_would_read_are_refused() -> None:
    (member,) = members(("r34-3b",))
    for changes, text in (
        ({"optimiser.schedule": "cosine", "optimiser.plateau_epochs": 5}, "plateau_epochs is for schedule plateau"),
        ({"optimiser.schedule": "constant", "optimiser.plateau_factor": 0.1}, "plateau_factor is for schedule plateau"),
        ({"optimiser.schedule": "one-cycle"}, "one-cycle rises first: warmup_fraction must be above 0"),
        ({"encoder_weights": "random", "first_convolution": "random"}, "first_convolution random is for pretrained"),
        ({"seed": 2**63}, "seed"),
    ):
        with pytest.raises(ConfigError, match=text):
            change(member, changes)
