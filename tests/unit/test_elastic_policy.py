"""What an elastic run is decided by, without a cluster."""

from __future__ import annotations

import os
from unittest import mock

import pytest
from ray.train.v2._internal.constants import WORKER_GROUP_START_TIMEOUT_S_ENV_VAR as LIMIT
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, ResizeDecision
from ray.train.v2.api.config import ScalingConfig

from raytrain.cluster.elastic import PLACE_S, SavingElasticPolicy


@pytest.mark.parametrize(("set_by_user", "limit"), [({}, str(PLACE_S)), ({LIMIT: "33"}, "33")])
def test_places_that_cannot_be_had_are_soon_given_up_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, set_by_user: dict[str, str], limit: str
) -> None:
    decision = ResizeDecision(num_workers=2, resources_per_worker={"CPU": 1})
    monkeypatch.setattr(ElasticScalingPolicy, "make_decision_for_non_running_worker_group", lambda self: decision)
    kept = {name: value for name, value in os.environ.items() if name != LIMIT}
    with mock.patch.dict(os.environ, kept | set_by_user, clear=True):
        policy = SavingElasticPolicy(ScalingConfig(num_workers=(1, 2)), "run", mock.Mock())
        assert policy.make_decision_for_non_running_worker_group() is decision
        assert os.environ[LIMIT] == limit
