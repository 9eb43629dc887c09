"""Quantize on a GPU: kernels compiled for a format, launched on torch's current stream.

One pass over memory: each thread reads 16 bytes, the threads of a block exchange its maximum, and the elements are
written. Blocks along another axis go to the kernel of both_cuda.py, where that takes them, all others to those of
ways.py. A per-tensor scale costs one more reading of the tensor where threads cannot keep what it is of.

The kernels are the torch operator `mxsweep::quantize`, whose arguments are plain values, so that torch.compile
and other followers of operators see it; where there are none, the dispatcher is not asked.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mxsweep.formats.backends import BackendUnavailable
from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.blocks import block_axes
from mxsweep.numerics.kernels.both_cuda import NO_DRAWS, fits_draws, launch_both, takes
from mxsweep.numerics.kernels.compile import THREADS, Kernels, load_kernels, on
from mxsweep.numerics.kernels.plain_tensors import as_vectors, is_plain
from mxsweep.numerics.kernels.source import (
    VECTOR_BYTES,
    block_length,
    kernel_source,
    lanes_of,
)
from mxsweep.numerics.kernels.ways import Threads, Way, tile_source, way_of, way_of_groups
from mxsweep.numerics.philox import Draws
from mxsweep.numerics.reference.definition import neighbours_under_one, tensor_scale_over
from mxsweep.numerics.wanted_exponents import ranges_at

# Elements that a thread block of `mx_tensor_scales` reads at least, so that one reads a token's activations; and thread
# blocks that a large group gets at most, about as many as a GPU runs at once.
_THREAD_BLOCK_READS = 16384
_GROUP_THREAD_BLOCKS = 1024


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
    by_rows = blocked == (x.ndim - 1,)
    drawn = draws if fmt.rounding == "stochastic" else None
    example = 0 if drawn is None else drawn.example_size(x.shape)

    def launch(way: Way, kernel: str, *arguments: int, keeps: bool = False) -> None:
        kernels = _tile_kernels(fmt, x.dtype, x.device.index, prescale, way.threads, kernel, keeps)
        kernels.launch(kernel, way.count, x.data_ptr(), *arguments)

    numbers = (draws.key, draws.example_size(x.shape), -1 if draws.first_example is None else draws.first_example)
    if fmt.tensor_scale and tensor_amax is None and by_rows:
        way = way_of_groups(x.shape, x.dtype, fmt, _group_size(x, tensor_dims), example)
        if way is not None:
            launch(way, way.kernel, y.data_ptr(), *way.arguments, *numbers)
            return
    is_both = not by_rows and takes(None, fmt, x.shape, x.dtype, first) and fits_draws(drawn, fmt, x.shape, first)
    is_rows = by_rows and lanes_of(fmt, x.dtype) > 0 and x.shape[-1] % block_length(fmt) == 0
    way = None if is_both or is_rows else way_of(x.shape, x.dtype, fmt, first, example)
    arguments, extremes = () if way is None else way.arguments, None
    if way is not None and way.found:
        matrices = math.prod(x.shape[:first])
        extremes = torch.empty(matrices, way.found, dtype=x.dtype, device=x.device)
        arguments = (extremes.data_ptr(), *arguments)
        launch(way, "mx_column_extremes", *arguments)
    scales, group = _tensor_scales(x, fmt, tensor_dims, tensor_amax, extremes) if fmt.tensor_scale else (None, 1)
    scales_at = 0 if scales is None else scales.data_ptr()
    if is_both:
        launch_both(x, None, y, None, fmt, first, 0, draws.key, draws, prescale, scales=(scales_at, group))
        return
    ranges = ranges_at(x.device, fmt)
    beside = (scales_at, group, *numbers, *ranges)
    if way is not None:
        launch(way, way.kernel, y.data_ptr(), *arguments, *beside, keeps=bool(ranges))
    else:
        vectors = x.nbytes // VECTOR_BYTES
        _kernels(fmt, x.dtype, x.device.index, prescale, bool(ranges)).launch(
            "mx_rows", vectors, x.data_ptr(), y.data_ptr(), vectors, *beside
        )


@functools.cache
def _as_block(fmt: MXFormat, axis: int) -> tuple[MXFormat, int]:
    """Return a format and an axis with the same answer: those of a block where a tile is one row or one column."""
    if isinstance(fmt.block_size, int) or min(fmt.block_size) > 1:
        return fmt, axis
    rows, columns = fmt.block_size
    return replace(fmt, block_size=rows * columns), (-1 if rows == 1 else -2)


def _group_size(x: Tensor, tensor_dims: Sequence[int] | None) -> int:
    """Return how many neighbouring elements share a per-tensor scale."""
    size = neighbours_under_one(x.shape, tensor_dims)
    if size is None:
        dims = sorted({dim % x.ndim for dim in tensor_dims or ()})
        raise BackendUnavailable(
            f"backend 'cuda' takes the maximum of a per-tensor scale over the last dimensions, and tensor_dims is "
            f"{tuple(dims)} of {x.ndim}; arrange the tensor so that these are the last, or use backend 'torch'"
        )
    return size


def _tensor_scales(
    x: Tensor, fmt: MXFormat, tensor_dims: Sequence[int] | None, tensor_amax: Tensor | None, extremes: Tensor | None
) -> tuple[Tensor, int]:
    """Return (the per-tensor scale g of each group of neighbouring elements, the size of a group).

    Args:
        extremes: of each of as many neighbours as there are rows of this tensor, numbers with the same maximum.
    """
    group = _group_size(x, tensor_dims)
    if tensor_amax is not None:
        return tensor_scale_over(x, fmt, tensor_dims, tensor_amax.to(x.device)).contiguous(), group
    groups = x.numel() // group
    scales = torch.empty(groups, dtype=torch.float32, device=x.device)
    read, size = x, group
    if extremes is not None and groups <= len(extremes):
        read, size = extremes, extremes.numel() // groups
    thread_blocks = min(_GROUP_THREAD_BLOCKS, -(-size // _THREAD_BLOCK_READS))
    work = _workspace(x.device, torch.cuda.current_stream(x.device).cuda_stream, groups) if thread_blocks > 1 else None
    _kernels(fmt, x.dtype, x.device.index, 1.0, False).launch(
        "mx_tensor_scales", groups * thread_blocks * THREADS,
        read.data_ptr(), scales.data_ptr(), 0 if work is None else work.data_ptr(), size, thread_blocks,
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
def _kernels(fmt: MXFormat, dtype: torch.dtype, device: int, prescale: float, keeps: bool) -> Kernels:
    return load_kernels(kernel_source(fmt, dtype, "blocks.cu", prescale=prescale, keeps=keeps), device)


@functools.cache
def _tile_kernels(
    fmt: MXFormat, dtype: torch.dtype, device: int, prescale: float, threads: Threads, name: str, keeps: bool
) -> Kernels:
    return load_kernels(tile_source(fmt, dtype, prescale, threads, name, keeps=keeps), device, threads.block)
