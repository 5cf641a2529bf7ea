"""What a ledger adds up to is what its records say one by one, however they lie in it; few of them are held."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio

from raytrain.config import change
from raytrain.scoring import ledger, totals
from raytrain.scoring.records import Output, Record
from raytrain.scoring.totals import BINS, COLUMNS, FEW, SAMPLED, Totals, add_up
from tests.unit.test_perform import LARGE_WINDOWS, SETTINGS, noise, score, work_at, write_scene


def record(number: int, **changes: object) -> Record:
    chance = random.Random(number)
    height, width = chance.randint(50, 90), chance.randint(50, 90)
    valid = chance.choice([0, height * width, chance.randint(1, height * width)])
    cloud = chance.choice([0, valid, chance.randint(0, valid)])
    values: dict[str, object] = {
        "item_id": f"item{number:05d}",
        "kind": chance.choice(["chip", "scene"]),
        "source_uri": f"s3://archive/{number}.tif",
        "identity": "1",
        "settings_digest": "d",
        "outputs": {"mask": Output(key=f"{number}.tif", sha256="0", num_bytes=1)},
        "height": height,
        "width": width,
        "datetime": f"20{chance.randint(10, 24)}-05-06T00:00:00Z",
        "valid_px": valid,
        "cloud_px": cloud,
        "disagreement_mean": chance.random() / 2 if valid else None,
        "members_left_out": chance.choice([(), (), ("four",), ("four", "five")]),
        "notes": chance.choice([(), ("no STAC item: no date",), ("a", "b")]),
        "shift_rule": chance.choice(["", "asked for"]),
    }
    return Record.model_validate({**values, **changes})


def totals_at(folder: Path) -> Totals:
    return add_up(ledger.read_all(str(folder), COLUMNS))


def is_telling(each: Record) -> bool:
    return each.valid_px * 2 >= each.height * each.width and 0.02 <= each.cloud_px / max(1, each.valid_px) <= 0.98


def test_totals_are_the_sums_over_all_records(tmp_path: Path) -> None:
    records = [record(i) for i in range(700)]
    for start in range(0, 700, 100):
        ledger.roll(str(tmp_path), records[start : start + 100], [])
    ledger.compact(str(tmp_path))
    found = totals_at(tmp_path)
    with_data = [each for each in records if each.valid_px]
    assert (found.num_items, found.kinds) == (700, Counter(each.kind for each in records))
    assert found.pixels == sum(each.height * each.width for each in records)
    assert (found.valid_px, found.cloud_px) == (
        sum(each.valid_px for each in records),
        sum(each.cloud_px for each in records),
    )
    assert found.num_without_data == 700 - len(with_data)
    fractions = [each.cloud_px / each.valid_px for each in with_data]
    assert found.cloud_counts.tolist() == np.histogram(fractions, BINS, (0, 1))[0].tolist()
    expected = sum((each.disagreement_mean or 0) * each.valid_px for each in with_data)
    assert found.disagreement_mean == pytest.approx(expected / found.valid_px, rel=1e-12)
    assert found.notes == Counter(note for each in records for note in each.notes)
    assert found.members_left_out == Counter(name for each in records for name in each.members_left_out)
    assert found.shift_rules == Counter(each.shift_rule for each in records if each.shift_rule)
    dates = sorted(each.datetime or "" for each in records)
    assert (found.first, found.last) == (dates[0], dates[-1])


def test_items_to_look_at_are_the_first_and_the_last_of_all(tmp_path: Path) -> None:
    records = [record(i) for i in range(700)]
    ledger.roll(str(tmp_path), records, [])
    ledger.compact(str(tmp_path))
    found = totals_at(tmp_path)
    telling = [each for each in records if is_telling(each)]
    by_disagreement = sorted(
        (each for each in records if each.valid_px), key=lambda each: (-(each.disagreement_mean or 0), each.item_id)
    )
    by_cloud = sorted(telling, key=lambda each: (-each.cloud_px / each.valid_px, each.item_id))
    assert [item.item_id for item in found.most_disagreeing] == [each.item_id for each in by_disagreement[:FEW]]
    assert [item.item_id for item in found.cloudiest] == [each.item_id for each in by_cloud[:FEW]]
    assert [item.item_id for item in found.clearest] == [each.item_id for each in by_cloud[: -FEW - 1 : -1]]
    agreeing = sorted(telling, key=lambda each: each.disagreement_mean or 0)
    assert [item.item_id for item in found.least_disagreeing] == [each.item_id for each in agreeing[:FEW]]
    assert all(not item.valid_px for item in found.without_data)
    middle = agreeing[(len(agreeing) - FEW) // 2 :][:FEW]
    assert len(found.typical) == FEW
    assert len({each.item_id for each in middle} & {item.item_id for item in found.typical}) >= FEW - 1


def test_of_many_items_few_are_held_and_a_typical_one_is_near_the_middle(tmp_path: Path) -> None:
    full = {"valid_px": 10000, "height": 100, "width": 100, "members_left_out": (), "disagreement_mean": None}
    records = [record(i, cloud_px=300 + (i * 7919) % 9001, **full) for i in range(6 * SAMPLED)]
    ledger.roll(str(tmp_path), records, [])
    ledger.compact(str(tmp_path))
    found = totals_at(tmp_path)
    fractions = sorted(each.cloud_px for each in records)
    ranks = [np.searchsorted(fractions, item.cloud_px) / len(records) for item in found.typical]
    assert len(ranks) == FEW
    assert max(abs(rank - 0.5) for rank in ranks) < 0.05
    assert [item.cloud_px for item in found.cloudiest] == fractions[: -FEW - 1 : -1]


def test_ties_of_a_huge_number_of_items_are_kept_by_id_and_larger_ones_are_not_lost_among_them(tmp_path: Path) -> None:
    records = [record(i, valid_px=0, cloud_px=0, height=10, width=10) for i in range(3000)]
    records += [record(9000 + i, valid_px=0, cloud_px=0, height=20 + i, width=10) for i in range(2)]
    ledger.roll(str(tmp_path), records, [])
    ledger.compact(str(tmp_path))
    ids = [item.item_id for item in totals_at(tmp_path).without_data]
    assert ids == ["item09001", "item09000", *(f"item{i:05d}" for i in range(FEW - 2))]


def test_records_that_a_stopped_run_left_uncompacted_count_once(tmp_path: Path) -> None:
    ledger.roll(str(tmp_path), [record(i) for i in range(50)], [])
    ledger.compact(str(tmp_path))
    ledger.roll(str(tmp_path), [record(i) for i in range(40, 70)], [])
    ledger.enter(str(tmp_path), [record(i) for i in range(65, 80)])
    names = sorted(path.name for path in tmp_path.rglob("*"))
    found = totals_at(tmp_path)
    assert found.num_items == 80
    assert found.valid_px == sum(record(i).valid_px for i in range(80))
    assert sorted(path.name for path in tmp_path.rglob("*")) == names


def test_different_notes_beyond_what_is_counted_are_counted_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(totals, "TEXTS", 5)
    ledger.enter(str(tmp_path), [record(i, notes=(f"note {i}",)) for i in range(30)])
    notes = totals_at(tmp_path).notes
    assert (len(notes), notes.total()) == (6, 30)


def test_empty_ledger_adds_up_to_nothing(tmp_path: Path) -> None:
    found = totals_at(tmp_path)
    assert (found.num_items, found.cloud_fraction, found.disagreement_mean, found.typical) == (0, None, None, [])


def test_table_of_before_disagreement_was_kept_counts_and_takes_new_records(tmp_path: Path) -> None:
    ledger.roll(str(tmp_path), [record(i) for i in range(40)], [])
    ledger.compact(str(tmp_path))
    for path in (tmp_path / "ledger").iterdir():
        table = pq.read_table(path).drop_columns(["disagreement_mean", "fold", "bands"]).replace_schema_metadata(None)
        pq.write_table(table, path, store_schema=False)
    before = list(ledger.read_records(str(tmp_path)))
    assert len(before) == 40
    assert {each.disagreement_mean for each in before} == {None}
    assert totals_at(tmp_path).disagreement_mean is None
    ledger.enter(str(tmp_path), [record(40)])
    ledger.compact(str(tmp_path))
    after = {each.item_id: each for each in ledger.read_records(str(tmp_path))}
    assert after.pop("item00040") == record(40)
    assert list(after.values()) == sorted(before, key=lambda each: list(after).index(each.item_id))


def test_mean_disagreement_is_that_of_the_layer_however_the_scene_is_cut_and_the_layer_is_stored(
    tmp_path: Path,
) -> None:
    write_scene(tmp_path / "in" / "s.tif", noise(700, 260))
    means = []
    for encoding, block_px in (("uint8", 2048), ("float32", 512)):
        out = tmp_path / f"{encoding}{block_px}"
        settings = change(SETTINGS, {**LARGE_WINDOWS, "disagreement": encoding, "block_px": block_px})
        (found,) = score(tmp_path / "in", work_at(out, settings))
        means.append(found.disagreement_mean)
        with rasterio.open(out / "disagreement" / "s.tif") as layer:
            values = layer.read(1, masked=True).astype(np.float64) * layer.scales[0]
        assert found.disagreement_mean == pytest.approx(float(np.ma.masked_invalid(values).mean()), abs=0.25 / 254)
        assert found.disagreement_mean
    assert len(set(means)) == 1
