"""Cut a tensor into blocks without copying or padding it.

A block is a view: an axis of length n = k * b becomes two, (k, b), and reductions over the second see one
block each. An axis that is no multiple of the block ends in a shorter block, so the tensor falls into two
regions (four for a tile), each cut evenly; nothing is read from a padding.

Shapes: x [..., n, ...] -> region [..., k, b, ...]; per-block tensors [..., k, 1, ...], which broadcast.

On a CPU the work on a region is done in pieces small enough to stay in a core's cache: quantization is about
ten passes over its data, and over a large tensor each would go to memory. Where threads take one each, see
piece_threads.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from mxsweep.formats.mxformat import BlockSize

# Elements of a piece: 1 MiB of float32, which with its temporaries stays in a core's cache (of 2^14 to 2^20 elements
# the fastest on one and on two threads), and enough to share among threads.
PIECE = 2**18
# ATen gives a thread at least this many elements of an elementwise operation (at::internal::GRAIN_SIZE).
GRAIN_SIZE = 2**15


@dataclass(frozen=True)
class Region:
    """Describe a part of a tensor that is cut evenly into blocks.

    Attributes:
        index: the slice of each dimension.
        splits: (dimension, number of blocks, block length) for each blocked dimension, ascending.
        blocks: the slice of each dimension of a tensor of `blocks_shape`.
    """

    index: tuple[slice, ...]
    splits: tuple[tuple[int, int, int], ...]
    blocks: tuple[slice, ...]

    @property
    def block_dims(self) -> tuple[int, ...]:
        """Return the dimensions of `view`'s result that run inside a block."""
        return tuple(dim + 1 + position for position, (dim, _, _) in enumerate(self.splits))

    def view(self, x: Tensor) -> Tensor:
        """Return the region of `x` with every blocked dimension split in two; shares memory with `x`."""
        x = x[self.index]
        for dim, blocks, length in reversed(self.splits):
            x = x.unflatten(dim, (blocks, length))
        return x

    def view_per_block(self, values: Tensor) -> Tensor:
        """Return the region's part of a tensor of `blocks_shape`, shaped to broadcast over `view`'s results; shares
        memory with `values`.
        """
        values = values[self.blocks]
        for dim, _, _ in reversed(self.splits):
            values = values.unsqueeze(dim + 1)
        return values


def block_axes(ndim: int, block_size: BlockSize, axis: int) -> tuple[int, ...]:
    """Return the dimensions, counted from 0, that blocks extend over.

    A (rows, columns) tile lies on the last two dimensions, rows along the last but one; `axis` must name
    either.

    Raises:
        ValueError: `axis` is not a dimension, or the tensor has too few for a tile.
    """
    if not -ndim <= axis < ndim:
        raise ValueError(f"axis: {axis!r} is not a dimension of a tensor with {ndim}; allowed: {-ndim} to {ndim - 1}")
    if isinstance(block_size, int):
        return (axis % ndim,)
    if ndim < 2 or axis % ndim < ndim - 2:
        raise ValueError(
            f"axis: {axis!r} of a tensor with {ndim} dimensions is not allowed; allowed for the tile "
            f"{block_size}: one of the last two of at least two dimensions"
        )
    return (ndim - 2, ndim - 1)


def blocks_shape(shape: Sequence[int], block_size: BlockSize, axis: int) -> tuple[int, ...]:
    """Return the shape of a tensor with one value for each block of a tensor of `shape`: blocked dimensions are as long
    as they have blocks, the shorter last one included.
    """
    lengths = list(shape)
    for dim, size in zip(block_axes(len(shape), block_size, axis), _sizes(block_size), strict=True):
        lengths[dim] = -(-shape[dim] // (size or shape[dim] or 1))
    return tuple(lengths)


def block_regions(shape: Sequence[int], block_size: BlockSize, axis: int) -> list[Region]:
    """Return the regions that together hold every element of a non-empty tensor of `shape` once."""
    dims = block_axes(len(shape), block_size, axis)
    choices = [_runs(shape[dim], size or shape[dim]) for dim, size in zip(dims, _sizes(block_size), strict=True)]
    regions = []
    for runs in product(*choices):
        index, in_blocks = [slice(None)] * len(shape), [slice(None)] * len(shape)
        splits = []
        for dim, (first, blocks, size, length) in zip(dims, runs, strict=True):
            index[dim] = slice(first * size, first * size + blocks * length)
            in_blocks[dim] = slice(first, first + blocks)
            splits.append((dim, blocks, length))
        regions.append(Region(tuple(index), tuple(splits), tuple(in_blocks)))
    return regions


def _sizes(block_size: BlockSize) -> tuple[int, ...]:
    return (block_size,) if isinstance(block_size, int) else block_size


def _runs(length: int, size: int) -> list[tuple[int, int, int, int]]:
    """Return (first block, number of blocks, block size, their length) of whole blocks and of the shorter last one."""
    whole, rest = divmod(length, size)
    runs = [(0, whole, size, size), (whole, 1, size, rest)]
    return [run for run in runs if run[1] and run[3]]


def pieces(
    views: Sequence[Tensor], block_dims: tuple[int, ...], limit: int | None = None
) -> Iterator[tuple[Tensor, ...]]:
    """Cut `views` in step along dimensions that no block extends over, outermost first. In these all have the first
    one's shape.

    Args:
        limit: of a piece's elements; None for what is quick on the device where torch shares out each operation.
    """
    shape, size = views[0].shape, views[0].numel()
    limit = limit or _piece_limit(views[0].device)
    dim = next((dim for dim in range(len(shape)) if dim not in block_dims and shape[dim] > 1), None)
    if limit is None or size <= limit or dim is None:
        yield tuple(views)
        return
    step = max(1, shape[dim] * limit // size)
    for parts in zip(*(view.split(step, dim) for view in views), strict=True):
        yield from pieces(parts, block_dims, limit)


def _piece_limit(device: torch.device) -> int | None:
    return max(PIECE, GRAIN_SIZE * torch.get_num_threads()) if device.type == "cpu" else None
