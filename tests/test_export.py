"""`export`: the file gives the probabilities of the run, and one that does not is not kept; the model card."""

from __future__ import annotations

import ast
import html
import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import PIL.Image
import pytest
import torch
from click.testing import CliRunner, Result
from markdown_it import MarkdownIt
from torch import nn
from torch.nn.utils import parametrizations

import fastcifar
from fastcifar import open_beton
from fastcifar.augment.kernel import normalisation
from fastcifar.cli import main
from fastcifar.converters import convert
from fastcifar.converters.synthetic import source as synthetic_source
from fastcifar.data.image_files import FITS, Preprocessing, decode_image
from fastcifar.data.manifest import manifest_path
from fastcifar.errors import CheckpointError, DataError, FastcifarError, MissingExtraError, UsageError
from fastcifar.inference import export as module
from fastcifar.inference import export_graph
from fastcifar.inference.calibration import Calibration, calibrate
from fastcifar.inference.export import Export, compare, export
from fastcifar.inference.export_formats import FORMATS
from fastcifar.inference.model_card import RESIZE, USE, USE_ONNX
from fastcifar.inference.trained_run import TrainedRun
from fastcifar.models import make_model
from fastcifar.models.probe import place
from fastcifar.training import RunFolder, train
from fastcifar.training.weights import DatasetInfo
from tests.conftest import ImageFolder
from tests.test_docs import ROOT, fenced
from tests.test_loaders import needs_ffcv
from tests.test_own_networks import own
from tests.tiny import NETWORK, network, tiny

TEMPERATURE = 2.5


