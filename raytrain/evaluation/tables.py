"""The figures of an evaluation as Parquet, for notebooks and databases. Must not know how they were counted."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raytrain import storage
from raytrain.evaluation.counting import NEAR
from raytrain.evaluation.results import Ends, Evaluation
from raytrain.evaluation.scores import unions
from raytrain.evaluation.slices import Column
from raytrain.evaluation.tally import Tally

CHIPS, LOCATIONS, SCORES, SLICES = "chips.parquet", "locations.parquet", "scores.parquet", "slices.parquet"
CURVE, RELIABILITY, MEMBERS = "threshold_curve.parquet", "reliability.parquet", "members.parquet"
COMPARISON = "comparison.parquet"
TABLES = (CHIPS, LOCATIONS, SCORES, SLICES, CURVE, RELIABILITY, MEMBERS, COMPARISON)
_PIXELS = ("true_positive", "false_positive", "false_negative", "true_negative")


def write_tables(uri: str, evaluation: Evaluation, tally: Tally, columns: Sequence[Column]) -> None:
    """Write the tables of `evaluation` that there is something for into the folder `uri`.

    `chips.parquet` has a row a chip: counts of pixels, over all and near edges, its IoU (null for an empty union) and a
    column for each way that chips are parted by. The others have what `metrics.json` has.
    """
    tables = {CHIPS: _chips(tally, columns), **_others(evaluation)}
    for name, table in tables.items():
        if table.num_rows:
            buffer = io.BytesIO()
            pq.write_table(table, buffer, compression="zstd")
            storage.write_bytes(storage.join(uri, name), buffer.getvalue())


def _chips(tally: Tally, columns: Sequence[Column]) -> pa.Table:
    totals, near = tally.totals, tally.confusions[:, NEAR]
    union = unions(totals)
    iou = np.where(union > 0, totals[:, 0] / np.maximum(union, 1), np.nan)
    found: dict[str, Any] = {"chip_id": tally.chip_ids, "location": tally.locations}
    found |= {name: totals[:, i] for i, name in enumerate(_PIXELS)}
    found |= {f"near_edges_{name}": near[:, i] for i, name in enumerate(_PIXELS)}
    found |= {"unpredicted_px": tally.unpredicted_px, "iou": pa.array(iou, from_pandas=True)}
    return pa.table(found | {f"by_{column.name}": column.values for column in columns})


def _others(evaluation: Evaluation) -> dict[str, pa.Table]:
    locations = [{"location": name, **each.model_dump()} for name, each in evaluation.locations.items()]
    scores = [
        {"score": name, "value": getattr(evaluation, name), **_ends(ends)}
        for name, ends in evaluation.intervals.items()
    ]
    slices = [_flat(each.model_dump()) for each in evaluation.slices]
    curve = [each.model_dump() for each in evaluation.threshold_curve or ()]
    reliability = [each.model_dump() for each in (evaluation.calibration.bins if evaluation.calibration else ())]
    members = [_flat(each.model_dump()) for each in (evaluation.members.members if evaluation.members else ())]
    comparison = [_flat(each.model_dump()) for each in (evaluation.comparison.scores if evaluation.comparison else ())]
    rows = {
        LOCATIONS: locations,
        SCORES: scores,
        SLICES: slices,
        CURVE: curve,
        RELIABILITY: reliability,
        MEMBERS: members,
        COMPARISON: comparison,
    }
    return {name: pa.Table.from_pylist(each) for name, each in rows.items()}


def _ends(ends: Ends | None) -> dict[str, float | None]:
    return {"low": None, "high": None} if ends is None else ends.model_dump()


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with its intervals as two columns each; one that can't be had is two nulls."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if not name.endswith("interval"):
            found[name] = value
            continue
        prefix = name.removesuffix("interval")
        ends = value or {"low": None, "high": None}
        found |= {f"{prefix}{end}": ends[end] for end in ("low", "high")}
    return found
