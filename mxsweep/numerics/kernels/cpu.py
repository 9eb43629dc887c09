"""Quantize on a CPU by the library that this machine's compiler made of mx.cu and rows.cpp: the definition's bits.

A tensor is read once and written once, its rows shared out once among as many threads as torch has. What the library
takes, `supports` says; everything else, and everything where there is no compiler, is done by torch's operations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.kernels.compile import is_plain
from mxsweep.numerics.kernels.cpu_library import LIBRARY
from mxsweep.numerics.kernels.cpu_rows import is_native, quantize_rows

_calls = 0


def call_count() -> int:
    """Return how many tensors this process quantized by the library so far."""
    return _calls


def supports(x: Tensor, fmt: MXFormat, arithmetic: str, prescale: float = 1.0) -> bool:
    """Return whether the library can quantize x, which is on a CPU, if there is a library."""
    return (
        x.device.type == "cpu"
        and x.numel() > 0
        and isinstance(fmt.block_size, int)
        and fmt.rounding != "stochastic"
        # Rounding toward zero depends on each element's logarithm there.
        and not (is_native(fmt, arithmetic) and fmt.rounding == "floor" and x.dtype == torch.float32)
        # A product with more than 1 may be beyond float32, of which torch's operations and mx.cu make other things.
        and prescale <= 1.0
        and is_plain(x)
        and x.layout == torch.strided
        and not x.is_neg()
        and not torch.jit.is_tracing()
    )


def quantize_by_library(
    x: Tensor,
    fmt: MXFormat,
    axis: int,
    arithmetic: str,
    tensor_dims: Sequence[int] | None,
    tensor_amax: Tensor | None = None,
    prescale: float = 1.0,
) -> Tensor | None:
    """Quantize as `quantize_torch` does; None where that is left to it.

    That is what `supports` does not take, where there is no library, or none yet, and in a thread that makes zeros of
    subnormal numbers (`torch.set_flush_denormal`).

    Args:
        prescale: as for `quantize_rescaled`, in exact arithmetic.
    """
    global _calls
    if not supports(x, fmt, arithmetic, prescale):
        return None
    library = LIBRARY.for_elements(x.numel())
    if library is None or library.mx_flushes():
        return None
    y = quantize_rows(library, x, fmt, axis, arithmetic, tensor_dims, tensor_amax, prescale)
    if y is not None:
        _calls += 1
    return y
