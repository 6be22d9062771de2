"""What a user types, what it prints, and what it returns."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner, Result

import fastcifar
from fastcifar import open_beton
from fastcifar.cli import main
from fastcifar.data.manifest import manifest_path
from fastcifar.errors import MissingExtraError
from fastcifar.inference.predictions import Predictions
from fastcifar.training import RunFolder
from tests.conftest import ImageFolder
from tests.test_loaders import LOADERS


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("FASTCIFAR_SOURCE", "FASTCIFAR_DATA_DIR", "FASTCIFAR_RUNS_DIR"):
        monkeypatch.delenv(name, raising=False)


def run(*args: object) -> Result:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert "Traceback" not in result.output
    return result


def refused(code: int, *args: object) -> str:
    """The one line that a mistake prints."""
    result = run(*args)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    return lines[0].removeprefix("Error: ")


def commands() -> list[str]:
    return list(main.commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", commands())
def test_every_command_and_option_has_help(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert main.commands[command].help  # type: ignore[attr-defined]
    for option in main.commands[command].params:  # type: ignore[attr-defined]
        if option.param_type_name == "option":
            assert option.help, f"{command} {option.opts}"


def test_the_program_alone_shows_its_help() -> None:
    result = run()
    assert result.exit_code == 0
    assert "fastcifar train --epochs 50 --sched plateau" in result.stdout
    for command in commands():
        assert f"  {command} " in result.stdout


def test_version_comes_from_one_place() -> None:
    assert run("--version").stdout == f"fastcifar, version {fastcifar.__version__}\n"
    answer = subprocess.run(
        [sys.executable, "-m", "fastcifar", "--version"], capture_output=True, text=True, check=True
    )
    assert answer.stdout == f"fastcifar, version {fastcifar.__version__}\n"


HEAVY = ("torch", "numpy", "ffcv", "albumentations", "matplotlib", "triton", "jinja2", "rich", "torchvision", "PIL")


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from fastcifar.cli import main\n"
        "for command in ([], *([name] for name in main.commands)):\n"
        "    assert CliRunner().invoke(main, [*command, '--help']).exit_code == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_core_loads_no_optional_part() -> None:
    code = (
        "import sys; import fastcifar.training, fastcifar.explain, fastcifar.converters, fastcifar.loaders\n"
        "print([name for name in ('ffcv', 'albumentations', 'matplotlib', 'cv2', 'numba') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_the_three_lines_work_as_written(monkeypatch: pytest.MonkeyPatch, image_folder: ImageFolder) -> None:
    monkeypatch.setenv("FASTCIFAR_SOURCE", str(image_folder(classes=("cat", "dog", "ship"), each=4, side=8)))
    result = run("convert")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "data/train.beton: 12 images of 8x8, 3 classes, from images of images"
    assert result.stdout.splitlines()[1] == "train: images of each class: cat (4), dog (4), ship (4)"
    # as written, but for a batch that twelve images can fill and an end within reach
    result = run("train", "--epochs", 50, "--sched", "plateau", "--batch-size", 4, "--max-steps", 2)
    assert result.exit_code == 0, result.output
    assert "run folder     runs/resnet18" in result.stdout
    result = run("explain", "--n", 25)
    assert result.exit_code == 0, result.output
    assert "of 12 test images misclassified by runs/resnet18" in result.stdout


def test_convert_as_json(image_folder: ImageFolder) -> None:
    facts = json.loads(run("convert", "--source", image_folder(), "--json").stdout)
    assert facts["train"]["num_samples"] == 6
    assert facts["test"]["class_names"] == ["cat", "dog"]


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, image_folder: ImageFolder, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run("convert", "--source", image_folder(), "--data-dir=~/data")
    assert (tmp_path / "home/data/train.beton").is_file()


def test_a_run_finds_its_data_from_another_folder(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Path("data").symlink_to(data_dir)
    run("train", "--model", "small", "--batch-size", 100, "--max-steps", 1)
    monkeypatch.chdir(tmp_path)
    assert run("explain", "--runs-dir", "here/runs", "--n", 1).exit_code == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("script") is None, reason="no `script` to play a terminal")
def test_log_lines_stand_above_the_bar_on_a_terminal(data_dir: Path) -> None:
    command = f"{sys.executable} -m fastcifar train --data-dir {data_dir} --model small --batch-size 100 --max-steps 3"
    answer = subprocess.run(["script", "-qec", command, "/dev/null"], capture_output=True, text=True, check=True)
    (line,) = [line for line in answer.stdout.splitlines() if "epoch 1/50  train loss" in line]
    assert "━" not in line.split("epoch 1/50  train loss")[0].split("\x1b")[-1]


def test_inspect_as_json(data_dir: Path) -> None:
    facts = json.loads(run("inspect", data_dir / "train.beton", "--json").stdout)
    assert facts.keys() == {
        "num_samples", "encoding", "image_shape", "class_names", "class_counts", "mean", "std", "sha256", "verified",
        "conversion",
    }  # fmt: skip
    assert facts["num_samples"] == 600
    assert facts["encoding"] == "raw"
    assert facts["image_shape"] == [32, 32, 3]
    assert facts["class_counts"] == dict.fromkeys(facts["class_names"], 60)
    assert facts["verified"] is True


def test_inspect_for_people(own_data_dir: Path) -> None:
    result = run("inspect", own_data_dir / "train.beton")
    assert "verified        yes, SHA-256 matches the manifest" in result.stdout
    assert "  triangle                    3" in result.stdout
    manifest_path(own_data_dir / "train.beton").unlink()
    result = run("inspect", own_data_dir / "train.beton")
    assert result.exit_code == 0
    assert "verified        no, it has no manifest" in result.stdout
    assert "the structure was checked, the pixels cannot be" in result.stderr


def train_args(data_dir: Path, *more: object) -> list[object]:
    return ["train", "--data-dir", data_dir, "--model", "small", "--batch-size", 100, "--max-steps", 2, *more]


def test_train_and_explain_as_json(data_dir: Path) -> None:
    trained = json.loads(run(*train_args(data_dir, "--json", "--name", "a")).stdout)
    assert trained["run"] == "runs/a"
    assert trained["steps"] == 2
    explained = json.loads(run("explain", "a", "--json", "--n", 3).stdout)
    assert explained["num_shown"] == 3
    assert explained["layers"] == {"layer1": [15, 15], "layer2": [7, 7], "layer3": [3, 3]}
    assert explained["files"][:3] == [f"runs/a/explain/{name}" for name in ("grid.png", "index.csv", "maps.npz")]
    assert len(explained["files"]) == 6
    evaluated = json.loads(run("eval", "a", "--json").stdout)
    assert evaluated["accuracy"] == trained["test_accuracy"]
    assert evaluated["files"][0] == "runs/a/eval/test/metrics.json"


def following(*args: object) -> list[str]:
    """The commands that a command says are next."""
    return re.findall(r"^next: fastcifar (.*)$", run(*args).stdout, flags=re.MULTILINE)


def test_the_next_commands_on_a_run_have_its_data_and_leave_out_what_is_done(data_dir: Path, tmp_path: Path) -> None:
    run(*train_args(data_dir, "--name", "a"))
    config = Path("runs/a/config.yaml")
    config.write_text(config.read_text().replace(str(data_dir), str(tmp_path / "moved away")))
    data = f" --data-dir {data_dir}"
    predict, export = "predict IMAGES --run runs/a", "export runs/a"
    assert following("report", "a") == ["explain runs/a", "eval runs/a"]
    assert following("explain", "a", "--n", 1, "--data-dir", data_dir) == [f"eval runs/a{data}"]
    assert following("eval", "a", "--data-dir", data_dir) == [predict, export + data]
    PIL.Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save("a.png")
    assert following("predict", "a.png", "--run", "a", "--maps") == [export]
    Path("runs/a/export").mkdir()
    Path("runs/a/export/model.onnx").touch()
    assert following("report", "a") == [predict]


def test_without_a_mistake_the_correct_images_are_explained(data_dir: Path) -> None:
    run(*train_args(data_dir, "--name", "a"))
    folder = RunFolder(Path("runs/a"))
    found = Predictions.load(folder.predictions)
    logits = np.eye(10, dtype=np.float32)[found.labels]
    replace(found, logits=logits).save(folder.predictions)
    total = len(found)
    lines = run("explain", "a", "--n", 2).stdout.splitlines()
    assert lines[:2] == [f"0 of {total} test images misclassified by runs/a", "2 requested, 0 found"]
    assert lines[-2:] == ["next: fastcifar explain runs/a --correct", "next: fastcifar eval runs/a"]
    assert following("eval", "a") == ["explain runs/a --correct"]
    lines = run("explain", "a", "--n", 2, "--correct").stdout.splitlines()
    assert lines[0] == f"{total} of {total} test images correctly classified by runs/a"
    assert lines[1] == "runs/a/explain/grid.png"
    assert "2 requested, 0 found; the earlier explanation stays" in run("explain", "a", "--n", 2).stdout


def test_eval_prints_the_metrics_of_every_class(data_dir: Path) -> None:
    run(*train_args(data_dir, "--name", "a"))
    lines = run("eval", "--split", "val").stdout.splitlines()
    assert lines[0].split() == ["run", "runs/a"]
    assert lines[1].split() == ["images", "60", "(val)"]
    assert [line.split()[0] for line in lines[11:21]] == list(open_beton(data_dir / "test.beton").class_names)
    assert lines[22].startswith("most confused: ")
    assert lines[-2:] == ["runs/a/eval/val/predictions.npz", "next: fastcifar explain runs/a"]


def test_preview_draws_a_recipe(data_dir: Path) -> None:
    result = run("preview", "--recipe", "onecycle-l1", "--data-dir", data_dir, "--n", 2, "--out", "b.png")
    following = f"next: fastcifar train --recipe onecycle-l1 --data-dir {data_dir}"
    assert (result.exit_code, result.stdout.splitlines()) == (0, ["b.png", following])
    assert Path("b.png").stat().st_size > 10_000
    assert refused(2, "preview", "--recipe", "nothing", "--data-dir", data_dir)
    assert run("preview", "--data-dir", data_dir, "--n", 1, "--out", "made/c.png").exit_code == 0
    assert refused(4, "preview", "--data-dir", "nowhere").startswith("nowhere/train.beton: no such file")


def test_preview_of_few_images_names_a_smaller_batch_size(tiny_data: Path) -> None:
    """Than that of the recipe, or the default."""
    preview = ["preview", "--data-dir", tiny_data, "--n", 1]
    assert following(*preview) == [f"train --data-dir {tiny_data} --batch-size 8"]
    assert following(*preview, "--recipe", "fast")[0].endswith(" --batch-size 8")
    assert "--batch-size" not in following(*preview, "--recipe", "onecycle-l1")[0]


def test_explain_refuses_in_one_line(data_dir: Path) -> None:
    run(*train_args(data_dir, "--name", "a"))
    Path("a.txt").write_text("text")
    assert refused(2, "explain", "--n", 0) == "n is 0; expected 1 or more"
    assert refused(2, "explain", "--layers", "layer9").startswith("layer is 'layer9'; expected one of: layer1, layer2")
    assert refused(2, "explain", "--methods", "x") == "methods is 'x'; expected one of: gradcam, gradcampp, hirescam"
    assert "'3;4'; expected one of: loss, confidence, random; or indices" in refused(2, "explain", "--select", "3;4")
    assert refused(4, "explain", "--image", "a.txt").startswith("a.txt: not a readable image")
    assert "n selects test images; expected it without images of your own" in refused(2, "explain", "a.jpg", "--n", 3)
    assert "target is 'true', but the true class of your images is unknown" in refused(
        2, "explain", "--image", "a.txt", "--target", "true"
    )
    assert "n is 3, and select names images; expected one of them" in refused(2, "explain", "--select", "1", "--n", 3)
    assert "seed is 3, and select not 'random'" in refused(2, "explain", "--seed", 3)
    assert refused(2, "explain", "--target", "unicorn").startswith("target is 'unicorn'; expected one of: pred, true")


def test_a_second_run_gets_a_folder_of_its_own(data_dir: Path) -> None:
    outputs = [run(*train_args(data_dir)).stdout for _ in range(2)]
    assert "runs/small\n" in outputs[0]
    assert "runs/small-2\n" in outputs[1]


def test_flags_beat_variables_which_beat_defaults(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCIFAR_DATA_DIR", str(data_dir))
    monkeypatch.setenv("FASTCIFAR_RUNS_DIR", "elsewhere")
    args = ["train", "--model", "small", "--batch-size", 100, "--max-steps", 1]
    assert "elsewhere/small" in run(*args).stdout
    assert "flagged/small" in run(*args, "--runs-dir", "flagged").stdout


def test_resume_takes_the_runs_own_settings(data_dir: Path) -> None:
    run(*train_args(data_dir, "--seed", 5, "--no-flip"))
    result = run("train", "--resume", "--max-steps", 4, "--json")
    assert json.loads(result.stdout)["steps"] == 4
    assert json.loads(result.stdout)["seed"] == 5
    assert json.loads(run("train", "--resume", "small", "--max-steps", 5, "--json").stdout)["steps"] == 5
    assert "--seed, --flip cannot be changed when a run is resumed; only --epochs, --max-steps" in refused(
        2, "train", "--resume", "--seed", 6, "--flip"
    )


def test_doctor() -> None:
    result = run("doctor")
    assert result.exit_code == 0
    assert "loader resident" in result.stdout
    facts = json.loads(run("doctor", "--json").stdout)
    assert facts["loaders"]["resident"]["works"] is True
    assert facts["versions"]["fastcifar"] == fastcifar.__version__


def test_what_is_missing_is_said_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, data_dir: Path, image_folder: ImageFolder
) -> None:
    for module in ("ffcv", "ffcv.libffcv", "albumentations"):
        monkeypatch.setitem(sys.modules, module, None)
    for module in ("loaders.numba_jpeg", "loaders.albumentations_loader", "augment.albumentations_kernel"):
        monkeypatch.delitem(sys.modules, f"fastcifar.{module}", raising=False)
    source = image_folder(each=20, side=32)
    converted = run("convert", "--source", source, "--encode", "jpeg", "--data-dir", "jpeg")
    jpeg_line = refused(3, *train_args(Path("jpeg"), "--batch-size", 10))
    assert (converted.exit_code, converted.stderr.startswith(f"warning: {jpeg_line}")) == (0, True)
    assert jpeg_line.startswith("decoding JPEG images needs ffcv, which is not installed")
    assert jpeg_line.endswith(
        "install it with: apt-get install pkg-config libopencv-dev libturbojpeg0-dev && pip install 'fastcifar[ffcv]'"
    )
    line = refused(3, *train_args(data_dir, "--loader", "albumentations"))
    assert line.endswith("install it with: pip install 'fastcifar[albumentations]'")
    facts = json.loads(run("doctor", "--json").stdout)
    assert [state["works"] for state in facts["loaders"].values()] == [True, True, False]
    assert facts["jpeg"] == {"works": False, "reason": jpeg_line}
    for loader in ("auto", "ffcv"):
        assert run(*train_args(data_dir, "--loader", loader)).exit_code == 0
    assert MissingExtraError.exit_code == 3


def test_wrong_paths(tmp_path: Path) -> None:
    assert refused(4, "convert", "--source", "nowhere").startswith(
        "nowhere: no such file or folder; expected 'download'"
    )
    (tmp_path / "empty").mkdir()
    assert refused(4, "convert", "--source", tmp_path / "empty").endswith(
        "empty: no images; expected train/<class>/* and test/<class>/*, or <class>/*: JPEG, PNG, WebP, BMP, GIF or "
        "TIFF; found nothing"
    )
    assert refused(4, "inspect", "nothing.beton") == "nothing.beton: no such file; make it with: fastcifar convert"
    assert refused(4, "train") == "data/train.beton: no such file; make it with: fastcifar convert"
    assert refused(6, "explain") == "runs: no run with a checkpoint; create one with 'fastcifar train'"
    assert refused(4, "explain", "nobody") == "nobody: no such run in runs; expected a folder or one of: none yet"


def test_a_damaged_beton(own_data_dir: Path) -> None:
    path = own_data_dir / "train.beton"
    path.write_bytes(path.read_bytes()[:-5])
    line = refused(4, "inspect", path)
    assert line.startswith(f"{path}: damaged beton: the allocation table at")
    assert refused(4, "train", "--data-dir", own_data_dir) == line


def test_wrong_images(image_folder: ImageFolder) -> None:
    folder = image_folder(side=32)
    PIL.Image.fromarray(np.zeros((64, 48, 3), np.uint8)).save(folder / "train/cat/odd.png")
    assert "train/cat/odd.png is 64x48, train/cat/00.png is 32x32" in refused(4, "convert", "--source", folder)
    (folder / "train/cat/odd.png").unlink()
    shutil.copytree(folder / "test/cat", folder / "test/yak")
    assert "test/yak is a class that train/ does not have" in refused(4, "convert", "--source", folder)
    assert not list(Path("data").glob("*"))


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--epochs", "0"], "epochs is 0; expected 1 or more"),
        (["--lr", "-1"], "lr is -1.0; expected a number above 0"),
        (["--lr", "nan"], "lr is nan; expected a number above 0"),
        (
            ["--model", "vgg"],
            (
                "model is 'vgg'; expected one of: resnet18, small, a name of torchvision.models (such as resnet34 or "
                "mobilenet_v3_small), timm:NAME, or package.module:function"
            ),
        ),
        (
            ["--model", "ResNet18"],
            "model is 'ResNet18'; names of networks are in lower case: 'resnet18'",
        ),
        (["--epoch", "3"], "No such option"),
        (
            ["--epochs", "many"],
            "Invalid value for '--epochs': 'many' is not a valid integer. (see 'fastcifar train --help')",
        ),
        (["--cutout-size", "-3"], "cutout_size is -3; expected 0..16383"),
    ],
)
def test_wrong_settings(args: list[str], line: str) -> None:
    assert refused(2, "train", *args).startswith(line)


def test_a_flag_without_effect_is_a_warning() -> None:
    line = ("train", "--data-dir", "nowhere", "--milestones", "1,2", "--cutout-p", "0.5")
    warning, _ = run(*line).stderr.splitlines()
    assert warning == "warning: --milestones has no effect: sched is 'plateau'"
    assert len(run(*line, "--sched", "multistep").stderr.splitlines()) == 1


def under_torchrun(monkeypatch: pytest.MonkeyPatch, rank: str) -> None:
    variables = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in {**variables, "TORCHELASTIC_RUN_ID": "none"}.items():
        monkeypatch.setenv(name, value)


def test_of_several_processes_one_tells_of_a_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, num_lines in (("0", 1), ("1", 0)):
        under_torchrun(monkeypatch, rank)
        result = run("train", "--sched", "sometimes")
        assert (result.exit_code, len(result.stderr.splitlines())) == (2, num_lines)


def test_what_is_wrong_for_one_process_is_not_kept_to_itself(monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> None:
    under_torchrun(monkeypatch, "1")
    line = refused(2, "train", "--data-dir", data_dir, "--device", "cuda:99")
    assert line.startswith("process 1 of 2: ")
    assert "cuda:99" in line


def test_an_unknown_command() -> None:
    assert refused(2, "trian").startswith("No such command 'trian'")


def test_hostile_names_cannot_steer_the_terminal() -> None:
    assert refused(4, "inspect", "a\x1b[2J\nb.beton").startswith("a [2J b.beton: no such file")


def test_an_unexpected_error_is_one_line(monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> None:
    def broken(*args: object, **settings: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("fastcifar.data.beton.open_beton", broken)
    assert refused(1, "inspect", "x").startswith("ZeroDivisionError: by zero (unexpected error; please report it")
    result = CliRunner().invoke(main, ["inspect", "x", "--debug"])
    assert isinstance(result.exception, ZeroDivisionError)


def start(*args: object, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fastcifar", *(str(arg) for arg in args)]
    pipes: dict[str, Any] = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "start_new_session": True,
    }
    return subprocess.Popen(command, env={**os.environ, **environment}, **pipes)


@pytest.mark.full_size
@pytest.mark.slow
@pytest.mark.parametrize("loader", LOADERS)
def test_ctrl_c_saves_and_resume_goes_on(data_dir: Path, loader: str) -> None:
    flags = ["--model", "small", "--batch-size", 20, "--epochs", 500, "--loader", loader]
    process = start("train", "--data-dir", data_dir, *flags)
    results = Path("runs/small/results.csv")
    deadline = time.monotonic() + 120
    while not results.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)  # waits for another process to reach a state; no result depends on it
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, errors = process.communicate(timeout=120)
    assert "Traceback" not in errors
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1].startswith("stopped by SIGINT: saved at step ")
    assert errors.splitlines()[-1].endswith("resume with: fastcifar train --resume runs/small")
    steps = int(errors.split("saved at step ")[1].split(";")[0])
    result = run("train", "--resume", "small", "--max-steps", steps + 1, "--json")
    assert json.loads(result.stdout)["steps"] == steps + 1


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_python_drops_comes_again(signum: signal.Signals) -> None:
    code = f"""
