"""Policies of AWS as they are judged: a request is denied, allowed by a statement, or not spoken of.

As much of IAM's language as infra/aws speaks, and an error for anything more: an operator that is taken for granted
would let a condition hold that does not.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "infra" / "aws"
ACCOUNT, REGION, BUCKET = "111122223333", "us-west-2", "my-bucket"
Context = Mapping[str, str | list[str]]


@dataclass(frozen=True)
class Request:
    """One action on one resource, with what IAM knows of it: keys of conditions, each with its value or values."""

    action: str
    resource: str
    context: Context = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.action} on {self.resource} {dict(self.context)}"


def read(name: str) -> dict[str, Any]:
    """Return a document of infra/aws."""
    document: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return document


def judge(policies: Iterable[dict[str, Any]], request: Request) -> tuple[bool, str]:
    """Return whether these policies together allow `request`, and the Sid that says so, or `implicit`."""
    statements = [each for policy in policies for each in policy["Statement"] if _speaks_of(each, request)]
    for effect in ("Deny", "Allow"):
        for statement in statements:
            if statement["Effect"] == effect:
                return effect == "Allow", statement["Sid"]
    return False, "implicit"


def items(value: str | list[str]) -> list[str]:
    """Return what stands alone, or in a list, as a list."""
    return [value] if isinstance(value, str) else value


def _speaks_of(statement: dict[str, Any], request: Request) -> bool:
    known = {"Sid", "Effect", "Principal", "Action", "Resource", "Condition"}
    if statement.keys() - known or statement.get("Principal", "*") != "*":
        raise ValueError(f"{statement['Sid']}: what it says is not understood here")
    return (
        any(_is_like(request.action, each) for each in items(statement["Action"]))
        and any(_is_like(request.resource, each) for each in items(statement["Resource"]))
        and all(
            _holds(operator, request.context.get(key), items(values))
            for operator, keys in statement.get("Condition", {}).items()
            for key, values in keys.items()
        )
    )


def _is_like(text: str, pattern: str) -> bool:
    return re.fullmatch(fnmatch.translate(pattern.replace("[", "[[]")), text) is not None


_OPERATORS: dict[str, Callable[[str, str], bool]] = {
    "StringEquals": str.__eq__,
    "StringNotEquals": str.__eq__,
    "ArnEquals": _is_like,  # wildcards count in it, as AWS says
    "ArnNotEquals": _is_like,
    "Bool": str.__eq__,
}


def _holds(operator: str, found: str | list[str] | None, wanted: list[str]) -> bool:
    """Tell whether a condition holds; a negated one holds where the key is absent, as AWS says."""
    for_all, _, plain = operator.rpartition(":")
    if plain not in _OPERATORS or for_all not in ("", "ForAllValues"):
        raise ValueError(f"{operator}: not an operator that is understood here")

    def is_one(value: str) -> bool:
        return any(_OPERATORS[plain](value, each) for each in wanted) != ("Not" in plain)

    if for_all:
        return all(is_one(value) for value in items(found or []))
    if found is None:
        return "Not" in plain
    if not isinstance(found, str):
        raise ValueError(f"{operator} of {found}: several values want ForAllValues")
    return is_one(found)
