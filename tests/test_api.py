"""The public names of fastcifar: `train`, `Run`, and the examples in the docstrings of all of them."""

from __future__ import annotations

import doctest
import logging
import re
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from matplotlib.figure import Figure

import fastcifar
from fastcifar import Run, TrainConfig
from fastcifar.config import LrRangeTestConfig, ModelConfig
from fastcifar.errors import CheckpointError, DataError, UsageError
from fastcifar.training.run_folder import COLUMNS, RunFolder
from tests.tiny import NETWORK, tiny

pytestmark = pytest.mark.usefixtures("ordinary_algorithms")
PUBLIC = fastcifar.__all__
ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *(page for page in (ROOT / "docs").glob("*.md") if page.name != "api.md")]
"""Those that are written by hand."""
EXAMPLES = [("fastcifar", name) for name in PUBLIC] + [
    ("fastcifar.augment.params", "sample_params"),
    ("fastcifar.explain", "Maps"),
    ("fastcifar.inference.metrics", "Metrics"),
    ("fastcifar.inference.predictions", "Predictions"),
    ("fastcifar.loaders", "Loader"),
    ("fastcifar.loaders", "MixedBatch"),
    ("fastcifar.models", "make_model"),
    ("fastcifar.training.lr_finder", "find_lr"),
]
"""Names whose docstring has an example."""


