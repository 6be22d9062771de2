"""What other people's environments bring along: variables, torch's defaults, encodings, limits of control groups."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fastcifar import AugmentConfig, make_loader
from fastcifar.cli import main
from fastcifar.cli.output import log_to_stderr
from fastcifar.cli.program import OPENMP, _prepare_streams
from fastcifar.config import TrainConfig
from fastcifar.converters import convert
from fastcifar.converters.synthetic import source as synthetic_source
from fastcifar.errors import FastcifarError, UsageError
from fastcifar.inference.evaluation import evaluate_run
from fastcifar.system.cpus import OtherLoad, _cpuinfo, available_cpus
from fastcifar.training import train
from fastcifar.training.device import CpuThreads, choose_amp, choose_threads, standard_torch_defaults
from fastcifar.training.distributed import Distributed
from fastcifar.training.progress import Progress, TimeLeft
from tests.test_loaders import LOADERS, needs_ffcv

ROTATED = AugmentConfig(
    crop_padding=4, cutout_size=8, rotate_degrees=15.0, hue_shift=20, saturation_shift=10, contrast=0.1
)


# ---- variables ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variables",
    [{"RANK": "16"}, {"RANK": "x", "WORLD_SIZE": "1"}, {"LOCAL_RANK": "3", "WORLD_SIZE": ""}, {"WORLD_SIZE": "0"}],
)
def test_a_process_is_alone_unless_world_size_is_above_1(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    alone = Distributed.from_environment()
    assert (alone.rank, alone.world_size, alone.local_rank) == (0, 1, 0)


def test_world_size_without_the_rest_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UsageError, match="WORLD_SIZE is '4', RANK is '', .*torchrun, .* or unset WORLD_SIZE"):
        Distributed.from_environment()


def test_a_left_over_rank_hides_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "16")
    result = CliRunner().invoke(main, ["train", "--lr", "abc"])
    assert (result.exit_code, result.stderr.count("Error: ")) == (2, 1)


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [("DISABLE_JIT", True, "NUMBA_DISABLE_JIT is set"), ("NUM_THREADS", None, "Numba failed: ")],
)
def test_a_numba_that_cannot_compile_leaves_the_pixels_to_torch(
    variable: str, value: Any, reason: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    import numba

    expected = next(iter(make_loader(data_dir / "train.beton", batch_size=4))).images
    if value is None:  # what a wrong variable does to `import numba`
        monkeypatch.setattr("importlib.import_module", _raising(ValueError("NUMBA_NUM_THREADS is 0")))
    else:
        monkeypatch.setattr(numba.config, variable, value)
    images = next(iter(make_loader(data_dir / "train.beton", batch_size=4))).images
    assert torch.equal(images, expected)
    assert reason in caplog.text


@needs_ffcv
def test_a_numba_that_cannot_compile_decodes_no_jpeg_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    with synthetic_source(40, 20) as images:
        convert(images, tmp_path, jpeg_quality=90)
    monkeypatch.setattr(numba.config, "DISABLE_JIT", True)
    with pytest.raises(FastcifarError, match="JPEG images cannot be decoded .NUMBA_DISABLE_JIT is set; unset it"):
        make_loader(tmp_path / "train.beton", batch_size=4, loader="ffcv")


def _raising(error: Exception) -> Any:
    def function(*args: object) -> None:
        raise error

    return function


@pytest.mark.slow
def test_a_numba_that_refuses_its_variables_is_one_line(tmp_path: Path) -> None:
    env = {**os.environ, "NUMBA_NUM_THREADS": "0"}
    code = "from fastcifar.loaders import missing_part; print(missing_part('ffcv', 'jpeg'))"
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("JPEG images cannot be decoded (Numba failed: ")
    assert "Number of threads specified must be > 0" in result.stdout


@pytest.mark.slow
def test_idle_threads_sleep(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name not in OPENMP}
    command = [sys.executable, "-m", "fastcifar", "report", "nosuch"]
    env["OMP_DISPLAY_ENV"] = "TRUE"
    shown = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in shown.stderr
    own = subprocess.run(command, env=env | {"OMP_WAIT_POLICY": "ACTIVE"}, capture_output=True, text=True, cwd=tmp_path)
    assert "OMP_WAIT_POLICY = 'ACTIVE'" in own.stderr


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8", "cp037"])
def test_what_a_stream_cannot_encode_is_replaced(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding, errors="strict"))
    _prepare_streams()
    print("… \ud800", flush=True, end="")  # noqa: T201
    assert raw.getvalue().decode(encoding) == ("… ?" if encoding == "utf-8" else "? ?")


# ---- torch's defaults --------------------------------------------------------------------------------------------


@pytest.fixture
def torch_defaults() -> Any:
    """Puts torch's defaults back."""
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


