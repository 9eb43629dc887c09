"""Measure what quantizing did to a tensor's blocks on a GPU by one kernel, measures.cu.

PyTorch's operations take some thirty launches for the same numbers, during which the GPU waits for the host. The kernel
is compiled once for all formats: it reads the format from memory.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.availability import backend_problem
from mxsweep.numerics.block_totals import NUMBERS
from mxsweep.numerics.kernels.compile import THREADS, Kernels, load_kernels, on
from mxsweep.numerics.kernels.cpu_rows import Asked, format_in_memory
from mxsweep.numerics.kernels.plain_tensors import is_in_memory
from mxsweep.numerics.kernels.source import STORAGE, WARP, joined_files
from mxsweep.numerics.kernels.trials import unless_it_fails
from mxsweep.numerics.reference.definition import neighbours_under_one, tensor_scale_over
from mxsweep.numerics.reference.scales import held_exponent, native_exponent

log = logging.getLogger(__name__)

_MOST_WARPS = 4096  # about what a large GPU has at work at once
_SUMS = NUMBERS.index("exponent_min")  # numbers before the least and the largest exponent, which are added up


def measure_by_kernel(x: Tensor, y: Tensor, asked: Asked, compares: bool) -> tuple[int, Tensor] | None:
    """Measure as `measure_by_torch` does, but that sums have another order; None where that is left to it."""
    kernels = _kernels(x.device.index) if _takes(x, y, asked) else None
    if kernels is None:
        return None
    with on(x.device):
        return launch(kernels, x, y, asked, compares)


def _takes(x: Tensor, y: Tensor, asked: Asked) -> bool:
    """Return whether the kernel can measure what quantizing x to y did."""
    return (
        x.is_cuda
        and takes_format(x, asked)
        and y.shape == x.shape
        and y.dtype == x.dtype
        and y.device == x.device
        and is_in_memory(x)
        and is_in_memory(y)
    )


def takes_format(x: Tensor, asked: Asked) -> bool:
    """Return whether the kernel measures what is asked of such a tensor, wherever it is."""
    fmt = asked.fmt
    return (
        x.numel() > 0
        and x.dtype in STORAGE
        and isinstance(fmt.block_size, int)
        and asked.axis % x.ndim == x.ndim - 1
        # Of native arithmetic's float32 no table can be made, and it has no prescale.
        and not (asked.is_native and (x.dtype == torch.float32 or asked.prescale != 1.0))
        # A product with more than 1 may be beyond float32, of which torch's operations and mx.cu make other things.
        and asked.prescale <= 1.0
        and not (fmt.tensor_scale and neighbours_under_one(x.shape, asked.tensor_dims) is None)
    )


def launch(kernels: Kernels, x: Tensor, y: Tensor, asked: Asked, compares: bool) -> tuple[int, Tensor]:
    """Return the number of blocks and the entries of `NUMBERS`, float64, of what `takes_format` takes."""
    fmt, length = asked.fmt, x.shape[-1]
    if fmt.rounding == "stochastic":  # the better of two scales is chosen by what is nearest
        fmt = replace(fmt, rounding="nearest")
    size = min(int(fmt.block_size), length) or length  # type: ignore[arg-type]
    in_row = -(-length // size)
    blocks = x.numel() // length * in_row
    scales, group = None, 1
    if fmt.tensor_scale:
        scales = tensor_scale_over(x, fmt, asked.tensor_dims, asked.tensor_amax).contiguous()
        group = x.numel() // scales.numel()
    tables = _native_tables(fmt, x.dtype, x.device) if asked.is_native else None
    of = _format_on(fmt, x.dtype, asked.prescale, x.device)
    x, y = x.contiguous(), y.contiguous()
    per_thread_block = THREADS // WARP
    thread_blocks = -(-min(blocks, _MOST_WARPS) // per_thread_block)
    found = torch.empty(thread_blocks * per_thread_block, len(NUMBERS), dtype=torch.float64, device=x.device)
    kernels.launch(
        "mx_measures", thread_blocks * THREADS, x.data_ptr(), y.data_ptr(), found.data_ptr(), of.data_ptr(),
        int(STORAGE[x.dtype]), blocks, in_row, length, size, 0 if scales is None else scales.data_ptr(), group,
        *((0, 0) if tables is None else (tables.exponents.data_ptr(), tables.scales.data_ptr())), int(compares),
    )  # fmt: skip
    sums, low, high = found[:, :_SUMS].sum(0), found[:, _SUMS].amin(), found[:, _SUMS + 1].amax()
    return blocks, torch.cat([sums, low.view(1), high.view(1)])


class _NativeTables(NamedTuple):
    """Hold what native arithmetic of a 16-bit dtype has for the code of each largest magnitude, float32 [2^15].

    Attributes:
        exponents: what its block's scale wants.
        scales: what its block is divided by.
    """

    exponents: Tensor
    scales: Tensor


@functools.lru_cache(maxsize=256)
@torch.inference_mode(False)  # the tables outlive the caller's mode
def _native_tables(fmt: MXFormat, dtype: torch.dtype, device: torch.device) -> _NativeTables:
    magnitudes = torch.arange(2**15, dtype=torch.int32, device=device).to(torch.int16).view(dtype)
    exponents = native_exponent(magnitudes, fmt)
    return _NativeTables(exponents.to(torch.float32), (2.0 ** held_exponent(exponents, fmt)).to(torch.float32))


@functools.lru_cache(maxsize=256)
@torch.inference_mode(False)
def _format_on(fmt: MXFormat, dtype: torch.dtype, prescale: float, device: torch.device) -> Tensor:
    """Return mx.cu's `Format` in a device's memory, uint8."""
    return torch.frombuffer(bytearray(format_in_memory(fmt, dtype, prescale)), dtype=torch.uint8).to(device)


@functools.cache
def measures_source() -> str:
    """Return measures.cu behind mx.cu, with the macro in front."""
    size = ctypes.sizeof(format_in_memory(MXFormat("fp4_e2m1"), torch.float32, 1.0))
    return joined_files("mx.cu", "measures.cu", macros={"FORMAT_SIZE": size})


@functools.cache
def _kernels(device: int) -> Kernels | None:
    """Return the kernel; None where there is none to be had, which is logged where it cannot be made."""
    if backend_problem("cuda") is not None:
        return None
    # Nothing is quantized by it.
    return unless_it_fails(lambda: load_kernels(measures_source(), device, counted=False), _say_once)


@functools.cache
def _say_once(reason: str) -> None:
    log.info("what quantizing did is measured by PyTorch's operations: %s", reason)
