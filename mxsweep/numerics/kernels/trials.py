"""Try a kernel that takes the place of PyTorch's operations: what trials of bits have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from mxsweep.machine.out_of_memory import is_out_of_memory

T = TypeVar("T")


def unless_it_fails(work: Callable[[], T], say: Callable[[str], object]) -> T | None:
    """Return what work does; None where anything goes wrong in it, which is said.

    Where memory runs out, that is raised: it says nothing of a kernel, and another time there may be room.
    """
    try:
        return work()
    except Exception as error:  # of whatever the compiler, the loader and the driver raise
        if is_out_of_memory(error):
            raise
        say(str(error))
        return None


def rows_of_all_sizes(generator: torch.Generator, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Draw four rows or more, whose sizes are powers of two apart: one of zeros, one with an Inf, one with a NaN."""
    x, sizes = (
        torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
        for shape in ((rows, columns), (rows, 1))
    )
    x *= sizes.float().mul_(3).exp2_().to(dtype)
    x[1], x[2, 0], x[3, -1] = 0.0, torch.inf, torch.nan
    return x


def count_differing(found: Tensor, expected: Tensor) -> int:
    """Return how many elements of two tensors have other bits, where a NaN is as good as another."""
    integers = torch.int32 if found.dtype == torch.float32 else torch.int16
    same = (found.view(integers) == expected.view(integers)) | (found.isnan() & expected.isnan())
    return int(same.numel() - same.sum())
