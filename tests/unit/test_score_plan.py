"""A plan says what the work takes, and one item that can't be looked at is no reason to have none."""

from __future__ import annotations

from pathlib import Path

import pytest

from raytrain.cluster.score import ScoreJob
from raytrain.cluster.score_plan import _look, _readable
from raytrain.config import ScoreSettings
from raytrain.errors import ConfigError, DataError, StoreOutOfReach
from raytrain.scoring.estimate import Sample, hours_of, windows_of
from raytrain.scoring.open_shards import OpenShards
from raytrain.scoring.units import ChipSource, Unit
from tests.unit.test_perform import BANDS, SETTINGS, noise, scenes_of, write_scene


def test_workers_without_a_unit_do_not_shorten_the_work() -> None:
    windows = 2 * windows_of(10980, 10980, ScoreSettings())
    alone = hours_of(windows, 2, 1, 1.0)
    assert alone == pytest.approx(windows / 3600)
    assert hours_of(windows, 2, 2, 1.0) == hours_of(windows, 2, 50, 1.0) == alone / 2
    assert hours_of(windows, 51, 50, 1.0) == pytest.approx(2 * windows / 51 / 3600), "the last one has the others wait"
    assert hours_of(0, 0, 50, 1.0) == 0


def test_item_smaller_than_a_window_counts_by_what_the_nets_see_of_it() -> None:
    settings = ScoreSettings(window_px=512)
    assert windows_of(512, 512, settings) == 1
    assert windows_of(64, 64, settings) == 1 / 64
    assert windows_of(65, 65, settings) == (96 / 512) ** 2
    assert windows_of(64, 512, settings) == 1 / 8
    assert windows_of(10980, 10980, settings) == int(windows_of(10980, 10980, settings))


def look(unit: Unit | ChipSource) -> Sample | DataError | StoreOutOfReach:
    return _look(unit, ScoreJob(src="in", dst="out", ensemble="e", settings=SETTINGS), BANDS, OpenShards())


def test_item_that_may_not_be_read_is_one_of_the_bad_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scene(tmp_path / "s.tif", noise(70, 60))
    (scene,) = scenes_of(tmp_path)
    unit = Unit(kind="scene", scene=scene)
    good = look(unit)
    assert isinstance(good, Sample)
    assert (good.height, good.width) == (70, 60)

    def refused(*_: object) -> None:
        raise PermissionError("s3://b/s.tif: 403 AccessDenied")

    monkeypatch.setattr("raytrain.cluster.score_plan.open_scene", refused)
    monkeypatch.setattr("raytrain.cluster.score_plan.read_chip", refused)
    bad = [look(unit), look(ChipSource(chip_id="c", files={"B02": str(tmp_path / "s.tif")}, identity="1"))]
    assert [str(each) for each in bad] == ["s: s3://b/s.tif: 403 AccessDenied", "c: s3://b/s.tif: 403 AccessDenied"]
    assert _readable([good, *bad]) == [good]
    with pytest.raises(ConfigError, match="none of the 2 items that were looked at can be read; the first: s: s3"):
        _readable(bad)


def test_item_out_of_reach_was_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise StoreOutOfReach("s3://b did not answer")

    monkeypatch.setattr("raytrain.cluster.score_plan.read_chip", away)
    found = look(ChipSource(chip_id="c", files={"B02": str(tmp_path / "s.tif")}, identity="1"))
    sample = Sample(1, 1, 1)
    assert _readable([found, sample]) == [sample]
    with pytest.raises(StoreOutOfReach, match="did not answer"):
        _readable([DataError("d", "bad"), found])
    assert _readable([]) == []