@pytest.fixture(scope="module")
def folder(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/, the run runs/fast and three images. Not to be written to."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "data").symlink_to(tiny_data)
    settings: dict[str, Any] = {"model": "small", "epochs": 1, "batch_size": 36, "data_dir": str(tiny_data)}
    fastcifar.train(TrainConfig.from_settings(**settings), runs_dir=folder / "runs", name="fast", progress=False)
    (folder / "photos").mkdir()
    for name in ("cat.png", "photos/1.png", "photos/2.png"):
        PIL.Image.new("RGB", (40, 40), (200, 100, 50)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return Run("fast", runs_dir=folder / "runs")


def copy_of(folder: Path, tmp_path: Path) -> Run:
    """The run, for a test to change."""
    shutil.copytree(folder / "runs", tmp_path / "runs")
    return Run("fast", runs_dir=tmp_path / "runs")


@pytest.mark.parametrize(("module", "name"), EXAMPLES, ids=lambda part: part.removeprefix("fastcifar."))
def test_the_example_in_its_docstring_runs(
    module: str, name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in ("export", "train"):  # they write into runs/
        shutil.copytree(folder, tmp_path / "work", symlinks=True)
        folder = tmp_path / "work"
    elif name == "convert":
        folder = tmp_path
    monkeypatch.chdir(folder)
    item = getattr(import_module(module), name)
    names = {each: getattr(fastcifar, each) for each in PUBLIC} | {"np": np, "torch": torch, name: item}
    names |= {each.__name__: each for each in (LrRangeTestConfig, ModelConfig)}
    (test,) = doctest.DocTestFinder(recurse=False).find(item, name, globs=names)
    assert test.examples, f"{name} has no example"
    printed: list[str] = []
    assert doctest.DocTestRunner().run(test, out=printed.append).failed == 0, "".join(printed)


@pytest.mark.slow
def test_the_star_import_brings_what_the_pages_name_and_nothing_else() -> None:
    code = "before = __version__ = 'mine'; from fastcifar import *; print(__version__, *dir())"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    own, *names = process.stdout.split()
    assert own == "mine"
    assert sorted(name for name in names if not name.startswith("__")) == sorted([*PUBLIC, "before"])
    assert all(getattr(fastcifar, name).__name__ == name for name in PUBLIC)
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"(?<!/)\bfastcifar\.([a-zA-Z]\w*)", text))
    for names_imported in re.findall(r"^from fastcifar import ([\w, ]+)$", text, re.M):
        named.update(re.findall(r"\w+", names_imported))
    assert set(PUBLIC) == {name for name in named if find_spec(f"fastcifar.{name}") is None}


def test_a_run_knows_its_scores_history_and_settings(run: Run, folder: Path) -> None:
    assert run.path == folder / "runs" / "fast"
    assert run.config.model.name == "small"
    assert run.metrics["test_accuracy"] == run.predictions("test").accuracy == run.scores().accuracy
    assert tuple(run.history) == COLUMNS
    assert run.history["epoch"].tolist() == [1.0]
    assert np.isfinite(run.history["val_accuracy"]).all()
    assert len(run.class_names) == 10
    assert f"test_accuracy={run.metrics['test_accuracy']:.4f}" in repr(run)
    assert (run.path / "report.html").is_file()


def test_a_run_without_validation_has_nan_in_those_columns(tiny_data: Path, tmp_path: Path) -> None:
    trained = fastcifar.train(tiny(tiny_data, val_size=0), runs_dir=tmp_path, progress=False)
    assert np.isnan(trained.history["val_loss"]).all()
    assert isinstance(trained.curves(), Figure)
    assert trained.history["train_loss"].shape == (2,)


def test_predictions_and_confusion_are_those_of_the_network(run: Run) -> None:
    predictions = run.predictions("val")
    assert len(predictions) == 10
    images = fastcifar.open_beton(Path(run.config.data.data_dir) / "train.beton").images(predictions.indices)
    with torch.no_grad():
        logits, mirrored = (run.model()(run.normalise(each)) for each in (images, images[:, :, ::-1].copy()))
    np.testing.assert_allclose(logits.numpy(), predictions.logits, atol=0.02)  # in training's bf16 where it is fast
    flipped, mean = run.predictions("val", tta="flip"), (logits + mirrored).numpy() / 2
    np.testing.assert_allclose(flipped.logits, mean, atol=0.02)
    assert not np.array_equal(flipped.logits, predictions.logits)
    confusion = run.confusion()
    test = run.predictions()
    assert confusion.sum() == len(test) == 40
    assert confusion.trace() == test.is_correct.sum()
    assert confusion[3].sum() == (test.labels == 3).sum()
    expected = np.zeros((10, 10), np.int64)
    np.add.at(expected, (flipped.labels, flipped.predicted), 1)
    assert run.confusion("val", tta="flip").tolist() == expected.tolist()


def test_an_evaluation_has_the_options_of_the_run_and_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("fastcifar.api.evaluate_run", lambda *run, **options: calls.append((run, options)))
    options: dict[str, Any] = {"data_dir": folder / "data", "device": "cpu", "trusted": NETWORK}
    run = Run("fast", runs_dir=folder / "runs", **options)
    run.evaluate("val", tta="flip")
    assert calls == [((RunFolder(run.path),), {**options, "split": "val", "tta": "flip"})]


def test_the_network_of_a_run_is_not_shared(run: Run) -> None:
    before = run.predictions("val").logits
    model = run.model().half()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert np.array_equal(run.predictions("val").logits, before)


def test_a_network_is_float32_whatever_the_default(folder: Path) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        model = Run("fast", runs_dir=folder / "runs").model()
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("images", "given"),
    [
        (np.zeros((8, 8, 3), np.uint8), r"uint8 of shape \(8, 8, 3\)"),
        (np.zeros((1, 8, 8, 3), np.float32), r"float32 of shape \(1, 8, 8, 3\)"),
        (torch.zeros(1, 8, 8, 3, dtype=torch.uint8), "Tensor"),
    ],
)
def test_images_that_are_not_uint8_arrays_are_not_normalised(run: Run, images: Any, given: str) -> None:
    with pytest.raises(UsageError, match=f"images is {given}; expected a NumPy array, uint8 of shape"):
        run.normalise(images)
    assert run.normalise(np.asarray(PIL.Image.new("RGB", (8, 8)))[None]).shape == (1, 3, 8, 8)


