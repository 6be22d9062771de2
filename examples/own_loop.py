"""A training loop of your own in plain PyTorch, with images from fastcifar.

In a folder of your own:

    fastcifar convert
    python examples/own_loop.py --epochs 3
"""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

from fastcifar import AugmentConfig, make_loader


def block(num_in: int, num_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(num_in, num_out, 3, 2, 1, bias=False), nn.BatchNorm2d(num_out), nn.ReLU())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=250)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"

    augment = AugmentConfig(crop_padding=4, flip=True, cutout_size=8)
    train = make_loader(f"{args.data_dir}/train.beton", augment, batch_size=args.batch_size, device=device)
    test = make_loader(f"{args.data_dir}/test.beton", train=False, mean=train.mean, std=train.std, device=device)

    model = nn.Sequential(block(3, 32), block(32, 64), block(64, 128), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.append(nn.Linear(128, len(train.beton.class_names)))
    model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    for epoch in range(args.epochs):
        model.train()
        losses = []
        for images, labels, _ in train.epoch(epoch):  # (N, 3, H, W) float32, normalised; (N,) int64
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        model.eval()
        with torch.no_grad():
            num_correct = sum((model(batch.images).argmax(1) == batch.labels).sum().item() for batch in test)
        loss = torch.stack(losses).mean()
        print(f"epoch {epoch + 1}: loss {loss:.3f}, test accuracy {num_correct / test.num_images:.1%}")


if __name__ == "__main__":
    main()
