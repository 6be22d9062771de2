"""`fastcifar doctor`: versions, device, loaders, and how to install what is missing."""

from __future__ import annotations

from typing import Any

import click

from fastcifar.cli import options
from fastcifar.cli.command import Command

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "matplotlib", "ffcv", "numba", "albumentations")


@click.command(cls=Command, short_help="Show versions, device and loaders, and what is missing.")
@options.as_json
def doctor(as_json: bool) -> None:
    """Show versions, device and loaders, and the commands that install what is missing."""
    import json

    from fastcifar.cli.output import command_line, show_next, table

    facts = _collect_facts()
    if as_json:
        click.echo(json.dumps(facts))
        return
    rows = [(name, version or "not installed") for name, version in facts["versions"].items()]
    rows += [
        ("processor", f"{facts['processor']}, {facts['num_threads']} threads"),
        ("device", facts["device"] + (", bf16 autocast" if facts["fast_bf16"] else ", float32")),
        ("memory free", f"{facts['free_memory'] / 2**30:.1f} GiB"),
    ]
    states = {f"loader {name}": state for name, state in facts["loaders"].items()} | {"JPEG betons": facts["jpeg"]}
    rows += [(name, "works" if state["works"] else state["reason"]) for name, state in states.items()]
    click.echo(table(rows))
    show_next(command_line("fastcifar", "convert"))


def _collect_facts() -> dict[str, Any]:
    import platform
    from importlib import metadata

    import torch

    from fastcifar import __version__
    from fastcifar.config import LOADERS
    from fastcifar.loaders import missing_part
    from fastcifar.loaders.base import free_memory
    from fastcifar.system.cpus import cpu_name
    from fastcifar.training.device import choose_device, has_fast_bf16

    versions: dict[str, str | None] = {"fastcifar": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    device = choose_device("auto")

    def state(*part: str) -> dict[str, Any]:
        problem = missing_part(*part)
        return {"works": problem is None, "reason": str(problem or "")}

    return {
        "versions": versions,
        "processor": cpu_name(),
        "num_threads": torch.get_num_threads(),
        "device": f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device),
        "fast_bf16": has_fast_bf16(device),
        "free_memory": free_memory(device),
        "loaders": {name: state(name) for name in LOADERS if name != "auto"},
        "jpeg": state("ffcv", "jpeg"),
    }
