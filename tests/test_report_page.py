"""The report of a run: the data set, the command, the cells of the confusion matrix, the sheets."""

from __future__ import annotations

import html
import json
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from fastcifar.config import TrainConfig
from fastcifar.data.manifest import SYNTHETIC, read_manifest
from fastcifar.inference.predictions import Predictions
from fastcifar.io.paths import command_line
from fastcifar.report import write_report
from fastcifar.report.classification import MAX_CELLS, classification
from fastcifar.report.dataset import dataset
from fastcifar.report.explanations import explanations
from fastcifar.report.run_files import RunFiles, clean
from fastcifar.training import RunFolder
from tests import run_folders as make
from tests.test_report import HOSTILE, NAMES, notes_of, report_of, text_of
from tests.test_report import run as run

module = import_module("fastcifar.report.explanations")  # not its function
SOURCE = "CIFAR-10, official archive"


# ---- the data set -------------------------------------------------------------------------------------------------


def test_the_page_names_the_data_set(run: RunFolder) -> None:
    run.write_metrics({"test_accuracy": 0.5, "data_source": SOURCE})
    text = text_of(report_of(run))
    assert f"run Trained on {SOURCE}" in text
    assert "no photographs" not in text


def test_the_page_says_that_the_data_are_synthetic(run: RunFolder) -> None:
    run.write_metrics({"test_accuracy": 0.5, "data_source": f"{SYNTHETIC}0"})
    assert "Trained on synthetic, seed 0 shapes drawn by a program, no photographs" in text_of(report_of(run))


@pytest.mark.parametrize("source", HOSTILE)
def test_the_name_of_the_data_is_text(run: RunFolder, source: str) -> None:
    run.metrics.write_text(json.dumps({"data_source": source}), encoding="utf-8")
    page = report_of(run)
    assert f"Trained on {clean(source)}".encode("utf-8", "replace").decode() in text_of(page)
    assert page.count("<script>") == 1


@pytest.mark.parametrize("source", [None, 3, ["a"], ""])
def test_data_without_a_name_are_not_named(run: RunFolder, source: object) -> None:
    run.write_metrics({"test_accuracy": 0.5, "data_source": source})
    page = report_of(run)
    assert "Trained on" not in page
    assert notes_of(page) == []


def test_a_run_that_does_not_name_its_data_has_the_name_of_the_manifest(run: RunFolder, tiny_data: Path) -> None:
    manifest = read_manifest(tiny_data / "test.beton")
    assert manifest is not None
    run.write_config(TrainConfig.from_settings(data_dir=str(tiny_data)))
    run.write_metrics({"test_data_sha256": manifest.sha256})
    found = dataset(RunFiles(run.path))
    assert found is not None
    assert found.name == manifest.source
    run.write_metrics({"test_data_sha256": "0" * 64})  # the data were converted again
    assert dataset(RunFiles(run.path)) is None


# ---- the command --------------------------------------------------------------------------------------------------


def write_command(run: RunFolder, *words: str) -> None:
    make.write_metrics(run)
    (run.path / "env.json").write_text(json.dumps({"command": words}))


def test_the_command_can_be_copied(run: RunFolder) -> None:
    write_command(run, "fastcifar", "train", "--name", "<b> it's")
    page = report_of(run)
    (code,) = re.findall(r'<code id="command">(.*?)</code>', page)
    assert html.unescape(code) == command_line("fastcifar", "train", "--name", "<b> it's")
    assert 'data-copy="command"' in page


def test_a_command_that_is_not_shown_as_a_whole_cannot_be_copied(run: RunFolder) -> None:
    write_command(run, "fastcifar", "train", "--name", "x" * 2_000)
    page = report_of(run)
    assert "…</code>" in page
    assert 'data-copy="' not in page


# ---- the confusion matrix -----------------------------------------------------------------------------------------


def write_confused(run: RunFolder) -> None:
    """Three classes; of the four images of class 0, two are correct and two are predicted as class 1; class 2 has no
    image."""
    labels, predicted = np.array([0, 0, 0, 0, 1]), np.array([0, 1, 0, 1, 1])
    logits = np.eye(3, dtype=np.float32)[predicted] * np.array([1, 1, 1, 5, 1], np.float32)[:, None]
    Predictions(np.arange(10, 15), labels, logits, "").save(run.predictions)


