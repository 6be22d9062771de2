"""Dashboards: what they hold is read back by their own readers; their failures never end a training."""

from __future__ import annotations

import glob
import logging
import os
import signal
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from matplotlib.figure import Figure
from safetensors.torch import load_file

from fastcifar import plotting
from fastcifar.cli import main
from fastcifar.config import TrainConfig
from fastcifar.errors import DivergedError, FastcifarError, MissingExtraError, Stopped, UsageError
from fastcifar.io.locks import lock_folder
from fastcifar.loggers import Loggers, RunInfo, open_loggers, view_commands
from fastcifar.runs.group import create_group, load_group, seed_members
from fastcifar.runs.log_run import log_run, train_and_log
from fastcifar.runs.summary import RunSummary
from fastcifar.runs.sweep import sweep_members, train_sweep
from fastcifar.runs.train_group import train_group
from fastcifar.training import RunFolder, train
from fastcifar.training.progress import SilentReporter
from fastcifar.training.run_folder import COLUMNS
from tests.tiny import NETWORK, Interrupts
from tests.tiny import tiny as tiny_config

pytest.importorskip("tensorboard")
Series = list[tuple[int, float]]


def tiny(data_dir: object, **settings: Any) -> TrainConfig:
    """Two epochs of two steps."""
    return tiny_config(data_dir, batch_size=30, **settings)


def events(run: RunFolder) -> Any:
    """The TensorBoard events of a run, by TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()


def series(run: RunFolder) -> dict[str, Series]:
    """The scalars of a run, by tag: (step, value)."""
    read = events(run)
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def epochs_of(run: RunFolder) -> dict[str, Series]:
    """The series of results.csv, in float32."""
    history = RunSummary(run, "").history
    keys = [key for key in history[0] if key != "epoch"]
    return {f"epoch/{key}": [(int(row["epoch"]), float(np.float32(row[key]))) for row in history] for key in keys}


def by_epoch(found: dict[str, Series]) -> dict[str, Series]:
    return {tag: values for tag, values in found.items() if tag.startswith("epoch/")}


def steps_of(found: dict[str, Series]) -> list[int]:
    return [step for step, _ in found["step/loss"]]


@pytest.fixture(scope="module", autouse=True)
def quick_pictures() -> Iterator[None]:
    """Pictures are empty: drawing them takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("confusion_matrix", "cam_grid"):
            patch.setattr(plotting, name, lambda *given: Figure(figsize=(1, 1)))
        yield


