"""`predict`: the same classes as `eval`, in every form of output, and what cannot be read."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner, Result

import fastcifar
from fastcifar import open_beton
from fastcifar.cli import main
from fastcifar.config import MAX_EXPLAINED, ModelConfig, TrainConfig
from fastcifar.converters import convert
from fastcifar.data.image_files import Preprocessing, decode_image
from fastcifar.errors import UsageError
from fastcifar.inference.calibration import Calibration
from fastcifar.inference.predict_files import ImagePredictions, predict
from fastcifar.inference.predictions import Predictions
from fastcifar.inference.trained_run import TrainedRun
from fastcifar.models import make_model
from fastcifar.training import RunFolder
from fastcifar.training.data import Loaders
from fastcifar.training.distributed import Distributed
from fastcifar.training.weights import DatasetInfo, file_sha256, read_info, save_weights
from tests.conftest import ImageFolder
from tests.test_paths import parsed
from tests.tiny import tiny


def untrained_run(folder: Path, data_dir: Path, amp: str = "off", info: DatasetInfo | None = None) -> RunFolder:
    """A run with the initial weights of `small`."""
    beton, run, network = open_beton(data_dir / "train.beton"), RunFolder(folder), ModelConfig(name="small")
    run.best.parent.mkdir(parents=True)
    run.write_config(TrainConfig.from_settings(model="small", data_dir=str(data_dir), amp=amp))
    info = info or DatasetInfo(
        class_names=beton.class_names,
        image_shape=beton.image_shape,
        mean=tuple(beton.mean.tolist()),
        std=tuple(beton.std.tolist()),
        sha256=beton.sha256,
    )
    torch.manual_seed(0)
    save_weights(run.best, make_model(network, len(info.class_names), info.image_shape), network, info)
    return run


@pytest.fixture
def run(tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run in runs/ in the current folder."""
    monkeypatch.chdir(tmp_path)
    return untrained_run(Path("runs/a"), tiny_data)


@pytest.fixture
def files(tmp_path: Path, tiny_data: Path) -> Path:
    """The folder with the 40 test images as files, in their order."""
    folder = tmp_path / "files"
    folder.mkdir()
    for index, image in enumerate(open_beton(tiny_data / "test.beton").images(range(40))):
        PIL.Image.fromarray(image).save(folder / f"{index:02d}.png")
    return folder


def calibrate(run: RunFolder, temperature: float) -> None:
    Calibration(
        temperature=temperature,
        num_images=500,
        loss=2.0,
        calibrated_loss=1.0,
        ece=0.2,
        calibrated_ece=0.1,
        weights_sha256=file_sha256(run.best),
    ).save(run)


def invoke(*args: object, **more: Any) -> Result:
    done = CliRunner().invoke(main, ["predict", *map(str, args)], **more)
    assert "Traceback" not in done.output
    return done


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_files_get_the_logits_that_eval_has_for_the_same_images(
    tmp_path: Path, tiny_data: Path, files: Path, amp: str
) -> None:
    run = untrained_run(tmp_path / "a", tiny_data, amp)
    expected = TrainedRun(run).predictions("test")
    for path in (files, tiny_data / "test.beton"):
        found = predict(path, run).predictions
        np.testing.assert_array_equal(found.logits, expected.logits)
        np.testing.assert_array_equal(found.predicted, expected.predicted)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.indices, expected.indices)
    assert predict(path, run).accuracy == expected.accuracy


