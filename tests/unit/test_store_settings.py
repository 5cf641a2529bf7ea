"""Which settings a URI gets, and what of them is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from raytrain import storage
from raytrain.cli import main
from raytrain.errors import ConfigError
from raytrain.storage import Stores, StoreSettings, read_stores

TABLE = """
[stores."s3://a"]
region = "eu-west-1"
[stores."s3://a/b/"]
anonymous = true
[stores."s3://a/b/c"]
profile = "archive"
endpoint = "https://store.example:9000"
requester_pays = true
"""


@pytest.fixture(autouse=True)
def no_table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield
    storage.use_stores(Stores())


@pytest.mark.parametrize(
    ("uri", "prefix"),
    [
        ("s3://a", "s3://a"),
        ("s3://a/x/b", "s3://a"),
        ("s3://a/b", "s3://a/b"),
        ("s3://a/b/", "s3://a/b"),
        ("s3://a/bc", "s3://a"),
        ("s3://a/b/cd/e", "s3://a/b"),
        ("s3://a/b/c/d/e", "s3://a/b/c"),
        ("s3://ab/b/c", None),
        ("/a/b", None),
        ("https://a/b", None),
    ],
)
def test_the_longest_prefix_wins_and_ends_where_a_name_does(uri: str, prefix: str | None) -> None:
    table = read_stores(TABLE, "t")
    assert table.prefix_of(uri) == prefix
    assert table.settings_of(uri) == (StoreSettings() if prefix is None else table.stores[prefix])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('[stores."s3://a"]\nanonymus = true', r"stores\.s3://a\.anonymus: Extra inputs"),
        ('[store."s3://a"]\nanonymous = true', "store: Extra inputs"),
        ('[stores."s3://a"]\nsecret_key = "x"', "secret_key: Extra inputs"),
        ('[stores."s3://a"]\nanonymous = true\nprofile = "p"', "give one of the two"),
        ('[stores."s3://a"]\nanonymous = true\nrequester_pays = true', "somebody has to pay"),
        ('[stores."s3://a"]\nprivate_address = true', "private_address is for http"),
        ('[stores."s3://a"]\n[stores."s3://a/"]', "two of the prefixes are the same"),
        ('[stores."s3://a"]\nendpoint = "https://key:secret@host"', "endpoint"),
        ('[stores."s3://key:secret@a"]', "keys never stand in a URI"),
        ('[stores."gs://a"]', "expected a local path or s3"),
        ('[stores."/folder"]', "expected s3://bucket"),
        ('[stores."http://host/path"]\nprivate_address = true', "expected a host"),
        ('[stores."http://host"]\nanonymous = true', "only private_address"),
        ("[stores", "not a TOML file"),
    ],
)
def test_a_table_that_says_something_else_is_refused_by_name(text: str, found: str) -> None:
    with pytest.raises(ConfigError, match=f"stores.toml: .*{found}"):
        read_stores(text, "stores.toml")


def test_the_table_gets_to_processes_that_are_started_and_leaves_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    table = read_stores(TABLE, "t")
    storage.use_stores(table)
    given = storage.for_workers()
    assert given.items() <= os.environ.items()
    monkeypatch.setattr(storage.stores, "_table", None)  # as in a process of its own
    assert storage.stores.current() == table
    storage.use_stores(Stores())
    assert storage.for_workers() == {}
    assert not given.keys() & os.environ.keys()


def test_a_command_uses_the_table_of_its_option_and_the_next_command_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.toml").write_text('[stores."s3://nowhere"]\nprofile = "no-such-profile"')
    command = ["audit", "s3://nowhere/shards", "--stores", str(tmp_path / "s.toml")]
    assert main(command) == 2
    assert "no profile 'no-such-profile'" in capsys.readouterr().err
    (tmp_path / "s.toml").write_text('[stores."s3://nowhere"]\nprofil = "x"')
    assert main(command) == 2
    assert "s.toml: stores.s3://nowhere.profil: Extra inputs" in capsys.readouterr().err
    assert main([*command[:-1], str(tmp_path / "absent.toml")]) == 2
    assert "no such file of stores" in capsys.readouterr().err
    assert storage.stores.current() == Stores()
