"""The GPU kernel against the reference and torch: on a GPU if there is one, else in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined
pytest.importorskip("triton")

from fastcifar.augment.triton_kernel import TritonKernel  # noqa: E402
from fastcifar.config import AugmentConfig  # noqa: E402
from tests.test_torch_kernel import EACH_ONCE, RESAMPLED, check_pixels, check_resampled_pixels, kernel_config  # noqa: E402


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


@pytest.mark.slow
def test_it_compiles_for_a_gpu_without_one() -> None:
    """The interpreter accepts what the compiler rejects. In another process: here kernels are interpreted."""
    code = """if True:
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource, compile
        from fastcifar.augment.triton_kernel import _augment
        usual = dict(H=32, W=32, PADDING=4, REFLECT=False, ROTATES=False, COLOURS=False, HOLES=1, NORMALISES=True,
                     BFLOAT=False, PLANAR=False, BLOCK=1024)
        for out, changes in (("*fp32", {}), ("*u16", {"BFLOAT": True, "REFLECT": True}),
                             ("*fp16", {"ROTATES": True, "COLOURS": True, "HOLES": 2, "PLANAR": True}),
                             ("*u8", {"NORMALISES": False, "HOLES": 0, "COLOURS": True})):
            known = {**usual, **changes}
            types = dict(data="*u8", offsets="*i64", indices="*i64", moves="*i32", holes="*i32", constants="*fp32")
            types["out"] = out
            places = {(_augment.arg_names.index(name),): value for name, value in known.items()}
            source = ASTSource(_augment, {**types, **dict.fromkeys(known, "constexpr")}, places)
            made = compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False})
            assert "fma" not in made.asm["ptx"]
            print(out)
    """
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert answer.stdout.split() == ["*fp32", "*u16", "*fp16", "*u8"], answer.stderr
