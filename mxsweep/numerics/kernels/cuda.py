"""Quantize on a GPU: kernels compiled for a format, launched on torch's current stream.

One pass over memory: each thread reads 16 bytes, the threads of a block exchange its maximum, and the elements are
written. Blocks along another axis go to the kernel of both_cuda.py, where that takes them. Tiles, long blocks and those
that end short go to tiles.cu's: a warp or a thread block has each, 16 bytes to a thread; where rows are no whole pieces
of these, a warp or a thread, an element at a time. A per-tensor scale costs one more reading of the tensor.

The kernels are the torch operator `mxsweep::quantize`, whose arguments are plain values, so that torch.compile
and other followers of operators see it; where there are none, the dispatcher is not asked.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mxsweep.formats.backends import BackendUnavailable
from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.blocks import block_axes
from mxsweep.numerics.kernels.both_cuda import NO_DRAWS, fits_draws, launch_both, takes
from mxsweep.numerics.kernels.compile import THREADS, Kernels, compile_source, load_kernels, on
from mxsweep.numerics.kernels.plain_tensors import as_vectors, is_plain
from mxsweep.numerics.kernels.source import (
    VECTOR_BYTES,
    WARP,
    block_length,
    format_initializer,
    kernel_source,
    lanes_of,
)
from mxsweep.numerics.philox import Draws
from mxsweep.numerics.reference.definition import tensor_scale_over

# Elements that a thread block of `mx_tensor_scales` reads at least, so that one reads a token's activations; and thread
# blocks that a large group gets at most, about as many as a GPU runs at once.
_THREAD_BLOCK_READS = 16384
_GROUP_THREAD_BLOCKS = 1024
_ACROSS = 8  # tiles.cu's
_MOST_KEPT = 8
TILE_KERNELS = (
    "mx_vector_tiles_by_warp",
    "mx_vector_tiles",
    "mx_long_columns",
    "mx_tiles_by_warp",
    "mx_tiles_by_thread",
)


def quantize_cuda(
    x: Tensor,
    fmt: MXFormat,
    axis: int,
    draws: Draws | None,
    tensor_dims: Sequence[int] | None,
    tensor_amax: Tensor | None = None,
    prescale: float = 1.0,
) -> Tensor:
    """Quantize in exact arithmetic a tensor on a GPU, without checks and gradient.

    Args:
        prescale: as for `quantize_rescaled`.

    Returns:
        A contiguous tensor of x's shape and dtype.

    Raises:
        BackendUnavailable: x is not on a CUDA GPU, the kernel cannot be compiled, or a per-tensor scale is wanted over
            dimensions that are not the last ones.
    """
    if not x.is_cuda:
        raise BackendUnavailable(f"backend 'cuda' needs a tensor on a CUDA GPU, and this one is on {x.device.type}")
    if fmt.tensor_scale:
        _group_size(x, tensor_dims)
    draws = draws or NO_DRAWS
    if is_plain(x):
        return _quantize(x, fmt, axis, tensor_dims, draws, tensor_amax, prescale)
    key = draws.key - 2**64 if draws.key >= 2**63 else draws.key  # an operator's integers are signed
    answer: Tensor = torch.ops.mxsweep.quantize(
        x, str(fmt), axis, None if tensor_dims is None else list(tensor_dims), key, draws.example_dims,
        draws.first_example, tensor_amax, prescale,
    )  # fmt: skip
    return answer


_SCHEMA = (
    "quantize(Tensor x, str fmt, int axis, int[]? tensor_dims, int key, int example_dims, int? first_example, "
    "Tensor? tensor_amax, float prescale=1.0) -> Tensor"
)
_library = torch.library.Library("mxsweep", "DEF")
_library.define(_SCHEMA)


def _operator(
    x: Tensor, fmt: str, axis: int, tensor_dims: list[int] | None, key: int, example_dims: int,
    first_example: int | None, tensor_amax: Tensor | None, prescale: float = 1.0,
) -> Tensor:  # fmt: skip
    draws = Draws(key % 2**64, example_dims, first_example)
    return _quantize(x, _parse(fmt), axis, tensor_dims, draws, tensor_amax, prescale)


def _quantize(
    x: Tensor, fmt: MXFormat, axis: int, tensor_dims: Sequence[int] | None, draws: Draws, tensor_amax: Tensor | None,
    prescale: float,
) -> Tensor:  # fmt: skip
    x = as_vectors(x)
    y = torch.empty_like(x)
    if x.numel():
        with on(x.device):
            _launch(x, y, fmt, axis, tensor_dims, draws, tensor_amax, prescale)
    return y


_library.impl("quantize", _operator, "CUDA")
_library.impl("quantize", lambda x, *_: torch.empty_like(x, memory_format=torch.contiguous_format), "Meta")
_parse = functools.cache(MXFormat.parse)


def _launch(
    x: Tensor, y: Tensor, fmt: MXFormat, axis: int, tensor_dims: Sequence[int] | None, draws: Draws,
    tensor_amax: Tensor | None, prescale: float = 1.0,
) -> None:  # fmt: skip
    fmt, axis = _as_block(fmt, axis)
    (first, *_) = blocked = block_axes(x.ndim, fmt.block_size, axis)
    first_example = -1 if draws.first_example is None else draws.first_example
    scales, group = _tensor_scales(x, fmt, tensor_dims, tensor_amax) if fmt.tensor_scale else (None, 1)
    scales_at = 0 if scales is None else scales.data_ptr()
    drawn = draws if fmt.rounding == "stochastic" else None
    if first < x.ndim - 1 and takes(None, fmt, x.shape, x.dtype, first) and fits_draws(drawn, fmt, x.shape, first):
        launch_both(x, None, y, None, fmt, first, 0, draws.key, draws, prescale, scales=(scales_at, group))
        return
    pointers, beside = (
        (x.data_ptr(), y.data_ptr()), (scales_at, group, draws.key, draws.example_size(x.shape), first_example),
    )  # fmt: skip
    lanes = lanes_of(fmt, x.dtype)
    shared = lanes and not (fmt.four_over_six and lanes & (lanes - 1))  # errors are summed up by halves
    if shared and blocked == (x.ndim - 1,) and x.shape[-1] % block_length(fmt) == 0:
        vectors = x.nbytes // VECTOR_BYTES
        threads = -(-vectors // (WARP // lanes * lanes)) * WARP
        _kernels(fmt, x.dtype, x.device.index, prescale).launch("mx_rows", threads, *pointers, vectors, *beside)
        return
    way = _way(x.shape, x.dtype, fmt, first, 0 if drawn is None else drawn.example_size(x.shape))
    kernels = _tile_kernels(fmt, x.dtype, x.device.index, prescale, way.kernel, way.kept)
    kernels.launch(way.kernel, way.threads, *pointers, *way.tiling.arguments, *beside)


@functools.cache
def _as_block(fmt: MXFormat, axis: int) -> tuple[MXFormat, int]:
    """Return a format and an axis with the same answer: those of a block where a tile is one row or one column."""
    if isinstance(fmt.block_size, int) or min(fmt.block_size) > 1:
        return fmt, axis
    rows, columns = fmt.block_size
    return replace(fmt, block_size=rows * columns), (-1 if rows == 1 else -2)


@dataclass(frozen=True)
class _Tiling:
    """Describe a contiguous tensor as `outer` matrices, height x width, cut into tiles, rows x columns; see mx.cu."""

    outer: int
    height: int
    width: int
    rows: int
    columns: int

    @property
    def arguments(self) -> tuple[int, ...]:
        return (self.outer, self.height, self.width, self.rows, self.columns)

    @property
    def count(self) -> int:
        """Return how many tiles there are."""
        return self.outer * -(-self.height // self.rows) * -(-self.width // self.columns)


@dataclass(frozen=True)
class _Way:
    """Say by which kernel of tiles.cu a tensor is quantized.

    Attributes:
        threads: how many are launched.
        tiling: in vectors along a row where the kernel takes these.
        kept: vectors that a thread keeps in registers.
    """

    kernel: str
    threads: int
    tiling: _Tiling
    kept: int = 1


@functools.lru_cache(maxsize=4096)
def _way(shape: torch.Size, dtype: torch.dtype, fmt: MXFormat, first: int, example: int) -> _Way:
    """Return the way for blocks of a format that extend along dimension ``first`` and, in tiles, the next.

    Args:
        example: how many elements draw random numbers as an example, within which a thread's 16 bytes have to lie; 0
            where none does.
    """
    tiling = _tiling(shape, fmt, first)
    vector = VECTOR_BYTES // dtype.itemsize
    is_column = tiling.columns == 1 and tiling.width > 1
    by_vectors = tiling.width % vector == 0 and example % vector == 0 and not (is_column and fmt.four_over_six)
    if by_vectors and is_column:
        tiling = replace(tiling, width=tiling.width // vector)
        threads = replace(tiling, columns=_ACROSS).count * THREADS
        return _Way("mx_long_columns", threads, tiling, _kept(min(tiling.rows, tiling.height) * _ACROSS, THREADS))
    if by_vectors and (tiling.columns % vector == 0 or tiling.columns >= tiling.width):
        tiling = replace(tiling, width=tiling.width // vector, columns=-(-tiling.columns // vector))
        vectors = min(tiling.rows, tiling.height) * min(tiling.columns, tiling.width)
        if vectors <= WARP * _MOST_KEPT:
            return _Way("mx_vector_tiles_by_warp", tiling.count * WARP, tiling, _kept(vectors, WARP))
        return _Way("mx_vector_tiles", tiling.count * THREADS, tiling, _kept(vectors, THREADS))
    if is_column:
        return _Way("mx_tiles_by_thread", tiling.count, tiling)
    return _Way("mx_tiles_by_warp", tiling.count * WARP, tiling)


def _kept(vectors: int, threads: int) -> int:
    """Return how many vectors of a block a thread keeps: a power of two, so that kernels are few."""
    return min(_MOST_KEPT, 1 << (-(-vectors // threads) - 1).bit_length())


def _tiling(shape: torch.Size, fmt: MXFormat, first: int) -> _Tiling:
    """Return the tiles that blocks from dimension `first` on are; a block along one dimension is a tile one wide."""
    elements = math.prod(shape)
    if not isinstance(fmt.block_size, int):
        rows, columns = fmt.block_size
        return _Tiling(elements // (shape[-2] * shape[-1]), shape[-2], shape[-1], rows, columns)
    length = shape[first]
    size = fmt.block_size or length
    inner = math.prod(shape[first + 1 :])
    if inner == 1:
        return _Tiling(elements // length, 1, length, 1, size)
    return _Tiling(elements // (length * inner), length, inner, size, 1)


def _group_size(x: Tensor, tensor_dims: Sequence[int] | None) -> int:
    """Return how many neighbouring elements share a per-tensor scale."""
    dims = sorted({dim % x.ndim for dim in (range(x.ndim) if tensor_dims is None else tensor_dims)})
    if dims != list(range(x.ndim - len(dims), x.ndim)):
        raise BackendUnavailable(
            f"backend 'cuda' takes the maximum of a per-tensor scale over the last dimensions, and tensor_dims is "
            f"{tuple(dims)} of {x.ndim}; arrange the tensor so that these are the last, or use backend 'torch'"
        )
    return math.prod(x.shape[dim] for dim in dims)


def _tensor_scales(
    x: Tensor, fmt: MXFormat, tensor_dims: Sequence[int] | None, tensor_amax: Tensor | None
) -> tuple[Tensor, int]:
    """Return (the per-tensor scale g of each group of neighbouring elements, the size of a group)."""
    group = _group_size(x, tensor_dims)
    if tensor_amax is not None:
        return tensor_scale_over(x, fmt, tensor_dims, tensor_amax.to(x.device)).contiguous(), group
    groups = x.numel() // group
    scales = torch.empty(groups, dtype=torch.float32, device=x.device)
    thread_blocks = min(_GROUP_THREAD_BLOCKS, -(-group // _THREAD_BLOCK_READS))
    work = _workspace(x.device, torch.cuda.current_stream(x.device).cuda_stream, groups) if thread_blocks > 1 else None
    _kernels(fmt, x.dtype, x.device.index, 1.0).launch(
        "mx_tensor_scales", groups * thread_blocks * THREADS,
        x.data_ptr(), scales.data_ptr(), 0 if work is None else work.data_ptr(), group, thread_blocks,
    )  # fmt: skip
    return scales, group


_workspaces: dict[tuple[torch.device, int], Tensor] = {}


def _workspace(device: torch.device, stream: int, groups: int) -> Tensor:
    """Return two zeros a group, which `mx_tensor_scales` leaves zero; its launches on one stream take turns."""
    kept = _workspaces.get((device, stream))
    if kept is None or kept.numel() < 2 * groups:
        kept = _workspaces[device, stream] = torch.zeros(2 * groups, dtype=torch.int32, device=device)
    return kept


@functools.cache
def _kernels(fmt: MXFormat, dtype: torch.dtype, device: int, prescale: float) -> Kernels:
    return load_kernels(kernel_source(fmt, dtype, "blocks.cu", prescale=prescale), device)


@functools.cache
def _tile_kernels(fmt: MXFormat, dtype: torch.dtype, device: int, prescale: float, name: str, kept: int) -> Kernels:
    return load_kernels(tile_source(fmt, dtype, prescale, kept, name), device)


def tile_source(fmt: MXFormat, dtype: torch.dtype, prescale: float, kept: int, *names: str) -> str:
    """Return the source of kernels for tiles, and for blocks of every other kind: those of these names."""
    lines = (
        f"#define MX_KEPT {kept}",
        f"#define MX_COLUMN_FORMAT {format_initializer(fmt, dtype, prescale)}",
        *(f"#define WITH_{name}" for name in names),
    )
    return kernel_source(fmt, dtype, "columns.cu", "tiles.cu", more=lines, prescale=prescale)


def compile_kernels(fmt: MXFormat, dtype: torch.dtype, arch: str, cache: Any = None) -> Any:
    """Compile the kernels for a format and a dtype, as :func:`compile_source` does."""
    return compile_source(kernel_source(fmt, dtype, "blocks.cu"), arch, cache)