def test_explain_gives_arrays_and_figures_and_writes_nothing(folder: Path, tmp_path: Path) -> None:
    run = copy_of(folder, tmp_path)
    (run.path / "predictions.npz").unlink()
    before = sorted(run.path.rglob("*"))
    maps = run.explain(n=3, methods=["gradcam", "hirescam"], layers=["layer1", "layer2"], target="both")
    assert maps.maps.shape == (2, 2, 3, 2, 32, 32)
    assert (maps.targets, maps.methods) == (("pred", "true"), ("gradcam", "hirescam"))
    assert repr(maps).endswith("largest loss first; gradcam, hirescam at layer1, layer2)")
    assert maps.images.shape == (3, 32, 32, 3)
    assert not maps.predictions.is_correct.any()
    for figure in (maps.grid(), maps.sheet(2)):
        assert isinstance(figure, Figure)
        assert figure._repr_png_()[:4] == b"\x89PNG"  # type: ignore[attr-defined]
    for position in (3, -1):
        with pytest.raises(UsageError, match=rf"position is {position}; expected 0\.\.2"):
            maps.sheet(position)
    assert maps._repr_png_()[:4] == b"\x89PNG"  # type: ignore[index]
    assert sorted(run.path.rglob("*")) == before
    direct = fastcifar.Activations(run.model(), run.normalise(maps.images), ["layer1", "layer2"])
    expected = direct.maps(torch.from_numpy(maps.predictions.predicted), ["hirescam"])["hirescam"].maps
    np.testing.assert_allclose(maps.maps[0, 1], expected.numpy(), atol=1e-5)


def test_explain_takes_images_of_the_user(run: Run, folder: Path) -> None:
    maps = run.explain([folder / "cat.png", folder / "photos"], methods=("gradcam",), layers=("layer2",))
    assert len(maps) == 3
    assert len(run.explain(folder / "cat.png")) == 1
    assert len(run.predict(folder / "photos")) == 2
    with pytest.raises(UsageError, match="the true class of your images is unknown"):
        run.explain(folder / "cat.png", target="true")


def test_images_that_cannot_be_read_are_named(
    run: Run, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert len(run.explain([tmp_path / "broken.png", folder / "cat.png"])) == 1
    assert f"{tmp_path / 'broken.png'}: not a readable image" in caplog.text
    with pytest.raises(DataError, match=r"broken\.png: not a readable image.*; none of the 2 can be read"):
        run.explain([tmp_path / "broken.png", tmp_path / "missing.png"])


def test_predictions_of_images_are_shown_as_a_table(run: Run, folder: Path, tmp_path: Path) -> None:
    Path(tmp_path / "a<b>.png").write_bytes((folder / "cat.png").read_bytes())
    (tmp_path / "broken.png").write_bytes(b"no image")
    found = run.predict(tmp_path)
    assert repr(found) == "ImagePredictions(1 images, 1 could not be read)"
    page, (_, (value,)) = found._repr_html_(), found.top(1)
    assert f"a&lt;b&gt;.png</td><td style='text-align:left'>{found.class_names[found.predictions.predicted[0]]}" in page
    assert f" {value[0]:.0%}, " in page
    assert "broken.png</td><td style='text-align:left'>not read: not a readable image" in page
    assert np.isnan(found.predictions.accuracy)
    assert found.accuracy is None


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no image is given; expected paths"),
        (PIL.Image.new("RGB", (8, 8)), "image is of type Image; expected the path of a file"),
        (np.zeros((2, 8, 8, 3), np.uint8), "image is of type ndarray; expected the path of a file"),
        (5, "image is of type int; expected the path of a file"),
    ],
    ids=["none", "Pillow", "array", "int"],
)
def test_what_is_not_a_path_is_refused(run: Run, images: Any, message: str) -> None:
    for ask in (run.explain, run.predict):
        with pytest.raises(UsageError, match=message):
            ask(images)


