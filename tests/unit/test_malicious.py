"""What others may have written to a store, a list or a catalogue: refused by name, and nothing beside it touched."""

from __future__ import annotations

import ast
import io
import json
import pickle
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from raytrain import storage
from raytrain.cluster.runs import TrainJob
from raytrain.command import load_changes
from raytrain.errors import LONGEST_TEXT, ConfigError, DataError
from raytrain.imagery.raster_limits import MOST_BANDS
from raytrain.imagery.scene_files import SceneSource
from raytrain.recipes import members
from raytrain.scoring import ledger
from raytrain.scoring.casualties import read_casualties, write_casualties
from raytrain.scoring.causes import kind_of
from raytrain.scoring.listed import Work
from raytrain.scoring.listed_stac import DEEPEST, document_works, item_scene, read_document
from raytrain.scoring.listing import Unlisted, list_scenes
from raytrain.scoring.manifest import ENSEMBLE_FILE, read_manifest
from raytrain.scoring.records import Output, Record
from raytrain.scoring.units import ChipSource
from raytrain.storage import parquet
from raytrain.tiles import reader
from raytrain.tiles.format import decode_cell
from raytrain.tiles.metadata import read_metadata
from raytrain.tiles.reader import TileReader, read_index
from raytrain.tiles.reader import read_manifest as read_shards
from raytrain.training.checkpoint_files import STATE_FILE, digest_of, read_checkpoint
from raytrain.training.checkpoint_files import read_index as read_checkpoints
from raytrain.training.checkpoints import load_weights as load_checkpoint
from raytrain.training.encoder_tensors import check_encoder_file
from raytrain.training.mirror import MIRROR_FILE, read_mirror
from raytrain.training.models import load_weights
from tests.making import make_ensemble, make_tile, write_tiles

ROOT = Path(__file__).resolve().parents[2]
NAMES = [
    "../x",
    "..",
    "/etc/x",
    "..\\x",
    "a/../../x",
    "a\nb",
    "a\0b",
    "a\x1b[2Jb",
    ".hidden",
    "",
    "n" * 201,
    "C:\\x",
    "a:b",
    "x ",
    "s3://other/x",
    "а",  # Cyrillic  # noqa: RUF001
]
"""What may stand where a name is expected."""


# Names and keys


def test_an_id_that_is_no_plain_name_is_refused_everywhere(tmp_path: Path) -> None:
    record = {"kind": "chip", "source_uri": "s", "identity": "i", "settings_digest": "d", "outputs": {}}
    record |= {"height": 1, "width": 1, "valid_px": 1, "cloud_px": 0}
    for name in NAMES:
        assert not storage.is_plain_name(name)
        assert not storage.is_plain_key(f"a/{name}")
        makers: list[Callable[[], Any]] = [
            lambda name=name: Record(item_id=name, **record),  # type: ignore[arg-type]
            lambda name=name: Output(
                key=f"stac/{name}.json" if "/" in name else f"stac/{name}", sha256="", num_bytes=1
            ),
            lambda name=name: ChipSource(chip_id=name, files={}, identity=""),
            lambda name=name: SceneSource(scene_id=name, files={}, identity=""),
            lambda name=name: TrainJob(shards="s", out="o", experiment=name),
        ]
        for make in makers:
            with pytest.raises(ValidationError, match="should match pattern"):
                make()
    assert storage.is_plain_key("members/small-byob-3b/a.b_c-1.tif")
    Output(key="members/small-byob-3b/a.b_c-1.tif", sha256="", num_bytes=1)


def test_a_bad_chip_id_of_the_metadata_costs_no_other_chip(tmp_path: Path) -> None:
    bad = [name for name in NAMES if name.strip() and "\n" not in name and "\0" not in name]
    quoted = [f'"{name}",p,' for name in (*bad, "a\nb")]
    (tmp_path / "m.csv").write_text("\n".join(["chip_id,location,datetime", "good,p,", *quoted]) + "\n")
    found = read_metadata(str(tmp_path / "m.csv"))
    assert [row.chip_id for row in found.rows] == ["good"]
    assert len(found.bad) == len(quoted)
    assert all("not a plain file name" in str(row.error) for row in found.bad)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a\nb", "a\x01b", "n" * 201, "..\\x"])
