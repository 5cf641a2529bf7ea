"""The steps of raytrain on Ray: shard, train, score, evaluate, and the demo of all of them.

The only package that may import ray. Must not know command lines.
"""

from __future__ import annotations

import os

from raytrain.cluster import code

# Ray reads these when it is imported, so they stand where no module of this package can import it before.
# Under `uv run`, Ray's hook would build an environment of several GB for each worker; they have ours.
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
# Figures about a cluster's use are its owner's to send.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# A thread that asks Ray for something after its end must not start another one.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
# Future behaviour of Ray, wanted here: a worker without GPUs sees the devices that it sees.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Some clouds give 30 s of notice; Ray Train would look for it every 5 s.
os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")

code.check()
