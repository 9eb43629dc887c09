"""GPTQ's way through a group of columns on a GPU: gptq.cu, compiled behind mx.cu for the sake of its arithmetic."""

from __future__ import annotations

import functools
from dataclasses import replace
from importlib import resources

import torch
from torch import Tensor

from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.kernels.cuda import Kernels, kernel_source, load_kernels

THREADS = 64  # of a thread block: a row has one thread only, and more blocks reach more of the GPU


def walk_columns(
    fmt: MXFormat,
    values: Tensor,
    before: Tensor,
    ratios: Tensor,
    scale: Tensor,
    midpoint: Tensor | None,
    q: Tensor,
    change: Tensor,
) -> None:
    """`_columns` of gptq.py: writes q and change, (c, N) float32 as values, before, scale and midpoint are.

    Args:
        values: on a GPU, as everything here, and contiguous, as everything but ratios.
        ratios: (c, c), its rows any step apart.

    Raises:
        BackendUnavailable: the kernel cannot be compiled.
    """
    columns, rows = values.shape
    with torch.cuda.device(values.device):
        # The scales are given, so that a block's shape makes no difference.
        kernels = _kernels(replace(fmt, block_size=0), values.device.index)
        kernels.launch(
            "gptq_columns", rows,
            values.data_ptr(), before.data_ptr(), ratios.data_ptr(), ratios.stride(0), scale.data_ptr(),
            0 if midpoint is None else midpoint.data_ptr(), q.data_ptr(), change.data_ptr(), rows, columns,
        )  # fmt: skip


def columns_source(fmt: MXFormat) -> str:
    """mx.cu for a format, and gptq.cu."""
    own = resources.files("mxsweep.numerics.kernels").joinpath("gptq.cu").read_text(encoding="utf-8")
    return "\n".join((kernel_source(fmt, torch.float32), own))


@functools.cache
def _kernels(fmt: MXFormat, device: int) -> Kernels:
    return load_kernels(columns_source(fmt), device, THREADS)
