"""A damaged checkpoint is noticed: the one before it is used, with a warning; damaged weights are refused."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastcifar.config import ModelConfig
from fastcifar.errors import CheckpointError
from fastcifar.training import RunFolder, checkpoint
from fastcifar.training.checkpoint import DataInfo
from tests.trust.cases import count

Tally = Callable[[str], None]
INFO = DataInfo(class_names=("cat", "dog"), image_shape=(32, 32, 3), mean=(1.5,) * 3, std=(2.5,) * 3, sha256="0" * 64)


def state(value: float) -> dict[str, Any]:
    torch.manual_seed(int(value))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(64, 32)).state_dict()
    parts = {name: {"value": value} for name in checkpoint.KEYS}
    return {**parts, "model": model, "rng": {"torch": torch.get_rng_state()}, "num_steps": int(value)}


def flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [entry for key in sorted(value) for entry in [key, *flat(value[key])]]
    return [value]


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    pairs = zip(flat(found), flat({"format": checkpoint.FORMAT, **expected}), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run folder with a checkpoint, and the one before it."""
    run = RunFolder(tmp_path)
    run.last.parent.mkdir()
    checkpoint.save_last(run, state(1.0))
    checkpoint.save_last(run, state(2.0))
    return run


def damaged(whole: bytes, random: np.random.Generator, num: int) -> Any:
    """`num` copies: five flipped bits for each truncation."""
    for i in range(num):
        content = bytearray(whole)
        if i % 6 == 5:
            yield content[: int(random.integers(len(content)))]
            continue
        content[int(random.integers(len(content)))] ^= 1 << int(random.integers(8))
        yield content


def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(
    run: RunFolder, tally: Tally, caplog: pytest.LogCaptureFixture
) -> None:
    whole, num = run.last.read_bytes(), count(120, 1_200)
    assert same(checkpoint.load_last(run), state(2.0))
    for content in damaged(whole, np.random.default_rng(0), num):
        run.last.write_bytes(content)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = checkpoint.load_last(run)
        assert same(found, state(1.0))
        assert f"going on from {run.previous}" in caplog.text
        assert caplog.text.count("\n") == 1
    run.last.write_bytes(whole)
    tally(f"{num:,} damaged last.pt, five flipped bits for each truncation: all noticed, the one before used")


KILLED_SAVE = """
import os, signal, sys
from pathlib import Path
import torch
from fastcifar.training import RunFolder, checkpoint

run, step = RunFolder(Path(sys.argv[1])), int(sys.argv[2])
calls = 0

def counted(real):
    def call(*args):
        global calls
        calls += 1
        if calls == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)
    return call

for name in ("fsync", "replace"):  # what a save is made of: fsync, last -> previous, partial -> last
    setattr(os, name, counted(getattr(os, name)))
checkpoint.save_last(run, torch.load(run.path / "new.pt"))
"""


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_save_that_is_killed_leaves_a_whole_checkpoint(run: RunFolder, step: int) -> None:
    torch.save(state(3.0), run.path / "new.pt")
    done = subprocess.run([sys.executable, "-c", KILLED_SAVE, str(run.path), str(step)], timeout=60, check=False)
    assert done.returncode == -9
    assert same(checkpoint.load_last(run), state(2.0))
    checkpoint.save_last(run, state(4.0))
    assert same(checkpoint.load_last(run), state(4.0))
    assert {path.name for path in run.last.parent.iterdir()} == {"last.pt", "previous.pt"}


def test_a_damaged_checkpoint_never_takes_the_place_of_the_good_one(run: RunFolder) -> None:
    whole = run.last.read_bytes()
    run.last.write_bytes(whole[:-100])
    assert same(checkpoint.load_last(run), state(1.0))
    torch.save(state(3.0), run.path / "new.pt")
    command = [sys.executable, "-c", KILLED_SAVE, str(run.path), "2"]  # before it is put in place
    assert subprocess.run(command, timeout=60, check=False).returncode == -9
    assert same(checkpoint.load_last(run), state(1.0))
    assert run.last.with_name("damaged.pt").read_bytes() == whole[:-100]


def test_a_folder_in_the_place_of_a_checkpoint_is_put_aside(run: RunFolder) -> None:
    run.last.unlink()
    run.last.mkdir()
    assert same(checkpoint.load_last(run), state(1.0))
    checkpoint.save_last(run, state(3.0))
    assert same(checkpoint.load_last(run), state(3.0))


def test_two_damaged_checkpoints_are_refused(run: RunFolder) -> None:
    for path in (run.last, run.previous):
        os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CheckpointError) as refusal:
        checkpoint.load_last(run)
    assert refusal.value.exit_code == 6
    assert "\n" not in str(refusal.value)


def test_damaged_weights_are_refused(run: RunFolder, tally: Tally) -> None:
    from fastcifar.models import make_model

    torch.manual_seed(0)
    network = ModelConfig(name="small")
    model = make_model(network, 2, (32, 32, 3))
    checkpoint.save_weights(run.best, model, network, INFO, epoch=3)
    whole, num = run.best.read_bytes(), count(20, 200)
    head = 8 + int.from_bytes(whole[:8], "little")
    random = np.random.default_rng(1)
    for i in range(num):
        content = bytearray(whole)
        place = int(random.integers(head if i % 2 else len(content)))
        content[place] ^= 1 << int(random.integers(8))
        run.best.write_bytes(content if i % 5 else content[:place])
        with pytest.raises(CheckpointError) as refusal:
            checkpoint.load_weights(run.best)
        assert refusal.value.exit_code == 6
    tally(f"{num} damaged best.safetensors: all refused")


def test_a_compressed_checkpoint_is_refused(run: RunFolder) -> None:
    """A small file that takes more memory than there is."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**20))
    checkpoint._seal(file)
    run.last.write_bytes(file.getvalue())
    run.previous.unlink()
    with pytest.raises(CheckpointError, match="it is compressed"):
        checkpoint.load_last(run)
