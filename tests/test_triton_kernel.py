"""The GPU kernel against the reference and torch: on a GPU if there is one, else in Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined
pytest.importorskip("triton")

from benchmarks import triton_code  # noqa: E402
from fastcifar.augment import triton_kernel, triton_mixing  # noqa: E402
from fastcifar.augment.triton_kernel import TritonKernel  # noqa: E402
from fastcifar.config import AugmentConfig  # noqa: E402
from tests.test_torch_kernel import (  # noqa: E402
    EACH_ONCE,
    EVERY_VALUE,
    RESAMPLED,
    TONE,
    check_every_value,
    check_pixels,
    check_resampled_pixels,
    kernel_config,
)

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []


@pytest.mark.parametrize(("augment", "shape", "num", "dtype", "channels_last"), EACH_ONCE)
def test_same_pixels_as_the_reference(
    augment: AugmentConfig, shape: tuple[int, int, int], num: int, dtype: torch.dtype, channels_last: bool
) -> None:
    config = kernel_config(augment, shape, dtype=dtype, channels_last=channels_last, device=DEVICE)
    check_pixels(TritonKernel(config), config, num)


@pytest.mark.parametrize(("augment", "shape", "num"), RESAMPLED)
def test_resampled_pixels_are_within_a_grey_level_of_the_reference_and_equal_to_torchs(
    augment: AugmentConfig, shape: tuple[int, int, int], num: int
) -> None:
    config = kernel_config(augment, shape, dtype=torch.uint8, device=DEVICE)
    check_resampled_pixels(TritonKernel(config), config, num)


def test_brightness_and_contrast_of_every_value() -> None:
    check_every_value(TritonKernel(kernel_config(TONE, EVERY_VALUE, dtype=torch.uint8, device=DEVICE)))


def test_without_a_compiler_the_kernels_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCompiler:
        def __getitem__(self, grid: tuple[int]) -> Any:
            raise RuntimeError("Failed to find C compiler.\nSet CC")

    monkeypatch.setattr(triton_kernel, "_write_zero", NoCompiler())
    triton_kernel.require_launch.cache_clear()
    config = kernel_config(AugmentConfig(), (8, 8, 3), device=DEVICE)
    try:
        for make in (TritonKernel, triton_mixing.TritonMixer):
            with pytest.raises(ImportError, match="cannot compile a kernel here: Failed to find C compiler. Set CC"):
                make(config)
    finally:
        triton_kernel.require_launch.cache_clear()


def compiled(*arguments: str) -> list[dict[str, Any]]:
    """The rows of benchmarks.triton_code, without estimates. In another process: here kernels are interpreted."""
    command = [sys.executable, "-m", "benchmarks.triton_code", "--no-save", "--json", *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert answer.returncode == 0, answer.stderr
    return [row for row in json.loads(answer.stdout) if "estimate" not in row["name"]]


@pytest.mark.slow
def test_the_kernels_compile_for_every_generation_of_gpus_without_one() -> None:
    """The interpreter accepts what the compiler rejects. No loop, no spill, nothing fused (it would change the bits);
    loads are of pixels and of what is drawn for the image, not of constants; stores are as wide as they can be."""
    rows = compiled("--case", "bfloat16", "--case", "float32", "--case", "float32, planar", "--case", "mixing")
    assert [row["target"] for row in rows] == [f"sm_{n}" for n in (75, 80, 86, 90, 100, 120) for _ in range(4)]
    for row in rows:
        assert (row["local_bytes"], row["local_accesses"], row["fused_multiply_adds"], row["branches"]) == (0,) * 4, row
        assert set(row["stores"]) == {"16"}, row
        if row["name"] != "mixing":
            assert row["loads"]["1"] == row["values"], row
            assert sum(row["loads"].values()) <= row["values"] + 9, row
            assert row["registers"] <= 48, row  # 10 blocks of 128 threads fit into a multiprocessor
            assert row["instructions_per_pixel"] <= (85 if "planar" in row["name"] else 115), row


@pytest.mark.slow
def test_what_is_used_less_compiles_too() -> None:
    cases = ("float16, planar, everything", "uint8", "float16", "bfloat16, brightness and contrast")
    rows = compiled("--target", "90", *(word for case in cases for word in ("--case", case)))
    for row in rows:
        assert (row["local_bytes"], row["fused_multiply_adds"], row["branches"]) == (0, 0, 0), row
    loads = [row["loads"]["1"] for row in rows]
    assert loads == [3 * 4 * 8, 8, 8, 8]  # for 8 values; the first: three channels of four neighbours


@pytest.mark.parametrize("target", ["7", "-5", "60"])
def test_code_for_a_gpu_that_the_kernels_are_not_for_is_a_usage_error(target: str) -> None:
    result = CliRunner().invoke(triton_code.main, ["--no-save", "--target", target])
    assert result.exit_code == 2
    assert "Invalid value for '--target'" in result.stderr


@pytest.mark.slow
def test_code_for_a_gpu_that_does_not_exist_is_a_usage_error() -> None:
    command = [sys.executable, "-m", "benchmarks.triton_code", "--no-save", "--case", "mixing", "--target", "76"]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert answer.returncode == 2
    assert answer.stderr.splitlines()[-1] == "Error: --target: Triton cannot compile for one of 76"


def test_code_is_not_read_in_the_interpreter() -> None:
    if DEVICE.type == "cuda":
        pytest.skip("kernels are compiled here")
    result = CliRunner().invoke(triton_code.main, ["--no-save"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "TRITON_INTERPRET is set, which replaces the compiler; unset it" in result.stderr
