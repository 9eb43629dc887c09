"""Quantize on a CPU by the library that this machine's compiler made of mx.cu and rows.cpp: the definition's bits.

A tensor is read once and written once, its rows shared out once among as many threads as torch has. What the library
takes, `supports` says; everything else, and everything where there is no compiler, is done by torch's operations.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from mxsweep.numerics.kernels.cpu_library import LIBRARY
from mxsweep.numerics.kernels.cpu_rows import Asked, measure_rows, quantize_rows
from mxsweep.numerics.kernels.plain_tensors import is_in_memory

_calls = 0


def call_count() -> int:
    """Return how many tensors this process quantized by the library so far."""
    return _calls


def supports(x: Tensor, asked: Asked) -> bool:
    """Return whether the library can quantize x, which is on a CPU, if there is a library."""
    fmt = asked.fmt
    return (
        x.numel() > 0
        and isinstance(fmt.block_size, int)
        and (fmt.rounding != "stochastic" or _draws(x, asked))
        # Rounding toward zero depends on each element's logarithm there.
        and not (asked.is_native and fmt.rounding == "floor" and x.dtype == torch.float32)
        # A product with more than 1 may be beyond float32, of which torch's operations and mx.cu make other things.
        and asked.prescale <= 1.0
        and _is_on_cpu(x)
    )


def supports_measuring(x: Tensor, y: Tensor, asked: Asked) -> bool:
    """Return whether the library can measure what quantizing x to y did, if there is a library."""
    return (
        supports(x, asked)
        # Native arithmetic of other dtypes has quotients of their own, and no prescale.
        and not (asked.is_native and (x.dtype != torch.float32 or asked.prescale != 1.0))
        and y.shape == x.shape
        and y.dtype == x.dtype
        and _is_on_cpu(y)
    )


def quantize_by_library(x: Tensor, asked: Asked) -> Tensor | None:
    """Quantize as `quantize_torch` does; None where that is left to it.

    That is what `supports` does not take, where there is no library, or none yet, and in a thread that makes zeros of
    subnormal numbers (`torch.set_flush_denormal`).
    """
    global _calls
    library = _library(x.numel()) if supports(x, asked) else None
    y = None if library is None else quantize_rows(library, x, asked)
    if y is not None:
        _calls += 1
    return y


def measure_by_library(x: Tensor, y: Tensor, asked: Asked, compares: bool) -> tuple[int, Tensor] | None:
    """Measure as `measure_rows` does; None where that is left to torch's operations."""
    library = _library(0) if supports_measuring(x, y, asked) else None  # to measure alone, none is built
    return None if library is None else measure_rows(library, x, y, asked, compares)


def _library(elements: int) -> ctypes.CDLL | None:
    """Return the library, to quantize so many elements with, if there is one and it can be used in this thread."""
    library = LIBRARY.for_elements(elements)
    return None if library is None or library.mx_flushes() else library


def _draws(x: Tensor, asked: Asked) -> bool:
    """Return whether the library rounds stochastically as is asked.

    Not where that chooses between two scales, nor where blocks lie along another axis than the last: there each element
    would work out what eight share, and torch's operations are as quick.
    """
    along_last = asked.axis % x.ndim == x.ndim - 1
    return asked.draws is not None and along_last and not asked.fmt.four_over_six and not asked.is_native


def _is_on_cpu(x: Tensor) -> bool:
    """Return whether the elements of x are what its memory on the CPU holds."""
    return x.device.type == "cpu" and is_in_memory(x) and not torch.jit.is_tracing()
