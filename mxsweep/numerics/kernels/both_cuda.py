"""Quantize a matrix along its rows and along its columns on a GPU in one reading, or along its columns alone: both.cu.

The kernel takes blocks of 16, 32 or 64 that cut the matrix evenly, along columns others, too, without a choice of two
scales. A row's own per-tensor scale and a matrix's for its columns, rotated or not, take another kernel, and reading,
before. Both together are the torch operator `mxsweep::quantize_both`, whose arguments are the formats' texts.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from mxsweep.formats.mxformat import INF_SATURATES, MXFormat
from mxsweep.numerics.hadamard import SignedHadamard
from mxsweep.numerics.kernels.compile import THREADS, Kernels, load_kernels, on
from mxsweep.numerics.kernels.plain_tensors import as_vectors, is_plain
from mxsweep.numerics.kernels.source import (
    VECTOR_BYTES,
    WARP,
    block_length,
    format_fields,
    kernel_source,
    lanes_of,
)
from mxsweep.numerics.kernels.ways import divider
from mxsweep.numerics.philox import Draws
from mxsweep.numerics.wanted_exponents import ranges_at

_ROW_BLOCKS = (16, 32, 64)
# Lanes that lie side by side along a row, and how many vectors a thread may then hold, in the order in which they are
# tried: by 8 lanes 128 bytes are read and written together. The latter ones are for columns alone.
_LAYOUTS, _MORE_LAYOUTS = ((8, 8), (16, 8), (32, 8), (4, 8)), ((8, 16), (4, 16), (2, 16))
# Thread blocks that are to fit on a multiprocessor at a time, where a thread holds up to so many vectors, and else: a
# third would leave too few registers for more.
_FEW_HELD, _RESIDENT, _RESIDENT_ELSE = 4, 3, 2
NO_DRAWS = Draws(0, 0, None)


@functools.lru_cache(maxsize=4096)
def takes(
    row_format: MXFormat | None, column_format: MXFormat, shape: torch.Size, dtype: torch.dtype, axis: int
) -> bool:
    """Return whether the kernel can quantize a tensor of ``shape`` along ``axis``, and along its last one, too.

    Args:
        row_format: that along the last axis; None where only ``axis`` is asked for.
        column_format: that along ``axis``, which is none of the last.
    """
    return takes_formats(row_format, column_format, dtype) and _are_whole(row_format, column_format, shape, dtype, axis)


@functools.lru_cache(maxsize=4096)
def takes_both(
    row_format: MXFormat, column_format: MXFormat, shape: torch.Size, dtype: torch.dtype,
    tensor_dims: tuple[tuple[int, ...] | None, ...], order: int | None,
) -> bool:  # fmt: skip
    """Return whether kernels can quantize a tensor of ``shape`` along its last axis and along the last but one.

    Args:
        tensor_dims: of rows and of columns, as in `quantize`; those of a format with a per-tensor scale have to be
            a row's, and the last two dimensions.
        order: of the rotation of the columns, whose signs may be others each time; None without one.
    """
    ndim = len(shape)
    over = [None if dims is None else {dim % ndim for dim in dims} for dims in tensor_dims]
    whole = [set(range(ndim)) if dims is None else dims for dims in over]
    if (row_format.tensor_scale and whole[0] != {ndim - 1}) or (
        column_format.tensor_scale and whole[1] != {ndim - 2, ndim - 1}
    ):
        return False
    if order is not None and (
        order < 2 or order & (order - 1) or block_length(column_format) % order or column_format.inf == INF_SATURATES
    ):
        return False
    return _takes_blocks(row_format, column_format, dtype) and _are_whole(
        row_format, column_format, shape, dtype, ndim - 2
    )


def _are_whole(
    row_format: MXFormat | None, column_format: MXFormat, shape: torch.Size, dtype: torch.dtype, axis: int
) -> bool:
    """Return whether blocks, and the vectors that threads read, cut a tensor evenly."""
    width = math.prod(shape[axis + 1 :])
    row = 0 if row_format is None else block_length(row_format)
    return (
        math.prod(shape) > 0
        and shape[axis] % block_length(column_format) == 0
        and width * dtype.itemsize % VECTOR_BYTES == 0
        and (row == 0 or shape[-1] % row == 0)
    )


@functools.cache
def takes_formats(row_format: MXFormat | None, column_format: MXFormat, dtype: torch.dtype) -> bool:
    """Return whether there is a kernel for these formats."""
    formats = (column_format,) if row_format is None else (row_format, column_format)
    scaled = row_format is not None and any(fmt.tensor_scale for fmt in formats)  # which takes_both asks about
    return not scaled and _takes_blocks(row_format, column_format, dtype)


@functools.cache
def _takes_blocks(row_format: MXFormat | None, column_format: MXFormat, dtype: torch.dtype) -> bool:
    formats = (column_format,) if row_format is None else (row_format, column_format)
    if any(fmt.four_over_six or not block_length(fmt) for fmt in formats):
        return False
    if row_format is not None and block_length(row_format) not in _ROW_BLOCKS:
        return False
    if len({fmt.inf for fmt in formats}) > 1:  # what was read is changed once for both
        return False
    return _lanes_across(row_format, column_format, dtype) > 0


def fits_draws(draws: Draws | None, column_format: MXFormat, shape: torch.Size, axis: int) -> bool:
    """Return whether a block along ``axis``, with what lies beside it, lies within one example."""
    if draws is None:
        return True
    return draws.example_size(shape) % (block_length(column_format) * math.prod(shape[axis + 1 :])) == 0


def quantize_both_cuda(
    x: Tensor, row_format: MXFormat, column_format: MXFormat, row_draws: Draws | None, column_draws: Draws | None,
    rotation: SignedHadamard | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Quantize along the last axis and along the last but one, in exact arithmetic, without checks and gradient.

    `takes_both` and `fits_draws` hold of the arguments; both draws are of the same examples.

    Returns:
        Two contiguous tensors of x's shape and dtype.

    Raises:
        BackendUnavailable: the kernel cannot be compiled.
    """
    draws = row_draws or column_draws or NO_DRAWS
    row_key, column_key = 0 if row_draws is None else row_draws.key, 0 if column_draws is None else column_draws.key
    if is_plain(x):
        return _quantize(x, row_format, column_format, row_key, column_key, draws, rotation)
    order, negative = (1, 0) if rotation is None else (rotation.order, rotation.negative)
    answer: tuple[Tensor, Tensor] = torch.ops.mxsweep.quantize_both(
        x, str(row_format), str(column_format), _signed(row_key), _signed(column_key), draws.example_dims,
        draws.first_example, order, _signed(negative),
    )  # fmt: skip
    return answer


