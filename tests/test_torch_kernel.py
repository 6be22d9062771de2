"""The torch kernel against the reference implementation."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fastcifar.augment import torch_kernel
from fastcifar.augment.kernel import Kernel, KernelConfig, normalisation
from fastcifar.augment.params import params_dtype, rotation_terms, sample_params, tone_table
from fastcifar.config import NO_AUGMENT, AugmentConfig
from tests.reference import adjust_tone, augment_image, normalise_image, rotate_image

MEAN, STD = np.array([125.3, 122.95, 113.87]), np.array([62.99, 62.09, 66.70])

RICH = AugmentConfig(
    crop_padding=3,
    brightness=60,
    contrast=0.4,
    colour_p=0.8,
    cutout_size=6,
    cutout_min_size=1,
    cutout_holes=3,
    cutout_p=0.6,
)
CASES = [
    (AugmentConfig(), (32, 32, 3), 5),
    (AugmentConfig(padding_mode="reflect"), (32, 32, 3), 5),
    (AugmentConfig(padding_mode="reflect", crop_padding=6, cutout_size=7), (7, 9, 3), 30),
    (AugmentConfig(crop_padding=9, cutout_size=5, cutout_fill="zero"), (7, 5, 3), 30),
    (AugmentConfig(crop_padding=0, cutout_size=7), (7, 8, 3), 10),
    (AugmentConfig(flip=False, cutout_size=0, crop_padding=1), (1, 1, 3), 20),
    (AugmentConfig(flip=False, cutout_size=1), (3, 2, 3), 1),
    (AugmentConfig(), (32, 32, 3), 0),
    (RICH, (9, 11, 3), 30),
    (AugmentConfig(crop_padding=2, flip_mode="alternating", cutout_size=0), (6, 7, 3), 20),
    (AugmentConfig(crop_padding=2, brightness=255, cutout_size=2), (6, 7, 3), 20),
    (AugmentConfig(crop_padding=2, contrast=1.0, cutout_size=2), (6, 7, 3), 20),
]
"""Exact on every pixel."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.uint8)
FORMATS = [(dtype, channels_last) for dtype in DTYPES for channels_last in (True, False)]
EACH_ONCE = [
    *((*case, torch.float32, True) for case in [*CASES, (NO_AUGMENT, (3, 4, 3), 3)]),
    *((RICH, (9, 11, 3), 30, dtype, channels_last) for dtype, channels_last in FORMATS[1:]),
]
"""Each case in float32 and channels_last; one case in each other dtype and memory format: a kernel chooses them apart
from what it does to the pixels."""

COLOUR = AugmentConfig(hue_shift=20, saturation_shift=90, value_shift=60, colour_p=0.8, cutout_size=0)
RESAMPLED = [
    (AugmentConfig(rotate_degrees=40.0, rotate_p=0.7, cutout_size=0), (16, 16, 3), 20),
    (AugmentConfig(rotate_degrees=180.0, padding_mode="reflect", crop_padding=2, cutout_size=3), (9, 20, 3), 12),
    (AugmentConfig(rotate_degrees=90.0, padding_mode="reflect", crop_padding=0, cutout_size=1), (1, 30, 3), 12),
    (AugmentConfig(rotate_degrees=15.0, crop_padding=0, flip=False, cutout_size=1), (1, 1, 3), 4),
    (COLOUR, (12, 12, 3), 30),
    (AugmentConfig(hue_shift=90, saturation_shift=255, value_shift=255, crop_padding=0, cutout_size=0), (8, 8, 3), 30),
    (replace(RICH, rotate_degrees=15.0, hue_shift=20, saturation_shift=90, value_shift=60), (16, 12, 3), 20),
]
"""Within `tolerance` of the reference."""


def tolerance(augment: AugmentConfig) -> int:
    """In grey levels: one where pixels are interpolated, or go through HSV, which more contrast stretches."""
    return math.ceil(1 + augment.contrast) if augment.rotate_degrees or augment.shifts_colour else 0


@pytest.mark.parametrize(("name", "expected"), [("mean", [0, 2, 255]), ("zero", [0, 0, 0])])
def test_cutout_is_filled_with_the_rounded_mean_or_zero(name: str, expected: list[int]) -> None:
    augment = AugmentConfig(cutout_fill=name)
    config = KernelConfig(image_shape=(32, 32, 3), augment=augment, mean=np.array([0.5, 1.5, 254.6]), std=STD)
    assert config.fill.tolist() == expected


