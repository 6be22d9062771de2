"""The explained images: a card for each, with its class activation map, and a table of its maps at all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastcifar import plotting
from fastcifar.explain.cam import best_layer
from fastcifar.explain.drawing import METHOD_NAMES, target_name
from fastcifar.explain.files import COLUMNS
from fastcifar.explain.maps import MapTable
from fastcifar.io.reading import MAX_ARRAYS, load_arrays, read_bytes
from fastcifar.report.figures import Picture, png, webp
from fastcifar.report.run_files import RunFiles, clean, number

MAX_CARDS = 200
MAX_SHEET_ROWS, MAX_METHODS, MAX_SHEET_BYTES = 64, 4, 32 * 2**20
"""Of the table of an image; bytes: of the tables of all."""
TILE, SHEET_TILE, MAX_TILE = 128, 160, 192
Maps = dict[str, Any]
ARRAYS = ("selection", "indices", "images", *(field.name for field in fields(MapTable)))  # of maps.npz


def explanations(
    files: RunFiles, folder: str = "explain", class_names: Sequence[str] = (), data_sha256: str = ""
) -> dict[str, Any] | None:
    """The first 200 images of a folder's index.csv. Cards have neither images nor a table without maps.npz.

    data_sha256: of the test images of the page, if known; a note says if these are others.
    names: `class_names` and those of other classes, to which true_index ("" if unknown) and predicted_index of each
    card lead. selection, map_name: which images these are, and what the overlays show, in words.
    """
    name = f"{folder}/index.csv"
    rows = files.rows(name, COLUMNS)
    if not rows:
        return None
    maps = files.attempt(lambda files: files.load(f"{folder}/maps.npz", lambda path: _read_maps(path, rows)))
    weights_sha256 = files.attempt(lambda files: files.weights_sha256)
    if maps is not None and weights_sha256 not in (None, maps["weights_sha256"]):
        files.note(f"{folder}/: made with other weights than those of the run; make it again with 'fastcifar explain'")
    if maps is not None and data_sha256 and maps["data_sha256"] not in ("", data_sha256):
        files.note(f"{folder}/: of other test images than predictions.npz; make it again with 'fastcifar explain'")
    cards, num_bytes = [], 0
    for i, row in enumerate(rows[:MAX_CARDS]):
        cards.append(_card(files, name, row, maps, i, with_sheet=num_bytes < MAX_SHEET_BYTES))
        num_bytes += _size_of(cards[-1]["sheet"])
    names = list(
        dict.fromkeys([*class_names, *sorted({c[key] for c in cards for key in ("true", "predicted")} - {""})])
    )
    for card in cards:
        card |= {f"{key}_index": names.index(card[key]) if card[key] else "" for key in ("true", "predicted")}
    return {
        "cards": cards,
        "names": names,
        "folder": folder,
        "num_images": len(rows),
        "num_without_sheet": sum(card["sheet"] is None for card in cards) if num_bytes else 0,
        "selection": maps["selection"] if maps else "",
        "map_name": maps["name"] if maps else "",
    }


def _card(
    files: RunFiles, name: str, row: dict[str, str], maps: Maps | None, i: int, with_sheet: bool
) -> dict[str, Any]:
    """true: empty if it is unknown. image, overlay: a Picture, or None. sheet: see `_sheet`."""
    is_known, index = row["true"] != "", clean(row["index"])
    true, predicted = clean(row["true"]), clean(row["predicted"])
    pictures = None if maps is None else files.drawn(lambda: _pictures(maps, i, true, predicted, with_sheet))
    image, overlay, sheet = pictures or (None, None, None)
    return {
        "title": f"Test image {index}" if is_known else index,
        "origin": clean(row["origin"]) if is_known else "",
        "true": true,
        "predicted": predicted,
        "is_correct": row["true"] == row["predicted"],
        "confidence": number(name, row, "confidence"),
        "loss": number(name, row, "loss") if is_known else None,
        "image": image,
        "overlay": overlay,
        "has_evidence": maps is None or bool(maps["has_evidence"][0, 0, i, maps["best"]]),
        "sheet": sheet,
    }


def _pictures(
    maps: Maps, i: int, true: str, predicted: str, with_sheet: bool
) -> tuple[Picture, Picture, dict[str, Any] | None]:
    """The image; its map by the first method, for the first target, at the best layer, as in grid.png; its sheet."""
    image = maps["images"][i]
    tile = TILE if max(image.shape) < TILE else MAX_TILE
    overlay = plotting.overlay(image, _map(maps, 0, 0, i, maps["best"]), tile)
    sheet = _sheet(maps, i, {"pred": predicted, "true": true}) if with_sheet else None
    return png(image, MAX_TILE), png(_pixels(overlay), MAX_TILE), sheet


def _sheet(maps: Maps, i: int, target_classes: dict[str, str]) -> dict[str, Any]:
    """A row for each layer and target: its heatmap and its mask by each method. columns: of the tiles."""
    image, methods = maps["images"][i], range(min(len(maps["methods"]), MAX_METHODS))
    parts = (("heatmap", plotting.overlay), ("mask", plotting.mask))
    rows: list[dict[str, Any]] = []
    for layer, target in product(range(len(maps["layers"])), range(len(maps["targets"]))):
        if len(rows) == MAX_SHEET_ROWS:
            break
        tiles = [
            {
                "picture": webp(_pixels(draw(image, _map(maps, target, method, i, layer), SHEET_TILE)), MAX_TILE),
                "has_evidence": bool(maps["has_evidence"][target, method, i, layer]),
            }
            for _, draw in parts
            for method in methods
        ]
        name = clean(maps["targets"][target])
        rows.append({"layer": _layer(maps, layer), "target": target_classes.get(name, name), "tiles": tiles})
    return {"columns": [f"{_method(maps, method)} {part}" for part, _ in parts for method in methods], "rows": rows}


def _map(maps: Maps, target: int, method: int, i: int, layer: int) -> npt.NDArray[np.float32]:
    return np.nan_to_num(maps["maps"][target, method, i, layer])


def _method(maps: Maps, method: int) -> str:
    name = clean(maps["methods"][method])
    return METHOD_NAMES.get(name, name)


def _layer(maps: Maps, layer: int) -> str:
    height, width = maps["sizes"][layer]
    return f"{clean(maps['layers'][layer])} ({height}x{width})"


def _pixels(picture: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    return np.rint(picture * 255).astype(np.uint8)


def _size_of(sheet: dict[str, Any] | None) -> int:
    return sum(len(tile["picture"].url) for row in sheet["rows"] for tile in row["tiles"]) if sheet else 0


def _read_maps(path: Path, rows: list[dict[str, str]]) -> Maps:
    """The arrays of maps.npz, checked against each other and the rows of index.csv; with best, the layer that is shown
    next to each image, and name, the map there in words."""
    arrays = load_arrays(read_bytes(path, MAX_ARRAYS), ARRAYS, ["data_sha256"])
    _require_shapes(arrays, len(rows))
    if rows[0]["true"] and [row["index"] for row in rows] != [str(i) for i in arrays["indices"].ravel().tolist()]:
        raise ValueError("its images are not those of index.csv")
    best = best_layer([(int(h), int(w)) for h, w in arrays["sizes"]])
    target = target_name(clean(arrays["targets"][0]))
    return {
        **arrays,
        "weights_sha256": str(arrays["weights_sha256"]),
        "data_sha256": str(arrays.get("data_sha256", "")),  # earlier versions did not write it
        "selection": clean(arrays["selection"]),
        "best": best,
        "name": f"{_method(arrays, 0)} for {target} at {_layer(arrays, best)}",
    }


def _require_shapes(arrays: Maps, num_images: int) -> None:
    images, maps, layers = arrays["images"], arrays["maps"], arrays["layers"]
    is_valid = (
        all(arrays[key].ndim == 1 and arrays[key].dtype.kind == "U" for key in ("targets", "methods", "layers"))
        and images.dtype == np.uint8
        and images.ndim == 4
        and images.shape[::3] == (num_images, 3)
        and maps.dtype == np.float32
        and maps.shape == (*map(len, (arrays["targets"], arrays["methods"], images, layers)), *images.shape[1:3])
        and maps.size > 0
        and arrays["has_evidence"].dtype == np.bool_
        and arrays["has_evidence"].shape == maps.shape[:4]
        and arrays["sizes"].dtype.kind in "iu"
        and arrays["sizes"].shape == (len(layers), 2)
    )
    if not is_valid:
        raise ValueError(f"its arrays do not match each other, or the {num_images} images of index.csv")
