"""`explain`: images of a run with their class activation maps."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastcifar.config import MAX_EXPLAINED, ExplainConfig
from fastcifar.errors import UsageError
from fastcifar.explain.cam import Size, require_layers
from fastcifar.explain.drawing import Maps
from fastcifar.explain.files import write_explanation
from fastcifar.explain.maps import ExplainedImages, compute_maps
from fastcifar.inference.predict_files import ImagePredictions, predict_images
from fastcifar.inference.predictions import UNKNOWN, Predictions, select_images
from fastcifar.inference.trained_run import TrainedRun
from fastcifar.io.checks import require_choice
from fastcifar.models import stages_of
from fastcifar.training.device import standard_torch_defaults
from fastcifar.training.progress import Reporter
from fastcifar.training.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The result of `explain_run`."""

    num_images: int
    """Test images, or images of the user that could be read."""
    num_wrong: int | None
    """Misclassified test images."""
    maps: Maps
    files: tuple[Path, ...] = ()
    """grid.png, index.csv, maps.npz and the sheets; empty if no image was selected."""
    own: ImagePredictions | None = None
    """The predictions on the user's images; None for test images."""

    @property
    def num_shown(self) -> int:
        """Images with maps."""
        return len(self.maps)

    @property
    def layers(self) -> dict[str, Size]:
        """(h, w) of the maps of each layer; empty if no image was selected."""
        return dict(zip(self.maps.layers, self.maps.table.sizes, strict=False))


@standard_torch_defaults()
def explain_run(
    run: RunFolder,
    config: ExplainConfig,
    *,
    images: Sequence[str | os.PathLike[str]] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "auto",
    trusted: str | None = None,
    reporter: Reporter | None = None,
) -> Explanation:
    """Explain test images of a run into its folder explain/, or the user's own images into explain/images/.

    For the arguments and errors see `explain_images` and `TrainedRun`.
    """
    trained = TrainedRun(run, data_dir=data_dir, device=device, trusted=trusted, reporter=reporter)
    explained = explain_images(trained, config, images)
    if not len(explained.maps):
        return explained
    folder = run.explain if images is None else run.explain / "images"
    return replace(explained, files=write_explanation(run.make_subfolder(folder), explained.maps, trained.reporter))


def explain_images(
    trained: TrainedRun,
    config: ExplainConfig,
    images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None = None,
) -> Explanation:
    """The maps of test images of a run, or of the user's own images; nothing is written.

    images: files, folders, patterns, archives, betons, see `fastcifar.inference.user_images.list_images`; None: test
    images. Raises DataError (4) if test.beton is missing, damaged or does not fit; UsageError (2), also for over
    MAX_EXPLAINED images.
    """
    if images is not None:
        config.require_no_selection()
        if config.target in ("true", "both"):
            raise UsageError(
                f"target is {config.target!r}, but the true class of your images is unknown; expected 'pred'"
            )
    layers = _layers(trained, config)
    require_choice("target", config.target, ("pred", "true", "both", *trained.info.class_names))
    num_wrong = own = None
    if images is not None:
        own = predict_images(trained, images, max_images=MAX_EXPLAINED)
        explained, num_images, selection = _explained(own), len(own), f"{len(own):,} of your images"
    else:
        predictions, explained, selection = _test_images(trained, config)
        num_images, num_wrong = len(predictions), int((~predictions.is_correct).sum())
    maps = Maps(
        explained=explained,
        table=compute_maps(trained, explained, layers, config),
        class_names=trained.info.class_names,
        run_name=trained.run.path.name,
        selection=selection,
    )
    return Explanation(num_images=num_images, num_wrong=num_wrong, maps=maps, own=own)


@standard_torch_defaults()
def explanation_grid(
    run: RunFolder, config: ExplainConfig, *, trusted: str | None = None, reporter: Reporter | None = None
) -> Figure | None:
    """The figure of grid.png for test images of a run, without writing anything; None if no image is selected.

    For arguments and errors see `explain_run`.
    """
    maps = explain_images(TrainedRun(run, trusted=trusted, reporter=reporter), config).maps
    return maps.grid() if len(maps) else None


def _test_images(trained: TrainedRun, config: ExplainConfig) -> tuple[Predictions, ExplainedImages, str]:
    """All predictions on the test images, those that are selected, and the selection in words."""
    predictions, beton = trained.predictions("test"), trained.beton("test")
    trained.warn_of_other_test_images()
    selected = select_images(predictions, config)
    explained = ExplainedImages(
        images=beton.images(selected.indices),
        names=tuple(map(str, selected.indices)),
        origins=tuple(beton.origins(selected.indices)),
        predictions=selected,
    )
    num_wrong = int((~predictions.is_correct).sum())
    return predictions, explained, _describe(config, len(selected), len(predictions), num_wrong)


def _layers(trained: TrainedRun, config: ExplainConfig) -> tuple[str, ...]:
    """The requested layers, each once; 'all' stands for the network's stages."""
    stages = stages_of(trained.model)
    if "all" in config.layers and not stages:
        raise UsageError(
            f"{trained.config.model.name} has no stage that gives maps; name a layer that does and is not scripted"
        )
    names = [stages if name == "all" else (name,) for name in config.layers]
    layers = tuple(dict.fromkeys(chain.from_iterable(names)))
    require_layers(trained.model, layers)  # also where no image is selected
    return layers


def _describe(config: ExplainConfig, num_shown: int, num_images: int, num_wrong: int) -> str:
    if not isinstance(config.select, str):
        return f"{num_shown:,} of {num_images:,} test images"
    order = {"loss": "largest loss first", "confidence": "most confident first", "random": "at random"}[config.select]
    kind = "correctly classified" if config.correct else "misclassified"
    count = num_images - num_wrong if config.correct else num_wrong
    return f"{num_shown:,} of {count:,} {kind} among {num_images:,} test images, {order}"


def _explained(own: ImagePredictions) -> ExplainedImages:
    assert own.pixels is not None
    unknown = np.full(len(own), UNKNOWN)
    predictions = replace(own.predictions, indices=unknown, labels=unknown)
    return ExplainedImages(images=own.pixels, names=own.files, origins=own.files, predictions=predictions)
