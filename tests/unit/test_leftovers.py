"""What the dead left is removed; what is of the living, of others, or a file of the user's stays."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from raytrain.scoring.partials import remove_partials
from raytrain.storage.temporary import remove_folders_of_the_dead, temporary_folder

LEFT = "." + "{}." + "0123456789abcdef" * 2 + ".partial"


def test_temporary_folder_of_a_killed_process_is_removed_and_that_of_a_living_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import os, signal, pathlib\n"
        "from raytrain.storage.temporary import temporary_folder\n"
        "with temporary_folder() as folder:\n"
        "    pathlib.Path(folder, 'mask.tif').write_bytes(b'x')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    (dead,) = tmp_path.iterdir()
    others = [tmp_path / name for name in ("raytrain-elsewhere-999999999-abc", "raytrain-abc", "tmpabc")]
    for each in others:
        each.mkdir()
    with temporary_folder() as mine:
        remove_folders_of_the_dead()
        assert not dead.exists()
        assert Path(mine).exists()
        assert all(each.exists() for each in others)
    assert not Path(mine).exists()


def test_half_written_outputs_are_removed_and_nothing_else(tmp_path: Path) -> None:
    names = ["", "probability/", "members/a/", "stac/", "blocks/s/0123/", "ledger/new/", "log/", "mine/"]
    kept = [tmp_path / name for name in ("a.tif", "notes.partial", LEFT.format("notes.txt"), "probability/a.tif")]
    kept.append(tmp_path / "mine" / LEFT.format("a.tif"))
    left = [tmp_path / f"{folder}{LEFT.format('a.tif')}" for folder in names[:-1]]
    left.append(tmp_path / LEFT.format("items.parquet"))
    for path in [*kept, *left]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    assert remove_partials(str(tmp_path)) == len(left)
    assert [path for path in left if path.exists()] == []
    assert [path for path in kept if not path.exists()] == []
    assert remove_partials(str(tmp_path / "absent")) == remove_partials("s3://bucket/absent") == 0
