"""Call the library of cpu_library.py: share out a tensor's rows to threads, which quantize or measure them.

This is asked of a library that is given, so that one can be tried before it is used (cpu_check.py).
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.kernels.native_tables import NativeTables, native_tables
from mxsweep.numerics.kernels.source import STORAGE, flat_fields, format_fields
from mxsweep.numerics.philox import Draws
from mxsweep.numerics.piece_threads import in_threads
from mxsweep.numerics.reference.definition import tensor_scale_over, without_inf
from mxsweep.numerics.wanted_exponents import kept_exponents

_TOGETHER = 2**14  # elements that a thread takes at once
# Of so many elements the library takes the maximum itself, for their per-tensor scale: they are in a core's cache when
# they are read again. The maximum of more is torch's, which shares it out to threads.
_MOST_UNDER_ONE = 2**16
# There are at least so many elements for each thread that wakes up. Fewer are quantized in half a millisecond, while a
# thread may wait many times that for its turn on a busy core.
_LEAST_FOR_THREADS = 2**19
_LANES = 8  # measures.cpp's `LANES`
MEASURES_SIZE = 8 * (2 * _LANES + 6)  # bytes of its `Measures`: two sums in lanes, and what follows them


class Asked(NamedTuple):
    """Say what a tensor is to become: what `quantize_torch` is told beside the tensor.

    Attributes:
        prescale: as for `quantize_rescaled`, in exact arithmetic.
        draws: for stochastic rounding.
    """

    fmt: MXFormat
    axis: int
    arithmetic: str
    tensor_dims: Sequence[int] | None = None
    tensor_amax: Tensor | None = None
    prescale: float = 1.0
    draws: Draws | None = None

    @property
    def is_native(self) -> bool:
        """Return whether the format has another arithmetic than exact, and that is asked for."""
        return self.fmt.is_native(self.arithmetic)


def quantize_rows(library: ctypes.CDLL, x: Tensor, asked: Asked) -> Tensor | None:
    """Quantize what cpu.py's `supports` takes by a library; None where torch's logarithm is not as it has it."""
    x = without_inf(x, asked.fmt)
    rows = x.movedim(asked.axis, -1).contiguous()
    y = torch.empty_like(x)
    along = y.movedim(asked.axis, -1)
    results = along if along.is_contiguous() else torch.empty_like(rows)
    work = _Work.of(x, rows, results, asked)
    if work is None:
        return None
    spans: list[Any] = []

    def quantize() -> None:
        span = (ctypes.c_float * 3)(math.inf, -math.inf, 0.0)
        if library.mx_quantize_rows(work.address, ctypes.addressof(span)):
            spans.append(span)

    work.do(quantize)
    kept = kept_exponents()
    if kept is not None and asked.fmt.scale_format.is_power_of_two:
        lows, highs, fractions = zip(*spans, strict=True)
        ends = torch.tensor([min(lows), max(highs), max(fractions)], dtype=torch.float32, device="cpu")
        kept.note_range(ends[0], ends[1], None if asked.is_native else ends[2])
    if results is not along:
        along.copy_(results)
    return y


def measure_rows(library: ctypes.CDLL, x: Tensor, y: Tensor, asked: Asked, compares: bool) -> tuple[int, Tensor] | None:
    """Count the blocks of x, and measure what quantizing x to y did, as `measure_blocks` does.

    Args:
        x: as cpu.py's `supports_measuring` takes it, made by `without_inf`.
        y: of its shape and dtype.
        compares: whether elements are counted that exact arithmetic would have given another value, of native
            arithmetic alone.

    Returns:
        The number of blocks, and float64 (8,) as block_totals.py's `NUMBERS`. None where torch's logarithm is not as
        the library has it.
    """
    rows, results = (tensor.movedim(asked.axis, -1).contiguous() for tensor in (x, y))
    work = _Work.of(x, rows, results, asked)
    if work is None:
        return None
    job = work.job
    # Added up by NumPy, in one order: torch shares out a sum of many to threads.
    found = np.zeros((-(-job.rows // job.together), MEASURES_SIZE // 8))
    found[:, -2], found[:, -1] = math.inf, -math.inf
    work.do(lambda: library.mx_measure_rows(work.address, found.ctypes.data, int(compares)))
    sums = [found[:, :_LANES].sum(), found[:, _LANES : 2 * _LANES].sum(), *found[:, 2 * _LANES : -2].sum(0)]
    numbers = [float(number) for number in (*sums, found[:, -2].min(), found[:, -1].max())]
    return job.rows * -(-job.length // job.block), torch.tensor(numbers, dtype=torch.float64, device="cpu")


class _Job(ctypes.Structure):
    """Hold rows.cpp's `Job`."""

    _fields_ = [
        ("x", ctypes.c_void_p), ("y", ctypes.c_void_p), ("rows", ctypes.c_int64), ("length", ctypes.c_int64),
        ("block", ctypes.c_int64), ("tensor_scales", ctypes.c_void_p), ("under_one", ctypes.c_int64),
        ("format", ctypes.c_void_p), ("native", ctypes.c_void_p), ("storage", ctypes.c_int64),
        ("key", ctypes.c_uint64), ("example", ctypes.c_int64), ("first_example", ctypes.c_int64),
        ("numbers_examples", ctypes.c_int64),
        ("together", ctypes.c_int64), ("next", ctypes.c_int64),
    ]  # fmt: skip


