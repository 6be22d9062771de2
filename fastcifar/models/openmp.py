"""Compiled kernels on torch's own OpenMP threads.

Those spin for a while before they sleep. Threads of another pool would compete with them for the CPUs, and would have
to be woken for each call.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastcifar.errors import describe

log = logging.getLogger(__name__)


def make_team(kernel: Any, arguments: Sequence[Any]) -> Team | None:
    """None if torch's OpenMP lacks the interface of GNU's, as on macOS and Windows, or Numba has changed."""
    if (openmp := _openmp()) is None:
        return None
    try:
        return Team(kernel, arguments, openmp)
    except Exception as error:  # noqa: BLE001 (`_compile_entry` uses functions of Numba that may change)
        _report(describe(error))
        return None


@functools.cache
def _openmp() -> ctypes.CDLL | None:
    """The library that torch calls: one that is preloaded, or that which it is linked with."""
    for path in (None, Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"):
        with contextlib.suppress(OSError, TypeError):  # Windows has no library of all symbols
            library = ctypes.CDLL(None if path is None else str(path))
            if hasattr(library, "GOMP_parallel"):
                library.GOMP_parallel.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
                return library
    return None


@functools.cache  # once
def _report(problem: str) -> None:
    log.info("layers are slower: their kernels cannot run on the threads of torch (%s)", problem)


class Team:
    """Calls a kernel on torch's threads.

    kernel: compiled by Numba for arguments of these types: contiguous arrays, integers and tuples of integers.
    """

    def __init__(self, kernel: Any, arguments: Sequence[Any], openmp: ctypes.CDLL) -> None:
        self._parallel = openmp.GOMP_parallel
        self._library, self._entry = _compile_entry(kernel, arguments, openmp)

    def __call__(self, arguments: Sequence[Any], slices: Sequence[Sequence[Any]]) -> None:
        """The kernel, once for each slice, with the arguments of all and those of the slice.

        Raises MemoryError if it fails.
        """
        common = _words(arguments)
        words = [len(slices), *(word for each in slices for word in (*common, *_words(each)))]
        memory = np.array(words, np.int64)
        self._parallel(self._entry, memory.ctypes.data, torch.get_num_threads(), 0)
        if memory[0] < 0:
            raise MemoryError("a CPU kernel failed, probably for lack of memory")


def _words(arguments: Sequence[Any]) -> list[int]:
    """What Numba passes for values, in words of 8 bytes; for an array, its `arystruct_t`."""
    words: list[int] = []
    for value in arguments:
        if isinstance(value, np.ndarray):
            words += 0, 0, value.size, value.itemsize, value.ctypes.data, *value.shape, *value.strides
        elif isinstance(value, tuple):
            words += map(int, value)
        else:
            words.append(int(value))
    return words


def _compile_entry(kernel: Any, arguments: Sequence[Any], openmp: ctypes.CDLL) -> tuple[Any, int]:
    """The library and address of the function void(int64_t *) that each thread calls with the words of all slices."""
    from llvmlite import ir
    from numba import typeof
    from numba.core import cgutils
    from numba.core.compiler_lock import global_compiler_lock

    word = ir.IntType(64)
    with global_compiler_lock:
        compiled = kernel.overloads[tuple(map(typeof, arguments))]
        context, about = compiled.target_context, compiled.fndesc
        library = context.codegen().create_library("fastcifar_team")
        module = library.create_ir_module("fastcifar_team")
        name = f"team_{about.mangled_name}"
        entry = ir.Function(module, ir.FunctionType(ir.VoidType(), [word.as_pointer()]), name)
        builder = ir.IRBuilder(entry.append_basic_block())

        def call(function: Any) -> Any:
            address = word(ctypes.cast(function, ctypes.c_void_p).value)
            function_type = ir.FunctionType(ir.IntType(32), [])
            return builder.zext(builder.call(builder.inttoptr(address, function_type.as_pointer()), []), word)

        words = entry.args[0]
        slice_type = ir.LiteralStructType([context.get_value_type(kind) for kind in about.argtypes])
        slices = builder.bitcast(builder.gep(words, [word(1)]), slice_type.as_pointer())
        mine = call(openmp.omp_get_thread_num), builder.load(words), call(openmp.omp_get_num_threads)
        with cgutils.for_range_slice(builder, *mine, word) as (number, _):
            values = builder.load(builder.gep(slices, [number]))
            each = [builder.extract_value(values, index) for index in range(len(about.argtypes))]
            function = context.declare_function(module, about)
            status, _ = context.call_conv.call_function(builder, function, about.restype, about.argtypes, each)
            with builder.if_then(status.is_error):
                builder.store(word(-1), words)
        builder.ret_void()
        library.add_ir_module(module)
        library.finalize()
        return library, library.get_pointer_to_function(name)
