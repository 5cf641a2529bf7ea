"""Half-written files of a local destination, which a process leaves that is killed. Must not know what is in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from raytrain import storage
from raytrain.scoring.casualties import CASUALTIES
from raytrain.scoring.destination import LOG, REPORT_FIGURES, REPORT_PAGE, SCORING_FILE
from raytrain.scoring.layers import KINDS, MEMBERS
from raytrain.scoring.ledger import LEDGER
from raytrain.scoring.plan import PLAN
from raytrain.scoring.scenes import BLOCKS
from raytrain.scoring.stac import COLLECTION_KEY, ITEM_FOLDER, TABLE_KEY

_FILES = (SCORING_FILE, COLLECTION_KEY, TABLE_KEY, CASUALTIES, REPORT_PAGE, REPORT_FIGURES)
_FOLDERS = (*(kind for kind in KINDS if kind != "mask"), MEMBERS, ITEM_FOLDER, LEDGER, PLAN, BLOCKS, LOG)


def remove_partials(uri: str) -> int:
    """Remove half-written files from a local destination on which nobody works, and return how many there were.

    Only those count that were to become what a scoring writes: a raster or a table at the top, anything in a folder of
    ours. A store has none.
    """
    if not storage.is_local(uri):
        return 0
    root, count = Path(storage.path_of(uri)), 0
    for path in _files_that_may_be_ours(root):
        target = storage.partial_of(path.name)
        if target is not None and (path.parent != root or target.endswith(".tif") or target in _FILES):
            path.unlink(missing_ok=True)
            count += 1
    return count


def _files_that_may_be_ours(root: Path) -> Iterator[Path]:
    with suppress(FileNotFoundError), os.scandir(root) as entries:
        yield from (root / entry.name for entry in entries if entry.is_file(follow_symlinks=False))
    for folder in _FOLDERS:
        for parent, _, names in os.walk(root / folder):
            yield from (Path(parent, name) for name in names)
