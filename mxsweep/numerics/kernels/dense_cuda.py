"""Transform by Hadamard matrices with a dense factor on a GPU.

Short rows, of which a warp or a part of it holds one, are transformed by both factors at once (dense_rows.cu); so are
most longer ones of 16-bit elements, by tensor cores, where the factor is of signs (dense_tiles.cu). Where neither does,
a small factor has a kernel of its own, after hadamard.cu (dense.cu).

The kernels are the torch operator `mxsweep::dense_hadamard`, launched on torch's current stream. The first call for an
order, a direction, a dtype and a GPU compiles them and loads them (a few tenths of a second, dense_rows.cu with factors
beyond 20 some seconds; once on a machine: compile.py keeps what it compiled); after that, they can be captured in a
CUDA graph. A row's answer does not depend on how many rows there are.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from mxsweep.numerics.kept_tensors import kept_tensors
from mxsweep.numerics.kernels.compile import THREADS, Kernels, load_kernels, on
from mxsweep.numerics.kernels.dense_tiles import DensePlan, dense_plan
from mxsweep.numerics.kernels.hadamard_cuda import MAX_LOG_ORDER, kernels_can_work, transformed_to
from mxsweep.numerics.kernels.plain_tensors import as_vectors
from mxsweep.numerics.kernels.source import STORAGE, WARP, Macro, joined_files
from mxsweep.numerics.paley import base_factor

MOST_DENSE = 44  # the largest dense factor, a column of which a thread holds
ROW_THREADS = 128  # of a thread block of dense_rows.cu, whose elements then fit into 45 KB of shared memory
WIDEST, _MOST_OF_WIDEST = 4, 20  # neighbouring columns that a thread takes, up to which factor; beyond half as many


@functools.lru_cache(maxsize=1024)
def kernel_of(order: int, dtype: torch.dtype) -> str | None:
    """Return the name of the kernel that multiplies rows of an order by their dense factor; None where none does."""
    size = len(base_factor(order))
    inner = order // size
    if size == 1 or dtype not in STORAGE:
        return None
    if size <= MOST_DENSE and inner <= WARP * _width_of(size, inner):
        return "dense_rows"
    if dense_plan(order, dtype) is not None:
        return "dense_tiles"
    return "dense_factor" if size <= MOST_DENSE and inner <= 2**MAX_LOG_ORDER else None


def can_multiply(x: Tensor, order: int) -> bool:
    """Return whether `dense_hadamard_cuda` takes x, rows of ``order`` elements, on this machine."""
    return (
        x.is_cuda
        and kernel_of(order, x.dtype) is not None
        and kernels_can_work()
        and torch.cuda.get_device_capability(x.device) >= (8, 0)
    )


def dense_hadamard_cuda(x: Tensor, order: int, inverse: bool) -> Tensor:
    """Return each run of ``order`` elements of x times the orthogonal matrix of an order with a dense factor."""
    answer: Tensor = torch.ops.mxsweep.dense_hadamard(x, order, inverse)
    return answer


def _operator(x: Tensor, order: int, inverse: bool) -> Tensor:
    name, dtype = kernel_of(order, x.dtype), x.dtype
    assert name is not None
    size = len(base_factor(order))
    width = _width_of(size, order // size)
    x = transformed_to(x, order // size, torch.float32) if name == "dense_factor" else as_vectors(x)
    y = torch.empty_like(x, dtype=dtype)
    if x.numel() == 0:
        return y
    with on(x.device):
        if name == "dense_tiles":
            plan = dense_plan(order, dtype)
            assert plan is not None
            _tile_kernels(plan, x.device.index).launch(
                name, x.numel() // order * plan.parts * plan.threads,
                x.data_ptr(), y.data_ptr(), _signs_on(plan, inverse, x.device).data_ptr(),
            )  # fmt: skip
            return y
        kernels = _dense_kernels(order, inverse, dtype, x.device.index)
        if name == "dense_rows":
            threads = -(-x.numel() // (size * width * ROW_THREADS)) * ROW_THREADS
            kernels.launch(name, threads, x.data_ptr(), y.data_ptr(), x.numel())
        else:
            threads = x.numel() // (size * width)
            kernels.launch(name, threads, x.data_ptr(), y.data_ptr(), x.numel() // order, order // size // width)
    return y


def _width_of(size: int, inner: int) -> int:
    """Return how many neighbouring columns of a dense factor's product a thread takes."""
    return min(inner, WIDEST if size <= _MOST_OF_WIDEST else WIDEST // 2)


def dense_source(order: int, inverse: bool, dtype: torch.dtype) -> str:
    """Return dense.cu for the dense factor of an order, or dense_rows.cu for rows that it takes."""
    factor = base_factor(order).astype(np.float32)
    size = len(factor)
    inner = order // size
    log_inner = inner.bit_length() - 1
    macros: dict[str, Macro] = {
        "SIZE": size,
        "FACTOR": tuple(tuple(row) for row in (factor.T if inverse else factor).tolist()),
        "STORAGE": STORAGE[dtype],
        "WIDTH": _width_of(size, inner),
    }
    if kernel_of(order, dtype) != "dense_rows":
        return joined_files("storage.cu", "dense.cu", macros=macros)
    macros |= {"LOG_INNER": log_inner, "SCALE": 2 ** (-log_inner / 2), "THREADS": ROW_THREADS}
    return joined_files("storage.cu", "butterflies.cu", "dense_rows.cu", macros=macros)


@functools.cache
def _dense_kernels(order: int, inverse: bool, dtype: torch.dtype, device: int) -> Kernels:
    block = ROW_THREADS if kernel_of(order, dtype) == "dense_rows" else THREADS
    return load_kernels(dense_source(order, inverse, dtype), device, block)


@functools.cache
def _tile_kernels(plan: DensePlan, device: int) -> Kernels:
    return load_kernels(plan.source, device, plan.threads)


@kept_tensors(128)
def _signs_on(plan: DensePlan, inverse: bool, device: torch.device) -> Tensor:
    return plan.signs(inverse).to(device)


_library = torch.library.Library("mxsweep", "FRAGMENT")
_library.define("dense_hadamard(Tensor x, int order, bool inverse) -> Tensor")
_library.impl("dense_hadamard", _operator, "CUDA")
_library.impl("dense_hadamard", lambda x, *_: torch.empty_like(x, memory_format=torch.contiguous_format), "Meta")
