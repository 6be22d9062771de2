"""The one-pass CPU kernel against the per-image twin and against torch."""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.augment import torch_kernel
from fastcifar.augment.numba_kernel import LEAST_IN_SLICE, NumbaAugment, Recycler
from fastcifar.augment.params import check_params, params_dtype, sample_params
from fastcifar.config import NO_AUGMENT, AugmentConfig
from tests.reference import augment_image, normalise_image
from tests.test_torch_kernel import CASES, MEAN, RESAMPLED, STD, random_images

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.uint8]


def scattered(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The images in one flat array, in no order, with gaps of noise; and where each begins."""
    num, size = len(images), images[0].size if len(images) else 0
    random = np.random.default_rng(0)
    data = random.integers(0, 256, num * (size + 5) + 64, dtype=np.uint8)
    offsets = random.permutation(num) * (size + 5) + 3
    for image, offset in zip(images, offsets, strict=True):
        data[offset : offset + size] = image.reshape(-1)
    return data, offsets.astype(np.int64)


def make(
    augment: AugmentConfig,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    num_threads: int = 2,
    channels_last: bool = True,
) -> NumbaAugment:
    fill = torch_kernel.fill_values(augment, MEAN)
    return NumbaAugment(
        shape, augment, fill, *torch_kernel.normalisation(MEAN, STD), dtype, channels_last, num_threads=num_threads
    )


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("augment", "shape", "num"), [*CASES, (NO_AUGMENT, (3, 4, 3), 3)])
def test_same_pixels_as_the_twin(
    augment: AugmentConfig, shape: tuple[int, int, int], num: int, dtype: torch.dtype, channels_last: bool
) -> None:
    images = random_images(num, shape)
    data, offsets = scattered(images)
    before = data.copy()
    table = sample_params(augment, 7, 1, num, shape)
    rows = np.random.default_rng(1).permutation(num)
    kernel = make(augment, shape, dtype, num_threads=3, channels_last=channels_last)
    got = kernel(data, offsets, rows, kernel.columns(table))
    kernel.close()
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
    np.testing.assert_array_equal(data, before)


@st.composite
def settings_of(draw: st.DrawFn) -> tuple[AugmentConfig, tuple[int, int, int], int]:
    """Augmentation that fits images of a random shape, and a number of them."""
    height, width = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    mode = draw(st.sampled_from(["zero", "reflect"]))
    size = draw(st.integers(0, min(height, width)))
    augment = AugmentConfig(
        crop_padding=draw(st.integers(0, min(height, width) - 1 if mode == "reflect" else 17)),
        padding_mode=mode,
        flip=draw(st.booleans()),
        flip_mode=draw(st.sampled_from(["random", "alternating"])),
        rotate_degrees=draw(st.sampled_from([0.0, 0.0, 15.0, 180.0])),
        hue_shift=draw(st.sampled_from([0, 0, 20, 90])),
        value_shift=draw(st.sampled_from([0, 0, 50])),
        cutout_size=size,
        cutout_min_size=draw(st.integers(1, size)) if size and draw(st.booleans()) else None,
        cutout_p=draw(st.sampled_from([0.5, 1.0])),
        cutout_holes=draw(st.integers(1, 3)),
        cutout_fill=draw(st.sampled_from(["mean", "zero"])),
    )
    return augment, (height, width, 3), draw(st.integers(0, 6))


@settings(max_examples=60, deadline=None)
@given(settings_of(), st.integers(0, 2**40), st.integers(0, 300))
def test_any_settings_give_torchs_pixels_and_the_twins(
    given_settings: tuple[AugmentConfig, tuple[int, int, int], int], seed: int, epoch: int
) -> None:
    augment, shape, num = given_settings
    images = random_images(num, shape)
    data, offsets = scattered(images)
    table = sample_params(augment, seed, epoch, num, shape)
    check_params(table, augment, num, shape)
    kernel = make(augment, shape, torch.uint8)
    got = kernel(data, offsets, np.arange(num), kernel.columns(table)).permute(0, 2, 3, 1).numpy()
    kernel.close()
    fill = torch_kernel.fill_values(augment, MEAN)
    params = torch_kernel.to_device(table, torch.device("cpu"))
    by_torch = torch_kernel.apply_params(torch.from_numpy(images), params, augment, torch.from_numpy(fill))
    np.testing.assert_array_equal(got, by_torch.numpy())
    mixed = augment.rotate_degrees > 0 or augment.shifts_colour
    for i in range(num):
        expected = augment_image(images[i], table[i], augment, fill).astype(int)
        assert np.abs(got[i] - expected).max() <= (1 if mixed else 0)


@pytest.mark.parametrize(("augment", "shape", "num"), RESAMPLED)
def test_resampled_pixels_are_within_a_grey_level_of_the_twin_and_equal_to_torchs(
    augment: AugmentConfig, shape: tuple[int, int, int], num: int
) -> None:
    images = random_images(num, shape)
    data, offsets = scattered(images)
    table = sample_params(augment, 2, 5, num, shape)
    kernel = make(augment, shape, torch.uint8)
    got = kernel(data, offsets, np.arange(num), kernel.columns(table)).permute(0, 2, 3, 1).numpy()
    kernel.close()
    fill = torch_kernel.fill_values(augment, MEAN)
    expected = np.stack([augment_image(images[i], table[i], augment, fill) for i in range(num)])
    assert np.abs(got.astype(int) - expected).max() <= 1
    params = torch_kernel.to_device(table, torch.device("cpu"))
    by_torch = torch_kernel.apply_params(torch.from_numpy(images), params, augment, torch.from_numpy(fill))
    np.testing.assert_array_equal(got, by_torch.numpy())


@pytest.mark.parametrize("degrees", [180.0, -180.0, 90.0, 0.0, 1e-6])
def test_whole_and_tiny_turns(degrees: float) -> None:
    augment = AugmentConfig(crop_padding=0, flip=False, cutout_size=0, rotate_degrees=180.0)
    image = random_images(1, (6, 6, 3))
    data, offsets = scattered(image)
    table = np.zeros(1, dtype=params_dtype())
    table["rotation"] = degrees
    kernel = make(augment, (6, 6, 3), torch.uint8)
    got = kernel(data, offsets, np.arange(1), kernel.columns(table))[0].permute(1, 2, 0).numpy()
    kernel.close()
    np.testing.assert_array_equal(got, np.rot90(image[0], round(degrees / 90)))


LOAD_FROM_THREADS = """if True:
    import logging, resource, sys, threading
    from fastcifar.augment.numba_kernel import load
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if sys.argv[1:]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
    loaded = []
    threads = [threading.Thread(target=lambda: loaded.append(load())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 4 and len(set(map(id, loaded))) == 1
    print(sum(loaded[0].stats.cache_hits.values()))
"""


def load_from_threads(cache: Path, *limit: str) -> tuple[str, list[str]]:
    """What it printed (how often the cache was of use), and the lines of its log, from a process of its own."""
    environment = {"NUMBA_CACHE_DIR": str(cache), "PATH": "/usr/bin", "NUMBA_OPT": "0"}  # 0: compiles faster
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # Python would keep modules that were compiled and cut at the limit
    command = [sys.executable, "-c", LOAD_FROM_THREADS, *limit]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip(), answer.stderr.splitlines()


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_logged_once(tmp_path: Path) -> None:
    _, (line,) = load_from_threads(tmp_path, "4096")  # as a full disk: the kernel does not fit
    assert line.startswith("the CPU kernel is compiled in each process: its cache cannot be used (OSError: ")


@pytest.mark.slow
def test_a_damaged_cache_is_named_and_done_without(tmp_path: Path) -> None:
    assert load_from_threads(tmp_path) == ("0", [])
    (index,), (data,) = tmp_path.rglob("*.nbi"), tmp_path.rglob("*.nbc")
    whole = {path: path.read_bytes() for path in (index, data)}
    assert load_from_threads(tmp_path) == ("1", [])
    for path, damaged in ((index, b"garbage"), (data, whole[data][:2_000])):
        path.write_bytes(damaged)
        _, (line,) = load_from_threads(tmp_path)
        assert line.startswith("the CPU kernel is compiled in each process: its cache cannot be used (")
        assert line.endswith(f"; delete {index.parent}, or see that it can be written")
        path.write_bytes(whole[path])


def test_memory_comes_back_when_nobody_uses_it_any_more() -> None:
    memory = Recycler()
    kept = torch.from_numpy(memory.empty(160).view(np.float32).reshape(2, 5, 4).transpose(0, 2, 1))
    part = kept.permute(2, 0, 1)[2:]
    address = kept.data_ptr()
    assert memory.empty(160).ctypes.data != address
    del kept
    gc.collect()
    assert memory.empty(160).ctypes.data != address  # a view of it is in use
    del part
    gc.collect()
    others = [np.empty(160, np.uint8) for _ in range(8)]  # the system would give them what was freed
    assert address not in [other.ctypes.data for other in others]
    assert memory.empty(80).ctypes.data != address
    assert memory.empty(160).ctypes.data == address


def test_batches_that_are_kept_do_not_change() -> None:
    images = random_images(60, (8, 8, 3))
    data, offsets = scattered(images)
    for dtype in DTYPES:
        kernel = make(NO_AUGMENT, (8, 8, 3), dtype)
        columns = kernel.columns(sample_params(NO_AUGMENT, 0, 0, 60, (8, 8, 3)))
        kept, copies = [], []
        for number, rows in enumerate(np.arange(60).reshape(12, 5)):
            kept.append(kernel(data, offsets, rows, columns)[:, 1:])  # a part of a batch keeps all of it
            copies.append(kept[-1].clone())
            if number == 6:
                gc.collect()  # takes long where much was imported
        kernel.close()
        assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


@pytest.mark.parametrize("mode", ["zero", "reflect"])
@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 5, 3), (6, 3, 3)])
def test_every_choice_there_is(shape: tuple[int, int, int], mode: str) -> None:
    """All crops, flips and holes of tiny images, not only those that are drawn."""
    height, width, _ = shape
    pad = 7 if mode == "zero" else min(height, width) - 1
    augment = AugmentConfig(crop_padding=pad, padding_mode=mode, cutout_size=min(height, width))
    half, span = augment.cutout_size // 2, range(2 * pad + 1)
    holes_y, holes_x = range(-half, height - half, 2), (-half, width - half - 1)
    every = np.array(list(itertools.product(span, span, (0, 1), holes_y, holes_x)))
    table = np.zeros(len(every), dtype=params_dtype())
    for name, column in zip(("crop_y", "crop_x", "flip", "cutout_y", "cutout_x"), every.T, strict=True):
        table[name] = column.reshape(table[name].shape)
    table["cutout_height"] = table["cutout_width"] = augment.cutout_size
    images = random_images(len(table), shape)
    data, offsets = scattered(images)
    kernel = make(augment, shape, torch.uint8)
    got = kernel(data, offsets, np.arange(len(table)), kernel.columns(table)).permute(0, 2, 3, 1).numpy()
    kernel.close()
    fill = torch_kernel.fill_values(augment, MEAN)
    for image, source, choice in zip(got, images, table, strict=True):
        np.testing.assert_array_equal(image, augment_image(source, choice, augment, fill))


@pytest.mark.parametrize("num_threads", [1, 2, 5, 64])
def test_the_number_of_threads_changes_nothing(num_threads: int) -> None:
    images = random_images(37, (8, 8, 3))
    data, offsets = scattered(images)
    augment = AugmentConfig(cutout_size=3)
    table = sample_params(augment, 0, 0, 37, (8, 8, 3))
    results = []
    for threads in (1, num_threads):
        kernel = make(augment, (8, 8, 3), torch.float32, threads)
        results.append(kernel(data, offsets, np.arange(37), kernel.columns(table)))
        kernel.close()
    assert torch.equal(*results)


def test_slices_run_at_the_same_time_and_without_the_gil() -> None:
    kernel = make(NO_AUGMENT, (2, 2, 3), torch.uint8, num_threads=3)
    assert kernel._kernel.targetoptions["nogil"]  # type: ignore[attr-defined]
    together = threading.Barrier(3)
    kernel._kernel = lambda *arguments: together.wait(timeout=60) and None
    num = 3 * LEAST_IN_SLICE
    columns = kernel.columns(sample_params(NO_AUGMENT, 0, 0, num, (2, 2, 3)))
    kernel(np.zeros(num * 12, np.uint8), np.arange(num) * 12, np.arange(num), columns)
    kernel.close()


def test_two_at_once_do_not_disturb_each_other() -> None:
    images = random_images(200, (16, 16, 3))
    data, offsets = scattered(images)
    augment = AugmentConfig()
    kernels = [make(augment, (16, 16, 3), torch.float32) for _ in range(4)]
    columns, rows = kernels[0].columns(sample_params(augment, 0, 0, 200, (16, 16, 3))), np.arange(200)
    expected = kernels[0](data, offsets, rows, columns)
    failures = []

    def work(kernel: NumbaAugment) -> None:
        for _ in range(30):
            if not torch.equal(kernel(data, offsets, rows, columns), expected):
                failures.append(1)

    threads = [threading.Thread(target=work, args=(kernel,)) for kernel in kernels]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for kernel in kernels:
        kernel.close()
    assert not failures


@pytest.mark.slow
def test_the_second_start_compiles_nothing(tmp_path: Path) -> None:
    code = """if True:
        import numpy as np, torch
        from fastcifar.augment import numba_kernel
        from fastcifar.augment.params import sample_params
        from fastcifar.config import AugmentConfig
        augment, ones = AugmentConfig(cutout_size=2), np.ones(3, np.float32)
        kernel = numba_kernel.NumbaAugment((4, 4, 3), augment, np.zeros(3, np.uint8), ones, ones, torch.float32)
        columns = kernel.columns(sample_params(augment, 0, 0, 2, (4, 4, 3)))
        kernel(np.zeros(96, np.uint8), np.array([0, 48]), np.arange(2), columns)
        stats = kernel._kernel.stats
        print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
    """
    environment = {"NUMBA_CACHE_DIR": str(tmp_path), "PATH": "/usr/bin"}
    for expected in ("0 1", "1 0"):
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert answer.stdout.strip() == expected, answer.stderr
