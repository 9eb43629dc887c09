"""Find what a softmax over rows of logits needs on a GPU: softmax.cu, compiled for a dtype."""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

from mxsweep.numerics.availability import backend_problem
from mxsweep.numerics.kernels.compile import Kernels, load_kernels, on
from mxsweep.numerics.kernels.source import STORAGE, joined_files
from mxsweep.numerics.kernels.trials import unless_it_fails

log = logging.getLogger(__name__)

THREADS = 256  # of a thread block, which takes a row


def takes_logits(logits: Tensor) -> bool:
    """Return whether `normalize_rows` takes logits (N, V) on this machine."""
    return (
        logits.is_cuda
        and logits.dtype in STORAGE
        and logits.stride(1) == 1
        and _kernels(logits.dtype, logits.device.index) is not None
    )


def normalize_rows(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each row's largest logit, the first token that has it, and log(sum(exp(logits - largest))).

    Where a row has a NaN, its normalizer is NaN.

    Args:
        logits: (N, V) on a GPU, float32, bfloat16 or float16, its rows any step apart.

    Returns:
        (N,) float32, int64 and float32.
    """
    rows, entries = logits.shape
    largest, normalizer = torch.empty((2, rows), dtype=torch.float32, device=logits.device)
    token = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if rows:
        with on(logits.device):
            kernels = _kernels(logits.dtype, logits.device.index)
            assert kernels is not None, "takes_logits was to be asked first"
            kernels.launch(
                "softmax_rows", rows * THREADS, logits.data_ptr(), logits.stride(0) * logits.itemsize, entries,
                largest.data_ptr(), token.data_ptr(), normalizer.data_ptr(),
            )  # fmt: skip
    return largest, token, normalizer


def softmax_source(dtype: torch.dtype) -> str:
    """Return softmax.cu behind storage.cu, with the macros in front."""
    return joined_files("storage.cu", "softmax.cu", macros={"STORAGE": STORAGE[dtype], "THREADS": THREADS})


@functools.cache
def _kernels(dtype: torch.dtype, device: int) -> Kernels | None:
    """Return the kernel; None where there is none to be had, and with a warning where it cannot be compiled or loaded.

    No run needs it.
    """
    if backend_problem("cuda") is not None:
        return None
    return unless_it_fails(
        lambda: load_kernels(softmax_source(dtype), device, THREADS, counted=False),  # nothing is quantized
        lambda reason: log.warning(
            "logits are read by PyTorch's operations, whose sums have another order: %s", reason
        ),
    )
