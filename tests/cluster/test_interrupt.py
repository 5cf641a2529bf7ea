"""Ctrl-C on a running training leaves nothing that looks whole, and the same command goes on where it stopped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from raytrain.cluster.session import Cluster
from raytrain.cluster.shard import ShardJob, shard
from raytrain.config import ShardSettings

RAYTRAIN = Path(sys.executable).with_name("raytrain")
EPOCHS = 12


def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(chips: Path, tmp_path: Path, local_ray: None) -> None:
    shards, out = tmp_path / "shards", tmp_path / "runs"
    shard(ShardJob(src=str(chips), dst=str(shards), settings=ShardSettings(folds="3")), Cluster())
    settings = ["crop_px=32", "crops_per_tile=8", "global_batch=4", "decoder_channels=[8,8,8,4,4]", f"epochs={EPOCHS}"]
    command = [str(RAYTRAIN), "train", "--shards", str(shards), "--out", str(out), "--members", "small-byob-3b"]
    command += ["--workers", "2", "--set", *settings]
    # Without the shared Ray's variables: the command starts a Ray of its own.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "epoch 2 of" in line:
            break
    process.send_signal(signal.SIGINT)
    log = process.communicate(timeout=120)[1]
    assert process.returncode == 130, log
    assert "interrupted; the same command goes on" in log
    run = out / "main" / "small-byob-3b-fold0"
    assert not (out / "main" / "ensemble.json").exists()
    assert not (run / "result.json").exists()
    assert not (run / "weights.safetensors").exists()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert again.returncode == 0, again.stderr
    epochs = [int(found) for found in re.findall(r"epoch (\d+) of", again.stderr)]
    assert epochs == list(range(epochs[0], EPOCHS + 1))
    assert 2 <= epochs[0] <= EPOCHS, "it began again at the start"
    assert (out / "main" / "ensemble.json").exists()
