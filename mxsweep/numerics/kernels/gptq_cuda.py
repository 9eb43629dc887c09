"""Round a group of columns for GPTQ on a GPU: gptq.cu, compiled behind mx.cu, whose arithmetic it uses."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
from torch import Tensor

from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.kernels.compile import Kernels, load_kernels, on
from mxsweep.numerics.kernels.source import kernel_source

THREADS = 64  # of a thread block: a row has one thread only, and more blocks reach more of the GPU


def round_columns(
    fmt: MXFormat,
    values: Tensor,
    before: Tensor,
    ratios: Tensor,
    by: Tensor,
    read: Tensor,
    midpoint: Tensor | None,
    q: Tensor,
    change: Tensor,
) -> None:
    """Round columns one after the other as `_round_group` of solvers/gptq.py does: write q and change.

    All are (c, N) float32 but `ratios`.

    Args:
        values: on a GPU, as everything here, and contiguous, as everything but ratios.
        ratios: (c, c), its rows any step apart.
        by, read: of each element's scale, `AppliedScale`'s.

    Raises:
        BackendUnavailable: the kernel cannot be compiled.
    """
    columns, rows = values.shape
    with on(values.device):
        # The scales are given, so that a block's shape makes no difference.
        kernels = _kernels(replace(fmt, block_size=0), values.device.index)
        kernels.launch(
            "gptq_columns", rows,
            values.data_ptr(), before.data_ptr(), ratios.data_ptr(), ratios.stride(0), by.data_ptr(), read.data_ptr(),
            0 if midpoint is None else midpoint.data_ptr(), q.data_ptr(), change.data_ptr(), rows, columns,
        )  # fmt: skip


def columns_source(fmt: MXFormat) -> str:
    """Return mx.cu for a format, and gptq.cu behind it."""
    return kernel_source(fmt, torch.float32, "gptq.cu")


@functools.cache
def _kernels(fmt: MXFormat, device: int) -> Kernels:
    return load_kernels(columns_source(fmt), device, THREADS)
