"""The CPU kernel against the reference implementation and the torch kernel."""

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

from fastcifar.augment.numba_kernel import MIN_SLICE, BufferPool, NumbaKernel
from fastcifar.augment.params import params_dtype, sample_params
from fastcifar.config import NO_AUGMENT, AugmentConfig
from tests.reference import augment_image
from tests.test_torch_kernel import (
    DTYPES,
    EACH_ONCE,
    EVERY_VALUE,
    RESAMPLED,
    TONE,
    augment_with_torch,
    check_every_value,
    check_pixels,
    check_resampled_pixels,
    kernel_config,
    random_images,
    run_kernel,
    scattered,
    tolerance,
)


def make(
    augment: AugmentConfig, shape: tuple[int, int, int], dtype: torch.dtype = torch.uint8, num_threads: int = 2
) -> NumbaKernel:
    return NumbaKernel(kernel_config(augment, shape, dtype=dtype), num_threads)


@pytest.mark.parametrize(("augment", "shape", "num", "dtype", "channels_last"), EACH_ONCE)
def test_same_pixels_as_the_reference(
    augment: AugmentConfig, shape: tuple[int, int, int], num: int, dtype: torch.dtype, channels_last: bool
) -> None:
    config = kernel_config(augment, shape, dtype=dtype, channels_last=channels_last)
    check_pixels(NumbaKernel(config, num_threads=3), config, num)


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
        brightness=draw(st.sampled_from([0, 0, 60, 255])),
        contrast=draw(st.sampled_from([0.0, 0.0, 0.3, 1.0])),
        cutout_size=size,
        cutout_min_size=draw(st.integers(1, size)) if size and draw(st.booleans()) else None,
        cutout_p=draw(st.sampled_from([0.5, 1.0])),
        cutout_holes=draw(st.integers(1, 3)),
        cutout_fill=draw(st.sampled_from(["mean", "zero"])),
    )
    return augment, (height, width, 3), draw(st.integers(0, 6))


@settings(max_examples=60, deadline=None)
@given(settings_of(), st.integers(0, 2**40), st.integers(0, 300))
def test_any_settings_give_the_pixels_of_torch_and_of_the_reference(
    given_settings: tuple[AugmentConfig, tuple[int, int, int], int], seed: int, epoch: int
) -> None:
    augment, shape, num = given_settings
    images, config = random_images(num, shape), kernel_config(augment, shape)
    table = sample_params(augment, seed, epoch, num, shape)
    got = run_kernel(make(augment, shape), images, table).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(got, augment_with_torch(images, table, config))
    for i in range(num):
        expected = augment_image(images[i], table[i], augment, config.fill).astype(int)
        assert np.abs(got[i] - expected).max() <= tolerance(augment)


@pytest.mark.parametrize(("augment", "shape", "num"), RESAMPLED)
def test_resampled_pixels_are_within_a_grey_level_of_the_reference_and_equal_to_torchs(
    augment: AugmentConfig, shape: tuple[int, int, int], num: int
) -> None:
    check_resampled_pixels(make(augment, shape), kernel_config(augment, shape, dtype=torch.uint8), num)


def test_brightness_and_contrast_of_every_value() -> None:
    check_every_value(make(TONE, EVERY_VALUE))


@pytest.mark.parametrize("degrees", [180.0, -180.0, 90.0, 0.0, 1e-6])
def test_quarter_turns_and_tiny_ones(degrees: float) -> None:
    augment = AugmentConfig(crop_padding=0, flip=False, cutout_size=0, rotate_degrees=180.0)
    image = random_images(1, (6, 6, 3))
    table = np.zeros(1, dtype=params_dtype())
    table["rotation"] = degrees
    got = run_kernel(make(augment, (6, 6, 3)), image, table)[0].permute(1, 2, 0).numpy()
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
    """The output (the number of cache hits) and the log lines of another process."""
    environment = {"NUMBA_CACHE_DIR": str(cache), "PATH": "/usr/bin", "NUMBA_OPT": "0"}  # 0: compiles faster
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # else Python keeps bytecode truncated at the limit
    command = [sys.executable, "-c", LOAD_FROM_THREADS, *limit]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip(), answer.stderr.splitlines()


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_logged_once(tmp_path: Path) -> None:
    _, (line,) = load_from_threads(tmp_path, "4096")  # as a full disk: the kernel does not fit
    assert line.startswith("the CPU kernel is compiled in each process: its cache cannot be used (OSError: ")


@pytest.mark.slow
def test_a_damaged_cache_is_named_and_not_used(tmp_path: Path) -> None:
    assert load_from_threads(tmp_path) == ("0", [])
    (index,), (data,) = tmp_path.rglob("*.nbi"), tmp_path.rglob("*.nbc")
    whole = {path: path.read_bytes() for path in (index, data)}
    assert load_from_threads(tmp_path) == ("1", [])
    for path, damaged in ((index, b"garbage"), (data, whole[data][:2_000])):
        path.write_bytes(damaged)
        _, (line,) = load_from_threads(tmp_path)
        assert line.startswith("the CPU kernel is compiled in each process: its cache cannot be used (")
        assert line.endswith(f"; delete {index.parent}, or make it writable")
        path.write_bytes(whole[path])


