"""A network that is not ours, tried on blank images: does it give logits, which memory layout does it take, and which
of its modules give maps?"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from fastcifar.errors import UsageError, one_line
from fastcifar.models.state import buffers_kept, evaluating, modes_kept, parameters_frozen

NUM_IMAGES = 2
LAYOUTS = (torch.channels_last, torch.contiguous_format)


def try_out(model: nn.Module, name: str, num_classes: int, image_shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Pass images through the network, in both modes; return its stages: of each size of map the deepest module that
    gives it. Lazy modules have their parameters after it, and `place` then chooses a layout that the network takes.

    Raises UsageError if it cannot be trained or kept, or does not give logits.
    """
    if not any(param.requires_grad for param in model.parameters()):
        raise UsageError(f"model {name!r} has no parameters to train; expected at least one")
    height, width, channels = image_shape
    blank = torch.zeros(NUM_IMAGES, channels, height, width, device="cpu", dtype=torch.float32)
    try:
        with torch.random.fork_rng(devices=[]), uncompiled():
            with torch.no_grad(), evaluating(model):
                model(blank)  # lazy modules are initialised now: the copies below need that
            found = _in_a_layout(model, blank)
    except Exception as error:
        reason = one_line(error, 200)
        raise UsageError(f"model {name!r} does not take images of {height}x{width} ({reason})") from error
    for logits in found[:2]:
        if not isinstance(logits, torch.Tensor) or logits.shape != (NUM_IMAGES, num_classes):
            gives = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise UsageError(
                f"model {name!r} gives {gives} for {NUM_IMAGES} images; expected logits, ({NUM_IMAGES}, {num_classes})"
                ", in training and evaluation: wrap it in a module that returns those alone"
            )
    strange = [key for key, value in model.state_dict().items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise UsageError(f"model {name!r} has the state {strange[0]!r}, which is not a tensor; expected tensors alone")
    return found[2]


def _in_a_layout(model: nn.Module, blank: torch.Tensor) -> tuple[object, object, tuple[str, ...]]:
    """What the network gives while training and in evaluation, and its stages, in channels_last if it takes that: it
    is faster, but `view` fails on it, and some modules have no such weights."""
    scripted = isinstance(model, torch.jit.ScriptModule)  # which takes no hooks
    try:
        model.to(memory_format=torch.channels_last)
        return _answers(model, blank.contiguous(memory_format=torch.channels_last))
    except RuntimeError:
        if scripted:
            raise
    model.to(memory_format=torch.contiguous_format)
    found = _answers(model, blank)
    model.register_forward_pre_hook(_contiguous)
    model.needs_contiguous = True  # type: ignore[assignment]
    return found


def _contiguous(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(each.contiguous() if isinstance(each, torch.Tensor) else each for each in inputs)


def _answers(model: nn.Module, images: torch.Tensor) -> tuple[object, object, tuple[str, ...]]:
    with torch.no_grad(), modes_kept(model), buffers_kept(model):
        model.train()
        trained = model(images)
    sizes: dict[str, tuple[int, ...] | None] = {}  # in the order in which the modules gave something last

    def keep(of: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            sizes.pop(of, None)  # a module that is used several times stands for what it gave last
            maps = isinstance(output, torch.Tensor) and output.requires_grad and gives_maps(output, images.shape)
            sizes[of] = tuple(output.shape[2:]) if maps else None

        return hook

    hooks = [
        module.register_forward_hook(keep(of))
        for of, module in model.named_modules()
        if of and not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        with evaluating(model), following(model, images) as followed:
            evaluated = model(followed)
    finally:
        for hook in hooks:
            hook.remove()
    deepest = {size: of for of, size in sizes.items() if size is not None and min(size) > 1}
    return trained, evaluated, tuple(deepest[size] for size in sorted(deepest, reverse=True))


@contextmanager
def following(model: nn.Module, images: torch.Tensor) -> Iterator[torch.Tensor]:
    """In the block, what the network makes of these images, a copy of `images` in float32, carries a gradient, and
    nothing else does: not a weight that a module gives, as parametrizations do."""
    autocast = torch.autocast(images.device.type, enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), autocast, parameters_frozen(model), uncompiled():
        # cloned: a network may change its images in place, which a leaf does not allow
        yield images.detach().to(torch.float32, copy=True).requires_grad_().clone()


def uncompiled() -> AbstractContextManager[Any]:
    """In the block, what torch.compile made runs as it was written, hooks included."""
    if "torch._dynamo" not in sys.modules:  # importing it takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def gives_maps(output: torch.Tensor, shape: tuple[int, ...]) -> bool:
    """Whether this is (N, C, h, w) for images (N, 3, H, W), by N and by h and w being in proportion to theirs: some
    modules give (N, h, w, C), others a weight."""
    num, _, height, width = shape
    if output.ndim != 4 or output.shape[0] != num:
        return False
    return abs(output.shape[2] * width - output.shape[3] * height) <= max(height, width)


def place(model: nn.Module, device: torch.device) -> nn.Module:
    """The network on the device, in channels_last if it takes that."""
    layout = torch.contiguous_format if getattr(model, "needs_contiguous", False) else torch.channels_last
    placed: nn.Module = model.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    return placed


def named_stages(model: nn.Module) -> tuple[str, ...] | None:
    """The modules that the network itself names in `stages`; None where that is something else, or not there."""
    stages = getattr(model, "stages", None)
    known = dict(model.named_modules())
    if not isinstance(stages, (list, tuple)) or not all(isinstance(name, str) and name in known for name in stages):
        return None
    return tuple(stages)
