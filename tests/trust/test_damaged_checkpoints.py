"""A damaged checkpoint is detected, and the previous one used, with a warning; damaged weights are refused."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastcifar.config import ModelConfig
from fastcifar.errors import CheckpointError, FastcifarError
from fastcifar.io import reading
from fastcifar.models import make_model
from fastcifar.training import RunFolder, checkpoint, train, weights
from fastcifar.training.weights import DatasetInfo
from tests.trust.cases import count, with_checksum

Tally = Callable[[str], None]
INFO = DatasetInfo(
    class_names=("cat", "dog"), image_shape=(32, 32, 3), mean=(1.5,) * 3, std=(2.5,) * 3, sha256="0" * 64
)


def state(value: float) -> dict[str, Any]:
    torch.manual_seed(int(value))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(64, 32)).state_dict()
    return {"model": model, "step": {"value": value}, "rng": [torch.get_rng_state()], "num_steps": int(value)}


def flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [entry for key in sorted(value) for entry in [key, *flat(value[key])]]
    if isinstance(value, list):
        return [entry for part in value for entry in flat(part)]
    return [value]


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    pairs = zip(flat(found), flat({"format": checkpoint.FORMAT, **expected}), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run folder with a checkpoint and the previous one."""
    run = RunFolder(tmp_path)
    run.last.parent.mkdir()
    checkpoint.save_checkpoint(run, state(1.0))
    checkpoint.save_checkpoint(run, state(2.0))
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


def test_a_damaged_checkpoint_is_detected_and_the_previous_one_is_used(
    run: RunFolder, tally: Tally, caplog: pytest.LogCaptureFixture
) -> None:
    whole, num = run.last.read_bytes(), count(120, 1_200)
    assert same(checkpoint.load_checkpoint(run), state(2.0))
    for content in damaged(whole, np.random.default_rng(0), num):
        run.last.write_bytes(content)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = checkpoint.load_checkpoint(run)
        assert same(found, state(1.0))
        assert f"resuming from {run.previous}" in caplog.text
        assert caplog.text.count("\n") == 1
    run.last.write_bytes(whole)
    tally(f"{num:,} damaged last.pt, five flipped bits for each truncation: all noticed, the one before used")


KILLED_SAVE = """
import os, signal, sys
from pathlib import Path
import torch
from fastcifar.models import make_model
from fastcifar.training import RunFolder, checkpoint, weights

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
checkpoint.save_checkpoint(run, torch.load(run.path / "new.pt"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_killed_save_leaves_a_valid_checkpoint(run: RunFolder, step: int) -> None:
    torch.save(state(3.0), run.path / "new.pt")
    done = subprocess.run([sys.executable, "-c", KILLED_SAVE, str(run.path), str(step)], timeout=60, check=False)
    assert done.returncode == -9
    assert same(checkpoint.load_checkpoint(run), state(2.0))
    checkpoint.save_checkpoint(run, state(4.0))
    assert same(checkpoint.load_checkpoint(run), state(4.0))
    assert {path.name for path in run.last.parent.iterdir()} == {"last.pt", "previous.pt"}


@pytest.mark.slow
def test_a_damaged_checkpoint_never_replaces_the_valid_one(run: RunFolder) -> None:
    whole = run.last.read_bytes()
    run.last.write_bytes(whole[:-100])
    assert same(checkpoint.load_checkpoint(run), state(1.0))
    torch.save(state(3.0), run.path / "new.pt")
    command = [sys.executable, "-c", KILLED_SAVE, str(run.path), "2"]  # before it is put in place
    assert subprocess.run(command, timeout=60, check=False).returncode == -9
    assert same(checkpoint.load_checkpoint(run), state(1.0))
    assert run.last.with_name("damaged.pt").read_bytes() == whole[:-100]


def test_a_folder_in_the_place_of_a_checkpoint_is_moved(run: RunFolder) -> None:
    run.last.unlink()
    run.last.mkdir()
    assert same(checkpoint.load_checkpoint(run), state(1.0))
    checkpoint.save_checkpoint(run, state(3.0))
    assert same(checkpoint.load_checkpoint(run), state(3.0))


def test_two_damaged_checkpoints_are_refused(run: RunFolder) -> None:
    for path in (run.last, run.previous):
        os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CheckpointError) as refusal:
        checkpoint.load_checkpoint(run)
    assert refusal.value.exit_code == 6
    assert "\n" not in str(refusal.value)


def test_damaged_weights_are_refused(run: RunFolder, tally: Tally) -> None:
    from fastcifar.models import make_model

    torch.manual_seed(0)
    network = ModelConfig(name="small")
    model = make_model(network, 2, (32, 32, 3))
    weights.save_weights(run.best, model, network, INFO, epoch=3)
    whole, num = run.best.read_bytes(), count(20, 200)
    head = 8 + int.from_bytes(whole[:8], "little")
    random = np.random.default_rng(1)
    for i in range(num):
        content = bytearray(whole)
        place = int(random.integers(head if i % 2 else len(content)))
        content[place] ^= 1 << int(random.integers(8))
        run.best.write_bytes(content if i % 5 else content[:place])
        with pytest.raises(CheckpointError) as refusal:
            weights.load_weights(run.best)
        assert refusal.value.exit_code == 6
    tally(f"{num} damaged best.safetensors: all refused")


def test_a_compressed_checkpoint_is_refused(run: RunFolder) -> None:
    """It could fill the memory."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**20))
    checkpoint.add_checksum(file)
    run.last.write_bytes(file.getvalue())
    run.previous.unlink()
    with pytest.raises(CheckpointError, match="it is compressed"):
        checkpoint.load_checkpoint(run)


