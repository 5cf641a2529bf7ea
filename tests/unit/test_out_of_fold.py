"""Out of fold no net scores a tile whose location it learnt from; else shards are scored as chips are."""

from __future__ import annotations

import json
import operator
import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raytrain import cli, storage
from raytrain.cluster.evaluate_checks import check_ensemble
from raytrain.cluster.pool import UNITS_IN_FLIGHT
from raytrain.cluster.score import ScoreJob, listing_of, scoring_of
from raytrain.config import ScoreSettings, change
from raytrain.errors import ConfigError, StoreOutOfReach
from raytrain.evaluation.predictions import find_predictions
from raytrain.evaluation.scoring_gallery import make_gallery
from raytrain.evaluation.scoring_report import read_scored
from raytrain.scoring import ledger
from raytrain.scoring.destination import Scoring, claim_destination
from raytrain.scoring.ensemble import Ensemble
from raytrain.scoring.fold_nets import FOLDS_HELD, FoldNets
from raytrain.scoring.manifest import EnsembleManifest, read_manifest, write_manifest
from raytrain.scoring.perform import perform
from raytrain.scoring.planning import Listing
from raytrain.scoring.records import Record
from raytrain.scoring.schedule import Schedule
from raytrain.scoring.sources import CHANGED
from raytrain.scoring.units import ITEMS_PER_UNIT, Answer, Unit, tile_identity
from raytrain.scoring.unseen import Unseen
from raytrain.scoring.work import Work
from raytrain.tiles.format import Tile
from raytrain.tiles.reader import TileReader
from tests.making import make_ensemble, make_tile, write_tiles

SETTINGS = ScoreSettings(window_px=64, overlap_px=16, threads=1, windows_per_pass=3)
LAYERS = change(SETTINGS, {"probability": "uint8", "disagreement": "uint8", "members": "float32"})
MEMBERS = ("small-byob-3b", "small-effnet-4b-20k")
PLACES = st.sampled_from("abcdef")
FOLDS = st.frozensets(st.integers(0, 3), min_size=1)
ID = operator.itemgetter(0)


TRAINED = st.lists(st.tuples(PLACES, st.integers(0, 3), st.booleans()), max_size=12)


@given(TRAINED, FOLDS, st.lists(st.tuples(st.integers(0, 14), st.sampled_from("abcdefg")), max_size=8, unique_by=ID))
def test_no_chosen_net_learnt_from_the_place_of_the_tile(
    trained: list[tuple[str, int, bool]], with_nets: frozenset[int], scored: list[tuple[int, str]]
) -> None:
    """Tiles are numbers: those of training by their order, others are new; a place has its names of then and now."""
    unseen = Unseen("shards", trained_tiles(trained), {fold: ("m",) for fold in with_nets})
    now = dict(scored)
    tiles = pa.table(
        {"tile_id": pa.array(map(str, now), pa.string()), "location": pa.array(list(now.values()), pa.string())}
    )
    for (i, place), folds in zip(scored, unseen.folds_of(tiles), strict=True):
        before = trained[i][0] if i < len(trained) else None
        its = {
            fold
            for number, (name, fold, is_labelled) in enumerate(trained)
            if is_labelled and (name in (place, before) or now.get(number) == place)
        }
        learnt_from_it = {k for k in range(4) if its - {k}}
        fold = unseen.fold_for(folds)
        if fold is None:
            assert learnt_from_it == set(range(4)), "the nets of some fold never saw it"
        else:
            assert fold not in learnt_from_it
            assert fold in with_nets or its


def trained_tiles(tiles: Sequence[tuple[str, int, bool]]) -> pa.Table:
    """Return tiles as `Unseen` has them, of the ids 0, 1 and so on, by location, fold, and whether with a label."""
    schema = pa.schema([("location", pa.string()), ("fold", pa.int32()), ("is_labelled", pa.bool_())])
    table = pa.Table.from_pylist([dict(zip(schema.names, each, strict=True)) for each in tiles], schema=schema)
    return table.append_column("tile_id", pa.array([str(i) for i in range(len(tiles))], pa.string()))


def tile(i: int, location: str, *, labelled: bool = True, side: int = 32) -> Tile:
    return replace(make_tile(i, (side, side), labelled=labelled), tile_id=f"t{i}", location=location)


