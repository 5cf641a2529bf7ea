"""One cluster of three nodes for all tests here, and the training that they disturb."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.trainings import Outcome, Training, make_shards, train
from tests.multinode.lab import Lab
from tests.multinode.network import missing
from tests.store.swift import installed


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A head and two nodes of one CPU, and a store."""
    if reason := missing():
        pytest.skip(reason)
    try:
        installed()
    except RuntimeError as error:
        pytest.skip(f"no Swift: {error}")
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="session")
def training(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A training of about a minute, on shards in the store."""
    folder: Path = tmp_path_factory.mktemp("archive")
    return make_shards(lab, folder)


@pytest.fixture(scope="session")
def undisturbed(training: Training) -> Outcome:
    """What came of it when nothing went wrong."""
    return train(training, "undisturbed")