def test_a_stac_item_of_a_bad_id_costs_no_other(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.tif").write_bytes(b"pixels")
    asset = {"href": "a.tif", "type": "image/tiff", "roles": ["data"]}
    items = [{"type": "Feature", "id": each, "properties": {}, "assets": {"B02": asset}} for each in ("a", name, "b")]
    (tmp_path / "c.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    found = list(list_scenes(str(tmp_path / "c.json"), ("B02",)))
    assert [each.scene_id for each in found if isinstance(each, SceneSource)] == ["a", "b"]
    (bad,) = [each for each in found if isinstance(each, Unlisted)]
    assert "an id that is no plain name" in bad.found


@pytest.mark.parametrize(
    ("href", "why"),
    [
        ("/vsicurl/http://169.254.169.254/x.tif", "scheme"),
        ("vrt:///etc/passwd", "scheme vrt"),
        ("gs://b/x.tif", "scheme gs"),
        ("ftp://h/x.tif", "scheme ftp"),
        ("file://otherhost/etc/x.tif", "expected file:///path"),
        ("http://169.254.169.254/latest/x.tif", "not public"),
        ("http://127.0.0.1:1/x.tif", "not public"),
        ("http://[::ffff:169.254.169.254]/x.tif", "not public"),
        ("/vsizip/a.zip/x.tif", "no such file"),
        ("a\0.tif", "zero byte"),
        ("s3://archive/in/../../other/x.tif", "a key with '.' or '..'"),
    ],
)
def test_an_asset_that_names_what_is_not_an_archive_is_refused(tmp_path: Path, href: str, why: str) -> None:
    asset = {"href": href, "type": "image/tiff", "roles": ["data"]}
    item = {"type": "Feature", "id": "x", "properties": {}, "assets": {"B02": asset}}
    (tmp_path / "i.json").write_text(json.dumps(item))
    (found,) = list_scenes(str(tmp_path / "i.json"), ("B02",))
    assert isinstance(found, Unlisted)
    assert found.subject == "x"
    assert why in found.found


def test_a_catalogue_of_another_machine_names_no_local_file(tmp_path: Path) -> None:
    from raytrain.scoring.listed import resolved

    for base in ("https://host/c/i.json", "s3://bucket/c/i.json"):
        with pytest.raises(DataError, match="a file of this machine"):
            resolved("file:///etc/passwd", base)
    assert resolved("../../../../etc/passwd", "s3://bucket/c/i.json") == "s3://bucket/etc/passwd"
    assert resolved("/etc/passwd", "https://host/c/i.json") == "https://host/etc/passwd"


@pytest.mark.parametrize("name", ["../canary.parquet", "/etc/passwd", "a\nb", "s3://other/x"])
def test_shards_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    write_tiles(tmp_path / "shards", [make_tile(i, (32, 32)) for i in range(3)], "raw")
    canary = tmp_path / "canary.parquet"
    canary.write_bytes((tmp_path / "shards" / "shard-00000.parquet").read_bytes())
    manifest_path = tmp_path / "shards" / "manifest.json"
    good = manifest_path.read_text()
    manifest = json.loads(good)
    manifest["shards"][0]["name"] = name
    manifest_path.write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=r"manifest\.json: damaged: .* is no name of a shard"):
        read_shards(str(tmp_path / "shards"))
    manifest_path.write_text(good)
    changed(tmp_path / "shards" / "index.parquet", "shard", name)
    with pytest.raises(ConfigError, match=r"index\.parquet: damaged: .* is no name of a shard"):
        TileReader(str(tmp_path / "shards"), ("B02",))


def changed(path: Path, column: str, value: Any) -> None:
    """Write one value of a column, the last, into a Parquet file."""
    table = pq.read_table(path)
    values = table[column].to_pylist()
    values[-1] = value
    at = table.schema.get_field_index(column)
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type)), path)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("height", 2**31 - 1),
        ("height", -1),
        ("B02_bytes", 2**40),
        ("B02_bytes", -5),
        ("B02_offset", -5),
        ("B02_offset", 2**50),
    ],
)
def test_a_tile_that_claims_what_nobody_can_hold_is_refused(tmp_path: Path, column: str, value: int) -> None:
    write_tiles(tmp_path, [make_tile(i, (32, 32)) for i in range(3)], "raw")
    changed(tmp_path / "index.parquet", column, value)
    with pytest.raises(ConfigError, match=r"index\.parquet: damaged: tile tile2 .* claims"):
        TileReader(str(tmp_path), ("B02",))


