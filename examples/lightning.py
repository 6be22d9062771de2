"""Lightning, with images from fastcifar: a loader is given where a DataLoader is expected.

In a folder of your own:

    pip install pytorch-lightning
    fastcifar convert
    python examples/lightning.py --epochs 3
"""

import argparse

import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from fastcifar import AugmentConfig, Batch, make_loader
from fastcifar.config import ModelConfig
from fastcifar.models import make_model


class Classifier(pl.LightningModule):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        model = make_model(ModelConfig(name="small"), num_classes)
        self.model = model.to(memory_format=torch.channels_last)  # as the images

    def training_step(self, batch: Batch, batch_index: int) -> torch.Tensor:
        images, labels, _ = batch
        return F.cross_entropy(self.model(images), labels)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        is_correct = self.model(batch.images).argmax(dim=1) == batch.labels
        self.log("accuracy", is_correct.float().mean(), batch_size=len(batch.labels), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--precision", default="bf16-mixed", help="32-true where the device is slow at bf16")
    args = parser.parse_args()

    train = make_loader(f"{args.data_dir}/train.beton", AugmentConfig(cutout_size=8), batch_size=args.batch_size)
    test = make_loader(f"{args.data_dir}/test.beton", train=False, mean=train.mean, std=train.std)
    trainer = pl.Trainer(max_epochs=args.epochs, precision=args.precision, logger=False, enable_checkpointing=False)
    trainer.fit(Classifier(len(train.beton.class_names)), train, test)
    print(f"test accuracy {trainer.callback_metrics['accuracy']:.1%}")


if __name__ == "__main__":
    main()
