"""Three loaders deliver the same batches."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from fastcifar import AugmentConfig, make_loader, open_beton
from fastcifar.augment.params import sample_params
from fastcifar.augment.torch_kernel import TorchKernel
from fastcifar.config import NO_AUGMENT, read_pipeline
from fastcifar.converters import Sample, Source, convert
from fastcifar.converters.synthetic import SyntheticSplit
from fastcifar.converters.synthetic import source as synthetic_source
from fastcifar.data.beton import Beton
from fastcifar.data.manifest import manifest_path
from fastcifar.data.tables import MIN_PAGE_SIZE
from fastcifar.errors import DataError, FastcifarError, UsageError
from fastcifar.loaders import Batch, Loader, choose_loader, missing_part, open_for
from tests.reference import augment_image, normalise_image

LOADERS = [
    pytest.param(name, marks=pytest.mark.skipif(missing_part(name) is not None, reason=f"{name} is not installed"))
    for name in ("resident", "ffcv", "albumentations")
]
"""A case for each loader, skipped where it is not installed."""
LOADERS_AND_DTYPES = [
    *(pytest.param(*each.values, torch.float32, marks=each.marks) for each in LOADERS),
    *(("resident", dtype) for dtype in (torch.bfloat16, torch.float16, torch.uint8)),
    *(pytest.param("albumentations", dtype, marks=LOADERS[2].marks) for dtype in (torch.bfloat16, torch.uint8)),
]
"""Each loader in float32; other dtypes where they take another path. The ffcv loader has the kernels of resident."""
needs_ffcv = pytest.mark.skipif(missing_part("ffcv", "jpeg") is not None, reason="ffcv is not installed")


class ArraySplit:
    """The images of an array, with labels 0, 1, 0, 1, …"""

    def __init__(self, images: np.ndarray) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[Sample]:
        for i, image in enumerate(self._images):
            yield Sample(image, i % 2)


def epoch_of(loader: Loader, epoch: int = 0, start: int = 0) -> list[Batch]:
    try:
        return list(loader.epoch(epoch, start))
    finally:
        loader.close()


@pytest.mark.parametrize(
    "augment",
    [
        AugmentConfig(),
        AugmentConfig(padding_mode="reflect", crop_padding=9, cutout_size=13, cutout_fill="zero"),
        AugmentConfig(crop_padding=0, flip=False, cutout_size=32),
        AugmentConfig(crop_padding=3, flip=True, brightness=50, contrast=0.5, cutout_size=0),
    ],
)
@pytest.mark.parametrize("name", LOADERS)
def test_every_loader_delivers_the_pixels_of_the_reference(data_dir: Path, name: str, augment: AugmentConfig) -> None:
    settings: dict[str, Any] = {"batch_size": 50, "seed": 3, "loader": name}
    loader = make_loader(data_dir / "train.beton", augment, dtype=torch.uint8, **settings)
    raw = epoch_of(loader, 1)
    normalised = epoch_of(make_loader(data_dir / "train.beton", augment, **settings), 1)
    table, beton, fill = loader.params(1), loader.beton, loader.config.fill
    assert len(raw) == len(normalised) == 12
    for batch, other in zip(raw[:2], normalised[:2], strict=True):
        assert torch.equal(batch.indices, other.indices)
        assert batch.labels.tolist() == beton.labels[batch.indices].tolist() == other.labels.tolist()
        for image, floats, row in zip(batch.images, other.images, batch.indices.tolist(), strict=True):
            expected = augment_image(beton.images([row])[0], table[row], augment, fill)
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)
            np.testing.assert_array_equal(floats.numpy(), normalise_image(expected, beton.mean, beton.std))


EVERYTHING = AugmentConfig(
    rotate_degrees=15.0,
    rotate_p=0.5,
    cutout_size=16,
    cutout_min_size=4,
    cutout_p=0.75,
    cutout_holes=2,
    flip_mode="alternating",
)


@pytest.mark.parametrize(
    ("augment", "mode", "levels"),
    [
        (EVERYTHING, "zero", 1),
        (EVERYTHING, "reflect", 1),
        (replace(EVERYTHING, rotate_p=1.0, contrast=1.0), "reflect", 1),
        (AugmentConfig(hue_shift=20, saturation_shift=30, value_shift=20, colour_p=0.7), "zero", 1),
        (replace(EVERYTHING, hue_shift=20, saturation_shift=30, value_shift=20, contrast=0.5), "zero", 2),
        (replace(EVERYTHING, rotate_p=1.0, hue_shift=90, saturation_shift=255, value_shift=255), "reflect", 1),
    ],
)
@pytest.mark.parametrize("name", LOADERS)
def test_rotation_and_colour_are_the_same_to_a_grey_level(
    tiny_data: Path, name: str, augment: AugmentConfig, mode: str, levels: int
) -> None:
    augment = replace(augment, padding_mode=mode)
    settings: dict[str, Any] = {"batch_size": 80, "seed": 3, "dtype": torch.uint8}
    (got,) = epoch_of(make_loader(tiny_data / "train.beton", augment, loader=name, **settings), 1)
    loader = make_loader(tiny_data / "train.beton", augment, loader="resident", **settings)
    table, fill = loader.params(1), loader.config.fill
    for image, row in zip(got.images, got.indices.tolist(), strict=True):
        expected = augment_image(loader.beton.images([row])[0], table[row], augment, fill).astype(int)
        difference = np.abs(image.permute(1, 2, 0).numpy() - expected).max()
        assert difference <= levels, (row, table[row])


@pytest.mark.parametrize(("name", "dtype"), LOADERS_AND_DTYPES)
def test_contiguous_batches_hold_the_same_values(data_dir: Path, name: str, dtype: torch.dtype) -> None:
    settings: dict[str, Any] = {"batch_size": 100, "loader": name, "dtype": dtype}
    usual = epoch_of(make_loader(data_dir / "train.beton", **settings))
    contiguous = epoch_of(make_loader(data_dir / "train.beton", channels_last=False, **settings))
    for a, b in zip(usual, contiguous, strict=True):
        assert b.images.is_contiguous()
        assert torch.equal(a.images, b.images)


@pytest.mark.parametrize(("name", "dtype"), LOADERS_AND_DTYPES)
def test_every_loader_delivers_what_resident_delivers(data_dir: Path, name: str, dtype: torch.dtype) -> None:
    expected = epoch_of(make_loader(data_dir / "train.beton", batch_size=64, seed=5, dtype=dtype, loader="resident"), 2)
    got = epoch_of(make_loader(data_dir / "train.beton", batch_size=64, seed=5, dtype=dtype, loader=name), 2)
    assert len(got) == len(expected) == 9
    for a, b in zip(got, expected, strict=True):
        assert a.images.dtype == dtype
        assert a.images.shape == (64, 3, 32, 32)
        assert a.images.is_contiguous(memory_format=torch.channels_last)
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("name", "dtype"), LOADERS_AND_DTYPES)
def test_without_the_compiled_kernel_the_pixels_are_the_same(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
) -> None:
    """The kernel of other devices, on the CPU."""

    def unusable() -> None:
        raise ImportError("no Numba")

    settings: dict[str, Any] = {"batch_size": 100, "dtype": dtype}
    expected = next(make_loader(data_dir / "train.beton", loader="resident", **settings).epoch(1))
    monkeypatch.setattr("fastcifar.augment.kernel.numba_module", unusable)
    loader = make_loader(data_dir / "train.beton", loader=name, **settings)
    got = next(loader.epoch(1))
    loader.close()
    assert all(torch.equal(x, y) for x, y in zip(got, expected, strict=True))


@pytest.mark.real_data
def test_512_real_images_are_the_same_on_every_loader(real_dir: Path) -> None:
    for dtype in (torch.uint8, torch.float32):
        batches = []
        for name in ("resident", "ffcv", "albumentations"):
            if missing_part(name) is None:
                loader = make_loader(real_dir / "train.beton", batch_size=512, loader=name, dtype=dtype)
                batches.append(next(loader.epoch(0)))
                loader.close()
        assert len(batches) >= 2, "only one loader is installed"
        for batch in batches[1:]:
            assert all(torch.equal(x, y) for x, y in zip(batch, batches[0], strict=True))


@pytest.mark.parametrize("name", LOADERS)
def test_evaluation_delivers_every_image_once_in_order(data_dir: Path, name: str) -> None:
    loader = make_loader(data_dir / "test.beton", batch_size=64, train=False, loader=name)
    batches = epoch_of(loader)
    assert [len(batch.labels) for batch in batches] == [64, 64, 64, 8]
    assert len(loader) == 4
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(200))
    got = torch.cat([batch.images for batch in batches])
    expected = [normalise_image(image, loader.mean, loader.std) for image, *_ in SyntheticSplit(200, 0, 1)]
    np.testing.assert_array_equal(got.numpy(), np.stack(expected))


@pytest.mark.parametrize("name", LOADERS)
def test_training_drops_the_last_partial_batch(data_dir: Path, name: str) -> None:
    loader = make_loader(data_dir / "train.beton", batch_size=250, loader=name)
    batches = epoch_of(loader)
    assert [len(batch.labels) for batch in batches] == [250, 250]
    assert (len(loader), loader.num_images) == (2, 500)
    assert len(set(torch.cat([batch.indices for batch in batches]).tolist())) == 500


@pytest.mark.parametrize("name", LOADERS)
def test_an_epoch_can_begin_in_the_middle(data_dir: Path, name: str) -> None:
    def make() -> Loader:
        return make_loader(data_dir / "train.beton", batch_size=100, loader=name)

    whole, rest = epoch_of(make(), 1), epoch_of(make(), 1, start=4)
    assert len(rest) == 2
    for a, b in zip(whole[4:], rest, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert epoch_of(make(), 1, start=6) == []


@pytest.mark.parametrize("name", LOADERS)
def test_the_caller_may_keep_and_modify_batches(data_dir: Path, name: str) -> None:
    loader = make_loader(data_dir / "train.beton", batch_size=30, loader=name, dtype=torch.uint8)
    kept, copies = [], []
    for batch in loader.epoch(0):
        kept.append(batch)
        copies.append([tensor.clone() for tensor in batch])
    for batch, copy in zip(kept, copies, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(batch, copy, strict=True))
        for tensor in batch:
            tensor.zero_()
    again = epoch_of(loader)
    assert all(torch.equal(batch.images, copy[0]) for batch, copy in zip(again, copies, strict=True))


@pytest.mark.parametrize("name", LOADERS)
def test_two_epochs_open_at_once_do_not_mix(data_dir: Path, name: str) -> None:
    loader = make_loader(data_dir / "train.beton", batch_size=100, loader=name, dtype=torch.uint8)
    expected = [list(loader.epoch(epoch)) for epoch in (0, 1)]
    for pair, *wanted in zip(zip(loader.epoch(0), loader.epoch(1), strict=True), *expected, strict=True):
        for got, want in zip(pair, wanted, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))
    loader.close()


@pytest.mark.parametrize("name", LOADERS)
def test_kept_batches_hold_no_descriptors(data_dir: Path, name: str) -> None:
    loader = make_loader(data_dir / "train.beton", batch_size=4, loader=name)
    kept = []
    for number, batch in enumerate(loader.epoch(0)):
        kept.append(batch)
        if number == 20:
            early = len(os.listdir("/proc/self/fd"))
    assert len(kept) == 150
    assert len(os.listdir("/proc/self/fd")) <= early + 5
    loader.close()


@pytest.mark.parametrize("name", LOADERS)
def test_only_the_selected_indices_are_delivered(data_dir: Path, name: str) -> None:
    indices = np.arange(7, 600, 3)
    loader = make_loader(data_dir / "train.beton", batch_size=10, indices=indices, loader=name)
    seen = torch.cat([batch.indices for batch in epoch_of(loader)]).tolist()
    assert len(seen) == 190
    assert set(seen) <= set(indices.tolist())


@pytest.mark.parametrize("name", LOADERS)
def test_plain_iteration_goes_from_epoch_to_epoch(data_dir: Path, name: str) -> None:
    loader = make_loader(data_dir / "train.beton", batch_size=300, loader=name)
    first, second = ([batch.indices for batch in loader] for _ in range(2))
    expected = [batch.indices for batch in loader.epoch(1)]
    loader.close()
    assert not torch.equal(first[0], second[0])
    assert torch.equal(second[0], expected[0])


@pytest.mark.parametrize("name", LOADERS[1:])
def test_window_shuffle_is_the_same_on_every_loader(tmp_path: Path, name: str) -> None:
    source = Source(
        description="",
        class_names=tuple("abcdefghij"),
        splits={"train": SyntheticSplit(6_000, 0, 0), "test": SyntheticSplit(9, 0, 1)},
    )
    convert(source, tmp_path)
    settings: dict[str, Any] = {"batch_size": 100, "shuffle": "window", "dtype": torch.uint8}
    a, b = (next(make_loader(tmp_path / "train.beton", loader=n, **settings).epoch(0)) for n in ("resident", name))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("shuffle", ["full", "window"])
@pytest.mark.parametrize("name", LOADERS)
def test_a_balanced_sampler_draws_the_same_images_on_every_loader(
    unbalanced_dir: Path, name: str, shuffle: str
) -> None:
    settings: dict[str, Any] = {"batch_size": 60, "sampler": "balanced", "shuffle": shuffle, "seed": 2}
    loader = make_loader(unbalanced_dir / "train.beton", loader=name, **settings)
    expected = epoch_of(make_loader(unbalanced_dir / "train.beton", loader="resident", **settings), 1)
    got = epoch_of(loader, 1)
    for a, b in zip(got, expected, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        assert (a.labels.numpy() == loader.beton.labels[a.indices.numpy()]).all()
    indices = torch.cat([batch.indices for batch in got]).numpy()
    assert np.bincount(loader.beton.labels[indices]).tolist() == [300, 300]
    assert (len(loader), loader.num_images) == (10, 600)
    images = torch.cat([batch.images for batch in got])
    rare = [images[indices == index] for index in np.flatnonzero(loader.beton.labels)]
    assert all(len(each) == 10 and len(torch.unique(each, dim=0)) > 5 for each in rare), "repeats look the same"
    with pytest.raises(UsageError, match="sampler 'balanced' delivers some images twice"):
        loader.params(1)
    per_batch = [float(batch.labels.float().mean()) for batch in got]
    assert min(per_batch) > 0.2


def test_a_balanced_sampler_is_the_same_for_every_number_of_processes_and_from_the_middle(unbalanced_dir: Path) -> None:
    settings: dict[str, Any] = {"batch_size": 60, "sampler": "balanced"}
    whole = epoch_of(make_loader(unbalanced_dir / "train.beton", **settings), 3)
    for start in (0, 7):
        slices = [
            epoch_of(make_loader(unbalanced_dir / "train.beton", rank=rank, world_size=3, **settings), 3, start)
            for rank in range(3)
        ]
        for batch, *parts in zip(whole[start:], *slices, strict=True):
            for x, *y in zip(batch, *parts, strict=True):
                assert torch.equal(x, torch.cat(y))


@pytest.fixture(scope="module")
def jpeg_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jpeg")
    with synthetic_source(40, 20) as images:
        convert(images, folder, jpeg_quality=90)
    return folder


@pytest.fixture(scope="module")
def paged_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25,000 images of 8x8 on three pages, and a few more."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (25_000, 8, 8, 3), dtype=np.uint8)
    splits = {"train": ArraySplit(pixels), "test": ArraySplit(pixels[:9])}
    folder = tmp_path_factory.mktemp("paged")
    convert(Source(description="", class_names=("a", "b"), splits=splits), folder)
    return folder


@pytest.mark.parametrize("shuffle", ["window", pytest.param("full", marks=pytest.mark.slow)])
def test_pages_read_on_demand_give_the_same_batches(
    paged_dir: Path, shuffle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastcifar.loaders.order.WINDOW_PAGES", 1)
    settings: dict[str, Any] = {"batch_size": 700, "shuffle": shuffle, "dtype": torch.uint8}
    beton = open_beton(paged_dir / "train.beton")
    assert not beton.in_memory
    loader = make_loader(beton, loader="ffcv", **settings)
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    next(loader.epoch(0))
    gc.collect()
    assert not [t for t in threading.enumerate() if t.name.startswith("fastcifar-pages") or "Epoch" in repr(t)]
    assert len(os.listdir("/proc/self/fd")) == descriptors
    expected = make_loader(paged_dir / "train.beton", loader="resident", **settings)
    for start in (0, 20):
        for a, b in zip(loader.epoch(2, start), expected.epoch(2, start), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    loader.close()


def test_a_batch_of_a_large_file_looks_at_its_own_images_alone(
    paged_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    pages = Beton.pages.fget  # computed for all images at each use
    assert pages is not None
    monkeypatch.setattr(Beton, "pages", property(lambda beton: calls.append(beton) or pages(beton)))
    loader = make_loader(open_beton(paged_dir / "train.beton"), loader="ffcv", batch_size=700)
    batches = len(epoch_of(loader, 0))
    loader.close()
    assert 0 < len(calls) <= 3 < batches, "once for the epoch, once for its pages, once for the next epoch"


@pytest.mark.slow
def test_pages_read_on_demand_can_be_balanced(paged_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcifar.loaders.order.WINDOW_PAGES", 1)
    indices = np.flatnonzero((np.arange(25_000) % 2 == 0) | (np.arange(25_000) % 200 == 1))
    settings: dict[str, Any] = {"batch_size": 700, "shuffle": "window", "sampler": "balanced", "indices": indices}
    beton = open_beton(paged_dir / "train.beton")
    assert not beton.in_memory
    got = epoch_of(make_loader(beton, loader="ffcv", **settings), 1)
    expected = epoch_of(make_loader(paged_dir / "train.beton", loader="resident", **settings), 1)
    for a, b in zip(got, expected, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert abs(torch.cat([batch.labels for batch in got]).float().mean() - 0.5) < 0.01
    pages = beton.pages[torch.cat([batch.indices for batch in got]).numpy()]
    assert (np.diff(pages) != 0).sum() == len(np.unique(pages)) - 1, "a page is needed a second time"


def test_a_file_that_is_truncated_stops_the_epoch(paged_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.beton"
    for name in ("train.beton", "train.beton.json"):
        (tmp_path / name).write_bytes((paged_dir / name).read_bytes())
    loader = make_loader(open_beton(path), loader="ffcv", batch_size=500)
    batches = loader.epoch(0)
    os.truncate(path, path.stat().st_size // 3)
    with pytest.raises(DataError, match="ends at byte|was modified"):
        list(batches)
    with pytest.raises(DataError, match="was modified while it was in use"):
        next(loader.epoch(1))


def test_a_shuffle_that_needs_more_memory_than_is_free_is_refused(
    paged_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastcifar.loaders import ffcv_loader as ffcv_stream

    monkeypatch.setattr(ffcv_stream, "free_memory", lambda: 6 * 2**20)
    loader = make_loader(open_beton(paged_dir / "train.beton"), loader="ffcv", batch_size=500)
    message = "3 pages, 6 MiB, would be in memory at once; expected at most 4 MiB; use --shuffle"
    with pytest.raises(UsageError, match=message):
        next(loader.epoch(0))
    monkeypatch.setattr(ffcv_stream, "free_memory", lambda: 10 * 2**20)  # 7 MiB of it for the pages of all processes
    of_rank = {"loader": "ffcv", "batch_size": 500, "world_size": 4}
    with pytest.raises(UsageError, match="expected at most 1 MiB"):
        next(make_loader(loader.beton, rank=0, **of_rank).epoch(0))
    next(make_loader(loader.beton, rank=3, **of_rank).epoch(0))  # those of the others are no longer free


@needs_ffcv
def test_other_kernels_compile_next_to_ffcv(jpeg_dir: Path) -> None:
    """FFCV's own memory manager makes Numba's type of a writable array read-only, for everybody."""
    import numba

    next(make_loader(jpeg_dir / "train.beton", loader="ffcv", batch_size=20).epoch(0))

    @numba.njit
    def write(array: np.ndarray) -> None:
        array[0] = 1

    for shape in ((3,), (3, 4)):
        write(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("name", LOADERS)
def test_images_of_any_size_are_the_same_on_every_loader(tmp_path: Path, name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 70, 51, 3), dtype=np.uint8)
    splits = {"train": ArraySplit(pixels), "test": ArraySplit(pixels[:1])}
    convert(Source(description="", class_names=("a", "b"), splits=splits), tmp_path)
    augment = AugmentConfig(crop_padding=9, padding_mode="reflect", cutout_size=30, cutout_min_size=10)
    settings: dict[str, Any] = {"batch_size": 7, "loader": name}
    loader = make_loader(tmp_path / "train.beton", augment, dtype=torch.uint8, **settings)
    batches, table = epoch_of(loader), loader.params(0)
    assert len(batches) == 5
    fill = loader.config.fill
    for image, row in zip(batches[0].images, batches[0].indices.tolist(), strict=True):
        np.testing.assert_array_equal(
            image.permute(1, 2, 0).numpy(), augment_image(pixels[row], table[row], augment, fill)
        )
    (alone,) = epoch_of(make_loader(tmp_path / "test.beton", train=False, **settings))
    assert alone.images.shape == (1, 3, 70, 51)


@pytest.mark.parametrize("mean", [[120] * 4_000, [0, 0], [5.0], [float("nan")] * 3, [1e9] * 3, 3, "grey", [-1, 0, 0]])
def test_a_mean_that_is_not_three_numbers_never_reaches_a_kernel(data_dir: Path, mean: Any) -> None:
    for name in ("mean", "std"):
        with pytest.raises(UsageError, match=rf"{name} is .*; expected three numbers from 0 to 255"):
            make_loader(data_dir / "train.beton", batch_size=10, **{name: mean})


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.mark.parametrize(
    "given",
    [
        IMAGENET,
        {"mean": IMAGENET["mean"]},
        {"std": IMAGENET["std"]},
        {"mean": np.full(3, 0.5), "std": [63, 62, 66]},
        {"mean": (125, 122, 113), "std": torch.tensor([0.25, 0.24, 0.26])},
        {"mean": (1, 1, 1)},
        {"std": (0, 0, 0)},
        {"std": [1e-39] * 3},
        {"mean": (0, 0, 0), "std": (1 / 255,) * 3},
    ],
)
def test_statistics_of_the_scale_0_to_1_are_refused(data_dir: Path, given: dict[str, Any]) -> None:
    for name in ("resident", "ffcv", "albumentations"):
        with pytest.raises(UsageError, match=r"expected 0\.\.255; these look like 0\.\.1; multiply by 255"):
            make_loader(data_dir / "train.beton", batch_size=10, loader=name, **given)


@pytest.mark.parametrize(
    "given",
    [
        {"mean": (0, 0, 0), "std": (1, 1, 1)},
        {"mean": (125, 122, 113), "std": (1, 1, 1)},
        {"mean": (0, 0, 0), "std": (255, 255, 255)},
        {"mean": torch.tensor([125.0, 122.0, 113.0]), "std": np.float32([63, 62, 66])},
        {"mean": (0.3, 122, 113), "std": (0, 62, 66)},
    ],
)
def test_statistics_of_the_scale_0_to_255_are_accepted(data_dir: Path, given: dict[str, Any]) -> None:
    loader = make_loader(data_dir / "train.beton", batch_size=10, **given)
    assert loader.mean.tolist() == pytest.approx(np.asarray(given["mean"]).tolist())


def test_statistics_of_very_dark_images_are_accepted(tmp_path: Path) -> None:
    pixels = (np.random.default_rng(0).random((20, 8, 8, 3)) < 0.3).astype(np.uint8)
    splits = {"train": ArraySplit(pixels), "test": ArraySplit(pixels[:5] * 3)}
    convert(Source(description="", class_names=("a", "b"), splits=splits), tmp_path)
    train = make_loader(tmp_path / "train.beton", NO_AUGMENT, batch_size=5)
    assert train.mean.max() < 1
    make_loader(tmp_path / "test.beton", train=False, mean=train.mean, std=train.std)


@pytest.mark.parametrize("values", [torch.empty(3, device="meta"), torch.ones(3, requires_grad=True) * -1, [[1, 2, 3]]])
def test_invalid_statistics_are_an_error_of_one_line(data_dir: Path, values: Any) -> None:
    with pytest.raises(UsageError, match="expected three numbers from 0 to 255, for red, green and blue") as caught:
        make_loader(data_dir / "train.beton", batch_size=10, mean=values)
    assert "\n" not in str(caught.value)


def test_resident_keeps_a_copy_of_a_file_that_others_can_write_to(own_data_dir: Path) -> None:
    path = own_data_dir / "train.beton"
    loader = make_loader(open_beton(path), batch_size=10, loader="resident", dtype=torch.uint8)
    before = [batch.images for batch in loader.epoch(0)]
    os.truncate(path, 100)
    after = [batch.images for batch in loader.epoch(0)]
    loader.close()
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_albumentations_detects_a_file_that_changed(own_data_dir: Path) -> None:
    if missing_part("albumentations") is not None:
        pytest.skip("Albumentations is not installed")
    path = own_data_dir / "train.beton"
    loader = make_loader(open_beton(path), batch_size=10, loader="albumentations")
    batches = loader.epoch(0)
    next(batches)
    with path.open("r+b") as file:
        file.seek(MIN_PAGE_SIZE)  # pixels
        file.write(bytes(100))
    with pytest.raises(DataError, match="was modified while it was in use"):
        list(batches)
    loader.close()


def test_a_control_group_limits_the_workers(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing_part("albumentations") is not None:
        pytest.skip("Albumentations is not installed")
    monkeypatch.setattr("fastcifar.loaders.albumentations_loader.available_cpus", lambda: 1)
    loader = make_loader(data_dir / "train.beton", batch_size=100, loader="albumentations")
    assert loader.num_workers == 1
    loader.close()


def test_an_error_in_a_rare_transform_is_one_line_too(data_dir: Path, tmp_path: Path) -> None:
    albumentations = pytest.importorskip("albumentations")
    albumentations.save(albumentations.Compose([albumentations.Resize(9, 9, p=0.02)]), tmp_path / "rare.json")
    loader = make_loader(data_dir / "train.beton", read_pipeline(tmp_path / "rare.json"), batch_size=300)
    with pytest.raises(
        UsageError, match=r"^--augment: the pipeline returns uint8 of shape \(9, 9, 3\) for a uint8 image"
    ) as caught:
        list(loader.epoch(0))
    assert "\n" not in str(caught.value)
    loader.close()


FORK = """if True:
    import os, signal, sys, torch
    from fastcifar import AugmentConfig, FastcifarError, make_loader
    signal.alarm(60)  # a hang is a failure
    torch.set_num_threads(2)
    augment = AugmentConfig(mixup=0.4, cutmix=1.0)
    loader = make_loader(sys.argv[1], augment, batch_size=100, loader=sys.argv[2], dtype=torch.uint8)
    sums = [int(batch.images.sum()) for batch in loader.epoch(1)]
    begun = loader.epoch(2)
    first = next(begun)
    child = os.fork()
    if not child:
        try:
            signal.alarm(30)
            assert [int(batch.images.sum()) for batch in loader.epoch(1)] == sums
            try:
                next(begun)
            except FastcifarError as error:
                print(error, flush=True)
            loader.close()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(list(begun)) == 5
    assert [int(batch.images.sum()) for batch in loader.epoch(1)] == sums
    loader.close()