import os, signal, time, click
from fastcifar.cli import main

class Freed:
    def __del__(self):  # what is raised in here is dropped
        os.kill(os.getpid(), {int(signum)})
        time.sleep(0)

@main.command()
def work():
    Freed()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(0.01)

main(["work"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 128 + signum, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_exec_of_a_string(signum: signal.Signals) -> None:
    """As when a module with a dataclass is imported: Python ended by SIGINT, with no exit code."""
    code = f"""
from fastcifar.cli import main

@main.command()
def work():
    exec("import os; os.kill(os.getpid(), {int(signum)})")

main(["work"])
"""
    Path("worker.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "-m", "worker"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 128 + signum, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_error_is_reported_even_if_a_signal_arrives(signum: signal.Signals) -> None:
    code = f"""
import os, click
from fastcifar.cli import main
from fastcifar.errors import DataError

echo = click.echo

def interrupted(*args, **kwargs):
    os.kill(os.getpid(), {int(signum)})
    echo(*args, **kwargs)

click.echo = interrupted

@main.command()
def work():
    raise DataError("the disk is gone")

main(["work"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (4, "Error: the disk is gone\n")


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_closed_streams_are_not_an_error(image_folder: ImageFolder, tmp_path: Path, closed: str) -> None:
    line = f"{sys.executable} -m fastcifar convert --source {image_folder()} --data-dir data {closed}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert open_beton("data/train.beton").verified


def test_names_that_are_not_text(image_folder: ImageFolder, tmp_path: Path) -> None:
    """A folder may have any bytes for its name, and the files that are written are UTF-8."""
    images = image_folder("im\udcff")
    assert run("convert", "--source", images, "--data-dir", "d").exit_code == 0
    assert run("inspect", "d/train.beton").exit_code == 0
    os.rename("d", "d\udcff")
    line = refused(2, "train", "--data-dir", "d\udcff", "--model", "small", "--batch-size", 2, "--epochs", 1)
    assert "is not UTF-8; rename the folder" in line
    os.mkdir("cwd\udcff")
    os.chdir("cwd\udcff")
    os.rename("../d\udcff", "data")
    line = refused(2, "train", "--model", "small", "--batch-size", 2, "--epochs", 1)
    assert "is not UTF-8; rename the folder" in line
    assert os.listdir(".") == ["data"]


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_conversion_leaves_nothing_half_done(signum: signal.Signals) -> None:
    for attempt in range(10):
        folder = Path(f"data-{attempt}")
        process = start("convert", "--source", "synthetic", "--data-dir", folder)
        deadline = time.monotonic() + 60
        while not (folder / ".train.beton.partial").exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signum)
        _, errors = process.communicate(timeout=60)
        if process.returncode:  # else it was done before the signal came: the machine is busy
            break
    assert process.returncode == 128 + signum, errors
    assert "Traceback" not in errors
    assert list(folder.iterdir()) == []
