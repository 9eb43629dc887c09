"""Transform by Sylvester's Hadamard matrices on a GPU: hadamard.cu; dense_cuda.py does so with a dense factor.

The kernel is the torch operator `mxsweep::hadamard`, launched on torch's current stream. The first call for an order, a
dtype and a GPU compiles it and loads it (a few tenths of a second; once on a machine: compile.py keeps what it
compiled); after that, it can be captured in a CUDA graph. A row's answer does not depend on how many rows there are.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mxsweep.numerics.availability import backend_problem
from mxsweep.numerics.kernels.compile import Kernels, load_kernels, on
from mxsweep.numerics.kernels.plain_tensors import as_vectors
from mxsweep.numerics.kernels.source import STORAGE, VECTOR_BYTES, joined_files

MAX_LOG_ORDER = 14


@dataclass(frozen=True)
class Plan:
    """Say how hadamard.cu divides the work; its macros of these names have the details.

    Attributes:
        dtype: of what is written.
        read: of what is read: the same, or a narrower one where float32 is written.
        log_kept: log2 of the elements of a part of a row that a thread holds: a 16-byte vector, or as many as leave a
            row to one warp; of longer rows 64, with which two arrangements cover up to 12 of the index's bits.
        parts: into how many parts the row is cut.
        threads: to a thread block, which then holds threads * 2^log_kept elements in at most 34 KB of shared memory.
    """

    log_order: int
    dtype: torch.dtype
    read: torch.dtype
    log_kept: int
    parts: int
    threads: int

    @property
    def elements(self) -> int:
        """Return how many elements a thread block transforms."""
        return self.threads * self.parts << self.log_kept

    @property
    def source(self) -> str:
        """Return hadamard.cu behind storage.cu and butterflies.cu, with the macros in front."""
        return joined_files(
            *("storage.cu", "butterflies.cu", "hadamard.cu"),
            macros={
                "LOG_ORDER": self.log_order,
                "STORAGE": STORAGE[self.dtype],
                "SCALE": 2 ** (-self.log_order / 2),
                "LOG_KEPT": self.log_kept,
                "PARTS": self.parts,
                "THREADS": self.threads,
                "READ_AS": STORAGE[self.read],
            },
        )


def plan_of(log_order: int, dtype: torch.dtype, read: torch.dtype | None = None) -> Plan:
    """Return the plan for rows of 2^log_order elements, 1 <= log_order <= MAX_LOG_ORDER.

    Args:
        dtype: of what is written; in its arrangement the sums are added up.
        read: that of what is read, where float32 is written of a narrower one.
    """
    log_vector = (VECTOR_BYTES // dtype.itemsize).bit_length() - 1
    log_kept = 6 if log_order > 10 else max(log_vector, log_order - 5)
    parts = 2 if log_order == MAX_LOG_ORDER else 1
    return Plan(log_order, dtype, read or dtype, log_kept, parts, 128 if log_order >= 10 else 256)


def can_transform(x: Tensor, order: int) -> bool:
    """Return whether `sylvester_cuda` takes x, contiguous rows of ``order`` elements, on this machine."""
    return (
        x.is_cuda
        and x.dtype in STORAGE
        and 2 <= order <= 2**MAX_LOG_ORDER
        and order & (order - 1) == 0
        and x.nbytes % VECTOR_BYTES == 0  # else short of a vector at the end: rows of two or four elements
        and kernels_can_work()
    )


@functools.cache
def kernels_can_work() -> bool:
    """Return whether kernels can be compiled and loaded on this machine."""
    return backend_problem("cuda") is None


def sylvester_cuda(x: Tensor, order: int) -> Tensor:
    """Return each run of ``order`` elements of x times Sylvester's orthogonal matrix, contiguous, shaped as x."""
    answer: Tensor = torch.ops.mxsweep.hadamard(x, order)
    return answer


def _operator(x: Tensor, order: int) -> Tensor:
    return transformed_to(x, order, x.dtype)


def transformed_to(x: Tensor, order: int, dtype: torch.dtype) -> Tensor:
    """Return each run of ``order`` elements of x times Sylvester's orthogonal matrix, in x's dtype or in float32."""
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


@functools.cache
def _kernels(plan: Plan, device: int) -> Kernels:
    return load_kernels(plan.source, device, plan.threads)


_library = torch.library.Library("mxsweep", "FRAGMENT")
_library.define("hadamard(Tensor x, int order) -> Tensor")
_library.impl("hadamard", _operator, "CUDA")
_library.impl("hadamard", lambda x, order: torch.empty_like(x, memory_format=torch.contiguous_format), "Meta")