@pytest.mark.parametrize("key", ["../../w.safetensors", "/etc/w.safetensors", "s3://other/w.safetensors", "a\nb"])
def test_an_ensemble_names_weights_below_itself_alone(tmp_path: Path, key: str) -> None:
    uri = make_ensemble(tmp_path, ("small-byob-3b",))
    manifest = json.loads((tmp_path / ENSEMBLE_FILE).read_text())
    manifest["members"][0]["weights"] = key
    (tmp_path / ENSEMBLE_FILE).write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=r"ensemble\.json: members\.0\.weights: .*pattern"):
        read_manifest(uri)
    entry = {"file": key, "sha256": "", "bytes": 1, "timm_tag": "t", "source": "s"}
    (tmp_path / MIRROR_FILE).write_text(
        json.dumps({"format_version": 1, "raytrain_version": "0", "encoders": {"e": entry}})
    )
    with pytest.raises(ConfigError, match=r"weights\.json: encoders\.e\.file: .*pattern"):
        read_mirror(str(tmp_path))


def test_a_ledger_that_names_files_elsewhere_is_damaged(tmp_path: Path) -> None:
    good = Record(
        item_id="a", kind="chip", source_uri="s", identity="i", settings_digest="d", height=1, width=1, valid_px=1,
        cloud_px=0, outputs={"mask": Output(key="a.tif", sha256="0", num_bytes=1)},
    )  # fmt: skip
    ledger.enter(str(tmp_path), [good])
    ledger.compact(str(tmp_path))
    assert [each.item_id for each in ledger.read_records(str(tmp_path))] == ["a"]
    (path,) = (tmp_path / "ledger").glob("*.parquet")
    table = pq.read_table(path)
    rows = table.to_pylist()
    for changes in ({"item_id": "../../a"}, {"outputs": [{**rows[0]["outputs"][0], "key": "../../etc/passwd"}]}):
        pq.write_table(pa.Table.from_pylist([rows[0] | changes], schema=table.schema), path, store_schema=False)
        with pytest.raises(ledger.DamagedTable, match="damaged"):
            list(ledger.read_records(str(tmp_path)))
    line = good.model_dump_json().replace('"a"', '"../../a"')
    (tmp_path / "ledger" / "new").mkdir(exist_ok=True)
    (tmp_path / "ledger" / "new" / "x.jsonl").write_text(f"{line}\n")
    path.unlink()
    ledger.compact(str(tmp_path))  # as if it were torn: its items are scored again
    assert list(ledger.read_records(str(tmp_path))) == []


def test_checkpoints_that_name_files_elsewhere_are_refused(tmp_path: Path) -> None:
    (tmp_path / "canary").write_text("here")
    folder = tmp_path / "run" / "checkpoints" / "c"
    folder.mkdir(parents=True)
    record = {"format_version": 3, "sha256": {"../../../canary": storage.sha256_of(b"here")}}
    (folder / STATE_FILE).write_text(json.dumps(record | {"record_sha256": digest_of(record)}))
    with pytest.raises(DataError, match=r"names a file '\.\./\.\./\.\./canary'"):
        read_checkpoint(str(folder))
    position = {"epoch": 0, "samples_done": 0}
    kept = {"name": "../../..", "position": position, "is_best": False, "metrics": None}
    kept |= {"pause_s": 0.0, "write_s": 0.0, "num_bytes": 1}
    index = tmp_path / "run" / "checkpoints" / "attempt-0001.json"
    index.write_text(json.dumps({"attempt": 1, "owner": "o", "kept": [kept]}))
    with pytest.raises(DataError, match="is no name of a checkpoint"):
        read_checkpoints(str(tmp_path / "run"))
    assert (tmp_path / "canary").read_text() == "here"


# Sizes


def parquet_bytes(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def repeated(num_rows: int, length: int) -> bytes:
    """Return a small Parquet file of one long text, `num_rows` times."""
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(num_rows, np.int32)), pa.array(["x" * length]))
    return parquet_bytes(pa.table({"uri": texts.cast(pa.dictionary(pa.int32(), pa.string()))}), compression="zstd")


