"""Imports go one way: a package imports only from those above it in the table of the architecture."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BASE = ("raytrain", "raytrain.errors", "raytrain.config", "raytrain.storage", "raytrain.recipes", "raytrain.logs")
LAYERS = [
    BASE,
    ("raytrain.imagery",),
    ("raytrain.tiles",),
    ("raytrain.training",),
    ("raytrain.scoring",),
    ("raytrain.evaluation",),
    ("raytrain.review",),
    ("raytrain.search",),
    ("raytrain.cluster",),
    ("raytrain.console", "raytrain.console_runs"),
    (
        "raytrain.command",
        "raytrain.command_doctor",
        "raytrain.command_evaluate",
        "raytrain.command_review",
        "raytrain.command_review_apply",
        "raytrain.command_review_effect",
        "raytrain.command_review_log",
        "raytrain.command_review_rank",
        "raytrain.command_review_serve",
        "raytrain.command_score",
        "raytrain.command_submit",
        "raytrain.command_train",
        "raytrain.command_tune",
    ),
    ("raytrain.cli",),
]
FORBIDDEN = {
    "ray": {"raytrain.cluster"},
    "torch": {"raytrain.tiles", "raytrain.training", "raytrain.scoring", "raytrain.cluster"},
}
"""Packages that only these layers may import."""

MODULES = sorted((ROOT / "raytrain").rglob("*.py"))


def layer_of(module: str) -> int:
    for i, names in reversed(list(enumerate(LAYERS))):
        if any(module == name or (name != "raytrain" and module.startswith(name + ".")) for name in names):
            return i
    raise AssertionError(f"{module} is in no layer of the table")


def imports(path: Path) -> list[tuple[str, int]]:
    """Return (module, level of a relative import) of everything that a file imports, wherever in it."""
    found: list[tuple[str, int]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            known = module == "raytrain" and not node.level
            found += [(f"raytrain.{alias.name}" if known else module, node.level) for alias in node.names]
    return found


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", MODULES, ids=[name_of(path) for path in MODULES])
def test_module_imports_only_from_layers_above_it(path: Path) -> None:
    own = layer_of(name_of(path))
    for module, level in imports(path):
        assert level == 0, f"{path}: a relative import of {module}"
        if module.split(".")[0] != "raytrain" or module == "raytrain.__version__":
            continue
        assert layer_of(module) <= own, f"{path} imports {module}, which is below it"


@pytest.mark.parametrize("path", MODULES, ids=[name_of(path) for path in MODULES])
def test_ray_and_torch_stay_in_their_rooms(path: Path) -> None:
    name = name_of(path)
    for module, _ in imports(path):
        allowed = FORBIDDEN.get(module.split(".")[0])
        if allowed is not None:
            assert any(name == each or name.startswith(each + ".") for each in allowed), f"{name} imports {module}"


def test_every_module_says_what_it_is_for() -> None:
    for path in MODULES:
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


def test_jobs_are_one_page_and_use_the_command() -> None:
    jobs = sorted((ROOT / "jobs").glob("*.py"))
    assert [job.stem for job in jobs] == ["doctor", "evaluate", "review", "score", "shard", "train", "tune", "verify"]
    for job in jobs:
        assert len(job.read_text().splitlines()) < 40
        assert {module for module, _ in imports(job)} <= {"sys", "raytrain.cli"}
