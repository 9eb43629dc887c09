"""Quantize on a CPU by the library that this machine's compiler made of mx.cu and rows.cpp: the definition's bits.

A tensor is read once and written once, its rows shared out once among as many threads as torch has. What the library
takes, `supports` says; everything else, and everything where there is no compiler, is done by torch's operations.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.kernels.compile import is_plain
from mxsweep.numerics.kernels.cpu_library import LIBRARY
from mxsweep.numerics.kernels.native_tables import NativeTables, native_tables
from mxsweep.numerics.kernels.source import STORAGE, flat_fields, format_fields
from mxsweep.numerics.piece_threads import in_threads
from mxsweep.numerics.reference.definition import tensor_scale_over, without_inf
from mxsweep.numerics.wanted_exponents import kept_exponents

_TOGETHER = 2**14  # elements that a thread takes at once
# There are at least so many elements for each thread that wakes up. Fewer are quantized in half a millisecond, while a
# thread may wait many times that for its turn on a busy core.
_LEAST_FOR_THREADS = 2**19

_calls = 0


def call_count() -> int:
    """Return how many tensors this process quantized by the library so far."""
    return _calls


def supports(x: Tensor, fmt: MXFormat, arithmetic: str) -> bool:
    """Return whether the library can quantize x, which is on a CPU, if there is a library."""
    return (
        x.device.type == "cpu"
        and x.numel() > 0
        and isinstance(fmt.block_size, int)
        and fmt.rounding != "stochastic"
        # Rounding toward zero depends on each element's logarithm there.
        and not (_is_native(fmt, arithmetic) and fmt.rounding == "floor" and x.dtype == torch.float32)
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
    """Quantize what `supports` takes, as `quantize_torch` does; None where there is no library, or none yet.

    None, too, in a thread that makes zeros of subnormal numbers (`torch.set_flush_denormal`).

    Args:
        prescale: as for `quantize_rescaled`, in exact arithmetic.
    """
    global _calls
    library = LIBRARY.for_elements(x.numel())
    if library is None or library.mx_flushes():
        return None
    tables = None
    if _is_native(fmt, arithmetic):
        tables = native_tables(fmt, x.dtype)
        if tables is None:
            return None
    x = without_inf(x, fmt)
    rows = x.movedim(axis, -1).contiguous()
    scales = None
    if fmt.tensor_scale:
        scales = tensor_scale_over(x, fmt, tensor_dims, tensor_amax).movedim(axis, -1)
        scales = scales.expand(*rows.shape[:-1], 1).contiguous()
    y = torch.empty_like(x)
    along = y.movedim(axis, -1)
    results = along if along.is_contiguous() else torch.empty_like(rows)
    _quantize_rows(library, rows, results, scales, fmt, prescale, tables)
    _calls += 1
    if results is not along:
        along.copy_(results)
    return y


def _is_native(fmt: MXFormat, arithmetic: str) -> bool:
    return arithmetic == "native" and fmt.has_native_arithmetic


class _Job(ctypes.Structure):
    """Hold rows.cpp's `Job`."""

    _fields_ = [
        ("x", ctypes.c_void_p), ("y", ctypes.c_void_p), ("rows", ctypes.c_int64), ("length", ctypes.c_int64),
        ("block", ctypes.c_int64), ("tensor_scales", ctypes.c_void_p), ("format", ctypes.c_void_p),
        ("native", ctypes.c_void_p), ("storage", ctypes.c_int64), ("together", ctypes.c_int64),
        ("next", ctypes.c_int64),
    ]  # fmt: skip


def _quantize_rows(
    library: ctypes.CDLL,
    x: Tensor,
    y: Tensor,
    scales: Tensor | None,
    fmt: MXFormat,
    prescale: float,
    tables: NativeTables | None,
) -> None:
    """Write to y what the rows of x become; both are contiguous, and `scales` has one for each row."""
    length = x.shape[-1]
    block = min(int(fmt.block_size), length) or length  # type: ignore[arg-type]
    if scales is None and length % block == 0:
        length = block  # so that there are rows to share out
    job = _Job(
        x.data_ptr(), y.data_ptr(), x.numel() // length, length, block, 0 if scales is None else scales.data_ptr(),
        ctypes.addressof(_format(fmt, x.dtype, prescale)), None if tables is None else tables.address,
        int(STORAGE[x.dtype]), max(1, _TOGETHER // length), 0,
    )  # fmt: skip
    spans: list[Any] = []

    def work() -> None:
        span = (ctypes.c_float * 2)(torch.inf, -torch.inf)
        if library.mx_quantize_rows(ctypes.addressof(job), ctypes.addressof(span)):
            spans.append(span)

    in_threads(work, min(torch.get_num_threads(), x.numel() // _LEAST_FOR_THREADS))
    kept = kept_exponents()
    if kept is not None and fmt.scale_format.is_power_of_two:
        lows, highs = zip(*spans, strict=True)
        kept.note_range(torch.tensor(min(lows)), torch.tensor(max(highs)))


@functools.lru_cache(maxsize=256)
def _format(fmt: MXFormat, dtype: torch.dtype, prescale: float) -> ctypes.Structure:
    """Return mx.cu's `Format` in memory."""
    kinds: dict[type, Any] = {bool: ctypes.c_bool, float: ctypes.c_float}
    values = list(flat_fields(format_fields(fmt, dtype, prescale)))

    class Format(ctypes.Structure):
        _fields_ = [(f"field_{i}", kinds.get(type(value), ctypes.c_int)) for i, value in enumerate(values)]

    return Format(*values)
