"""The runbook, read as its tests need it: its sections, and the commands in its blocks of shell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RUNBOOK = Path(__file__).resolve().parents[1] / "infra" / "runbook.md"
ENDS = {"|", ";", "&", "&&", "||"}
"""What stands between two commands."""
ROLE = "AWS_PROFILE="
PROSE = ("kubectl", "ssh")
NAMESPACE = "kubectl -n raytrain"
"""With which all others of it begin, says the text."""


@dataclass(frozen=True)
class Command:
    """A command: its words, the first of them the program, and the role of AWS that was taken before it, if any."""

    words: tuple[str, ...]
    role: str | None = None

    def __str__(self) -> str:
        return " ".join(self.words)


def sections() -> list[str]:
    """Return the anchors of the sections, as GitHub makes them of their titles."""
    titles = re.findall(r"^#+ (.+)$", RUNBOOK.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def links() -> list[str]:
    """Return the anchors that the text points at."""
    return re.findall(r"\]\(#([^)]+)\)", RUNBOOK.read_text())


def split(line: str) -> Iterator[list[str]]:
    """Yield the commands of a line of shell, those of a comment that begins with `or: ` among them."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if word in ENDS:
            yield words
            words = []
        else:
            words.append(word)
    yield words
    if instead := re.search(r"\s# or: (.*)", line):
        yield from split(instead[1])


def every_command() -> Iterator[Command]:
    """Yield all commands of all blocks of shell, and those of `PROSE` between backquotes in the text."""
    for block in re.findall(r"^```bash\n(.*?)^```", RUNBOOK.read_text(), re.MULTILINE | re.DOTALL):
        role = None
        for line in block.replace("\\\n", " ").splitlines():
            for words in split(line):
                if words[:1] == ["export"]:
                    role = next((each.removeprefix(ROLE) for each in words if each.startswith(ROLE)), role)
                elif words:
                    yield Command(tuple(words), role)
    prose = re.sub(r"^```.*?^```", "", RUNBOOK.read_text(), flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`([^`]+)`", prose):
        if code.split()[0] in PROSE and code != NAMESPACE:
            yield Command(tuple(shlex.split(code)))


def commands(program: str) -> list[list[str]]:
    """Return the arguments of every call of `program`."""
    return [[*each.words[1:]] for each in every_command() if each.words[0] == program]
