"""Recognize that GPU memory ran out, whoever found none: PyTorch, a library that it calls, the driver.

PyTorch's own allocator raises ``torch.OutOfMemoryError``. What allocates past it raises errors of other classes: cuBLAS
a ``RuntimeError`` when it makes its handle or workspace, the driver a ``torch.AcceleratorError`` or ``RuntimeError``,
``cuda.core`` a ``CUDAError``. Their texts alone tell them from other errors.
"""

from __future__ import annotations

SIGNS = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "cudaErrorMemoryAllocation",
    # A handle needs memory of its own; without it, cuBLAS says that it is not initialized.
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_NOT_INITIALIZED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` says that GPU memory ran out, so that less work at once may fit."""
    # By name, since this package imports no torch.
    raised_by_torch = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    return raised_by_torch or any(sign in str(error) for sign in SIGNS)
