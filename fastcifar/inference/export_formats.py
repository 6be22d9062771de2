"""The file formats of `export`: an exported program as the content of a file, and a file as a function of images."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastcifar.errors import FastcifarError, MissingExtraError, UsageError, describe
from fastcifar.inference.export_graph import describe_onnx_error, quiet

Classify = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""(N, H, W, 3) uint8 -> (N, C) float32 probabilities."""
INPUT, OUTPUT = "images", "probabilities"
OPSET = 20
"""The first opset with Gelu."""
MAX_ONNX_BYTES = 2_000_000_000
"""Of weights: an ONNX file is one message of Protocol Buffers, of less than 2 GiB."""
METADATA_FILE = "metadata.json"


@dataclass(frozen=True)
class Format:
    """A file format."""

    suffix: str
    require: Callable[[], None]
    """Raises MissingExtraError if a package is missing."""
    content: Callable[[torch.export.ExportedProgram, dict[str, str]], bytes]
    """The content of a file, with metadata. Raises FastcifarError if the program has no equivalent."""
    load: Callable[[Path], Classify]
    """Read a file."""


def _require_onnx() -> None:
    try:
        with quiet():
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("--format onnx", "export", describe(error)) from error


def _onnx_content(program: torch.export.ExportedProgram, metadata: dict[str, str]) -> bytes:
    import onnx

    num_bytes = sum(tensor.nbytes for tensor in program.state_dict.values())
    if num_bytes > MAX_ONNX_BYTES:
        raise UsageError(
            f"the weights take {num_bytes / 2**30:.1f} GiB; expected less than 2 GiB for one ONNX file; "
            "use --format torch"
        )
    try:
        with quiet():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                verbose=False,
            )
            assert exported is not None
            model = exported.model_proto
            _remove_notes(model.graph)
            onnx.helper.set_model_props(model, metadata)
            onnx.checker.check_model(model, full_check=True)
            return model.SerializeToString(deterministic=True)
    except Exception as error:  # torch, onnxscript and onnx raise many types
        raise FastcifarError(
            f"the network cannot be exported to ONNX: {describe_onnx_error(error)}; use --format torch"
        ) from error


def _remove_notes(graph: Any) -> None:
    """Remove what the exporter notes about its work: half of the size of a small network."""
    graph.ClearField("metadata_props")
    for field in (graph.node, graph.input, graph.output, graph.value_info, graph.initializer):
        for each in field:
            each.ClearField("metadata_props")
            each.ClearField("doc_string")
    for node in graph.node:
        for attribute in node.attribute:
            for subgraph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                _remove_notes(subgraph)


def _load_onnx(path: Path) -> Classify:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # fatal: errors are raised
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises types of its own
        raise FastcifarError(
            f"onnxruntime cannot load the network: {describe(error, 300)}; use --format torch"
        ) from error

    def classify(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        (probabilities,) = session.run([OUTPUT], {INPUT: images})
        return probabilities

    return classify


def _torch_content(program: torch.export.ExportedProgram, metadata: dict[str, str]) -> bytes:
    file = io.BytesIO()
    with quiet():
        torch.export.save(program, file, extra_files={METADATA_FILE: json.dumps(metadata, ensure_ascii=False)})
    return file.getvalue()


def _load_torch(path: Path) -> Classify:
    with quiet(), path.open("rb") as file:
        network = torch.export.load(file).module()

    def classify(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            return network(torch.from_numpy(images)).numpy()

    return classify


FORMATS = {
    "onnx": Format(".onnx", _require_onnx, _onnx_content, _load_onnx),
    "torch": Format(".pt2", lambda: None, _torch_content, _load_torch),
}
