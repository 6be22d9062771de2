"""A full disk during training is one line, and the last checkpoint is intact."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fastcifar.errors import FastcifarError
from fastcifar.training import RunFolder, train
from tests.kills import changes_in
from tests.tiny import tiny
from tests.trust.cases import FULL, error_line, run_cli, small_disk

FLAGS = ("--model", "small", "--batch-size", 200, "--epochs", 3, "--lr", 0.03, "--deterministic", "--json")
MIB = (2, 6, 10, 16, 22, 26, 32, 38, 44, 50)


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_good_checkpoint(
    data_dir: Path, tmp_path: Path, tally: Callable[[str], None]
) -> None:
    code, out, errors = run_cli("train", *FLAGS, "--data-dir", data_dir, "--runs-dir", tmp_path / "whole")
    assert code == 0, errors
    expected, full, resumed = json.loads(out)["test_loss"], 0, 0
    for mib in MIB if FULL else MIB[5:6]:
        with small_disk(tmp_path / "disk", mib * 1024) as disk:
            if disk is None:
                pytest.skip("no disk can be mounted here")
            train = ("train", *FLAGS, "--data-dir", data_dir, "--runs-dir", disk)
            code, out, errors = run_cli(*train, "--name", "a")
            if code == 0:  # it was large enough
                continue
            full += 1
            assert (code, out) == (1, "")
            line = error_line(errors)
            assert re.search(r"Error: \S+: cannot be written \(.*: it takes [\d.]+ MiB, [\d.]+ MiB are free\)", line), (
                line
            )
            run = RunFolder(disk / "a")
            subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True, capture_output=True)
            if run.last.exists() or run.previous.exists():
                code, out, errors = run_cli("train", "--resume", "a", "--runs-dir", disk, "--json")
                assert code == 0, errors
                assert json.loads(out)["test_loss"] == expected
                resumed += 1
    assert full
    tally(f"{full} full disks: one line each; {resumed} of the runs had a checkpoint and were resumed to the same end")


@pytest.mark.usefixtures("ordinary_algorithms")
def test_a_disk_full_at_any_file_is_one_line_and_the_run_resumes(tiny_data: Path, tmp_path: Path) -> None:
    config = tiny(tiny_data, deterministic=True)
    with changes_in(tmp_path / "whole", full=True) as whole:
        _, expected = train(config, runs_dir=tmp_path / "whole", name="run")
    resumed = 0
    for fatal, change in enumerate(whole.seen):
        runs = tmp_path / str(fatal)
        with changes_in(runs, fatal, full=True) as disk:
            if change.endswith(".curves.png.partial"):  # the figure is optional
                train(config, runs_dir=runs, name="run")
            else:
                with pytest.raises(FastcifarError, match=r"cannot be written \(No space left on device"):
                    train(config, runs_dir=runs, name="run")
        assert disk.died
        run = RunFolder(runs / "run")
        if run.last.exists() or run.previous.exists():
            _, metrics = train(config, runs_dir=runs, resume=run)
            assert metrics["test_loss"] == expected["test_loss"]
            resumed += 1
    assert resumed > 5