def test_a_small_parquet_file_that_decodes_to_gigabytes_is_refused(tmp_path: Path) -> None:
    before = pa.total_allocated_bytes()
    data = repeated(100_000, 2**20)  # 100 GB
    assert len(data) < 2**17
    with pytest.raises(parquet.ParquetBomb, match="decode"):
        parquet.read_parquet(pa.BufferReader(data))
    assert pa.total_allocated_bytes() - before < 2**27
    (tmp_path / "list.parquet").write_bytes(data)
    with pytest.raises(ConfigError, match=r"list\.parquet: not a readable Parquet file: .* decode to more than"):
        list(list_scenes(str(tmp_path / "list.parquet"), ("B02",)))
    write_tiles(tmp_path / "shards", [make_tile(0, (32, 32))], "raw")
    (tmp_path / "shards" / "index.parquet").write_bytes(data.replace(b"uri", b"fox"))
    with pytest.raises(ConfigError, match=r"index\.parquet: damaged: .*decode"):
        read_index(str(tmp_path / "shards"))


def test_an_index_has_as_many_rows_as_it_claims_and_one_without_any_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiles(tmp_path, [make_tile(i, (32, 32)) for i in range(5)], "raw")
    monkeypatch.setattr(reader, "_ROWS_AT_ONCE", 2)
    assert TileReader(str(tmp_path), ("B02",)).tile_ids == [f"tile{i}" for i in range(5)]
    for claimed, said in ((4, "more than the 4"), (6, "5 of the 6")):
        monkeypatch.setattr(reader._OpenIndex, "num_rows", claimed)
        with pytest.raises(ConfigError, match=rf"index\.parquet: damaged: has {said} rows that it claims"):
            TileReader(str(tmp_path), ("B02",))
    monkeypatch.undo()
    whole = pq.read_table(tmp_path / "index.parquet")
    pq.write_table(whole.slice(0, 0), tmp_path / "index.parquet")
    assert len(TileReader(str(tmp_path), ("B02",))) == 0


def test_texts_of_an_index_that_repeat_are_counted_over_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiles(tmp_path, [make_tile(0, (32, 32))], "raw")
    pq.write_table(pa.table({"location": ["x" * 1000] * 100}), tmp_path / "index.parquet")
    monkeypatch.setattr(reader, "_ROWS_AT_ONCE", 10)
    assert read_index(str(tmp_path)).num_rows == 100
    monkeypatch.setattr(storage, "LARGEST_TABLE_BYTES", 50_000)
    with pytest.raises(ConfigError, match=r"index\.parquet: damaged: decodes to more than 50000 bytes"):
        read_index(str(tmp_path))


def hidden(kind: str) -> bytes:
    """Return a Parquet file of some hundred bytes whose column of `kind` decodes to 16 MiB: it could be anything."""
    num_rows, length = 64, 2**18
    indices = pa.array(np.zeros(num_rows, np.int32))
    values = pa.array([b"x" * length], pa.binary(length)) if kind == "fixed" else pa.array(["x" * length])
    column = pa.DictionaryArray.from_arrays(indices, values)
    if kind == "list":
        column = pa.ListArray.from_arrays(pa.array(np.arange(num_rows + 1, dtype=np.int32)), column)
    elif kind == "struct":
        column = pa.StructArray.from_arrays([column], ["a"])
    return parquet_bytes(pa.table({"uri": column}), compression="zstd", store_schema=False)


@pytest.mark.parametrize(
    ("kind", "said"), [("fixed", "fixed_size_binary"), ("list", "list<.*string"), ("struct", "struct<a: string>")]
)
def test_a_column_whose_size_nothing_tells_is_not_decoded(tmp_path: Path, kind: str, said: str) -> None:
    data = hidden(kind)
    assert len(data) < 1000
    before = pa.total_allocated_bytes()
    with pytest.raises(parquet.ParquetBomb, match=f"column uri is {said}.*expected numbers, times, text"):
        next(parquet.iter_parquet(pa.BufferReader(data)))
    assert pa.total_allocated_bytes() - before < 2**20
    (tmp_path / "list.parquet").write_bytes(data)
    with pytest.raises(ConfigError, match=rf"list\.parquet: not a readable Parquet file: column uri is {said}"):
        list(list_scenes(str(tmp_path / "list.parquet"), ("B02",)))


