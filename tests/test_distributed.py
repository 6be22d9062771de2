"""Several processes: the same batches, the same weights, one that writes, and no deadlock."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from fastcifar.config import AugmentConfig
from fastcifar.errors import UsageError
from fastcifar.loaders import make_loader, missing_part
from fastcifar.training import RunFolder
from fastcifar.training.distributed import Distributed, _average_each
from fastcifar.training.sync_norm import SyncBatchNorm2d, convert_sync_batchnorm
from tests.workers import WorkerGroup, worker_group

LIMIT_S = 300


@pytest.mark.parametrize("loader", ["resident", "ffcv", "albumentations"])
@pytest.mark.parametrize("count", [2, 4])
def test_slices_of_all_ranks_are_the_batch(data_dir: Path, loader: str, count: int) -> None:
    if (missing := missing_part(loader)) is not None:
        pytest.skip(str(missing))
    augment = AugmentConfig(rotate_degrees=10)

    def batches(rank: int, world_size: int) -> list[tuple[torch.Tensor, ...]]:
        ranks = {"rank": rank, "world_size": world_size}
        rank_loader = make_loader(data_dir / "train.beton", augment, loader=loader, batch_size=40, seed=3, **ranks)
        try:
            return list(rank_loader.epoch(1, start=10))
        finally:
            rank_loader.close()

    whole = batches(0, 1)
    parts = [batches(rank, count) for rank in range(count)]
    assert len(whole) == 5
    for number, batch in enumerate(whole):
        for column, expected in enumerate(batch):
            assert torch.equal(torch.cat([part[number][column] for part in parts]), expected)


def test_a_batch_size_that_cannot_be_divided_is_refused(data_dir: Path) -> None:
    with pytest.raises(UsageError, match="batch_size is 41 over 2 processes; expected a multiple of 2"):
        make_loader(data_dir / "train.beton", batch_size=41, rank=0, world_size=2)
    with pytest.raises(UsageError, match=r"rank is 2; expected 0\.\.1"):
        make_loader(data_dir / "train.beton", batch_size=40, rank=2, world_size=2)


def test_shards_have_no_padding() -> None:
    indices = np.arange(11)
    shards = [Distributed(rank, 4).shard(indices) for rank in range(4)]
    assert np.concatenate(shards).tolist() == indices.tolist()
    assert max(map(len, shards)) - min(map(len, shards)) == 1


@pytest.mark.parametrize(("rank", "count"), [("2", "2"), ("-1", "2"), ("one", "2"), ("0", "two")])
def test_a_wrong_environment_is_refused(rank: str, count: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", count)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(UsageError, match="torchrun"):
        Distributed.from_environment()


@pytest.mark.parametrize("port", ["abc", "-1", "70000"])
def test_a_wrong_port_is_refused(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="MASTER_PORT is .*torchrun"):
        Distributed.from_environment()


# ---- several processes: a group that stays, and torchrun itself -------------------------------------------------


@pytest.fixture(scope="module")
def group() -> Iterator[WorkerGroup]:
    with worker_group(3) as workers:
        yield workers


def torchrun(count: int, *args: object) -> subprocess.Popen[str]:
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m"]
    command = [*program, "--", "fastcifar", "train", *map(str, args)]  # as docs/distributed.md says for --log
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    try:
        return process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        _, errors = process.communicate()
        pytest.fail(f"still running after {LIMIT_S} s: {errors}")


def flags(data_dir: Path, runs_dir: Path, name: str, **more: Any) -> list[object]:
    settings = {"model": "small", "batch-size": 100, "amp": "off", "lr": 0.02, **more}
    pairs = [word for key, value in settings.items() for word in (f"--{key}", value)]
    return [*pairs, "--data-dir", data_dir, "--runs-dir", runs_dir, "--name", name, "--deterministic"]


@pytest.mark.slow
def test_two_processes_train_as_one_does(data_dir: Path, tmp_path: Path, group: WorkerGroup) -> None:
    arguments = [[*flags(data_dir, tmp_path, f"of{i}", epochs=2, lr=0.005), "--sync-bn", "--json"] for i in (1, 2)]
    ((code, out, errors),) = group.run(1, "train", *arguments[0])
    assert code == 0, errors
    runs = {1: json.loads(out)}
    pytest.importorskip("tensorboard")
    out, errors = ended(process := torchrun(2, *arguments[1], "--log", "tensorboard"))
    assert process.returncode == 0, errors
    assert len(out.strip().splitlines()) == 1  # only rank 0 prints
    runs[2] = json.loads(out)
    one, two = (RunFolder(Path(runs[count]["run"])) for count in (1, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["of1", "of2"]  # only rank 0 writes
    assert runs[2]["processes"] == 2
    assert len(list((two.path / "tensorboard").glob("events.*"))) == 1  # of rank 0
    weights = [torch.load(run.last, weights_only=True)["model"] for run in (one, two)]
    for key, value in weights[0].items():  # torch sums its own statistics in float32, to 1e-4, and it adds up
        torch.testing.assert_close(weights[1][key], value, rtol=1e-2, atol=1e-2)
    rows = [list(csv.DictReader(run.results.read_text().splitlines())) for run in (one, two)]
    for row, other in zip(*rows, strict=True):
        for key in ("epoch", "train_loss", "val_loss", "val_accuracy"):
            assert float(row[key]) == pytest.approx(float(other[key]), rel=1e-3)
    with np.load(two.predictions) as arrays:
        assert arrays["indices"].tolist() == list(range(200))  # each test image once, in order
    calibrations = [json.loads(run.calibration.read_text()) for run in (one, two)]
    assert [each["num_images"] for each in calibrations] == [60, 60]
    assert calibrations[1]["temperature"] == pytest.approx(calibrations[0]["temperature"], rel=1e-2)
    log = two.log.read_text()
    assert log.count("epoch 2/2") == 1
    assert "2 processes" in log


@pytest.mark.slow
def test_without_batch_norm_the_weights_are_those_of_one_process(
    unbalanced_dir: Path, tmp_path: Path, group: WorkerGroup
) -> None:
    settings = {"model": "resnet18", "norm": "group", "batch-size": 20, "max-steps": 3, "l1": 1e-4, "val-size": 0}
    settings |= {"class-weights": "balanced", "mixup": 0.4}
    states = []
    for count in (1, 2):
        results = group.run(count, "train", *flags(unbalanced_dir, tmp_path, f"of{count}", **settings))
        assert [code for code, _, _ in results] == [0] * count, results
        states.append(torch.load(tmp_path / f"of{count}" / "weights" / "last.pt", weights_only=True)["model"])
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_processes_measure_the_pace_together_and_agree(data_dir: Path, tmp_path: Path, group: WorkerGroup) -> None:
    for name, more in {"plain": [], "timed": ["--max-minutes", 500]}.items():
        settings = flags(data_dir, tmp_path, name, epochs=2, progressive="16:0.5")
        results = group.run(2, "train", *settings, "--sync-bn", *more)
        assert [code for code, _, _ in results] == [0, 0], results
    assert "max_minutes 500: 10 steps (2.0 epochs) at " in (tmp_path / "timed" / "log.txt").read_text()
    plain, timed = (
        torch.load(tmp_path / name / "weights" / "last.pt", weights_only=True)["model"] for name in ("plain", "timed")
    )
    for key, value in plain.items():
        assert torch.equal(timed[key], value), key


@pytest.mark.slow
def test_all_processes_start_from_the_initial_weights_and_keep_the_frozen_ones(
    data_dir: Path, tmp_path: Path, group: WorkerGroup
) -> None:
    settings: dict[str, Any] = {"max-steps": 3, "val-size": 0}
    ways = {"first": 1, "one": 1, "two": 2}
    states = {}
    for name, count in ways.items():
        results = group.run(count, "train", *flags(data_dir, tmp_path, name, **settings), "--sync-bn")
        assert [code for code, _, _ in results] == [0] * count, results
        states[name] = torch.load(tmp_path / name / "weights" / "last.pt", weights_only=True)["model"]
        settings |= {"init": tmp_path / "first", "freeze-until": "layer3"}
    for key, value in states["one"].items():
        torch.testing.assert_close(states["two"][key], value, rtol=1e-2, atol=1e-2)
        if key.startswith(("layer1", "layer2")):
            assert torch.equal(states["two"][key], states["first"][key]), key
    assert not torch.equal(states["two"]["layer3.0.weight"], states["first"]["layer3.0.weight"])


def test_sync_batch_norm_equals_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two parts of different sizes, each in a thread that stands for a process."""
    barrier, sent = threading.Barrier(2, timeout=LIMIT_S), {}

    def all_reduce(x: torch.Tensor) -> None:
        sent[threading.get_ident()] = x.clone()
        barrier.wait()
        total = torch.stack(list(sent.values())).sum(dim=0)
        barrier.wait()
        x.copy_(total)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    torch.manual_seed(0)
    images = torch.randn(6, 5, 4, 3)
    weights = torch.arange(images.numel()).view(images.shape).cos()
    whole = torch.nn.BatchNorm2d(5)
    torch.nn.init.normal_(whole.weight)
    shared = [convert_sync_batchnorm(torch.nn.Sequential(deepcopy(whole)), torch.device("cpu")) for _ in range(2)]
    assert type(shared[0][0]) is SyncBatchNorm2d  # type: ignore[index]

    def trained(model: torch.nn.Module, part: slice) -> list[list[torch.Tensor]]:
        x = images[part].clone().requires_grad_()
        y = model(x)
        (y * weights[part]).sum().backward()
        return [[y, x.grad], [p.grad for p in model.parameters()], [*model.buffers()]]

    (of_images, of_weights, buffers), parts = trained(whole, slice(None)), (slice(0, 4), slice(4, 6))
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(trained, shared, parts))
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)
    close([torch.cat(each) for each in zip(*(result[0] for result in results), strict=True)], of_images)
    close([sum(each) for each in zip(*(result[1] for result in results), strict=True)], of_weights)
    for result in results:
        close(result[2], buffers)
    close(shared[0].eval()(images), whole.eval()(images))


