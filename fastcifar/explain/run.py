"""`explain`: images of a run with their class activation maps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastcifar.config import ExplainConfig
from fastcifar.errors import UsageError
from fastcifar.explain.cam import Activations, Size
from fastcifar.explain.files import write_explanation
from fastcifar.explain.maps import CAM_BATCH, Subjects, map_table
from fastcifar.explain.user_image_paths import read_pictures
from fastcifar.inference.selection import Verdicts, choose, verdicts
from fastcifar.inference.trained_run import Trained
from fastcifar.io.checks import require_choice
from fastcifar.models import stages_of
from fastcifar.training.device import standard_torch_defaults
from fastcifar.training.progress import Reporter, SilentReporter
from fastcifar.training.run_folder import RunFolder

NUM_TOP = 3
"""Classes that are reported of each picture of the user's."""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What was made."""

    num_images: int
    """Test images, or pictures of the user's."""
    num_wrong: int | None
    """Of the test images."""
    num_shown: int
    layers: tuple[str, ...]
    sizes: tuple[Size, ...]
    """(h, w) of each layer's own maps."""
    files: tuple[Path, ...]
    """grid.png, index.csv, maps.npz and the sheets; nothing if there is no image to show."""
    pictures: tuple[dict[str, Any], ...] = ()
    """Of each picture of the user's the file, and the `classes` of highest probability, each a name and a probability;
    the most probable first."""


@standard_torch_defaults()
def explain_run(
    run: RunFolder,
    config: ExplainConfig,
    *,
    pictures: Sequence[str | os.PathLike[str]] = (),
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "auto",
    trusted: str | None = None,
    reporter: Reporter | None = None,
) -> Explanation:
    """Explain test images of a run into its folder explain/, or the user's own pictures into explain/pictures/.

    pictures: files, folders and patterns, see `fastcifar.explain.user_image_paths.read_pictures`.
    trusted: 'package.module:function', if that is the run's network and you know what it does.
    Raises DataError (4) if test.beton or a picture is missing, damaged or of another kind; CheckpointError (6);
    UsageError (2).
    """
    if pictures and config.target in ("true", "both"):
        raise UsageError(f"target is {config.target!r}, but nobody said what your pictures show; expected 'pred'")
    reporter = reporter or SilentReporter()
    trained = Trained(run, data_dir=data_dir, device=device, trusted=trusted)
    layers = _layers(trained, config)
    names = trained.info.class_names
    require_choice("target", config.target, ("pred", "true", "both", *names))
    top: tuple[dict[str, Any], ...] = ()
    if pictures:
        (subjects, top), num_wrong = _pictures(trained, pictures, layers), None
        num_images = len(subjects.images)
        folder, selection = run.explain / "pictures", f"{num_images:,} of your pictures"
    else:
        subjects, num_images, num_wrong = _test_images(trained, config, reporter)
        folder, selection = run.explain, _described(config, len(subjects.images), num_images, num_wrong)
    num_shown = len(subjects.images)
    if not num_shown:
        return Explanation(num_images=num_images, num_wrong=num_wrong, num_shown=0, layers=layers, sizes=(), files=())
    table = map_table(trained, subjects, layers, config, reporter)
    files = write_explanation(run.own(folder), subjects, table, names, run.path.name, selection, reporter)
    return Explanation(
        num_images=num_images,
        num_wrong=num_wrong,
        num_shown=num_shown,
        layers=layers,
        sizes=table.sizes,
        files=files,
        pictures=top,
    )


def _layers(trained: Trained, config: ExplainConfig) -> tuple[str, ...]:
    """Those that are asked for, each once; 'all' stands for the network's stages."""
    stages = stages_of(trained.model)
    if "all" in config.layers and not stages:
        raise UsageError(
            f"{trained.config.model} has no stage that gives maps; name a layer that does, and is not scripted"
        )
    named = [stages if name == "all" else (name,) for name in config.layers]
    return tuple(dict.fromkeys(chain.from_iterable(named)))


def _described(config: ExplainConfig, num_shown: int, num_images: int, num_wrong: int) -> str:
    """What is shown, for the heading."""
    if not isinstance(config.select, str):
        return f"{num_shown:,} of {num_images:,} test images"
    order = {"loss": "largest loss first", "confidence": "most confident first", "random": "at random"}[config.select]
    kind = "rightly classified" if config.correct else "misclassified"
    count = num_images - num_wrong if config.correct else num_wrong
    return f"{num_shown:,} of {count:,} {kind} among {num_images:,} test images, {order}"


def _test_images(trained: Trained, config: ExplainConfig, reporter: Reporter) -> tuple[Subjects, int, int]:
    beton = trained.open_beton("test")
    found = verdicts(trained.predictions("test", beton, "none", reporter))
    chosen = choose(found, config)
    rows = found.index[chosen]
    subjects = Subjects(
        images=beton.images(rows),
        names=tuple(f"test image {row}" for row in rows),
        short_names=tuple(map(str, rows)),
        files=tuple(f"{row:05d}.png" for row in rows),
        verdicts=found.at(chosen),
    )
    return subjects, len(found.index), int((~found.right).sum())


def _pictures(
    trained: Trained, given: Sequence[str | os.PathLike[str]], layers: Sequence[str]
) -> tuple[Subjects, tuple[dict[str, Any], ...]]:
    """The pictures as images, and the most probable classes of each."""
    images, paths = read_pictures(given, trained.info.image_shape)
    probabilities = torch.cat(
        [
            Activations(trained.model, trained.normalised(images[i : i + CAM_BATCH]), layers).logits.softmax(dim=1)
            for i in range(0, len(images), CAM_BATCH)
        ]
    ).cpu()
    unknown = np.full(len(paths), -1)
    names = [_shown(path) for path in paths]
    best = probabilities.double().topk(min(NUM_TOP, probabilities.shape[1]), dim=1)
    top = tuple(
        {"file": name, "classes": [(trained.info.class_names[i], p) for i, p in zip(classes, values, strict=True)]}
        for name, classes, values in zip(names, best.indices.tolist(), best.values.tolist(), strict=True)
    )
    subjects = Subjects(
        images=images,
        names=tuple(names),
        short_names=tuple(os.path.basename(name) for name in names),
        files=tuple(f"{i:05d}.png" for i in range(len(paths))),
        verdicts=Verdicts(
            index=unknown,
            true=unknown,
            predicted=probabilities.argmax(dim=1).numpy(),
            confidence=probabilities.amax(dim=1).double().numpy(),
            loss=np.full(len(paths), np.nan),
        ),
    )
    return subjects, top


def _shown(path: Path) -> str:
    """Its name as text that can be stored and drawn: the name of a file may be anything."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
