"""Transform by Hadamard matrices on a GPU: Sylvester's by hadamard.cu, a dense factor by dense.cu, or both at once.

That does dense_rows.cu, of rows that a warp or a part of it can hold. The kernels are the torch operators
`mxsweep::hadamard` and, with a dense factor, `mxsweep::dense_hadamard`, launched on torch's current stream. The first
call for an order, a dtype and a GPU compiles them and loads them (a few tenths of a second, with dense factors beyond
20 some seconds; once on a machine: compile.py keeps what it compiled); after that, they can be captured in a CUDA
graph. A row's answer does not depend on how many rows there are.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mxsweep.numerics.availability import backend_problem
from mxsweep.numerics.kernels.compile import THREADS, Kernels, load_kernels, on
from mxsweep.numerics.kernels.plain_tensors import as_vectors
from mxsweep.numerics.kernels.source import STORAGE, VECTOR_BYTES, WARP, joined_files
from mxsweep.numerics.paley import base_factor

MAX_LOG_ORDER = 14
MOST_DENSE = 44  # the largest dense factor, a column of which a thread holds
ROW_THREADS = 128  # of a thread block of dense_rows.cu, whose elements then fit into 45 KB of shared memory
WIDEST, _MOST_OF_WIDEST = 4, 20  # neighbouring columns that a thread takes, up to which factor; beyond half as many


@dataclass(frozen=True)
class Plan:
    """Say how hadamard.cu divides the work; its macros of these names have the details.

    Attributes:
        log_kept: log2 of the elements of a part of a row that a thread holds: a 16-byte vector, or as many as leave a
            row to one warp; of longer rows 64, with which two arrangements cover up to 12 of the index's bits.
        parts: into how many parts the row is cut.
        threads: to a thread block, which then holds threads * 2^log_kept elements in at most 34 KB of shared memory.
        read: what is read as, where float32 is written of it; empty where it is as what is written.
    """

    log_order: int
    storage: str
    log_kept: int
    parts: int
    threads: int
    read: str = ""

    @property
    def elements(self) -> int:
        """Return how many elements a thread block transforms."""
        return self.threads * self.parts << self.log_kept

    @property
    def source(self) -> str:
        """Return hadamard.cu behind storage.cu, with the macros in front."""
        lines = (
            f"#define LOG_ORDER {self.log_order}",
            f"#define STORAGE {self.storage}",
            f"#define SCALE {(2 ** (-self.log_order / 2)).hex()}f",
            f"#define LOG_KEPT {self.log_kept}",
            f"#define PARTS {self.parts}",
            f"#define THREADS {self.threads}",
            *[f"#define READ_AS {self.read}"] * bool(self.read),
        )
        return "\n".join((*lines, joined_files("storage.cu", "hadamard.cu")))


def plan_of(log_order: int, dtype: torch.dtype, read: torch.dtype | None = None) -> Plan:
    """Return the plan for rows of 2^log_order elements, 1 <= log_order <= MAX_LOG_ORDER.

    Args:
        dtype: of what is written; in its arrangement the sums are added up.
        read: that of what is read, where float32 is written of a narrower one.
    """
    log_vector = (VECTOR_BYTES // dtype.itemsize).bit_length() - 1
    log_kept = 6 if log_order > 10 else max(log_vector, log_order - 5)
    parts = 2 if log_order == MAX_LOG_ORDER else 1
    read_as = "" if read in (None, dtype) else STORAGE[read].name
    return Plan(log_order, STORAGE[dtype].name, log_kept, parts, 128 if log_order >= 10 else 256, read_as)


def can_transform(x: Tensor, order: int) -> bool:
    """Return whether `sylvester_cuda` takes x, contiguous rows of ``order`` elements, on this machine."""
    return (
        x.is_cuda
        and x.dtype in STORAGE
        and 2 <= order <= 2**MAX_LOG_ORDER
        and order & (order - 1) == 0
        and x.nbytes % VECTOR_BYTES == 0  # else short of a vector at the end: rows of two or four elements
        and _kernels_can_work()
    )


@functools.cache
def _kernels_can_work() -> bool:
    return backend_problem("cuda") is None


def sylvester_cuda(x: Tensor, order: int) -> Tensor:
    """Return each run of ``order`` elements of x times Sylvester's orthogonal matrix, contiguous, shaped as x."""
    answer: Tensor = torch.ops.mxsweep.hadamard(x, order)
    return answer


def _operator(x: Tensor, order: int) -> Tensor:
    return _sylvester(x, order, x.dtype)


