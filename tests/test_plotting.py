"""Figures: their contents, and that no text overlaps another."""

from __future__ import annotations

import io
from itertools import product
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from fastcifar import plotting
from fastcifar.plotting.groups import COLOURS
from fastcifar.plotting.images import Caption, SheetRow, enlarged, mask, overlay
from fastcifar.plotting.style import CORRECT_TEXT, LUMINANCE, MUTED_TEXT, WRONG_TEXT
from fastcifar.plotting.tiles import fitting, text_width, wrapped


def random_images(n: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def random_maps(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def check_texts(figure: Figure) -> int:
    """No text lies over another or outside the figure; how many there are."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in figure.texts]
    for box in boxes:
        assert min(box.x0, box.y0) >= 0
        assert max(box.x1 - figure.bbox.x1, box.y1 - figure.bbox.y1) <= 0
    overlaps = [(i, j) for i in range(len(boxes)) for j in range(i) if boxes[i].overlaps(boxes[j])]
    assert not overlaps
    return len(boxes)


def pixels_of(figure: Figure) -> np.ndarray:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return np.asarray(PIL.Image.open(file).convert("RGB"))


def test_names_in_a_script_that_no_font_covers_are_drawn_without_a_warning(tmp_path: Path) -> None:
    name = "\u732b \u0642\u0637\u0629"
    grid = plotting.cam_grid(
        random_images(1), random_maps(1, 32, 32), [True], [Caption(name, name, False, name, 0.5)], name
    )
    plotting.write_png(tmp_path / "grid.png", grid)
    plotting.write_png(
        tmp_path / "confusion.png", plotting.confusion_matrix(np.eye(2, dtype=np.int64), [name, "b"], name)
    )


@pytest.mark.parametrize(
    ("name", "n"),
    [*product(["automobile", "W" * 60, "$\\frac{$ <script>"], [1, 25]), ("automobile", 100)]
    + [pytest.param(name, 100, marks=pytest.mark.slow) for name in ("W" * 60, "$\\frac{$ <script>")],
)
def test_titles_of_the_grid_do_not_overlap(name: str, n: int) -> None:
    names = [Caption(name, name, False, "9999", 1.0)] * n
    heading = f"{name}: 1,234 of 10,000 test images misclassified\nGrad-CAM of the predicted class at layer3 (8x8)"
    figure = plotting.cam_grid(random_images(n), random_maps(n, 32, 32), [True, False] * n, names, heading)
    assert check_texts(figure) >= 2 * n + 4
    guesses = [text.get_text() for text in figure.texts if "100%" in text.get_text()]
    assert len(guesses) == n  # none is cut off
    assert sum(text.get_text() == "9999" for text in figure.texts) == n
    assert sum(text.get_text() == "no evidence" for text in figure.texts) == n // 2 + 1  # and the colour scale


@pytest.mark.parametrize("n", [1, 25, 100])
def test_texts_of_gallery_preview_and_sheet_do_not_overlap(n: int) -> None:
    names = [Caption("automobile", "truck", False, "9999", 1.0)] * n
    shown = plotting.gallery(random_images(n), names, "small: " + "many words " * 30)
    check_texts(shown)
    assert sum(text.get_text() == "100% · 9999" for text in shown.texts) == n
    versions = random_images(3 * n).reshape(n, 3, 32, 32, 3)
    check_texts(plotting.preview(random_images(n), versions, ["automobile"] * n, "Augmentations"))
    row = SheetRow("layer4 (4x4)\nfor automobile", list(random_maps(2, 32, 32)), [True, False])
    figure = plotting.cam_sheet(random_images(1)[0], [row] * 8, ["Grad-CAM", "Grad-CAM++"], "test image 3: true cat")
    check_texts(figure)
    texts = [text.get_text() for text in figure.texts]
    assert "Grad-CAM++: no evidence" in texts
    assert "Grad-CAM: no evidence" not in texts
    assert "layer4 (4x4)\nfor automobile" in texts


def test_both_classes_of_a_mistake_can_be_read_however_long_their_names_are() -> None:
    for true, guess in (("aquarium_fish", "sweet_pepper"), ("W" * 80, "truck"), ("cat", "W" * 80)):
        figure = plotting.gallery(random_images(1), [Caption(true, guess, False, "1234", 0.5)], "")
        (caption,) = [text.get_text() for text in figure.texts if "→" in text.get_text()]
        first, second = caption.split(" → ")
        assert first.startswith(true[:3])
        assert second.startswith(guess[:3])
        check_texts(figure)


@pytest.mark.parametrize(("height", "width"), [(96, 12), (12, 96), (2, 3), (300, 400), (700, 20)])
def test_texts_do_not_overlap_whatever_the_images_look_like(height: int, width: int) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (30, height, width, 3), dtype=np.uint8)
    maps = random.random((30, height, width), dtype=np.float32)
    names = [Caption("automobile", "truck", False, "9999", 1.0)] * 30
    grid = plotting.cam_grid(images, maps, [True] * 30, names, "heading")
    check_texts(grid)
    assert sum("tr" in text.get_text() for text in grid.texts) == 60
    row = SheetRow("layer4 (4x4)", list(maps[:2]), [True, False])
    check_texts(plotting.cam_sheet(images[0], [row] * 3, ["Grad-CAM", "Grad-CAM++"], "test image 3: true cat"))
    check_texts(plotting.preview(images, images[:, None], ["automobile"] * 30, "Augmentations"))


def test_large_images_are_reduced() -> None:
    image = np.zeros((1_000, 2_000, 3), np.uint8)
    image[:, 1_000:] = 255
    drawn = enlarged(image, 176)
    assert drawn.shape == (88, 176, 3)
    assert (drawn[:, :88] == 0).all()
    assert (drawn[:, 88:] == 1).all()
    assert overlay(image, np.zeros((1_000, 2_000), np.float32), 176).shape == (88, 176, 3)


def test_an_image_of_unknown_class_is_not_marked_as_wrong() -> None:
    figure = plotting.cam_grid(
        random_images(1), random_maps(1, 32, 32), [True], [Caption("", "truck", False, "mine.jpg", 0.09)], "h"
    )
    colours = {text.get_text(): text.get_color() for text in figure.texts}
    assert colours["truck 9%"] == colours["mine.jpg"]


@pytest.mark.parametrize("num", [2, 10, 20, 100])
def test_no_label_of_an_svg_is_cut(num: int) -> None:
    figure = plotting.confusion_matrix(np.eye(num, dtype=np.int64), [f"class {i}" for i in range(num)], "title")
    figure.set_dpi(72)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for axis in (*figure.axes, *figure.legends):
        box = axis.get_tightbbox(canvas.get_renderer())
        assert box is not None
        assert min(box.x0, box.y0) >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1


def test_the_bars_of_the_reliability_diagram_are_in_their_bins() -> None:
    counts = np.array([0, 4, 0, 0, 6])
    figure = plotting.reliability_diagram(np.full(5, 0.5), np.array([0, 0.25, 0, 0, 0.75]), counts, "title")
    bars = [bar for bar in figure.axes[0].patches if bar.get_hatch() is None]
    assert [round(bar.get_x(), 6) for bar in bars] == [0.2, 0.8]
    assert [round(bar.get_height(), 6) for bar in bars] == [0.25, 0.75]


def test_the_pixels_of_an_image_are_drawn_as_squares() -> None:
    image = random_images(1, 8)
    drawn = pixels_of(plotting.gallery(image, [Caption("a", "a", True, "1", 1.0)], "one"))
    large = np.rint(enlarged(image[0], 176) * 255).astype(np.uint8)  # (176, 176, 3): 22 times
    assert np.array_equal(large[::22, ::22], image[0])
    found = [
        (y, x)
        for y, x in np.argwhere((drawn == large[0, 0]).all(axis=2))
        if np.array_equal(drawn[y : y + 176, x : x + 176], large)
    ]
    assert len(found) == 1


def test_the_overlay_is_the_grey_image_where_there_is_no_heat() -> None:
    image, heat = np.full((4, 4, 3), 51, np.uint8), np.zeros((4, 4), np.float32)
    assert overlay(image, heat).shape == (176, 176, 3)
    np.testing.assert_allclose(overlay(image, heat), 0.2, atol=1e-6)
    heat[0, 0] = 1
    assert overlay(image, heat)[0, 0].sum() > 1.5
    np.testing.assert_allclose(overlay(image, heat)[-40:], 0.2, atol=1e-6)


def test_the_image_can_be_seen_through_the_strongest_heat() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    image[:, 1] = 255
    laid = overlay(image, np.ones((2, 2), np.float32))
    np.testing.assert_allclose(laid[0, -1] - laid[0, 0], 0.25, atol=1e-6)


def test_the_mask_is_the_image_where_the_map_is_1_and_dark_where_it_is_0() -> None:
    image, heat = np.full((4, 4, 3), (200, 100, 50), np.uint8), np.zeros((4, 4), np.float32)
    heat[:2] = 1
    masked = mask(image, heat)
    np.testing.assert_allclose(masked[0, 0], np.array([200, 100, 50]) / 255)
    np.testing.assert_allclose(masked[-1, -1], 0)


def test_a_figure_of_too_many_images_says_that_it_shows_the_first() -> None:
    figure = plotting.cam_grid(
        random_images(500, 4),
        random_maps(500, 4, 4),
        [True] * 500,
        [Caption("a", "b", False, "1", 1.0)] * 500,
        "heading",
    )
    assert "the first 400 of 500" in [text.get_text() for text in figure.texts]
    versions = random_images(1000, 4).reshape(1000, 1, 4, 4, 3)
    figure = plotting.preview(random_images(1000, 4), versions, ["class"] * 1000, "heading")
    assert any(text.get_text().startswith("the first ") for text in figure.texts)


def test_texts_are_shortened_and_wrapped_to_their_width() -> None:
    assert fitting("cat", 100, 8) == "cat"
    short = fitting("a very long name of a class", 60, 8)
    assert short.endswith("…")
    assert text_width(short, 8) <= 60
    for width in (20, 61, 200):  # as long as it may be
        short = fitting("W" * 9_000, width, 8)
        assert text_width(short, 8) <= width < text_width(f"W{short}", 8)
    lines = wrapped("one two three four five six", 60, 8)
    assert " ".join(lines) == "one two three four five six"
    assert all(text_width(line, 8) <= 60 for line in lines)


@pytest.mark.parametrize("num", [1, 2, 10, 30, 100])
def test_a_confusion_matrix_can_be_drawn_of_any_number_of_classes(num: int) -> None:
    counts = np.random.default_rng(num).integers(0, 50, (num, num))
    figure = plotting.confusion_matrix(counts, [f"class {'x' * (i % 30)}$" for i in range(num)], "title $")
    FigureCanvasAgg(figure).draw()
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert texts == ({f"{count:,}" for count in counts.ravel()} if num <= 20 else set())


def test_the_confusion_matrix_is_light_and_its_legend_explains_the_diagonal() -> None:
    counts = np.array([[7, 3, 0], [0, 8, 0], [1, 0, 9]])
    figure = plotting.confusion_matrix(counts, ["a", "b", "c"], "")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "diagonal: correctly classified, not on the colour scale"
    ]
    (image,) = figure.axes[0].images
    cells = image.to_rgba(image.get_array())
    assert cells[0, 2].tolist() == [1, 1, 1, 1]  # no mistake: white
    assert np.allclose(cells[0, 0], legend.get_patches()[0].get_facecolor())
    assert cells[..., :3].mean() > 0.75


def test_the_reliability_diagram_shows_the_calibration_error() -> None:
    counts = np.array([0, 10, 30])
    figure = plotting.reliability_diagram(np.array([0, 0.5, 0.9]), np.array([0, 0.4, 1.0]), counts, "run")
    FigureCanvasAgg(figure).draw()
    assert figure.axes[0].get_title() == "run\ncalibration error (ECE) 10.00%"
    bars = [bar.get_height() for bar in figure.axes[0].containers[0]]
    assert bars == [0.4, 1.0]


def test_the_reliability_diagrams_before_and_after_calibration_are_side_by_side() -> None:
    counts = np.array([0, 10, 30])
    before, after = (np.array([0, 0.5, 0.9]), np.array([0, 0.4, 1.0]), counts), (np.zeros(3), np.zeros(3), counts)
    figure = plotting.reliability_diagram(*before, "run", after)
    FigureCanvasAgg(figure).draw()
    assert figure.get_suptitle() == "run"
    assert [axis.get_title() for axis in figure.axes[:2]] == [
        "before calibration\ncalibration error (ECE) 10.00%",
        "after calibration\ncalibration error (ECE) 0.00%",
    ]
    assert [bar.get_height() for bar in figure.axes[0].containers[0]] == [0.4, 1.0]
    assert [bar.get_height() for bar in figure.axes[1].containers[0]] == [0, 0]


def test_the_curve_of_corruptions_has_the_mean_of_those_that_count() -> None:
    accuracy = np.array([[0.9, 0.8], [0.7, 0.2], [0.1, 0.1]])
    figure = plotting.corruption_curves(["fog", "$x$" * 20, "spatter"], accuracy, np.array([True, True, False]), "run")
    pixels_of(figure)
    lines = figure.axes[0].lines
    assert [line.get_ydata().tolist() for line in lines] == [*accuracy.tolist(), [0.8, 0.5]]
    assert [line.get_linestyle() for line in lines] == ["-", "-", ":", "-"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["fog", "spatter"]


def test_a_gallery_shows_the_end_of_a_long_name() -> None:
    caption = Caption("a", "b", False, "a-name-that-is-too-long-0123.png", 0.5)
    figure = plotting.gallery(random_images(1, 8), [caption], "one")
    assert "50% · …-long-0123.png" in {text.get_text() for text in figure.texts}


def test_dark_figures_have_a_dark_ground() -> None:
    def brightness() -> float:
        return float(
            pixels_of(plotting.confusion_matrix(np.eye(2, dtype=np.int64), ["a", "b"], "title"))[:5, :5].mean()
        )

    with plotting.dark():
        assert brightness() < 40
    assert brightness() == 255


def contrast(first: str, second: str) -> float:
    """The contrast ratio of two colours by WCAG 2.1."""

    def luminance(colour: str) -> float:
        rgb = np.array(to_rgb(colour))
        return float(np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ LUMINANCE)

    dark, light = sorted(map(luminance, (first, second)))
    return (light + 0.05) / (dark + 0.05)


def test_lines_and_small_text_can_be_told_from_their_ground() -> None:
    for is_dark, ground in ((False, "#ffffff"), (True, "#16181d")):
        assert min(contrast(colour, ground) for colour in COLOURS[is_dark]) >= 3
    assert min(contrast(colour, "#ffffff") for colour in (CORRECT_TEXT, WRONG_TEXT, MUTED_TEXT)) >= 4.5


def test_names_of_runs_are_shown_as_they_are() -> None:
    history = [{f"train_{name}": 0.5 for name in ("loss", "accuracy")}] * 2
    names = ["_base", r"$\frac$", "a$b$c"]
    figure = plotting.group_curves({name: [history] for name in names})
    plotting.png(figure)  # a formula that is none fails here
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    assert not any(text.get_parse_math() for text in legend.get_texts())


def test_curves_of_groups_are_drawn_in_one_panel_or_two_in_the_colours_of_the_ground() -> None:
    history = [{f"{split}_{name}": 0.5 for split in ("train", "val") for name in ("loss", "accuracy")}] * 2
    both = plotting.group_curves({"a": [history, history], "b": [history]})
    assert [axis.get_title() for axis in both.axes] == ["Validation loss", "Validation accuracy"]
    with plotting.dark():
        (axis,) = plotting.group_curves({"a": [history, history]}, ("accuracy",)).axes
    assert axis.get_title() == "Validation accuracy"
    assert [line.get_color() for line in axis.lines] == [COLOURS[True][0]]
    assert [line.get_marker() for line in both.axes[0].lines] == ["o", "s"]  # distinguishable without colour
