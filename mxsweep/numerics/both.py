"""Quantize a tensor along its rows and along its columns, as it is needed in two products that sum over either."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mxsweep.formats.backends import check_backend
from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.dispatch import check_arguments, check_first_example, check_fit, problem_of, quantize
from mxsweep.numerics.hadamard import SignedHadamard
from mxsweep.numerics.philox import Draws, draws_of

ALONG_ROWS, ALONG_COLUMNS = -1, -2


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
    column_rotation: SignedHadamard | None = None,
) -> tuple[Tensor, Tensor]:
    """Return what `quantize` gives of `x` along its last axis, and along its last but one, both in x's layout.

    The same bits as two calls. Where blocks of 16, 32 or 64 divide x evenly, the backend "cuda" reads x once; twice
    where a format has a per-tensor scale, that of rows a row's and that of columns a matrix's. Of one format in tiles
    both answers are one tensor. x gets no gradient.

    Args:
        x: at least two dimensions.
        generators, tensor_dims: for rows and for columns; everything else is as in `quantize`, and for both.
        column_rotation: what x is multiplied by along its last axis but one before it is quantized along that.

    Raises:
        TypeError, ValueError, BackendUnavailable: as `quantize`, for either.
    """
    if isinstance(x, Tensor) and x.ndim < 2:
        raise ValueError(f"x: {x.ndim} dimensions are not allowed; allowed: at least two")
    (by_rows, by_columns), (over_rows, over_columns) = generators, tensor_dims
    if backend == "cuda" and isinstance(x, Tensor) and x.is_cuda and not problem_of(x, backend):
        check_first_example(first_example)
        drawn = by_rows is not None, by_columns is not None
        dims = None if over_rows is None else tuple(over_rows), None if over_columns is None else tuple(over_columns)
        order = None if column_rotation is None else column_rotation.order
        if _is_launched(x.shape, x.dtype, (row_format, column_format), arithmetic, drawn, dims, example_dims, order):
            from mxsweep.numerics.kernels.both_cuda import quantize_both_cuda

            row_draws = draws_of(row_format, by_rows, example_dims, first_example)
            column_draws = draws_of(column_format, by_columns, example_dims, first_example)
            return quantize_both_cuda(x.detach(), row_format, column_format, row_draws, column_draws, column_rotation)
    check_arguments(x, row_format, ALONG_ROWS, by_rows, over_rows, example_dims, first_example)
    check_arguments(x, column_format, ALONG_COLUMNS, by_columns, over_columns, example_dims, first_example)
    check_backend(backend, arithmetic or "exact")
    x = x.detach()
    beside: dict[str, Any] = {
        "backend": backend,
        "arithmetic": arithmetic,
        "example_dims": example_dims,
        "first_example": first_example,
    }
    by_row = quantize(x, row_format, ALONG_ROWS, generator=by_rows, tensor_dims=over_rows, **beside)
    if column_rotation is None and _is_one(x.ndim, row_format, column_format, over_rows, over_columns):
        return by_row, by_row
    rotated = x if column_rotation is None else column_rotation.rotate(x, ALONG_COLUMNS)
    return by_row, quantize(
        rotated, column_format, ALONG_COLUMNS, generator=by_columns, tensor_dims=over_columns, **beside
    )


@functools.lru_cache(maxsize=4096)  # since each step of a training asks the same
def _is_launched(
    shape: torch.Size, dtype: torch.dtype, formats: tuple[MXFormat, MXFormat], arithmetic: str | None,
    has_generator: tuple[bool, bool], tensor_dims: tuple[tuple[int, ...] | None, tuple[int, ...] | None],
    example_dims: int, order: int | None,
) -> bool:  # fmt: skip
    """Return whether kernels quantize such a tensor both ways at once; raise where `quantize` would for either."""
    from mxsweep.numerics.kernels.both_cuda import fits_draws, takes_both

    for fmt, axis, given, over in zip(formats, (ALONG_ROWS, ALONG_COLUMNS), has_generator, tensor_dims, strict=True):
        if not isinstance(fmt, MXFormat):
            return False  # which is refused by its name
        check_fit(dtype, len(shape), fmt, axis, given, over, example_dims)
    check_backend("cuda", arithmetic or "exact")
    draws = Draws(0, example_dims, None) if any(fmt.rounding == "stochastic" for fmt in formats) else None
    return (
        arithmetic != "native"
        and fits_draws(draws, formats[1], shape, len(shape) - 2)
        and takes_both(*formats, shape, dtype, tensor_dims, order)
    )


def _is_one(
    ndim: int, row_format: MXFormat, column_format: MXFormat, over_rows: Sequence[int] | None,
    over_columns: Sequence[int] | None,
) -> bool:  # fmt: skip
    """Return whether tiles have one answer, whichever of the two axes is asked for: those that draw nothing have."""
    if isinstance(row_format.block_size, int) or row_format != column_format or row_format.rounding == "stochastic":
        return False
    rows, columns = (None if over is None else {dim % ndim for dim in over} for over in (over_rows, over_columns))
    return not row_format.tensor_scale or rows == columns
