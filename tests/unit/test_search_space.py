"""What a search draws from: texts, settings of points, the default space."""

from __future__ import annotations

import math
from typing import Any

import pytest

from raytrain.config import MemberSettings, change
from raytrain.errors import ConfigError
from raytrain.recipes import members
from raytrain.search.figures import plots_of
from raytrain.search.records import Epoch, Trial
from raytrain.search.sampling import draw, importances
from raytrain.search.space import (
    Choice,
    Integer,
    LogUniform,
    Space,
    Uniform,
    Weight,
    contains,
    default_space,
    is_setting,
    original_point,
    parse_distribution,
    parse_space,
    settings_of,
    text_of,
)


@pytest.fixture(scope="module")
def member() -> MemberSettings:
    return members(("r34-4b-20k",))[0]


@pytest.mark.parametrize(
    "distribution",
    [
        Uniform(0, 0.5),
        LogUniform(1e-4, 0.1),
        Integer(1000001, 2345678),
        LogUniform(0.12345678, 0.12345679),
        Choice(("constant", "cosine")),
        Choice((4, [1, 2], True)),
        Weight(0.02, 1),
    ],
)
def test_a_distribution_is_read_from_its_own_text(distribution: Any) -> None:
    assert parse_distribution("path", text_of(distribution)) == distribution


