"""The log of decisions: nothing is overwritten or counted twice, what is no entry is named; masks come back as sent."""

from __future__ import annotations

import errno
import io
import os
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pydantic import ValidationError

from raytrain import storage
from raytrain.errors import ConfigError, DataError
from raytrain.review import log as log_module
from raytrain.review.log import DecisionLog
from raytrain.review.regions import LABEL_VALUES, BadMask, decode_mask, decode_png, encode_mask, encode_png, mask_of
from tests.deciding import decide

SHAPE = (5, 7)


# Decisions


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"verdict": "fix"}, "mask is given with fix or ignore"),
        ({"mask": "AAAA"}, "mask is given with fix or ignore"),
        ({"verdict": "undo"}, "undoes is given with undo"),
        ({"undoes": "0" * 32}, "undoes is given with undo"),
        ({"reviewer": "../ann"}, "reviewer"),
        ({"decision_id": "0" * 31}, "decision_id"),
        ({"time": "2026-11-27 10:00"}, "time"),
        ({"time": "2026-13-27T10:00:00.000Z"}, "month"),
        ({"number": 0}, "number"),
    ],
)
def test_decision_has_what_its_verdict_needs_and_plain_names(changes: dict[str, Any], found: str) -> None:
    with pytest.raises(ValidationError, match=found):
        decide(**changes)


# The log


def test_entry_is_read_as_it_was_added_and_the_same_again_is_no_second(tmp_path: Path) -> None:
    log = DecisionLog(str(tmp_path))
    one = decide(1, reason="größer", kind="shifted")
    two = decide(2, verdict="fix", mask=encode_mask(np.ones(SHAPE, np.uint8)))
    three = decide(1, reviewer="bob", verdict="undo", undoes="2" * 32)
    assert [log.append(each) for each in (two, one, three)] == [True, True, True]
    stands = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert [log.append(one), DecisionLog(str(tmp_path)).append(one)] == [False, False]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")} == stands
    assert log.decisions == DecisionLog(str(tmp_path)).read_all() == [one, two, three]


def test_entry_and_the_folders_that_were_made_for_it_lie_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    true_sync = os.fsync

    def sync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        true_sync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    log = DecisionLog(str(tmp_path))
    log.append(decide(1))
    own = tmp_path / "decisions" / "ann"
    assert [path for path in synced if path.is_dir()] == [tmp_path, own.parent, own]
    assert any(path.name.endswith(".partial") for path in synced)
    synced.clear()
    log.append(decide(2))
    assert [path for path in synced if path.is_dir()] == [own]