def test_a_column_of_lists_has_a_number_of_values(monkeypatch: pytest.MonkeyPatch) -> None:
    lists = pa.array([[1.0] * 60_000] * 10, pa.list_(pa.float64()))
    data = parquet_bytes(pa.table({"x": lists}))
    assert parquet.read_parquet(pa.BufferReader(data))["x"].to_pylist() == lists.to_pylist()
    monkeypatch.setattr(parquet, "MOST_LISTED_VALUES", 500_000)
    with pytest.raises(parquet.ParquetBomb, match="claims 600000 values of a column, expected at most 500000"):
        parquet.read_parquet(pa.BufferReader(data))


def test_columns_that_others_write_are_read(tmp_path: Path) -> None:
    """What pandas, polars and others make of texts, moments and absent values."""
    moments = pa.array([0, None], pa.timestamp("ns", tz="UTC"))
    texts = pa.array(["a", "bc"])
    columns = {
        "t": moments,
        "large": texts.cast(pa.large_string()),
        "none": pa.nulls(2),
        "d": pa.array([1, 2], pa.int32()).cast(pa.date32()),
        "category": texts.dictionary_encode(),
        "yes": pa.array([True, None]),
    }
    found = parquet.read_parquet(pa.BufferReader(parquet_bytes(pa.table(columns))))
    assert {name: found[name].to_pylist() for name in found.column_names} == {
        name: each.to_pylist() for name, each in columns.items()
    }


def test_a_parquet_footer_that_claims_too_much_is_refused() -> None:
    zeros = pa.table({"x": pa.array(np.zeros(2_000_000, np.int64))})
    data = parquet_bytes(zeros, use_dictionary=False, compression="zstd")
    assert len(data) < 100_000
    with pytest.raises(parquet.ParquetBomb, match="claims 16"):
        parquet.read_parquet(pa.BufferReader(data), limit_bytes=10_000_000)
    assert parquet.read_parquet(pa.BufferReader(data)).num_rows == 2_000_000
    wide = pa.table({f"c{i}": pa.array([1]) for i in range(parquet.MOST_COLUMNS + 1)})
    with pytest.raises(parquet.ParquetBomb, match="claims 10001 columns"):
        parquet.read_parquet(pa.BufferReader(parquet_bytes(wide)))
    torn = bytearray(data)
    torn[-8:-4] = struct.pack("<I", 2**31 - 1)
    with pytest.raises(pa.ArrowException):
        parquet.read_parquet(pa.BufferReader(bytes(torn)))


def test_a_good_parquet_file_reads_as_pyarrow_reads_it() -> None:
    table = pa.table(
        {
            "text": pa.array(["a", None, "bc"] * 9000),
            "place": pa.array(["p", "q", "p"] * 9000),
            "data": pa.array([b"1", b"", None] * 9000),
            "list": pa.array([[1.0], [], None] * 9000, pa.list_(pa.float64())),
        },
        metadata={"key": "value"},
    )
    data = parquet_bytes(table, row_group_size=5000)
    found = parquet.read_parquet(pa.BufferReader(data), dictionaries=("place",))
    assert found.schema.metadata[b"key"] == b"value"
    at = found.schema.get_field_index("place")
    assert pa.types.is_dictionary(found.schema.field(at).type)
    assert found.set_column(at, "place", found["place"].cast(pa.string())).equals(table)
    assert parquet.read_parquet(pa.BufferReader(data), ["data"]).column_names == ["data"]
    empty = parquet.read_parquet(pa.BufferReader(parquet_bytes(table.slice(0, 0))), dictionaries=("place",))
    assert empty.schema.equals(found.schema)


def test_a_cell_that_claims_more_than_its_tile_is_refused() -> None:
    data = bytearray(blosc2.compress2(np.zeros(4096, np.uint16)))
    out = np.full((8, 8), 7, "<u2")
    for claimed in (2**31 - 100, 8192, 0):
        data[4:8] = struct.pack("<i", claimed)
        with pytest.raises((ValueError, RuntimeError)):
            decode_cell(bytes(data), out, "blosc2-bitshuffle-zstd")
    for torn in (b"", b"\x05", bytes(16), bytes(range(32))):
        with pytest.raises((ValueError, RuntimeError)):
            decode_cell(torn, out, "blosc2-bitshuffle-zstd")
    assert (out == 7).all()


