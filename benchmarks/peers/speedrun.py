"""Two scripts that train to 94% on one GPU, adapted to the device: `airbench94_muon.py` of a checkout of
KellerJordan/cifar10-airbench, and `cifar10_speedrun.py` of one of hiverge/cifar10-speedrun.

On a CPU they get what our own training gets: float32 weights, bf16 autocast and products where the CPU is fast at them,
an allocator that keeps freed memory. What they compute stays as it is. Run as a program: speedrun CHECKOUT DATA_DIR
DEVICE SEED, where CHECKOUT may be the path of one of the scripts; prints a JSON object with train_seconds (without any
evaluation), test_accuracy, tta_accuracy.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks import Command
from fastcifar import open_beton
from fastcifar.errors import UsageError
from fastcifar.loaders.base import usable_device
from fastcifar.training.device import autocast, choose_amp, has_fast_bf16, keep_freed_memory

SCRIPTS = {
    "airbench94_muon.py": ('torch.device("cuda")', "(self.images.half() / 255)", "mod.half()"),
    "cifar10_speedrun.py": (
        'torch.device("cuda")',
        'device="cuda"',
        "(self.images.half() / 255)",
        "mod.half()",
        "dtype=torch.half",
        "== torch.half",
        '["momentum_buffer_dtype"] = torch.half',
        ".pin_memory()",
        "X = torch.stack(grad_list)\n",
    ),
}
"""What of each script is for a GPU alone, with the names in it that FOR_A_CPU replaces."""
FOR_A_CPU = (
    ("cuda", "cpu"),
    (".half()", ".float()"),
    ("torch.half", "torch.float"),
    (".pin_memory()", ""),
    ("torch.stack(grad_list)", "torch.stack(grad_list).bfloat16()"),  # as airbench: products of bfloat16
)


class _Clock:
    """`torch.cuda.Event`, by the wall clock."""

    def __init__(self, enable_timing: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: _Clock) -> float:
        return 1e3 * (end.at - self.at)


def script_of(checkout: Path) -> Path:
    """The script of a checkout, or the script itself. Raises UsageError if it is not one of these two repositories."""
    for path in (checkout, *(checkout / name for name in SCRIPTS)):
        if path.name in SCRIPTS and path.is_file():
            return path
    raise UsageError(f"{checkout}: has none of {', '.join(SCRIPTS)}")


def source_of(script: Path, device: torch.device) -> str:
    """The script without its main program, with the types and the memory of the device. Raises UsageError if it has
    changed."""
    source, _, program = script.read_text(encoding="utf-8").partition('if __name__ == "__main__":')
    if not program:
        raise UsageError(f"{script} has changed: it has no main program")
    if device.type == "cpu":
        for original in SCRIPTS[script.name]:
            if original not in source:
                raise UsageError(f"{script} has changed: it has no {original!r} any more")
            replacement = original
            for name, other in FOR_A_CPU:
                replacement = replacement.replace(name, other)
            source = source.replace(original, replacement)
        if not has_fast_bf16(device):
            source = source.replace(".bfloat16()", "")
    return source


def _uncompiled(function: Any = None, **_: Any) -> Any:
    """`torch.compile`, as a decorator with or without arguments, that compiles nothing."""
    return (lambda function: function) if function is None else function


def run(script: Path, data_dir: Path, device: torch.device, seed: int) -> dict[str, Any]:
    """Train once, in the working directory."""
    source = source_of(script, device)
    if device.type == "cpu":
        keep_freed_memory()
        torch.cuda.Event, torch.cuda.synchronize = _Clock, lambda: None  # type: ignore[assignment,misc]
        torch.compile = _uncompiled
    _lay_out(data_dir)
    names: dict[str, Any] = {"__name__": script.stem}
    sys.argv = [str(script)]
    exec(compile(source, str(script), "exec"), names)
    rows: list[dict[str, Any]] = []

    def record(variables: dict[str, Any], is_final_entry: bool) -> None:
        rows.append({key: variables[key] for key in ("time_seconds", "val_acc", "tta_val_acc") if key in variables})
        print(script.stem, rows[-1], file=sys.stderr, flush=True)

    names["print_training_details"] = record
    evaluation = _Stopwatch(names["evaluate"], device)
    names["evaluate"] = evaluation
    amp, forward = choose_amp(device, "auto"), names["CifarNet"].forward

    def with_autocast(self: Any, *args: Any, **more: Any) -> torch.Tensor:
        with autocast(device, amp):
            return forward(self, *args, **more).float()

    if device.type == "cpu":
        names["CifarNet"].forward = with_autocast
    torch.manual_seed(seed)
    model = names["CifarNet"]().to(device).to(memory_format=torch.channels_last)
    if device.type == "cuda":
        model.compile(mode="max-autotune")
        names["main"]("warmup", model)
    evaluation.seconds = 0.0
    names["main"](0, model)
    return {
        # both end their clock after the evaluation with test-time augmentation
        "train_seconds": rows[-1]["time_seconds"] - evaluation.seconds,
        "test_accuracy": rows[-1]["val_acc"],
        "tta_accuracy": rows[-1]["tta_val_acc"],
    }


class _Stopwatch:
    """`evaluate` of a script, which adds up the seconds of its calls with test-time augmentation."""

    def __init__(self, evaluate: Callable[..., float], device: torch.device) -> None:
        self._evaluate, self._device, self.seconds = evaluate, device, 0.0

    def __call__(self, *args: Any, tta_level: int) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()  # what is queued belongs to the training
        begin = time.perf_counter()
        accuracy = self._evaluate(*args, tta_level=tta_level)
        if tta_level:
            self.seconds += time.perf_counter() - begin
        return accuracy


def _lay_out(data_dir: Path) -> None:
    """Write the images where the scripts look for them."""
    os.makedirs("cifar10", exist_ok=True)
    for name in ("train", "test"):
        beton = open_beton(data_dir / f"{name}.beton", in_memory=True)
        images = torch.from_numpy(beton.images(range(len(beton))))
        labels = torch.from_numpy(beton.labels.copy())
        stored = {"images": images, "labels": labels, "classes": list(beton.class_names)}
        torch.save(stored, Path("cifar10") / f"{name}.pt")


@click.command(cls=Command)
@click.argument("checkout", type=click.Path(exists=True, resolve_path=True, path_type=Path))
@click.argument("data_dir", type=click.Path(resolve_path=True, path_type=Path))
@click.argument("device")
@click.argument("seed", type=int)
def main(checkout: Path, data_dir: Path, device: str, seed: int) -> None:
    """Train a script of others once."""
    script = script_of(checkout)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        click.echo(json.dumps(run(script, data_dir, usable_device(device), seed)))
        os.chdir("/")


if __name__ == "__main__":
    main()
