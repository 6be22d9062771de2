"""Two runs never share a folder; an old run is never overwritten."""

from __future__ import annotations

import csv
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fastcifar.errors import FastcifarError
from fastcifar.training import RunFolder, train
from tests.trust.cases import LONGEST_S, contents, count, error_line, run_cli, soak_only, start

EPOCHS, MORE = 2, 5
QUICK = ("--model", "small", "--batch-size", 200, "--epochs", EPOCHS)


def epochs_of(run: RunFolder) -> list[int]:
    return [int(row["epoch"]) for row in csv.DictReader(run.results.read_text().splitlines())]


@pytest.mark.slow
def test_two_runs_of_one_name_get_two_folders(data_dir: Path, tmp_path: Path, tally: Callable[[str], None]) -> None:
    num = count(1, 20)
    for i in range(num):
        both = [
            start("train", *QUICK, "--data-dir", data_dir, "--runs-dir", tmp_path, "--name", f"a{i}", "--seed", seed)
            for seed in (0, 1)
        ]
        for process in both:
            _, errors = process.communicate(timeout=LONGEST_S)
            assert process.returncode == 0, errors
        runs = [RunFolder(tmp_path / name) for name in (f"a{i}", f"a{i}-2")]
        assert [epochs_of(run) for run in runs] == [list(range(1, EPOCHS + 1))] * 2
        assert {run.read_config().seed for run in runs} == {0, 1}
        assert all(run.metrics.is_file() for run in runs)
    assert len(list(tmp_path.iterdir())) == 2 * num
    tally(f"{num} times two runs of one name: two folders, each whole")


@soak_only
@pytest.mark.slow
def test_two_processes_do_not_resume_the_same_run(data_dir: Path, tmp_path: Path, tally: Callable[[str], None]) -> None:
    num, refused = count(1, 10), 0
    code, _, errors = run_cli("train", *QUICK, "--data-dir", data_dir, "--runs-dir", tmp_path, "--name", "begun")
    assert code == 0, errors
    for i in range(num):
        shutil.copytree(tmp_path / "begun", tmp_path / f"b{i}")
        resume = ("train", "--resume", f"b{i}", "--runs-dir", tmp_path, "--epochs", EPOCHS + MORE)
        both = [start(*resume) for _ in range(2)]
        codes = []
        for process in both:
            _, errors = process.communicate(timeout=LONGEST_S)
            codes.append(process.returncode)
            if process.returncode:
                assert "another process is training this run" in error_line(errors)
        assert sorted(codes) in ([0, 0], [0, 1])  # both, if the second began when the first had ended
        refused += codes != [0, 0]
        assert epochs_of(RunFolder(tmp_path / f"b{i}")) == list(range(1, EPOCHS + MORE + 1))
    assert refused
    tally(f"{num} times two that resumed one run: {refused} times one was refused, never a row twice")


def test_a_run_that_another_process_trains_is_not_resumed(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "a", tmp_path / "a")
    run, before = RunFolder(tmp_path / "a"), contents(tmp_path / "a")
    more = run.read_config().with_settings(epochs=2)
    taken = os.open(run.path, os.O_RDONLY)
    try:
        fcntl.flock(taken, fcntl.LOCK_EX)  # of another opening of the folder: it counts as another process's
        with pytest.raises(FastcifarError, match=r"/a: another process is training this run; wait for it to end$"):
            train(more, resume=run)
        assert contents(tmp_path / "a") == before
    finally:
        os.close(taken)
    train(more, resume=run)
    assert epochs_of(run) == [1, 2]


@soak_only
def test_an_old_run_stays_as_it_is(data_dir: Path, tmp_path: Path) -> None:
    command = ("train", *QUICK, "--data-dir", data_dir, "--runs-dir", tmp_path, "--name", "a", "--max-steps", 1)
    assert f"{tmp_path}/a\n" in run_cli(*command)[1]
    before = contents(tmp_path / "a")
    assert f"{tmp_path}/a-2\n" in run_cli(*command)[1]
    assert contents(tmp_path / "a") == before
