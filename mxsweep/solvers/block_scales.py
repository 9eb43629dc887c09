"""Hold the scales of a weight's blocks fixed while its elements are chosen.

Rounding to nearest works a block's scale out and rounds the block's elements with it, in one step. What chooses better
scales (clip.py) or better elements (gptq.py) takes the two apart: `BlockScales` says what every element is divided by,
and its `quantize` rounds any values onto the grids that follow from it.

Legend: w (N, C) a weight, blocked along C; K = ceil(C / length) blocks in a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.blocks import block_regions, blocks_shape
from mxsweep.numerics.reference.definition import center_blocks, elementwise_inputs, restore, tensor_scale_per_block
from mxsweep.numerics.reference.rounding import round_exact
from mxsweep.numerics.reference.scales import exact_scale

ScaleAndMidpoint = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class BlockScales:
    """Hold the scale of every block of a weight (N, C); column j of a row belongs to block j // length.

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
        """Return the scales of `quantize(w, fmt, arithmetic="exact")`.

        Raises:
            ValueError: `w` is not a float32 matrix with elements, or `fmt` rounds stochastically.
        """
        check_weight(w, fmt)

        def choose(views: Sequence[Tensor], block_dims: tuple[int, ...]) -> ScaleAndMidpoint:
            amax, _, midpoint = center_blocks(views[0], block_dims, fmt)
            return exact_scale(amax, fmt, tensor_scale_per_block(block_dims, fmt, views[1:])), midpoint

        return choose_scales(w, fmt, elementwise_inputs(w, fmt, None, None), choose)

    def quantize(self, w: Tensor, fmt: MXFormat) -> Tensor:
        """Return values (N, C) float32 on the grids of these scales: q((w - m) / s) * s + m, in exact arithmetic."""
        scale = self._per_element(self.scale, w.shape[1])
        midpoint = None if self.midpoint is None else self._per_element(self.midpoint, w.shape[1])
        return round_with_scale(w, fmt, scale, midpoint)

    def _per_element(self, per_block: Tensor, width: int) -> Tensor:
        """Return (N, C) of (N, K)."""
        return per_block.repeat_interleave(self.length, dim=1)[:, :width]


def round_with_scale(w: Tensor, fmt: MXFormat, scale: Tensor, midpoint: Tensor | None) -> Tensor:
    """Return q((w - m) / s) * s + m in exact arithmetic; float32, all of one shape or broadcastable to that of w."""
    centered = w if midpoint is None else w - midpoint
    return restore(round_exact(centered / scale, fmt.element_format, fmt.rounding), scale, midpoint)


def choose_scales(
    w: Tensor,
    fmt: MXFormat,
    beside: Sequence[Tensor],
    choose: Callable[[Sequence[Tensor], tuple[int, ...]], ScaleAndMidpoint],
) -> BlockScales:
    """Put together what `choose` gives for each region of `w` that is cut evenly into blocks (see blocks.py).

    Args:
        beside: what else it needs, (N, C) each.
        choose: returns (scale, midpoint or None) of each block, [..., k, 1, ...], for the regions [..., k, b, ...] of
            w and `beside`, and the dimensions that run inside a block.
    """
    scale = w.new_empty(blocks_shape(w.shape, fmt.block_size, -1))
    midpoint = None if fmt.symmetric else torch.empty_like(scale)
    for region in block_regions(w.shape, fmt.block_size, -1):
        of_region = choose([region.view(tensor) for tensor in (w, *beside)], region.block_dims)
        for whole, part in zip((scale, midpoint), of_region, strict=True):
            if whole is not None and part is not None:
                region.view_per_block(whole).copy_(part)
    rows, length = (1, fmt.block_size or w.shape[1]) if isinstance(fmt.block_size, int) else fmt.block_size

    def per_row(per_block: Tensor) -> Tensor:
        return per_block.repeat_interleave(rows, dim=0)[: len(w)]

    return BlockScales(per_row(scale), None if midpoint is None else per_row(midpoint), length)


def check_weight(w: Tensor, fmt: MXFormat) -> None:
    """Raise ValueError for a weight or a format for which scales cannot be held fixed."""
    if w.ndim != 2 or w.dtype != torch.float32 or w.numel() == 0:
        raise ValueError(
            f"w: {w.dtype} of shape {tuple(w.shape)} is not allowed; allowed: a float32 matrix with elements"
        )
    if fmt.rounding == "stochastic":
        raise ValueError(
            "rounding: 'stochastic' does not go with scales that are held fixed, under which each element's value is "
            "chosen; allowed: nearest, even, floor"
        )
