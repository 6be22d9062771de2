"""kill -9 at random moments: the run resumes to the weights it would have had, each epoch once in results.csv."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastcifar.training import RunFolder

KILLS = int(os.environ.get("FASTCIFAR_KILLS", "2"))
EPOCHS = 20


def start(*args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fastcifar", "train", *map(str, args)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(data_dir: Path, tmp_path: Path) -> None:
    chosen = random.Random(0)
    settings = [
        "--model",
        "small",
        "--batch-size",
        90,
        "--epochs",
        EPOCHS,
        "--lr",
        0.02,
        "--dropout",
        0.2,
        "--ema",
        0.9,
    ]
    common = [*settings, "--deterministic", "--data-dir", data_dir, "--runs-dir", tmp_path]
    begin = time.monotonic()
    whole = start(*common, "--name", "whole", "--json")
    out, errors = whole.communicate(timeout=600)
    assert whole.returncode == 0, errors
    took = time.monotonic() - begin

    killed, saved = 0, RunFolder(tmp_path / "killed")
    process = start(*common, "--name", "killed", "--json")
    while True:
        while process.poll() is None and not (saved.last.exists() or saved.previous.exists()):
            time.sleep(0.02)  # without a checkpoint there is nothing to resume; no result depends on this wait
        if killed < KILLS:
            try:
                process.wait(chosen.uniform(0, 0.6 * took))
            except subprocess.TimeoutExpired:
                process.kill()
                killed += 1
        told, errors = process.communicate(timeout=600)
        if process.returncode == 0:
            break
        assert process.returncode == -9, errors
        process = start("--resume", "killed", "--runs-dir", tmp_path, "--json")
    assert killed > 0
    weights = [torch.load(RunFolder(tmp_path / name).last, weights_only=True) for name in ("whole", "killed")]
    for part in ("model", "step"):
        flat = [_tensors(state[part]) for state in weights]
        assert len(flat[0]) == len(flat[1]) > 10
        assert all(torch.equal(a, b) for a, b in zip(*flat, strict=True))
    rows = list(csv.DictReader(saved.results.read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == list(range(1, EPOCHS + 1))
    for key in ("test_accuracy", "test_loss", "best", "steps"):
        assert json.loads(told)[key] == json.loads(out)[key]


def _tensors(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for entry in inner for tensor in _tensors(entry)]
