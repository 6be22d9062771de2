"""Class activation maps of some images, as arrays and figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fastcifar import plotting
from fastcifar.errors import UsageError
from fastcifar.explain.cam import Size, best_layer
from fastcifar.explain.maps import ExplainedImages, MapTable
from fastcifar.inference.predictions import UNKNOWN, Predictions
from fastcifar.io.checks import require_int

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHOD_NAMES = {"gradcam": "Grad-CAM", "gradcampp": "Grad-CAM++", "hirescam": "HiResCAM"}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Maps:
    """Class activation maps of N images of a run; a notebook shows `grid`.

    Examples:
        >>> maps = Run("fast").explain(n=4, methods=["gradcam", "hirescam"], layers=["layer2"])
        >>> maps.maps.shape, maps.methods, len(maps)
        ((1, 2, 4, 1, 32, 32), ('gradcam', 'hirescam'), 4)
        >>> one = maps.sheet(0)  # a figure of matplotlib
    """

    explained: ExplainedImages
    table: MapTable
    class_names: tuple[str, ...]
    run_name: str
    selection: str
    """Which images these are, in words."""

    def __len__(self) -> int:
        return len(self.explained.images)

    def __repr__(self) -> str:
        return f"Maps({self.selection}; {', '.join(self.methods)} at {', '.join(self.layers)})"

    @property
    def images(self) -> npt.NDArray[np.uint8]:
        """(N, H, W, 3) uint8, as stored."""
        return self.explained.images

    @property
    def predictions(self) -> Predictions:
        """Those on these images."""
        return self.explained.predictions

    @property
    def maps(self) -> npt.NDArray[np.float32]:
        """(targets, methods, N, layers, H, W) float32 in 0..1; the names are `targets`, `methods` and `layers`."""
        return self.table.maps

    @property
    def targets(self) -> tuple[str, ...]:
        """'pred', 'true', or the name of a class."""
        return self.table.targets

    @property
    def methods(self) -> tuple[str, ...]:
        """Of `fastcifar.config.CAM_METHODS`."""
        return self.table.methods

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of modules."""
        return self.table.layers

    @property
    def sizes(self) -> tuple[Size, ...]:
        """(h, w) of each layer's own maps, before they are enlarged; empty without images."""
        return self.table.sizes

    @property
    def classes(self) -> npt.NDArray[np.int64]:
        """(targets, N): the class that each map is of."""
        return self.table.classes

    @property
    def has_evidence(self) -> npt.NDArray[np.bool_]:
        """(targets, methods, N, layers): False where a map is 0 everywhere, without evidence for the class."""
        return self.table.has_evidence

    def grid(self) -> Figure:
        """The images with their maps of the first target and method at the best layer. Raises UsageError without
        images."""
        self._require_images()
        table, best = self.table, best_layer(self.table.sizes)
        target, labels = table.targets[0], plotting.class_labels(self.class_names)
        target = labels[self.class_names.index(target)] if target in self.class_names else target_name(target)
        return plotting.cam_grid(
            self.images,
            table.maps[0, 0, :, best],
            table.has_evidence[0, 0, :, best].tolist(),
            plotting.captions(self.predictions, self.explained.short_names, self.class_names),
            f"{self.run_name}: {self.selection}\n{METHOD_NAMES[table.methods[0]]} of {target} at {self._layer(best)}",
        )

    def sheet(self, position: int) -> Figure:
        """One image with its maps by every layer, target and method. position: 0..N-1. Raises UsageError if there is
        no such image."""
        self._require_images()
        i = require_int("position", position, 0, len(self) - 1)
        table, explained, predictions = self.table, self.explained, self.predictions
        labels = plotting.class_labels(self.class_names)
        rows = [
            plotting.SheetRow(
                f"{self._layer(k)}\nfor {labels[table.classes[t, i]]}",
                list(table.maps[t, :, i, k]),
                table.has_evidence[t, :, i, k].tolist(),
            )
            for k in range(len(table.layers))
            for t in range(len(table.targets))
        ]
        heading = f"{labels[predictions.predicted[i]]} {predictions.confidence[i]:.0%}"
        if predictions.labels[i] == UNKNOWN:
            heading = f"{explained.names[i]}: predicted {heading}"
        else:
            true = labels[predictions.labels[i]]
            heading = f"test image {explained.names[i]}: true {true}, predicted {heading}"
            heading += f", loss {predictions.losses[i]:.2f}"
            heading += f"\n{explained.origins[i]}" if explained.origins[i] else ""
        return plotting.cam_sheet(explained.images[i], rows, [METHOD_NAMES[m] for m in table.methods], heading)

    def _require_images(self) -> None:
        if not len(self):
            raise UsageError(f"no image to draw: {self.selection}; expected at least one")

    def _layer(self, k: int) -> str:
        height, width = self.table.sizes[k]
        return f"{self.table.layers[k]} ({height}x{width})"

    def _repr_png_(self) -> bytes | None:
        """The grid, in notebooks."""
        return plotting.png(self.grid()) if len(self) else None


def target_name(target: str) -> str:
    """A target in words."""
    return {"pred": "the predicted class", "true": "the true class"}.get(target, target)