def test_gradients_are_divided_when_each_sum_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, a future is set when its sum is started; `wait` makes the stream wait for it."""
    gradients = torch.ones(6).split(2)
    waited = []

    class Sum(torch.futures.Future):  # type: ignore[type-arg]
        def __init__(self, gradient: torch.Tensor) -> None:
            super().__init__()
            self._gradient = gradient
            self.set_result(None)

        def wait(self) -> None:
            waited.append(self._gradient.mul_(3))

    monkeypatch.setattr(
        torch.distributed, "all_reduce", lambda gradient, async_op: Mock(get_future=lambda: Sum(gradient))
    )
    whole = gradients[0]._base
    bucket = Mock(gradients=lambda: gradients, buffer=lambda: whole)
    assert _average_each(2, bucket).wait().tolist() == [1.5] * 6
    assert len(waited) == 3


class NormAct(torch.nn.BatchNorm2d):
    """As those of timm."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_sync_batch_norm_keeps_the_activation_of_a_subclass(device: str, caplog: pytest.LogCaptureFixture) -> None:
    class OtherMomentum(torch.nn.BatchNorm2d):
        def __init__(self, channels: int) -> None:
            super().__init__(channels, momentum=0.4)

    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3), NormAct(3), OtherMomentum(3)).eval()
    converted = convert_sync_batchnorm(deepcopy(network), torch.device(device))
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(converted(images), network(images))
    expected = SyncBatchNorm2d if device == "cpu" else torch.nn.SyncBatchNorm
    assert type(converted[0]) is type(converted[2]) is expected  # type: ignore[index]
    assert "--sync-bn: 1 (NormAct) keeps its own statistics" in caplog.text