def every(value: Any, key: str) -> Any:
    """The dictionaries with this key, at any depth."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if isinstance(value, dict) and key in value:
        yield value
    for part in inner:
        yield from every(part, key)


def small_momentum(state: dict[str, Any]) -> None:
    """Fused kernels write beyond the end of such a tensor."""
    for found in every(state, "momentum_buffer"):
        found["momentum_buffer"] = torch.zeros(3)


def repeated_momentum(state: dict[str, Any]) -> None:
    """The right shape, but one number in memory."""
    for found in every(state, "momentum_buffer"):
        found["momentum_buffer"] = torch.zeros(1).expand(found["momentum_buffer"].shape)


def rate_in_words(state: dict[str, Any]) -> None:
    for found in every(state["step"], "lr"):
        found["lr"] = "fast"


def progress(**facts: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda state: state["progress"].update(facts)


def first_row(**facts: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda state: state["progress"]["history"][0].update(facts)


def plateau(**facts: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda state: state["schedule"]["by_epoch"].update(facts)


def endless_rate(state: dict[str, Any]) -> None:
    for found in every(state["step"], "lr"):
        found["lr"] = 10**400


TENSOR = torch.zeros(3)
HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "small momentum": small_momentum,
    "rate in words": rate_in_words,
    "negative batch": lambda state: state["progress"].update(batch=-5),
    "huge epoch": progress(epoch=60_000_000),
    "negative epoch": lambda state: state["progress"].update(epoch=-2),
    "step in words": lambda state: state["progress"].update(step="x"),
    "odd history": lambda state: state["progress"].update(history=[{"a": 1}]),
    "odd best": lambda state: state["progress"].update(best=7),
    "no data": lambda state: state.update(data={}),
    "list of settings": lambda state: state.update(config=[]),
    "odd generators": lambda state: state.update(rng=[{"cpu": torch.zeros(3)}]),
    "odd environment": lambda state: state.update(environment=3),
    "format": lambda state: state.update(format=TENSOR),
    "environment": lambda state: state["environment"].update({"number of threads": TENSOR}),
    "long setting": lambda state: state["config"].update(batch_size="9" * 10**6),
    "settings": lambda state: state["config"].update(batch_size=TENSOR),
    "no seconds": progress(seconds=None),
    "odd seconds": progress(seconds=float("nan")),
    "no loss": progress(loss_sum=None),
    "endless loss": progress(loss_sum=float("inf")),
    "too many right": progress(correct=10**400),
    "other step": progress(step=10**30),
    "beyond the epoch": progress(batch=10**30, step=10**30),
    "nothing seen": progress(batch=1, seen=0),
    "no rate": first_row(lr=None),
    "long number": first_row(train_loss=10**400),
    "column more": first_row(more=TENSOR),
    "other epoch": first_row(epoch=7),
    "best is nothing": lambda state: state["progress"]["best"].update(val_loss=float("nan")),
    "more of the best": lambda state: state["progress"]["best"].update(more=TENSOR),
    "bad epochs in words": plateau(num_bad_epochs="x"),
    "pause in words": plateau(cooldown_counter="1"),
    "other mode": plateau(mode="max"),
    "method": plateau(_reduce_lr=3),
    "no plateau": lambda state: state["schedule"].update(by_epoch=None),
    "warm-up in words": lambda state: state["schedule"].update(warmup_left="x"),
    "endless rate": endless_rate,
    "generators": lambda state: state.update(rng=[TENSOR]),
}


@pytest.fixture
def begun(trained: Path, tmp_path: Path) -> RunFolder:
    """A run after one epoch."""
    shutil.copytree(trained / "a", tmp_path / "begun")
    return RunFolder(tmp_path / "begun")


def resumed(run: RunFolder, epochs: int) -> dict[str, Any]:
    return train(run.read_config().with_settings(epochs=epochs), resume=run)[1]


@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_crafted_checkpoint_is_refused(begun: RunFolder, name: str) -> None:
    """Its checksum is right, its content is not."""
    state = torch.load(begun.last, weights_only=True)
    HOSTILE[name](state)
    begun.last.write_bytes(with_checksum(state))
    begun.previous.unlink(missing_ok=True)
    with pytest.raises(CheckpointError) as refusal:
        resumed(begun, 2)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 1_000


def test_a_long_environment_in_a_checkpoint_is_cut(begun: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    state = torch.load(begun.last, weights_only=True)
    state["environment"].update({"device": "x" * 10**6, "y" * 10**6: 1})
    begun.last.write_bytes(with_checksum(state))
    resumed(begun, 2)
    assert max(map(len, caplog.messages)) < 1_000
    assert sum("the results may differ" in message for message in caplog.messages) == 2


def test_an_odd_layout_in_a_checkpoint_is_harmless(begun: RunFolder) -> None:
    state = torch.load(begun.last, weights_only=True)
    repeated_momentum(state)
    begun.last.write_bytes(with_checksum(state))
    assert resumed(begun, 2)["epochs"] == 2


def test_unprintable_class_names_are_refused(run: RunFolder) -> None:
    for name in ("\ud800", "c\x1b[31mat", "d\ndog"):
        info = replace(INFO, class_names=("cat", name))
        weights.save_weights(run.best, make_model(ModelConfig(name="small"), 2, (32, 32, 3)), ModelConfig(), info)
        with pytest.raises(CheckpointError, match="class_names has unprintable characters"):
            weights.load_weights(run.best)


@pytest.mark.parametrize(
    "odd",
    [{"fit": "melt"}, {"fit": ["crop"]}, {"background": (0, 0)}, {"background": (0, 0, 256)}, {"background": None}],
)
def test_weights_that_say_how_to_resize_images_in_odd_ways_are_refused(run: RunFolder, odd: dict[str, Any]) -> None:
    network = ModelConfig(name="small")
    weights.save_weights(run.best, make_model(network, 2, (32, 32, 3)), network, replace(INFO, **odd))
    for load in (weights.load_weights, weights.read_info):
        with pytest.raises(CheckpointError, match="damaged, or not weights"):
            load(run.best)


def test_weights_of_a_version_that_did_not_store_how_to_resize_images_are_read(
    run: RunFolder,
) -> None:
    network, info = ModelConfig(name="small"), replace(INFO)
    del info.__dict__["fit"], info.__dict__["background"]
    weights.save_weights(run.best, make_model(network, 2, (32, 32, 3)), network, info)
    assert weights.read_info(run.best) == INFO


def test_weights_of_huge_images_are_refused(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(DatasetInfo, "__post_init__", lambda info: None)
        info = replace(INFO, image_shape=(65_535, 65_535, 3))
    model = make_model(ModelConfig(name="small"), 2, (32, 32, 3))
    weights.save_weights(run.best, model, ModelConfig(name="small"), info)
    for load in (weights.load_weights, weights.read_info):
        with pytest.raises(CheckpointError, match="the images are 65535x65535; expected at most 2,796,202 pixels each"):
            load(run.best)


def test_a_file_larger_than_memory_is_not_read(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "free_memory", lambda: 2**31)
    for path, load in ((run.best, weights.load_weights), (run.last, checkpoint._load)):
        path.touch()
        os.truncate(path, 2**32)
        with pytest.raises(CheckpointError, match=r"it has 4,096\.0 MiB; expected at most 1,024"):
            load(path)


def test_a_run_killed_before_its_first_step_resumes(
    begun: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastcifar.training.trainer import Trainer

    config, expected = begun.read_config(), json.loads(begun.metrics.read_text())

    def killed(self: Trainer) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", killed)
        with pytest.raises(SystemExit):
            train(config, runs_dir=tmp_path / "runs", name="killed")
    run, found = train(config, resume=RunFolder(tmp_path / "runs" / "killed"))
    assert found["test_loss"] == expected["test_loss"]
    assert len(run.results.read_text().splitlines()) == 2


def other_epoch(run: RunFolder) -> None:
    model, data, facts = weights.load_weights(run.best)
    with torch.no_grad():
        for param in model.parameters():
            param.zero_()
    weights.save_weights(run.best, model, ModelConfig(**facts["model"]), data, epoch=7)


LOST: dict[str, Callable[[RunFolder], Any]] = {
    "missing": lambda run: run.best.unlink(),
    "cut": lambda run: os.truncate(run.best, 1_000),
    "of another epoch": other_epoch,
}


@pytest.mark.parametrize("name", list(LOST))
def test_other_weights_are_not_tested_in_place_of_the_best(
    begun: RunFolder, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    honest = resumed(begun, 1)
    LOST[name](begun)
    found = resumed(begun, 1)
    assert "are lost: the best epoch is tracked again from here" in caplog.text
    assert found["test_loss"] == honest["test_loss"]
    assert found["best"]["epoch"] == weights.load_weights(begun.best)[2]["epoch"] == 1


def test_a_damaged_checkpoint_that_cannot_be_moved_is_an_error(run: RunFolder) -> None:
    """Or the next save would replace the valid one by it."""
    run.last.with_name("damaged.pt").mkdir()
    os.truncate(run.last, 100)
    with pytest.raises(FastcifarError, match=r"last\.pt: cannot be written"):
        checkpoint.load_checkpoint(run)