def test_batches_change_no_class(run: RunFolder, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = predict(files, run)
    monkeypatch.setattr("fastcifar.inference.predict_files.EVAL_BATCH_SIZE", 7)
    apart = predict(sorted(files.iterdir()), "a")
    assert apart.files == together.files
    np.testing.assert_allclose(apart.predictions.logits, together.predictions.logits, atol=1e-4)


def test_images_are_resized_as_those_of_the_data_were(
    image_folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights know how: the data may be on another machine."""
    data = tmp_path / "data"
    convert(image_folder(classes=("cat", "dog"), each=8), data, size=16, fit="pad", background=(9, 90, 200))
    loaders = Loaders(tiny(data, batch_size=8), torch.device("cpu"), Distributed())
    loaders.close()
    run = untrained_run(tmp_path / "a", data, info=loaders.info)
    assert read_info(run.best).preprocessing == Preprocessing(size=(16, 16), fit="pad", background=(9, 90, 200))
    for file in data.iterdir():
        file.unlink()
    wide = tmp_path / "wide.png"
    PIL.Image.fromarray(np.full((10, 40, 4), 128, np.uint8)).save(wide)
    seen: list[Any] = []
    monkeypatch.setattr(TrainedRun, "normalise", lambda self, images: seen.append(images) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predict(wide, run)
    expected = decode_image(wide.read_bytes(), Preprocessing(size=(16, 16), fit="pad", background=(9, 90, 200))).pixels
    np.testing.assert_array_equal(seen[0], expected[None])
    assert seen[0][0, 0, 0].tolist() == [9, 90, 200]


def test_probabilities_are_calibrated_where_the_run_has_a_calibration(run: RunFolder, files: Path) -> None:
    plain = predict(files, run)
    assert plain.calibration is None
    assert "probabilities  not calibrated: calibrate the run with: fastcifar eval" in invoke(files).stdout
    calibrate(run, 4.0)
    calibrated = predict(files, run)
    logits = plain.predictions.logits.astype(np.float64) / 4
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(calibrated.probabilities, expected, rtol=1e-5)
    line = "probabilities  calibrated: temperature 4.000, fitted on 500 validation images"
    assert line in invoke(files).stdout
    facts = json.loads(invoke(files, "--json").stdout)
    assert (facts["calibrated"], facts["calibration"]["temperature"]) == (True, 4)


def test_a_run_whose_training_is_not_finished_is_used_with_a_warning(run: RunFolder, files: Path) -> None:
    assert "not finished" not in invoke(files).stderr
    run.last.touch()
    warning = "runs/a: its training is not finished; finish it with: fastcifar train --resume runs/a"
    assert f"warning: {warning}\n" in invoke(files).stderr


def test_of_equal_logits_the_first_class_is_the_predicted_one() -> None:
    logits = np.tile(np.array([0, 2, 2, 1], np.float32), 20)[None]
    unknown = np.array([-1])
    found = ImagePredictions(
        files=("a.png",),
        origins=("",),
        predictions=Predictions(unknown, unknown, logits),
        class_names=tuple(map(str, range(80))),
        errors=(),
        calibration=None,
        not_calibrated="",
    )
    assert found.top(99)[0].tolist() == [sorted(range(80), key=lambda i: (-logits[0, i], i))]
    assert found.predictions.predicted.tolist() == [1]
    with pytest.raises(UsageError, match="top is 0; expected 1 or more"):
        found.top(0)


def test_the_table_has_the_most_probable_classes(run: RunFolder, files: Path) -> None:
    found = predict(files, run)
    classes, probabilities = found.top(2)
    lines = invoke(files, "--top", 2).stdout.splitlines()
    assert lines[0].split() == ["file", "predicted", "class", "2"]
    for line, file, names, values in zip(lines[1:], found.files, classes, probabilities, strict=False):
        pairs = zip(names, values, strict=True)
        assert line.split() == [file, *(w for i, p in pairs for w in (found.class_names[i], f"{p:.1%}"))]
    assert lines[41:45] == [
        "",
        "run            runs/a",
        "images         40",
        lines[44],
    ]
    (following,) = [line.removeprefix("next: ") for line in lines if line.startswith("next: ")]
    assert parsed(following)["paths"] == (files,)
    assert parsed(following)["maps"] is True
    assert len(invoke(files / "00.png", "--top", 99).stdout.splitlines()[0].split("class")) == 10  # all ten classes


def test_a_csv_file_has_the_same_values(run: RunFolder, files: Path, tiny_data: Path) -> None:
    done = invoke(files, "--csv", "new/out.csv")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[3] == "new/out.csv"
    rows = table(Path("new/out.csv"))
    assert list(rows[0]) == [
        "file",
        "predicted",
        "confidence",
        "class_2",
        "probability_2",
        "class_3",
        "probability_3",
    ]
    found = predict(files, run)
    assert [row["file"] for row in rows] == list(found.files)
    assert [row["predicted"] for row in rows] == [found.class_names[i] for i in found.predictions.predicted]
    np.testing.assert_allclose([float(row["confidence"]) for row in rows], found.predictions.confidence, atol=1e-6)
    invoke(tiny_data / "test.beton", files / "00.png", "--csv", "out.csv", "--top", 1)
    rows = table(Path("out.csv"))
    assert list(rows[0]) == ["file", "index", "origin", "true", "predicted", "confidence"]
    beton = open_beton(tiny_data / "test.beton")
    assert [row["true"] for row in rows] == [*(beton.class_names[i] for i in beton.labels), ""]
    assert (rows[3]["index"], rows[3]["origin"], rows[40]["index"]) == ("3", beton.origins([3])[0], "")
    done = invoke(files, "--csv", files)
    assert (done.exit_code, done.stderr) == (
        2,
        f"Error: {files}: a folder; expected the name of a CSV file, e.g. {files / 'classes.csv'}\n",
    )


def test_a_csv_file_replaces_no_images_and_no_pipe(run: RunFolder, files: Path, tiny_data: Path) -> None:
    beton = shutil.copy(tiny_data / "test.beton", "mine.beton")
    table = shutil.copy(files / "02.png", "images")  # without a suffix
    cases = [(files / "00.png", files / "01.png"), (beton, tiny_data / "test.beton"), (Path(table).absolute(), table)]
    for csv_file, *paths in cases:  # as `--csv *.png` becomes
        before = Path(csv_file).read_bytes()
        done = invoke("--csv", csv_file, *paths)
        assert (done.exit_code, done.stderr) == (
            2,
            f"Error: {csv_file}: a file of images; expected the name of a CSV file, e.g. classes.csv\n",
        )
        assert Path(csv_file).read_bytes() == before
    os.mkfifo("pipe")
    done = invoke("--csv", "pipe", files / "01.png")
    assert (done.exit_code, done.stderr) == (
        2,
        "Error: pipe: a device or pipe; expected the name of a CSV file, e.g. classes.csv\n",
    )


def test_a_beton_has_true_classes_and_an_accuracy(run: RunFolder, tiny_data: Path) -> None:
    found = predict(tiny_data / "test.beton", run)
    lines = invoke(tiny_data / "test.beton").stdout.splitlines()
    assert lines[0].split()[:3] == ["file", "true", "predicted"]
    assert f"accuracy       {found.accuracy:.2%} of 40 images whose class is known" in lines
    assert json.loads(invoke(tiny_data / "test.beton", "--json").stdout)["accuracy"] == found.accuracy


def test_what_cannot_be_read_is_named_and_the_others_are_predicted(run: RunFolder, files: Path) -> None:
    (files / "05.png").write_bytes((files / "05.png").read_bytes()[:100])
    expected = [files / f"{i:02d}.png" for i in range(40) if i != 5]
    done = invoke(files, "none.png")
    assert done.exit_code == 4
    assert [line.split()[0] for line in done.stdout.splitlines()[1:40]] == list(map(str, expected))
    assert "images         39; 2 could not be read\n" in done.stdout
    first, second, last = done.stderr.splitlines()
    assert first.startswith(f"{files / '05.png'}: not a readable image (it begins as a PNG image and is truncated")
    assert second == "none.png: no such image"
    assert last == "Error: 2 of 41 images could not be read; the lines above say why"
    done = invoke(files, "none.png", "--json")
    assert done.exit_code == 4
    facts = json.loads(done.stdout)
    assert [error["file"] for error in facts["errors"]] == [str(files / "05.png"), "none.png"]
    assert len(facts["images"]) == 39
    done = invoke("none.png")
    assert (done.exit_code, done.stdout, done.stderr) == (4, "", "Error: none.png: no such image\n")
    done = invoke("none.png", "*.gif", "--csv", "out.csv")
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (4, "", 3)
    assert Path("out.csv").read_text() == "file,predicted,confidence\n"


@pytest.mark.parametrize("separate", [b"\n".join, b"\r\n".join, lambda names: b"\0".join([*names, b""])])
def test_paths_are_read_from_stdin(run: RunFolder, files: Path, separate: Callable[[list[bytes]], bytes]) -> None:
    names = [files / "03.png", files / "01.png", files]
    done = invoke("-", "--json", input=separate([str(name).encode() for name in names]))
    found = [image["file"] for image in json.loads(done.stdout)["images"]]
    assert found[:3] == [str(files / name) for name in ("03.png", "01.png", "00.png")]
    assert len(found) == 42


def test_a_list_on_stdin_is_not_empty_and_not_endless(
    run: RunFolder, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in ("", "\n \n"):
        done = invoke("-", input=text)
        assert (done.exit_code, done.stderr) == (
            4,
            "Error: stdin: no paths; expected those of images, one on each line\n",
        )
    monkeypatch.setattr("fastcifar.cli.images.MAX_LIST_BYTES", 10)
    done = invoke("-", input="x" * 11)
    assert (done.exit_code, "MiB; expected the paths of images" in done.stderr) == (4, True)
    done = invoke("./-")  # a file of this name
    assert done.stderr == "Error: -: no such image\n"


def test_maps_are_drawn_of_the_same_predictions(run: RunFolder, files: Path) -> None:
    calibrate(run, 2.0)
    (files / "02.png").write_text("no picture")
    images = [files / "01.png", files / "02.png"]
    done = invoke(*images, "--maps", "--json")
    facts = json.loads(done.stdout)
    assert (done.exit_code, len(facts["images"]), len(facts["errors"])) == (4, 1, 1)
    folder = run.explain / "images"
    written = ("grid.png", "index.csv", "maps.npz", "sheets/00000.png")
    assert facts["files"] == [str(folder / name) for name in written]
    assert facts["images"] == json.loads(invoke(*images, "--json").stdout)["images"]
    rows = table(folder / "index.csv")
    assert [(row["index"], row["predicted"], row["true"]) for row in rows] == [
        (image["file"], image["classes"][0][0], "") for image in facts["images"]
    ]
    explained = CliRunner().invoke(main, ["explain", *map(str, images), "--json"])
    assert explained.exit_code == 4
    assert json.loads(explained.stdout)["images"] == facts["images"]


def test_maps_of_too_many_images_are_refused_before_they_are_read(
    run: RunFolder, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tiny_data / "test.beton"] * (MAX_EXPLAINED // 40 + 1)
    done = invoke(*paths, "--maps")
    assert (done.exit_code, done.stderr) == (
        2,
        "Error: 1,040 images; expected at most 1,000 at a time, to draw maps of them\n",
    )


def test_the_function_is_public(run: RunFolder, files: Path) -> None:
    found = fastcifar.predict([files / "00.png"], "a")
    assert found.to_rows(1)[0]["file"] == str(files / "00.png")
    assert len(found) == 1
    assert fastcifar.predict(str(files), run=run, runs_dir="nowhere").probabilities.shape == (40, 10)
