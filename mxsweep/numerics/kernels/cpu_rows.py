"""Call the library of cpu_library.py: share out a tensor's rows to threads, which quantize them.

This is asked of a library that is given, so that one can be tried before it is used (cpu_check.py).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.kernels.native_tables import NativeTables, native_tables
from mxsweep.numerics.kernels.source import STORAGE, flat_fields, format_fields
from mxsweep.numerics.piece_threads import in_threads
from mxsweep.numerics.reference.definition import tensor_scale_over, without_inf
from mxsweep.numerics.wanted_exponents import kept_exponents

_TOGETHER = 2**14  # elements that a thread takes at once
# There are at least so many elements for each thread that wakes up. Fewer are quantized in half a millisecond, while a
# thread may wait many times that for its turn on a busy core.
_LEAST_FOR_THREADS = 2**19


def is_native(fmt: MXFormat, arithmetic: str) -> bool:
    """Return whether a format has another arithmetic than exact, and that is asked for."""
    return arithmetic == "native" and fmt.has_native_arithmetic


def quantize_rows(
    library: ctypes.CDLL,
    x: Tensor,
    fmt: MXFormat,
    axis: int,
    arithmetic: str,
    tensor_dims: Sequence[int] | None,
    tensor_amax: Tensor | None = None,
    prescale: float = 1.0,
) -> Tensor | None:
    """Quantize what cpu.py's `supports` takes by a library; None where torch's logarithm is not as it has it."""
    tables = None
    if is_native(fmt, arithmetic):
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
    _write_rows(library, rows, results, scales, fmt, prescale, tables)
    if results is not along:
        along.copy_(results)
    return y


class _Job(ctypes.Structure):
    """Hold rows.cpp's `Job`."""

    _fields_ = [
        ("x", ctypes.c_void_p), ("y", ctypes.c_void_p), ("rows", ctypes.c_int64), ("length", ctypes.c_int64),
        ("block", ctypes.c_int64), ("tensor_scales", ctypes.c_void_p), ("format", ctypes.c_void_p),
        ("native", ctypes.c_void_p), ("storage", ctypes.c_int64), ("together", ctypes.c_int64),
        ("next", ctypes.c_int64),
    ]  # fmt: skip


def _write_rows(
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
    fields = format_in_memory(fmt, x.dtype, prescale)
    job = _Job(
        x.data_ptr(), y.data_ptr(), x.numel() // length, length, block, 0 if scales is None else scales.data_ptr(),
        ctypes.addressof(fields), None if tables is None else tables.address,
        int(STORAGE[x.dtype]), max(1, _TOGETHER // length), 0,
    )  # fmt: skip
    spans: list[Any] = []

    # A worker may outlast this call, where that is interrupted, and a cache may drop what it holds: `work` holds
    # whatever the library has addresses of.
    def work(_held: object = (x, y, scales, fields, tables)) -> None:
        span = (ctypes.c_float * 2)(torch.inf, -torch.inf)
        if library.mx_quantize_rows(ctypes.addressof(job), ctypes.addressof(span)):
            spans.append(span)

    in_threads(work, min(torch.get_num_threads(), x.numel() // _LEAST_FOR_THREADS))
    kept = kept_exponents()
    if kept is not None and fmt.scale_format.is_power_of_two:
        lows, highs = zip(*spans, strict=True)
        kept.note_range(*torch.tensor([min(lows), max(highs)], dtype=torch.float32, device="cpu"))


@functools.lru_cache(maxsize=256)
def format_in_memory(fmt: MXFormat, dtype: torch.dtype, prescale: float) -> ctypes.Structure:
    """Return mx.cu's `Format` in memory."""
    kinds: dict[type, Any] = {bool: ctypes.c_bool, float: ctypes.c_float}
    values = list(flat_fields(format_fields(fmt, dtype, prescale)))

    class Format(ctypes.Structure):
        _fields_ = [(f"field_{i}", kinds.get(type(value), ctypes.c_int)) for i, value in enumerate(values)]

    return Format(*values)