def test_documents_and_texts_have_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(2**34)  # takes no room on the disk
    with pytest.raises(ConfigError, match=r"large\.json: 17179869184 bytes or more, expected at most"):
        storage.read_json(str(large))
    with pytest.raises(DataError, match="expected at most"):
        read_document(str(large))
    with pytest.raises(ConfigError, match=r"expected at most .*; expected a metadata file"):
        read_metadata(str(large))
    with pytest.raises(ConfigError, match=r"expected at most .* of settings"):
        load_changes(large)
    (tmp_path / "list.txt").symlink_to(large)
    with pytest.raises(ConfigError, match="a line of more than"):
        list(list_scenes(str(tmp_path / "list.txt"), ("B02",)))


def test_nesting_without_end_is_a_damaged_document(tmp_path: Path) -> None:
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 200_000)
    with pytest.raises(ConfigError, match="damaged, not a JSON file"):
        storage.read_json(str(deep))
    with pytest.raises(DataError, match="not a JSON document"):
        read_document(str(deep))
    deep.write_text("a = " + "[" * 200_000)
    with pytest.raises(ConfigError, match="not a TOML file"):
        load_changes(deep)


def test_tables_in_tables_without_end_are_no_settings(tmp_path: Path) -> None:
    deep = tmp_path / "deep.toml"
    deep.write_text(".".join(["a"] * 3000) + " = 1")
    with pytest.raises(ConfigError, match=r"deep\.toml: not a TOML file of settings: .* without end"):
        load_changes(deep)


def test_a_long_chain_of_catalogs_ends_in_its_own_words(tmp_path: Path) -> None:
    for i in range(600):
        links = [{"rel": "child", "href": f"./{i + 1}.json"}, {"rel": "item", "href": f"./item{i}.json"}]
        catalog = {"type": "Catalog", "stac_version": "1.0.0", "id": f"c{i}", "links": links[: 1 + (i in (1, DEEPEST))]}
        (tmp_path / f"{i}.json").write_text(json.dumps(catalog))
    found = list(document_works(str(tmp_path / "0.json"), read_document(str(tmp_path / "0.json")), ("B02",)))
    assert [each.place for each in found if isinstance(each, Work)] == [
        str(tmp_path / f"item{i}.json") for i in (DEEPEST, 1)
    ]
    (bad,) = [each for each in found if isinstance(each, DataError)]
    assert bad.subject == str(tmp_path / f"{DEEPEST + 1}.json")
    assert "a catalog with 65 above it, expected at most 64" in bad.found


def test_an_asset_of_many_bands_is_not_copied_for_each(tmp_path: Path) -> None:
    asset = {"href": "a.tif", "roles": ["data"]} | {f"k{i}": 0 for i in range(6000)}
    item = {"type": "Feature", "id": "x", "properties": {}}
    crafted = [
        item | {"assets": {"a": asset | {"bands": [{"name": "other"}] * count}}}
        for count in (MOST_BANDS, MOST_BANDS + 1)
    ]
    tracemalloc.start()
    try:
        assert item_scene(crafted[0], str(tmp_path / "i.json"), ("B02",)).files == {}
        with pytest.raises(DataError, match="1001 bands, expected at most 1000"):
            item_scene(crafted[1], str(tmp_path / "i.json"), ("B02",))
        assert tracemalloc.get_traced_memory()[1] < 30 * 2**20
    finally:
        tracemalloc.stop()


def test_a_strangers_text_costs_no_more_than_its_length(tmp_path: Path) -> None:
    start = time.process_time()
    for text in ("s3://" * 200_000, "https://h#" * 100_000, "a" * 30_000 + "://x?", "a" * 100_000 + ":/"):
        storage.without_queries(text)
        error = DataError(text, text)
        assert len(error.found) == len(error.subject) == LONGEST_TEXT
        write_casualties(str(tmp_path), [["a", "s3://b/a.tif", "true", text]])
        kind_of(error.found)
    assert time.process_time() - start < 3.0


# Weights


class _Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self._path, "run")