"""


def run_script(script: str, data_dir: Path, name: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", script, str(data_dir / "train.beton"), name]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOADERS)
def test_a_forked_child_can_use_the_loader_of_its_parent(data_dir: Path, name: str) -> None:
    answer = run_script(FORK, data_dir, name)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == "an epoch cannot continue in a forked process; begin a new one there\n"


FORK_AND_DROP = """if True:
    import os, signal, sys
    from fastcifar import make_loader
    signal.alarm(60)  # a hang is a failure
    loader = make_loader(sys.argv[1], batch_size=100, loader=sys.argv[2])
    begun = [loader.epoch(0), loader.epoch(1)]
    for batches in begun:
        next(batches)
    child = os.fork()
    if not child:
        signal.alarm(30)
        del batches, begun, loader
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [len(list(batches)) for batches in begun] == [5, 5]
    loader.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", LOADERS)
def test_a_forked_child_that_drops_the_loader_leaves_it_to_its_parent(data_dir: Path, name: str) -> None:
    answer = run_script(FORK_AND_DROP, data_dir, name)
    assert (answer.returncode, answer.stderr) == (0, "")


@pytest.mark.parametrize("name", LOADERS)
def test_a_loader_without_references_is_freed_at_once(
    data_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No cycle refers to it, nor does the plan of its next epoch: if it is collected late, its workers end late, which
    torch does not handle well."""
    dropped = threading.Event()

    def slow_sample_params(augment: AugmentConfig, seed: int, epoch: int, *shape: Any) -> Any:
        assert epoch == 0 or dropped.wait(60)
        return sample_params(augment, seed, epoch, *shape)

    monkeypatch.setattr("fastcifar.loaders.base.sample_params", slow_sample_params)
    gc.collect()
    gc.disable()
    try:
        loader = make_loader(data_dir / "train.beton", batch_size=100, loader=name)
        next(loader.epoch(0))
        gone = weakref.ref(loader)
        del loader
        assert gone() is None
    finally:
        dropped.set()
        gc.enable()


@pytest.mark.slow
@pytest.mark.parametrize("name", LOADERS)
def test_a_loader_that_is_not_closed_exits_cleanly(data_dir: Path, name: str) -> None:
    code = """if True:
        import sys
        from fastcifar import make_loader
        loader = make_loader(sys.argv[1], batch_size=100, loader=sys.argv[2])
        for batch in loader:
            break
    """
    command = [sys.executable, "-W", "ignore", "-c", code, str(data_dir / "train.beton"), name]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (answer.returncode, answer.stderr) == (0, "")


@pytest.mark.parametrize("name", LOADERS)
def test_a_closed_loader_says_so(data_dir: Path, name: str) -> None:
    loader = make_loader(data_dir / "train.beton", batch_size=100, loader=name)
    batches = loader.epoch(0)
    next(batches)
    loader.close()
    loader.close()
    for use in (lambda: next(batches), lambda: loader.epoch(1), lambda: iter(loader)):
        with pytest.raises(FastcifarError, match="^the loader is closed; create a new one with make_loader$"):
            use()


def test_an_error_in_the_thread_of_the_ffcv_loader_reaches_the_caller(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastcifar.loaders import ffcv_loader as ffcv_stream

    def fail(*args: object) -> None:
        raise RuntimeError("the decoder broke")

    monkeypatch.setattr(ffcv_stream._Epoch, "images", fail)
    loader = make_loader(data_dir / "train.beton", batch_size=20, loader="ffcv")
    with pytest.raises(FastcifarError, match=r"train\.beton: reading failed .RuntimeError: the decoder broke"):
        next(loader.epoch(0))


@pytest.mark.slow
@needs_ffcv
def test_importing_ffcv_compiles_nothing_and_leaves_numba_and_ffcv_as_they_are(data_dir: Path) -> None:
    code = """if True:
        from numba.core.event import install_recorder
        import fastcifar.augment.numba_kernel
        with install_recorder("numba:compile") as compiled:
            import fastcifar.loaders.numba_jpeg
        assert not compiled.buffer
        import sys, numba.typed
        from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
        from ffcv.loader import Loader
        numbers = numba.typed.Dict()
        numbers[1] = 2
        pipelines = {"image": [RandomResizedCropRGBImageDecoder((24, 24))], "label": None}
        images, = next(iter(Loader(sys.argv[1], batch_size=8, num_workers=1, pipelines=pipelines)))
        assert numbers[1] == 2 and images.shape == (8, 24, 24, 3)
    """
    subprocess.run([sys.executable, "-c", code, str(data_dir / "train.beton")], check=True)


@pytest.mark.slow
@needs_ffcv
def test_a_second_process_compiles_nothing_to_decode_jpeg_images(jpeg_dir: Path, tmp_path: Path) -> None:
    code = """if True:
        import sys
        from numba.core.event import install_recorder
        from fastcifar import make_loader
        with install_recorder("numba:compile") as compiled:
            next(make_loader(sys.argv[1], batch_size=8, loader="ffcv").epoch(0))
        print(len(compiled.buffer))
    """
    variables = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code, str(jpeg_dir / "train.beton")]
    first, second = (
        int(subprocess.run(command, env=variables, check=True, capture_output=True, text=True).stdout) for _ in range(2)
    )
    assert (first > 0, second) == (True, 0)


@needs_ffcv
def test_ffcv_leaves_torchs_threads_alone(jpeg_dir: Path) -> None:
    """In a process of its own: FFCV sets them when it is imported."""
    code = """if True:
        import sys, torch
        from fastcifar import make_loader
        torch.set_num_threads(3)
        list(make_loader(sys.argv[1], batch_size=20, loader="ffcv").epoch(0))
        print("ffcv" in sys.modules, torch.get_num_threads())
    """
    command = [sys.executable, "-c", code, str(jpeg_dir / "train.beton")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() == ["True", "3"]


@pytest.mark.slow
def test_a_killed_worker_is_an_error_and_not_a_hang(data_dir: Path) -> None:
    """In a process of its own: torch raises the error from a signal handler, wherever the main thread is then."""
    if missing_part("albumentations") is not None:
        pytest.skip("Albumentations is not installed")
    code = """if True:
        import os, signal, sys
        from pathlib import Path
        from fastcifar import FastcifarError, make_loader
        try:
            batches = make_loader(sys.argv[1], batch_size=5, loader="albumentations").epoch(0)
            next(batches)
            children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
            os.kill(int(children[0]), 9)
            list(batches)
        except (FastcifarError, RuntimeError) as error:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else torch may raise it once more
            print("raised:", error, flush=True)
        os._exit(0)
    """
    command = [sys.executable, "-c", code, str(data_dir / "train.beton")]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert answer.stdout.startswith("raised:"), answer.stderr
    assert "worker" in answer.stdout


@pytest.mark.parametrize("name", LOADERS)
def test_what_was_checked_is_what_is_read(own_data_dir: Path, name: str) -> None:
    path = own_data_dir / "train.beton"
    loader = make_loader(path, batch_size=10, loader=name, dtype=torch.uint8)
    before = [batch.images for batch in loader.epoch(0)]
    path.write_bytes(bytes(path.stat().st_size))
    path.unlink()
    after = [batch.images for batch in loader.epoch(0)]
    loader.close()
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_beton_is_open_when_no_thread_imports_any_more(
    data_dir: Path, tmp_path: Path, is_damaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numba imports parts of packages that the caller imports next: in two threads at once that can be a deadlock."""
    loaded = []
    monkeypatch.setattr("fastcifar.loaders.choose._load_cpu_kernel", lambda: (time.sleep(0.3), loaded.append(True)))
    path = data_dir / "train.beton"
    if is_damaged:
        path = tmp_path / "train.beton"
        path.write_bytes(b"no beton")
    with pytest.raises(DataError) if is_damaged else nullcontext():
        open_for("resident", path)
    assert loaded


def test_auto_chooses_by_size(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    betons = [open_beton(data_dir / f"{split}.beton") for split in ("train", "test")]
    num_bytes = sum(beton.num_bytes for beton in betons)
    monkeypatch.setattr("fastcifar.loaders.choose.free_memory", lambda device: 2 * num_bytes)
    assert choose_loader("auto", betons).name == "resident"
    monkeypatch.setattr("fastcifar.loaders.choose.free_memory", lambda device: num_bytes)
    assert choose_loader("auto", betons[1:]).name == "resident"
    assert choose_loader("auto", betons).name == "ffcv"
    assert choose_loader("resident", betons).name == "resident"


def test_auto_counts_what_is_still_to_be_copied_by_all_processes(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = data_dir / "train.beton"
    size = path.stat().st_size
    monkeypatch.setattr("fastcifar.loaders.choose.free_memory", lambda device=None: 2 * size)
    assert choose_loader("auto", [path]).name == "resident"
    assert choose_loader("auto", [path], num_processes=2).name == "ffcv"
    opened = open_beton(path, in_memory=True)
    monkeypatch.setattr("fastcifar.loaders.choose.free_memory", lambda device: 1)
    assert choose_loader("auto", [opened]).name == "resident"


def test_make_loader_counts_the_other_processes(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = data_dir / "train.beton"
    size = path.stat().st_size
    monkeypatch.setattr("fastcifar.loaders.choose.free_memory", lambda device=None: 2 * size)
    assert make_loader(path, rank=0, world_size=2).name == "ffcv"
    assert make_loader(path, rank=1, world_size=2).name == "resident"  # the copy of the other is no longer free


def test_auto_needs_memory_for_the_copy_that_a_gpu_gets(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, free = torch.device("cuda"), {"cuda": 80 * 2**30, "cpu": 2**20}
    monkeypatch.setattr("fastcifar.loaders.choose.usable_device", lambda device: gpu)
    monkeypatch.setattr(
        "fastcifar.loaders.choose.free_memory", lambda device=None: free["cpu" if device is None else device.type]
    )
    choice = choose_loader("auto", [data_dir / "train.beton"], device=gpu)
    assert (choice.name, "do not fit into CPU memory" in choice.reason) == ("ffcv", True)
    free["cpu"], free["cuda"] = free["cuda"], free["cpu"]
    choice = choose_loader("auto", [data_dir / "train.beton"], device=gpu)
    assert (choice.name, "do not fit into CUDA memory" in choice.reason) == ("ffcv", True)


def test_the_batch_size_of_ffcv_costs_no_memory_beyond_the_dataset(data_dir: Path) -> None:
    tracemalloc.start()
    try:
        loader = make_loader(data_dir / "test.beton", loader="ffcv", train=False, batch_size=10**7)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [len(batch.labels) for batch in epoch_of(loader)] == [200]
    assert peak < 2**25


def test_ffcv_copies_from_the_cpu_whatever_the_default_device_is(data_dir: Path) -> None:
    loader: Any = make_loader(data_dir / "test.beton", loader="ffcv", train=False)
    loader.config = replace(loader.config, device=torch.device("meta"))  # in place of a GPU
    loader._kernel = Mock()
    with torch.device("meta"):
        loader._launch(np.zeros((2, 32, 32, 3), np.uint8), loader.plan(0).params[:2])
    assert loader._kernel.launch.call_args.args[0].shape == (2 * 32 * 32 * 3,)


def test_a_closed_loader_holds_no_copy_of_the_dataset(data_dir: Path) -> None:
    beton = open_beton(data_dir / "train.beton")
    loader = make_loader(beton, loader="resident", batch_size=20)
    next(loader.epoch(0))
    assert beton.file.loaded
    loader.close()
    assert not beton.file.loaded


def test_loaders_of_one_beton_hold_it_once(data_dir: Path) -> None:
    beton = open_beton(data_dir / "train.beton")
    reads: list[int] = []
    read_into = beton.file.read_into
    beton.file.read_into = lambda out, start: (reads.append(len(out)), read_into(out, start))[1]  # type: ignore[method-assign]
    loaders = [make_loader(beton, loader="resident", batch_size=20, train=train) for train in (True, False)]
    assert reads == [beton.num_bytes]
    first, second = (next(loader.epoch(0)) for loader in loaders)
    assert first.images.shape == second.images.shape
    for loader in loaders:
        loader.close()  # waits for the batch that its threads make ahead, which refers to the data
    del loaders, loader, first, second
    gc.collect()
    assert not beton.file.loaded, "it is kept after the last loader"


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("numba", [True, False])
def test_a_rank_may_have_no_image_of_the_last_batch(
    name: str, in_memory: bool, numba: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not numba:
        monkeypatch.setattr("fastcifar.loaders.ffcv_loader.make_kernel", TorchKernel)
        monkeypatch.setattr("fastcifar.loaders.resident.make_kernel", TorchKernel)
    pixels = np.full((5, 8, 8, 3), 100, np.uint8)
    splits = {"train": ArraySplit(pixels), "test": ArraySplit(pixels[:1])}
    convert(Source(description="", class_names=("a", "b"), splits=splits), tmp_path)
    for split, expected in (("train", [1, 0]), ("test", [0])):
        beton = open_beton(tmp_path / f"{split}.beton", in_memory=in_memory)
        loader = make_loader(beton, loader=name, train=False, batch_size=4, rank=3, world_size=4)
        assert [batch.images.shape for batch in epoch_of(loader)] == [(num, 3, 8, 8) for num in expected]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; expected 1 or more"),
        ({"batch_size": 601}, "batch_size is 601; expected at most 600, the number of training images"),
        ({"loader": "dali"}, "loader is 'dali'; expected one of: auto, resident, ffcv, albumentations"),
        ({"shuffle": "half"}, "shuffle is 'half'; expected one of: full, window, none"),
        ({"dtype": torch.int64}, r"dtype is torch\.int64; expected one of"),
        ({"indices": [600]}, r"indices is 600\.\.600; expected 0\.\.599"),
        ({"indices": [1, 1]}, "indices has duplicates"),
        ({"indices": []}, "indices is empty; expected at least one image"),
        ({"augment": AugmentConfig(cutout_size=40)}, "cutout_size is 40; the images are 32x32"),
        ({"train": False, "augment": AugmentConfig()}, "augment is given with train=False"),
        ({"sampler": "even"}, "sampler is 'even'; expected one of: none, balanced"),
        ({"train": False, "sampler": "balanced"}, "sampler is 'balanced' with train=False"),
        ({"train": "no"}, "train is 'no'; expected True or False"),
        ({"augment": {"flip": True}}, "augment is {'flip': True}; expected an AugmentConfig"),
        ({"channels_last": 2}, "channels_last is 2; expected True or False"),
        ({"seed": -1}, f"seed is -1; expected 0..{2**63 - 1}"),
        ({"seed": 2**63}, "seed is 9223372036854775808; expected 0"),
        ({"seed": True}, "seed is True; expected a whole number"),
        ({"seed": 1.5}, r"seed is 1\.5; expected a whole number"),
        ({"device": "banana"}, "device is 'banana' .*; expected an available device"),
        ({"device": "cuda:99"}, "device is 'cuda:99' .*; expected an available device"),
        ({"device": "meta"}, "device is 'meta' .*; expected an available device"),
        ({"device": None}, "device is 'None' .*; expected an available device"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(data_dir: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_loader(data_dir / "train.beton", **settings)


def test_integers_of_numpy_are_accepted(data_dir: Path) -> None:
    one, other = (
        next(make_loader(data_dir / "train.beton", batch_size=kind(100), seed=kind(3)).epoch(kind(2), start=kind(1)))
        for kind in (int, np.int64)
    )
    assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


@pytest.mark.parametrize("name", LOADERS)
def test_epochs_and_batches_are_counted_from_0(data_dir: Path, name: str) -> None:
    loader = make_loader(data_dir / "train.beton", batch_size=100, loader=name)
    for numbers, message in (((-1, 0), "epoch is -1; expected 0"), ((0, -1), "start is -1; expected 0 or more")):
        with pytest.raises(UsageError, match=message):
            loader.epoch(*numbers)
    with pytest.raises(UsageError, match=r"epoch is 1\.5; expected a whole number"):
        loader.epoch(1.5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="epoch is -1; expected 0"):
        loader.params(-1)
    loader.close()


def test_a_damaged_beton_never_reaches_a_loader(own_data_dir: Path) -> None:
    path = own_data_dir / "train.beton"
    path.write_bytes(path.read_bytes()[:-1])
    for name in ("resident", "ffcv", "albumentations", "auto"):
        with pytest.raises(DataError, match="damaged"):
            make_loader(path, loader=name, batch_size=4)
    manifest_path(path).unlink()
    with pytest.raises(DataError, match="damaged"):
        make_loader(path, loader="ffcv", batch_size=4)


def test_test_images_are_normalised_by_the_training_images(data_dir: Path) -> None:
    train = make_loader(data_dir / "train.beton", batch_size=10)
    test = make_loader(data_dir / "test.beton", train=False, batch_size=10, mean=train.mean, std=train.std)
    image = open_beton(data_dir / "test.beton").images([0])[0]
    got = next(test.epoch(0)).images[0].numpy()
    np.testing.assert_array_equal(got, normalise_image(image, train.mean, train.std))
    assert not np.array_equal(got, normalise_image(image, test.beton.mean, test.beton.std))


@pytest.mark.gpu
@pytest.mark.parametrize("name", LOADERS)
def test_the_gpu_gets_the_same_batches(data_dir: Path, name: str) -> None:
    cpu = epoch_of(make_loader(data_dir / "train.beton", batch_size=64, loader="resident"))
    gpu = epoch_of(make_loader(data_dir / "train.beton", batch_size=64, loader=name, device="cuda"))
    for a, b in zip(cpu, gpu, strict=True):
        assert b.images.device.type == "cuda"
        assert all(torch.equal(x, y.cpu()) for x, y in zip(a, b, strict=True))


@pytest.fixture
def pipeline_file(tmp_path: Path) -> Path:
    albumentations = pytest.importorskip("albumentations")
    parts = [
        albumentations.HorizontalFlip(p=0.5),
        albumentations.VerticalFlip(p=0.5),
        albumentations.OneOf([albumentations.ToGray(p=1.0), albumentations.InvertImg(p=1.0)], p=0.5),
    ]
    albumentations.save(albumentations.Compose(parts), tmp_path / "pipeline.json")
    return tmp_path / "pipeline.json"


def test_a_saved_pipeline_is_a_function_of_seed_epoch_and_image(
    data_dir: Path, pipeline_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    augment = read_pipeline(pipeline_file)
    loader = make_loader(data_dir / "train.beton", augment, batch_size=100, dtype=torch.uint8, seed=4)
    assert loader.name == "albumentations"
    epochs = {epoch: list(loader.epoch(epoch)) for epoch in (0, 1)}
    loader.close()
    monkeypatch.setattr("fastcifar.loaders.albumentations_loader.available_cpus", lambda: 1)
    alone = make_loader(data_dir / "train.beton", augment, batch_size=100, dtype=torch.uint8, seed=4)
    for a, b in zip(epochs[1][3:], epoch_of(alone, 1, start=3), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    rows = [torch.cat([batch.indices for batch in epochs[epoch]]).argsort() for epoch in (0, 1)]
    first, second = (torch.cat([b.images for b in epochs[e]])[order] for e, order in zip((0, 1), rows, strict=True))
    assert 0.5 < (first != second).flatten(1).any(1).float().mean() < 1, "an image looks the same in both epochs"
    originals = torch.from_numpy(loader.beton.images(np.arange(600))).permute(0, 3, 1, 2)
    both = (first == originals.flip((2, 3))).flatten(1).all(1).float().mean()
    one = (first == originals.flip(3)).flatten(1).all(1).float().mean()
    assert abs(both - 0.125) < 0.06, "the parts of a pipeline draw alike"
    assert abs(one - 0.125) < 0.06


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ('{"__class_fullname__": "Nothing", "p": 1.0}', "Albumentations cannot build this pipeline .*Nothing"),
        ('{"__class_fullname__": "HorizontalFlip", "p": 1.0, "wat": 5}', "does not know wat=5 of HorizontalFlip"),
        (
            '{"__class_fullname__": "PadIfNeeded", "min_height": 9, "min_width": 9, "padding": 3, "p": 1.0}',
            "does not know padding=3 of PadIfNeeded; expected",
        ),
        ('{"__class_fullname__": "Normalize", "p": 1.0}', "returns float32 of shape .* remove Normalize"),
        ('{"__class_fullname__": "ToTensorV2", "p": 1.0}', "remove Normalize and ToTensorV2"),
        ('{"__class_fullname__": "RandomCrop", "height": 64, "width": 64, "p": 1.0}', "fails on an image"),
        ('{"__class_fullname__": "Resize", "height": 9, "width": 9, "p": 1.0}', "shape .9, 9, 3."),
    ],
)
def test_a_pipeline_that_cannot_be_used_is_an_error_of_one_line(
    data_dir: Path, tmp_path: Path, parts: str, message: str
) -> None:
    pytest.importorskip("albumentations")
    file = tmp_path / "pipeline.json"
    file.write_text(f'{{"transform": {{"__class_fullname__": "Compose", "p": 1.0, "transforms": [{parts}]}}}}')
    with pytest.raises(UsageError, match=message) as caught:
        make_loader(data_dir / "train.beton", read_pipeline(file), batch_size=10)
    assert "\n" not in str(caught.value)


# What some need; those that cannot be made without more, or not saved, are left out.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "CenterCrop": {"height": 32, "width": 32},
    "CropAndPad": {"px": 2},
    "PadIfNeeded": {"min_height": 40, "min_width": 40},
    "RandomCrop": {"height": 32, "width": 32},
    "RandomResizedCrop": {"size": (32, 32)},
    "RandomSizedCrop": {"min_max_height": (20, 30), "size": (32, 32)},
    "Resize": {"height": 32, "width": 32},
}


def saved_alone(albumentations: Any, name: str) -> str | None:
    """The transform as `A.save` writes it; None where it cannot be made or saved so, or changes uint8 images' kind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compose = albumentations.Compose([getattr(albumentations, name)(p=1.0, **ARGUMENTS.get(name, {}))])
            made = compose(image=np.zeros((32, 32, 3), np.uint8))["image"]
            text = json.dumps(albumentations.to_dict(compose))
        except Exception:  # noqa: BLE001 (whatever they raise)
            return None
        return text if isinstance(made, np.ndarray) and made.dtype == np.uint8 else None


def test_every_transform_that_albumentations_saves_can_be_used() -> None:
    albumentations = pytest.importorskip("albumentations")
    from fastcifar.augment.albumentations_kernel import Pipeline

    kinds = (albumentations.ImageOnlyTransform, albumentations.DualTransform)
    names = [name for name, value in vars(albumentations).items() if isinstance(value, type)]
    texts = {n: saved_alone(albumentations, n) for n in names if issubclass(getattr(albumentations, n), kinds)}
    used = {name: Pipeline(text) for name, text in texts.items() if text is not None}
    assert {"PadIfNeeded", "RGBShift", "SafeRotate", "ShiftScaleRotate", "PiecewiseAffine"} <= set(used)
    assert len(used) > 80


def test_the_usual_pipeline_of_cifar_can_be_used(data_dir: Path, tmp_path: Path) -> None:
    albumentations = pytest.importorskip("albumentations")
    parts = [albumentations.PadIfNeeded(40, 40), albumentations.RandomCrop(32, 32), albumentations.HorizontalFlip()]
    for form in ("json", "yaml"):
        albumentations.save(albumentations.Compose(parts), tmp_path / f"cifar.{form}", data_format=form)
    settings: dict[str, Any] = {"batch_size": 100, "dtype": torch.uint8}
    by_form = [
        epoch_of(make_loader(data_dir / "train.beton", read_pipeline(tmp_path / f"cifar.{form}"), **settings))
        for form in ("json", "yaml")
    ]
    assert all(torch.equal(a.images, b.images) for a, b in zip(*by_form, strict=True))
    originals = open_beton(data_dir / "train.beton").images(by_form[0][0].indices)
    changed = (by_form[0][0].images.permute(0, 2, 3, 1).numpy() != originals).any(axis=(1, 2, 3))
    assert changed.mean() > 0.9


@pytest.mark.parametrize(
    "text",
    ["", "[1]", "{", '{"transform": 3}', "{a: &a [1], transform: {b: *a}}", "!!python/object/apply:os.system ['true']"],
)
def test_a_file_that_is_not_a_pipeline_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"pipeline\.yaml: not a pipeline"):
        read_pipeline(file)
    with pytest.raises(UsageError, match="no such file"):
        read_pipeline(tmp_path / "nowhere.json")


def test_a_pipeline_is_only_for_the_albumentations_loader(data_dir: Path, pipeline_file: Path) -> None:
    with pytest.raises(UsageError, match="is for loader 'albumentations'; this is 'resident'"):
        make_loader(data_dir / "train.beton", read_pipeline(pipeline_file), batch_size=10, loader="resident")
    with pytest.raises(UsageError, match="pipeline is given"):
        replace(AugmentConfig(), pipeline=read_pipeline(pipeline_file).pipeline)
    for tone in ({"brightness": 1}, {"contrast": 0.1}):
        with pytest.raises(UsageError, match="pipeline is given"):
            replace(NO_AUGMENT, pipeline="{}", **tone)  # type: ignore[arg-type]
