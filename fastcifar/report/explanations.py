"""The explained images: a card for each, with its class activation map and its whole sheet."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from fastcifar import plotting
from fastcifar.errors import DataError
from fastcifar.explain.cam import best_layer
from fastcifar.explain.drawing import METHOD_NAMES, target_name
from fastcifar.explain.files import COLUMNS
from fastcifar.explain.maps import MapTable
from fastcifar.io.reading import load_arrays, read_bytes
from fastcifar.report.figures import Picture, png, sheet
from fastcifar.report.run_files import RunFiles, clean, number

MAX_CARDS = 200
MAX_SHEET_BYTES, MAX_ARRAYS = 16 * 2**20, 512 * 2**20
TILE, MAX_TILE = 128, 192
Maps = dict[str, Any]
ARRAYS = ("selection", "indices", "images", *(field.name for field in fields(MapTable)))  # of maps.npz


def explanations(files: RunFiles, folder: str = "explain") -> dict[str, Any] | None:
    """The first 200 images of a folder's index.csv. Cards have no images without maps.npz, no button without a
    sheet. selection, map_name: which images these are, and what the overlays show, in words."""
    name = f"{folder}/index.csv"
    rows = files.rows(name, COLUMNS)
    if not rows:
        return None
    maps = files.attempt(lambda files: files.load(f"{folder}/maps.npz", lambda path: _read_maps(path, rows)))
    weights_sha256 = files.attempt(lambda files: files.weights_sha256)
    if maps is not None and weights_sha256 not in (None, maps["weights_sha256"]):
        files.note(f"{folder}/: made with other weights than those of the run; make it again with 'fastcifar explain'")
    cards = [_card(files, folder, name, row, maps, i) for i, row in enumerate(rows[:MAX_CARDS])]
    return {
        "cards": cards,
        "num_images": len(rows),
        "selection": maps["selection"] if maps else "",
        "map_name": maps["name"] if maps else "",
        "true_names": sorted({card["true"] for card in cards if card["true"]}),
        "predicted_names": sorted({card["predicted"] for card in cards}),
    }


def _card(files: RunFiles, folder: str, name: str, row: dict[str, str], maps: Maps | None, i: int) -> dict[str, Any]:
    """true: empty if it is unknown. image, overlay, sheet: a Picture, or None."""
    is_known, index = row["true"] != "", clean(row["index"])
    pair = None if maps is None else files.drawn(lambda: _image_and_overlay(maps, i))
    image, overlay = pair or (None, None)
    return {
        "title": f"Test image {index}" if is_known else index,
        "origin": clean(row["origin"]) if is_known else "",
        "true": clean(row["true"]),
        "predicted": clean(row["predicted"]),
        "is_correct": row["true"] == row["predicted"],
        "confidence": number(name, row, "confidence"),
        "loss": number(name, row, "loss") if is_known else None,
        "image": image,
        "overlay": overlay,
        "has_evidence": maps is None or bool(maps["has_evidence"][i]),
        "sheet": files.attempt(lambda files: _sheet(files, folder, row["file"])),
    }


def _image_and_overlay(maps: Maps, i: int) -> tuple[Picture, Picture]:
    image = maps["images"][i]
    tile = TILE if max(image.shape) < TILE else MAX_TILE
    pixels = np.rint(plotting.overlay(image, maps["maps"][i], tile) * 255).astype(np.uint8)
    return png(image, MAX_TILE), png(pixels, MAX_TILE)


def _sheet(files: RunFiles, folder: str, file: str) -> Picture | None:
    if not re.fullmatch(r"sheets/[^/\0]+\.png", file):
        raise DataError(f"{folder}/index.csv: sheet is {clean(file, 80)!r}; expected e.g. sheets/00012.png")
    return files.load(f"{folder}/{file}", lambda path: sheet(read_bytes(path, MAX_SHEET_BYTES)))


def _read_maps(path: Path, rows: list[dict[str, str]]) -> Maps:
    """The maps of the first target and method at the best layer, as in grid.png."""
    arrays = load_arrays(read_bytes(path, MAX_ARRAYS), ARRAYS, MAX_ARRAYS)
    _require_shapes(arrays, len(rows))
    if rows[0]["true"] and [row["index"] for row in rows] != [str(i) for i in arrays["indices"].ravel().tolist()]:
        raise ValueError("its images are not those of index.csv")
    best = best_layer([(int(h), int(w)) for h, w in arrays["sizes"]])
    method, target, layer = (clean(arrays[key][i]) for key, i in (("methods", 0), ("targets", 0), ("layers", best)))
    height, width = arrays["sizes"][best]
    return {
        "weights_sha256": str(arrays["weights_sha256"]),
        "selection": clean(arrays["selection"]),
        "name": f"{METHOD_NAMES.get(method, method)} for {target_name(target)} at {layer} ({height}x{width})",
        "images": arrays["images"],
        "maps": np.nan_to_num(arrays["maps"][0, 0, :, best]),
        "has_evidence": arrays["has_evidence"][0, 0, :, best],
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
