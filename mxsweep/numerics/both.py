"""Quantize a tensor along its rows and along its columns, as it is needed in two products that sum over either."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mxsweep.formats.backends import check_backend
from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.availability import backend_problem
from mxsweep.numerics.dispatch import check_arguments, quantize, works_on
from mxsweep.numerics.philox import draws_of

ALONG_ROWS, ALONG_COLUMNS = AXES = (-1, -2)


def quantize_both(
    x: Tensor,
    row_format: MXFormat,
    column_format: MXFormat,
    *,
    backend: str = "torch",
    arithmetic: str | None = None,
    generators: tuple[torch.Generator | int | None, torch.Generator | int | None] = (None, None),
    tensor_dims: tuple[Sequence[int] | None, Sequence[int] | None] = (None, None),
    example_dims: int = 0,
    first_example: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return what `quantize` gives of `x` along its last axis, and along its last but one, both in x's layout.

    The same bits as two calls. Where blocks of 16, 32 or 64 divide x evenly and no format has a per-tensor scale, the
    backend "cuda" reads x once. x gets no gradient.

    Args:
        x: at least two dimensions.
        generators, tensor_dims: for rows and for columns; everything else is as in `quantize`, and for both.

    Raises:
        TypeError, ValueError, BackendUnavailable: as `quantize`, for either.
    """
    if isinstance(x, Tensor) and x.ndim < 2:
        raise ValueError(f"x: {x.ndim} dimensions are not allowed; allowed: at least two")
    formats = (row_format, column_format)
    for fmt, axis, generator, dims in zip(formats, AXES, generators, tensor_dims, strict=True):
        check_arguments(x, fmt, axis, generator, dims, example_dims, first_example)
    check_backend(backend, arithmetic or "exact")
    x = x.detach()
    if (
        x.is_cuda
        and backend == "cuda"
        and arithmetic != "native"
        and (works_on(x, backend) or not backend_problem(backend))
    ):
        from mxsweep.numerics.kernels.both_cuda import fits_draws, quantize_both_cuda, takes

        draws = [draws_of(*one, example_dims, first_example) for one in zip(formats, generators, strict=True)]
        fits = all(fits_draws(one, column_format, x.shape, x.ndim - 2) for one in draws)
        if fits and takes(row_format, column_format, x.shape, x.dtype, x.ndim - 2):
            return quantize_both_cuda(x, row_format, column_format, *draws)
    by_row, by_column = (
        quantize(
            x, fmt, axis, backend=backend, arithmetic=arithmetic, generator=generator, tensor_dims=dims,
            example_dims=example_dims, first_example=first_example,
        )
        for fmt, axis, generator, dims in zip(formats, AXES, generators, tensor_dims, strict=True)
    )  # fmt: skip
    return by_row, by_column
