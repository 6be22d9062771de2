"""The choices applied by torch operations, held against the per-image twin."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastcifar.augment import torch_ops
from fastcifar.augment.draws import draws
from fastcifar.config import NO_AUGMENT, AugmentConfig
from tests.reference import augment_image, normalise_image

MEAN, STD = np.array([125.3, 122.95, 113.87]), np.array([62.99, 62.09, 66.70])

CASES = [
    (AugmentConfig(), (32, 32, 3), 5),
    (AugmentConfig(crop_mode="reflect"), (32, 32, 3), 5),
    (AugmentConfig(crop_mode="reflect", crop_padding=6, cutout_size=7), (7, 9, 3), 30),
    (AugmentConfig(crop_padding=9, cutout_size=5, cutout_fill="zero"), (7, 5, 3), 30),
    (AugmentConfig(crop_padding=0, cutout_size=7), (7, 8, 3), 10),
    (AugmentConfig(flip=False, cutout_size=0, crop_padding=1), (1, 1, 3), 20),
    (AugmentConfig(flip=False, cutout_size=1), (3, 2, 3), 1),
    (AugmentConfig(), (32, 32, 3), 0),
]


def random_images(num: int, shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(num).integers(0, 256, (num, *shape), dtype=np.uint8)


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize(("augment", "shape", "num"), CASES)
def test_same_pixels_as_the_twin(augment: AugmentConfig, shape: tuple[int, int, int], num: int, epoch: int) -> None:
    images = random_images(num, shape)
    before = images.copy()
    table = draws(augment, 1, epoch, num, shape)
    fill = torch_ops.fill_values(augment, MEAN)
    choices = torch_ops.to_device(table, torch.device("cpu"))
    got = torch_ops.apply_choices(torch.from_numpy(images), choices, augment, torch.from_numpy(fill)).numpy()
    assert got.dtype == np.uint8
    assert got.shape == images.shape
    for i in range(num):
        np.testing.assert_array_equal(got[i], augment_image(images[i], table[i], augment, fill))
    np.testing.assert_array_equal(images, before)


def test_no_augmentation_changes_nothing_and_copies() -> None:
    images = torch.from_numpy(random_images(4, (8, 8, 3)))
    choices = torch_ops.to_device(draws(NO_AUGMENT, 0, 0, 4, (8, 8, 3)), images.device)
    got = torch_ops.apply_choices(images, choices, NO_AUGMENT, torch.zeros(3, dtype=torch.uint8))
    assert torch.equal(got, images)
    assert got.data_ptr() != images.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_normalise_is_the_twin_rounded(dtype: torch.dtype) -> None:
    images = random_images(6, (5, 7, 3))
    mean, inv_std = (torch.from_numpy(v) for v in torch_ops.normalisation(MEAN, STD))
    got = torch_ops.normalise(torch.from_numpy(images), mean, inv_std, dtype)
    expected = torch.stack([torch.from_numpy(normalise_image(image, MEAN, STD)) for image in images]).to(dtype)
    assert torch.equal(got, expected)  # bit for bit
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_a_channel_that_never_varies_stays_finite() -> None:
    mean, inv_std = torch_ops.normalisation(np.array([7.0, 0.0, 255.0]), np.zeros(3))
    assert inv_std.tolist() == [1.0, 1.0, 1.0]
    assert mean.tolist() == [7.0, 0.0, 255.0]


@pytest.mark.gpu
@pytest.mark.parametrize(("augment", "shape", "num"), CASES)
def test_the_gpu_gives_the_same_pixels(augment: AugmentConfig, shape: tuple[int, int, int], num: int) -> None:
    images = torch.from_numpy(random_images(num, shape))
    table = draws(augment, 1, 0, num, shape)
    fill = torch.from_numpy(torch_ops.fill_values(augment, MEAN))
    mean, inv_std = (torch.from_numpy(v) for v in torch_ops.normalisation(MEAN, STD))

    def run(device: str) -> torch.Tensor:
        choices = torch_ops.to_device(table, torch.device(device))
        out = torch_ops.apply_choices(images.to(device), choices, augment, fill)
        return torch_ops.normalise(out, mean.to(device), inv_std.to(device)).cpu()

    assert torch.equal(run("cuda"), run("cpu"))
