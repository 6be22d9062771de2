"""Data that many tests share, made once."""

from __future__ import annotations

import logging
import os
import re
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import PIL.Image
import pytest
import torch
from matplotlib.figure import Figure

from fastcifar import plotting
from fastcifar.audit import duplicates
from fastcifar.converters import Sample, Source, convert
from fastcifar.converters.synthetic import source as synthetic_source
from fastcifar.data import tables
from fastcifar.errors import FastcifarError
from fastcifar.models import small

QUICK = pytest.MonkeyPatch()
REAL_SOURCE = os.environ.pop("FASTCIFAR_SOURCE", "")  # the tests that want it take the fixture `real_source`


def quick_training() -> None:
    """In this process `small` has seven thousand parameters, a run's curves and a report's drawings are empty, an audit
    draws few pairs at random, betons have the smallest pages that FFCV reads, and no file is synced."""
    QUICK.setattr(os, "fsync", lambda descriptor: None)
    QUICK.setattr(small, "WIDTHS", (8, 8, 16))
    QUICK.setattr(duplicates, "NUM_RANDOM_PAIRS", 400)
    QUICK.setattr(tables, "PAGE_SIZE", tables.MIN_PAGE_SIZE)
    curves, svg = plotting.curves, plotting.svg
    empty = partial(Figure, figsize=(1, 1))
    QUICK.setattr(plotting, "curves", lambda *given, **more: curves(*given, **more) if given[1:] else empty())
    QUICK.setattr(plotting, "svg", lambda figure: svg(empty()))


def pytest_configure() -> None:
    quick_training()
    # a shell's background jobs, and what they start, ignore Ctrl-C; the programs that tests start must not inherit that
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "real_data" in item.keywords and not REAL_SOURCE:
            item.add_marker(pytest.mark.skip(reason="FASTCIFAR_SOURCE does not name real images"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _no_message_holds_a_memory_address() -> Iterator[None]:
    """Of all that is raised, logged or printed by the package in any test."""
    said: list[str] = []
    init, echo, logger = FastcifarError.__init__, click.echo, logging.getLogger("fastcifar")

    def raised(self: FastcifarError, *args: object) -> None:
        init(self, *args)
        said.append(str(self))

    def printed(message: object = None, *args: Any, **more: Any) -> None:
        said.append(str(message))
        echo(message, *args, **more)

    class Logged(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler = Logged()
    logger.addHandler(handler)
    FastcifarError.__init__, click.echo = raised, printed  # type: ignore[method-assign]
    try:
        yield
    finally:
        FastcifarError.__init__, click.echo = init, echo  # type: ignore[method-assign]
        logger.removeHandler(handler)
    assert [text for text in said if re.search(r" object at 0x|\bat 0x[0-9a-f]{6}", text)] == []


@pytest.fixture(autouse=True)
def _full_size(request: pytest.FixtureRequest) -> Iterator[None]:
    if "full_size" not in request.keywords:
        yield
        return
    QUICK.undo()
    try:
        yield
    finally:
        quick_training()


@pytest.fixture(scope="session")
def real_source() -> str:
    return REAL_SOURCE


@pytest.fixture(scope="session")
def real_dir(tmp_path_factory: pytest.TempPathFactory, real_source: str) -> Path:
    """The real images, converted."""
    from fastcifar.converters import open_source

    folder = tmp_path_factory.mktemp("real")
    with open_source(real_source) as source:
        convert(source, folder)
    return folder


def synthetic_data(folder: Path, num_train: int, num_test: int) -> Path:
    """`folder`, with so many synthetic images, converted."""
    with synthetic_source(num_train, num_test) as source:
        convert(source, folder)
    return folder


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 synthetic training images and 200 test images, converted. Not to be written to."""
    return synthetic_data(tmp_path_factory.mktemp("data"), 600, 200)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 synthetic training images and 40 test images, converted. Not to be written to."""
    return synthetic_data(tmp_path_factory.mktemp("tiny"), 80, 40)


@pytest.fixture(scope="session")
def unbalanced_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """570 images of one class and 30 of another, 8x8, converted. Not to be written to."""
    pixels = np.random.default_rng(0).integers(0, 256, (600, 8, 8, 3), dtype=np.uint8)
    labels = [int(i % 20 == 3) for i in range(600)]

    class Split:
        def __len__(self) -> int:
            return len(labels)

        def __iter__(self) -> Iterator[Sample]:
            yield from map(Sample, pixels, labels)

    folder = tmp_path_factory.mktemp("unbalanced")
    convert(Source(description="", class_names=("a", "b"), splits={"train": Split(), "test": Split()}), folder)
    return folder


@pytest.fixture
def ordinary_algorithms() -> Iterator[None]:
    """Undoes what `--deterministic` sets for the process."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def own_data_dir(tmp_path: Path) -> Path:
    """30 and 20 synthetic images, converted, for a test to damage."""
    return synthetic_data(tmp_path / "data", 30, 20)


ImageFolder = Callable[..., Path]


@pytest.fixture
def image_folder(tmp_path: Path) -> ImageFolder:
    """Makes a folder of images: two classes, PNG, random pixels."""

    def make(name: str = "images", classes: tuple[str, ...] = ("cat", "dog"), each: int = 3, side: int = 8) -> Path:
        root = tmp_path / name
        random = np.random.default_rng(0)
        for split in ("train", "test"):
            for class_name in classes:
                folder = root / split / class_name
                folder.mkdir(parents=True)
                for number in range(each):
                    pixels = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
                    PIL.Image.fromarray(pixels).save(folder / f"{number:02d}.png")
        return root

    return make
