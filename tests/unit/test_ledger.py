"""The ledger is a function of the records alone, loses none to a crash, and counts an item twice in no case."""

from __future__ import annotations

import itertools
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytrain import storage
from raytrain.errors import ConfigError
from raytrain.scoring import ledger
from raytrain.scoring.ledger import DamagedTable, Known, Standing
from raytrain.scoring.records import Output, Record
from raytrain.storage import local


def record(i: int, identity: str = "1", digest: str = "d") -> Record:
    name = f"scene{i:04d}"
    return Record(
        item_id=name,
        kind="scene",
        source_uri=f"s3://b/{name}.tif",
        identity=identity,
        settings_digest=digest,
        outputs={
            "mask": Output(key=f"{name}.tif", sha256="ab", num_bytes=3),
            "item": Output(key=f"stac/{name}.json", sha256="cd", num_bytes=4),
        },
        height=10,
        width=20,
        crs="EPSG:32636" if i % 2 else None,
        transform=(10.0, 0.0, 5e5, 0.0, -10.0, 4e6) if i % 3 else None,
        valid_px=200,
        cloud_px=i,
        notes=("no date",) if i % 5 else (),
        members_left_out=("b",) if i % 7 else (),
    )


def tables(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def standing(folder: Path, records: list[Record]) -> Standing:
    return Standing(f"{output.key} {output.num_bytes}" for each in records for output in each.outputs.values())


def enter_all(uri: str, records: list[Record]) -> list[str]:
    names = []
    for batch in (records[i : i + 3] for i in range(0, len(records), 3)):
        ledger.enter(uri, batch)
        names.append(ledger.entry_name(each.item_id for each in batch))
    return names


def test_tables_do_not_depend_on_order_batches_rolls_or_runs(tmp_path: Path) -> None:
    records = [record(i) for i in range(50)]
    enter_all(str(tmp_path / "a"), records)
    ledger.compact(str(tmp_path / "a"))
    backwards = records[::-1]
    for part in (backwards[:17], backwards[17:40], backwards[30:]):
        names = enter_all(str(tmp_path / "b"), part)
        ledger.roll(str(tmp_path / "b"), part[:9], names[:3])
        ledger.compact(str(tmp_path / "b"))
    assert tables(tmp_path / "a") == tables(tmp_path / "b")
    assert all(name.startswith("ledger/records-") for name in tables(tmp_path / "a"))
    assert sorted(ledger.read_records(str(tmp_path / "a")), key=lambda each: each.item_id) == records


def test_no_record_is_lost_wherever_compaction_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [record(i) for i in range(15)]
    enter_all(str(tmp_path / "whole"), records)
    ledger.compact(str(tmp_path / "whole"))

    class Stop(Exception):
        pass

    for at in itertools.count():
        uri = str(tmp_path / f"stopped{at}")
        names = enter_all(uri, records)
        left = iter(range(at))

        def countdown(real: object, left: object = left) -> object:
            def call(*arguments: object) -> object:
                if next(left, None) is None:  # type: ignore[call-overload]
                    raise Stop
                return real(*arguments)  # type: ignore[operator]

            return call

        with monkeypatch.context() as patch:
            patch.setattr(storage, "write_bytes", countdown(storage.write_bytes))
            patch.setattr(storage, "remove", countdown(storage.remove))
            try:
                ledger.roll(uri, records[:9], names[:3])
                ledger.compact(uri)
                stopped = False
            except Stop:
                stopped = True
        ledger.compact(uri)
        assert tables(tmp_path / f"stopped{at}") == tables(tmp_path / "whole"), f"stopped after {at} steps"
        if not stopped:
            assert at > 15
            return


def test_tables_do_not_depend_on_how_many_records_are_held_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [record(i) for i in range(60)]
    for uri, lot in ((str(tmp_path / "one"), 1000), (str(tmp_path / "many"), 7)):
        with monkeypatch.context() as patch:
            patch.setattr(ledger, "RECORDS_AT_ONCE", lot)
            patch.setattr(ledger, "READ_TOGETHER", 2)
            enter_all(uri, [record(i, identity="old") for i in range(10)])
            ledger.compact(uri)
            names = enter_all(uri, records)
            ledger.roll(uri, records[:30], names[:10])
            ledger.compact(uri, dropped=["scene0003", "scene0055"])
    assert tables(tmp_path / "many") == tables(tmp_path / "one")
    kept = {each.item_id: each.identity for each in ledger.read_records(str(tmp_path / "many"))}
    assert kept == {f"scene{i:04d}": "1" for i in range(60) if i not in (3, 55)}


def test_later_record_of_an_item_takes_the_place_of_the_older(tmp_path: Path) -> None:
    uri = str(tmp_path)
    ledger.enter(uri, [record(1), record(2)])
    ledger.compact(uri)
    ledger.enter(uri, [record(1, identity="2")])
    ledger.compact(uri)
    assert {each.item_id: each.identity for each in ledger.read_records(uri)} == {"scene0001": "2", "scene0002": "1"}


def test_record_of_an_item_that_can_not_be_scored_any_more_is_taken_out(tmp_path: Path) -> None:
    uri = str(tmp_path)
    ledger.enter(uri, [record(i) for i in range(5)])
    ledger.compact(uri)
    ledger.compact(uri, dropped=["scene0003", "scene0999"])
    assert {each.item_id for each in ledger.read_records(uri)} == {f"scene000{i}" for i in (0, 1, 2, 4)}
    ledger.compact(uri, dropped=[f"scene000{i}" for i in range(5)])
    assert tables(tmp_path) == {}


def test_items_are_entered_while_others_are_rolled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(tmp_path)
    names = enter_all(uri, [record(1)])
    real = local._renamed_into_place

    def rolled_meanwhile(path: Path) -> AbstractContextManager[Path]:
        monkeypatch.setattr(local, "_renamed_into_place", real)
        ledger.roll(uri, [record(1)], names)  # the folder stands, and nothing is in it yet
        return real(path)

    monkeypatch.setattr(local, "_renamed_into_place", rolled_meanwhile)
    ledger.enter(uri, [record(2)])
    ledger.compact(uri)
    assert {each.item_id for each in ledger.read_records(uri)} == {"scene0001", "scene0002"}
    assert {path.name for path in (tmp_path / "ledger").iterdir() if path.is_dir()} == set()


def test_torn_entry_counts_for_nothing_and_a_damaged_table_is_named(tmp_path: Path) -> None:
    uri = str(tmp_path)
    ledger.enter(uri, [record(1)])
    ledger.enter(uri, [record(2)])
    torn = tmp_path / "ledger" / "new" / ledger.entry_name(["scene0002"])
    torn.write_bytes(torn.read_bytes()[:50])
    (tmp_path / "ledger" / "rolled").mkdir()
    (tmp_path / "ledger" / "rolled" / "x.parquet").write_bytes(b"PAR1 nothing")
    ledger.compact(uri)
    assert [each.item_id for each in ledger.read_records(uri)] == ["scene0001"]
    digit = ledger.bucket_of("scene0001")
    (tmp_path / "ledger" / f"records-{digit}.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=rf"records-{digit}\.parquet: damaged, .*remove it to score its items again"):
        list(ledger.read_records(uri))


def test_byte_of_a_table_that_flipped_is_found_or_changes_nothing(tmp_path: Path) -> None:
    uri = str(tmp_path)
    ledger.enter(uri, [record(i) for i in range(60)])
    ledger.compact(uri)
    path = max((tmp_path / "ledger").iterdir(), key=lambda each: each.stat().st_size)
    whole, right, found = path.read_bytes(), list(ledger.read_records(uri)), []
    for at in range(0, len(whole), 23):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            assert list(ledger.read_records(uri)) == right
            assert Known(uri, "d", Standing([])).is_of_another(right[0].item_id, "elsewhere")
        except DamagedTable as error:
            found.append(error.uri)
    assert set(found) == {str(path)}
    assert len(found) > len(whole) / 50


def test_known_is_what_has_all_outputs_the_same_source_and_the_same_settings(tmp_path: Path) -> None:
    uri = str(tmp_path)
    records = [record(i) for i in range(30)]
    other = record(30, digest="other")
    ledger.enter(uri, [*records, other])
    ledger.compact(uri)
    known = Known(uri, "d", standing(tmp_path, [*records, other]))
    assert known.num_done == 30
    assert all(known.is_done(each.item_id, "1") for each in records)
    assert not known.is_done(records[0].item_id, "2")
    assert not known.is_done(other.item_id, "1")
    assert not known.is_done("scene9999", "1")
    assert not known.is_of_another("scene0003", "s3://b/scene0003.tif")
    assert known.is_of_another("scene0003", "s3://c/scene0003.tif")
    assert not known.is_of_another("scene9999", "s3://c/scene0003.tif")
    sized = [f"{output.key} {output.num_bytes}" for each in records for output in each.outputs.values()]
    without = Known(uri, "d", Standing(name for name in sized if name != "stac/scene0007.json 4"))
    assert not without.is_done("scene0007", "1")
    assert without.num_done == 29
    cut = Known(uri, "d", Standing(name.replace("stac/scene0007.json 4", "stac/scene0007.json 0") for name in sized))
    assert not cut.is_done("scene0007", "1"), "an output of another size does not stand"
    assert Known(str(tmp_path / "empty"), "d", Standing([])).num_done == 0


def test_known_is_what_compaction_would_leave_and_stays_uncompacted(tmp_path: Path) -> None:
    uri = str(tmp_path)
    ledger.enter(uri, [record(i, identity="old") for i in range(10)])
    ledger.compact(uri)
    rolled = [record(i) for i in range(5, 20)]
    ledger.roll(uri, rolled, enter_all(uri, rolled))
    fresh = [record(i, identity="new") for i in range(18, 25)]
    enter_all(uri, fresh)
    before = tables(tmp_path)
    stands = standing(tmp_path, [*rolled, *fresh, *(record(i) for i in range(10))])
    known = Known(uri, "d", stands)
    assert tables(tmp_path) == before
    assert known.num_done == 25
    expected = {i: "old" if i < 5 else "1" if i < 18 else "new" for i in range(25)}
    for identity in ("old", "1", "new"):
        done = {i for i in range(25) if known.is_done(record(i).item_id, identity)}
        assert done == {i for i, each in expected.items() if each == identity}
    ledger.compact(uri)
    compacted = Known(uri, "d", stands)
    assert all(compacted.is_done(record(i).item_id, identity) for i, identity in expected.items())


@pytest.mark.parametrize("lacking", [["fold", "bands"], ["disagreement_mean", "fold", "bands"]])
def test_tables_of_before_some_columns_were_kept_become_those_of_now(tmp_path: Path, lacking: list[str]) -> None:
    for name in ("old", "new"):
        ledger.enter(str(tmp_path / name), [record(i) for i in range(40)])
        ledger.compact(str(tmp_path / name))
    for path in (tmp_path / "old" / "ledger").iterdir():
        table = pq.read_table(path).drop_columns(lacking).replace_schema_metadata(None)
        pq.write_table(table, path, store_schema=False)
    of_old = list(ledger.read_records(str(tmp_path / "old")))
    assert of_old == list(ledger.read_records(str(tmp_path / "new")))
    found = pa.concat_tables(ledger.read_all(str(tmp_path / "old"), ["item_id", *lacking]))
    assert (len(found), found["fold"].null_count, set(map(tuple, found["bands"].to_pylist()))) == (40, 40, {()})
    more = [record(i).model_copy(update={"fold": 2, "bands": ("B02", "B03")}) for i in range(40, 140)]
    for name in ("old", "new"):
        ledger.enter(str(tmp_path / name), more)
        ledger.compact(str(tmp_path / name))
    assert tables(tmp_path / "old") == tables(tmp_path / "new")
    kept = {each.item_id: (each.fold, each.bands) for each in ledger.read_records(str(tmp_path / "old"))}
    assert (kept["scene0003"], kept["scene0077"]) == ((None, ()), (2, ("B02", "B03")))


def test_ledger_is_read_by_any_tool(tmp_path: Path) -> None:
    ledger.enter(str(tmp_path), [record(3)])
    ledger.compact(str(tmp_path))
    (path,) = (tmp_path / "ledger").glob("*.parquet")
    (row,) = pq.read_table(path).to_pylist()
    assert (row["item_id"], row["cloud_px"], row["outputs"][0]["key"]) == ("scene0003", 3, "stac/scene0003.json")
