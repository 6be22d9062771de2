"""The GPU kernel against the per-image twin and torch: on a GPU if there is one, else in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined
pytest.importorskip("triton")

from fastcifar.augment import torch_kernel  # noqa: E402
from fastcifar.augment.params import sample_params  # noqa: E402
from fastcifar.augment.triton_kernel import TritonAugment  # noqa: E402
from fastcifar.config import NO_AUGMENT, AugmentConfig  # noqa: E402
from tests.reference import augment_image, normalise_image  # noqa: E402
from tests.test_numba_kernel import scattered  # noqa: E402
from tests.test_torch_kernel import CASES, MEAN, RESAMPLED, STD, random_images  # noqa: E402


def augmented(
    images: np.ndarray,
    table: np.ndarray,
    rows: np.ndarray,
    augment: AugmentConfig,
    dtype: torch.dtype,
    channels_last: bool = True,
) -> torch.Tensor:
    data, offsets = scattered(images)
    fill = torch_kernel.fill_values(augment, MEAN)
    statistics = torch_kernel.normalisation(MEAN, STD)
    kernel = TritonAugment(images.shape[1:], augment, fill, *statistics, dtype, channels_last, DEVICE)
    on_device = [torch.from_numpy(array).to(DEVICE) for array in (data, offsets, rows)]
    return kernel(*on_device, kernel.columns(table)).cpu()


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
@pytest.mark.parametrize(("augment", "shape", "num"), [*CASES, (NO_AUGMENT, (3, 4, 3), 3)])
def test_same_pixels_as_the_twin(
    augment: AugmentConfig, shape: tuple[int, int, int], num: int, dtype: torch.dtype, channels_last: bool
) -> None:
    images = random_images(num, shape)
    table = sample_params(augment, 7, 1, num, shape)
    rows = np.random.default_rng(1).permutation(num)
    got = augmented(images, table, rows, augment, dtype, channels_last)
    assert got.shape == (num, 3, *shape[:2])
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    fill = torch_kernel.fill_values(augment, MEAN)
    for image, row in zip(got, rows, strict=True):
        expected = augment_image(images[row], table[row], augment, fill)
        if dtype == torch.uint8:
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)
        else:  # bit for bit
            assert torch.equal(image, torch.from_numpy(normalise_image(expected, MEAN, STD)).to(dtype))


@pytest.mark.parametrize(("augment", "shape", "num"), RESAMPLED)
def test_resampled_pixels_are_within_a_grey_level_of_the_twin_and_equal_to_torchs(
    augment: AugmentConfig, shape: tuple[int, int, int], num: int
) -> None:
    images = random_images(num, shape)
    table = sample_params(augment, 2, 5, num, shape)
    got = augmented(images, table, np.arange(num), augment, torch.uint8).permute(0, 2, 3, 1).numpy()
    fill = torch_kernel.fill_values(augment, MEAN)
    expected = np.stack([augment_image(images[i], table[i], augment, fill) for i in range(num)])
    assert np.abs(got.astype(int) - expected).max() <= 1
    params = torch_kernel.to_device(table, torch.device("cpu"))
    by_torch = torch_kernel.apply_params(torch.from_numpy(images), params, augment, torch.from_numpy(fill))
    np.testing.assert_array_equal(got, by_torch.numpy())


@pytest.mark.slow
def test_it_compiles_for_a_gpu_without_one() -> None:
    """The interpreter takes what the compiler refuses. In a process of its own: here kernels are interpreted."""
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
            types = dict(data="*u8", offsets="*i64", rows="*i64", moves="*i32", holes="*i32", constants="*fp32")
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
