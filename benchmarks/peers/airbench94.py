"""airbench's training, `airbench94_muon.py` of a checkout of cifar10-airbench, adapted to the device.

On a CPU it gets what our own training gets: float32 weights, bf16 autocast, an allocator that keeps freed memory. What
it computes stays as it is. Run as a program it prints a JSON object with train_seconds, test_accuracy, tta_accuracy.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from fastcifar import open_beton
from fastcifar.training.device import autocast, choose_amp, keep_freed_memory

FOR_A_CPU = (
    ("@torch.compile\n", ""),
    ('torch.device("cuda")', 'torch.device("cpu")'),
    ("(self.images.half() / 255)", "(self.images.float() / 255)"),
    ("mod.half()", "mod.float()"),
)


class _Clock:
    """`torch.cuda.Event`, by the wall clock."""

    def __init__(self, enable_timing: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: _Clock) -> float:
        return 1e3 * (end.at - self.at)


def run(checkout: Path, data_dir: Path, device: torch.device, seed: int) -> dict[str, Any]:
    """Train once."""
    script = checkout / "airbench94_muon.py"
    source, _, program = script.read_text(encoding="utf-8").partition('if __name__ == "__main__":')
    assert program, f"{script} has no main program"
    if device.type == "cpu":
        keep_freed_memory()
        for original, replacement in FOR_A_CPU:
            assert original in source, f"{script} has changed: it has no {original!r} any more"
            source = source.replace(original, replacement)
        torch.cuda.Event, torch.cuda.synchronize = _Clock, lambda: None  # type: ignore[assignment,misc]
    _lay_out(data_dir)
    names: dict[str, Any] = {"__name__": "airbench94_muon"}
    sys.argv = [str(script)]
    exec(compile(source, str(script), "exec"), names)
    results: list[dict[str, Any]] = []

    def record(variables: dict[str, Any], is_final_entry: bool) -> None:
        results.append({key: variables[key] for key in ("time_seconds", "val_acc", "tta_val_acc") if key in variables})
        print(results[-1], file=sys.stderr, flush=True)

    names["print_training_details"] = record
    amp = choose_amp(device, "auto")
    forward = names["CifarNet"].forward

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
        results.clear()
    names["main"](0, model)
    trained, scored = results[-2], results[-1]
    return {
        "train_seconds": trained["time_seconds"],
        "test_accuracy": trained["val_acc"],
        "tta_accuracy": scored["tta_val_acc"],
    }


def _lay_out(data_dir: Path) -> None:
    """Write the images where airbench looks for them."""
    os.makedirs("cifar10", exist_ok=True)
    for name in ("train", "test"):
        beton = open_beton(data_dir / f"{name}.beton", in_memory=True)
        images = torch.from_numpy(beton.images(range(len(beton))))
        labels = torch.from_numpy(beton.labels.copy())
        stored = {"images": images, "labels": labels, "classes": list(beton.class_names)}
        torch.save(stored, Path("cifar10") / f"{name}.pt")


if __name__ == "__main__":
    checkout, data_dir, device, seed = sys.argv[1:]
    paths = Path(checkout).resolve(), Path(data_dir).resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        print(json.dumps(run(*paths, torch.device(device), int(seed))))
        os.chdir("/")
