"""The machine code of the GPU kernels, for six generations of GPUs, without one; and what it lets a GPU reach at most.

    python -m benchmarks.triton_code --json

Triton compiles the kernels of fastcifar.augment ahead of time; cuobjdump and nvdisasm, which come with it, give
registers, local memory (spills) and instructions. The code has no loops, so each instruction runs once.

The rows named `estimate` are no measurements: the images per second of a roofline, the smaller of what memory and what
the instructions allow, with nothing else in the way. Memory: an image is read and written once. Instructions: per clock
and multiprocessor 128 are issued, 64 go through the integer pipe, 64 through that of multiply-add, 32 to memory, 16
are conversions (Volta to Hopper: four partitions of 16 lanes for each of the first two pipes; NVIDIA's Nsight Compute
manual, "Pipelines", and CUDA C++ programming guide, "Arithmetic instructions"). Multiprocessors, boost clock and
bandwidth: NVIDIA's data sheets of T4 and A100 SXM 40 GB, and its H100 architecture paper (SXM5).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.errors import PTXASError
from triton.runtime.jit import JITFunction

from benchmarks import Command, options, row, save_rows, show
from fastcifar.augment import triton_kernel, triton_mixing
from fastcifar.augment.kernel import KernelConfig
from fastcifar.bench.results import environment
from fastcifar.config import AugmentConfig
from fastcifar.errors import UsageError

TARGETS = (75, 80, 86, 90, 100, 120)
SHAPE = (32, 32, 3)
USUAL = AugmentConfig(crop_padding=4, flip=True, cutout_size=8)
EVERYTHING = AugmentConfig(
    crop_padding=4, padding_mode="reflect", rotate_degrees=15.0, hue_shift=10, saturation_shift=20, value_shift=20,
    brightness=20, contrast=0.2, cutout_size=8, cutout_holes=2,
)  # fmt: skip
CASES = {
    "bfloat16": (USUAL, torch.bfloat16, True),
    "float16": (USUAL, torch.float16, True),
    "float32": (USUAL, torch.float32, True),
    "float32, planar": (USUAL, torch.float32, False),
    "uint8": (USUAL, torch.uint8, True),
    "bfloat16, brightness and contrast": (replace(USUAL, brightness=20, contrast=0.2), torch.bfloat16, True),
    "float16, planar, everything": (EVERYTHING, torch.float16, False),
}
"""Crop, flip, one cutout and normalisation; in the last one reflection, rotation, colour and two cutouts."""
MIXING = "mixing"
POINTERS = {"data": "*u8", "offsets": "*i64", "indices": "*i64", "moves": "*i32", "holes": "*i32"}
MIX_POINTERS = {"images": "*fp32", "partners": "*i64", "weights": "*fp32", "boxes": "*i32", "out": "*fp32"}
OUT = {torch.bfloat16: "*u16", torch.float16: "*fp16", torch.float32: "*fp32", torch.uint8: "*u8"}
GPUS = {"T4": (75, 40, 1.59e9, 320e9), "A100": (80, 108, 1.41e9, 1_555e9), "H100": (90, 132, 1.83e9, 3_352e9)}
"""Target, multiprocessors, clock in Hz, bandwidth in bytes/s."""
PER_CLOCK = {"issue": 128, "integer": 64, "multiply-add": 64, "memory": 32, "conversion": 16}
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)
WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
COLUMNS = (
    "name", "target", "registers", "local_bytes", "instructions_per_pixel", "loads", "stores", "images_per_s", "limit",
)  # fmt: skip


def compile_kernel(kernel: Any, pointers: dict[str, str], constexprs: dict[str, Any], target: int) -> Any:
    """Triton's compiled kernel for compute capability `target` (80: 8.0), with the options of a launch.

    pointers: the type of each pointer, which is to a multiple of 16 bytes. What is neither pointer nor constant is a
    float32.
    """
    names = list(kernel.arg_names)
    types = {name: pointers.get(name, "constexpr" if name in constexprs else "fp32") for name in names}
    values = {(names.index(name),): value for name, value in constexprs.items()}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in pointers}
    source = ASTSource(kernel, types, values, aligned)
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options={"enable_fp_fusion": False})


def augmentation(augment: AugmentConfig, dtype: torch.dtype, channels_last: bool, target: int) -> Any:
    """The compiled kernel of a `TritonKernel`."""
    config = KernelConfig(
        image_shape=SHAPE, augment=augment, mean=np.zeros(3), std=np.ones(3), dtype=dtype, channels_last=channels_last
    )
    constexprs = triton_kernel.constexprs_of(config)
    return compile_kernel(triton_kernel._augment, {**POINTERS, "out": OUT[dtype]}, constexprs, target)


def mixing(target: int) -> Any:
    """The compiled kernel of a `TritonMixer`."""
    constexprs = {"H": SHAPE[0], "W": SHAPE[1], "PLANAR": False, "BLOCK": triton_kernel.BLOCK}
    return compile_kernel(triton_mixing._mix, MIX_POINTERS, constexprs, target)


def _tool(name: str, flag: str, path: str) -> str:
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([str(program), flag, path], capture_output=True, text=True, check=True).stdout


def _widths(opcodes: Counter[str], first: str) -> dict[int, int]:
    """Accesses of a thread to global memory by bytes; `first`: LDG or STG."""
    counts: Counter[int] = Counter()
    for opcode, count in opcodes.items():
        name, *suffixes = opcode.split(".")
        if name == first:
            counts[next((WIDTHS[suffix] for suffix in suffixes if suffix in WIDTHS), 4)] += count
    return dict(sorted(counts.items()))


def pipe(opcode: str) -> str:
    """Where an instruction is executed."""
    name = opcode.partition(".")[0]
    if name.startswith(("LD", "ST")):
        return "issue" if name.startswith("LDC") else "memory"
    if name.startswith(("I2F", "F2F", "F2I")):
        return "conversion"
    if name.startswith(("IMAD", "FADD", "FMUL", "FFMA", "HADD", "HFMA")):
        return "multiply-add"
    return "issue" if name.startswith(("U", "S2R", "BRA", "EXIT")) else "integer"


def read_code(compiled: Any) -> dict[str, Any]:
    """What the machine code of a compiled kernel says, per thread where not said otherwise."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        opcodes = Counter(INSTRUCTION.findall(_tool("nvdisasm", "-c", file.name)))
    opcodes = Counter({opcode: count for opcode, count in opcodes.items() if opcode != "NOP"})  # padding
    branches = (
        sum(count for opcode, count in opcodes.items() if opcode.startswith("BRA")) - 1
    )  # the last one is padding
    used = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", usage)}
    local = sum(count for opcode, count in opcodes.items() if opcode.startswith(("LDL", "STL")))
    values = triton_kernel.BLOCK // (32 * compiled.metadata.num_warps)
    pipes: Counter[str] = Counter()
    for opcode, count in opcodes.items():
        pipes[pipe(opcode)] += count
    pipes["issue"] = sum(pipes.values()) - 1
    return {
        "registers": used["REG"],
        "local_bytes": used["STACK"] + used["LOCAL"],
        "local_accesses": local,
        "shared_bytes": used["SHARED"],
        "values": values,
        "instructions": pipes["issue"],
        "instructions_per_pixel": round(3 * pipes["issue"] / values, 1),
        "loads": _widths(opcodes, "LDG"),
        "stores": _widths(opcodes, "STG"),
        "branches": branches,
        "pipes": dict(sorted(pipes.items())),
    }