TILES = [
    tile(0, "p0"),  # `write_tiles` puts them in the folds 0, 1, 0, 1 and so on
    tile(1, "p1"),
    tile(2, "both"),
    tile(3, "both"),
    tile(4, "p0", side=96),
    tile(5, "p1"),
    tile(6, "mixed", labelled=False),
    tile(7, "mixed"),
    tile(8, "p0", labelled=False),
    tile(9, "bare", labelled=False),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_tiles(folder, TILES, "blosc2-bitshuffle-lz4", tiles_per_shard=4)
    return folder


@pytest.fixture(scope="module")
def ensemble(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_ensemble(tmp_path_factory.mktemp("ensemble"), MEMBERS, folds=(0, 1), shards=str(shards))


def job_of(shards: Path | str, dst: Path | str, ensemble: str, **options: object) -> ScoreJob:
    options = {"out_of_fold": True, "settings": SETTINGS, **options}
    return ScoreJob(src=str(shards), dst=str(dst), ensemble=ensemble, **options)


def listed(job: ScoreJob) -> tuple[Listing, list[Unit]]:
    manifest, scoring = scoring_of(job)
    known = ledger.Known(job.dst, scoring.digest(), ledger.standing_at(job.dst))
    listing = listing_of(job, manifest, known)
    return listing, list(listing.units())


def folds_of(units: Sequence[Unit]) -> dict[str, int | None]:
    return {item_id: unit.fold for unit in units for item_id in unit.item_ids}


def do_all(job: ScoreJob) -> tuple[Listing, list[Answer]]:
    """Do all units of a job in this process, as a worker does, one after the other."""
    manifest, scoring = scoring_of(job)
    listing, units = listed(job)
    nets = FoldNets(lambda fold: load(job.ensemble, manifest, scoring, fold))
    answers = []
    for unit in units:
        with nets.of(unit.fold) as of_fold:
            answers.append(perform(unit, Work(job.dst, scoring, of_fold)))
    ledger.compact(job.dst)
    return listing, answers


def load(uri: str, manifest: EnsembleManifest, scoring: Scoring, fold: int | None) -> Ensemble:
    settings = scoring.settings
    asked = {"disagreement": settings.disagreement != "none", "member_maps": settings.members != "none"}
    chosen = manifest if fold is None else manifest.of_fold(fold)
    return Ensemble.load(uri, chosen, settings, torch.device("cpu"), **asked)


def rasters_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.tif")}


def records_of(folder: Path) -> dict[str, Record]:
    return {record.item_id: record for record in ledger.read_records(str(folder))}


def test_units_have_tiles_of_one_fold_in_the_order_of_folds_and_of_the_index(
    shards: Path, ensemble: str, tmp_path: Path
) -> None:
    listing, units = listed(job_of(shards, tmp_path, ensemble))
    assert [(unit.fold, unit.item_ids) for unit in units] == [
        (0, ("t0", "t4", "t8", "t9")),
        (1, ("t1", "t5", "t6", "t7")),
    ]
    assert [problem.item_id for problem in listing.problems] == ["t2", "t3"]
    assert "labelled tiles in the folds 0, 1" in listing.problems[0].found
    assert listing.num_items == len(TILES)
    assert {unit.unit_id for unit in units} == {unit.unit_id for unit in listed(job_of(shards, tmp_path, ensemble))[1]}


def test_more_tiles_than_a_unit_holds_are_cut_and_a_unit_comes_apart_into_single_tiles(
    ensemble: str, shards: Path, tmp_path: Path
) -> None:
    many = tmp_path / "many"
    write_tiles(many, [tile(20 + i, "new", side=8) for i in range(ITEMS_PER_UNIT + 3)], "raw")
    _, units = listed(job_of(many, tmp_path / "out", ensemble))
    assert [len(unit.tiles) for unit in units] == [ITEMS_PER_UNIT, 3]
    assert [unit.item_ids for unit in units[1].of_one_item()] == [(f"t{20 + ITEMS_PER_UNIT + i}",) for i in range(3)]
    assert all(Unit.model_validate_json(unit.model_dump_json()) == unit for unit in units)
    schedule = Schedule(iter([units[1:]]), 1)
    while (task := schedule.take(alone=True)) is not None:
        schedule.failed(task, "a store")
    assert [each.problem.item_id for each in schedule.casualties] == [f"t{20 + ITEMS_PER_UNIT + i}" for i in range(3)]
    assert {each.problem.source_uri for each in schedule.casualties} == {str(many)}


def test_masks_out_of_fold_have_the_bytes_of_those_of_the_nets_of_the_fold(
    shards: Path, ensemble: str, tmp_path: Path
) -> None:
    found, alone = tmp_path / "found", [tmp_path / "0", tmp_path / "1"]
    do_all(job_of(shards, found, ensemble, settings=LAYERS))
    for fold, folder in enumerate(alone):
        do_all(job_of(shards, folder, ensemble, settings=LAYERS, out_of_fold=False, fold=fold))
    of_each = [rasters_of(folder) for folder in alone]
    assert all(len(rasters) == 5 * len(TILES) for rasters in of_each)
    ours = rasters_of(found)
    for i, fold in ((0, 0), (4, 0), (8, 0), (9, 0), (1, 1), (5, 1), (6, 1), (7, 1)):
        names = [
            f"{folder}t{i}.tif" for folder in ("", "probability/", "disagreement/", *(f"members/{m}/" for m in MEMBERS))
        ]
        assert {name: ours.pop(name) for name in names} == {name: of_each[fold][name] for name in names}
        probability = f"probability/t{i}.tif"
        assert of_each[0][probability] != of_each[1][probability], "one can't tell the folds apart"
    assert not ours
    assert not any(name in rasters_of(found) for name in ("t2.tif", "t3.tif"))


def test_record_of_a_tile_says_what_it_was_made_of(shards: Path, ensemble: str, tmp_path: Path) -> None:
    _, answers = do_all(job_of(shards, tmp_path, ensemble))
    record = records_of(tmp_path)["t1"]
    assert (record.kind, record.source_uri, record.shift) == ("tile", str(shards), 0)
    assert "reflectance already" in record.shift_rule
    assert (record.crs, record.transform) == (TILES[1].crs, TILES[1].transform)
    assert (record.height, record.width, record.valid_px) == (32, 32, 32 * 32)
    assert sum(answer.pixels for answer in answers) == 7 * 32**2 + 96**2
    assert not any(answer.problems or answer.changed for answer in answers)


@pytest.mark.parametrize("out_of_fold", [True, False])
def test_identity_of_a_record_is_made_again_of_what_it_says_and_the_shards(
    shards: Path, ensemble: str, tmp_path: Path, *, out_of_fold: bool
) -> None:
    options = {} if out_of_fold else {"fold": 1}
    do_all(job_of(shards, tmp_path, ensemble, out_of_fold=out_of_fold, **options))
    records = records_of(tmp_path)
    folds = {"t0": 0, "t1": 1, "t4": 0, "t5": 1, "t6": 1, "t7": 1, "t8": 0, "t9": 0}
    assert {name: records[name].fold for name in folds} == (folds if out_of_fold else dict.fromkeys(folds))
    for name in folds:
        record = records[name]
        reader = TileReader(str(shards), record.bands, labels=False)
        i = reader.tile_ids.index(name)
        again = tile_identity(reader.pixels_identity(i), record.crs, record.transform, record.fold)
        assert record.identity == again
    assert {record.bands for record in records.values()} == {read_manifest(ensemble).bands}


def test_done_tiles_are_known_by_pixels_and_fold_and_not_by_labels(shards: Path, ensemble: str, tmp_path: Path) -> None:
    do_all(job_of(shards, tmp_path / "out", ensemble))
    listing, units = listed(job_of(shards, tmp_path / "out", ensemble))
    assert (units, listing.num_done) == ([], 8)
    cleaned, out = tmp_path / "cleaned", tmp_path / "of-cleaned"
    assert TILES[5].label is not None
    labels = {0: np.full((32, 32), 1, np.uint8), 5: TILES[5].label ^ 1}
    dropped = [replace(each, label=labels.get(i, each.label)) for i, each in enumerate(TILES) if i not in (1, 2, 3)]
    pixels = {**dropped[0].bands, "B03": dropped[0].bands["B03"] ^ np.uint16(0x7FFF)}
    write_tiles(cleaned, [replace(dropped[0], bands=pixels), *dropped[1:]], "blosc2-bitshuffle-lz4")
    do_all(job_of(cleaned, out, ensemble))
    before, after = records_of(tmp_path / "out"), records_of(out)
    assert sorted(after) == ["t0", "t4", "t5", "t6", "t7", "t8", "t9"]
    same = [name for name in sorted(after) if after[name].identity == before[name].identity]
    assert same == ["t4", "t5", "t6", "t7", "t8", "t9"], "labels changed, or folds were those of the cleaned shards"
    assert all(after[name].outputs == before[name].outputs for name in same)
    assert after["t0"].outputs != before["t0"].outputs


def test_nets_are_chosen_by_the_shards_that_were_trained_on(shards: Path, ensemble: str, tmp_path: Path) -> None:
    """Other shards may have any folds: what counts is which labels a net learnt from."""
    write_tiles(tmp_path / "other", [tile(20, "p1"), tile(21, "p0"), tile(22, "elsewhere")], "raw")
    _, units = listed(job_of(tmp_path / "other", tmp_path / "out", ensemble))
    assert folds_of(units) == {"t20": 1, "t21": 0, "t22": 0}
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    moved = without_shards(ensemble, tmp_path / "moved")
    _, units = listed(job_of(copy, tmp_path / "out", moved))
    assert folds_of(units) == folds_of(listed(job_of(shards, tmp_path / "out", ensemble))[1])
    with pytest.raises(ConfigError, match=r"needs the index of the shards .* at /nowhere .* no finished shards"):
        listed(job_of(tmp_path / "other", tmp_path / "out", moved))
    manifest = read_manifest(ensemble)
    write_manifest(moved, manifest.model_copy(update={"shards": str(tmp_path / "other")}))
    write_tiles(tmp_path / "third", [tile(30, "p1")], "raw")
    with pytest.raises(ConfigError, match="they are not those that were trained on"):
        listed(job_of(tmp_path / "third", tmp_path / "out", moved))


def test_net_that_saw_a_place_under_another_name_is_not_chosen(shards: Path, ensemble: str, tmp_path: Path) -> None:
    renamed = [replace(each, location={"p0": "Mali", "p1": "Chad"}.get(each.location, each.location)) for each in TILES]
    more = [tile(20, "Chad"), tile(21, "elsewhere", labelled=False)]  # no id of these was known in training
    write_tiles(tmp_path / "renamed", [*renamed, *more], "raw")
    listing, units = listed(job_of(tmp_path / "renamed", tmp_path / "out", ensemble))
    before = folds_of(listed(job_of(shards, tmp_path / "out", ensemble))[1])
    assert folds_of(units) == {**before, "t20": 1, "t21": 0}
    assert [problem.item_id for problem in listing.problems] == ["t2", "t3"]


def test_tile_of_which_the_location_was_corrected_is_of_both_places(
    shards: Path, ensemble: str, tmp_path: Path
) -> None:
    """The net of the fold of its right place learnt from its label under the wrong name."""
    at = {1: "p0", 8: "p1", 9: "p1"}
    corrected = [replace(each, location=at.get(i, each.location)) for i, each in enumerate(TILES)]
    write_tiles(tmp_path / "in", corrected, "raw")
    listing, units = listed(job_of(tmp_path / "in", tmp_path / "out", ensemble))
    # t1 had a label in fold 1, and t8, t9 none: no net learnt from p0 alone, and all of p1 are as they were.
    assert folds_of(units) == {"t5": 1, "t6": 1, "t7": 1, "t9": 1}
    assert [problem.item_id for problem in listing.problems] == ["t0", "t1", "t2", "t3", "t4", "t8"]
    assert "location p0 has labelled tiles in the folds 0, 1" in listing.problems[0].found


def without_shards(ensemble: str, folder: Path) -> str:
    """Return a copy of an ensemble whose shards are gone."""
    shutil.copytree(ensemble, folder)
    write_manifest(str(folder), read_manifest(ensemble).model_copy(update={"shards": "/nowhere"}))
    return str(folder)


def with_nets(ensemble: str, folder: Path, nets: Sequence[tuple[str, int | None]]) -> str:
    """Return a copy of an ensemble that has just these nets, by name and fold."""
    shutil.copytree(ensemble, folder)
    manifest = read_manifest(ensemble)
    by_name = {member.name: member for member in manifest.members}
    kept = tuple(by_name[name].model_copy(update={"fold": fold}) for name, fold in nets)
    write_manifest(str(folder), manifest.model_copy(update={"members": kept}))
    return str(folder)


def test_ensembles_without_the_nets_that_are_needed_are_refused(shards: Path, ensemble: str, tmp_path: Path) -> None:
    one, other = MEMBERS
    for number, (nets, why) in enumerate(
        [
            ([(one, None), (other, None)], "no folds, so all saw every tile; train --fold all"),
            ([(one, 0), (other, 0)], f"fold 1 has no {one}, {other}; train --fold all"),
            ([(one, 0), (other, 0), (one, 1)], f"fold 1 has no {other}; train --fold all"),
            ([(one, 0), (one, 1), (other, None)], None),
            ([(one, 0), (one, 1), (one, 1)], f"one net a member and fold; the ensemble has several {one} of fold 1"),
        ]
    ):
        job = job_of(shards, tmp_path / "out", with_nets(ensemble, tmp_path / str(number), nets))
        if why is None:
            assert scoring_of(job)[1].members == (one,)
            assert len(listed(job)[1]) == 2
        else:
            with pytest.raises(ConfigError, match=why):
                listed(job)


def test_sources_and_options_that_make_no_sense_are_refused(
    shards: Path, ensemble: str, chips: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source in (chips, scenes, tmp_path):
        with pytest.raises(ConfigError, match="--out-of-fold is for finished tile shards"):
            listed(job_of(source, tmp_path / "out", ensemble))
    with pytest.raises(ConfigError, match="leave one of the two out"):
        scoring_of(job_of(shards, tmp_path / "out", ensemble, fold=0))
    with pytest.raises(ConfigError, match="reflectance already: leave it out"):
        listed(job_of(shards, tmp_path / "out", ensemble, settings=change(SETTINGS, {"baseline": "from-04.00"})))
    fewer = tmp_path / "fewer"
    shutil.copytree(shards, fewer)
    manifest = json.loads((fewer / "manifest.json").read_text())
    (fewer / "manifest.json").write_text(json.dumps({**manifest, "bands": ["B03", "B04", "B08"]}))
    with pytest.raises(ConfigError, match=r"no band B02 .*; --set missing_bands=leave-out scores with the members"):
        listed(job_of(fewer, tmp_path / "out", ensemble))
    argv = ["score", str(shards), str(tmp_path / "out"), "--ensemble", ensemble, "--out-of-fold", "--fold", "1"]
    assert cli.main(argv) == 2
    assert "--out-of-fold" in capsys.readouterr().err


def test_members_whose_bands_the_shards_lack_are_left_out_where_asked(
    shards: Path, ensemble: str, tmp_path: Path
) -> None:
    fewer = Path(shutil.copytree(shards, tmp_path / "fewer"))
    manifest = json.loads((fewer / "manifest.json").read_text())
    (fewer / "manifest.json").write_text(json.dumps({**manifest, "bands": ["B03", "B04", "B08"]}))
    settings = change(SETTINGS, {"missing_bands": "leave-out"})
    do_all(job_of(fewer, tmp_path / "out", ensemble, settings=settings))
    assert {record.members_left_out for record in records_of(tmp_path / "out").values()} == {(MEMBERS[1],)}


def test_damaged_tile_and_vanished_shard_are_problems_and_the_rest_is_scored(
    shards: Path, ensemble: str, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(shards, tmp_path / "own"))
    spoil(own, "t1", "B03")
    spoil(own, "t0", "label")
    (own / "shard-00001.parquet").unlink()
    _, answers = do_all(job_of(own, tmp_path / "out", ensemble))
    problems = {problem.item_id: problem.found for answer in answers for problem in answer.problems}
    assert sorted(problems) == ["t1", "t4", "t5", "t6", "t7"]
    assert "B03: its" in problems["t1"]
    assert "no such file, but the index names it" in problems["t4"]
    assert sorted(records_of(tmp_path / "out")) == ["t0", "t8", "t9"], "labels are not read"
    assert not any(answer.changed for answer in answers)


def spoil(folder: Path, tile_id: str, cell: str) -> None:
    """Change a byte of a cell in its shard."""
    import pyarrow.parquet as pq

    (row,) = [each for each in pq.read_table(folder / "index.parquet").to_pylist() if each["tile_id"] == tile_id]
    data = bytearray((folder / row["shard"]).read_bytes())
    data[row[f"{cell}_offset"] + row[f"{cell}_bytes"] // 2] ^= 1
    (folder / row["shard"]).write_bytes(bytes(data))


def test_tiles_of_shards_that_were_made_anew_since_the_listing_are_neither_scored_nor_bad(
    shards: Path, ensemble: str, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(shards, tmp_path / "own"))
    job = job_of(own, tmp_path / "out", ensemble)
    manifest, scoring = scoring_of(job)
    _, units = listed(job)
    work = Work(job.dst, scoring, load(ensemble, manifest, scoring, 0))
    opened = Work(job.dst, scoring, work.nets)
    opened.shards.reader(units[0].shards)
    shutil.rmtree(own)
    gone = perform(units[0], work)
    write_tiles(own, TILES[::-1], "raw")
    for answer in (gone, perform(units[0], work), perform(units[0], opened)):
        assert [problem.item_id for problem in answer.changed] == ["t0", "t4", "t8", "t9"]
        assert {problem.found for problem in answer.changed} == {CHANGED}
        assert not answer.records
        assert not answer.problems
    assert not rasters_of(tmp_path / "out")


def test_store_out_of_reach_is_no_tile_s_fault(
    shards: Path, ensemble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(shards, tmp_path / "out", ensemble)
    manifest, scoring = scoring_of(job)
    _, units = listed(job)
    work = Work(job.dst, scoring, load(ensemble, manifest, scoring, 0))
    work.shards.reader(units[0].shards)

    def away(*_: object) -> bytes:
        raise StoreOutOfReach("s3://b does not answer")

    monkeypatch.setattr(storage, "read_range", away)
    with pytest.raises(StoreOutOfReach, match="does not answer"):
        perform(units[0], work)


def test_second_tile_of_an_id_and_an_id_that_leads_elsewhere_are_problems(ensemble: str, tmp_path: Path) -> None:
    same = [
        tile(30, "new"),
        tile(31, "new"),
        replace(tile(32, "new"), tile_id="t30"),
        replace(tile(33, "new"), tile_id="../t"),
    ]
    write_tiles(tmp_path / "in", same, "raw")
    listing, units = listed(job_of(tmp_path / "in", tmp_path / "out", ensemble))
    assert folds_of(units) == {"t30": 0, "t31": 0}
    assert ["a second tile of the id t30" in listing.problems[0].found, listing.problems[1].item_id] == [True, "../t"]


def test_of_tiles_of_one_id_the_first_of_the_index_counts_whatever_its_fold(ensemble: str, tmp_path: Path) -> None:
    write_tiles(tmp_path / "in", [tile(30, "p1"), replace(tile(31, "p0"), tile_id="t30")], "raw")
    listing, units = listed(job_of(tmp_path / "in", tmp_path / "out", ensemble))
    assert [(unit.fold, each.tile_id, each.position) for unit in units for each in unit.tiles] == [(1, "t30", 0)]
    assert [(each.item_id, each.found) for each in listing.problems] == [
        (f"{tmp_path}/in, tile 1", "a second tile of the id t30: the first counts")
    ]


def test_destinations_made_before_keep_their_digest_and_take_no_tiles_out_of_fold() -> None:
    before = Scoring(ensemble="e", members=("m",), settings=SETTINGS, raytrain_version="1")
    values = before.model_dump(mode="json")
    del values["out_of_fold"]
    assert Scoring.model_validate(values).digest() == before.digest()
    assert before.model_copy(update={"out_of_fold": True}).digest() != before.digest()


def test_pictures_of_tiles_are_of_the_shards_that_were_scored_and_of_no_others(ensemble: str, tmp_path: Path) -> None:
    wide = change(SETTINGS, {"window_px": 512})
    own, job = tmp_path / "in", job_of(tmp_path / "in", tmp_path / "out", ensemble, out_of_fold=False, settings=wide)
    write_tiles(own, [tile(0, "p", side=500), tile(1, "p", side=96)], "raw")
    do_all(job)
    scored = read_scored(job.dst, scoring_of(job)[1], source=job.src, ensemble=ensemble)
    chosen = [("largest", item) for item in scored.totals.largest]
    gallery, undrawn = make_gallery(job.dst, scored.scoring, chosen, job.src)
    assert undrawn == []
    assert [[panel.caption for panel in each.panels] for each in gallery.pictures] == [
        ["True colour", "Prediction"]
    ] * 2
    assert not any("no true colour" in each.caption for each in gallery.pictures)
    elsewhere, _ = make_gallery(job.dst, scored.scoring, chosen, str(tmp_path / "other"))
    assert all(f"a tile of {own}, not of" in each.caption for each in elsewhere.pictures)
    write_tiles(own, [tile(0, "p", side=96)], "raw")
    changed, _ = make_gallery(job.dst, scored.scoring, chosen, job.src)
    assert "96 x 96 px now, not what was scored" in changed.pictures[0].caption
    assert "not among the shards any more" in changed.pictures[1].caption


def test_no_card_names_nets_for_scores_out_of_fold(shards: Path, ensemble: str, tmp_path: Path) -> None:
    for name, out_of_fold in (("out", True), ("all", False)):
        job = job_of(shards, tmp_path / name, ensemble, out_of_fold=out_of_fold, fold=None if out_of_fold else "all")
        claim_destination(job.dst, scoring_of(job)[1])
        storage.write_bytes(storage.join(job.dst, "t0.tif"), b"mask")
    assert check_ensemble(ensemble, find_predictions(str(tmp_path / "all"))) == "all"
    with pytest.raises(ConfigError, match=r"each tile by the nets of its fold.* without --ensemble"):
        check_ensemble(ensemble, find_predictions(str(tmp_path / "out")))


def test_nets_of_few_folds_are_held_and_one_in_use_is_not_dropped() -> None:
    assert FOLDS_HELD >= UNITS_IN_FLIGHT, "a unit would wait for another one's nets"
    loaded: list[int | None] = []

    def load_one(fold: int | None) -> str:
        loaded.append(fold)
        return f"nets {fold}"

    nets = FoldNets(load_one)
    with nets.of(0) as first, nets.of(0) as again:
        assert first is again
        for fold in (1, 2, 1, 0):
            with nets.of(fold) as found:
                assert found == f"nets {fold}"
    assert loaded == [0, 1, 2, 1], "fold 0 was in use all the time"
    with nets.of(1), nets.of(3), nets.of(1):
        pass
    assert loaded == [0, 1, 2, 1, 3], "of those that nobody uses the one that was used last stays"


def test_threads_that_want_nets_of_one_fold_load_them_once_and_a_third_fold_waits() -> None:
    may_load, may_leave, events = threading.Event(), threading.Event(), []
    # Whoever comes after the other has left may find that a third fold took the place of the nets.
    together = {0: threading.Barrier(3), 1: threading.Barrier(2)}

    def load_slowly(fold: int | None) -> int | None:
        may_load.wait(10)
        events.append(f"load {fold}")
        return fold

    nets = FoldNets(load_slowly)

    def use(fold: int) -> None:
        with nets.of(fold) as found:
            assert found == fold
            if fold in together:
                together[fold].wait(10)
                may_leave.wait(10)
            events.append(f"use {fold}")

    threads = [threading.Thread(target=use, args=(fold,)) for fold in (0, 0, 1, 2, 2)]
    for thread in threads[:2]:
        thread.start()
    may_load.set()
    together[0].wait(10)
    threads[2].start()
    together[1].wait(10)
    for thread in threads[3:]:
        thread.start()
    threads[3].join(0.05)
    assert events == ["load 0", "load 1"], "a third fold did not wait for a place"
    may_leave.set()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert sorted(events) == ["load 0", "load 1", "load 2", "use 0", "use 0", "use 1", "use 2", "use 2"]


def test_nets_that_can_t_be_loaded_are_tried_again_by_the_next_who_asks() -> None:
    tried: list[int | None] = []

    def fail_once(fold: int | None) -> str:
        tried.append(fold)
        if len(tried) == 1:
            raise StoreOutOfReach("s3://b does not answer")
        return "nets"

    nets = FoldNets(fail_once)
    with pytest.raises(StoreOutOfReach), nets.of(3):
        pass
    with nets.of(3) as found:
        assert found == "nets"
