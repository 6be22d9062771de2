"""The commands of docs/distributed.md for two machines, as two launches of torchrun that meet on one machine.

Each starts two processes.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fastcifar.cli import main
from fastcifar.training import RunFolder

PAGE = Path(__file__).parents[1] / "docs" / "distributed.md"
LIMIT_S = 300


def launches() -> list[str]:
    """The lines of the page that name a machine."""
    lines = [line.strip() for line in PAGE.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line.startswith("torchrun --nnodes")]


@pytest.mark.slow
def test_two_launches_that_meet_train_as_one_process_does(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ordinary_algorithms: None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = ["--model", "resnet18", "--norm", "group", "--batch-size", "20", "--max-steps", "2", "--val-size", "0"]
    flags += ["--amp", "off", "--deterministic", "--data-dir", str(data_dir)]
    processes = []
    for line in launches():
        words = ["--nproc-per-node", "2", *shlex.split(line.replace("first:29500", f"localhost:{port}"))[1:]]
        command = [sys.executable, "-m", "torch.distributed.run", *words, *flags, "--name", "both"]
        with (tmp_path / f"{len(processes)}.log").open("w") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
    assert len(processes) == 2
    try:
        codes = [process.wait(LIMIT_S) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    logs = [(tmp_path / f"{number}.log").read_text() for number in range(2)]
    assert codes == [0, 0], "\n".join(logs)
    assert ["run folder" in log for log in logs].count(True) == 1  # rank 0 alone prints
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["both"]
    result = CliRunner().invoke(main, ["train", *flags, "--name", "one"])
    assert result.exit_code == 0, result.output
    both, one = (RunFolder(tmp_path / "runs" / name) for name in ("both", "one"))
    assert "4 processes" in both.log.read_text()
    states = [torch.load(run.last, weights_only=True)["model"] for run in (one, both)]
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-4, atol=1e-4)
    with np.load(both.predictions) as arrays:
        assert arrays["indices"].tolist() == list(range(200))
