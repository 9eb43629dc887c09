"""The scales of a weight's blocks, held fixed while its elements are chosen.

Rounding to nearest works a block's scale out and rounds the block's elements with it, in one step. What chooses
better scales (clip.py) or better elements (gptq.py) takes the two apart: `BlockScales` says what every element is
divided by, and its `quantize` rounds any values onto the grids that follow from it.

Legend: w (N, C) a weight, blocked along C; K = ceil(C / length) blocks in a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.blocks import block_regions
from mxsweep.numerics.reference.definition import center_blocks, elementwise_inputs, tensor_scale_per_block
from mxsweep.numerics.reference.rounding import round_exact
from mxsweep.numerics.reference.scales import exact_scale

Found = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class BlockScales:
    """The scale of every block of a weight (N, C); column j of a row belongs to block j // length.

    Attributes:
        scale: (N, K) float32, what an element is divided by: under a per-tensor scale g (NVFP4) t = s / g. The rows of
            a tile share a scale, which stands in each of them. NaN for a block that has none.
        midpoint: (N, K) float32, what is subtracted first and added back; None for a symmetric format.
        length: columns of a block; the last block may have fewer.
    """

    scale: Tensor
    midpoint: Tensor | None
    length: int

    @staticmethod
    def of(w: Tensor, fmt: MXFormat) -> BlockScales:
        """The scales of `quantize(w, fmt, arithmetic="exact")`.

        Raises:
            ValueError: `w` is not a float32 matrix with elements, or `fmt` rounds stochastically.
        """
        check_weight(w, fmt)

        def default(views: Sequence[Tensor], block_dims: tuple[int, ...]) -> Found:
            amax, _, midpoint = center_blocks(views[0], block_dims, fmt)
            return exact_scale(amax, fmt, tensor_scale_per_block(block_dims, fmt, views[1:])), midpoint

        return scales_found(w, fmt, elementwise_inputs(w, fmt, None, None, 0), default)

    def quantize(self, w: Tensor, fmt: MXFormat) -> Tensor:
        """Values (N, C) float32 on the grids of these scales: q((w - m) / s) * s + m, as exact arithmetic has it."""
        scale, midpoint = (self._spread(own, w.shape[1]) for own in (self.scale, self.midpoint))
        assert scale is not None
        centered = w if midpoint is None else w - midpoint
        q = round_exact(centered / scale, fmt.element_format, fmt.rounding).mul_(scale)
        return q if midpoint is None else q.add_(midpoint)

    def _spread(self, per_block: Tensor | None, width: int) -> Tensor | None:
        """(N, K) to (N, C)."""
        return None if per_block is None else per_block.repeat_interleave(self.length, dim=1)[:, :width]


def scales_found(
    w: Tensor, fmt: MXFormat, beside: Sequence[Tensor], find: Callable[[Sequence[Tensor], tuple[int, ...]], Found]
) -> BlockScales:
    """Put together what `find` gives for each region of `w` that is cut evenly into blocks (see blocks.py).

    Args:
        beside: what else it needs, (N, C) each.
        find: (scale, midpoint or None) of each block, [..., k, 1, ...], for the regions [..., k, b, ...] of w and
            `beside`, and the dimensions that run inside a block.
    """
    length = _block_length(fmt, w.shape[1])
    scale = w.new_empty(w.shape[0], -(-w.shape[1] // length))
    midpoint = None if fmt.symmetric else torch.empty_like(scale)
    for region in block_regions(w.shape, fmt.block_size, -1):
        views = [region.view(tensor) for tensor in (w, *beside)]
        rows, columns = region.index
        first = (columns.start or 0) // length
        target = (rows, slice(first, first + region.splits[-1][1]))
        found = find(views, region.block_dims)
        for own, part in zip((scale, midpoint), found, strict=True):
            if own is not None and part is not None:
                own[target] = _per_row(part, views[0])
    return BlockScales(scale, midpoint, length)


def _block_length(fmt: MXFormat, width: int) -> int:
    """Columns of a whole block in a row of `width`."""
    return (fmt.block_size or width) if isinstance(fmt.block_size, int) else fmt.block_size[1]


def check_weight(w: Tensor, fmt: MXFormat) -> None:
    """Raises ValueError for what has no frozen scales."""
    if w.ndim != 2 or w.dtype != torch.float32 or w.numel() == 0:
        raise ValueError(
            f"w: {w.dtype} of shape {tuple(w.shape)} is not allowed; allowed: a float32 matrix with elements"
        )
    if fmt.rounding == "stochastic":
        raise ValueError(
            "rounding: 'stochastic' does not go with scales that are held fixed, under which each element's value is "
            "chosen; allowed: nearest, even, floor"
        )


def _per_row(per_block: Tensor, region: Tensor) -> Tensor:
    """[rows, k, 1], or of tiles [r, 1, k, 1], to [rows, k]."""
    if region.ndim == 3:
        return per_block.squeeze(-1)
    return per_block.squeeze(-1).expand(-1, region.shape[1], -1).flatten(0, 1)