def random_images(num: int, shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(num).integers(0, 256, (num, *shape), dtype=np.uint8)


def kernel_config(augment: AugmentConfig, shape: tuple[int, int, int], **settings: Any) -> KernelConfig:
    return KernelConfig(image_shape=shape, augment=augment, mean=MEAN, std=STD, **settings)


def scattered(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The images in one flat array, in no order, with gaps of noise; and the offset of each."""
    num, size = len(images), images[0].size if len(images) else 0
    random = np.random.default_rng(0)
    data = random.integers(0, 256, num * (size + 5) + 64, dtype=np.uint8)
    offsets = random.permutation(num) * (size + 5) + 3
    for image, offset in zip(images, offsets, strict=True):
        data[offset : offset + size] = image.reshape(-1)
    return data, offsets.astype(np.int64)


def run_kernel(
    kernel: Kernel, images: np.ndarray, table: np.ndarray, indices: np.ndarray | None = None
) -> torch.Tensor:
    """Images `indices` in one batch, on the CPU; closes the kernel."""
    data, offsets = scattered(images)
    before = data.copy()
    indices = np.arange(len(images)) if indices is None else indices
    arrays = [kernel.to_device(array) for array in (data, offsets, indices)]
    batch = kernel.launch(*arrays, kernel.load_params(table))().cpu()
    kernel.close()
    np.testing.assert_array_equal(data, before)
    return batch


def check_pixels(kernel: Kernel, config: KernelConfig, num: int) -> None:
    """A shuffled batch is that of the reference implementation, bit for bit, in the dtype and memory format."""
    images = random_images(num, config.image_shape)
    table = sample_params(config.augment, 7, 1, num, config.image_shape)
    indices = np.random.default_rng(1).permutation(num)
    batch = run_kernel(kernel, images, table, indices)
    assert batch.shape == (num, 3, *config.image_shape[:2])
    assert batch.dtype == config.dtype
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    assert batch.is_contiguous(memory_format=layout)
    for image, index in zip(batch, indices, strict=True):
        expected = augment_image(images[index], table[index], config.augment, config.fill)
        if config.dtype == torch.uint8:
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)
        else:
            assert torch.equal(image, torch.from_numpy(normalise_image(expected, MEAN, STD)).to(config.dtype))


def check_resampled_pixels(kernel: Kernel, config: KernelConfig, num: int) -> None:
    """A uint8 batch is within `tolerance` of the reference implementation, and equal to the torch kernel's."""
    images = random_images(num, config.image_shape)
    table = sample_params(config.augment, 2, 5, num, config.image_shape)
    got = run_kernel(kernel, images, table).permute(0, 2, 3, 1).numpy()
    expected = np.stack([augment_image(images[i], table[i], config.augment, config.fill) for i in range(num)])
    assert np.abs(got.astype(int) - expected).max() <= tolerance(config.augment)
    np.testing.assert_array_equal(got, augment_with_torch(images, table, config))


TONE = AugmentConfig(crop_padding=0, flip=False, brightness=255, contrast=1.0, cutout_size=0)
EVERY_VALUE = (16, 16, 3)


def check_every_value(kernel: Kernel) -> None:
    """Brightness and contrast of each of 256 values, up to their bounds; the kernel is of TONE, EVERY_VALUE, uint8."""
    changes = np.array(list(itertools.product((-255, -128, -1, 0, 1, 77, 255), (-256, -255, -100, -1, 0, 1, 128, 256))))
    table = np.zeros(len(changes), dtype=params_dtype())
    table["brightness"], table["contrast"] = changes.T
    image = np.arange(768).reshape(EVERY_VALUE).astype(np.uint8)
    got = run_kernel(kernel, np.repeat(image[None], len(table), axis=0), table).permute(0, 2, 3, 1).numpy()
    for out, (brightness, contrast) in zip(got, changes.tolist(), strict=True):
        np.testing.assert_array_equal(out, adjust_tone(image, brightness, contrast), str((brightness, contrast)))
        np.testing.assert_array_equal(out, tone_table(brightness, contrast)[image], str((brightness, contrast)))


def augment_with_torch(images: np.ndarray, table: np.ndarray, config: KernelConfig) -> np.ndarray:
    params = torch_kernel.params_to_device(table, torch.device("cpu"))
    fill = torch.from_numpy(config.fill)
    return torch_kernel.apply_params(torch.from_numpy(images), params, config.augment, fill).numpy()


@pytest.mark.parametrize(("augment", "shape", "num", "dtype", "channels_last"), [c for c in EACH_ONCE if c[2]])
def test_batches_are_those_of_the_reference(
    augment: AugmentConfig, shape: tuple[int, int, int], num: int, dtype: torch.dtype, channels_last: bool
) -> None:
    config = kernel_config(augment, shape, dtype=dtype, channels_last=channels_last)
    check_pixels(torch_kernel.TorchKernel(config), config, num)


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize(("augment", "shape", "num"), CASES)
def test_same_pixels_as_the_reference(
    augment: AugmentConfig, shape: tuple[int, int, int], num: int, epoch: int
) -> None:
    images = random_images(num, shape)
    before = images.copy()
    table = sample_params(augment, 1, epoch, num, shape)
    config = kernel_config(augment, shape)
    got = augment_with_torch(images, table, config)
    assert got.dtype == np.uint8
    assert got.shape == images.shape
    for i in range(num):
        np.testing.assert_array_equal(got[i], augment_image(images[i], table[i], augment, config.fill))
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize(("augment", "shape", "num"), RESAMPLED)
def test_resampled_pixels_are_within_a_grey_level_of_the_reference(
    augment: AugmentConfig, shape: tuple[int, int, int], num: int
) -> None:
    images = random_images(num, shape)
    table = sample_params(augment, 1, 0, num, shape)
    config = kernel_config(augment, shape)
    got = augment_with_torch(images, table, config)
    expected = np.stack([augment_image(images[i], table[i], augment, config.fill) for i in range(num)])
    assert np.abs(got.astype(int) - expected).max() <= tolerance(augment)
    changed = (expected != images).any(axis=(1, 2, 3)).mean()
    assert changed > 0.3 or images[0].size == 3, "the settings change nothing"


def test_brightness_and_contrast_of_every_value() -> None:
    check_every_value(torch_kernel.TorchKernel(kernel_config(TONE, EVERY_VALUE, dtype=torch.uint8)))


@pytest.mark.parametrize("border", ["constant", "reflect"])
def test_rotation_is_within_a_grey_level_of_opencv(border: str) -> None:
    cv2 = opencv_5()
    image = random_images(1, (32, 41, 3))[0]
    for degrees in np.linspace(-180, 180, 15).astype(np.float32):
        turn = cv2.getRotationMatrix2D((20, 15.5), float(degrees), 1.0)
        mode = cv2.BORDER_REFLECT_101 if border == "reflect" else cv2.BORDER_CONSTANT
        expected = cv2.warpAffine(image, turn, (41, 32), flags=cv2.INTER_LINEAR, borderMode=mode)
        terms = torch.from_numpy(rotation_terms(np.array([degrees])).astype(np.int64))
        got = torch_kernel.rotate(torch.from_numpy(image)[None], terms, border == "reflect")[0].numpy()
        assert np.abs(got.astype(int) - expected).max() <= 1, degrees
        exact = rotate_image(image, float(degrees), border == "reflect", exactly=True)
        assert np.abs(got.astype(int) - exact).max() <= 1, degrees


@pytest.mark.parametrize("shifts", [(13, -20, 11), (-90, 255, 0), (1, 0, 0), (0, 0, -255), (0, 1, 1)])
def test_colour_is_within_a_grey_level_of_opencv(shifts: tuple[int, int, int]) -> None:
    cv2 = opencv_5()
    image = np.stack(np.meshgrid(*[np.arange(0, 256, 5)] * 3), axis=-1).reshape(52, -1, 3).astype(np.uint8)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(int)
    grey = hsv[..., 1] == 0
    hsv += shifts
    hsv[..., 0] %= 180
    hsv[grey, 1] = 0
    expected = cv2.cvtColor(hsv.clip(0, 255).astype(np.uint8), cv2.COLOR_HSV2RGB)
    got = torch_kernel._shift_colour(torch.from_numpy(image)[None], torch.tensor(shifts)[:, None])[0].numpy()
    assert np.abs(got.astype(int) - expected).max() <= 1


def opencv_5() -> Any:
    cv2 = pytest.importorskip("cv2")
    if int(cv2.__version__.split(".")[0]) < 5:
        pytest.skip("OpenCV before 5 rotates with up to 6 grey levels of error")
    return cv2


def test_no_augmentation_changes_nothing_and_copies() -> None:
    images = torch.from_numpy(random_images(4, (8, 8, 3)))
    params = torch_kernel.params_to_device(sample_params(NO_AUGMENT, 0, 0, 4, (8, 8, 3)), images.device)
    got = torch_kernel.apply_params(images, params, NO_AUGMENT, torch.zeros(3, dtype=torch.uint8))
    assert torch.equal(got, images)
    assert got.data_ptr() != images.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_normalise_is_the_reference_rounded(dtype: torch.dtype) -> None:
    images = random_images(6, (5, 7, 3))
    mean, inv_std = (torch.from_numpy(v) for v in normalisation(MEAN, STD))
    got = torch_kernel.normalise(torch.from_numpy(images), mean, inv_std, dtype)
    expected = torch.stack([torch.from_numpy(normalise_image(image, MEAN, STD)) for image in images]).to(dtype)
    assert torch.equal(got, expected)  # bit for bit
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_a_constant_channel_stays_finite() -> None:
    mean, inv_std = normalisation(np.array([7.0, 0.0, 255.0]), np.zeros(3))
    assert inv_std.tolist() == [1.0, 1.0, 1.0]
    assert mean.tolist() == [7.0, 0.0, 255.0]


@pytest.mark.gpu
@pytest.mark.parametrize(("augment", "shape", "num"), CASES)
def test_the_gpu_gives_the_same_pixels(augment: AugmentConfig, shape: tuple[int, int, int], num: int) -> None:
    images = torch.from_numpy(random_images(num, shape))
    table = sample_params(augment, 1, 0, num, shape)
    fill = torch.from_numpy(kernel_config(augment, shape).fill)
    mean, inv_std = (torch.from_numpy(v) for v in normalisation(MEAN, STD))

    def run(device: str) -> torch.Tensor:
        params = torch_kernel.params_to_device(table, torch.device(device))
        out = torch_kernel.apply_params(images.to(device), params, augment, fill)
        return torch_kernel.normalise(out, mean.to(device), inv_std.to(device)).cpu()

    assert torch.equal(run("cuda"), run("cpu"))
