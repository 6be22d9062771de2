"""What was checked is what is read, whatever happens to the file meanwhile."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch

from fastcifar import AugmentConfig, loaders, make_loader
from fastcifar.errors import DataError
from fastcifar.loaders import Loader
from tests.trust.cases import count, is_refused

LOADERS = ("resident", "ffcv", "albumentations")
WHEN = ("before", "during", "between")
NUM_EPOCHS = 2


def deleted(path: Path) -> None:
    path.unlink()


def replaced(path: Path) -> None:
    other = path.with_name("other.beton")
    other.write_bytes(os.urandom(2**20))
    other.replace(path)


def truncated(path: Path) -> None:
    os.truncate(path, 2**20)


def overwritten(path: Path) -> None:
    """Other pixels, the size and the times of before."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(8 * 2**20)
        file.write(os.urandom(2**20))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES = (deleted, replaced, truncated, overwritten)


def delivered(loader: Loader, when: str, change: Callable[[], None]) -> list[torch.Tensor]:
    """All batches of two epochs; `change` is called before the first, after its first batch, or between them."""
    found = []
    if when == "before":
        change()
    for epoch in range(NUM_EPOCHS):
        for number, batch in enumerate(loader.epoch(epoch)):
            found.append(batch.images.clone())
            if when == "during" and (epoch, number) == (0, 0):
                change()
        if when == "between" and epoch == 0:
            change()
    return found


def opened(path: Path, loader: str) -> Loader:
    return make_loader(path, AugmentConfig(), loader=loader, batch_size=4, shuffle="window")


@pytest.fixture
def copy(own_data_dir: Path, tmp_path: Path) -> Callable[[], Path]:
    """Makes a fresh copy of a beton and its manifest."""

    def make() -> Path:
        folder = tmp_path / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(own_data_dir, folder)
        return folder / "train.beton"

    return make


@pytest.mark.parametrize("name", LOADERS)
def test_what_fits_into_memory_is_read_as_it_was_checked(
    copy: Callable[[], Path], name: str, tally: Callable[[str], None]
) -> None:
    with closing(opened(copy(), name)) as loader:
        expected = delivered(loader, "never", lambda: None)
    cases = [(change, when) for change in CHANGES for when in WHEN][:: count(5, 1)]
    for change, when in cases:
        path = copy()
        with closing(opened(path, name)) as loader:
            found = delivered(loader, when, lambda: change(path))  # noqa: B023 (called before the next case)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), (change.__name__, when)
    tally(f"{name}, in memory: {len(cases)} changes, none of them seen")


@pytest.mark.parametrize("name", LOADERS[1:])
def test_of_what_does_not_fit_a_change_ends_the_run(
    copy: Callable[[], Path], name: str, tally: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or is not seen: a file that was deleted or replaced is open still."""
    with closing(opened(copy(), name)) as loader:
        expected = delivered(loader, "never", lambda: None)
    monkeypatch.setattr(loaders, "SHARE_OF_MEMORY", 0)
    cases = [(change, when) for change in CHANGES for when in WHEN][:: count(5, 1)]
    for change, when in cases:
        path, found = copy(), []
        with closing(opened(path, name)) as loader:
            assert not loader.beton.private
            if change in (truncated, overwritten):
                with pytest.raises(DataError) as refusal:
                    delivered(loader, when, lambda: change(path))  # noqa: B023
                assert is_refused(refusal.value), (change.__name__, when)
                continue
            found = delivered(loader, when, lambda: change(path))  # noqa: B023
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), (change.__name__, when)
    tally(f"{name}, larger than memory: {len(cases)} changes, each unseen or refused by the end of the epoch")


def test_a_file_that_shrinks_while_it_is_hashed_is_refused(own_data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that is no longer there kills a process that reads it through a map."""
    from fastcifar import beton

    path, real = own_data_dir / "train.beton", beton.hashlib.sha256

    def shrinking() -> object:
        os.truncate(path, 2**20)
        return real()

    monkeypatch.setattr(beton.hashlib, "sha256", shrinking)
    with pytest.raises(DataError) as refusal:
        beton.open_beton(path)
    assert is_refused(refusal.value)
