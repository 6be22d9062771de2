"""Ctrl-C and SIGTERM end a run after the step it is in, when all is saved."""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastcifar.errors import Stopped
from fastcifar.training import RunFolder, checkpoint, train
from tests.tiny import Interrupts, tiny
from tests.trust.cases import LONGEST_S, count, start

LONGEST_STEP_AND_SAVE_S = 10.0


@pytest.mark.slow
def test_ctrl_c_ends_a_run_within_a_step(data_dir: Path, tmp_path: Path, tally: Callable[[str], None]) -> None:
    num = count(2, 60)

    def stopped(i: int) -> float:
        """Seconds from the signal to the end."""
        name, signum = f"run-{i}", signal.SIGTERM if i % 6 == 1 else signal.SIGINT
        flags = ("--model", "small", "--batch-size", 20, "--epochs", 500, "--data-dir", data_dir)
        process = start("train", *flags, "--runs-dir", tmp_path, "--name", name)
        run, deadline = RunFolder(tmp_path / name), time.monotonic() + LONGEST_S
        while not run.log.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)  # waits for another process to reach a state; no result depends on it
        time.sleep(random.Random(i).uniform(0, 2))
        asked = time.monotonic()
        process.send_signal(signum)
        _, errors = process.communicate(timeout=LONGEST_S)
        took = time.monotonic() - asked
        assert process.returncode == 128 + signum, errors
        assert "Traceback" not in errors
        saved = re.search(r"stopped by SIG\w+: saved at step (\d+); resume with: fastcifar train --resume", errors)
        if saved is None:  # it had not begun
            assert not run.last.exists()
        else:
            assert checkpoint.load_checkpoint(run)["progress"]["step"] == int(saved[1])
        return took

    with ThreadPoolExecutor(2) as pool:  # two at a time: each has one thread
        longest = max(pool.map(stopped, range(num)))
    assert longest < LONGEST_STEP_AND_SAVE_S
    tally(f"{num} signals, each saved and ended with 130 or 143; the longest took {longest:.2f} s")


@pytest.mark.usefixtures("ordinary_algorithms")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_step_saves_that_step_and_the_run_goes_on(
    tiny_data: Path, tmp_path: Path, signum: signal.Signals
) -> None:
    config = tiny(tiny_data, deterministic=True, val_size=0)
    _, expected = train(config, runs_dir=tmp_path, name="whole")
    num_steps = expected["steps"]
    assert num_steps == 4
    for step in range(1, num_steps + 1):
        with pytest.raises(Stopped) as told:
            train(config, runs_dir=tmp_path, name=f"{step}", reporter=Interrupts(step, signum))
        assert told.value.exit_code == 128 + signum
        assert f"saved at step {step}; resume with: fastcifar train --resume" in str(told.value)
        run = RunFolder(tmp_path / f"{step}")
        assert checkpoint.load_checkpoint(run)["progress"]["step"] == step
        _, metrics = train(config, resume=run)
        assert metrics["test_loss"] == expected["test_loss"]