def test_no_image_is_an_empty_result(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcifar.explain.run.select_images", lambda predictions, config: predictions.select([]))
    with pytest.raises(UsageError, match="layer is 'nope'"):
        run.explain(layers=["nope"])
    none = run.explain()
    assert (len(none), none.maps.shape[2], none._repr_png_()) == (0, 0, None)
    with pytest.raises(UsageError, match="no image to draw"):
        none.grid()
    with pytest.raises(UsageError, match="no image to draw"):
        none.sheet(0)


def test_a_notebook_shows_scores_and_curves(run: Run) -> None:
    page = run._repr_html_()
    assert f"{run.metrics['test_accuracy']:.2%}" in page
    assert "data:image/png;base64," in page


@pytest.mark.full_size
def test_the_curves_are_those_of_the_history(run: Run) -> None:
    figure = run.curves()
    assert figure._repr_png_()[:4] == b"\x89PNG"  # type: ignore[attr-defined]
    loss, accuracy, _ = figure.axes
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["training", "validation", "best: epoch 1"]
    assert [line.get_ydata()[0] for line in loss.lines[:2]] == [run.history[f"{s}_loss"][0] for s in ("train", "val")]
    assert accuracy.get_title() == "Accuracy"


def test_a_run_shows_what_its_folder_now_holds(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    run = Run("runs/fast")
    monkeypatch.chdir(folder)  # of a notebook
    scores, rows = run.path / "metrics.json", (run.path / "results.csv").read_text()
    assert run.metrics["epochs"] == len(run.history["epoch"]) == 1
    (run.path / "results.csv").write_text(rows + rows.splitlines()[1].replace("1", "2", 1) + "\n")
    assert run.history["epoch"].tolist() == [1.0, 2.0]
    scores.unlink()
    assert run.metrics == {}
    scores.write_text("[")
    (run.path / "results.csv").write_text("epoch\nx\n")
    for read in (lambda: run.metrics, lambda: run.history, run.curves):
        with pytest.raises(DataError, match=r"(metrics\.json|results\.csv): not the (scores|epochs) of a run \("):
            read()
    shutil.rmtree(run.path)
    for read in (lambda: run.metrics, lambda: run.history):
        with pytest.raises(DataError, match="fast: no such file; expected the folder of a run"):
            read()


@pytest.mark.parametrize(("progress", "configured"), [(True, False), (False, False), (True, True)])
def test_a_training_shows_its_warnings_and_without_a_bar_its_log(
    progress: bool,
    configured: bool,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = logging.getLogger("fastcifar")
    monkeypatch.setattr(logger, "handlers", [logging.NullHandler()] if configured else [])
    monkeypatch.setattr(logger, "propagate", False)  # pytest has handlers, too
    fastcifar.train(tiny(tiny_data, epochs=1, max_minutes=1e-9), runs_dir=tmp_path, progress=progress)
    lines = capsys.readouterr().err.splitlines()
    assert any("training 1 step" in line for line in lines) == (not configured)
    assert any(line.startswith("epoch 1/1") for line in lines) == (progress and not configured)
    assert len(logger.handlers) == configured


def test_names_are_shown_as_text(tiny_data: Path, tmp_path: Path) -> None:
    trained = fastcifar.train(tiny(tiny_data, epochs=1), runs_dir=tmp_path, name="<b>&", progress=False)
    page = trained._repr_html_()
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;" in page


def test_a_run_is_resumed_by_name_or_as_a_run(tiny_data: Path, tmp_path: Path) -> None:
    first = fastcifar.train(tiny(tiny_data, model="small", epochs=1), runs_dir=tmp_path, name="a", progress=False)
    with pytest.raises(UsageError, match="name is 'b', and resume continues a run, which keeps its name"):
        fastcifar.train(resume="a", name="b", runs_dir=tmp_path)
    again = fastcifar.train(resume="a", runs_dir=tmp_path, progress=False)
    assert again.metrics["epochs"] == 1
    longer = fastcifar.train(first.config.with_settings(epochs=2), resume=first, runs_dir=tmp_path, progress=False)
    assert longer.path == first.path
    assert longer.metrics["epochs"] == 2
    assert longer.history["epoch"].tolist() == [1.0, 2.0]


@pytest.mark.slow
def test_a_run_is_resumed_with_the_settings_it_was_started_with(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny(tiny_data, epochs=1)
    fastcifar.train(config, name="base", progress=False)
    shutil.copytree("runs/base", "runs/other")
    for changed in ({"init": "base"}, {"init": "runs/base/weights/best.safetensors"}, {"lr": "auto"}):
        own = config.with_settings(**changed)
        run = fastcifar.train(own, name="run", progress=False)
        with monkeypatch.context() as later:
            later.delattr("fastcifar.training.lr_finder.run_lr_range_test")
            again = fastcifar.train(own.with_settings(epochs=2), resume=run, progress=False)
        assert again.metrics["epochs"] == 2
    with pytest.raises(CheckpointError, match="init is .*/other/weights/best.safetensors, and was /"):
        fastcifar.train(config.with_settings(init="other"), resume="run", progress=False)


def test_a_run_does_not_run_code_that_only_its_folder_names(tiny_data: Path, tmp_path: Path) -> None:
    trained = fastcifar.train(tiny(tiny_data, epochs=1), runs_dir=tmp_path, name="a", progress=False)
    assert len(trained.explain(n=1, layers=["6"])) == 1  # the code that was named to `train`
    with pytest.raises(CheckpointError, match="trust it"):
        Run("a", runs_dir=tmp_path).model()
    with pytest.raises(CheckpointError, match="if you trust it"):
        fastcifar.train(resume="a", runs_dir=tmp_path, progress=False)
    assert Run("a", runs_dir=tmp_path, trusted=NETWORK).model() is not None
    assert Run("a", runs_dir=tmp_path).class_names == trained.class_names  # of the data, not of the code


@pytest.mark.parametrize("progress", [True, False, None])
def test_convert_takes_progress_as_train_does(progress: bool | None, tmp_path: Path) -> None:
    pairs = [(np.full((8, 8, 3), index, np.uint8), index % 2) for index in range(8)]
    manifests = fastcifar.convert(pairs, tmp_path, progress=progress, test_share=0.25)
    assert manifests["train"].num_samples == 6
    with pytest.raises(UsageError, match="progress is 'yes'; expected True, False or a function"):
        fastcifar.convert(pairs, tmp_path, progress="yes", test_share=0.25)  # type: ignore[arg-type]


def test_a_run_is_a_path(run: Run) -> None:
    assert Path(run) == run.path
    assert Run(run).path == run.path


def test_errors_are_those_of_the_commands(run: Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such run"):
        Run("missing", runs_dir=tmp_path)
    with pytest.raises(CheckpointError, match="no run with a checkpoint"):
        Run(runs_dir=tmp_path)
    with pytest.raises(CheckpointError, match=f"{tmp_path}: no run with a checkpoint"):
        fastcifar.export(runs_dir=tmp_path, format="torch")  # the latest
    with pytest.raises(UsageError, match="methods"):
        run.explain(methods=["magic"])
    with pytest.raises(UsageError, match="split"):
        run.predictions("train")
    with pytest.raises(UsageError, match="unknown setting 'layer'; did you mean 'layers'"):
        run.explain(layer="layer2")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"epochs": 3}, r"config is \{'epochs': 3\}; expected a TrainConfig"),
        ("fast", "config is 'fast'; expected a TrainConfig"),
        (TrainConfig(recipe="fast"), "recipe is 'fast', but config has none of its settings"),
    ],
    ids=["dict", "str", "label"],
)
def test_what_is_not_a_config_is_refused(config: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        fastcifar.train(config, runs_dir=tmp_path)


def test_an_evaluation_and_a_report_are_written_into_the_folder(folder: Path, tmp_path: Path) -> None:
    copied = copy_of(folder, tmp_path)
    files = copied.evaluate().files
    assert len(files) > 3
    assert all(file.is_relative_to(copied.path) for file in files)
    assert copied.report() == copied.path / "report.html"
