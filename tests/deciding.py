"""Decisions made for tests."""

from __future__ import annotations

from typing import Any

from raytrain.review.decisions import Decision


def decide(i: int = 1, **changes: Any) -> Decision:
    """Return the decision with the id and the number `i`: by default ann accepts tile0."""
    values: dict[str, Any] = {
        "decision_id": f"{i:032x}",
        "reviewer": "ann",
        "number": i,
        "time": "2026-11-27T10:00:00.000Z",
        "tile_id": "tile0",
        "tile_sha256": "0" * 64,
        "verdict": "accept",
    }
    return Decision(**{**values, **changes})
