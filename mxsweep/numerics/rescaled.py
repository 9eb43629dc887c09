"""Quantize blocks under another scale than their format alone would choose, in exact arithmetic.

A **prescale** p shrinks the elements of a block under the scale that the block has without it, so that what is read
back stands for p x:

    y = q(p x / s) * s

With p = 3/4 no element of fp4_e2m1 is beyond the largest value, since a power-of-two scale leaves a maximum below 8,
and stochastic rounding has no bias (Tseng et al., arXiv 2502.20586, algorithm 3). The product of such operands is
divided by p.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mxsweep.formats.backends import BackendUnavailable, check_backend
from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.blocks import block_regions
from mxsweep.numerics.dispatch import check_arguments, draws_of, problem_of
from mxsweep.numerics.kernels.cpu import quantize_by_library
from mxsweep.numerics.kernels.cpu_rows import Asked
from mxsweep.numerics.reference.definition import elementwise_inputs, quantize_exact, without_inf


def quantize_rescaled(
    x: Tensor,
    fmt: MXFormat,
    axis: int = -1,
    *,
    prescale: float = 1.0,
    backend: str = "torch",
    generator: torch.Generator | int | None = None,
    tensor_dims: Sequence[int] | None = None,
    example_dims: int = 0,
    first_example: int | None = None,
) -> Tensor:
    """Return what `prescale` times x becomes, in x's shape and dtype; there is no gradient.

    Args:
        prescale: a positive number, that x / s is multiplied by.
        backend: "torch", or "cuda": the same bits from one kernel.
        generator: and all others are as for :func:`mxsweep.numerics.quantize`.

    Raises:
        TypeError, ValueError, BackendUnavailable: as `quantize`.
    """
    check_arguments(x, fmt, axis, generator, tensor_dims, example_dims, first_example)
    check_backend(backend, "exact")
    if backend == "microxcaling":
        raise BackendUnavailable("backend 'microxcaling' has no prescale")
    draws = draws_of(fmt, generator, example_dims, first_example)
    if backend == "cuda":
        if problem := problem_of(x, backend):
            raise BackendUnavailable(problem)
        from mxsweep.numerics.kernels.cuda import quantize_cuda

        return quantize_cuda(x.detach(), fmt, axis, draws, tensor_dims, prescale=prescale)
    x = x.detach()
    quantized = quantize_by_library(x, Asked(fmt, axis, "exact", tensor_dims, prescale=prescale, draws=draws))
    if quantized is not None:
        return quantized
    x = without_inf(x, fmt)
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    beside = elementwise_inputs(x, fmt, draws, tensor_dims)
    for region in block_regions(x.shape, fmt.block_size, axis):
        views = [region.view(tensor) for tensor in (x, y, *beside)]
        quantize_exact(views, region.block_dims, fmt, prescale)
    return y
