"""The kinds of error that a label may have, by the names that rankings and decisions keep. Must not know pixels."""

from __future__ import annotations

from typing import Literal, get_args

ErrorKind = Literal[
    "missing-cloud",
    "false-cloud",
    "shifted",
    "loose-outline",
    "tight-outline",
    "empty",
    "full",
    "noise",
]
ERROR_KINDS: tuple[ErrorKind, ...] = get_args(ErrorKind)
KIND_WORDS: dict[ErrorKind, str] = {
    "missing-cloud": "a cloud without a label",
    "false-cloud": "a label without a cloud",
    "shifted": "the label lies beside the cloud",
    "loose-outline": "the outline is wider than the cloud",
    "tight-outline": "the outline is narrower than the cloud",
    "empty": "no cloud labelled, where there is some",
    "full": "all labelled cloud, where there is clear ground",
    "noise": "the label has little to do with the picture",
}