@pytest.fixture(scope="module")
def run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A calibrated run."""
    folder, _ = train(tiny(tiny_data, val_size=20), runs_dir=tmp_path_factory.mktemp("runs"), name="tiny")
    fitted = calibrate(TrainedRun(folder, trusted=NETWORK).predictions("val"))
    replace(fitted, temperature=TEMPERATURE).save(folder)
    return folder


@pytest.fixture(scope="module")
def exported(run: RunFolder) -> Export:
    return export(run, trusted=NETWORK, model_card=True)


@pytest.fixture(scope="module")
def trained(run: RunFolder) -> TrainedRun:
    return TrainedRun(run, trusted=NETWORK)


@pytest.fixture(scope="module")
def expected(trained: TrainedRun) -> npt.NDArray[np.float64]:
    """The probabilities of the test images, (40, 10), by torch."""
    images = trained.normalise(trained.beton("test").images(np.arange(40)))
    with torch.no_grad():
        return (trained.model(images).double() / TEMPERATURE).softmax(dim=1).numpy()


def as_torch(run: RunFolder, **more: Any) -> Export:
    """An export that takes a tenth of the time of ONNX."""
    return export(run, trusted=NETWORK, format="torch", **more)


# ---- the file ----------------------------------------------------------------------------------------------------


def test_the_file_gives_calibrated_probabilities_of_images_as_stored(
    exported: Export, expected: Any, tiny_data: Path
) -> None:
    images = open_beton(tiny_data / "test.beton").images(np.arange(40))
    session = onnxruntime.InferenceSession(str(exported.path))
    for size in (1, 2, 7, 40):  # any number of images
        (actual,) = session.run(["probabilities"], {"images": images[:size]})
        assert (actual.shape, actual.dtype) == ((size, 10), np.float32)
        assert actual == pytest.approx(expected[:size], abs=1e-5)


def test_the_result_says_how_well_the_file_agrees(exported: Export, run: RunFolder, expected: Any) -> None:
    labels = open_beton(run.read_config().data.data_dir + "/test.beton").labels  # type: ignore[operator]
    assert exported.path == run.path / "export/model.onnx"
    assert (exported.num_images, exported.num_agreeing, exported.temperature) == (40, 40, TEMPERATURE)
    assert exported.num_bytes == exported.path.stat().st_size
    assert 35 <= exported.num_agreeing_with_eval <= 40
    assert 0 < exported.largest_difference < 1e-5
    assert exported.accuracy == (expected.argmax(axis=1) == labels).mean()


@needs_ffcv
def test_a_run_on_jpeg_images_agrees_with_its_file(tmp_path: Path) -> None:
    """Decoders of JPEG differ: both networks must get the pixels of one."""
    with synthetic_source(80, 40) as images:
        convert(images, tmp_path / "data", jpeg_quality=50)
    folder, _ = train(tiny(tmp_path / "data", val_size=0), runs_dir=tmp_path, name="jpeg")
    result = as_torch(folder)
    assert (result.num_images, result.num_agreeing) == (40, 40)
    assert result.largest_difference < 1e-5


def test_the_metadata_says_how_to_use_the_file(exported: Export, trained: TrainedRun) -> None:
    session = onnxruntime.InferenceSession(str(exported.path))
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata.pop("class_names")) == list(trained.info.class_names)
    assert metadata == {
        "image_height": "32",
        "image_width": "32",
        "input": "RGB images, (N, image_height, image_width, 3) uint8, 0..255; not normalised",
        "fit": "crop",
        "background": "[255, 255, 255]",
        "temperature": "2.5",
        "network": NETWORK,
        "weights_sha256": trained.weights_sha256,
        "fastcifar_version": fastcifar.__version__,
    }
    ((given,), (got,)) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape[1:]) == ("images", "tensor(uint8)", [32, 32, 3])
    assert (got.name, got.type, got.shape[1:]) == ("probabilities", "tensor(float)", [10])


def test_the_file_is_valid_and_tells_nothing_of_this_machine(exported: Export) -> None:
    model = onnx.load(exported.path)
    onnx.checker.check_model(model, full_check=True)
    assert [opset.version for opset in model.opset_import] == [20]
    content = exported.path.read_bytes()
    assert all(text.encode() not in content for text in (str(ROOT), sys.prefix, "site-packages", "forward"))


def test_the_torch_format_gives_the_same_and_needs_no_extra(
    run: RunFolder, expected: Any, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    file = as_torch(run, output=tmp_path / "new" / "net.pt2").path
    extra_files = {"metadata.json": ""}
    program = torch.export.load(file, extra_files=extra_files).module()
    assert json.loads(extra_files["metadata.json"])["temperature"] == "2.5"
    images = torch.from_numpy(open_beton(tiny_data / "test.beton").images(np.arange(40)))
    for size in (1, 2, 7, 40):
        assert program(images[:size]).detach().numpy() == pytest.approx(expected[:size], abs=1e-6)
    assert str(ROOT).encode() not in file.read_bytes()


def test_without_calibration_the_probabilities_are_those_of_the_logits(
    run: RunFolder, tmp_path: Path, trained: TrainedRun
) -> None:
    run.calibration.rename(tmp_path / "away")
    try:
        exported = as_torch(run, output=tmp_path / "net.pt2", model_card=True)
    finally:
        (tmp_path / "away").rename(run.calibration)
    images = trained.beton("test").images(np.arange(3))
    with torch.no_grad():
        probabilities = torch.export.load(exported.path).module()(torch.from_numpy(images))
        assert torch.allclose(probabilities, trained.model(trained.normalise(images)).softmax(dim=1))
    assert (exported.temperature, exported.not_calibrated) == (
        None,
        f"calibrate the run with: fastcifar eval {run.path}",
    )
    assert "not calibrated" in (tmp_path / "net.md").read_text()


def test_a_run_gives_the_same_file_again(run: RunFolder, tmp_path: Path) -> None:
    one, other = (as_torch(run, output=tmp_path / f"{name}.pt2").path.read_bytes() for name in "ab")
    assert one == other


@pytest.mark.slow
def test_a_run_gives_the_same_onnx_file_again(exported: Export, run: RunFolder, tmp_path: Path) -> None:
    again = export(run, trusted=NETWORK, output=tmp_path / "model.onnx")
    assert again.path.read_bytes() == exported.path.read_bytes()


# ---- the comparison ----------------------------------------------------------------------------------------------

WRONG: dict[str, Callable[[export_graph.Classifier, torch.Tensor], torch.Tensor]] = {
    "scale": lambda right, images: right(images // 2),
    "BGR": lambda right, images: right(images.flip(3)),
    "no normalisation": lambda right, images: right.network(images.permute(0, 3, 1, 2).float()).softmax(dim=1),
    "temperature": lambda right, images: right(images).pow(TEMPERATURE),
    "no softmax": lambda right, images: right(images).log(),
    "not a number": lambda right, images: right(images) * torch.nan,
}


@pytest.mark.parametrize("wrong", list(WRONG))
def test_what_is_not_the_network_differs(wrong: str, trained: TrainedRun) -> None:
    right = export_graph.Classifier(trained.model, trained.info, TEMPERATURE)

    def classify(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        with torch.no_grad():
            return WRONG[wrong](right, torch.from_numpy(images)).numpy()

    with pytest.raises(FastcifarError, match=r"differs from float32 torch on \d+ of 40 test images .*: not exported"):
        compare(classify, trained, trained.beton("test"))


def test_a_file_that_differs_is_not_kept(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.pt2").write_text("an earlier file")
    monkeypatch.setattr(export_graph, "normalisation", lambda mean, std: normalisation(mean + 30, std))
    with pytest.raises(FastcifarError, match="differs from float32 torch"):
        as_torch(run, output=tmp_path / "net.pt2", model_card=True)
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt2"]
    assert (tmp_path / "net.pt2").read_text() == "an earlier file"


def test_only_a_tie_may_change_the_class(trained: TrainedRun, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file gives images 3 and 5 their second class."""
    swapped = np.array([_swapped(row) if i in (3, 5) else row for i, row in enumerate(expected)])

    def compared() -> tuple[Any, int, float]:
        answers = iter(np.split(swapped.astype(np.float32), [1]))
        return compare(lambda images: next(answers), trained, trained.beton("test"))

    monkeypatch.setattr(module, "MAX_DIFFERENCE", 1.0)
    with pytest.raises(FastcifarError, match=r"on 2 of 40 test images \(image 3 is the first\)"):
        compared()
    monkeypatch.setattr(module, "TIE", 1.0)
    _, num_agreeing, largest = compared()
    assert num_agreeing == 38
    assert largest == pytest.approx(abs(swapped - expected).max(), abs=1e-5)