class _Work(NamedTuple):
    """Hold a job, and whatever the library has addresses of while it does it."""

    job: _Job
    held: tuple[Tensor | ctypes.Structure | NativeTables | None, ...]

    @classmethod
    def of(cls, x: Tensor, rows: Tensor, results: Tensor, asked: Asked) -> _Work | None:
        """Return the job of x, whose blocks lie along `rows`, likewise what these are to become or became.

        None where torch's logarithm is not as native arithmetic's tables have it.
        """
        fmt, tables = asked.fmt, None
        if asked.is_native:
            tables = native_tables(fmt, x.dtype)
            if tables is None:
                return None
        length = rows.shape[-1]
        block = min(int(fmt.block_size), length) or length  # type: ignore[arg-type]
        scales, under_one = None, _rows_under_one(rows.shape, x.ndim, asked) if fmt.tensor_scale else 0
        if fmt.tensor_scale and not under_one:
            scales = tensor_scale_over(x, fmt, asked.tensor_dims, asked.tensor_amax).movedim(asked.axis, -1)
            scales = scales.expand(*rows.shape[:-1], 1).contiguous()
        if not fmt.tensor_scale and length % block == 0:
            length = block  # so that there are rows to share out
        together = max(1, _TOGETHER // length)
        if under_one:
            together = under_one * max(1, together // under_one)
        fields = format_in_memory(fmt, x.dtype, asked.prescale)
        job = _Job(
            rows.data_ptr(), results.data_ptr(), rows.numel() // length, length, block,
            None if scales is None else scales.data_ptr(), under_one, ctypes.addressof(fields),
            None if tables is None else tables.address, int(STORAGE[x.dtype]),
            *_drawn_from(x, asked.draws), together, 0,
        )  # fmt: skip
        return cls(job, (rows, results, scales, fields, tables))

    @property
    def address(self) -> int:
        """Return where the job is."""
        return ctypes.addressof(self.job)

    def do(self, take: Callable[[], object]) -> None:
        """Have threads call the library by `take`, until all rows are taken."""

        # A thread may outlast this call, where that is interrupted, and a cache may drop what it holds.
        def take_holding(_held: object = self) -> None:
            take()

        elements = self.job.rows * self.job.length
        in_threads(take_holding, min(torch.get_num_threads(), elements // _LEAST_FOR_THREADS))


def _drawn_from(x: Tensor, draws: Draws | None) -> tuple[int, int, int, int]:
    """Return the fields of `_Job` that say which random number an element draws: `key` to `numbers_examples`."""
    if draws is None:
        return 0, 1, 0, 0
    numbers = draws.first_example is not None
    return draws.key, draws.example_size(x.shape), draws.first_example or 0, int(numbers)


def _rows_under_one(shape: Sequence[int], dims: int, asked: Asked) -> int:
    """Return how many rows, one behind the other, each per-tensor scale is made from; 0 where it is made by torch.

    Args:
        shape: of the rows, the axis that blocks extend along last.
        dims: how many dimensions there are.
    """
    if asked.tensor_amax is not None:
        return 0
    within = range(dims) if asked.tensor_dims is None else {dim % dims for dim in asked.tensor_dims}
    axis = asked.axis % dims
    order = [dim for dim in range(dims) if dim != axis] + [axis]
    is_within = [dim in within or length == 1 for dim, length in zip(order, shape, strict=True)]
    first = next((place for place in range(dims) if all(is_within[place:])), dims)
    apart = [length for place, length in enumerate(shape[:first]) if is_within[place] and length > 1]
    if apart or math.prod(shape[first:]) > _MOST_UNDER_ONE:
        return 0
    return math.prod(shape[first:-1])


@functools.lru_cache(maxsize=256)
def format_in_memory(fmt: MXFormat, dtype: torch.dtype, prescale: float) -> ctypes.Structure:
    """Return mx.cu's `Format` in memory."""
    kinds: dict[type, Any] = {bool: ctypes.c_bool, float: ctypes.c_float}
    values = list(flat_fields(format_fields(fmt, dtype, prescale)))

    class Format(ctypes.Structure):
        _fields_ = [(f"field_{i}", kinds.get(type(value), ctypes.c_int)) for i, value in enumerate(values)]

    return Format(*values)