@pytest.mark.slow
def test_a_resumed_run_adds_gradients_in_the_same_order(data_dir: Path, tmp_path: Path, group: WorkerGroup) -> None:
    """With more than two processes the order of addition shows in the last bits."""

    def trained(*args: object) -> None:
        results = group.run(3, "train", *args)
        assert [code for code, _, _ in results] == [0] * 3, results
        assert not any("Warning" in errors for _, _, errors in results)  # of torch's, about how gradients are sent

    trained(*flags(data_dir, tmp_path, "whole", **{"max-steps": 4, "batch-size": 60}))
    trained(*flags(data_dir, tmp_path, "cut", **{"max-steps": 2, "batch-size": 60}))
    trained("--resume", "cut", "--runs-dir", tmp_path, "--max-steps", 4)
    whole, cut = (torch.load(tmp_path / name / "weights" / "last.pt", weights_only=True) for name in ("whole", "cut"))
    assert all(torch.equal(whole["model"][key], cut["model"][key]) for key in whole["model"])


def wait_for_results(run: RunFolder) -> None:
    """Until the run has saved."""
    deadline = time.monotonic() + LIMIT_S
    while not run.results.exists() and time.monotonic() < deadline:
        time.sleep(0.05)  # waits for another process to reach a state; no result depends on it
    assert run.results.exists()


CONNECTS = """
import os
import torch
from fastcifar.training.distributed import Distributed

counts = []
for _ in range(4):
    distributed = Distributed.from_environment()
    with distributed.connect(torch.device("cpu")):
        counts.append(len(os.listdir("/proc/self/fd")))
assert len(set(counts)) == 1, counts
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc")
def test_later_connections_open_no_sockets(tmp_path: Path) -> None:
    (tmp_path / "connects.py").write_text(CONNECTS)
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*program, str(tmp_path / "connects.py")], check=True, timeout=LIMIT_S)


@pytest.mark.slow
def test_a_signal_to_one_stops_all_at_one_step_and_they_resume(
    data_dir: Path, tmp_path: Path, group: WorkerGroup
) -> None:
    run = RunFolder(tmp_path / "stop")
    group.start(2, "train", *flags(data_dir, tmp_path, "stop", epochs=1000))
    wait_for_results(run)
    os.kill(group.pids[1], signal.SIGTERM)
    (code, _, errors), (other_code, _, other_errors) = group.results(2)
    assert code == other_code == 128 + signal.SIGTERM
    assert errors.count("stopped by SIGTERM: saved at step ") == 1
    assert not other_errors  # only rank 0 prints
    state = torch.load(run.last, weights_only=True)
    step = state["progress"]["step"]
    assert f"saved at step {step};" in errors
    assert len(state["rng"]) == 2
    resume = ["train", "--resume", "stop", "--runs-dir", tmp_path, "--max-steps", step + 1, "--json"]
    (code, out, errors), _ = group.run(2, *resume)
    assert code == 0, errors
    assert json.loads(out)["steps"] == step + 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_others_with_a_clear_line(data_dir: Path, tmp_path: Path, victim: int) -> None:
    process = torchrun(2, *flags(data_dir, tmp_path, "die", epochs=1000))
    wait_for_results(RunFolder(tmp_path / "die"))
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(ranks[victim]), signal.SIGKILL)
    _, errors = ended(process)
    assert process.returncode != 0
    assert f"Error: process {1 - victim} of 2 stopped: another process of this run has exited" in errors