def _swapped(row: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    first, second = np.argsort(row)[::-1][:2]
    changed = row.copy()
    changed[[first, second]] = row[[second, first]]
    return changed


def test_a_file_for_batches_of_one_size_is_an_error(trained: TrainedRun, expected: Any) -> None:
    def classify(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        if len(images) != 40:
            raise RuntimeError("Got invalid dimensions")
        return expected.astype(np.float32)

    with pytest.raises(FastcifarError, match="fails on test images: RuntimeError: Got invalid dimensions"):
        compare(classify, trained, trained.beton("test"))


# ---- networks ----------------------------------------------------------------------------------------------------


class Own(nn.Module):
    """The tiny network, with something in its way."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network(10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images)


class Branches(Own):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images * 2 if images.mean() > 0 else images)


class EvenBatches(Own):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images * 2 if images.shape[0] % 2 else images)


class OneByOne(Own):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.net(images[i : i + 1]) for i in range(len(images))])


class Numpy(Own):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        torch.from_numpy(images.numpy())
        return self.net(images[images.mean() > 0])


INFO = DatasetInfo(
    class_names=tuple("abcdefghij"), image_shape=(32, 32, 3), mean=(120.0,) * 3, std=(60.0,) * 3, sha256=""
)
CANNOT = {
    "Branches": (Branches, "its code depends on values of the images in Branches; use operations on tensors"),
    "EvenBatches": (EvenBatches, "its code takes the number of images of a batch for a constant"),
    "OneByOne": (OneByOne, "its code takes the number of images of a batch for a constant"),
    "Numpy": (Numpy, "RuntimeError: .numpy() is not supported for tensor subclasses in Numpy"),
    "scripted": (lambda: torch.jit.script(network(10)), "it is scripted (torch.jit), which torch.export does not"),
    "layer": (lambda: nn.Sequential(torch.jit.script(network(10))), "its layer '0' is scripted (torch.jit)"),
}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("name", list(CANNOT))
def test_a_network_that_cannot_be_exported_is_one_line(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    make, reason = CANNOT[name]
    with pytest.raises(FastcifarError) as caught:
        export_graph.export_graph(make().eval(), INFO, None)
    assert f"the network cannot be exported: {reason}" in str(caught.value)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()
    assert capfd.readouterr() == ("", "")


def test_an_operation_that_onnx_lacks_is_named_with_its_layer(capfd: pytest.CaptureFixture[str]) -> None:
    model = network(10)
    model[0] = parametrizations.orthogonal(nn.Conv2d(3, 8, 3, 2, 1))  # type: ignore[index]
    program = export_graph.export_graph(model.eval(), INFO, None)
    with pytest.raises(FastcifarError) as caught:
        FORMATS["onnx"].content(program, {})
    where = r"in layer '0.parametrizations.weight.0' (_Orthogonal)"
    assert str(caught.value) == (
        f"the network cannot be exported to ONNX: no translation of aten.linalg_matrix_exp {where}; use --format torch"
    )
    assert capfd.readouterr() == ("", "")


def test_weights_beyond_one_onnx_file_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcifar.inference.export_formats.MAX_ONNX_BYTES", 1_000)
    program = export_graph.export_graph(network(10).eval(), INFO, None)
    with pytest.raises(UsageError, match=r"expected less than 2 GiB for one ONNX file; use --format torch"):
        FORMATS["onnx"].content(program, {})


@pytest.mark.parametrize("name", ["WithView", "InPlace", "weight_norm", "pruned", "lazy"])
def test_networks_of_the_user_are_exported_for_any_number_of_images(name: str) -> None:
    """WithView needs contiguous images, and asks for len(images)."""
    model = make_model(own(name), 10).eval()
    program = export_graph.export_graph(place(model, torch.device("cpu")), INFO, None).module()
    images = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        logits = model((images.permute(0, 3, 1, 2) - 120.0) / 60.0)
        assert program(images).allclose(logits.softmax(dim=1), atol=1e-6)
    assert program(images[:1]).shape == (1, 10)


# ---- the command -------------------------------------------------------------------------------------------------


def invoke(*args: object) -> Result:
    result = CliRunner().invoke(main, ["export", *map(str, args)])
    assert "Traceback" not in result.output
    return result


def test_the_command_prints_a_table_the_files_and_what_is_next(
    run: RunFolder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "net.pt2"
    common = [run.path, "--model", NETWORK, "--format", "torch", "-o", file]
    result = invoke(*common)
    assert result.exit_code == 0, result.output
    lines = [line.split("  ", 1) for line in result.stdout.splitlines()]
    shown = {line[0].strip(): line[1].strip() for line in lines if len(line) == 2}
    assert shown["same class as float32 torch"] == "40 of 40 (100.00%)"
    assert shown["calibration"] == "temperature 2.5000"
    assert result.stdout.splitlines()[-2:] == [
        str(file),
        f"next: fastcifar export {run.path} --model {NETWORK} --format torch --output {file} --model-card",
    ]
    assert capfd.readouterr() == ("", "")


def test_the_command_names_the_model_card_and_prints_one_object(
    run: RunFolder, exported: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[dict[str, Any]] = []

    def stub(folder: RunFolder, **more: Any) -> Export:
        called.append({**more, "run": folder, "reporter": None})
        return exported

    monkeypatch.setattr(module, "export", stub)
    printed = invoke(run.path, "--model", NETWORK, "--model-card", "--data-dir", "data").stdout.splitlines()
    assert printed[-4:] == [
        str(exported.path),
        str(exported.model_card),
        f"next: fastcifar explain {run.path} --model {NETWORK} --data-dir data",
        f"next: fastcifar eval {run.path} --model {NETWORK} --data-dir data",
    ]
    given = {"format": "onnx", "output": None, "model_card": True, "data_dir": Path("data"), "trusted": NETWORK}
    assert called == [{**given, "run": run, "reporter": None}]
    described = json.loads(invoke(run.path, "--json").stdout)
    assert described == {"run": str(run.path), **json.loads(json.dumps(vars(exported), default=str))}


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["-o", "."], 2, "output is '.', a folder; expected a file, e.g. model.onnx"),
        (["-o", "a.pt2"], 2, "output is 'a.pt2'; expected a name that ends in .onnx, or --format torch"),
        (["-o", "train.beton"], 2, "output is 'train.beton'; expected a name that ends in .onnx"),
        (["--format", "tflite"], 2, "'tflite' is not one of 'onnx', 'torch'"),
    ],
)
def test_a_mistake_is_one_line(args: list[str], code: int, message: str, run: RunFolder) -> None:
    result = invoke(run.path, "--model", NETWORK, *args)
    assert result.exit_code == code
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_code_of_a_network_runs_only_if_it_is_named(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="if you trust it, add --model"):
        export(run, format="torch", output=tmp_path / "net.pt2")


def test_without_the_test_images_there_is_no_file(
    run: RunFolder, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunFolder, "read_config", lambda self: tiny(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"test\.beton: no such file; the run was trained there: .* --data-dir"):
        as_torch(run, output=tmp_path / "net.pt2")
    assert not (tmp_path / "net.pt2").exists()
    assert as_torch(run, output=tmp_path / "net.pt2", data_dir=tiny_data).num_images == 40


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    name: str, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"{name}.*pip install 'fastcifar\[export\]'"):
        export(run, trusted=NETWORK)


# ---- the example and the model card ------------------------------------------------------------------------------


def test_the_example_of_the_documentation_runs_on_its_own(
    exported: Export, trained: TrainedRun, expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (example,) = [text for text in fenced(ROOT / "docs" / "export.md", "python") if "onnxruntime" in text]
    assert len(example.splitlines()) <= 23
    imported = {
        alias.name for node in ast.walk(ast.parse(example)) if isinstance(node, ast.Import) for alias in node.names
    }
    assert imported == {"json", "numpy", "onnxruntime"}
    file = tmp_path / "runs/small/export/model.onnx"  # as `export` writes it, for the run `small` of the page
    file.parent.mkdir(parents=True)
    file.write_bytes(exported.path.read_bytes())
    PIL.Image.fromarray(trained.beton("test").images([7])[0]).save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "example", "exec"), {})
    best = np.argsort(expected[7])[::-1][:3]
    names = trained.info.class_names
    assert capsys.readouterr().out.splitlines() == [f"{names[i]}: {expected[7, i]:.1%}" for i in best]
    text = USE_ONNX.format(file="FILE", resize=RESIZE["crop"])
    assert example == text.replace("'FILE'", '"runs/small/export/model.onnx"')


@pytest.mark.parametrize("size", [(40, 24), (24, 40), (90, 90), (32, 26)])
@pytest.mark.parametrize("fit", FITS)
def test_the_example_resizes_as_the_images_were(fit: str, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    rule = Preprocessing(size=(16, 20), fit=fit, background=(1, 2, 3))
    names: dict[str, Any] = {"image": PIL.Image.fromarray(pixels), "size": (20, 16)}
    exec(f"from PIL import Image, ImageOps\nimage = {RESIZE[fit].format(background=rule.background)}", names)
    assert np.array_equal(np.asarray(names["image"]), decode_image(file.getvalue(), rule).pixels)


@pytest.mark.parametrize("use", USE.values(), ids=USE)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_the_example_draws_on_the_background_as_predict_does(
    use: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 4), dtype=np.uint8)
    picture = PIL.Image.fromarray(pixels).convert("RGB" if mode == "P" else mode).convert(mode)
    picture.save(tmp_path / "picture.png", **({"transparency": picture.getpixel((0, 0))} if mode == "P" else {}))
    monkeypatch.chdir(tmp_path)
    lines = use.format(file="", resize=RESIZE["stretch"]).partition("\nwith Image")[2].partition("\nimages =")[0]
    names: dict[str, Any] = {"metadata": {"background": "[1, 2, 3]"}, "size": (16, 20)}
    exec(f"import json\nfrom PIL import Image, ImageOps\nwith Image{lines}", names)
    rule = Preprocessing(size=(20, 16), fit="stretch", background=(1, 2, 3))
    decoded = decode_image((tmp_path / "picture.png").read_bytes(), rule)
    assert ("transparent" in decoded.changes) == (mode != "RGB")
    assert np.array_equal(np.asarray(names["image"]), decoded.pixels)


def test_the_weights_say_how_images_are_resized(image_folder: ImageFolder, tmp_path: Path) -> None:
    """Not the manifest of test.beton, which may be missing."""
    data = tmp_path / "data"
    convert(image_folder(each=3), data, size=(8, 8), fit="pad", background=(1, 2, 3))
    run, _ = train(tiny(data, batch_size=4, max_steps=1, val_size=0), runs_dir=tmp_path / "runs")
    manifest_path(data / "test.beton").unlink()
    exported = as_torch(run, model_card=True)
    extra_files = {"metadata.json": ""}
    torch.export.load(exported.path, extra_files=extra_files)
    metadata = json.loads(extra_files["metadata.json"])
    assert (metadata["fit"], metadata["background"]) == ("pad", "[1, 2, 3]")
    assert exported.model_card is not None
    assert RESIZE["pad"].format(background=(1, 2, 3)) in exported.model_card.read_text()
    assert "in the source" not in exported.model_card.read_text()


def test_the_model_card_has_the_scores_and_where_they_come_from(exported: Export, run: RunFolder) -> None:
    assert exported.model_card == run.path / "export/model.md"
    text = exported.model_card.read_text()
    fitted = Calibration.load(run)
    for part in (
        "# tiny\n",
        "5,170 trainable parameters, 10 classes, RGB images of 32x32 pixels",
        f"| accuracy | {exported.accuracy:.2%}, 95% interval ",
        " without calibration |",
        "| same class as in float32 torch | 40 of 40 images |",
        "| training images, with those held out for validation | 80 |",
        "| source | synthetic, seed 0 |",
        "| `batch_size` | 36 |",
        f"(temperature 2.500) on {fitted.num_images} images",
        "of one training run",
    ):
        assert part in text, part
    assert "data_dir" not in text  # a path on this machine
    assert MarkdownIt().enable("table").render(text).count("<h2>") == 5


HOSTILE = (
    "a|b",
    "<script>alert(1)</script>",
    "`code` *bold* _it_ ~~gone~~",
    "[link](http://evil.example)",
    "![image](x.png)",
    "<!-- hidden",
    "&lt;b&gt;",
    "www.evil.example",
    "\\| | --- |",
    "# heading",
)


def test_names_cannot_break_the_model_card(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    convert([(image, HOSTILE[i % len(HOSTILE)]) for i, image in enumerate(pixels)], tmp_path / "data", test_share=0.25)
    run, _ = train(
        tiny(tmp_path / "data", batch_size=20, epochs=1),
        runs_dir=tmp_path / "runs",
        name="<b>*run*<b>",
    )
    exported = as_torch(run, output=tmp_path / "```\n<i>.pt2", model_card=True)
    assert exported.model_card is not None
    text = exported.model_card.read_text()
    page = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(text)
    for tag in ("<script", "<a ", "<img", "<b>", "<i>", "<em", "<strong", "<s>", "<!--"):
        assert tag not in page, tag
    rows = [row.split("</tr>")[0] for row in page.split("<tr>") if "<td>" in row]
    cells = [[cell.split("</td>")[0] for cell in row.split("<td>")[1:]] for row in rows]
    shown = [row[0] for row in cells if len(row) == 4]
    assert sorted(map(html.unescape, shown)) == sorted(HOSTILE)