def estimate(gpu: str, code: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The roofline of a kernel for 32x32 images: images per second at most, and the limit that is reached first."""
    _, multiprocessors, clock, bandwidth = GPUS[gpu]
    pixels = SHAPE[0] * SHAPE[1]
    threads = pixels * 3 / code["values"]
    limits = {
        name: multiprocessors * clock * PER_CLOCK[name] / (threads * count) for name, count in code["pipes"].items()
    }
    limits["bandwidth"] = bandwidth / (pixels * 3 * (1 + dtype.itemsize))
    name = min(limits, key=lambda limit: limits[limit])
    millions = {f"{limit}_millions": round(value / 1e6) for limit, value in limits.items()}
    return {"images_per_s": round(limits[name], -6), "limit": name, **millions}


def rows_of(name: str, target: int) -> list[dict[str, Any]]:
    """The code of one kernel for one target, and the estimates for its GPUs."""
    compiled = mixing(target) if name == MIXING else augmentation(*CASES[name], target)
    code = read_code(compiled) | {"fused_multiply_adds": compiled.asm["ptx"].count("fma.rn.f32")}
    rows = [row(name, target=f"sm_{target}", **code)]
    if name == MIXING or CASES[name][0] is not USUAL:
        return rows
    for gpu, (capability, *_) in GPUS.items():
        if capability == target:
            rows.append(row(f"estimate, {gpu}: {name}", target=f"sm_{target}", **estimate(gpu, code, CASES[name][1])))
    return rows


@click.command(cls=Command)
@click.option(
    "--target",
    "targets",
    multiple=True,
    type=click.IntRange(min(TARGETS)),
    default=TARGETS,
    help="Compute capability, e.g. 80.",
)
@click.option(
    "--case", "cases", multiple=True, type=click.Choice([*CASES, MIXING]), default=[*CASES, MIXING], help="What to do."
)
@options()
def main(targets: tuple[int, ...], cases: tuple[str, ...], save: bool, as_json: bool) -> None:
    """Registers, instructions and memory accesses of the compiled kernels."""
    if not isinstance(triton_kernel._augment, JITFunction):
        raise UsageError("TRITON_INTERPRET is set, which replaces the compiler; unset it")
    try:
        rows = [row for target in targets for name in cases for row in rows_of(name, target)]
    except PTXASError as error:
        raise UsageError(f"--target: Triton cannot compile for one of {', '.join(map(str, targets))}") from error
    show(rows, COLUMNS, as_json)
    if save:
        save_rows(__file__, rows, environment(f"no images; kernels for {SHAPE[0]}x{SHAPE[1]}"))


if __name__ == "__main__":
    main()
