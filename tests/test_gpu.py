"""What users do, on a GPU: trainings of each kind, resumed, tested, explained. `make gpu` runs these tests."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fastcifar.augment.kernel import make_kernel
from fastcifar.cli import main
from fastcifar.config import AugmentConfig
from fastcifar.errors import Stopped
from fastcifar.loaders import missing_part
from fastcifar.training import RunFolder, train
from tests.test_torch_kernel import kernel_config
from tests.tiny import Interrupts, tiny

DEVICE = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("ordinary_algorithms")]


@pytest.fixture(scope="module")
def trained(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with the network `small`. Not to be written to."""
    config = tiny(tiny_data, model="small", device=DEVICE)
    return train(config, runs_dir=tmp_path_factory.mktemp("runs"))[0]


def test_the_kernel_is_compiled_for_the_gpu() -> None:
    """A missing compiler would leave torch operations in its place, with a warning."""
    kernel = make_kernel(kernel_config(AugmentConfig(), (32, 32, 3), device=torch.device(DEVICE)))
    assert type(kernel).__name__ == "TritonKernel"


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of torch 2.11 itself, when it compiles
@pytest.mark.parametrize(
    "settings",
    [
        {"amp": "bf16"},
        {"amp": "fp16", "clip_norm": 1.0, "ema": 0.9},
        {"amp": "off", "optimizer": "adamw", "l1": 1e-4},
        {"model": "small", "optimizer": "muon", "unit_filters": True, "progressive": [[24, 0.5]], "tta": "flip-shift"},
        {"model": "small", "optimizer": "muon", "amp": "fp16"},
        {"model": "resnet18", "deterministic": True},
        {"model": "resnet18", "norm": "layer", "epochs": 1},
        {"mixup": 0.2, "cutmix": 1.0, "rotate_degrees": 15.0, "hue_shift": 9, "contrast": 0.1, "label_smoothing": 0.1},
        {"class_weights": "balanced", "sampler": "balanced"},
        {"lr": "auto"},
        {"compile": True},
        {"loader": "albumentations"},
        {"loader": "ffcv"},
    ],
    ids=str,
)
def test_a_training_of_each_kind(tiny_data: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    if (reason := missing_part(settings.get("loader", "resident"))) is not None:
        pytest.skip(str(reason))
    if settings.get("amp") == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bfloat16")
    _, metrics = train(tiny(tiny_data, device=DEVICE, **settings), runs_dir=tmp_path)
    assert np.isfinite(metrics["test_loss"])


def test_a_stopped_run_resumes_to_the_same_weights(tiny_data: Path, tmp_path: Path) -> None:
    config = tiny(tiny_data, device=DEVICE, batch_size=2, epochs=2, deterministic=True)  # 70 steps
    whole, _ = train(config, runs_dir=tmp_path, name="whole")
    with pytest.raises(Stopped):
        train(config, runs_dir=tmp_path, name="cut", reporter=Interrupts(40, signal.SIGINT))  # a GPU reports every 20th
    cut = RunFolder(tmp_path / "cut")
    train(cut.read_config(), resume=cut)
    weights = [torch.load(run.last, weights_only=True, map_location="cpu")["model"] for run in (whole, cut)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_cpu_and_gpu_score_alike(trained: RunFolder, tiny_data: Path) -> None:
    scores = []
    for device in ("cpu", DEVICE):
        command = ["eval", str(trained.path), "--data-dir", str(tiny_data), "--device", device, "--json"]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
        scores.append(json.loads(result.stdout))
    assert scores[0]["loss"] == pytest.approx(scores[1]["loss"], abs=0.05)


@pytest.mark.parametrize(
    "command",
    [
        ["explain", "RUN", "--n", "2"],
        ["lr-find", "--model", "small", "--steps", "20", "--batch-size", "20"],
        ["bench", "--no-steps", "--batch-size", "20"],
    ],
    ids=lambda command: command[0],
)
def test_commands_work_on_the_gpu(
    trained: RunFolder, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    words = [str(trained.path) if word == "RUN" else word for word in command]
    options = ["--data-dir", str(tiny_data), "--device", DEVICE]
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, [*words, *options])
    assert result.exit_code == 0, result.output
