"""infra/Dockerfile, which no test can build: what it installs is pinned, and what Ray's launchers need is there."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "infra" / "Dockerfile").read_text()
Instruction = tuple[str, str]


def instructions(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile, lines joined, comments left out."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(name, " ".join(rest.split())) for name, _, rest in (line.partition(" ") for line in joined.splitlines())]


def faults(text: str) -> Iterator[str]:
    steps = instructions(text)
    stages = [rest.partition(" AS ")[2] for name, rest in steps if name == "FROM"]
    for base in (rest.partition(" AS ")[0] for name, rest in steps if name == "FROM"):
        if base not in stages and base != "on-${DEVICE}" and not re.search(r":[\w.-]+@sha256:[0-9a-f]{64}$", base):
            yield f"a base that moves: {base}"
    if {"on-cpu", "on-gpu"} - set(stages):
        yield "no stage for a device"
    last = [rest for name, rest in steps if name == "USER"]
    if last != ["1000:1000"] or steps.index(("USER", last[-1])) < max(
        i for i, (n, _) in enumerate(steps) if n == "RUN"
    ):
        yield "root, or another uid than that of the machine's user"
    runs = [rest for name, rest in steps if name == "RUN"]
    for command in (part.strip() for rest in runs for part in re.split(r"&&|;", rest)):
        if re.search(r"\buv (sync|export)\b", command) and "--locked" not in command:
            yield f"not from the lock: {command}"
        if re.search(r"\buv pip install\b", command) and not re.search(r"--constraint |--no-deps", command):
            yield f"not from the lock: {command}"
        if re.search(r"(?<!uv )\bpip3? install\b|curl .*\|", command):
            yield f"not from the lock: {command}"
    if "--no-dev" not in next(rest for rest in runs if "uv sync" in rest):
        yield "tests' packages"
    if not re.search(r"COPY pyproject\.toml uv\.lock .*?COPY raytrain", text, re.DOTALL):
        yield "a change of the code installs everything again"
    environment = " ".join(rest for name, rest in steps if name == "ENV")
    for wanted in ("HOME=/home/ray", "PATH=/opt/raytrain/.venv/bin:$PATH", "RAY_AUTH_MODE=token"):
        if wanted not in environment:
            yield f"no {wanted}"
    if not re.search(r"PATH=/opt/raytrain/\.venv/bin:\$PATH' > /etc/profile\.d/\w+\.sh", text):
        yield "login shells do not find ray"
    for package in ("rsync", "openssh-client", "wget", "procps", "libexpat1", "g++"):
        if not re.search(rf"apt-get install [^&]*\s{re.escape(package)}\s", " ".join(runs)):
            yield f"no {package}"
    if "HEALTHCHECK" in text or "ADD " in text:
        yield "what no one needs"


def test_image_is_pinned_and_has_what_the_launchers_need() -> None:
    assert list(faults(TEXT)) == []


BROKEN: dict[str, Callable[[str], str]] = {
    "a base that moves: python": lambda text: re.sub(r"(python:\S+)@sha256:\w+", r"\1", text),
    "a base that moves: ghcr.io": lambda text: re.sub(r"uv:0\.13\.0@", "uv@", text),
    "no stage for a device": lambda text: text.replace("AS on-cpu", "AS on-tpu"),
    "root": lambda text: text.replace("USER 1000:1000", "USER root"),
    "not from the lock: uv sync": lambda text: text.replace("uv sync --locked", "uv sync"),
    "not from the lock: uv pip": lambda text: text.replace("--constraint /tmp/lock.txt boto3", "boto3"),
    "not from the lock: pip": lambda text: text.replace("uv sync", "pip install ray && uv sync"),
    "tests' packages": lambda text: text.replace("--no-dev", ""),
    "a change of the code": lambda text: text.replace("COPY pyproject.toml uv.lock", "COPY . . #"),
    "no HOME": lambda text: text.replace("HOME=/home/ray", "A=b"),
    "no RAY_AUTH_MODE": lambda text: text.replace("RAY_AUTH_MODE=token", "A=b"),
    "login shells": lambda text: text.replace("/etc/profile.d", "/tmp"),
    "no wget": lambda text: text.replace(" wget", ""),
    "no libexpat1": lambda text: text.replace("libexpat1 openssh", "openssh"),
}


@pytest.mark.parametrize(("fault", "break_it"), BROKEN.items(), ids=BROKEN)
def test_image_that_breaks_a_rule_is_found(fault: str, break_it: Callable[[str], str]) -> None:
    assert [found for found in faults(break_it(TEXT)) if found.startswith(fault)]


def test_what_the_image_takes_beside_the_lock_is_in_the_lock() -> None:
    """boto3, which Ray's autoscaler needs on AWS, and Ray itself within what the project asks for."""
    locked = {each["name"]: each for each in tomllib.loads((ROOT / "uv.lock").read_text())["package"]}
    assert locked["boto3"]["version"] == locked["botocore"]["version"]
    assert locked["ray"]["version"].startswith("2.60.")
    assert "triton" in locked


def test_nothing_but_the_code_goes_to_the_builder() -> None:
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert patterns[0] == "*"
    kept = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    copied = {
        word
        for name, rest in instructions(TEXT)
        if name == "COPY" and "--from" not in rest
        for word in rest.split()[:-1]
        if not word.startswith("--")
    }
    assert kept == copied
    assert all((ROOT / name).exists() for name in kept)
    assert not any(fnmatch.fnmatch(name, pattern) for name in (".git", ".venv", "auth_token") for pattern in kept)