def launch_both(
    x: Tensor, by_row: Tensor | None, by_column: Tensor, row_format: MXFormat | None, column_format: MXFormat,
    axis: int, row_key: int, column_key: int, draws: Draws, column_prescale: float = 1.0,
    rotation: SignedHadamard | None = None, scales: tuple[int, int] = (0, 1),
) -> None:  # fmt: skip
    """Launch the kernels for a contiguous x and what they write; `draws` says which examples they are of.

    Args:
        scales: of columns alone, the address of per-tensor scales and how many neighbouring elements share one.
    """
    order, negative = (1, 0) if rotation is None else (rotation.order, rotation.negative)
    ranges = ranges_at(x.device, column_format, *() if row_format is None else (row_format,))
    kernels, scaled, block, rows, width, example, across, multiplier, shift = _launch(
        row_format, column_format, x.dtype, x.device.index, x.shape, axis, column_prescale, order, bool(ranges),
        draws.example_dims,
    )  # fmt: skip
    first_example = -1 if draws.first_example is None else draws.first_example
    row_scales, strips, maxima = *scales, 0
    if scaled:
        scratch = torch.empty(rows + rows // block, dtype=torch.float32, device=x.device)
        row_scales, strips = scratch.data_ptr(), x.shape[axis] // block
        maxima = row_scales + rows * scratch.itemsize
        kernels.launch("mx_maxima", rows // block * THREADS, x.data_ptr(), row_scales, maxima, width, negative)
    kernels.launch(
        "mx_both", rows // block * across * WARP,
        x.data_ptr(), 0 if by_row is None else by_row.data_ptr(), by_column.data_ptr(), rows, width, row_key,
        column_key, example, first_example, row_scales, maxima, strips, negative, across,
        multiplier, shift, *ranges,
    )  # fmt: skip


@functools.lru_cache(maxsize=4096)
def _launch(
    row_format: MXFormat | None, column_format: MXFormat, dtype: torch.dtype, device: int, shape: torch.Size, axis: int,
    column_prescale: float, order: int, keeps: bool, example_dims: int,
) -> tuple[Kernels, bool, int, int, int, int, int, int, int]:  # fmt: skip
    """Return the kernels, whether maxima are found first, and a column's block; of the matrix that the kernels see its
    rows, the vectors of a row, the elements of an example, how many tiles these are, and what divides by that number.
    """
    width = math.prod(shape[axis + 1 :]) * dtype.itemsize // VECTOR_BYTES
    rows = math.prod(shape[: axis + 1])
    across = -(-width // _lanes_across(row_format, column_format, dtype))
    kernels = _kernels(row_format, column_format, dtype, device, column_prescale, order, keeps)
    scaled = row_format is not None and (row_format.tensor_scale or column_format.tensor_scale)
    example = math.prod(shape[example_dims:])
    return kernels, scaled, block_length(column_format), rows, width, example, across, *divider(across)


def both_source(
    row_format: MXFormat | None, column_format: MXFormat, dtype: torch.dtype, column_prescale: float = 1.0,
    order: int = 1, keeps: bool = False,
) -> str:  # fmt: skip
    """Return the kernel's source for two formats; for the columns' alone where there is no other."""
    across, block = _lanes_across(row_format, column_format, dtype), block_length(column_format)
    fmt = MXFormat(column_format.element, 16) if row_format is None else row_format  # of rows that nobody asks for
    scaled = row_format is not None and (row_format.tensor_scale or column_format.tensor_scale)
    return kernel_source(
        fmt,
        dtype,
        *("columns.cu", "butterflies.cu", "both.cu", *["maxima.cu"] * scaled),
        keeps=keeps,
        macros={
            "MX_COLUMN_FORMAT": format_fields(column_format, dtype, column_prescale),
            "MX_COLUMN_BLOCK": block,
            "MX_WITH_ROWS": row_format is not None,
            "MX_RESIDENT": _RESIDENT if block * across <= WARP * _FEW_HELD else _RESIDENT_ELSE,
            "MX_ACROSS": across,
            "MX_LOG_ROTATION": order.bit_length() - 1,
            "MX_ROTATION_SCALE": order**-0.5,
        },
    )


@functools.cache
def _lanes_across(row_format: MXFormat | None, column_format: MXFormat, dtype: torch.dtype) -> int:
    """Return how many lanes lie side by side; 0 where a warp cannot hold a block of a column."""
    block, lanes = block_length(column_format), 1 if row_format is None else lanes_of(row_format, dtype)
    for across, most in _LAYOUTS + (_MORE_LAYOUTS if row_format is None else ()):
        held, rest = divmod(block * across, WARP)
        if across >= lanes and not rest and held <= most:
            return across
    return 0


def _signed(key: int) -> int:
    return key - 2**64 if key >= 2**63 else key  # an operator's integers are signed


@functools.cache
def _kernels(
    row_format: MXFormat | None, column_format: MXFormat, dtype: torch.dtype, device: int, column_prescale: float,
    order: int, keeps: bool,
) -> Kernels:  # fmt: skip
    return load_kernels(both_source(row_format, column_format, dtype, column_prescale, order, keeps), device)


def _operator(
    x: Tensor, row_format: str, column_format: str, row_key: int, column_key: int, example_dims: int,
    first_example: int | None, order: int = 1, negative: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    draws = Draws(0, example_dims, first_example)
    rotation = None if order == 1 else SignedHadamard(order, negative % 2**64)
    return _quantize(x, _parse(row_format), _parse(column_format), row_key % 2**64, column_key % 2**64, draws, rotation)


def _quantize(
    x: Tensor, row_format: MXFormat, column_format: MXFormat, row_key: int, column_key: int, draws: Draws,
    rotation: SignedHadamard | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    x = as_vectors(x)
    by_row, by_column = torch.empty_like(x), torch.empty_like(x)
    with on(x.device):
        launch_both(
            x, by_row, by_column, row_format, column_format, x.ndim - 2, row_key, column_key, draws, rotation=rotation
        )
    return by_row, by_column


def _meta(x: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(2))  # type: ignore[return-value]


_parse = functools.cache(MXFormat.parse)
_library = torch.library.Library("mxsweep", "FRAGMENT")
_library.define(
    "quantize_both(Tensor x, str row_format, str column_format, int row_key, int column_key, int example_dims, "
    "int? first_example, int order=1, int negative=0) -> (Tensor, Tensor)"
)
_library.impl("quantize_both", _operator, "CUDA")
_library.impl("quantize_both", _meta, "Meta")
