"""A running training that is told to stop leaves nothing that looks whole, and the same command goes on."""

from __future__ import annotations

import json
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


def epochs_of(log: str) -> list[int]:
    return [int(found) for found in re.findall(r"epoch (\d+) of \d+, loss", log)]


def stopped_by(number: signal.Signals, after_epochs: int, command: list[str]) -> tuple[int, str]:
    """Run `command` until so many epochs are reported, send it the signal; return its exit code and its log."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if len(epochs_of("".join(lines))) == after_epochs:
            break
    process.send_signal(number)
    lines.append(process.communicate(timeout=120)[1])
    return process.returncode, "".join(lines)


def test_stopped_training_says_so_and_the_same_command_goes_on(chips: Path, tmp_path: Path, local_ray: None) -> None:
    shards, out = tmp_path / "shards", tmp_path / "runs"
    shard(ShardJob(src=str(chips), dst=str(shards), settings=ShardSettings(folds="3")), Cluster())
    settings = ["crop_px=32", "crops_per_tile=8", "global_batch=4", "decoder_channels=[8,8,8,4,4]", f"epochs={EPOCHS}"]
    command = [str(RAYTRAIN), "train", "--shards", str(shards), "--out", str(out), "--members", "small-byob-3b"]
    command += ["--workers", "2", "--set", *settings]
    reached = 0
    for number, code, word in ((signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")):
        found, log = stopped_by(number, 2, command)
        assert found == code, log
        assert log.splitlines()[-1] == f"raytrain: {word}; the same command goes on"
        assert "Traceback" not in log
        first = epochs_of(log)[0]
        assert first == 1 if not reached else 1 < first <= reached + 1, "it began again at the start"
        reached = max(epochs_of(log))
        run = out / "main" / "small-byob-3b-fold0"
        assert not (out / "main" / "ensemble.json").exists()
        assert not (run / "result.json").exists()
        assert not (run / "weights.safetensors").exists()
        (told,) = json.loads((out / "main" / "report.json").read_text())["runs"]
        assert told["state"] == "not finished"
        assert [each["epoch"] for each in told["epochs"]] == list(range(1, len(told["epochs"]) + 1))
        assert len(told["epochs"]) >= reached
        assert "There are no pictures of validation tiles" in (out / "main" / "report.html").read_text()
    again = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert again.returncode == 0, again.stderr
    epochs = epochs_of(again.stderr)
    assert epochs == list(range(epochs[0], EPOCHS + 1))
    assert 2 <= epochs[0] <= reached + 1, "it began again at the start"
    assert (out / "main" / "ensemble.json").exists()
    (told,) = json.loads((out / "main" / "report.json").read_text())["runs"]
    assert [each["epoch"] for each in told["epochs"]] == list(range(1, EPOCHS + 1))
    assert [each["kind"] for each in told["restarts"]] == ["job ended", "job ended"]
    assert f"report: {out}/main/report.html" in again.stdout
    assert f"model card: {out}/main/model-card.md" in again.stdout
