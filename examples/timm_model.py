"""A network of timm: trained, explained and written as ONNX.

In a folder of your own:

    pip install 'fastcifar[timm,export]'
    fastcifar convert --size 96
    python examples/timm_model.py --model timm:resnet10t --epochs 10

At 96 pixels its third stage has maps of 6x6; at the 32 of CIFAR-10 only the first has more than 4x4.
"""

import argparse

import fastcifar
from fastcifar import TrainConfig


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="timm:resnet10t")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=256)
    args = parser.parse_args()

    settings = {"model": args.model, "data_dir": args.data_dir, "epochs": args.epochs, "batch_size": args.batch_size}
    run = fastcifar.train(
        TrainConfig.from_settings(**settings, optimizer="adamw", sched="cosine", warmup_epochs=args.epochs / 10)
    )
    print(f"{run.metrics['test_accuracy']:.1%} of the test images are correctly classified")

    maps = run.explain(n=9, methods=["gradcam"])
    if len(maps):
        maps.grid().savefig(run.path / "mistakes.png")
        print(f"{len(maps)} mistakes, at the layers {', '.join(maps.layers)}: {run.path / 'mistakes.png'}")
    print(f"for other programs: {run.export().path}")


if __name__ == "__main__":
    main()
