"""`audit --predictions`: probabilities or logits that were made elsewhere, in an .npz, .npy or .csv file."""

from __future__ import annotations

import csv
import io
import logging
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from fastcifar.data.beton import Beton
from fastcifar.errors import DataError, join_names, one_line
from fastcifar.io.paths import user_path, why_missing
from fastcifar.io.reading import MAX_ARRAYS, load_arrays, read_bytes

log = logging.getLogger(__name__)
NAMES = ("train", "test", "probabilities", "pred_probs", "probs", "logits", "predictions", "arr_0")
"""Names of arrays in an .npz file: of both splits, or of one, which is found by its number of rows."""
SUM_TOLERANCE, ROUNDING = 0.01, 1e-3
EXPECTED = (
    "a row of probabilities or logits for each image: .npz with 'train' and/or 'test', .npy, or .csv with a column for "
    "each class"
)
Floats = npt.NDArray[np.float32]


def read_probabilities(path: str | os.PathLike[str], splits: Mapping[str, Beton]) -> dict[str, Floats]:
    """The probabilities of each split that the file has, (N, C) float32, in the order of its beton.

    Rows with sum 1 are probabilities, others logits. Of an .npz file with `indices`, such as predictions.npz of a run,
    row i belongs to the image indices[i]; with `data_sha256`, they are of the beton with that SHA-256. Columns of a CSV
    file with class names are matched by name, without names in the order of the classes. Raises DataError (4) if the
    file is missing, damaged or does not fit the images.
    """
    file = user_path(path, "predictions")
    try:
        arrays = _arrays(file, splits)
        matched = dict(_match(name, array, splits) for name, array in arrays.items())
    except (OSError, ValueError) as error:
        reason = one_line(error, 300) if file.exists() else why_missing(file)
        raise DataError(f"{file}: not predictions of these images ({reason}); expected {EXPECTED}") from error
    for split, probabilities in matched.items():
        labels = splits[split].labels
        agreement, chance = np.mean(probabilities.argmax(axis=1) == labels), np.bincount(labels).max() / len(labels)
        if chance < 1 and agreement <= chance + 4 * math.sqrt(chance * (1 - chance) / len(labels)):  # 4 standard errors
            log.warning(
                "%s: its classes are the labels of %.1f%% of the %s images, no more than by chance: is it of these "
                "images, in this order?",
                *(file, 100 * agreement, split),
            )
    return matched


def _arrays(file: Path, splits: Mapping[str, Beton]) -> dict[str, Any]:
    """The arrays in a file, by split; '' where the file does not name it. Raises OSError or ValueError."""
    content = read_bytes(file, MAX_ARRAYS)
    if file.suffix.lower() == ".csv":
        return {"": _parse_csv(content.decode("utf-8-sig"), splits)}
    if file.suffix.lower() == ".npy":
        try:
            return {"": np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)}
        except Exception as error:  # NumPy's header parser raises many types
            raise ValueError(one_line(error)) from error
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise ValueError("neither .npz, .npy nor .csv")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        present = [name.removesuffix(".npy") for name in archive.namelist()]
    names = [name for name in NAMES[:2] if name in present] or [name for name in NAMES[2:] if name in present][:1]
    if not names:
        raise ValueError(f"its arrays are {join_names(present) or 'none'}; none of {', '.join(NAMES)}")
    about = [name for name in ("indices", "data_sha256") if name in present and names[0] not in NAMES[:2]]
    arrays = load_arrays(content, [*names, *about])
    if names[0] in NAMES[:2]:
        return arrays
    rows, split, sha256 = arrays[names[0]], "", str(arrays.get("data_sha256", ""))
    if sha256:
        split = next((name for name, beton in splits.items() if beton.sha256 == sha256), "")
        if not split:
            raise ValueError(f"it is of other data, of SHA-256 {sha256[:16]}…")
    return {split: _in_order(rows, arrays["indices"]) if "indices" in arrays else rows}


def _in_order(rows: Any, indices: Any) -> Any:
    """The rows in the order of the images."""
    if indices.ndim != 1 or len(indices) != len(rows) or not np.array_equal(np.sort(indices), np.arange(len(rows))):
        raise ValueError("its indices are not 0, 1, … of all images")
    return rows[np.argsort(indices)]


def _parse_csv(text: str, splits: Mapping[str, Beton]) -> npt.NDArray[np.float64]:
    class_names = splits["train"].class_names
    lines = [line for line in csv.reader(io.StringIO(text)) if line]
    first = [name.strip() for name in lines[0]] if lines else []
    header: Sequence[str] = ()
    # names may be numbers; of classes 0 and 1, a first line 0,1 may be probabilities
    is_named = sorted(first) == sorted(class_names) and len(lines) - 1 in map(len, splits.values())
    if is_named or not all(map(_is_number, first)):
        header, lines = first, lines[1:]
    if lines and len({len(line) for line in lines}) > 1:
        raise ValueError("its lines have different numbers of columns")
    try:
        table = np.array(lines, dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"a value is not a number: {one_line(error, 80)}") from error
    if not header:
        return table
    if sorted(header) != sorted(class_names):
        raise ValueError(f"its columns are {join_names(header)}; the classes are {join_names(class_names)}")
    return table[:, [header.index(name) for name in class_names]]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _match(name: str, array: Any, splits: Mapping[str, Beton]) -> tuple[str, Floats]:
    """The split of an array, and its probabilities. Raises ValueError."""
    num_classes = len(splits["train"].class_names)
    if array.ndim != 2 or array.dtype.kind not in "fiu" or array.shape[1] != num_classes:
        raise ValueError(f"it has {array.dtype} {array.shape}; expected numbers with {num_classes} columns")
    sizes = {split: len(beton) for split, beton in splits.items()}
    if not name:
        if len(set(sizes.values())) < len(sizes):
            raise ValueError("both splits have as many images: name the array 'train' or 'test', in an .npz file")
        name = next((split for split, size in sizes.items() if size == len(array)), "")
    if sizes.get(name) != len(array):
        raise ValueError(
            f"it has {len(array):,} rows; expected one for each image: "
            + ", ".join(f"{size:,} ({split})" for split, size in sizes.items())
        )
    values = array.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("a value is not finite")
    is_share = values.min() >= -ROUNDING and values.max() <= 1 + ROUNDING
    if is_share and np.abs(values.sum(axis=1) - 1).max() > SUM_TOLERANCE:
        raise ValueError("its values are 0..1, but the sum of a row is not 1; expected probabilities or logits")
    values = np.maximum(values, 0) if is_share else softmax(values, axis=1)
    return name, (values / values.sum(axis=1, keepdims=True)).astype(np.float32)
