"""The log of decisions is the same in every store, for two servers on it and for several threads of each."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from raytrain import storage
from raytrain.errors import DataError
from raytrain.review.log import DecisionLog
from tests.deciding import decide


def test_two_servers_add_to_one_log_and_see_each_other(store: str) -> None:
    mine, other = DecisionLog(store), DecisionLog(store)
    of_ann = [decide(i) for i in range(1, 13)]
    of_bob = [decide(i, reviewer="bob", verdict="drop") for i in range(1, 13)]
    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(mine.append, [*of_ann, *of_ann])) + list(pool.map(other.append, of_bob))
    assert sum(added) == 24
    assert mine.refresh() == of_bob
    assert other.refresh() == of_ann
    assert mine.decisions == other.decisions == DecisionLog(store).read_all() == [*of_ann, *of_bob]
    assert mine.refresh() == other.refresh() == []


def test_nothing_in_the_log_is_overwritten_and_what_is_no_entry_is_named(store: str) -> None:
    DecisionLog(store).append(decide(1))
    with pytest.raises(DataError, match="another decision has this id"):
        DecisionLog(store).append(decide(1, verdict="unsure"))
    assert not DecisionLog(store).append(decide(1))
    storage.write_bytes(storage.join(store, "decisions", "ann", f"{2:032x}.json"), b"{}")
    storage.write_bytes(storage.join(store, "decisions", "ann", "a b.json"), b"{}")
    log = DecisionLog(store)
    assert log.read_all() == [decide(1)]
    assert [each.subject for each in log.problems] == [
        storage.join(log.uri, "ann", f"{2:032x}.json"),
        storage.join(log.uri, "ann", "a b.json"),
    ]
