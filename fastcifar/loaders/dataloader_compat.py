"""What users of torch's `DataLoader` (and of FFCV's `Loader`) expect of a loader: it exists, or an error says what to
use instead."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import numpy.typing as npt

from fastcifar.data.beton import Beton
from fastcifar.errors import UsageError

if TYPE_CHECKING:
    from fastcifar.loaders.base import LoaderConfig

_HINTS = {
    "indices=… selects images; the order follows from seed and epoch: loader.epoch(n)": "batch_sampler sampler",
    "torch.set_num_threads sets the threads; only loader='albumentations' has worker processes, one per core": (
        "multiprocessing_context num_workers persistent_workers prefetch_factor timeout workers"
    ),
    "augment=AugmentConfig(…) sets the augmentation": "pipelines transform transforms",
    "batches are already normalised, by mean=… and std=…": "normalize",
    "a batch is Batch(images, labels, indices)": "collate_fn",
    "the beton, or its path, is the first argument": "dataset fname",
    "rank=…, world_size=… give each process its slice of each batch": "distributed",
    "train=True delivers whole batches only, train=False every image once": "drop_last",
    "loader.epoch(n) gives the batches of epoch n": "epochs set_epoch",
    "seed=… sets order and augmentation": "generator worker_init_fn",
    "batches come in order": "in_order",
    "shuffle='full' or 'window', with train=True; the order of the file with train=False": "order",
    "loader='resident' keeps the images in memory, loader='ffcv' reads them from the file": "os_cache",
    "device='cuda' delivers batches on the GPU": "pin_memory",
}
INSTEAD = {name: hint for hint, names in _HINTS.items() for name in names.split()}
"""What to use instead of settings and attributes of these names."""


def unknown_setting(name: str, known: Iterable[str]) -> UsageError:
    """The error for a setting that `make_loader` does not have."""
    similar = difflib.get_close_matches(name, known, n=1)
    hint = INSTEAD.get(name) or (f"did you mean {similar[0]!r}?" if similar else f"expected: {', '.join(known)}")
    return UsageError(f"make_loader has no setting {name!r}; {hint}")


@dataclass(frozen=True, eq=False, repr=False)
class Images:
    """The images that a loader delivers, unchanged, as a map-style dataset: `loader.dataset`."""

    beton: Beton
    indices: npt.NDArray[np.int64]
    """(N,): their indices in the beton, increasing."""

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[npt.NDArray[np.uint8], int]:
        """Image, (H, W, 3) uint8, neither augmented nor normalised, and label."""
        index = self.indices[operator.index(position)]
        return self.beton.images([index])[0], int(self.beton.labels[index])

    @property
    def targets(self) -> list[int]:
        """The label of each image, as torchvision's datasets have them."""
        return self.beton.labels[self.indices].tolist()

    @property
    def class_to_idx(self) -> dict[str, int]:
        return {name: label for label, name in enumerate(self.classes)}

    @property
    def classes(self) -> tuple[str, ...]:
        return self.beton.class_names

    def __repr__(self) -> str:
        return f"Images({len(self):,} of {self.beton!r})"


class Conventions:
    """What every loader has in common with torch's `DataLoader`."""

    beton: Beton
    config: LoaderConfig
    num_workers = 0
    """Worker processes: only the albumentations loader has any."""
    _selected: npt.NDArray[np.bool_]

    @property
    def dataset(self) -> Images:
        """The images that are delivered; with drop_last, not all of them in each epoch."""
        return Images(self.beton, np.flatnonzero(self._selected))

    @property
    def batch_size(self) -> int:
        """Images in a batch of this process."""
        return self.config.batch_size // self.config.world_size

    @property
    def drop_last(self) -> bool:
        """Whether only whole batches are delivered."""
        return self.config.drop_last

    def __repr__(self) -> str:
        config = self.config
        purpose = "training" if config.drop_last else "evaluation"
        rank = f", rank {config.rank} of {config.world_size}" if config.world_size > 1 else ""
        return (
            f"{type(self).__name__}({int(self._selected.sum()):,} of {self.beton!r} for {purpose}, batch_size="
            f"{self.batch_size}{rank}, seed={config.seed}, device='{config.device}', dtype={config.dtype})"
        )

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise UsageError(
            "a loader cannot be pickled, copied or sent to another process; call make_loader there, with the path of "
            "the beton; rank=… and world_size=… give each of several processes its slice of each batch"
        )

    def __getitem__(self, index: object) -> NoReturn:
        raise UsageError(
            "a loader has no items, and needs no DataLoader around it: it delivers batches, "
            "'for images, labels, indices in loader'; loader.dataset[i] is one image"
        )

    if not TYPE_CHECKING:  # else no misspelled attribute is an error

        def __getattr__(self, name: str) -> NoReturn:
            hint = f"; {INSTEAD[name]}" if name in INSTEAD else ""
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}")
