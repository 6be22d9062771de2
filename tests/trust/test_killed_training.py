"""A killed run resumes to the same weights, with each epoch once in results.csv."""

from __future__ import annotations

import csv
import json
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fastcifar.errors import CheckpointError
from fastcifar.training import RunFolder, checkpoint, train
from tests.kills import Changes, changes_in
from tests.tiny import tiny
from tests.trust.cases import count, start

KILLS = count(1, 50)
EPOCHS = count(6, 12)
LANES = count(1, 2)
"""Concurrent runs, of one thread each."""
EVERY = 5
"""Of the changes of the disk, one in so many is in the fast tests. A file takes four: not a multiple."""


@pytest.mark.slow
def test_a_run_killed_many_times_ends_with_the_same_weights(
    data_dir: Path, tmp_path: Path, tally: Callable[[str], None]
) -> None:
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
    whole = start("train", *common, "--name", "whole", "--json")
    out, errors = whole.communicate(timeout=600)
    assert whole.returncode == 0, errors
    took = time.monotonic() - begin

    expected = json.loads(out)
    waits = 0.8 * expected["train_seconds"], 0.9 * took

    def lane(number: int) -> int:
        """Run after run until there were enough kills; the number of runs."""
        chosen, killed, runs = random.Random(number), 0, 0
        while killed < KILLS // LANES:
            runs += 1
            name = f"killed-{number}-{runs}"
            result, kills = _killed_again_and_again(common, tmp_path, name, (chosen, *waits), KILLS // LANES - killed)
            killed += kills
            weights = [torch.load(RunFolder(tmp_path / each).last, weights_only=True) for each in ("whole", name)]
            for part in ("model", "step"):
                flat = [_tensors(state[part]) for state in weights]
                assert len(flat[0]) == len(flat[1]) > 10
                assert all(torch.equal(a, b) for a, b in zip(*flat, strict=True))
            rows = list(csv.DictReader(RunFolder(tmp_path / name).results.read_text().splitlines()))
            assert [int(row["epoch"]) for row in rows] == list(range(1, EPOCHS + 1))
            for key in ("test_accuracy", "test_loss", "best", "steps"):
                assert result[key] == expected[key]
        return runs

    with ThreadPoolExecutor(LANES) as pool:
        runs = sum(pool.map(lane, range(LANES)))
    tally(f"{KILLS} kill -9 of {runs} runs: each ended with the same weights, each epoch once in results.csv")


@pytest.mark.usefixtures("ordinary_algorithms")
@pytest.mark.parametrize("first", [0, *(pytest.param(first, marks=pytest.mark.slow) for first in range(1, EVERY))])
def test_a_run_killed_at_any_change_of_the_disk_resumes_to_the_same_end(
    tiny_data: Path, tmp_path: Path, first: int
) -> None:
    config = tiny(tiny_data, deterministic=True, ema=0.9, val_size=20)

    def train_once(runs: Path, fatal: int | None = None, resume: RunFolder | None = None) -> Changes:
        with changes_in(runs, fatal) as changes:
            train(config, runs_dir=runs, name="run", resume=resume)
        return changes

    def outcome(runs: Path) -> tuple[list[torch.Tensor], str, dict[str, Any]]:
        run = RunFolder(runs / "run")
        state, metrics = checkpoint.load_checkpoint(run), json.loads(run.metrics.read_text())
        best = load_file(run.best)
        result = {key: metrics[key] for key in ("test_accuracy", "test_loss", "best", "steps")}
        rows = [line.rsplit(",", 2)[0] for line in run.results.read_text().splitlines()]  # without the seconds
        return [*_tensors(state["model"]), *_tensors(state["step"]), *best.values()], "\n".join(rows), result

    num = len(train_once(tmp_path / "whole").seen)
    whole, begun = outcome(tmp_path / "whole"), 0
    for fatal in range(first, num, EVERY):
        runs = tmp_path / str(fatal)
        assert train_once(runs, fatal).died
        run = RunFolder(runs / "run")
        if not (run.last.exists() or run.previous.exists()):  # before its first step
            if run.path.exists():
                with pytest.raises(CheckpointError, match="no such checkpoint"):
                    train(config, runs_dir=runs, resume=run)
            continue
        begun += 1
        assert not train_once(runs, resume=run).died
        again = outcome(runs)
        assert len(again[0]) == len(whole[0]) > 10
        assert all(torch.equal(a, b) for a, b in zip(again[0], whole[0], strict=True)), fatal
        assert again[1:] == whole[1:], fatal
        shutil.rmtree(runs)
    assert begun > 5


def _killed_again_and_again(
    common: list[object], folder: Path, name: str, waits: tuple[random.Random, float, float], max_kills: int
) -> tuple[dict[str, Any], int]:
    """Train, kill and resume until the run ends, with at most `max_kills` kills; its metrics, and the number of kills.

    waits: a random generator, and the maximum seconds before a kill: after the first checkpoint, after a resume.
    """
    killed, saved = 0, RunFolder(folder / name)
    chosen, wait_s, wait_resumed_s = waits
    process = start("train", *common, "--name", name, "--json")
    while True:
        while process.poll() is None and not (saved.last.exists() or saved.previous.exists()):
            time.sleep(0.02)  # without a checkpoint there is nothing to resume; no result depends on this wait
        if killed < max_kills:
            try:
                process.wait(chosen.uniform(0, wait_s))
            except subprocess.TimeoutExpired:
                process.kill()
                killed += 1
        result, errors = process.communicate(timeout=600)
        if process.returncode == 0:
            return json.loads(result), killed
        assert process.returncode == -9, errors
        process, wait_s = start("train", "--resume", name, "--runs-dir", folder, "--json"), wait_resumed_s


def _tensors(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for entry in inner for tensor in _tensors(entry)]