def _sylvester(x: Tensor, order: int, dtype: torch.dtype) -> Tensor:
    """Return the transform in x's dtype, or in float32."""
    x = as_vectors(x)
    y = torch.empty_like(x, dtype=dtype)
    if x.numel():
        plan = plan_of(order.bit_length() - 1, dtype, x.dtype)
        with on(x.device):
            thread_blocks = math.ceil(x.numel() / plan.elements)
            _kernels(plan, x.device.index).launch(
                "hadamard", thread_blocks * plan.threads, x.data_ptr(), y.data_ptr(), y.nbytes // VECTOR_BYTES
            )
    return y


def can_multiply(x: Tensor, order: int) -> bool:
    """Return whether `dense_hadamard_cuda` takes x, rows of ``order`` elements, on this machine."""
    size = len(base_factor(order))
    inner = order // size
    return (
        x.is_cuda
        and x.dtype in STORAGE
        and 1 < size <= MOST_DENSE
        and (_fits_threads(size, inner) or can_transform(x, inner))
        and _kernels_can_work()
        and torch.cuda.get_device_capability(x.device) >= (8, 0)
    )


def _width_of(size: int, inner: int) -> int:
    """Return how many neighbouring columns of a dense factor's product a thread takes."""
    return min(inner, WIDEST if size <= _MOST_OF_WIDEST else WIDEST // 2)


def _fits_threads(size: int, inner: int) -> bool:
    """Return whether a warp, or a part of it, holds a row that is transformed by both factors at once."""
    return inner <= WARP * _width_of(size, inner)


def dense_hadamard_cuda(x: Tensor, order: int, inverse: bool) -> Tensor:
    """Return each run of ``order`` elements of x times the orthogonal matrix of an order with a dense factor."""
    answer: Tensor = torch.ops.mxsweep.dense_hadamard(x, order, inverse)
    return answer


def _dense_operator(x: Tensor, order: int, inverse: bool) -> Tensor:
    size = len(base_factor(order))
    inner = order // size
    width = _width_of(size, inner)
    if _fits_threads(size, inner):
        x = as_vectors(x)
        y = torch.empty_like(x)
        if x.numel():
            with on(x.device):
                _dense_kernels(order, inverse, x.dtype, x.device.index).launch(
                    "dense_rows", -(-x.numel() // (size * width * ROW_THREADS)) * ROW_THREADS,
                    x.data_ptr(), y.data_ptr(), x.numel(),
                )  # fmt: skip
        return y
    transformed = _sylvester(x, inner, torch.float32)
    y = torch.empty_like(transformed, dtype=x.dtype)
    if x.numel():
        with on(x.device):
            _dense_kernels(order, inverse, x.dtype, x.device.index).launch(
                "dense_factor", x.numel() // (size * width),
                transformed.data_ptr(), y.data_ptr(), x.numel() // order, inner // width,
            )  # fmt: skip
    return y


def dense_source(order: int, inverse: bool, dtype: torch.dtype) -> str:
    """Return dense.cu for the dense factor of an order, or dense_rows.cu for rows that it takes."""
    factor = base_factor(order).astype(np.float32)
    size = len(factor)
    inner = order // size
    rows = (", ".join(f"{entry.hex()}f" for entry in row.tolist()) for row in (factor.T if inverse else factor))
    log_inner = inner.bit_length() - 1
    at_once = _fits_threads(size, inner)
    lines = (
        f"#define SIZE {size}",
        f"#define FACTOR {{{', '.join(f'{{{row}}}' for row in rows)}}}",
        f"#define STORAGE {STORAGE[dtype].name}",
        f"#define WIDTH {_width_of(size, inner)}",
        *[
            f"#define LOG_INNER {log_inner}",
            f"#define SCALE {(2 ** (-log_inner / 2)).hex()}f",
            f"#define THREADS {ROW_THREADS}",
        ]
        * at_once,
    )
    return "\n".join((*lines, joined_files("storage.cu", "dense_rows.cu" if at_once else "dense.cu")))


@functools.cache
def _dense_kernels(order: int, inverse: bool, dtype: torch.dtype, device: int) -> Kernels:
    size = len(base_factor(order))
    block = ROW_THREADS if _fits_threads(size, order // size) else THREADS
    return load_kernels(dense_source(order, inverse, dtype), device, block)


@functools.cache
def _kernels(plan: Plan, device: int) -> Kernels:
    return load_kernels(plan.source, device, plan.threads)


_library = torch.library.Library("mxsweep", "FRAGMENT")
_library.define("hadamard(Tensor x, int order) -> Tensor")
_library.impl("hadamard", _operator, "CUDA")
_library.define("dense_hadamard(Tensor x, int order, bool inverse) -> Tensor")
_library.impl("dense_hadamard", _dense_operator, "CUDA")
_library.impl("dense_hadamard", lambda x, *_: torch.empty_like(x, memory_format=torch.contiguous_format), "Meta")
_library.impl("hadamard", lambda x, order: torch.empty_like(x, memory_format=torch.contiguous_format), "Meta")