@pytest.mark.parametrize("knows", [True, False])
def test_other_entry_of_the_same_id_is_refused_and_the_first_one_stays(tmp_path: Path, knows: bool) -> None:
    log = DecisionLog(str(tmp_path))
    log.append(decide(1))
    with pytest.raises(DataError, match="another decision has this id"):
        (log if knows else DecisionLog(str(tmp_path))).append(decide(1, verdict="drop"))
    assert DecisionLog(str(tmp_path)).read_all() == [decide(1)]


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("verdict", ["accept", "drop"])
def test_entry_that_another_process_adds_between_look_and_write_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: str, links: bool
) -> None:
    mine, theirs = DecisionLog(str(tmp_path)), decide(1)
    true_write = storage.write_bytes

    def overtaken(uri: str, data: bytes, **options: Any) -> None:
        monkeypatch.setattr(storage, "write_bytes", true_write)
        DecisionLog(str(tmp_path)).append(theirs)
        true_write(uri, data, **options)

    def no_link(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", no_link)
    monkeypatch.setattr(storage, "write_bytes", overtaken)
    if verdict == "accept":
        assert mine.append(decide(1)) is False
    else:
        with pytest.raises(DataError, match="another decision has this id"):
            mine.append(decide(1, verdict="drop"))
    assert DecisionLog(str(tmp_path)).read_all() == [theirs]
    assert len(list((tmp_path / "decisions" / "ann").iterdir())) == 1, "nothing half-written is left"


def test_damaged_entry_is_not_written_over(tmp_path: Path) -> None:
    log = DecisionLog(str(tmp_path))
    log.append(decide(1))
    path = next(tmp_path.rglob("*.json"))
    path.write_bytes(b"{")
    with pytest.raises(DataError, match="damaged"):
        DecisionLog(str(tmp_path)).append(decide(1))
    assert path.read_bytes() == b"{"


def test_threads_that_add_the_same_and_others_lose_nothing(tmp_path: Path) -> None:
    log, news = DecisionLog(str(tmp_path)), []
    threads = [threading.Thread(target=lambda i=i: news.append(log.append(decide(1 + i % 8)))) for i in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(news) == 8
    assert [each.number for each in DecisionLog(str(tmp_path)).read_all()] == list(range(1, 9))


def test_only_what_is_new_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = DecisionLog(str(tmp_path)), DecisionLog(str(tmp_path))
    mine.append(decide(1))
    other.append(decide(2, reviewer="bob"))
    read: list[str] = []
    true_read = storage.read_listed

    def counted(uri: str, limit: int) -> bytes:
        read.append(storage.name_of(uri))
        return true_read(uri, limit)

    monkeypatch.setattr(storage, "read_listed", counted)
    assert mine.refresh() == [decide(2, reviewer="bob")]
    assert mine.refresh() == []
    assert mine.read_all() == [decide(1), decide(2, reviewer="bob")]
    assert read == [f"{2:032x}.json"]


def test_what_is_no_entry_is_named_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = DecisionLog(str(tmp_path))
    log.append(decide(1))
    folder = tmp_path / "decisions" / "ann"
    whole = (folder / f"{1:032x}.json").read_bytes()
    for i, data in [
        (2, b"\x00\xff"),
        (3, b"[" * 100_000),
        (4, whole),
        (5, whole.replace(b'"format_version":1', b'"format_version":2')),
        (6, b'"' + b"x" * 5000),
    ]:
        (folder / f"{i:032x}.json").write_bytes(data)
    (folder / "notes.txt").write_bytes(b"")
    (folder.parent / f"{7:032x}.json").write_bytes(whole)
    (folder.parent / ".hidden").mkdir()
    (folder.parent / ".hidden" / f"{1:032x}.json").write_bytes(whole)
    (folder / f".{8:032x}.json.0123456789abcdef0123456789abcdef.partial").write_bytes(b"half")
    os.mkfifo(folder / f"{9:032x}.json")
    monkeypatch.setattr(log_module, "ENTRY_BYTES", 4000)
    again = DecisionLog(str(tmp_path))
    assert again.read_all() == [decide(1)]
    found = [str(each).removeprefix(f"{again.uri}/") for each in again.problems]
    assert [text.partition(":")[0] for text in found] == [
        f".hidden/{1:032x}.json",
        f"{7:032x}.json",
        *(f"ann/{i:032x}.json" for i in (2, 3, 4, 5, 6, 9)),
        "ann/notes.txt",
    ]
    assert "it is 00000000000000000000000000000001 of ann" in found[4]
    assert "format_version" in found[5]
    assert "100000 bytes, expected at most 4000" in found[3]
    (folder / f"{2:032x}.json").write_bytes(whole.replace(f"{1:032x}".encode(), f"{2:032x}".encode()))
    (folder / "notes.txt").unlink()
    assert [each.decision_id for each in again.refresh()] == [f"{2:032x}"], "repaired from outside"
    assert len(again.problems) == len(found) - 2


def test_entry_beyond_the_limit_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "ENTRY_BYTES", 300)
    with pytest.raises(ConfigError, match="expected at most 300"):
        DecisionLog(str(tmp_path)).append(decide(1, reason="x" * 400))
    assert list(tmp_path.rglob("*")) == []


def test_folder_without_decisions_has_none(tmp_path: Path) -> None:
    log = DecisionLog(str(tmp_path))
    assert (log.read_all(), log.problems) == ([], [])


# Masks


@settings(max_examples=50, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.sampled_from(LABEL_VALUES)))
def test_mask_comes_back_as_it_was(mask: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    height, width = mask.shape
    found = decode_mask(encode_mask(mask), (height, width), LABEL_VALUES)
    assert found.dtype == np.uint8
    assert (found == mask).all()


def chunk(name: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def header(height: int, width: int, depth: int = 8, colour: int = 0, interlaced: int = 0) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)


def of_pillow(mode: str) -> bytes:
    sink = io.BytesIO()
    Image.new(mode, SHAPE[::-1]).save(sink, "PNG")
    return sink.getvalue()


ZEROS = (b"IDAT", zlib.compress(bytes(SHAPE[0] * (SHAPE[1] + 1))))
END = (b"IEND", b"")
BOMB = zlib.compress(bytes(50_000_000))


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"GIF89a", "not a PNG"),
        (of_pillow("RGBA"), "colour type 6"),
        (of_pillow("I;16"), "16 bits"),
        (of_pillow("1"), "1 bits"),
        (png(header(6, 7), ZEROS, END), "has 7 x 6 px, where the tile has 7 x 5"),
        (png(header(2**31 - 1, 2**31 - 1), (b"IDAT", BOMB), END), "where the tile has 7 x 5"),
        (png(header(*SHAPE, interlaced=1), ZEROS, END), "not interlaced"),
        (png(header(*SHAPE), (b"zTXt", b"a\0\0" + BOMB), ZEROS, END), "zTXt"),
        (png(header(*SHAPE), ZEROS), "cut off"),
        (png(header(*SHAPE), ZEROS, END) + b"more", "cut off"),
        (png(header(*SHAPE), (b"IDAT", ZEROS[1][:6]), END), "damaged PNG"),
        (png(header(*SHAPE), (b"IDAT", b"no zlib stream"), END), "damaged PNG"),
        (png(header(*SHAPE), ZEROS, END)[:50], "cut off"),
        (png(ZEROS, header(*SHAPE), END), "cut off|in no order"),
        (png((b"IHDR", b"short"), ZEROS, END), "in no order"),
        (encode_png(np.full(SHAPE, 7, np.uint8)), "has the values 7, expected 0, 1, 255"),
    ],
)
def test_what_is_no_mask_of_the_tile_is_refused(data: bytes, found: str) -> None:
    assert (decode_png(png(header(*SHAPE), ZEROS, END), SHAPE, LABEL_VALUES) == 0).all(), "the right one is taken"
    with pytest.raises(BadMask, match=found):
        decode_png(data, SHAPE, LABEL_VALUES)


def test_text_that_is_no_mask_is_refused_and_the_decision_named() -> None:
    with pytest.raises(BadMask, match="not base64"):
        decode_mask("?" * 8, SHAPE, LABEL_VALUES)
    mask = np.full(SHAPE, 255, np.uint8)
    assert (mask_of(decide(verdict="fix", mask=encode_mask(mask)), SHAPE) == 255).all()
    with pytest.raises(DataError, match=f"ignore of tile tile0 by ann .{1:032x}.: its mask can't be used: has the val"):
        mask_of(decide(verdict="ignore", mask=encode_mask(mask)), SHAPE)
