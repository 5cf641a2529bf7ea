"""The runbook: every command in it exists, with these options; every link leads somewhere."""

from __future__ import annotations

import click
import pytest
from ray.scripts.scripts import cli

from raytrain.cli import COMMANDS, _parse
from raytrain.errors import ConfigError
from tests.runbook import commands, links, sections

VERBS = ("shard", "train", "tune", "score", "evaluate", "verify")
REQUESTS = ("status", "logs", "stop")
FILLED = {"SHARDS": "s3://my-bucket/shards", "OUT": "s3://my-bucket/runs", "MASKS": "s3://my-bucket/masks"}


def filled(words: list[str]) -> list[str]:
    """Return the words with what stands for a place of the reader's put in."""
    return [
        next((place + each[len(name) :] for name, place in FILLED.items() if each.startswith(name)), each)
        for each in words
    ]


def check(words: list[str]) -> None:
    """Raise `ConfigError` for arguments of raytrain that are none."""
    verb, *rest = words
    if verb == "submit":
        while rest and rest[0].startswith("-"):
            rest = rest[1:] if rest[0] == "--detach" else rest[2:]
        if rest and rest[0] in REQUESTS:
            assert len(rest) == (2 if rest[0] != "status" else 1), words
            return
        assert rest, words
        assert rest[0] in VERBS, words
        _parse(filled(rest))
    elif verb in COMMANDS:
        _parse(filled(words))
    else:
        assert verb == "doctor", words  # named by the plan, and checked by the parser once it is a command


@pytest.mark.parametrize("words", commands("raytrain"), ids=" ".join)
def test_every_command_of_raytrain_is_one(words: list[str]) -> None:
    check(words)


def test_a_wrong_option_would_be_seen() -> None:
    with pytest.raises(ConfigError, match="workerz"):
        check(["submit", "train", "--shards", "SHARDS", "--out", "OUT", "--workerz", "4"])
    with pytest.raises(AssertionError):
        check(["submit", "restart", "ID"])


@pytest.mark.parametrize("words", commands("ray"), ids=" ".join)
def test_every_command_of_ray_has_these_options(words: list[str]) -> None:
    command: click.Command = cli
    while isinstance(command, click.Group):
        context = click.Context(command)
        found = command.get_command(context, words[0])
        if found is None and "cluster" in command.commands:  # `ray logs FILE`
            found = command.commands["cluster"]
        assert found is not None, words
        command, words = found, words[1:]
    known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
    assert {word for word in words if word.startswith("-")} <= known


def test_every_link_leads_to_a_section() -> None:
    assert links()
    assert set(links()) <= set(sections())


def test_every_section_has_a_command_or_a_remedy() -> None:
    assert len(sections()) == len(set(sections()))
    assert len(commands("raytrain")) > 20
