"""A beton that is modified during a run: a copy in memory is not affected; a file that is read is watched."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from fastcifar import AugmentConfig, make_loader, open_beton
from fastcifar.config import ExplainConfig, TrainConfig
from fastcifar.data.tables import MIN_PAGE_SIZE
from fastcifar.errors import DataError
from fastcifar.explain import explain_run
from fastcifar.inference.evaluation import evaluate_run
from fastcifar.inference.trained_run import TrainedRun
from fastcifar.loaders import Loader, choose
from fastcifar.training import RunFolder, train
from fastcifar.training.progress import SilentReporter
from tests.test_loaders import LOADERS
from tests.trust.cases import LONGEST_S, count, is_refused

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
    """Other pixels, the same size."""
    with path.open("r+b") as file:
        file.seek(MIN_PAGE_SIZE)
        file.write(os.urandom(2**20))


CHANGES = (deleted, replaced, truncated, overwritten)


def delivered(loader: Loader, when: str, change: Callable[[], None]) -> list[torch.Tensor]:
    """All batches of two epochs; `change` is called before them, between them, or after the first batch of the last."""
    found = []
    if when == "before":
        change()
    for epoch in range(NUM_EPOCHS):
        for number, batch in enumerate(loader.epoch(epoch)):
            found.append(batch.images.clone())
            if when == "during" and (epoch, number) == (NUM_EPOCHS - 1, 0):
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
def test_a_change_of_what_does_not_fit_into_memory_ends_the_run(
    copy: Callable[[], Path], name: str, tally: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or is not seen: a file that was deleted or replaced is open still."""
    with closing(opened(copy(), name)) as loader:
        expected = delivered(loader, "never", lambda: None)
    monkeypatch.setattr(choose, "SHARE_OF_MEMORY", 0)
    cases = [(change, when) for change in CHANGES for when in WHEN][:: count(5, 1)]
    for change, when in cases:
        path, found = copy(), []
        with closing(opened(path, name)) as loader:
            assert not loader.beton.in_memory
            if change in (truncated, overwritten):
                with pytest.raises(DataError) as refusal:
                    delivered(loader, when, lambda: change(path))  # noqa: B023
                assert is_refused(refusal.value), (change.__name__, when)
                continue
            found = delivered(loader, when, lambda: change(path))  # noqa: B023
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), (change.__name__, when)
    tally(f"{name}, larger than memory: {len(cases)} changes, each unseen or refused by the end of the epoch")


@pytest.mark.parametrize("name", LOADERS[1:])
def test_a_change_in_the_last_epoch_of_a_run_ends_it(
    own_data_dir: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No batch is requested after the last step."""
    monkeypatch.setattr(choose, "SHARE_OF_MEMORY", 0)
    config = TrainConfig.from_settings(
        data_dir=str(own_data_dir), model="small", epochs=1, batch_size=5, val_size=0, loader=name, shuffle="window"
    )

    class Changing(SilentReporter):
        def step(self, step: int, loss: float, remaining_s: float) -> None:
            if step == 5:
                overwritten(own_data_dir / "train.beton")

    with pytest.raises(DataError, match=r"train\.beton: was modified while it was in use"):
        train(config, runs_dir=tmp_path / "runs", reporter=Changing())
    assert not (tmp_path / "runs" / "small" / "metrics.json").exists()


@pytest.mark.parametrize(
    "look",
    [
        lambda run, data_dir: explain_run(run, ExplainConfig(n=1), data_dir=data_dir),
        lambda run, data_dir: evaluate_run(run, data_dir=data_dir),
    ],
    ids=["explain", "eval"],
)
def test_figures_show_the_images_that_were_checked(
    trained: Path, data_dir: Path, tmp_path: Path, look: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The predictions are known, and the file changes before the images are read."""
    monkeypatch.setattr(choose, "SHARE_OF_MEMORY", 0)
    run = RunFolder(shutil.copytree(trained / "a", tmp_path / "a"))
    own = shutil.copytree(data_dir, tmp_path / "data")
    real = TrainedRun.predictions

    def changing(*args: Any, **settings: Any) -> Any:
        found = real(*args, **settings)
        overwritten(own / "test.beton")
        return found

    monkeypatch.setattr(TrainedRun, "predictions", changing)
    with pytest.raises(DataError, match=r"test\.beton: was modified while it was in use"):
        look(run, str(own))


def test_a_new_name_is_not_a_modification(own_data_dir: Path) -> None:
    beton = open_beton(own_data_dir / "train.beton")
    beton.path.with_name("another").hardlink_to(beton.path)
    beton.check_unchanged()
    overwritten(beton.path)
    for _ in range(2):  # and it stays modified
        with pytest.raises(DataError):
            beton.check_unchanged()


def test_a_modification_that_was_undone_is_a_modification(own_data_dir: Path) -> None:
    """Other images may have been read in between."""
    beton = open_beton(own_data_dir / "train.beton")
    whole = beton.path.read_bytes()
    overwritten(beton.path)
    with beton.path.open("r+b") as file:
        file.write(whole)
    assert beton.path.read_bytes() == whole
    with pytest.raises(DataError, match="was modified while it was in use"):
        beton.check_unchanged()


def test_a_beton_that_became_shorter_is_an_error(own_data_dir: Path) -> None:
    beton = open_beton(own_data_dir / "train.beton")
    os.truncate(beton.path, 2**20)
    for use in (lambda: beton.images([3]), lambda: make_loader(beton, loader="resident", batch_size=4)):
        with pytest.raises(DataError) as refusal:
            use()
        assert is_refused(refusal.value)


TRUNCATED = """
import sys
from fastcifar import make_loader, open_beton
from fastcifar.errors import DataError

batches = make_loader(open_beton(sys.argv[1]), loader=sys.argv[2], batch_size=4, shuffle="window").epoch(0)
print(len(next(batches).labels), flush=True)
sys.stdin.readline()
try:
    list(batches)
except DataError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("loader", LOADERS[1:])
def test_a_process_survives_the_truncation_of_its_beton(own_data_dir: Path, loader: str) -> None:
    """Reading a lost page through a map would kill it."""
    path = own_data_dir / "train.beton"
    command = [sys.executable, "-c", TRUNCATED, str(path), loader]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "4\n"
        os.truncate(path, 2_000)
        output, _ = process.communicate("\n", timeout=LONGEST_S)
    assert process.returncode == 0
    assert "was modified while it was in use" in output or "before the end of its data" in output


def test_a_file_that_grows_is_not_followed(own_data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real, calls = own_data_dir / "train.beton", os.preadv, 0

    def growing(*arguments: Any) -> int:
        nonlocal calls
        calls += 1
        assert calls < 100
        with path.open("ab") as file:
            file.write(bytes(2**20))
        return real(*arguments)

    monkeypatch.setattr(os, "preadv", growing)
    with pytest.raises(DataError, match="was modified while it was in use"):
        open_beton(path, in_memory=True)
