"""Layers of any network, by their order in `named_modules()`: the last one, and those before a layer, frozen."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from torch import nn

from fastcifar.errors import UsageError
from fastcifar.io.checks import format_choices, shown

MATRIX_LAYERS = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
"""Layers that multiply by a matrix."""


@dataclass(frozen=True, kw_only=True)
class FrozenPart:
    """What `freeze_until` froze."""

    layer: str
    """The first layer that is trained."""
    num_parameters: int
    modules: tuple[str, ...]
    """Those with parameters or buffers of their own: they stay in evaluation mode."""


def last_layer(model: nn.Module) -> str | None:
    """The name of the last linear, convolution or attention layer; None if there is none, as in a scripted module."""
    names = [name for name, module in model.named_modules() if isinstance(module, MATRIX_LAYERS)]
    return names[-1] if names else None


def freeze_until(model: nn.Module, layer: str, name: str) -> FrozenPart:
    """Freeze all parameters that come before those of the module `layer`, which is also stored in the network.

    'head' is the last linear or convolution layer where no module has that name. From here on use `train_mode` in place
    of `model.train()`: it keeps the statistics of frozen normalisation layers. name: of the network, for messages.
    Raises UsageError if there is no such module, nothing before it, or nothing to train from there on.
    """
    modules = {module_name: module for module_name, module in model.named_modules() if module_name}
    if layer == "head" and layer not in modules:
        layer = last_layer(model) or layer
    if layer not in modules:
        known = [child for child, module in model.named_children() if any(True for _ in module.parameters())]
        near = difflib.get_close_matches(layer, modules, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(
            f"freeze_until is {shown(layer)}; expected a layer of {name}: {format_choices(known, layer)}, or one in "
            f"them{hint}"
        )
    names = list(modules)
    before, after = names[: names.index(layer)], names[names.index(layer) :]
    ancestors = {parent for parent in before if layer.startswith(f"{parent}.")}
    trained = {param for later in after for param in modules[later].parameters(recurse=False)}
    earlier = [model, *(modules[each] for each in before)]
    frozen = {param for module in earlier for param in module.parameters(recurse=False)} - trained
    if not frozen:
        raise UsageError(f"freeze_until is {layer!r}, and {name} has no parameters before it; expected a later layer")
    if not any(param.requires_grad for param in trained):
        raise UsageError(
            f"freeze_until is {layer!r}, and {name} has nothing to train from there on; expected an earlier layer"
        )
    with_state = [each for each in before if each not in ancestors and _has_state(modules[each])]
    num_parameters = sum(param.numel() for param in frozen if param.requires_grad)
    for param in frozen:
        param.requires_grad_(False)
    part = FrozenPart(layer=layer, num_parameters=num_parameters, modules=tuple(with_state))
    model.frozen_part = part  # type: ignore[assignment]
    return part


def frozen_part(model: nn.Module) -> FrozenPart | None:
    """What `freeze_until` froze in the network; None if nothing."""
    part = getattr(model, "frozen_part", None)
    return part if isinstance(part, FrozenPart) else None


def train_mode(model: nn.Module) -> None:
    """Set training mode, in which the frozen part keeps its running statistics; its dropout layers drop."""
    model.train()
    part = frozen_part(model)
    for name in () if part is None else part.modules:
        model.get_submodule(name).training = False


def _has_state(module: nn.Module) -> bool:
    """Whether it has parameters or buffers of its own."""
    return any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False)))