@pytest.fixture(scope="module")
def logged(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of two epochs of two steps, with its pictures."""
    config = tiny(tiny_data, log=["tensorboard"], sched="onecycle")
    run, _ = train_and_log(config, runs_dir=tmp_path_factory.mktemp("runs"), name="logged")
    return run


def test_tensorboard_has_each_step_and_epoch(logged: RunFolder) -> None:
    found = series(logged)
    assert [steps_of({"step/loss": found[f"step/{name}"]}) for name in ("loss", "lr", "images_per_s")] == [
        [1, 2, 3, 4]
    ] * 3
    assert by_epoch(found) == epochs_of(logged)
    losses = [value for _, value in found["step/loss"]]
    assert np.mean(losses[:2]) == pytest.approx(found["epoch/train_loss"][0][1], rel=1e-5)
    assert found["step/lr"][0][1] == pytest.approx(0.05 / 25)  # that of the step, not of the next one
    assert found["step/lr"][1][1] > found["step/lr"][0][1]
    metrics = RunSummary(logged, "").metrics
    assert found["final/test_accuracy"] == [(2, pytest.approx(metrics["test_accuracy"]))]
    assert found["final/best_val_accuracy"] == [(2, pytest.approx(metrics["best"]["val_accuracy"]))]


def test_tensorboard_has_the_settings_as_hyperparameters(logged: RunFolder) -> None:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    read = events(logged)
    content = read.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["lr"].number_value == 0.05
    assert settings["model"].string_value == NETWORK
    assert settings["max_steps"].string_value == "none"
    assert settings["deterministic"].bool_value is False
    assert settings.keys() == logged.read_config().to_settings().keys()
    content = read.SummaryMetadata("_hparams_/session_end_info").plugin_data.content
    assert HParamsPluginData.FromString(content).session_end_info.status == 1


def test_tensorboard_has_the_pictures(logged: RunFolder) -> None:
    read = events(logged)
    assert sorted(read.Tags()["images"]) == ["final/class_activation_maps", "final/confusion"]
    (maps,) = read.Images("final/class_activation_maps")
    assert maps.encoded_image_string[:4] == b"\x89PNG"
    assert maps.step == 2
    assert not logged.explain.exists()


def test_a_replay_equals_what_the_training_logged(logged: RunFolder) -> None:
    before, pictures = series(logged), events(logged).Tags()["images"]
    for _ in range(2):
        assert log_run(logged.path, ["tensorboard"], trusted=NETWORK) == (logged.path, ["logged"])
        assert series(logged) == before
        assert events(logged).Tags()["images"] == pictures
    assert len(list((logged.path / "tensorboard").iterdir())) == 2  # one of them empty


def test_a_replay_of_a_run_that_was_not_logged(tiny_data: Path, tmp_path: Path) -> None:
    run, _ = train(tiny(tiny_data), runs_dir=tmp_path)
    log_run(run.path.name, ["tensorboard"], runs_dir=tmp_path, trusted=NETWORK)
    assert by_epoch(series(run)) == epochs_of(run)
    assert "step/loss" not in series(run)


def test_a_resumed_run_has_each_step_and_epoch_once(tiny_data: Path, tmp_path: Path) -> None:
    config = tiny(tiny_data, log=["tensorboard"], epochs=3)
    with pytest.raises(Stopped):
        train(config, runs_dir=tmp_path, name="run", reporter=Interrupts(3, signal.SIGINT))
    run = RunFolder(tmp_path / "run")
    assert steps_of(series(run)) == [1, 2, 3]
    train(config, resume=run)
    found = series(run)
    assert steps_of(found) == [1, 2, 3, 4, 5, 6]
    assert by_epoch(found) == epochs_of(run)
    train(config, resume=run)  # repeats the test
    assert series(run) == found


def test_a_killed_run_has_each_step_once(tiny_data: Path, tmp_path: Path) -> None:
    config = tiny(tiny_data, log=["tensorboard"], epochs=3)

    class Killed(Interrupts):
        def step(self, step: int, loss: float, remaining_s: float) -> None:
            if step == 4:
                raise MemoryError

    with pytest.raises(MemoryError):
        train(config, runs_dir=tmp_path, name="run", reporter=Killed(0, 0))
    run = RunFolder(tmp_path / "run")
    assert steps_of(series(run)) == [1, 2]  # those of the checkpoint
    train(config, resume=run)
    assert steps_of(series(run)) == [1, 2, 3, 4, 5, 6]
    assert by_epoch(series(run)) == epochs_of(run)


def test_an_epoch_that_max_steps_cut_is_replaced_when_it_is_completed(tiny_data: Path, tmp_path: Path) -> None:
    run, _ = train(tiny(tiny_data, log=["tensorboard"], max_steps=3), runs_dir=tmp_path)
    assert [epoch for epoch, _ in series(run)["epoch/lr"]] == [1, 2]
    cut = series(run)["epoch/train_loss"][1]
    train(tiny(tiny_data, log=["tensorboard"], max_steps=4), resume=run)
    assert by_epoch(series(run)) == epochs_of(run)
    assert series(run)["epoch/train_loss"][1] != cut


def test_a_tensorboard_that_is_open_follows_a_resumed_run(tiny_data: Path, tmp_path: Path) -> None:
    config = tiny(tiny_data, log=["tensorboard"], epochs=3)
    with pytest.raises(Stopped):
        train(config, runs_dir=tmp_path, name="run", reporter=Interrupts(3, signal.SIGINT))
    run = RunFolder(tmp_path / "run")
    opened = events(run)
    train(config, resume=run)
    opened.Reload()
    assert [event.step for event in opened.Scalars("step/loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in opened.Scalars("epoch/train_loss")] == [1, 2, 3]


def test_a_diverged_run_shows_how(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(DivergedError):
        train(tiny(tiny_data, log=["tensorboard"], lr=1e30), runs_dir=tmp_path, name="run")
    assert 1 in steps_of(series(RunFolder(tmp_path / "run")))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "long", "empty"])
def test_a_damaged_event_file_is_read_up_to_there(tiny_data: Path, tmp_path: Path, damage: str) -> None:
    config = tiny(tiny_data, log=["tensorboard"])
    run, _ = train(config, runs_dir=tmp_path)
    (path,) = (run.path / "tensorboard").iterdir()
    content = path.read_bytes()
    if damage == "long":
        from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

        length = struct.pack("<Q", 2**62)
        content = length + struct.pack("<I", masked_crc32c(length)) + content
    path.write_bytes(
        {"truncated": content[:-9], "flipped": b"\x07" + content[1:], "long": content, "empty": b""}[damage]
    )
    train(config, resume=run)
    assert by_epoch(series(run)) == epochs_of(run)
    assert series(run)["final/test_loss"][0][0] == 2


def test_a_run_that_was_killed_before_it_was_saved_continues_its_log(tiny_data: Path, tmp_path: Path) -> None:
    config = tiny(tiny_data)

    class Killed(SilentReporter):
        def begin(self, name: str, total: int) -> None:
            raise MemoryError

    with pytest.raises(MemoryError):
        train(config, runs_dir=tmp_path, name="run", reporter=Killed())
    begun: list[RunInfo] = []
    logger: Any = Raises("begin", OSError())
    logger.begin = begun.append
    for resume in (RunFolder(tmp_path / "run"), None):
        train(config, runs_dir=tmp_path, resume=resume, loggers=Loggers({"other": logger}))
    assert [(run.step, run.is_resumed) for run in begun] == [(0, True), (0, False)]


CALLS = ("begin", "steps", "epoch", "finish", "image", "close")


class Raises:
    """A logger that raises in one of its methods."""

    def __init__(self, method: str, error: BaseException) -> None:
        def fail(*arguments: Any) -> None:
            raise error

        for name in CALLS:
            setattr(self, name, fail if name == method else lambda *arguments: None)


@pytest.fixture(scope="module")
def expected(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of a run that is not logged."""
    return load_file(train(tiny(tiny_data), runs_dir=tmp_path_factory.mktemp("runs"))[0].best)


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SystemExit(1)], ids=["full", "exit"])
def test_a_logger_that_raises_is_one_warning(
    tiny_data: Path,
    tmp_path: Path,
    expected: dict[str, torch.Tensor],
    caplog: pytest.LogCaptureFixture,
    method: str,
    error: BaseException,
) -> None:
    loggers: dict[str, Any] = {"other": Raises(method, error)}
    with Loggers(loggers) as opened:
        run, metrics = train(tiny(tiny_data), runs_dir=tmp_path, loggers=opened)
        opened.image("confusion", b"")
    assert metrics["test_loss"] > 0
    weights = load_file(run.best)
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len([text for text in warnings if "the log of other failed" in text]) == 1


