"""The graph of `export`: from uint8 images as stored to probabilities; and why a network has none, in one line."""

from __future__ import annotations

import io
import logging
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import numpy as np
import torch
from torch import nn

from fastcifar.augment.kernel import normalisation
from fastcifar.errors import FastcifarError, describe
from fastcifar.models.state import uncompiled
from fastcifar.training.weights import DatasetInfo

NUM_EXAMPLES = 2
"""Images of the example to trace: torch.export takes a batch of 1 for a constant."""
MAX_REASON = 200


class Classifier(nn.Module):
    """A network with what is before and after it: (N, H, W, 3) uint8 -> (N, C) float32 probabilities."""

    mean: torch.Tensor
    inv_std: torch.Tensor

    def __init__(self, network: nn.Module, info: DatasetInfo, temperature: float | None) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature
        for name, values in zip(
            ("mean", "inv_std"), normalisation(np.array(info.mean), np.array(info.std)), strict=True
        ):
            self.register_buffer(name, torch.from_numpy(values).reshape(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = images.permute(0, 3, 1, 2).to(torch.float32)  # (N, H, W, 3) uint8 -> (N, 3, H, W) float32
        logits = self.network((pixels - self.mean) * self.inv_std).to(torch.float32)
        return torch.softmax(logits if self.temperature is None else logits / self.temperature, dim=1)


def export_graph(network: nn.Module, info: DatasetInfo, temperature: float | None) -> torch.export.ExportedProgram:
    """The graph of `Classifier`, for any number of images. network: on the CPU, in evaluation mode.

    Raises FastcifarError if torch.export cannot follow the code of the network.
    """
    for name, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise FastcifarError(
                f"the network cannot be exported: {f'its layer {name!r}' if name else 'it'} is scripted "
                "(torch.jit), which torch.export does not read; expected a module in Python"
            )
    classifier = Classifier(network, info, temperature).eval()
    height, width, _ = info.image_shape
    images = torch.zeros(NUM_EXAMPLES, height, width, 3, dtype=torch.uint8)
    failure: Exception | None = None
    for strict in (False, True):  # the second understands len(images), and takes longer
        try:
            with quiet(), uncompiled(), torch.no_grad():
                program = torch.export.export(
                    classifier, (images,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}}, strict=strict
                )
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # paths on this machine
            return program
        except Exception as error:  # noqa: BLE001 (the code of the network can raise anything)
            failure = failure or error
    assert failure is not None
    raise FastcifarError(f"the network cannot be exported: {_describe_failure(failure, network)}") from failure


def _describe_failure(error: Exception, network: nn.Module) -> str:
    where = _layer_at(error, network)
    if "Constraints violated" in str(error):
        return "its code takes the number of images of a batch for a constant, or depends on it; expected code for any"
    if "data-dependent" in str(error):
        return f"its code depends on values of the images{where}; use operations on tensors, e.g. torch.where"
    return f"{describe(error, MAX_REASON).removesuffix('.')}{where}"


def _layer_at(error: BaseException, network: nn.Module) -> str:
    """The deepest layer of the network whose code raised the error, in words; empty if it was not in a layer."""
    names = {id(module): name for name, module in network.named_modules()}
    inside = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    layers = [module for module in inside if id(module) in names]
    return _layer(names[id(layers[-1])], type(layers[-1]).__name__) if layers else ""


def describe_onnx_error(error: BaseException) -> str:
    """Which operation has no translation to ONNX, and in which layer; else the first cause of the error."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    frames = [frame for cause in causes for frame, _ in traceback.walk_tb(cause.__traceback__)]
    nodes = [node for frame in frames if isinstance(node := frame.f_locals.get("node"), torch.fx.Node)]
    if not nodes:
        return describe(causes[-1], MAX_REASON)
    node, where = nodes[-1], ""
    if stack := node.meta.get("nn_module_stack"):
        name, kind = list(stack.values())[-1]
        where = _layer(name.removeprefix("network").removeprefix("."), str(kind).rpartition(".")[2])
    return f"no translation of {str(node.target).removesuffix('.default')}{where}"


def _layer(name: str, kind: str) -> str:
    return f" in layer {name!r} ({kind})" if name else f" in {kind}"


@contextmanager
def quiet() -> Iterator[None]:
    """In the block nothing is logged, warned of or printed: the exporters of torch and onnxscript do all of it."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
