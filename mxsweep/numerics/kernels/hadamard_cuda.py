"""Transform by Sylvester's matrix on a GPU: hadamard.cu compiled for an order and a dtype.

The kernel is the torch operator `mxsweep::hadamard`, launched on torch's current stream. The first call for an order, a
dtype and a GPU compiles it and loads it (a few tenths of a second, once on a machine: compile.py keeps what it
compiled); after that, it can be captured in a CUDA graph.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from importlib import resources

import torch
from torch import Tensor

from mxsweep.numerics.availability import backend_problem
from mxsweep.numerics.kernels.compile import Kernels, load_kernels
from mxsweep.numerics.kernels.source import VECTOR_BYTES

MAX_LOG_ORDER = 14
STORAGE = {torch.float32: "FLOAT32", torch.bfloat16: "BFLOAT16", torch.float16: "FLOAT16"}


@dataclass(frozen=True)
class Plan:
    """Say how hadamard.cu divides the work; its macros of these names have the details.

    Attributes:
        log_kept: log2 of the elements of a part of a row that a thread holds: a 16-byte vector, or as many as leave a
            row to one warp; of longer rows 64, with which two arrangements cover up to 12 of the index's bits.
        parts: into how many parts the row is cut.
        threads: to a thread block, which then holds threads * 2^log_kept elements in at most 34 KB of shared memory.
    """

    log_order: int
    storage: str
    log_kept: int
    parts: int
    threads: int

    @property
    def elements(self) -> int:
        """Return how many elements a thread block transforms."""
        return self.threads * self.parts << self.log_kept

    @property
    def source(self) -> str:
        """Return hadamard.cu with the macros in front."""
        lines = (
            f"#define LOG_ORDER {self.log_order}",
            f"#define STORAGE {self.storage}",
            f"#define SCALE {(2 ** (-self.log_order / 2)).hex()}f",
            f"#define LOG_KEPT {self.log_kept}",
            f"#define PARTS {self.parts}",
            f"#define THREADS {self.threads}",
            "#line 1",
        )
        return "\n".join((*lines, _source()))


@functools.cache
def _source() -> str:
    return resources.files("mxsweep.numerics.kernels").joinpath("hadamard.cu").read_text(encoding="utf-8")


def plan_of(log_order: int, dtype: torch.dtype) -> Plan:
    """Return the plan for rows of 2^log_order elements, 1 <= log_order <= MAX_LOG_ORDER."""
    log_vector = (VECTOR_BYTES // dtype.itemsize).bit_length() - 1
    log_kept = 6 if log_order > 10 else max(log_vector, log_order - 5)
    parts = 2 if log_order == MAX_LOG_ORDER else 1
    return Plan(log_order, STORAGE[dtype], log_kept, parts, 128 if log_order >= 10 else 256)


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
    x = x.contiguous()
    if x.data_ptr() % VECTOR_BYTES:
        x = x.clone()  # a view that begins between the 16-byte steps that a thread reads
    y = torch.empty_like(x)
    if x.numel():
        plan = plan_of(order.bit_length() - 1, x.dtype)
        with torch.cuda.device(x.device):
            thread_blocks = math.ceil(x.numel() / plan.elements)
            _kernels(plan, x.device.index).launch(
                "hadamard", thread_blocks * plan.threads, x.data_ptr(), y.data_ptr(), x.nbytes // VECTOR_BYTES
            )
    return y


@functools.cache
def _kernels(plan: Plan, device: int) -> Kernels:
    return load_kernels(plan.source, device, plan.threads)


_library = torch.library.Library("mxsweep", "FRAGMENT")
_library.define("hadamard(Tensor x, int order) -> Tensor")
_library.impl("hadamard", _operator, "CUDA")
_library.impl("hadamard", lambda x, order: torch.empty_like(x, memory_format=torch.contiguous_format), "Meta")