def test_a_folder_that_cannot_be_written_is_one_warning(
    tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> Any:
        return open("/dev/full", "wb")

    monkeypatch.setattr("fastcifar.loggers.tensorboard_logger.create_file", full)
    train(tiny(tiny_data, log=["tensorboard"]), runs_dir=tmp_path)
    assert caplog.text.count("the log of tensorboard failed: OSError: [Errno 28] No space left on device") == 1


def test_a_link_to_another_folder_is_not_written_through(
    tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny(tiny_data, log=["tensorboard"], max_steps=1)
    run, _ = train(tiny(tiny_data, max_steps=1), runs_dir=tmp_path / "runs")
    (tmp_path / "outside").mkdir()
    (run.path / "tensorboard").symlink_to(tmp_path / "outside")
    train(config, resume=run)
    assert "tensorboard: a link; expected a folder of the run" in caplog.text
    assert os.listdir(tmp_path / "outside") == []
    with pytest.raises(FastcifarError, match="the log of tensorboard failed: .*: a link"):
        log_run(run.path, ["tensorboard"])


@pytest.mark.slow
def test_wandb_does_not_write_through_a_link(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "wandb").symlink_to(tmp_path)
    with pytest.raises(FastcifarError, match="the log of wandb failed: .*: a link; expected a folder of the run"):
        open_loggers(["wandb"], strict=True).begin(tmp_path / "run", {}, step=0, history=[], is_resumed=False)
    assert os.listdir(tmp_path) == ["run"]


def test_a_run_that_is_being_trained_is_not_logged(tiny_data: Path, tmp_path: Path) -> None:
    run, _ = train(tiny(tiny_data, log=["tensorboard"], max_steps=1), runs_dir=tmp_path)
    before = os.listdir(run.path / "tensorboard")
    with (
        lock_folder(run.path, "busy"),
        pytest.raises(FastcifarError, match="another process is training this run; log it when that has ended"),
    ):
        log_run(run.path, ["tensorboard"], trusted=NETWORK)
    assert os.listdir(run.path / "tensorboard") == before


@pytest.fixture
def without_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "fastcifar.loggers.tensorboard_logger", raising=False)


def test_a_missing_package_is_an_error_before_anything_is_written(
    tiny_data: Path, tmp_path: Path, without_tensorboard: None
) -> None:
    line = ["--data-dir", str(tiny_data), "--log", "tensorboard", "--runs-dir", str(tmp_path / "runs")]
    done = CliRunner().invoke(main, ["train", *line])
    assert done.exit_code == 3
    assert "logging to tensorboard needs tensorboard, which is not installed" in done.output
    assert "pip install 'fastcifar[tensorboard]'" in done.output
    config = tiny(tiny_data, log=["tensorboard"])
    with pytest.raises(MissingExtraError):
        train(config, runs_dir=tmp_path / "runs")
    with pytest.raises(MissingExtraError):
        create_group(tmp_path / "runs", "few", "seeds", config, seed_members([0]))
    assert not (tmp_path / "runs").exists()


def test_the_log_is_a_setting_that_a_resumed_run_keeps_or_changes(tiny_data: Path, tmp_path: Path) -> None:
    few = ["--model", "small", "--max-steps", "2", "--batch-size", "20", "--runs-dir", str(tmp_path)]
    done = CliRunner().invoke(
        main, ["train", "--data-dir", str(tiny_data), *few, "--log", "tensorboard", "--name", "run"]
    )
    assert done.exit_code == 0, done.output
    assert f"next: tensorboard --logdir {tmp_path}" in done.output
    run = RunFolder(tmp_path / "run")
    assert yaml.safe_load(run.config.read_text())["log"] == ["tensorboard"]
    assert sorted(events(run).Tags()["images"]) == ["final/class_activation_maps", "final/confusion"]
    done = CliRunner().invoke(main, ["train", "--runs-dir", str(tmp_path), "--resume", "run", "--log", "none"])
    assert done.exit_code == 0, done.output
    assert yaml.safe_load(run.config.read_text())["log"] == []


def test_names_are_separated_by_commas_or_repeated(tmp_path: Path) -> None:
    def refusal(*words: str) -> str:
        done = CliRunner().invoke(main, ["runs", "log", "run", *words, "--runs-dir", str(tmp_path)])
        assert done.exit_code in (2, 4)
        return done.output

    assert "to is 'tensorboar'; expected one of: tensorboard, wandb, trackio" in refusal("--to", "tensorboar")
    assert "missing option '--to'; expected one or more of: tensorboard, wandb, trackio" in refusal()
    for twice in (("--to", "wandb,wandb"), ("--to", "wandb", "--to", "wandb")):
        assert "to is 'wandb,wandb'; expected at least one, each once" in refusal(*twice)
    assert "run: no such run" in refusal("--to", "tensorboard")
    with pytest.raises(UsageError, match="log is 'mlflow'; expected one of"):
        tiny("data", log=["mlflow"])


def test_each_run_of_a_group_is_a_log(tiny_data: Path, tmp_path: Path) -> None:
    group = create_group(tmp_path, "few", "seeds", tiny(tiny_data, log=["tensorboard"]), seed_members([0, 1]))
    train_group(group)
    before = [series(group.run(member)) for member in group.members]
    assert [steps_of(each) for each in before] == [[1, 2, 3, 4]] * 2
    assert load_group(group.path).config.runtime.log == ("tensorboard",)
    done = CliRunner().invoke(
        main, ["runs", "log", "few", "--to", "tensorboard", "--runs-dir", str(tmp_path), "--model", NETWORK]
    )
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[:2] == ["few/seed-0 logged to tensorboard", "few/seed-1 logged to tensorboard"]
    assert [series(group.run(member)) for member in group.members] == before


def test_the_best_runs_of_a_sweep_alone_have_test_scores_and_pictures(tiny_data: Path, tmp_path: Path) -> None:
    members = sweep_members({"lr": [1e-4, 0.05]}, [0])
    group = create_group(tmp_path, "sweep", "sweep", tiny(tiny_data, log=["tensorboard"]), members)
    best = train_sweep(group).best
    assert best is not None
    for member in group.members:
        run = group.run(member)
        assert steps_of(series(run)) == [1, 2, 3, 4]
        is_best = run.path == best.runs[0].run.path
        assert ("final/test_loss" in series(run)) == is_best
        assert (events(run).Tags()["images"] != []) == is_best


def test_pictures_that_cannot_be_made_are_a_warning(
    logged: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fastcifar.runs.log_run.explanation_grid", lambda *given, **more: 1 / 0)
    log_run(logged.path, ["tensorboard"])
    assert "the picture 'class_activation_maps' is not logged: ZeroDivisionError" in caplog.text
    assert events(logged).Tags()["images"] == ["final/confusion"]
    monkeypatch.undo()
    log_run(logged.path, ["tensorboard"], trusted=NETWORK)


def test_commands_show_the_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run = tmp_path / "my runs" / "run"
    (run / "wandb").mkdir(parents=True)
    assert view_commands(["tensorboard", "wandb", "trackio"], run) == [
        f"tensorboard --logdir '{tmp_path}/my runs'",
        f"wandb sync '{tmp_path}/my runs/run'/wandb/offline-run-*",
        "trackio show --project fastcifar",
    ]
    assert view_commands(["wandb"], run.parent) == [f"wandb sync '{tmp_path}/my runs'/*/wandb/offline-run-*"]
    monkeypatch.setenv("WANDB_MODE", "online")
    assert view_commands(["wandb"], run) == []


def wandb_records(run: RunFolder) -> Iterator[Any]:
    """The records of the offline runs in a run folder: blocks of 32 KiB, as in the logs of LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(glob.glob(f"{run.path}/wandb/offline-run-*/run-*.wandb")):
        content, position, record = Path(path).read_bytes(), 7, b""
        while position + 7 <= len(content):
            if 2**15 - position % 2**15 < 7:
                position += 2**15 - position % 2**15
                continue
            length, kind = struct.unpack_from("<HB", content, position + 4)
            record += content[position + 7 : position + 7 + length]
            position += 7 + length
            if kind in (1, 4):
                yield Record.FromString(record)
                record = b""


def items(update: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): yaml.safe_load(item.value_json) for item in update}


@pytest.mark.slow
def test_wandb_offline(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config = tiny(tiny_data, log=["wandb"])
    group = create_group(tmp_path, "few", "seeds", config, seed_members([3]))
    with pytest.raises(Stopped):
        train_group(group, reporter=Interrupts(3, signal.SIGINT))
    train_group(group)
    wandb.teardown()  # waits until all is written
    run = group.run(group.members[0])
    records = list(wandb_records(run))
    history = [items(record.history.item) for record in records if record.HasField("history")]
    assert [row["step"] for row in history if "step" in row] == [1, 2, 3, 4]
    assert [row["_step"] for row in history] == [1, 2, 3, 4]
    rows = [
        {key: row[key if key == "epoch" else f"epoch/{key}"] for key in COLUMNS} for row in history if "epoch" in row
    ]
    assert rows == list(RunSummary(run, "").history)
    assert any("final/confusion" in "".join(row) for row in history)
    begun = [record.run for record in records if record.HasField("run")]
    assert {each.display_name for each in begun} == {"few/seed-3"}
    assert len({each.run_id for each in begun}) == 1  # the resumed one continues the same run
    summary: dict[str, Any] = {}
    for record in records:
        summary |= items(record.summary.update)
    assert summary["final/test_loss"] == RunSummary(run, "").metrics["test_loss"]


@pytest.mark.slow
def test_trackio(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    if Path(trackio.TRACKIO_DIR) != tmp_path / "trackio":
        pytest.skip("trackio was imported before")
    config = tiny(tiny_data, log=["trackio"])
    group = create_group(tmp_path, "few", "seeds", config, seed_members([3]))
    with pytest.raises(Stopped):
        train_group(group, reporter=Interrupts(3, signal.SIGINT))
    train_group(group)
    assert [record["name"] for record in SQLiteStorage.get_run_records("fastcifar")] == ["few/seed-3"]
    logs = SQLiteStorage.get_logs("fastcifar", "few/seed-3")
    assert [row["step"] for row in logs if "step/loss" in row] == [1, 2, 3, 4]
    history = RunSummary(group.run(group.members[0]), "").history
    assert [row["epoch/train_loss"] for row in logs if "epoch/train_loss" in row] == [r["train_loss"] for r in history]
    assert any("final/confusion" in row for row in logs)
    assert SQLiteStorage.get_run_config("fastcifar", "few/seed-3")["lr"] == 0.05
    assert capfd.readouterr().out == ""