def set_dtype(dtype: torch.dtype) -> AbstractContextManager[None]:
    torch.set_default_dtype(dtype)
    return nullcontext()


def set_device() -> AbstractContextManager[None]:
    torch.set_default_device("meta")  # any other than the CPU would do
    return nullcontext()


DEFAULTS = {
    "float64": lambda: set_dtype(torch.float64),
    "float16": lambda: set_dtype(torch.float16),
    "device": set_device,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "numpy_errors": lambda: np.errstate(all="raise"),
}


@pytest.mark.parametrize("loader", [*LOADERS, "torch"])
@pytest.mark.parametrize("default", ["float64", "device"])
@pytest.mark.usefixtures("torch_defaults")
def test_the_defaults_of_torch_change_no_batch(
    default: str, loader: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if loader == "torch":
        monkeypatch.setattr("fastcifar.augment.kernel.numba_module", _raising(ImportError("none")))
        loader = "resident"

    def batch() -> Any:
        made = make_loader(data_dir / "train.beton", ROTATED, batch_size=8, loader=loader)
        try:
            return next(iter(made))
        finally:
            made.close()

    expected = batch()
    with DEFAULTS[default]():
        got = batch()
    assert [tensor.dtype for tensor in got] == [tensor.dtype for tensor in expected]
    assert all(map(torch.equal, got, expected))


@pytest.fixture(scope="module")
def losses(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[float, ...]:
    return trained(data_dir, tmp_path_factory.mktemp("plain"))


def trained(data_dir: Path, runs_dir: Path) -> tuple[float, ...]:
    settings: dict[str, Any] = {
        "model": "small",
        "lr": 0.03,
        "batch_size": 100,
        "epochs": 1,
        "max_steps": 1,
        "ema": 0.5,
    }
    config = TrainConfig.from_settings(**settings, data_dir=str(data_dir), val_size=100, device="cpu")
    run, metrics = train(config, runs_dir=runs_dir)
    scores = evaluate_run(run, split="test", tta="flip", data_dir=None, device="cpu", trusted=None).metrics
    return metrics["test_loss"], metrics["best"]["val_loss"], scores.loss


@pytest.mark.slow
@pytest.mark.parametrize("default", list(DEFAULTS))
@pytest.mark.usefixtures("torch_defaults")
def test_the_defaults_of_torch_change_no_training(
    default: str, data_dir: Path, tmp_path: Path, losses: tuple[float, ...]
) -> None:
    with DEFAULTS[default]():
        in_force = torch.get_default_dtype()
        assert trained(data_dir, tmp_path) == losses
        assert torch.get_default_dtype() is in_force


# ---- CPUs --------------------------------------------------------------------------------------------------------


def group(root: Path, folder: str, **files: str) -> None:
    path = root / "sys/fs/cgroup" / folder
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text)


@pytest.mark.parametrize(
    ("line", "folder", "files", "expected"),
    [
        ("0::/a/b\n", "a/b", {"cpu__max": "150000 100000\n"}, 2),
        ("0::/a/b\n", "a", {"cpu__max": "50000 100000\n"}, 1),  # the limit of a group above
        ("0::/a/b\n", ".", {"cpu__max": "300000 100000\n"}, 3),
        ("0::/a/b\n", "a/b", {"cpu__max": "max 100000\n"}, 8),
        ("3:cpu,cpuacct:/docker/x\n", "cpu", {"cpu__cfs_quota_us": "200000", "cpu__cfs_period_us": "100000"}, 2),
        ("3:cpu,cpuacct:/x\n", "cpu/x", {"cpu__cfs_quota_us": "-1", "cpu__cfs_period_us": "100000"}, 8),
        ("3:cpu,cpuacct:/x\n", "cpu/x", {"cpu__cfs_quota_us": "not a number"}, 8),
        (None, ".", {}, 8),
    ],
)
def test_the_limits_of_control_groups_bound_the_threads(
    line: str | None, folder: str, files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    if line is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(line)
    group(tmp_path, folder, **files)
    assert available_cpus(tmp_path) == expected


@pytest.mark.parametrize(
    ("vendor", "flags", "amp"),
    [
        ("GenuineIntel", "avx2 avx512_bf16 amx_bf16 avx512_fp16", "bf16"),
        ("GenuineIntel", "avx2 avx512_bf16 avx512_fp16", "off"),  # Emerald Rapids in a virtual machine: 0.7 of float32
        ("GenuineIntel", "avx2 avx512_bf16", "bf16"),
        ("AuthenticAMD", "avx2 avx512_bf16", "bf16"),  # an EPYC: 2.1 of float32
        ("AuthenticAMD", "avx2 avx512_bf16 avx512_fp16", "bf16"),
        ("AuthenticAMD", "avx2", "off"),
        ("", "", "off"),
    ],
)
def test_the_precision_of_a_cpu_is_its_faster_one(
    vendor: str, flags: str, amp: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [f"vendor_id\t: {vendor}", f"flags\t\t: {flags}", "vmx flags\t: amx_bf16"] if vendor else []
    monkeypatch.setattr("fastcifar.system.cpus.read_lines", lambda path: lines)
    _cpuinfo.cache_clear()
    try:
        assert choose_amp(torch.device("cpu"), "auto") == amp
        assert choose_amp(torch.device("cpu"), "bf16") == "bf16"
        assert ("--amp bf16 on this CPU can be many times slower" in caplog.text) == (amp == "off")
    finally:
        _cpuinfo.cache_clear()


@pytest.mark.parametrize(("is_initialized", "before"), [(True, 2), (False, 0)])
def test_the_current_gpu_of_the_caller_is_restored(
    is_initialized: bool, before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    current, used = [before], [is_initialized]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: used[0])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: current.__setitem__(0, index))
    with standard_torch_defaults():
        used[0], current[0] = True, 1
    assert current == [before]


def test_threads_are_those_asked_for_or_no_more_than_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        choose_threads(3)
        assert torch.get_num_threads() == 3
        monkeypatch.setattr("fastcifar.training.device.available_cpus", lambda: 2)
        choose_threads(None)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("own_niceness", [0, 10])
def test_other_processes_are_seen_and_niced_ones_are_not(own_niceness: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def now(seconds: float, user: int, nice: int, own: float) -> None:
        busy = f"{user} {nice} 0 900 0 0 0 0"
        text = f"cpu {2 * user} 0 0 0\ncpu0 {busy}\ncpu1 {busy}\ncpu2 9999 0 0 0 0 0 0 0\n"
        monkeypatch.setattr("fastcifar.system.cpus.Path.read_text", lambda self, **kind: text)
        monkeypatch.setattr("fastcifar.system.cpus.time.monotonic", lambda: seconds)
        monkeypatch.setattr(os, "times", lambda: os.times_result((own, 0.0, 0.0, 0.0, 0.0)))

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    monkeypatch.setattr(os, "getpriority", lambda which, pid: own_niceness)
    now(0.0, user=0, nice=0, own=0.0)
    load = OtherLoad()
    assert load.cpus() is None  # too early to say
    others = 1_000 if own_niceness == 0 else 400  # of 20 CPU seconds we had 12: as `user`, or as `nice`
    now(10.0, user=others, nice=5_000, own=12.0)
    assert load.cpus() == pytest.approx(0.8)


def test_the_time_left_follows_the_pace_of_the_last_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("fastcifar.training.progress.time.monotonic", lambda: clock[0])
    config = TrainConfig.from_settings(max_steps=400, progressive=((16, 0.5),))
    left = TimeLeft(config, 400, 200, (32, 32, 3))
    assert left.seconds(Progress()) == 0.0

    def steps(begin: int, end: int, seconds: float) -> float:
        left.start()
        for step in range(begin, end):
            clock[0] += seconds
            left.step(step)
        return left.seconds(Progress(step=end))

    assert steps(0, 100, 1.0) == pytest.approx(100 * 1.0 + 200 * 4.0)  # full images are four times the work
    clock[0] += 500.0  # a validation: `start` leaves it out
    training_s = steps(100, 200, 0.5)
    assert training_s == pytest.approx(200 * 2.0, rel=0.05)
    left.validation_s = 7.0
    assert left.seconds(Progress(step=200)) == pytest.approx(training_s + 2 * 7.0)


# ---- waiting for others, sharing CPUs with others ----------------------------------------------------------------


@pytest.mark.slow
def test_a_process_that_waits_for_others_says_so_and_can_be_stopped() -> None:
    env = {**os.environ, "WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    env.pop("TORCHELASTIC_RUN_ID", None)
    code = (
        "import logging, signal, torch; logging.basicConfig(); signal.signal(signal.SIGTERM, lambda *a: None)\n"
        "from fastcifar.training.distributed import Distributed\n"
        "with Distributed.from_environment().connect(torch.device('cpu')):\n"
        "    pass"
    )
    ended = None
    with subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        while ended is None:  # until it waits, its own handler, which does nothing, takes the signal
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                ended = process.wait(timeout=0.2)
    assert "process 0 of 2 waits for the others at 127.0.0.1:0; to train in one process, unset WORLD_SIZE" in line
    assert ended == -15


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_log_that_cannot_be_written_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    full = FullDisk()
    monkeypatch.setattr(sys, "stderr", full)
    with log_to_stderr():
        logging.getLogger("fastcifar").warning("lost")
    assert sys.stderr is not full
    sys.stderr.close()


def test_threads_give_way_to_busy_processes_and_come_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock, load = [0.0], [0.0]
    monkeypatch.setattr("fastcifar.training.device.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(OtherLoad, "cpus", lambda self: load[0])
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    own, changes = CpuThreads(), [(2, 0.4, 2), (2, 0.9, 1), (2, 2.0, 1), (2, 0.1, 2), (64, 30.0, 2), (64, 63.0, 1)]
    try:
        for num_cpus, busy, threads in changes:
            monkeypatch.setattr("fastcifar.training.device.affinity_cpus", lambda num_cpus=num_cpus: num_cpus)
            load[0] = busy
            own.after_step()  # too early: nothing changes
            clock[0] += 6.0
            with caplog.at_level(logging.INFO, "fastcifar"):
                own.after_step()
            assert torch.get_num_threads() == threads, (num_cpus, busy)
        assert len(caplog.records) == 3
        assert "other processes keep 0.9 of 2 CPUs busy: training with 1 thread\n" in caplog.text
        own.close()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_checkpoint_does_not_blame_the_threads_that_gave_way(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = TrainConfig.from_settings(data_dir=str(data_dir), model="small", batch_size=50, max_steps=2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(CpuThreads, "after_step", lambda self: torch.set_num_threads(1))
    try:
        run, _ = train(config, runs_dir=tmp_path)
        assert torch.load(run.last, weights_only=True)["environment"]["number of threads"] == 2
        train(config.with_settings(max_steps=3), runs_dir=tmp_path, resume=run)
        assert "number of threads" not in caplog.text
    finally:
        torch.set_num_threads(before)