def test_choices_are_read_without_quotes() -> None:
    assert parse_distribution("path", "choice(one-cycle, cosine)") == Choice(("one-cycle", "cosine"))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("optimiser.lr=normal(0,1)", "expected uniform"),
        ("optimiser.lr=loguniform(1e-4)", "two numbers"),
        ("optimiser.lr=loguniform(1,0.1)", "the smaller one first"),
        ("optimiser.lr=loguniform(0,0.1)", "above 0"),
        ("optimiser.lr=uniform(0,inf)", "two numbers"),
        ("optimiser.lr=uniform(true,2)", "two numbers"),
        ("global_batch=integer(1.5,4)", "whole numbers"),
        ("optimiser.schedule=choice(cosine)", "two or more"),
        ("optimiser.schedule=choice(cosine,cosine)", "different values"),
        ("optimiser.schedule=choice(cosine,step)", "'step' is no setting"),
        ("optimiser.momentum=uniform(0.5,1.5)", "1.5 is no setting"),
        ("optimiser.rate=uniform(0,1)", "unknown setting 'optimiser.rate'"),
        ("optimiser.lr", "path=distribution"),
        ("optimiser.lr=weight(0.1,1)", "for the terms of the loss"),
        ("name=choice(a,b)", "is not searched"),
        ("seed=integer(0,9)", "luck"),
        ("epochs=integer(1,9)", "--trial-epochs"),
        ("decoder_channels=uniform(1,2)", "is no setting"),
        ("global_batch=uniform(4,16)", "is no setting"),
    ],
)
def test_a_bad_space_is_refused_with_what_is_wrong(member: MemberSettings, entry: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_space([entry], member)


def test_a_name_that_only_one_setting_ends_with_is_enough(member: MemberSettings) -> None:
    space = parse_space(["lr=loguniform(1e-4,1e-1)"], member, with_default=False)
    assert space == {"optimiser.lr": LogUniform(1e-4, 1e-1)}


def test_a_choice_that_only_fits_with_another_setting_is_in_a_space_that_has_it(member: MemberSettings) -> None:
    one_cycle = "optimiser.schedule=choice(cosine,one-cycle)"
    with pytest.raises(ConfigError, match=r"'one-cycle' is no setting: .*warmup_fraction must be above 0"):
        parse_space([one_cycle], member, with_default=False)
    assert parse_space([one_cycle, "optimiser.warmup_fraction=uniform(0,0.3)"], member, with_default=False)


def test_default_space_holds_the_members_own_settings_and_all_terms_of_the_loss() -> None:
    for member in members(("all",)) + members(("small",)):
        space = default_space(member)
        assert contains(space, original_point(space, member)), member.name
        assert {path for path in space if path.startswith("loss.")} == {
            f"loss.{term}" for term in ("jaccard", "focal", "dice", "bce", "lovasz")
        }
        assert isinstance(space["optimiser.lr"], LogUniform)


def test_weights_are_scaled_to_the_sum_of_the_recipe(member: MemberSettings) -> None:
    point = {"loss.jaccard": 0.0, "loss.focal": 0.04, "loss.dice": 0.4, "loss.bce": 0.0, "loss.lovasz": 0.0}
    loss = settings_of(member, point).loss
    assert loss.focal + loss.dice == pytest.approx(1.1, rel=1e-3)
    assert loss.dice == pytest.approx(10 * loss.focal, rel=1e-3)
    doubled = {path: 2 * weight for path, weight in point.items()}
    assert settings_of(member, doubled).loss == loss, "a factor that all weights have is the learning rate's"


def test_weights_that_are_not_searched_are_scaled_with_the_others(member: MemberSettings) -> None:
    loss = settings_of(member, {"loss.dice": 1.1}).loss
    assert sum(loss.model_dump().values()) == pytest.approx(1.1, rel=1e-3)
    assert (loss.jaccard, loss.focal, loss.dice) == pytest.approx((0.5, 0.05, 0.55), rel=1e-3)


def test_the_originals_point_is_the_member_itself(member: MemberSettings) -> None:
    space = default_space(member)
    assert settings_of(member, original_point(space, member)) == member


def test_without_any_term_there_is_no_loss(member: MemberSettings) -> None:
    point = dict.fromkeys((f"loss.{term}" for term in ("jaccard", "focal", "dice", "bce", "lovasz")), 0.0)
    with pytest.raises(ConfigError, match="at least one term"):
        settings_of(member, point)


def trial(number: int, point: dict[str, Any], score: float | None, **values: Any) -> Trial:
    epochs = () if score is None else (epoch(1, score),)
    defaults: dict[str, Any] = {"state": "finished", "seed": 0, "num_epochs": 1, "kind": "search"}
    return Trial(name=f"trial-{number:04d}", number=number, point=point, epochs=epochs, **defaults | values)


def epoch(number: int, score: float, at_s: float = 0.0) -> Epoch:
    return Epoch(epoch=number, score=score, loss=1.0, learning_rate=0.1, train_s=1.0, validation_s=0.5, at_s=at_s)


@pytest.mark.parametrize("method", ["tpe", "random"])
def test_a_point_is_a_function_of_the_trials_the_number_and_the_seed(member: MemberSettings, method: str) -> None:
    space = default_space(member)
    known = [trial(i, draw(space, [], i, 7, "random", is_setting(member)), 0.1 * i) for i in range(14)]
    first, second = (draw(space, known, 14, 7, method, is_setting(member)) for _ in range(2))
    assert first == second
    assert contains(space, first)
    assert first != draw(space, known, 15, 7, method, is_setting(member))
    assert first != draw(space, known, 14, 8, method, is_setting(member))


def test_all_points_are_settings_and_numbers_are_short(member: MemberSettings) -> None:
    space: Space = {
        "optimiser.schedule": Choice(("one-cycle", "cosine")),
        "optimiser.warmup_fraction": Choice((0.0, 0.1)),
        "loss.jaccard": Weight(0.5, 1),
        "loss.focal": Weight(0.5, 1),
    }
    drawn = [draw(space, [], i, 0, "random", is_setting(member)) for i in range(60)]
    for point in drawn:
        assert (point["optimiser.schedule"], point["optimiser.warmup_fraction"]) != ("one-cycle", 0.0)
        assert point["loss.jaccard"] > 0 or point["loss.focal"] > 0, "all terms are off"
        assert all(len(f"{point[path]:g}") <= 6 for path in ("loss.jaccard", "loss.focal"))
    assert {bool(point["loss.jaccard"]) for point in drawn} == {True, False}


def test_tpe_draws_where_trials_were_good(member: MemberSettings) -> None:
    space: Space = {"optimiser.lr": LogUniform(1e-4, 1.0), "optimiser.momentum": Uniform(0.0, 0.95)}
    points = [draw(space, [], i, 3, "random", is_setting(member)) for i in range(40)]
    known = [trial(i, point, 1 - abs(math.log10(point["optimiser.lr"] / 0.01)) / 4) for i, point in enumerate(points)]
    drawn = [draw(space, known, number, 3, "tpe", is_setting(member)) for number in range(100, 120)]
    hits = sum(0.003 < point["optimiser.lr"] < 0.03 for point in drawn)
    assert hits >= 14, f"{hits} of 20, where 5 would be chance"


def test_diverged_trials_keep_others_away_and_failed_ones_say_nothing(member: MemberSettings) -> None:
    space: Space = {"optimiser.lr": LogUniform(1e-4, 1.0)}
    points = [draw(space, [], i, 3, "random", is_setting(member)) for i in range(30)]

    def high(state: str) -> int:
        known = [
            trial(i, point, None, state=state) if point["optimiser.lr"] > 0.01 else trial(i, point, 0.5)
            for i, point in enumerate(points)
        ]
        drawn = [draw(space, known, number, 3, "tpe", is_setting(member)) for number in range(100, 120)]
        return sum(point["optimiser.lr"] > 0.01 for point in drawn)

    assert high("diverged") <= 4
    assert high("failed") > high("diverged")


def test_a_space_without_settings_ends_with_its_last_draw(member: MemberSettings) -> None:
    with pytest.raises(ConfigError, match="no setting was found"):
        draw({"optimiser.lr": Uniform(0.1, 0.2)}, [], 0, 0, "random", lambda point: False)


def test_importances_name_the_setting_that_matters(member: MemberSettings) -> None:
    space: Space = {"optimiser.lr": LogUniform(1e-4, 1.0), "optimiser.momentum": Uniform(0.0, 0.95)}
    points = [draw(space, [], i, 0, "random", is_setting(member)) for i in range(40)]
    found = importances(space, [trial(i, point, point["optimiser.momentum"]) for i, point in enumerate(points)])
    assert next(iter(found)) == "optimiser.momentum"
    assert sum(found.values()) == pytest.approx(1)
    assert importances(space, [trial(i, point, 0.5) for i, point in enumerate(points[:3])]) == {}


def test_changes_of_the_command_are_part_of_the_original(member: MemberSettings) -> None:
    changed = change(member, {"optimiser.lr": 0.5})
    space = default_space(changed)
    assert original_point(space, changed)["optimiser.lr"] == 0.5
    assert contains(space, original_point(space, changed))


def test_a_setting_that_the_original_does_without_can_be_searched(member: MemberSettings) -> None:
    space = parse_space(["batch_norm_group=integer(2,8)"], member, with_default=False)
    original = original_point(space, member)
    assert original == {"batch_norm_group": None}
    assert not contains(space, original)
    assert settings_of(member, original) == member
    drawn = draw(space, [trial(0, original, 0.5)], 1, 0, "tpe", is_setting(member))
    assert contains(space, drawn)
    known = [trial(0, original, 0.5), *(trial(i, {"batch_norm_group": i}, 0.1 * i) for i in range(2, 6))]
    assert [plot.heading for plot in plots_of(space, known)][:2] == ["The best over time", "Learning curves"]


def test_a_member_with_a_plateau_of_its_own_keeps_its_schedule(member: MemberSettings) -> None:
    own = change(member, {"optimiser.plateau_epochs": 5})
    assert "optimiser.schedule" not in parse_space([], own)
