"""The runbook, read as its tests need it: its sections, and the commands in its blocks of code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

RUNBOOK = Path(__file__).resolve().parents[1] / "infra" / "runbook.md"


def sections() -> list[str]:
    """Return the anchors of the sections, as GitHub makes them of their titles."""
    titles = re.findall(r"^#+ (.+)$", RUNBOOK.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def links() -> list[str]:
    """Return the anchors that the text points at."""
    return re.findall(r"\]\(#([^)]+)\)", RUNBOOK.read_text())


def commands(program: str) -> list[list[str]]:
    """Return the arguments of every call of `program` in blocks of shell, without comments."""
    blocks = re.findall(r"^```bash\n(.*?)^```", RUNBOOK.read_text(), re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [each[1:] for each in words if each and each[0] == program]
