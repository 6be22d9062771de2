"""Images to a beton as FFCV's users do it: torchvision's ImageFolder, resized and cropped, and FFCV's DatasetWriter.

python -m benchmarks.peers.imagefolder_to_ffcv FOLDER_OR_TAR SIDE NUM_WORKERS
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path


def main(source: str, side: int, num_workers: int) -> None:
    """Write train.beton and test.beton into a temporary folder."""
    import tarfile

    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import CenterCrop, Compose, Resize

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(source)
        if folder.is_file():
            folder = Path(temporary) / "images"
            with tarfile.open(source) as archive:
                archive.extractall(folder, filter="data")
        transform = Compose([Resize(side, antialias=True), CenterCrop(side)])
        for split in ("train", "test"):
            fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
            writer = DatasetWriter(str(Path(temporary) / f"{split}.beton"), fields, num_workers=num_workers)
            writer.from_indexed_dataset(ImageFolder(folder / split, transform=transform))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