def test_a_cell_has_its_number_its_colour_and_some_images(run: RunFolder) -> None:
    write_confused(run)
    found = classification(RunFiles(run.path))
    assert found
    cells = found["cells"]
    assert [[cell["count"] for cell in row] for row in cells] == [[2, 2, 0], [0, 1, 0], [0, 0, 0]]
    assert [[cell["colour"] for cell in row] for row in cells] == [
        ["hit", "m8", "m0"],
        ["m0", "hit", "m0"],
        ["m0", "m0", "hit"],
    ]
    assert cells[0][1]["images"] == "13,11"  # the largest loss first
    assert (cells[0][1]["total"], found["max_share"]) == (4, 0.5)
    assert [{**cell, "colour": "m8"} for cell in found["confused"]] == [cells[0][1]]


def test_every_cell_of_the_page_filters(run: RunFolder) -> None:
    write_confused(run)
    page = report_of(run)
    cells = re.findall(r'<td class="(\w+)" data-true="(\d)" data-predicted="(\d)" data-count="(\d+)"', page)
    assert len(cells) == 9
    assert ("m8", "0", "1", "2") in cells
    command = command_line("fastcifar", "explain", run.path, "--select")
    assert f'data-command="{html.escape(command)}"' in page
    assert "This report has no explained images." in page


def test_the_matrix_of_many_classes_is_a_picture_with_the_largest_cells(run: RunFolder) -> None:
    num = MAX_CELLS + 1
    make.write_predictions(run, num, n=200)
    page = report_of(run)
    assert 'id="matrix"' not in page
    assert f"Confusion matrix of {num} classes" in page
    assert len(re.findall(r'<button type="button" class="link" data-true', page)) == 10


def test_cards_and_cells_number_the_classes_alike(tmp_path: Path) -> None:
    page = write_report(make.whole_run(tmp_path / "run", NAMES)).read_text(encoding="utf-8")
    names = re.findall(r'<datalist id="names">(.*?)</datalist>', page)[0]
    assert re.findall(r'value="(\w+)"', names) == list(NAMES)
    first = re.findall(r'<li class="card" data-true="(\d*)" data-predicted="(\d*)">', page)
    assert first == [("0", "1"), ("1", "2"), ("2", "3"), ("3", "0"), ("0", "1"), ("1", "1"), ("", "1"), ("", "1")]


# ---- the sheets ---------------------------------------------------------------------------------------------------


def test_a_sheet_has_a_row_for_each_layer_and_target(run: RunFolder) -> None:
    make.write_explained(run, NAMES, 1)
    evidence = np.ones((2, 1, 1, 2), np.bool_)
    evidence[1, 0, 0, 0] = False
    make.write_maps(run.explain / "maps.npz", 1, has_evidence=evidence, targets=np.array(["pred", "ship"]))
    found = explanations(RunFiles(run.path))
    assert found
    sheet = found["cards"][0]["sheet"]
    assert sheet["columns"] == ["Grad-CAM heatmap", "Grad-CAM mask"]
    assert [(row["layer"], row["target"]) for row in sheet["rows"]] == [
        ("layer1 (8x8)", "cat"),
        ("layer1 (8x8)", "ship"),
        ("layer2 (4x4)", "cat"),
        ("layer2 (4x4)", "ship"),
    ]
    assert [[tile["has_evidence"] for tile in row["tiles"]] for row in sheet["rows"]] == [
        [True, True],
        [False, False],
        [True, True],
        [True, True],
    ]
    page = report_of(run)
    assert "data:image/png" in page  # the image and its map; all else is drawn for both colour schemes
    assert page.count('<span class="small">no evidence</span>') == 2


def test_sheets_are_limited_in_rows_and_in_bytes(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    make.write_explained(run, NAMES, 3)
    monkeypatch.setattr(module, "MAX_SHEET_ROWS", 3)
    monkeypatch.setattr(module, "MAX_SHEET_BYTES", 1)
    found = explanations(RunFiles(run.path))
    assert found
    assert [card["sheet"] and len(card["sheet"]["rows"]) for card in found["cards"]] == [3, None, None]
    assert found["num_without_sheet"] == 2
    assert "For 2 of them, the maps of all layers and methods are left out here" in text_of(report_of(run))