def test_memory_is_reused_once_nothing_refers_to_it() -> None:
    memory = BufferPool()
    kept = torch.from_numpy(memory.empty(160).view(np.float32).reshape(2, 5, 4).transpose(0, 2, 1))
    part = kept.permute(2, 0, 1)[2:]
    address = kept.data_ptr()
    assert memory.empty(160).ctypes.data != address
    del kept
    gc.collect()
    assert memory.empty(160).ctypes.data != address  # a view of it is in use
    del part
    gc.collect()
    others = [np.empty(160, np.uint8) for _ in range(8)]  # these would get memory that was freed
    assert address not in [other.ctypes.data for other in others]
    assert memory.empty(80).ctypes.data != address
    assert memory.empty(160).ctypes.data == address


def test_batches_that_are_kept_do_not_change() -> None:
    images = random_images(60, (8, 8, 3))
    data, offsets = scattered(images)
    for dtype in DTYPES:
        kernel = make(NO_AUGMENT, (8, 8, 3), dtype)
        params = kernel.load_params(sample_params(NO_AUGMENT, 0, 0, 60, (8, 8, 3)))
        kept, copies = [], []
        for number, indices in enumerate(np.arange(60).reshape(12, 5)):
            kept.append(kernel.launch(data, offsets, indices, params)()[:, 1:])  # a slice keeps the whole batch
            copies.append(kept[-1].clone())
            if number == 6:
                gc.collect()  # slow after many imports
        kernel.close()
        assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


@pytest.mark.parametrize("mode", ["zero", "reflect"])
@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 5, 3), (6, 3, 3)])
def test_all_parameters_of_tiny_images(shape: tuple[int, int, int], mode: str) -> None:
    """All crops, flips and holes, not only sampled ones."""
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
    got = run_kernel(make(augment, shape), images, table).permute(0, 2, 3, 1).numpy()
    fill = kernel_config(augment, shape).fill
    for image, source, row in zip(got, images, table, strict=True):
        np.testing.assert_array_equal(image, augment_image(source, row, augment, fill))


@pytest.mark.parametrize("num_threads", [1, 2, 5, 64])
def test_the_number_of_threads_changes_nothing(num_threads: int) -> None:
    images = random_images(37, (8, 8, 3))
    augment = AugmentConfig(cutout_size=3)
    table = sample_params(augment, 0, 0, 37, (8, 8, 3))
    kernels = [make(augment, (8, 8, 3), torch.float32, threads) for threads in (1, num_threads)]
    assert torch.equal(*(run_kernel(kernel, images, table) for kernel in kernels))


def test_slices_run_at_the_same_time_and_without_the_gil() -> None:
    kernel = make(NO_AUGMENT, (2, 2, 3), torch.uint8, num_threads=3)
    assert kernel._kernel.targetoptions["nogil"]  # type: ignore[attr-defined]
    together = threading.Barrier(3)
    kernel._kernel = lambda *arguments: together.wait(timeout=60) and None
    num = 3 * MIN_SLICE
    run_kernel(kernel, np.zeros((num, 2, 2, 3), np.uint8), sample_params(NO_AUGMENT, 0, 0, num, (2, 2, 3)))


def test_two_at_once_do_not_disturb_each_other() -> None:
    images = random_images(200, (16, 16, 3))
    data, offsets = scattered(images)
    augment = AugmentConfig()
    kernels = [make(augment, (16, 16, 3), torch.float32) for _ in range(4)]
    params, indices = kernels[0].load_params(sample_params(augment, 0, 0, 200, (16, 16, 3))), np.arange(200)
    expected = kernels[0].launch(data, offsets, indices, params)()
    failures = []

    def work(kernel: NumbaKernel) -> None:
        for _ in range(30):
            if not torch.equal(kernel.launch(data, offsets, indices, params)(), expected):
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
        from fastcifar.augment.kernel import KernelConfig, make_kernel
        from fastcifar.augment.params import sample_params
        from fastcifar.config import AugmentConfig
        augment, ones = AugmentConfig(cutout_size=2), np.ones(3)
        kernel = make_kernel(KernelConfig(image_shape=(4, 4, 3), augment=augment, mean=ones, std=ones))
        params = kernel.load_params(sample_params(augment, 0, 0, 2, (4, 4, 3)))
        kernel.launch(np.zeros(96, np.uint8), np.array([0, 48]), np.arange(2), params)()
        stats = kernel._kernel.stats
        print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
    """
    environment = {"NUMBA_CACHE_DIR": str(tmp_path), "PATH": "/usr/bin"}
    for expected in ("0 1", "1 0"):
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert answer.stdout.strip() == expected, answer.stderr