def false_weights(folder: Path) -> dict[str, bytes]:
    """Return what may stand in a file of weights, by what it is."""
    zipped = io.BytesIO()
    torch.save({"x": _Canary(folder / "canary")}, zipped)
    bare = io.BytesIO()
    with zipfile.ZipFile(bare, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(_Canary(folder / "canary")))

    def tensors(header: dict[str, Any]) -> bytes:
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + bytes(8)

    return {
        "a header of 10 GB": struct.pack("<Q", 10 * 10**9) + b"{}",
        "a header of 2^64": b"\xff" * 8 + b"{}",
        "an offset behind the end": tensors({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
        "an offset before the start": tensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 8]}}),
        "a shape that is not its bytes": tensors({"w": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 8]}}),
        "pickle": pickle.dumps(_Canary(folder / "canary")),
        "torch.save": zipped.getvalue(),
        "zip": bare.getvalue(),
        "empty": b"",
    }


def test_what_is_no_safetensors_file_is_refused_by_its_content_and_never_run(tmp_path: Path) -> None:
    (settings,) = members(("small-byob-3b",))
    for what, data in false_weights(tmp_path).items():
        path = tmp_path / "weights.safetensors"
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=r"small-byob-3b: not a safetensors file"):
            load_weights(settings, path, storage.sha256_of(data))
        with pytest.raises(ConfigError, match="damaged or not a safetensors file"):
            check_encoder_file("resnet18", data, str(path))
        with pytest.raises(DataError, match="not a safetensors file"):
            load_checkpoint({"weights.safetensors": data}, torch.nn.Conv2d(1, 1, 1))
        assert not (tmp_path / "canary").exists(), what


BANNED = {
    ("pickle", None),
    ("cloudpickle", None),
    ("dill", None),
    ("joblib", None),
    ("marshal", None),
    ("shelve", None),
    ("yaml", None),
    ("xml", None),
    ("lxml", None),
    ("zipfile", None),
    ("tarfile", None),
    ("shutil", "unpack_archive"),
    ("torch", "load"),
    ("np", "load"),
    ("numpy", "load"),
    ("pd", "read_pickle"),
    ("torch", "jit"),
}
"""Modules, and names in modules, that run or unpack what they read, or follow what it refers to."""
BANNED_CALLS = {"eval", "exec", "compile", "__import__"}


def test_nothing_in_raytrain_can_unpickle_or_run_what_it_reads() -> None:
    for path in [*sorted((ROOT / "raytrain").rglob("*.py")), *sorted((ROOT / "jobs").glob("*.py"))]:
        for what in banned(path.read_text()):
            raise AssertionError(f"{path}: {what}")
    for bad in ("import pickle", "from torch import load", "torch.load(x)", "np.load(x, allow_pickle=True)", "eval(x)"):
        assert list(banned(bad)), bad
    for bad in ("subprocess.run(x, shell=True)", "import xml.etree", "from os import system", "os.popen(x)"):
        assert list(banned(bad)), bad


def banned(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if (alias.name.split(".")[0], None) in BANNED]
        elif isinstance(node, ast.ImportFrom):
            top = (node.module or "").split(".")[0]
            found += [node.module or ""] if (top, None) in BANNED else []
            found += [alias.name for alias in node.names if (top, alias.name) in BANNED or alias.name in ("system",)]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            pair = (node.value.id, node.attr)
            found += [".".join(pair)] if pair in BANNED or pair in {("os", "system"), ("os", "popen")} else []
        elif isinstance(node, ast.Call):
            found += [node.func.id] if isinstance(node.func, ast.Name) and node.func.id in BANNED_CALLS else []
            found += [str(word.arg) for word in node.keywords if word.arg in ("allow_pickle", "shell")]
    return found


# Credentials


def test_no_query_of_an_address_is_left_in_the_table_of_casualties(tmp_path: Path) -> None:
    signed = "https://host/a.tif?X-Amz-Signature=verysecret"
    write_casualties(str(tmp_path), [["a", signed, "true", f"no answer from {signed}, twice"]])
    assert "verysecret" not in (tmp_path / "casualties.csv").read_text()
    ((_, place, _, cause),) = read_casualties(str(tmp_path))
    assert place == "https://host/a.tif"
    assert cause.startswith("no answer from https://host/a.tif")
