"""Memory that ran out is recognized whoever raises the error, and nothing else is taken for it."""

from __future__ import annotations

import pytest
import torch

from mxsweep.machine.out_of_memory import is_out_of_memory


class CUDAError(Exception):
    """As cuda.core names its own."""


# As the libraries raise them.
ERRORS = {
    "torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of ..."),
    "torch, no text": torch.OutOfMemoryError(),
    "cublas handle": RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    "cublas workspace": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasGemmEx( ... )`"),
    "cusolver": RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    "runtime": RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported ..."),
    "runtime, by name": RuntimeError("cudaErrorMemoryAllocation: out of memory"),
    "driver": RuntimeError("CUDA driver error: out of memory"),
    "cuda.core": CUDAError("CUDA_ERROR_OUT_OF_MEMORY: The API call failed because it was unable to allocate ..."),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS.keys())
def test_memory_that_ran_out(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( ... )`"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"),
        ValueError("the Hessian is not positive definite"),
        CUDAError("CUDA_ERROR_INVALID_VALUE: This indicates that one or more of the parameters ..."),
        MemoryError(),  # of the host: smaller batches would not help
    ],
    ids=lambda error: type(error).__name__,
)
def test_anything_else(error: Exception) -> None:
    assert not is_out_of_memory(error)
